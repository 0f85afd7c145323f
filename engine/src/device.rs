//! Finding and opening what computes: a GPU through wgpu, or the CPU.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, DeviceKind, Tensor};

use crate::error::{Error, Result};
use crate::ops::kernels_enabled;
use crate::ops::product::{self, Trial};
use crate::ops::program;
use crate::platform;
use crate::protocol::{DeviceChoice, DeviceInfo, MemoryReport};

/// An open device.
#[derive(Debug, Clone)]
pub struct Compute {
    /// burn's handle, without gradients.
    pub device: Device,
    /// What it is.
    pub info: DeviceInfo,
    /// Largest tensor in bytes.
    pub max_binding_bytes: u64,
    /// Whether it computes in f16.
    pub f16: bool,
    /// Kernels for matrix products that were tried when it was opened, the best first.
    pub trials: Vec<Trial>,
}

impl Compute {
    /// The CPU device.
    pub fn cpu() -> Self {
        let info = cpu_info();
        Self { device: Device::flex(), max_binding_bytes: u64::MAX, f16: false, trials: Vec::new(), info }
    }

    /// Opens what `choice` asks for; says in one line what was taken and why.
    ///
    /// # Errors
    /// [`Error::Device`] where a GPU is asked for and there is none.
    pub async fn open(choice: DeviceChoice) -> Result<(Self, String)> {
        match choice {
            DeviceChoice::Cpu => Ok((Self::cpu(), "computing on the CPU, as asked".into())),
            DeviceChoice::Gpu => {
                let compute = Self::gpu().await?;
                let why = compute.why();
                Ok((compute, why))
            }
            DeviceChoice::Auto => {
                let adapters = adapters().await;
                if adapters.iter().any(DeviceInfo::is_real_gpu) {
                    let compute = Self::gpu().await?;
                    if compute.info.is_real_gpu() {
                        let why = compute.why();
                        return Ok((compute, why));
                    }
                }
                let why = match adapters.first() {
                    Some(software) => format!(
                        "computing on the CPU: the only graphics adapter, {}, is software (`--device gpu` takes it all the same)",
                        software.name
                    ),
                    None => "computing on the CPU: there is no graphics adapter".to_string(),
                };
                Ok((Self::cpu(), why))
            }
        }
    }

    /// What was opened, in one line.
    fn why(&self) -> String {
        let failed: Vec<String> = self.trials.iter().filter(|trial| trial.gflops.is_none()).map(|trial| format!("; {trial}")).collect();
        format!("computing on {} ({}){}", self.info.name, self.info.backend, failed.concat())
    }

    /// The best adapter that wgpu finds, software ones included. Opened once per process.
    async fn gpu() -> Result<Self> {
        static OPENING: AtomicBool = AtomicBool::new(false);
        loop {
            if let Some(compute) = opened().clone() {
                return Ok(compute);
            }
            if !OPENING.swap(true, Ordering::SeqCst) {
                break;
            }
            platform::yield_now().await; // another engine of this process is opening it
        }
        let _opening = Opening(&OPENING);
        if let Some(compute) = opened().clone() {
            return Ok(compute); // opened between the look and the turn
        }
        let result = Self::open_gpu().await;
        if let Ok(compute) = &result {
            *opened() = Some(compute.clone());
        }
        result
    }

    async fn open_gpu() -> Result<Self> {
        if adapters().await.is_empty() {
            return Err(Error::Device(
                "no graphics adapter found; install a Vulkan driver (on Debian: mesa-vulkan-drivers) or use --device cpu".into(),
            ));
        }
        let options = Device::wgpu_options().device_kind(DeviceKind::DefaultDevice);
        let (device, setup) = options.init_with_setup_async().await.map_err(|e| {
            Error::Device(format!("the graphics adapter could not be opened: {e:?}; update its driver or use --device cpu"))
        })?;
        let mut info = described(&setup.adapter).await;
        watch(&setup.device, &info.name);
        program::open(setup.device.clone(), setup.queue.clone());
        let subgroups = setup.device.features().contains(wgpu::Features::SUBGROUP);
        let trials = if kernels_enabled() { product::choose(&device, info.kind == "software", subgroups).await } else { Vec::new() };
        info.products = trials.iter().map(ToString::to_string).collect();
        let limits = setup.device.limits();
        Ok(Self {
            trials,
            max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            f16: device.supports_dtype(DType::F16),
            device,
            info,
        })
    }

    /// Whether it trains in mixed precision.
    pub fn mixes(&self) -> bool {
        !self.is_cpu() && (self.f16 || kernels_enabled())
    }

    /// Whether this is the CPU device.
    pub fn is_cpu(&self) -> bool {
        self.info.backend == "cpu"
    }

    /// Memory that is free, which is known where the device computes in the machine's own.
    pub fn free_bytes(&self) -> Option<u64> {
        platform::available_memory_bytes().filter(|_| self.is_cpu() || self.info.kind == "software")
    }
}

/// The graphics device of this process.
static OPENED: Mutex<Option<Compute>> = Mutex::new(None);

fn opened() -> MutexGuard<'static, Option<Compute>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory in use by this process and on its graphics device.
pub fn memory() -> MemoryReport {
    let pool = opened().as_ref().and_then(|compute| compute.device.memory_pool_usage());
    MemoryReport {
        process_bytes: platform::memory_bytes(),
        device_bytes: pool.as_ref().map(|pool| pool.bytes_in_use),
        device_reserved_bytes: pool.as_ref().map(|pool| pool.bytes_reserved),
    }
}

