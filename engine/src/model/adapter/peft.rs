//! `adapter_config.json` as PEFT has it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use fancy_regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::super::config::LlamaConfig;
use super::super::fetch;
use super::super::load::is_linear;
use crate::config::finetune::Targets;
use crate::error::{Error, Result};

/// Keys of what is no plain LoRA on linear layers, or not of a model as it is.
const OTHER_KINDS: [&str; 14] = [
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
];
/// How adapters begin that take something out of the base's weights.
const OTHER_BASES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// What an adapter is, besides its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Model that it was trained beside, with `@` and the revision of a model of the hub.
    pub base_model: String,
    /// Whether that was in 4 bits.
    pub four_bits: bool,
    /// Rank where no pattern says otherwise.
    pub r: usize,
    /// Its outputs are multiplied by `alpha / r`.
    pub alpha: f64,
    /// Divide by `√r` instead.
    pub rslora: bool,
    /// Share of its inputs that training drops.
    pub dropout: f64,
    /// Layers that it changes, as they were asked for.
    pub targets: Targets,
    /// Other ranks of layers whose name ends as a pattern says.
    pub ranks: Patterns<usize>,
    /// Other alphas.
    pub alphas: Patterns<f64>,
}

impl AdapterConfig {
    /// `alpha / r` or `alpha / √r` of a layer.
    pub fn scale(&self, layer: &str) -> f64 {
        let r = self.rank(layer) as f64;
        self.alphas.of(layer).unwrap_or(self.alpha) / if self.rslora { r.sqrt() } else { r }
    }

    /// Rank of a layer.
    pub fn rank(&self, layer: &str) -> usize {
        self.ranks.of(layer).unwrap_or(self.r)
    }

    /// Numbers that an adapter of a model of this shape has.
    ///
    /// # Errors
    /// Where the targets mean no layer.
    pub fn parameters(&self, shape: &LlamaConfig) -> Result<u64> {
        let layers: BTreeMap<String, usize> = layers(shape).into_iter().map(|(name, sizes)| (name, sizes.iter().sum())).collect();
        let chosen = self.targets.choose(&layers.keys().cloned().collect::<Vec<_>>())?;
        Ok(chosen.iter().map(|layer| (self.rank(layer) * layers[layer]) as u64).sum())
    }

