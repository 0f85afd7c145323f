// The page as people use it, in Chromium on its software adapter: node test.mjs PROGRAM FOLDER-OF-THE-PAGE
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  again, check, choose, click, drawn, events, launch, losses, open, pick, read, seen, serve, steps, story, texts, type, until,
} from './driver.mjs';

const [program, folder] = process.argv.slice(2);
const RUN = 'runs/demo/run';
const PROMPT = 'Once upon a time';
/** A frame that is longer lets a window feel stuck. */
const LONG_TASK_MS = 50;
/** Updates during which the page is watched. */
const WINDOW = 10;
/** f32 sums in another order, some steps on. */
const TOLERANCE = 2e-3;

const heard = (page, name, from = 0) => page.evaluate(([name, from]) => heard.slice(from).filter((event) => event.event === name), [name, from]);
const count = (page) => page.evaluate(() => heard.length);

/** Long tasks of the page while a run trains. Other programs may lengthen one: what is slow by itself is slow every time. */
async function longTasks(page) {
  const windows = [];
  while (windows.length < 4 && windows.at(-1)?.length !== 0) {
    await page.evaluate(() => { longTasks.length = 0; });
    const from = steps(await events(page, RUN)).length;
    await until('more updates', async () => steps(await events(page, RUN)).length >= from + WINDOW);
    windows.push((await page.evaluate(() => longTasks)).filter((ms) => ms > LONG_TASK_MS));
  }
  return windows;
}

/** Says how far the losses of the first steps are from the native program's, and refuses more than rounding. */
async function compare(made, number, cwd, job, where) {
  const expected = await losses(program, cwd, job, { stop: number, signal: 'SIGKILL' });
  const apart = Math.max(...made.slice(0, number).map(({ step, loss }) => Math.abs(loss - expected.get(step)) / loss));
  seen(`${where}: the native program makes the same ${number} losses, ${apart.toExponential(1)} apart at most`);
  check(apart < TOLERANCE, `${where}: the native program makes other losses: ${[...expected.values()]}`); // also NaN: one is missing
}

