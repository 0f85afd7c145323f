//! A fine-tuning run: examples, a base that stays as it is, and the adapter that learns beside it.

use super::checkpoint::{self, State};
use super::log::RunLog;
use super::optimizer::{LossScale, Optimizer};
use super::rows::{self, Prepared};
use super::run::{Kind, Ready, Run, claim, quoted};
use super::runs::{self, TUNING};
use super::{Ended, resume};
use crate::config::finetune::{BaseDtype, Decay, FinetuneConfig, Interval, Method};
use crate::config::{SourceConfig, TrainConfig};
use crate::control::Control;
use crate::data::curriculum::{Curriculum, Stage};
use crate::data::examples::Examples;
use crate::data::feed::Feed;
use crate::data::preflight::Level;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generate;
use crate::generate::loaded::hash_of;
use crate::generate::speech::{Files, Speech, write_files};
use crate::model::adapter::{Adapter, AdapterConfig, Patterns};
use crate::model::load::{self, Keep};
use crate::model::safetensors::Dtype;
use crate::model::{Llama, LlamaConfig, fetch, hub};
use crate::plan;
use crate::protocol::Event;
use crate::store::Store;
use crate::text::tokenizer::Tokenizer;

/// Passes over the rows, each of which is a stage of the run.
const MOST_PASSES: u32 = 10_000;

/// What a fine-tuning run has besides what every run has.
pub struct Tuning {
    /// What was asked for.
    pub config: FinetuneConfig,
    /// The adapter; none where all weights are trained.
    pub adapter: Option<AdapterConfig>,
    /// What belongs beside its weights.
    pub files: Files,
    /// Updates of a pass over the examples.
    pub per_epoch: u32,
}

/// Fine-tunes, or resumes; returns what to tell the user.
///
/// # Errors
/// Everything that can be wrong with configuration, examples, model, adapter, checkpoint or device.
pub async fn run(config: &FinetuneConfig, resume: bool, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    let config = if resume { frozen(config, store).await? } else { config.clone() };
    let (out, new) = (config.output_dir.clone(), !store.exists(&config.output_dir).await);
    match prepare(config, resume, store, control).await {
        Ok(Some(run)) => run.complete().await,
        ended => {
            runs::withdraw(store, &out, new).await;
            ended.map(|_| (Ended::Stopped, vec!["stopped before the first step; nothing was lost".into()]))
        }
    }
}

/// The configuration of a run that exists.
async fn frozen(asked: &FinetuneConfig, store: &Store) -> Result<FinetuneConfig> {
    let path = format!("{}/{TUNING}", asked.output_dir);
    if !store.exists(&path).await {
        return Err(Error::Resume(format!("{}: there is no fine-tuning run to resume here; start it without --resume", asked.output_dir)));
    }
    let (frozen, _) = FinetuneConfig::from_yaml(&store.read_text(&path).await?)?;
    if asked.train_file.0.is_empty() {
        return Ok(FinetuneConfig { output_dir: asked.output_dir.clone(), ..frozen }); // as it was begun
    }
    let FinetuneConfig { output_dir, device, logging_steps, save_strategy, save_steps, save_total_limit, .. } = asked.clone();
    let gradient_checkpointing = asked.gradient_checkpointing;
    let frozen =
        FinetuneConfig { output_dir, device, logging_steps, save_strategy, save_steps, save_total_limit, gradient_checkpointing, ..frozen };
    let asked = FinetuneConfig { date: frozen.date.clone(), ..asked.clone() };
    let (Ok(serde_json::Value::Object(old)), Ok(serde_json::Value::Object(new))) =
        (serde_json::to_value(&frozen), serde_json::to_value(&asked))
    else {
        return Err(Error::Internal("a configuration is a map".into()));
    };
    let changed: Vec<&str> = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    if !changed.is_empty() {
        return Err(Error::Resume(format!(
            "the run in {} was begun with another {}; resume it without that, or start a new run with another --output-dir",
            asked.output_dir,
            changed.join(", ")
        )));
    }
    Ok(frozen)
}

