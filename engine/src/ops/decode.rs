//! The dispatches that make one token for every row, by kernels that join what a layer does one after the other.
//!
//! Weights are f32, f16 or 4 bits `[out, in]` as they are stored, with adapters or without; what lies between the dispatches are burn's tensors.

use burn::tensor::{DType, Tensor};
use smolforge_shaders::{
    DECODE_ADD, DECODE_ATTENTION, DECODE_ATTENTION_LANES, DECODE_COMBINE, DECODE_EMBED, DECODE_GATE_UP, DECODE_GATE_UP_LANES,
    DECODE_NORM_LINEAR, DECODE_NORM_LINEAR_LANES, DECODE_RESIDUAL, DECODE_RESIDUAL_LANES, DECODE_ROPE, DECODE_SAMPLE, LINEAR, LINEAR_F16,
    LINEAR_F16_LANES, LINEAR_F16_ROW, LINEAR_LANES, LINEAR_ROW, RMS_NORM, SWIGLU,
};

use super::launch::row_groups;
use super::linear_nf4::{self, Nf4Buffers, Nf4Weight};
use super::product::{self, Kernels};
use super::program::{Buffer, Program};
use super::rms_norm;
use crate::error::Result;

/// Most rows that kernels take which join products with what is before or behind them: these read a weight once a row.
pub const FEW_ROWS: usize = 4;
/// Numbers that kernels read of a row of a weight at once.
const WIDE: usize = 8;
/// Most query heads of a key/value head, and most numbers of a head, that the attention kernel has room for.
const MOST_HEADS: usize = 8;
const MOST_HEAD_DIM: usize = 128;
/// Words of the state of a row: newest token, its column of the cache, the column in which its text begins, tokens drawn.
pub const ROW_WORDS: usize = 4;

/// A weight `[out, in]`, ready to be read.
pub struct Weight {
    buffer: Buffer,
    half: bool,
    /// `[out, in]`.
    pub dims: [usize; 2],
}

impl Weight {
    /// Of f32 or f16.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn of(tensor: &Tensor<2>) -> Result<Self> {
        Ok(Self { buffer: Buffer::of(tensor)?, half: tensor.dtype() == DType::F16, dims: tensor.dims() })
    }
}

/// A weight of any kind, and what an adapter adds to its products.
pub struct Projection {
    weight: Stored,
    lora: Option<LowRank>,
}

#[allow(clippy::large_enum_variant)] // buffers are large, and there are a few hundred
enum Stored {
    Dense(Weight),
    Nf4(Nf4Buffers),
}

/// `y ← y + (x·aᵀ)·bᵀ`.
struct LowRank {
    /// `[r, in]`.
    a: Weight,
    /// `[out, r]`, times the adapter's scale.
    b: Weight,
}

impl Projection {
    /// Of a weight as a checkpoint holds it.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn dense(weight: &Tensor<2>) -> Result<Self> {
        Ok(Self { weight: Stored::Dense(Weight::of(weight)?), lora: None })
    }

    /// Of a weight of 4 bits.
    ///
    /// # Errors
    /// As [`Projection::dense`].
    pub fn nf4(weight: &Nf4Weight) -> Result<Self> {
        Ok(Self { weight: Stored::Nf4(Nf4Buffers::of(weight)?), lora: None })
    }

    /// With `scale·(x·aᵀ)·bᵀ` added; `a`: `[r, in]`, `b`: `[out, r]`.
    ///
    /// # Errors
    /// As [`Projection::dense`].
    pub fn with_lora(mut self, a: &Tensor<2>, b: &Tensor<2>, scale: f64) -> Result<Self> {
        self.lora = Some(LowRank { a: Weight::of(a)?, b: Weight::of(&(b.clone() * scale))? });
        Ok(self)
    }

    /// The weight, where there is nothing else and it is not of 4 bits.
    pub fn plain(&self) -> Option<&Weight> {
        match (&self.weight, &self.lora) {
            (Stored::Dense(weight), None) => Some(weight),
            _ => None,
        }
    }

    /// Rank of the adapter, 0 without one.
    pub fn rank(&self) -> usize {
        self.lora.as_ref().map_or(0, |lora| lora.a.dims[0])
    }
}

/// Whether the kernels read rows of a weight `[out, in]`.
pub fn serves([out, columns]: [usize; 2]) -> bool {
    out.is_multiple_of(4) && columns.is_multiple_of(WIDE)
}

