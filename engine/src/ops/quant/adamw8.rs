//! AdamW with moments in 8 bits: two bytes of state for a weight instead of eight.
//!
//! Dettmers et al. 2022, <https://arxiv.org/abs/2110.02861>

use rayon::prelude::*;

use super::dynamic8::{BLOCK, SIGNED, UNSIGNED};
use crate::ops::adamw::AdamW;
use crate::ops::cpu::simd::vectorized;

/// Tensors of fewer numbers keep moments in f32: those of norms are few and matter most.
pub const MIN_LEN: usize = 4096;
/// Blocks that a thread takes at a time.
const PIECE: usize = 32;

/// The two moments of a tensor, in blocks of [`BLOCK`] numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments8 {
    /// Codes of the first moment in [`SIGNED`], one a number.
    pub m: Vec<u8>,
    /// Codes of the second moment in [`UNSIGNED`].
    pub v: Vec<u8>,
    /// Scales of the first moment, one a block.
    pub m_absmax: Vec<f32>,
    /// Scales of the second moment.
    pub v_absmax: Vec<f32>,
}

impl Moments8 {
    /// The moments before the first update.
    pub fn zeros(len: usize) -> Self {
        let blocks = len.div_ceil(BLOCK);
        Self { m: vec![0; len], v: vec![0; len], m_absmax: vec![0.0; blocks], v_absmax: vec![0.0; blocks] }
    }
}

/// One update of a tensor in place; see [`AdamW`] for the formula.
///
/// The weight is updated from moments in f32; they are rounded afterwards.
///
/// # Panics
/// If the sizes of weight, moments and gradient differ.
pub fn adamw8(param: &mut [f32], moments: &mut Moments8, grad: &[f32], step: &AdamW) {
    let Moments8 { m, v, m_absmax, v_absmax } = moments;
    assert!(param.len() == grad.len() && m.len() == grad.len() && v.len() == grad.len(), "moments of another tensor");
    assert!(m_absmax.len() == grad.len().div_ceil(BLOCK) && v_absmax.len() == m_absmax.len(), "moments of another tensor");
    let weights = param.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK));
    let firsts = m.par_chunks_mut(BLOCK).zip(m_absmax);
    let seconds = v.par_chunks_mut(BLOCK).zip(v_absmax);
    weights.zip(firsts).zip(seconds).with_min_len(PIECE).for_each(|(((param, grad), (m, m_absmax)), (v, v_absmax))| {
        let mut first = [0.0; BLOCK];
        let mut second = [0.0; BLOCK];
        let (first, second) = (&mut first[..param.len()], &mut second[..param.len()]);
        SIGNED.dequantize_block(m, *m_absmax, first);
        UNSIGNED.dequantize_block(v, *v_absmax, second);
        vectorized(
            #[inline(always)]
            || update(param, first, second, grad, step),
        );
        *m_absmax = SIGNED.quantize_block(first, m);
        *v_absmax = UNSIGNED.quantize_block(second, v);
    });
}

#[inline(always)]
fn update(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], step: &AdamW) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale } = *step;
    let decay = 1.0 - lr * weight_decay;
    let step_size = lr / correction1;
    let inverse_root = 1.0 / correction2.sqrt();
    for (((param, m), v), grad) in param.iter_mut().zip(m).zip(v).zip(grad) {
        let g = grad * grad_scale;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *param = *param * decay - step_size * *m / (v.sqrt() * inverse_root + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(number: i32) -> AdamW {
        let (beta1, beta2) = (0.9f32, 0.95f32);
        let (correction1, correction2) = (1.0 - beta1.powi(number), 1.0 - beta2.powi(number));
        AdamW { lr: 0.01, beta1, beta2, eps: 1e-8, weight_decay: 0.1, correction1, correction2, grad_scale: 0.5 }
    }

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.02).collect()
    }

    #[test]
    fn the_first_update_is_that_of_f32() {
        for count in [0usize, 1, 2, 63, 64, 65, 255, 256, 257, 1000, 20_000] {
            let (mut param, grad) = (ramp(count), ramp(count).into_iter().rev().collect::<Vec<_>>());
            let (mut expected, mut m, mut v) = (param.clone(), vec![0.0; count], vec![0.0; count]);
            let mut moments = Moments8::zeros(count);
            adamw8(&mut param, &mut moments, &grad, &step(1));
            update(&mut expected, &mut m, &mut v, &grad, &step(1));
            assert!(param == expected, "{count}");
            assert_eq!((moments.m.len(), moments.v.len()), (count, count));
            let largest = m.chunks(BLOCK).map(|block| block.iter().fold(0.0f32, |a, x| a.max(x.abs())));
            assert!(moments.m_absmax.iter().copied().eq(largest), "{count}");
        }
    }

    #[test]
    fn later_updates_stay_close_to_f32() {
        let count = 1000;
        let (mut param, mut moments) = (ramp(count), Moments8::zeros(count));
        let (mut expected, mut m, mut v) = (ramp(count), vec![0.0; count], vec![0.0; count]);
        for number in 1..=20 {
            let grad: Vec<f32> = ramp(count).iter().map(|x| x + 0.1 * (number as f32).sin()).collect();
            adamw8(&mut param, &mut moments, &grad, &step(number));
            update(&mut expected, &mut m, &mut v, &grad, &step(number));
        }
        let largest = param.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // 20 steps of at most about lr each move a weight by 0.2; 8 bits are good for a few percent of it.
        assert!(largest > 0.0 && largest < 0.01, "{largest}");
    }

    #[test]
    #[should_panic(expected = "moments of another tensor")]
    fn moments_of_another_tensor_are_a_defect() {
        adamw8(&mut [0.0; 3], &mut Moments8::zeros(2), &[0.0; 3], &step(1));
    }
}