/** Tokens that the native CPU device takes greedily. */
function nativeTokens(model, number) {
  const command = ['--json', 'generate', '--model', model, '--prompt', PROMPT, '--greedy', '--device', 'cpu', '--max-new-tokens', `${number}`];
  const lines = execFileSync(program, command, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim().split('\n');
  return lines.map((line) => JSON.parse(line)).find((event) => event.event === 'generated').tokens;
}

/** Presses generate and waits for the text. */
async function generated(page) {
  const from = await count(page);
  await click(page, 'button', '▶ generate');
  return until('a text', async () => (await heard(page, 'generated', from))[0]);
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
  const log = await until('eight updates', async () => {
    const log = await events(page, RUN);
    return steps(log).length >= 8 && log;
  });
  const made = steps(log);
  seen(`${made.length} updates, loss ${made[0].loss.toFixed(3)} to ${made.at(-1).loss.toFixed(3)}`);
  check(made.at(-1).loss < made[0].loss - 0.3, 'the loss has not fallen');
  const long = await longTasks(page);
  seen(`tasks of the page over ${LONG_TASK_MS} ms, in windows of ${WINDOW} updates: ${JSON.stringify(long)}`);
  check(long.at(-1).length === 0, 'the page is stuck again and again while a run trains');

  await compare(made, 8, downloads, ['demo', '--out', 'demo'], 'WebAssembly');

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
  const zip = join(downloads, (await download).suggestedFilename());
  await (await download).saveAs(zip);
  const model = join(downloads, 'model');
  execFileSync(program, ['unpack', zip, '--out', model], { stdio: 'inherit' });
  seen(`exported and downloaded ${zip.split('/').at(-1)}`);

  await click(page, 'button', 'Generate');
  await type(page, 'model', `${RUN}/export`);
  await click(page, 'button', 'greedy');
  await click(page, 'slider', 'new tokens', { at: 0.02 });
  const text = await generated(page);
  const expected = nativeTokens(model, text.tokens.length).join();
  seen(`${text.tokens.length} tokens: ${JSON.stringify(text.text)}`);
  check(text.tokens.join() === expected, `the native program takes other tokens: ${expected} and ${text.tokens}`);
  await choose(page, 'device', 'gpu');
  const shaded = await generated(page);
  seen(`the same by WebGPU, from packed halves, at ${(shaded.tokens.length / shaded.decode_secs).toFixed(1)} tokens/s`);
  check(shaded.tokens.join() === expected, `WebGPU takes other tokens: ${expected} and ${shaded.tokens}`);

  // The first of three requests takes minutes on the software adapter, so there is time to cancel one that waits.
  await click(page, 'slider', 'new tokens', { at: 0.95 });
  await click(page, 'slider', 'samples', { at: 0.66 });
  const from = await count(page);
  await click(page, 'button', '▶ generate');
  await choose(page, 'device', 'cpu');
  for (let i = 0; i < 2; i++) await click(page, 'button', '▶ generate');
  const stopped = async () => (await heard(page, 'done', from)).filter((end) => end.stopped).length;
  // Pressed once only: what was told to stop cannot be told again, and the next one has a button, too.
  const told = async () => await page.getByRole('button', { name: 'cancel', disabled: true }).count() > 0 || await stopped() > 0;
  await again(() => click(page, 'button', 'cancel'), (timeout) => until('a request that stops', told, timeout / 1000));
  await until('a cancelled request', stopped, 240);
  const ending = async () => await page.getByRole('button', { name: 'stop', disabled: true }).count() > 0 || await stopped() > 1;
  await again(() => click(page, 'button', 'stop'), (timeout) => until('the text in progress stops', ending, timeout / 1000));
  await until('three ends', async () => (await heard(page, 'done', from)).length >= 3, 240);
  const jobs = (await heard(page, 'generated', from)).filter((text) => text.finish !== 'cancelled').map((text) => text.job);
  const whole = new Set(jobs.filter((job) => jobs.filter((other) => other === job).length === 3)).size;
  seen(`three requests of three texts: ${whole} written, ${await stopped()} cancelled or stopped`);
  check(whole === 1 && await stopped() === 2, 'not one request written, one cancelled and one stopped');

  const ended = (await events(page, RUN)).filter((event) => event.event === 'done').length;
  await page.reload();
  await drawn(page);
  await click(page, 'button', 'Runs');
  await click(page, 'button', RUN);
  await click(page, 'button', 'resume');
  const resumed = await until('an update after the reload', async () => steps(await events(page, RUN)).find((step) => step.step === saved.step + 1));
  seen(`after a reload the run goes on with step ${resumed.step}, loss ${resumed.loss.toFixed(3)}`);
  await click(page, 'button', 'Train');
  await click(page, 'button', 'stop and save');
  await until('the second end', async () => (await events(page, RUN)).filter((event) => event.event === 'done').length > ended);

  // Fine-tuning, on rows of one's own.
  const rows = join(downloads, 'rows.jsonl');
  const answers = Array.from({ length: 12 }, (_, i) => JSON.stringify({ prompt: `What is the gap of part ${i}?`, completion: ` ${i % 4} mm.` }));
  writeFileSync(rows, answers.join('\n'));
  await click(page, 'button', 'Tune');
  await type(page, 'model', `${RUN}/export`);
  await pick(page, 'add rows', rows);
  await until('the pre-flight list', async () => (await texts(page)).includes('Pre-flight') && (await texts(page)).some((text) => text.startsWith('row 1 ·')));
  await click(page, 'slider', 'rank', { at: 0.25 });
  for (const [key, value] of [['output dir', 'runs/tuned'], ['max steps', '3'], ['per device train batch size', '4']]) {
    await type(page, key, value);
  }
  await choose(page, 'device', 'cpu');
  const figure = await until('its figures', async () => (await texts(page)).find((text) => text.includes('parameters train')));
  seen(`rows with their pre-flight list; ${figure}`);
  await click(page, 'button', '▶ tune');
  const tuned = await until('the end of the fine-tuning run', async () => {
    const log = await events(page, 'runs/tuned');
    return log.some((event) => event.event === 'done') && log;
  });
  const trained = Number(figure.match(/[\d,]+/)[0].replaceAll(',', ''));
  check(tuned.find((event) => event.event === 'run').trained === trained, 'the run trains another number of parameters than the form has told');
  const yaml = (await read(page, 'runs/tuned/finetune.yaml')).replace(`${RUN}/export`, 'model').replace(/rows\/\w+\/rows\.jsonl/, 'rows.jsonl');
  writeFileSync(join(downloads, 'tune.yaml'), yaml);
  await compare(steps(tuned), 3, downloads, ['finetune', 'tune.yaml', '--output-dir', 'tuned'], 'fine-tuning');
  const { r } = JSON.parse(await read(page, 'runs/tuned/adapter/adapter_config.json'));
  await click(page, 'button', 'shelf');
  await page.getByRole('checkbox', { name: 'runs/tuned' }).waitFor({ state: 'attached', timeout: 20_000 });
  seen(`an adapter of rank ${r} stands on the shelf`);

  // A task with right answers, of which so small a model knows none.
  await click(page, 'button', 'Reason');
  for (const key of ['student', 'teacher']) await type(page, key, `${RUN}/export`);
  await type(page, 'out', 'runs/task');
  await type(page, 'oversample', '2');
  const groups = { Questions: { 'train questions': '6', 'valid questions': '4' }, Answers: { 'max new tokens': '8' }, SFT: { 'sft batch size': '4', 'sft epochs': '1.0' } };
  for (const [group, keys] of Object.entries({ Run: {}, ...groups })) {
    const inside = group === 'Run' ? page.getByRole('combobox', { name: 'device' }) : page.getByRole('textbox', { name: Object.keys(keys)[0], exact: true });
    await again(() => click(page, 'button', group, { exact: true, edge: 200 }), (timeout) => inside.first().waitFor({ state: 'attached', timeout }));
    if (group === 'Run') await choose(page, 'device', 'cpu');
    for (const [key, value] of Object.entries(keys)) await type(page, key, value);
  }
  const press = async (button, event) => {
    const from = await count(page);
    await click(page, 'button', button);
    const { id } = await until(`the start of ${button}`, async () => (await heard(page, 'started', from)).find(({ job }) => job === 'reason'));
    const ended = async () => (await heard(page, 'done', from)).concat(await heard(page, 'failed', from)).find((end) => end.id === id);
    const end = await until(`the end of ${button}`, ended, 240);
    return { ...end, told: (await heard(page, event, from)).findLast((told) => told.id === id) };
  };
  await press('make questions', 'wrote');
  const questions = JSON.parse(await read(page, 'runs/task/valid.json'));
  const { told: tested } = await press('test (CoT)', 'tested');
  writeFileSync(join(downloads, 'valid.json'), JSON.stringify(questions));
  const asked = ['cot', '--model', model, '--data', 'valid.json', '--device', 'cpu', '--max-new-tokens', '8'];
  const lines = execFileSync(program, ['--json', 'task', 'unit-conversion', ...asked], { cwd: downloads, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  const native = lines.trim().split('\n').map((line) => JSON.parse(line)).find((event) => event.event === 'tested');
  const replies = (report) => JSON.stringify(report.replies.map(({ question, text }) => [question, text]));
  check(tested.replies.length === questions.length && replies(tested) === replies(native), `other replies than the native ones: ${replies(tested)}, ${replies(native)}`);
  const { error, told: funnel } = await press('roll out', 'funnel');
  check(funnel.samples === 12 && funnel.right === 0 && error, `not a rollout without a right sample: ${JSON.stringify(funnel)}, ${error}`);
  await press('learn answers', 'run');
  const learned = steps(await events(page, 'runs/task/sft'));
  seen(`questions, their test as the native program's, a rollout (${error}), an adapter by ${learned.length} updates`);
  check(learned.length === 2, 'not two updates of at most four questions');

  // Training by WebGPU, on a file of one's own.
  await click(page, 'button', 'Train');
  const file = join(downloads, 'story.txt');
  writeFileSync(file, story(900));
  await pick(page, 'add files', file);
  await until('the file in the list', async () => (await texts(page)).some((text) => text.includes('KiB')));
  for (const [key, value] of [['out', 'runs/gpu'], ['tokenizer vocab size', '300'], ['batch size', '1'], ['sequence length', '32']]) {
    await type(page, key, value);
  }
  await choose(page, 'device', 'gpu');
  await click(page, 'button', '▶ train');
  const shades = await until('twenty updates by WebGPU', async () => {
    const log = await events(page, 'runs/gpu');
    return steps(log).length >= 20 && log;
  }, 400);
  const device = shades.find((event) => event.event === 'run').device;
  check(device.includes('webgpu'), `not by WebGPU: ${device}`);
  check(shades.find((event) => event.event === 'run').tokens_per_step === 32, 'not what was typed');
  await click(page, 'button', 'stop and save');
  const config = await read(page, 'runs/gpu/config.yaml');
  writeFileSync(join(downloads, 'run.yaml'), config.replace(/texts\/\w+\/story\.txt/, 'story.txt'));
  await compare(steps(shades), 20, downloads, ['train', 'run.yaml', '--out', 'native'], device);

  check(problems.length === 0, `the console has errors: ${problems.join('; ')}`);
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
