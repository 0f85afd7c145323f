//! `x · wᵀ` with the weight kept as f16, which is not trained; graphics devices need not compute in f16 for it.

use burn::backend::Wgpu;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{DType, Device, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use smolforge_shaders::{HALVES, LINEAR_F16, LINEAR_F16_DX, LINEAR_F16_DX_LANES, LINEAR_F16_LANES, LINEAR_F16_ROW};

use super::frozen::{Frozen, frozen, frozen_dx};
use super::launch::{buffer, dims, launch, row_groups};
use super::product::{FEW_ROWS, Kernels, Product, ROW_OUTPUTS, chosen, launch_tiles};
use super::{kernels_enabled, on_cpu};

/// Columns of `w` that are read at once.
const WIDE: usize = 8;

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

/// A matrix of f32 rounded to f16, without gradients of its own, where rows are whole vectors of the kernels.
pub fn halved(w: &Tensor<2>) -> Option<Tensor<2>> {
    let w = w.clone().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
    packed(w).map(Tensor::from_primitive::<Wgpu>)
}

/// As [`halved`].
pub(super) fn packed(w: CubeTensor) -> Option<CubeTensor> {
    let [rows, columns] = dims(&w);
    if !columns.is_multiple_of(WIDE) {
        return None;
    }
    let (w, shape) = (into_contiguous(w), [rows, columns]);
    let handle = w.client.empty(rows * columns * DType::F16.size());
    let y = CubeTensor::new_contiguous(w.client.clone(), w.device.clone(), shape.into(), handle, DType::F16);
    let count = rows * columns / WIDE;
    launch(HALVES, row_groups(count.div_ceil(HALVES.workgroup_size as usize)), &[&w, &y], &[count as u32, 0, 0, 0]);
    Some(y)
}

/// The product on a graphics device.
pub(super) fn forward(x: CubeTensor, w: CubeTensor) -> CubeTensor {
    by(chosen(), Product::Forward, x, w)
}

/// `dy · w` on a graphics device.
pub(super) fn backward(dy: CubeTensor, w: CubeTensor) -> CubeTensor {
    by(chosen(), Product::Dx, dy, w)
}

/// A product of a graphics device by given kernels on tensors without gradients; one with a gradient by `w` there is not.
pub fn multiplied(kernels: Kernels, product: Product, a: &Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
    let cube = |tensor: &Tensor<2>| tensor.clone().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
    Tensor::from_primitive::<Wgpu>(by(kernels, product, cube(a), cube(w)))
}

fn by(kernels: Kernels, product: Product, a: CubeTensor, w: CubeTensor) -> CubeTensor {
    let (a, w) = (into_contiguous(a), into_contiguous(w));
    let ([n, inner], [out, columns]) = (dims(&a), dims(&w));
    let lanes = kernels == Kernels::Lanes;
    if product == Product::Forward {
        let y = buffer(&a, [n, out]);
        let buffers = [&a, &w, &y];
        if n <= FEW_ROWS {
            let groups = row_groups(n * out.div_ceil(ROW_OUTPUTS));
            launch(LINEAR_F16_ROW, groups, &buffers, &[n as u32, out as u32, (columns / WIDE) as u32, 0]);
        } else {
            let (kernel, tile) = if lanes { (LINEAR_F16_LANES, 32) } else { (LINEAR_F16, 64) };
            launch_tiles(kernel, tile, [n, out], inner, &buffers, [n, out, columns / 4], &[]);
        }
        return y;
    }
    let dx = buffer(&a, [n, columns]);
    let buffers = [&a, &w, &dx];
    if lanes && out.is_multiple_of(4) {
        launch_tiles(LINEAR_F16_DX_LANES, 32, [n, columns], out, &buffers, [n, out / 4, columns / 4], &[]);
    } else {
        launch_tiles(LINEAR_F16_DX, 64, [n, columns], out, &buffers, [n, out, columns / WIDE], &[]);
    }
    dx
}
