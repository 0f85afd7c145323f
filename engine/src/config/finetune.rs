//! A fine-tuning run in the words of Hugging Face's tools: `config.yaml` with the sections `huggingface`, `qlora` and
//! `training`, every key of which is a flag.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_norway::{Mapping, Value};

use super::{DeviceChoice, Field, Precision, example, explain, set_key};
use crate::data::chat::Shape;
use crate::data::example::LossOn;
use crate::error::{Error, Result, nearest};

config! {
    /// A fine-tuning run: what its `config.yaml` holds, what every flag sets, what a run freezes.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct FinetuneConfig; pub const FINETUNE_FIELDS: {
        "huggingface" {
            /// Model to start from: a Hugging Face folder, a run of smolforge, or a name on the hub
            model_name: String = String::new(),
            /// Training rows: JSONL or JSON; a file, folder or glob, or a list of them
            train_file: Files = Files::default(),
            /// Rows to evaluate on
            validation_file: Files = Files::default(),
            /// Share of the training rows to evaluate on where there is no validation file
            validation_split: f64 = 0.05,
            /// What rows look like: auto, messages, sharegpt, alpaca, prompt_completion or text
            dataset_format: DatasetFormat = DatasetFormat::Auto,
            /// Other names of the rows' keys, e.g. {messages: dialog, prompt: question}
            columns: BTreeMap<String, String> = BTreeMap::new(),
            /// How rows with a task are asked, e.g. [{TASK}] {instruction}
            task_prefix_format: Option<String> = None,
            /// Longest example in tokens; what is longer is cut
            max_seq_length: usize = 1024,
            /// Jinja file to write conversations with instead of the model's own chat template
            chat_template: Option<String> = None,
            /// Date that chat templates print, YYYY-MM-DD; default: today, frozen when the run begins
            date: Option<String> = None,
            /// What is learned: assistant (all replies), completion (the last one) or all (every token)
            loss_on: LossOn = LossOn::Assistant,
            /// Put several examples into one sequence; they never see each other
            packing: bool = false,
            /// What happens to rows that cannot be used: skip or refuse
            bad_rows: BadRows = BadRows::Skip,
        }
        "qlora" {
            /// What trains: lora, qlora (over a base of 4 bits) or full
            method: Method = Method::Lora,
            /// Rank of the adapter
            r: usize = 16,
            /// Scale of the adapter: it is multiplied by lora_alpha / r
            lora_alpha: f64 = 32.0,
            /// Share of the adapter's inputs that training drops
            lora_dropout: f64 = 0.05,
            /// Linear layers with an adapter: all-linear, a list of names, or a regular expression on the whole name
            target_modules: Targets = Targets::Pattern("all-linear".into()),
            /// Divide by √r instead of r (rank-stabilised LoRA)
            use_rslora: bool = false,
            /// Biases that train: only none
            bias: String = "none".to_string(),
            /// What the model does: only CAUSAL_LM
            task_type: String = "CAUSAL_LM".to_string(),
            /// Continue from the weights of this adapter
            init_adapter: Option<String> = None,
            /// How a base that is not of 4 bits is kept: auto, f32 or f16
            base_dtype: BaseDtype = BaseDtype::Auto,
        }
        "training" {
            /// Folder of the run: log, checkpoints, report, adapter
            output_dir: String = "runs/finetune".to_string(),
            /// Where to compute: auto, gpu or cpu
            device: DeviceChoice = DeviceChoice::Auto,
            /// Seed of data order, dropout and the adapter's first weights
            seed: u64 = 42,
            /// Passes over the training rows
            num_epochs: f64 = 3.0,
            /// Updates in all instead of num_epochs; -1: as many as the epochs have
            max_steps: i64 = -1,
            /// Examples side by side in a micro-batch
            per_device_train_batch_size: usize = 8,
            /// Examples side by side in an evaluation
            per_device_eval_batch_size: usize = 8,
            /// Micro-batches accumulated into one update
            gradient_accumulation_steps: usize = 1,
            /// Highest learning rate
            learning_rate: f64 = 2e-4,
            /// After warm-up: cosine, linear, constant or constant_with_warmup
            lr_scheduler_type: Decay = Decay::Cosine,
            /// Share of the updates that warm up
            warmup_ratio: f64 = 0.0,
            /// Updates that warm up, instead of warmup_ratio
            warmup_steps: u32 = 0,
            /// Decoupled weight decay, on matrices only
            weight_decay: f64 = 0.0,
            /// adamw_torch (moments of 32 bits), adamw_8bit, or paged_adamw_8bit (more than 256 MiB of them in main memory)
            optim: Optim = Optim::Adamw,
            /// AdamW beta 1
            adam_beta1: f64 = 0.9,
            /// AdamW beta 2
            adam_beta2: f64 = 0.999,
            /// AdamW epsilon
            adam_epsilon: f64 = 1e-8,
            /// Largest global gradient norm; 0 turns clipping off
            max_grad_norm: f64 = 0.3,
            /// Keep only the input of every layer for the backward pass and compute the rest again
            gradient_checkpointing: bool = true,
            /// Matrix products in f16 where the device can, with method full; those with a frozen base are in f32
            fp16: bool = false,
            /// Updates between lines of the log
            logging_steps: u32 = 10,
            /// When a checkpoint is written: no, epoch or steps
            save_strategy: Interval = Interval::Epoch,
            /// Updates between checkpoints with save_strategy steps
            save_steps: u32 = 500,
            /// When the validation rows are scored: no, epoch or steps
            eval_strategy: Interval = Interval::Epoch,
            /// Updates between evaluations with eval_strategy steps; 0: as save_steps
            eval_steps: u32 = 0,
            /// Checkpoints kept besides the best one
            save_total_limit: usize = 2,
            /// End with the weights of the best checkpoint instead of the last one
            load_best_model_at_end: bool = false,
            /// What "best" means: loss or accuracy (of tokens), of the validation rows
            metric_for_best_model: Metric = Metric::Loss,
            /// New tokens of the answers that are shown after every evaluation; 0: none
            sample_tokens: usize = 60,
        }
    }
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $( $(#[doc = $doc:literal])* $variant:ident $word:literal $(| $alias:literal)*, )* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $( $(#[doc = $doc])* #[serde(rename = $word, $(alias = $alias),*)] $variant, )* }
        impl $name {
            /// How they are written.
            pub const WORDS: &[&str] = &[$($word),*];
        }
    };
}

