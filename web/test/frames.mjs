import { click, events, launch, open, serve, until } from './driver.mjs';
const server = await serve(process.argv[2], process.argv[3]);
const { context, close } = await launch();
try {
  await context.addInitScript(() => {
    globalThis.frames = [];
    const raf = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = (f) => raf((t) => { const a = performance.now(); f(t); frames.push(performance.now() - a); });
    globalThis.msgs = [];
  });
  const page = await open(context, server.url);
  if (process.argv[4] === 'nomirror') { await page.reload(); await page.waitForFunction(() => document.body.dataset.state === 'ready'); await page.waitForTimeout(2000); await page.mouse.click(860, 282); }
  else await click(page, 'button', 'Run the demo');
  await until('steps', async () => (await events(page, 'runs/demo/run')).filter((e) => e.event === 'step').length >= 3);
  await page.evaluate(() => { frames.length = 0; longTasks.length = 0; });
  await until('steps', async () => (await events(page, 'runs/demo/run')).filter((e) => e.event === 'step').length >= 25);
  const f = (await page.evaluate(() => frames)).sort((a, b) => a - b);
  console.log('frames', f.length, 'p50', f[f.length >> 1]?.toFixed(1), 'p95', f[Math.floor(f.length * 0.95)]?.toFixed(1), 'max', f.at(-1)?.toFixed(1));
  console.log('long', await page.evaluate(() => longTasks));
} finally { await close(); server.stop(); }
