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
    /// Tokens of the stage with other weights before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    before: Vec<u64>,
    random: Random,
}

impl Mixture {
    /// One weight per source; they sum to 1.
    pub fn new(weights: Vec<f64>, random: Random) -> Self {
        let tokens = vec![0; weights.len()];
        Self { weights, tokens, before: Vec::new(), random }
    }

    /// Other weights from the next row on. What was drawn before is not made up for.
    pub fn reweigh(&mut self, weights: Vec<f64>) {
        if self.weights != weights {
            self.before = self.drawn();
            self.tokens = vec![0; weights.len()];
            self.weights = weights;
        }
    }

    /// Target tokens per source, whatever the weights were.
    fn drawn(&self) -> Vec<u64> {
        self.tokens.iter().enumerate().map(|(source, tokens)| tokens + self.before.get(source).copied().unwrap_or(0)).collect()
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

    /// Target tokens per source with the present weights.
    pub fn tokens(&self) -> &[u64] {
        &self.tokens
    }

    /// Share of the target tokens that every source had so far, whatever the weights were.
    pub fn shares(&self) -> Vec<f64> {
        let drawn = self.drawn();
        let total = drawn.iter().sum::<u64>().max(1) as f64;
        drawn.into_iter().map(|tokens| tokens as f64 / total).collect()
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
    fn other_weights_count_from_the_next_row_on() {
        let mut mixture = Mixture::new(vec![1.0, 0.0], Random::new(1));
        let draw = |mixture: &mut Mixture, rows: usize| {
            let sources: Vec<usize> = (0..rows)
                .map(|_| {
                    let source = mixture.next_source();
                    mixture.add(source, 64);
                    source
                })
                .collect();
            sources.iter().sum::<usize>()
        };
        assert_eq!(draw(&mut mixture, 600), 0);
        let unchanged = mixture.clone();
        mixture.reweigh(vec![1.0, 0.0]);
        assert_eq!(mixture, unchanged);
        mixture.reweigh(vec![0.5, 0.5]);
        let second = draw(&mut mixture, 200);
        assert_eq!(second, 100, "half of the rows from now on, and no block that makes up for the past");
        mixture.reweigh(vec![0.25, 0.75]);
        assert_eq!(draw(&mut mixture, 200), 150);
        assert_eq!(mixture.shares(), [0.75, 0.25], "250 of 1000 rows");
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
