//! One token after the other without the host in between: a layer is seven dispatches, a token some two hundred, prepared once
//! for a cache; the next token is drawn on the device, and the host reads several at a time.

use burn::tensor::{DType, Int, Tensor};

use crate::data::random::Random;
use crate::device::failed;
use crate::error::{Error, Result};
use crate::model::linear::{Linear, Lora, Weight as Stored};
use crate::model::llama::{Embedding, Layer};
use crate::model::{KvCache, Llama};
use crate::ops::decode::{Draw, FEW_ROWS, Heads, Projection, ROW_WORDS, Weight, seen_words, serves, serves_heads};
use crate::ops::product::chosen;
use crate::ops::program::{Buffer, Program};
use crate::ops::{kernels_enabled, on_cpu};
use crate::protocol::Sampling;

/// Most tokens of a row that are drawn before the host looks at them.
pub const MOST_STEPS: usize = 16;
/// Keys that a workgroup of the attention has at least, so that short texts are not split.
const SPLIT_KEYS: usize = 256;
/// Most runs of keys.
const MOST_SPLITS: usize = 8;

/// A token that the sampler gives for logits that are no numbers.
const BROKEN: u32 = u32::MAX;

/// Where a row stands: its newest token is not in the cache yet.
#[derive(Debug, Clone)]
pub struct Standing<'a> {
    /// Prompt and text so far.
    pub tokens: &'a [u32],
    /// Column of the cache in which they begin.
    pub start: usize,
}

/// What lies between the dispatches where products are not joined: of many rows, and of weights with more to them.
struct Separate {
    /// Queries, keys and values, one behind the other.
    qkv: [Buffer; 3],
    normed: Buffer,
    scales: Buffer,
    gate: Buffer,
    up: Buffer,
    product: Buffer,
    /// Between the two matrices of an adapter.
    low: Buffer,
}

/// Writes rows that share a cache.
pub struct Decoder {
    program: Program,
    rows: usize,
    state: Buffer,
    shares: Buffer,
    seen: Buffer,
    tokens: Tensor<1, Int>,
    vocab: usize,
    draw: Draw,
}

/// Whether [`Decoder`] can write with this model: on graphics devices, if its sizes are whole vectors of the kernels.
pub fn is_served(model: &Llama) -> bool {
    let config = &model.config;
    let linears = || model.layers.iter().flat_map(Layer::linears).map(|(_, linear)| linear);
    let plain = linears().all(|linear| linear.lora.is_none() && linear.dense().is_some()) && model.layers.iter().all(alike);
    let low_rank = |lora: &Lora| serves(lora.a.tensor.dims()) && serves(lora.b.tensor.dims());
    // Queries, keys and values are told apart by what is added to them; bindings begin at multiples of 256 bytes.
    let apart = [config.num_attention_heads, config.num_key_value_heads].iter().all(|heads| (heads * config.head_dim).is_multiple_of(64));
    kernels_enabled()
        && !on_cpu(&model.norm.weight.tensor.device())
        && (plain || apart)
        && linears().all(|linear| serves(linear.dims()) && linear.lora.as_ref().is_none_or(low_rank))
        && head(model).weight.iter().all(|block| serves(block.tensor.dims()))
        && serves_heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
}

/// Whether weights that are read together are stored alike.
fn alike(layer: &Layer) -> bool {
    let kind = |linear: &Linear| linear.dense().map(|weight| weight.tensor.dtype());
    let (attention, mlp) = (&layer.self_attn, &layer.mlp);
    kind(&attention.q_proj) == kind(&attention.k_proj)
        && kind(&attention.q_proj) == kind(&attention.v_proj)
        && kind(&mlp.gate_proj) == kind(&mlp.up_proj)
}

fn head(model: &Llama) -> &Embedding {
    model.lm_head.as_ref().unwrap_or(&model.embed_tokens)
}

/// Of queries, keys, values, what is attended, gate, up and down.
fn projections(layer: &Layer) -> Result<[Projection; 7]> {
    let [q, k, v, o, gate, up, down] = layer.linears().map(|(_, linear)| projection(linear));
    Ok([q?, k?, v?, o?, gate?, up?, down?])
}

fn projection(linear: &Linear) -> Result<Projection> {
    let projection = match &linear.weight {
        Stored::Dense(weight) => Projection::dense(&weight.tensor)?,
        Stored::Nf4(weight) => Projection::nf4(weight)?,
    };
    match &linear.lora {
        Some(lora) => projection.with_lora(&lora.a.tensor, &lora.b.tensor, lora.scale),
        None => Ok(projection),
    }
}

