// Every kernel that browsers may run, as a browser's own compiler reads it: it is stricter than ours.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { check, launch, seen, serve } from './driver.mjs';

const [program, folder] = process.argv.slice(2);
const wgsl = fileURLToPath(new URL('../../shaders/wgsl', import.meta.url));
const names = readdirSync(wgsl).filter((name) => name.endsWith('.wgsl') && !name.endsWith('_lanes.wgsl')); // browsers lack subgroups
const kernels = names.map((name) => [name, readFileSync(join(wgsl, name), 'utf8')]);

const server = await serve(program, folder);
const browser = await launch();
try {
  const page = await browser.context.newPage();
  await page.goto(server.url);
  const refused = await page.evaluate(async (kernels) => {
    const device = await (await navigator.gpu.requestAdapter()).requestDevice();
    const refused = [];
    for (const [name, code] of kernels) {
      const module = device.createShaderModule({ code });
      const errors = (await module.getCompilationInfo()).messages.filter((message) => message.type === 'error');
      const lines = errors.map((error) => `${name}:${error.lineNum}: ${error.message}`);
      const pipeline = device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: 'main' } });
      await pipeline.catch((error) => lines.push(`${name}: ${error.message}`));
      refused.push(...lines);
    }
    return refused;
  }, kernels);
  check(refused.length === 0, `kernels that the browser refuses:\n${refused.join('\n')}`);
  seen(`the browser takes all ${kernels.length} kernels`);
} finally {
  await browser.close();
  server.stop();
}
