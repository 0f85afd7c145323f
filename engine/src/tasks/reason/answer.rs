//! The answer in a text, and whether it is right: exactly as the reference's Python does it.

/// The number between the first `<answer>` and `</answer>` of a text; NaN where there is none.
pub fn parse(text: &str) -> f64 {
    todo!("{text}")
}

/// Whether an answer is right: `|round(found, 3) − round(expected, 3)| < tolerance · |round(expected, 3)|`.
pub fn is_right(found: f64, expected: f64, tolerance: f64) -> bool {
    todo!("{found} {expected} {tolerance}")
}

/// A number with three decimals, as Python's `str(round(x, 3))` writes it: `120.0`, `0.333`.
pub fn shown(number: f64) -> String {
    todo!("{number}")
}
