//! What a run needs, before it starts: memory by category, tokens, passes over every source, time.

pub mod finetune;

use std::collections::BTreeMap;

use serde_json::Value;
use web_time::Instant;

use crate::bench::random_batch;
use crate::config::TrainConfig;
use crate::config::finetune::Optim;
use crate::control::{Control, Flow};
use crate::data::batch::together;
use crate::data::mix_change::{self, MANY_EPOCHS};
use crate::device::Compute;
use crate::device::read_f32;
use crate::error::Result;
use crate::model::adapter::AdapterConfig;
use crate::model::load::{self, Keep};
use crate::model::{Adapter, LlamaConfig};
use crate::ops::kernels_enabled;
use crate::protocol::{Event, PlanReport, SourcePlan};
use crate::store::Store;
use crate::train::optimizer::Optimizer;
use crate::train::{losses_and_gradients, pretrain, squared_norm};

/// Reports the plan of a run that may take `budget_bytes` of memory, or what the machine has.
///
/// # Errors
/// What is wrong with configuration, tokenizer or data.
pub async fn run(config: &TrainConfig, budget_bytes: Option<u64>, store: &Store, control: &Control) -> Result<()> {
    let config = pretrain::resolve(config);
    config.validate()?;
    let (compute, why) = Compute::open(config.device).await?;
    control.notice(why);
    let Some(shape) = pretrain::Shape::resolve(&config, false, store, control).await? else { return Ok(()) };
    let Some(shards) = pretrain::shards(&config, false, &shape.tokenizer, store, control).await? else { return Ok(()) };
    let tokens_per_step = config.tokens_per_step() as f64;
    let updates = mix_change::updates_per_source(&config.data_stages, &config.mix_changes, 0, config.steps);
    let mut warnings = Vec::new();
    let mut sources = BTreeMap::new();
    for (name, shard) in &shards {
        let (tokens, planned) = (shard.train_tokens(), tokens_per_step * updates.get(name).copied().unwrap_or(0.0));
        let epochs = planned / tokens.max(1) as f64;
        if epochs > MANY_EPOCHS {
            warnings.push(format!(
                "{name}: {epochs:.1} passes over {tokens} tokens; beyond about {MANY_EPOCHS} a model learns a text by heart"
            ));
        }
        if planned == 0.0 {
            warnings.push(format!("{name}: no stage draws from it"));
        }
        let documents = (shard.training.documents() + shard.held_out.documents()) as u64;
        sources.insert(name.clone(), SourcePlan { documents, tokens, planned, epochs });
    }
    let memory_bytes = memory(&shape.model, &config, &compute, Trained::All);
    let peak_bytes = memory_bytes.values().sum();
    let tokens = u64::from(config.steps) * config.tokens_per_step();
    let most = budget_bytes.into_iter().chain(compute.free_bytes()).min();
    if let Some(budget) = budget_bytes.filter(|budget| peak_bytes > *budget) {
        warnings.push(lacks(peak_bytes, budget, "are allowed"));
    }
    let suggestion =
        most.and_then(|most| fitting(&config, most, |config| memory(&shape.model, config, &compute, Trained::All).values().sum()));
    let shortage = shortage(&shape.model, &config, &compute, Trained::All);
    let step_secs = match shortage {
        Some(_) => 0.0,
        None => measure(&shape.model, &config, &compute, None, control).await?,
    };
    warnings.extend(shortage);
    if suggestion.is_none() && most.is_some_and(|most| peak_bytes > most) {
        warnings.push("not even one short sequence at a time fits: take a smaller model".into());
    }
    if control.flow() == Flow::Stop {
        return Ok(()); // what was measured means nothing
    }
    control.emit(Event::Plan(PlanReport {
        parameters: shape.model.parameters(),
        device: format!("{} ({})", compute.info.name, compute.info.backend),
        memory_bytes,
        peak_bytes,
        tokens,
        sources,
        flops: shape.model.train_flops_per_token(config.sequence_length) * tokens as f64,
        expected_secs: step_secs * f64::from(config.steps),
        warnings,
        suggestion,
    }));
    Ok(())
}

/// What of a model is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trained {
    /// All weights.
    All,
    /// So many numbers of an adapter, beside a base that is kept in some way.
    Adapter(u64, Keep),
}

