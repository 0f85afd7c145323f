//! Reasoning on built-in data: a student and a larger teacher learn to read from texts about units, then the whole task runs
//! three times, each on other questions: answers with worked examples, after answers were learned (SFT), and after the
//! teacher's right reasoning was (RFT).

use serde_json::json;

use super::SEED;
use super::finetune::word;
use crate::config::reason::{Keep, ReasonConfig};
use crate::config::{SourceConfig, TrainConfig};
use crate::control::{Control, Flow};
use crate::data::curriculum::{Curriculum, Stage};
use crate::data::lessons;
use crate::error::{Error, Result};
use crate::model::LlamaConfig;
use crate::protocol::{DeviceChoice, Event, TestReport};
use crate::store::Store;
use crate::tasks::reason::pipeline::{self, Results};
use crate::train::run::quoted;
use crate::train::{Ended, checkpoint, pretrain, resume};

/// Updates of the student's pre-training where none are asked for; the teacher makes as many.
pub const STEPS: u32 = 600;

/// How often the task is run.
const RUNS: u64 = 3;
/// Bytes of each text.
const TEXT_BYTES: usize = 600_000;
/// Entries of the vocabulary.
const VOCABULARY: usize = 512;
/// Questions to learn from, and to be tested on.
const QUESTIONS: [usize; 2] = [1000, 150];
/// What has come of it, by seed: written last.
const RESULTS: &str = "results.json";

/// Who is pre-trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Student,
    Teacher,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Student => "student",
            Self::Teacher => "teacher",
        }
    }

    /// Shares of the texts: the student sees hardly a conversation, so worked examples in one say little to it.
    fn weights(self) -> [(&'static str, f64); 5] {
        match self {
            Self::Student => [("facts", 0.15), ("sums", 0.25), ("notes", 0.2), ("worked", 0.385), ("chats", 0.015)],
            Self::Teacher => [("facts", 0.12), ("sums", 0.23), ("notes", 0.1), ("worked", 0.2), ("chats", 0.35)],
        }
    }

    /// The file of its shape.
    fn shape(self, out: &str) -> String {
        format!("{out}/{}.json", self.name())
    }

    /// A narrow model, and a wider one.
    fn config(self) -> LlamaConfig {
        let nano = LlamaConfig::preset("nano").expect("a preset's name").with_vocab(VOCABULARY);
        match self {
            Self::Student => nano,
            Self::Teacher => LlamaConfig {
                hidden_size: 160,
                intermediate_size: 432,
                num_attention_heads: 5,
                num_key_value_heads: 5,
                initializer_range: 1.0 / 160f64.sqrt(),
                ..nano
            },
        }
    }

    /// Its pre-training. Conversations with three worked examples are longer than the sequences of the student.
    fn training(self, out: &str, device: DeviceChoice, seed: u64, steps: u32) -> TrainConfig {
        let weights = self.weights();
        let source = |(name, _): (&str, f64)| (name.to_string(), SourceConfig::Path(format!("{out}/texts/{name}.txt")));
        let stage = Stage { name: "Lessons".into(), start: 0, weights: weights.map(|(name, weight)| (name.to_string(), weight)).into() };
        let (sequence_length, batch_size, tokenizer) = match self {
            Self::Student => (128, 16, None),
            Self::Teacher => (256, 8, Some(format!("{out}/{}/tokenizer.json", Self::Student.name()))),
        };
        TrainConfig {
            out: format!("{out}/{}", self.name()),
            device,
            seed,
            preset: self.shape(out),
            tokenizer,
            tokenizer_vocab_size: VOCABULARY,
            sources: weights.map(source).into(),
            data_stages: Curriculum::written(vec![stage]),
            held_out: 0.01,
            eval_tokens: 4096,
            batch_size,
            accumulation: 1,
            sequence_length,
            steps,
            lr: 4e-3,
            min_lr: Some(2e-4),
            warmup_steps: (steps / 20).max(1),
            eval_every: 0,
            sample_every: 0,
            sample_prompt: "How many".into(),
            sample_tokens: 30,
            save_every: (steps / 3).max(1),
            save_total_limit: 1,
            ..TrainConfig::default()
        }
    }
}

/// The task of one seed.
fn task(out: &str, device: DeviceChoice, seed: u64) -> ReasonConfig {
    let folder = folder(out, seed);
    let [train, valid] = ["train", "valid"].map(|name| Some(format!("{folder}/questions/{name}.json")));
    ReasonConfig {
        student: format!("{out}/{}", Role::Student.name()),
        teacher: format!("{out}/{}", Role::Teacher.name()),
        out: folder,
        device,
        seed,
        train_file: train,
        valid_file: valid,
        system: lessons::SYSTEM.into(),
        shots: Some(format!("{out}/shots.json")),
        test_questions: QUESTIONS[1],
        max_new_tokens: 40,
        batch_rows: 128,
        sft_dropout: 0.0,
        sft_learning_rate: 3e-3,
        oversample: 4,
        keep: Keep::First,
        rft_dropout: 0.0,
        rft_learning_rate: 3e-3,
        ..ReasonConfig::default()
    }
}

fn folder(out: &str, seed: u64) -> String {
    format!("{out}/seed-{seed}")
}