words! {
    /// What is trained.
    Method {
        /// An adapter beside a frozen base.
        Lora "lora",
        /// An adapter beside a frozen base of 4 bits.
        Qlora "qlora",
        /// All weights.
        Full "full",
    }
}

words! {
    /// How a frozen base is kept.
    BaseDtype {
        /// f16 on graphics devices, f32 on the CPU.
        Auto "auto",
        /// Single precision.
        F32 "f32" | "float32",
        /// Half precision; products are made in f32.
        F16 "f16" | "float16",
    }
}

words! {
    /// What happens to rows that cannot be used.
    BadRows {
        /// They are counted and left out.
        Skip "skip",
        /// The run does not begin.
        Refuse "refuse",
    }
}

words! {
    /// How the learning rate falls.
    Decay {
        /// Half a cosine down to 0.
        Cosine "cosine",
        /// A straight line down to 0.
        Linear "linear",
        /// It does not, and there is no warm-up.
        Constant "constant",
        /// It does not.
        ConstantWithWarmup "constant_with_warmup",
    }
}

words! {
    /// The optimizer, by Hugging Face's names.
    Optim {
        /// Moments of 32 bits.
        Adamw "adamw_torch" | "adamw" | "adamw_hf" | "adamw_torch_fused" | "paged_adamw" | "paged_adamw_32bit",
        /// Moments of 8 bits.
        Adamw8bit "adamw_8bit" | "adamw_bnb_8bit",
        /// Moments of 8 bits; more than 256 MiB of them stay in main memory and visit the device for every update.
        PagedAdamw8bit "paged_adamw_8bit",
    }
}

words! {
    /// How often something is done.
    Interval {
        /// Never (a run ends with a checkpoint all the same).
        No "no",
        /// After every pass over the rows.
        Epoch "epoch",
        /// After a number of updates.
        Steps "steps",
    }
}

words! {
    /// What makes a checkpoint the best one.
    Metric {
        /// The lowest loss of the validation rows.
        Loss "loss" | "eval_loss",
        /// The largest share of their tokens predicted.
        Accuracy "accuracy" | "eval_accuracy" | "mean_token_accuracy" | "eval_mean_token_accuracy",
    }
}

words! {
    /// What rows look like.
    DatasetFormat {
        /// As the first row does.
        Auto "auto",
        /// See [`Shape::Messages`].
        Messages "messages" | "chat",
        /// See [`Shape::Conversations`].
        Conversations "sharegpt" | "conversations",
        /// See [`Shape::Instruction`].
        Instruction "alpaca" | "instruction",
        /// See [`Shape::PromptCompletion`].
        PromptCompletion "prompt_completion",
        /// See [`Shape::Text`].
        Text "text",
    }
}

