//! Rotary position embedding, the rotate-half layout of Hugging Face checkpoints.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::wgpu::into_contiguous;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use smolforge_shaders::ROPE;

use super::cpu::elementwise::rope as cpu_rope;
use super::cpu::tensor::{contiguous, dims, floats, tensor};
use super::launch::{self, buffer, launch, row_groups};
use super::{kernels_enabled, on_cpu};

/// Rotates dimension `i` of every head against dimension `i + e/2` by the angle of its position.
///
/// # Shapes
/// - `x`: `[b·t, h·e]`; `cos`, `sin`: `[t, e/2]`, the rows of the positions; returns `[b·t, h·e]`
///
/// Su et al. 2021, <https://arxiv.org/abs/2104.09864>
pub fn rope(x: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<2> {
    let fours = cos.dims()[1].is_multiple_of(4); // the kernel reads vectors
    if kernels_enabled() && (fours || on_cpu(&x.device())) {
        let y = Dispatch::rope_fwd(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch(), false);
        return Tensor::from_dispatch(y);
    }
    reference(x, cos, sin)
}

/// [`rope`] in burn ops.
pub fn reference(x: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<2> {
    let ([n, width], [t, half]) = (x.dims(), cos.dims());
    let heads = width / (2 * half);
    let x = x.reshape([n / t, t, heads, 2 * half]); // [b, t, h, e]
    let (cos, sin) = (cos.reshape([1, t, 1, half]), sin.reshape([1, t, 1, half]));
    let x1 = x.clone().narrow(3, 0, half);
    let x2 = x.narrow(3, half, half);
    let y1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let y2 = x2 * cos + x1 * sin;
    Tensor::cat(vec![y1, y2], 3).reshape([n, width])
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait RopeOps: Backend {
    /// Rotates by the angles, or back.
    fn rope_fwd(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self>;
}

impl RopeOps for Flex {
    fn rope_fwd(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        let (x, cos, sin) = (contiguous(x), contiguous(cos), contiguous(sin));
        let ([n, width], [_, half]) = (dims(&x), dims(&cos));
        let direction = if back { -1.0 } else { 1.0 };
        tensor(cpu_rope(floats(&x), floats(&cos), floats(&sin), width, half, direction), [n, width])
    }
}

impl RopeOps for CubeBackend {
    fn rope_fwd(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        let (x, cos, sin) = (into_contiguous(x), into_contiguous(cos), into_contiguous(sin));
        let ([n, width], [rows, half]) = (launch::dims(&x), launch::dims(&cos));
        let y = buffer(&x, [n, width]);
        let direction = if back { -1.0f32 } else { 1.0 };
        let params = [n as u32, (width / (2 * half)) as u32, (half / 4) as u32, rows as u32, direction.to_bits(), 0, 0, 0];
        launch(ROPE, row_groups((n * half / 4).div_ceil(64)), &[&x, &cos, &sin, &y], &params);
        y
    }
}

#[derive(Debug)]
struct RopeBackward;

impl<B: RopeOps> Backward<B, 1> for RopeBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (cos, sin, back) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::rope_fwd(dy, cos, sin, !back));
        }
    }
}

impl<B: RopeOps, C: CheckpointStrategy> RopeOps for Autodiff<B, C> {
    fn rope_fwd(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let y = B::rope_fwd(x.into_primitive(), cos.clone(), sin.clone(), back);
        match RopeBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos, sin, back), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
