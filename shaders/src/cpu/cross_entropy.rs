//! Cross-entropy of logits that come in blocks of columns, and its gradient by them.

/// What is known of a row of logits after some blocks of its columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct State {
    /// The largest logit.
    pub largest: f32,
    /// `Σ exp(logit − largest)`.
    pub sum: f32,
    /// The logit at the target, where it was seen.
    pub at_target: f32,
}

impl State {
    /// Before the first block.
    pub const NONE: Self = Self { largest: -1e30, sum: 0.0, at_target: -1e30 };
}

/// Joins the states of rows with the block of their logits that begins at column `first`; returns `nll` and `hits`, which
/// are true after the last block.
pub fn cross_entropy(logits: &[f32], columns: usize, first: usize, targets: &[i32], states: &mut [State]) -> (Vec<f32>, Vec<f32>) {
    let (mut nll, mut hits) = (Vec::new(), Vec::new());
    for ((logits, target), state) in logits.chunks(columns).zip(targets).zip(states) {
        for (column, logit) in logits.iter().enumerate() {
            let largest = state.largest.max(*logit);
            state.sum = state.sum * (state.largest - largest).exp() + (logit - largest).exp();
            state.largest = largest;
            if (first + column) as i32 == *target {
                state.at_target = *logit;
            }
        }
        let used = *target >= 0;
        nll.push(if used { state.sum.ln() + (state.largest - state.at_target) } else { 0.0 });
        hits.push(if used && state.at_target >= state.largest { 1.0 } else { 0.0 });
    }
    (nll, hits)
}

/// Turns that block into its gradient, `scale·(softmax − onehot)`, zeros where the target is below 0.
pub fn cross_entropy_dlogits(logits: &mut [f32], columns: usize, first: usize, targets: &[i32], states: &[State], scale: f32) {
    for ((logits, target), state) in logits.chunks_mut(columns).zip(targets).zip(states) {
        let scale = if *target < 0 { 0.0 } else { scale };
        for (column, logit) in logits.iter_mut().enumerate() {
            let onehot = if (first + column) as i32 == *target { 1.0 } else { 0.0 };
            *logit = scale * ((*logit - state.largest).exp() / state.sum - onehot);
        }
    }
}
