//! What a fine-tuning run needs, before it starts.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Trained, lacks, measure, memory};
use crate::config::TrainConfig;
use crate::config::finetune::{FinetuneConfig, Method, Optim};
use crate::control::{Control, Flow};
use crate::data::mix_change::MANY_EPOCHS;
use crate::device::Compute;
use crate::error::Result;
use crate::model::LlamaConfig;
use crate::protocol::{Event, PlanReport, SourcePlan};
use crate::store::Store;
use crate::train::finetune::{self, keep, updates};
use crate::train::rows::{self, Prepared};

/// Shortest examples that are suggested.
const LEAST_LENGTH: usize = 64;

/// Reports the plan of a run that may take `budget_bytes` of memory, or what the machine has; `base` is the folder of the
/// model.
///
/// # Errors
/// What is wrong with configuration, model, rows or targets.
pub async fn run(config: &FinetuneConfig, base: &str, budget_bytes: Option<u64>, store: &Store, control: &Control) -> Result<()> {
    config.validate()?;
    let (compute, why) = Compute::open(config.device).await?;
    control.notice(why);
    let Some(Prepared { speech, examples, .. }) = rows::prepare(config, base, store, control).await? else { return Ok(()) };
    let shape = speech.shape;
    let adapter = finetune::adapter(config);
    let numbers = adapter.parameters(&shape)?;
    let longest = examples.longest();
    let plan = TrainConfig { sequence_length: longest, ..updates(config, &examples, &shape)? };
    let needed = |config: &FinetuneConfig, length: usize| needed(config, &plan, length, &shape, numbers, &compute);
    let memory_bytes = needed(config, longest);
    let peak_bytes: u64 = memory_bytes.values().sum();
    let most = budget_bytes.into_iter().chain(compute.free_bytes()).min();
    let fits = most.is_none_or(|most| peak_bytes <= most);
    let mut warnings: Vec<String> = Vec::new();
    let suggestion = match most.filter(|_| !fits) {
        Some(most) => {
            warnings.push(lacks(peak_bytes, most, if budget_bytes == Some(most) { "are allowed" } else { "are free" }));
            fitting(config, longest, most, |config, length| needed(config, length).values().sum())
        }
        None => None,
    };
    if !fits && suggestion.is_none() {
        warnings.push("not even one short example at a time over a base of 4 bits fits: take a smaller model".into());
    }
    let passes = f64::from(plan.steps) / f64::from(examples.updates_per_epoch());
    if passes > MANY_EPOCHS {
        warnings.push(format!("{passes:.1} passes over the rows; beyond about {MANY_EPOCHS} a model learns them by heart"));
    }
    let beside = (config.method != Method::Full).then(|| (&adapter, keep(config, &compute)));
    let step_secs = match fits {
        true => measure(&shape, &plan, &compute, beside, control).await?,
        false => 0.0,
    };
    if control.flow() == Flow::Stop {
        return Ok(()); // what was measured means nothing
    }
    let counts = examples.counts();
    let sources = examples.sizes().into_iter().map(|(kind, (tokens, _))| {
        let plan = SourcePlan { documents: counts[&kind], tokens, planned: tokens as f64 * passes, epochs: passes };
        (kind, plan)
    });
    let tokens = (examples.tokens() as f64 * passes) as u64;
    control.emit(Event::Plan(PlanReport {
        parameters: shape.parameters(),
        device: format!("{} ({})", compute.info.name, compute.info.backend),
        memory_bytes,
        peak_bytes,
        tokens,
        sources: sources.collect(),
        // Of a frozen weight the way back makes the input's gradient only: two thirds of the work.
        flops: shape.train_flops_per_token(longest) * tokens as f64 * if config.method == Method::Full { 1.0 } else { 2.0 / 3.0 },
        // Measured with examples as long as the longest; batches of shorter ones take less.
        expected_secs: step_secs * passes * examples.positions() as f64 / (longest * plan.batch_size * plan.accumulation).max(1) as f64,
        warnings,
        suggestion,
    }));
    Ok(())
}

/// What a configuration trains.
pub fn trained(config: &FinetuneConfig, adapter: u64, compute: &Compute) -> Trained {
    match config.method {
        Method::Full => Trained::All,
        Method::Lora | Method::Qlora => Trained::Adapter(adapter, keep(config, compute)),
    }
}

/// Memory by category where examples are `length` tokens long; `plan` has everything else.
fn needed(
    config: &FinetuneConfig,
    plan: &TrainConfig,
    length: usize,
    shape: &LlamaConfig,
    adapter: u64,
    compute: &Compute,
) -> BTreeMap<String, u64> {
    let plan = TrainConfig {
        batch_size: config.per_device_train_batch_size,
        accumulation: config.gradient_accumulation_steps,
        gradient_checkpointing: config.gradient_checkpointing,
        optim: config.optim,
        sequence_length: length,
        ..plan.clone()
    };
    memory(shape, &plan, compute, trained(config, adapter, compute))
}

