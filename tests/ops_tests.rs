//! Every op: the fast form against its definition in burn ops, and its gradient against finite differences.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, f16};
use smolforge_engine::device::Compute;
use smolforge_engine::model::llama::ids;
use smolforge_engine::ops::adamw::{AdamW, Moments};
use smolforge_engine::ops::attention::{Mask, Shape};
use smolforge_engine::ops::cross_entropy::Wanted;
use smolforge_engine::ops::{
    adamw, attention, cross_entropy, embedding, embedding_f16, linear, linear_f16, rms_norm, rope, swiglu, without_lanes,
};
use smolforge_engine::tasks::self_test;
use smolforge_shaders::cpu as twins;
use smolforge_tests::*;

type Op<'a> = &'a dyn Fn(&[Tensor<2>]) -> Tensor<2>;

/// Value of `op` and the gradients of `Σ op(x)·weights` by every input.
fn value_and_gradients(op: Op, inputs: &[Tensor<2>]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut computed = self_test::value_and_gradients(op, inputs.to_vec()).into_iter().map(values);
    (computed.next().unwrap(), computed.collect())
}

/// Equal but for f32 sums in another order: 2·10⁻⁵ of the largest element.
#[track_caller]
fn check_close(what: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    let difference = max_difference(found, expected);
    assert!(difference <= 2e-5 * largest, "{what}: {difference} of {largest}");
}

/// The fast form gives what the definition gives.
#[track_caller]
fn check_parity(name: &str, fast: Op, reference: Op, inputs: &[Tensor<2>]) {
    let (value, gradients) = value_and_gradients(fast, inputs);
    let (expected, expected_gradients) = value_and_gradients(reference, inputs);
    check_close(&format!("{name} value"), &value, &expected);
    for (i, (a, b)) in gradients.iter().zip(&expected_gradients).enumerate() {
        check_close(&format!("{name} gradient {i}"), a, b);
    }
}

/// The fast form on a device gives what the definition gives on the CPU.
#[track_caller]
fn check_on(name: &str, compute: &Compute, fast: Op, reference: Op, inputs: impl Fn(&Compute) -> Vec<Tensor<2>>) {
    let (value, gradients) = value_and_gradients(fast, &inputs(compute));
    let (expected, expected_gradients) = value_and_gradients(reference, &inputs(&cpu()));
    check_close(&format!("{name} value"), &value, &expected);
    for (i, (a, b)) in gradients.iter().zip(&expected_gradients).enumerate() {
        check_close(&format!("{name} gradient {i}"), a, b);
    }
}

/// Runs a check with the kernels that a device takes, then with those that every device has.
fn with_all_kernels(compute: &Compute, check: impl Fn(&str)) {
    check(&format!("on {}", compute.info.name));
    if !compute.is_cpu() {
        without_lanes(|| check(&format!("on {} without lanes", compute.info.name)));
    }
}

/// Central differences along random directions agree with the gradient.
#[track_caller]
fn check_finite_differences(name: &str, op: Op, inputs: &[Tensor<2>]) {
    let (value, gradients) = value_and_gradients(op, inputs);
    let weights = numbers(99, value.len());
    let objective = |inputs: &[Tensor<2>]| values(op(inputs)).iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum::<f64>();
    for (i, gradient) in gradients.iter().enumerate() {
        let [rows, columns] = inputs[i].dims();
        let direction = numbers(7 + i as u64, rows * columns);
        let step = 1e-2f32;
        let moved = |sign: f32| {
            let mut inputs = inputs.to_vec();
            let delta = Tensor::<2>::from_data(TensorData::new(direction.clone(), [rows, columns]), (&inputs[i].device(), DType::F32));
            inputs[i] = inputs[i].clone() + delta * (sign * step);
            objective(&inputs)
        };
        let numeric = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step));
        let analytic: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let error = (numeric - analytic).abs() / analytic.abs().max(1.0);
        assert!(error <= 5e-3, "{name}, input {i}: analytic {analytic}, numeric {numeric}"); // step² and f32 rounding / step
    }
}

