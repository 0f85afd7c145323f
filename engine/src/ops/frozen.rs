//! Products with a weight that is not trained: it stays as it is stored, and the way back makes the input's gradient
//! only.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, Wgpu, backend_extension, tensor::FloatTensor};
use burn::tensor::{Device, FloatDType, Tensor};
use burn_cubecl::CubeBackend;

use super::cpu::matmul::{Halves, linear as cpu_linear, linear_dx as cpu_linear_dx};
use super::cpu::tensor::{contiguous, dims, floats, halves, tensor};
use super::linear_nf4::Nf4Weight;
use super::quant::Nf4;
use super::{flex, kernels_enabled, linear_f16, linear_nf4, on_cpu};

/// A weight `[out, in]` that is not trained, as it is stored.
#[allow(clippy::large_enum_variant)] // a tensor's handle is large, and there are a few hundred
#[derive(Debug, Clone)]
pub enum Frozen {
    /// Of f16; a tensor without gradients.
    F16(Tensor<2>),
    /// Of 4 bits.
    Nf4(Nf4Weight),
}

/// `y = x · wᵀ`, tracked by `x` alone.
///
/// # Shapes
/// - `x`: `[n, in]`, returns `[n, out]`
pub fn frozen(x: Tensor<2>, w: Frozen) -> Tensor<2> {
    if w.is_served(&x.device()) {
        return Tensor::from_dispatch(Dispatch::frozen_fwd(x.into_dispatch(), w));
    }
    reference(x, w)
}

/// `dx = dy · w`, without gradients of its own.
///
/// # Shapes
/// - `dy`: `[n, out]`, returns `[n, in]`
pub fn frozen_dx(dy: Tensor<2>, w: Frozen) -> Tensor<2> {
    if w.is_served(&dy.device()) {
        return Tensor::from_dispatch(Dispatch::frozen_dx(dy.into_dispatch(), w));
    }
    let device = dy.device();
    dy.matmul(w.dense(&device))
}

/// [`frozen`] in burn ops: with all of the weight in f32.
pub fn reference(x: Tensor<2>, w: Frozen) -> Tensor<2> {
    let dense = w.dense(&x.device().inner());
    let dense = if x.is_autodiff() { Tensor::from_inner(dense) } else { dense };
    x.matmul(dense.transpose())
}

impl Frozen {
    /// Whether there is a fast form for it on a device.
    fn is_served(&self, device: &Device) -> bool {
        match self {
            Self::F16(w) => on_cpu(device) || linear_f16::serves(&device.clone().inner(), w.dims()[1]),
            Self::Nf4(Nf4Weight::Host(_)) => on_cpu(device),
            Self::Nf4(Nf4Weight::Device(_)) => kernels_enabled(),
        }
    }

    fn dims(&self) -> [usize; 2] {
        match self {
            Self::F16(w) => w.dims(),
            Self::Nf4(w) => w.dims(),
        }
    }

    /// All of it in f32.
    pub fn dense(self, device: &Device) -> Tensor<2> {
        match self {
            Self::F16(w) => w.cast(FloatDType::F32),
            Self::Nf4(w) => linear_nf4::dequantized(&w, device),
        }
    }
}

/// The product on backends that have a fast form of it.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait FrozenOps: Backend {
    /// `x · wᵀ`.
    fn frozen_fwd(x: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self>;
    /// `dy · w`.
    fn frozen_dx(dy: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self>;
}

impl FrozenOps for Flex {
    fn frozen_fwd(x: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        let x = contiguous(x);
        let ([n, k], [m, _]) = (dims(&x), w.dims());
        let y = match w {
            Frozen::F16(w) => cpu_linear(floats(&x), &Halves(halves(&flex(w)), k), n, k, m),
            Frozen::Nf4(w) => cpu_linear(floats(&x), host(&w), n, k, m),
        };
        tensor(y, [n, m])
    }

    fn frozen_dx(dy: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        let dy = contiguous(dy);
        let ([n, m], [_, k]) = (dims(&dy), w.dims());
        let dx = match w {
            Frozen::F16(w) => cpu_linear_dx(floats(&dy), &Halves(halves(&flex(w)), k), n, k, m),
            Frozen::Nf4(w) => cpu_linear_dx(floats(&dy), host(&w), n, k, m),
        };
        tensor(dx, [n, k])
    }
}

/// A matrix of 4 bits in main memory.
fn host(w: &Nf4Weight) -> &Nf4 {
    let Nf4Weight::Host(w) = w else { unreachable!("the CPU device has matrices in main memory") };
    w
}

impl FrozenOps for CubeBackend {
    fn frozen_fwd(x: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        match w {
            Frozen::F16(w) => linear_f16::forward(x, w.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device")),
            Frozen::Nf4(w) => linear_nf4::forward(x, &w),
        }
    }

    fn frozen_dx(dy: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        match w {
            Frozen::F16(w) => linear_f16::backward(dy, w.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device")),
            Frozen::Nf4(w) => linear_nf4::backward(dy, &w),
        }
    }
}

#[derive(Debug)]
struct FrozenBackward;

impl<B: FrozenOps> Backward<B, 1> for FrozenBackward {
    type State = Frozen;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::frozen_dx(dy, ops.state));
        }
    }
}

impl<B: FrozenOps, C: CheckpointStrategy> FrozenOps for Autodiff<B, C> {
    fn frozen_fwd(x: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let y = B::frozen_fwd(x.into_primitive(), w.clone());
        match FrozenBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(w, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn frozen_dx(dy: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        <Self as burn::backend::AutodiffBackend>::from_inner(B::frozen_dx(dy.into_primitive(), w))
    }
}
