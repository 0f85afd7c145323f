//! NF4: matrices in 4 bits, with a scale for every 64 numbers, which is itself in 8 bits.
//!
//! Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>

use std::ops::Range;

use rayon::prelude::*;
use smolforge_shaders::cpu::linear_nf4::NF4;

use super::dynamic8::{self, SIGNED, absmax};
use super::mean::mean;
use crate::ops::cpu::simd::vectorized;

/// Numbers that share a scale. They follow each other in the matrix, wherever its rows end.
pub const BLOCK: usize = 64;
/// Numbers that a thread takes at a time.
const PIECE: usize = 256 * BLOCK;

/// Value of every code: quantiles of the normal distribution, brought to −1 … 1, with a zero.
pub const CODE: [f32; 16] = NF4;
/// A number above `BORDERS[i]` has a code above `i`: half-way, the lower one wins.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = (CODE[i] + CODE[i + 1]) / 2.0;
        i += 1;
    }
    borders
};
/// What bitsandbytes divides a block by at least.
const SMALLEST: f32 = 1e-38;

/// A matrix in 4 bits: `CODE[code] · absmax of the block`.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// Rows: `out` of a linear layer.
    pub rows: usize,
    /// Columns: `in`.
    pub columns: usize,
    /// Two numbers a byte along the rows, number 2j in the high half of byte j: `⌈rows · columns / 2⌉`.
    pub codes: Vec<u8>,
    /// Scale of every [`BLOCK`] numbers: `⌈rows · columns / 64⌉`.
    pub absmax: Absmax,
}

/// The scales of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// In f32: half a bit for every number of the matrix.
    Plain(Vec<f32>),
    /// In 8 bits ("double quantisation"): `map[code] · absmax of 256 + offset`, an eighth of a bit.
    Nested {
        /// One a block.
        codes: Vec<u8>,
        /// One for every 256 codes.
        absmax: Vec<f32>,
        /// Value of every code: [`SIGNED`], or what a checkpoint brings. bitsandbytes has had −1 and −0.993 as the first.
        map: Box<[f32; 256]>,
        /// Mean of the scales.
        offset: f32,
    },
}

impl Absmax {
    /// Scales in 8 bits.
    pub fn nested(plain: &[f32]) -> Self {
        let offset = mean(plain);
        let centred: Vec<f32> = plain.iter().map(|x| x - offset).collect();
        let (codes, absmax) = SIGNED.quantize(&centred);
        Self::Nested { codes, absmax, map: SIGNED.values.clone(), offset }
    }

    /// Scale of a block.
    pub fn block(&self, index: usize) -> f32 {
        match self {
            Self::Plain(absmax) => absmax[index],
            Self::Nested { codes, absmax, map, offset } => map[usize::from(codes[index])] * absmax[index / dynamic8::BLOCK] + offset,
        }
    }
}

impl Nf4 {
    /// Rounds a matrix of finite numbers, with scales in 8 bits: `bitsandbytes.functional.quantize_4bit(…, quant_type="nf4",
    /// compress_statistics=True)`.
    ///
    /// # Panics
    /// If there are not `rows · columns` values.
    pub fn quantize(values: &[f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "values of [{rows}, {columns}]");
        let (codes, absmax) = quantize(values);
        Self { rows, columns, codes, absmax: Absmax::nested(&absmax) }
    }

    /// All of it in f32.
    pub fn dense(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.dequantize_rows(0..self.rows, &mut values);
        values
    }

    /// Rows in f32.
    ///
    /// # Panics
    /// If there are no such rows, or `out` has not their size.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out.len(), rows.len() * self.columns, "values of rows {rows:?}");
        let start = rows.start * self.columns;
        out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| self.dequantize(start + piece * PIECE, out));
    }

    /// The numbers from the `at`-th on.
    fn dequantize(&self, mut at: usize, mut out: &mut [f32]) {
        while !out.is_empty() {
            let here = (BLOCK - at % BLOCK).min(out.len());
            let (block, rest) = out.split_at_mut(here);
            let scale = self.absmax.block(at / BLOCK);
            let scaled = CODE.map(|value| value * scale);
            let (single, pairs) = block.split_at_mut(at % 2);
            if let [x] = single {
                *x = scaled[usize::from(self.codes[at / 2] & 15)];
            }
            for (pair, byte) in pairs.chunks_mut(2).zip(&self.codes[at.div_ceil(2)..]) {
                pair[0] = scaled[usize::from(byte >> 4)];
                if let [_, x] = pair {
                    *x = scaled[usize::from(byte & 15)];
                }
            }
            at += here;
            out = rest;
        }
    }
}

