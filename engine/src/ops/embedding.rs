//! Rows of a table. A table larger than a storage binding is split into blocks of rows.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::wgpu::into_contiguous;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};
use burn_cubecl::CubeBackend;
use smolforge_shaders::{EMBEDDING, EMBEDDING_DW};

use super::cpu::embedding::{embedding as cpu_embedding, embedding_backward};
use super::cpu::tensor::{contiguous, dims, floats, ints, tensor};
use super::embedding_f16::embedding_f16;
use super::launch::{buffer, dims as cube_dims, launch, row_groups};
use super::{on_cpu, serves};

/// Row `ids[i]` of the table whose consecutive blocks of rows are `blocks`, without gradients; of f16 by [`embedding_f16`].
/// The gradient of a table is [`add_gradient`].
///
/// # Shapes
/// - `blocks`: `[v_j, d]` each, `ids`: `[n]`, returns `[n, d]`
pub fn embedding(blocks: &[Tensor<2>], ids: Tensor<1, Int>) -> Tensor<2> {
    if blocks[0].dtype() == DType::F16 {
        return embedding_f16(blocks, ids);
    }
    if !has_fast_form(blocks) {
        return reference(blocks, ids);
    }
    let rows = |(block, place): (&Tensor<2>, Block)| {
        Tensor::from_dispatch(Dispatch::embedding_fwd(block.clone().into_dispatch(), ids.clone().into_dispatch(), place))
    };
    let parts = blocks.iter().zip(Block::all(blocks)).map(rows);
    parts.reduce(|sum, part| sum + part).expect("a table has at least one block")
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

/// The gradient of a table, in blocks, with that of rows `ids` added to it: `table[ids[i]] += dy[i]`.
///
/// # Shapes
/// - `table`: `[v_j, d]` each, `ids`: `[n]`, `dy`: `[n, d]`
pub fn add_gradient(table: Vec<Tensor<2>>, ids: Tensor<1, Int>, dy: Tensor<2>) -> Vec<Tensor<2>> {
    let places = Block::all(&table);
    if !has_fast_form(&table) {
        let add = |(sum, place): (Tensor<2>, Block)| {
            let (local, rows) = (ids.clone().sub_scalar(place.first as i64), place.rows as i64);
            let inside = local.clone().greater_equal_elem(0).bool_and(local.clone().lower_elem(rows)); // [n]
            let of_block = dy.clone() * inside.float().unsqueeze_dim::<2>(1);
            sum.select_assign(0, local.clamp(0, rows - 1), of_block, IndexingUpdateOp::Add)
        };
        return table.into_iter().zip(places).map(add).collect();
    }
    let add = |(sum, place): (Tensor<2>, Block)| {
        let (sum, dy, ids) = (sum.into_dispatch(), dy.clone().into_dispatch(), ids.clone().into_dispatch());
        Tensor::from_dispatch(Dispatch::embedding_bwd(sum, dy, ids, place))
    };
    table.into_iter().zip(places).map(add).collect()
}

/// On the CPU a table lies in one block.
fn has_fast_form(blocks: &[Tensor<2>]) -> bool {
    let (device, [_, d]) = (blocks[0].device(), blocks[0].dims());
    serves(&device, d) && (blocks.len() == 1 || !on_cpu(&device))
}

/// Rows of a table that lie in one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// The first of them.
    first: usize,
    /// How many they are.
    rows: usize,
}

impl Block {
    /// Where consecutive blocks of rows lie.
    fn all(blocks: &[Tensor<2>]) -> Vec<Self> {
        let mut first = 0;
        let place = |block: &Tensor<2>| {
            let place = Self { first, rows: block.dims()[0] };
            first += place.rows;
            place
        };
        blocks.iter().map(place).collect()
    }
}

/// The op on backends that have a fast form of it.
#[backend_extension(Flex, Cube)]
pub trait EmbeddingOps: Backend {
    /// Row `ids[i]` where the block has it, else zeros.
    fn embedding_fwd(block: FloatTensor<Self>, ids: IntTensor<Self>, place: Block) -> FloatTensor<Self>;
    /// Adds `dy[i]` to row `ids[i]` of the block's gradient `sum` where the block has that row.
    fn embedding_bwd(sum: FloatTensor<Self>, dy: FloatTensor<Self>, ids: IntTensor<Self>, place: Block) -> FloatTensor<Self>;
}

impl EmbeddingOps for Flex {
    /// `block` is the whole table.
    fn embedding_fwd(block: FloatTensor<Self>, ids: IntTensor<Self>, _: Block) -> FloatTensor<Self> {
        let (block, ids) = (contiguous(block), contiguous(ids));
        let [_, d] = dims(&block);
        let ids = ints(&ids);
        tensor(cpu_embedding(floats(&block), ids, d), [ids.len(), d])
    }

    /// `sum` is of the whole table.
    fn embedding_bwd(sum: FloatTensor<Self>, dy: FloatTensor<Self>, ids: IntTensor<Self>, _: Block) -> FloatTensor<Self> {
        let (mut sum, dy, ids) = (contiguous(sum), contiguous(dy), contiguous(ids));
        let [_, d] = dims(&dy);
        embedding_backward(sum.storage_mut(), floats(&dy), ints(&ids), d);
        sum
    }
}

impl EmbeddingOps for CubeBackend {
    fn embedding_fwd(block: FloatTensor<Self>, ids: IntTensor<Self>, place: Block) -> FloatTensor<Self> {
        let (block, ids) = (into_contiguous(block), into_contiguous(ids));
        let (n, [rows, d]) = (ids.meta.shape()[0], cube_dims(&block));
        let y = buffer(&block, [n, d]);
        launch(EMBEDDING, row_groups(n), &[&block, &ids, &y], &[n, d, rows, place.first].map(|x| x as u32));
        y
    }

    fn embedding_bwd(sum: FloatTensor<Self>, dy: FloatTensor<Self>, ids: IntTensor<Self>, place: Block) -> FloatTensor<Self> {
        let (sum, dy, ids) = (into_contiguous(sum), into_contiguous(dy), into_contiguous(ids));
        let ([n, d], [rows, _]) = (cube_dims(&dy), cube_dims(&sum));
        let sum = if sum.can_mut() { sum } else { sum.copy() }; // somebody else still reads it
        launch(EMBEDDING_DW, row_groups(n), &[&dy, &ids, &sum], &[n, d, rows, place.first].map(|x| x as u32));
        sum
    }
}
