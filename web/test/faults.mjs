// What may go wrong with the page, done to it on purpose: node faults.mjs PROGRAM FOLDER-OF-THE-PAGE
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { check, click, drawn, events, launch, losses, open, pick, seen, serve, steps, story, texts, until } from './driver.mjs';

const [program, folder] = process.argv.slice(2);

/** Waits for a sentence on the canvas. */
const says = (page, words, seconds = 60) =>
  until(`the page to say "${words}"`, async () => (await texts(page)).find((text) => text.includes(words)), seconds);

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
  writeFileSync(text, story(3000));
  const job = ['train', '--preset', 'nano', '--source', 'story=story.txt', '--tokenizer-vocab-size', '300', '--batch-size', '2', '--sequence-length', '64', '--accumulation', '1', '--steps', '14'];
  const whole = await losses(program, files, [...job, '--out', 'whole']);
  await losses(program, files, [...job, '--out', 'begun'], { stop: 6 });
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

  // A browser that grants no more space: the run waits, and goes on when there is some.
  const devtools = await browser.context.newCDPSession(page);
  const origin = new URL(server.url).origin;
  const { usage } = await page.evaluate(() => navigator.storage.estimate());
  await devtools.send('Storage.overrideQuotaForOrigin', { origin, quotaSize: usage });
  await click(page, 'button', 'save', { exact: true });
  seen(await says(page, 'no space left'));
  const full = steps(await events(page, DEMO)).at(-1).step;
  await devtools.send('Storage.overrideQuotaForOrigin', { origin });
  await click(page, 'button', '▶ go on');
  await until('the run to go on', async () => {
    const log = await events(page, DEMO);
    return log.some((event) => event.event === 'saved' && event.step >= full) && steps(log).at(-1).step > full + 2;
  });
  const made = steps(await events(page, DEMO)).map((step) => step.step);
  check(made.every((step, place) => step === place + 1), `steps are missing or twice: ${made}`);
  seen(`it waited at step ${full} and went on, with every step in its log`);

  const other = await open(browser.context, server.url);
  await click(other, 'button', 'Runs');
  await click(other, 'button', DEMO);
  await click(other, 'button', 'resume');
  seen(`the second tab: ${await says(other, 'in use by another tab')}`);
  await other.close();

  // The tab is closed while a checkpoint is being written.
  const watcher = await browser.context.newPage();
  await watcher.goto(`${server.url}manifest.webmanifest`);
  const saving = (wanted) => watcher.evaluate(async ([path, wanted]) => {
    for (let tries = 0; tries < 6000; tries++) {
      let at = await navigator.storage.getDirectory();
      try {
        for (const step of path.split('/')) at = await at.getDirectoryHandle(step);
        return true;
      } catch {
        if (!wanted) return false;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
    return false;
  }, [`${DEMO}/.saving`, wanted]);
  const begun = saving(true);
  await click(page, 'button', 'save', { exact: true });
  check(await begun, 'no checkpoint was written');
  await page.close();
  const half = await saving(false);
  page = await open(browser.context, server.url);
  await click(page, 'button', 'Runs');
  await click(page, 'button', DEMO);
  const ended = steps(await events(page, DEMO)).at(-1).step;
  await click(page, 'button', 'resume');
  await until('the run of the closed tab to go on', async () => steps(await events(page, DEMO)).at(-1).step > ended + 2);
  await click(page, 'button', 'save', { exact: true });
  await until('another checkpoint', async () => (await events(page, DEMO)).some((event) => event.event === 'saved' && event.step > ended));
  check(!await saving(false), 'what was half written is still there');
  await watcher.close();
  seen(`a tab closed while saving${half ? ', which left half a checkpoint,' : ''} goes on`);

  // An engine that ends while a run trains: the page says so, and the next one goes on from the last checkpoint.
  const reached = steps(await events(page, DEMO)).at(-1).step;
  await page.evaluate(() => workers.at(-1).dispatchEvent(new ErrorEvent('error', { message: 'unreachable' })));
  await says(page, 'The engine has ended');
  await click(page, 'button', 'Start it again');
  await until('updates by the next engine', async () => {
    const log = await events(page, DEMO);
    const runs = log.filter((event) => event.event === 'run');
    return runs.length === 4 && steps(log).length > 0 && runs.at(-1).step <= reached && log.at(-1).event === 'step';
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
    console.error((await texts(page)).filter((text) => /error|warning/.test(text)).join('\n'));
    await page.screenshot({ path: join(tmpdir(), 'smolforge-browser-faults.png') });
  }
  process.exitCode = 1;
} finally {
  await browser.close();
  server.stop();
  rmSync(files, { recursive: true, force: true });
}
