//! Tasks with one right answer to every question: a prompt, a parser, a checker, and what is learned from them.
//!
//! Yuan et al. 2023 (rejection-sampling fine-tuning), <https://arxiv.org/abs/2308.01825>

pub mod answer;
pub mod budget;
pub mod bundle;
pub mod conversion;
pub mod grade;
pub mod learn;
pub mod pipeline;
pub mod questions;
pub mod report;
pub mod rollout;
pub mod test;

use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::error::Result;
use crate::protocol::ReasonVerb;
use crate::store::Store;
use crate::train::Ended;

/// Does what a verb asks for; returns what to tell the user.
///
/// # Errors
/// What is wrong with configuration, files, models or device.
pub async fn run(config: &ReasonConfig, verb: ReasonVerb, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    config.validate()?;
    todo!("{verb:?} {:?}", (store, control.flow()))
}