impl DatasetFormat {
    /// The layout, or none where the rows tell.
    pub fn shape(self) -> Option<Shape> {
        match self {
            Self::Auto => None,
            Self::Messages => Some(Shape::Messages),
            Self::Conversations => Some(Shape::Conversations),
            Self::Instruction => Some(Shape::Instruction),
            Self::PromptCompletion => Some(Shape::PromptCompletion),
            Self::Text => Some(Shape::Text),
        }
    }
}

/// Some files.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Files(pub Vec<String>);

impl Files {
    /// Those that have a name: a form holds an empty one until something is typed.
    pub fn named(&self) -> impl Iterator<Item = &String> {
        self.0.iter().filter(|file| !file.trim().is_empty())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "files are a path or a list of paths")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Files {
    fn from(files: OneOrMany) -> Self {
        match files {
            OneOrMany::One(file) if file.is_empty() => Self(Vec::new()),
            OneOrMany::One(file) => Self(vec![file]),
            OneOrMany::Many(files) => Self(files),
        }
    }
}

impl From<Files> for OneOrMany {
    fn from(files: Files) -> Self {
        match <[String; 1]>::try_from(files.0) {
            Ok([file]) => Self::One(file),
            Err(files) => Self::Many(files),
        }
    }
}

/// Which linear layers have an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "target_modules is all-linear, a list of names or a regular expression")]
pub enum Targets {
    /// Last parts of names, such as `q_proj`.
    Names(Vec<String>),
    /// `all-linear`, or a regular expression that a whole name must match.
    Pattern(String),
}

/// Sections of the file; keys may also stand without one.
const SECTIONS: [&str; 9] = ["huggingface", "qlora", "lora", "peft", "adapter", "training", "model", "data", "dataset"];

/// Other spellings of keys.
const SPELLINGS: &[(&str, &str)] = &[
    ("model", "model_name"),
    ("model_name_or_path", "model_name"),
    ("base_model", "model_name"),
    ("train_path", "train_file"),
    ("train_data", "train_file"),
    ("val_file", "validation_file"),
    ("eval_file", "validation_file"),
    ("val_path", "validation_file"),
    ("max_length", "max_seq_length"),
    ("rank", "r"),
    ("lora_r", "r"),
    ("alpha", "lora_alpha"),
    ("dropout", "lora_dropout"),
    ("out", "output_dir"),
    ("num_train_epochs", "num_epochs"),
    ("epochs", "num_epochs"),
    ("batch_size", "per_device_train_batch_size"),
    ("train_batch_size", "per_device_train_batch_size"),
    ("eval_batch_size", "per_device_eval_batch_size"),
    ("accumulation", "gradient_accumulation_steps"),
    ("lr", "learning_rate"),
    ("lr_scheduler", "lr_scheduler_type"),
    ("scheduler", "lr_scheduler_type"),
    ("optimizer", "optim"),
    ("evaluation_strategy", "eval_strategy"),
    ("adam_eps", "adam_epsilon"),
];

/// Keys of other tools and parts of their files that change nothing here.
const WITHOUT_EFFECT: &[&str] = &[
    "class_weights",
    "sections",
    "unit_canon",
    "regex_fixes",
    "type_keywords",
    "task_rules",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "remove_unused_columns",
    "ddp_find_unused_parameters",
    "group_by_length",
    "logging_strategy",
    "logging_first_step",
    "logging_dir",
    "run_name",
    "greater_is_better",
    "overwrite_output_dir",
    "do_train",
    "do_eval",
    "disable_tqdm",
    "trust_remote_code",
    "attn_implementation",
    "device_map",
    "torch_dtype",
    "bf16",
    "tf32",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
    "fan_in_fan_out",
    "inference_mode",
    "gradient_checkpointing_kwargs",
];

impl FinetuneConfig {
    /// Whether a file of YAML is a configuration of this kind: it names a model to start from, or has the sections.
    pub fn is_meant(text: &str) -> bool {
        let Ok(Value::Mapping(map)) = serde_norway::from_str(text) else { return false };
        map.iter().any(|(key, value)| {
            let key = text_of(key);
            key == "model_name"
                || key == "train_file"
                || value.is_mapping() && ["huggingface", "qlora", "lora", "training"].contains(&key.as_str())
        })
    }

