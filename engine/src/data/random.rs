//! The one source of random numbers: small, seeded, the same on every platform, saved with a run.

use serde::{Deserialize, Serialize};

/// SplitMix64: a counter in steps of the golden ratio, mixed. 64 bits of state, period 2⁶⁴.
///
/// Steele, Lea & Flood 2014, <https://doi.org/10.1145/2660193.2660195>
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Random {
    state: u64,
}

/// 2⁶⁴ divided by the golden ratio, made odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes 64 bits so that every bit of the result depends on every bit of `x`.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number that depends on a seed and a name.
pub fn of_name(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)))
}

impl Random {
    /// A sequence of numbers that depends on the seed alone.
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed.wrapping_add(GOLDEN)) }
    }

    /// A sequence of its own for one purpose (`stream`) of a seed.
    pub fn stream(seed: u64, stream: u64) -> Self {
        Self::new(mix(seed).wrapping_add(mix(stream.wrapping_add(GOLDEN)).rotate_left(32)))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A whole number below `n`, each equally likely; 0 where `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n < 2 {
            return 0;
        }
        // The high half of bits × n; draws that would favour small results are repeated.
        let unfair = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= unfair {
                return (product >> 64) as u64;
            }
        }
    }

    /// A number in `0 ≤ x < 1` with 53 random bits.
    pub fn f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of the choices; there must be at least one.
    pub fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// A pseudo-random order of `0..n` that is computed, not stored: four rounds of a Feistel network
/// over the next power of four, walked until the value lies below `n`.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The order that belongs to `key`.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// What stands at place `i < n`.
    pub fn at(&self, i: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let mut x = i;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for round in 1..=4 {
                let mixed = mix(self.key ^ mix(right ^ (round << 56)));
                (left, right) = (right, (left ^ mixed) & mask);
            }
            x = (left << self.half_bits) | right;
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_never_change() {
        let three = |mut random: Random| [random.next_u64(), random.next_u64(), random.next_u64()];
        assert_eq!(three(Random::new(1337)), [0x317d_3089_73b9_c082, 0x5be0_404a_8125_8bbe, 0xb81e_f245_a4ff_7476]);
        assert_eq!(three(Random::stream(1337, 5)), [0xdc29_2386_2f7c_8d8e, 0x6c02_a224_4eb9_3f43, 0x6ffa_3235_e6ba_3f1b]);
        assert_eq!([mix(1), mix(GOLDEN)], [0x5692_161d_100b_05e5, 0xe220_a839_7b1d_cdaf]);
        let order = |n: u64| (0..8).map(|i| Permutation::new(n, 1337).at(i)).collect::<Vec<_>>();
        assert_eq!(order(10), [5, 0, 7, 2, 9, 3, 4, 1]);
        assert_eq!(order(1000), [453, 466, 650, 377, 854, 59, 945, 177]);
        // The published SplitMix64 sequence from state 1234567.
        let known = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(three(Random { state: 1_234_567 }), known);
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut random = Random::new(1);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        // 10,000 each; five standard deviations are 463.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 463), "{counts:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.f64())));
    }

    #[test]
    fn streams_differ() {
        assert_ne!(Random::stream(1, 0), Random::stream(1, 1));
        assert_ne!(Random::stream(0, 1), Random::stream(1, 0));
    }

    #[test]
    fn permutation_visits_everything_once() {
        for n in [1u64, 2, 3, 63, 64, 65, 1000, 4097] {
            let order = Permutation::new(n, 99);
            let mut seen: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            if n > 60 {
                assert!(seen.iter().zip(0..).any(|(&x, i)| x != i), "n = {n} is not shuffled");
                let other = Permutation::new(n, 100);
                assert!((0..n).any(|i| other.at(i) != seen[i as usize]));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "n = {n}");
        }
    }

    #[test]
    fn saved_state_continues() {
        let mut random = Random::new(5);
        random.next_u64();
        let json = serde_json::to_string(&random).unwrap();
        let mut loaded: Random = serde_json::from_str(&json).unwrap();
        assert_eq!(random.next_u64(), loaded.next_u64());
    }
}
