//! Tensor functions of the model. Each exists as a composition of burn ops, which is its definition and
//! runs on every device, and as a fast form for a device, which the tests hold against it.
//!
//! Activations are matrices: a batch of `b` sequences of `t` tokens is `[b·t, d]`.
//! Axes: `b` batch · `t` time · `n` = `b·t` · `d` hidden · `h` query heads · `g` key/value heads ·
//! `e` head size · `f` feed-forward size · `v` vocabulary.

pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
pub mod cpu;
pub mod cross_entropy;
pub mod decode;
pub mod dropout;
pub mod embedding;
pub mod embedding_f16;
pub mod frozen;
mod launch;
pub mod linear;
pub mod linear_f16;
pub mod linear_nf4;
pub mod product;
pub mod program;
pub mod quant;
pub mod rms_norm;
pub mod rope;
mod sum_of_squares;
pub mod swiglu;

pub use product::without_lanes;

use std::sync::OnceLock;

use burn::backend::wgpu::into_contiguous;
use burn::backend::{Flex, Wgpu};
use burn::tensor::{Device, Tensor};
use burn_cubecl::tensor::CubeTensor;

pub use sum_of_squares::sum_of_squares;

/// Whether fast forms are used at all: `SMOLFORGE_KERNELS=off` turns them off for bisecting.
pub fn kernels_enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| std::env::var("SMOLFORGE_KERNELS").as_deref() != Ok("off"))
}

/// Whether the fast forms for the CPU serve tensors of `device`.
pub fn on_cpu(device: &Device) -> bool {
    kernels_enabled() && device.clone().inner() == Device::flex()
}

/// Does work on `device` that has many ops. On the CPU its threads stay awake from one op to the next: to wake them takes
/// longer than a small op.
pub fn many<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if on_cpu(device) { cpu::on_a_thread_of_the_pool(work) } else { work() }
}

/// Whether there are fast forms on `device` for rows of so many numbers: kernels read whole vectors of four.
fn serves(device: &Device, columns: usize) -> bool {
    on_cpu(device) || kernels_enabled() && columns.is_multiple_of(4)
}

/// The CPU tensor behind `tensor`.
///
/// # Panics
/// On another device.
fn flex(tensor: Tensor<2>) -> burn_flex::FlexTensor {
    cpu::tensor::contiguous(tensor.try_into_primitive::<Flex>().expect("a tensor of the CPU device"))
}

/// The tensor around a CPU tensor.
fn from_flex<const D: usize>(tensor: burn_flex::FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

/// The tensor of a graphics device behind `tensor`, in row-major order without gaps.
///
/// # Panics
/// On another device.
fn cube(tensor: Tensor<2>) -> CubeTensor {
    into_contiguous(tensor.try_into_primitive::<Wgpu>().expect("a tensor of a graphics device"))
}

/// The tensor around one of a graphics device.
fn from_cube<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Wgpu>(tensor)
}

/// `a + b` where `a` is not needed any more: on the CPU without another buffer.
pub fn add_into(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    if !on_cpu(&a.device()) {
        return a + b;
    }
    let (mut a, b) = (flex(a), flex(b));
    cpu::elementwise::add_into(a.storage_mut::<f32>(), cpu::tensor::floats(&b));
    from_flex(a)
}
