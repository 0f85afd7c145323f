//! Every kernel and op on a device, at awkward sizes, against what it means: kernels against their twins, ops and their
//! gradients against the definition in burn ops, computed on the CPU device.

mod attention;
mod decode;

use std::panic::AssertUnwindSafe;

use burn::tensor::{DType, Device, Tensor, TensorData, activation, f16};
use futures_lite::FutureExt;
use smolforge_shaders::cpu as twins;

use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::device::Compute;
use crate::device::read_f32;
use crate::error::{Error, Result};
use crate::model::llama::ids;
use crate::ops::adamw::{AdamW, Moments, adamw};
use crate::ops::adamw_8bit::{self, DeviceMoments, adamw_8bit};
use crate::ops::attention::{Mask, Shape, attention as attention_of, reference as attention_reference};
use crate::ops::cross_entropy::Wanted;
use crate::ops::embedding_f16::embedding_f16;
use crate::ops::frozen::{Frozen, frozen, frozen_dx};
use crate::ops::linear_f16::{self, linear_f16};
use crate::ops::linear_nf4::Nf4Weight;
use crate::ops::product::{Kernels, Product, chosen, multiplied};
use crate::ops::quant::adamw8::{Moments8, adamw8};
use crate::ops::quant::dynamic8::{SIGNED, UNSIGNED};
use crate::ops::quant::{Absmax, Nf4};
use crate::ops::{cross_entropy, dropout, embedding, kernels_enabled, linear, on_cpu, rms_norm, rope, sum_of_squares, swiglu};
use crate::protocol::{DeviceChoice, Event, KernelReport};
use crate::train::gradients_of;
use attention::Which;

/// Largest difference, in units of the largest number: sums in another order, fused products, other roots.
const TOLERANCE: f64 = 1e-4;

/// What was computed and what it should be.
type Pairs = Vec<(Tensor<2>, Tensor<2>)>;

/// A kernel or op with what it computes on a device.
struct Check {
    name: &'static str,
    pairs: fn(&Device) -> Pairs,
}

