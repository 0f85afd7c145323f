//! Shape of a Llama: Hugging Face's `config.json` in and out, and the presets.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, nearest};

/// Everything that decides the shape of a Llama and its arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even, because RoPE turns pairs.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Context in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies for a longer context.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_id: Vec<u32>,
    /// Token that fills up batches.
    pub pad_token_id: Option<u32>,
}

/// The `llama3` rule: long wavelengths are divided by `factor`, short ones kept, those between blended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Llama3Scaling {
    /// Divisor of the lowest frequencies.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are divided.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context before stretching.
    pub original_max_position_embeddings: usize,
}

/// Names that [`LlamaConfig::preset`] knows, smallest first.
pub const PRESETS: &[&str] = &["nano", "micro", "smollm2-135m", "smollm2-360m", "smollm2-1.7b", "llama-3.2-1b", "llama-3.2-3b"];

impl LlamaConfig {
    /// A known shape by name.
    ///
    /// `nano` (1.3 M parameters with 4096 tokens) and `micro` (10.4 M) are our own, for machines without a GPU.
    ///
    /// # Errors
    /// [`Error::Config`] with the nearest name.
    pub fn preset(name: &str) -> Result<Self> {
        let inverse_root = |hidden: usize| 1.0 / (hidden as f64).sqrt();
        Ok(match name.to_ascii_lowercase().as_str() {
            "nano" => Self { initializer_range: inverse_root(128), ..Self::own([128, 352, 4, 4, 2, 32], 4096, 512) },
            "micro" => Self { initializer_range: inverse_root(320), ..Self::own([320, 864, 8, 10, 5, 32], 4096, 1024) },
            // Published configs: HuggingFaceTB/SmolLM2-{135M,360M,1.7B}.
            "smollm2-135m" => {
                Self { initializer_range: inverse_root(576), rope_theta: 100_000.0, ..Self::own([576, 1536, 30, 9, 3, 64], 49_152, 8192) }
            }
            "smollm2-360m" => Self { rope_theta: 100_000.0, ..Self::own([960, 2560, 32, 15, 5, 64], 49_152, 8192) },
            "smollm2-1.7b" => Self { rope_theta: 130_000.0, ..Self::own([2048, 8192, 24, 32, 32, 64], 49_152, 8192) },
            "llama-3.2-1b" => Self::llama32([2048, 8192, 16, 32, 8, 64]),
            "llama-3.2-3b" => Self::llama32([3072, 8192, 28, 24, 8, 128]),
            other => {
                let hint = nearest(other, PRESETS.iter().copied());
                let hint = hint.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
                return Err(Error::Config(format!(
                    "unknown preset `{name}`{hint} (known: {}; or the path of a config.json)",
                    PRESETS.join(", ")
                )));
            }
        })
    }

    /// `shape`: hidden, intermediate, layers, query heads, key/value heads, head width.
    fn own(shape: [usize; 6], vocab_size: usize, context: usize) -> Self {
        Self {
            hidden_size: shape[0],
            intermediate_size: shape[1],
            num_hidden_layers: shape[2],
            num_attention_heads: shape[3],
            num_key_value_heads: shape[4],
            head_dim: shape[5],
            vocab_size,
            max_position_embeddings: context,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: Some(0),
            eos_token_id: vec![0],
            pad_token_id: None,
        }
    }

    fn llama32(shape: [usize; 6]) -> Self {
        let scaling = Llama3Scaling { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 8192 };
        Self {
            rope_theta: 500_000.0,
            rope_scaling: Some(scaling),
            bos_token_id: Some(128_000),
            eos_token_id: vec![128_001],
            ..Self::own(shape, 128_256, 131_072)
        }
    }

    /// The same shape for another vocabulary.
    pub fn with_vocab(mut self, vocab_size: usize) -> Self {
        self.vocab_size = vocab_size;
        self
    }

