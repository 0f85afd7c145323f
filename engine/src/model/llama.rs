//! Llama as in `modeling_llama.py`: fields are named as the checkpoint's.
//!
//! Activations are matrices `[b·t, d]`; see [`crate::ops`] for the axes.

use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};
use rayon::prelude::*;

use super::cache::KvCache;
use super::config::LlamaConfig;
use super::linear::{Linear, Parameter, Weight};
use super::rope::Rope;
use crate::data::random::{Random, of_name};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::ops::attention::{Mask, attention};
use crate::ops::cross_entropy::{Losses, Wanted, linear_cross_entropy};
use crate::ops::dropout::Noise;
use crate::ops::embedding::embedding;
use crate::ops::linear::linear;
use crate::ops::linear_nf4::Nf4Weight;
use crate::ops::many;
use crate::ops::quant::Nf4;
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::rope;
use crate::ops::swiglu::swiglu;

/// See [`rms_norm`].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[1, d]`.
    pub weight: Parameter,
    eps: f64,
}

/// A table of rows, in blocks that fit the device's storage bindings.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// Consecutive blocks `[v_j, d]`.
    pub weight: Vec<Parameter>,
}

/// Self-attention with grouped key/value heads.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[h·e, d]`.
    pub q_proj: Linear,
    /// `[g·e, d]`.
    pub k_proj: Linear,
    /// `[g·e, d]`.
    pub v_proj: Linear,
    /// `[d, h·e]`.
    pub o_proj: Linear,
}

/// Feed-forward block.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[f, d]`.
    pub gate_proj: Linear,
    /// `[f, d]`.
    pub up_proj: Linear,
    /// `[d, f]`.
    pub down_proj: Linear,
}

/// One decoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Before the feed-forward block.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward block.
    pub mlp: Mlp,
}

/// A decoder-only language model.
#[derive(Debug, Clone)]
pub struct Llama {
    /// Its shape.
    pub config: LlamaConfig,
    /// Token embeddings; also the head when tied.
    pub embed_tokens: Embedding,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: RmsNorm,
    /// The head when it is not tied.
    pub lm_head: Option<Embedding>,
    /// Round the weights to f16 in matrix products (mixed precision).
    pub half: bool,
    /// Seed of what adapters drop in a forward pass; none: they drop nothing.
    pub dropout: Option<u64>,
    rope: Rope,
}

/// What is the same for all layers of a forward pass.
pub struct Pass<'a> {
    config: &'a LlamaConfig,
    mask: &'a Mask,
    /// `[t, e/2]` where all sequences have the same positions, else `[b·t, e/2]`.
    cos: Tensor<2>,
    sin: Tensor<2>,
    half: bool,
    noise: Option<Noise>,
}

impl Pass<'_> {
    /// The same for the sequences from row `row` of the activations on.
    pub fn from_row(mut self, row: usize) -> Self {
        self.noise = self.noise.map(|noise| Noise { row, ..noise });
        self
    }
}

impl RmsNorm {
    /// `[n, d]` to `[n, d]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight.tensor.clone(), self.eps)
    }
}

impl Embedding {
    /// Without gradients: whoever trains makes those of the table and the head.
    fn blocks(&self) -> Vec<Tensor<2>> {
        self.weight.iter().map(|block| untracked(&block.tensor)).collect()
    }
}

impl Attention {
    fn forward(&self, x: Tensor<2>, pass: &Pass, layer: usize, cache: Option<&mut KvCache>) -> Tensor<2> {
        let config = pass.config;
        let q = self.q_proj.forward(x.clone(), pass.half, pass.noise); // [b·t, h·e]
        let k = self.k_proj.forward(x.clone(), pass.half, pass.noise); // [b·t, g·e]
        let v = self.v_proj.forward(x, pass.half, pass.noise);
        let q = rope(q, pass.cos.clone(), pass.sin.clone());
        let k = rope(k, pass.cos.clone(), pass.sin.clone());
        let (k, v) = match cache {
            Some(cache) => cache.store(layer, k, v), // [b·capacity, g·e]
            None => (k, v),
        };
        let out = attention(q, k, v, pass.mask, config.num_attention_heads, config.num_key_value_heads);
        self.o_proj.forward(out, pass.half, pass.noise)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone(), pass.half, pass.noise);
        let up = self.up_proj.forward(x, pass.half, pass.noise);
        self.down_proj.forward(swiglu(gate, up), pass.half, pass.noise)
    }
}

