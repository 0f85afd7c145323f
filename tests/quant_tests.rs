//! 4 and 8 bits against what bitsandbytes made of the same numbers.

use burn::tensor::{bf16, f16};
use smolforge_engine::model::bitsandbytes;
use smolforge_engine::model::safetensors::{Dtype, SafeFile};
use smolforge_engine::ops::adamw::AdamW;
use smolforge_engine::ops::quant::adamw8::{Moments8, adamw8};
use smolforge_engine::ops::quant::dynamic8::{BLOCK, DynamicMap, SIGNED, UNSIGNED};
use smolforge_engine::ops::quant::nf4::{self, Absmax, Nf4};

use smolforge_tests::*;

/// Equal as bits: −0 is not 0.
#[track_caller]
fn same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differs {
        panic!("{what}: number {i} is {:e} and should be {:e}", found[i], expected[i]);
    }
}

/// Rounded to the type that bitsandbytes gives back: that of the matrix before it was quantised.
fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let round = |x: f32| match dtype {
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    };
    values.iter().map(|x| round(*x)).collect()
}

fn whole(matrix: &Nf4) -> Vec<f32> {
    let mut out = vec![f32::NAN; matrix.rows * matrix.columns];
    matrix.dequantize_rows(0..matrix.rows, &mut out);
    out
}

#[test]
fn nf4_equals_bitsandbytes_bit_for_bit() {
    let golden = golden_tensors("nf4_golden.safetensors");
    let offsets = golden_json("nf4_golden.json")["offset_bits"].clone();
    same(&nf4::CODE, &golden.read_f32("quant_map").unwrap(), "code book");
    let mut cases = 0;
    for name in offsets.as_object().unwrap().keys() {
        let (dtype, shape, values) = if name == "formula" {
            (Dtype::F32, vec![257, 200], cubed(&spread(257 * 200)))
        } else {
            let (dtype, shape) = golden.info(&format!("{name}.values")).unwrap();
            (dtype, shape.to_vec(), golden.read_f32(&format!("{name}.values")).unwrap())
        };
        let matrix = Nf4::quantize(&values, shape[0], shape[1]);
        let Absmax::Nested { codes, absmax, map, offset } = &matrix.absmax else { panic!("{name}: scales in 8 bits") };
        assert!(matrix.codes == golden.read_u8(&format!("{name}.codes")).unwrap(), "{name}: codes");
        assert_eq!(u64::from(offset.to_bits()), offsets[name].as_u64().unwrap(), "{name}: offset {offset}");
        same(absmax, &golden.read_f32(&format!("{name}.nested_absmax")).unwrap(), &format!("{name}: nested absmax"));
        assert!(*codes == golden.read_u8(&format!("{name}.absmax8")).unwrap(), "{name}: absmax in 8 bits");
        same(&map[..], &golden.read_f32("signed.map").unwrap(), "map");
        if name != "formula" {
            let plain = Nf4 { absmax: Absmax::Plain(golden.read_f32(&format!("{name}.absmax")).unwrap()), ..matrix.clone() };
            for (matrix, kind) in [(&plain, "dequantized_plain"), (&matrix, "dequantized")] {
                let expected = golden.read_f32(&format!("{name}.{kind}")).unwrap();
                same(&rounded(&whole(matrix), dtype), &expected, &format!("{name}: {kind}"));
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 19);
}

/// `multiplied(count) - 0.5` of make_finetune_golden.py.
fn spread(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0 - 0.5).collect()
}

fn cubed(values: &[f32]) -> Vec<f32> {
    values.iter().map(|u| u * u * u).collect()
}

#[test]
fn dynamic_maps_equal_bitsandbytes_bit_for_bit() {
    let golden = golden_tensors("nf4_golden.safetensors");
    check_map(&golden, "signed", &SIGNED);
    check_map(&golden, "unsigned", &UNSIGNED);
}

#[track_caller]
fn check_map(golden: &SafeFile, name: &str, map: &DynamicMap) {
    let read = |part: &str| golden.read_f32(&format!("{name}.{part}")).unwrap();
    same(&map.values[..], &read("map"), "map");
    let (codes, absmax) = map.quantize(&read("values"));
    let (expected, values) = (golden.read_u8(&format!("{name}.codes")).unwrap(), read("values"));
    // Smaller numbers are 0 to threads that flush them, as the engine's do.
    let differing: Vec<_> = (0..codes.len())
        .filter(|i| values[*i].is_normal() && codes[*i] != expected[*i])
        .map(|i| (i, values[i], codes[i], expected[i]))
        .collect();
    assert!(differing.is_empty(), "{name}: codes (index, value, found, expected) {differing:?}");
    same(&absmax, &read("absmax"), &format!("{name}: absmax"));
    let mut out = vec![f32::NAN; codes.len()];
    for ((out, codes), absmax) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(absmax) {
        map.dequantize_block(codes, absmax, out);
    }
    let normal =
        |numbers: Vec<f32>| numbers.into_iter().zip(&values).filter(|(_, value)| value.is_normal()).map(|(x, _)| x).collect::<Vec<_>>();
    let (out, expected) = (normal(out), normal(read("dequantized")));
    same(&out, &expected, &format!("{name}: dequantised"));
}

/// The matrices of the plain checkpoint, quantised here, are those that transformers saved.
#[test]
fn checkpoints_of_bitsandbytes_are_read() {
    let (plain, saved) = (golden_tensors("tiny_llama/model.safetensors"), golden_tensors("tiny_llama_nf4/model.safetensors"));
    let find = |name: &str| saved.info(name).map(|_| &saved);
    let mut matrices = 0;
    for name in plain.names() {
        let (_, shape) = plain.info(name).unwrap();
        let Some(matrix) = bitsandbytes::read(find, name).unwrap() else {
            assert!(plain.read_f32(name).unwrap() == saved.read_f32(name).unwrap(), "{name}");
            continue;
        };
        assert_eq!(bitsandbytes::shape(find, name).unwrap().unwrap(), shape, "{name}");
        assert!(matrix == Nf4::quantize(&plain.read_f32(name).unwrap(), shape[0], shape[1]), "{name}");
        matrices += 1;
    }
    assert_eq!(matrices, 14);
    assert!(saved.names().all(|name| plain.info(bitsandbytes::owner(name).unwrap_or(name)).is_some()));
}

#[test]
fn checkpoints_with_scales_in_f32_are_read() {
    let golden = golden_tensors("tiny_llama_nf4_golden.safetensors");
    for name in ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"] {
        let matrix = bitsandbytes::read(|name| golden.info(name).map(|_| &golden), name).unwrap().unwrap();
        assert!(matches!(matrix.absmax, Absmax::Plain(_)));
        same(&whole(&matrix), &golden.read_f32(&format!("dequantized.{name}")).unwrap(), name);
    }
}

