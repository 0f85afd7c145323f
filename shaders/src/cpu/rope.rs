//! Rotary position embedding.

/// Turns the halves of every head of `x: [n, h·2·half]` against each other: `y1 = x1·cos − x2·sin`, `y2 = x2·cos + x1·sin`.
/// Row `i` takes row `i` of the tables `[rows, half]`, which begin again after their last; `direction` −1 turns back.
pub fn rope(x: &[f32], cos: &[f32], sin: &[f32], width: usize, half: usize, direction: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for (i, y) in y.iter_mut().enumerate() {
        let (row, column) = (i / width, i % width % (2 * half));
        let angle = row * half % cos.len() + column % half;
        let (cos, sin) = (cos[angle], sin[angle] * direction);
        *y = if column < half { x[i] * cos - x[i + half] * sin } else { x[i] * cos + x[i - half] * sin };
    }
    y
}