    /// Reads a `config.json` of Hugging Face; `name` is the file as the user knows it.
    ///
    /// # Errors
    /// [`Error::Format`] for another architecture, numbers out of range (before anything is allocated) and
    /// features that would change the arithmetic.
    pub fn from_hf_json(text: &str, name: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::format(name, format!("not valid JSON: {e}")))?;
        let Value::Object(fields) = value else {
            return Err(Error::format(name, "a config is a JSON object; is this a Hugging Face config.json?"));
        };
        Reader { fields: &fields, name }.config()
    }

    /// `config.json` as transformers 4 and 5 read it; `dtype` is torch's name of the stored type, e.g. `float16`.
    pub fn to_hf_json(&self, dtype: &str) -> String {
        let scaling = self.rope_scaling.map(|scaling| {
            json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            })
        });
        let mut rope = scaling.clone().unwrap_or_else(|| json!({ "rope_type": "default" }));
        rope["rope_theta"] = json!(self.rope_theta);
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": dtype,
            "eos_token_id": self.eos_json(),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "rope_scaling": scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        pretty(&config)
    }

    /// `generation_config.json`: which tokens begin and end a text.
    pub fn generation_config_json(&self) -> String {
        let mut config = Map::new();
        if let Some(id) = self.bos_token_id {
            config.insert("bos_token_id".into(), json!(id));
        }
        if !self.eos_token_id.is_empty() {
            config.insert("eos_token_id".into(), self.eos_json());
        }
        if let Some(id) = self.pad_token_id {
            config.insert("pad_token_id".into(), json!(id));
        }
        pretty(&Value::Object(config))
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_id.as_slice() {
            [] => Value::Null, // left out, transformers would take its default, 2
            [id] => json!(id),
            ids => json!(ids),
        }
    }

    /// Every tensor of a checkpoint with its shape, in the order in which checkpoints are written. Matrices are `[out, in]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let block: [(&str, Vec<usize>); 9] = [
                ("input_layernorm", vec![d]),
                ("self_attn.q_proj", vec![q, d]),
                ("self_attn.k_proj", vec![kv, d]),
                ("self_attn.v_proj", vec![kv, d]),
                ("self_attn.o_proj", vec![d, q]),
                ("post_attention_layernorm", vec![d]),
                ("mlp.gate_proj", vec![f, d]),
                ("mlp.up_proj", vec![f, d]),
                ("mlp.down_proj", vec![d, f]),
            ];
            tensors.extend(block.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
        }
        tensors.push(("model.norm.weight".into(), vec![d]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![self.vocab_size, d]));
        }
        tensors
    }

    /// Trainable numbers; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Floating-point operations of forward and backward per token: `6 N + 12 L d T`, where `N` counts the numbers
    /// that take part in matrix products (the embedding only as the head) and causality is not discounted.
    pub fn train_flops_per_token(&self, sequence_length: usize) -> f64 {
        let product = |sizes: &[usize]| sizes.iter().map(|size| *size as f64).product::<f64>();
        let lookup_only = if self.tie_word_embeddings { 0.0 } else { product(&[self.vocab_size, self.hidden_size]) };
        let attention = product(&[self.num_hidden_layers, self.num_attention_heads, self.head_dim, sequence_length]);
        6.0 * (self.parameters() as f64 - lookup_only) + 12.0 * attention
    }
}

fn pretty(value: &Value) -> String {
    // A `Value` has string keys only, so it always serialises.
    format!("{value:#}\n")
}

/// The fields of a `config.json`, with the file's name for messages.
struct Reader<'a> {
    fields: &'a Map<String, Value>,
    name: &'a str,
}

