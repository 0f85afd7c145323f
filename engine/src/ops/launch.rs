//! Runs a WGSL kernel on burn's buffers.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::wgpu::{KernelSource, SourceKernel, SourceTemplate};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim, KernelId};
use cubecl::server::{KernelArguments, MetadataBindingInfo};
use smolforge_shaders::Kernel;

use super::product;
use crate::platform;

/// Launches between two waits for a device that is software.
const WAIT_EVERY: usize = 64;

struct Wgsl(Kernel);

impl KernelSource for Wgsl {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new(source(self.0))
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.0.name)
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// A kernel's WGSL as it is compiled here.
pub(super) fn source(kernel: Kernel) -> String {
    // Native buffers are slices of shared pages, which wgpu takes for one buffer: all must be bound alike.
    let shared = platform::SHARED_PAGES;
    if shared { kernel.source.replace("var<storage, read>", "var<storage, read_write>") } else { kernel.source.to_string() }
}

/// Dispatches `kernel` over `groups` workgroups with `buffers` as bindings `0..` and `params` (a multiple of four
/// words) as the uniform after them.
pub fn launch(kernel: Kernel, groups: (u32, u32), buffers: &[&CubeTensor], params: &[u32]) {
    assert!(params.len().is_multiple_of(4), "uniforms are read in words of 16 bytes");
    let words = params.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect();
    let arguments = KernelArguments::new()
        .with_buffers(buffers.iter().map(|tensor| tensor.handle.clone().binding()).collect())
        .with_info(MetadataBindingInfo::custom(words));
    let source = SourceKernel::new(Wgsl(kernel), CubeDim::new_3d(kernel.workgroup_size, 1, 1));
    let client = &buffers[0].client;
    client.launch(Box::new(source), CubeCount::Static(groups.0, groups.1, 1), arguments);
    // Whoever is too far ahead of the device spins until burn's queue has room again. Where the device is software, that takes
    // a core away from it.
    static LAUNCHED: AtomicUsize = AtomicUsize::new(0);
    if product::lanes() && LAUNCHED.fetch_add(1, Ordering::Relaxed) % WAIT_EVERY == WAIT_EVERY - 1 {
        platform::wait(client.sync());
    }
}

/// A new buffer of f32 beside `like`.
pub fn buffer(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let shape = shape.into();
    let handle = like.client.empty(shape.num_elements() * DType::F32.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, DType::F32)
}

/// Bytes as kernels read them: four a word, the low byte first, the last word filled with zeros.
pub fn words(bytes: &[u8], device: &Device) -> Tensor<1, Int> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let words: Vec<i32> = bytes.chunks(4).map(|bytes| word(bytes) as i32).collect();
    let len = words.len();
    Tensor::from_data(TensorData::new(words, [len]), (device, DType::I32))
}

/// Sizes of a matrix: `[rows, columns]`.
pub fn dims(tensor: &CubeTensor) -> [usize; 2] {
    let shape = tensor.meta.shape();
    [shape[0], shape[1]]
}

/// Workgroups for one a row: a grid that keeps below 65,535 along each axis.
pub fn row_groups(rows: usize) -> (u32, u32) {
    let across = rows.clamp(1, 32_768);
    (across as u32, rows.div_ceil(across) as u32)
}
