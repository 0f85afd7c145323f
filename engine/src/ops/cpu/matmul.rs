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
        5..=MOST_ROWS => some_rows(&mut out, x, w, k, m),
        _ => matmul(&mut out, m, View::new(x, n, k), View::new(w, m, k).t(), 1.0, false, true),
    }
    out
}

/// Rows up to which the weights are read as they lie: to rearrange them, as a general product does, would take longer than
/// the product.
const MOST_ROWS: usize = 64;

/// Rows of the weights and of `x` that are multiplied in registers: 12 accumulators, which every machine has.
const TILE: [usize; 2] = [4, 3];

/// With some rows the weights are read once from memory, four rows at a time, and meet all rows of `x` in the cache.
fn some_rows(out: &mut [f32], x: &[f32], w: &[f32], k: usize, m: usize) {
    let shared = Disjoint::new(out);
    (0..m.div_ceil(TILE[0])).into_par_iter().with_min_len(8).for_each(|block| {
        let first = block * TILE[0];
        let count = TILE[0].min(m - first);
        let weights = std::array::from_fn(|j| &w[(first + j.min(count - 1)) * k..][..k]);
        pulp::Arch::new().dispatch(Rows { weights, first, count, x, out: shared, k, m });
    });
}

/// Four rows of the weights, of which `count` count, times all rows of `x`, in columns `first..` of the product.
struct Rows<'a> {
    weights: [&'a [f32]; TILE[0]],
    first: usize,
    count: usize,
    x: &'a [f32],
    out: Disjoint,
    k: usize,
    m: usize,
}

impl pulp::WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { weights, first, count, x, out, k, m } = self;
        let w: [(&[S::f32s], &[f32]); TILE[0]] = weights.map(|row| S::as_simd_f32s(row));
        let n = x.len() / k;
        for row in (0..n).step_by(TILE[1]) {
            let rows = TILE[1].min(n - row);
            let x: [(&[S::f32s], &[f32]); TILE[1]] = [0, 1, 2].map(|i: usize| S::as_simd_f32s(&x[(row + i.min(rows - 1)) * k..][..k]));
            let mut sums = [[simd.splat_f32s(0.0); TILE[0]]; TILE[1]];
            let whole = x[0].0.len();
            let (x0, x1, x2) = (&x[0].0[..whole], &x[1].0[..whole], &x[2].0[..whole]);
            let (w0, w1, w2, w3) = (&w[0].0[..whole], &w[1].0[..whole], &w[2].0[..whole], &w[3].0[..whole]);
            for at in 0..whole {
                let (x, w) = ([x0[at], x1[at], x2[at]], [w0[at], w1[at], w2[at], w3[at]]);
                for i in 0..TILE[1] {
                    for j in 0..TILE[0] {
                        sums[i][j] = simd.mul_add_f32s(x[i], w[j], sums[i][j]);
                    }
                }
            }
            for i in 0..rows {
                // SAFETY: one task per block writes these columns.
                let out = unsafe { out.piece((row + i) * m + first, count) };
                for (j, out) in out.iter_mut().enumerate() {
                    *out = simd.reduce_sum_f32s(sums[i][j]);
                    for (x, w) in x[i].1.iter().zip(w[j].1) {
                        *out += x * w;
                    }
                }
            }
        }
    }
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