    /// Bytes of the tensors in the file of such an adapter, which are of f32.
    ///
    /// # Errors
    /// As [`AdapterConfig::parameters`].
    pub fn size_bytes(&self, shape: &LlamaConfig) -> Result<u64> {
        Ok(4 * self.parameters(shape)?)
    }

    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// [`Error::Format`] for other JSON and for what is not LoRA on linear layers.
    pub fn from_peft_json(text: &str, path: &str) -> Result<Self> {
        let bad = |why: String| Error::format(path, why);
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| bad(format!("not a JSON object ({e}); is this a PEFT adapter?")))?;
        let get = |key: &str| json.get(key).filter(|value| !value.is_null());
        let kind = get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
        if kind != "LORA" {
            return Err(bad(format!("peft_type is {kind}; only LORA adapters can be used")));
        }
        let empty = |value: &Value| [json!(false), json!([]), json!({})].contains(value);
        if let Some((key, value)) = OTHER_KINDS.iter().find_map(|key| Some((key, get(key).filter(|value| !empty(value))?))) {
            return Err(bad(format!("{key} is {value}, which is not known here; train the adapter without it")));
        }
        if let Some(bias) = get("bias").filter(|bias| **bias != "none") {
            return Err(bad(format!("bias is {bias}, which is not known here; train the adapter with bias = \"none\"")));
        }
        let begun = get("init_lora_weights").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        if OTHER_BASES.iter().any(|kind| begun.starts_with(kind)) {
            return Err(bad(format!(
                "init_lora_weights is {begun}, which changes the base, too; convert the adapter with PEFT's path_initial_model_for_weight_conversion"
            )));
        }
        let number = |key: &str, default: f64| match get(key).map(|value| (value, value.as_f64())) {
            None => Ok(default),
            Some((_, Some(number))) if number.is_finite() => Ok(number),
            Some((value, _)) => Err(bad(format!("{key} is {value}; a number is needed"))),
        };
        let r = number("r", 8.0)?;
        if r < 1.0 || r.fract() != 0.0 || r > 65_536.0 {
            return Err(bad(format!("r is {r}; a rank from 1 on is needed")));
        }
        // Their order matters, and a map of JSON has none.
        #[derive(Deserialize)]
        struct Ordered {
            rank_pattern: Option<Patterns<f64>>,
            alpha_pattern: Option<Patterns<f64>>,
        }
        let Ordered { rank_pattern, alpha_pattern } = serde_json::from_str(text).map_err(|e| {
            let key = ["rank_pattern", "alpha_pattern"].into_iter().find(|key| get(key).is_some_and(|value| !are_numbers(value)));
            bad(format!("{} cannot be read ({e}); a map from names to numbers is needed", key.unwrap_or("rank_pattern")))
        })?;
        let (ranks, alphas) = (rank_pattern.unwrap_or_default(), alpha_pattern.unwrap_or_default());
        for (key, value) in ranks.0.iter().chain(&alphas.0) {
            if let Err(e) = pattern(key) {
                let why = e.to_string().lines().last().unwrap_or_default().to_string();
                return Err(bad(format!("{key:?} of a pattern is no regular expression ({why})")));
            }
            if !value.is_finite() {
                return Err(bad(format!("{value} of pattern {key:?} is no number")));
            }
        }
        if let Some((key, rank)) = ranks.0.iter().find(|(_, rank)| *rank < 1.0 || rank.fract() != 0.0 || *rank > 65_536.0) {
            return Err(bad(format!("rank_pattern gives {key:?} the rank {rank}; ranks are whole numbers from 1 on")));
        }
        let targets = get("target_modules").cloned().unwrap_or_else(|| json!([]));
        let Ok(targets) = serde_json::from_value(targets.clone()) else {
            return Err(bad(format!("target_modules is {targets}; names or a pattern are needed")));
        };
        let name = get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
        let base_model = get("revision").and_then(Value::as_str).filter(|_| matches!(fetch::parse(name), Some((_, None))));
        Ok(Self {
            base_model: base_model.map_or_else(|| name.into(), |revision| format!("{name}@{revision}")),
            four_bits: false,
            r: r as usize,
            alpha: number("lora_alpha", 8.0)?,
            rslora: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            dropout: number("lora_dropout", 0.0)?,
            targets,
            ranks: Patterns(ranks.0.into_iter().map(|(name, rank)| (name, rank as usize)).collect()),
            alphas,
        })
    }

    /// `adapter_config.json` as PEFT writes it; `layers` are the names of the layers that the adapter changes, `base` the
    /// model's name or path and its revision at the hub.
    pub fn to_peft_json<'a>(&self, base: (&str, Option<&str>), layers: impl Iterator<Item = &'a str>) -> String {
        let targets = match &self.targets.named() {
            // As PEFT does on saving.
            Targets::Pattern(all) if all == "all-linear" => {
                let mut names: Vec<&str> = layers.filter_map(|layer| layer.rsplit('.').next()).collect();
                names.sort_unstable();
                names.dedup();
                json!(names)
            }
            targets => json!(targets),
        };
        #[derive(Serialize)]
        struct Written<'a> {
            #[serde(flatten)]
            plain: Value,
            rank_pattern: &'a Patterns<usize>,
            alpha_pattern: &'a Patterns<f64>,
        }
        let plain = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.0, "revision": base.1,
            "r": self.r, "lora_alpha": whole(self.alpha), "lora_dropout": self.dropout, "target_modules": targets,
            "use_rslora": self.rslora, "bias": "none", "fan_in_fan_out": false, "init_lora_weights": true, "inference_mode": true,
            "modules_to_save": null, "use_dora": false, "layers_to_transform": null, "layers_pattern": null,
            "auto_mapping": null, "loftq_config": {}, "megatron_config": null, "megatron_core": "megatron.core",
        });
        let written = Written { plain, rank_pattern: &self.ranks, alpha_pattern: &self.alphas };
        serde_json::to_string_pretty(&written).expect("names and numbers are JSON") + "\n"
    }
}

/// Whole numbers without a point, as PEFT writes alpha.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { json!(number as i64) } else { json!(number) }
}

/// Whether a value is a map to numbers, or nothing.
fn are_numbers(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.values().all(Value::is_number))
}

/// Values for layers by regular expressions on the ends of their names, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Patterns<T> {
    /// The value of the first pattern that a layer's name matches, as in PEFT.
    pub fn of(&self, layer: &str) -> Option<T> {
        let matches = |key: &str| pattern(key).is_ok_and(|pattern| pattern.is_match(layer).unwrap_or(false));
        self.0.iter().find(|(key, _)| matches(key)).map(|(_, value)| *value)
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Patterns(all))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// The expression by which PEFT looks for a key.
fn pattern(key: &str) -> Result<Regex, fancy_regex::Error> {
    Regex::new(&format!(r"^(?:.*\.)?({key})$"))
}

/// Names of the linear layers of a model of this shape, with outputs and inputs.
pub fn layers(shape: &LlamaConfig) -> Vec<(String, [usize; 2])> {
    let tensors = shape.tensors().into_iter().filter(|(name, _)| is_linear(name));
    let layers = tensors.filter_map(|(name, shape)| Some((name.trim_end_matches(".weight").to_string(), shape.try_into().ok()?)));
    layers.collect()
}
