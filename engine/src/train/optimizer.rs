//! The optimizer's state: two moments per weight, and the loss scale of mixed precision.

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::config::finetune::Optim;
use crate::error::Result;
use crate::model::Llama;
use crate::ops::adamw::{self, AdamW, adamw};
use crate::ops::adamw_8bit::{DeviceMoments, adamw_8bit, map};
use crate::ops::quant::adamw8::{MIN_LEN, Moments8};
use crate::ops::{kernels_enabled, on_cpu};

/// Moments of 8 bits beyond so many bytes stay in main memory with [`Optim::PagedAdamw8bit`].
const PAGED_BYTES: usize = 256 << 20;

/// Moments of what is trained, in the order of [`Llama::trained`].
#[derive(Debug)]
pub struct Optimizer {
    /// One pair per weight.
    pub moments: Vec<Moments>,
    /// Updates made.
    pub updates: u32,
}

/// The two moments of a weight.
#[allow(clippy::large_enum_variant)] // a tensor's handle is large, and there are a few hundred
#[derive(Debug)]
pub enum Moments {
    /// In f32, where the weight lies.
    Full {
        /// First moment.
        m: Tensor<2>,
        /// Second moment.
        v: Tensor<2>,
    },
    /// In 8 bits, in main memory: where the CPU computes, or brought to the device for every update.
    Host(Moments8),
    /// In 8 bits, on the graphics device.
    Device(DeviceMoments),
}

impl Optimizer {
    /// All moments zero.
    pub fn new(model: &Llama, optim: Optim) -> Self {
        let zero = |tensor: &Tensor<2>| {
            if is_full(optim, tensor.dims()) {
                let zeros = || Tensor::zeros(tensor.dims(), (&tensor.device().inner(), DType::F32));
                return Moments::Full { m: zeros(), v: zeros() };
            }
            Moments::Host(Moments8::zeros(tensor.dims().iter().product()))
        };
        let moments = model.trained().iter().map(|parameter| zero(&parameter.tensor)).collect();
        Self { moments, updates: 0 }.placed(model, optim)
    }

    /// With moments of 8 bits where they belong: on a graphics device, unless they are paged.
    pub fn placed(mut self, model: &Llama, optim: Optim) -> Self {
        let device = model.norm.weight.tensor.device().inner();
        let bytes: usize = self.moments.iter().map(|moments| if let Moments::Host(host) = moments { 2 * host.m.len() } else { 0 }).sum();
        let paged = optim == Optim::PagedAdamw8bit && bytes > PAGED_BYTES;
        if !on_cpu(&device) && kernels_enabled() && !paged {
            let map = map(&device);
            for moments in &mut self.moments {
                if let Moments::Host(host) = moments {
                    *moments = Moments::Device(DeviceMoments::upload(host, &map));
                }
            }
        }
        self
    }

    /// One update of all that is trained; `grad_scale` multiplies every gradient first. Matrices decay, vectors do not.
    ///
    /// # Errors
    /// Where the device failed, with moments that are paged.
    pub async fn step(&mut self, model: &mut Llama, grads: Vec<Tensor<2>>, config: &TrainConfig, lr: f64, grad_scale: f64) -> Result<()> {
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
        let mut shared = None; // for moments that are brought to the device
        for ((parameter, moments), grad) in model.trained_mut().into_iter().zip(&mut self.moments).zip(grads) {
            let step = AdamW { weight_decay: if parameter.vector { 0.0 } else { step.weight_decay }, ..step };
            // The old tensors are moved out, so that the update can reuse their memory.
            let param = parameter.tensor.extract().inner();
            let device = param.device();
            let param = match moments {
                Moments::Full { m, v } => {
                    let new = adamw(adamw::Moments { param, m: m.extract(), v: v.extract() }, grad, &step);
                    (*m, *v) = (new.m, new.v);
                    new.param
                }
                Moments::Device(moments) => adamw_8bit(param, moments, grad, &step),
                Moments::Host(host) if on_cpu(&device) || !kernels_enabled() => adamw::on_host(param, host, grad, &step).await?,
                Moments::Host(host) => {
                    let mut moved = DeviceMoments::upload(host, shared.get_or_insert_with(|| map(&device)));
                    let param = adamw_8bit(param, &mut moved, grad, &step);
                    *host = moved.download().await?;
                    param
                }
            };
            parameter.tensor = Tensor::from_inner(param).require_grad();
        }
        Ok(())
    }
}

/// Whether a weight of this size has moments in f32.
pub fn is_full(optim: Optim, dims: [usize; 2]) -> bool {
    optim == Optim::Adamw || dims[0] * dims[1] < MIN_LEN
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
