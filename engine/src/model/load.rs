//! From a checkpoint's files to a model on a device.

use std::collections::HashMap;

use burn::tensor::Device;
use half::f16;

use super::hub::Weights;
use super::llama::{Stored, flat, random_rows};
use super::safetensors::Dtype;
use super::{Llama, LlamaConfig};
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::ops::quant::nf4::BLOCK;
use crate::ops::quant::{Absmax, Nf4};
use crate::ops::{linear_f16, linear_nf4, on_cpu};
use crate::store::Store;

/// How a device keeps the matrices of a model; its norms are always of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// In f32, to be trained or because the device is fastest with it.
    F32,
    /// In f16 where the checkpoint has them so and the device has the kernels for it, else in f32: to generate.
    Stored,
    /// In f16 wherever the device has the kernels for it: a base that is not trained.
    F16,
    /// Linear layers in 4 bits, tables as [`Keep::F16`]: a base that is not trained.
    Nf4,
}

/// Loads a Hugging Face folder onto a device for sequences of up to `positions` tokens; `progress` hears how many bytes of
/// how many were read.
///
/// # Errors
/// Missing, misshapen or non-finite tensors, by name.
pub async fn load(
    store: &Store,
    folder: &str,
    config: &LlamaConfig,
    compute: &Compute,
    positions: usize,
    keep: Keep,
    progress: impl Fn(u64, u64),
) -> Result<Llama> {
    let weights = Weights::open(store, folder).await?;
    weights.check(config)?;
    let total = 4 * config.parameters();
    let done = std::cell::Cell::new(0u64);
    Llama::new(config, compute, positions, |name, rows| {
        if let Some(weight) = weights.read_nf4(name)? {
            done.set(done.get() + 4 * (weight.rows * weight.columns) as u64);
            progress(done.get().min(total), total);
            return Ok(quantized(weight, keep, &compute.device));
        }
        let (dtype, columns) = match weights.info(name) {
            Some((dtype, [_, columns])) => (dtype, *columns),
            _ => return Ok(flat(weights.read_rows(name, rows)?).into()),
        };
        if rows.len() > 1 {
            done.set(done.get() + (4 * rows.len() * columns) as u64);
            progress(done.get().min(total), total);
        }
        match kept(name, columns, keep, dtype == Dtype::F16, &compute.device) {
            Kind::F16 if dtype == Dtype::F16 => Ok(flat(weights.read_rows_f16(name, rows)?).into()),
            kind => stored(name, weights.read_rows(name, rows.clone())?, rows.len(), kind),
        }
    })
}

/// Random weights, see [`Llama::random`], kept in some way; [`Keep::Stored`] as of a checkpoint that has them in f16.
///
/// # Errors
/// None that random weights could cause.
pub fn random(config: &LlamaConfig, compute: &Compute, positions: usize, seed: u64, keep: Keep) -> Result<Llama> {
    let draw = random_rows(config, seed);
    let columns: HashMap<String, usize> = config.tensors().into_iter().filter_map(|(name, shape)| Some((name, *shape.get(1)?))).collect();
    Llama::new(config, compute, positions, |name, rows| {
        let kind = columns.get(name).map_or(Kind::F32, |columns| kept(name, *columns, keep, true, &compute.device));
        stored(name, draw(name, rows.clone()), rows.len(), kind)
    })
}

/// Bytes of a model's weights on a device.
pub fn size_bytes(config: &LlamaConfig, keep: Keep, device: &Device) -> u64 {
    let size = |(name, shape): (String, Vec<usize>)| {
        let numbers = shape.iter().product::<usize>() as u64;
        let kind = shape.get(1).map_or(Kind::F32, |columns| kept(&name, *columns, keep, false, device));
        match kind {
            Kind::F32 => 4 * numbers,
            Kind::F16 => 2 * numbers,
            Kind::Nf4 => numbers / 2 + numbers / BLOCK as u64 + 4 * (numbers / BLOCK as u64).div_ceil(256),
        }
    };
    config.tensors().into_iter().map(size).sum()
}

/// Linear layers that a device cannot keep in 4 bits.
pub fn unquantized(config: &LlamaConfig, device: &Device) -> usize {
    let linear = config.tensors().into_iter().filter(|(name, _)| is_linear(name));
    linear.filter(|(_, shape)| shape.get(1).is_none_or(|columns| !quantizes(device, *columns))).count()
}

/// What becomes of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    F32,
    F16,
    Nf4,
}

/// What becomes of a matrix with so many columns, which the checkpoint may have in f16.
fn kept(name: &str, columns: usize, keep: Keep, in_f16: bool, device: &Device) -> Kind {
    // With tables of f32 the CPU is faster where something is trained.
    let f16 = linear_f16::serves(device, columns) && (keep == Keep::Stored || is_linear(name) || !on_cpu(device));
    match keep {
        Keep::Nf4 if is_linear(name) && quantizes(device, columns) => Kind::Nf4,
        Keep::F16 | Keep::Nf4 if f16 => Kind::F16,
        Keep::Stored if f16 && in_f16 => Kind::F16,
        _ => Kind::F32,
    }
}

fn stored(name: &str, values: Vec<f32>, rows: usize, kind: Kind) -> Result<Stored> {
    Ok(match kind {
        Kind::F32 => flat(values).into(),
        Kind::F16 => flat(halved(name, values)?).into(),
        Kind::Nf4 => Stored::Nf4(Nf4::quantize(&values, rows, values.len() / rows)),
    })
}

/// A matrix that a checkpoint has in 4 bits: unpacked where all is to be in f32, or where the device cannot compute with it.
fn quantized(mut weight: Nf4, keep: Keep, device: &Device) -> Stored {
    if keep == Keep::F32 || !quantizes(device, weight.columns) {
        return flat(weight.dense()).into();
    }
    if let (Absmax::Plain(scales), false) = (&weight.absmax, on_cpu(device)) {
        weight.absmax = Absmax::nested(scales); // the kernels know no others
    }
    Stored::Nf4(weight)
}

/// Whether a tensor is the weight of a linear layer inside the model.
pub fn is_linear(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

/// Whether a device computes with matrices of 4 bits that have so many columns.
fn quantizes(device: &Device, columns: usize) -> bool {
    on_cpu(device) || linear_nf4::serves(device, columns)
}

/// Numbers rounded to f16.
fn halved(name: &str, values: Vec<f32>) -> Result<Vec<f16>> {
    let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
    match halves.iter().position(|half| !half.is_finite()) {
        None => Ok(halves),
        Some(index) => Err(Error::Data(format!(
            "tensor {name} holds {}, too large for f16 (at most 65504); keep the base in f32 (--base-dtype f32)",
            values[index]
        ))),
    }
}
