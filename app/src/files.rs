//! Files that people choose: what for, and what became of it.

pub use crate::shell::Picker;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Text files for sources.
    Texts,
    /// A folder of texts.
    TextFolder,
    /// A tokenizer.json.
    Tokenizer,
    /// A Hugging Face folder to start a run from.
    Init,
    /// A Hugging Face folder to generate with.
    Model,
    /// A run or a model as one .zip.
    Zip,
    /// Rows to fine-tune on.
    Rows,
    /// Rows to evaluate on.
    Validation,
    /// A Hugging Face folder to fine-tune.
    Base,
    /// An adapter's folder.
    Adapter,
    /// Questions or worked examples, for this key of a task.
    Questions(&'static str),
    /// A folder for this key of a task.
    Folder(&'static str),
    /// Files that were dropped: what they are for depends on the tab in front.
    Dropped,
}

/// What came of a dialog or of dropped files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// Where they lie in the engine's store.
    Files(Pick, Vec<String>),
    /// How far copying them into the browser is: one sentence.
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "only a browser copies"))]
    Copying(String),
    /// Why they cannot be had: one sentence.
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "only a browser copies"))]
    Refused(String),
}