#[test]
fn linear_is_its_definition() {
    let cpu = cpu();
    for (n, k, m) in [(1, 1, 1), (2, 63, 65), (3, 64, 130), (5, 65, 7), (64, 63, 64), (130, 96, 257)] {
        let inputs = [matrix(1, n, k, &cpu), matrix(2, m, k, &cpu)];
        let fast: Op = &|x| linear::linear(x[0].clone(), x[1].clone(), false);
        let reference: Op = &|x| linear::reference(x[0].clone(), x[1].clone(), false);
        check_parity(&format!("linear {n}x{k}x{m}"), fast, reference, &inputs);
        check_finite_differences("linear", fast, &inputs);
    }
}

#[test]
fn linear_in_mixed_precision_rounds_the_weight_to_f16_and_nothing_else() {
    let cpu = cpu();
    for compute in devices().into_iter().filter(|compute| !compute.is_cpu()) {
        for (n, k, m) in [(1, 8, 4), (2, 1000, 64), (65, 72, 100)] {
            let weight: Vec<f32> = numbers(2, m * k).into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
            let rounded = Tensor::<2>::from_data(TensorData::new(weight, [m, k]), (&cpu.device, DType::F32));
            let product: Op = &|x| linear::linear(x[0].clone(), x[1].clone(), true);
            let (y, gradients) = value_and_gradients(product, &[matrix(1, n, k, &compute), matrix(2, m, k, &compute)]);
            let plain: Op = &|x| linear::reference(x[0].clone(), x[1].clone(), false);
            let (expected, expected_gradients) = value_and_gradients(plain, &[matrix(1, n, k, &cpu), rounded]);
            let name = format!("{n}x{k}x{m} on {}", compute.info.name);
            check_close(&name, &y, &expected);
            for (found, expected) in gradients.iter().zip(&expected_gradients) {
                check_close(&name, found, expected);
            }
        }
    }
}

#[test]
fn linear_f16_is_its_definition() {
    let cpu = cpu();
    for compute in devices() {
        for (n, k, m) in [(1, 8, 1), (1, 64, 1000), (2, 63, 65), (16, 1000, 63), (17, 72, 64), (64, 64, 65), (70, 1000, 2), (130, 72, 65)] {
            let w = halves(2, m * k);
            let expected = linear::reference(matrix(1, n, k, &cpu), half_matrix(&w, k, &cpu).cast(FloatDType::F32), false);
            let name = format!("linear_f16 {n}x{k}x{m} on {}", compute.info.name);
            let fast = linear::linear(matrix(1, n, k, &compute), half_matrix(&w, k, &compute), false);
            check_close(&name, &values(fast), &values(expected.clone()));
            if compute.is_cpu() || compute.f16 {
                let reference = linear_f16::reference(matrix(1, n, k, &compute), half_matrix(&w, k, &compute));
                check_close(&format!("the definition of {name}"), &values(reference), &values(expected));
            }
        }
    }
}

#[test]
fn rms_norm_is_its_definition_and_its_twins() {
    for compute in devices() {
        for (n, d) in [(1, 1), (17, 63), (1000, 70), (1, 4), (63, 64), (65, 68), (1, 576), (1000, 576), (66_000, 4)] {
            let name = format!("rms_norm {n}x{d} on {}", compute.info.name);
            let inputs = [matrix(1, n, d, &compute), matrix(2, 1, d, &compute)];
            let fast: Op = &|x| rms_norm::rms_norm(x[0].clone(), x[1].clone(), 1e-5);
            let reference: Op = &|x| rms_norm::reference(x[0].clone(), x[1].clone(), 1e-5);
            check_parity(&name, fast, reference, &inputs);
            if d > 1 && n < 66_000 && compute.is_cpu() {
                check_finite_differences(&name, fast, &inputs);
            }
            let (value, gradients) = value_and_gradients(fast, &inputs);
            let (x, w, dy) = (numbers(1, n * d), numbers(2, d), numbers(99, n * d));
            let (y, scales) = twins::rms_norm(&x, &w, 1e-5);
            check_close(&format!("{name}: y and its twin"), &value, &y);
            check_close(&format!("{name}: dx and its twin"), &gradients[0], &twins::rms_norm_dx(&dy, &x, &w, &scales));
            check_close(&format!("{name}: dw and its twin"), &gradients[1], &twins::rms_norm_dw(&dy, &x, &scales, d));
        }
    }
}

