//! Linear layers: a weight as it is stored, and an adapter beside it.

use burn::tensor::Tensor;

use crate::data::random::mix;
use crate::ops::dropout::{Noise, dropout};
use crate::ops::linear::linear;
use crate::ops::linear_nf4::{Nf4Weight, linear_nf4};

/// Rows of a named weight of the checkpoint; vectors are one row.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Tensor name in the checkpoint.
    pub name: String,
    /// First row of the named tensor that is held here (large tables are split).
    pub first_row: usize,
    /// Whether the checkpoint's tensor has one axis.
    pub vector: bool,
    /// `[rows, columns]`.
    pub tensor: Tensor<2>,
}

impl Parameter {
    /// Elements.
    pub fn len(&self) -> usize {
        self.tensor.dims().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The weight of a [`Linear`]: `[out, in]`.
#[allow(clippy::large_enum_variant)] // a tensor's handle is large, and there are a few hundred
#[derive(Debug, Clone)]
pub enum Weight {
    /// Of f32, or of f16 where it is not trained.
    Dense(Parameter),
    /// Of 4 bits, never trained.
    Nf4(Nf4Weight),
}

/// `y = x·wᵀ`, with an adapter `y = x·wᵀ + scale·(dropout(x)·aᵀ)·bᵀ`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// What the checkpoint holds.
    pub weight: Weight,
    /// What is trained beside it.
    pub lora: Option<Lora>,
}

/// A change of low rank to a [`Linear`].
///
/// Hu et al. 2021, <https://arxiv.org/abs/2106.09685>
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[r, in]`.
    pub a: Parameter,
    /// `[out, r]`.
    pub b: Parameter,
    /// `alpha / r`, or `alpha / √r` of a rank-stabilised adapter.
    pub scale: f64,
    /// Share of the inputs that training drops.
    pub dropout: f64,
    /// Tells its dropout from that of the model's other adapters.
    pub stream: u64,
}

impl Linear {
    /// The weight where it is not of 4 bits.
    pub fn dense(&self) -> Option<&Parameter> {
        match &self.weight {
            Weight::Dense(weight) => Some(weight),
            Weight::Nf4(_) => None,
        }
    }

    pub(super) fn dense_mut(&mut self) -> Option<&mut Parameter> {
        match &mut self.weight {
            Weight::Dense(weight) => Some(weight),
            Weight::Nf4(_) => None,
        }
    }

    /// Rows and columns of the weight.
    pub fn dims(&self) -> [usize; 2] {
        match &self.weight {
            Weight::Dense(weight) => weight.tensor.dims(),
            Weight::Nf4(weight) => weight.dims(),
        }
    }

    /// `[n, in]` to `[n, out]`. With `half` the operands of its own product are rounded to f16; `noise` is what its
    /// adapter drops.
    pub fn forward(&self, x: Tensor<2>, half: bool, noise: Option<Noise>) -> Tensor<2> {
        let y = match &self.weight {
            Weight::Dense(weight) => linear(x.clone(), weight.tensor.clone(), half),
            Weight::Nf4(weight) => linear_nf4(x.clone(), weight),
        };
        match &self.lora {
            Some(lora) => y + lora.forward(x, noise),
            None => y,
        }
    }
}

impl Lora {
    fn forward(&self, x: Tensor<2>, noise: Option<Noise>) -> Tensor<2> {
        let x = match noise.filter(|_| self.dropout > 0.0) {
            Some(noise) => dropout(x, self.dropout, Noise { seed: mix(noise.seed ^ self.stream), ..noise }),
            None => x,
        };
        let h = linear(x, self.a.tensor.clone(), false) * self.scale; // [b·t, r]
        linear(h, self.b.tensor.clone(), false)
    }
}
