// What a browser driven like a person's sees: widgets by their names, clicks and keys on the canvas, files of the page.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from 'playwright-core';

const FLAGS = [
  '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--use-angle=vulkan',
  '--enable-features=Vulkan', '--use-vulkan=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist',
];

const started = Date.now();

/** Says what was seen, and when. */
export const seen = (what) => console.log(`${((Date.now() - started) / 1000).toFixed(0).padStart(4)} s  ${what}`);

/** Fails, saying what, where something does not hold. */
export function check(holds, what) {
  if (!holds) throw new Error(what);
}

/** The steps among events. */
export const steps = (log) => log.filter((event) => event.event === 'step');

/** A text that a small model learns fast. */
export const story = (sentences) =>
  Array.from({ length: sentences }, (_, i) => `${i} geese and ${(i * 7) % 13} foxes walk to the river. `).join('');

/** Losses by step that the program makes on the CPU device with these arguments; at step `stop` it gets a signal. */
export async function losses(program, cwd, job, { stop = Infinity, signal = 'SIGINT' } = {}) {
  const run = spawn(resolve(program), ['--json', ...job, '--device', 'cpu'], { cwd, stdio: ['ignore', 'pipe', 'ignore'] });
  const made = new Map();
  for await (const line of createInterface(run.stdout)) {
    for (const { step, loss } of steps([JSON.parse(line)])) {
      made.set(step, loss);
      if (step === stop) run.kill(signal);
    }
  }
  return made;
}

/** `smolforge web` on a free port: its address, and what ends it. */
export async function serve(program, folder) {
  const server = spawn(program, ['--json', 'web', '--port', '0', '--dir', folder], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = await once(createInterface(server.stdout), 'line');
  return { url: JSON.parse(line).url, stop: () => server.kill() };
}

/** A browser with a profile of its own. */
export async function launch(options = {}) {
  const profile = mkdtempSync(join(tmpdir(), 'smolforge-browser-'));
  const environment = { ...process.env };
  delete environment.VK_DRIVER_FILES; // with them Chromium finds no adapter
  delete environment.VK_ICD_FILENAMES;
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: FLAGS, env: environment,
    viewport: { width: 1280, height: 800 }, acceptDownloads: true, ...options,
  });
  return { context, close: async () => { await context.close(); rmSync(profile, { recursive: true, force: true }); } };
}

/** The page, told to describe itself; `problems` collects what the console and the page report. */
export async function open(context, url, problems = []) {
  const page = await context.newPage();
  page.on('console', (message) => { if (message.type() === 'error') problems.push(message.text()); });
  page.on('pageerror', (error) => problems.push(error.message));
  await page.addInitScript(() => {
    globalThis.longTasks = [];
    new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((task) => Math.round(task.duration))))
      .observe({ type: 'longtask' });
    // What the worker says, for the numbers that are not on the canvas.
    globalThis.heard = [];
    globalThis.Worker = class extends Worker {
      constructor(...how) {
        super(...how);
        (globalThis.workers ??= []).push(this);
        this.addEventListener('message', ({ data }) => {
          const said = JSON.parse(data);
          if (said.Event) heard.push({ id: said.Event[0], job: said.Event[0], ...said.Event[1] });
        });
      }
    };
  });
  await page.goto(url);
  await drawn(page);
  return page;
}

/** Waits until a page that was loaded is drawn and describes itself. */
export async function drawn(page) {
  await page.waitForFunction(() => document.body.dataset.state !== 'loading', null, { timeout: 120_000 });
  const state = await page.evaluate(() => `${document.body.dataset.state} ${document.getElementById('why').textContent}`);
  if (!state.startsWith('ready')) throw new Error(`the page says: ${state}`);
  await page.evaluate(() => document.getElementById('describe').click());
  await page.waitForSelector('#mirror > div', { state: 'attached', timeout: 60_000 });
  // The first frames may take seconds, and a press that is held so long is no click.
  await page.evaluate(() => new Promise((done) => {
    let [calm, last] = [0, performance.now()];
    const frame = (now) => {
      calm = now - last < 100 ? calm + 1 : 0;
      last = now;
      if (calm < 5) requestAnimationFrame(frame);
      else done();
    };
    requestAnimationFrame(frame);
  }));
}

