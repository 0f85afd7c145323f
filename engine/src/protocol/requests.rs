//! What a shell asks of the engine, where that is more than a few words.

use serde::{Deserialize, Serialize};

use crate::config::finetune::{FinetuneConfig, Method};
use crate::config::{DeviceChoice, Precision};
use crate::text::template::Message;

/// Type of the numbers in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportDtype {
    /// IEEE half precision.
    #[default]
    F16,
    /// IEEE single precision.
    F32,
}

/// An adapter and how much of it counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterChoice {
    /// Its folder, or that of the run that trained it.
    pub path: String,
    /// 1: as it was trained; 0: not at all.
    pub strength: f64,
}

/// What to ask a model, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswersRequest {
    /// Model (`model_name`), rows (`train_file`) and how they are read.
    pub config: FinetuneConfig,
    /// What the model is changed by.
    pub adapters: Vec<AdapterChoice>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Rows whose questions are asked; all of them are scored.
    pub limit: usize,
    /// Most new tokens of an answer.
    pub max_new_tokens: usize,
    /// How answers are drawn.
    pub sampling: Sampling,
}

/// What to generate and how to draw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateRequest {
    /// Hugging Face folder.
    pub model: String,
    /// What the model is changed by.
    pub adapters: Vec<AdapterChoice>,
    /// One or more prompts.
    pub prompts: Vec<String>,
    /// Instead of prompts: a conversation that the model is to go on with, by its chat template.
    pub messages: Vec<Message>,
    /// What a chat template takes for today, `YYYY-MM-DD`; none: today.
    pub date: Option<String>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Most new tokens per sample.
    pub max_new_tokens: usize,
    /// Independent samples per prompt.
    pub num_samples: usize,
    /// How the next token is drawn.
    pub sampling: Sampling,
    /// Strings that end a sample; they are not part of the text.
    pub stop: Vec<String>,
    /// Likeliest tokens that are told with every new one, at most 20; 0: none is told.
    pub alternatives: usize,
}

impl Default for GenerateRequest {
    fn default() -> Self {
        Self {
            model: String::new(),
            adapters: Vec::new(),
            prompts: Vec::new(),
            messages: Vec::new(),
            date: None,
            device: DeviceChoice::Auto,
            max_new_tokens: 100,
            num_samples: 1,
            sampling: Sampling::default(),
            stop: Vec::new(),
            alternatives: 0,
        }
    }
}

/// Parameters of the sampler chain: repetition penalty → temperature → top-k → top-p → min-p → draw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Take the most likely token; the parameters below except the penalty are then unused.
    pub greedy: bool,
    /// Divides the logits; 0 is the same as `greedy`.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probabilities sum to this; 1: all.
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the most likely one; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before; 1: off.
    pub repetition_penalty: f32,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { greedy: false, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 1337 }
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRequest {
    /// Shape of the model.
    pub preset: String,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Arithmetic.
    pub precision: Precision,
    /// What the step trains.
    #[serde(default = "full")]
    pub method: Method,
    /// Compute layers again for the gradients.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Sequences in a step.
    pub batch: usize,
    /// Tokens in a sequence.
    pub seq: usize,
    /// Timed repetitions of every phase.
    pub repeats: usize,
    /// Tokens of the prefill; 0: skip; `None`: 512, or what the model's context leaves.
    pub prefill: Option<usize>,
    /// Tokens to decode; 0: skip; `None`: 64.
    pub decode: Option<usize>,
    /// Sequences that are decoded side by side after that; 1: skip.
    #[serde(default = "one")]
    pub rows: usize,
}

fn one() -> usize {
    1
}

fn full() -> Method {
    Method::Full
}
