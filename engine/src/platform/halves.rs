//! Numbers of f16 by the instructions that processors have for them. Each function says whether it did the work: where it
//! did not, the caller computes without them.

pub use chosen::{products, widen};

#[cfg(target_arch = "x86_64")]
mod chosen {
    use std::arch::x86_64::*;

    use half::f16;

    /// Whether the processor has AVX2, FMA and F16C, which came together.
    fn able() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    }

    /// Writes `halves` as f32.
    pub fn widen(halves: &[f16], floats: &mut [f32]) -> bool {
        // SAFETY: the processor has the instructions.
        able() && unsafe { widen_here(halves, floats) }
    }

    /// `out[i, j] = x[i]·w[j]` for rows of `k` numbers: `x: [n, k]`, `w: [m, k]`, and `n` at most 4.
    pub fn products(w: &[f16], x: &[f32], k: usize, out: &mut [f32]) -> bool {
        // SAFETY: the processor has the instructions. Eight sums at a time keep its multipliers busy.
        unsafe {
            match x.len() / k {
                1 if able() => products_here::<1, 8>(w, x, k, out),
                2 if able() => products_here::<2, 4>(w, x, k, out),
                3 if able() => products_here::<3, 2>(w, x, k, out),
                4 if able() => products_here::<4, 2>(w, x, k, out),
                _ => false,
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen_here(halves: &[f16], floats: &mut [f32]) -> bool {
        let (blocks, rest) = halves.as_chunks::<8>();
        let (wide, last) = floats.as_chunks_mut::<8>();
        for (wide, block) in wide.iter_mut().zip(blocks) {
            // SAFETY: there are eight numbers on both sides.
            unsafe { _mm256_storeu_ps(wide.as_mut_ptr(), eight(block.as_ptr())) };
        }
        last.iter_mut().zip(rest).for_each(|(float, half)| *float = half.to_f32());
        true
    }

    /// With `N` rows of `x`, and `P` times eight columns at a time.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn products_here<const N: usize, const P: usize>(w: &[f16], x: &[f32], k: usize, out: &mut [f32]) -> bool {
        let m = w.len() / k;
        assert!(x.len() == N * k && out.len() == N * m, "{N} rows of {k} numbers");
        let (whole, eights) = (k / (8 * P) * P, k / 8);
        for (j, w) in w.chunks_exact(k).enumerate() {
            let mut sums = [[_mm256_setzero_ps(); N]; P];
            for first in (0..whole).step_by(P) {
                for (p, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: there are eight more numbers in `w` and in the `N` rows of `x`, which are as long.
                    unsafe { add_eight(sums, w.as_ptr(), x.as_ptr(), k, (first + p) * 8) };
                }
            }
            for eight in whole..eights {
                // SAFETY: as above.
                unsafe { add_eight(&mut sums[0], w.as_ptr(), x.as_ptr(), k, eight * 8) };
            }
            let mut all = [_mm256_setzero_ps(); N];
            for sums in &sums {
                for (all, sum) in all.iter_mut().zip(sums) {
                    *all = _mm256_add_ps(*all, *sum);
                }
            }
            for (i, sum) in all.iter().enumerate() {
                let rest = w[eights * 8..].iter().zip(&x[i * k + eights * 8..]);
                out[i * m + j] = rest.fold(total(*sum), |total, (w, x)| w.to_f32().mul_add(*x, total));
            }
        }
        true
    }

    /// Adds the products of eight numbers of `w` with those of every row of `x`, `k` apart.
    ///
    /// # Safety
    /// There must be eight numbers from `at` on in each.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_eight<const N: usize>(sums: &mut [__m256; N], w: *const f16, x: *const f32, k: usize, at: usize) {
        // SAFETY: by the caller's promise.
        let weights = unsafe { eight(w.add(at)) };
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            *sum = _mm256_fmadd_ps(unsafe { _mm256_loadu_ps(x.add(i * k + at)) }, weights, *sum);
        }
    }

    /// Eight numbers as f32.
    ///
    /// # Safety
    /// They must be there to be read.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(halves: *const f16) -> __m256 {
        // SAFETY: by the caller's promise.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.cast()) })
    }

    /// The sum of eight numbers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn total(sums: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod chosen {
    use half::f16;

    /// Writes `halves` as f32.
    pub fn widen(_halves: &[f16], _floats: &mut [f32]) -> bool {
        false
    }

    /// `out[i, j] = x[i]·w[j]` for rows of `k` numbers: `x: [n, k]`, `w: [m, k]`, and `n` at most 4.
    pub fn products(_w: &[f16], _x: &[f32], _k: usize, _out: &mut [f32]) -> bool {
        false
    }
}