/** Room for the tabs above and the notices below what scrolls. */
const EDGE = 40;
/** Scrolling goes on this long after a turn of the wheel; a menu that is opened meanwhile closes again. */
const SCROLL_MS = 500;

/** The place on the canvas of a widget that can be used, at rest; what may be out of sight is scrolled to the middle. */
export async function place(page, role, name, { nth = 0, timeout = 60_000, exact = false, edge = role === 'button' ? 0 : EDGE } = {}) {
  const widget = page.getByRole(role, { name, exact, disabled: false }).nth(nth);
  await widget.waitFor({ state: 'attached', timeout });
  for (let [before, scrolled] = [null, null]; ;) {
    const box = await until(`a place of ${role} ${name}`, () => widget.boundingBox({ timeout }), timeout / 1000);
    const { width, height } = page.viewportSize();
    const middle = box.y + box.height / 2;
    const now = JSON.stringify(box);
    if (now === before) {
      if (edge === 0 || (middle > edge && middle < height - edge) || now === scrolled) return box;
      await page.mouse.move(Math.min(box.x + 4, width - 8), height / 2);
      await page.mouse.wheel(0, middle - height / 2);
      await sleep(SCROLL_MS);
      scrolled = now; // where it stays if there is nothing to scroll
    }
    before = now === before ? null : now;
    await sleep(60);
  }
}

/** Clicks a widget on the canvas, at a share of its width. */
export async function click(page, role, name, { at = 0.5, count = 1, ...options } = {}) {
  const box = await place(page, role, name, options);
  await page.mouse.click(box.x + box.width * at, box.y + box.height / 2, { clickCount: count, delay: 60 });
}

/** Does something until it is seen to have worked, as people do whose first click missed what had just moved. */
export async function again(act, worked, tries = 3) {
  await act();
  try {
    await worked(tries > 1 ? 5_000 : 60_000);
  } catch (error) {
    if (tries === 1) throw error;
    await again(act, worked, tries - 1);
  }
}

/** Takes an entry of a menu. */
export async function choose(page, name, entry) {
  const chosen = page.getByRole('combobox', { name }).and(page.locator(`[aria-valuetext=${JSON.stringify(entry)}]`));
  await again(async () => {
    await again(() => click(page, 'combobox', name), (timeout) => click(page, 'button', entry, { exact: true, timeout }));
  }, (timeout) => chosen.first().waitFor({ state: 'attached', timeout }));
}

/** Replaces the text of a field. */
export async function type(page, name, text) {
  const field = page.getByRole('textbox', { name, exact: true }).and(page.locator(`[aria-valuetext=${JSON.stringify(text)}]`));
  const options = { exact: true };
  await again(async () => {
    // What is typed must not go where something else has moved to meanwhile.
    for (let before = null, now = ''; before !== now;) {
      before = JSON.stringify(await place(page, 'textbox', name, options));
      await click(page, 'textbox', name, options);
      await sleep(300);
      now = JSON.stringify(await place(page, 'textbox', name, options));
    }
    await page.keyboard.press('Control+a');
    await page.keyboard.type(text);
  }, (timeout) => field.first().waitFor({ state: 'attached', timeout }));
}

/** Chooses a file in a dialog that a button opens. */
export async function pick(page, button, file) {
  const chooser = page.waitForEvent('filechooser');
  await click(page, 'button', button);
  await (await chooser).setFiles(file);
}

/** What is written on the canvas. */
export const texts = (page) => page.locator('#mirror > div').allTextContents();

/** The text of a file of the page, `null` where there is none. */
export async function read(page, path) {
  return page.evaluate(async (path) => {
    let at = await navigator.storage.getDirectory();
    const steps = path.split('/');
    try {
      for (const step of steps.slice(0, -1)) at = await at.getDirectoryHandle(step);
      return await (await (await at.getFileHandle(steps.at(-1))).getFile()).text();
    } catch {
      return null;
    }
  }, path);
}

/** The events in the log of a run. */
export async function events(page, run) {
  const text = await read(page, `${run}/events.jsonl`) ?? '';
  return text.split('\n').filter((line) => line.endsWith('}')).map((line) => JSON.parse(line));
}

/** Waits until `find()` finds something, and returns it. */
export async function until(what, find, seconds = 120) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await find();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`);
    await sleep(250);
  }
}