    /// Reads YAML (JSON is a subset): sections or bare keys, spellings of several tools. The second part tells what was
    /// read in another way than it is written, or has no effect.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key and the nearest known one.
    pub fn from_yaml(text: &str) -> Result<(Self, Vec<String>)> {
        let value: Value = serde_norway::from_str(text).map_err(|e| Error::Config(explain(&e.to_string(), FINETUNE_FIELDS, "finetune")))?;
        let top = match value {
            Value::Mapping(top) => top,
            Value::Null => Mapping::new(),
            _ => return Err(Error::Config("a configuration is a map of keys; this is something else".into())),
        };
        let defaults = serde_norway::to_value(Self::default()).unwrap_or_default();
        let mut read = Reading { defaults, map: Mapping::new(), notes: Vec::new(), unused: Vec::new() };
        for (key, value) in top {
            let name = text_of(&key);
            match value {
                _ if WITHOUT_EFFECT.contains(&name.as_str()) => read.unused.push(name),
                Value::Mapping(_) if name == "validation" => read.unused.push(name), // as a key it means a file
                Value::Mapping(section) if SECTIONS.contains(&name.as_str()) => {
                    if name == "qlora" {
                        read.map.entry("method".into()).or_insert("qlora".into());
                    }
                    for (key, value) in section {
                        read.key(&text_of(&key), value, &name)?;
                    }
                }
                value => read.key(&name, value, "")?,
            }
        }
        let Reading { map, mut notes, unused, .. } = read;
        if !unused.is_empty() {
            notes.push(format!("without effect here: {}", unused.join(", ")));
        }
        let config = serde_norway::from_value(Value::Mapping(map));
        Ok((config.map_err(|e| Error::Config(explain(&e.to_string(), FINETUNE_FIELDS, "finetune")))?, notes))
    }

    /// The configuration as YAML in its sections, every key written out.
    pub fn to_yaml(&self) -> String {
        let Ok(Value::Mapping(all)) = serde_norway::to_value(self) else { unreachable!("a struct serialises to a map") };
        let mut sections = Mapping::new();
        for field in FINETUNE_FIELDS {
            let section = sections.entry(field.group.into()).or_insert_with(|| Mapping::new().into());
            if let (Value::Mapping(section), Some(value)) = (section, all.get(field.name)) {
                section.insert(field.name.into(), value.clone());
            }
        }
        serde_norway::to_string(&sections).expect("a config is plain data")
    }

    /// Sets one key from text, as a flag does; the text is read as YAML.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag and what it expects.
    pub fn set(&mut self, key: &str, text: &str) -> Result<()> {
        set_key(self, key, text, FINETUNE_FIELDS, "finetune")
    }

    /// Checks every number and name that can be checked without reading data.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, its value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        let range = |key: &str, value: f64, low: f64, high: f64| super::check_range(key, value, low, high);
        if self.model_name.trim().is_empty() {
            return Err(Error::Config("--model-name is missing: name a Hugging Face folder, a run or a model on the hub".into()));
        }
        if self.train_file.named().next().is_none() {
            return Err(Error::Config("--train-file is missing: name a JSONL file of training rows".into()));
        }
        if self.output_dir.trim().is_empty() {
            return Err(Error::Config("--output-dir is empty: name a folder for the run".into()));
        }
        if self.bias != "none" {
            return Err(Error::Config(format!("--bias {}: these models have no biases; only none is known", self.bias)));
        }
        if self.task_type != "CAUSAL_LM" {
            return Err(Error::Config(format!("--task-type {}: only CAUSAL_LM is known", self.task_type)));
        }
        range("r", self.r as f64, 1.0, 4096.0)?;
        range("lora_alpha", self.lora_alpha, 1e-6, 1e6)?;
        range("lora_dropout", self.lora_dropout, 0.0, 0.9)?;
        range("validation_split", self.validation_split, 0.0, 0.9)?;
        range("max_seq_length", self.max_seq_length as f64, 2.0, 131_072.0)?;
        range("num_epochs", self.num_epochs, 0.0, 10_000.0)?;
        range("max_steps", self.max_steps as f64, -1.0, 1e9)?;
        range("per_device_train_batch_size", self.per_device_train_batch_size as f64, 1.0, 65_536.0)?;
        range("per_device_eval_batch_size", self.per_device_eval_batch_size as f64, 1.0, 65_536.0)?;
        range("gradient_accumulation_steps", self.gradient_accumulation_steps as f64, 1.0, 65_536.0)?;
        range("learning_rate", self.learning_rate, 0.0, 10.0)?;
        range("warmup_ratio", self.warmup_ratio, 0.0, 1.0)?;
        range("weight_decay", self.weight_decay, 0.0, 10.0)?;
        range("adam_beta1", self.adam_beta1, 0.0, 0.999_999)?;
        range("adam_beta2", self.adam_beta2, 0.0, 0.999_999_9)?;
        range("adam_epsilon", self.adam_epsilon, 1e-30, 1.0)?;
        range("max_grad_norm", self.max_grad_norm, 0.0, 1e6)?;
        range("logging_steps", f64::from(self.logging_steps), 1.0, 1e9)?;
        range("save_steps", f64::from(self.save_steps), 1.0, 1e9)?;
        range("save_total_limit", self.save_total_limit as f64, 1.0, 1e6)?;
        if self.load_best_model_at_end && self.eval_strategy == Interval::No {
            return Err(Error::Config(
                "--load-best-model-at-end true: nothing tells the best without --eval-strategy epoch or steps".into(),
            ));
        }
        if self.max_steps <= 0 && self.num_epochs <= 0.0 {
            return Err(Error::Config("--num-epochs 0: give a number of epochs, or --max-steps".into()));
        }
        Ok(())
    }

