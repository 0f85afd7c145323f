//! How fast a device is: a training step by phase, prefill, decode. Random weights, random tokens.

use web_time::Instant;

use crate::config::TrainConfig;
use crate::config::finetune::{FinetuneConfig, Method};
use crate::control::{Control, Flow};
use crate::data::batch::Batch;
use crate::data::random::Random;
use crate::device::read_f32;
use crate::device::{self, Compute};
use crate::error::{Error, Result};
use crate::generate::decode::{self, Decoder, MOST_STEPS, Standing};
use crate::generate::sampler;
use crate::model::llama::ids;
use crate::model::load::Keep;
use crate::model::{Adapter, KvCache, Llama, hub, load};
use crate::ops::attention::Mask;
use crate::ops::linear_f16;
use crate::plan;
use crate::platform;
use crate::protocol::{BenchRequest, Event, Sampling};
use crate::store::Store;
use crate::train::optimizer::Optimizer;
use crate::train::{finetune, forward, losses_and_gradients, pretrain, squared_norm};

/// Steps that are not counted: after them the device has all the memory that a step takes.
const WARM_UP: usize = 2;

/// Measures and reports; the first repetition of every phase is not counted, of the step the first two.
///
/// # Errors
/// An unknown preset, sizes out of range, a failed device.
pub async fn run(request: &BenchRequest, store: &Store, control: &Control) -> Result<()> {
    let shape = hub::shape(store, &request.preset).await?;
    let sizes = [("batch", request.batch), ("seq", request.seq), ("repeats", request.repeats), ("rows", request.rows)];
    if let Some((flag, value)) = sizes.into_iter().find(|(_, value)| !(1..=1 << 20).contains(value)) {
        return Err(Error::Config(format!("--{flag} {value}: must lie between 1 and {}", 1 << 20)));
    }
    let context = shape.max_position_embeddings;
    let decode = request.decode.unwrap_or(64);
    let prefill = request.prefill.unwrap_or_else(|| 512.min(context.saturating_sub(decode + 1)));
    let positions = request.seq.max(prefill.max(BEFORE).saturating_add(decode).saturating_add(1));
    if positions > context {
        return Err(Error::Config(format!(
            "{} has a context of {context} tokens: lower --seq {} to that, and --prefill {prefill} and --decode {decode} to less than that together",
            request.preset, request.seq
        )));
    }
    let (compute, why) = Compute::open(request.device).await?;
    control.notice(why);
    let config = TrainConfig {
        precision: request.precision,
        batch_size: request.batch,
        accumulation: 1,
        sequence_length: request.seq,
        gradient_checkpointing: request.gradient_checkpointing,
        ..TrainConfig::default()
    };
    let tuning = FinetuneConfig { method: request.method, ..FinetuneConfig::default() };
    let adapter = finetune::adapter(&tuning);
    let trained = plan::finetune::trained(&tuning, adapter.parameters(&shape)?, &compute);
    if let Some(detail) = plan::shortage(&shape, &config, &compute, trained) {
        return Err(Error::OutOfMemory { device: compute.info.name, detail });
    }
    let half = request.method == Method::Full && pretrain::mixed(config.precision, &compute)?;
    let mut plain = load::random(&shape, &compute, positions, 1, finetune::keep(&tuning, &compute))?.with_half(half);
    if request.method != Method::Full {
        plain = plain.clone().with_adapter(Some(&Adapter::begin(&adapter, &plain, 1)?))?;
    }
    let report = Report { planned_bytes: plan::memory(&shape, &config, &compute, trained).values().sum(), control };
    if !training(request, &plain, &config, &report).await? {
        return Ok(());
    }
    let lengths = [prefill, decode, request.repeats];
    inference(&plain, &compute, lengths, "", &report).await?;
    let sizes = [request.rows, decode, request.repeats];
    side_by_side(&plain, &compute, sizes, "", &report).await?;
    drop(plain);
    if request.method == Method::Full && prefill + decode > 0 && linear_f16::serves(&compute.device, shape.hidden_size) {
        let halves = load::random(&shape, &compute, positions, 1, Keep::Stored)?;
        inference(&halves, &compute, lengths, ", f16 weights", &report).await?;
        side_by_side(&halves, &compute, sizes, ", f16 weights", &report).await?;
    }
    Ok(())
}

