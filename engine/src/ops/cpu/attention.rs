//! Causal attention with grouped key/value heads; scores exist for 64 queries of one head at a time.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::matmul::{View, matmul, matmul_to};
use super::simd::{add_scaled, dot, exp, max, short_dot, sum, vectorized};
use super::tensor::Disjoint;
use crate::ops::attention::Shape;

/// Queries in a block: their scores stay in the cache.
const QUERIES: usize = 64;

/// Inputs shared by both directions. `q: [b·t, h·e]`, `k`, `v`: `[b·capacity, g·e]`,
/// `starts: [b·t]` the first key each query may see.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// First visible key of every query.
    pub starts: &'a [i32],
    /// Sizes.
    pub shape: Shape,
}

impl Inputs<'_> {
    /// Keys that a block of queries can see: from the earliest start to the last query's own key.
    fn keys(&self, batch: usize, first: usize, rows: usize) -> Range<usize> {
        let starts = &self.starts[batch * self.shape.t + first..][..rows];
        let from = starts.iter().copied().min().unwrap_or(0).max(0) as usize;
        from..self.shape.offset + first + rows
    }

    fn head<'a>(&self, of: &'a [f32], row: usize, head: usize, width: usize, rows: usize) -> View<'a> {
        let e = self.shape.e;
        View::strided(&of[row * width + head * e..], rows, e, width)
    }

    /// Scaled, masked scores of a block: `scores[r, key − keys.start]`.
    fn scores(&self, scores: &mut [f32], batch: usize, head: usize, first: usize, rows: usize, keys: &Range<usize>) {
        let Shape { t, h, g, e, capacity, .. } = self.shape;
        let q = self.head(self.q, batch * t + first, head, h * e, rows);
        let k = self.head(self.k, batch * capacity + keys.start, head / (h / g), g * e, keys.len());
        matmul(scores, keys.len(), q, k.t(), (e as f32).powf(-0.5), false, false);
    }

    /// Columns of a block's scores that query `first + row` sees.
    fn visible(&self, batch: usize, first: usize, row: usize, keys: &Range<usize>) -> Range<usize> {
        let start = self.starts[batch * self.shape.t + first + row].max(0) as usize;
        start.max(keys.start) - keys.start..self.shape.offset + first + row + 1 - keys.start
    }
}

/// `o = softmax(q·kᵀ/√e)·v` as `[b·t, h·e]`, and the log-sum-exp of every row as `[b·t·h]`.
pub fn attention(inputs: Inputs) -> (Vec<f32>, Vec<f32>) {
    let Shape { b, t, h, g, e, capacity, .. } = inputs.shape;
    if t == 1 {
        return single_queries(inputs);
    }
    let mut out = vec![0.0; b * t * h * e];
    let mut lse = vec![0.0; b * t * h];
    let (out_shared, lse_shared) = (Disjoint::new(&mut out), Disjoint::new(&mut lse));
    (0..b * h).into_par_iter().for_each(|task| {
        let (batch, head) = (task / h, task % h);
        let mut scores = Vec::new();
        for first in (0..t).step_by(QUERIES) {
            let rows = QUERIES.min(t - first);
            let keys = inputs.keys(batch, first, rows);
            scores.resize(rows * keys.len(), 0.0);
            inputs.scores(&mut scores, batch, head, first, rows, &keys);
            for (row, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
                let at = (batch * t + first + row) * h + head;
                // SAFETY: one task per batch and head writes this element.
                let lse = unsafe { lse_shared.piece(at, 1) };
                lse[0] = vectorized(
                    #[inline(always)]
                    || softmax(scores, inputs.visible(batch, first, row, &keys)),
                );
            }
            let offset = (batch * t + first) * h * e + head * e;
            let p = View::new(&scores, rows, keys.len());
            let v = inputs.head(inputs.v, batch * capacity + keys.start, head / (h / g), g * e, keys.len());
            let out = out_shared.pointer(offset, (rows - 1) * h * e + e);
            // SAFETY: one task per batch and head writes these columns.
            unsafe { matmul_to(out, h * e, p, v, 1.0, false, false) };
        }
    });
    (out, lse)
}