#[test]
fn swiglu_is_its_definition_and_its_twins() {
    for compute in devices() {
        for (n, f) in [(1, 1), (2, 2), (3, 65), (63, 4), (64, 1000)] {
            let name = format!("swiglu {n}x{f} on {}", compute.info.name);
            let inputs = |compute: &Compute| vec![matrix(1, n, f, compute) * 40.0, matrix(2, n, f, compute)];
            let fast: Op = &|x| swiglu::swiglu(x[0].clone(), x[1].clone());
            let reference: Op = &|x| swiglu::reference(x[0].clone(), x[1].clone());
            check_on(&name, &compute, fast, reference, inputs);
            check_finite_differences(&name, fast, &[matrix(1, n, f, &compute) * 4.0, matrix(2, n, f, &compute)]);
            let (value, gradients) = value_and_gradients(fast, &inputs(&compute));
            let gate: Vec<f32> = numbers(1, n * f).iter().map(|x| x * 40.0).collect();
            let (up, dy) = (numbers(2, n * f), numbers(99, n * f));
            let (dgate, dup) = twins::swiglu_backward(&dy, &gate, &up);
            check_close(&format!("{name}: y and its twin"), &value, &twins::swiglu(&gate, &up));
            check_close(&format!("{name}: dgate and its twin"), &gradients[0], &dgate);
            check_close(&format!("{name}: dup and its twin"), &gradients[1], &dup);
        }
    }
}

#[test]
fn rope_is_its_definition_and_its_twin() {
    for compute in devices() {
        // The tables have rows for one sequence, or for all.
        for (b, t, h, e, rows) in [(1, 1, 1, 2, 1), (2, 5, 3, 8, 5), (3, 65, 2, 64, 65), (2, 63, 9, 64, 126), (1, 1000, 1, 12, 1000)] {
            let name = format!("rope {b}x{t}x{h}x{e} with {rows} rows on {}", compute.info.name);
            let angles: Vec<f32> = numbers(5, rows * e / 2).iter().map(|x| x * 9.0).collect();
            let [cos, sin] = [f32::cos, f32::sin].map(|of| angles.iter().map(|angle| of(*angle)).collect::<Vec<f32>>());
            let table =
                |x: &Tensor<2>, of: &[f32]| Tensor::<2>::from_data(TensorData::new(of.to_vec(), [rows, e / 2]), (&x.device(), DType::F32));
            let inputs = |compute: &Compute| vec![matrix(1, b * t, h * e, compute)];
            let fast: Op = &|x| rope::rope(x[0].clone(), table(&x[0], &cos), table(&x[0], &sin));
            let reference: Op = &|x| rope::reference(x[0].clone(), table(&x[0], &cos), table(&x[0], &sin));
            check_on(&name, &compute, fast, reference, inputs);
            check_finite_differences(&name, fast, &inputs(&compute));
            let (value, gradients) = value_and_gradients(fast, &inputs(&compute));
            let (x, dy) = (numbers(1, b * t * h * e), numbers(99, b * t * h * e));
            check_close(&format!("{name}: y and its twin"), &value, &twins::rope(&x, &cos, &sin, h * e, e / 2, 1.0));
            check_close(&format!("{name}: dx and its twin"), &gradients[0], &twins::rope(&dy, &cos, &sin, h * e, e / 2, -1.0));
        }
    }
}

/// Two documents in every row: the second begins at a third of it.
fn starts(b: usize, t: usize, offset: usize) -> Vec<i32> {
    let border = (offset + t) / 3;
    (0..b * t).map(|i| if offset + i % t >= border { border as i32 } else { 0 }).collect()
}

