//! A task with one right answer to every question, from questions to a graded bundle: `smolforge task NAME run CONFIG.yaml`.

use serde::{Deserialize, Serialize};

use super::{DeviceChoice, Field, check_range, explain, set_key};
use crate::error::{Error, Result};

config! {
    /// What the verbs of `smolforge task` share: every key of `run`'s file is a flag of the verbs that it matters to.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct ReasonConfig; pub const REASON_FIELDS: {
        "Roles" {
            /// Model that learns: a Hugging Face folder, a run of smolforge, or a name on the hub
            student: String = "HuggingFaceTB/SmolLM2-360M-Instruct".to_string(),
            /// Model that shows how answers are worked out
            teacher: String = "HuggingFaceTB/SmolLM2-1.7B-Instruct".to_string(),
            /// Keep the teacher in 4 bits: auto (where it does not fit otherwise), yes or no
            quantize_teacher: Quantize = Quantize::Auto,
        }
        "Run" {
            /// Folder that everything is written into
            out: String = "runs/unit-conversion".to_string(),
            /// Where to compute: auto, gpu or cpu
            device: DeviceChoice = DeviceChoice::Auto,
            /// Seed of questions, samples, data order and the adapters' first weights
            seed: u64 = 1337,
        }
        "Questions" {
            /// JSON array of [question, answer] to learn from; run makes questions where there is none
            train_file: Option<String> = None,
            /// JSON array of [question, answer] to be tested on; run makes questions where there is none
            valid_file: Option<String> = None,
            /// Questions to learn from where they are made
            train_questions: usize = 1000,
            /// Questions to be tested on where they are made
            valid_questions: usize = 1000,
            /// Ask for temperatures, too, where questions are made
            temperatures: bool = false,
        }
        "Answers" {
            /// What the model is told before the worked examples
            system: String = "You will perform unit conversions and be concise.".to_string(),
            /// JSON array of [question, answer, reasoning] to show as worked examples instead of the built-in ones
            shots: Option<String> = None,
            /// Questions of a test, the first ones of the file
            test_questions: usize = 100,
            /// Most new tokens of an answer
            max_new_tokens: usize = 50,
            /// Largest relative error of a right answer
            tolerance: f64 = 0.05,
            /// Answers that are written side by side; 0: as many as the memory is good for, at most 256
            batch_rows: usize = 32,
        }
        "SFT" {
            /// Rank of the adapter that learns answers
            sft_r: usize = 8,
            /// Its scale: it is multiplied by sft_alpha / sft_r
            sft_alpha: f64 = 32.0,
            /// Share of its inputs that training drops
            sft_dropout: f64 = 0.1,
            /// Its highest learning rate
            sft_learning_rate: f64 = 7e-4,
            /// Passes over the questions
            sft_epochs: f64 = 5.0,
            /// Questions in an update
            sft_batch_size: usize = 32,
        }
        "Rollouts" {
            /// Samples that the teacher draws for every question
            oversample: usize = 10,
            /// Temperature that they are drawn with
            temperature: f64 = 0.6,
            /// Which right ones are kept: first, shortest, or a number of distinct ones
            keep: Keep = Keep::First,
        }
        "RFT" {
            /// Rank of the adapter that learns reasoning
            rft_r: usize = 16,
            /// Its scale: it is multiplied by rft_alpha / rft_r
            rft_alpha: f64 = 64.0,
            /// Share of its inputs that training drops
            rft_dropout: f64 = 0.1,
            /// Its highest learning rate
            rft_learning_rate: f64 = 7e-4,
            /// Passes over the rows
            rft_epochs: f64 = 5.0,
            /// Rows in an update
            rft_batch_size: usize = 32,
        }
        "Limits" {
            /// Most parameters of a model with its adapter
            max_params: u64 = 380_000_000,
            /// Most megabytes of an adapter: its rank is lowered to what fits; 0: no limit
            max_adapter_mb: f64 = 0.0,
            /// Most megabytes of the bundle
            max_zip_mb: f64 = 50.0,
            /// Megabytes of the bundle from which on it is warned
            warn_zip_mb: f64 = 40.0,
            /// Seconds that the parts of the grade may take are not limited where this is false
            time_limits: bool = true,
        }
    }
}

/// Whether a model is kept in 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// Where it does not fit into memory otherwise.
    #[default]
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// Which right samples of a question are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Word", into = "Word")]
pub enum Keep {
    /// The first.
    First,
    /// The one with the fewest characters.
    Shortest,
    /// So many that differ, the first ones.
    Distinct(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "keep is first, shortest or a number")]
enum Word {
    Number(usize),
    Text(String),
}

impl TryFrom<Word> for Keep {
    type Error = String;

    fn try_from(word: Word) -> Result<Self, String> {
        match word {
            Word::Number(count @ 1..=1000) => Ok(Self::Distinct(count)),
            Word::Text(text) if text == "first" => Ok(Self::First),
            Word::Text(text) if text == "shortest" => Ok(Self::Shortest),
            Word::Text(text) => match text.parse() {
                Ok(count @ 1..=1000) => Ok(Self::Distinct(count)),
                _ => Err(format!("{text:?} is neither first nor shortest nor a number from 1 to 1000")),
            },
            Word::Number(count) => Err(format!("{count} must lie between 1 and 1000")),
        }
    }
}

