//! Products with weights of two f16 a word.

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
