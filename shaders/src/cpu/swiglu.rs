//! The gate of the feed-forward block.

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `gate·σ(gate)·up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect()
}

/// Gradients of `gate` and `up`: `dy·up·σ·(1 + gate·(1 − σ))` and `dy·gate·σ`.
pub fn swiglu_backward(dy: &[f32], gate: &[f32], up: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let each = |(dy, (gate, up)): (&f32, (&f32, &f32))| {
        let s = sigmoid(*gate);
        (dy * up * s * (1.0 + gate * (1.0 - s)), dy * gate * s)
    };
    dy.iter().zip(gate.iter().zip(up)).map(each).unzip()
}
