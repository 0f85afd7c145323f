//! Dropout whose mask is computed from the place and the seed, and so never stored.

/// Scrambles a word: a bijection whose every input bit changes each output bit about half the time.
///
/// The constants are those of Chris Wellons' search for shifts and factors with the least bias,
/// <https://github.com/skeeto/hash-prospector>, in the public domain.
pub fn scramble(word: u32) -> u32 {
    let word = (word ^ word >> 16).wrapping_mul(0x7feb_352d);
    let word = (word ^ word >> 15).wrapping_mul(0x846c_a68b);
    word ^ word >> 16
}

/// Whether element `index` is kept: its hash is no less than `threshold`, which is the rate times 2³².
pub fn keeps(index: u32, seed: [u32; 2], threshold: u32) -> bool {
    let first = scramble(seed[0]);
    let second = scramble(seed[1] ^ first);
    scramble(scramble(index ^ first).wrapping_add(second)) >= threshold
}

/// `y = x·scale` where the element is kept, 0 elsewhere; of a gradient, the gradient. `x` begins at the place `first`.
pub fn dropout(x: &[f32], first: u32, seed: [u32; 2], threshold: u32, scale: f32) -> Vec<f32> {
    let one = |(i, x): (usize, &f32)| if keeps(first.wrapping_add(i as u32), seed, threshold) { x * scale } else { 0.0 };
    x.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 20;
    const HALF: u32 = 1 << 31;

    /// 1 where the element is kept.
    fn mask(seed: [u32; 2], threshold: u32) -> Vec<f64> {
        (0..LEN as u32).map(|i| f64::from(u8::from(keeps(i, seed, threshold)))).collect()
    }

    /// Correlation of two masks of rate ½; its deviation is `1/√LEN` when they are independent.
    fn correlation(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (2.0 * a - 1.0) * (2.0 * b - 1.0)).sum::<f64>() / a.len() as f64
    }

    /// Five deviations: some hundred comparisons stay below it with a chance of 0.9999.
    #[track_caller]
    fn independent(what: &str, a: &[f64], b: &[f64]) {
        let found = correlation(a, b);
        assert!(found.abs() < 5.0 / (LEN as f64).sqrt(), "{what}: correlation {found}");
    }

    #[test]
    fn the_rate_is_the_threshold() {
        for seed in [[0, 0], [0, 1], [1, 0], [17, 42], [u32::MAX, u32::MAX]] {
            for rate in [0.01, 0.05, 0.1, 0.5, 0.9] {
                let dropped = LEN as f64 - mask(seed, (rate * 2f64.powi(32)) as u32).iter().sum::<f64>();
                let deviation = (LEN as f64 * rate * (1.0 - rate)).sqrt();
                assert!((dropped - LEN as f64 * rate).abs() < 5.0 * deviation, "{dropped} dropped at {rate}");
            }
            assert!(mask(seed, 0).iter().all(|kept| *kept == 1.0));
        }
    }

    #[test]
    fn neighbours_are_independent() {
        for seed in [[0, 0], [0, 1], [1, 0], [17, 42]] {
            let mask = mask(seed, HALF);
            for distance in [1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 576, 1000, 1024, 4096, 1 << 16] {
                independent(&format!("distance {distance}, seed {seed:?}"), &mask[distance..], &mask[..LEN - distance]);
            }
            // Every pattern of eight neighbours comes equally often: χ² of 255 degrees, whose deviation is √510.
            let mut counts = [0.0; 256];
            for eight in mask.chunks(8) {
                counts[eight.iter().fold(0, |bits, kept| 2 * bits + *kept as usize)] += 1.0;
            }
            let expected = LEN as f64 / 8.0 / 256.0;
            let chi: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
            assert!((chi - 255.0).abs() < 5.0 * 510f64.sqrt(), "χ² of {chi}, seed {seed:?}");
        }
    }

    #[test]
    fn seeds_are_independent() {
        let first = mask([17, 42], HALF);
        for seed in [[18, 42], [16, 42], [17, 43], [17, 41], [42, 17], [18, 43], [17 ^ HALF, 42], [17, 42 ^ HALF], [0, 0]] {
            let second = mask(seed, HALF);
            independent(&format!("seed {seed:?}"), &first, &second);
            for distance in [1, 2, 3, 4, 64, 576, 1024] {
                independent(&format!("seed {seed:?} {distance} later"), &first[distance..], &second[..LEN - distance]);
                independent(&format!("seed {seed:?} {distance} before"), &first[..LEN - distance], &second[distance..]);
            }
        }
    }

    #[test]
    fn the_mask_of_a_seed_is_pinned() {
        let bits = (0..32).fold(0u32, |bits, i| bits | u32::from(keeps(i, [1, 2], HALF)) << i);
        assert_eq!(bits, 0x6305_4d48);
        assert_eq!(dropout(&[1.0, -2.0, 3.0, 4.0], 0, [1, 2], HALF, 2.0), [0.0, 0.0, 0.0, 8.0]);
        assert_eq!(dropout(&[3.0, 4.0], 2, [1, 2], HALF, 2.0), [0.0, 8.0]);
    }
}
