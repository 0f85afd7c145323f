//! A pre-training run: from a configuration to weights.

use std::collections::BTreeMap;

use super::checkpoint::{self, State};
use super::log::RunLog;
use super::optimizer::{LossScale, Optimizer};
use super::run::{Kind, Ready, Run, claim};
use super::{Ended, resume, runs, tokens};
use crate::config::{Precision, TrainConfig};
use crate::control::Control;
use crate::data::batch::Loader;
use crate::data::feed::Feed;
use crate::data::shard::{self, Shard};
use crate::data::vocabulary;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generate;
use crate::model::{Llama, LlamaConfig, hub};
use crate::plan;
use crate::store::Store;
use crate::text::tokenizer::Tokenizer;

/// Trains, or resumes; returns what to tell the user.
///
/// # Errors
/// Everything that can be wrong with configuration, data, tokenizer, checkpoint or device.
pub async fn run(config: &TrainConfig, resume: bool, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    let config = if resume { resume::frozen(config, store).await? } else { config.clone() };
    let (out, new) = (config.out.clone(), !store.exists(&config.out).await);
    let run = match prepare(config, resume, store, control).await {
        Ok(Some(run)) => run,
        ended => {
            runs::withdraw(store, &out, new).await;
            return ended.map(|_| (Ended::Stopped, vec!["stopped before the first step; nothing was lost".into()]));
        }
    };
    if run.state.step == run.config.steps {
        let last = checkpoint::folder(&run.config.out, run.state.step);
        control.notice(format!("all {} updates were made before; a new run learns on from them with --init {last}", run.state.step));
    }
    run.complete().await
}

/// Everything about a run that does not need its data: tokenizer, shape.
pub struct Shape {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's shape, with the tokenizer's vocabulary.
    pub model: LlamaConfig,
}

impl Shape {
    /// Reads or trains the tokenizer and finds the model's shape. `None` where it was stopped.
    ///
    /// # Errors
    /// What is wrong with the tokenizer, the preset or their combination.
    pub async fn resolve(config: &TrainConfig, resume: bool, store: &Store, control: &Control) -> Result<Option<Self>> {
        let own = format!("{}/tokenizer.json", config.out);
        let tokenizer = if resume && store.exists(&own).await {
            Tokenizer::load(store, &own).await?
        } else if let Some(path) = config.tokenizer.as_ref().or(config.init.as_ref()) {
            Tokenizer::load(store, path).await?
        } else {
            match vocabulary::train(store, &config.sources, config.tokenizer_vocab_size, control).await? {
                Some(tokenizer) => tokenizer,
                None => return Ok(None),
            }
        };
        if resume && let Some(model) = resume::newest_shape(store, &config.out).await {
            generate::fits(&tokenizer, &model)?;
            return Ok(Some(Self { tokenizer, model }));
        }
        let mut model = match &config.init {
            Some(folder) => hub::read_config(store, folder).await?,
            None => hub::shape(store, &config.preset).await?,
        };
        let own = config.init.is_none();
        if own && matches!(config.preset.as_str(), "nano" | "micro") {
            // Rounded up to a multiple of 64: matrix products like it.
            model = model.with_vocab(tokenizer.vocab_size().next_multiple_of(64));
        }
        let end = tokenizer.end_of_text();
        if own && !end.is_some_and(|end| model.eos_token_id.contains(&end)) {
            // What ends documents in training ends texts later, whatever the published shape's tokenizer has.
            (model.bos_token_id, model.eos_token_id) = (end, end.into_iter().collect());
        }
        if config.tokenizer.is_none() && config.init.is_none() && tokenizer.vocab_size() > model.vocab_size {
            let (found, most) = (tokenizer.vocab_size(), model.vocab_size);
            return Err(Error::Config(format!("--tokenizer-vocab-size {found}: {} has {most} ids; lower it to that", config.preset)));
        }
        generate::fits(&tokenizer, &model)?;
        if config.sequence_length > model.max_position_embeddings {
            return Err(Error::Config(format!(
                "--sequence-length {}: the model's context is {} tokens",
                config.sequence_length, model.max_position_embeddings
            )));
        }
        Ok(Some(Self { tokenizer, model }))
    }
}

