// What may go wrong with the page, done to it on purpose: node faults.mjs PROGRAM FOLDER-OF-THE-PAGE
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { check, click, drawn, events, launch, native, open, seen, serve, steps, until } from './driver.mjs';

const [program, folder] = process.argv.slice(2);

/** Waits for a sentence on the canvas. */
const says = (page, words, seconds = 60) => until(`the page to say "${words}"`, async () => {
  const texts = await page.locator('#mirror > div').allTextContents();
  return texts.find((text) => text.includes(words));
}, seconds);

/** Chooses a file in a dialog that a button opens. */
async function pick(page, button, file) {
  const chooser = page.waitForEvent('filechooser');
  await click(page, 'button', button);
  await (await chooser).setFiles(file);
}

/** Trains natively, up to step `stop` and what comes on top of it, and returns the losses by step. */
async function train(cwd, stop, ...job) {
  const run = native(program, cwd, 'train', ...job);
  const losses = new Map();
  for await (const { step, loss } of run.steps) {
    losses.set(step, loss);
    if (step === stop) run.kill('SIGINT');
  }
  return losses;
}

const server = await serve(program, folder);
const browser = await launch();
const files = mkdtempSync(join(tmpdir(), 'smolforge-faults-'));
let page;
try {
  page = await open(browser.context, server.url);

  const bare = await browser.context.newPage();
  await bare.addInitScript(() => Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined }));
  await bare.goto(server.url);
  await bare.getByText('This browser has no WebGPU').waitFor();
  await bare.close();
  seen('a browser without WebGPU is told what helps');

  const large = join(files, 'large.txt');
  writeFileSync(large, 'x');
  truncateSync(large, 3 * 2 ** 30);
  await pick(page, 'add files', large);
  seen(await says(page, 'too many for a browser tab'));
  rmSync(large);

  const picture = join(files, 'picture.txt');
  writeFileSync(picture, Buffer.from(Array.from({ length: 40_000 }, (_, i) => (i * 7919) % 256)));
  await pick(page, 'add files', picture);
  await click(page, 'button', '▶ train');
  seen(await says(page, 'not text'));

  const broken = join(files, 'broken.zip');
  writeFileSync(broken, 'PK but nothing else');
  await click(page, 'button', 'Runs');
  await pick(page, 'unpack', broken);
  seen(await says(page, 'no whole .zip'));

  // A run that was begun on the desktop goes on here, and makes the losses that it would have made there.
  const text = join(files, 'story.txt');
  writeFileSync(text, Array.from({ length: 3000 }, (_, i) => `${i} geese and ${(i * 7) % 13} foxes walk to the river. `).join(''));
  const shape = ['--preset', 'nano', '--source', 'story=story.txt', '--tokenizer-vocab-size', '300', '--batch-size', '2', '--sequence-length', '64', '--accumulation', '1', '--steps', '14'];
  const whole = await train(files, Infinity, ...shape, '--out', 'whole');
  await train(files, 6, ...shape, '--out', 'begun');
  execFileSync(program, ['pack', 'begun', '--out', 'begun.zip'], { cwd: files, stdio: 'ignore' });
  await pick(page, 'unpack', join(files, 'begun.zip'));
  await click(page, 'button', 'begun', { timeout: 30_000 });
  await click(page, 'button', 'resume');
  const run = await until('the run from the desktop', async () => {
    for (const path of ['runs/begun', 'begun']) {
      const log = await events(page, path);
      if (log.some((event) => event.event === 'done' && !event.stopped)) return { path, log };
    }
    return null;
  });
  const last = steps(run.log).at(-1);
  check(last.step === 14, `it ended at step ${last.step}`);
  const apart = Math.max(...steps(run.log).map((step) => Math.abs(step.loss - whole.get(step.step))));
  seen(`begun on the desktop, ended here: ${steps(run.log).length} steps, losses ${apart.toExponential(1)} apart at most`);
  check(apart < 1e-3, 'its losses are others than on the desktop');

  // And back, with everything that was done here.
  await click(page, 'button', 'Runs');
  await click(page, 'button', 'begun');
  const download = page.waitForEvent('download', { timeout: 60_000 });
  await click(page, 'button', 'pack');
  await (await download).saveAs(join(files, 'back.zip'));
  execFileSync(program, ['unpack', 'back.zip', '--out', 'back'], { cwd: files, stdio: 'ignore' });
  const log = readFileSync(join(files, 'back', 'events.jsonl'), 'utf8').trim().split('\n').map((line) => JSON.parse(line));
  check(steps(log).at(-1).step === 14, 'the log that came back is not whole');
  execFileSync(program, ['generate', '--model', 'back', '--prompt', '7 geese', '--device', 'cpu'], { cwd: files, stdio: 'ignore' });
  seen('and back to the desktop, which generates with it');

  // Texts that wait are written after a reload.
  await click(page, 'button', 'Generate');
  await click(page, 'slider', 'new tokens', { at: 0.95 });
  for (let i = 0; i < 3; i++) await click(page, 'button', '▶ generate');
  await sleep(6000); // forms are saved every five seconds
  const written = await page.evaluate(() => heard.filter((event) => event.event === 'generated').length);
  await page.reload();
  await drawn(page);
  const rest = await until('the texts that waited', () => page.evaluate((number) => {
    const texts = heard.filter((event) => event.event === 'generated');
    return texts.length >= number && texts.length;
  }, 3 - written), 200);
  seen(`${written} of three texts were written before a reload, ${rest} after it`);

  // Two tabs, one run.
  const DEMO = 'runs/demo/run';
  await click(page, 'button', 'Train');
  await click(page, 'button', 'demo');
  await until('the demo to train', async () => steps(await events(page, DEMO)).length > 1);
  await click(page, 'button', 'stop and save');
  await until('a checkpoint', async () => (await events(page, DEMO)).some((event) => event.event === 'done'));
  await click(page, 'button', 'Runs');
  await click(page, 'button', DEMO);
  await click(page, 'button', 'resume');
  const before = steps(await events(page, DEMO)).length;
  await until('the demo to go on', async () => steps(await events(page, DEMO)).length > before);
  const other = await open(browser.context, server.url);
  await click(other, 'button', 'Runs');
  await click(other, 'button', DEMO);
  await click(other, 'button', 'resume');
  seen(`the second tab: ${await says(other, 'in use by another tab')}`);
  await other.close();

  // An engine that ends while a run trains: the page says so, and the next one goes on from the last checkpoint.
  const reached = steps(await events(page, DEMO)).at(-1).step;
  await page.evaluate(() => workers.at(-1).dispatchEvent(new ErrorEvent('error', { message: 'unreachable' })));
  await says(page, 'The engine has ended');
  await click(page, 'button', 'Start it again');
  await until('updates by the next engine', async () => {
    const log = await events(page, DEMO);
    const runs = log.filter((event) => event.event === 'run');
    return runs.length === 3 && steps(log).length > 0 && runs.at(-1).step <= reached && log.at(-1).event === 'step';
  });
  seen('an engine that ended was replaced, and the run goes on from its checkpoint');

  // Without a network, from what the first visit kept.
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  server.stop();
  await page.reload();
  await drawn(page);
  seen('without a server the page opens all the same');
  seen('all as it should be');
} catch (error) {
  console.error(`FAILED: ${error.message}`);
  if (page) {
    console.error((await page.locator('#mirror > div').allTextContents()).filter((text) => /error|warning/.test(text)).join('\n'));
    await page.screenshot({ path: join(tmpdir(), 'smolforge-browser-faults.png') });
  }
  process.exitCode = 1;
} finally {
  await browser.close();
  server.stop();
  rmSync(files, { recursive: true, force: true });
}
