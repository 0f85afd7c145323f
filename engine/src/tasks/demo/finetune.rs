//! Fine-tuning on built-in data: a base that knows nothing of a machine, rows about it, and what the model answers to
//! questions of the same kind that no row asks, before and after.

use std::collections::BTreeMap;

use super::{SEED, check_steps, corpora};
use crate::config::TrainConfig;
use crate::config::finetune::{Files, FinetuneConfig};
use crate::control::Control;
use crate::data::manual;
use crate::error::{Error, Result};
use crate::protocol::{AdapterChoice, AnswersRequest, DeviceChoice, ExportDtype, Matches, Sampling};
use crate::store::Store;
use crate::tasks::{answers, export};
use crate::train::run::quoted;
use crate::train::runs::TUNING;
use crate::train::{Ended, finetune, pretrain, resume};

/// Updates of the base where none are asked for.
pub const STEPS: u32 = 300;
/// Updates of its adapter where none are asked for.
pub const UPDATES: u32 = 800;

/// Held-out questions that are asked of the base, and of what it has become.
const QUESTIONS: usize = 153;
/// Most tokens of an answer: the longest of the rows has fewer.
const ANSWER_TOKENS: usize = 80;
/// What has been answered before and after, by task: written last.
const RESULTS: &str = "answers.json";
/// The task that has one right answer.
const SPEC: &str = "spec";

/// The configuration that the demo writes beside its rows; a number of epochs for as many updates.
fn yaml(out: &str, device: DeviceChoice, seed: u64, updates: u32) -> String {
    let path = |end: &str| serde_json::Value::from(format!("{out}/{end}")).to_string();
    let [model, training, validation, tuned] = ["model", "rows/train.jsonl", "rows/val.jsonl", "tuned"].map(path);
    let device = word(device);
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

/// Runs it: `steps` updates of pre-training, then `updates` of fine-tuning. A demo that was stopped goes on where it was:
/// what it has made already stays, and the questions are asked again.
///
/// # Errors
/// As [`pretrain::run`] and [`finetune::run`]; [`Error::Config`] for a folder whose demo has ended.
pub async fn run(
    out: &str,
    device: DeviceChoice,
    seed: u64,
    [steps, updates]: [u32; 2],
    store: &Store,
    control: &Control,
) -> Result<(Ended, Vec<String>)> {
    check_steps(steps)?;
    if updates == 0 {
        return Err(Error::Config("--updates 0: the adapter learns nothing; give 1 or more".into()));
    }
    let file = |end: &str| quoted(&format!("{out}/{end}"));
    let chat = format!("smolforge chat --model {} --adapter {}", file("model"), file("tuned"));
    let results = format!("{out}/{RESULTS}");
    if store.exists(&results).await {
        return Err(Error::Config(format!("{out}: this demo has ended; try {chat}, or choose another --out for a new one")));
    }
    let yaml = yaml(out, device, seed, updates);
    let (config, _) = FinetuneConfig::from_yaml(&yaml)?;
    let stopped = Ok((Ended::Stopped, vec![format!("stopped; go on with: {}", command(out, device, seed, [steps, updates]))]));
    let base = TrainConfig { out: format!("{out}/base"), ..super::config(out, device, seed, steps) };
    if make_base(out, &base, store, control).await? == Ended::Stopped {
        return stopped;
    }
    if !store.exists(&format!("{out}/config.yaml")).await {
        let [training, held_out] = manual::rows(seed);
        store.write(&format!("{out}/rows/train.jsonl"), training.as_bytes()).await?;
        store.write(&format!("{out}/rows/val.jsonl"), held_out.as_bytes()).await?;
        store.write(&format!("{out}/config.yaml"), yaml.as_bytes()).await?;
    }

    let Some(before) = asked(&config, None, store, control).await? else { return stopped };
    let adapter = format!("{out}/tuned/adapter");
    if !store.exists(&format!("{adapter}/adapter_config.json")).await {
        let begun = store.exists(&format!("{out}/tuned/{TUNING}")).await;
        if finetune::run(&config, begun, store, control).await?.0 == Ended::Stopped {
            return stopped;
        }
    }
    let Some(after) = asked(&config, Some(adapter), store, control).await? else { return stopped };
    let answers = serde_json::json!({"before": before, "after": after});
    store.write(&results, format!("{answers:#}\n").as_bytes()).await?;
    let share = |matches: &BTreeMap<String, Matches>| 100.0 * matches.get(SPEC).map_or(0.0, Matches::exact_share);
    Ok((
        Ended::Finished,
        vec![
            format!("held-out [SPEC] questions answered exactly: {:.1} % before, {:.1} % after fine-tuning", share(&before), share(&after)),
            format!("{out}/rows: what was learned and what was held out; {out}/config.yaml: the configuration"),
            format!("{out}/tuned/report.html: plots of the run; {out}/tuned/adapter: the adapter, also for peft"),
            format!("try: {chat}"),
            format!("look at every row: smolforge inspect {} --model {}", file("rows/train.jsonl"), file("model")),
        ],
    ))
}

/// The model that is fine-tuned: pre-trained and exported, as far as that is not done yet.
async fn make_base(out: &str, base: &TrainConfig, store: &Store, control: &Control) -> Result<Ended> {
    let begun = store.exists(&format!("{}/config.yaml", base.out)).await;
    let model = format!("{out}/model");
    if begun && store.exists(&format!("{model}/model.safetensors")).await && store.exists(&format!("{model}/config.json")).await {
        resume::frozen(base, store).await?; // refuses another seed, or other updates
        return Ok(Ended::Finished);
    }
    if !begun && !corpora(out, base.seed, store, control).await? {
        return Ok(Ended::Stopped);
    }
    if pretrain::run(base, begun, store, control).await?.0 == Ended::Stopped {
        return Ok(Ended::Stopped);
    }
    export::run(&base.out, &model, ExportDtype::F16, "last", store, control).await?;
    Ok(Ended::Finished)
}

/// The command line that begins this demo, or goes on with it.
fn command(out: &str, device: DeviceChoice, seed: u64, [steps, updates]: [u32; 2]) -> String {
    let mut command = format!("smolforge demo --finetune --out {}", quoted(out));
    if device != DeviceChoice::Auto {
        command += &format!(" --device {}", word(device));
    }
    for (flag, value, usual) in [("seed", seed, SEED), ("steps", steps.into(), STEPS.into()), ("updates", updates.into(), UPDATES.into())] {
        if value != usual {
            command += &format!(" --{flag} {value}");
        }
    }
    command
}

/// The word that means a device.
pub(super) fn word(device: DeviceChoice) -> String {
    serde_json::to_value(device).ok().and_then(|word| Some(word.as_str()?.to_string())).unwrap_or_default()
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
