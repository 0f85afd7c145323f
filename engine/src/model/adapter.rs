//! LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

mod peft;

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use fancy_regex::Regex;

use super::linear::{Linear, Lora, Parameter};
use super::llama::Llama;
use super::safetensors::{Dtype, SafeFile, SafeWriter, first_non_finite};
use super::{fetch, hub};
use crate::config::finetune::Targets;
use crate::control::Control;
use crate::data::random::{self, Random};
use crate::device::read_f32;
use crate::error::{Error, Result, nearest};
use crate::protocol::AdapterChoice;
use crate::store::{Store, inside};

pub use peft::{AdapterConfig, Patterns, layers};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
/// What a file of weights says of the base that they were trained beside: (key, value).
const FOUR_BITS: (&str, &str) = ("base", "nf4");

/// Matrices of one linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// `[r, in]`.
    pub a: Vec<f32>,
    /// `[out, r]`.
    pub b: Vec<f32>,
    /// Rank, inputs, outputs.
    pub sizes: [usize; 3],
    /// What `b·a` is multiplied by.
    pub scale: f64,
}

/// An adapter in main memory: what it changes of every layer, by the layer's name.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What it is.
    pub config: AdapterConfig,
    /// By names such as `model.layers.0.self_attn.q_proj`.
    pub pairs: BTreeMap<String, Pair>,
}

impl Targets {
    /// A name, or several with commas between them, where a text holds nothing that only an expression could mean: PEFT
    /// would find no layer by it.
    pub fn named(&self) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_., ".contains(c);
        match self {
            Self::Pattern(text) if text.chars().all(is_name) && !text.trim().is_empty() => {
                Self::Names(text.split(',').map(|name| name.trim().to_string()).collect())
            }
            other => other.clone(),
        }
    }

    /// Whether a layer of this name is meant.
    ///
    /// # Errors
    /// [`Error::Config`] for what is no regular expression.
    pub fn matches(&self, layer: &str) -> Result<bool> {
        match &self.named() {
            Self::Pattern(all) if all == "all-linear" => Ok(true),
            Self::Pattern(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
                Ok(pattern) => Ok(pattern.is_match(layer).unwrap_or(false)),
                Err(e) => {
                    let why = e.to_string().lines().last().unwrap_or_default().to_string();
                    Err(Error::Config(format!("--target-modules {pattern}: not a regular expression ({why})")))
                }
            },
            Self::Names(names) => {
                Ok(names.iter().any(|name| layer == name || layer.strip_suffix(name.as_str()).is_some_and(|front| front.ends_with('.'))))
            }
        }
    }

    /// Those of the layers that are meant.
    ///
    /// # Errors
    /// [`Error::Config`] where a name means no layer, with the names that there are.
    pub fn choose(&self, layers: &[String]) -> Result<Vec<String>> {
        let mut ends: Vec<&str> = layers.iter().filter_map(|layer| layer.rsplit('.').next()).collect();
        ends.sort_unstable();
        ends.dedup();
        let nothing = |what: &str| {
            let near = nearest(what, ends.iter().copied()).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            Error::Config(format!("--target-modules {what}: no linear layer of the model matches{near}; there are {}", ends.join(", ")))
        };
        if let Self::Names(names) = &self.named() {
            for name in names {
                let one = Self::Names(vec![name.clone()]);
                if !layers.iter().any(|layer| one.matches(layer).unwrap_or(false)) {
                    return Err(nothing(name));
                }
            }
        }
        let mut chosen = Vec::new();
        for layer in layers {
            if self.matches(layer)? {
                chosen.push(layer.clone());
            }
        }
        match self {
            _ if !chosen.is_empty() => Ok(chosen),
            Self::Pattern(pattern) => Err(nothing(pattern)),
            Self::Names(_) => Err(Error::Config("--target-modules: the list is empty".into())),
        }
    }
}

