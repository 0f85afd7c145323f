//! Training: one loop for every kind of run.

pub mod checkpoint;
pub mod eval;
pub mod finetune;
pub mod gradients;
pub mod log;
pub mod optimizer;
pub mod pace;
pub mod pretrain;
pub mod report;
pub mod resume;
pub mod rows;
pub mod run;
pub mod runs;
pub mod schedule;
pub mod tensorboard;
pub mod tokens;
mod trainer_state;

use burn::tensor::{Tensor, Transaction};
use web_time::Instant;

use crate::control::Flow;
use crate::data::batch::Batch;
use crate::data::random::mix;
use crate::device;
use crate::error::{Error, Result};
use crate::ops::{add_into, sum_of_squares};
use crate::protocol::StepReport;
pub use gradients::{Forward, forward, gradients_of, layer_by_layer, losses_and_gradients};
use run::Run;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps were made.
    Finished,
    /// It was asked to stop; everything is saved.
    Stopped,
}

/// Makes the steps that are left: draw a batch, learn from it, write down what happened.
///
/// # Errors
/// [`Error::NonFinite`] after too many skipped updates; a full disk; a failed device.
pub async fn train(run: &mut Run<'_>) -> Result<Ended> {
    let config = run.config.clone();
    if run.state.due && run.after_step().await? == Flow::Stop {
        return Ok(Ended::Stopped);
    }
    while run.state.step < config.steps {
        let (started, waited) = (Instant::now(), run.control.waited_secs());
        run.reweigh().await?;
        run.enter_stage().await?;

        // ---- forward and backward, a micro-batch at a time ------------------------------------
        let cursor = run.feed.cursor();
        let step = run.state.step;
        let batches = run.feed.batches(step, &config);
        let targets: usize = batches.iter().map(Batch::target_tokens).sum();
        let scale = run.state.loss_scale.value / targets.max(1) as f64;
        let mut grads: Vec<Tensor<2>> = Vec::new();
        let mut losses = Vec::new();
        for (micro, batch) in batches.iter().enumerate() {
            if run.control.breathe().await == Flow::Stop {
                run.feed.seek(&cursor)?; // the step is made again, from its first row, when resumed
                run.save().await?;
                return Ok(Ended::Stopped);
            }
            run.model.dropout = Some(mix(config.seed ^ mix(u64::from(step) << 20 | micro as u64)));
            let (nll, more) = losses_and_gradients(&run.model, batch, scale, config.gradient_checkpointing);
            accumulate(&mut grads, more);
            losses.push(nll);
        }

        // ---- one readback: every token's loss and the gradient norm ----------------------------
        let (norm, nll) = read_step(squared_norm(&grads), losses).await?;
        let norm = norm / run.state.loss_scale.value;
        let report = StepReport {
            step: step + 1,
            lr: run.schedule.lr(step),
            grad_norm: norm,
            loss_scale: run.state.loss_scale.value,
            tokens: targets as u64,
            read_tokens: batches.iter().map(Batch::read_tokens).sum::<usize>() as u64,
            ..run.source_losses(&batches, &nll)
        };

        // ---- update, or skip what is not finite -------------------------------------------------
        let finite = norm.is_finite() && report.loss.is_finite();
        let explained = run.state.loss_scale.update(finite);
        if finite {
            let grad_scale = clip(norm, config.max_grad_norm) / report.loss_scale;
            run.optimizer.step(&mut run.model, grads, &config, report.lr, grad_scale).await?;
            run.state.skipped_in_a_row = 0;
        } else if !explained {
            run.state.skipped_in_a_row += 1;
        }
        run.state.step += 1;
        run.report(report, finite, started.elapsed().as_secs_f64() - (run.control.waited_secs() - waited)).await?;
        if run.state.skipped_in_a_row >= config.max_skipped {
            let (sources, checkpoint) = (run.source_names(&batches).join(", "), run.last_checkpoint());
            return Err(Error::NonFinite { step: step + 1, count: run.state.skipped_in_a_row, sources, checkpoint });
        }

        // ---- evaluate, sample, save ---------------------------------------------------------------
        if run.after_step().await? == Flow::Stop {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Finished)
}

/// What gradients of global norm `norm` are multiplied by so that it is at most `max` (0: no limit).
/// As `torch.nn.utils.clip_grad_norm_`.
pub fn clip(norm: f64, max: f64) -> f64 {
    if max > 0.0 { (max / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Squared global norm of gradients: `[1]`.
pub fn squared_norm(grads: &[Tensor<2>]) -> Tensor<1> {
    sum_of_squares(grads)
}

/// `sum += grads`, in place where the device can.
pub fn accumulate(sum: &mut Vec<Tensor<2>>, grads: Vec<Tensor<2>>) {
    if sum.is_empty() {
        *sum = grads;
        return;
    }
    for (sum, grad) in sum.iter_mut().zip(grads) {
        *sum = add_into(sum.extract(), grad);
    }
}

/// Gradient norm and losses per token and micro-batch.
async fn read_step(squares: Tensor<1>, losses: Vec<Tensor<1>>) -> Result<(f64, Vec<Vec<f32>>)> {
    let all = losses.into_iter().fold(Transaction::default().register(squares), Transaction::register);
    let data = all.execute_async().await.map_err(|e| device::failed(&e))?;
    let values = data.into_iter().map(|data| data.try_to_vec::<f32>().map_err(|e| Error::Internal(format!("reading a tensor: {e:?}"))));
    let mut values = values.collect::<Result<Vec<_>>>()?;
    let losses = values.split_off(1);
    Ok((f64::from(values[0][0]).sqrt(), losses))
}
