//! `trainer_state.json` of a checkpoint, as the Trainer of Hugging Face writes it, from what the run has logged.

use serde_json::{Map, Value, json};

use super::checkpoint::{self, State};
use super::finetune::Tuning;
use super::log::read_events;
use crate::config::finetune::Metric;
use crate::error::{Error, Result};
use crate::generate::speech::Files;
use crate::protocol::{Event, StepReport, TextScore};
use crate::store::Store;

impl Tuning {
    /// What lies in a checkpoint besides weights and state; `steps` are the updates of the whole run.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(super) async fn checkpoint_files(&self, state: &State, steps: u32, store: &Store) -> Result<Files> {
        let out = &self.config.output_dir;
        // A log that cannot be read is no reason to lose the checkpoint.
        let events = read_events(store, out).await.unwrap_or_default();
        let mut text = self.trainer_state(events.into_iter().map(|(_, event)| event), state, steps);
        if let Some((_, step)) = state.best {
            let best = checkpoint::folder(out, step);
            if step == state.step || store.exists(&best).await {
                text["best_model_checkpoint"] = best.into();
            }
        }
        let text = serde_json::to_string_pretty(&text).map_err(|e| Error::Internal(e.to_string()))? + "\n";
        let mut files = self.files.clone();
        files.insert("trainer_state.json", text.into_bytes());
        Ok(files)
    }

    fn trainer_state(&self, events: impl Iterator<Item = Event>, state: &State, steps: u32) -> Value {
        let config = &self.config;
        let epoch = |step: u32| f64::from(step) / f64::from(self.per_epoch.max(1));
        let mut history = Vec::new();
        let (mut losses, mut seen) = ((0.0, 0u32), 0);
        for event in events {
            match event {
                Event::Step(report) if report.step <= state.step => {
                    seen += report.read_tokens;
                    if report.skipped.is_none() {
                        losses = (losses.0 + report.loss, losses.1 + 1);
                    }
                    if report.step.is_multiple_of(config.logging_steps.max(1)) {
                        history.push(learned(&report, losses.0 / f64::from(losses.1), epoch(report.step)));
                        losses = (0.0, 0);
                    }
                }
                Event::Evaluated { step, loss, sources, .. } if step <= state.step => {
                    let parts = sources.iter().map(|(name, score)| (name.as_str(), score)).collect();
                    history.push(evaluated(step, loss, parts, epoch(step)));
                }
                _ => {}
            }
        }
        let metric = state.best.map(|(worst, _)| match config.metric_for_best_model {
            Metric::Loss => worst,
            Metric::Accuracy => 1.0 - worst,
        });
        json!({
            "best_global_step": state.best.map(|(_, step)| step),
            "best_metric": metric,
            "best_model_checkpoint": null,
            "epoch": epoch(state.step),
            "eval_steps": if config.eval_steps == 0 { config.save_steps } else { config.eval_steps },
            "global_step": state.step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": history,
            "logging_steps": config.logging_steps,
            "max_steps": steps,
            "num_input_tokens_seen": seen,
            "num_train_epochs": steps.div_ceil(self.per_epoch.max(1)),
            "save_steps": config.save_steps,
            "stateful_callbacks": {},
            "total_flos": 0.0,
            "train_batch_size": config.per_device_train_batch_size,
            "trial_name": null,
            "trial_params": null,
        })
    }
}

/// A row about updates; JSON has no numbers for what is not finite.
fn learned(report: &StepReport, loss: f64, epoch: f64) -> Value {
    let mut row = Map::from_iter([("epoch".to_string(), json!(epoch)), ("step".to_string(), json!(report.step))]);
    for (key, number) in [("loss", loss), ("grad_norm", report.grad_norm), ("learning_rate", report.lr)] {
        if number.is_finite() {
            row.insert(key.into(), json!(number));
        }
    }
    row.into()
}

/// A row about the validation rows, and their tasks where there are several.
fn evaluated(step: u32, loss: f64, sources: Vec<(&str, &TextScore)>, epoch: f64) -> Value {
    let mut row = Map::from_iter([("epoch".to_string(), json!(epoch)), ("step".to_string(), json!(step))]);
    row.insert("eval_loss".into(), json!(loss));
    let (mut hits, mut tokens) = (0.0, 0);
    for (name, score) in &sources {
        hits += score.accuracy.unwrap_or(0.0) * score.tokens as f64;
        tokens += score.tokens;
        if sources.len() > 1 {
            row.insert(format!("eval_{name}_loss"), json!(score.loss));
        }
    }
    row.insert("eval_mean_token_accuracy".into(), json!(hits / tokens.max(1) as f64));
    row.into()
}
