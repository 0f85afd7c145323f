//! Matrix products through the `gemm` crate, and the memory-bound case of few rows.

use std::ops::Range;

use half::f16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::quant::Nf4;
use super::halves::widen;
use super::simd::short_dot;
use super::tensor::{Disjoint, with_space, written};

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

/// A row-major matrix whose rows are read as f32, whatever they are stored as.
pub trait Rows: Sync {
    /// Some rows; `space` is as long as they are.
    fn rows<'a>(&'a self, rows: Range<usize>, space: &'a mut [f32]) -> &'a [f32];

    /// All of them, where they are stored as f32.
    fn dense(&self) -> Option<&[f32]> {
        None
    }

    /// Products of rows of `k` numbers with every row of `x: [n, k]`, `n` at most [`FEW_ROWS`]: `out[i, j] = x[i]·rows[j]`.
    fn products(&self, rows: Range<usize>, x: &[f32], k: usize, out: &mut [f32]) {
        const AT_ONCE: usize = 4; // they stay in the cache nearest to the core
        let mut space = vec![0.0; if self.dense().is_some() { 0 } else { AT_ONCE * k }];
        let width = rows.len();
        for first in (0..width).step_by(AT_ONCE) {
            let count = AT_ONCE.min(width - first);
            let space = if space.is_empty() { &mut space[..] } else { &mut space[..count * k] };
            let weights = self.rows(rows.start + first..rows.start + first + count, space);
            pulp::Arch::new().dispatch(Products { weights, x, k, first, width, out });
        }
    }
}

/// Products of some rows of weights with rows of `x`, to columns from `first` on of rows of `width`.
struct Products<'a> {
    weights: &'a [f32],
    x: &'a [f32],
    k: usize,
    first: usize,
    width: usize,
    out: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (j, weights) in self.weights.chunks_exact(self.k).enumerate() {
            for (x, out) in self.x.chunks_exact(self.k).zip(self.out.chunks_exact_mut(self.width)) {
                out[self.first + j] = short_dot(simd, x, weights);
            }
        }
    }
}

/// Rows of so many columns of f32.
pub struct Floats<'a>(pub &'a [f32], pub usize);

impl Rows for Floats<'_> {
    fn rows<'a>(&'a self, rows: Range<usize>, _: &'a mut [f32]) -> &'a [f32] {
        &self.0[rows.start * self.1..rows.end * self.1]
    }

    fn dense(&self) -> Option<&[f32]> {
        Some(self.0)
    }
}

/// Rows of so many columns of f16.
pub struct Halves<'a>(pub &'a [f16], pub usize);

impl Rows for Halves<'_> {
    fn rows<'a>(&'a self, rows: Range<usize>, space: &'a mut [f32]) -> &'a [f32] {
        let halves = &self.0[rows.start * self.1..rows.end * self.1];
        match halves.len() {
            0..=SMALL => widen(halves, space),
            _ => halves.par_chunks(SMALL).zip(space.par_chunks_mut(SMALL)).for_each(|(halves, space)| widen(halves, space)),
        }
        space
    }

    fn products(&self, rows: Range<usize>, x: &[f32], k: usize, out: &mut [f32]) {
        super::halves::products(&self.0[rows.start * k..rows.end * k], x, k, out);
    }
}

impl Rows for Nf4 {
    fn rows<'a>(&'a self, rows: Range<usize>, space: &'a mut [f32]) -> &'a [f32] {
        self.dequantize_rows(rows, space);
        space
    }
}

/// Numbers that are read as f32 by one task.
const SMALL: usize = 1 << 17;

/// Numbers of a weight that are read as f32 at a time where there are many rows of `x`: they stay in the cache.
const PIECE: usize = 1 << 20;

/// `x · wᵀ` for a row-major `x: [n, k]` and `w: [m, k]`.
pub fn linear(x: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) -> Vec<f32> {
    // SAFETY: all of the product is written.
    unsafe { written(n * m, |out| product(out, x, w, n, k, m)) }
}

/// As [`linear`], into `out`.
pub fn linear_to(out: &mut [f32], x: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) {
    assert_eq!(out.len(), n * m, "numbers of a product {n}x{m}");
    // SAFETY: `out` holds the product.
    unsafe { product(out.as_mut_ptr(), x, w, n, k, m) }
}

/// As [`linear`], into `n` times `m` numbers, which are all written.
///
/// # Safety
/// `out` must be valid for writing them.
unsafe fn product(out: *mut f32, x: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) {
    assert!(k > 0, "a product of nothing");
    let to = |column: usize, rows: View| {
        // SAFETY: these columns lie inside the product, and nobody else writes it.
        unsafe { matmul_to(out.add(column), m, View::new(x, n, k), rows.t(), 1.0, false, true) }
    };
    // SAFETY: valid by the caller's promise.
    let shared = unsafe { Disjoint::at(out, n * m) };
    match (n, w.dense()) {
        (0..=FEW_ROWS, _) => few_rows(shared, x, w, n, k, m),
        (..=MOST_ROWS, _) => some_rows(shared, x, w, n, k, m),
        (_, Some(w)) => to(0, View::new(w, m, k)),
        (_, None) => pieces(w, k, m, |rows, piece| to(rows.start, View::new(piece, rows.len(), k))),
    }
}

