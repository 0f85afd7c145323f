//! How well a model predicts what it was not trained on.

use burn::tensor::Transaction;

use super::forward;
use crate::control::{Control, Flow};
use crate::data::batch::Batch;
use crate::device;
use crate::error::{Error, Result};
use crate::model::Llama;
use crate::ops::cross_entropy::Losses;
use crate::protocol::TextScore;

/// What was found of some batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scored {
    /// Sum of the negative log-likelihoods in nats.
    pub nats: f64,
    /// Targets that they belong to.
    pub tokens: u64,
    /// Targets that no other id was likelier than.
    pub hits: u64,
}

impl Scored {
    /// As people read it, of a text of so many bytes.
    pub fn score(&self, bytes: u64) -> TextScore {
        TextScore { accuracy: Some(self.hits as f64 / self.tokens.max(1) as f64), ..TextScore::new(self.nats, self.tokens, bytes) }
    }
}

/// Scores all targets; `None` where it was stopped.
///
/// # Errors
/// Where the device fails.
pub async fn run(model: &Llama, batches: impl Iterator<Item = Batch>, control: &Control) -> Result<Option<Scored>> {
    let mut scored = Scored::default();
    for batch in batches {
        if control.breathe().await == Flow::Stop {
            return Ok(None);
        }
        let Losses { nll, hits, .. } = forward(model, &batch, 1.0).losses;
        let read = Transaction::default().register(nll).register(hits).execute_async().await.map_err(|e| device::failed(&e))?;
        let sums = read.into_iter().map(|data| match data.try_to_vec::<f32>() {
            Ok(values) => Ok(values.iter().map(|value| f64::from(*value)).sum::<f64>()),
            Err(e) => Err(Error::Internal(format!("reading a tensor: {e:?}"))),
        });
        let sums = sums.collect::<Result<Vec<f64>>>()?;
        scored.nats += sums[0];
        scored.hits += sums[1] as u64;
        scored.tokens += batch.target_tokens() as u64;
    }
    Ok(Some(scored))
}
