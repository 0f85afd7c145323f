//! The gate of the feed-forward block.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::wgpu::into_contiguous;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, activation};
use burn_cubecl::CubeBackend;
use smolforge_shaders::{SWIGLU, SWIGLU_BACKWARD};

use super::cpu::elementwise::{swiglu as cpu_swiglu, swiglu_backward};
use super::cpu::tensor::{contiguous, dims, floats, tensor};
use super::launch::{self, buffer, launch, row_groups};
use super::{kernels_enabled, on_cpu};

/// `silu(gate) · up`, with `silu(x) = x·σ(x)`.
///
/// # Shapes
/// - `gate`, `up`: `[n, f]`, returns `[n, f]`
///
/// Shazeer 2020, <https://arxiv.org/abs/2002.05202>
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let fours = gate.shape().num_elements().is_multiple_of(4); // the kernels read vectors
    if kernels_enabled() && (fours || on_cpu(&gate.device())) {
        return Tensor::from_dispatch(Dispatch::swiglu_fwd(gate.into_dispatch(), up.into_dispatch()));
    }
    reference(gate, up)
}

/// [`swiglu`] in burn ops.
pub fn reference(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::silu(gate) * up
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait SwigluOps: Backend {
    /// `silu(gate) · up`.
    fn swiglu_fwd(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradients of `gate` and `up`.
    fn swiglu_bwd(dy: FloatTensor<Self>, gate: FloatTensor<Self>, up: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl SwigluOps for Flex {
    fn swiglu_fwd(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (contiguous(gate), contiguous(up));
        let shape = dims(&gate);
        tensor(cpu_swiglu(floats(&gate), floats(&up)), shape)
    }

    fn swiglu_bwd(dy: FloatTensor<Self>, gate: FloatTensor<Self>, up: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (dy, gate, up) = (contiguous(dy), contiguous(gate), contiguous(up));
        let shape = dims(&gate);
        let (dgate, dup) = swiglu_backward(floats(&dy), floats(&gate), floats(&up));
        (tensor(dgate, shape), tensor(dup, shape))
    }
}

impl SwigluOps for CubeBackend {
    fn swiglu_fwd(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (into_contiguous(gate), into_contiguous(up));
        let shape = launch::dims(&gate);
        let (y, fours) = (buffer(&gate, shape), shape[0] * shape[1] / 4);
        launch(SWIGLU, row_groups(fours.div_ceil(64)), &[&gate, &up, &y], &[fours as u32, 0, 0, 0]);
        y
    }

    fn swiglu_bwd(dy: FloatTensor<Self>, gate: FloatTensor<Self>, up: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (dy, gate, up) = (into_contiguous(dy), into_contiguous(gate), into_contiguous(up));
        let shape = launch::dims(&gate);
        let (dgate, dup, fours) = (buffer(&gate, shape), buffer(&gate, shape), shape[0] * shape[1] / 4);
        let groups = row_groups(fours.div_ceil(64));
        launch(SWIGLU_BACKWARD, groups, &[&dy, &gate, &up, &dgate, &dup], &[fours as u32, 0, 0, 0]);
        (dgate, dup)
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl<B: SwigluOps> Backward<B, 2> for SwigluBackward {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (gate, up) = ops.state;
        let (dgate, dup) = B::swiglu_bwd(dy, gate, up);
        let [gate_node, up_node] = ops.parents;
        if let Some(node) = gate_node {
            grads.register::<B>(node.id, dgate);
        }
        if let Some(node) = up_node {
            grads.register::<B>(node.id, dup);
        }
    }
}

impl<B: SwigluOps, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn swiglu_fwd(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [gate.node(), up.node()];
        let (gate, up) = (gate.into_primitive(), up.into_primitive());
        let y = B::swiglu_fwd(gate.clone(), up.clone());
        match SwigluBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gate, up), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn swiglu_bwd(dy: FloatTensor<Self>, gate: FloatTensor<Self>, up: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (dgate, dup) = B::swiglu_bwd(dy.into_primitive(), gate.into_primitive(), up.into_primitive());
        (Self::from_inner(dgate), Self::from_inner(dup))
    }
}
