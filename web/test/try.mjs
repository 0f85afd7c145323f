import { launch, open, until } from './browser.mjs';
const { context, close } = await launch();
const problems = [];
const url = process.argv[2];
try {
  const page = await open(context, url, problems);
  await page.waitForTimeout(2000);
  console.log(await page.evaluate(() => [...document.querySelectorAll('#mirror > div')].map((d) => `${d.getAttribute('role') ?? 'text'}: ${d.getAttribute('aria-label') ?? d.textContent}`).join('\n')));
  await page.screenshot({ path: '/tmp/shots/web1.png' });
  console.log('long', await page.evaluate(() => longTasks));
} catch (e) { console.log('FAILED', e); }
console.log(problems.join('\n'));
await close();