impl Decoder {
    /// For the sequences of `cache`, in whose next column the newest token of every row belongs; `cache` must not be written
    /// by anything else meanwhile.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn new(model: &Llama, cache: &KvCache, sampling: &Sampling) -> Result<Self> {
        let (config, device) = (&model.config, model.norm.weight.tensor.device());
        let (d, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (rows, capacity) = (cache.batch(), cache.capacity());
        let heads = Heads {
            rows,
            heads: config.num_attention_heads,
            groups: config.num_key_value_heads,
            e: config.head_dim,
            capacity,
            splits: capacity.div_ceil(SPLIT_KEYS).min(MOST_SPLITS),
        };
        let (attended, eps) = (heads.heads * heads.e, config.rms_norm_eps);
        let empty = |count: usize| Buffer::of(&Tensor::<1>::zeros([count], (&device, DType::F32)));
        let x = empty(rows * d)?;
        let qkv = empty(rows * (attended + 2 * heads.groups * heads.e))?;
        let parts = empty(heads.parts())?;
        let attention = empty(rows * attended)?;
        let hidden = empty(rows * f)?;
        let logits = empty(rows * v)?;
        let shares = empty(MOST_STEPS * rows)?;
        let integers = |count: usize| Tensor::<1, Int>::zeros([count], (&device, DType::I32));
        let state = Buffer::of_ints(&integers(rows * ROW_WORDS))?;
        let seen = Buffer::of_ints(&integers(rows * seen_words(v)))?;
        let tokens = integers(MOST_STEPS * rows);
        let (cos, sin) = model.angles();
        let (cos, sin) = (Buffer::of(cos)?, Buffer::of(sin)?);

        let mut program = Program::new(chosen());
        for block in &model.embed_tokens.weight {
            program.embed(rows, &state, &Weight::of(&block.tensor)?, block.first_row, &x);
        }
        // Where rows are few, every product of a layer is joined with what is before or behind it; where they are many, the
        // kernels are those that read a weight once for all of them. Adapters and weights of 4 bits stand apart, too.
        let wide = [rows * attended, rows * heads.groups * heads.e];
        let parts_of_qkv = [(0, wide[0]), (wide[0], wide[1]), (wide[0] + wide[1], wide[1])].map(|(first, count)| qkv.part(first, count));
        let layers = model.layers.iter().map(projections).collect::<Result<Vec<_>>>()?;
        let plain = layers.iter().flatten().all(|projection| projection.plain().is_some()) && model.layers.iter().all(alike);
        let rank = layers.iter().flatten().map(Projection::rank).max().unwrap_or(0);
        let separate = match parts_of_qkv {
            [Some(q), Some(k), Some(v)] if rows > FEW_ROWS || !plain => Some(Separate {
                qkv: [q, k, v],
                normed: empty(rows * d)?,
                scales: empty(rows)?,
                gate: empty(rows * f)?,
                up: empty(rows * f)?,
                product: empty(rows * d)?,
                low: empty(rows * rank.max(1))?,
            }),
            _ if !plain => return Err(Error::Internal("an adapter in a decoder without room for it".into())),
            _ => None,
        };
        for (i, (layer, weights)) in model.layers.iter().zip(&layers).enumerate() {
            let norms = [&layer.input_layernorm, &layer.post_attention_layernorm].map(|norm| Buffer::of(&norm.weight.tensor));
            let [input_norm, post_norm] = norms;
            let (input_norm, post_norm) = (input_norm?, post_norm?);
            let (keys, values) = cache.layer(i);
            let (keys, values) = (Buffer::of(keys)?, Buffer::of(values)?);
            let [q, k, v, o, gate, up, down] = weights;
            match &separate {
                Some(own) => {
                    program.norm([rows, d], &x, &input_norm, eps, &own.normed, &own.scales);
                    for (w, y) in [q, k, v].into_iter().zip(&own.qkv) {
                        program.project(rows, [&x, &input_norm, &own.normed, &own.low], eps, w, y);
                    }
                }
                None => {
                    let weights = [q, k, v].map(|w| w.plain().expect("nothing else"));
                    program.norm_qkv(rows, &x, &input_norm, eps, weights, &qkv);
                }
            }
            program.rope(heads, &qkv, [&cos, &sin], &state, [&keys, &values]);
            program.attention(heads, &qkv, &state, [&keys, &values], &parts);
            program.combine(heads, &parts, &attention);
            match &separate {
                Some(own) => {
                    program.add_project(rows, [&attention, &own.product, &own.low], o, (&x, d));
                    program.norm([rows, d], &x, &post_norm, eps, &own.normed, &own.scales);
                    for (w, y) in [(gate, &own.gate), (up, &own.up)] {
                        program.project(rows, [&x, &post_norm, &own.normed, &own.low], eps, w, y);
                    }
                    program.swiglu(rows * f, &own.gate, &own.up, &hidden);
                    program.add_project(rows, [&hidden, &own.product, &own.low], down, (&x, d));
                }
                None => {
                    let [o, gate, up, down] = [o, gate, up, down].map(|w| w.plain().expect("nothing else"));
                    program.residual(rows, &attention, o, &x);
                    program.gate_up(rows, &x, &post_norm, eps, gate, up, &hidden);
                    program.residual(rows, &hidden, down, &x);
                }
            }
        }
        let norm = Buffer::of(&model.norm.weight.tensor)?;
        match (&separate, head(model).weight.as_slice()) {
            (Some(own), [table]) if rows > FEW_ROWS => {
                program.norm([rows, d], &x, &norm, eps, &own.normed, &own.scales);
                program.linear(rows, &own.normed, &Weight::of(&table.tensor)?, &logits);
            }
            (_, blocks) => {
                for block in blocks {
                    program.norm_linear(rows, &x, &norm, eps, &Weight::of(&block.tensor)?, &logits, [v, block.first_row]);
                }
            }
        }
        let draw = Draw {
            greedy: sampling.greedy,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
        };
        program.sample([rows, v], draw, &logits, &shares, &seen, &state, &Buffer::of_ints(&tokens)?);
        Ok(Self { program, rows, state, shares, seen, tokens, vocab: v, draw })
    }

