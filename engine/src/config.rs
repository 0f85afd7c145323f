//! One struct = one YAML file = the flags = the form.
//!
//! [`TrainConfig`] is declared once; [`FIELDS`] describes every key (group, default, help) so that the
//! command line, the window and `--help` are generated from it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::data::curriculum::Curriculum;
use crate::data::mix_change::{self, MixChange};
use crate::data::vocabulary;
use crate::error::{Error, Result, nearest};
use finetune::{Decay, Optim};

/// One key of [`TrainConfig`] as shells show it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Key in YAML; the flag is the same with `-` for `_`.
    pub name: &'static str,
    /// Section of the form and of `--help`.
    pub group: &'static str,
    /// One line of help, with the unit.
    pub help: &'static str,
}

macro_rules! config {
    ($(#[$meta:meta])* pub struct $name:ident; pub const $fields:ident: { $($group:literal { $( #[doc = $help:literal] $field:ident : $ty:ty = $default:expr, )* } )* }) => {
        $(#[$meta])*
        pub struct $name { $($( #[doc = $help] pub $field: $ty, )*)* }
        impl Default for $name {
            fn default() -> Self { Self { $($( $field: $default, )*)* } }
        }
        /// Every key of the configuration in the order of the file.
        pub const $fields: &[Field] = &[$($( Field { name: stringify!($field), group: $group, help: $help.trim_ascii() }, )*)*];
    };
}

config! {
    /// A pre-training run: what `config.yaml` holds, what every flag sets, what a run freezes.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct TrainConfig; pub const FIELDS: {
        "Run" {
            /// Folder of the run: log, checkpoints, report
            out: String = "runs/smollm2".to_string(),
            /// Where to compute: auto, gpu or cpu
            device: DeviceChoice = DeviceChoice::Auto,
            /// Arithmetic: auto, f32 or mixed (f32 masters, f16 weights in matrix products, dynamic loss scale)
            precision: Precision = Precision::Auto,
            /// Seed of weights, data order and samples
            seed: u64 = 1337,
        }
        "Model" {
            /// Shape: nano, micro, smollm2-135m, smollm2-360m, smollm2-1.7b, llama-3.2-1b, llama-3.2-3b, or the path of a config.json
            preset: String = "smollm2-135m".to_string(),
            /// Continue from the weights of this Hugging Face folder instead of random ones
            init: Option<String> = None,
            /// tokenizer.json; without it a byte-level BPE is trained on the sources
            tokenizer: Option<String> = None,
            /// Vocabulary of the tokenizer when one is trained
            tokenizer_vocab_size: usize = 4096,
        }
        "Data" {
            /// Sources of text: name → file, folder, glob, list of them, or {path, text_key} for JSONL
            sources: BTreeMap<String, SourceConfig> = BTreeMap::new(),
            /// Stages of the curriculum in nanotron's shape; default: the five stages of the SmolLM2 run
            data_stages: Curriculum = Curriculum::default(),
            /// Other shares for a stage from a step on, as moved weights are recorded: a list of {step, stage, weights}
            mix_changes: Vec<MixChange> = Vec::new(),
            /// Share of every source kept out of training for evaluation
            held_out: f64 = 0.05,
            /// Most tokens per source that an evaluation reads
            eval_tokens: usize = 16_384,
        }
        "Batch" {
            /// Sequences in a micro-batch
            batch_size: usize = 4,
            /// Micro-batches accumulated into one update
            accumulation: usize = 8,
            /// Tokens in a sequence
            sequence_length: usize = 128,
            /// Keep only the input of every layer for the backward pass and compute the rest again
            gradient_checkpointing: bool = false,
        }
        "Optimizer" {
            /// Updates in the whole run
            steps: u32 = 5050,
            /// Highest learning rate
            lr: f64 = 6e-4,
            /// Learning rate at the end of the cosine; default: half of --lr
            min_lr: Option<f64> = None,
            /// adamw_torch (moments of 32 bits), adamw_8bit, or paged_adamw_8bit (more than 256 MiB of them in main memory)
            optim: Optim = Optim::Adamw,
            /// After warm-up: cosine, linear, constant or constant_with_warmup
            lr_scheduler_type: Decay = Decay::Cosine,
            /// Updates of linear warm-up
            warmup_steps: u32 = 100,
            /// AdamW beta 1
            beta1: f64 = 0.9,
            /// AdamW beta 2
            beta2: f64 = 0.95,
            /// AdamW epsilon
            eps: f64 = 1e-8,
            /// Decoupled weight decay, on matrices only
            weight_decay: f64 = 0.1,
            /// Largest global gradient norm; 0 turns clipping off
            max_grad_norm: f64 = 1.0,
            /// Stop after this many updates in a row with a non-finite loss or gradient
            max_skipped: u32 = 5,
        }
        "Log" {
            /// Updates between lines of the log
            log_every: u32 = 1,
            /// Updates between evaluations on held-out text; 0: only at stage ends
            eval_every: u32 = 250,
            /// Updates between samples; 0: only at stage ends
            sample_every: u32 = 500,
            /// Prompt of the samples
            sample_prompt: String = "First Citizen:".to_string(),
            /// New tokens in a sample
            sample_tokens: usize = 20,
            /// Updates between checkpoints
            save_every: u32 = 250,
            /// Checkpoints kept besides the best one
            save_total_limit: usize = 2,
        }
    }
}

pub mod finetune;
pub mod reason;

/// Where the text of a source comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a source is a path, a list of paths, or {path: …, text_key: …}")]
pub enum SourceConfig {
    /// One file, folder or glob.
    Path(String),
    /// Several of them.
    Paths(Vec<String>),
    /// JSONL files with the key of their text.
    Keyed {
        /// File, folder or glob.
        path: String,
        /// Key of the text in every row.
        text_key: String,
    },
}

impl SourceConfig {
    /// The files, folders and globs of the source.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Self::Path(path) | Self::Keyed { path, .. } => vec![path],
            Self::Paths(paths) => paths.iter().map(String::as_str).collect(),
        }
    }

    /// Key of the text in JSONL rows.
    pub fn text_key(&self) -> &str {
        match self {
            Self::Keyed { text_key, .. } => text_key,
            _ => "text",
        }
    }
}

/// Which kind of device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// A real GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// wgpu, even on a software adapter.
    Gpu,
    /// The CPU backend.
    Cpu,
}

/// Arithmetic of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Mixed on a GPU that has f16, else f32.
    #[default]
    Auto,
    /// Everything in f32.
    F32,
    /// f32 masters and residual stream, f16 operands of matrix products, dynamic loss scale.
    Mixed,
}

