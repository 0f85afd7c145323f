// After the first visit the page opens without a network. VERSION is the hash of all files, put in by build.sh.
const VERSION = 'VERSION';
const FILES = ['./', 'index.html', 'worker.js', 'smolforge.js', 'smolforge_bg.wasm', 'icon.svg', 'manifest.webmanifest'];

addEventListener('install', (event) => {
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(FILES)).then(() => skipWaiting()));
});
addEventListener('activate', (event) => {
  const old = (name) => name !== VERSION && caches.delete(name);
  event.waitUntil(caches.keys().then((names) => Promise.all(names.map(old))).then(() => clients.claim()));
});
addEventListener('fetch', (event) => {
  if (event.request.method !== 'GET' || new URL(event.request.url).origin !== location.origin) return;
  event.respondWith(caches.open(VERSION).then(async (cache) => await cache.match(event.request, { ignoreSearch: true }) ?? fetch(event.request)));
});
