//! Files of questions: JSON arrays of `[question, answer]`, and of `[question, answer, reasoning]`.

use crate::error::Result;

/// A question and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What is asked.
    pub text: String,
    /// The right answer.
    pub answer: f64,
    /// How it is worked out, with `<answer>…</answer>` in it.
    pub reasoning: Option<String>,
}

/// Reads a file; `path` is named where something is wrong.
///
/// # Errors
/// [`Error::Format`](crate::error::Error::Format) naming the row: not the shape, an empty question, an answer that is not finite.
pub fn read(text: &str, path: &str) -> Result<Vec<Question>> {
    todo!("{text} {path}")
}

/// The questions as such a file, a row a line.
pub fn written(questions: &[Question]) -> String {
    todo!("{questions:?}")
}

/// What is odd about questions to learn from and to be tested on: how many repeat others of their file, and how many
/// stand in both. `None` where nothing is.
pub fn oddities(train: &[Question], valid: &[Question]) -> Option<String> {
    todo!("{train:?} {valid:?}")
}
