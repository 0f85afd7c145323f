//! What a shell and the engine say to each other: plain data, no tensors, no handles.
//!
//! A shell sends [`Command`]s and folds [`Event`]s. `events.jsonl` of a run is this event stream
//! written down, so a plot of yesterday's run and a live plot are the same code.

mod reasoning;
mod reports;
mod requests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;

pub use crate::data::example::{LossOn, Piece};
pub use crate::data::preflight::{Check, Lengths, Level, Preflight};
pub use crate::text::template::Message;
pub use reasoning::{BudgetReport, Capped, FunnelReport, GradeCase, GradeReport, ReasonVerb, Reject, Reply, Tally, TestReport};
pub use reports::{
    AnswerReport, DeviceInfo, ExampleReport, KernelReport, Match, Matches, MemoryReport, ModelReport, PlanReport, PreviewReport, RunInfo,
    RunState, RunSummary, SourcePlan, StepReport, TextScore,
};
pub use requests::{AdapterChoice, AnswersRequest, BenchRequest, ExportDtype, GenerateRequest, Sampling};

pub use crate::config::finetune::FinetuneConfig;
pub use crate::config::reason::ReasonConfig;
pub use crate::config::{DeviceChoice, Precision, SourceConfig, TrainConfig};

/// Names a job: its shell gives it, events of the job carry it.
pub type JobId = u64;

