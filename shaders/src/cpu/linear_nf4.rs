//! Products with NF4 weights: four-bit codes in blocks of 64, whose scales are 8-bit codes in blocks of 256.
//!
//! Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>; the layout and the arithmetic are those of bitsandbytes.

/// The number that a four-bit code stands for, before its block's scale.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A weight as the kernels get it. Its rows are whole blocks of 64 numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nf4<'a> {
    /// Eight codes a word: bytes in little-endian order, in each the high half before the low one.
    pub codes: &'a [u32],
    /// The code of every block's scale, four a word, the low byte first.
    pub absmax: &'a [u32],
    /// What the 256 codes of scales stand for, then a factor for every 256 blocks.
    pub nested: &'a [f32],
    /// Added to every scale.
    pub offset: f32,
}

impl Nf4<'_> {
    /// Scale of block `block`.
    pub fn scale(&self, block: usize) -> f32 {
        let code = self.absmax[block / 4] >> (block % 4 * 8) & 255;
        self.nested[code as usize] * self.nested[256 + block / 256] + self.offset
    }
}

/// The numbers of the `len` words of codes that begin at word `first`.
pub fn dequantize_nf4(w: &Nf4, first: usize, len: usize) -> Vec<f32> {
    let number = |i: usize| {
        let code = w.codes[i / 8] >> ([4, 0, 12, 8, 20, 16, 28, 24][i % 8]) & 15;
        NF4[code as usize] * w.scale(i / 64)
    };
    (8 * first..8 * (first + len)).map(number).collect()
}

/// `y = x·wᵀ`: rows of `x` and `w` have `columns` numbers.
pub fn linear_nf4(x: &[f32], w: &Nf4, columns: usize) -> Vec<f32> {
    let w = dequantize_nf4(w, 0, w.codes.len());
    let product = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x.chunks(columns).flat_map(|x| w.chunks(columns).map(move |w| product(x, w))).collect()
}

/// `dx = dy·w`, the gradient by `x`: rows of `w` have `columns` numbers, rows of `dy` one for each of them.
pub fn linear_nf4_dx(dy: &[f32], w: &Nf4, columns: usize) -> Vec<f32> {
    let w = dequantize_nf4(w, 0, w.codes.len());
    let mut dx = Vec::new();
    for dy in dy.chunks(w.len() / columns) {
        let mut sums = vec![0.0; columns];
        for (dy, w) in dy.iter().zip(w.chunks(columns)) {
            sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += dy * w);
        }
        dx.extend(sums);
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_scales_and_sums_lie_where_bitsandbytes_puts_them() {
        // Two rows of one block: element 2j in the high half of byte j, bytes in little-endian order.
        let mut codes = vec![0x7777_7777; 16]; // zeros
        codes[0] = 0x7777_f707; // elements 0 and 1: -1, 0; elements 2 and 3: 1, 0
        codes[8] = 0x0f77_7777; // elements 6 and 7 of row 1: -1, 1
        let mut nested = vec![0.0; 257];
        (nested[3], nested[200], nested[256]) = (0.5, -0.25, 4.0);
        let w = Nf4 { codes: &codes, absmax: &[3 | 200 << 8], nested: &nested, offset: 10.0 };
        assert_eq!((w.scale(0), w.scale(1)), (12.0, 9.0));
        let numbers = dequantize_nf4(&w, 0, 16);
        assert_eq!(numbers[..4], [-12.0, 0.0, 12.0, 0.0]);
        assert_eq!(numbers[70..73], [-9.0, 9.0, 0.0]);
        assert_eq!(dequantize_nf4(&w, 8, 8), numbers[64..]);
        let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
        assert_eq!(linear_nf4(&x, &w, 64), [24.0, 9.0]);
        let dx = linear_nf4_dx(&[1.0, 2.0], &w, 64);
        assert_eq!((dx[0], dx[2], dx[6], dx[7], dx[8]), (-12.0, 12.0, -18.0, 18.0, 0.0));
    }
}
