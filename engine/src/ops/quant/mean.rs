//! The mean of many numbers, rounded as PyTorch rounds it.

/// Sums that a long one passes through on its way.
const LEVELS: usize = 4;

/// `Σ values / n` in f32, in the order in which PyTorch adds on one thread of a processor with AVX2; 0 of nothing.
///
/// The numbers are dealt to 4 · 8 sums. Each of them cascades: what a level has gathered from a power of two of
/// numbers moves on to the next level, so that few additions are of a large number and a small one.
/// On several threads PyTorch cuts rows of 32,768 numbers and more, and the last bit may differ.
pub fn mean(values: &[f32]) -> f32 {
    let sum = if values.len() < 8 { sum::<1>(values) } else { sum::<8>(values) };
    if values.is_empty() { 0.0 } else { sum / values.len() as f32 }
}

fn sum<const LANES: usize>(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (rows, loose) = vectors.as_chunks::<4>();
    let [mut lanes, others @ ..] = cascade(rows);
    for vector in loose.iter().chain(&others) {
        add(&mut lanes, vector);
    }
    rest.iter().chain(&lanes).fold(0.0, |sum, x| sum + x)
}

fn cascade<const LANES: usize>(rows: &[[[f32; LANES]; 4]]) -> [[f32; LANES]; 4] {
    let log = usize::BITS - rows.len().saturating_sub(1).leading_zeros(); // rounded up
    let power = (log as usize / LEVELS).max(4);
    let mut levels = [[[0.0; LANES]; 4]; LEVELS];
    for (row, done) in rows.iter().zip(1usize..) {
        add_all(&mut levels[0], row);
        for level in 1..LEVELS {
            if !done.is_multiple_of(1 << (power * level)) {
                break;
            }
            let gathered = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; 4]);
            add_all(&mut levels[level], &gathered);
        }
    }
    let [mut total, others @ ..] = levels;
    others.iter().for_each(|level| add_all(&mut total, level));
    total
}

fn add_all<const LANES: usize>(sums: &mut [[f32; LANES]; 4], values: &[[f32; LANES]; 4]) {
    sums.iter_mut().zip(values).for_each(|(sum, x)| add(sum, x));
}

fn add<const LANES: usize>(sums: &mut [f32; LANES], values: &[f32; LANES]) {
    sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_sums_are_exact_at_every_size() {
        assert_eq!(mean(&[]), 0.0);
        for count in [1usize, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 512, 1000, 4095] {
            let values: Vec<f32> = (1..=count).map(|x| x as f32).collect(); // sums below 2²⁴
            assert_eq!(mean(&values), (count + 1) as f32 / 2.0, "{count}");
        }
    }

    /// `torch.set_num_threads(1); torch.tensor(values).mean()` of torch 2.15.0, as bits.
    #[test]
    fn rounding_is_that_of_pytorch() {
        for (count, bits) in [
            (1usize, 0),
            (2, 1_050_556_281),
            (7, 1_054_465_826),
            (8, 1_054_049_363),
            (9, 1_056_029_643),
            (33, 1_056_783_562),
            (65, 1_056_967_367),
            (1000, 1_056_963_814),
            (2049, 1_056_957_701),
            (16_411, 1_056_963_556),
            (100_003, 1_056_964_510),
            (300_007, 1_056_964_547),
        ] {
            let spread = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0;
            let values: Vec<f32> = (0..count).map(spread).collect();
            assert_eq!(mean(&values).to_bits(), bits, "{count}");
        }
    }
}
