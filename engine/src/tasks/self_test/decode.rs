//! The kernels of decoding, which run in programs of their own.

use burn::tensor::{DType, Device, Int, Tensor, TensorData, f16};
use smolforge_shaders::cpu as twins;
use twins::decode::{Attended, Draw as Drawn};

use super::{Pairs, cpu, numbers, tensor};
use crate::error::Result;
use crate::ops::decode::{Draw, Heads, Weight, seen_words};
use crate::ops::product::{Kernels, chosen};
use crate::ops::program::{Buffer, Program};
use crate::ops::{kernels_enabled, on_cpu};

const EPS: f32 = 1e-5;
/// Rows, columns and outputs.
const SIZES: [[usize; 3]; 4] = [[1, 8, 4], [3, 72, 20], [2, 576, 68], [5, 1000, 132]];

/// Nothing where there are no programs.
fn on_graphics(device: &Device, pairs: impl FnOnce() -> Result<Pairs>) -> Pairs {
    if on_cpu(device) || !kernels_enabled() { Vec::new() } else { pairs().expect("a device that works") }
}

fn vector(values: &[f32], device: &Device) -> Tensor<2> {
    tensor(values.to_vec(), 1, values.len(), device)
}

fn ints(values: &[u32], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|value| *value as i32).collect();
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
}

/// A weight from a seed, in f32 or f16, and its numbers.
fn weight(seed: u64, [out, columns]: [usize; 2], half: bool, device: &Device) -> Result<(Weight, Vec<f32>)> {
    let values = numbers(seed, out * columns);
    if !half {
        return Ok((Weight::of(&tensor(values.clone(), out, columns, device))?, values));
    }
    let halves: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
    let values = halves.iter().map(|x| x.to_f32()).collect();
    let tensor = Tensor::from_data(TensorData::new(halves, [out, columns]), (device, DType::F16));
    Ok((Weight::of(&tensor)?, values))
}

/// `check` for every size in f32 and in f16.
fn every(device: &Device, check: impl Fn([usize; 3], bool) -> Result<(Tensor<2>, Vec<f32>)>) -> Pairs {
    let pair = |(size, half)| {
        let (found, expected) = check(size, half)?;
        Ok((found.reshape([1, expected.len()]), vector(&expected, &cpu())))
    };
    on_graphics(device, || SIZES.into_iter().flat_map(|size| [(size, false), (size, true)]).map(pair).collect())
}

pub(super) fn embed(device: &Device) -> Pairs {
    every(device, |[rows, d, vocab], half| {
        let d = d.next_multiple_of(8);
        let tokens: Vec<u32> = (0..rows).map(|row| (row * 7 % vocab) as u32).collect();
        let state = ints(&tokens.iter().flat_map(|token| [*token, 0, 0, 0]).collect::<Vec<_>>(), device);
        let x = tensor(vec![0.0; rows * d], 1, rows * d, device);
        // In two blocks, as where a table is larger than a binding.
        let values = numbers(1, vocab * d);
        let (mut program, state) = (Program::new(chosen()), Buffer::of_ints(&state)?);
        for range in [0..vocab / 2, vocab / 2..vocab] {
            let rows_of = tensor(values[range.start * d..range.end * d].to_vec(), range.len(), d, device);
            let table = if half { rows_of.cast(burn::tensor::FloatDType::F16) } else { rows_of };
            program.embed(rows, &state, &Weight::of(&table)?, range.start, &Buffer::of(&x)?);
        }
        program.submit(1)?;
        let round = |x: &f32| if half { f16::from_f32(*x).to_f32() } else { *x };
        Ok((x, twins::decode_embed(&tokens, &values.iter().map(round).collect::<Vec<_>>(), d)))
    })
}

