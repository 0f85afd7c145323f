//! Every WGSL file on its own: valid under WebGPU's default limits, translatable for every backend; and its twin
//! against the op that runs it.

use burn::tensor::f16;
use futures_lite::future::block_on;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use smolforge_engine::control::Control;
use smolforge_engine::device::Compute;
use smolforge_engine::model::llama::ids;
use smolforge_engine::ops::adamw::{AdamW, Moments, adamw};
use smolforge_engine::ops::embedding_f16::embedding_f16;
use smolforge_engine::ops::linear_f16;
use smolforge_engine::ops::product::{Kernels, Product, chosen, multiplied, without_lanes};
use smolforge_engine::ops::rms_norm::rms_norm;
use smolforge_engine::protocol::DeviceChoice;
use smolforge_engine::tasks::self_test;
use smolforge_shaders::{KERNELS, cpu};
use smolforge_tests::*;

#[test]
fn every_kernel_is_valid_wgsl_and_translates() {
    for kernel in KERNELS {
        for source in [kernel.source.to_string(), kernel.source.replace("var<storage, read>", "var<storage, read_write>")] {
            let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&source)));
            // `unpack2x16float` belongs to every WebGPU device; only old OpenGL lacks it.
            // Kernels with subgroups are chosen where the device has them; see `ops/product.rs`.
            let lanes = if kernel.name.ends_with("_lanes") { Capabilities::SUBGROUP } else { Capabilities::empty() };
            let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32 | lanes)
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
            let options = spv::Options { lang_version: (1, 3), ..Default::default() };
            spv::write_vec(&module, &info, &options, None).unwrap();
            let options = msl::Options { fake_missing_bindings: true, lang_version: (2, 4), ..Default::default() };
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
            let options = hlsl::Options { fake_missing_bindings: true, shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
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

/// Every output is the twin's but for the order of its sums.
#[track_caller]
fn check_product(kernels: Kernels, product: Product, [n, k, m]: [usize; 3], compute: &Compute) {
    let seeds = match product {
        Product::Forward => [(n, k), (m, k)],
        Product::Dx => [(n, m), (m, k)],
        Product::Dw => [(n, m), (n, k)],
    };
    let twin = |sign: fn(f32) -> f32| {
        let [a, b] = [1, 2].map(|i| numbers(i as u64, seeds[i - 1].0 * seeds[i - 1].1).into_iter().map(sign).collect::<Vec<f32>>());
        match product {
            Product::Forward => cpu::linear(&a, &b, k),
            Product::Dx => cpu::linear_dx(&a, &b, k),
            Product::Dw => cpu::linear_dw(&a, &b, k, m),
        }
    };
    let [a, b] = [1, 2].map(|i| matrix(i as u64, seeds[i - 1].0, seeds[i - 1].1, compute));
    let found = values(multiplied(kernels, product, &a, &b).expect("columns in fours"));
    let depth = if product == Product::Dw {
        n
    } else if product == Product::Dx {
        m
    } else {
        k
    };
    for (i, ((found, expected), size)) in found.iter().zip(twin(|x| x)).zip(twin(f32::abs)).enumerate() {
        let tolerance = size * depth as f32 * f32::EPSILON / 2.0; // any order of so many sums
        let name = format!("{kernels:?} {product:?} {n}x{k}x{m}");
        assert!((found - expected).abs() <= tolerance, "output {i} of {name} on {}: {found} for {expected}", compute.info.name);
    }
    assert_eq!(found.len(), twin(|x| x).len());
}

#[test]
fn products_equal_their_twins_with_all_kernels() {
    for compute in devices().into_iter().skip(1) {
        let lanes = compute.info.kind == "software" && compute.info.features.iter().any(|name| name == "subgroups");
        assert!(!lanes || chosen() == Kernels::Lanes, "{} has lanes, but {:?} was tried", compute.info.name, compute.trials);
        let kernels = if lanes { vec![Kernels::Tile, Kernels::Lanes] } else { vec![Kernels::Tile] };
        for (kernels, product) in kernels.iter().flat_map(|kernels| Product::ALL.map(|product| (*kernels, product))) {
            for n in [1, 2, 17, 63, 64, 65] {
                for (k, m) in [(4, 4), (64, 32), (72, 60), (36, 1000), (576, 68)] {
                    check_product(kernels, product, [n, k, m], &compute);
                }
            }
        }
        // More tiles than an axis of a dispatch has room for, and more work than one dispatch gets.
        check_product(chosen(), Product::Forward, [2_100_000, 4, 4], &compute);
        without_lanes(|| check_product(Kernels::Tile, Product::Dw, [1000, 1200, 1000], &compute));
    }
}

#[test]
fn products_with_f16_weights_equal_their_twin() {
    for compute in devices().into_iter().skip(1) {
        let rows = [1, 2, 15, 16, 17, 63, 64, 65, 70];
        let sizes = rows.into_iter().flat_map(|n| [(8, 1), (64, 2), (1000, 63), (72, 64), (8, 65), (576, 1000)].map(|(k, m)| (n, k, m)));
        for (n, k, m) in sizes {
            let (x, w) = (numbers(1, n * k), halves(2, m * k));
            let x_there = matrix(1, n, k, &compute);
            let by = |kernels| values(linear_f16::multiplied(kernels, Product::Forward, &x_there, &half_matrix(&w, k, &compute)));
            let by_all = [by(Kernels::Tile), values(linear_f16::linear_f16(x_there.clone(), half_matrix(&w, k, &compute)))];
            let expected = cpu::linear_f16(&x, &words(&w), k);
            let absolute = |x: &f32| x.abs();
            let w: Vec<f16> = w.iter().map(|w| f16::from_f32(w.to_f32().abs())).collect();
            let sizes = cpu::linear_f16(&x.iter().map(absolute).collect::<Vec<_>>(), &words(&w), k); // Σ |x·w|
            for y in by_all {
                for (i, ((y, expected), size)) in y.iter().zip(&expected).zip(&sizes).enumerate() {
                    let tolerance = size * k as f32 * f32::EPSILON / 2.0; // any order of k sums
                    assert!((y - expected).abs() <= tolerance, "output {i} of {n}x{k}x{m} on {}: {y} for {expected}", compute.info.name);
                }
                assert_eq!(y.len(), n * m);
            }
        }
    }
}

#[test]
fn the_graphics_device_passes_its_self_test() {
    if devices().len() > 1 {
        let (control, _, events) = Control::connect();
        let result = block_on(self_test::run(DeviceChoice::Gpu, &control));
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).collect();
        result.unwrap_or_else(|error| panic!("{error}: {told:?}"));
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
