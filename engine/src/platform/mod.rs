//! What differs between a native program and a browser tab: threads, files, clocks of the operating system.
//!
//! The only place of the engine with `cfg(target_arch = "wasm32")`.

pub mod halves;
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

/// A model on its way from a hub to this machine; dropping it stops that and keeps what has arrived.
pub struct Download {
    /// What happens, until [`Update::Done`].
    pub updates: async_channel::Receiver<Update>,
    /// The thread that loads looks whether this is still there.
    pub going: std::sync::mpsc::Sender<()>,
}

/// What a [`Download`] tells.
#[derive(Debug)]
pub enum Update {
    /// A sentence for people.
    Notice {
        /// Whether it deserves attention.
        warning: bool,
        /// The sentence.
        text: String,
    },
    /// Bytes of the files that were missing, those of earlier attempts among them.
    Progress {
        /// Bytes here.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The folder that holds the model, or why there is none.
    Done(Result<String, crate::error::Error>),
}