/// The kernels of `smolforge_shaders`, by their names.
const KERNEL_CHECKS: &[Check] = &[
    Check { name: "rms_norm", pairs: |device| rms_norm_kernels(device, 0) },
    Check { name: "rms_norm_dx", pairs: |device| rms_norm_kernels(device, 1) },
    Check { name: "rms_norm_dw", pairs: |device| rms_norm_kernels(device, 2) },
    Check { name: "adamw", pairs: adamw_kernel },
    Check { name: "linear", pairs: |device| product_kernel(device, Kernels::Tile, Product::Forward, 65) },
    Check { name: "linear_row", pairs: |device| product_kernel(device, Kernels::Tile, Product::Forward, 3) },
    Check { name: "linear_dx", pairs: |device| product_kernel(device, Kernels::Tile, Product::Dx, 65) },
    Check { name: "linear_dw", pairs: |device| product_kernel(device, Kernels::Tile, Product::Dw, 65) },
    Check { name: "linear_lanes", pairs: |device| product_kernel(device, Kernels::Lanes, Product::Forward, 65) },
    Check { name: "linear_dx_lanes", pairs: |device| product_kernel(device, Kernels::Lanes, Product::Dx, 65) },
    Check { name: "linear_dw_lanes", pairs: |device| product_kernel(device, Kernels::Lanes, Product::Dw, 65) },
    Check { name: "linear_f16", pairs: |device| linear_f16_kernel(device, Kernels::Tile, 65) },
    Check { name: "linear_f16_row", pairs: |device| linear_f16_kernel(device, Kernels::Tile, 3) },
    Check { name: "linear_f16_dx", pairs: |device| linear_f16_dx_kernel(device, Kernels::Tile) },
    Check { name: "linear_f16_lanes", pairs: |device| linear_f16_kernel(device, Kernels::Lanes, 65) },
    Check { name: "linear_f16_dx_lanes", pairs: |device| linear_f16_dx_kernel(device, Kernels::Lanes) },
    Check { name: "halves", pairs: halves_kernel },
    Check { name: "linear_nf4", pairs: |device| linear_nf4_kernel(device, 65, false) },
    Check { name: "linear_nf4_dx", pairs: |device| linear_nf4_kernel(device, 65, true) },
    Check { name: "linear_nf4_row", pairs: |device| linear_nf4_kernel(device, 3, false) },
    Check { name: "dropout", pairs: dropout_kernel },
    Check { name: "adamw_8bit", pairs: adamw_8bit_kernel },
    Check { name: "embedding_f16", pairs: embedding_f16_kernel },
    Check { name: "decode_embed", pairs: decode::embed },
    Check { name: "decode_norm_linear", pairs: |device| decode::norm_linear(device, Kernels::Tile) },
    Check { name: "decode_norm_linear_lanes", pairs: |device| decode::norm_linear(device, Kernels::Lanes) },
    Check { name: "decode_rope", pairs: |device| decode::attention(device, Kernels::Tile) },
    Check { name: "decode_attention", pairs: |device| decode::attention(device, Kernels::Tile) },
    Check { name: "decode_attention_lanes", pairs: |device| decode::attention(device, Kernels::Lanes) },
    Check { name: "decode_combine", pairs: decode::combine },
    Check { name: "decode_gate_up", pairs: |device| decode::gate_up(device, Kernels::Tile) },
    Check { name: "decode_gate_up_lanes", pairs: |device| decode::gate_up(device, Kernels::Lanes) },
    Check { name: "decode_residual", pairs: |device| decode::residual(device, Kernels::Tile) },
    Check { name: "decode_residual_lanes", pairs: |device| decode::residual(device, Kernels::Lanes) },
    Check { name: "decode_add", pairs: decode::add },
    Check { name: "decode_sample", pairs: decode::sample },
    Check { name: "embedding", pairs: |device| embedding_kernels(device, false) },
    Check { name: "embedding_dw", pairs: |device| embedding_kernels(device, true) },
    Check { name: "cross_entropy", pairs: |device| cross_entropy_kernels(device, false) },
    Check { name: "cross_entropy_dlogits", pairs: |device| cross_entropy_kernels(device, true) },
    Check { name: "sum_of_squares", pairs: sum_of_squares_kernel },
    Check { name: "attention", pairs: |device| attention::plain(device, Which::Value, false) },
    Check { name: "attention_lanes", pairs: |device| attention::lanes(device, Which::Value, false) },
    Check { name: "attention_row", pairs: |device| attention::plain(device, Which::Value, true) },
    Check { name: "attention_row_lanes", pairs: |device| attention::lanes(device, Which::Value, true) },
    Check { name: "attention_delta", pairs: |device| attention::plain(device, Which::Dq, true) },
    Check { name: "attention_dq", pairs: |device| attention::plain(device, Which::Dq, false) },
    Check { name: "attention_dq_lanes", pairs: |device| attention::lanes(device, Which::Dq, false) },
    Check { name: "attention_dkv", pairs: |device| attention::plain(device, Which::Dkv, false) },
    Check { name: "attention_dkv_lanes", pairs: |device| attention::lanes(device, Which::Dkv, false) },
    Check { name: "rope", pairs: attention::rope_kernel },
    Check { name: "swiglu", pairs: |device| attention::swiglu_kernel(device, false) },
    Check { name: "swiglu_backward", pairs: |device| attention::swiglu_kernel(device, true) },
];

const OP_CHECKS: &[Check] = &[
    Check { name: "op linear", pairs: linear_op },
    Check { name: "op rms_norm", pairs: rms_norm_op },
    Check { name: "op rope", pairs: rope_op },
    Check { name: "op attention", pairs: attention_op },
    Check { name: "op swiglu", pairs: swiglu_op },
    Check { name: "op embedding", pairs: embedding_op },
    Check { name: "op cross_entropy", pairs: cross_entropy_op },
    Check { name: "op adamw", pairs: adamw_op },
];

/// Rows and columns of kernels; of ops fewer, for every new size compiles burn's own kernels anew.
const SIZES: [(usize, usize); 6] = [(1, 1), (2, 63), (3, 64), (65, 65), (17, 1000), (1000, 96)];
const OP_SIZES: [(usize, usize); 2] = [(2, 63), (65, 96)];