/// Peak memory of training by category, in bytes.
pub fn memory(shape: &LlamaConfig, config: &TrainConfig, compute: &Compute, trained: Trained) -> BTreeMap<String, u64> {
    let (weights, numbers) = match trained {
        Trained::All => (4 * shape.parameters(), shape.parameters()),
        Trained::Adapter(numbers, keep) => (load::size_bytes(shape, keep, &compute.device) + 4 * numbers, numbers),
    };
    let wide = |size: usize| size as u64;
    let (d, f, heads) = (wide(shape.hidden_size), wide(shape.intermediate_size), wide(shape.num_attention_heads));
    let (q, kv) = (heads * wide(shape.head_dim), wide(shape.num_key_value_heads) * wide(shape.head_dim));
    let t = wide(config.sequence_length);
    let tokens = wide(config.batch_size) * t;
    // What the backward pass keeps per token and layer: inputs of the norms and products, q, k, v, o, gate, up.
    let mut kept = 4 * d + 2 * q + 2 * kv + 3 * f + heads;
    if !kernels_enabled() {
        // Composed of burn ops: parts of norms, rotations and gates, and the scores of every pair of tokens.
        kept += 4 * d + 2 * (q + kv) + 2 * f + 3 * heads * t;
    }
    let layers = wide(shape.num_hidden_layers);
    let logits = (32u64 << 20).min(4 * tokens * shape.vocab_size as u64) * if compute.is_cpu() { 1 } else { 4 };
    let table = if trained == Trained::All { 4 * wide(shape.vocab_size) * d } else { 0 };
    // Layers that are computed again are there one after the other, and not while the head works: what they keep, and as
    // much of gradients, of which frozen weights need half.
    let together = tokens.min(wide(together(config.sequence_length)) * t);
    let at_once = if trained == Trained::All { 2 * kept } else { kept };
    let (activations, at_work) = match config.gradient_checkpointing {
        false => (tokens * kept * layers, ("logits and head", logits)),
        true => (tokens * d * (layers + 3), ("a layer, or the head", logits.max(4 * together * at_once))),
    };
    let gradients = 4 * numbers * if config.accumulation > 1 { 2 } else { 1 };
    let moments = if config.optim == Optim::Adamw { 8 * numbers } else { 2 * numbers + 8 * numbers / 256 };
    BTreeMap::from([
        ("weights".to_string(), weights),
        ("gradients".to_string(), gradients + table),
        ("optimizer".to_string(), moments),
        ("activations".to_string(), 4 * activations),
        (at_work.0.to_string(), at_work.1),
    ])
}

/// What is missing where training in the machine's own memory needs more of it than is free.
pub fn shortage(shape: &LlamaConfig, config: &TrainConfig, compute: &Compute, trained: Trained) -> Option<String> {
    let needed = memory(shape, config, compute, trained).values().sum::<u64>();
    compute.free_bytes().filter(|free| needed > *free).map(|free| lacks(needed, free, "are free"))
}

/// A sentence: training needs more than there is; `are` says what that means.
fn lacks(needed: u64, there: u64, are: &str) -> String {
    format!("training needs about {} MiB of memory, and {} MiB {are}", needed >> 20, there >> 20)
}

/// Shortest sequences that are suggested.
const LEAST_SEQUENCE: usize = 32;

/// Keys that make a run need at most `most` bytes with as many tokens in an update: fewer sequences in a micro-batch and
/// more micro-batches, then shorter sequences. `None` where it fits as it is, or nothing helps.
fn fitting(config: &TrainConfig, most: u64, needed: impl Fn(&TrainConfig) -> u64) -> Option<BTreeMap<String, Value>> {
    if needed(config) <= most {
        return None;
    }
    let (mut length, mut sequences) = (config.sequence_length, config.batch_size * config.accumulation);
    let found = loop {
        let largest = if length == config.sequence_length { config.batch_size } else { 1 };
        let sizes = (1..=largest).rev().filter(|size| sequences.is_multiple_of(*size));
        let mut smaller = sizes.map(|batch_size| TrainConfig {
            batch_size,
            accumulation: sequences / batch_size,
            sequence_length: length,
            ..config.clone()
        });
        if let Some(found) = smaller.find(|smaller| needed(smaller) <= most) {
            break found;
        }
        if !length.is_multiple_of(2) || length / 2 < LEAST_SEQUENCE {
            return None;
        }
        (length, sequences) = (length / 2, sequences * 2);
    };
    let keys = [
        ("batch_size", config.batch_size, found.batch_size),
        ("accumulation", config.accumulation, found.accumulation),
        ("sequence_length", config.sequence_length, found.sequence_length),
    ];
    Some(keys.into_iter().filter(|(_, old, new)| old != new).map(|(key, _, new)| (key.to_string(), Value::from(new))).collect())
}