impl Reader<'_> {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::format(self.name, reason)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// A whole number within `1..=most`; `None` where the key is absent and `default` says nothing.
    fn size(&self, key: &str, most: usize, default: Option<usize>) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| self.bad(format!("`{key}` is missing; is this the config.json of a Llama?")));
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=most).contains(&n) => Ok(n),
            _ => Err(self.bad(format!("`{key}` is {}, but must be a whole number between 1 and {most}", short(value)))),
        }
    }

    fn number(&self, fields: &Map<String, Value>, key: &str, range: (f64, f64), default: Option<f64>) -> Result<f64> {
        let Some(value) = fields.get(key).filter(|value| !value.is_null()) else {
            return default.ok_or_else(|| self.bad(format!("`{key}` is missing")));
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && x >= range.0 && x <= range.1 => Ok(x),
            _ => Err(self.bad(format!("`{key}` is {}, but must lie between {} and {}", short(value), range.0, range.1))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.bad(format!("`{key}` is {}, but must be true or false", short(value)))),
        }
    }

    fn config(&self) -> Result<LlamaConfig> {
        match self.get("model_type") {
            Some(Value::String(kind)) if kind == "llama" => {}
            Some(kind) => {
                return Err(self.bad(format!("`model_type` is {}, but smolforge runs the Llama family only (\"llama\")", short(kind))));
            }
            None => return Err(self.bad("`model_type` is missing; is this a Hugging Face config.json?")),
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key, false)? {
                return Err(self.bad(format!("`{key}` is true, but smolforge's Llama has no biases")));
            }
        }
        match self.get("hidden_act") {
            Some(Value::String(act)) if act == "silu" || act == "swish" => {}
            None => {}
            Some(act) => return Err(self.bad(format!("`hidden_act` is {}, but smolforge's Llama uses silu", short(act)))),
        }
        // Of quantised weights those that bitsandbytes wrote in 4 bits can be read.
        if let Some(quantized) = self.get("quantization_config")
            && (quantized["load_in_4bit"] != Value::Bool(true) || quantized["quant_method"] != "bitsandbytes")
        {
            return Err(
                self.bad("the weights are quantised in a way that is not read (`quantization_config`); use the unquantised checkpoint")
            );
        }
        let hidden_size = self.size("hidden_size", 1 << 16, None)?;
        let heads = self.size("num_attention_heads", 1 << 12, None)?;
        let kv_heads = self.size("num_key_value_heads", 1 << 12, Some(heads))?;
        let vocab_size = self.size("vocab_size", 1 << 22, None)?;
        if heads % kv_heads != 0 {
            return Err(self.bad(format!("{heads} attention heads cannot share {kv_heads} key/value heads evenly")));
        }
        let head_dim = match self.get("head_dim") {
            Some(_) => self.size("head_dim", 1 << 12, None)?,
            None if hidden_size % heads != 0 => {
                return Err(self.bad(format!("`hidden_size` {hidden_size} is not divisible by {heads} heads and `head_dim` is missing")));
            }
            None => hidden_size / heads,
        };
        if head_dim % 2 != 0 {
            return Err(self.bad(format!("the width of a head is {head_dim}, but rotary embeddings need an even one")));
        }
        let (rope_theta, rope_scaling) = self.rope()?;
        Ok(LlamaConfig {
            hidden_size,
            intermediate_size: self.size("intermediate_size", 1 << 20, None)?,
            num_hidden_layers: self.size("num_hidden_layers", 1 << 10, None)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size,
            max_position_embeddings: self.size("max_position_embeddings", 1 << 24, Some(2048))?,
            rms_norm_eps: self.number(self.fields, "rms_norm_eps", (1e-12, 0.1), Some(1e-6))?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: self.flag("tie_word_embeddings", false)?,
            initializer_range: self.number(self.fields, "initializer_range", (1e-6, 10.0), Some(0.02))?,
            bos_token_id: self.ids("bos_token_id", vocab_size)?.first().copied(),
            eos_token_id: self.ids("eos_token_id", vocab_size)?,
            pad_token_id: self.pad(),
        })
    }

    /// `rope_theta` and `rope_scaling` of transformers 4, or both inside `rope_parameters` of transformers 5.
    fn rope(&self) -> Result<(f64, Option<Llama3Scaling>)> {
        let nested = match self.get("rope_parameters").or_else(|| self.get("rope_scaling")) {
            None => None,
            Some(Value::Object(fields)) => Some(fields),
            Some(value) => {
                return Err(self.bad(format!("the RoPE parameters are {}, but must be an object or null", short(value))));
            }
        };
        let theta = self.number(self.fields, "rope_theta", (1.0, 1e12), Some(10_000.0))?;
        let Some(nested) = nested else { return Ok((theta, None)) };
        let theta = self.number(nested, "rope_theta", (1.0, 1e12), Some(theta))?;
        if let Some(share) = nested.get("partial_rotary_factor").and_then(Value::as_f64)
            && share != 1.0
        {
            return Err(self.bad(format!("`partial_rotary_factor` is {share}, but smolforge turns whole heads only")));
        }
        match nested.get("rope_type").or_else(|| nested.get("type")).and_then(Value::as_str) {
            Some("default") | None => Ok((theta, None)),
            Some("llama3") => {
                let low_freq_factor = self.number(nested, "low_freq_factor", (1e-3, 1e6), None)?;
                let high_freq_factor = self.number(nested, "high_freq_factor", (1e-3, 1e6), None)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(self.bad(format!("`high_freq_factor` {high_freq_factor} must exceed `low_freq_factor` {low_freq_factor}")));
                }
                let scaling = Llama3Scaling {
                    factor: self.number(nested, "factor", (1.0, 1e6), None)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: self.number(nested, "original_max_position_embeddings", (1.0, 1e9), None)? as usize,
                };
                Ok((theta, Some(scaling)))
            }
            Some(other) => Err(self.bad(format!("RoPE scaling `{}` is not supported (llama3 is)", short_text(other)))),
        }
    }

    /// Token ids as a number or a list of numbers, below the vocabulary.
    fn ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>> {
        let one = |value: &Value| match value.as_u64() {
            Some(id) if id < vocab_size as u64 => Ok(id as u32),
            _ => Err(self.bad(format!("`{key}` holds {}, which is no id of a vocabulary of {vocab_size}", short(value)))),
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() > 256 => Err(self.bad(format!("`{key}` lists {} ids", list.len()))),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        }
    }

    /// Some checkpoints pad with -1 or an id of a larger vocabulary: of no consequence here.
    fn pad(&self) -> Option<u32> {
        self.get("pad_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    }
}

/// A JSON value, cut to fit a line.
fn short(value: &Value) -> String {
    short_text(&value.to_string())
}

fn short_text(text: &str) -> String {
    if text.chars().count() <= 40 { text.to_string() } else { format!("{}…", text.chars().take(40).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smol() -> Value {
        serde_json::from_str(&LlamaConfig::preset("smollm2-135m").unwrap().to_hf_json("float32")).unwrap()
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let counts = [
            ("smollm2-135m", 134_515_008, 272),
            ("smollm2-360m", 361_821_120, 290),
            ("smollm2-1.7b", 1_711_376_384, 218),
            ("llama-3.2-1b", 1_235_814_400, 146),
            ("llama-3.2-3b", 3_212_749_824, 254),
        ];
        for (name, parameters, tensors) in counts {
            let config = LlamaConfig::preset(name).unwrap();
            assert_eq!((config.parameters(), config.tensors().len()), (parameters, tensors), "{name}");
        }
        let untied = LlamaConfig { tie_word_embeddings: false, ..LlamaConfig::preset("smollm2-135m").unwrap() };
        assert_eq!(untied.parameters(), 162_826_560);
    }

    #[test]
    fn own_presets_have_the_sizes_they_promise() {
        assert_eq!(LlamaConfig::preset("nano").unwrap().parameters(), 1_262_720);
        assert_eq!(LlamaConfig::preset("micro").unwrap().parameters(), 10_409_280);
        assert_eq!(LlamaConfig::preset("nano").unwrap().with_vocab(2048).vocab_size, 2048);
    }

    #[test]
    fn flops_of_the_135m_are_those_of_the_reference() {
        let config = LlamaConfig::preset("smollm2-135m").unwrap();
        assert!((config.train_flops_per_token(128) / 1e9 - 0.834).abs() < 1e-3);
        assert!((config.train_flops_per_token(2048) / 1e9 - 1.232).abs() < 1e-3);
    }

    #[test]
    fn written_config_reads_back_equal() {
        for name in PRESETS {
            let config = LlamaConfig::preset(name).unwrap();
            assert_eq!(LlamaConfig::from_hf_json(&config.to_hf_json("float16"), "config.json").unwrap(), config, "{name}");
        }
    }

    #[test]
    fn presets_equal_the_published_configs() {
        let data = "../../shared/data"; // tests run in their package's folder
        let folders = [
            ("smollm2-135m", "smollm2/SmolLM2-135M"),
            ("smollm2-360m", "smollm2/SmolLM2-360M"),
            ("smollm2-1.7b", "smollm2/SmolLM2-1.7B"),
            ("llama-3.2-1b", "llama3.2/Llama-3.2-1B-Instruct"),
            ("llama-3.2-3b", "llama3.2/Llama-3.2-3B-Instruct"),
        ];
        for (name, folder) in folders {
            let Ok(text) = std::fs::read_to_string(format!("{data}/{folder}/config.json")) else {
                println!("skipped: no {folder}/config.json in ../shared/data");
                continue;
            };
            let mut published = LlamaConfig::from_hf_json(&text, folder).unwrap();
            if name.starts_with("llama") {
                assert_eq!(published.eos_token_id, [128_001, 128_008, 128_009]);
                published.eos_token_id.truncate(1); // chat models end turns, too
            }
            assert_eq!(LlamaConfig::preset(name).unwrap(), published, "{name}");
        }
    }

    #[test]
    fn unknown_preset_names_the_nearest() {
        let message = LlamaConfig::preset("smolm2-135").unwrap_err().to_string();
        assert!(message.contains("did you mean `smollm2-135m`"), "{message}");
    }

    #[test]
    fn rope_parameters_of_transformers_5_are_read() {
        let mut config = smol();
        let object = config.as_object_mut().unwrap();
        object.remove("rope_theta");
        object.remove("rope_scaling");
        object.insert(
            "rope_parameters".into(),
            json!({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
        );
        let config = LlamaConfig::from_hf_json(&config.to_string(), "x").unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling.unwrap().factor), (5e5, 8.0));
    }

    #[test]
    fn ids_may_be_a_number_a_list_or_absent() {
        let read = |ids: Value| {
            let mut config = smol();
            config["eos_token_id"] = ids;
            LlamaConfig::from_hf_json(&config.to_string(), "x").unwrap().eos_token_id
        };
        assert_eq!(read(json!(7)), [7]);
        assert_eq!(read(json!([7, 8])), [7, 8]);
        assert!(read(Value::Null).is_empty());
    }

    #[track_caller]
    fn refused(key: &str, value: Value, expect: &str) {
        let mut config = smol();
        config[key] = value;
        let message = LlamaConfig::from_hf_json(&config.to_string(), "dir/config.json").unwrap_err().to_string();
        assert!(message.starts_with("dir/config.json: ") && message.contains(expect), "{message}");
        assert!(!message.contains('\n') && message.len() < 200, "{message}");
    }

    #[test]
    fn what_the_model_cannot_do_is_refused_with_a_reason() {
        refused("model_type", json!("gpt2"), "Llama family only");
        refused("model_type", Value::Null, "missing");
        refused("attention_bias", json!(true), "biases");
        refused("mlp_bias", json!(true), "biases");
        refused("hidden_act", json!("gelu"), "silu");
        refused("quantization_config", json!({"bits": 4}), "quantised");
        refused("rope_parameters", json!({"rope_type": "yarn"}), "`yarn` is not supported");
        refused("rope_parameters", json!([1]), "object or null");
        refused("num_attention_heads", json!(0), "between 1 and");
        refused("num_attention_heads", json!(-9), "between 1 and");
        refused("num_hidden_layers", json!(1e30), "between 1 and");
        refused("num_hidden_layers", json!(2_000_000_000), "between 1 and");
        refused("hidden_size", json!("576"), "between 1 and");
        refused("hidden_size", json!("x".repeat(5000)), "…");
        refused("vocab_size", Value::Null, "missing");
        refused("num_key_value_heads", json!(4), "evenly");
        refused("head_dim", json!(63), "even one");
        refused("head_dim", json!(0), "between 1 and");
        refused("rms_norm_eps", json!(-1.0), "lie between");
        refused("eos_token_id", json!(49_152), "no id");
        refused("tie_word_embeddings", json!("yes"), "true or false");
    }

    #[test]
    fn missing_head_dim_is_computed_or_refused() {
        let mut config = smol();
        config.as_object_mut().unwrap().remove("head_dim");
        assert_eq!(LlamaConfig::from_hf_json(&config.to_string(), "x").unwrap().head_dim, 64);
        config["num_attention_heads"] = json!(10);
        config["num_key_value_heads"] = json!(5);
        assert!(LlamaConfig::from_hf_json(&config.to_string(), "x").unwrap_err().to_string().contains("not divisible"));
    }

    #[test]
    fn malformed_json_is_one_line() {
        for text in ["", "{", "[]", "nul", "{\"a\":1}", "\u{0}"] {
            let message = LlamaConfig::from_hf_json(text, "x").unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