/// Runs every check that is for the device and tells how it ended; one that does not run at all has an error that is no number.
///
/// # Errors
/// [`Error::Device`] where the device cannot be opened, or a check is off.
pub async fn run(choice: DeviceChoice, control: &Control) -> Result<()> {
    let (compute, why) = Compute::open(choice).await?;
    control.notice(why);
    if !kernels_enabled() {
        control.warn("SMOLFORGE_KERNELS=off: definitions are compared with themselves");
    }
    let (mut off, mut elsewhere) = (Vec::new(), Vec::new());
    for Check { name, pairs } in KERNEL_CHECKS.iter().chain(OP_CHECKS) {
        if control.breathe().await == Flow::Stop {
            return Ok(());
        }
        let computed = async {
            let pairs = pairs(&compute.device);
            if pairs.is_empty() { Ok(None) } else { largest_error(pairs, control).await.map(Some) }
        };
        let max_error = AssertUnwindSafe(computed).catch_unwind().await.ok().and_then(Result::ok).unwrap_or(Some(f64::NAN));
        let Some(max_error) = max_error else {
            elsewhere.push(*name);
            continue;
        };
        let passed = max_error <= TOLERANCE; // what is no number is not
        off.extend((!passed).then_some(*name));
        control.emit(Event::Kernel(KernelReport { name: (*name).into(), passed, max_error, tolerance: TOLERANCE }));
    }
    if !elsewhere.is_empty() {
        control.notice(format!("not for {}, other kernels do their work: {}", compute.info.name, elsewhere.join(", ")));
    }
    if !off.is_empty() {
        let advice = "update its driver, set SMOLFORGE_KERNELS=off, or use --device cpu";
        return Err(Error::Device(format!("{}: {} compute something else than they should; {advice}", compute.info.name, off.join(", "))));
    }
    Ok(())
}

/// The largest difference of any pair, relative to the largest number that is expected (at least 1).
async fn largest_error(pairs: Pairs, control: &Control) -> Result<f64> {
    let mut worst = 0.0f64;
    for (found, expected) in pairs {
        let same_shape = found.dims() == expected.dims();
        let (found, expected) = (read_f32(found).await?, read_f32(expected).await?);
        let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
        let difference = found.iter().zip(&expected).map(|(a, b)| f64::from((a - b).abs()));
        let difference = difference.fold(0.0, |max, x| if x.is_nan() { f64::INFINITY } else { x.max(max) });
        worst = worst.max(if same_shape { difference / f64::from(largest) } else { f64::INFINITY });
        control.breathe_if_due().await;
    }
    Ok(worst)
}

/// Numbers about 0 from a seed: sums of four uniform ones.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (0..4).map(|_| random.f64() as f32 - 0.5).sum()).collect()
}

fn tensor(values: Vec<f32>, rows: usize, columns: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [rows, columns]), (device, DType::F32))
}

/// A matrix of [`numbers`].
pub fn matrix(seed: u64, rows: usize, columns: usize, device: &Device) -> Tensor<2> {
    tensor(numbers(seed, rows * columns), rows, columns, device)
}

fn cpu() -> Device {
    Compute::cpu().device
}

/// [`numbers`] as f16.
pub fn halves(seed: u64, count: usize) -> Vec<f16> {
    numbers(seed, count).into_iter().map(f16::from_f32).collect()
}

/// A matrix that is kept as f16.
pub fn half_matrix(values: &[f16], columns: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / columns, columns]), (device, DType::F16))
}

/// Two f16 a word, as kernels see them.
pub fn words(values: &[f16]) -> Vec<u32> {
    values.chunks(2).map(|pair| u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16).collect()
}

/// `op(inputs)` and the gradients of `Σ op(inputs)·w` by every input, for `w` of [`numbers`] from seed 99.
pub fn value_and_gradients(op: impl Fn(&[Tensor<2>]) -> Tensor<2>, inputs: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
    let leaves: Vec<Tensor<2>> = inputs.into_iter().map(|x| Tensor::from_inner(x).require_grad()).collect();
    let y = op(&leaves);
    let [rows, columns] = y.dims();
    let weights = matrix(99, rows, columns, &y.device());
    let gradients = gradients_of(leaves.iter(), (y.clone() * weights).sum());
    std::iter::once(y.inner()).chain(gradients).collect()
}

/// Value and gradients of an op on the device, and of its definition on the CPU.
fn compared(
    device: &Device,
    op: impl Fn(&[Tensor<2>]) -> Tensor<2>,
    definition: impl Fn(&[Tensor<2>]) -> Tensor<2>,
    inputs: impl Fn(&Device) -> Vec<Tensor<2>>,
) -> Pairs {
    let found = value_and_gradients(op, inputs(device));
    found.into_iter().zip(value_and_gradients(definition, inputs(&cpu()))).collect()
}