impl Layer {
    /// Hidden states `[b·t, d]` after this layer, the `layer`-th of the model.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass, layer: usize, cache: Option<&mut KvCache>) -> Tensor<2> {
        let h = self.self_attn.forward(self.input_layernorm.forward(x.clone()), pass, layer, cache);
        let x = x + h;
        let h = self.mlp.forward(self.post_attention_layernorm.forward(x.clone()), pass);
        x + h
    }

    /// Its linear layers with their names in the checkpoint.
    pub fn linears(&self) -> [(&'static str, &Linear); 7] {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        [
            ("self_attn.q_proj", &attention.q_proj),
            ("self_attn.k_proj", &attention.k_proj),
            ("self_attn.v_proj", &attention.v_proj),
            ("self_attn.o_proj", &attention.o_proj),
            ("mlp.gate_proj", &mlp.gate_proj),
            ("mlp.up_proj", &mlp.up_proj),
            ("mlp.down_proj", &mlp.down_proj),
        ]
    }

    /// As [`Layer::linears`], to change.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            ("self_attn.q_proj", &mut attention.q_proj),
            ("self_attn.k_proj", &mut attention.k_proj),
            ("self_attn.v_proj", &mut attention.v_proj),
            ("self_attn.o_proj", &mut attention.o_proj),
            ("mlp.gate_proj", &mut mlp.gate_proj),
            ("mlp.up_proj", &mut mlp.up_proj),
            ("mlp.down_proj", &mut mlp.down_proj),
        ]
    }

    /// Its weights in the order of the checkpoint, those of 4 bits left out.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        let attention = [&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj];
        let mlp = [&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj];
        let mut all = vec![&self.input_layernorm.weight];
        all.extend(attention.into_iter().filter_map(Linear::dense));
        all.push(&self.post_attention_layernorm.weight);
        all.extend(mlp.into_iter().filter_map(Linear::dense));
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        let attention = [&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj, &mut attention.o_proj];
        let mlp = [&mut mlp.gate_proj, &mut mlp.up_proj, &mut mlp.down_proj];
        let mut all = vec![&mut self.input_layernorm.weight];
        all.extend(attention.into_iter().filter_map(Linear::dense_mut));
        all.push(&mut self.post_attention_layernorm.weight);
        all.extend(mlp.into_iter().filter_map(Linear::dense_mut));
        all
    }

    /// Its adapters' matrices: `a` and `b` of every linear layer that has one.
    pub fn adapter(&self) -> Vec<&Parameter> {
        self.linears().into_iter().filter_map(|(_, linear)| linear.lora.as_ref()).flat_map(|lora| [&lora.a, &lora.b]).collect()
    }

    fn adapter_mut(&mut self) -> Vec<&mut Parameter> {
        let loras = self.linears_mut().into_iter().filter_map(|(_, linear)| linear.lora.as_mut());
        loras.flat_map(|lora| [&mut lora.a, &mut lora.b]).collect()
    }
}

