//! Rows of a table that is kept as f16; see [`super::linear_f16`].

use burn::backend::wgpu::into_contiguous;
use burn::backend::{Flex, Wgpu};
use burn::tensor::{FloatDType, Int, Tensor};
use half::f16;
use smolforge_shaders::EMBEDDING_F16;

use super::cpu::embedding::embedding_f16 as cpu_embedding_f16;
use super::cpu::tensor::{contiguous, halves, ints, tensor};
use super::launch::{buffer, launch};
use super::{embedding, flex, from_flex, linear_f16, on_cpu};

/// Row `ids[i]`, as f32, of the table whose consecutive blocks of rows are `blocks`.
///
/// # Shapes
/// - `blocks`: `[v_j, d]` of f16 each, `ids`: `[n]`, returns `[n, d]` of f32
pub fn embedding_f16(blocks: &[Tensor<2>], ids: Tensor<1, Int>) -> Tensor<2> {
    let d = blocks[0].dims()[1];
    if !linear_f16::serves(&ids.device(), d) {
        return reference(blocks, ids);
    }
    if on_cpu(&ids.device()) {
        let blocks: Vec<_> = blocks.iter().map(|block| flex(block.clone())).collect();
        let blocks: Vec<&[f16]> = blocks.iter().map(halves).collect();
        let (n, ids) = (ids.dims()[0], contiguous(ids.try_into_primitive::<Flex>().expect("a tensor of the CPU device")));
        return from_flex(tensor(cpu_embedding_f16(&blocks, ints(&ids), d), [n, d]));
    }
    let mut first = 0;
    let parts = blocks.iter().map(|block| {
        let part = rows(block.clone(), ids.clone(), first);
        first += block.dims()[0];
        part
    });
    parts.reduce(|sum, part| sum + part).expect("a table has at least one block")
}

/// [`embedding_f16`] in burn ops, on devices that know f16.
pub fn reference(blocks: &[Tensor<2>], ids: Tensor<1, Int>) -> Tensor<2> {
    let blocks: Vec<Tensor<2>> = blocks.iter().map(|block| block.clone().cast(FloatDType::F32)).collect();
    embedding::reference(&blocks, ids)
}

/// Rows of the block that begins at row `first` of the table; zeros for ids that lie in others.
fn rows(block: Tensor<2>, ids: Tensor<1, Int>, first: usize) -> Tensor<2> {
    let ([n], [rows, d]) = (ids.dims(), block.dims());
    let ids = into_contiguous(ids.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device"));
    let block = into_contiguous(block.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device"));
    let y = buffer(&block, [n, d]);
    let words = d / 2;
    let groups = ((n * words) as u32).div_ceil(EMBEDDING_F16.workgroup_size).clamp(1, 32_768);
    launch(EMBEDDING_F16, (groups, 1), &[&block, &ids, &y], &[n as u32, words as u32, rows as u32, first as u32]);
    Tensor::from_primitive::<Wgpu>(y)
}
