//! The squared norm of numbers.

/// `Σ x²`.
pub fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum()
}