async fn training(request: &BenchRequest, plain: &Llama, config: &TrainConfig, report: &Report<'_>) -> Result<bool> {
    let control = report.control;
    let mut model = plain.trainable();
    let mut optimizer = Optimizer::new(&model, config.optim);
    let batch = random_batch(request.batch, request.seq, plain.config.vocab_size, 2);
    let mut phases = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let mut losses = Vec::new();
    for repeat in 0..WARM_UP + request.repeats {
        if control.breathe().await == Flow::Stop {
            return Ok(false);
        }
        control.progress("training step", repeat as u64, (WARM_UP + request.repeats) as u64, "steps");
        let started = Instant::now();
        let scale = 1.0 / batch.target_tokens() as f64;
        let (nll, forward_secs, grads) = if config.gradient_checkpointing {
            let (nll, grads) = losses_and_gradients(&model, &batch, scale, true);
            (read_f32(nll).await?, 0.0, grads) // there and back is one thing
        } else {
            let forward = forward(&model, &batch, scale);
            let nll = read_f32(forward.losses.nll.clone()).await?;
            (nll, started.elapsed().as_secs_f64(), forward.gradients(&model))
        };
        losses.push(nll.into_iter().map(f64::from).sum::<f64>() * scale);
        read_f32(squared_norm(&grads)).await?;
        let backward_secs = started.elapsed().as_secs_f64() - forward_secs;
        optimizer.step(&mut model, grads, config, 1e-4, 1.0).await?;
        read_f32(model.trained()[0].tensor.clone().inner().slice([0..1, 0..1])).await?;
        let total = started.elapsed().as_secs_f64();
        if repeat >= WARM_UP {
            for (phase, secs) in phases.iter_mut().zip([total, forward_secs, backward_secs, total - forward_secs - backward_secs]) {
                phase.push(secs);
            }
        }
    }
    for (phase, secs) in ["step", "forward", "backward", "optimizer"].into_iter().zip(phases) {
        if secs.iter().any(|secs| *secs > 0.0) {
            let losses = if phase == "step" { losses.clone() } else { Vec::new() };
            report.trained(phase, secs, request.batch * request.seq, losses);
        }
    }
    Ok(true)
}

/// Reads a prompt and decodes behind it; `what` stands behind the names of both phases.
async fn inference(
    model: &Llama,
    compute: &Compute,
    [prompt_len, decode_len, repeats]: [usize; 3],
    what: &str,
    report: &Report<'_>,
) -> Result<()> {
    let control = report.control;
    let mut random = Random::new(3);
    let mut tokens = |n: usize| (0..n).map(|_| random.below(model.config.vocab_size as u64) as i32).collect::<Vec<_>>();
    let (prompt, device) = (tokens(prompt_len.max(1)), &compute.device);
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for repeat in 0..=repeats {
        if control.breathe().await == Flow::Stop || prompt_len + decode_len == 0 {
            return Ok(());
        }
        control.progress("prefill and decode", repeat as u64, repeats as u64 + 1, "rounds");
        let mut cache = KvCache::new(&model.config, 1, prompt.len() + decode_len, device);
        let started = Instant::now();
        let mask = Mask::causal(1, prompt.len(), 0, device);
        let hidden = model.forward(ids(prompt.clone(), device), prompt.len(), &mask, Some(&mut cache));
        let mut logits = read_f32(model.logits(hidden.narrow(0, prompt.len() - 1, 1))).await?;
        let prefill_secs = started.elapsed().as_secs_f64();
        let mut rest = decode_len;
        if decode::is_served(model) {
            let mut decoder = Decoder::new(model, &cache, &greedy())?;
            let mut tokens = vec![sampler::argmax(&logits)];
            while rest > 0 {
                let standing = Standing { tokens: &tokens, start: 0 };
                tokens = decoder.write(&mut cache, &[standing], &mut [], rest.min(MOST_STEPS)).await?;
                rest -= tokens.len();
            }
        }
        for _ in 0..rest {
            let id = sampler::argmax(&logits) as i32;
            let mask = Mask::causal(1, 1, cache.len, device);
            let hidden = model.forward(ids(vec![id], device), 1, &mask, Some(&mut cache));
            logits = read_f32(model.logits(hidden)).await?;
        }
        if repeat > 0 {
            prefill.push(prefill_secs);
            decode.push(started.elapsed().as_secs_f64() - prefill_secs);
        }
    }
    if prompt_len > 0 {
        report.phase(&format!("prefill{what}"), prefill, prompt_len);
    }
    if decode_len > 0 {
        report.phase(&format!("decode{what}"), decode, decode_len);
    }
    Ok(())
}

