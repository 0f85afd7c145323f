//! Vectorised building blocks. Plain loops over fixed-width accumulators: the compiler turns them into
//! the widest vectors of the machine at hand, which is found out at run time. No `fold`, `sum` or `map`: the compiler may
//! leave those calls, compiled for the oldest machine.

use pulp::Simd;

/// Lanes of an accumulator: one AVX-512 register, two of AVX2, four of NEON.
const LANES: usize = 16;

/// Runs `f` compiled for the widest vectors of this machine. Mark the closure `#[inline(always)]`: one that is not
/// inlined is compiled for the oldest machine, and every `mul_add` becomes a call.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `Σ a[i]·b[i]`.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [[0.0f32; LANES]; 4];
    let (a_blocks, a_rest) = a.as_chunks::<{ LANES * 4 }>();
    let (b_blocks, b_rest) = b.as_chunks::<{ LANES * 4 }>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for (part, sum) in sums.iter_mut().enumerate() {
            for (lane, sum) in sum.iter_mut().enumerate() {
                let i = part * LANES + lane;
                *sum = x[i].mul_add(y[i], *sum);
            }
        }
    }
    let mut total = 0.0;
    for (x, y) in a_rest.iter().zip(b_rest) {
        total = x.mul_add(*y, total);
    }
    let [a, b, c, d] = sums;
    for lane in 0..LANES {
        total += (a[lane] + b[lane]) + (c[lane] + d[lane]);
    }
    total
}

/// `Σ a[i]·b[i]`, for short rows: the vectors are added up by `simd`, which takes fewer steps than number by number.
#[inline(always)]
pub fn short_dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let ((a_blocks, a), (b_blocks, b)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for part in 0..4 {
            sums[part] = simd.mul_add_e_f32s(x[part], y[part], sums[part]);
        }
    }
    for (x, y) in a.iter().zip(b) {
        sums[0] = simd.mul_add_e_f32s(*x, *y, sums[0]);
    }
    let mut total = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3])));
    for (x, y) in a_rest.iter().zip(b_rest) {
        total = x.mul_add(*y, total);
    }
    total
}

/// `y += scale·x`, for short rows.
#[inline(always)]
pub fn add_scaled<S: Simd>(simd: S, y: &mut [f32], scale: f32, x: &[f32]) {
    let ((y, y_rest), (x, x_rest)) = (S::as_mut_simd_f32s(y), S::as_simd_f32s(x));
    let scales = simd.splat_f32s(scale);
    for (y, x) in y.iter_mut().zip(x) {
        *y = simd.mul_add_e_f32s(scales, *x, *y);
    }
    for (y, x) in y_rest.iter_mut().zip(x_rest) {
        *y = scale.mul_add(*x, *y);
    }
}

/// `Σ f(a[i])`.
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += f(block[lane]);
        }
    }
    let mut total = 0.0;
    for x in rest {
        total += f(*x);
    }
    for sum in sums {
        total += sum;
    }
    total
}

/// Largest element; negative infinity for none.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            best[lane] = if block[lane] > best[lane] { block[lane] } else { best[lane] };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for x in best {
        largest = if x > largest { x } else { largest };
    }
    for x in rest {
        largest = if *x > largest { *x } else { largest };
    }
    largest
}

/// `e^x` to 2 units in the last place; 0 below -87, as denormals are flushed.
///
/// Cody & Waite range reduction and a polynomial of degree 6, as in Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let value = (p * r).mul_add(r, r) + 1.0;
    let scaled = value * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23)); // the integer is in its last bits
    if x < -87.0 { 0.0 } else { scaled }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -860..=879 {
            for j in 0..7 {
                let x = i as f32 * 0.1 + j as f32 * 0.013;
                let exact = f64::from(x).exp();
                worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
            }
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    struct Short<'a>(&'a [f32]);

    impl pulp::WithSimd for Short<'_> {
        type Output = f32;

        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            short_dot(simd, self.0, self.0)
        }
    }

    #[test]
    fn reductions_cover_every_length() {
        for n in [0, 1, 15, 16, 17, 63, 64, 65, 1000] {
            let a: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let exact: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(&a, &a), exact, "{n}");
            assert_eq!(pulp::Arch::new().dispatch(Short(&a)), exact, "{n}");
            assert_eq!(sum(&a, |x| x * x), exact, "{n}");
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{n}");
        }
    }
}