impl Llama {
    /// Builds the model from `read(name, rows)`, those rows of a checkpoint's tensor: f32, or f16 of a matrix that stays
    /// f16 on the device, or all of a linear layer in 4 bits (neither is to be trained).
    ///
    /// `positions` is the longest sequence it will see.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn new(
        config: &LlamaConfig,
        compute: &Compute,
        positions: usize,
        read: impl Fn(&str, std::ops::Range<usize>) -> Result<Stored>,
    ) -> Result<Self> {
        let device = &compute.device;
        let (d, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let parameter = |name: String, first_row: usize, rows: usize, columns: usize, vector: bool| {
            let range = if vector { 0..columns } else { first_row..first_row + rows };
            let data = read(&name, range)?.dense(&name)?;
            let dtype = data.dtype();
            let tensor = Tensor::<1>::from_data(data, (device, dtype)).reshape([rows, columns]);
            Ok::<_, Error>(Parameter { name, first_row, vector, tensor })
        };
        let table = |name: &str| {
            let row_bytes = read(name, 0..1)?.dense(name)?.as_bytes().len() as u64;
            let block_rows = (compute.max_binding_bytes / row_bytes).clamp(1, v as u64) as usize;
            let starts = (0..v).step_by(block_rows);
            let blocks = starts.map(|start| parameter(name.into(), start, block_rows.min(v - start), d, false));
            Ok::<_, Error>(Embedding { weight: blocks.collect::<Result<_>>()? })
        };
        let embed_tokens = table("model.embed_tokens.weight")?;
        let lm_head = if config.tie_word_embeddings { None } else { Some(table("lm_head.weight")?) };
        let eps = config.rms_norm_eps;
        let mut layers = Vec::new();
        for i in 0..config.num_hidden_layers {
            let linear = |name: &str, rows, columns| {
                let name = format!("model.layers.{i}.{name}.weight");
                let weight = match read(&name, 0..rows)? {
                    Stored::Nf4(weight) => Weight::Nf4(Nf4Weight::new(weight, device)),
                    Stored::Dense(data) => {
                        let dtype = data.dtype();
                        let tensor = Tensor::<1>::from_data(data, (device, dtype)).reshape([rows, columns]);
                        Weight::Dense(Parameter { name, first_row: 0, vector: false, tensor })
                    }
                };
                Ok::<_, Error>(Linear { weight, lora: None })
            };
            let self_attn = Attention {
                q_proj: linear("self_attn.q_proj", q, d)?,
                k_proj: linear("self_attn.k_proj", kv, d)?,
                v_proj: linear("self_attn.v_proj", kv, d)?,
                o_proj: linear("self_attn.o_proj", d, q)?,
            };
            let mlp = Mlp {
                gate_proj: linear("mlp.gate_proj", f, d)?,
                up_proj: linear("mlp.up_proj", f, d)?,
                down_proj: linear("mlp.down_proj", d, f)?,
            };
            let norm = |name: &str| {
                let weight = parameter(format!("model.layers.{i}.{name}.weight"), 0, 1, d, true)?;
                Ok::<_, Error>(RmsNorm { weight, eps })
            };
            let input_layernorm = norm("input_layernorm")?;
            let post_attention_layernorm = norm("post_attention_layernorm")?;
            layers.push(Layer { input_layernorm, self_attn, post_attention_layernorm, mlp });
        }
        let norm = RmsNorm { weight: parameter("model.norm.weight".into(), 0, 1, d, true)?, eps };
        let rope = Rope::new(config, positions, device);
        Ok(Self { config: config.clone(), embed_tokens, layers, norm, lm_head, half: false, dropout: None, rope })
    }

    /// Random weights: normal with the configuration's deviation, norms 1. The same seed gives the same
    /// bytes on every device.
    pub fn random(config: &LlamaConfig, compute: &Compute, positions: usize, seed: u64) -> Self {
        let draw = random_rows(config, seed);
        Self::new(config, compute, positions, |name, rows| Ok(flat(draw(name, rows)).into())).expect("random weights have the right shapes")
    }

    /// All weights in the order of the checkpoint, without those of 4 bits and without adapters.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.embed_tokens.weight.iter().collect();
        all.extend(self.layers.iter().flat_map(Layer::parameters));
        all.push(&self.norm.weight);
        all.extend(self.lm_head.iter().flat_map(|head| &head.weight));
        all
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all: Vec<&mut Parameter> = self.embed_tokens.weight.iter_mut().collect();
        all.extend(self.layers.iter_mut().flat_map(Layer::parameters_mut));
        all.push(&mut self.norm.weight);
        all.extend(self.lm_head.iter_mut().flat_map(|head| &mut head.weight));
        all
    }

    /// Whether it has an adapter.
    pub fn is_adapted(&self) -> bool {
        self.layers.iter().any(|layer| !layer.adapter().is_empty())
    }

    /// What lies under its adapter, to be said after a precision; nothing where there is none.
    pub fn base(&self) -> &'static str {
        let first = self.layers.first().filter(|_| self.is_adapted()).map(|layer| &layer.self_attn.q_proj.weight);
        match first {
            None => "",
            Some(Weight::Nf4(_)) => " over a base of 4 bits (NF4)",
            Some(Weight::Dense(weight)) if weight.tensor.dtype() == DType::F16 => " over a base in f16",
            Some(Weight::Dense(_)) => " over a base in f32",
        }
    }

    /// The matrices of its adapter, layer by layer.
    pub fn adapter(&self) -> Vec<&Parameter> {
        self.layers.iter().flat_map(Layer::adapter).collect()
    }

    /// What training changes: the adapter where there is one, else all weights.
    pub fn trained(&self) -> Vec<&Parameter> {
        if self.is_adapted() { self.adapter() } else { self.parameters() }
    }

    /// As [`Llama::trained`], to change.
    pub fn trained_mut(&mut self) -> Vec<&mut Parameter> {
        if self.is_adapted() { self.layers.iter_mut().flat_map(Layer::adapter_mut).collect() } else { self.parameters_mut() }
    }

    /// The same model with the operands of its matrix products rounded to f16, or not.
    pub fn with_half(mut self, half: bool) -> Self {
        self.half = half;
        self
    }

    /// The same weights, of which those that training changes are leaves of a gradient computation.
    pub fn trainable(&self) -> Self {
        let mut model = self.with_tensors(Tensor::from_inner);
        for parameter in model.trained_mut() {
            parameter.tensor = parameter.tensor.clone().require_grad();
        }
        model
    }

    /// The same weights without gradients, and nothing is dropped.
    pub fn plain(&self) -> Self {
        Self { dropout: None, ..self.with_tensors(Tensor::inner) }
    }

    fn with_tensors(&self, change: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        let mut model = self.clone();
        for parameter in model.parameters_mut() {
            parameter.tensor = change(parameter.tensor.clone());
        }
        for parameter in model.layers.iter_mut().flat_map(Layer::adapter_mut) {
            parameter.tensor = change(parameter.tensor.clone());
        }
        model
    }

    /// Whether it lies on the CPU device.
    pub fn is_on_cpu(&self) -> bool {
        self.norm.weight.tensor.device().inner() == Device::flex()
    }

    /// Cosines and sines of its positions, `[positions, e/2]` each.
    pub fn angles(&self) -> (&Tensor<2>, &Tensor<2>) {
        self.rope.tables()
    }

    /// Longest sequence it can see.
    pub fn positions(&self) -> usize {
        self.rope.positions()
    }

    /// The same model for sequences of up to so many tokens.
    pub fn with_positions(mut self, positions: usize) -> Self {
        self.rope = Rope::new(&self.config, positions, &self.norm.weight.tensor.device());
        self
    }

    /// What all layers share for `t` tokens after `offset` others.
    pub fn pass<'a>(&'a self, mask: &'a Mask, offset: usize, t: usize) -> Pass<'a> {
        self.pass_with(mask, self.rope.at(offset, t))
    }

    fn pass_with<'a>(&'a self, mask: &'a Mask, (cos, sin): (Tensor<2>, Tensor<2>)) -> Pass<'a> {
        Pass {
            config: &self.config,
            mask,
            cos: self.lift(cos),
            sin: self.lift(sin),
            half: self.half,
            noise: self.dropout.map(|seed| Noise { seed, row: 0 }),
        }
    }

    /// Embeddings of `ids: [b·t]` as `[b·t, d]`.
    pub fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.lift(embedding(&self.embed_tokens.blocks(), ids.inner()))
    }

    /// A tensor without gradients beside the weights.
    fn lift(&self, tensor: Tensor<2>) -> Tensor<2> {
        if self.norm.weight.tensor.is_autodiff() && !tensor.is_autodiff() { Tensor::from_inner(tensor) } else { tensor }
    }

    /// Hidden states before the head.
    ///
    /// # Shapes
    /// - `ids`: `[b·t]`, returns `[b·t, d]`
    ///
    /// With a cache the ids follow the tokens it holds; `mask` was made for the same `b`, `t` and offset.
    pub fn forward(&self, ids: Tensor<1, Int>, t: usize, mask: &Mask, cache: Option<&mut KvCache>) -> Tensor<2> {
        let pass = self.pass(mask, cache.as_ref().map_or(0, |cache| cache.len), t);
        self.through(pass, self.embed(ids), t, cache)
    }

    /// As [`Llama::forward`] without a cache, from what [`Llama::embed`] gives on.
    pub fn forward_from(&self, x: Tensor<2>, t: usize, mask: &Mask) -> Tensor<2> {
        self.through(self.pass(mask, 0, t), x, t, None)
    }

    /// As [`Llama::forward`] for sequences that begin in different columns of the cache.
    ///
    /// # Shapes
    /// - `positions`: `[b·t]`, the position of every id in its own sequence
    pub fn forward_at(&self, ids: Tensor<1, Int>, t: usize, positions: &[i32], mask: &Mask, cache: &mut KvCache) -> Tensor<2> {
        self.through(self.pass_with(mask, self.rope.rows(positions)), self.embed(ids), t, Some(cache))
    }

    fn through(&self, pass: Pass, mut x: Tensor<2>, t: usize, mut cache: Option<&mut KvCache>) -> Tensor<2> {
        many(&x.device(), || {
            for (i, layer) in self.layers.iter().enumerate() {
                x = layer.forward(x, &pass, i, cache.as_deref_mut());
            }
            if let Some(cache) = cache {
                cache.advance(t);
            }
            self.norm.forward(x)
        })
    }

    /// Scores of the next token for hidden states `[n, d]`: `[n, v]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let blocks = self.head().blocks();
        let parts: Vec<Tensor<2>> = blocks.into_iter().map(|block| linear(hidden.clone(), self.lift(block), false)).collect();
        match <[Tensor<2>; 1]>::try_from(parts) {
            Ok([logits]) => logits,
            Err(parts) => Tensor::cat(parts, 1),
        }
    }

    /// Losses of hidden states `[n, d]` against `targets`; see [`linear_cross_entropy`].
    pub fn loss(&self, hidden: Tensor<2>, targets: &[i32], wanted: Wanted) -> Losses {
        linear_cross_entropy(untracked(&hidden), &self.head().blocks(), targets, wanted)
    }

    fn head(&self) -> &Embedding {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

/// A tensor without its gradient.
fn untracked<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    if tensor.is_autodiff() { tensor.clone().inner() } else { tensor.clone() }
}

