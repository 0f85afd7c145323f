//! What events carry: runs, updates, scores, devices and plans in numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::finetune::{FinetuneConfig, Method};
use crate::data::example::Piece;
use crate::model::LlamaConfig;

/// What a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Folder of the run.
    pub path: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Those that are trained; 0 in logs of before.
    #[serde(default)]
    pub trained: u64,
    /// Device as people know it.
    pub device: String,
    /// `f32` or `mixed`, and what lies under an adapter.
    pub precision: String,
    /// Steps made before (a resumed run).
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Tokens per update.
    pub tokens_per_step: u64,
    /// Whether only those are counted that are learned: prompts are read, and are not.
    #[serde(default)]
    pub learned_only: bool,
    /// Tokens of every source: training, held out.
    pub sources: BTreeMap<String, (u64, u64)>,
    /// Hash of configuration, tokenizer and data: what a resume must share.
    pub fingerprint: String,
}

impl RunInfo {
    /// What is counted where a run counts tokens.
    pub fn tokens(&self) -> &'static str {
        if self.learned_only { "learned tokens" } else { "tokens" }
    }
}

/// A run as a list shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Folder of the run.
    pub path: String,
    /// How it ended, if it has.
    pub state: RunState,
    /// Updates made.
    pub step: u32,
    /// Updates in all.
    pub steps: u32,
    /// Parameters of the model; 0: unknown.
    pub parameters: u64,
    /// Unix time of the last event.
    pub changed: f64,
    /// Loss of some updates, spread over the run, with their steps.
    pub losses: Vec<(u32, f64)>,
    /// Best held-out loss and its step.
    pub best: Option<(f64, u32)>,
    /// Steps that have a checkpoint.
    pub checkpoints: Vec<u32>,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Hugging Face folders that were exported into the run's folder or beside it.
    #[serde(default)]
    pub exports: Vec<String>,
    /// What a fine-tuning run was asked for; none for one that trains on texts.
    #[serde(default)]
    pub tuning: Option<Box<FinetuneConfig>>,
    /// Folder of its adapter: the one that it ended with, else that of its newest checkpoint.
    #[serde(default)]
    pub adapter: Option<String>,
}

impl RunSummary {
    /// Whether its checkpoints are adapters, and no models by themselves.
    pub fn has_adapters(&self) -> bool {
        self.tuning.as_ref().is_some_and(|tuning| tuning.method != Method::Full)
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// All updates were made.
    Finished,
    /// It was stopped and can go on.
    Stopped,
    /// It failed and says why in its log.
    Failed,
    /// It is in progress, or its process was killed.
    #[default]
    Open,
}

/// One update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct StepReport {
    /// Updates made, this one included.
    pub step: u32,
    /// Mean loss per target token of the whole update; may be NaN (`null` in JSON).
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// Mean loss per source.
    #[serde(deserialize_with = "numbers_or_nan")]
    pub source_loss: BTreeMap<String, f64>,
    /// Training tokens of this update per source.
    pub source_tokens: BTreeMap<String, u64>,
    /// Learning rate used.
    #[serde(deserialize_with = "number_or_nan")]
    pub lr: f64,
    /// Global gradient norm before clipping; may be NaN or infinite (`null` in JSON).
    #[serde(deserialize_with = "number_or_nan")]
    pub grad_norm: f64,
    /// Loss scale (1 without mixed precision).
    #[serde(deserialize_with = "number_or_nan")]
    pub loss_scale: f64,
    /// Why the update was skipped.
    pub skipped: Option<String>,
    /// Target tokens of this update.
    pub tokens: u64,
    /// Tokens that were read for them, prompts included; 0 in logs of before.
    #[serde(default)]
    pub read_tokens: u64,
    /// Target tokens since the run began.
    pub total_tokens: u64,
    /// Tokens that were read per second of this update.
    #[serde(deserialize_with = "number_or_nan")]
    pub tokens_per_sec: f64,
    /// Seconds of this session.
    #[serde(deserialize_with = "number_or_nan")]
    pub elapsed_secs: f64,
    /// Seconds until the end at the present speed, with the evaluations, samples and checkpoints that are to come.
    #[serde(deserialize_with = "number_or_nan")]
    pub eta_secs: f64,
}

/// JSON has no NaN: it is written as `null`.
pub(super) fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

pub(super) fn numbers_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|(name, number)| (name, number.unwrap_or(f64::NAN))).collect())
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
pub struct TextScore {
    /// Mean negative log-likelihood per token, in nats.
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(deserialize_with = "number_or_nan")]
    pub perplexity: f64,
    /// Bits per byte of UTF-8 text.
    #[serde(deserialize_with = "number_or_nan")]
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Bytes of text that these tokens cover.
    pub bytes: u64,
    /// Share of the tokens that no other was likelier than; none in logs of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

impl TextScore {
    /// From the summed negative log-likelihood in nats.
    pub fn new(total_nats: f64, tokens: u64, bytes: u64) -> Self {
        let loss = total_nats / tokens.max(1) as f64;
        let bits_per_byte = total_nats / std::f64::consts::LN_2 / bytes.max(1) as f64;
        Self { loss, perplexity: loss.exp(), bits_per_byte, tokens, bytes, accuracy: None }
    }
}

