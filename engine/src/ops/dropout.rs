//! Dropout whose choice follows from a seed and the place alone, so that a forward pass can be made again.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::wgpu::into_contiguous;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use smolforge_shaders::{DROPOUT, cpu};

use super::cpu::elementwise::dropout as cpu_dropout;
use super::cpu::tensor::{contiguous, floats, tensor};
use super::kernels_enabled;
use super::launch::{buffer, launch};

/// What is drawn for a matrix: the same on every device, and for some of its rows the same as for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Seed of the draw.
    pub seed: u64,
    /// First row of the matrix among those that are drawn for.
    pub row: usize,
}

/// `x / (1 − p)` where it is kept, else 0; `p` of all places are not kept.
///
/// # Shapes
/// - `x`: `[n, d]`, returns `[n, d]`
///
/// Srivastava et al. 2014
pub fn dropout(x: Tensor<2>, p: f64, noise: Noise) -> Tensor<2> {
    if kernels_enabled() {
        return Tensor::from_dispatch(Dispatch::dropout_fwd(x.into_dispatch(), p as f32, noise));
    }
    reference(x, p, noise)
}

/// [`dropout`] in burn ops.
pub fn reference(x: Tensor<2>, p: f64, noise: Noise) -> Tensor<2> {
    let [n, d] = x.dims();
    let Draw { first, threshold, scale, seed } = Draw::new(p as f32, noise, d);
    let mask = cpu::dropout(&vec![1.0; n * d], first, seed, threshold, scale);
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [n, d]), (&x.device().inner(), DType::F32));
    x.clone() * if x.is_autodiff() { Tensor::from_inner(mask) } else { mask }
}

/// What decides which places are kept.
struct Draw {
    /// Place of the first element.
    first: u32,
    /// `p · 2³²`: hashes below it are not kept.
    threshold: u32,
    /// `1 / (1 − p)`
    scale: f32,
    seed: [u32; 2],
}

impl Draw {
    fn new(p: f32, Noise { seed, row }: Noise, columns: usize) -> Self {
        let threshold = (f64::from(p) * 4_294_967_296.0) as u32;
        Self { first: (row * columns) as u32, threshold, scale: 1.0 / (1.0 - p), seed: [seed as u32, (seed >> 32) as u32] }
    }
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait DropoutOps: Backend {
    /// See [`dropout`]; also its gradient.
    fn dropout_fwd(x: FloatTensor<Self>, p: f32, noise: Noise) -> FloatTensor<Self>;
}

impl DropoutOps for Flex {
    fn dropout_fwd(x: FloatTensor<Self>, p: f32, noise: Noise) -> FloatTensor<Self> {
        let x = contiguous(x);
        let shape = x.layout().shape().clone();
        let Draw { first, threshold, scale, seed } = Draw::new(p, noise, shape[1]);
        tensor(cpu_dropout(floats(&x), first, seed, threshold, scale), shape)
    }
}

impl DropoutOps for CubeBackend {
    fn dropout_fwd(x: FloatTensor<Self>, p: f32, noise: Noise) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let y = buffer(&x, x.meta.shape().clone());
        let len = x.meta.shape().num_elements() as u32;
        let Draw { first, threshold, scale, seed } = Draw::new(p, noise, x.meta.shape()[1]);
        let groups = len.div_ceil(DROPOUT.workgroup_size).min(32_768);
        launch(DROPOUT, (groups, 1), &[&x, &y], &[len, threshold, scale.to_bits(), seed[0], seed[1], first, 0, 0]);
        y
    }
}

#[derive(Debug)]
struct DropoutBackward;

impl<B: DropoutOps> Backward<B, 1> for DropoutBackward {
    type State = (f32, Noise);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (p, noise) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::dropout_fwd(dy, p, noise));
        }
    }
}

impl<B: DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn dropout_fwd(x: FloatTensor<Self>, p: f32, noise: Noise) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let y = B::dropout_fwd(x.into_primitive(), p, noise);
        match DropoutBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((p, noise), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
