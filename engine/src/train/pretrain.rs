//! A pre-training run: from a configuration to weights, and what it leaves on disk.

mod reweigh;
mod room;

use std::cell::Cell;
use std::collections::BTreeMap;

use web_time::Instant;

use super::checkpoint::{self, State};
use super::log::RunLog;
use super::optimizer::{LossScale, Optimizer};
use super::pace::{Left, Pace};
use super::schedule::Schedule;
use super::{Ended, eval, resume, runs, tokens, train};
use crate::config::{Precision, TrainConfig};
use crate::control::{Control, Flow};
use crate::data::batch::{Batch, Loader};
use crate::data::random::Random;
use crate::data::shard::{self, Shard};
use crate::data::vocabulary;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generate::{self, Limits};
use crate::model::{Llama, LlamaConfig, hub};
use crate::plan;
use crate::protocol::{Event, RunInfo, Sampling, StepReport, TextScore};
use crate::store::{Lock, Store};
use crate::text::tokenizer::Tokenizer;

/// Held-out rows that go through the model at a time.
const EVAL_ROWS: usize = 4;

/// A run in progress.
pub struct Run<'a> {
    /// What was asked for, frozen.
    pub config: TrainConfig,
    /// The weights, as leaves of the gradient computation.
    pub model: Llama,
    /// Its moments.
    pub optimizer: Optimizer,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Where batches come from.
    pub loader: Loader,
    /// Everything else that a checkpoint holds.
    pub state: State,
    /// The shell.
    pub control: &'a Control,
    store: &'a Store,
    tokenizer: Tokenizer,
    sources: Vec<String>,
    log: RunLog,
    started: Instant,
    pace: Pace,
    evaluations: (u32, u32),
    stage: Option<usize>,
    saved: Option<u32>,
    _lock: Lock,
}