/// From a configuration to a run that is ready for its next step. `None` where it was stopped before.
///
/// # Errors
/// See [`run`].
pub async fn prepare<'a>(mut config: FinetuneConfig, resume: bool, store: &'a Store, control: &'a Control) -> Result<Option<Run<'a>>> {
    config.validate()?;
    let out = config.output_dir.clone();
    let (existing, lock) = claim(&out, resume, store).await?;
    let (compute, why) = Compute::open(config.device).await?;
    control.notice(why);
    let mut mixed = super::pretrain::mixed(config.precision(), &compute)?;
    let Some(base) = fetch::folder(store, &config.model_name, control).await? else { return Ok(None) };
    let base = checkpoint::model_of(store, &base, ["--model-name", "--init-adapter"]).await?;
    let Some(Prepared { speech, mut examples, prompts, preflight }) = rows::prepare(&config, &base, store, control).await? else {
        return Ok(None);
    };
    for check in preflight.checks.iter().filter(|check| check.level == Level::Yellow) {
        control.warn(format!("pre-flight: {}", check.line));
    }
    let files = speech.files(store, &base).await?;
    let Speech { tokenizer, shape, date, stops, .. } = speech;
    config.date = Some(date);
    let plan = updates(&config, &examples, &shape)?;
    let (sizes, per_epoch) = (examples.sizes(), examples.updates_per_epoch());
    let longest = prompts.iter().map(|(_, prompt)| prompt.len() + config.sample_tokens).max().unwrap_or(0);
    let positions = (examples.longest() + 16).max(longest).min(shape.max_position_embeddings.next_multiple_of(16));
    let weights = hash_of(store, &base).await?;
    let fingerprint = format!("{}-{}", fingerprint(&config, &shape, &tokenizer, &examples), &weights[..12]);

    let whole = if config.method == Method::Qlora { load::unquantized(&shape, &compute.device) } else { 0 };
    if whole > 0 {
        control.remark(format!("{whole} linear layers are not of 4 bits here: their rows are no multiple of 64 numbers"));
    }
    let asked = adapter(&config);
    let numbers = asked.parameters(&shape)?;
    let longest = TrainConfig { sequence_length: examples.longest(), ..plan.clone() };
    if let Some(detail) = plan::finetune::shortage(&config, &longest, &shape, numbers, &compute) {
        return Err(Error::OutOfMemory { device: compute.info.name, detail });
    }
    let begin = || load_base(&config, &base, &shape, &compute, positions, store, control);
    let frozen = if config.method == Method::Full { None } else { Some(begin().await?) };
    let load = async |folder: &str| {
        let state = resume::state(store, folder, &fingerprint).await?;
        let (model, adapter) = match &frozen {
            None => (generate::load_f32(store, folder, &shape, &compute, positions).await?, None),
            Some(frozen) => {
                let adapter = Adapter::load(store, folder).await?;
                (frozen.clone().with_adapter(Some(&adapter))?, Some(adapter.config))
            }
        };
        let model = model.trainable();
        let optimizer = checkpoint::read_optimizer(store, folder, &model, &compute, config.optim, state.updates).await?;
        Ok((model, adapter, optimizer, state))
    };
    let yaml = config.to_yaml();
    let (model, adapter, optimizer, state, log);
    match if resume { resume::newest(store, &out, &existing, load, control).await? } else { None } {
        Some((loaded, loaded_adapter, moments, at)) => {
            examples.seek(&at.cursor)?;
            mixed = at.loss_scale.is_dynamic() && compute.mixes(); // as it was begun, where this device can
            log = RunLog::resume(store, &out, &yaml, plan.log_every, at.step, at.due).await?;
            (model, adapter, optimizer, state) = (loaded, loaded_adapter, moments, at);
        }
        None => {
            let first = match &frozen {
                None => None,
                Some(frozen) => Some(first_adapter(&config, asked, frozen, &base, store, control).await?),
            };
            store.write(&format!("{out}/tokenizer.json"), tokenizer.json()).await?;
            store.write(&format!("{out}/{TUNING}"), yaml.as_bytes()).await?;
            store.write(&format!("{out}/config.yaml"), plan.to_yaml().as_bytes()).await?;
            log = RunLog::create(store, &out, &yaml, plan.log_every).await?;
            let base = if let Some(frozen) = frozen { frozen } else { begin().await? };
            model = base.with_adapter(first.as_ref())?.trainable();
            adapter = first.map(|first| first.config);
            optimizer = Optimizer::new(&model, config.optim);
            state = State::new(examples.cursor(), LossScale::new(mixed), fingerprint);
        }
    }
    let (device, feed) = (compute.info, Feed::Examples(examples, config.per_device_eval_batch_size));
    let kind = Kind::Finetuning(Box::new(Tuning { config, adapter, files, per_epoch }));
    let ready = Ready { model, optimizer, state, feed, tokenizer, sizes, prompts, stops, mixed, device, kind, log, lock };
    Run::begin(plan, ready, store, control).await.map(Some)
}

