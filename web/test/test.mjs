// The page as people use it, in Chromium on its software adapter: node test.mjs PROGRAM FOLDER-OF-THE-PAGE
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { click, events, launch, open, place, serve, type, until } from './driver.mjs';

const [program, folder] = process.argv.slice(2);
const RUN = 'runs/demo/run';
/** A frame that is longer lets a window feel stuck. */
const LONG_TASK_MS = 50;
/** f32 sums in another order, some steps on. */
const TOLERANCE = 2e-3;

const started = Date.now();
const seen = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(0).padStart(4)} s  ${what}`);
const check = (holds, what) => { if (!holds) throw new Error(what); };
const steps = (log) => log.filter((event) => event.event === 'step');
const heard = (page, name, from = 0) => page.evaluate(([name, from]) => heard.slice(from).filter((event) => event.event === name), [name, from]);
const count = (page) => page.evaluate(() => heard.length);

/** Losses of the first steps of the same demo in the native program. */
async function nativeLosses(number) {
  const out = mkdtempSync(join(tmpdir(), 'smolforge-native-'));
  const demo = spawn(program, ['--json', 'demo', '--out', join(out, 'demo'), '--device', 'cpu'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const losses = [];
  for await (const line of createInterface(demo.stdout)) {
    const event = JSON.parse(line);
    if (event.event === 'step') losses.push(event.loss);
    if (losses.length === number) break;
  }
  demo.kill('SIGKILL');
  rmSync(out, { recursive: true, force: true });
  return losses;
}

const server = await serve(program, folder);
const browser = await launch();
const downloads = mkdtempSync(join(tmpdir(), 'smolforge-downloads-'));
const problems = [];
let page;
try {
  page = await open(browser.context, server.url, problems);
  seen('the page is drawn');

  await click(page, 'button', 'Run the demo');
  await until('the first update', async () => steps(await events(page, RUN)).length > 0);
  await page.evaluate(() => { longTasks.length = 0; });
  const log = await until('eight updates', async () => {
    const log = await events(page, RUN);
    return steps(log).length >= 8 && log;
  });
  const losses = steps(log).map((step) => step.loss);
  const long = await page.evaluate(() => longTasks);
  seen(`${losses.length} updates, loss ${losses[0].toFixed(3)} to ${losses.at(-1).toFixed(3)}; tasks over ${LONG_TASK_MS} ms: ${JSON.stringify(long)}`);
  check(losses.at(-1) < losses[0] - 0.3, 'the loss has not fallen');

  const native = await nativeLosses(8);
  const apart = Math.max(...native.map((loss, step) => Math.abs(loss - losses[step]) / loss));
  seen(`the native program makes the same losses: apart by ${apart.toExponential(1)} at most`);
  check(apart < TOLERANCE, `losses differ from the native program's: ${native} and ${losses}`);

  await click(page, 'slider', '', { at: 0.15 });
  const moved = await until('the moved weight in the log', async () => (await events(page, RUN)).find((event) => event.event === 'reweighted'));
  seen(`a weight was moved: from step ${moved.step} on ${JSON.stringify(moved.weights)}`);

  await click(page, 'button', 'stop and save');
  const saved = await until('a checkpoint', async () => (await events(page, RUN)).findLast((event) => event.event === 'saved'));
  await until('the end of the run', async () => (await events(page, RUN)).some((event) => event.event === 'done'));
  seen(`stopped and saved after step ${saved.step}`);

  await click(page, 'button', 'Runs');
  await click(page, 'button', RUN);
  const download = page.waitForEvent('download', { timeout: 120_000 });
  await click(page, 'button', 'export FP16');
  const file = join(downloads, (await download).suggestedFilename());
  await (await download).saveAs(file);
  const model = join(downloads, 'model');
  execFileSync(program, ['unpack', file, '--out', model], { stdio: 'inherit' });
  seen(`exported and downloaded ${file.split('/').at(-1)}`);

  await click(page, 'button', 'Generate');
  await type(page, 'model', `${RUN}/export`);
  await click(page, 'button', 'greedy');
  await click(page, 'slider', 'new tokens', { at: 0.02 });
  let from = await count(page);
  await click(page, 'button', 'generate');
  const [text] = await until('a text', async () => (await heard(page, 'generated', from)).length && heard(page, 'generated', from));
  const command = ['--json', 'generate', '--model', model, '--prompt', 'Once upon a time', '--greedy', '--device', 'cpu', '--max-new-tokens', `${text.tokens.length}`];
  const lines = execFileSync(program, command, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim().split('\n');
  const expected = lines.map((line) => JSON.parse(line)).find((event) => event.event === 'generated').tokens;
  seen(`${text.tokens.length} tokens: ${JSON.stringify(text.text)}`);
  check(JSON.stringify(text.tokens) === JSON.stringify(expected), `the native program takes other tokens: ${expected} and ${text.tokens}`);

  from = await count(page);
  for (let i = 0; i < 3; i++) await click(page, 'button', 'generate');
  await click(page, 'button', 'cancel');
  const ends = await until('three ends', async () => {
    const ends = await heard(page, 'done', from);
    return ends.length >= 3 && ends;
  });
  const written = await heard(page, 'generated', from);
  seen(`three requests: ${written.length} written, ${ends.filter((end) => end.stopped).length} cancelled`);
  check(written.length === 2 && ends.filter((end) => end.stopped).length === 1, 'not two texts and one cancelled');

  await page.reload();
  await page.waitForFunction(() => document.body.dataset.state === 'ready');
  await page.evaluate(() => document.getElementById('describe').click());
  await click(page, 'button', 'Runs');
  await click(page, 'button', RUN);
  await click(page, 'button', 'resume');
  const resumed = await until('an update after the reload', async () => steps(await events(page, RUN)).find((step) => step.step === saved.step + 1));
  seen(`after a reload the run goes on with step ${resumed.step}, loss ${resumed.loss.toFixed(3)}`);
  await click(page, 'button', 'Train');
  await click(page, 'button', 'stop and save');
  await until('the second end', async () => (await events(page, RUN)).filter((event) => event.event === 'done').length > 0);

  check(problems.length === 0, `the console has errors: ${problems.join('; ')}`);
  check(long.every((ms) => ms <= LONG_TASK_MS), `the page was stuck for ${Math.max(...long)} ms while a run trained`);
  seen('all as it should be');
} catch (error) {
  console.error(`FAILED: ${error.message}`);
  console.error(problems.join('\n'));
  if (page) await page.screenshot({ path: join(tmpdir(), 'smolforge-browser-test.png') }).then(() => console.error('see smolforge-browser-test.png in the temporary folder'));
  process.exitCode = 1;
} finally {
  await browser.close();
  server.stop();
  rmSync(downloads, { recursive: true, force: true });
}
