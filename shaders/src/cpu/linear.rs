//! Matrix products.

/// `y = x·wᵀ`: rows of `x` and `w` have `columns` numbers.
pub fn linear(x: &[f32], w: &[f32], columns: usize) -> Vec<f32> {
    let row = |x: &[f32]| w.chunks(columns).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect::<Vec<f32>>();
    x.chunks(columns).flat_map(row).collect()
}

/// `dx = dy·w`, the gradient by `x`: rows of `w` have `columns` numbers, rows of `dy` one for each of them.
pub fn linear_dx(dy: &[f32], w: &[f32], columns: usize) -> Vec<f32> {
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

/// `dw = dyᵀ·x`, the gradient by `w`: rows of `x` have `columns` numbers, rows of `dy` have `out`.
pub fn linear_dw(dy: &[f32], x: &[f32], columns: usize, out: usize) -> Vec<f32> {
    let mut dw = vec![0.0; out * columns];
    for (dy, x) in dy.chunks(out).zip(x.chunks(columns)) {
        for (dy, sums) in dy.iter().zip(dw.chunks_mut(columns)) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += dy * x);
        }
    }
    dw
}
