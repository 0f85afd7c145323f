//! Tokens that the device writes by itself: those of the model run by the host, for every kind of weight.

use futures_lite::future::block_on;
use smolforge_engine::config::finetune::{FinetuneConfig, Method};
use smolforge_engine::device::Compute;
use smolforge_engine::generate::decode::{Decoder, Standing, is_served};
use smolforge_engine::generate::sampler::argmax;
use smolforge_engine::model::llama::ids;
use smolforge_engine::model::load::{self, Keep};
use smolforge_engine::model::{Adapter, KvCache, Llama, LlamaConfig};
use smolforge_engine::ops::attention::Mask;
use smolforge_engine::ops::without_lanes;
use smolforge_engine::protocol::Sampling;
use smolforge_engine::train::finetune;
use smolforge_tests::*;

const BEFORE: usize = 5;
const STEPS: usize = 6;

fn config() -> LlamaConfig {
    LlamaConfig::preset("nano").unwrap().with_vocab(500)
}

/// An adapter whose second matrices are not zero, as after training.
fn adapted(model: &Llama, r: usize) -> Llama {
    let tuning = FinetuneConfig { method: Method::Lora, r, ..FinetuneConfig::default() };
    let mut adapter = Adapter::begin(&finetune::adapter(&tuning), model, 1).unwrap();
    for (i, (_, pair)) in adapter.pairs.iter_mut().enumerate() {
        pair.b = numbers(i as u64 + 50, pair.b.len()).into_iter().map(|x| 0.05 * x).collect();
    }
    model.clone().with_adapter(Some(&adapter)).unwrap()
}

/// A cache with some tokens of every row, and the next token of each.
fn prefilled(model: &Llama, rows: usize) -> (KvCache, Vec<u32>) {
    let device = model.norm.weight.tensor.device();
    let mut cache = KvCache::new(&model.config, rows, BEFORE + STEPS, &device);
    let tokens: Vec<i32> = (0..rows * BEFORE).map(|i| (i * 131 % model.config.vocab_size) as i32).collect();
    let hidden = model.forward(ids(tokens, &device), BEFORE, &Mask::causal(rows, BEFORE, 0, &device), Some(&mut cache));
    let d = model.config.hidden_size;
    let last = hidden.reshape([rows, BEFORE, d]).narrow(1, BEFORE - 1, 1).reshape([rows, d]);
    (cache, likeliest(model, &values(model.logits(last))))
}

fn likeliest(model: &Llama, logits: &[f32]) -> Vec<u32> {
    logits.chunks(model.config.vocab_size).map(argmax).collect()
}

fn by_host(model: &Llama, rows: usize) -> Vec<u32> {
    let (mut cache, mut newest) = prefilled(model, rows);
    let device = model.norm.weight.tensor.device();
    let mut all = Vec::new();
    for _ in 0..STEPS {
        let mask = Mask::causal(rows, 1, cache.len, &device);
        let tokens = newest.iter().map(|id| *id as i32).collect();
        let logits = values(model.logits(model.forward(ids(tokens, &device), 1, &mask, Some(&mut cache))));
        newest = likeliest(model, &logits);
        all.extend(&newest);
    }
    all
}

fn by_device(model: &Llama, rows: usize) -> Vec<u32> {
    let (mut cache, newest) = prefilled(model, rows);
    let greedy = Sampling { greedy: true, ..Sampling::default() };
    let mut decoder = Decoder::new(model, &cache, &greedy).unwrap();
    let standing: Vec<Standing> = newest.chunks(1).map(|tokens| Standing { tokens, start: 0 }).collect();
    block_on(decoder.write(&mut cache, &standing, &mut [], STEPS)).unwrap()
}

/// Every kind of weight, with an adapter and without.
fn models(compute: &Compute) -> Vec<(&'static str, Llama)> {
    let random = |keep: Keep| load::random(&config(), compute, 64, 3, keep).unwrap();
    let (full, half, four) = (random(Keep::F32), random(Keep::F16), random(Keep::Nf4));
    vec![
        ("f32 with an adapter of rank 16", adapted(&full, 16)),
        ("f16 with an adapter of rank 8", adapted(&half, 8)),
        ("4 bits with an adapter of rank 16", adapted(&four, 16)),
        ("f32", full),
        ("f16", half),
        ("4 bits", four),
    ]
}

#[test]
fn the_device_writes_what_the_host_would() {
    for compute in devices().into_iter().filter(|compute| !compute.is_cpu()) {
        for (name, model) in models(&compute) {
            assert!(is_served(&model), "{name}");
            for rows in [1, 3, 6, 20] {
                let expected = by_host(&model, rows);
                assert_eq!(by_device(&model, rows), expected, "{name}, {rows} rows on {}", compute.info.name);
                assert_eq!(without_lanes(|| by_device(&model, rows)), expected, "{name}, {rows} rows without lanes");
            }
        }
    }
}

#[test]
fn an_adapter_changes_what_is_written() {
    for compute in devices().into_iter().filter(|compute| !compute.is_cpu()) {
        let model = load::random(&config(), &compute, 64, 3, Keep::F32).unwrap();
        assert_ne!(by_device(&model, 6), by_device(&adapted(&model, 16), 6));
    }
}

#[test]
fn ranks_that_are_no_whole_vectors_are_left_to_the_host() {
    for compute in devices() {
        let model = load::random(&config(), &compute, 64, 3, Keep::F32).unwrap();
        assert_eq!(is_served(&model), !compute.is_cpu());
        assert!(!is_served(&adapted(&model, 6)));
    }
}