/// What an adapter is before its first update: random, or what `init_adapter` brings.
async fn first_adapter(
    config: &FinetuneConfig,
    asked: AdapterConfig,
    frozen: &Llama,
    base: &str,
    store: &Store,
    control: &Control,
) -> Result<Adapter> {
    let Some(folder) = &config.init_adapter else { return Adapter::begin(&asked, frozen, config.seed) };
    let folder = &checkpoint::adapter_of(store, folder).await;
    let brought = Adapter::load(store, folder).await?;
    brought.compare_base(folder, base, store, control).await;
    let Adapter { config: brought, pairs } = brought;
    if (brought.r, brought.alpha, brought.rslora) != (asked.r, asked.alpha, asked.rslora) {
        control.warn(format!("{folder} goes on with its own r {} and lora_alpha {}", brought.r, brought.alpha));
    }
    let AdapterConfig { base_model, dropout, four_bits, .. } = asked;
    // Its rank, scale and layers are those of the matrices that it brings.
    Ok(Adapter { config: AdapterConfig { base_model, dropout, four_bits, ..brought }, pairs })
}

/// The adapter that a configuration asks for.
pub fn adapter(config: &FinetuneConfig) -> AdapterConfig {
    AdapterConfig {
        base_model: config.model_name.clone(),
        four_bits: config.method == Method::Qlora,
        r: config.r,
        alpha: config.lora_alpha,
        rslora: config.use_rslora,
        dropout: config.lora_dropout,
        targets: config.target_modules.clone(),
        ranks: Patterns::default(),
        alphas: Patterns::default(),
    }
}

/// How a device keeps the base.
pub fn keep(config: &FinetuneConfig, compute: &Compute) -> Keep {
    match (config.method, config.base_dtype) {
        (Method::Full, _) | (Method::Lora, BaseDtype::F32) => Keep::F32,
        (Method::Qlora, _) => Keep::Nf4,
        (Method::Lora, BaseDtype::F16) => Keep::F16,
        (Method::Lora, BaseDtype::Auto) if compute.is_cpu() => Keep::F32,
        (Method::Lora, BaseDtype::Auto) => Keep::F16,
    }
}

/// The base on its device, kept as the configuration says.
async fn load_base(
    config: &FinetuneConfig,
    folder: &str,
    shape: &LlamaConfig,
    compute: &Compute,
    positions: usize,
    store: &Store,
    control: &Control,
) -> Result<Llama> {
    load::load(store, folder, shape, compute, positions, keep(config, compute), |done, total| {
        control.progress("load the model", done, total, "bytes")
    })
    .await
}

/// The run as updates: how many, how large, and what happens between them. Every epoch is a stage.
///
/// # Errors
/// [`Error::Config`] for more passes than anybody makes.
pub fn updates(config: &FinetuneConfig, examples: &Examples, shape: &LlamaConfig) -> Result<TrainConfig> {
    let per_epoch = examples.updates_per_epoch();
    let steps = match config.max_steps {
        steps if steps > 0 => steps as u32,
        _ => (config.num_epochs * f64::from(per_epoch)).ceil().max(1.0) as u32,
    };
    let passes = steps / per_epoch;
    if passes > MOST_PASSES {
        return Err(Error::Config(format!("--max-steps {steps}: {passes} passes over the rows; at most {MOST_PASSES} are made")));
    }
    let stages = (0..steps.div_ceil(per_epoch)).map(|epoch| Stage {
        name: format!("Epoch {}", epoch + 1),
        start: epoch * per_epoch,
        weights: examples.shares().clone(),
    });
    let every = |interval: Interval, count: u32| match interval {
        Interval::No => u32::MAX,
        Interval::Epoch => per_epoch,
        Interval::Steps => count,
    };
    let eval_steps = if config.eval_steps == 0 { config.save_steps } else { config.eval_steps };
    let warmup = if config.warmup_steps > 0 { config.warmup_steps } else { (config.warmup_ratio * f64::from(steps)).ceil() as u32 };
    let files = SourceConfig::Paths(config.train_file.0.clone());
    Ok(TrainConfig {
        out: config.output_dir.clone(),
        device: config.device,
        precision: config.precision(),
        seed: config.seed,
        init: Some(config.model_name.clone()),
        sources: examples.shares().keys().map(|kind| (kind.clone(), files.clone())).collect(),
        data_stages: Curriculum::written(stages.collect()),
        held_out: 0.0,
        eval_tokens: usize::MAX >> 8,
        batch_size: config.per_device_train_batch_size,
        accumulation: config.gradient_accumulation_steps,
        sequence_length: config.max_seq_length.min(shape.max_position_embeddings),
        gradient_checkpointing: config.gradient_checkpointing,
        steps,
        lr: config.learning_rate,
        optim: config.optim,
        min_lr: Some(0.0),
        lr_scheduler_type: config.lr_scheduler_type,
        warmup_steps: if config.lr_scheduler_type == Decay::Constant { 0 } else { warmup.min(steps) },
        beta1: config.adam_beta1,
        beta2: config.adam_beta2,
        eps: config.adam_epsilon,
        weight_decay: config.weight_decay,
        max_grad_norm: config.max_grad_norm,
        log_every: config.logging_steps,
        eval_every: every(config.eval_strategy, eval_steps),
        sample_every: every(config.eval_strategy, eval_steps),
        sample_prompt: String::new(),
        sample_tokens: config.sample_tokens,
        save_every: every(config.save_strategy, config.save_steps),
        save_total_limit: config.save_total_limit,
        ..TrainConfig::default()
    })
}

