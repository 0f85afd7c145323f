//! The ends of the model, the table and the loss, and the norm of its gradients: against their twins at awkward sizes.

use burn::tensor::{DType, Tensor, TensorData};
use smolforge_engine::device::Compute;
use smolforge_engine::model::llama::ids;
use smolforge_engine::ops::cross_entropy::{self, Losses, Wanted, linear_cross_entropy};
use smolforge_engine::ops::embedding::{add_gradient, embedding};
use smolforge_engine::ops::sum_of_squares;
use smolforge_shaders::cpu as twins;
use smolforge_shaders::cpu::cross_entropy::State;
use smolforge_tests::*;

/// Targets of `n` rows, every fifth ignored.
fn targets(n: usize, v: usize) -> Vec<i32> {
    (0..n).map(|i| if i % 5 == 4 { -100 } else { (i * 37 % v) as i32 }).collect()
}

/// The rows of the identity matrix in so many blocks: a head whose logits are the hidden states.
fn identity(v: usize, blocks: usize, compute: &Compute) -> Vec<Tensor<2>> {
    let values: Vec<f32> = (0..v * v).map(|i| if i % (v + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let whole = Tensor::<2>::from_data(TensorData::new(values, [v, v]), (&compute.device, DType::F32));
    whole.split(v.div_ceil(blocks), 0)
}

#[test]
fn cross_entropy_of_logits_is_its_twin() {
    for compute in devices() {
        for (n, v, blocks) in [(1, 1, 1), (1, 2, 2), (2, 63, 1), (63, 65, 1), (64, 64, 3), (65, 63, 2), (1000, 1000, 3), (66_000, 3, 1)] {
            let name = format!("{n}x{v} in {blocks} blocks on {}", compute.info.name);
            let (mut logits, targets) = (numbers(1, n * v), targets(n, v));
            let (h, head) = (matrix(1, n, v, &compute), identity(v, blocks, &compute));
            let Losses { nll, hits, dh, .. } = linear_cross_entropy(h, &head, &targets, Wanted::Hidden(0.25));
            let mut states = vec![State::NONE; n];
            let expected = twins::cross_entropy(&logits, v, 0, &targets, &mut states);
            assert!(max_difference(&values(nll), &expected.0) < 1e-5, "nll of {name}");
            assert_eq!(values(hits), expected.1, "hits of {name}");
            twins::cross_entropy_dlogits(&mut logits, v, 0, &targets, &states, 0.25);
            assert!(max_difference(&values(dh.unwrap()), &logits) < 1e-6, "gradient of {name}");
        }
    }
}

#[test]
fn twins_see_blocks_as_one() {
    let (n, v, targets) = (10, 65, targets(10, 65));
    let logits = numbers(1, n * v);
    let columns = |first: usize, last: usize| logits.chunks(v).flat_map(|row| row[first..last].to_vec()).collect::<Vec<_>>();
    let (mut one, mut many) = (vec![State::NONE; n], vec![State::NONE; n]);
    let expected = twins::cross_entropy(&logits, v, 0, &targets, &mut one);
    twins::cross_entropy(&columns(0, 20), 20, 0, &targets, &mut many);
    let found = twins::cross_entropy(&columns(20, 65), 45, 20, &targets, &mut many);
    assert!(max_difference(&found.0, &expected.0) < 1e-6);
    assert_eq!(found.1, expected.1);
    let (mut whole, mut part) = (logits.clone(), columns(20, 65));
    twins::cross_entropy_dlogits(&mut whole, v, 0, &targets, &one, 0.5);
    twins::cross_entropy_dlogits(&mut part, 45, 20, &targets, &many, 0.5);
    let expected: Vec<f32> = whole.chunks(v).flat_map(|row| row[20..].to_vec()).collect();
    assert!(max_difference(&part, &expected) < 1e-6);
}

#[test]
fn a_target_that_is_as_likely_as_another_is_a_hit() {
    for compute in devices() {
        let logits = vec![1.0, 3.0, 0.0, 3.0, -5.0, 2.0, 2.0, 2.5, 0.0, 0.0, -90.0, -90.0, -90.0, -90.0, -90.0];
        let h = Tensor::<2>::from_data(TensorData::new(logits, [3, 5]), (&compute.device, DType::F32));
        for blocks in [1, 5] {
            let losses = linear_cross_entropy(h.clone(), &identity(5, blocks, &compute), &[3, 1, 4], Wanted::Nothing);
            assert_eq!(values(losses.hits), [1.0, 0.0, 1.0], "{blocks} blocks on {}", compute.info.name);
            assert!((values(losses.nll)[2] - 5f32.ln()).abs() < 1e-5);
        }
    }
}

#[test]
fn logits_in_several_chunks_give_the_same_losses_and_gradients() {
    for compute in devices() {
        let (n, v, d) = (9000, 1000, 8); // more than 32 MB of logits
        let (h, w, targets) = (matrix(1, n, d, &compute), matrix(2, v, d, &compute), targets(n, v));
        let (head, wanted) = ([w], Wanted::All(0.25));
        let found = linear_cross_entropy(h.clone(), &head, &targets, wanted);
        let expected = cross_entropy::reference(h, &head, &targets, 500, wanted);
        assert!(max_difference(&values(found.nll.clone()), &values(expected.nll.clone())) < 1e-5);
        assert!(max_difference(&values(found.hits.clone()), &values(expected.hits.clone())) == 0.0);
        let gradients = |losses: Losses| [losses.dh.unwrap(), losses.dhead[0].clone()].map(values);
        for (found, expected) in gradients(found).into_iter().zip(gradients(expected)) {
            let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
            assert!(max_difference(&found, &expected) < 2e-5 * largest, "{}", compute.info.name);
        }
    }
}

#[test]
fn embedding_and_its_gradient_are_their_twins() {
    for compute in devices() {
        for (n, rows, d, blocks) in [(1, 1, 4, 1), (63, 7, 64, 3), (64, 1000, 68, 1), (65, 63, 65, 2), (1000, 50, 1000, 4), (2049, 3, 4, 1)]
        {
            let name = format!("{n} of {rows}x{d} in {blocks} blocks on {}", compute.info.name);
            let tokens: Vec<i32> = (0..n).map(|i| (i * i % rows) as i32).collect();
            let table = matrix(1, rows, d, &compute).split(rows.div_ceil(blocks), 0);
            let found = values(embedding(&table, ids(tokens.clone(), &compute.device)));
            let mut expected = numbers(1, rows * d);
            assert_eq!(found, twins::embedding(&expected, &tokens, d, 0), "rows: {name}");
            let added = add_gradient(table, ids(tokens.clone(), &compute.device), matrix(99, n, d, &compute));
            let found: Vec<f32> = added.into_iter().flat_map(values).collect();
            twins::embedding_dw(&mut expected, &numbers(99, n * d), &tokens, d, 0);
            let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
            assert!(max_difference(&found, &expected) < 2e-5 * largest, "gradient: {name}");
        }
    }
}

#[test]
fn embeddings_may_be_more_than_groups_along_an_axis() {
    for compute in devices() {
        let tokens: Vec<i32> = (0..66_000).map(|i| i % 64).collect();
        let found = embedding(&[matrix(1, 64, 4, &compute)], ids(tokens.clone(), &compute.device));
        assert_eq!(values(found), twins::embedding(&numbers(1, 64 * 4), &tokens, 4, 0), "{}", compute.info.name);
    }
}

#[test]
fn a_block_has_only_its_own_rows() {
    let (table, ids) = (numbers(1, 5 * 4), [0, 4, 2, 2]);
    let rows = |first: usize, last: usize| table[first * 4..last * 4].to_vec();
    let zeros = vec![0.0; 4];
    assert_eq!(twins::embedding(&rows(2, 4), &ids, 4, 2), [zeros.clone(), zeros, rows(2, 3), rows(2, 3)].concat());
    let mut sum = vec![1.0; 2];
    twins::embedding_dw(&mut sum, &[8.0, 9.0, 0.5, 0.25], &ids, 1, 2);
    assert_eq!(sum, [1.75, 1.0]);
}

#[test]
fn squares_of_many_tensors_are_summed() {
    for compute in devices() {
        let sizes = [(1, 1), (1, 4), (63, 64), (65, 65), (1000, 576), (1, 576), (64, 1000), (2, 2), (1, 8), (300, 1536), (3, 63)];
        for count in [1, 2, sizes.len()] {
            let tensors: Vec<Tensor<2>> = sizes[..count].iter().map(|(n, d)| matrix(1, *n, *d, &compute)).collect();
            let squares = |(n, d): &(usize, usize)| numbers(1, n * d).iter().map(|x| f64::from(x * x)).sum::<f64>();
            let expected: f64 = sizes[..count].iter().map(squares).sum();
            let found = f64::from(values(sum_of_squares(&tensors))[0]);
            assert!((found - expected).abs() < 1e-5 * expected, "{count} tensors on {}: {found} for {expected}", compute.info.name);
        }
    }
}
