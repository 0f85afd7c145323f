//! The one thing that text, chats and fine-tuning sets all become.

/// Token ids, and which of them a model is trained to predict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// Token ids, the end-of-text token included where there is one.
    pub tokens: Vec<u32>,
    /// One per token: whether it is a target. Empty: all of them are.
    pub mask: Vec<bool>,
}

impl Document {
    /// Every token is a target.
    pub fn text(tokens: Vec<u32>) -> Self {
        Self { tokens, mask: Vec::new() }
    }

    /// Whether a token is a target.
    pub fn is_target(&self, index: usize) -> bool {
        self.mask.get(index).copied().unwrap_or(true)
    }
}
