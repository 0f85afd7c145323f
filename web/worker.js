// The engine: the same module as the page, which sees by its surroundings that it is a worker.
const ended = (why) => postMessage(JSON.stringify({ Ended: String(why) }));
addEventListener('error', (event) => ended(event.message));
addEventListener('unhandledrejection', (event) => ended(event.reason));
try {
  const { default: load } = await import('./smolforge.js');
  await load();
} catch (error) {
  ended(error);
}
