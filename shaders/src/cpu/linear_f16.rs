//! Products with weights of two f16 a word.

use half::f16;

use super::unpack;

/// `y = x·wᵀ`: row `i` of `x` has `columns` numbers, row `j` of `w` half as many words.
pub fn linear_f16(x: &[f32], w: &[u32], columns: usize) -> Vec<f32> {
    let mut y = Vec::new();
    for x in x.chunks(columns) {
        for w in w.chunks(columns / 2) {
            y.push(w.iter().zip(x.chunks(2)).map(|(word, x)| unpack(*word)[0] * x[0] + unpack(*word)[1] * x[1]).sum());
        }
    }
    y
}

/// Numbers rounded to f16, two a word.
pub fn halves(x: &[f32]) -> Vec<u32> {
    let bits = |x: f32| u32::from(f16::from_f32(x).to_bits());
    x.chunks(2).map(|pair| bits(pair[0]) | bits(pair[1]) << 16).collect()
}

/// `dx = dy·w`, the gradient by `x`: rows of `w` have `columns` numbers, rows of `dy` one for each of them.
pub fn linear_f16_dx(dy: &[f32], w: &[u32], columns: usize) -> Vec<f32> {
    let words = columns / 2;
    let mut dx = Vec::new();
    for dy in dy.chunks(w.len() / words) {
        let mut sums = vec![0.0; columns];
        for (dy, w) in dy.iter().zip(w.chunks(words)) {
            sums.iter_mut().zip(w.iter().copied().flat_map(unpack)).for_each(|(sum, w)| *sum += dy * w);
        }
        dx.extend(sums);
    }
    dx
}
