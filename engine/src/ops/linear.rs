//! `x · wᵀ` with the weight stored as in checkpoints, `[out, in]`.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::CubeBackend;

use super::cpu::matmul::{Floats, View, linear as cpu_linear, linear_dx as cpu_linear_dx, matmul};
use super::cpu::tensor::{contiguous, dims, floats, tensor};
use super::kernels_enabled;
use super::linear_f16::{self, linear_f16};
use super::product::{Product, product};

/// `y = x · wᵀ`. With `half` the weight is rounded to f16 for it and for the gradient of `x`, and all sums are f32: mixed
/// precision, on graphics devices. A weight that is kept as f16 goes to [`linear_f16()`].
///
/// # Shapes
/// - `x`: `[n, in]`, `w`: `[out, in]`, returns `[n, out]`
pub fn linear(x: Tensor<2>, w: Tensor<2>, half: bool) -> Tensor<2> {
    if w.dtype() == DType::F16 {
        return linear_f16(x, w);
    }
    if kernels_enabled() {
        return Tensor::from_dispatch(Dispatch::linear_fwd(x.into_dispatch(), w.into_dispatch(), half));
    }
    reference(x, w, half)
}

/// `dx = dy · w` without gradients of its own.
///
/// # Shapes
/// - `dy`: `[n, out]`, `w`: `[out, in]` of f32 or f16, returns `[n, in]`
pub fn dx(dy: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    match w.dtype() {
        DType::F16 => linear_f16::dx(dy, w),
        _ if kernels_enabled() => Tensor::from_dispatch(Dispatch::linear_dx(dy.into_dispatch(), w.into_dispatch(), false)),
        _ => dy.matmul(w),
    }
}

/// `dw = dyᵀ · x` without gradients of its own.
///
/// # Shapes
/// - `dy`: `[n, out]`, `x`: `[n, in]`, returns `[out, in]`
pub fn dw(dy: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
    if kernels_enabled() {
        return Tensor::from_dispatch(Dispatch::linear_dw(dy.into_dispatch(), x.into_dispatch()));
    }
    dy.transpose().matmul(x)
}

/// [`linear`] in burn ops, which round everything to f16 with `half`.
pub fn reference(x: Tensor<2>, w: Tensor<2>, half: bool) -> Tensor<2> {
    if half {
        let product = x.cast(FloatDType::F16).matmul(w.cast(FloatDType::F16).transpose());
        return product.cast(FloatDType::F32);
    }
    x.matmul(w.transpose())
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait LinearOps: Backend {
    /// `x · wᵀ`, with `half` by a weight that is rounded to f16.
    fn linear_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, half: bool) -> FloatTensor<Self>;
    /// `dy · w`, likewise.
    fn linear_dx(dy: FloatTensor<Self>, w: FloatTensor<Self>, half: bool) -> FloatTensor<Self>;
    /// `dyᵀ · x`.
    fn linear_dw(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl LinearOps for Flex {
    fn linear_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, _: bool) -> FloatTensor<Self> {
        let (x, w) = (contiguous(x), contiguous(w));
        let ([n, k], [m, _]) = (dims(&x), dims(&w));
        tensor(cpu_linear(floats(&x), &Floats(floats(&w), k), n, k, m), [n, m])
    }

    fn linear_dx(dy: FloatTensor<Self>, w: FloatTensor<Self>, _: bool) -> FloatTensor<Self> {
        let (dy, w) = (contiguous(dy), contiguous(w));
        let ([n, m], [_, k]) = (dims(&dy), dims(&w));
        tensor(cpu_linear_dx(floats(&dy), &Floats(floats(&w), k), n, k, m), [n, k])
    }

    fn linear_dw(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (dy, x) = (contiguous(dy), contiguous(x));
        let ([n, m], [_, k]) = (dims(&dy), dims(&x));
        let mut dw = vec![0.0; m * k];
        matmul(&mut dw, k, View::new(floats(&dy), n, m).t(), View::new(floats(&x), n, k), 1.0, false, true);
        tensor(dw, [m, k])
    }
}

impl LinearOps for CubeBackend {
    fn linear_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, half: bool) -> FloatTensor<Self> {
        if half && let Some(w) = linear_f16::packed(w.clone()) {
            return linear_f16::forward(x, w);
        }
        product(Product::Forward, &x, &w).unwrap_or_else(|| Self::float_matmul(x, Self::float_swap_dims(w, 0, 1)))
    }

    fn linear_dx(dy: FloatTensor<Self>, w: FloatTensor<Self>, half: bool) -> FloatTensor<Self> {
        if half && let Some(w) = linear_f16::packed(w.clone()) {
            return linear_f16::backward(dy, w); // rounded once more: it is not kept meanwhile
        }
        product(Product::Dx, &dy, &w).unwrap_or_else(|| Self::float_matmul(dy, w))
    }

    fn linear_dw(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        product(Product::Dw, &dy, &x).unwrap_or_else(|| Self::float_matmul(Self::float_swap_dims(dy, 0, 1), x))
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: LinearOps> Backward<B, 2> for LinearBackward {
    /// `x` is kept only for the gradient of a weight that is trained; then the weight, and whether it was rounded.
    type State = (Option<FloatTensor<B>>, FloatTensor<B>, bool);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (x, w, half) = ops.state;
        let [x_node, w_node] = ops.parents;
        if let (Some(node), Some(x)) = (w_node, x) {
            grads.register::<B>(node.id, B::linear_dw(dy.clone(), x));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::linear_dx(dy, w, half));
        }
    }
}

impl<B: LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear_fwd(x: FloatTensor<Self>, w: FloatTensor<Self>, half: bool) -> FloatTensor<Self> {
        let (nodes, trained) = ([x.node(), w.node()], w.is_tracked());
        let (x, w) = (x.into_primitive(), w.into_primitive());
        let y = B::linear_fwd(x.clone(), w.clone(), half);
        let x = trained.then_some(x);
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, w, half), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn linear_dx(dy: FloatTensor<Self>, w: FloatTensor<Self>, half: bool) -> FloatTensor<Self> {
        <Self as burn::backend::AutodiffBackend>::from_inner(B::linear_dx(dy.into_primitive(), w.into_primitive(), half))
    }

    fn linear_dw(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as burn::backend::AutodiffBackend>::from_inner(B::linear_dw(dy.into_primitive(), x.into_primitive()))
    }
}