/// What `check` makes where the kernels for eight lanes are in use; nothing elsewhere.
fn with_lanes(device: &Device, check: impl Fn() -> Pairs) -> Pairs {
    if on_cpu(device) || chosen() == Kernels::Lanes { check() } else { Vec::new() }
}

/// `n`: rows of the input.
fn product_kernel(device: &Device, kernels: Kernels, product: Product, n: usize) -> Pairs {
    let pair = |(k, m): (usize, usize)| {
        let (x, w, dy) = (matrix(1, n, k, device), matrix(2, m, k, device), matrix(3, n, m, device));
        let numbers = [numbers(1, n * k), numbers(2, m * k), numbers(3, n * m)];
        let (a, b, expected, rows, columns) = match product {
            Product::Forward => (x, w, twins::linear(&numbers[0], &numbers[1], k), n, m),
            Product::Dx => (dy, w, twins::linear_dx(&numbers[2], &numbers[1], k), n, k),
            Product::Dw => (dy, x, twins::linear_dw(&numbers[2], &numbers[0], k, m), m, k),
        };
        let by_op = |a, b| match product {
            Product::Forward => linear::linear(a, b, false),
            Product::Dx => linear::dx(a, b),
            Product::Dw => linear::dw(a, b),
        };
        let found = if on_cpu(device) || !kernels_enabled() { Some(by_op(a, b)) } else { multiplied(kernels, product, &a, &b) };
        (found.expect("sizes for the kernels"), tensor(expected, rows, columns, &cpu()))
    };
    let all = || [(4, 4), (64, 60), (72, 64), (576, 68)].into_iter().map(pair).collect();
    if kernels == Kernels::Lanes { with_lanes(device, all) } else { all() }
}

/// `n`: rows of the input, which decide the kernel.
fn linear_f16_kernel(device: &Device, kernels: Kernels, n: usize) -> Pairs {
    let pair = |(k, m): (usize, usize)| {
        let (x, w) = (matrix(1, n, k, device), halves(2, m * k));
        let expected = twins::linear_f16(&numbers(1, n * k), &words(&w), k);
        let w = half_matrix(&w, k, device);
        let definition = on_cpu(device) || !kernels_enabled();
        let found = if definition { linear_f16(x, w) } else { linear_f16::multiplied(kernels, Product::Forward, &x, &w) };
        (found, tensor(expected, n, m, &cpu()))
    };
    let all = || [(8, 1), (64, 63), (72, 64), (576, 65)].into_iter().map(pair).collect();
    if kernels == Kernels::Lanes { with_lanes(device, all) } else { all() }
}

fn linear_f16_dx_kernel(device: &Device, kernels: Kernels) -> Pairs {
    let n = 65;
    let pair = |(k, m): (usize, usize)| {
        let (dy, w) = (matrix(1, n, m, device), halves(2, m * k));
        let expected = twins::linear_f16_dx(&numbers(1, n * m), &words(&w), k);
        let w = half_matrix(&w, k, device);
        let definition = on_cpu(device) || !kernels_enabled();
        let found = if definition { linear_f16::dx(dy, w) } else { linear_f16::multiplied(kernels, Product::Dx, &dy, &w) };
        (found, tensor(expected, n, k, &cpu()))
    };
    let all = || [(8, 4), (64, 60), (128, 65), (576, 192)].into_iter().map(pair).collect();
    if kernels == Kernels::Lanes { with_lanes(device, all) } else { all() }
}

/// `n` rows of the input or of its gradient; with `back` the way back.
fn linear_nf4_kernel(device: &Device, n: usize, back: bool) -> Pairs {
    let pair = |(k, m): (usize, usize)| {
        let (given, made) = if back { (m, k) } else { (k, m) };
        let x = numbers(1, n * given);
        let w = Nf4::quantize(&numbers(2, m * k), m, k);
        let Absmax::Nested { codes, absmax, map, offset } = &w.absmax else { unreachable!("as `quantize` makes them") };
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let words = |bytes: &[u8]| bytes.chunks(4).map(word).collect::<Vec<_>>();
        let nested: Vec<f32> = map.iter().chain(absmax).copied().collect();
        let twin = twins::Nf4 { codes: &words(&w.codes), absmax: &words(codes), nested: &nested, offset: *offset };
        let expected = if back { twins::linear_nf4_dx(&x, &twin, k) } else { twins::linear_nf4(&x, &twin, k) };
        let (x, w) = (tensor(x, n, given, device), Frozen::Nf4(Nf4Weight::new(w, device)));
        (if back { frozen_dx(x, w) } else { frozen(x, w) }, tensor(expected, n, made, &cpu()))
    };
    [(64, 1), (64, 63), (128, 65), (576, 192)].into_iter().map(pair).collect()
}

