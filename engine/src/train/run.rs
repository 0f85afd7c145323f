//! A run in progress, whatever it trains: what the loop of [`super::train`] needs around it, and what it leaves on disk.

mod reweigh;
mod room;

use std::cell::Cell;
use std::collections::BTreeMap;

use web_time::Instant;

use super::checkpoint::{self, State};
use super::eval::{self, Scored};
use super::finetune::Tuning;
use super::log::RunLog;
use super::optimizer::Optimizer;
use super::pace::{Left, Pace};
use super::schedule::Schedule;
use super::{Ended, runs, train};
use crate::config::TrainConfig;
use crate::config::finetune::{Interval, Metric};
use crate::control::{Control, Flow};
use crate::data::batch::Batch;
use crate::data::feed::Feed;
use crate::data::random::Random;
use crate::device;
use crate::error::{Error, Result};
use crate::generate::speech::Files;
use crate::generate::{self, Limits};
use crate::model::Llama;
use crate::protocol::{DeviceInfo, Event, RunInfo, Sampling, StepReport, TextScore};
use crate::store::{Lock, Store};
use crate::text::tokenizer::Tokenizer;

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
    pub feed: Feed,
    /// Everything else that a checkpoint holds.
    pub state: State,
    /// The shell.
    pub control: &'a Control,
    store: &'a Store,
    tokenizer: Tokenizer,
    sources: Vec<String>,
    kind: Kind,
    prompts: Vec<(String, Vec<u32>)>,
    stops: Vec<u32>,
    log: RunLog,
    started: Instant,
    pace: Pace,
    evaluations: (u32, u32),
    stage: Option<usize>,
    saved: Option<u32>,
    _lock: Lock,
}

/// What kinds of runs differ in, besides where their batches come from.
pub enum Kind {
    /// All weights are trained on texts.
    Pretraining,
    /// Examples are learned, mostly by an adapter.
    Finetuning(Box<Tuning>),
}

/// Where a run begins or goes on: what its kind prepares.
pub struct Ready {
    /// Leaves of the gradient computation.
    pub model: Llama,
    /// Their moments.
    pub optimizer: Optimizer,
    /// Of the checkpoint, or [`State::new`].
    pub state: State,
    /// Where batches come from, at the place that `state` says.
    pub feed: Feed,
    /// Of the model.
    pub tokenizer: Tokenizer,
    /// Per source: tokens to learn, tokens held out.
    pub sizes: BTreeMap<String, (u64, u64)>,
    /// What samples are drawn for: as shown, as ids.
    pub prompts: Vec<(String, Vec<u32>)>,
    /// Ids that end samples.
    pub stops: Vec<u32>,
    /// Whether all of it computes in mixed precision.
    pub mixed: bool,
    /// Where it computes.
    pub device: DeviceInfo,
    /// What its kind needs.
    pub kind: Kind,
    /// The log, created or cut back to the checkpoint.
    pub log: RunLog,
    /// Nobody else writes into its folder.
    pub lock: Lock,
}

/// Refuses a folder that has a run already, or anything else in it; returns the steps of its checkpoints.
///
/// # Errors
/// [`Error::Config`] naming what is there.
pub async fn claim(out: &str, resume: bool, store: &Store) -> Result<(Vec<u32>, Lock)> {
    let existing = checkpoint::steps(store, out).await?;
    if !resume && (store.exists(&format!("{out}/config.yaml")).await || !existing.is_empty()) {
        return Err(Error::Config(format!("{out}: there is a run already; continue it with --resume, or choose another --out")));
    }
    if !resume && let Some(other) = runs::foreign(store, out).await?.first() {
        return Err(Error::Config(format!("{}: {out} holds other things than a run; choose a new or an empty --out", other.name)));
    }
    Ok((existing, store.lock(&format!("{out}/.lock")).await?))
}

