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

/// How patterns of file names match: `*` stays within a folder, hidden names are meant only where they are written.
pub const GLOB: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
