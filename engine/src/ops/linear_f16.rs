//! `x · wᵀ` with the weight kept as f16, which is not trained; graphics devices need not compute in f16 for it.

use burn::backend::wgpu::into_contiguous;
use burn::tensor::{Device, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use smolforge_shaders::{LINEAR_F16, LINEAR_F16_DX, LINEAR_F16_ROW};

use super::frozen::{Frozen, frozen, frozen_dx};
use super::launch::{buffer, dims, launch, row_groups};
use super::{kernels_enabled, on_cpu};

/// Most rows of `x` that are multiplied one by one: each reads all of `w`, as decoding does.
const FEW_ROWS: usize = 16;
/// Columns of `w` that are read at once.
const WIDE: usize = 8;
/// Outputs of a workgroup of [`LINEAR_F16_ROW`].
const ROW_OUTPUTS: usize = 16;
/// Height and width of the outputs of a workgroup of [`LINEAR_F16`].
const TILE: usize = 64;

/// Whether weights with rows of `columns` numbers can stay f16 on `device`: the kernels of graphics devices read whole vectors
/// of a row.
pub fn serves(device: &Device, columns: usize) -> bool {
    kernels_enabled() && (on_cpu(device) || columns.is_multiple_of(WIDE))
}

/// `y = x · wᵀ`, summed in f32; nothing of `w` is written in f32 anywhere on a graphics device.
///
/// # Shapes
/// - `x`: `[n, in]` of f32, `w`: `[out, in]` of f16, returns `[n, out]` of f32
pub fn linear_f16(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let w = if w.is_autodiff() { w.inner() } else { w };
    frozen(x, Frozen::F16(w))
}

/// [`linear_f16`] in burn ops, on devices that know f16.
pub fn reference(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    x.matmul(w.cast(FloatDType::F32).transpose())
}

/// `dy · w` without gradients of its own.
///
/// # Shapes
/// - `dy`: `[n, out]` of f32, `w`: `[out, in]` of f16, returns `[n, in]` of f32
pub fn dx(dy: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    frozen_dx(dy, Frozen::F16(w))
}

/// The product on a graphics device.
pub(super) fn forward(x: CubeTensor, w: CubeTensor) -> CubeTensor {
    let (x, w) = (into_contiguous(x), into_contiguous(w));
    let ([n, columns], [out, _]) = (dims(&x), dims(&w));
    let y = buffer(&x, [n, out]);
    let (kernel, groups, columns) = match n {
        0..=FEW_ROWS => (LINEAR_F16_ROW, n * out.div_ceil(ROW_OUTPUTS), columns / WIDE),
        _ => (LINEAR_F16, n.div_ceil(TILE) * out.div_ceil(TILE), columns / 4),
    };
    launch(kernel, row_groups(groups), &[&x, &w, &y], &[n as u32, out as u32, columns as u32, 0]);
    y
}

/// `dy · w` on a graphics device.
pub(super) fn backward(dy: CubeTensor, w: CubeTensor) -> CubeTensor {
    let (dy, w) = (into_contiguous(dy), into_contiguous(w));
    let ([n, out], [_, columns]) = (dims(&dy), dims(&w));
    let dx = buffer(&dy, [n, columns]);
    let groups = row_groups(n.div_ceil(TILE) * columns.div_ceil(TILE));
    launch(LINEAR_F16_DX, groups, &[&dy, &w, &dx], &[n as u32, out as u32, (columns / WIDE) as u32, 0]);
    dx
}