/// Tokenises every source once. `None` where it was stopped. A run that is resumed without its texts goes on with the
/// tokens that it brought along.
///
/// # Errors
/// What is wrong with a source, by name.
pub async fn shards(
    config: &TrainConfig,
    resume: bool,
    tokenizer: &Tokenizer,
    store: &Store,
    control: &Control,
) -> Result<Option<Vec<(String, Shard)>>> {
    let cache = tokens::cache(&config.out);
    let mut shards = Vec::new();
    for (name, source) in &config.sources {
        match shard::build(store, &cache, name, source, tokenizer, config.held_out, control).await {
            Ok(Some(shard)) => shards.push((name.clone(), shard)),
            Ok(None) => return Ok(None),
            Err(error) if resume && error.is_missing() => {
                let Some(shard) = tokens::brought(store, &config.out, name, tokenizer).await? else {
                    let advice = "put the text there again: the run has not brought its tokens along";
                    return Err(Error::Resume(format!("source {name}: {error}; {advice}")));
                };
                control.notice(format!("{name}: its text is not here; the run goes on with the tokens that it brought along"));
                shards.push((name.clone(), shard));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(shards))
}

/// The configuration with the stages that the run will have.
pub fn resolve(config: &TrainConfig) -> TrainConfig {
    let names: Vec<&str> = config.sources.keys().map(String::as_str).collect();
    TrainConfig { data_stages: config.data_stages.fitted(&names, config.steps), ..config.clone() }
}

/// From a configuration to a run that is ready for its next step. `None` where it was stopped before.
///
/// # Errors
/// See [`run`].
pub async fn prepare<'a>(config: TrainConfig, resume: bool, store: &'a Store, control: &'a Control) -> Result<Option<Run<'a>>> {
    let config = resolve(&config);
    config.validate()?;
    let out = config.out.clone();
    let (existing, lock) = claim(&out, resume, store).await?;
    let (compute, why) = Compute::open(config.device).await?;
    control.notice(why);
    let mut mixed = mixed(config.precision, &compute)?;
    let Some(Shape { tokenizer, model: shape }) = Shape::resolve(&config, resume, store, control).await? else { return Ok(None) };
    let Some(shards) = shards(&config, resume, &tokenizer, store, control).await? else { return Ok(None) };
    if let Some(detail) = plan::shortage(&shape, &config, &compute, plan::Trained::All) {
        return Err(Error::OutOfMemory { device: compute.info.name, detail });
    }
    let sizes: BTreeMap<String, (u64, u64)> =
        shards.iter().map(|(name, shard)| (name.clone(), (shard.train_tokens(), shard.held_out_tokens()))).collect();
    let hashes = shards.iter().map(|(name, shard)| (name.clone(), shard.hash().to_string())).collect();
    let mut loader =
        Loader::new(shards, config.data_stages.clone(), config.sequence_length, config.seed, config.steps, tokenizer.end_of_text())?;
    loader.set_changes(&config.mix_changes);
    let fingerprint = resume::fingerprint(&config, &tokenizer, &loader);
    for source in sizes.keys().filter(|source| !config.draws_from(source)) {
        control.warn(format!("{source}: no stage draws from it; name it in data_stages, or leave it out"));
    }

    let prompt = generate::prompt_ids(&tokenizer, &shape, &config.sample_prompt);
    let context = shape.max_position_embeddings;
    if prompt.is_empty() || prompt.len() >= context {
        return Err(Error::Config(format!(
            "--sample-prompt has {} tokens: it must have 1 to {}, below the model's context",
            prompt.len(),
            context - 1
        )));
    }
    let positions = config.sequence_length.max(prompt.len() + config.sample_tokens).min(context);
    let prompts = vec![(config.sample_prompt.clone(), prompt)];
    let load = async |folder: &str| {
        let state = resume::state(store, folder, &fingerprint).await?;
        let model = generate::load_f32(store, folder, &shape, &compute, positions).await?.trainable();
        let optimizer = checkpoint::read_optimizer(store, folder, &model, &compute, config.optim, state.updates).await?;
        Ok((model, optimizer, state))
    };
    let (model, optimizer, state, log);
    match if resume { resume::newest(store, &out, &existing, load, control).await? } else { None } {
        Some((loaded, moments, at)) => {
            loader.seek(&at.cursor)?;
            mixed = at.loss_scale.is_dynamic() && compute.mixes(); // as it was begun, where this device can
            log = RunLog::resume(store, &out, &config.to_yaml(), config.log_every, at.step, at.due).await?;
            (model, optimizer, state) = (loaded, moments, at);
        }
        None => {
            let plain = match &config.init {
                Some(folder) => generate::load_f32(store, folder, &shape, &compute, positions).await?,
                None => Llama::random(&shape, &compute, positions, config.seed),
            };
            store.write(&format!("{out}/tokenizer.json"), tokenizer.json()).await?;
            store.write(&format!("{out}/config.yaml"), config.to_yaml().as_bytes()).await?;
            log = RunLog::create(store, &out, &config.to_yaml(), config.log_every).await?;
            model = plain.trainable();
            optimizer = Optimizer::new(&model, config.optim);
            state = State::new(loader.cursor(), LossScale::new(mixed), fingerprint);
        }
    }
    tokens::record(store, &out, &hashes).await?;
    let (feed, device, kind) = (Feed::Texts(loader), compute.info, Kind::Pretraining);
    let stops = generate::end_tokens(&tokenizer, &shape);
    let ready = Ready { model, optimizer, state, feed, tokenizer, sizes, prompts, stops, mixed, device, kind, log, lock };
    Run::begin(config, ready, store, control).await.map(Some)
}

/// Whether a run computes in mixed precision.
///
/// # Errors
/// Where it is asked for and the device cannot.
pub fn mixed(precision: Precision, compute: &Compute) -> Result<bool> {
    match precision {
        Precision::F32 => Ok(false),
        Precision::Auto => Ok(compute.f16 && compute.info.is_real_gpu()),
        Precision::Mixed if compute.mixes() => Ok(true),
        Precision::Mixed => Err(Error::Device(format!("{} does not compute in mixed precision; use --precision f32", compute.info.name))),
    }
}