/// Decoding that draws nothing.
fn greedy() -> Sampling {
    Sampling { greedy: true, ..Sampling::default() }
}

/// Tokens that every sequence has before others are decoded side by side.
const BEFORE: usize = 16;

/// Decodes as [`inference`] does, several sequences at a time.
async fn side_by_side(
    model: &Llama,
    compute: &Compute,
    [rows, tokens, repeats]: [usize; 3],
    what: &str,
    report: &Report<'_>,
) -> Result<()> {
    if rows < 2 || tokens == 0 {
        return Ok(());
    }
    let (device, v) = (&compute.device, model.config.vocab_size);
    let mut random = Random::new(4);
    let before: Vec<i32> = (0..rows * BEFORE).map(|_| random.below(v as u64) as i32).collect();
    let mut all = Vec::new();
    for repeat in 0..=repeats {
        if report.control.breathe().await == Flow::Stop {
            return Ok(());
        }
        report.control.progress("decode side by side", repeat as u64, repeats as u64 + 1, "rounds");
        let mut cache = KvCache::new(&model.config, rows, BEFORE + tokens, device);
        let hidden = model.forward(ids(before.clone(), device), BEFORE, &Mask::causal(rows, BEFORE, 0, device), Some(&mut cache));
        let d = hidden.dims()[1];
        let last = hidden.reshape([rows, BEFORE, d]).narrow(1, BEFORE - 1, 1).reshape([rows, d]);
        let mut logits = read_f32(model.logits(last)).await?;
        let started = Instant::now();
        let mut rest = tokens;
        if decode::is_served(model) {
            let mut decoder = Decoder::new(model, &cache, &greedy())?;
            let mut newest: Vec<u32> = logits.chunks(v).map(sampler::argmax).collect();
            while rest > 0 {
                let standing: Vec<Standing> = newest.chunks(1).map(|tokens| Standing { tokens, start: 0 }).collect();
                let steps = rest.min(MOST_STEPS);
                let drawn = decoder.write(&mut cache, &standing, &mut [], steps).await?;
                newest = drawn[drawn.len() - rows..].to_vec();
                rest -= steps;
            }
        }
        for _ in 0..rest {
            let next = logits.chunks(v).map(|logits| sampler::argmax(logits) as i32).collect();
            let mask = Mask::causal(rows, 1, cache.len, device);
            logits = read_f32(model.logits(model.forward(ids(next, device), 1, &mask, Some(&mut cache)))).await?;
        }
        if repeat > 0 {
            all.push(started.elapsed().as_secs_f64());
        }
    }
    report.phase(&format!("decode, {rows} rows{what}"), all, rows * tokens);
    Ok(())
}

/// A batch of random tokens without held-back targets.
pub fn random_batch(rows: usize, len: usize, vocab_size: usize, seed: u64) -> Batch {
    let mut random = Random::new(seed);
    let mut tokens = || (0..rows * len).map(|_| random.below(vocab_size as u64) as i32).collect::<Vec<_>>();
    Batch { rows, len, inputs: tokens(), targets: tokens(), starts: vec![0; rows * len], sources: vec![0; rows] }
}

/// Where measurements go.
struct Report<'a> {
    planned_bytes: u64,
    control: &'a Control,
}

impl Report<'_> {
    fn phase(&self, phase: &str, secs: Vec<f64>, tokens: usize) {
        self.trained(phase, secs, tokens, Vec::new());
    }

    fn trained(&self, phase: &str, mut secs: Vec<f64>, tokens: usize, losses: Vec<f64>) {
        secs.sort_by(f64::total_cmp);
        let secs = secs[secs.len() / 2];
        self.control.emit(Event::Bench {
            phase: phase.into(),
            secs,
            tokens_per_sec: tokens as f64 / secs,
            peak_rss_bytes: platform::peak_rss_bytes(),
            device_bytes: device::memory().device_reserved_bytes,
            planned_bytes: self.planned_bytes,
            losses,
        });
    }
}
