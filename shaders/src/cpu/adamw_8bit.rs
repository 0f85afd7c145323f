//! One AdamW update with moments of eight bits.
//!
//! Dettmers et al. 2022, <https://arxiv.org/abs/2110.02861>; the arithmetic is that of bitsandbytes.

use super::adamw::{Params, adamw};

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// A block whose sizes are all below this is stored as zeros, for the inverse may be infinite.
const SMALLEST: f32 = 1e-37;

/// A moment: four codes a word, the low byte first, and the largest size in each block of 256.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment8 {
    /// The codes; those beyond the last element stand for 0.
    pub codes: Vec<u32>,
    /// The scale of every block.
    pub absmax: Vec<f32>,
}

/// Code of the number next to `value` in 256 ascending ones; of two as near, the smaller.
pub fn nearest(value: f32, map: &[f32]) -> u32 {
    map.windows(2).take_while(|pair| value > (pair[0] + pair[1]) / 2.0).count() as u32
}

impl Moment8 {
    /// The nearest codes of `values`, except that a value above 0 has no code below `least`.
    pub fn quantize(values: &[f32], map: &[f32], least: u32) -> Moment8 {
        let mut moment = Moment8 { codes: vec![0; values.len().div_ceil(4)], absmax: Vec::new() };
        for (block, values) in values.chunks(BLOCK).enumerate() {
            let absmax = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let inverse = if absmax < SMALLEST { 0.0 } else { 1.0 / absmax };
            for i in 0..values.len().next_multiple_of(4) {
                let value = values.get(i).copied().unwrap_or(0.0);
                let code = nearest(value * inverse, map).max(if value > 0.0 { least } else { 0 });
                moment.codes[(block * BLOCK + i) / 4] |= code << (i % 4 * 8);
            }
            moment.absmax.push(absmax);
        }
        moment
    }

    /// The first `len` values.
    pub fn dequantize(&self, map: &[f32], len: usize) -> Vec<f32> {
        let code = |i: usize| self.codes[i / 4] >> (i % 4 * 8) & 255;
        (0..len).map(|i| map[code(i) as usize] * self.absmax[i / BLOCK]).collect()
    }
}

/// Updates a weight and its moments; `map` has 256 numbers for `m`, then 256 for `v`.
///
/// Unlike bitsandbytes, a `v` above 0 never becomes 0, however large the others of its block are: the next step would
/// divide what is left of `m` by `eps` alone.
pub fn adamw_8bit(param: &mut [f32], m: &mut Moment8, v: &mut Moment8, grad: &[f32], map: &[f32], params: &Params) {
    let (m_map, v_map) = map.split_at(256);
    let (mut m_values, mut v_values) = (m.dequantize(m_map, param.len()), v.dequantize(v_map, param.len()));
    adamw(param, &mut m_values, &mut v_values, grad, params);
    *m = Moment8::quantize(&m_values, m_map, 0);
    *v = Moment8::quantize(&v_values, v_map, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_number_is_taken_and_of_two_the_smaller() {
        let map: Vec<f32> = (0..256).map(|i| i as f32).collect();
        for (value, code) in [(-1.0, 0), (0.0, 0), (0.5, 0), (0.75, 1), (1.5, 1), (254.5, 254), (254.75, 255), (300.0, 255)] {
            assert_eq!(nearest(value, &map), code, "{value}");
        }
    }

    #[test]
    fn quantized_moments_keep_their_block() {
        let map: Vec<f32> = (0..256).map(|i| (i as f32 - 127.0) / 128.0).collect(); // holds 0 and 1
        for len in [1, 2, 63, 64, 65, 255, 256, 257, 1000] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 7919 % 257) as f32 - 128.0) * if i < BLOCK { 1.0 } else { 1e-6 }).collect();
            let moment = Moment8::quantize(&values, &map, 0);
            assert_eq!((moment.codes.len(), moment.absmax.len()), (len.div_ceil(4), len.div_ceil(BLOCK)));
            for (i, (found, value)) in moment.dequantize(&map, len).iter().zip(&values).enumerate() {
                let step = moment.absmax[i / BLOCK] / 128.0;
                assert!((found - value).abs() <= step, "{i} of {len}: {found} for {value}");
            }
        }
        let zeros = Moment8::quantize(&[0.0, 1e-39, -1e-39], &map, 0);
        assert_eq!(zeros.dequantize(&map, 3), [0.0; 3]);
    }

    /// Numbers as the dynamic maps have them: 0 and 1, and dense near 0.
    fn maps() -> Vec<f32> {
        let signed = (0..256).map(|i| (i as f32 - 127.0) / 128.0).map(|x| x * x.abs());
        signed.chain((0..256).map(|i| (i as f32 / 255.0).powi(3))).collect()
    }

    #[test]
    fn steps_stay_bounded_beside_a_large_gradient() {
        let params = Params { decay: 1.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, step_size: 1.0, inverse_root: 1.0, grad_scale: 1.0 };
        let (mut param, mut m, mut v) =
            ([0.0; 2], Moment8::quantize(&[0.0; 2], &maps()[..256], 0), Moment8::quantize(&[0.0; 2], &maps()[256..], 1));
        adamw_8bit(&mut param, &mut m, &mut v, &[1.0, 1e-4], &maps(), &params);
        let before = param[1];
        adamw_8bit(&mut param, &mut m, &mut v, &[1.0, 0.0], &maps(), &params);
        assert!((param[1] - before).abs() < 10.0, "a step of {}", param[1] - before);
    }
}
