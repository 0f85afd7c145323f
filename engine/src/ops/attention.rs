//! Causal attention with grouped key/value heads. A query never looks past the beginning of its document.

use std::sync::OnceLock;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::wgpu::into_contiguous;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use burn_cubecl::CubeBackend;
pub use smolforge_shaders::cpu::attention::Shape;
use smolforge_shaders::{ATTENTION, ATTENTION_DELTA, ATTENTION_DKV, ATTENTION_DKV_LANES, ATTENTION_DQ, ATTENTION_DQ_LANES};
use smolforge_shaders::{ATTENTION_LANES, ATTENTION_ROW, ATTENTION_ROW_LANES, Kernel};

use super::cpu::attention::{Inputs, attention as cpu_attention, attention_backward};
use super::cpu::tensor::{contiguous, floats, ints, tensor};
use super::launch::{buffer, launch, row_groups};
use super::product::lanes;
use super::{kernels_enabled, on_cpu};

/// Score of a key that must not be seen; `exp` of it is 0 and no arithmetic on it makes NaN.
const MASKED: f32 = -1e30;

/// Which keys the queries of a batch may see: from the beginning of their document to themselves.
#[derive(Debug, Clone)]
pub struct Mask {
    b: usize,
    t: usize,
    offset: usize,
    starts: Vec<i32>,
    starts_tensor: Tensor<1, Int>,
    device: Device,
    additive: OnceLock<Tensor<4>>,
}

impl Mask {
    /// `starts: [b·t]`, the key at which the document of every query begins; it never falls along a sequence.
    pub fn new(b: usize, t: usize, offset: usize, starts: &[i32], device: &Device) -> Self {
        assert_eq!(starts.len(), b * t, "one start per query");
        assert!(starts.chunks(t.max(1)).all(<[i32]>::is_sorted), "documents follow each other");
        let plain = device.clone().inner();
        let starts_tensor = Tensor::from_data(TensorData::new(starts.to_vec(), [b * t]), (&plain, DType::I32));
        Self { b, t, offset, starts: starts.to_vec(), starts_tensor, device: device.clone(), additive: OnceLock::new() }
    }

    /// All of one document from its beginning.
    pub fn causal(b: usize, t: usize, offset: usize, device: &Device) -> Self {
        Self::new(b, t, offset, &vec![0; b * t], device)
    }

    /// As a summand of scores `[b, h, t, offset + t]`, which the definition needs: 0 or very low.
    fn additive(&self) -> Tensor<4> {
        let make = || {
            let (b, t, s) = (self.b, self.t, self.offset + self.t);
            let mut mask = vec![MASKED; b * t * s];
            for (row, start) in self.starts.iter().enumerate() {
                mask[row * s..][(*start).max(0) as usize..=self.offset + row % t].fill(0.0);
            }
            Tensor::from_data(TensorData::new(mask, [b, 1, t, s]), (&self.device, DType::F32))
        };
        self.additive.get_or_init(make).clone()
    }
}

/// `softmax(q·kᵀ/√e + mask)·v`.
///
/// # Shapes
/// - `q`: `[b·t, h·e]`; `k`, `v`: `[b·capacity, g·e]` of which `offset + t` rows per sequence are filled;
///   returns `[b·t, h·e]`
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, mask: &Mask, h: usize, g: usize) -> Tensor<2> {
    let shape = Shape { b: mask.b, t: mask.t, h, g, e: q.dims()[1] / h, capacity: k.dims()[0] / mask.b, offset: mask.offset };
    let fours = shape.e.is_multiple_of(4); // the kernels read vectors
    if kernels_enabled() && (fours || on_cpu(&q.device())) {
        let starts = mask.starts_tensor.clone().into_dispatch();
        let (out, _) = Dispatch::attention_fwd(q.into_dispatch(), k.into_dispatch(), v.into_dispatch(), starts, shape);
        return Tensor::from_dispatch(out);
    }
    reference(q, k, v, mask.additive(), shape)
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
#[backend_extension(Flex, Cube, Autodiff)]
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

/// Up to so many queries a sequence, workgroups share out the keys of a query rather than queries.
const FEW_QUERIES: usize = 8;

/// Widest head whose unfinished rows the kernels for subgroups of 8 can keep in workgroup memory.
const LANES_WIDTH: usize = 128;

/// The `Params` of the kernels.
fn params(shape: Shape) -> [u32; 8] {
    let Shape { b, t, h, g, e, capacity, offset } = shape;
    let scale = (e as f32).powf(-0.5);
    [b as u32, t as u32, h as u32, g as u32, (e / 4) as u32, capacity as u32, offset as u32, scale.to_bits()]
}

/// The kernel for a block of rows and its workgroups: `plain` has 64 rows and 64 columns each, `lanes` 32 rows.
fn blocks([plain, of_lanes]: [Kernel; 2], rows: usize, e: usize) -> (Kernel, usize) {
    if e <= LANES_WIDTH && lanes() { (of_lanes, rows.div_ceil(32)) } else { (plain, rows.div_ceil(64) * e.div_ceil(64)) }
}

impl AttentionOps for CubeBackend {
    fn attention_fwd(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        starts: IntTensor<Self>,
        shape: Shape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k, v, starts) = (into_contiguous(q), into_contiguous(k), into_contiguous(v), into_contiguous(starts));
        let Shape { b, t, h, g, e, .. } = shape;
        let (out, lse) = (buffer(&q, [b * t, h * e]), buffer(&q, [b * t * h]));
        let (kernel, groups) = if t <= FEW_QUERIES {
            let heads = (h / g).div_ceil(4); // at once
            (if lanes() { ATTENTION_ROW_LANES } else { ATTENTION_ROW }, b * t * g * heads * e.div_ceil(64))
        } else {
            let (kernel, blocks) = blocks([ATTENTION, ATTENTION_LANES], t, e);
            (kernel, b * h * blocks)
        };
        launch(kernel, row_groups(groups), &[&q, &k, &v, &starts, &out, &lse], &params(shape));
        (out, lse)
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
        let (q, k, v, starts, dout) =
            (into_contiguous(q), into_contiguous(k), into_contiguous(v), into_contiguous(starts), into_contiguous(dout));
        let Shape { b, t, h, g, e, capacity, .. } = shape;
        let n = b * t * h;
        let stats = buffer(&q, [n, 2]);
        launch(ATTENTION_DELTA, row_groups(n.div_ceil(64)), &[&dout, &out, &lse, &stats], &[n as u32, (e / 4) as u32, 0, 0]);
        let dq = buffer(&q, [b * t, h * e]);
        let (kernel, groups) = blocks([ATTENTION_DQ, ATTENTION_DQ_LANES], t, e);
        launch(kernel, row_groups(b * h * groups), &[&q, &k, &v, &starts, &dout, &stats, &dq], &params(shape));
        let (dk, dv) = (buffer(&q, [b * capacity, g * e]), buffer(&q, [b * capacity, g * e]));
        let (kernel, groups) = blocks([ATTENTION_DKV, ATTENTION_DKV_LANES], capacity, e);
        launch(kernel, row_groups(2 * b * g * groups), &[&q, &k, &v, &starts, &dout, &stats, &dk, &dv], &params(shape));
        (dq, dk, dv)
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