impl Adapter {
    /// The first weights of training: `a` is uniform between ±1/√in (Kaiming's with a = √5, as PEFT), `b` is 0.
    ///
    /// # Errors
    /// Where the targets mean no layer.
    pub fn begin(config: &AdapterConfig, model: &Llama, seed: u64) -> Result<Self> {
        let layers: BTreeMap<String, [usize; 2]> = model.linears().map(|(name, linear)| (name, linear.dims())).collect();
        let names: Vec<String> = layers.keys().cloned().collect();
        let mut pairs = BTreeMap::new();
        for name in config.targets.choose(&names)? {
            let ([out, inputs], r) = (layers[&name], config.rank(&name));
            let bound = 1.0 / (inputs as f64).sqrt();
            let mut random = Random::stream(seed, stream(&name));
            let a = (0..r * inputs).map(|_| ((2.0 * random.f64() - 1.0) * bound) as f32).collect();
            let pair = Pair { a, b: vec![0.0; out * r], sizes: [r, inputs, out], scale: config.scale(&name) };
            pairs.insert(name, pair);
        }
        Ok(Self { config: config.clone(), pairs })
    }

    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Format`], [`Error::Shape`] naming the tensor.
    pub async fn load(store: &Store, folder: &str) -> Result<Self> {
        let path = inside(folder, CONFIG);
        if !store.exists(&path).await {
            return Err(Error::File { path, reason: "no such file; an adapter's folder holds an adapter_config.json".into() });
        }
        let mut config = AdapterConfig::from_peft_json(&store.read_text(&path).await?, &path)?;
        let path = inside(folder, WEIGHTS);
        if !store.exists(&path).await {
            let reason = format!("no such file; an adapter's weights are read from {WEIGHTS} only");
            return Err(Error::File { path, reason });
        }
        let file = SafeFile::open(store.open(&path).await?, &path)?;
        config.four_bits = file.metadata().get(FOUR_BITS.0).is_some_and(|base| base == FOUR_BITS.1);
        let mut pairs = BTreeMap::new();
        for name in file.names() {
            let Some((layer, matrix)) = parts(name) else {
                return Err(Error::format(&path, format!("tensor {name} is not known here; only LoRA on linear layers can be used")));
            };
            if matrix == "lora_A" {
                pairs.insert(layer.to_string(), read_pair(&file, name, layer, &config)?);
            }
        }
        if let Some(name) = file.names().find(|name| parts(name).is_none_or(|(layer, _)| !pairs.contains_key(layer))) {
            return Err(Error::format(&path, format!("tensor {name} has no lora_A beside it")));
        }
        if pairs.is_empty() {
            return Err(Error::format(&path, "holds no tensors"));
        }
        Ok(Self { config, pairs })
    }

    /// The adapter that a model has on its device.
    ///
    /// # Errors
    /// Where the device fails.
    pub async fn read(model: &Llama, config: &AdapterConfig) -> Result<Self> {
        let mut pairs = BTreeMap::new();
        for (layer, linear) in model.linears() {
            let Some(lora) = &linear.lora else { continue };
            let inner = |parameter: &Parameter| match parameter.tensor.is_autodiff() {
                true => parameter.tensor.clone().inner(),
                false => parameter.tensor.clone(),
            };
            let ([r, inputs], [out, _]) = (lora.a.tensor.dims(), lora.b.tensor.dims());
            let (a, b) = (read_f32(inner(&lora.a)).await?, read_f32(inner(&lora.b)).await?);
            pairs.insert(layer, Pair { a, b, sizes: [r, inputs, out], scale: lora.scale });
        }
        Ok(Self { config: config.clone(), pairs })
    }

    /// Writes an adapter's folder.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::File`], or a non-finite number by the name of its tensor.
    pub async fn save(&self, store: &Store, folder: &str) -> Result<()> {
        let mut header = Vec::new();
        for (layer, pair) in &self.pairs {
            let [r, inputs, out] = pair.sizes;
            header.push((tensor_name(layer, "lora_A"), Dtype::F32, vec![r, inputs]));
            header.push((tensor_name(layer, "lora_B"), Dtype::F32, vec![out, r]));
        }
        let metadata = if self.config.four_bits { &[("format", "pt"), FOUR_BITS][..] } else { &[("format", "pt")] };
        let mut writer = SafeWriter::create(store, &inside(folder, WEIGHTS), &header, metadata).await?;
        for (layer, pair) in &self.pairs {
            writer.write_f32(&tensor_name(layer, "lora_A"), &pair.a)?;
            writer.write_f32(&tensor_name(layer, "lora_B"), &pair.b)?;
        }
        writer.finish().await?;
        let base = self.config.base_model.as_str();
        let base = match fetch::parse(base) {
            Some(named) if !store.exists(base).await => named,
            _ => (base, None),
        };
        let config = self.config.to_peft_json(base, self.pairs.keys().map(String::as_str));
        store.write(&inside(folder, CONFIG), config.as_bytes()).await
    }

    /// Trained numbers.
    pub fn parameters(&self) -> u64 {
        self.pairs.values().map(|pair| (pair.a.len() + pair.b.len()) as u64).sum()
    }

    /// Several adapters as one, to be put on the model in the folder `model`; none where none is given.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub async fn load_mix(store: &Store, adapters: &[AdapterChoice], model: &str, control: &Control) -> Result<Option<Self>> {
        let mut loaded = Vec::new();
        for AdapterChoice { path, strength } in adapters {
            if !strength.is_finite() {
                return Err(Error::Config(format!("--adapter {path}:{strength}: a strength is a number, such as 0.5")));
            }
            let adapter = Self::load(store, path).await?;
            adapter.compare_base(path, model, store, control).await;
            loaded.push((adapter, *strength));
        }
        for (adapter, _) in &loaded {
            for (layer, pair) in &adapter.pairs {
                let mut others = loaded.iter().filter_map(|(other, _)| other.pairs.get(layer));
                if others.any(|other| other.sizes[1..] != pair.sizes[1..]) {
                    return Err(Error::Data(format!("the adapters were made for different models: their {layer} have other sizes")));
                }
            }
        }
        Ok(Self::mix(&loaded))
    }

    /// Several adapters with their strengths as one of the sum of their ranks: exactly what they do together. Ranks and
    /// scales are those of its matrices; what its configuration says of them is the first one's.
    pub fn mix(adapters: &[(Self, f64)]) -> Option<Self> {
        let config = &adapters.first()?.0.config;
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for (adapter, strength) in adapters {
            for (layer, pair) in &adapter.pairs {
                let factor = (pair.scale * strength) as f32;
                let b: Vec<f32> = pair.b.iter().map(|value| value * factor).collect();
                let added = Pair { a: pair.a.clone(), b, sizes: pair.sizes, scale: 1.0 };
                match pairs.remove(layer) {
                    Some(before) => pairs.insert(layer.clone(), before.beside(&added)),
                    None => pairs.insert(layer.clone(), added),
                };
            }
        }
        let four_bits = adapters.iter().any(|(adapter, _)| adapter.config.four_bits);
        let config = AdapterConfig { four_bits, dropout: 0.0, ..config.clone() };
        Some(Self { config, pairs })
    }

    /// Warns where it was trained beside a model of another name than the one in the folder `model`, which fits its sizes;
    /// says so where names say nothing and the paths differ.
    pub async fn compare_base(&self, path: &str, model: &str, store: &Store, control: &Control) {
        let base = &self.config.base_model;
        let written = hub::written_name(store, model).await.filter(|_| !model.contains("models--")); // the hub's own name is the right one
        let paths: Vec<&str> = [Some(model), written.as_deref()].into_iter().flatten().collect();
        let names: Vec<&str> = paths.iter().copied().filter_map(fetch::title).collect();
        let differs = |name: &str| {
            format!("{path}: the adapter was trained beside {base}, and this is {name}; it needs the very weights of that model")
        };
        if let (Some(title), [name, ..]) = (fetch::title(base), names.as_slice()) {
            if !names.iter().any(|name| name.eq_ignore_ascii_case(title)) {
                control.warn(differs(name));
            }
            return;
        }
        let of_run = model.strip_suffix("/model"); // a run stands for the model that it has tuned
        let known = paths.into_iter().chain(of_run).any(|path| fetch::may_be_one(base, path));
        if !base.is_empty() && !known {
            control.remark(differs(model));
        }
    }

    /// What it adds to a layer's weight: `scale·b·a`, `[out, in]` row by row.
    pub fn change(&self, layer: &str) -> Option<impl Fn(usize, &mut [f32]) + '_> {
        let pair = self.pairs.get(layer)?;
        let [r, inputs, _] = pair.sizes;
        Some(move |row: usize, out: &mut [f32]| {
            for (b, a) in pair.b[row * r..][..r].iter().zip(pair.a.chunks(inputs)) {
                let factor = (f64::from(*b) * pair.scale) as f32;
                out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * a);
            }
        })
    }

    /// Holds the adapter against a model, of whose layers `dims` tells the outputs and inputs.
    ///
    /// # Errors
    /// [`Error::Data`] naming the layer: the adapter was made for another model.
    pub fn check_sizes(&self, dims: &dyn Fn(&str) -> Option<[usize; 2]>) -> Result<()> {
        for (name, pair) in &self.pairs {
            let [_, inputs, out] = pair.sizes;
            let why = match dims(name) {
                None => format!("changes {name}, which this model does not have"),
                Some(dims) if dims != [out, inputs] => {
                    format!("changes a {name} of {out} × {inputs}, the model's is {} × {}", dims[0], dims[1])
                }
                Some(_) => continue,
            };
            let base = &self.config.base_model;
            return Err(Error::Data(format!("the adapter {why}; it was trained beside {base:?}: take that model")));
        }
        Ok(())
    }
}

