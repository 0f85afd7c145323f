//! `x · wᵀ` with the weight kept as f16: for generation on graphics devices, whether or not they compute in f16.

use burn::backend::Wgpu;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{Device, FloatDType, Tensor};
use smolforge_shaders::{LINEAR_F16, LINEAR_F16_ROW};

use super::launch::{buffer, launch, row_groups};
use super::{kernels_enabled, on_cpu};

/// Most rows of `x` that are multiplied one by one: each reads all of `w`, as decoding does.
const FEW_ROWS: usize = 16;
/// Columns of `w` that are read at once.
const WIDE: usize = 8;
/// Outputs of a workgroup of [`LINEAR_F16_ROW`].
const ROW_OUTPUTS: usize = 16;
/// Height and width of the outputs of a workgroup of [`LINEAR_F16`].
const TILE: usize = 64;

/// Whether weights with rows of `columns` numbers can stay f16 on `device`: the kernels read whole vectors of a row.
/// The CPU device computes from f32, where its products are fastest.
pub fn serves(device: &Device, columns: usize) -> bool {
    kernels_enabled() && !on_cpu(device) && columns.is_multiple_of(WIDE)
}

/// `y = x · wᵀ`, summed in f32; nothing of `w` is written in f32 anywhere.
///
/// # Shapes
/// - `x`: `[n, in]` of f32, `w`: `[out, in]` of f16, returns `[n, out]` of f32
pub fn linear_f16(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let ([n, columns], [out, _]) = (x.dims(), w.dims());
    if !serves(&x.device(), columns) {
        return reference(x, w);
    }
    let cube = |tensor: Tensor<2>| into_contiguous(tensor.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device"));
    let (x, w) = (cube(x), cube(w));
    let y = buffer(&x, [n, out]);
    let (kernel, groups, columns) = match n {
        0..=FEW_ROWS => (LINEAR_F16_ROW, n * out.div_ceil(ROW_OUTPUTS), columns / WIDE),
        _ => (LINEAR_F16, n.div_ceil(TILE) * out.div_ceil(TILE), columns / 4),
    };
    launch(kernel, row_groups(groups), &[&x, &w, &y], &[n as u32, out as u32, columns as u32, 0]);
    Tensor::from_primitive::<Wgpu>(y)
}

/// [`linear_f16`] in burn ops, on devices that know f16.
pub fn reference(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    x.matmul(w.cast(FloatDType::F32).transpose())
}
