//! Numbers in 8 bits: blocks of 256 with a scale each, and a map of 256 values between −1 and 1 that lie the denser the
//! smaller they are.
//!
//! Dettmers et al. 2022, <https://arxiv.org/abs/2110.02861>

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::ops::cpu::simd::vectorized;

/// Numbers that share a scale.
pub const BLOCK: usize = 256;
/// The interval from −1 to 1 is cut into so many bins, and what falls into one gets one code.
const BINS: usize = 1 << 16;

/// For numbers of both signs: first moments, scales of [NF4](super::nf4).
pub static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
/// For numbers that are never negative: second moments.
pub static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

/// A map of 8 bits and the way back.
#[derive(Debug)]
pub struct DynamicMap {
    /// Value of every code, ascending.
    pub values: Box<[f32; 256]>,
    /// Code of every bin.
    bins: Vec<u8>,
}

impl DynamicMap {
    fn new(signed: bool) -> Self {
        let values = values(signed);
        let middles: Vec<f32> = values.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        let code = |bin: usize| {
            let x = (2 * bin) as f32 / (BINS - 1) as f32 - 1.0;
            middles.partition_point(|middle| *middle < x) as u8
        };
        Self { bins: (0..BINS).map(code).collect(), values: Box::new(values) }
    }

    /// Writes the codes of a block, at most [`BLOCK`] numbers, and returns its scale: the largest absolute value.
    ///
    /// bitsandbytes looks a number up by its bin, 2/65535 wide, and not by its nearest value: what is below a
    /// 65536th of the largest comes out as about that much, zero included.
    ///
    /// # Panics
    /// If there are more than [`BLOCK`] numbers, or not as many codes.
    pub fn quantize_block(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        assert!(values.len() <= BLOCK && codes.len() == values.len(), "{} codes of {} numbers", codes.len(), values.len());
        vectorized(
            #[inline(always)]
            || {
                let absmax = absmax(values);
                if absmax == 0.0 {
                    codes.fill(0);
                    return absmax;
                }
                let inverse = 1.0 / absmax;
                let mut bins = [0i32; BLOCK];
                for (bin, x) in bins.iter_mut().zip(values) {
                    let half = ((x * inverse).clamp(-1.0, 1.0) + 1.0) * 0.5;
                    // Exact in f64, so that it is rounded once; NaN becomes 0.
                    *bin = (f64::from(half) * (BINS - 1) as f64 + 0.5) as f32 as i32;
                }
                for (code, bin) in codes.iter_mut().zip(bins) {
                    *code = self.bins[bin as usize];
                }
                absmax
            },
        )
    }

    /// Codes and scales of any number of values.
    pub fn quantize(&self, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let mut codes = vec![0; values.len()];
        let blocks = codes.par_chunks_mut(BLOCK).zip(values.par_chunks(BLOCK));
        let absmax = blocks.map(|(codes, values)| self.quantize_block(values, codes)).collect();
        (codes, absmax)
    }

    /// The numbers of a block.
    #[inline]
    pub fn dequantize_block(&self, codes: &[u8], absmax: f32, out: &mut [f32]) {
        for (x, code) in out.iter_mut().zip(codes) {
            *x = self.values[usize::from(*code)] * absmax;
        }
    }
}

/// Largest absolute value; 0 of nothing.
#[inline(always)]
pub(super) fn absmax(values: &[f32]) -> f32 {
    let mut best = [0.0f32; 16];
    let (vectors, rest) = values.as_chunks::<16>();
    for vector in vectors {
        for (best, x) in best.iter_mut().zip(vector) {
            *best = if x.abs() > *best { x.abs() } else { *best };
        }
    }
    best.iter().chain(rest).fold(0.0, |largest, x| largest.max(x.abs()))
}

/// 0, 1 and, for every power of ten from 10⁻⁶ to 1, the middles of equal parts of \[0.1, 1\] times it: twice as many
/// for every next power.
fn values(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for (exponent, scale) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let parts = 1usize << (exponent + usize::from(!signed));
        let step = (1.0 - 0.1f32) / parts as f32;
        // As PyTorch spaces them: either half from its end, rounded once.
        let edge = |i: usize| if i < parts.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { (-step).mul_add((parts - i) as f32, 1.0) };
        for part in 0..parts {
            let middle = scale * ((edge(part) + edge(part + 1)) / 2.0);
            values.push(middle);
            if signed {
                values.push(-middle);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("127 parts of either sign or 254 of one, 0 and 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_ascend_between_their_ends() {
        for (map, first, zeros) in [(&SIGNED, -0.992_968_74, 127), (&UNSIGNED, 0.0, 0)] {
            assert!(map.values.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!((map.values[0], map.values[255], map.values[zeros]), (first, 1.0, 0.0));
        }
    }

    #[test]
    fn values_of_the_map_keep_their_codes() {
        for map in [&SIGNED, &UNSIGNED] {
            for (code, value) in (0..=255u8).zip(map.values.iter()) {
                if value.abs() < 1e-4 {
                    continue; // these lie closer together than bins
                }
                let mut codes = [0; 2];
                assert_eq!(map.quantize_block(&[1.0, *value], &mut codes), 1.0);
                assert_eq!(codes, [255, code]);
            }
        }
    }

    #[test]
    fn blocks_have_their_own_scales() {
        for count in [0usize, 1, 2, 63, 64, 65, 255, 256, 257, 1000] {
            let values: Vec<f32> = (0..count).map(|i| if i < BLOCK { 1.0 } else { -1e-3 } * (i + 1) as f32).collect();
            let (codes, absmax) = SIGNED.quantize(&values);
            assert_eq!((codes.len(), absmax.len()), (count, count.div_ceil(BLOCK)));
            for ((codes, absmax), values) in codes.chunks(BLOCK).zip(absmax).zip(values.chunks(BLOCK)) {
                assert_eq!(absmax, values.iter().fold(0.0f32, |a, x| a.max(x.abs())));
                let mut out = vec![0.0; codes.len()];
                SIGNED.dequantize_block(codes, absmax, &mut out);
                let error = out.iter().zip(values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error <= 0.0071 * absmax, "{count}: {error} of {absmax}"); // half of the widest distance, 0.0141
            }
        }
    }

    #[test]
    fn zeros_infinity_and_nan_have_a_code() {
        let mut codes = [9; 3];
        assert_eq!(SIGNED.quantize_block(&[0.0, -0.0, 0.0], &mut codes), 0.0);
        assert_eq!(codes, [0; 3]);
        assert_eq!(SIGNED.quantize_block(&[f32::INFINITY, f32::NAN, 1.0], &mut codes), f32::INFINITY);
        assert_eq!(SIGNED.quantize_block(&[], &mut []), 0.0);
    }
}