impl Pair {
    /// Both of them at once; scales must be 1.
    fn beside(self, other: &Self) -> Self {
        let ([r1, inputs, out], [r2, ..]) = (self.sizes, other.sizes);
        let mut b = Vec::with_capacity(out * (r1 + r2));
        for row in 0..out {
            b.extend_from_slice(&self.b[row * r1..][..r1]);
            b.extend_from_slice(&other.b[row * r2..][..r2]);
        }
        let a = self.a.into_iter().chain(other.a.iter().copied()).collect();
        Self { a, b, sizes: [r1 + r2, inputs, out], scale: 1.0 }
    }
}

/// Name of a matrix in a file.
pub fn tensor_name(layer: &str, matrix: &str) -> String {
    format!("{PREFIX}{layer}.{matrix}.weight")
}

/// Layer and matrix of a tensor's name; adapters of older versions carry the name `default`.
fn parts(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
    let name = name.strip_suffix(".default").unwrap_or(name);
    name.rsplit_once('.').filter(|(_, matrix)| ["lora_A", "lora_B"].contains(matrix))
}

fn read_pair(file: &SafeFile, name: &str, layer: &str, config: &AdapterConfig) -> Result<Pair> {
    let other = name.replace("lora_A", "lora_B");
    let shape = |name: &str| match file.info(name) {
        Some((_, [rows, columns])) => Ok([*rows, *columns]),
        Some((_, found)) => Err(Error::format(file.path(), format!("tensor {name} has the shape {found:?}; a matrix is needed"))),
        None => Err(Error::format(file.path(), format!("tensor {name} is missing"))),
    };
    let ([r, inputs], [out, columns]) = (shape(name)?, shape(&other)?);
    let expected = config.rank(layer);
    if r != columns || r != expected || r == 0 {
        let reason = format!("the matrices of {layer} have the ranks {r} and {columns}, {CONFIG} says {expected}");
        return Err(Error::format(file.path(), reason));
    }
    let read = |name: &str| {
        let values = file.read_f32(name)?;
        match first_non_finite(&values) {
            None => Ok(values),
            Some(index) => Err(Error::format(file.path(), format!("tensor {name} holds {} (number {index}); it is broken", values[index]))),
        }
    };
    Ok(Pair { a: read(name)?, b: read(&other)?, sizes: [r, inputs, out], scale: config.scale(layer) })
}