    /// Arithmetic of the products; those with a frozen base are in f32.
    pub fn precision(&self) -> Precision {
        if self.fp16 && self.method == Method::Full { Precision::Auto } else { Precision::F32 }
    }
}

/// A configuration as far as it was read.
struct Reading {
    /// Every key with its default, which tells numbers from texts.
    defaults: Value,
    map: Mapping,
    notes: Vec<String>,
    unused: Vec<String>,
}

impl Reading {
    fn key(&mut self, name: &str, value: Value, section: &str) -> Result<()> {
        if WITHOUT_EFFECT.contains(&name) {
            self.unused.push(name.into());
            return Ok(());
        }
        if name == "load_in_4bit" {
            // What is false says nothing about which of the others is meant.
            if value == Value::Bool(true) || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true")) {
                self.map.insert("method".into(), "qlora".into());
            } else if self.map.get("method").is_some_and(|method| method == "qlora") {
                self.map.insert("method".into(), "lora".into());
            }
            return Ok(());
        }
        if value.is_null() {
            return Ok(()); // as written by tools that write every key
        }
        // A share of the updates, in the words of transformers 5.
        let is_share = name == "warmup_steps" && value.as_f64().is_some_and(|share| share > 0.0 && share < 1.0);
        let name = if is_share { "warmup_ratio" } else { name };
        let known = SPELLINGS.iter().find(|(other, _)| *other == name).map_or(name, |(_, known)| known);
        let place = if section.is_empty() { String::new() } else { format!(" in {section}") };
        let Some(field) = FINETUNE_FIELDS.iter().find(|field| field.name == known) else {
            let keys = FINETUNE_FIELDS.iter().map(|field| field.name).chain(SPELLINGS.iter().map(|(other, _)| *other));
            let sections = SECTIONS.into_iter().filter(|_| section.is_empty() && value.is_mapping());
            return Err(Error::Config(match nearest(name, keys.chain(sections)) {
                Some(near) => format!("unknown key `{name}`{place}; did you mean `{near}`?"),
                None => format!("unknown key `{name}`{place}; `smolforge finetune --help` lists the keys"),
            }));
        };
        let value = self.number(field, value);
        // Alone, so that what is wrong with it names it.
        let alone = Mapping::from_iter([(field.name.into(), value.clone())]);
        if let Err(error) = serde_norway::from_value::<FinetuneConfig>(Value::Mapping(alone)) {
            return Err(Error::Config(format!(
                "{name}{place}: {}{}",
                explain(&error.to_string(), FINETUNE_FIELDS, "finetune"),
                example(known)
            )));
        }
        self.map.insert(field.name.into(), value);
        Ok(())
    }

    /// YAML 1.1 takes `2e-4` for text, and people quote numbers: where a number is wanted, text that is one counts.
    fn number(&mut self, field: &Field, value: Value) -> Value {
        let wanted = self.defaults.get(field.name).is_some_and(Value::is_number);
        match value.as_str().and_then(|text| Some((text, text.trim().parse::<f64>().ok().filter(|_| wanted)?))) {
            Some((text, number)) => {
                self.notes.push(format!("{}: {text:?} was read as the number {number}", field.name));
                if number.fract() == 0.0 && number.abs() < 1e15 { Value::from(number as i64) } else { number.into() }
            }
            None => value,
        }
    }
}

fn text_of(key: &Value) -> String {
    key.as_str().map_or_else(|| format!("{key:?}"), ToString::to_string)
}

#[cfg(test)]
mod tests;
