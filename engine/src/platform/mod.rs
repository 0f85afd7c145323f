//! What differs between a native program and a browser tab: threads, files, clocks of the operating system.
//!
//! The only place of the engine with `cfg(target_arch = "wasm32")`.

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(not(target_arch = "wasm32"))]
pub use native::*;

#[cfg(target_arch = "wasm32")]
mod web;
#[cfg(target_arch = "wasm32")]
pub use web::*;
