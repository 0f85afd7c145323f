//! Root-mean-square normalisation, forward and backward.

use rayon::prelude::*;

use super::simd::{dot, sum, vectorized};

const ROWS: usize = 16;

/// `y = x · r · w` with `r = 1/√(mean(x²) + eps)` per row of `d`; also returns `r`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let mut y = vec![0.0; x.len()];
    let mut scales = vec![0.0; x.len() / d];
    let tasks = y.par_chunks_mut(ROWS * d).zip(scales.par_chunks_mut(ROWS)).zip(x.par_chunks(ROWS * d));
    tasks.for_each(|((y, scales), x)| {
        vectorized(
            #[inline(always)]
            || {
                for ((y, r), x) in y.chunks_exact_mut(d).zip(scales).zip(x.chunks_exact(d)) {
                    *r = 1.0 / (sum(x, |v| v * v) / d as f32 + eps).sqrt();
                    for i in 0..d {
                        y[i] = x[i] * *r * w[i];
                    }
                }
            },
        );
    });
    (y, scales)
}

/// Gradients of `x` and `w`: `dx = r·(dy·w − x·r²·mean(dy·w·x))`, `dw = Σ_rows dy·x·r`, which is empty unless it is wanted.
pub fn rms_norm_backward(dy: &[f32], x: &[f32], w: &[f32], scales: &[f32], of_w: bool) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let wanted = if of_w { d } else { 0 };
    let mut dx = vec![0.0; x.len()];
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(ROWS * d)
        .enumerate()
        .map(|(block, dx)| {
            let mut dw = vec![0.0; wanted];
            let mut dyw = vec![0.0; d];
            vectorized(
                #[inline(always)]
                || {
                    for (row, dx) in dx.chunks_exact_mut(d).enumerate() {
                        let row = block * ROWS + row;
                        let (x, dy, r) = (&x[row * d..][..d], &dy[row * d..][..d], scales[row]);
                        for i in 0..d {
                            dyw[i] = dy[i] * w[i];
                        }
                        for (dw, (dy, x)) in dw.iter_mut().zip(dy.iter().zip(x)) {
                            *dw += dy * x * r;
                        }
                        let mean = dot(&dyw, x) / d as f32 * r * r;
                        for i in 0..d {
                            dx[i] = r * (dyw[i] - x[i] * mean);
                        }
                    }
                },
            );
            dw
        })
        .collect();
    let mut dw = vec![0.0; wanted];
    for part in parts {
        for (sum, value) in dw.iter_mut().zip(part) {
            *sum += value;
        }
    }
    (dx, dw)
}