/// Token ids on a device.
pub fn ids(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(flat(values), (device, DType::I32))
}

/// Rows of a tensor as a checkpoint holds them.
#[derive(Debug)]
pub enum Stored {
    /// Numbers of f32 or f16.
    Dense(TensorData),
    /// A whole matrix of 4 bits.
    Nf4(Nf4),
}

impl Stored {
    fn dense(self, name: &str) -> Result<TensorData> {
        match self {
            Self::Dense(data) => Ok(data),
            Self::Nf4(_) => Err(Error::Data(format!("tensor {name} is stored in 4 bits; only linear layers can be"))),
        }
    }
}

impl From<TensorData> for Stored {
    fn from(data: TensorData) -> Self {
        Self::Dense(data)
    }
}

/// Numbers for a tensor, all in one row.
pub fn flat<E: Element>(values: Vec<E>) -> TensorData {
    let n = values.len();
    TensorData::new(values, [n])
}

/// Rows of the tensors of a model with random weights, see [`Llama::random`].
pub fn random_rows(config: &LlamaConfig, seed: u64) -> impl Fn(&str, std::ops::Range<usize>) -> Vec<f32> {
    let deviation = config.initializer_range as f32;
    let sizes: std::collections::HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    move |name, rows| match sizes[name][..] {
        [_, columns] => normal(seed, name, rows, columns, deviation),
        _ => vec![1.0; rows.len()],
    }
}

/// Normal numbers that depend only on the seed, the tensor's name and the row.
fn normal(seed: u64, name: &str, rows: std::ops::Range<usize>, columns: usize, deviation: f32) -> Vec<f32> {
    let tensor_seed = of_name(seed, name);
    let mut values = vec![0.0; rows.len() * columns];
    values.par_chunks_mut(columns).zip(rows).for_each(|(row, index)| {
        let mut random = Random::stream(tensor_seed, index as u64);
        for pair in row.chunks_mut(2) {
            // Box & Muller 1958
            let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
            let angle = 2.0 * std::f64::consts::PI * random.f64();
            for (value, part) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
                *value = (radius * part) as f32 * deviation;
            }
        }
    });
    values
}
