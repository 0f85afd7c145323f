//! Llama as in `modeling_llama.py`: fields are named as the checkpoint's.
//!
//! Activations are matrices `[b·t, d]`; see [`crate::ops`] for the axes.

use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};
use rayon::prelude::*;

use super::cache::KvCache;
use super::config::LlamaConfig;
use super::rope::Rope;
use crate::data::random::{Random, mix};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::ops::attention::{Mask, attention};
use crate::ops::cross_entropy::{Losses, linear_cross_entropy};
use crate::ops::embedding::embedding;
use crate::ops::linear::linear;
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::rope;
use crate::ops::swiglu::swiglu;

/// Rows of a named weight of the checkpoint; vectors are one row.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Tensor name in the checkpoint.
    pub name: String,
    /// First row of the named tensor that is held here (large tables are split).
    pub first_row: usize,
    /// Whether the checkpoint's tensor has one axis.
    pub vector: bool,
    /// `[rows, columns]`.
    pub tensor: Tensor<2>,
}

impl Parameter {
    /// Elements.
    pub fn len(&self) -> usize {
        self.tensor.dims().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `y = x·wᵀ`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Parameter,
}

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
    /// Round the operands of matrix products to f16 (mixed precision).
    pub half: bool,
    rope: Rope,
}

/// What is the same for all layers of a forward pass.
struct Pass<'a> {
    config: &'a LlamaConfig,
    mask: &'a Mask,
    cos: Tensor<2>,
    sin: Tensor<2>,
    half: bool,
}

impl Linear {
    fn forward(&self, x: Tensor<2>, half: bool) -> Tensor<2> {
        linear(x, self.weight.tensor.clone(), half)
    }
}

impl RmsNorm {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight.tensor.clone(), self.eps)
    }
}

impl Embedding {
    fn blocks(&self) -> Vec<Tensor<2>> {
        self.weight.iter().map(|block| block.tensor.clone()).collect()
    }
}

impl Attention {
    fn forward(&self, x: Tensor<2>, pass: &Pass, layer: usize, cache: Option<&mut KvCache>) -> Tensor<2> {
        let config = pass.config;
        let q = self.q_proj.forward(x.clone(), pass.half); // [b·t, h·e]
        let k = self.k_proj.forward(x.clone(), pass.half); // [b·t, g·e]
        let v = self.v_proj.forward(x, pass.half);
        let q = rope(q, pass.cos.clone(), pass.sin.clone());
        let k = rope(k, pass.cos.clone(), pass.sin.clone());
        let (k, v) = match cache {
            Some(cache) => cache.store(layer, k, v), // [b·capacity, g·e]
            None => (k, v),
        };
        let out = attention(q, k, v, pass.mask, config.num_attention_heads, config.num_key_value_heads);
        self.o_proj.forward(out, pass.half)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>, half: bool) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone(), half);
        let up = self.up_proj.forward(x, half);
        self.down_proj.forward(swiglu(gate, up), half)
    }
}

impl Layer {
    fn forward(&self, x: Tensor<2>, pass: &Pass, layer: usize, cache: Option<&mut KvCache>) -> Tensor<2> {
        let h = self.self_attn.forward(self.input_layernorm.forward(x.clone()), pass, layer, cache);
        let x = x + h;
        let h = self.mlp.forward(self.post_attention_layernorm.forward(x.clone()), pass.half);
        x + h
    }
}