impl TrainConfig {
    /// Reads YAML (JSON is a subset).
    ///
    /// # Errors
    /// [`Error::Config`] with the line, and the nearest known key for an unknown one.
    pub fn from_yaml(text: &str) -> Result<Self> {
        serde_norway::from_str(text).map_err(|e| Error::Config(explain(&e.to_string(), FIELDS, "train")))
    }

    /// The configuration as YAML, every key written out.
    pub fn to_yaml(&self) -> String {
        serde_norway::to_string(self).expect("a config is plain data")
    }

    /// Sets one key from text, as a flag does; the text is read as YAML.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag and what it expects.
    pub fn set(&mut self, key: &str, text: &str) -> Result<()> {
        set_key(self, key, text, FIELDS, "train")
    }

    /// Checks every number and name that can be checked without reading data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, its value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        let range = check_range;
        range("steps", f64::from(self.steps), 1.0, 1e9)?;
        range("batch_size", self.batch_size as f64, 1.0, 65_536.0)?;
        range("accumulation", self.accumulation as f64, 1.0, 65_536.0)?;
        range("sequence_length", self.sequence_length as f64, 2.0, 131_072.0)?;
        range("lr", self.lr, 0.0, 10.0)?;
        range("min_lr", self.lowest_lr(), 0.0, self.lr)?;
        range("warmup_steps", f64::from(self.warmup_steps), 0.0, 1e9)?;
        range("beta1", self.beta1, 0.0, 0.999_999)?;
        range("beta2", self.beta2, 0.0, 0.999_999_9)?;
        range("eps", self.eps, 1e-30, 1.0)?;
        range("weight_decay", self.weight_decay, 0.0, 10.0)?;
        range("max_grad_norm", self.max_grad_norm, 0.0, 1e6)?;
        range("max_skipped", f64::from(self.max_skipped), 1.0, 1e6)?;
        range("held_out", self.held_out, 0.0, 0.9)?;
        range("eval_tokens", self.eval_tokens as f64, 1.0, 1e12)?;
        range("tokenizer_vocab_size", self.tokenizer_vocab_size as f64, vocabulary::LEAST as f64, 1e6)?;
        range("log_every", f64::from(self.log_every), 1.0, 1e9)?;
        range("save_every", f64::from(self.save_every), 1.0, 1e9)?;
        range("save_total_limit", self.save_total_limit as f64, 1.0, 1e6)?;
        range("sample_tokens", self.sample_tokens as f64, 1.0, 131_072.0)?;
        if self.out.trim().is_empty() {
            return Err(Error::Config("--out is empty: name a folder for the run".into()));
        }
        if self.sources.is_empty() {
            return Err(Error::Config("no sources of text: add --source NAME=FILE, or `sources:` to the YAML file".into()));
        }
        let names: Vec<&str> = self.sources.keys().map(String::as_str).collect();
        self.data_stages.validate(&names, self.steps)?;
        mix_change::validate(&self.mix_changes, &self.data_stages, &names, self.steps)
    }

    /// Learning rate at the end of the cosine.
    pub fn lowest_lr(&self) -> f64 {
        self.min_lr.unwrap_or(self.lr / 2.0)
    }

    /// Whether any stage gives a source a share at any time.
    pub fn draws_from(&self, source: &str) -> bool {
        let stages = self.data_stages.stages.iter().map(|stage| &stage.weights);
        let mut shares = stages.chain(self.mix_changes.iter().map(|change| &change.weights));
        shares.any(|weights| weights.get(source).is_some_and(|weight| *weight > 0.0))
    }

    /// Tokens that one update trains on at most.
    pub fn tokens_per_step(&self) -> u64 {
        self.batch_size as u64 * self.accumulation as u64 * self.sequence_length as u64
    }
}

