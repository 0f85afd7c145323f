import { launch, open, until, click, events } from './browser.mjs';
const { context, close } = await launch();
const problems = [];
const url = process.argv[2];
try {
  const page = await open(context, url, problems);
  page.on('console', (m) => console.log('console', m.type(), m.text().slice(0, 300)));
  await click(page, 'button', 'Run the demo');
  const t0 = Date.now();
  await page.evaluate(() => { longTasks.length = 0; });
  let last = 0;
  for (let i = 0; i < 90; i++) {
    await page.waitForTimeout(2000);
    const e = await events(page, 'runs/demo/run');
    const steps = e.filter((x) => x.event === 'step');
    if (steps.length !== last || i % 10 === 0) { last = steps.length; console.log(((Date.now() - t0) / 1000).toFixed(0), 's', 'steps', steps.length, steps.at(-1)?.loss, steps.at(-1)?.tokens_per_sec); }
    if (i === 8 || i === 30 || i === 60) await page.screenshot({ path: `/tmp/shots/web2-${i}.png` });
    const ended = await page.evaluate(() => [...document.querySelectorAll('#mirror > div')].map((d) => d.textContent).filter((t) => /error|ended/.test(t)));
    if (ended.length) { console.log(ended); }
    if (steps.length >= 12) break;
  }
  console.log('long', await page.evaluate(() => longTasks));
} catch (e) { console.log('FAILED', e); }
console.log(problems.slice(0, 5).join('\n'));
await close();