fn additive(starts: &[i32], b: usize, t: usize, offset: usize, device: &Device) -> Tensor<4> {
    let s = offset + t;
    let sees = |row: usize, key: usize| key >= starts[row] as usize && key <= offset + row % t;
    let mask: Vec<f32> = (0..b * t * s).map(|i| if sees(i / s, i % s) { 0.0 } else { -1e30 }).collect();
    Tensor::from_data(TensorData::new(mask, [b, 1, t, s]), (device, DType::F32))
}

#[test]
fn attention_is_its_definition_and_its_twins() {
    let shape = |b, t, h, g, e, capacity, offset| Shape { b, t, h, g, e, capacity, offset };
    let shapes = [
        shape(1, 1, 1, 1, 4, 1, 0),
        shape(2, 5, 4, 2, 8, 5, 0),
        shape(1, 9, 4, 4, 6, 9, 0), // no whole vectors: the definition
        shape(1, 63, 3, 1, 64, 63, 0),
        shape(2, 64, 2, 2, 16, 70, 0),
        shape(1, 65, 4, 2, 64, 65, 0),
        shape(1, 130, 9, 3, 64, 130, 0),
        shape(2, 1, 10, 2, 16, 80, 70),
        shape(1, 1, 2, 1, 128, 1000, 999),
        shape(1, 7, 2, 1, 8, 73, 66),
        shape(2, 9, 10, 2, 32, 80, 66),
        shape(1, 33, 2, 1, 128, 40, 5),
        shape(1, 66, 2, 1, 36, 66, 0),
        shape(1, 10, 2, 1, 260, 12, 1),
        shape(1, 1000, 1, 1, 4, 1000, 0),
    ];
    for (compute, shape) in devices().iter().flat_map(|compute| shapes.map(|shape| (compute, shape))) {
        let Shape { b, t, h, g, e, capacity, offset } = shape;
        let starts = starts(b, t, offset);
        let sizes = [(1, b * t, h * e), (2, b * capacity, g * e), (3, b * capacity, g * e)];
        let inputs = |compute: &Compute| sizes.map(|(seed, rows, columns)| matrix(seed, rows, columns, compute)).to_vec();
        let fast: Op = &|x| {
            let mask = Mask::new(b, t, offset, &starts, &x[0].device());
            attention::attention(x[0].clone(), x[1].clone(), x[2].clone(), &mask, h, g)
        };
        let reference: Op = &|x| {
            let additive = additive(&starts, b, t, offset, &x[0].device());
            attention::reference(x[0].clone(), x[1].clone(), x[2].clone(), additive, shape)
        };
        let [q, k, v] = sizes.map(|(seed, rows, columns)| numbers(seed, rows * columns));
        let twin = twins::attention::Inputs { q: &q, k: &k, v: &v, starts: &starts, shape };
        let (out, lse) = twins::attention(twin);
        let expected = twins::attention_backward(twin, &numbers(99, out.len()), &out, &lse);
        with_all_kernels(compute, |on| {
            let name = format!("attention {shape:?} {on}");
            check_on(&name, compute, fast, reference, inputs);
            if t < 100 {
                check_finite_differences(&name, fast, &inputs(compute));
            }
            let (value, gradients) = value_and_gradients(fast, &inputs(compute));
            check_close(&format!("{name}: out and its twin"), &value, &out);
            for (i, (gradient, expected)) in gradients.iter().zip(&expected).enumerate() {
                check_close(&format!("{name}: gradient {i} and its twin"), gradient, expected);
            }
        });
    }
}

#[test]
fn attention_serves_more_rows_than_an_axis_of_workgroups() {
    let (b, h) = (33_000, 2); // a workgroup each
    let numbers = [1, 2, 3].map(|seed| numbers(seed, b * h * 4));
    let starts = vec![0; b];
    let shape = Shape { b, t: 1, h, g: h, e: 4, capacity: 1, offset: 0 };
    let (expected, _) =
        twins::attention(twins::attention::Inputs { q: &numbers[0], k: &numbers[1], v: &numbers[2], starts: &starts, shape });
    for compute in devices() {
        with_all_kernels(&compute, |on| {
            let [q, k, v] = [1, 2, 3].map(|seed| matrix(seed, b, h * 4, &compute));
            let out = attention::attention(q, k, v, &Mask::causal(b, 1, 0, &compute.device), h, h);
            check_close(&format!("{b} sequences {on}"), &values(out), &expected);
        });
    }
}

