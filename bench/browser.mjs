// Times a program inside Chromium on its software adapter: our page's worker, or transformers.js. Prints one JSON line.
//
// node browser.mjs {smolforge | transformers} JSON, an object of packages, page, model, preset, inputs, targets, prefill, decode, repeats.
// Called by compare.py, which installs `packages` and writes `model` (onnx_model.py); `page` is web/dist.
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { join, normalize } from 'node:path';

const FLAGS = [
  '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
  '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader',
];
const TYPES = { html: 'text/html', js: 'text/javascript', mjs: 'text/javascript', wasm: 'application/wasm', json: 'application/json' };
const LIMIT_MS = 1_200_000;

const side = process.argv[2];
const options = JSON.parse(process.argv[3]);

/** Files by the first part of their address; the root is an empty page. */
async function serve() {
  const folders = {
    page: options.page,
    transformers: join(options.packages, 'node_modules/@huggingface/transformers/dist'),
    ort: join(options.packages, 'node_modules/onnxruntime-web/dist'),
    model: options.model,
  };
  const server = createServer(async ({ url }, response) => {
    const [, folder, ...path] = new URL(url, 'http://localhost').pathname.split('/');
    try {
      const file = normalize(`/${path.join('/')}`);
      const body = folder === '' ? '<!doctype html><title>bench</title>' : await readFile(join(folders[folder], file));
      const type = folder === '' ? 'text/html' : TYPES[path.at(-1).split('.').pop()] ?? 'application/octet-stream';
      response.writeHead(200, { 'content-type': type, 'content-length': Buffer.byteLength(body) }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  return { url: `http://localhost:${server.address().port}/`, stop: () => server.close() };
}

/** In the page: `smolforge bench` in the worker. */
async function smolforge({ preset, inputs, prefill, decode, repeats }) {
  const worker = new Worker('/page/worker.js', { type: 'module' });
  const found = { phases: {} };
  return new Promise((done, failed) => {
    worker.onerror = (error) => failed(new Error(error.message));
    worker.onmessage = ({ data }) => {
      const said = JSON.parse(data);
      if (said === 'Ready') {
        const sizes = { batch: 1, seq: inputs.length, repeats, prefill, decode };
        worker.postMessage(JSON.stringify([1, { command: 'bench', preset, device: 'gpu', precision: 'f32', ...sizes }]));
      } else if (said.Ended) {
        failed(new Error(said.Ended));
      } else if (said.Event) {
        const { event, phase, tokens_per_sec, losses, ...rest } = said.Event[1];
        if (event === 'bench') found.phases[phase] = { tokens_per_sec };
        if (phase === 'step') found.losses = losses;
        if (event === 'failed') failed(new Error(JSON.stringify(rest)));
        if (event === 'done') done(found);
      }
    };
  });
}

/** In the page: transformers.js on WebGPU, the batch's loss token by token, then a prompt and tokens behind it. */
async function transformers({ inputs, targets, prefill, decode, repeats }) {
  const { AutoModelForCausalLM, Tensor, env } = await import('/transformers/transformers.min.js');
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = '/';
  env.useBrowserCache = false;
  env.backends.onnx.wasm.wasmPaths = '/ort/';
  const model = await AutoModelForCausalLM.from_pretrained('model', { device: 'webgpu', dtype: 'fp32' });
  const given = (tokens) => ({
    input_ids: new Tensor('int64', BigInt64Array.from(tokens, BigInt), [1, tokens.length]),
    attention_mask: new Tensor('int64', new BigInt64Array(tokens.length).fill(1n), [1, tokens.length]),
  });
  let [loss, past] = [0, null];
  for (const [at, token] of inputs.entries()) {
    const mask = new Tensor('int64', new BigInt64Array(at + 1).fill(1n), [1, at + 1]);
    const out = await model({ ...given([token]), attention_mask: mask, past_key_values: past });
    const row = out.logits.tolist()[0][0];
    const most = row.reduce((a, b) => Math.max(a, b));
    loss += (Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - most), 0)) + most - row[targets[at]]) / inputs.length;
    const cached = Object.entries(out).filter(([name]) => name.startsWith('present'));
    past = Object.fromEntries(cached.map(([name, value]) => [name.replace('present', 'past_key_values'), value]));
  }
  const prompt = given(Array.from({ length: prefill }, (_, at) => inputs[at % inputs.length]));
  const secs = [];
  for (let repeat = 0; repeat <= repeats; repeat += 1) {
    const marks = [];
    const streamer = { put: () => marks.push(performance.now()), end: () => {} }; // first the prompt, then token by token
    await model.generate({ ...prompt, do_sample: false, min_new_tokens: decode + 1, max_new_tokens: decode + 1, streamer });
    if (marks.length !== decode + 2) throw new Error(`${marks.length} calls of the streamer, not ${decode + 2}`);
    if (repeat > 0) secs.push((marks.at(-1) - marks[1]) / 1000);
  }
  const median = secs.sort((a, b) => a - b)[Math.floor(secs.length / 2)];
  return { phases: { decode: { tokens_per_sec: decode / median } }, losses: [loss] };
}

const { chromium } = createRequire(join(options.packages, 'package.json'))('playwright-core');
const environment = { ...process.env };
delete environment.VK_DRIVER_FILES; // with them Chromium finds no adapter
delete environment.VK_ICD_FILENAMES;
const server = await serve();
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS, env: environment });
try {
  const page = await browser.newPage();
  page.on('console', (message) => { if (message.type() === 'error') console.error(message.text()); });
  page.on('pageerror', (error) => console.error(error.message));
  await page.goto(server.url);
  const late = new Promise((_, failed) => setTimeout(() => failed(new Error(`not done in ${LIMIT_MS / 1000} s`)), LIMIT_MS).unref());
  const work = side === 'smolforge' ? smolforge : transformers;
  const found = await Promise.race([page.evaluate(work, options), late]);
  const adapter = await page.evaluate(async () => (await navigator.gpu.requestAdapter())?.info.description);
  console.log(JSON.stringify({ event: `bench_${side}`, adapter, browser: browser.version(), ...found }));
} finally {
  await browser.close();
  server.stop();
}