impl From<Keep> for Word {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::First => Self::Text("first".into()),
            Keep::Shortest => Self::Text("shortest".into()),
            Keep::Distinct(count) => Self::Number(count),
        }
    }
}

impl ReasonConfig {
    /// Reads YAML (JSON is a subset).
    ///
    /// # Errors
    /// [`Error::Config`] with the line, and the nearest known key for an unknown one.
    pub fn from_yaml(text: &str) -> Result<Self> {
        serde_norway::from_str(text).map_err(|e| Error::Config(explain(&e.to_string(), REASON_FIELDS, VERB)))
    }

    /// The configuration as YAML, every key written out.
    pub fn to_yaml(&self) -> String {
        serde_norway::to_string(self).expect("a config is plain data")
    }

    /// Every key with its value.
    pub fn values(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::to_value(self).ok().and_then(|values| values.as_object().cloned()).expect("a config is a map of plain data")
    }

    /// Sets one key from text, as a flag does; the text is read as YAML.
    ///
    /// # Errors
    /// [`Error::Config`] naming the flag and what it expects.
    pub fn set(&mut self, key: &str, text: &str) -> Result<()> {
        set_key(self, key, text, REASON_FIELDS, VERB)
    }

    /// Checks every number that can be checked without reading anything.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, its value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        let range = check_range;
        for (key, value) in [("train_questions", self.train_questions), ("valid_questions", self.valid_questions)] {
            range(key, value as f64, 1.0, 1e6)?;
        }
        for (key, value) in
            [("test_questions", self.test_questions), ("max_new_tokens", self.max_new_tokens), ("oversample", self.oversample)]
        {
            range(key, value as f64, 1.0, 1e6)?;
        }
        range("tolerance", self.tolerance, 1e-9, 1.0)?;
        range("batch_rows", self.batch_rows as f64, 0.0, 4096.0)?;
        range("temperature", self.temperature, 0.0, 100.0)?;
        for (key, value) in [("sft_r", self.sft_r), ("rft_r", self.rft_r)] {
            range(key, value as f64, 1.0, 4096.0)?;
        }
        for (key, value) in [("sft_batch_size", self.sft_batch_size), ("rft_batch_size", self.rft_batch_size)] {
            range(key, value as f64, 1.0, 65_536.0)?;
        }
        for (key, value) in [("sft_alpha", self.sft_alpha), ("rft_alpha", self.rft_alpha)] {
            range(key, value, 1e-6, 1e6)?;
        }
        for (key, value) in [("sft_dropout", self.sft_dropout), ("rft_dropout", self.rft_dropout)] {
            range(key, value, 0.0, 0.9)?;
        }
        for (key, value) in [("sft_learning_rate", self.sft_learning_rate), ("rft_learning_rate", self.rft_learning_rate)] {
            range(key, value, 0.0, 10.0)?;
        }
        for (key, value) in [("sft_epochs", self.sft_epochs), ("rft_epochs", self.rft_epochs)] {
            range(key, value, 1e-6, 10_000.0)?;
        }
        for (key, value) in [("max_adapter_mb", self.max_adapter_mb), ("max_zip_mb", self.max_zip_mb), ("warn_zip_mb", self.warn_zip_mb)] {
            range(key, value, 0.0, 1e9)?;
        }
        if self.out.trim().is_empty() {
            return Err(Error::Config("--out is empty: name a folder".into()));
        }
        Ok(())
    }
}

const VERB: &str = "task unit-conversion run";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_its_file() {
        for keep in [Keep::First, Keep::Shortest, Keep::Distinct(3)] {
            let config = ReasonConfig { keep, shots: Some("shots.json".into()), ..ReasonConfig::default() };
            assert_eq!(ReasonConfig::from_yaml(&config.to_yaml()).unwrap(), config);
        }
    }

    #[test]
    fn what_no_adapter_can_learn_with_is_refused_by_its_own_flag() {
        for (key, value) in
            [("sft_alpha", "0"), ("rft_alpha", "-1"), ("rft_dropout", "0.95"), ("sft_dropout", "1"), ("rft_learning_rate", "11")]
        {
            let mut config = ReasonConfig::default();
            config.set(key, value).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("--{} {value}:", key.replace('_', "-"))), "{error}");
        }
    }

    #[test]
    fn what_is_kept_is_a_word_or_a_number() {
        let mut config = ReasonConfig::default();
        for (text, keep) in [("shortest", Keep::Shortest), ("4", Keep::Distinct(4)), ("first", Keep::First)] {
            config.set("keep", text).unwrap();
            assert_eq!(config.keep, keep);
        }
        for text in ["best", "0", "-1", "2000"] {
            assert!(config.set("keep", text).unwrap_err().to_string().contains("--keep"), "{text}");
        }
        for (text, quantize) in [("yes", Quantize::Yes), ("no", Quantize::No), ("auto", Quantize::Auto)] {
            config.set("quantize_teacher", text).unwrap();
            assert_eq!(config.quantize_teacher, quantize);
        }
        assert!(config.validate().is_ok());
    }
}
