//! What a run needs, before it starts: memory by category, tokens, passes over every source, time.

use std::collections::BTreeMap;

use web_time::Instant;

use crate::bench::random_batch;
use crate::config::TrainConfig;
use crate::control::Control;
use crate::data::mix_change;
use crate::device::Compute;
use crate::error::Result;
use crate::generate::read_f32;
use crate::model::{Llama, LlamaConfig};
use crate::platform;
use crate::protocol::{Event, PlanReport, SourcePlan};
use crate::store::Store;
use crate::train::optimizer::Optimizer;
use crate::train::{forward, gradients, pretrain, squared_norm};

/// Passes over a source from which on it is learnt by heart (Muennighoff et al. 2023).
const MANY_EPOCHS: f64 = 4.0;

/// Reports the plan of a run.
///
/// # Errors
/// What is wrong with configuration, tokenizer or data.
pub async fn run(config: &TrainConfig, store: &Store, control: &Control) -> Result<()> {
    let config = pretrain::resolve(config);
    config.validate()?;
    let (compute, why) = Compute::open(config.device).await?;
    control.notice(why);
    let Some(shape) = pretrain::Shape::resolve(&config, false, store, control).await? else { return Ok(()) };
    let Some(shards) = pretrain::shards(&config, &shape.tokenizer, store, control).await? else { return Ok(()) };
    let tokens_per_step = config.tokens_per_step() as f64;
    let updates = mix_change::updates_per_source(&config.data_stages, &config.mix_changes, config.steps);
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
        sources.insert(name.clone(), SourcePlan { tokens, planned, epochs });
    }
    let memory_bytes = memory(&shape.model, &config, &compute);
    let peak_bytes = memory_bytes.values().sum();
    let tokens = u64::from(config.steps) * config.tokens_per_step();
    let step_secs = match shortage(&shape.model, &config, &compute) {
        Some(shortage) => {
            warnings.push(format!("{shortage}: lower --batch-size or --sequence-length"));
            0.0
        }
        None => measure(&shape.model, &config, &compute).await?,
    };
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
        suggestion: None,
    }));
    Ok(())
}

/// Peak memory of training by category, in bytes.
pub fn memory(shape: &LlamaConfig, config: &TrainConfig, compute: &Compute) -> BTreeMap<String, u64> {
    let weights = 4 * shape.parameters();
    let wide = |size: usize| size as u64;
    let (d, f, heads) = (wide(shape.hidden_size), wide(shape.intermediate_size), wide(shape.num_attention_heads));
    let (q, kv) = (heads * wide(shape.head_dim), wide(shape.num_key_value_heads) * wide(shape.head_dim));
    let t = wide(config.sequence_length);
    let tokens = wide(config.batch_size) * t;
    // What the backward pass keeps per token and layer: inputs of the norms and products, q, k, v, o, gate, up.
    let mut kept = 4 * d + 2 * q + 2 * kv + 3 * f + heads;
    if !compute.is_cpu() {
        // Composed of burn ops: parts of norms, rotations and gates, and the scores of every pair of tokens.
        kept += 4 * d + 2 * (q + kv) + 2 * f + 3 * heads * t;
    }
    let logits = (32u64 << 20).min(4 * tokens * shape.vocab_size as u64);
    let table = 4 * wide(shape.vocab_size) * d;
    let accumulated = if config.accumulation > 1 { weights } else { 0 };
    BTreeMap::from([
        ("weights".to_string(), weights),
        ("gradients".to_string(), weights + accumulated),
        ("optimizer".to_string(), 2 * weights),
        ("activations".to_string(), 4 * tokens * kept * wide(shape.num_hidden_layers)),
        ("logits and head".to_string(), logits * if compute.is_cpu() { 1 } else { 4 } + table),
    ])
}

/// What is missing where training in the machine's own memory needs more of it than is free.
pub fn shortage(shape: &LlamaConfig, config: &TrainConfig, compute: &Compute) -> Option<String> {
    let needed = memory(shape, config, compute).values().sum::<u64>();
    let free = platform::available_memory_bytes().filter(|free| compute.is_in_main_memory() && needed > *free)?;
    Some(format!("training needs about {} MiB of memory and {} MiB are free", needed >> 20, free >> 20))
}

/// Seconds of a step, from models of the same width with one and with two layers.
async fn measure(shape: &LlamaConfig, config: &TrainConfig, compute: &Compute) -> Result<f64> {
    let mixed = pretrain::mixed(config, compute)?;
    let (one, one_update) = measure_layers(1, shape, config, compute, mixed).await?;
    let (two, two_update) = measure_layers(2, shape, config, compute, mixed).await?;
    let layers = shape.num_hidden_layers.saturating_sub(1) as f64;
    let micro_batch = one + (two - one).max(0.0) * layers;
    let update = one_update + (two_update - one_update).max(0.0) * layers;
    Ok(micro_batch * config.accumulation as f64 + update)
}

/// Seconds of a micro-batch and of an update; the second of two runs counts.
async fn measure_layers(layers: usize, shape: &LlamaConfig, config: &TrainConfig, compute: &Compute, mixed: bool) -> Result<(f64, f64)> {
    let shape = LlamaConfig { num_hidden_layers: layers, ..shape.clone() };
    let mut model = Llama::random(&shape, compute, config.sequence_length, 1).with_half(mixed).trainable();
    let mut optimizer = Optimizer::new(&model);
    let batch = random_batch(config.batch_size, config.sequence_length, shape.vocab_size, 1);
    let mut times = (0.0, 0.0);
    for _ in 0..2 {
        let started = Instant::now();
        let losses = forward(&model, &batch, 1.0 / batch.target_tokens() as f64);
        let grads = gradients(&model, losses.scaled);
        read_f32(squared_norm(&grads)).await?;
        times.0 = started.elapsed().as_secs_f64();
        let started = Instant::now();
        optimizer.step(&mut model, grads, config, 1e-4, 1.0);
        read_f32(model.norm.weight.tensor.clone().inner()).await?;
        times.1 = started.elapsed().as_secs_f64();
    }
    Ok(times)
}
