//! Root-mean-square normalisation.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::wgpu::into_contiguous;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use smolforge_shaders::{RMS_NORM, RMS_NORM_DW, RMS_NORM_DX};

use super::cpu::norm::{rms_norm as cpu_rms_norm, rms_norm_backward};
use super::cpu::tensor::{contiguous, dims, floats, tensor};
use super::launch::{buffer, launch, row_groups};
use super::serves;

/// `y = x / √(mean(x²) + eps) · w` over the last axis, in f32.
///
/// # Shapes
/// - `x`: `[n, d]`, `w`: `[1, d]`, returns `[n, d]`
///
/// Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>
pub fn rms_norm(x: Tensor<2>, w: Tensor<2>, eps: f64) -> Tensor<2> {
    if serves(&x.device(), x.dims()[1]) {
        let (y, _) = Dispatch::rms_norm_fwd(x.into_dispatch(), w.into_dispatch(), eps as f32);
        return Tensor::from_dispatch(y);
    }
    reference(x, w, eps)
}

/// [`rms_norm`] in burn ops.
pub fn reference(x: Tensor<2>, w: Tensor<2>, eps: f64) -> Tensor<2> {
    let mean = x.clone().square().mean_dim(1); // [n, 1]
    x / (mean + eps).sqrt() * w
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait RmsNormOps: Backend {
    /// `y: [n, d]` and `1/√(mean(x²) + eps): [n]`.
    fn rms_norm_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f32) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Gradients of `x` and, where it is wanted, of `w`; else that is `w` itself.
    fn rms_norm_bwd(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        of_w: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl RmsNormOps for Flex {
    fn rms_norm_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, w) = (contiguous(x), contiguous(w));
        let [n, d] = dims(&x);
        let (y, scales) = cpu_rms_norm(floats(&x), floats(&w), eps);
        (tensor(y, [n, d]), tensor(scales, [n]))
    }

    fn rms_norm_bwd(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        of_w: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (dy, x, w) = (contiguous(dy), contiguous(x), contiguous(w));
        let [n, d] = dims(&x);
        let (dx, dw) = rms_norm_backward(floats(&dy), floats(&x), floats(&w), floats(&scales), of_w);
        (tensor(dx, [n, d]), if of_w { tensor(dw, [1, d]) } else { w })
    }
}

/// Rows of a workgroup.
pub(super) const ROWS: usize = 4;
/// Rows that one thread sums for the gradient of `w`.
const CHUNK: usize = 64;

impl RmsNormOps for CubeBackend {
    fn rms_norm_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, w) = (into_contiguous(x), into_contiguous(w));
        let (n, d) = (x.meta.shape()[0], x.meta.shape()[1]);
        let (y, scales) = (buffer(&x, [n, d]), buffer(&x, [n]));
        launch(RMS_NORM, row_groups(n.div_ceil(ROWS)), &[&x, &w, &y, &scales], &[n as u32, d as u32, eps.to_bits(), 0]);
        (y, scales)
    }

    fn rms_norm_bwd(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        of_w: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (dy, x, w) = (into_contiguous(dy), into_contiguous(x), into_contiguous(w));
        let (n, d) = (x.meta.shape()[0], x.meta.shape()[1]);
        let dx = buffer(&x, [n, d]);
        launch(RMS_NORM_DX, row_groups(n.div_ceil(ROWS)), &[&dy, &x, &w, &scales, &dx], &[n as u32, d as u32, 0, 0]);
        if !of_w {
            return (dx, w);
        }
        let chunks = n.div_ceil(CHUNK);
        let part = buffer(&x, [chunks, d]);
        let groups = ((d / 4).div_ceil(64) as u32, chunks as u32);
        launch(RMS_NORM_DW, groups, &[&dy, &x, &scales, &part], &[n as u32, d as u32, CHUNK as u32, 0]);
        (dx, Self::float_reshape(Self::float_sum_dim(part, 0), [1, d].into()))
    }
}

#[derive(Debug)]
struct RmsNormBackward;

impl<B: RmsNormOps> Backward<B, 2> for RmsNormBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (x, w, scales) = ops.state;
        let [x_node, w_node] = ops.parents;
        let (dx, dw) = B::rms_norm_bwd(dy, x, w, scales, w_node.is_some());
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, dw);
        }
    }
}

impl<B: RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), w.node()];
        let (x, w) = (x.into_primitive(), w.into_primitive());
        let (y, scales) = B::rms_norm_fwd(x.clone(), w.clone(), eps);
        let y = match RmsNormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, w, scales.clone()), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, Self::from_inner(scales))
    }

    fn rms_norm_bwd(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        of_w: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (dx, dw) = B::rms_norm_bwd(dy.into_primitive(), x.into_primitive(), w.into_primitive(), scales.into_primitive(), of_w);
        (Self::from_inner(dx), Self::from_inner(dw))
    }
}