/// A number that depends on a layer's name alone.
fn stream(layer: &str) -> u64 {
    random::of_name(0x10ba, layer)
}

impl Llama {
    /// All linear layers with their names, e.g. `model.layers.0.self_attn.q_proj`.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear)> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(i, layer)| layer.linears().map(|(name, linear)| (format!("model.layers.{i}.{name}"), linear)))
    }

    /// The same model with an adapter in place of the one that it has.
    ///
    /// # Errors
    /// Where the adapter was made for another model.
    pub fn with_adapter(mut self, adapter: Option<&Adapter>) -> Result<Self> {
        if let Some(adapter) = adapter {
            let layers: BTreeMap<String, [usize; 2]> = self.linears().map(|(name, linear)| (name, linear.dims())).collect();
            adapter.check_sizes(&|layer| layers.get(layer).copied())?;
        }
        let device: Device = self.norm.weight.tensor.device();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (name, linear) in layer.linears_mut() {
                let layer = format!("model.layers.{i}.{name}");
                let pair = adapter.and_then(|adapter| Some((&adapter.config, adapter.pairs.get(&layer)?)));
                linear.lora = pair.map(|(config, pair)| pair.lora(&layer, config.dropout, &device));
            }
        }
        Ok(self)
    }
}

impl Pair {
    fn lora(&self, layer: &str, dropout: f64, device: &Device) -> Lora {
        let [r, inputs, out] = self.sizes;
        let parameter = |matrix: &str, values: &[f32], shape: [usize; 2]| Parameter {
            name: tensor_name(layer, matrix),
            first_row: 0,
            vector: false,
            tensor: Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32)),
        };
        let (a, b) = (parameter("lora_A", &self.a, [r, inputs]), parameter("lora_B", &self.b, [out, r]));
        Lora { a, b, scale: self.scale, dropout, stream: stream(layer) }
    }
}

#[cfg(test)]
mod tests;