impl Llama {
    /// Builds the model from `read(name, rows)`, the elements of those rows of a checkpoint's tensor: f32, or f16 of
    /// a matrix that stays f16 on the device (not to be trained).
    ///
    /// `positions` is the longest sequence it will see.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn new(
        config: &LlamaConfig,
        compute: &Compute,
        positions: usize,
        read: impl Fn(&str, std::ops::Range<usize>) -> Result<TensorData>,
    ) -> Result<Self> {
        let device = &compute.device;
        let (d, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let parameter = |name: String, first_row: usize, rows: usize, columns: usize, vector: bool| {
            let range = if vector { 0..columns } else { first_row..first_row + rows };
            let data = read(&name, range)?;
            let dtype = data.dtype();
            let tensor = Tensor::<1>::from_data(data, (device, dtype)).reshape([rows, columns]);
            Ok::<_, Error>(Parameter { name, first_row, vector, tensor })
        };
        let table = |name: &str| {
            let row_bytes = read(name, 0..1)?.as_bytes().len() as u64;
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
                let weight = parameter(format!("model.layers.{i}.{name}.weight"), 0, rows, columns, false)?;
                Ok::<_, Error>(Linear { weight })
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
        Ok(Self { config: config.clone(), embed_tokens, layers, norm, lm_head, half: false, rope })
    }

    /// Random weights: normal with the configuration's deviation, norms 1. The same seed gives the same
    /// bytes on every device.
    pub fn random(config: &LlamaConfig, compute: &Compute, positions: usize, seed: u64) -> Self {
        let deviation = config.initializer_range as f32;
        let sizes: std::collections::HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        Self::new(config, compute, positions, |name, rows| match sizes[name][..] {
            [_, columns] => Ok(flat(normal(seed, name, rows, columns, deviation))),
            _ => Ok(flat(vec![1.0f32; rows.len()])),
        })
        .expect("random weights have the right shapes")
    }

    /// All weights, in the order of the checkpoint.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.embed_tokens.weight.iter().collect();
        for layer in &self.layers {
            let (attention, mlp) = (&layer.self_attn, &layer.mlp);
            all.extend([
                &layer.input_layernorm.weight,
                &attention.q_proj.weight,
                &attention.k_proj.weight,
                &attention.v_proj.weight,
                &attention.o_proj.weight,
                &layer.post_attention_layernorm.weight,
                &mlp.gate_proj.weight,
                &mlp.up_proj.weight,
                &mlp.down_proj.weight,
            ]);
        }
        all.push(&self.norm.weight);
        all.extend(self.lm_head.iter().flat_map(|head| &head.weight));
        all
    }

    /// As [`Llama::parameters`], to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all: Vec<&mut Parameter> = self.embed_tokens.weight.iter_mut().collect();
        for layer in &mut self.layers {
            let (attention, mlp) = (&mut layer.self_attn, &mut layer.mlp);
            all.extend([
                &mut layer.input_layernorm.weight,
                &mut attention.q_proj.weight,
                &mut attention.k_proj.weight,
                &mut attention.v_proj.weight,
                &mut attention.o_proj.weight,
                &mut layer.post_attention_layernorm.weight,
                &mut mlp.gate_proj.weight,
                &mut mlp.up_proj.weight,
                &mut mlp.down_proj.weight,
            ]);
        }
        all.push(&mut self.norm.weight);
        all.extend(self.lm_head.iter_mut().flat_map(|head| &mut head.weight));
        all
    }

    /// The same model with the operands of its matrix products rounded to f16, or not.
    pub fn with_half(mut self, half: bool) -> Self {
        self.half = half;
        self
    }

    /// The same weights, all of f32, as leaves of a gradient computation.
    pub fn trainable(&self) -> Self {
        self.with_tensors(|tensor| Tensor::from_inner(tensor).require_grad())
    }

    /// The same weights without gradients.
    pub fn plain(&self) -> Self {
        self.with_tensors(Tensor::inner)
    }

    fn with_tensors(&self, change: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        let mut model = self.clone();
        for parameter in model.parameters_mut() {
            parameter.tensor = change(parameter.tensor.clone());
        }
        model
    }

    /// Longest sequence it can see.
    pub fn positions(&self) -> usize {
        self.rope.positions()
    }

    /// Hidden states before the head.
    ///
    /// # Shapes
    /// - `ids`: `[b·t]`, returns `[b·t, d]`
    ///
    /// With a cache the ids follow the tokens it holds; `mask` was made for the same `b`, `t` and offset.
    pub fn forward(&self, ids: Tensor<1, Int>, t: usize, mask: &Mask, mut cache: Option<&mut KvCache>) -> Tensor<2> {
        let offset = cache.as_ref().map_or(0, |cache| cache.len);
        let (cos, sin) = self.rope.at(offset, t);
        let lift = |tensor: Tensor<2>| if self.norm.weight.tensor.is_autodiff() { Tensor::from_inner(tensor) } else { tensor };
        let pass = Pass { config: &self.config, mask, cos: lift(cos), sin: lift(sin), half: self.half };
        let mut x = embedding(&self.embed_tokens.blocks(), ids); // [b·t, d]
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, &pass, i, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.advance(t);
        }
        self.norm.forward(x)
    }

    /// Scores of the next token for hidden states `[n, d]`: `[n, v]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let blocks = self.head().blocks();
        let parts: Vec<Tensor<2>> = blocks.into_iter().map(|block| linear(hidden.clone(), block, false)).collect();
        match <[Tensor<2>; 1]>::try_from(parts) {
            Ok([logits]) => logits,
            Err(parts) => Tensor::cat(parts, 1),
        }
    }

    /// Losses of hidden states `[n, d]` against `targets`; see [`linear_cross_entropy`].
    pub fn loss(&self, hidden: Tensor<2>, targets: &[i32], scale: f64) -> Losses {
        linear_cross_entropy(hidden, &self.head().blocks(), targets, scale)
    }

    fn head(&self) -> &Embedding {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

/// Token ids on a device.
pub fn ids(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(flat(values), (device, DType::I32))
}

/// Numbers for a tensor, all in one row.
pub fn flat<E: Element>(values: Vec<E>) -> TensorData {
    let n = values.len();
    TensorData::new(values, [n])
}

/// Normal numbers that depend only on the seed, the tensor's name and the row.
fn normal(seed: u64, name: &str, rows: std::ops::Range<usize>, columns: usize, deviation: f32) -> Vec<f32> {
    let tensor_seed = name.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)));
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
