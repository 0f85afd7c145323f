//! The main job on built-in data: corpora, tokenizer, five stages, evaluation, export, generation.

pub mod finetune;
pub mod task;

use crate::config::{SourceConfig, TrainConfig};
use crate::control::{Control, Flow};
use crate::data::builtin;
use crate::error::{Error, Result};
use crate::generate;
use crate::protocol::{DeviceChoice, Event, ExportDtype, GenerateRequest, Sampling};
use crate::store::Store;
use crate::tasks::export;
use crate::train::{Ended, pretrain};

/// Seed where none is asked for.
pub const SEED: u64 = 1337;

/// Bytes of each of the three corpora.
const CORPUS_BYTES: usize = 1 << 20;

/// The configuration of the demo: the reference curriculum on a small model.
pub fn config(out: &str, device: DeviceChoice, seed: u64, steps: u32) -> TrainConfig {
    let source = |name: &str| (name.to_string(), SourceConfig::Path(format!("{out}/corpora/{name}.txt")));
    TrainConfig {
        out: format!("{out}/run"),
        device,
        seed,
        preset: "nano".into(),
        tokenizer_vocab_size: 2048,
        sources: ["input", "code", "math"].map(source).into(),
        batch_size: 8,
        accumulation: 1,
        sequence_length: 128,
        steps,
        lr: 3e-3,
        min_lr: Some(3e-4),
        warmup_steps: (steps / 20).max(1),
        eval_tokens: 8192,
        eval_every: 0,
        sample_every: 0,
        sample_prompt: "Once upon a time".into(),
        sample_tokens: 40,
        save_every: (steps / 3).max(1),
        ..TrainConfig::default()
    }
}

/// Refuses too few updates.
fn check_steps(steps: u32) -> Result<()> {
    match steps {
        ..5 => Err(Error::Config(format!("--steps {steps}: the demo needs at least 5, one for every stage"))),
        _ => Ok(()),
    }
}

/// Writes the three texts; whether it came to its end.
async fn corpora(out: &str, seed: u64, store: &Store, control: &Control) -> Result<bool> {
    for (name, text) in builtin::corpora(seed, CORPUS_BYTES) {
        let path = format!("{out}/corpora/{name}.txt");
        store.write(&path, text.as_bytes()).await?;
        control.emit(Event::Wrote { what: format!("corpus `{name}`"), path });
        if control.breathe().await == Flow::Stop {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs it.
///
/// # Errors
/// As [`pretrain::run`].
pub async fn run(out: &str, device: DeviceChoice, seed: u64, steps: u32, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    check_steps(steps)?;
    if store.exists(&format!("{out}/run/config.yaml")).await {
        return Err(Error::Config(format!(
            "{out}: there is a demo already; go on with it by `smolforge train --resume --out {out}/run`, or choose another --out"
        )));
    }
    if !corpora(out, seed, store, control).await? {
        return Ok((Ended::Stopped, vec!["stopped before the first step; nothing was lost".into()]));
    }
    let config = config(out, device, seed, steps);
    let (ended, hints) = pretrain::run(&config, false, store, control).await?;
    if ended == Ended::Stopped {
        return Ok((ended, hints));
    }
    let model = format!("{out}/export");
    export::run(&config.out, &model, ExportDtype::F16, "last", store, control).await?;
    let prompts = ["Once upon a time", "def ", "12 + 7 ="].map(String::from).to_vec();
    let sampling = Sampling { temperature: 0.7, top_k: 40, seed, ..Sampling::default() };
    control.notice(format!("continuing three prompts with the exported model: {}", prompts.join(" | ")));
    let request = GenerateRequest { model: model.clone(), prompts, device, max_new_tokens: 48, sampling, ..GenerateRequest::default() };
    generate::run(&request, &generate::Loaded::default(), store, control).await?;
    let run = &config.out;
    Ok((
        Ended::Finished,
        vec![
            format!("{out}/corpora: the three texts; {run}/tokenizer.json: the tokenizer trained on them"),
            format!("{run}/report.html: plots of the run; tensorboard --logdir {run} shows them, too"),
            format!("{model}: the FP16 model, also for transformers.AutoModelForCausalLM.from_pretrained"),
            format!("try: smolforge generate --model {model} --prompt \"Once upon a time\""),
            "train on your own text: smolforge train --preset nano --source mine=FILE.txt --steps 500 --out runs/mine".to_string(),
        ],
    ))
}
