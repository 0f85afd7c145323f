//! Where the batches of a run come from: a mix of texts, or examples pass by pass.

use std::collections::BTreeMap;

use crate::config::TrainConfig;
use crate::data::batch::{Batch, Cursor, Loader};
use crate::data::examples::Examples;
use crate::data::mix_change::MixChange;
use crate::error::Result;

/// Held-out rows of texts that go through the model at a time.
const EVAL_ROWS: usize = 4;

/// Texts or examples.
#[derive(Debug)]
pub enum Feed {
    /// Sources of text by shares.
    Texts(Loader),
    /// Examples in passes, and how many of the held-out ones go through the model at a time.
    Examples(Examples, usize),
}

impl Feed {
    /// The micro-batches of update `step` (from 0).
    pub fn batches(&mut self, step: u32, config: &TrainConfig) -> Vec<Batch> {
        match self {
            Self::Texts(loader) => (0..config.accumulation).map(|_| loader.next_batch(step, config.batch_size)).collect(),
            Self::Examples(examples, _) => examples.batches(step),
        }
    }

    /// Tokens that an update learns: of texts at most, of examples on average.
    pub fn tokens_per_step(&self, config: &TrainConfig) -> u64 {
        match self {
            Self::Texts(_) => config.tokens_per_step(),
            Self::Examples(examples, _) => examples.size().1.div_ceil(u64::from(examples.updates_per_epoch())),
        }
    }

    /// Where it is.
    pub fn cursor(&self) -> Cursor {
        match self {
            Self::Texts(loader) => loader.cursor(),
            Self::Examples(examples, _) => examples.cursor(),
        }
    }

    /// Goes to a place of before; the next batches are those that would have come then.
    ///
    /// # Errors
    /// [`Error::Resume`](crate::error::Error::Resume) where the cursor belongs to other data.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        match self {
            Self::Texts(loader) => loader.seek(cursor),
            Self::Examples(examples, _) => examples.seek(cursor),
        }
    }

    /// Shares that differ from the curriculum's, each from its step on; examples have none.
    pub fn set_changes(&mut self, changes: &[MixChange]) {
        if let Self::Texts(loader) = self {
            loader.set_changes(changes);
        }
    }

    /// Shares of a stage at the update that comes after `step` updates.
    pub fn weights_at(&self, stage: usize, step: u32) -> &BTreeMap<String, f64> {
        match self {
            Self::Texts(loader) => loader.weights_at(stage, step),
            Self::Examples(examples, _) => examples.shares(),
        }
    }

    /// Batches of a source's held-out part, the same at every call: of texts about `max_tokens`, else all.
    pub fn held_out(&self, source: usize, max_tokens: usize) -> Box<dyn Iterator<Item = Batch> + '_> {
        match self {
            Self::Texts(loader) => Box::new(loader.held_out(source, max_tokens, EVAL_ROWS)),
            Self::Examples(examples, rows) => Box::new(examples.held_out(source, *rows)),
        }
    }

    /// Passes over every source since the run began.
    pub fn epochs(&self) -> BTreeMap<String, f64> {
        match self {
            Self::Texts(loader) => loader.epochs(),
            Self::Examples(examples, _) => examples.epochs(),
        }
    }

    /// Share of the tokens learned from every source since the stage began.
    pub fn shares_of_stage(&self) -> BTreeMap<String, f64> {
        match self {
            Self::Texts(loader) => loader.shares_of_stage(),
            Self::Examples(examples, _) => examples.shares_of_epoch(),
        }
    }
}
