//! Rows of a table of rows of `d`, and their gradient.

/// Row `ids[i] − first` of the block, zeros for ids that it does not have.
pub fn embedding(block: &[f32], ids: &[i32], d: usize, first: i32) -> Vec<f32> {
    let row = |id: &i32| usize::try_from(id - first).ok().and_then(|row| block.chunks(d).nth(row));
    ids.iter().flat_map(|id| row(id).map_or(vec![0.0; d], <[f32]>::to_vec)).collect()
}

/// `sum[ids[i] − first] += dy[i]` where the block has that row.
pub fn embedding_dw(sum: &mut [f32], dy: &[f32], ids: &[i32], d: usize, first: i32) {
    for (id, dy) in ids.iter().zip(dy.chunks(d)) {
        if let Some(row) = usize::try_from(id - first).ok().and_then(|row| sum.chunks_mut(d).nth(row)) {
            row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
        }
    }
}