/// Seconds of a step, from models of the same width with one and with two layers.
async fn measure(
    shape: &LlamaConfig,
    config: &TrainConfig,
    compute: &Compute,
    adapter: Option<(&AdapterConfig, Keep)>,
    control: &Control,
) -> Result<f64> {
    let mixed = pretrain::mixed(config.precision, compute)?;
    let (one, one_update) = measure_layers(1, shape, config, compute, mixed, adapter, control).await?;
    let (two, two_update) = measure_layers(2, shape, config, compute, mixed, adapter, control).await?;
    let layers = shape.num_hidden_layers.saturating_sub(1) as f64;
    let micro_batch = one + (two - one).max(0.0) * layers;
    let update = one_update + (two_update - one_update).max(0.0) * layers;
    Ok(micro_batch * config.accumulation as f64 + update)
}

/// How long a first run may take for a second one to be worth it: what is made ready only once takes a small part of more.
const WARM_UP_SECS: f64 = 10.0;

/// Seconds of a micro-batch and of an update; the second of two runs counts, where the first was short.
async fn measure_layers(
    layers: usize,
    shape: &LlamaConfig,
    config: &TrainConfig,
    compute: &Compute,
    mixed: bool,
    adapter: Option<(&AdapterConfig, Keep)>,
    control: &Control,
) -> Result<(f64, f64)> {
    let shape = LlamaConfig { num_hidden_layers: layers, ..shape.clone() };
    let base = load::random(&shape, compute, config.sequence_length, 1, adapter.map_or(Keep::F32, |(_, keep)| keep))?;
    let first = adapter.map(|(adapter, _)| Adapter::begin(adapter, &base, 1)).transpose()?;
    let mut model = base.with_adapter(first.as_ref())?.with_half(mixed).trainable();
    let mut optimizer = Optimizer::new(&model, config.optim);
    let batch = random_batch(config.batch_size, config.sequence_length, shape.vocab_size, 1);
    let mut times = (0.0, 0.0);
    for _ in 0..2 {
        if times.0 + times.1 > WARM_UP_SECS || control.breathe().await == Flow::Stop {
            break;
        }
        let started = Instant::now();
        let scale = 1.0 / batch.target_tokens() as f64;
        let (_, grads) = losses_and_gradients(&model, &batch, scale, config.gradient_checkpointing);
        read_f32(squared_norm(&grads)).await?;
        times.0 = started.elapsed().as_secs_f64();
        control.breathe().await;
        let started = Instant::now();
        optimizer.step(&mut model, grads, config, 1e-4, 1.0).await?;
        read_f32(model.norm.weight.tensor.clone().inner()).await?;
        times.1 = started.elapsed().as_secs_f64();
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory as a run needs it: something fixed, and something for every token of a micro-batch.
    fn needed(config: &TrainConfig) -> u64 {
        1000 + (config.batch_size * config.sequence_length) as u64
    }

    #[track_caller]
    fn check(most: u64, expect: Option<[usize; 3]>) {
        let config = TrainConfig { batch_size: 12, accumulation: 2, sequence_length: 128, ..TrainConfig::default() };
        let changed = fitting(&config, most, needed);
        let value = |key: &str, old: usize| {
            let value = changed.as_ref().and_then(|changed| changed.get(key));
            assert!(value.is_none_or(|value| value.as_u64() != Some(old as u64)), "{key} is told although it stays");
            value.map_or(old, |value| value.as_u64().unwrap() as usize)
        };
        let found = [value("batch_size", 12), value("accumulation", 2), value("sequence_length", 128)];
        assert_eq!(changed.is_some().then_some(found), expect);
        assert_eq!(found.iter().product::<usize>(), 12 * 2 * 128, "an update trains on as many tokens");
    }

    #[test]
    fn a_run_is_made_to_fit_with_as_many_tokens_in_an_update() {
        check(1000 + 12 * 128, None);
        check(1000 + 12 * 128 - 1, Some([8, 3, 128])); // 11, 10 and 9 do not divide 24
        check(1000 + 5 * 128, Some([4, 6, 128]));
        check(1000 + 128, Some([1, 24, 128]));
        check(1000 + 127, Some([1, 48, 64]));
        check(1000 + 32, Some([1, 96, 32]));
        check(1000 + 31, None);
    }
}