/// Keys that a task reads for the single queries of a sequence.
const KEYS: usize = 64;

/// As [`attention`] for one query a sequence. Tasks own ranges of keys, so that every row of the cache is read once, in
/// order, and serves all heads (Dao et al. 2023, "Flash-Decoding").
fn single_queries(inputs: Inputs) -> (Vec<f32>, Vec<f32>) {
    let Shape { b, h, g, e, capacity, .. } = inputs.shape;
    let ranges = |batch: usize| {
        let keys = inputs.keys(batch, 0, 1);
        keys.clone().step_by(KEYS).map(move |first| (batch, first..keys.end.min(first + KEYS)))
    };
    let tasks: Vec<(usize, Range<usize>)> = (0..b).flat_map(ranges).collect();
    let parts: Vec<Part> = tasks
        .into_par_iter()
        .map(|(batch, keys)| {
            let rows = (batch * capacity + keys.start) * g * e..(batch * capacity + keys.end) * g * e;
            let q = &inputs.q[batch * h * e..][..h * e];
            pulp::Arch::new().dispatch(Query { batch, q, k: &inputs.k[rows.clone()], v: &inputs.v[rows], shape: inputs.shape })
        })
        .collect();
    let mut out = vec![0.0; b * h * e];
    let mut lse = vec![0.0; b * h];
    let parts: Vec<&[Part]> = parts.chunk_by(|a, b| a.batch == b.batch).collect();
    let tasks = parts.into_par_iter().zip(out.par_chunks_mut(h * e)).zip(lse.par_chunks_mut(h)).with_min_len(8);
    tasks.for_each(|((parts, out), lse)| {
        vectorized(
            #[inline(always)]
            || together(parts, out, lse),
        );
    });
    (out, lse)
}

/// Puts the parts of a query together: `out: [h·e]` and the log-sum-exp of its heads.
#[inline(always)]
fn together(parts: &[Part], out: &mut [f32], lse: &mut [f32]) {
    let e = out.len() / lse.len();
    for (head, (out, lse)) in out.chunks_exact_mut(e).zip(lse).enumerate() {
        let mut largest = f32::NEG_INFINITY;
        for part in parts {
            largest = if part.largest[head] > largest { part.largest[head] } else { largest };
        }
        let mut total = 0.0;
        for part in parts {
            let weight = exp(part.largest[head] - largest);
            total += weight * part.total[head];
            for (out, x) in out.iter_mut().zip(&part.out[head * e..]) {
                *out += x * weight;
            }
        }
        for x in out.iter_mut() {
            *x /= total;
        }
        *lse = largest + total.ln();
    }
}

/// A query of all heads, `q: [h·e]`, and some keys and values: `k`, `v`: `[keys, g·e]`.
struct Query<'a> {
    batch: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    shape: Shape,
}

/// What some keys add to a query: with the scores `s` of a head, the largest, `Σ exp(s − largest)` and
/// `Σ exp(s − largest)·v`.
struct Part {
    batch: usize,
    largest: Vec<f32>,
    total: Vec<f32>,
    out: Vec<f32>,
}

impl WithSimd for Query<'_> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Part {
        let Shape { h, g, e, .. } = self.shape;
        let (width, scale) = (g * e, (e as f32).powf(-0.5));
        let keys = self.k.len() / width;
        let mut scores = vec![0.0; h * keys]; // [h, keys]
        for (key, k) in self.k.chunks_exact(width).enumerate() {
            for (head, q) in self.q.chunks_exact(e).enumerate() {
                scores[head * keys + key] = short_dot(simd, q, &k[head / (h / g) * e..][..e]) * scale;
            }
        }
        let (mut largest, mut total, mut out) = (vec![0.0; h], vec![0.0; h], vec![0.0; h * e]);
        for (head, scores) in scores.chunks_exact_mut(keys).enumerate() {
            largest[head] = max(scores);
            for x in scores.iter_mut() {
                *x = exp(*x - largest[head]);
            }
            total[head] = sum(scores, |x| x);
        }
        for (key, v) in self.v.chunks_exact(width).enumerate() {
            for (head, out) in out.chunks_exact_mut(e).enumerate() {
                add_scaled(simd, out, scores[head * keys + key], &v[head / (h / g) * e..][..e]);
            }
        }
        Part { batch: self.batch, largest, total, out }
    }
}