fn dropout_kernel(device: &Device) -> Pairs {
    let pair = |(n, d): (usize, usize)| {
        let found = dropout::dropout(matrix(1, n, d, device), 0.25, dropout::Noise { seed: 7, row: 0 });
        (found, dropout::reference(matrix(1, n, d, &cpu()), 0.25, dropout::Noise { seed: 7, row: 0 }))
    };
    SIZES.into_iter().map(pair).collect()
}

/// Updates from moments of 0; after the first the CPU rounds moments as bitsandbytes does there, the kernel to the nearest.
fn adamw_8bit_kernel(device: &Device) -> Pairs {
    let pair = |(n, d): (usize, usize)| {
        let (len, grad) = (n * d, numbers(4, n * d));
        let mut expected = numbers(1, len);
        let zero = || twins::adamw_8bit::Moment8 { codes: vec![0; len.div_ceil(4)], absmax: vec![0.0; len.div_ceil(256)] };
        let (mut m, mut v) = (zero(), zero());
        let map: Vec<f32> = SIGNED.values.iter().chain(UNSIGNED.values.iter()).copied().collect();
        let mut moments = Moments8::zeros(len);
        let mut param = matrix(1, n, d, device);
        if on_cpu(device) || !kernels_enabled() {
            let mut values = numbers(1, len);
            adamw8(&mut values, &mut moments, &grad, &UPDATE);
            param = tensor(values, n, d, device);
            twins::adamw_8bit(&mut expected, &mut m, &mut v, &grad, &map, &update());
        } else {
            let mut moments = DeviceMoments::upload(&moments, &adamw_8bit::map(device));
            for _ in 0..2 {
                param = adamw_8bit(param, &mut moments, matrix(4, n, d, device), &UPDATE);
                twins::adamw_8bit(&mut expected, &mut m, &mut v, &grad, &map, &update());
            }
        }
        (param, tensor(expected, n, d, &cpu()))
    };
    SIZES.into_iter().map(pair).collect()
}

/// Numbers that f16 holds: how others are rounded is left to devices.
fn halves_kernel(device: &Device) -> Pairs {
    let pair = |(rows, d): (usize, usize)| {
        let numbers: Vec<f32> = halves(1, rows * d).into_iter().map(f16::to_f32).collect();
        let found = match kernels_enabled() && !on_cpu(device) {
            true => linear_f16::halved(&tensor(numbers.clone(), rows, d, device)).expect("whole vectors"),
            false => half_matrix(&halves(1, rows * d), d, device),
        };
        let all: Vec<i32> = (0..rows as i32).collect();
        let expected = twins::embedding_f16(&twins::halves(&numbers), &all, d / 2, 0);
        (embedding_f16(&[found], ids(all, device)), tensor(expected, rows, d, &cpu()))
    };
    [(1, 8), (63, 64), (1000, 72)].into_iter().map(pair).collect()
}

fn embedding_f16_kernel(device: &Device) -> Pairs {
    let pair = |(rows, d): (usize, usize)| {
        let table = halves(1, rows * d);
        let tokens: Vec<i32> = (0..70).map(|i| (i * i % rows) as i32).collect();
        let expected = twins::embedding_f16(&words(&table), &tokens, d / 2, 0);
        (embedding_f16(&[half_matrix(&table, d, device)], ids(tokens.clone(), device)), tensor(expected, tokens.len(), d, &cpu()))
    };
    [(1, 8), (63, 64), (1000, 72)].into_iter().map(pair).collect()
}

/// Rows of a table, or their gradient added to it.
fn embedding_kernels(device: &Device, back: bool) -> Pairs {
    let pair = |(rows, d): (usize, usize)| {
        let tokens: Vec<i32> = (0..70).map(|i| (i * i % rows) as i32).collect();
        let (n, mut table) = (tokens.len(), numbers(1, rows * d));
        let (on_device, positions) = (matrix(1, rows, d, device), ids(tokens.clone(), device));
        if !back {
            return (embedding::embedding(&[on_device], positions), tensor(twins::embedding(&table, &tokens, d, 0), n, d, &cpu()));
        }
        twins::embedding_dw(&mut table, &numbers(99, n * d), &tokens, d, 0);
        let found = embedding::add_gradient(vec![on_device], positions, matrix(99, n, d, device)).remove(0);
        (found, tensor(table, rows, d, &cpu()))
    };
    SIZES.into_iter().map(pair).collect()
}