#[test]
fn a_document_does_not_see_the_one_before() {
    for compute in devices() {
        let (t, h, g, e) = (12, 2, 1, 8);
        let starts = starts(1, t, 0); // the second document begins at 4
        let mask = Mask::new(1, t, 0, &starts, &compute.device);
        let run = |scale: f32| {
            let first = matrix(1, 4, g * e, &compute) * scale;
            let k = Tensor::cat(vec![first.clone(), matrix(2, t - 4, g * e, &compute)], 0);
            let v = Tensor::cat(vec![first, matrix(3, t - 4, g * e, &compute)], 0);
            values(attention::attention(matrix(4, t, h * e, &compute), k, v, &mask, h, g).narrow(0, 4, t - 4))
        };
        with_all_kernels(&compute, |on| assert_eq!(run(1.0), run(50.0), "{on}"));
    }
}

#[test]
fn embedding_is_its_definition() {
    let tokens = vec![0, 6, 3, 3, 6, 6, 1, 0, 2];
    for (compute, d) in devices().into_iter().flat_map(|compute| [4, 64, 65].map(|d| (compute.clone(), d))) {
        let whole = matrix(1, 7, d, &compute);
        for rows in [7, 3] {
            let (table, tokens) = (whole.clone().split(rows, 0), ids(tokens.clone(), &compute.device));
            let expected = values(embedding::reference(&table, tokens.clone()));
            assert_eq!(values(embedding::embedding(&table, tokens)), expected, "of {d} on {}", compute.info.name);
        }
    }
}

#[test]
fn embedding_f16_is_its_definition() {
    let tokens = vec![0, 6, 3, 3, 6, 6, 1, 0, 2];
    for compute in devices() {
        for d in [8, 64, 1000] {
            let numbers = halves(1, 7 * d);
            let rows = |range: std::ops::Range<usize>| half_matrix(&numbers[range.start * d..range.end * d], d, &compute);
            let (table, blocks) = (rows(0..7), [rows(0..3), rows(3..6), rows(6..7)]);
            let expected: Vec<f32> = tokens.iter().flat_map(|id| &numbers[*id as usize * d..][..d]).map(|x| x.to_f32()).collect();
            for blocks in [&blocks[..], &[table]] {
                let name = format!("rows of {d} in {} blocks on {}", blocks.len(), compute.info.name);
                assert_eq!(values(embedding::embedding(blocks, ids(tokens.clone(), &compute.device))), expected, "{name}");
                if compute.is_cpu() || compute.f16 {
                    assert_eq!(values(embedding_f16::reference(blocks, ids(tokens.clone(), &compute.device))), expected, "{name}");
                }
            }
        }
    }
}

/// Plain softmax cross-entropy over all logits.
fn plain_cross_entropy(h: Tensor<2>, w: Tensor<2>, targets: &[i32], scale: f64) -> Tensor<2> {
    let (n, v) = (targets.len(), w.dims()[0]);
    let logits = h.matmul(w.transpose());
    let mut onehot = vec![0.0f32; n * v];
    for (row, target) in targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        onehot[row * v + *target as usize] = 1.0;
    }
    let onehot = Tensor::<2>::from_data(TensorData::new(onehot, [n, v]), (&logits.device(), DType::F32));
    let loss = burn::tensor::activation::log_softmax(logits, 1) * onehot;
    (loss.sum() * -scale).reshape([1, 1])
}

