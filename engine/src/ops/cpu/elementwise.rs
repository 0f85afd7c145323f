//! SwiGLU, rotary embedding and sums over whole tensors.

use rayon::prelude::*;

use smolforge_shaders::cpu::dropout::keeps;

use super::simd::{sigmoid, vectorized};

const BLOCK: usize = 1 << 14;

/// `silu(gate) · up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    let tasks = y.par_chunks_mut(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK));
    tasks.for_each(|((y, gate), up)| {
        vectorized(
            #[inline(always)]
            || {
                for i in 0..y.len() {
                    y[i] = gate[i] * sigmoid(gate[i]) * up[i];
                }
            },
        );
    });
    y
}

/// Gradients of `gate` and `up`.
pub fn swiglu_backward(dy: &[f32], gate: &[f32], up: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0.0; dy.len()], vec![0.0; dy.len()]);
    let outputs = dgate.par_chunks_mut(BLOCK).zip(dup.par_chunks_mut(BLOCK));
    let inputs = dy.par_chunks(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK));
    outputs.zip(inputs).for_each(|((dgate, dup), ((dy, gate), up))| {
        vectorized(
            #[inline(always)]
            || {
                for i in 0..dy.len() {
                    let s = sigmoid(gate[i]);
                    dup[i] = dy[i] * gate[i] * s;
                    dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                }
            },
        );
    });
    (dgate, dup)
}

/// Rotates every head of `x: [b·t, h·e]` by the angles of its position; `cos`, `sin`: `[t, e/2]`.
/// `direction` −1 undoes it, which is also the gradient.
pub fn rope(x: &[f32], cos: &[f32], sin: &[f32], width: usize, half: usize, direction: f32) -> Vec<f32> {
    let positions = cos.len() / half;
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(16).for_each(|(row, (y, x))| {
        let at = row % positions * half;
        let (cos, sin) = (&cos[at..][..half], &sin[at..][..half]);
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                    let (x1, x2) = x.split_at(half);
                    let (y1, y2) = y.split_at_mut(half);
                    for i in 0..half {
                        let s = sin[i] * direction;
                        y1[i] = x1[i] * cos[i] - x2[i] * s;
                        y2[i] = x2[i] * cos[i] + x1[i] * s;
                    }
                }
            },
        );
    });
    y
}

/// `x · scale` where the place is kept, else 0: as the kernel `dropout`.
pub fn dropout(x: &[f32], place: u32, seed: [u32; 2], threshold: u32, scale: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).enumerate().for_each(|(block, (y, x))| {
        let first = place.wrapping_add((block * BLOCK) as u32);
        vectorized(
            #[inline(always)]
            || {
                for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                    *y = if keeps(first.wrapping_add(i as u32), seed, threshold) { x * scale } else { 0.0 };
                }
            },
        );
    });
    y
}

/// `a += b`.
pub fn add_into(a: &mut [f32], b: &[f32]) {
    a.par_chunks_mut(BLOCK).zip(b.par_chunks(BLOCK)).for_each(|(a, b)| {
        vectorized(
            #[inline(always)]
            || {
                for i in 0..a.len() {
                    a[i] += b[i];
                }
            },
        );
    });
}

/// `Σ a²`, in f64 across blocks.
pub fn sum_of_squares(a: &[f32]) -> f64 {
    let parts: Vec<f64> = a
        .par_chunks(BLOCK)
        .map(|block| {
            vectorized(
                #[inline(always)]
                || f64::from(super::simd::sum(block, |x| x * x)),
            )
        })
        .collect();
    parts.iter().sum()
}