/// What a resumed run must share with its beginning, as `configuration-tokenizer-data`; the base's hash comes after it.
fn fingerprint(config: &FinetuneConfig, shape: &LlamaConfig, tokenizer: &Tokenizer, examples: &Examples) -> String {
    let d = FinetuneConfig::default();
    let neutral = FinetuneConfig {
        output_dir: d.output_dir,
        device: d.device,
        logging_steps: d.logging_steps,
        save_strategy: d.save_strategy,
        save_steps: d.save_steps,
        save_total_limit: d.save_total_limit,
        gradient_checkpointing: d.gradient_checkpointing, // changes memory and time, no numbers
        ..config.clone()
    };
    let config = blake3::hash(format!("{}{}", neutral.to_yaml(), shape.to_hf_json("float32")).as_bytes()).to_hex();
    format!("{}-{}-{}", &config[..12], tokenizer.hash(), examples.fingerprint())
}

impl Tuning {
    /// Folder of what the run is for: the adapter, or the whole model.
    fn result(&self) -> String {
        format!("{}/{}", self.config.output_dir, if self.adapter.is_some() { "adapter" } else { "model" })
    }

    /// Writes the adapter, or the model, of the last checkpoint, or of the best one.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::File`].
    pub(super) async fn finish(&self, state: &State, tokenizer_json: &[u8], store: &Store, control: &Control) -> Result<()> {
        let best = state.best.filter(|_| self.config.load_best_model_at_end).map(|(_, step)| step);
        let step = best.unwrap_or(state.step);
        let (folder, out) = (checkpoint::folder(&self.config.output_dir, step), self.result());
        let what = match best {
            Some(step) => format!("of the best checkpoint (step {step})"),
            None => "of the last step".into(),
        };
        if self.adapter.is_some() {
            Adapter::load(store, &folder).await?.save(store, &out).await?;
            store.write(&format!("{out}/tokenizer.json"), tokenizer_json).await?;
            write_files(store, &out, &self.files).await?;
            control.emit(Event::Wrote { what: format!("adapter {what}"), path: out });
            return Ok(());
        }
        let (config, weights) = (hub::read_config(store, &folder).await?, hub::Weights::open(store, &folder).await?);
        checkpoint::export(store, &weights, &config, Some(tokenizer_json), &out, Dtype::F16, &[]).await?;
        write_files(store, &out, &self.files).await?;
        control.emit(Event::Wrote { what: format!("FP16 model {what}"), path: out });
        Ok(())
    }

    /// What the user can do next.
    pub(super) fn hints(&self, ended: Ended, step: u32) -> Vec<String> {
        let (out, result, model) = (quoted(&self.config.output_dir), quoted(&self.result()), quoted(&self.config.model_name));
        match (ended, &self.adapter) {
            (Ended::Stopped, _) => vec![format!("stopped after step {step}; resume with: smolforge finetune --resume --output-dir {out}")],
            (Ended::Finished, Some(_)) => vec![
                format!("look at {out}/report.html"),
                format!("smolforge chat --model {model} --adapter {result}"),
                format!("smolforge merge --model {model} --adapter {result} --out {out}/merged"),
            ],
            (Ended::Finished, None) => {
                vec![format!("look at {out}/report.html"), format!("smolforge generate --model {result} --prompt TEXT")]
            }
        }
    }
}