/// Whether the attention kernel has room for so many heads of such a size.
pub fn serves_heads(heads: usize, groups: usize, e: usize) -> bool {
    e.is_multiple_of(4) && e <= MOST_HEAD_DIM && heads / groups <= MOST_HEADS
}

/// Sizes of an attention dispatch.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Sequences.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub groups: usize,
    /// Head size.
    pub e: usize,
    /// Columns of the cache.
    pub capacity: usize,
    /// Runs into which the keys are split.
    pub splits: usize,
}

impl Heads {
    /// Numbers that the attention kernel leaves for [`Program::combine`].
    pub fn parts(self) -> usize {
        self.rows * self.heads * self.splits * (self.e + 2)
    }
}

/// How the next token is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Take the likeliest.
    pub greedy: bool,
    /// See [`crate::protocol::Sampling`].
    pub temperature: f32,
    /// See [`crate::protocol::Sampling`].
    pub top_k: usize,
    /// See [`crate::protocol::Sampling`].
    pub top_p: f32,
    /// See [`crate::protocol::Sampling`].
    pub min_p: f32,
    /// See [`crate::protocol::Sampling`].
    pub repetition_penalty: f32,
}

/// Words in which a bit for every token has room.
pub fn seen_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

fn groups_of_threads(count: usize) -> (u32, u32) {
    row_groups(count.div_ceil(64))
}

impl Program {
    fn lanes(&self) -> bool {
        self.kernels == Kernels::Lanes
    }

    /// `x: [rows, d]` = rows of `table`, which holds those from `first` on, of the newest tokens of `state`.
    pub fn embed(&mut self, rows: usize, state: &Buffer, table: &Weight, first: usize, x: &Buffer) {
        let [count, d] = table.dims;
        let params = [rows, d / WIDE, usize::from(table.half), first, count, 0, 0, 0].map(|word| word as u32);
        self.add(DECODE_EMBED, groups_of_threads(rows * d / WIDE), &[state, &table.buffer, x], &params);
    }

    /// `y[.., first..] = norm(x)·wᵀ`, where a row of `y` has `width` numbers.
    pub fn norm_linear(&mut self, rows: usize, x: &Buffer, norm: &Buffer, eps: f64, w: &Weight, y: &Buffer, [width, first]: [usize; 2]) {
        let outputs = [w.dims[0], 0, 0];
        self.norm_linears(rows, x, norm, eps, [w, w, w], outputs, y, [width, first]);
    }

    /// Queries, keys and values of `norm(x)`, `[rows, out]` each, one after the other in `qkv`.
    pub fn norm_qkv(&mut self, rows: usize, x: &Buffer, norm: &Buffer, eps: f64, weights: [&Weight; 3], qkv: &Buffer) {
        self.norm_linears(rows, x, norm, eps, weights, weights.map(|weight| weight.dims[0]), qkv, [0, 0]);
    }

    fn norm_linears(
        &mut self,
        rows: usize,
        x: &Buffer,
        norm: &Buffer,
        eps: f64,
        weights: [&Weight; 3],
        outputs: [usize; 3],
        y: &Buffer,
        [width, first]: [usize; 2],
    ) {
        let Weight { half, dims: [_, columns], .. } = *weights[0];
        assert!(weights.iter().all(|weight| weight.half == half), "weights of one kind");
        let [b, k8, width, first] = [rows, columns / WIDE, width, first].map(|word| word as u32);
        let [q, k, v] = outputs.map(|out| out as u32);
        let params = [b, k8, q, k, v, u32::from(half), (eps as f32).to_bits(), width, first, 0, 0, 0];
        let buffers = [x, norm, &weights[0].buffer, &weights[1].buffer, &weights[2].buffer, y];
        let (kernel, at_once) = if self.lanes() { (DECODE_NORM_LINEAR_LANES, 4) } else { (DECODE_NORM_LINEAR, 16) };
        self.add(kernel, row_groups(rows * outputs.iter().sum::<usize>().div_ceil(at_once)), &buffers, &params);
    }