/// What is missing where training in the machine's own memory needs more of it than is free, and what would help.
pub fn shortage(config: &FinetuneConfig, plan: &TrainConfig, shape: &LlamaConfig, adapter: u64, compute: &Compute) -> Option<String> {
    let needed = |config: &FinetuneConfig, length| needed(config, plan, length, shape, adapter, compute).values().sum::<u64>();
    let all = needed(config, plan.sequence_length);
    let free = compute.free_bytes().filter(|free| all > *free)?;
    let helps = match fitting(config, plan.sequence_length, free, needed) {
        Some(keys) => keys.iter().map(|(key, value)| format!("--{} {value}", key.replace('_', "-"))).collect::<Vec<_>>().join(" "),
        None => "only a smaller model".into(),
    };
    Some(format!("{}; this fits: {helps}", lacks(all, free, "are free")))
}

/// Keys that make a run need at most `most` bytes with as many examples in an update: layers computed again, fewer examples
/// in a micro-batch, moments of 8 bits, an adapter instead of all weights, a base of 4 bits, shorter examples. `None` where
/// nothing helps.
fn fitting(
    config: &FinetuneConfig,
    length: usize,
    most: u64,
    needed: impl Fn(&FinetuneConfig, usize) -> u64,
) -> Option<BTreeMap<String, Value>> {
    let mut changed = BTreeMap::new();
    let mut config = config.clone();
    let mut length = length;
    if !config.gradient_checkpointing {
        config.gradient_checkpointing = true;
        changed.insert("gradient_checkpointing".to_string(), json!(true));
    }
    let examples = config.per_device_train_batch_size * config.gradient_accumulation_steps;
    loop {
        for size in (1..=config.per_device_train_batch_size).rev().filter(|size| examples.is_multiple_of(*size)) {
            let smaller =
                FinetuneConfig { per_device_train_batch_size: size, gradient_accumulation_steps: examples / size, ..config.clone() };
            if needed(&smaller, length) <= most {
                if size != config.per_device_train_batch_size {
                    changed.insert("per_device_train_batch_size".into(), json!(size));
                    changed.insert("gradient_accumulation_steps".into(), json!(examples / size));
                }
                return Some(changed);
            }
        }
        if config.method == Method::Full && config.optim == Optim::Adamw {
            config.optim = Optim::Adamw8bit;
            changed.insert("optim".into(), json!("adamw_8bit"));
        } else if config.method != Method::Qlora {
            let (method, word) = if config.method == Method::Full { (Method::Lora, "lora") } else { (Method::Qlora, "qlora") };
            config.method = method;
            changed.insert("method".into(), json!(word));
        } else if length / 2 >= LEAST_LENGTH {
            length /= 2;
            changed.insert("max_seq_length".into(), json!(length));
        } else {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory as a run needs it: a base, and something for every token.
    fn needed(config: &FinetuneConfig, length: usize) -> u64 {
        let base = match (config.method, config.optim) {
            (Method::Full, Optim::Adamw) => 12_000,
            (Method::Full, _) => 8000,
            (Method::Lora, _) => 4000,
            (Method::Qlora, _) => 1000,
        };
        let token = if config.gradient_checkpointing { 1 } else { 10 };
        base + token * (config.per_device_train_batch_size * length) as u64
    }

    #[track_caller]
    fn check(most: u64, expect: Value) {
        check_method(Method::Lora, most, expect);
    }

    #[track_caller]
    fn check_method(method: Method, most: u64, expect: Value) {
        let config = FinetuneConfig {
            method,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 2,
            gradient_checkpointing: false,
            ..FinetuneConfig::default()
        };
        let found = fitting(&config, 256, most, needed);
        assert_eq!(serde_json::to_value(found).unwrap(), expect);
    }

    #[test]
    fn a_run_is_made_to_fit_by_what_costs_least() {
        let size = |size: usize| json!({"gradient_checkpointing": true, "per_device_train_batch_size": size, "gradient_accumulation_steps": 16 / size});
        check(4000 + 8 * 256, json!({"gradient_checkpointing": true}));
        check(4000 + 4 * 256, size(4));
        check(4000 + 256, size(1));
        check(1000 + 8 * 256, json!({"gradient_checkpointing": true, "method": "qlora"}));
        let short = json!({"gradient_checkpointing": true, "method": "qlora", "max_seq_length": 64, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16});
        check(1000 + 64, short);
        check(1000 + 63, Value::Null);
        let eight = json!({"gradient_checkpointing": true, "optim": "adamw_8bit"});
        check_method(Method::Full, 8000 + 8 * 256, eight);
        let adapter = json!({"gradient_checkpointing": true, "optim": "adamw_8bit", "method": "lora"});
        check_method(Method::Full, 4000 + 8 * 256, adapter);
    }
}