#[test]
fn ten_updates_of_8_bits_follow_bitsandbytes() {
    let golden = golden_tensors("adamw8_golden.safetensors");
    let count = 4196;
    let numbers = spread(11 * count);
    let mut param = numbers[..count].to_vec();
    let mut moments = Moments8::zeros(count);
    for number in 1..=10usize {
        let mut grad = cubed(&numbers[number * count..][..count]);
        if number <= 2 {
            grad[3 * BLOCK..5 * BLOCK].fill(0.0);
        }
        let (beta1, beta2) = (0.9f32, 0.95f32);
        let step = AdamW {
            lr: 1e-2,
            beta1,
            beta2,
            eps: 1e-8,
            weight_decay: 0.1,
            correction1: 1.0 - beta1.powi(number as i32),
            correction2: 1.0 - beta2.powi(number as i32),
            grad_scale: 1.0,
        };
        adamw8(&mut param, &mut moments, &grad, &step);
        if [1, 2, 10].contains(&number) {
            check_moments(&golden, number, &param, &moments);
        }
    }
}

#[track_caller]
fn check_moments(golden: &SafeFile, number: usize, param: &[f32], moments: &Moments8) {
    let read = |part: &str| golden.read_f32(&format!("{number}.{part}")).unwrap();
    // The same operations, but PyTorch fuses some multiplications with additions: a last bit or two.
    let close = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
    for (part, codes, scales) in [("m", &moments.m, &moments.m_absmax), ("v", &moments.v, &moments.v_absmax)] {
        assert!(*codes == golden.read_u8(&format!("{number}.{part}")).unwrap(), "{part} after update {number}");
        assert!(close(scales, &read(&format!("{part}_absmax"))), "scales of {part} after update {number}");
    }
    let largest = param.iter().zip(read("param")).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-6, "weights after update {number}: {largest}"); // weights are up to 0.5, updates 0.01
}
