//! Numbers of f16 beside f32. Both functions are exact in what they read: only the sums round.

use half::f16;

use super::simd::{dot, vectorized};
use crate::platform;

/// Writes `halves` as f32.
pub fn widen(halves: &[f16], floats: &mut [f32]) {
    assert_eq!(halves.len(), floats.len(), "numbers and room for them");
    if platform::halves::widen(halves, floats) {
        return;
    }
    vectorized(
        #[inline(always)]
        || {
            for (float, half) in floats.iter_mut().zip(halves) {
                *float = widened(half.to_bits());
            }
        },
    );
}

/// Products of the rows of `w: [m, k]` with at most four rows `x: [n, k]`: `out[i, j] = x[i]·w[j]`.
pub fn products(w: &[f16], x: &[f32], k: usize, out: &mut [f32]) {
    let (n, m) = (x.len() / k, w.len() / k);
    assert!(x.len() == n * k && w.len() == m * k && out.len() == n * m, "{} and {} numbers in rows of {k}", x.len(), w.len());
    if platform::halves::products(w, x, k, out) {
        return;
    }
    let mut space = vec![0.0; k];
    for (j, w) in w.chunks_exact(k).enumerate() {
        widen(w, &mut space);
        vectorized(
            #[inline(always)]
            || {
                for (i, x) in x.chunks_exact(k).enumerate() {
                    out[i * m + j] = dot(x, &space);
                }
            },
        );
    }
}

/// The number behind the bits of an f16, by integer arithmetic that becomes vectors. Threads of the CPU device flush
/// denormals, so none may come up between.
#[inline(always)]
fn widened(bits: u16) -> f32 {
    const SMALLEST: u32 = 113 << 23; // 2⁻¹⁴, the smallest f16 that is no denormal
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff) << 13;
    let normal = rest + (112 << 23);
    let special = normal + (112 << 23); // infinite or no number
    let denormal = (f32::from_bits(rest + SMALLEST) - f32::from_bits(SMALLEST)).to_bits();
    let value = if rest < 1 << 23 { denormal } else { normal };
    f32::from_bits(sign | if rest < 0x1f << 23 { value } else { special })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_exactly() {
        platform::prepare_threads(); // f16 that are denormal must survive where denormal f32 are flushed
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut floats = vec![0.0; all.len()];
        widen(&all, &mut floats);
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        for (half, float) in all.iter().zip(&floats) {
            assert!(same(half.to_f32(), *float), "{half}: {float}");
            assert!(same(half.to_f32(), widened(half.to_bits())), "{half} by integers");
        }
    }

    #[test]
    fn products_are_those_of_f32_for_every_size() {
        for k in [1, 2, 7, 8, 9, 63, 64, 65, 100, 1000] {
            for (n, m) in [(1, 1), (1, 5), (2, 3), (3, 2), (4, 7)] {
                let number = |i: usize| ((i * 7919) % 31) as f32 / 16.0 - 1.0; // sums of their products are exact
                let x: Vec<f32> = (0..n * k).map(number).collect();
                let w: Vec<f16> = (0..m * k).map(|i| f16::from_f32(number(i + 5))).collect();
                let mut out = vec![f32::NAN; n * m];
                products(&w, &x, k, &mut out);
                for (i, x) in x.chunks(k).enumerate() {
                    for (j, w) in w.chunks(k).enumerate() {
                        let exact: f32 = x.iter().zip(w).map(|(x, w)| x * w.to_f32()).sum();
                        assert_eq!(out[i * m + j], exact, "{n}x{k}x{m}");
                    }
                }
            }
        }
    }
}
