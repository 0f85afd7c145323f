//! Dispatches that are prepared once and submitted again and again, on burn's own queue but without its scheduler.

use std::any::Any;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::backend::Wgpu;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::wgpu::{AutoCompiler, WgpuServer};
use smolforge_shaders::Kernel;
use wgpu::util::DeviceExt;

use super::launch::source;
use super::product::Kernels;
use crate::device::failed;
use crate::error::Result;

/// The graphics device of this process with its queue.
static OPEN: OnceLock<(wgpu::Device, wgpu::Queue)> = OnceLock::new();

/// Notes what burn computes with.
pub fn open(device: wgpu::Device, queue: wgpu::Queue) {
    OPEN.get_or_init(|| (device, queue));
}

fn opened() -> &'static (wgpu::Device, wgpu::Queue) {
    OPEN.get().expect("the device is open where its tensors are")
}

/// The memory of a tensor, which stays where it is as long as this lives.
#[derive(Clone)]
pub struct Buffer {
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
    tensor: CubeTensor,
    /// What keeps the memory in its place.
    _place: Rc<dyn Any>,
}

impl Buffer {
    /// Of a tensor on the graphics device.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn of<const D: usize>(tensor: &Tensor<D>) -> Result<Self> {
        Self::new(tensor.clone().try_into_primitive::<Wgpu>().expect("a tensor of the graphics device"))
    }

    /// Of a tensor of integers.
    ///
    /// # Errors
    /// As [`Buffer::of`].
    pub fn of_ints<const D: usize>(tensor: &Tensor<D, Int>) -> Result<Self> {
        Self::new(tensor.clone().try_into_primitive::<Wgpu>().expect("a tensor of the graphics device"))
    }

    fn new(tensor: CubeTensor) -> Result<Self> {
        let tensor = into_contiguous(tensor);
        let place = tensor.client.get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone());
        let place = place.map_err(|e| failed(&format!("{e:?}")))?;
        let resource = place.resource();
        let (buffer, offset, size) = (resource.buffer.clone(), resource.offset, resource.size);
        Ok(Self { buffer, offset, size, tensor, _place: Rc::new(place) })
    }

    /// `count` of its numbers from number `first` on, where bindings may begin there.
    pub fn part(&self, first: usize, count: usize) -> Option<Self> {
        let (offset, size) = (self.offset + 4 * first as u64, 4 * count as u64);
        let aligned = offset.is_multiple_of(u64::from(opened().0.limits().min_storage_buffer_offset_alignment));
        aligned.then(|| Self { offset, size, ..self.clone() })
    }

    /// Writes from its beginning, before what is submitted next.
    pub fn write(&self, words: &[u32]) {
        opened().1.write_buffer(&self.buffer, self.offset, bytemuck::cast_slice(words));
    }

    fn binding(&self) -> wgpu::BindingResource<'_> {
        let size = std::num::NonZeroU64::new(self.size);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size })
    }
}

struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: (u32, u32),
    buffers: Vec<Buffer>,
}

/// A list of dispatches.
pub struct Program {
    /// Which variants of kernels it takes.
    pub(super) kernels: Kernels,
    dispatches: Vec<Dispatch>,
}

impl Program {
    /// An empty list.
    pub fn new(kernels: Kernels) -> Self {
        Self { kernels, dispatches: Vec::new() }
    }

    /// Appends a dispatch of `kernel` over `groups` workgroups, with `buffers` as bindings `0..` and `params` as the uniform after them.
    pub fn add(&mut self, kernel: Kernel, groups: (u32, u32), buffers: &[&Buffer], params: &[u32]) {
        assert!(params.len().is_multiple_of(4), "uniforms are read in words of 16 bytes");
        let (device, _) = opened();
        let pipeline = pipeline(kernel);
        let params = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some(kernel.name),
            contents: bytemuck::cast_slice(params),
            usage: wgpu::BufferUsages::UNIFORM,
        });
        let resources = buffers.iter().map(|buffer| buffer.binding()).chain([params.as_entire_binding()]);
        let entries: Vec<_> = resources.zip(0..).map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
        let layout = pipeline.get_bind_group_layout(0);
        let bindings =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(kernel.name), layout: &layout, entries: &entries });
        let buffers = buffers.iter().map(|buffer| (*buffer).clone()).collect();
        self.dispatches.push(Dispatch { pipeline, bindings, groups, buffers });
    }

    /// Submits the whole list `times` times over, after all that burn was told before.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn submit(&self, times: usize) -> Result<()> {
        let (device, queue) = opened();
        if let Some(buffer) = self.dispatches.first().and_then(|dispatch| dispatch.buffers.first()) {
            buffer.tensor.client.flush().map_err(|e| failed(&format!("{e:?}")))?;
        }
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("program") });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for _ in 0..times {
            for dispatch in &self.dispatches {
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.bindings, &[]);
                pass.dispatch_workgroups(dispatch.groups.0, dispatch.groups.1, 1);
            }
        }
        drop(pass);
        queue.submit([encoder.finish()]);
        Ok(())
    }
}

/// The pipeline of a kernel, made once a process.
fn pipeline(kernel: Kernel) -> wgpu::ComputePipeline {
    static PIPELINES: Mutex<Option<HashMap<&'static str, wgpu::ComputePipeline>>> = Mutex::new(None);
    let mut pipelines = PIPELINES.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        let (device, _) = opened();
        let source = wgpu::ShaderSource::Wgsl(source(kernel).into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source });
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    };
    pipelines.get_or_insert_default().entry(kernel.name).or_insert_with(make).clone()
}