impl<'a> Run<'a> {
    /// A run that is ready for its next step, and has said so.
    ///
    /// # Errors
    /// A full disk.
    pub async fn begin(config: TrainConfig, ready: Ready, store: &'a Store, control: &'a Control) -> Result<Run<'a>> {
        let Ready { model, optimizer, state, feed, tokenizer, sizes, prompts, stops, mixed, device, kind, log, lock } = ready;
        let held_out = sizes.values().map(|(_, held_out)| (*held_out).min(config.eval_tokens as u64)).sum();
        let mut run = Self {
            schedule: Schedule { from_zero: matches!(kind, Kind::Finetuning(_)), ..Schedule::from(&config) },
            pace: Pace::new(&config, held_out),
            sources: sizes.keys().cloned().collect(),
            model: model.with_half(mixed),
            evaluations: (0, 0),
            stage: None,
            saved: (state.step > 0).then_some(state.step),
            started: Instant::now(),
            _lock: lock,
            optimizer,
            feed,
            control,
            store,
            tokenizer,
            kind,
            prompts,
            stops,
            log,
            state,
            config,
        };
        let trained = run.model.trained().iter().map(|parameter| parameter.len() as u64).sum();
        run.emit(Event::Run(RunInfo {
            path: run.config.out.clone(),
            parameters: run.model.config.parameters(),
            trained,
            device: format!("{} ({})", device.name, device.backend),
            precision: format!("{}{}", if mixed { "mixed" } else { "f32" }, run.model.base()),
            step: run.state.step,
            steps: run.config.steps,
            tokens_per_step: run.feed.tokens_per_step(&run.config),
            learned_only: matches!(run.feed, Feed::Examples(..)),
            sources: sizes,
            fingerprint: run.state.fingerprint.clone(),
        }))
        .await?;
        Ok(run)
    }

    /// Makes the steps that are left, and writes down how it ended; returns what to tell the user.
    ///
    /// # Errors
    /// See [`train`].
    pub async fn complete(mut self) -> Result<(Ended, Vec<String>)> {
        let ended = match train(&mut self).await {
            Ok(Ended::Finished) => self.finish().await.map(|()| Ended::Finished),
            ended => ended,
        };
        if let Some(bytes) = device::memory().device_reserved_bytes.filter(|_| !self.model.is_on_cpu()) {
            self.control.notice(format!("memory of the graphics device that was taken: {:.2} GB", bytes as f64 / 1e9));
        }
        let ended = ended.map(|ended| (ended, self.hints(ended)));
        let last = match &ended {
            Ok((ended, hints)) => Event::Done { hints: hints.clone(), stopped: *ended == Ended::Stopped },
            Err(error) => Event::failed(error),
        };
        let recorded = self.record(&last).await;
        let page = self.with_room(async |run| run.log.report().await).await;
        let ended = ended?; // what went wrong with the run matters more than what goes wrong with its report
        let path = recorded.and(page)?;
        self.control.emit(Event::Wrote { what: "report".into(), path });
        Ok(ended)
    }

    /// What a run of its kind leaves when all steps are made.
    async fn finish(&mut self) -> Result<()> {
        self.with_room(async |run| match &run.kind {
            Kind::Finetuning(tuning) => tuning.finish(&run.state, run.tokenizer.json(), run.store, run.control).await,
            Kind::Pretraining => Ok(()),
        })
        .await
    }

    /// What the user can do next.
    fn hints(&self, ended: Ended) -> Vec<String> {
        if let Kind::Finetuning(tuning) = &self.kind {
            return tuning.hints(ended, self.state.step);
        }
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

    /// Writes an event down, and the remarks before it.
    async fn record(&mut self, event: &Event) -> Result<()> {
        for remark in self.control.take_remarks() {
            self.log.push(&remark)?;
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
        let event = Event::Stage { index, name, start, end, weights: self.feed.weights_at(index, start).clone() };
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
        report.tokens_per_sec = report.read_tokens as f64 / secs.max(1e-9);
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
        let due = |every: u32| match &self.kind {
            Kind::Pretraining => step == stage_end || (every > 0 && step.is_multiple_of(every)),
            Kind::Finetuning(tuning) => match tuning.config.eval_strategy {
                Interval::No => false,
                Interval::Epoch => step == stage_end,
                Interval::Steps => step.is_multiple_of(every),
            },
        };
        let (evaluates, samples) = (due(self.config.eval_every), due(self.config.sample_every));
        let improved = match evaluates {
            true => self.evaluate().await?,
            false => Some(false),
        };
        let sampled = improved.is_some() && (!samples || self.sample(index).await?);
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
                shares: self.feed.shares_of_stage(),
                epochs: self.feed.epochs(),
            };
            self.emit(event).await?;
        }
        // While updates are skipped nothing is learned, and good checkpoints would give way to doubtful ones.
        let regular = step.is_multiple_of(self.config.save_every) && self.state.skipped_in_a_row == 0;
        let asked = self.control.take_save();
        // Of a fine-tuning run the best checkpoint is kept where it will be wanted.
        let improved = improved && !matches!(&self.kind, Kind::Finetuning(tuning) if !tuning.config.load_best_model_at_end);
        if improved || regular || asked || step == self.config.steps {
            self.save().await?;
        }
        Ok(Flow::Continue)
    }

    /// Scores what is held out of every source; returns whether it is the best so far, `None` where it was stopped.
    async fn evaluate(&mut self) -> Result<Option<bool>> {
        let begun = self.elapsed_secs();
        let model = self.model.plain();
        let mut scores = BTreeMap::new();
        for (source, name) in self.sources.iter().enumerate() {
            let bytes = Cell::new(0);
            let batches = self.feed.held_out(source, self.config.eval_tokens);
            let batches = batches.inspect(|batch| bytes.set(bytes.get() + batch.target_bytes(&self.tokenizer)));
            match eval::run(&model, batches, self.control).await? {
                Some(Scored { tokens: 0, .. }) => {}
                Some(scored) => drop(scores.insert(name.clone(), scored.score(bytes.get()))),
                None => return Ok(None),
            }
        }
        let (loss, worst) = self.overall(&scores);
        self.pace.evaluation.add(self.elapsed_secs() - begun);
        self.evaluations.1 += 1;
        if !worst.is_finite() {
            return Ok(Some(false)); // also where nothing is held out of what has a share in the last stage
        }
        let best = self.state.best.is_none_or(|(best, at)| worst < best || at == self.state.step);
        if best {
            self.state.best = Some((worst, self.state.step));
            self.evaluations.0 += 1;
        }
        self.emit(Event::Evaluated { step: self.state.step, loss, sources: scores, best }).await?;
        Ok(Some(best))
    }

    /// Loss over all sources, and the number whose least is the best checkpoint's.
    fn overall(&self, scores: &BTreeMap<String, TextScore>) -> (f64, f64) {
        let weighted = |weight: &dyn Fn(&str, &TextScore) -> f64, value: fn(&TextScore) -> f64| {
            let parts = scores.iter().map(|(name, score)| (weight(name, score), value(score)));
            let (sum, weights) = parts.fold((0.0, 0.0), |(sum, weights), (weight, value)| (sum + weight * value, weights + weight));
            sum / weights
        };
        match &self.kind {
            Kind::Pretraining => {
                // The last stage's mix throughout, so that "best" compares like with like across stages.
                let stages = &self.config.data_stages.stages;
                let share = |name: &str, _: &TextScore| stages[stages.len() - 1].weights.get(name).copied().unwrap_or(0.0);
                let loss = weighted(&share, |score| score.loss);
                (loss, loss)
            }
            Kind::Finetuning(tuning) => {
                let tokens = |_: &str, score: &TextScore| score.tokens as f64;
                let loss = weighted(&tokens, |score| score.loss);
                match tuning.config.metric_for_best_model {
                    Metric::Loss => (loss, loss),
                    Metric::Accuracy => (loss, 1.0 - weighted(&tokens, |score| score.accuracy.unwrap_or(0.0))),
                }
            }
        }
    }

    /// Lets the model write; false where it was stopped.
    async fn sample(&mut self, stage: usize) -> Result<bool> {
        let begun = self.elapsed_secs();
        let model = self.model.plain();
        let stage = self.config.data_stages.stages[stage].name.clone();
        let sampling = Sampling { greedy: matches!(self.kind, Kind::Finetuning(_)), ..Sampling::default() };
        for (index, (shown, prompt)) in self.prompts.clone().into_iter().enumerate() {
            let random = Random::stream(self.config.seed, u64::from(self.state.step) | (index as u64) << 32);
            let room = model.positions().saturating_sub(prompt.len());
            let limits = Limits { max_new_tokens: self.config.sample_tokens.min(room), stop: &[], end: &self.stops };
            let done = generate::generate(&model, &self.tokenizer, &prompt, &sampling, &limits, random, self.control, None, |_| {}).await;
            let text = match done {
                Ok((done, _)) if done.finish == "cancelled" => return Ok(false),
                Ok((done, _)) => done.text,
                // What a model cannot say is no reason to end its training, which counts non-finite updates itself.
                Err(Error::Data(why)) => {
                    self.control.warn(format!("no sample at step {}: {why}", self.state.step));
                    break;
                }
                Err(error) => return Err(error),
            };
            self.emit(Event::Sample { step: self.state.step, stage: stage.clone(), prompt: shown, text }).await?;
        }
        self.pace.sample.add(self.elapsed_secs() - begun);
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
        self.state.cursor = self.feed.cursor();
        self.state.updates = self.optimizer.updates;
        let save = async |run: &mut Self| {
            let (adapter, files) = match &run.kind {
                Kind::Finetuning(tuning) => {
                    (tuning.adapter.as_ref(), tuning.checkpoint_files(&run.state, run.config.steps, run.store).await?)
                }
                Kind::Pretraining => (None, Files::new()),
            };
            let (out, tokenizer) = (&run.config.out, run.tokenizer.json());
            checkpoint::save(run.store, out, &run.model, adapter, &run.optimizer, &run.state, tokenizer, &files).await
        };
        let path = self.with_room(save).await?;
        checkpoint::prune(self.store, &self.config.out, self.config.save_total_limit, self.state.best.map(|(_, step)| step)).await?;
        self.saved = Some(self.state.step);
        self.pace.save.add(self.elapsed_secs() - begun);
        self.emit(Event::Saved { step: self.state.step, path }).await
    }
}

/// A word as a shell reads it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
