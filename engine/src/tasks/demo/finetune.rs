//! Fine-tuning on built-in data: a base that knows nothing of a machine, rows about it, and what the model answers to
//! questions of the same kind that no row asks, before and after.

use std::collections::BTreeMap;

use super::{corpora, may_begin};
use crate::config::TrainConfig;
use crate::config::finetune::{Files, FinetuneConfig};
use crate::control::Control;
use crate::data::manual;
use crate::error::{Error, Result};
use crate::protocol::{AdapterChoice, AnswersRequest, DeviceChoice, ExportDtype, Matches, Sampling};
use crate::store::Store;
use crate::tasks::{answers, export};
use crate::train::run::quoted;
use crate::train::{Ended, finetune, pretrain};

/// Held-out questions that are asked of the base, and of what it has become.
const QUESTIONS: usize = 153;
/// Most tokens of an answer: the longest of the rows has fewer.
const ANSWER_TOKENS: usize = 80;
/// The task that has one right answer.
const SPEC: &str = "spec";

/// The configuration that the demo writes beside its rows; a number of epochs for as many updates.
fn yaml(out: &str, device: DeviceChoice, seed: u64, updates: u32) -> String {
    let path = |end: &str| serde_json::Value::from(format!("{out}/{end}")).to_string();
    let [model, training, validation, tuned] = ["model", "rows/train.jsonl", "rows/val.jsonl", "tuned"].map(path);
    let device = serde_json::to_value(device).ok().and_then(|word| Some(word.as_str()?.to_string())).unwrap_or_default();
    format!(
        "# smolforge finetune THIS_FILE --output-dir FOLDER trains another adapter on the same rows.
huggingface:
  model_name: {model}
  max_seq_length: 128

qlora:
  method: lora
  r: 16
  lora_alpha: 32
  lora_dropout: 0.0
  target_modules: all-linear

training:
  train_file: {training}
  validation_file: {validation}
  output_dir: {tuned}
  device: {device}
  seed: {seed}
  max_steps: {updates}
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 1
  learning_rate: 3e-3
  warmup_ratio: 0.05
  lr_scheduler_type: cosine
  gradient_checkpointing: false
  logging_steps: 10
  eval_strategy: epoch
  save_strategy: epoch
  save_total_limit: 2
"
    )
}

/// Runs it: `steps` updates of pre-training, then `updates` of fine-tuning.
///
/// # Errors
/// As [`pretrain::run`] and [`finetune::run`].
pub async fn run(
    out: &str,
    device: DeviceChoice,
    seed: u64,
    [steps, updates]: [u32; 2],
    store: &Store,
    control: &Control,
) -> Result<(Ended, Vec<String>)> {
    may_begin(&format!("{out}/base"), out, steps, store).await?;
    if updates == 0 {
        return Err(Error::Config("--updates 0: the adapter learns nothing; give 1 or more".into()));
    }
    let yaml = yaml(out, device, seed, updates);
    let (config, _) = FinetuneConfig::from_yaml(&yaml)?;
    if !corpora(out, seed, store, control).await? {
        return Ok((Ended::Stopped, vec!["stopped before the first step; nothing was lost".into()]));
    }
    let base = TrainConfig { out: format!("{out}/base"), ..super::config(out, device, seed, steps) };
    let (ended, hints) = pretrain::run(&base, false, store, control).await?;
    if ended == Ended::Stopped {
        return Ok((ended, hints));
    }
    export::run(&base.out, &format!("{out}/model"), ExportDtype::F16, "last", store, control).await?;
    let [training, held_out] = manual::rows(seed);
    store.write(&format!("{out}/rows/train.jsonl"), training.as_bytes()).await?;
    store.write(&format!("{out}/rows/val.jsonl"), held_out.as_bytes()).await?;
    store.write(&format!("{out}/config.yaml"), yaml.as_bytes()).await?;

    let Some(before) = asked(&config, None, store, control).await? else { return Ok((Ended::Stopped, Vec::new())) };
    let (ended, hints) = finetune::run(&config, false, store, control).await?;
    if ended == Ended::Stopped {
        return Ok((ended, hints));
    }
    let Some(after) = asked(&config, Some(format!("{out}/tuned/adapter")), store, control).await? else {
        return Ok((Ended::Stopped, Vec::new()));
    };
    let file = |end: &str| quoted(&format!("{out}/{end}"));
    let share = |matches: &BTreeMap<String, Matches>| 100.0 * matches.get(SPEC).map_or(0.0, Matches::exact_share);
    Ok((
        Ended::Finished,
        vec![
            format!("held-out [SPEC] questions answered exactly: {:.1} % before, {:.1} % after fine-tuning", share(&before), share(&after)),
            format!("{out}/rows: what was learned and what was held out; {out}/config.yaml: the configuration"),
            format!("{out}/tuned/report.html: plots of the run; {out}/tuned/adapter: the adapter, also for peft"),
            format!("try: smolforge chat --model {} --adapter {}", file("model"), file("tuned")),
            format!("look at every row: smolforge inspect {} --model {}", file("rows/train.jsonl"), file("model")),
        ],
    ))
}

/// Asks the held-out questions. `None` where it was stopped.
async fn asked(
    config: &FinetuneConfig,
    adapter: Option<String>,
    store: &Store,
    control: &Control,
) -> Result<Option<BTreeMap<String, Matches>>> {
    let who = if adapter.is_some() { "the model with its adapter" } else { "the base" };
    control.notice(format!("asking {who} {QUESTIONS} questions that no row asks"));
    let request = AnswersRequest {
        config: FinetuneConfig { train_file: Files(config.validation_file.0.clone()), ..config.clone() },
        adapters: adapter.map(|path| AdapterChoice { path, strength: 1.0 }).into_iter().collect(),
        device: config.device,
        limit: QUESTIONS,
        max_new_tokens: ANSWER_TOKENS,
        sampling: Sampling { greedy: true, ..Sampling::default() },
    };
    answers::run(&request, store, control).await
}