/// A page of the texts of a source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PreviewReport {
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Its files.
    pub files: usize,
    /// Which page, from 0.
    pub page: usize,
    /// Pages in all.
    pub pages: usize,
    /// The documents of which this page shows something, each cut to 2000 characters.
    pub texts: Vec<String>,
}

/// What a self-test found of a kernel or op.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelReport {
    /// Its name.
    pub name: String,
    /// Whether it does what its definition says.
    pub passed: bool,
    /// Largest difference, relative to the size of the numbers.
    #[serde(deserialize_with = "number_or_nan")]
    pub max_error: f64,
    /// Largest difference that is no fault.
    pub tolerance: f64,
}

/// Memory in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Bytes of the process, or of the engine's module in a browser; 0 where the system does not tell.
    pub process_bytes: u64,
    /// Bytes of tensors on the graphics device; `None` before one was opened.
    pub device_bytes: Option<u64>,
    /// Bytes that were taken from the graphics device, those kept for reuse included.
    pub device_reserved_bytes: Option<u64>,
}

/// One adapter and what it can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Name as the driver gives it.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl`, `webgpu` or `cpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `other` (browsers do not tell), `software` or `cpu`.
    pub kind: String,
    /// Driver and version.
    pub driver: String,
    /// Largest storage binding.
    pub max_binding_bytes: u64,
    /// Largest buffer.
    pub max_buffer_bytes: u64,
    /// Features that matter here.
    pub features: Vec<String>,
    /// Whether `auto` takes it.
    pub auto: bool,
    /// Why, or why not.
    pub reason: String,
    /// Kernels for matrix products that were tried when it was opened, with their speed; the best come first.
    #[serde(default)]
    pub products: Vec<String>,
}

impl DeviceInfo {
    /// Whether this is a GPU and not a program that acts as one.
    pub fn is_real_gpu(&self) -> bool {
        !matches!(self.kind.as_str(), "software" | "cpu")
    }
}

/// What a run would need.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Parameters of the model.
    pub parameters: u64,
    /// Device as people know it.
    pub device: String,
    /// Bytes by category.
    pub memory_bytes: BTreeMap<String, u64>,
    /// Their sum at the peak.
    pub peak_bytes: u64,
    /// Training tokens of the whole run.
    pub tokens: u64,
    /// Per source: tokens on disk, planned tokens, passes.
    pub sources: BTreeMap<String, SourcePlan>,
    /// Floating-point operations of the whole run.
    pub flops: f64,
    /// Expected seconds, from a measurement of this device taken now; 0 where the run does not fit and nothing was measured.
    pub expected_secs: f64,
    /// What to look out for.
    pub warnings: Vec<String>,
    /// Keys of the configuration with values that make the run fit the memory, with as many tokens in an update;
    /// `None` where it fits or nothing helps.
    #[serde(default)]
    pub suggestion: Option<BTreeMap<String, serde_json::Value>>,
}

/// One source in a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// Its documents, the held-out ones included.
    pub documents: u64,
    /// Training tokens on disk.
    pub tokens: u64,
    /// Tokens the run will draw.
    pub planned: f64,
    /// Passes over the source.
    pub epochs: f64,
}

/// An example as the model reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleReport {
    /// Its line, from 1 on, with its file where there are several.
    pub row: String,
    /// The kind of task.
    pub task: Option<String>,
    /// Tokens that were cut off.
    pub lost_tokens: usize,
    /// Its tokens, and which of them are learned.
    pub pieces: Vec<Piece>,
    /// The first of the tokens that were cut off.
    #[serde(default)]
    pub cut: Vec<Piece>,
}

/// A model, as far as one must know it to train beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its shape: parameters, linear layers and context follow from it.
    pub shape: LlamaConfig,
    /// Whether it can be given conversations.
    pub has_chat: bool,
    /// Whether they are written by a template of its own, and not as plain ChatML.
    pub has_template: bool,
}

/// How an answer compares with the one that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// The same, spaces around it and capitals aside.
    Exact,
    /// It contains what was expected.
    Partial,
    /// Neither.
    None,
}

/// A question, the answer that was expected, and the model's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerReport {
    /// Its line, from 1 on, with its file where there are several.
    pub row: String,
    /// The kind of task.
    pub task: String,
    /// What was asked.
    pub question: String,
    /// What should have been said.
    pub expected: String,
    /// What the model said.
    pub answer: String,
    /// Whether it stopped by itself.
    pub stopped: bool,
    /// How they compare.
    pub matched: Match,
}

/// Answers counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matches {
    /// See [`Match::Exact`].
    pub exact: u64,
    /// See [`Match::Partial`].
    pub partial: u64,
    /// See [`Match::None`].
    pub none: u64,
}

impl Matches {
    /// One more answer.
    pub fn add(&mut self, matched: Match) {
        match matched {
            Match::Exact => self.exact += 1,
            Match::Partial => self.partial += 1,
            Match::None => self.none += 1,
        }
    }

    /// Answers in all.
    pub fn all(&self) -> u64 {
        self.exact + self.partial + self.none
    }

    /// Share of exact answers, 0 to 1; 0 where nothing was asked.
    pub fn exact_share(&self) -> f64 {
        self.exact as f64 / self.all().max(1) as f64
    }
}
