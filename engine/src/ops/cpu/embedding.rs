//! Rows of a table, and their gradient.

use half::f16;
use rayon::prelude::*;

use super::halves::widen;
use super::tensor::Disjoint;

/// Row `ids[i]` of `table: [v, d]` for every `i`.
pub fn embedding(table: &[f32], ids: &[i32], d: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * d];
    for (row, id) in out.chunks_exact_mut(d).zip(ids) {
        row.copy_from_slice(&table[*id as usize * d..][..d]);
    }
    out
}

/// Row `ids[i]` of the table whose consecutive blocks of rows are `blocks`, as f32; zeros where there is none.
pub fn embedding_f16(blocks: &[&[f16]], ids: &[i32], d: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * d];
    for (row, id) in out.chunks_exact_mut(d).zip(ids) {
        let mut place = usize::try_from(*id).unwrap_or(usize::MAX);
        for block in blocks {
            let rows = block.len() / d;
            if place < rows {
                widen(&block[place * d..][..d], row);
                break;
            }
            place -= rows;
        }
    }
    out
}

/// `sum[ids[i]] += dy[i]`: tasks own ranges of rows of the table, so every sum has one order.
pub fn embedding_backward(sum: &mut [f32], dy: &[f32], ids: &[i32], d: usize) {
    let v = sum.len() / d;
    let rows_per_task = v.div_ceil(rayon::current_num_threads());
    let shared = Disjoint::new(sum);
    (0..v.div_ceil(rows_per_task)).into_par_iter().for_each(|task| {
        let owned = task * rows_per_task..((task + 1) * rows_per_task).min(v);
        for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
            if owned.contains(&(*id as usize)) {
                // SAFETY: this task alone writes the rows it owns.
                let row = unsafe { shared.piece(*id as usize * d, d) };
                for (sum, value) in row.iter_mut().zip(dy) {
                    *sum += value;
                }
            }
        }
    });
}
