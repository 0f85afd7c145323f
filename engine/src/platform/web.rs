//! A browser tab: one thread, memory of the page, no operating system. Files: [`opfs`].

mod opfs;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;

use js_sys::{Function, Promise, Reflect};
use wasm_bindgen::prelude::Closure;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{MessageChannel, MessageEvent};

use crate::error::{Error, Result};

pub use opfs::*;

/// Every buffer of a graphics device is a page of its own.
pub const SHARED_PAGES: bool = false;

/// Runs the engine as a task of this worker.
pub fn spawn<F: Future<Output = ()> + 'static>(engine: impl FnOnce() -> F + 'static) {
    wasm_bindgen_futures::spawn_local(engine());
}

/// Nothing to prepare: WebAssembly has neither threads here nor a control register.
pub fn prepare_threads() {}

/// A message to itself: the only macrotask that browsers do not delay (timers wait for 4 ms after a few of them).
struct Pinger {
    channel: MessageChannel,
    waiting: RefCell<VecDeque<Function>>,
}

thread_local! {
    static PINGER: Pinger = {
        let channel = MessageChannel::new().expect("browsers with WebGPU have channels");
        let wake = Closure::<dyn FnMut(MessageEvent)>::new(|_| {
            let first = PINGER.with(|pinger| pinger.waiting.borrow_mut().pop_front());
            if let Some(resolve) = first {
                let _ = resolve.call0(&JsValue::UNDEFINED);
            }
        });
        channel.port1().set_onmessage(Some(wasm_bindgen::JsCast::unchecked_ref(wake.as_ref())));
        wake.forget(); // as long as the worker
        Pinger { channel, waiting: RefCell::default() }
    };
}

/// Lets the event loop run: messages arrive only between tasks.
pub async fn yield_now() {
    let promise = Promise::new(&mut |resolve, _| {
        PINGER.with(|pinger| {
            pinger.waiting.borrow_mut().push_back(resolve);
            let _ = pinger.channel.port2().post_message(&JsValue::NULL);
        });
    });
    let _ = wasm_bindgen_futures::JsFuture::from(promise).await;
}

/// Does nothing: a tab cannot sleep, and the browser takes any number of commands.
pub fn wait<T>(_done: impl Future<Output = T>) {}

/// What the browser says of its adapter, e.g. `intel gen-12lp`; wgpu passes on only a description that is often empty.
pub async fn adapter_name() -> String {
    let ask = async || -> Result<String, JsValue> {
        let get = |object: &JsValue, key: &str| Reflect::get(object, &key.into());
        let gpu = get(&get(&js_sys::global(), "navigator")?, "gpu")?;
        let request: Function = get(&gpu, "requestAdapter")?.dyn_into()?;
        let adapter = wasm_bindgen_futures::JsFuture::from(request.call0(&gpu)?.dyn_into::<Promise>()?).await?;
        let info = get(&adapter, "info")?;
        let words = ["vendor", "architecture"].map(|key| get(&info, key).ok().and_then(|word| word.as_string()).unwrap_or_default());
        Ok(words.join(" ").trim().to_string())
    };
    ask().await.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "this browser's adapter".into())
}

/// Ends this worker: only another one gets another device.
pub fn device_lost(error: &Error) {
    panic!("{error}");
}

/// Threads that the CPU device computes with.
pub fn cpu_threads() -> usize {
    1
}

/// Name of the processor.
pub fn cpu_name() -> String {
    "WebAssembly".into()
}

/// Memory of the module, in bytes: it never shrinks.
pub fn peak_rss_bytes() -> u64 {
    memory_bytes()
}

/// Memory of the module, in bytes.
pub fn memory_bytes() -> u64 {
    (core::arch::wasm32::memory_size(0) as u64) << 16
}

/// Memory of a module at most, in bytes; which part of it is free inside nobody tells.
pub fn available_memory_bytes() -> Option<u64> {
    Some(1 << 32)
}

/// A browser does not tell.
pub fn host_name() -> String {
    "browser".into()
}

/// A page reaches neither the cache of other programs nor their settings.
///
/// # Errors
/// Always [`Error::Config`].
pub fn download_model(repo: &str, revision: &str) -> Result<super::Download> {
    let page = format!("https://huggingface.co/{repo}/tree/{revision}");
    let files = "config.json, tokenizer.json and model.safetensors";
    Err(Error::Config(format!("{repo}: a browser cannot download models by name; save {files} of {page}, and open that folder here")))
}

/// A browser has no cache of models.
///
/// # Errors
/// As [`download_model`].
pub fn cached_model(repo: &str, revision: &str) -> Result<Option<String>> {
    download_model(repo, revision).map(|_| None)
}
