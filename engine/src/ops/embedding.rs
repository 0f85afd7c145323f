//! Rows of a table. A table larger than a storage binding is split into blocks of rows.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Int, Tensor};

use super::cpu::embedding::{embedding as cpu_embedding, embedding_backward};
use super::cpu::tensor::{contiguous, dims, floats, ints, tensor};
use super::embedding_f16::embedding_f16;
use super::on_cpu;

/// Row `ids[i]` of the table whose consecutive blocks of rows are `blocks`; of f16 by [`embedding_f16`].
///
/// # Shapes
/// - `blocks`: `[v_j, d]` each, `ids`: `[n]`, returns `[n, d]`
pub fn embedding(blocks: &[Tensor<2>], ids: Tensor<1, Int>) -> Tensor<2> {
    if blocks[0].dtype() == DType::F16 {
        return embedding_f16(blocks, ids);
    }
    if let ([table], true) = (blocks, on_cpu(&ids.device())) {
        return Tensor::from_dispatch(Dispatch::embedding_fwd(table.clone().into_dispatch(), ids.into_dispatch(), table.dims()[0]));
    }
    reference(blocks, ids)
}

/// [`embedding`] in burn ops.
pub fn reference(blocks: &[Tensor<2>], ids: Tensor<1, Int>) -> Tensor<2> {
    if let [table] = blocks {
        return table.clone().select(0, ids);
    }
    let mut first_row = 0i64;
    let mut sum: Option<Tensor<2>> = None;
    for block in blocks {
        let rows = block.dims()[0] as i64;
        let local = ids.clone().sub_scalar(first_row);
        let inside = local.clone().greater_equal_elem(0).bool_and(local.clone().lower_elem(rows)); // [n]
        let rows_of_block = block.clone().select(0, local.clamp(0, rows - 1)); // [n, d]
        let part = rows_of_block * inside.float().unsqueeze_dim::<2>(1);
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
        first_row += rows;
    }
    sum.expect("a table has at least one block")
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Autodiff)]
pub trait EmbeddingOps: Backend {
    /// Rows of a table that has `rows` of them.
    fn embedding_fwd(table: FloatTensor<Self>, ids: IntTensor<Self>, rows: usize) -> FloatTensor<Self>;
    /// Gradient of a table of `rows` rows.
    fn embedding_bwd(dy: FloatTensor<Self>, ids: IntTensor<Self>, rows: usize) -> FloatTensor<Self>;
}

impl EmbeddingOps for Flex {
    fn embedding_fwd(table: FloatTensor<Self>, ids: IntTensor<Self>, _rows: usize) -> FloatTensor<Self> {
        let (table, ids) = (contiguous(table), contiguous(ids));
        let [_, d] = dims(&table);
        let ids = ints(&ids);
        tensor(cpu_embedding(floats(&table), ids, d), [ids.len(), d])
    }

    fn embedding_bwd(dy: FloatTensor<Self>, ids: IntTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let (dy, ids) = (contiguous(dy), contiguous(ids));
        let [_, d] = dims(&dy);
        tensor(embedding_backward(floats(&dy), ints(&ids), rows, d), [rows, d])
    }
}

#[derive(Debug)]
struct EmbeddingBackward;

impl<B: EmbeddingOps> Backward<B, 1> for EmbeddingBackward {
    type State = (IntTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let (ids, rows) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::embedding_bwd(dy, ids, rows));
        }
    }
}

impl<B: EmbeddingOps, C: CheckpointStrategy> EmbeddingOps for Autodiff<B, C> {
    fn embedding_fwd(table: FloatTensor<Self>, ids: IntTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let nodes = [table.node()];
        let y = B::embedding_fwd(table.into_primitive(), ids.clone(), rows);
        match EmbeddingBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((ids, rows), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn embedding_bwd(dy: FloatTensor<Self>, ids: IntTensor<Self>, rows: usize) -> FloatTensor<Self> {
        <Self as burn::backend::AutodiffBackend>::from_inner(B::embedding_bwd(dy.into_primitive(), ids, rows))
    }
}
