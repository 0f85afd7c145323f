//! The optimizer's state: two moments per weight, and the loss scale of mixed precision.

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::model::Llama;
use crate::ops::adamw::{AdamW, Moments, adamw};

/// Moments of every weight, in the order of [`Llama::parameters`].
#[derive(Debug)]
pub struct Optimizer {
    /// First moments.
    pub m: Vec<Tensor<2>>,
    /// Second moments.
    pub v: Vec<Tensor<2>>,
    /// Updates made.
    pub updates: u32,
}

impl Optimizer {
    /// All moments zero.
    pub fn new(model: &Llama) -> Self {
        let zeros = || {
            let zero = |tensor: &Tensor<2>| Tensor::zeros(tensor.dims(), (&tensor.device().inner(), DType::F32));
            model.parameters().iter().map(|parameter| zero(&parameter.tensor)).collect()
        };
        Self { m: zeros(), v: zeros(), updates: 0 }
    }

    /// One update of all weights; `grad_scale` multiplies every gradient first. Matrices decay, vectors do not.
    pub fn step(&mut self, model: &mut Llama, grads: Vec<Tensor<2>>, config: &TrainConfig, lr: f64, grad_scale: f64) {
        self.updates += 1;
        let t = f64::from(self.updates);
        let step = AdamW {
            lr: lr as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            weight_decay: config.weight_decay as f32,
            correction1: (1.0 - config.beta1.powf(t)) as f32,
            correction2: (1.0 - config.beta2.powf(t)) as f32,
            grad_scale: grad_scale as f32,
        };
        let moments = self.m.iter_mut().zip(&mut self.v);
        for ((parameter, (m, v)), grad) in model.parameters_mut().into_iter().zip(moments).zip(grads) {
            let step = AdamW { weight_decay: if parameter.vector { 0.0 } else { step.weight_decay }, ..step };
            // The old tensors are moved out, so that the update can reuse their memory.
            let state = Moments { param: parameter.tensor.extract().inner(), m: m.extract(), v: v.extract() };
            let new = adamw(state, grad, &step);
            parameter.tensor = Tensor::from_inner(new.param).require_grad();
            (*m, *v) = (new.m, new.v);
        }
    }
}

/// Dynamic loss scale: doubles after 1000 clean updates, halves when gradients overflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The loss is multiplied by this before the backward pass.
    pub value: f64,
    clean: u32,
    dynamic: bool,
}

impl LossScale {
    const LARGEST: f64 = 65_536.0;

    /// 2¹³ for mixed precision, 1 without.
    pub fn new(mixed: bool) -> Self {
        Self { value: if mixed { 8192.0 } else { 1.0 }, clean: 0, dynamic: mixed }
    }

    /// Whether it was made for mixed precision.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    /// Notes whether an update was finite. Returns whether an overflow is explained by the scale.
    pub fn update(&mut self, finite: bool) -> bool {
        if !self.dynamic {
            return false;
        }
        if finite {
            self.clean += 1;
            if self.clean >= 1000 {
                self.clean = 0;
                self.value = (self.value * 2.0).min(Self::LARGEST);
            }
            return false;
        }
        self.clean = 0;
        let explained = self.value > 1.0;
        self.value = (self.value / 2.0).max(1.0);
        explained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_scale_halves_on_overflow_and_recovers() {
        let mut scale = LossScale::new(true);
        assert!(scale.update(false));
        assert_eq!(scale.value, 4096.0);
        for _ in 0..1000 {
            scale.update(true);
        }
        assert_eq!(scale.value, 8192.0);
        for _ in 0..13 {
            assert!(scale.update(false));
        }
        assert_eq!(scale.value, 1.0);
        assert!(!scale.update(false), "at scale 1 an overflow is real");
    }

    #[test]
    fn full_precision_has_no_scale() {
        let mut scale = LossScale::new(false);
        assert!(!scale.update(false));
        assert_eq!(scale.value, 1.0);
    }
}
