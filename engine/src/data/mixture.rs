//! From which source the next row comes.

use serde::{Deserialize, Serialize};

use crate::data::random::Random;

/// Chooses sources so that each one's share of *target tokens* follows its weight.
///
/// The source that is furthest behind its share comes next (ties are drawn). After `n` rows a share is off by
/// at most about one row in `n`, whatever the sizes of the files: a small file is simply passed more often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    weights: Vec<f64>,
    tokens: Vec<u64>,
    random: Random,
}

impl Mixture {
    /// One weight per source; they sum to 1.
    pub fn new(weights: Vec<f64>, random: Random) -> Self {
        let tokens = vec![0; weights.len()];
        Self { weights, tokens, random }
    }

    /// The source of the next row.
    pub fn next_source(&mut self) -> usize {
        let total: u64 = self.tokens.iter().sum();
        // One token ahead, so that weights decide the very first rows, too.
        let behind = |i: usize| self.weights[i] * (total + 1) as f64 - self.tokens[i] as f64;
        let candidates = (0..self.weights.len()).filter(|&i| self.weights[i] > 0.0);
        let most = candidates.clone().map(behind).fold(f64::NEG_INFINITY, f64::max);
        let tied: Vec<usize> = candidates.filter(|&i| behind(i) > most - 1e-6).collect();
        tied.get(self.random.below(tied.len() as u64) as usize).copied().unwrap_or(0)
    }

    /// Accounts for a row with this many targets.
    pub fn add(&mut self, source: usize, targets: u64) {
        self.tokens[source] += targets;
    }

    /// Target tokens per source so far.
    pub fn tokens(&self) -> &[u64] {
        &self.tokens
    }

    /// Share of the target tokens that every source had so far.
    pub fn shares(&self) -> Vec<f64> {
        let total = self.tokens.iter().sum::<u64>().max(1) as f64;
        self.tokens.iter().map(|tokens| *tokens as f64 / total).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights_whatever_the_rows_hold() {
        let weights = [0.5, 0.3, 0.19, 0.01, 0.0];
        let mut mixture = Mixture::new(weights.to_vec(), Random::new(1));
        let mut random = Random::new(2);
        for _ in 0..2000 {
            let source = mixture.next_source();
            // Rows of the second source are mostly padding.
            let targets = if source == 1 { 1 + random.below(9) } else { 100 + random.below(28) };
            mixture.add(source, targets);
        }
        for (share, weight) in mixture.shares().iter().zip(weights) {
            assert!((share - weight).abs() < 0.01, "{share} for {weight}");
        }
        assert_eq!(mixture.tokens()[4], 0);
    }

    #[test]
    fn rows_alternate_instead_of_coming_in_blocks() {
        let mut mixture = Mixture::new(vec![0.5, 0.5], Random::new(3));
        let sources: Vec<usize> = (0..100)
            .map(|_| {
                let source = mixture.next_source();
                mixture.add(source, 128);
                source
            })
            .collect();
        assert!(sources.chunks(2).all(|pair| pair[0] != pair[1]));
        assert!(sources.chunks(2).any(|pair| pair[0] == 0) && sources.chunks(2).any(|pair| pair[0] == 1));
    }
}
