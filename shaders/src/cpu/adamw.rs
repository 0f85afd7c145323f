//! One AdamW update.

/// Numbers of an update, as the kernel gets them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// `1 − lr·weight_decay`.
    pub decay: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// `lr / (1 − β₁ᵗ)`.
    pub step_size: f32,
    /// `1/√(1 − β₂ᵗ)`.
    pub inverse_root: f32,
    /// Multiplies the gradient first.
    pub grad_scale: f32,
}

/// Updates a weight and its moments.
pub fn adamw(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], params: &Params) {
    for i in 0..param.len() {
        let g = grad[i] * params.grad_scale;
        m[i] = params.beta1 * m[i] + (1.0 - params.beta1) * g;
        v[i] = params.beta2 * v[i] + (1.0 - params.beta2) * g * g;
        param[i] = param[i] * params.decay - params.step_size * m[i] / (v[i].sqrt() * params.inverse_root + params.eps);
    }
}
