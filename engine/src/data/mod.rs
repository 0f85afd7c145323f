//! From text files to batches.
//!
//! In reading order: [`source`] reads files as documents, [`shard`] tokenises them once ([`tokens`] is the
//! file on disk), [`curriculum`] says which sources a stage draws from ([`mix_change`]: other shares from a step on), [`mixture`] decides row by row,
//! [`pack`] cuts rows and keeps documents apart, [`batch`] joins them into what a model is trained on.

pub mod batch;
pub mod builtin;
pub mod chat;
pub mod curriculum;
pub mod document;
pub mod example;
pub mod examples;
pub mod feed;
mod jsonl;
pub mod lessons;
pub mod manual;
pub mod mix_change;
pub mod mixture;
pub mod pack;
pub mod preflight;
pub mod random;
mod raw;
pub mod shard;
pub mod source;
pub mod tokens;
pub mod vocabulary;

pub use batch::{Batch, Cursor, Loader};
pub use curriculum::{Curriculum, Stage};
pub use document::Document;
pub use mix_change::MixChange;
pub use random::Random;
pub use shard::Shard;
