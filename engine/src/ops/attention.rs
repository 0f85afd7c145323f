//! Causal attention with grouped key/value heads. A query never looks past the beginning of its document.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};

use super::cpu::attention::{Inputs, attention as cpu_attention, attention_backward};
use super::cpu::tensor::{contiguous, floats, ints, tensor};
use super::on_cpu;

/// Score of a key that must not be seen; `exp` of it is 0 and no arithmetic on it makes NaN.
const MASKED: f32 = -1e30;

/// Sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub b: usize,
    /// Queries per sequence.
    pub t: usize,
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub g: usize,
    /// Head size.
    pub e: usize,
    /// Rows per sequence of the key and value buffers.
    pub capacity: usize,
    /// Position of the first query; keys `0..offset + t` are filled.
    pub offset: usize,
}

/// Which keys the queries of a batch may see: from the beginning of their document to themselves.
#[derive(Debug, Clone)]
pub struct Mask {
    b: usize,
    t: usize,
    offset: usize,
    starts: Tensor<1, Int>,
    additive: Option<Tensor<4>>,
}

impl Mask {
    /// `starts: [b·t]`, the key at which the document of every query begins.
    pub fn new(b: usize, t: usize, offset: usize, starts: &[i32], device: &Device) -> Self {
        assert_eq!(starts.len(), b * t, "one start per query");
        let plain = device.clone().inner();
        let starts_tensor = Tensor::from_data(TensorData::new(starts.to_vec(), [b * t]), (&plain, DType::I32));
        let additive = (!on_cpu(device)).then(|| {
            let s = offset + t;
            let mut mask = vec![MASKED; b * t * s];
            for (row, start) in starts.iter().enumerate() {
                mask[row * s..][(*start).max(0) as usize..=offset + row % t].fill(0.0);
            }
            Tensor::from_data(TensorData::new(mask, [b, 1, t, s]), (device, DType::F32))
        });
        Self { b, t, offset, starts: starts_tensor, additive }
    }

    /// All of one document from its beginning.
    pub fn causal(b: usize, t: usize, offset: usize, device: &Device) -> Self {
        Self::new(b, t, offset, &vec![0; b * t], device)
    }
}

/// `softmax(q·kᵀ/√e + mask)·v`.
///
/// # Shapes
/// - `q`: `[b·t, h·e]`; `k`, `v`: `[b·capacity, g·e]` of which `offset + t` rows per sequence are filled;
///   returns `[b·t, h·e]`
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, mask: &Mask, h: usize, g: usize) -> Tensor<2> {
    let shape = Shape { b: mask.b, t: mask.t, h, g, e: q.dims()[1] / h, capacity: k.dims()[0] / mask.b, offset: mask.offset };
    match &mask.additive {
        None => {
            let starts = mask.starts.clone().into_dispatch();
            let (out, _) = Dispatch::attention_fwd(q.into_dispatch(), k.into_dispatch(), v.into_dispatch(), starts, shape);
            Tensor::from_dispatch(out)
        }
        Some(additive) => reference(q, k, v, additive.clone(), shape),
    }
}

/// [`attention`] in burn ops.
pub fn reference(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, additive: Tensor<4>, shape: Shape) -> Tensor<2> {
    let Shape { b, t, h, g, e, capacity, offset } = shape;
    let (s, r) = (offset + t, h / g);
    let keys = |x: Tensor<2>| x.reshape([b, capacity, g, e]).narrow(1, 0, s).swap_dims(1, 2); // [b, g, s, e]
    let q = q.reshape([b, t, h, e]).swap_dims(1, 2); // [b, h, t, e]
    let q = q.reshape([b, g, r * t, e]); // heads of a group are neighbours
    let scores = q.matmul(keys(k).swap_dims(2, 3)) * (e as f64).powf(-0.5); // [b, g, r·t, s]
    let scores = scores.reshape([b, h, t, s]) + additive;
    let p = activation::softmax(scores, 3).reshape([b, g, r * t, s]);
    let out = p.matmul(keys(v)).reshape([b, h, t, e]);
    out.swap_dims(1, 2).reshape([b * t, h * e]) // [b·t, h·e]
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Autodiff)]
pub trait AttentionOps: Backend {
    /// Output `[b·t, h·e]` and log-sum-exp `[b·t·h]`.
    fn attention_fwd(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of `q`, `k`, `v`; `saved` are the forward's inputs and outputs.
    fn attention_bwd(
        dout: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl AttentionOps for Flex {
    fn attention_fwd(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v, starts) = (contiguous(q), contiguous(k), contiguous(v), contiguous(starts));
        let inputs = Inputs { q: floats(&q), k: floats(&k), v: floats(&v), starts: ints(&starts), shape };
        let (out, lse) = cpu_attention(inputs);
        let rows = shape.b * shape.t;
        (tensor(out, [rows, shape.h * shape.e]), tensor(lse, [rows * shape.h]))
    }

    fn attention_bwd(
        dout: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v, starts, dout) = (contiguous(q), contiguous(k), contiguous(v), contiguous(starts), contiguous(dout));
        let inputs = Inputs { q: floats(&q), k: floats(&k), v: floats(&v), starts: ints(&starts), shape };
        let (dq, dk, dv) = attention_backward(inputs, floats(&dout), floats(&out), floats(&lse));
        let Shape { b, t, h, g, e, capacity, .. } = shape;
        (tensor(dq, [b * t, h * e]), tensor(dk, [b * capacity, g * e]), tensor(dv, [b * capacity, g * e]))
    }
}

#[derive(Debug)]
struct AttentionBackward;

/// What the backward pass needs again.
#[derive(Debug, Clone)]
struct Saved<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    starts: IntTensor<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    shape: Shape,
}

impl<B: AttentionOps> Backward<B, 3> for AttentionBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = grads.consume::<B>(&ops.node);
        let Saved { q, k, v, starts, out, lse, shape } = ops.state;
        let (dq, dk, dv) = B::attention_bwd(dout, q, k, v, starts, out, lse, shape);
        for (node, gradient) in ops.parents.into_iter().zip([dq, dk, dv]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_fwd(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [q.node(), k.node(), v.node()];
        let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
        let (out, lse) = B::attention_fwd(q.clone(), k.clone(), v.clone(), starts.clone(), shape);
        let out = match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let saved = Saved { q, k, v, starts, out: out.clone(), lse: lse.clone(), shape };
                prep.finish(saved, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        (out, Self::from_inner(lse))
    }

    fn attention_bwd(
        dout: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
        let (dout, out, lse) = (dout.into_primitive(), out.into_primitive(), lse.into_primitive());
        let (dq, dk, dv) = B::attention_bwd(dout, q, k, v, starts, out, lse, shape);
        (Self::from_inner(dq), Self::from_inner(dk), Self::from_inner(dv))
    }
}
