//! A browser tab: one thread, no paths. Folders of the browser's own file system come with the app.

use std::future::Future;
use std::ops::Deref;

use crate::error::{Error, Result};
use crate::store::Entry;

/// Every buffer of a graphics device is a page of its own.
pub const SHARED_PAGES: bool = false;

fn no_files<T>(name: &str) -> Result<T> {
    Err(Error::File { path: name.into(), reason: "a browser has no folders; copy the file into the store first".into() })
}

/// Runs the engine as a task of this worker.
pub fn spawn<F: Future<Output = ()> + 'static>(engine: impl FnOnce() -> F + 'static) {
    wasm_bindgen_futures::spawn_local(engine());
}

/// Nothing to prepare: WebAssembly has neither threads here nor a control register.
pub fn prepare_threads() {}

/// Lets the event loop run: messages arrive only between tasks.
pub async fn yield_now() {
    let promise = js_sys::Promise::new(&mut |resolve, _| {
        let global = js_sys::global();
        let timeout = js_sys::Reflect::get(&global, &"setTimeout".into()).ok();
        match timeout.and_then(|f| wasm_bindgen::JsCast::dyn_into::<js_sys::Function>(f).ok()) {
            Some(timeout) => drop(timeout.call2(&global, &resolve, &0.into())),
            None => drop(resolve.call0(&global)),
        }
    });
    let _ = wasm_bindgen_futures::JsFuture::from(promise).await;
}

/// Threads that the CPU device computes with.
pub fn cpu_threads() -> usize {
    1
}

/// Name of the processor.
pub fn cpu_name() -> String {
    "WebAssembly".into()
}

/// Memory of the module, in bytes.
pub fn peak_rss_bytes() -> u64 {
    (core::arch::wasm32::memory_size(0) as u64) << 16
}

/// A browser does not tell.
pub fn available_memory_bytes() -> Option<u64> {
    None
}

/// A browser does not tell.
pub fn host_name() -> String {
    "browser".into()
}

/// Bytes of a file; there are none without folders.
#[derive(Debug)]
pub struct MappedFile(());

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &[]
    }
}

/// Always an error here.
pub fn open(_path: &str, name: &str) -> Result<MappedFile> {
    no_files(name)
}

/// Always false here.
pub fn exists(_path: &str) -> bool {
    false
}

/// Never: a browser has no folders of this kind.
pub fn is_folder(_path: &str) -> bool {
    false
}

/// Always empty here.
pub fn list(_path: &str, _name: &str) -> Result<Vec<Entry>> {
    Ok(Vec::new())
}

/// Always an error here.
pub fn expand(_path: &str, name: &str) -> Result<Vec<String>> {
    no_files(name)
}

/// Always an error here.
pub fn rename(_from: &str, _to: &str, name: &str) -> Result<()> {
    no_files(name)
}

/// Always an error here.
pub fn remove(_path: &str, name: &str) -> Result<()> {
    no_files(name)
}

/// Cannot be made here.
pub enum FileLock {}

/// Always an error here.
pub fn lock(_path: &str, name: &str) -> Result<FileLock> {
    no_files(name)
}

/// Cannot be made here.
pub enum AtomicFile {}

impl AtomicFile {
    /// Always an error here.
    pub fn create(_path: &str, name: &str) -> Result<Self> {
        no_files(name)
    }

    /// Never called.
    pub fn write(&mut self, _data: &[u8]) -> Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn finish(self) -> Result<()> {
        match self {}
    }
}

/// Cannot be made here.
pub enum AppendFile {}

impl AppendFile {
    /// Always an error here.
    pub fn open(_path: &str, name: &str) -> Result<Self> {
        no_files(name)
    }

    /// Never called.
    pub fn write(&mut self, _data: &[u8]) -> Result<()> {
        match *self {}
    }
}