/// The losses or the gradient of logits: the head is the identity, in blocks.
fn cross_entropy_kernels(device: &Device, back: bool) -> Pairs {
    let pairs = |(n, v): (usize, usize)| {
        let targets: Vec<i32> = (0..n as i32).map(|i| if i % 5 == 4 { -100 } else { i * 37 % v as i32 }).collect();
        let identity = tensor((0..v * v).map(|i| if i % (v + 1) == 0 { 1.0 } else { 0.0 }).collect(), v, v, device);
        let losses = cross_entropy::linear_cross_entropy(matrix(1, n, v, device), &identity.split(400, 0), &targets, Wanted::Hidden(0.25));
        let (mut logits, mut states) = (numbers(1, n * v), vec![twins::cross_entropy::State::NONE; n]);
        let (nll, hits) = twins::cross_entropy(&logits, v, 0, &targets, &mut states);
        if back {
            twins::cross_entropy_dlogits(&mut logits, v, 0, &targets, &states, 0.25);
            return losses.dh.into_iter().map(|dh| (dh, tensor(logits.clone(), n, v, &cpu()))).collect();
        }
        let pair = |found: Tensor<1>, expected| (found.reshape([n, 1]), tensor(expected, n, 1, &cpu()));
        vec![pair(losses.nll, nll), pair(losses.hits, hits)]
    };
    SIZES.into_iter().flat_map(pairs).collect()
}

/// Of more tensors than one launch takes.
fn sum_of_squares_kernel(device: &Device) -> Pairs {
    let sizes = [SIZES, SIZES, SIZES].concat();
    let tensors: Vec<Tensor<2>> = sizes.iter().map(|(n, d)| matrix(1, *n, *d, device)).collect();
    let expected = sizes.iter().map(|(n, d)| twins::sum_of_squares(&numbers(1, n * d))).sum();
    vec![(sum_of_squares(&tensors).reshape([1, 1]), tensor(vec![expected], 1, 1, &cpu()))]
}

/// `which`: 0 the value, 1 the gradient by the input, 2 by the weight.
fn rms_norm_kernels(device: &Device, which: usize) -> Pairs {
    let pair = |(n, d): (usize, usize)| {
        let inputs = vec![matrix(1, n, d, device), matrix(2, 1, d, device)];
        let found = value_and_gradients(|x| rms_norm::rms_norm(x[0].clone(), x[1].clone(), 1e-5), inputs).swap_remove(which);
        let (x, w, dy) = (numbers(1, n * d), numbers(2, d), numbers(99, n * d));
        let (y, scales) = twins::rms_norm(&x, &w, 1e-5);
        let (expected, rows) = match which {
            0 => (y, n),
            1 => (twins::rms_norm_dx(&dy, &x, &w, &scales), n),
            _ => (twins::rms_norm_dw(&dy, &x, &scales, d), 1),
        };
        (found, tensor(expected, rows, d, &cpu()))
    };
    SIZES.into_iter().map(pair).collect()
}

const UPDATE: AdamW =
    AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, correction1: 0.19, correction2: 0.0975, grad_scale: 0.5 };

/// Weights and moments before an update.
fn moments(n: usize, d: usize, device: &Device) -> Moments {
    Moments { param: matrix(1, n, d, device), m: matrix(2, n, d, device), v: matrix(3, n, d, device).square() }
}

/// [`UPDATE`] as the twins take it.
fn update() -> twins::adamw::Params {
    twins::adamw::Params {
        decay: 1.0 - UPDATE.lr * UPDATE.weight_decay,
        beta1: UPDATE.beta1,
        beta2: UPDATE.beta2,
        eps: UPDATE.eps,
        step_size: UPDATE.lr / UPDATE.correction1,
        inverse_root: 1.0 / UPDATE.correction2.sqrt(),
        grad_scale: UPDATE.grad_scale,
    }
}