    /// Turns queries and keys of `qkv`, as [`Program::norm_qkv`] leaves them, and writes keys and values into the cache.
    pub fn rope(&mut self, heads: Heads, qkv: &Buffer, rope: [&Buffer; 2], state: &Buffer, cache: [&Buffer; 2]) {
        let Heads { rows, heads, groups, e, capacity, .. } = heads;
        let params = [rows, heads, groups, e / 2, capacity, 0, 0, 0].map(|word| word as u32);
        let buffers = [qkv, rope[0], rope[1], state, cache[0], cache[1]];
        self.add(DECODE_ROPE, groups_of_threads(rows * (heads + groups) * e / 2), &buffers, &params);
    }

    /// Leaves parts of the attention of the queries at the beginning of `qkv` in `parts`.
    pub fn attention(&mut self, heads: Heads, qkv: &Buffer, state: &Buffer, cache: [&Buffer; 2], parts: &Buffer) {
        let Heads { rows, heads, groups, e, capacity, splits } = heads;
        let scale = (e as f32).powf(-0.5).to_bits();
        let [b, h, g, e4, c, s] = [rows, heads, groups, e / 4, capacity, splits].map(|word| word as u32);
        let (kernel, of_group) = match self.lanes() {
            true => (DECODE_ATTENTION_LANES, (heads / groups).div_ceil(4) * e.div_ceil(64)),
            false => (DECODE_ATTENTION, 1),
        };
        let buffers = [qkv, cache[0], cache[1], state, parts];
        self.add(kernel, row_groups(rows * groups * splits * of_group), &buffers, &[b, h, g, e4, c, s, scale, 0]);
    }

    /// Joins the parts to `y: [rows, heads·e]`.
    pub fn combine(&mut self, heads: Heads, parts: &Buffer, y: &Buffer) {
        let count = heads.rows * heads.heads;
        let params = [count, heads.e, heads.splits, 0].map(|word| word as u32);
        self.add(DECODE_COMBINE, groups_of_threads(count * heads.e), &[parts, y], &params);
    }

    /// `h = silu(norm(x)·gateᵀ) · (norm(x)·upᵀ)`.
    pub fn gate_up(&mut self, rows: usize, x: &Buffer, norm: &Buffer, eps: f64, gate: &Weight, up: &Weight, h: &Buffer) {
        assert_eq!((gate.half, gate.dims), (up.half, up.dims), "weights of one kind");
        let [out, columns] = gate.dims;
        let [b, k8, out] = [rows, columns / WIDE, out].map(|word| word as u32);
        let params = [b, k8, out, u32::from(gate.half), (eps as f32).to_bits(), 0, 0, 0];
        let (kernel, at_once) = if self.lanes() { (DECODE_GATE_UP_LANES, 4) } else { (DECODE_GATE_UP, 8) };
        self.add(kernel, row_groups(rows * gate.dims[0].div_ceil(at_once)), &[x, norm, &gate.buffer, &up.buffer, h], &params);
    }

    /// `x ← x + y·wᵀ`.
    pub fn residual(&mut self, rows: usize, y: &Buffer, w: &Weight, x: &Buffer) {
        let [out, columns] = w.dims;
        let params = [rows, columns / WIDE, out, usize::from(w.half)].map(|word| word as u32);
        let (kernel, at_once) = if self.lanes() { (DECODE_RESIDUAL_LANES, 4) } else { (DECODE_RESIDUAL, 16) };
        self.add(kernel, row_groups(rows * out.div_ceil(at_once)), &[y, &w.buffer, x], &params);
    }

    /// `y = norm(x)`; `scales` has room for a number a row.
    pub fn norm(&mut self, [rows, d]: [usize; 2], x: &Buffer, norm: &Buffer, eps: f64, y: &Buffer, scales: &Buffer) {
        let params = [rows as u32, d as u32, (eps as f32).to_bits(), 0];
        self.add(RMS_NORM, row_groups(rows.div_ceil(rms_norm::ROWS)), &[x, norm, y, scales], &params);
    }

    /// `y = norm(x)·wᵀ` with what the adapter adds, where `normed` is `norm(x)`; `low` has room for its rank a row.
    pub fn project(&mut self, rows: usize, [x, norm, normed, low]: [&Buffer; 4], eps: f64, w: &Projection, y: &Buffer) {
        match &w.weight {
            Stored::Dense(weight) if rows <= FEW_ROWS => self.norm_linear(rows, x, norm, eps, weight, y, [weight.dims[0], 0]),
            Stored::Dense(weight) => self.linear(rows, normed, weight, y),
            Stored::Nf4(weight) => self.linear_nf4(rows, normed, weight, y),
        }
        self.adapt(rows, normed, w, low, y);
    }