/// Runs it: `steps` updates of pre-training for each of both models, then the task with the seeds from `seed` on. A demo
/// that was stopped goes on where it was.
///
/// # Errors
/// As [`pretrain::run`] and [`pipeline::run`]; [`Error::Config`] for a folder whose demo has ended, [`Error::Resume`] for one whose
/// demo was begun with another seed.
pub async fn run(out: &str, device: DeviceChoice, seed: u64, steps: u32, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    super::check_steps(steps)?;
    let results = format!("{out}/{RESULTS}");
    if store.exists(&results).await {
        let report = format!("{}/report.html", folder(out, seed));
        return Err(Error::Config(format!("{out}: this demo has ended; look at {report}, or choose another --out for a new one")));
    }
    let stopped = Ok((Ended::Stopped, vec![format!("stopped; go on with: {}", command(out, device, seed, steps))]));
    if !texts(out, seed, store, control).await? {
        return stopped;
    }
    for role in [Role::Student, Role::Teacher] {
        let config = role.training(out, device, seed, steps);
        if learn(role, &config, store, control).await? == Ended::Stopped {
            return stopped;
        }
    }
    let mut outcomes = Vec::new();
    for seed_of_run in (0..RUNS).map(|run| seed.wrapping_add(run)) {
        let config = task(out, device, seed_of_run);
        control.notice(format!("the task with seed {seed_of_run}, in {}", config.out));
        let asked = lessons::questions(seed, seed_of_run, QUESTIONS);
        for (path, text) in [&config.train_file, &config.valid_file].into_iter().flatten().zip(asked) {
            store.write(path, text.as_bytes()).await?;
        }
        if pipeline::run(&config, store, control).await?.0 == Ended::Stopped {
            return stopped;
        }
        outcomes.push((seed_of_run, pipeline::results(&config.out, store).await?));
    }
    let tally = |report: &Option<TestReport>| report.as_ref().map(|report| report.all);
    let written = outcomes
        .iter()
        .map(|(seed, Results { cot, sft, rft, .. })| json!({"seed": seed, "cot": tally(cot), "sft": tally(sft), "rft": tally(rft)}));
    store.write(&results, format!("{:#}\n", written.collect::<serde_json::Value>()).as_bytes()).await?;
    Ok((Ended::Finished, hints(out, seed, &outcomes)))
}

/// Writes what both models read, and the worked example of the prompts; whether it came to its end. Their seed is written last:
/// only questions of the same seed are new to them.
async fn texts(out: &str, seed: u64, store: &Store, control: &Control) -> Result<bool> {
    let last = format!("{out}/texts/seed.json");
    if store.exists(&last).await {
        let begun = store.read_text(&last).await?;
        if begun.trim() == seed.to_string() {
            return Ok(true);
        }
        let hint = format!("go on with --seed {}, or choose another --out", begun.trim());
        return Err(Error::Resume(format!("the demo in {out} was begun with another seed; {hint}")));
    }
    for (name, text) in lessons::texts(seed, TEXT_BYTES) {
        let path = format!("{out}/texts/{name}.txt");
        store.write(&path, text.as_bytes()).await?;
        control.emit(Event::Wrote { what: format!("text `{name}`"), path });
        if control.breathe().await == Flow::Stop {
            return Ok(false);
        }
    }
    for role in [Role::Student, Role::Teacher] {
        store.write(&role.shape(out), role.config().to_hf_json("float32").as_bytes()).await?;
    }
    store.write(&format!("{out}/shots.json"), lessons::shots(seed).as_bytes()).await?;
    store.write(&last, seed.to_string().as_bytes()).await?;
    Ok(true)
}

/// Pre-trains a model, as far as that is not done yet.
async fn learn(role: Role, config: &TrainConfig, store: &Store, control: &Control) -> Result<Ended> {
    let begun = store.exists(&format!("{}/config.yaml", config.out)).await;
    if begun && checkpoint::steps(store, &config.out).await?.contains(&config.steps) {
        resume::frozen(config, store).await?; // refuses another seed, or other updates
        return Ok(Ended::Finished);
    }
    control.notice(format!("pre-training the {}", role.name()));
    Ok(pretrain::run(config, begun, store, control).await?.0)
}

/// The command line that begins this demo, or goes on with it.
fn command(out: &str, device: DeviceChoice, seed: u64, steps: u32) -> String {
    let mut command = format!("smolforge demo --task --out {}", quoted(out));
    if device != DeviceChoice::Auto {
        command += &format!(" --device {}", word(device));
    }
    for (flag, value, usual) in [("seed", seed, SEED), ("steps", steps.into(), STEPS.into())] {
        if value != usual {
            command += &format!(" --{flag} {value}");
        }
    }
    command
}

/// What has come of all runs.
fn hints(out: &str, seed: u64, outcomes: &[(u64, Results)]) -> Vec<String> {
    let share = |report: &Option<TestReport>| report.as_ref().map_or(f64::NAN, |report| 100.0 * report.all.accuracy());
    let rate = |report: &Option<TestReport>| report.as_ref().map_or(f64::NAN, |report| 100.0 * report.all.answer_rate());
    let outcome = |(seed, Results { cot, sft, rft, .. }): &(u64, Results)| {
        let ([cot, sft, accuracy], answered) = ([cot, sft, rft].map(share), rate(rft));
        format!(
            "seed {seed}: {cot:.1} % right with a worked example, {sft:.1} % after SFT, {accuracy:.1} % after RFT ({answered:.1} % answered)"
        )
    };
    let first = folder(out, seed);
    let ask =
        format!("smolforge generate --greedy --model {} --adapter {}", quoted(&format!("{out}/student")), quoted(&format!("{first}/rft")));
    outcomes
        .iter()
        .map(outcome)
        .chain([
            format!("{first}/report.html: funnel, accuracies, samples, losses; {out}/{RESULTS}: figures of all seeds"),
            format!("{out}/student/report.html, {out}/teacher/report.html: plots of the pre-training; {out}/texts: what was read"),
            format!("try: {ask} --prompt \"How many inches are there in 7 feet?\""),
        ])
        .collect()
}
