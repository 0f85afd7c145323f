//! Products with a weight that is not trained: it stays as it is stored, and the way back makes the input's gradient
//! only.

use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, Wgpu, backend_extension, tensor::FloatTensor};
use burn::tensor::{Device, FloatDType, Tensor};
use burn_cubecl::CubeBackend;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::cpu::matmul::{View, matmul};
use super::cpu::tensor::{contiguous, dims, floats, tensor};
use super::linear_nf4::Nf4Weight;
use super::{kernels_enabled, linear_f16, linear_nf4, on_cpu};

/// Numbers of a weight that are unpacked at a time on the CPU: they stay in its cache.
const PIECE: usize = 1 << 20;

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
        let [n, k] = dims(&x);
        let mut y = Vec::new();
        let mut width = 0;
        pieces(&w, |first, rows, total, piece| {
            if y.is_empty() {
                (y, width) = (vec![0.0; n * total], total);
            }
            matmul(&mut y[first..], width, View::new(floats(&x), n, k), View::new(piece, rows, k).t(), 1.0, false, true);
        });
        tensor(y, [n, width])
    }

    fn frozen_dx(dy: FloatTensor<Self>, w: Frozen) -> FloatTensor<Self> {
        let dy = contiguous(dy);
        let [n, m] = dims(&dy);
        let mut dx = Vec::new();
        let mut width = 0;
        pieces(&w, |first, rows, _, piece| {
            if dx.is_empty() {
                width = piece.len() / rows;
                dx = vec![0.0; n * width];
            }
            let part = View::strided(&floats(&dy)[first..], n, rows, m);
            matmul(&mut dx, width, part, View::new(piece, rows, width), 1.0, first > 0, true);
        });
        tensor(dx, [n, width])
    }
}

/// Unpacks some rows of a weight.
type Fill<'a> = &'a dyn Fn(Range<usize>, &mut [f32]);

/// Goes through the rows of a weight, some at a time as f32: first row, rows, rows of the weight, numbers.
fn pieces(w: &Frozen, mut work: impl FnMut(usize, usize, usize, &[f32])) {
    let stored;
    let ([total, columns], fill): (_, Fill) = match w {
        Frozen::F16(w) => {
            stored = contiguous(w.clone().try_into_primitive::<Flex>().expect("a tensor of the CPU device"));
            let [rows, columns] = dims(&stored);
            let numbers = stored.as_slice::<f16>().expect("a contiguous f16 tensor");
            ([rows, columns], &move |rows: Range<usize>, out: &mut [f32]| {
                numbers[rows.start * columns..rows.end * columns].convert_to_f32_slice(out);
            })
        }
        Frozen::Nf4(w) => {
            let Nf4Weight::Host(w) = w else { unreachable!("the CPU device has matrices in main memory") };
            ([w.rows, w.columns], &move |rows: Range<usize>, out: &mut [f32]| w.dequantize_rows(rows, out))
        }
    };
    let height = (PIECE / columns).clamp(1, total);
    let mut piece = vec![0.0; height * columns];
    for first in (0..total).step_by(height) {
        let rows = height.min(total - first);
        fill(first..first + rows, &mut piece[..rows * columns]);
        work(first, rows, total, &piece[..rows * columns]);
    }
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
