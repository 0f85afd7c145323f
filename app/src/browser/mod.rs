//! A browser: the page draws, a worker with its own copy of this module is the engine, and files lie in the browser's
//! own file system (OPFS), into which dropped and chosen ones are copied.

mod mirror;
mod page;
mod worker;

use wasm_bindgen::{JsCast, JsValue};
use web_sys::DedicatedWorkerGlobalScope;

pub use page::{Link, Picker};

unsafe extern "C" {
    /// The linker's call of all static constructors. Where nobody refers to it, every export calls them again.
    fn __wasm_call_ctors();
}

/// The page, or the engine in a worker: both load this module.
pub fn main() {
    // SAFETY: called once, before anything else runs.
    unsafe { __wasm_call_ctors() };
    match js_sys::global().dyn_into::<DedicatedWorkerGlobalScope>() {
        Ok(scope) => worker::serve(scope),
        Err(_) => page::open(),
    }
}

/// What a browser says, in words.
fn reason(error: &JsValue) -> String {
    let text = |key: &str| js_sys::Reflect::get(error, &key.into()).ok().and_then(|value| value.as_string()).unwrap_or_default();
    match text("name").as_str() {
        "QuotaExceededError" => "the browser grants no more space; delete runs or files that are not needed".into(),
        _ if text("message").is_empty() => error.as_string().unwrap_or_else(|| "no reason given".into()),
        _ => text("message"),
    }
}
