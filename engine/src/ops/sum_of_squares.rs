//! The squared norm of many tensors.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use smolforge_shaders::SUM_OF_SQUARES;

use super::cpu::elementwise::sum_of_squares as cpu_sum_of_squares;
use super::cpu::tensor::floats;
use super::launch::{buffer, launch};
use super::{cube, flex, from_cube, kernels_enabled, on_cpu};

/// Tensors of one launch.
const TOGETHER: usize = 7;
/// Most workgroups that share a tensor.
const MOST_PARTS: usize = 64;
/// Numbers for which another workgroup is worth its start.
const PART: usize = 8192;

/// `Σ x²` over all numbers of some tensors, as a tensor of one element; on the CPU summed in f64.
///
/// # Panics
/// Without tensors.
pub fn sum_of_squares(tensors: &[Tensor<2>]) -> Tensor<1> {
    let device = tensors[0].device();
    if on_cpu(&device) {
        let sum: f64 = tensors.iter().map(|x| cpu_sum_of_squares(floats(&flex(x.clone())))).sum();
        return Tensor::from_data([sum as f32], &device);
    }
    // Vectors of four are what the kernel reads.
    let fast = |x: &&Tensor<2>| kernels_enabled() && x.shape().num_elements().is_multiple_of(4);
    let (fast, rest): (Vec<&Tensor<2>>, Vec<&Tensor<2>>) = tensors.iter().partition(fast);
    let sums = (!fast.is_empty()).then(|| on_gpu(fast.into_iter().map(|x| cube(x.clone())).collect()));
    let sums = sums.into_iter().chain(rest.into_iter().map(|x| reference(x.clone())));
    sums.reduce(|a, b| a + b).expect("one tensor at least")
}

/// [`sum_of_squares`] of one tensor in burn ops.
pub fn reference(x: Tensor<2>) -> Tensor<1> {
    x.square().sum()
}

/// A launch for every seven tensors, and one for the sum of what they leave.
fn on_gpu(tensors: Vec<CubeTensor>) -> Tensor<1> {
    let len = |tensor: &CubeTensor| tensor.meta.shape().num_elements();
    let parts = |tensor: &CubeTensor| (len(tensor) / PART).clamp(1, MOST_PARTS);
    let all = buffer(&tensors[0], [1, tensors.iter().map(parts).sum()]);
    let mut first = 0;
    for tensors in tensors.chunks(TOGETHER) {
        let (mut ends, mut lens, mut groups) = ([0; TOGETHER], [0; TOGETHER], 0);
        for i in 0..TOGETHER {
            if let Some(tensor) = tensors.get(i) {
                groups += parts(tensor) as u32;
                lens[i] = len(tensor) as u32;
            }
            ends[i] = groups;
        }
        // Places without a tensor are bound, too, but never read.
        let mut buffers: Vec<&CubeTensor> = (0..TOGETHER).map(|i| tensors.get(i).unwrap_or(&tensors[0])).collect();
        buffers.push(&all);
        launch(SUM_OF_SQUARES, (groups, 1), &buffers, &[&ends[..], &[first], &lens, &[0]].concat());
        first += groups;
    }
    from_cube::<2>(all).sum()
}