/// What a shell asks of the engine, with the id of the job that it begins, or that it is about (`Stop`, `Pause`,
/// `Continue`, `Save`, `Move`, `Reweight`).
///
/// Jobs wait for their turn in two queues. Texts are generated while a longer job of the other queue waits between two
/// of its micro-batches; questions about what is on disk are answered at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Pre-train; with `resume` continue the run in `config.out`.
    Train {
        /// The run.
        config: Box<TrainConfig>,
        /// Continue from the last good checkpoint of `config.out`.
        resume: bool,
    },
    /// Fine-tune on examples; with `resume` continue the run in `config.output_dir`.
    Finetune {
        /// The run.
        config: Box<FinetuneConfig>,
        /// How its file was read, for the log; see [`FinetuneConfig::from_yaml`].
        #[serde(default)]
        notes: Vec<String>,
        /// Continue from the last good checkpoint.
        resume: bool,
    },
    /// Generate text from a Hugging Face folder.
    Generate(GenerateRequest),
    /// Loss, perplexity and bits per byte of text files.
    Eval {
        /// Hugging Face folder.
        model: String,
        /// Text files.
        files: Vec<String>,
        /// Where to compute.
        device: DeviceChoice,
        /// Tokens per window; 0: the model's context, at most 2048.
        sequence_length: usize,
    },
    /// Write a run's weights as a Hugging Face folder.
    Export {
        /// Folder of the run.
        run: String,
        /// Folder to write.
        out: String,
        /// Type of the stored numbers.
        dtype: ExportDtype,
        /// `last`, `best` or a step.
        checkpoint: String,
    },
    /// The pre-flight list of rows that are to be learned, and some of them token by token.
    Inspect {
        /// The run: model, rows, and how they are read.
        config: Box<FinetuneConfig>,
        /// The first example that is shown, from 0.
        first: usize,
        /// How many are shown.
        count: usize,
        /// Show the example of this row only: its line, or its file and line as reports name it.
        row: Option<String>,
    },
    /// Write a model and its adapters as one model.
    Merge {
        /// Hugging Face folder.
        model: String,
        /// What is added to it.
        adapters: Vec<AdapterChoice>,
        /// Folder to write.
        out: String,
        /// Type of the stored numbers.
        dtype: ExportDtype,
    },
    /// Score examples, and compare the model's own answers with theirs.
    Answers(Box<AnswersRequest>),
    /// Shape and words of a model that is on this machine.
    Describe {
        /// Hugging Face folder, run, or name on the hub of what was downloaded before.
        model: String,
        /// Folders or runs of adapters that have to be readable.
        #[serde(default)]
        adapters: Vec<AdapterChoice>,
    },
    /// Count the tokens of files.
    Tokenize {
        /// `tokenizer.json` or a folder that holds one.
        tokenizer: String,
        /// Text files.
        files: Vec<String>,
    },
    /// Train a byte-level BPE tokenizer.
    TrainTokenizer {
        /// Text files.
        files: Vec<String>,
        /// Entries of the vocabulary.
        vocab_size: usize,
        /// `tokenizer.json` to write.
        out: String,
    },
    /// List the adapters and which one `auto` takes.
    Devices {
        /// Whether the best adapter is opened and tried out.
        test: bool,
    },
    /// How much memory is in use.
    Memory,
    /// What a run would need, before it starts.
    Plan {
        /// The run.
        config: Box<TrainConfig>,
        /// Memory that the run may take; `None`: what the machine has.
        #[serde(default)]
        budget_bytes: Option<u64>,
    },
    /// What a fine-tuning run would need, before it starts.
    PlanFinetune {
        /// The run.
        config: Box<FinetuneConfig>,
        /// Memory that the run may take; `None`: what the machine has.
        budget_bytes: Option<u64>,
    },
    /// Measure a training step, prefill and decode.
    Bench(BenchRequest),
    /// The whole main job on built-in data.
    Demo {
        /// Folder to write into.
        out: String,
        /// Where to compute.
        device: DeviceChoice,
        /// Seed of corpora, weights and samples.
        seed: u64,
        /// Updates of the whole run; the curriculum is scaled to them.
        steps: u32,
    },
    /// The whole fine-tuning job on built-in data: a base, rows, an adapter, answers before and after.
    DemoFinetune {
        /// Folder to write into.
        out: String,
        /// Where to compute.
        device: DeviceChoice,
        /// Seed of corpora, weights and rows.
        seed: u64,
        /// Updates of the base's pre-training.
        steps: u32,
        /// Updates of the adapter.
        updates: u32,
    },
    /// The whole of a task on built-in data: student and teacher, then questions, tests, adapters, rollouts, grade and bundle
    /// with three seeds.
    DemoTask {
        /// Folder to write into.
        out: String,
        /// Where to compute.
        device: DeviceChoice,
        /// Seed of texts, weights and questions.
        seed: u64,
        /// Updates of each pre-training.
        steps: u32,
    },
    /// A task with one right answer to every question: questions, tests, adapters, rollouts, grade, bundle.
    Reason {
        /// What the verbs share.
        config: Box<ReasonConfig>,
        /// What is to be done.
        verb: ReasonVerb,
    },
    /// All runs below a folder.
    Runs {
        /// The folder.
        folder: String,
    },
    /// The configuration and the events of a run.
    OpenRun {
        /// Folder of the run.
        path: String,
    },
    /// Remove a run with all its files; refused while it is in progress, and for what is no run.
    Delete {
        /// Folder of the run.
        path: String,
    },
    /// Write a run or a model's folder as one `.zip`.
    Pack {
        /// The folder.
        folder: String,
        /// The `.zip` to write.
        out: String,
    },
    /// Make a folder of what [`Command::Pack`] wrote.
    Unpack {
        /// The `.zip`.
        file: String,
        /// The folder; it must not exist.
        out: String,
    },
    /// A page of the texts of a source.
    Preview {
        /// The source.
        source: SourceConfig,
        /// Which page, from 0.
        page: usize,
    },
    /// Run every kernel and op on a device against its definition.
    SelfTest {
        /// Which device.
        device: DeviceChoice,
    },
    /// Other shares of the sources for the present or a later stage of a run in progress, from its next step on.
    Reweight {
        /// First stage is 0.
        stage: usize,
        /// Weight per source; they are made to sum to 1.
        weights: BTreeMap<String, f64>,
    },
    /// Finish the micro-batch, save, end the job; one that waits is taken out of its queue.
    Stop,
    /// Wait between micro-batches.
    Pause,
    /// Go on after `Pause`.
    Continue,
    /// Write a checkpoint after the present step, and go on.
    Save,
    /// Give a job that waits another place.
    Move {
        /// 0: the next one.
        position: usize,
    },
}

