//! Unit conversion: a table of units, and questions made from it.

use super::questions::Question;

/// Questions to learn from and to be tested on; no question is in both, and none twice.
pub fn make([train, valid]: [usize; 2], temperatures: bool, seed: u64) -> [Vec<Question>; 2] {
    todo!("{train} {valid} {temperatures} {seed}")
}

/// What the units of a question measure: `length`, `mass`, `time`, `volume`, `area`, `speed`, `data`, `temperature`; `other` where
/// none is known.
pub fn kind(question: &str) -> &'static str {
    todo!("{question}")
}

/// Worked examples that are shown where no others are given.
pub fn shots() -> Vec<Question> {
    todo!()
}
