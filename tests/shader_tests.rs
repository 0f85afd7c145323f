//! Every WGSL file on its own: valid under WebGPU's default limits, translatable for every backend; and its twin
//! against the op that runs it.

use burn::tensor::f16;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use smolforge_engine::model::llama::ids;
use smolforge_engine::ops::adamw::{AdamW, Moments, adamw};
use smolforge_engine::ops::embedding_f16::embedding_f16;
use smolforge_engine::ops::linear_f16::linear_f16;
use smolforge_engine::ops::rms_norm::rms_norm;
use smolforge_shaders::{KERNELS, cpu};
use smolforge_tests::*;

#[test]
fn every_kernel_is_valid_wgsl_and_translates() {
    for kernel in KERNELS {
        for source in [kernel.source.to_string(), kernel.source.replace("var<storage, read>", "var<storage, read_write>")] {
            let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&source)));
            // `unpack2x16float` belongs to every WebGPU device; only old OpenGL lacks it.
            let optional = if kernel.name.ends_with("_lanes") { Capabilities::SUBGROUP } else { Capabilities::empty() };
            let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32 | optional)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}: {e:?}", kernel.name));
            let entry = &module.entry_points[0];
            assert_eq!(entry.name, "main");
            assert_eq!(entry.workgroup_size, [kernel.workgroup_size, 1, 1]);
            assert!(kernel.workgroup_size <= 256);
            let storage = module.global_variables.iter().filter(|(_, v)| matches!(v.space, naga::AddressSpace::Storage { .. })).count();
            assert!(storage <= 8, "{}: {storage} storage buffers", kernel.name);
            let shared: u32 = module
                .global_variables
                .iter()
                .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
                .map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx()))
                .sum();
            assert!(shared <= 16 << 10, "{}: {shared} bytes of workgroup memory", kernel.name);
            spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap();
            let options = msl::Options { fake_missing_bindings: true, ..Default::default() };
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
            let options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
            let mut text = String::new();
            hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default()).write(&module, &info, None).unwrap();
            assert!(!text.is_empty());
        }
    }
}

#[test]
fn ops_equal_their_twins_on_every_device() {
    for compute in devices() {
        for (n, d) in [(1, 1), (2, 63), (3, 64), (65, 65), (1000, 96)] {
            let (x, w) = (matrix(1, n, d, &compute), matrix(2, 1, d, &compute));
            let (y, _) = cpu::rms_norm(&numbers(1, n * d), &numbers(2, d), 1e-5);
            assert!(max_difference(&values(rms_norm(x, w, 1e-5)), &y) < 1e-4, "rms_norm {n}x{d} on {}", compute.info.name);
            let step = AdamW {
                lr: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                correction1: 0.19,
                correction2: 0.0975,
                grad_scale: 0.5,
            };
            let state = Moments { param: matrix(1, n, d, &compute), m: matrix(2, n, d, &compute), v: matrix(3, n, d, &compute).square() };
            let found = adamw(state, matrix(4, n, d, &compute), &step);
            let params = cpu::adamw::Params {
                decay: 1.0 - 0.01 * 0.1,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                step_size: 0.01 / 0.19,
                inverse_root: 1.0 / 0.0975f32.sqrt(),
                grad_scale: 0.5,
            };
            let (mut param, mut m) = (numbers(1, n * d), numbers(2, n * d));
            let mut v: Vec<f32> = numbers(3, n * d).iter().map(|x| x * x).collect();
            cpu::adamw(&mut param, &mut m, &mut v, &numbers(4, n * d), &params);
            for (what, a, b) in [("param", found.param, param), ("m", found.m, m), ("v", found.v, v)] {
                assert!(max_difference(&values(a), &b) < 1e-4, "{what} {n}x{d} on {}", compute.info.name);
            }
        }
    }
}

#[test]
fn products_with_f16_weights_equal_their_twin() {
    for compute in devices().into_iter().skip(1) {
        let rows = [1, 2, 15, 16, 17, 63, 64, 65, 70];
        let sizes = rows.into_iter().flat_map(|n| [(8, 1), (64, 2), (1000, 63), (72, 64), (8, 65), (576, 1000)].map(|(k, m)| (n, k, m)));
        for (n, k, m) in sizes {
            let (x, w) = (numbers(1, n * k), halves(2, m * k));
            let y = values(linear_f16(matrix(1, n, k, &compute), half_matrix(&w, k, &compute)));
            let expected = cpu::linear_f16(&x, &words(&w), k);
            let absolute = |x: &f32| x.abs();
            let w: Vec<f16> = w.iter().map(|w| f16::from_f32(w.to_f32().abs())).collect();
            let sizes = cpu::linear_f16(&x.iter().map(absolute).collect::<Vec<_>>(), &words(&w), k); // Σ |x·w|
            for (i, ((y, expected), size)) in y.iter().zip(&expected).zip(&sizes).enumerate() {
                let tolerance = size * k as f32 * f32::EPSILON / 2.0; // any order of k sums
                assert!((y - expected).abs() <= tolerance, "output {i} of {n}x{k}x{m} on {}: {y} for {expected}", compute.info.name);
            }
            assert_eq!(y.len(), n * m);
        }
    }
}

#[test]
fn every_f16_is_unpacked_exactly() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).map(|x| if x.is_finite() { x } else { f16::ONE }).collect();
    let expected: Vec<f32> = all.iter().map(|x| x.to_f32()).collect();
    assert_eq!(words(&all).into_iter().flat_map(cpu::unpack).collect::<Vec<_>>(), expected);
    for compute in devices().into_iter().skip(1) {
        for columns in [8, 64, 1024] {
            let (table, rows) = (half_matrix(&all, columns, &compute), (all.len() / columns) as i32);
            let backwards: Vec<i32> = (0..rows).rev().collect();
            let found = values(embedding_f16(&[table], ids(backwards.clone(), &compute.device)));
            let twin = cpu::embedding_f16(&words(&all), &backwards, columns / 2, 0);
            assert_eq!(twin, backwards.iter().flat_map(|row| &expected[*row as usize * columns..][..columns]).copied().collect::<Vec<_>>());
            // A device may read numbers below the smallest normal one, 2⁻¹⁴, as 0: <https://www.w3.org/TR/WGSL/#subnormals>.
            let same = |(found, twin): (&f32, &f32)| found == twin || *found == 0.0 && twin.abs() < 2f32.powi(-14);
            assert!(found.iter().zip(&twin).all(same), "rows of {columns} on {}", compute.info.name);
            let block = half_matrix(&all[..8 * columns], columns, &compute);
            let beyond = vec![7, 8, rows];
            let expected = cpu::embedding_f16(&words(&all[..8 * columns]), &beyond, columns / 2, 0);
            assert_eq!(values(embedding_f16(&[block], ids(beyond, &compute.device)))[columns..], expected[columns..], "zeros outside");
        }
    }
}