/// `dy · w` for a row-major `dy: [n, m]` and `w: [m, k]`.
pub fn linear_dx(dy: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) -> Vec<f32> {
    let mut dx = vec![0.0; n * k];
    linear_dx_to(&mut dx, dy, w, n, k, m);
    dx
}

/// As [`linear_dx`], into `dx`.
pub fn linear_dx_to(dx: &mut [f32], dy: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) {
    match w.dense() {
        Some(w) => matmul(dx, k, View::new(dy, n, m), View::new(w, m, k), 1.0, false, true),
        None => pieces(w, k, m, |rows, piece| {
            let part = View::strided(&dy[rows.start..], n, rows.len(), m);
            matmul(dx, k, part, View::new(piece, rows.len(), k), 1.0, rows.start > 0, true);
        }),
    }
}

/// Goes through a matrix of `m` rows of `k` columns, some rows at a time.
fn pieces(w: &impl Rows, k: usize, m: usize, mut work: impl FnMut(Range<usize>, &[f32])) {
    let height = (PIECE / k).clamp(1, m.max(1));
    with_space(height * k, |space| {
        for first in (0..m).step_by(height) {
            let rows = first..m.min(first + height);
            work(rows.clone(), w.rows(rows.clone(), &mut space[..rows.len() * k]));
        }
    });
}

/// Rows up to which the weights are read as they lie: to rearrange them, as a general product does, would take as long as
/// the product.
const MOST_ROWS: usize = 128;

/// Rows of `x` are made a multiple of this: one vector of AVX-512, two of AVX2, four of NEON.
const LANES: usize = 16;

/// With some rows `x` is transposed, and rows of the weights are multiplied with it as they lie, 48 of them at a time: their
/// products are still in the cache when they are written to their columns.
fn some_rows(out: Disjoint, x: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) {
    const BLOCK: usize = 48;
    let rows = n.next_multiple_of(LANES);
    let columns = columns(x, n, k, rows);
    (0..m.div_ceil(BLOCK)).into_par_iter().for_each(|block| {
        let first = block * BLOCK;
        let count = BLOCK.min(m - first);
        let read = if w.dense().is_some() { 0 } else { count * k };
        with_space(BLOCK * rows + read, |space| {
            let (sums, space) = space.split_at_mut(BLOCK * rows);
            let weights = View::new(w.rows(first..first + count, space), count, k);
            matmul(sums, rows, weights, View::new(&columns, k, rows), 1.0, false, false);
            let mut line = [0.0; BLOCK];
            for row in 0..n {
                line.iter_mut().zip(sums[row..].iter().step_by(rows)).for_each(|(x, sum)| *x = *sum);
                // SAFETY: one task per block writes these columns.
                unsafe { out.write(row * m + first, &line[..count]) };
            }
        });
    });
}

/// `x: [n, k]` as `[k, rows]`, with zeros after the `n` numbers of a row.
fn columns(x: &[f32], n: usize, k: usize, rows: usize) -> Vec<f32> {
    const BLOCK: usize = 64;
    let transpose = |out: *mut f32| {
        // SAFETY: there is room for so many.
        let out = unsafe { Disjoint::at(out, k * rows) };
        (0..k.div_ceil(BLOCK)).into_par_iter().with_min_len(4).for_each(|block| {
            let mut line = [0.0; MOST_ROWS];
            for column in block * BLOCK..k.min((block + 1) * BLOCK) {
                for row in 0..n {
                    line[row] = x[row * k + column];
                }
                // SAFETY: one task per block writes these rows.
                unsafe { out.write(column * rows, &line[..rows]) };
            }
        });
    };
    // SAFETY: every row is written.
    unsafe { written(k * rows, transpose) }
}

/// Rows of `x` up to which the weights are multiplied as they come from memory.
pub const FEW_ROWS: usize = 4;

/// With few rows the weights are read once from memory, and every row of `x` meets them in the cache.
fn few_rows(out: Disjoint, x: &[f32], w: &impl Rows, n: usize, k: usize, m: usize) {
    const BLOCK: usize = 64;
    const WORK: usize = 1 << 16; // weights of a task: some microseconds
    (0..m.div_ceil(BLOCK)).into_par_iter().with_min_len((WORK / BLOCK).div_ceil(k)).for_each(|block| {
        let first = block * BLOCK;
        let count = BLOCK.min(m - first);
        let mut sums = [0.0f32; BLOCK * FEW_ROWS];
        w.products(first..first + count, x, k, &mut sums[..n * count]);
        for (row, sums) in sums[..n * count].chunks_exact(count).enumerate() {
            // SAFETY: one task per block writes these columns.
            unsafe { out.write(row * m + first, sums) };
        }
    });
}