/// Softmax over the visible columns, 0 elsewhere; returns the log-sum-exp.
#[inline(always)]
fn softmax(scores: &mut [f32], visible: Range<usize>) -> f32 {
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let seen = &mut scores[visible];
    let largest = max(seen);
    for x in seen.iter_mut() {
        *x = exp(*x - largest);
    }
    let total = sum(seen, |x| x);
    let inverse = 1.0 / total;
    for x in seen.iter_mut() {
        *x *= inverse;
    }
    largest + total.ln()
}

/// Gradients of `q`, `k` and `v` (Dao et al. 2022, algorithm 4): probabilities are computed again from
/// the log-sum-exp.
pub fn attention_backward(inputs: Inputs, dout: &[f32], out: &[f32], lse: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Shape { b, t, h, g, e, capacity, .. } = inputs.shape;
    let (mut dq, mut dk, mut dv) = (vec![0.0; b * t * h * e], vec![0.0; b * capacity * g * e], vec![0.0; b * capacity * g * e]);
    let (dq_shared, dk_shared, dv_shared) = (Disjoint::new(&mut dq), Disjoint::new(&mut dk), Disjoint::new(&mut dv));
    let scale = (e as f32).powf(-0.5);
    (0..b * g).into_par_iter().for_each(|task| {
        let (batch, group) = (task / g, task % g);
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        for head in group * (h / g)..(group + 1) * (h / g) {
            for first in (0..t).step_by(QUERIES) {
                let rows = QUERIES.min(t - first);
                let keys = inputs.keys(batch, first, rows);
                p.resize(rows * keys.len(), 0.0);
                dp.resize(rows * keys.len(), 0.0);
                inputs.scores(&mut p, batch, head, first, rows, &keys);
                let row0 = batch * t + first;
                let (query, key) = (row0 * h * e + head * e, (batch * capacity + keys.start) * g * e + group * e);
                let q = inputs.head(inputs.q, row0, head, h * e, rows);
                let k = inputs.head(inputs.k, batch * capacity + keys.start, group, g * e, keys.len());
                let v = inputs.head(inputs.v, batch * capacity + keys.start, group, g * e, keys.len());
                let dout_view = inputs.head(dout, row0, head, h * e, rows);
                matmul(&mut dp, keys.len(), dout_view, v.t(), 1.0, false, false);
                for row in 0..rows {
                    let visible = inputs.visible(batch, first, row, &keys);
                    let at = (row0 + row) * h + head;
                    let (o, d) = (&out[at * e..][..e], &dout[at * e..][..e]);
                    let (p, dp) = (&mut p[row * keys.len()..][..keys.len()], &mut dp[row * keys.len()..][..keys.len()]);
                    vectorized(
                        #[inline(always)]
                        || {
                            let delta = dot(o, d);
                            p[..visible.start].fill(0.0);
                            p[visible.end..].fill(0.0);
                            dp[..visible.start].fill(0.0);
                            dp[visible.end..].fill(0.0);
                            for i in visible.clone() {
                                p[i] = exp(p[i] - lse[at]);
                                dp[i] = p[i] * (dp[i] - delta);
                            }
                        },
                    );
                }
                let (p, ds) = (View::new(&p, rows, keys.len()), View::new(&dp, rows, keys.len()));
                let key_len = (keys.len() - 1) * g * e + e;
                let (dk, dv) = (dk_shared.pointer(key, key_len), dv_shared.pointer(key, key_len));
                let dq = dq_shared.pointer(query, (rows - 1) * h * e + e);
                // SAFETY: a task owns the columns of its key/value head and of the query heads it serves.
                unsafe {
                    matmul_to(dv, g * e, p.t(), dout_view, 1.0, true, false);
                    matmul_to(dq, h * e, ds, k, scale, false, false);
                    matmul_to(dk, g * e, ds.t(), q, scale, true, false);
                }
            }
        }
    });
    (dq, dk, dv)
}