/// What the engine tells its shell, with the id of the job it is about. A job may wait first (`Waiting`); of what it
/// does, `Started` is first and exactly one of `Done` and `Failed` last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A job waits for its turn.
    Waiting {
        /// Jobs before it, the one in progress included.
        position: usize,
    },
    /// A job began.
    Started {
        /// The verb.
        job: String,
        /// Version of smolforge.
        version: String,
    },
    /// Something people should know; `warning` stays readable.
    Notice {
        /// Whether it deserves attention.
        warning: bool,
        /// One sentence.
        text: String,
    },
    /// A job waits for people to do something: `Continue` or `Stop` end that.
    Held {
        /// One sentence: what they should do.
        why: String,
    },
    /// How far a long task is.
    Progress {
        /// What is being done, e.g. `tokenize input`.
        task: String,
        /// Units done.
        done: u64,
        /// Units in all; 0: unknown.
        total: u64,
        /// `bytes`, `tokens`, `files`, `windows`.
        unit: String,
    },
    /// A run began or was resumed.
    Run(RunInfo),
    /// A stage of the curriculum began.
    Stage {
        /// First stage is 0.
        index: usize,
        /// Name from the configuration.
        name: String,
        /// First step of the stage.
        start: u32,
        /// Step after the last one.
        end: u32,
        /// Share of training tokens per source.
        weights: BTreeMap<String, f64>,
    },
    /// A stage has other shares from now on.
    Reweighted {
        /// Updates made so far: the next one is the first with these shares.
        step: u32,
        /// First stage is 0.
        stage: usize,
        /// Share of training tokens per source.
        weights: BTreeMap<String, f64>,
    },
    /// One update was made or skipped.
    Step(StepReport),
    /// Held-out text was evaluated.
    Evaluated {
        /// Updates made so far.
        step: u32,
        /// Mean loss per token over all sources: of texts each weighted as the last stage of the run weights it, of examples
        /// every token alike.
        #[serde(deserialize_with = "reports::number_or_nan")]
        loss: f64,
        /// Loss, perplexity and bits per byte per source.
        sources: BTreeMap<String, TextScore>,
        /// Whether this is the best so far: by the loss, or by what a fine-tuning run was asked to go by.
        best: bool,
    },
    /// A sample drawn during training.
    Sample {
        /// Updates made so far.
        step: u32,
        /// Stage in which it was drawn.
        stage: String,
        /// The prompt.
        prompt: String,
        /// What the model wrote after it.
        text: String,
    },
    /// A stage ended.
    StageDone {
        /// Name from the configuration.
        name: String,
        /// Mean training loss of the stage.
        #[serde(deserialize_with = "reports::number_or_nan")]
        average_loss: f64,
        /// Share of training tokens per source that the stage really had.
        #[serde(deserialize_with = "reports::numbers_or_nan")]
        shares: BTreeMap<String, f64>,
        /// Passes over every source since the run began.
        #[serde(deserialize_with = "reports::numbers_or_nan")]
        epochs: BTreeMap<String, f64>,
    },
    /// A checkpoint is safe on disk.
    Saved {
        /// Updates made so far.
        step: u32,
        /// Its folder.
        path: String,
    },
    /// A piece of generated text.
    Text {
        /// Which prompt.
        prompt: usize,
        /// Which sample of it.
        sample: usize,
        /// Whole UTF-8 characters only.
        text: String,
    },
    /// A new token as the model saw it, where alternatives were asked for.
    Token {
        /// Which prompt.
        prompt: usize,
        /// Which sample of it.
        sample: usize,
        /// Its bytes as text; a part of a character is U+FFFD.
        text: String,
        /// Its probability before any parameter of the sampling.
        #[serde(deserialize_with = "reports::number_or_nan")]
        probability: f64,
        /// The likeliest tokens with theirs, the likeliest first.
        alternatives: Vec<(String, f64)>,
    },
    /// A sample is complete.
    Generated {
        /// Which prompt.
        prompt: usize,
        /// Which sample of it.
        sample: usize,
        /// All of its text without the prompt.
        text: String,
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// New tokens.
        tokens: Vec<u32>,
        /// `stop` (end-of-text or a stop string), `length` or `cancelled`.
        finish: String,
        /// Seconds until the first new token.
        prefill_secs: f64,
        /// Seconds for the other new tokens.
        decode_secs: f64,
    },
    /// Score of one text file, or of the examples of a task.
    Scored {
        /// The file, or the name of the task.
        file: String,
        /// Loss, perplexity, bits per byte, tokens.
        score: TextScore,
    },
    /// What was found of rows before they are learned.
    Preflight(Preflight),
    /// An example as the model reads it.
    Example(ExampleReport),
    /// A question, its answer and the model's.
    Answer(AnswerReport),
    /// A model on this machine.
    Described(ModelReport),
    /// How many answers were right.
    Matches {
        /// By task.
        tasks: BTreeMap<String, Matches>,
    },
    /// How a model did in a test.
    Tested(TestReport),
    /// How far a rollout is, and what it has yielded.
    Funnel(FunnelReport),
    /// Questions of a rollout without a right sample.
    Rejected {
        /// File of the rollout's rows.
        data: String,
        /// The questions.
        rejects: Vec<Reject>,
    },
    /// The points of a submission.
    Graded(GradeReport),
    /// What limits a task's adapters.
    Budget(BudgetReport),
    /// Token count of one file.
    Tokenized {
        /// The file.
        file: String,
        /// Its size.
        size_bytes: u64,
        /// UTF-8 text in it: less where rows have other keys, too.
        text_bytes: u64,
        /// Its tokens.
        tokens: u64,
        /// Invalid UTF-8 bytes that were replaced.
        replaced_bytes: u64,
    },
    /// A page of the texts of a source.
    Preview(PreviewReport),
    /// One adapter.
    Device(DeviceInfo),
    /// Memory in use.
    Memory(MemoryReport),
    /// One kernel or op was run against its definition.
    Kernel(KernelReport),
    /// What a run would need.
    Plan(PlanReport),
    /// One measurement.
    Bench {
        /// `step`, `forward`, `backward`, `optimizer`, `prefill`, `decode`, `decode, N rows`.
        phase: String,
        /// Median seconds.
        secs: f64,
        /// Tokens per second.
        #[serde(deserialize_with = "reports::number_or_nan")]
        tokens_per_sec: f64,
        /// Peak resident memory of the process so far.
        peak_rss_bytes: u64,
        /// Memory of the graphics device that was taken so far.
        #[serde(default)]
        device_bytes: Option<u64>,
        /// Memory that a plan of the training step names.
        #[serde(default)]
        planned_bytes: u64,
        /// Of `step`: the mean loss of the same batch before each update, the one that is not timed first.
        #[serde(default)]
        losses: Vec<f64>,
    },
    /// All runs below a folder, newest first.
    Runs {
        /// The runs.
        runs: Vec<RunSummary>,
    },
    /// A run was read from disk.
    Opened {
        /// Folder of the run.
        path: String,
        /// Its frozen configuration.
        config: Box<TrainConfig>,
        /// Its log: Unix times and events.
        events: Vec<(f64, Event)>,
    },
    /// Files were written.
    Wrote {
        /// What it is, e.g. `FP16 export`.
        what: String,
        /// Where it lies.
        path: String,
    },
    /// The job ended well.
    Done {
        /// What to do next, a line each.
        hints: Vec<String>,
        /// Whether it ended early because `Stop` was asked for.
        stopped: bool,
    },
    /// The job ended with an error.
    Failed {
        /// One line that says what to do.
        error: String,
        /// Whether smolforge itself is to blame.
        #[serde(default)]
        defect: bool,
    },
}

impl Event {
    /// The end of a job that failed.
    pub fn failed(error: &Error) -> Self {
        Self::Failed { error: error.to_string(), defect: matches!(error, Error::Internal(_)) }
    }
}