/// Codes, and scales in f32.
fn quantize(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; values.len().div_ceil(2)];
    let mut absmax = vec![0.0; values.len().div_ceil(BLOCK)];
    let pieces = codes.par_chunks_mut(PIECE / 2).zip(absmax.par_chunks_mut(PIECE / BLOCK));
    pieces.zip(values.par_chunks(PIECE)).for_each(|((codes, absmax), values)| {
        let blocks = codes.chunks_mut(BLOCK / 2).zip(absmax).zip(values.chunks(BLOCK));
        blocks.for_each(|((codes, absmax), values)| *absmax = quantize_block(values, codes));
    });
    (codes, absmax)
}

fn quantize_block(values: &[f32], codes: &mut [u8]) -> f32 {
    vectorized(
        #[inline(always)]
        || {
            let absmax = absmax(values);
            let divisor = absmax.max(SMALLEST);
            // An incomplete block is divided where the others are multiplied; the last bit differs, and sometimes a code.
            let whole = values.len() == BLOCK;
            let inverse = 1.0 / divisor;
            let mut scaled = [0.0f32; BLOCK];
            for (scaled, x) in scaled.iter_mut().zip(values) {
                *scaled = if whole { x * inverse } else { x / divisor }.clamp(-1.0, 1.0);
            }
            let mut counts = [0u32; BLOCK]; // 0 has the code that fills the last byte of an odd count
            for border in BORDERS {
                for (count, x) in counts.iter_mut().zip(&scaled) {
                    *count += u32::from(border < *x);
                }
            }
            for (byte, pair) in codes.iter_mut().zip(counts.as_chunks::<2>().0) {
                *byte = (pair[0] << 4 | pair[1]) as u8;
            }
            if whole { absmax } else { divisor }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect()
    }

    fn dequantized(matrix: &Nf4) -> Vec<f32> {
        let mut out = vec![f32::NAN; matrix.rows * matrix.columns];
        matrix.dequantize_rows(0..matrix.rows, &mut out);
        out
    }

    #[test]
    fn values_of_the_code_book_survive() {
        let values: Vec<f32> = (0..BLOCK).map(|i| CODE[i % 16]).collect();
        let (codes, absmax) = quantize(&values);
        assert_eq!(codes[..8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        assert_eq!(absmax, [1.0]);
        let matrix = Nf4 { rows: 1, columns: BLOCK, codes, absmax: Absmax::Plain(absmax) };
        assert_eq!(dequantized(&matrix), values);
    }

    #[test]
    fn half_way_the_lower_code_wins() {
        let mut values = vec![0.0; BLOCK];
        values[0] = 1.0;
        for (i, border) in BORDERS.iter().enumerate() {
            (values[2 * i + 2], values[2 * i + 3]) = (*border, border.next_up());
        }
        let (codes, _) = quantize(&values);
        for i in 0..15u8 {
            assert_eq!(codes[usize::from(i) + 1], i << 4 | (i + 1), "border {i}");
        }
    }

    #[test]
    fn an_odd_count_ends_in_half_a_byte() {
        assert_eq!(quantize(&[-2.0]), (vec![0x07], vec![2.0]));
        assert_eq!(quantize(&[-2.0, 2.0, 0.0]), (vec![0x0f, 0x77], vec![2.0]));
    }

    #[test]
    fn zeros_and_nothing_stay_what_they_are() {
        assert!(dequantized(&Nf4::quantize(&[0.0; 200], 2, 100)).iter().all(|x| *x == 0.0));
        for (rows, columns) in [(0, 0), (0, 5), (5, 0)] {
            let matrix = Nf4::quantize(&[], rows, columns);
            assert!(matrix.codes.is_empty() && dequantized(&matrix).is_empty());
        }
    }

    #[test]
    fn any_rows_are_those_of_the_whole() {
        for (rows, columns) in [(1, 1), (2, 1), (1, 2), (63, 1), (3, 64), (64, 63), (65, 65), (7, 1000), (5, 33_333)] {
            let matrix = Nf4::quantize(&ramp(rows * columns), rows, columns);
            assert_eq!(matrix.codes.len(), (rows * columns).div_ceil(2));
            let whole = dequantized(&matrix);
            for range in [0..rows, 0..1, rows - 1..rows, rows / 3..rows / 2, rows..rows] {
                let mut part = vec![f32::NAN; range.len() * columns];
                matrix.dequantize_rows(range.clone(), &mut part);
                assert!(part == whole[range.start * columns..range.end * columns], "rows {range:?} of [{rows}, {columns}]");
            }
        }
    }

    #[test]
    fn the_error_is_at_most_half_of_the_widest_distance() {
        for count in [1usize, 2, 63, 64, 65, 1000, 40_000] {
            let values = ramp(count);
            let matrix = Nf4::quantize(&values, 1, count);
            let blocks = values.chunks(BLOCK).zip(dequantized(&matrix).chunks(BLOCK).map(<[f32]>::to_vec).collect::<Vec<_>>());
            for (values, near) in blocks {
                let absmax = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                let error = values.iter().zip(near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // (1 − 0.696) / 2, and what rounding the scale adds.
                assert!(error <= absmax * 0.152 + 0.01, "{count}: {error} of {absmax}");
            }
        }
    }
}
