//! smolforge's engine: from text to gradients, without a window, flags or paths of its own.
//!
//! A tour in reading order:
//!
//! 1. [`protocol`]: what a shell asks for and is told; [`config`]: what a run is.
//! 2. [`engine`]: the actor behind it; [`control`]: where a job listens.
//! 3. [`text`], [`data`]: text → tokens → shards → rows → batches, mixed by a curriculum.
//! 4. [`model`], [`ops`]: Llama, and the tensor functions it is made of.
//! 5. [`train`]: the loop, on a page; [`generate`]: text from a model.
//! 6. [`plan`], [`mod@bench`], [`tasks`]: what a run will need, how fast it is, a whole job in one command.
//! 7. [`device`], [`store`], [`platform`]: what lies below.

#![allow(clippy::too_many_arguments)]

pub mod bench;
pub mod config;
pub mod control;
pub mod data;
pub mod device;
pub mod engine;
pub mod error;
pub mod generate;
pub mod model;
pub mod ops;
pub mod plan;
pub mod platform;
pub mod protocol;
pub mod store;
pub mod tasks;
pub mod text;
pub mod train;

pub use engine::Engine;
pub use error::{Error, Result};