/// Sets one key of a configuration from text that is read as YAML.
fn set_key<T: Serialize + DeserializeOwned>(config: &mut T, key: &str, text: &str, fields: &[Field], verb: &str) -> Result<()> {
    let flag = key.replace('_', "-");
    let bad = |why: String| Error::Config(format!("--{flag} {text}: {why}{}", example(key)));
    let mut map = serde_norway::to_value(&*config).map_err(|e| Error::Internal(e.to_string()))?;
    let object = map.as_mapping_mut().expect("a struct serialises to a map");
    let Some(old) = object.get_mut(key) else {
        return Err(Error::Config(unknown_key(key, fields, verb)));
    };
    let is_text = old.is_string() || TEXTS.contains(&key);
    let list = text.trim_start().starts_with('[') && LISTS.contains(&key);
    *old = if is_text && text != "null" && !list { text.into() } else { serde_norway::from_str(text).map_err(|e| bad(e.to_string()))? };
    *config = serde_norway::from_value(map).map_err(|e| bad(explain(&e.to_string(), fields, verb)))?;
    Ok(())
}

/// Keys whose value is text although the default is none.
const TEXTS: &[&str] = &[
    "init",
    "tokenizer",
    "task_prefix_format",
    "chat_template",
    "date",
    "init_adapter",
    "shots",
    "train_file",
    "valid_file",
    "validation_file",
    "target_modules",
];

/// Keys whose value may be a list, too.
const LISTS: &[&str] = &["train_file", "validation_file", "target_modules"];

/// Refuses a number outside its range.
fn check_range(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if value.is_finite() && value >= low && value <= high {
        return Ok(());
    }
    let flag = key.replace('_', "-");
    Err(Error::Config(format!("--{flag} {value}: must lie between {low} and {high}")))
}

/// Serde's message in people's words, with the nearest known key for an unknown one.
fn explain(message: &str, fields: &[Field], verb: &str) -> String {
    let words = [("usize", "a whole number"), ("u32", "a whole number"), ("u64", "a whole number"), ("f64", "a number")];
    let message = words
        .iter()
        .fold(message.to_string(), |text, (kind, words)| text.replace(&format!("expected {kind}"), &format!("expected {words}")));
    let message = message.as_str();
    match message.split_once("unknown field `").and_then(|(_, rest)| rest.split_once('`')) {
        Some((key, rest)) => {
            let place = rest.rsplit_once(" at line ").map(|(_, at)| format!(" (line {at})")).unwrap_or_default();
            format!("{}{place}", unknown_key(key, fields, verb))
        }
        None if message.chars().count() > 200 => {
            format!("{}… (is this really a configuration?)", message.chars().take(120).collect::<String>())
        }
        None => message.to_string(),
    }
}

/// What a value that is hard to guess looks like, for the end of a message.
fn example(key: &str) -> &'static str {
    if key == "columns" { "; for example '{messages: dialog}'" } else { "" }
}

fn unknown_key(key: &str, fields: &[Field], verb: &str) -> String {
    match nearest(key, fields.iter().map(|field| field.name)) {
        Some(name) => format!("unknown key `{key}`; did you mean `{name}`?"),
        None => format!("unknown key `{key}`; `smolforge {verb} --help` lists the keys"),
    }
}
