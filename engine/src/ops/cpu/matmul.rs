//! Matrix products through the `gemm` crate, and the memory-bound case of few rows.

use rayon::prelude::*;

use super::simd::{dot, vectorized};
use super::tensor::Disjoint;

/// A matrix in a slice, with strides in elements.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// `rows × cols` in row-major order.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `rows × cols`, `row_stride` elements from row to row.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(),
            "matrix {rows}x{cols} (stride {row_stride}) in {} elements",
            data.len()
        );
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Rows and columns exchanged; nothing moves.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `out = scale · a·b`, or `out += scale · a·b`; `out` is row-major with `out_stride` from row to row.
pub fn matmul(out: &mut [f32], out_stride: usize, a: View, b: View, scale: f32, add: bool, threads: bool) {
    let (m, n) = (a.rows, b.cols);
    assert!(
        m == 0 || n == 0 || ((m - 1) * out_stride + n <= out.len() && n <= out_stride),
        "product {m}x{n} (stride {out_stride}) in {} elements",
        out.len()
    );
    // SAFETY: `out` holds the product by the assertion above.
    unsafe { matmul_to(out.as_mut_ptr(), out_stride, a, b, scale, add, threads) }
}

/// As [`matmul`], into rows that share their buffer with other tasks' columns.
///
/// # Safety
/// `out` must be valid for `a.rows` rows of `b.cols` elements, `out_stride` apart, that nobody else touches.
pub unsafe fn matmul_to(out: *mut f32, out_stride: usize, a: View, b: View, scale: f32, add: bool, threads: bool) {
    assert_eq!(a.cols, b.rows, "inner sizes of a product");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = if threads && m * n * k > 1 << 18 { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: `View` holds every element read; the caller vouches for the elements written.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `x · wᵀ` for a row-major `x: [n, k]` and `w: [m, k]`.
pub fn linear(x: &[f32], w: &[f32], n: usize, k: usize, m: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * m];
    match n {
        0..=4 => few_rows(&mut out, x, w, n, k, m),
        5..=MOST_ROWS => some_rows(&mut out, x, w, n, k, m),
        _ => matmul(&mut out, m, View::new(x, n, k), View::new(w, m, k).t(), 1.0, false, true),
    }
    out
}

/// Rows up to which the weights are read as they lie: to rearrange them, as a general product does, would take as long as
/// the product.
const MOST_ROWS: usize = 128;

/// Rows of `x` are made a multiple of this: one vector of AVX-512, two of AVX2, four of NEON.
const LANES: usize = 16;

/// With some rows `x` is transposed, and rows of the weights are multiplied with it as they lie, 48 of them at a time: their
/// products are still in the cache when they are written to their columns.
fn some_rows(out: &mut [f32], x: &[f32], w: &[f32], n: usize, k: usize, m: usize) {
    const BLOCK: usize = 48;
    let rows = n.next_multiple_of(LANES);
    let mut columns = vec![0.0; k * rows]; // [k, rows]
    for (row, x) in x.chunks(k).enumerate() {
        columns[row..].iter_mut().step_by(rows).zip(x).for_each(|(column, x)| *column = *x);
    }
    let shared = Disjoint::new(out);
    let sums = || vec![0.0; BLOCK * rows];
    (0..m.div_ceil(BLOCK)).into_par_iter().for_each_init(sums, |sums, block| {
        let first = block * BLOCK;
        let count = BLOCK.min(m - first);
        let weights = View::new(&w[first * k..][..count * k], count, k);
        matmul(sums, rows, weights, View::new(&columns, k, rows), 1.0, false, false);
        for row in 0..n {
            // SAFETY: one task per block writes these columns.
            let out = unsafe { shared.piece(row * m + first, count) };
            out.iter_mut().zip(sums[row..].iter().step_by(rows)).for_each(|(out, sum)| *out = *sum);
        }
    });
}

/// With few rows the weights are read once from memory and every row of `x` meets them in the cache.
fn few_rows(out: &mut [f32], x: &[f32], w: &[f32], n: usize, k: usize, m: usize) {
    const BLOCK: usize = 64;
    let mut blocks = vec![[0.0f32; BLOCK * 4]; m.div_ceil(BLOCK)];
    blocks.par_iter_mut().enumerate().with_min_len(4).for_each(|(block, sums)| {
        vectorized(
            #[inline(always)]
            || {
                for j in 0..BLOCK.min(m - block * BLOCK) {
                    let row = (block * BLOCK + j) * k;
                    for i in 0..n {
                        sums[i * BLOCK + j] = dot(&x[i * k..][..k], &w[row..][..k]);
                    }
                }
            },
        );
    });
    for (block, sums) in blocks.iter().enumerate() {
        let width = BLOCK.min(m - block * BLOCK);
        for i in 0..n {
            out[i * m + block * BLOCK..][..width].copy_from_slice(&sums[i * BLOCK..][..width]);
        }
    }
}