pub(super) fn norm_linear(device: &Device, kernels: Kernels) -> Pairs {
    if kernels == Kernels::Lanes && chosen() != kernels {
        return Vec::new();
    }
    every(device, |[rows, d, out], half| {
        let (x, norm) = (numbers(1, rows * d), numbers(2, d));
        let (a, b, c) = (weight(3, [out, d], half, device)?, weight(4, [4, d], half, device)?, weight(5, [8, d], half, device)?);
        let width = out + 12; // all three, one after the other; then the first once more, within longer rows
        let [x_there, norm_there] = [Buffer::of(&vector(&x, device))?, Buffer::of(&vector(&norm, device))?];
        let [first, second] = [1, 2].map(|_| tensor(vec![0.0; rows * width], 1, rows * width, device));
        let mut program = Program::new(kernels);
        program.norm_qkv(rows, &x_there, &norm_there, f64::from(EPS), [&a.0, &b.0, &c.0], &Buffer::of(&first)?);
        program.norm_linear(rows, &x_there, &norm_there, f64::from(EPS), &a.0, &Buffer::of(&second)?, [width, 12]);
        program.submit(1)?;
        let [of_a, of_b, of_c] = [&a.1, &b.1, &c.1].map(|w| twins::decode_norm_linear(&x, &norm, w, EPS));
        let within = of_a.chunks(out).flat_map(|row| [&[0.0; 12][..], row].concat()).collect();
        Ok((Tensor::cat(vec![first, second], 0), [of_a.clone(), of_b, of_c, within].concat()))
    })
}

pub(super) fn gate_up(device: &Device, kernels: Kernels) -> Pairs {
    if kernels == Kernels::Lanes && chosen() != kernels {
        return Vec::new();
    }
    every(device, |[rows, d, out], half| {
        let (x, norm) = (numbers(1, rows * d), numbers(2, d));
        let (gate, up) = (weight(3, [out, d], half, device)?, weight(4, [out, d], half, device)?);
        let h = tensor(vec![0.0; rows * out], 1, rows * out, device);
        let [x_there, norm_there, h_there] = [Buffer::of(&vector(&x, device))?, Buffer::of(&vector(&norm, device))?, Buffer::of(&h)?];
        let mut program = Program::new(kernels);
        program.gate_up(rows, &x_there, &norm_there, f64::from(EPS), &gate.0, &up.0, &h_there);
        program.submit(1)?;
        Ok((h, twins::decode_gate_up(&x, &norm, &gate.1, &up.1, EPS)))
    })
}

pub(super) fn residual(device: &Device, kernels: Kernels) -> Pairs {
    if kernels == Kernels::Lanes && chosen() != kernels {
        return Vec::new();
    }
    every(device, |[rows, columns, out], half| {
        let (x, y, w) = (numbers(1, rows * out), numbers(2, rows * columns), weight(3, [out, columns], half, device)?);
        let x_there = vector(&x, device);
        let mut program = Program::new(kernels);
        program.residual(rows, &Buffer::of(&vector(&y, device))?, &w.0, &Buffer::of(&x_there)?);
        program.submit(1)?;
        Ok((x_there, twins::decode_residual(&x, &y, &w.1, columns)))
    })
}

pub(super) fn add(device: &Device) -> Pairs {
    every(device, |[rows, columns, _], _| {
        let count = rows * columns;
        let (x, y) = (numbers(1, count), numbers(2, count));
        let x_there = vector(&x, device);
        let mut program = Program::new(chosen());
        program.add_rows(count, &Buffer::of(&vector(&y, device))?, &Buffer::of(&x_there)?);
        program.submit(1)?;
        Ok((x_there, twins::decode_add(&x, &y)))
    })
}

