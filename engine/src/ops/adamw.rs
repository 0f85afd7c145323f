//! AdamW: adaptive moments with decoupled weight decay.

use burn::tensor::{DType, Tensor, TensorData};
use smolforge_shaders::ADAMW;

use super::cpu::adamw::adamw as cpu_adamw;
use super::cpu::tensor::floats;
use super::launch::{launch, row_groups};
use super::quant::adamw8::{Moments8, adamw8};
use super::{cube, flex, from_cube, from_flex, on_cpu, serves};
use crate::device::read_f32;
use crate::error::Result;

/// Numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// `1 − beta1^t` for the t-th update.
    pub correction1: f32,
    /// `1 − beta2^t`.
    pub correction2: f32,
    /// Multiplies the gradient first: clipping and loss scale.
    pub grad_scale: f32,
}

/// A weight with its moments: `[rows, columns]` each.
pub struct Moments {
    /// The weight.
    pub param: Tensor<2>,
    /// First moment.
    pub m: Tensor<2>,
    /// Second moment.
    pub v: Tensor<2>,
}

/// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `p ← p(1 − lr·wd) − lr·m̂/(√v̂ + eps)`.
///
/// Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>; the arithmetic is PyTorch's.
pub fn adamw(state: Moments, grad: Tensor<2>, step: &AdamW) -> Moments {
    let device = grad.device();
    if !serves(&device, grad.shape().num_elements()) {
        return reference(state, grad, step);
    }
    if !on_cpu(&device) {
        return on_gpu(state, grad, step);
    }
    let (mut param, mut m, mut v) = (flex(state.param), flex(state.m), flex(state.v));
    let grad = flex(grad);
    cpu_adamw(param.storage_mut(), m.storage_mut(), v.storage_mut(), floats(&grad), step);
    Moments { param: from_flex(param), m: from_flex(m), v: from_flex(v) }
}

/// Numbers of a workgroup of [`ADAMW`].
const AT_ONCE: usize = 2048;

/// One launch, in place.
fn on_gpu(state: Moments, grad: Tensor<2>, step: &AdamW) -> Moments {
    // A buffer that somebody else still reads is copied first.
    let own = |tensor: Tensor<2>| {
        let tensor = cube(tensor);
        if tensor.can_mut() { tensor } else { tensor.copy() }
    };
    let (param, m, v, grad) = (own(state.param), own(state.m), own(state.v), cube(grad));
    let len = grad.meta.shape().num_elements();
    let groups = row_groups(len.div_ceil(AT_ONCE));
    launch(ADAMW, groups, &[&grad, &param, &m, &v], &params(len, step));
    Moments { param: from_cube(param), m: from_cube(m), v: from_cube(v) }
}

/// The numbers of an update as kernels read them.
pub(super) fn params(len: usize, step: &AdamW) -> [u32; 8] {
    let numbers = [
        1.0 - step.lr * step.weight_decay,
        step.beta1,
        step.beta2,
        step.eps,
        step.lr / step.correction1,
        1.0 / step.correction2.sqrt(),
        step.grad_scale,
    ];
    let mut params = [len as u32; 8];
    params[1..].iter_mut().zip(numbers).for_each(|(param, number)| *param = number.to_bits());
    params
}

/// One update with moments of 8 bits by the CPU, wherever the weight lies; see [`adamw8`].
///
/// # Errors
/// Where the device failed.
pub async fn on_host(param: Tensor<2>, moments: &mut Moments8, grad: Tensor<2>, step: &AdamW) -> Result<Tensor<2>> {
    if on_cpu(&grad.device()) {
        let (mut param, grad) = (flex(param), flex(grad));
        adamw8(param.storage_mut(), moments, floats(&grad), step);
        return Ok(from_flex(param));
    }
    let (shape, device) = (param.dims(), param.device());
    let (mut values, grad) = (read_f32(param).await?, read_f32(grad).await?);
    adamw8(&mut values, moments, &grad, step);
    Ok(Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32)))
}

/// [`adamw`] in burn ops.
pub fn reference(state: Moments, grad: Tensor<2>, step: &AdamW) -> Moments {
    let g = grad * step.grad_scale;
    let m = state.m * step.beta1 + g.clone() * (1.0 - step.beta1);
    let v = state.v * step.beta2 + g.square() * (1.0 - step.beta2);
    let root = v.clone().sqrt() * (1.0 / step.correction2.sqrt()) + step.eps;
    let param = state.param * (1.0 - step.lr * step.weight_decay) - m.clone() * (step.lr / step.correction1) / root;
    Moments { param, m, v }
}