#[test]
fn chunked_cross_entropy_is_plain_cross_entropy() {
    for compute in devices() {
        for (n, v, d, blocks) in [(1, 2, 3, 1), (5, 65, 16, 1), (63, 64, 8, 2), (70, 1000, 64, 1), (70, 1000, 64, 3)] {
            let targets: Vec<i32> = (0..n as i32).map(|i| if i % 5 == 4 { -100 } else { i * 37 % v as i32 }).collect();
            let name = format!("cross-entropy {n}x{v}x{d}/{blocks} on {}", compute.info.name);
            let [h, w] = [matrix(1, n, d, &compute), matrix(2, v, d, &compute)];
            let head = w.clone().split(v.div_ceil(blocks), 0);
            let found = cross_entropy::linear_cross_entropy(h.clone(), &head, &targets, Wanted::All(0.25));
            let leaves = [h.clone(), w].map(|x| Tensor::from_inner(x).require_grad());
            let plain = plain_cross_entropy(leaves[0].clone(), leaves[1].clone(), &targets, 0.25);
            let (loss, expected) = (values(plain.clone().inner())[0], plain.backward());
            assert!((values(found.nll.clone()).iter().sum::<f32>() * 0.25 - loss).abs() < 1e-4 * loss, "{name}");
            let dh = values(found.dh.unwrap());
            assert!(max_difference(&dh, &values(leaves[0].grad(&expected).unwrap())) < 1e-5, "{name}");
            let dhead: Vec<f32> = found.dhead.into_iter().flat_map(values).collect();
            assert!(max_difference(&dhead, &values(leaves[1].grad(&expected).unwrap())) < 1e-4, "{name}");
            // Several chunks, the last one short.
            let part = cross_entropy::reference(h.clone(), &head, &targets, 7, Wanted::Nothing);
            assert!(max_difference(&values(part.nll), &values(found.nll)) < 1e-5);
            assert_eq!(values(part.hits), values(found.hits), "hits of {name}");
            // A head that is not trained: the same gradient of the hidden states, none of the head.
            let frozen = cross_entropy::linear_cross_entropy(h, &head, &targets, Wanted::Hidden(0.25));
            assert!(max_difference(&values(frozen.dh.unwrap()), &dh) < 1e-6);
            assert!(frozen.dhead.is_empty());
        }
    }
}

#[test]
fn adamw_is_its_definition() {
    let step =
        AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, correction1: 0.19, correction2: 0.0975, grad_scale: 0.5 };
    for compute in devices() {
        for (rows, columns) in [(1, 1), (3, 65), (130, 577), (1, 4), (63, 64), (65, 1000)] {
            let state = || Moments {
                param: matrix(1, rows, columns, &compute),
                m: matrix(2, rows, columns, &compute) * 0.1,
                v: matrix(3, rows, columns, &compute).square(),
            };
            let fast = adamw::adamw(state(), matrix(4, rows, columns, &compute), &step);
            let slow = adamw::reference(state(), matrix(4, rows, columns, &compute), &step);
            for (a, b) in [(fast.param, slow.param), (fast.m, slow.m), (fast.v, slow.v)] {
                assert!(max_difference(&values(a), &values(b)) < 2e-6, "{rows}x{columns} on {}", compute.info.name);
            }
        }
    }
}

#[test]
fn devices_agree_on_every_definition() {
    let all = devices();
    let Some(gpu) = all.get(1) else { return };
    let on = |compute: &Compute| {
        let m = |seed, rows, columns| matrix(seed, rows, columns, compute);
        let mask = Mask::new(2, 9, 0, &starts(2, 9, 0), &compute.device);
        let angles = m(5, 9, 4) * 3.0;
        vec![
            values(linear::linear(m(1, 18, 33), m(2, 65, 33), false)),
            values(rms_norm::rms_norm(m(1, 18, 33), m(2, 1, 33), 1e-5)),
            values(swiglu::swiglu(m(1, 18, 33), m(2, 18, 33))),
            values(rope::rope(m(1, 18, 16), angles.clone().cos(), angles.sin())),
            values(attention::attention(m(1, 18, 32), m(2, 18, 16), m(3, 18, 16), &mask, 4, 2)),
            values(embedding::embedding(&[m(1, 50, 33)], ids(vec![3, 49, 0, 3], &compute.device))),
        ]
    };
    for (i, (a, b)) in on(&all[0]).iter().zip(&on(gpu)).enumerate() {
        assert!(max_difference(a, b) <= 1e-5, "op {i}: {}", max_difference(a, b));
    }
}