fn adamw_kernel(device: &Device) -> Pairs {
    let params = update();
    let pairs = |(n, d): (usize, usize)| {
        let found = adamw(moments(n, d, device), matrix(4, n, d, device), &UPDATE);
        let (mut param, mut m) = (numbers(1, n * d), numbers(2, n * d));
        let mut v: Vec<f32> = numbers(3, n * d).into_iter().map(|x| x * x).collect();
        twins::adamw(&mut param, &mut m, &mut v, &numbers(4, n * d), &params);
        [(found.param, param), (found.m, m), (found.v, v)].map(|(found, expected)| (found, tensor(expected, n, d, &cpu())))
    };
    SIZES.into_iter().flat_map(pairs).collect()
}

fn adamw_op(device: &Device) -> Pairs {
    let pairs = |(n, d): (usize, usize)| {
        let found = adamw(moments(n, d, device), matrix(4, n, d, device), &UPDATE);
        let expected = crate::ops::adamw::reference(moments(n, d, &cpu()), matrix(4, n, d, &cpu()), &UPDATE);
        [(found.param, expected.param), (found.m, expected.m), (found.v, expected.v)]
    };
    OP_SIZES.into_iter().flat_map(pairs).collect()
}

fn rms_norm_op(device: &Device) -> Pairs {
    let pairs = |(n, d): (usize, usize)| {
        compared(
            device,
            |x| rms_norm::rms_norm(x[0].clone(), x[1].clone(), 1e-5),
            |x| rms_norm::reference(x[0].clone(), x[1].clone(), 1e-5),
            |device| vec![matrix(1, n, d, device), matrix(2, 1, d, device)],
        )
    };
    OP_SIZES.into_iter().flat_map(pairs).collect()
}

fn linear_op(device: &Device) -> Pairs {
    let pairs = |(n, k, m): (usize, usize, usize)| {
        compared(
            device,
            |x| linear::linear(x[0].clone(), x[1].clone(), false),
            |x| linear::reference(x[0].clone(), x[1].clone(), false),
            |device| vec![matrix(1, n, k, device), matrix(2, m, k, device)],
        )
    };
    [(2, 63, 65), (5, 65, 7), (130, 96, 257)].into_iter().flat_map(pairs).collect()
}

fn swiglu_op(device: &Device) -> Pairs {
    let pairs = |(n, f): (usize, usize)| {
        compared(
            device,
            |x| swiglu::swiglu(x[0].clone(), x[1].clone()),
            |x| swiglu::reference(x[0].clone(), x[1].clone()),
            |device| vec![matrix(1, n, f, device) * 4.0, matrix(2, n, f, device)],
        )
    };
    OP_SIZES.into_iter().flat_map(pairs).collect()
}

fn rope_op(device: &Device) -> Pairs {
    let pairs = |(b, t, h, e): (usize, usize, usize, usize)| {
        let angles = numbers(5, t * e / 2);
        let table = |like: &Tensor<2>, of: fn(f32) -> f32| {
            let values = angles.iter().map(|angle| of(angle * 9.0)).collect();
            tensor(values, t, e / 2, &like.device())
        };
        compared(
            device,
            |x| rope::rope(x[0].clone(), table(&x[0], f32::cos), table(&x[0], f32::sin)),
            |x| rope::reference(x[0].clone(), table(&x[0], f32::cos), table(&x[0], f32::sin)),
            |device| vec![matrix(1, b * t, h * e, device)],
        )
    };
    [(1, 1, 1, 2), (2, 5, 3, 8), (3, 65, 2, 64)].into_iter().flat_map(pairs).collect()
}

fn attention_op(device: &Device) -> Pairs {
    let pairs = |(b, t, h, g, e): (usize, usize, usize, usize, usize)| {
        // Two documents in every sequence: the second begins at a third of it.
        let starts: Vec<i32> = (0..b * t).map(|i| if i % t >= t / 3 { (t / 3) as i32 } else { 0 }).collect();
        let sees = |row: usize, key: usize| key >= starts[row] as usize && key <= row % t;
        let seen: Vec<f32> = (0..b * t * t).map(|i| if sees(i / t, i % t) { 0.0 } else { -1e30 }).collect();
        let shape = Shape { b, t, h, g, e, capacity: t, offset: 0 };
        let mask = Mask::new(b, t, 0, &starts, device);
        compared(
            device,
            |x| attention_of(x[0].clone(), x[1].clone(), x[2].clone(), &mask, h, g),
            |x| {
                let additive = Tensor::from_data(TensorData::new(seen.clone(), [b, 1, t, t]), (&x[0].device(), DType::F32));
                attention_reference(x[0].clone(), x[1].clone(), x[2].clone(), additive, shape)
            },
            |device| vec![matrix(1, b * t, h * e, device), matrix(2, b * t, g * e, device), matrix(3, b * t, g * e, device)],
        )
    };
    [(2, 5, 4, 2, 8), (1, 63, 3, 1, 64), (1, 65, 4, 2, 64)].into_iter().flat_map(pairs).collect()
}

