//! Head and cross-entropy together: logits exist a chunk at a time.

use rayon::prelude::*;

use super::matmul::{Rows, View, linear_dx_to, linear_to, matmul};
use super::simd::{exp, max, vectorized};

/// Losses per token and, where asked for, gradients of the hidden states and of the head.
pub struct Losses {
    /// Negative log-likelihood of every target, 0 where it is ignored: `[n]`.
    pub nll: Vec<f32>,
    /// 1 where no id is likelier than the target: `[n]`.
    pub hits: Vec<f32>,
    /// `d(scale·Σ nll)/dh: [n, d]`.
    pub dh: Option<Vec<f32>>,
    /// `d(scale·Σ nll)/dw: [v, d]`.
    pub dw: Option<Vec<f32>>,
}

/// `nll[i] = logsumexp(h[i]·wᵀ) − h[i]·w[target[i]]` for `w: [v, d]`; targets below 0 are ignored. With a `scale` there are
/// gradients, that of `w` only where it is `trained`.
pub fn linear_cross_entropy(
    h: &[f32],
    w: &impl Rows,
    targets: &[i32],
    [v, d]: [usize; 2],
    chunk: usize,
    scale: Option<f32>,
    trained: bool,
) -> Losses {
    let n = targets.len();
    let (mut nll, mut hits) = (vec![0.0; n], vec![0.0; n]);
    let mut dh = scale.map(|_| vec![0.0; n * d]);
    let mut dw = scale.filter(|_| trained).map(|_| vec![0.0; v * d]);
    let mut logits = vec![0.0; chunk.min(n) * v];
    for first in (0..n).step_by(chunk) {
        let rows = chunk.min(n - first);
        let h_chunk = &h[first * d..][..rows * d];
        let logits = &mut logits[..rows * v];
        linear_to(logits, h_chunk, w, rows, d, v);
        let of = first..first + rows;
        let tasks = logits.par_chunks_mut(v).zip(&mut nll[of.clone()]).zip(&mut hits[of.clone()]).zip(&targets[of]);
        tasks.for_each(|(((row, nll), hit), target)| {
            vectorized(
                #[inline(always)]
                || softmax_row(row, nll, hit, *target, scale),
            )
        });
        if let Some(dh) = &mut dh {
            linear_dx_to(&mut dh[first * d..][..rows * d], logits, w, rows, d, v);
        }
        if let Some(dw) = &mut dw {
            matmul(dw, d, View::new(logits, rows, v).t(), View::new(h_chunk, rows, d), 1.0, first > 0, true);
        }
    }
    Losses { nll, hits, dh, dw }
}

/// Turns a row of logits into the gradient `scale·(softmax − onehot)` and notes its loss.
#[inline(always)]
fn softmax_row(row: &mut [f32], nll: &mut f32, hit: &mut f32, target: i32, scale: Option<f32>) {
    if target < 0 {
        *nll = 0.0;
        row.fill(0.0);
        return;
    }
    let target = target as usize;
    let (largest, at_target) = (max(row), row[target]);
    *hit = if at_target >= largest { 1.0 } else { 0.0 };
    let mut sums = [0.0f32; 16];
    let (blocks, rest) = row.as_chunks_mut::<16>();
    for block in blocks {
        for lane in 0..16 {
            block[lane] = exp(block[lane] - largest);
            sums[lane] += block[lane];
        }
    }
    let mut total: f32 = sums.iter().sum();
    for x in rest {
        *x = exp(*x - largest);
        total += *x;
    }
    *nll = total.ln() + largest - at_target;
    if let Some(scale) = scale {
        let factor = scale / total;
        for x in row.iter_mut() {
            *x *= factor;
        }
        row[target] -= scale;
    }
}
