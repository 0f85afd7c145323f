//! AdamW, in place.

use rayon::prelude::*;

use super::simd::vectorized;
use crate::ops::adamw::AdamW;

const BLOCK: usize = 1 << 14;

/// One update of a tensor and its two moments; see [`AdamW`] for the formula.
pub fn adamw(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], step: &AdamW) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale } = *step;
    let decay = 1.0 - lr * weight_decay;
    let step_size = lr / correction1;
    let inverse_root = 1.0 / correction2.sqrt();
    let blocks = param.par_chunks_mut(BLOCK).zip(m.par_chunks_mut(BLOCK)).zip(v.par_chunks_mut(BLOCK));
    blocks.zip(grad.par_chunks(BLOCK)).for_each(|(((param, m), v), grad)| {
        vectorized(
            #[inline(always)]
            || {
                for i in 0..param.len() {
                    let g = grad[i] * grad_scale;
                    m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                    v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                    param[i] = param[i] * decay - step_size * m[i] / (v[i].sqrt() * inverse_root + eps);
                }
            },
        );
    });
}