    /// Writes `steps` tokens of every row, `[steps, rows]`; what a row writes after its end is for the caller to drop.
    /// `rows` and their random numbers come in the order of the cache; greedy decoding draws none.
    ///
    /// # Errors
    /// [`Error::Data`] for logits that are no numbers; where the device failed.
    pub async fn write(
        &mut self,
        cache: &mut KvCache,
        rows: &[Standing<'_>],
        randoms: &mut [&mut Random],
        steps: usize,
    ) -> Result<Vec<u32>> {
        assert!(rows.len() == self.rows && (1..=MOST_STEPS).contains(&steps), "{} rows, {steps} steps", rows.len());
        let newest = |row: &Standing| row.tokens.last().copied().unwrap_or(0);
        let state: Vec<u32> = rows.iter().flat_map(|row| [newest(row), cache.len as u32, row.start as u32, 0]).collect();
        self.state.write(&state);
        if !(self.draw.greedy || self.draw.temperature == 0.0) {
            let share = |random: &mut Random| (random.f64() as f32).min(1.0 - f32::EPSILON / 2.0).to_bits();
            let by_row: Vec<Vec<u32>> = randoms.iter_mut().map(|random| (0..steps).map(|_| share(random)).collect()).collect();
            let shares: Vec<u32> = (0..steps).flat_map(|step| by_row.iter().map(move |row| row[step])).collect();
            self.shares.write(&shares);
        }
        if self.draw.repetition_penalty != 1.0 {
            let mut seen = vec![0u32; rows.len() * seen_words(self.vocab)];
            for (row, bits) in rows.iter().zip(seen.chunks_mut(seen_words(self.vocab))) {
                row.tokens.iter().filter(|id| (**id as usize) < self.vocab).for_each(|id| bits[*id as usize / 32] |= 1 << (id % 32));
            }
            self.seen.write(&seen);
        }
        self.program.submit(steps)?;
        cache.advance(steps);
        let drawn = self.tokens.clone().into_data_async().await.map_err(|e| failed(&e))?;
        let drawn: Vec<i32> = drawn.try_to_vec().map_err(|e| Error::Internal(format!("reading tokens: {e:?}")))?;
        let drawn: Vec<u32> = drawn.into_iter().take(steps * rows.len()).map(|id| id as u32).collect();
        if drawn.contains(&BROKEN) {
            let advice = "its weights or its precision are broken: try --device cpu, or another checkpoint";
            return Err(Error::Data(format!("the model gave logits that are no numbers; {advice}")));
        }
        Ok(drawn)
    }
}