/// The joined output and the caches, of rows that begin in different columns; with `split` in several runs of keys.
fn attended(device: &Device, split: bool, kernels: Kernels) -> Pairs {
    if kernels == Kernels::Lanes && chosen() != kernels {
        return Vec::new();
    }
    let pairs = |(starts, column, heads, groups, e): (&[usize], usize, usize, usize, usize)| {
        let (rows, capacity, splits) = (starts.len(), column + 3, if split { 3 } else { 1 });
        let heads = Heads { rows, heads, groups, e, capacity, splits };
        let Heads { heads: h, .. } = heads;
        let width = (h + 2 * groups) * e;
        let (qkv, angles) = (numbers(1, rows * width), numbers(2, (column + 1) * e / 2));
        let table = |of: fn(f32) -> f32| angles.iter().map(|angle| of(9.0 * angle)).collect::<Vec<f32>>();
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let [mut keys, mut values] = [3, 4].map(|seed| numbers(seed, rows * capacity * groups * e));
        let there = [&keys, &values].map(|cache| vector(cache, device));
        let state: Vec<u32> = starts.iter().flat_map(|start| [0, column as u32, *start as u32, 0]).collect();
        let (parts, y) = (vector(&vec![0.0; heads.parts()], device), vector(&vec![0.0; rows * h * e], device));
        let rope = [Buffer::of(&vector(&cos, device))?, Buffer::of(&vector(&sin, device))?];
        let cache = [Buffer::of(&there[0])?, Buffer::of(&there[1])?];
        let (parts, state) = (Buffer::of(&parts)?, Buffer::of_ints(&ints(&state, device))?);
        let mut program = Program::new(kernels);
        let qkv_there = Buffer::of(&vector(&qkv, device))?;
        program.rope(heads, &qkv_there, rope.each_ref(), &state, cache.each_ref());
        program.attention(heads, &qkv_there, &state, cache.each_ref(), &parts);
        program.combine(heads, &parts, &Buffer::of(&y)?);
        program.submit(1)?;
        let mut expected = Vec::new();
        let of_row = capacity * groups * e;
        for (row, ((keys, values), start)) in keys.chunks_mut(of_row).zip(values.chunks_mut(of_row)).zip(starts).enumerate() {
            let at = (column - start) * e / 2;
            let angles = [&cos[at..][..e / 2], &sin[at..][..e / 2]];
            let attended = Attended { angles, keys, values, column, start: *start };
            let (q, kv) = (h * e, groups * e);
            let keys_from = rows * q + row * kv;
            let of_row = [&qkv[row * q..][..q], &qkv[keys_from..][..kv], &qkv[keys_from + rows * kv..][..kv]].concat();
            expected.extend(twins::decode_attention(&of_row, attended, h, groups, e));
        }
        let [keys_there, values_there] = there;
        Ok([(y, expected), (keys_there, keys), (values_there, values)].map(|(found, expected)| (found, vector(&expected, &cpu()))))
    };
    let cases: [(&[usize], usize, usize, usize, usize); 4] =
        [(&[0], 0, 1, 1, 4), (&[0, 5, 66], 66, 4, 2, 16), (&[1], 63, 9, 3, 64), (&[0, 200], 300, 8, 1, 128)];
    on_graphics(device, || cases.into_iter().map(pairs).collect::<Result<Vec<_>>>().map(|pairs| pairs.into_iter().flatten().collect()))
}

/// Rope, attention and the cache.
pub(super) fn attention(device: &Device, kernels: Kernels) -> Pairs {
    attended(device, false, kernels)
}

pub(super) fn combine(device: &Device) -> Pairs {
    attended(device, true, chosen())
}

pub(super) fn sample(device: &Device) -> Pairs {
    let plain = Draw { greedy: false, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };
    let ways = [
        Draw { greedy: true, ..plain },
        plain,
        Draw { temperature: 0.7, ..plain },
        Draw { top_k: 5, ..plain },
        Draw { top_p: 0.6, ..plain },
        Draw { min_p: 0.2, temperature: 1.5, ..plain },
        Draw { top_k: 40, top_p: 0.9, min_p: 0.01, repetition_penalty: 1.3, ..plain },
        Draw { greedy: true, repetition_penalty: 3.0, ..plain },
    ];
    let pair = |(vocab, draw): (usize, Draw)| {
        let (rows, words) = (3, seen_words(vocab));
        let logits: Vec<f32> = numbers(1, rows * vocab).into_iter().map(|x| 4.0 * x).collect();
        let shares = [0.0, 0.37, 0.98];
        let bits: Vec<u32> = (0..rows * words).map(|word| 0x9249_2492u32.rotate_left(word as u32)).collect();
        let tokens = ints(&[0; 3], device);
        let state = Buffer::of_ints(&ints(&[0; 12], device))?;
        let seen = Buffer::of_ints(&ints(&bits, device))?;
        let there = [vector(&logits, device), vector(&shares, device)].map(|tensor| Buffer::of(&tensor));
        let [logits_there, shares_there] = there;
        let mut program = Program::new(chosen());
        program.sample([rows, vocab], draw, &logits_there?, &shares_there?, &seen, &state, &Buffer::of_ints(&tokens)?);
        program.submit(1)?;
        let Draw { greedy, temperature, top_k, top_p, min_p, repetition_penalty: penalty } = draw;
        let twin = Drawn { greedy, temperature, top_k, top_p, min_p, penalty };
        let drawn = |row: usize| {
            let seen = |id: usize| bits[row * words + id / 32] >> (id % 32) & 1 == 1;
            twins::decode_sample(&logits[row * vocab..][..vocab], seen, twin, shares[row]).map_or(-1.0, |id| id as f32)
        };
        Ok((tokens.float().reshape([1, rows]), vector(&[drawn(0), drawn(1), drawn(2)], &cpu())))
    };
    on_graphics(device, || [1, 63, 1000, 49152].into_iter().flat_map(|vocab| ways.map(|way| (vocab, way))).map(pair).collect())
}