/// Trains, or resumes; returns what to tell the user.
///
/// # Errors
/// Everything that can be wrong with configuration, data, tokenizer, checkpoint or device.
pub async fn run(config: &TrainConfig, resume: bool, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    let config = if resume { resume::frozen(config, store).await? } else { config.clone() };
    let mut run = match Run::prepare(config, resume, store, control).await? {
        Some(run) => run,
        None => return Ok((Ended::Stopped, vec!["stopped before the first step; nothing was lost".into()])),
    };
    if run.state.step == run.config.steps {
        let last = checkpoint::folder(&run.config.out, run.state.step);
        control.notice(format!("all {} updates were made before; a new run learns on from them with --init {last}", run.state.step));
    }
    let ended = train(&mut run).await.map(|ended| (ended, run.hints(ended)));
    let last = match &ended {
        Ok((ended, hints)) => Event::Done { hints: hints.clone(), stopped: *ended == Ended::Stopped },
        Err(error) => Event::failed(error),
    };
    let recorded = run.record(&last).await;
    let page = run.with_room(async |run| run.log.report().await).await;
    let ended = ended?; // what went wrong with the run matters more than what goes wrong with its report
    let path = recorded.and(page)?;
    control.emit(Event::Wrote { what: "report".into(), path });
    Ok(ended)
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
            None if config.preset.ends_with(".json") => LlamaConfig::from_hf_json(&store.read_text(&config.preset).await?, &config.preset)?,
            None => LlamaConfig::preset(&config.preset)?,
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

impl<'a> Run<'a> {
    /// From a configuration to a run that is ready for its next step. `None` where it was stopped before.
    ///
    /// # Errors
    /// See [`run`].
    pub async fn prepare(config: TrainConfig, resume: bool, store: &'a Store, control: &'a Control) -> Result<Option<Run<'a>>> {
        let config = resolve(&config);
        config.validate()?;
        let out = config.out.clone();
        let existing = checkpoint::steps(store, &out).await?;
        if !resume && (store.exists(&format!("{out}/config.yaml")).await || !existing.is_empty()) {
            return Err(Error::Config(format!("{out}: there is a run already; continue it with --resume, or choose another --out")));
        }
        if !resume && let Some(other) = runs::foreign(store, &out).await?.first() {
            return Err(Error::Config(format!("{}: {out} holds other things than a run; choose a new or an empty --out", other.name)));
        }
        let lock = store.lock(&format!("{out}/.lock")).await?;
        let (compute, why) = Compute::open(config.device).await?;
        control.notice(why);
        let mut mixed = mixed(&config, &compute)?;
        let Some(Shape { tokenizer, model: shape }) = Shape::resolve(&config, resume, store, control).await? else { return Ok(None) };
        let Some(shards) = shards(&config, resume, &tokenizer, store, control).await? else { return Ok(None) };
        if let Some(detail) = plan::shortage(&shape, &config, &compute) {
            return Err(Error::OutOfMemory { device: compute.info.name, detail });
        }
        let sizes: BTreeMap<String, (u64, u64)> =
            shards.iter().map(|(name, shard)| (name.clone(), (shard.train_tokens(), shard.held_out_tokens()))).collect();
        let sources: Vec<String> = sizes.keys().cloned().collect();
        let hashes = shards.iter().map(|(name, shard)| (name.clone(), shard.hash().to_string())).collect();
        let mut loader =
            Loader::new(shards, config.data_stages.clone(), config.sequence_length, config.seed, config.steps, tokenizer.end_of_text())?;
        loader.set_changes(&config.mix_changes);
        let fingerprint = resume::fingerprint(&config, &tokenizer, &loader);
        for source in sources.iter().filter(|source| !config.draws_from(source)) {
            control.warn(format!("{source}: no stage draws from it; name it in data_stages, or leave it out"));
        }

        let prompt = generate::prompt_ids(&tokenizer, &shape, &config.sample_prompt).len();
        let context = shape.max_position_embeddings;
        if prompt == 0 || prompt >= context {
            return Err(Error::Config(format!(
                "--sample-prompt has {prompt} tokens: it must have 1 to {}, below the model's context",
                context - 1
            )));
        }
        let positions = config.sequence_length.max(prompt + config.sample_tokens).min(context);
        let (model, optimizer, state, log);
        match if resume { resume::load(store, &out, &existing, &shape, &compute, positions, &fingerprint, control).await? } else { None } {
            Some((loaded, moments, at)) => {
                loader.seek(&at.cursor)?;
                mixed = at.loss_scale.is_dynamic() && compute.f16; // as it was begun, where this device can
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
                optimizer = Optimizer::new(&model);
                state = State {
                    format: State::FORMAT,
                    step: 0,
                    updates: 0,
                    cursor: loader.cursor(),
                    loss_scale: LossScale::new(mixed),
                    skipped_in_a_row: 0,
                    total_tokens: 0,
                    stage_loss: (0.0, 0),
                    best: None,
                    due: false,
                    fingerprint: fingerprint.clone(),
                };
            }
        }
        tokens::record(store, &out, &hashes).await?;
        let schedule = Schedule::from(&config);
        let held_out = sizes.values().map(|(_, held_out)| (*held_out).min(config.eval_tokens as u64)).sum();
        let pace = Pace::new(&config, held_out);
        let first_step = state.step;
        let mut run = Self {
            schedule,
            loader,
            control,
            store,
            tokenizer,
            sources,
            log,
            started: Instant::now(),
            pace,
            evaluations: (0, 0),
            stage: None,
            saved: (first_step > 0).then_some(first_step),
            _lock: lock,
            model: model.with_half(mixed),
            optimizer,
            state,
            config,
        };
        run.emit(Event::Run(RunInfo {
            path: out,
            parameters: shape.parameters(),
            device: format!("{} ({})", compute.info.name, compute.info.backend),
            precision: if mixed { "mixed" } else { "f32" }.into(),
            step: first_step,
            steps: run.config.steps,
            tokens_per_step: run.config.tokens_per_step(),
            sources: sizes,
            fingerprint,
        }))
        .await?;
        Ok(Some(run))
    }

    /// What the user can do next.
    fn hints(&self, ended: Ended) -> Vec<String> {
        let (out, prompt) = (quoted(&self.config.out), quoted(&self.config.sample_prompt));
        let export = quoted(&format!("{}/export", self.config.out));
        match ended {
            Ended::Stopped => vec![format!("stopped after step {}; resume with: smolforge train --resume --out {out}", self.state.step)],
            Ended::Finished => vec![
                format!("look at {out}/report.html"),
                format!("smolforge export --run {out} --out {export}"),
                format!("smolforge generate --model {export} --prompt {prompt}"),
            ],
        }
    }

    /// Tells the shell and the log.
    async fn emit(&mut self, event: Event) -> Result<()> {
        self.control.emit(event.clone());
        self.record(&event).await
    }

    /// Writes an event down, and the warnings before it.
    async fn record(&mut self, event: &Event) -> Result<()> {
        for text in self.control.take_warnings() {
            self.log.push(&Event::Notice { warning: true, text })?;
        }
        self.log.push(event)?;
        self.with_room(async |run| run.log.flush()).await
    }

    /// Says so when the next step is the first of a stage.
    pub(super) async fn enter_stage(&mut self) -> Result<()> {
        let index = self.config.data_stages.stage_at(self.state.step);
        if self.stage == Some(index) {
            return Ok(());
        }
        self.stage = Some(index);
        let (start, end) = self.config.data_stages.range(index, self.config.steps);
        let name = self.config.data_stages.stages[index].name.clone();
        let event = Event::Stage { index, name, start, end, weights: self.loader.weights_at(index, start).clone() };
        if self.state.step == start {
            self.state.stage_loss = (0.0, 0);
            return self.emit(event).await;
        }
        self.control.emit(event); // resumed inside a stage: the log has it already, and what changed since
        let passed =
            self.config.mix_changes.iter().filter(|change| change.stage == index && (start + 1..self.state.step).contains(&change.step));
        passed.for_each(|change| self.control.emit(reweigh::event(change)));
        Ok(())
    }

    /// Names of the sources of some batches.
    pub(super) fn source_names(&self, batches: &[Batch]) -> Vec<String> {
        let mut used: Vec<usize> = batches.iter().flat_map(|batch| batch.sources.iter().copied()).collect();
        used.sort_unstable();
        used.dedup();
        used.into_iter().map(|source| self.sources[source].clone()).collect()
    }

    /// Mean loss of the step, and per source its loss and tokens.
    pub(super) fn source_losses(&self, batches: &[Batch], nll: &[Vec<f32>]) -> StepReport {
        let mut sums = vec![(0.0f64, 0u64); self.sources.len()];
        for (batch, nll) in batches.iter().zip(nll) {
            for (row, source) in batch.sources.iter().enumerate() {
                let range = row * batch.len..(row + 1) * batch.len;
                sums[*source].0 += nll[range.clone()].iter().map(|loss| f64::from(*loss)).sum::<f64>();
                sums[*source].1 += batch.targets[range].iter().filter(|target| **target >= 0).count() as u64;
            }
        }
        let used = || self.sources.iter().zip(&sums).filter(|(_, (_, tokens))| *tokens > 0);
        let (total, tokens) = sums.iter().fold((0.0, 0), |(a, b), (loss, tokens)| (a + loss, b + tokens));
        StepReport {
            loss: total / tokens.max(1) as f64,
            source_loss: used().map(|(name, (loss, tokens))| (name.clone(), loss / *tokens as f64)).collect(),
            source_tokens: used().map(|(name, (_, tokens))| (name.clone(), *tokens)).collect(),
            ..StepReport::default()
        }
    }

    /// Writes a step down.
    pub(super) async fn report(&mut self, mut report: StepReport, finite: bool, secs: f64) -> Result<()> {
        if finite {
            self.state.stage_loss.0 += report.loss;
            self.state.stage_loss.1 += 1;
        } else {
            let what = if report.loss.is_finite() { "gradient" } else { "loss" };
            report.skipped = Some(format!("non-finite {what}"));
        }
        self.state.total_tokens += report.tokens;
        report.total_tokens = self.state.total_tokens;
        report.tokens_per_sec = report.tokens as f64 / secs.max(1e-9);
        report.elapsed_secs = self.elapsed_secs();
        self.pace.step(secs);
        let (improved, evaluations) = self.evaluations;
        let improving = f64::from(improved + 1) / f64::from(evaluations + 1);
        report.eta_secs = self.pace.left_secs(&Left::after(self.state.step, &self.config, improving));
        self.emit(Event::Step(report)).await
    }

    /// Seconds of this session in which it did not wait.
    fn elapsed_secs(&self) -> f64 {
        self.started.elapsed().as_secs_f64() - self.control.waited_secs()
    }

    /// Evaluation, samples, the end of a stage and checkpoints, as they are due after a step.
    ///
    /// Interrupted, it saves that this step still owes them (`due`), and they are made up for when the run goes on.
    pub(super) async fn after_step(&mut self) -> Result<Flow> {
        self.state.due = true;
        let step = self.state.step;
        let index = self.config.data_stages.stage_at(step - 1);
        let (_, stage_end) = self.config.data_stages.range(index, self.config.steps);
        let due = |every: u32| step == stage_end || (every > 0 && step.is_multiple_of(every));
        let improved = match due(self.config.eval_every) {
            true => self.evaluate().await?,
            false => Some(false),
        };
        let sampled = improved.is_some() && (!due(self.config.sample_every) || self.sample(index).await?);
        let (Some(improved), true) = (improved, sampled) else {
            self.save().await?;
            return Ok(Flow::Stop);
        };
        self.state.due = false;
        if step == stage_end {
            let (sum, count) = self.state.stage_loss;
            let event = Event::StageDone {
                name: self.config.data_stages.stages[index].name.clone(),
                average_loss: sum / f64::from(count.max(1)),
                shares: self.loader.shares_of_stage(),
                epochs: self.loader.epochs(),
            };
            self.emit(event).await?;
        }
        // While updates are skipped nothing is learned, and good checkpoints would give way to doubtful ones.
        let regular = step.is_multiple_of(self.config.save_every) && self.state.skipped_in_a_row == 0;
        let asked = self.control.take_save();
        if improved || regular || asked || step == self.config.steps {
            self.save().await?;
        }
        Ok(Flow::Continue)
    }

    /// Scores held-out text of every source; returns whether it is the best so far, `None` where it was stopped.
    async fn evaluate(&mut self) -> Result<Option<bool>> {
        let begun = self.elapsed_secs();
        let model = self.model.plain();
        let mut scores = BTreeMap::new();
        for (source, name) in self.sources.iter().enumerate() {
            let bytes = Cell::new(0);
            let batches = self.loader.held_out(source, self.config.eval_tokens, EVAL_ROWS);
            let batches = batches.inspect(|batch| bytes.set(bytes.get() + batch.target_bytes(&self.tokenizer)));
            match eval::run(&model, batches, self.control).await? {
                Some((_, 0)) => {}
                Some((nats, tokens)) => drop(scores.insert(name.clone(), TextScore::new(nats, tokens, bytes.get()))),
                None => return Ok(None),
            }
        }
        // The last stage's mix throughout, so that "best" compares like with like across stages.
        let weights = &self.config.data_stages.stages[self.config.data_stages.stages.len() - 1].weights;
        let weighted = |value: fn(&TextScore) -> f64| {
            let parts = scores.iter().map(|(name, score)| weights.get(name).copied().unwrap_or(0.0) * value(score));
            parts.sum::<f64>()
        };
        let loss = weighted(|score| score.loss) / weighted(|_| 1.0);
        self.pace.evaluation.add(self.elapsed_secs() - begun);
        self.evaluations.1 += 1;
        if !loss.is_finite() {
            return Ok(Some(false)); // also where no held-out text has a share in the last stage
        }
        let best = self.state.best.is_none_or(|(best, at)| loss < best || at == self.state.step);
        if best {
            self.state.best = Some((loss, self.state.step));
            self.evaluations.0 += 1;
        }
        self.emit(Event::Evaluated { step: self.state.step, loss, sources: scores, best }).await?;
        Ok(Some(best))
    }

    /// Lets the model write; false where it was stopped.
    async fn sample(&mut self, stage: usize) -> Result<bool> {
        let begun = self.elapsed_secs();
        let model = self.model.plain();
        let prompt = generate::prompt_ids(&self.tokenizer, &model.config, &self.config.sample_prompt);
        let room = model.positions().saturating_sub(prompt.len());
        let end = generate::end_tokens(&self.tokenizer, &model.config);
        let limits = Limits { max_new_tokens: self.config.sample_tokens.min(room), stop: &[], end: &end };
        let mut random = Random::stream(self.config.seed, u64::from(self.state.step));
        let sampling = Sampling::default();
        let done =
            generate::generate(&model, &self.tokenizer, &prompt, &sampling, &limits, &mut random, self.control, |_, _| {}, |_| {}).await;
        self.pace.sample.add(self.elapsed_secs() - begun);
        let done = match done {
            Ok(done) if done.finish == "cancelled" => return Ok(false),
            Ok(done) => done,
            // What a model cannot say is no reason to end its training, which counts non-finite updates itself.
            Err(Error::Data(why)) => {
                self.control.warn(format!("no sample at step {}: {why}", self.state.step));
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let stage = self.config.data_stages.stages[stage].name.clone();
        self.emit(Event::Sample { step: self.state.step, stage, prompt: self.config.sample_prompt.clone(), text: done.text }).await?;
        Ok(true)
    }

    /// What is left of a run that fails.
    pub(super) fn last_checkpoint(&self) -> String {
        match self.saved {
            Some(step) => format!("the checkpoint of step {step} is intact"),
            None => "no checkpoint was saved yet".into(),
        }
    }

    /// Writes a checkpoint, then removes old ones.
    pub(super) async fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        let begun = self.elapsed_secs();
        self.state.cursor = self.loader.cursor();
        self.state.updates = self.optimizer.updates;
        let save = async |run: &mut Self| {
            checkpoint::save(run.store, &run.config.out, &run.model, &run.optimizer, &run.state, run.tokenizer.json()).await
        };
        let path = self.with_room(save).await?;
        checkpoint::prune(self.store, &self.config.out, self.config.save_total_limit, self.state.best.map(|(_, step)| step)).await?;
        self.saved = Some(self.state.step);
        self.pace.save.add(self.elapsed_secs() - begun);
        self.emit(Event::Saved { step: self.state.step, path }).await
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Whether a run computes in mixed precision.
///
/// # Errors
/// Where it is asked for and the device has no f16.
pub fn mixed(config: &TrainConfig, compute: &Compute) -> Result<bool> {
    match config.precision {
        Precision::F32 => Ok(false),
        Precision::Auto => Ok(compute.f16 && compute.info.is_real_gpu()),
        Precision::Mixed if compute.f16 => Ok(true),
        Precision::Mixed => Err(Error::Device(format!("{} does not compute in f16; use --precision f32", compute.info.name))),
    }
}