/// Lets the next one try, also where opening panicked.
struct Opening<'a>(&'a AtomicBool);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// What the graphics device said first when it failed: all that follows speaks of results that never came.
static FAILURE: Mutex<Option<Error>> = Mutex::new(None);

/// Notes the first error of a device, then panics: cubecl takes that for the end of what the device was doing.
fn watch(device: &wgpu::Device, name: &str) {
    let (name, lost) = (name.to_string(), name.to_string());
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let first = match &error {
            wgpu::Error::OutOfMemory { .. } => {
                Error::OutOfMemory { device: name.clone(), detail: "a buffer could not be allocated".into() }
            }
            other => failure_of(&name, &other),
        };
        FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(first);
        panic!("wgpu error: {error}");
    }));
    device.set_device_lost_callback(move |reason, message| {
        if matches!(reason, wgpu::DeviceLostReason::Destroyed) {
            return; // dropped in good order
        }
        let what = if message.is_empty() { "its driver does not say why" } else { &message };
        let first = Error::Device(format!("{lost}: the graphics device was lost ({what}); what was saved before is intact"));
        platform::device_lost(&first);
        FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(first);
    });
}

fn failure_of(device: &str, error: &dyn fmt::Display) -> Error {
    let text = error.to_string();
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it does not say why").trim();
    Error::Device(format!("{device} failed: {line}; what was saved before is intact; update its driver or use --device cpu"))
}

/// Why results did not come from a device that says `error`.
pub fn failed(error: &dyn fmt::Display) -> Error {
    let first = FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take();
    first.unwrap_or_else(|| failure_of("the device", error))
}

/// The elements of a tensor.
///
/// # Errors
/// [`Error::Device`] where the device failed since the last read.
pub async fn read_f32<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.into_data_async().await.map_err(|e| failed(&e))?;
    data.try_to_vec::<f32>().map_err(|e| Error::Internal(format!("reading a tensor: {e:?}")))
}

/// All adapters and the CPU, with which one `auto` takes and why. With `test` the best adapter is opened and tried out.
pub async fn list(test: bool) -> Vec<DeviceInfo> {
    let mut devices = adapters().await;
    if test {
        Compute::gpu().await.ok(); // one that cannot be opened is listed all the same
    }
    let open = opened().as_ref().map(|compute| compute.info.clone());
    if let Some(open) = open {
        let same = |device: &&mut DeviceInfo| device.name == open.name && device.backend == open.backend;
        devices.iter_mut().filter(same).for_each(|device| device.products.clone_from(&open.products));
    }
    let chosen = devices.iter().position(DeviceInfo::is_real_gpu);
    for (i, device) in devices.iter_mut().enumerate() {
        device.auto = Some(i) == chosen;
        device.reason = match (device.is_real_gpu(), device.auto) {
            (true, true) => "a real GPU".into(),
            (true, false) => "another adapter comes first".into(),
            (false, _) => "software: the CPU device is faster".into(),
        };
    }
    let mut cpu = cpu_info();
    cpu.auto = chosen.is_none();
    cpu.reason = if cpu.auto { "there is no real GPU".into() } else { "there is a real GPU".into() };
    devices.push(cpu);
    devices
}

async fn adapters() -> Vec<DeviceInfo> {
    let instance = wgpu::Instance::default();
    let mut found = Vec::new();
    for adapter in instance.enumerate_adapters(wgpu::Backends::all()).await {
        found.push(described(&adapter).await);
    }
    found.sort_by_key(|info| match info.kind.as_str() {
        "discrete" => 0,
        "integrated" => 1,
        "virtual" => 2,
        _ => 3,
    });
    found
}

async fn described(adapter: &wgpu::Adapter) -> DeviceInfo {
    let mut info = describe(adapter);
    if info.name.is_empty() {
        info.name = platform::adapter_name().await;
    }
    info
}

fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let (info, limits, has) = (adapter.get_info(), adapter.limits(), adapter.features());
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    };
    let names = [
        (wgpu::Features::SHADER_F16, "shader-f16"),
        (wgpu::Features::SUBGROUP, "subgroups"),
        (wgpu::Features::TIMESTAMP_QUERY, "timestamp-query"),
        (wgpu::Features::SHADER_INT64, "shader-int64"),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative-matrix"),
    ];
    DeviceInfo {
        name: info.name,
        backend: info.backend.to_string(),
        kind: kind.into(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        features: names.iter().filter(|(feature, _)| has.contains(*feature)).map(|(_, name)| (*name).to_string()).collect(),
        auto: false,
        reason: String::new(),
        products: Vec::new(),
    }
}

fn cpu_info() -> DeviceInfo {
    let memory = platform::available_memory_bytes().unwrap_or(0);
    DeviceInfo {
        name: platform::cpu_name(),
        backend: "cpu".into(),
        kind: "cpu".into(),
        driver: format!("{} threads", platform::cpu_threads()),
        max_binding_bytes: memory,
        max_buffer_bytes: memory,
        features: Vec::new(),
        auto: false,
        reason: String::new(),
        products: Vec::new(),
    }
}