    /// `x ← x + y·wᵀ` with what the adapter adds; `product` has room for a row of `x` each.
    pub fn add_project(&mut self, rows: usize, [y, product, low]: [&Buffer; 3], w: &Projection, (x, d): (&Buffer, usize)) {
        match &w.weight {
            Stored::Dense(weight) if rows <= FEW_ROWS => self.residual(rows, y, weight, x),
            stored => {
                match stored {
                    Stored::Dense(weight) => self.linear(rows, y, weight, product),
                    Stored::Nf4(weight) => self.linear_nf4(rows, y, weight, product),
                }
                self.add_rows(rows * d, product, x);
            }
        }
        self.adapt(rows, y, w, low, x);
    }

    fn adapt(&mut self, rows: usize, x: &Buffer, w: &Projection, low: &Buffer, y: &Buffer) {
        if let Some(LowRank { a, b }) = &w.lora {
            self.linear(rows, x, a, low);
            self.residual(rows, low, b, y);
        }
    }

    fn linear_nf4(&mut self, rows: usize, x: &Buffer, w: &Nf4Buffers, y: &Buffer) {
        let (kernel, groups) = linear_nf4::kernel(rows, w.out);
        self.add(kernel, row_groups(groups), &[x, &w.codes, &w.absmax, &w.nested, y], &w.params(rows));
    }

    /// `y = x·wᵀ`.
    pub fn linear(&mut self, rows: usize, x: &Buffer, w: &Weight, y: &Buffer) {
        let [out, columns] = w.dims;
        let most = if self.lanes() { FEW_ROWS } else { product::FEW_ROWS };
        if rows <= most {
            let (kernel, wide) = if w.half { (LINEAR_F16_ROW, 8) } else { (LINEAR_ROW, 4) };
            let params = [rows, out, columns / wide, 0].map(|word| word as u32);
            return self.add(kernel, row_groups(rows * out.div_ceil(product::ROW_OUTPUTS)), &[x, &w.buffer, y], &params);
        }
        let (kernel, tile) = match (w.half, self.lanes()) {
            (true, true) => (LINEAR_F16_LANES, 32),
            (true, false) => (LINEAR_F16, 64),
            (false, true) => (LINEAR_LANES, 32),
            (false, false) => (LINEAR, 64),
        };
        let params = [rows, out, columns / 4, 0].map(|word| word as u32);
        self.add(kernel, row_groups(rows.div_ceil(tile) * out.div_ceil(tile)), &[x, &w.buffer, y], &params);
    }

    /// `h = silu(gate)·up`, `count` numbers.
    pub fn swiglu(&mut self, count: usize, gate: &Buffer, up: &Buffer, h: &Buffer) {
        self.add(SWIGLU, groups_of_threads(count / 4), &[gate, up, h], &[(count / 4) as u32, 0, 0, 0]);
    }

    /// `x ← x + y`, `count` numbers.
    pub fn add_rows(&mut self, count: usize, y: &Buffer, x: &Buffer) {
        self.add(DECODE_ADD, groups_of_threads(count / 4), &[y, x], &[(count / 4) as u32, 0, 0, 0]);
    }

    /// Draws a token for every row of `logits: [rows, vocab]` by `shares: [steps, rows]` into `tokens: [steps, rows]`, notes
    /// it in `seen: [rows, seen_words]`, and moves `state` on.
    pub fn sample(
        &mut self,
        [rows, vocab]: [usize; 2],
        draw: Draw,
        logits: &Buffer,
        shares: &Buffer,
        seen: &Buffer,
        state: &Buffer,
        tokens: &Buffer,
    ) {
        let greedy = u32::from(draw.greedy || draw.temperature == 0.0);
        let [b, v, top_k, words] = [rows, vocab, draw.top_k, seen_words(vocab)].map(|word| word as u32);
        let numbers = [draw.top_p, draw.min_p, draw.temperature, draw.repetition_penalty].map(f32::to_bits);
        let params = [b, v, greedy, top_k, numbers[0], numbers[1], numbers[2], numbers[3], words, 0, 0, 0];
        self.add(DECODE_SAMPLE, (rows as u32, 1), &[logits, shares, seen, state, tokens], &params);
    }
}
