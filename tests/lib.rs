//! What the tests share: devices, golden files, comparison.

use std::sync::OnceLock;

use burn::tensor::{Tensor, f16};
use futures_lite::future::block_on;
use smolforge_engine::data::Batch;
use smolforge_engine::device::{Compute, read_f32};
use smolforge_engine::generate::load;
use smolforge_engine::model::safetensors::SafeFile;
use smolforge_engine::model::{Llama, hub};
use smolforge_engine::platform;
use smolforge_engine::protocol::DeviceChoice;
use smolforge_engine::store::Store;
use smolforge_engine::tasks::self_test;
pub use smolforge_engine::tasks::self_test::{halves, numbers, words};

/// The CPU device, and wgpu where there is an adapter (a must with `SMOLFORGE_REQUIRE_GPU=1`).
pub fn devices() -> Vec<Compute> {
    let mut devices = vec![cpu()];
    match block_on(Compute::open(DeviceChoice::Gpu)) {
        Ok((gpu, _)) => devices.push(gpu),
        Err(error) if std::env::var("SMOLFORGE_REQUIRE_GPU").as_deref() == Ok("1") => panic!("{error}"),
        Err(error) => println!("skipped: the half on a graphics adapter: {error}"),
    }
    devices
}

/// The CPU device.
pub fn cpu() -> Compute {
    static PREPARED: OnceLock<()> = OnceLock::new();
    PREPARED.get_or_init(platform::prepare_threads);
    Compute::cpu()
}

/// The folder of golden files.
pub fn golden() -> Store {
    Store::folder("golden") // tests run in their package's folder; env!() would name that of the first build
}

/// A golden JSON file.
pub fn golden_json(name: &str) -> serde_json::Value {
    serde_json::from_str(&block_on(golden().read_text(name)).expect("golden file")).expect("JSON")
}

/// A golden safetensors file.
pub fn golden_tensors(name: &str) -> SafeFile {
    SafeFile::open(block_on(golden().open(name)).expect("golden file"), name).expect("safetensors")
}

/// A golden model.
pub fn golden_model(folder: &str, compute: &Compute) -> Llama {
    block_on(async {
        let config = hub::read_config(&golden(), folder).await.expect("config");
        load(&golden(), folder, &config, compute, config.max_position_embeddings).await.expect("weights")
    })
}

/// Ids and targets as one micro-batch of whole documents.
pub fn batch(inputs: &[i64], targets: &[i64], len: usize) -> Batch {
    let to_i32 = |ids: &[i64]| ids.iter().map(|id| *id as i32).collect::<Vec<_>>();
    let rows = inputs.len() / len;
    Batch { rows, len, inputs: to_i32(inputs), targets: to_i32(targets), starts: vec![0; rows * len], sources: vec![0; rows] }
}

/// Elements of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    block_on(read_f32(tensor)).expect("read")
}

/// A matrix of [`numbers`] on a device.
pub fn matrix(seed: u64, rows: usize, columns: usize, compute: &Compute) -> Tensor<2> {
    self_test::matrix(seed, rows, columns, &compute.device)
}

/// A matrix on a device that is kept as f16.
pub fn half_matrix(values: &[f16], columns: usize, compute: &Compute) -> Tensor<2> {
    self_test::half_matrix(values, columns, &compute.device)
}

/// Largest absolute difference; NaN counts as infinite.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
