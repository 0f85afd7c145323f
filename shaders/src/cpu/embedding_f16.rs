//! Rows of a table of two f16 a word.

use super::unpack;

/// Row `ids[i] − first` of a block whose rows have `words`; zeros where the block does not have it.
pub fn embedding_f16(table: &[u32], ids: &[i32], words: usize, first: usize) -> Vec<f32> {
    let rows: Vec<&[u32]> = table.chunks(words).collect();
    let row = |id: &i32| (*id as usize).checked_sub(first).and_then(|row| rows.get(row).copied());
    ids.iter().flat_map(|id| row(id).map_or(vec![0.0; 2 * words], |row| row.iter().flat_map(|word| unpack(*word)).collect())).collect()
}
