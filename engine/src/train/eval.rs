//! How well a model predicts text it was not trained on.

use super::forward;
use crate::control::{Control, Flow};
use crate::data::batch::Batch;
use crate::error::Result;
use crate::generate::read_f32;
use crate::model::Llama;

/// Sum of the negative log-likelihoods in nats, and the targets they belong to; `None` where it was stopped.
///
/// # Errors
/// Where the device fails.
pub async fn run(model: &Llama, batches: impl Iterator<Item = Batch>, control: &Control) -> Result<Option<(f64, u64)>> {
    let (mut total, mut targets) = (0.0, 0);
    for batch in batches {
        if control.breathe().await == Flow::Stop {
            return Ok(None);
        }
        let nll = read_f32(forward(model, &batch, 1.0).nll).await?;
        total += nll.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        targets += batch.target_tokens() as u64;
    }
    Ok(Some((total, targets)))
}