fn embedding_op(device: &Device) -> Pairs {
    let pair = |(rows, d): (usize, usize)| {
        let tokens: Vec<i32> = (0..70).map(|i| (i * i % rows) as i32).collect();
        let found = embedding::embedding(&[matrix(1, rows, d, device)], ids(tokens.clone(), device));
        (found, embedding::reference(&[matrix(1, rows, d, &cpu())], ids(tokens, &cpu())))
    };
    OP_SIZES.into_iter().map(pair).collect()
}

/// Losses and gradients against the log of a plain softmax over all logits.
fn cross_entropy_op(device: &Device) -> Pairs {
    let pairs = |(n, v, d): (usize, usize, usize)| {
        let targets: Vec<i32> = (0..n as i32).map(|i| if i % 5 == 4 { -100 } else { i * 37 % v as i32 }).collect();
        let mut onehot = vec![0.0f32; n * v];
        targets.iter().enumerate().filter(|(_, target)| **target >= 0).for_each(|(row, target)| onehot[row * v + *target as usize] = 1.0);
        let losses = cross_entropy::linear_cross_entropy(matrix(1, n, d, device), &[matrix(2, v, d, device)], &targets, Wanted::All(0.25));
        let leaves = [matrix(1, n, d, &cpu()), matrix(2, v, d, &cpu())].map(|x| Tensor::from_inner(x).require_grad());
        let logits = activation::log_softmax(leaves[0].clone().matmul(leaves[1].clone().transpose()), 1);
        let nll = -(logits * Tensor::from_inner(tensor(onehot, n, v, &cpu()))).sum_dim(1); // [n, 1]
        let expected = std::iter::once(nll.clone().inner()).chain(gradients_of(leaves.iter(), nll.sum() * 0.25));
        let found = std::iter::once(losses.nll.reshape([n, 1])).chain(losses.dh).chain(losses.dhead);
        found.zip(expected).collect::<Pairs>()
    };
    [(1, 2, 3), (5, 65, 16), (70, 1000, 64)].into_iter().flat_map(pairs).collect()
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn every_kernel_has_a_check() {
        let checked: Vec<&str> = KERNEL_CHECKS.iter().map(|check| check.name).collect();
        let kernels: Vec<&str> = smolforge_shaders::KERNELS.iter().map(|kernel| kernel.name).collect();
        assert_eq!(checked, kernels, "add a Check for the new kernel");
    }

    #[test]
    fn differences_are_found() {
        let quiet = Control::connect().0;
        let error = |pairs: Pairs| block_on(largest_error(pairs, &quiet)).unwrap();
        let of = |values: &[f32]| tensor(values.to_vec(), 1, values.len(), &cpu());
        assert_eq!(error(vec![(of(&[1.0, 8.0]), of(&[1.0, 8.0]))]), 0.0);
        assert_eq!(error(vec![(of(&[1.0]), of(&[1.0])), (of(&[1.0, 6.0]), of(&[1.0, 8.0]))]), 0.25);
        assert!(error(vec![(of(&[f32::NAN]), of(&[1.0]))]).is_infinite());
        assert!(error(vec![(of(&[1.0, 2.0]), of(&[1.0]))]).is_infinite());
    }

    #[test]
    fn the_cpu_device_passes() {
        crate::platform::prepare_threads();
        let (control, _, events) = Control::connect();
        block_on(run(DeviceChoice::Cpu, &control)).unwrap();
        let told: Vec<Event> = std::iter::from_fn(|| Some(events.try_recv().ok()?.1)).collect();
        let passed = told.iter().filter(|event| matches!(event, Event::Kernel(kernel) if kernel.passed)).count();
        let elsewhere = KERNEL_CHECKS.iter().filter(|check| check.name.starts_with("decode_")).count();
        assert_eq!(passed, KERNEL_CHECKS.len() - elsewhere + OP_CHECKS.len(), "{told:?}");
    }
}
