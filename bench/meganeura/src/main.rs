//! Times meganeura on a Llama: a training step of one sequence, and single tokens from a full cache.
//!
//! Called by `bench/compare.py`, which writes the weights. Prints one JSON line; the first repetition, which makes the
//! pipelines, is not counted.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use meganeura::data::safetensors::SafeTensorsModel;
use meganeura::models::smollm2::{self, SmolLM2Config};
use meganeura::{Graph, Mode, Session, SessionConfig};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the flags ask for.
struct Work {
    weights: PathBuf,
    config: SmolLM2Config,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    context: usize,
    decode: usize,
    repeats: usize,
    tune: bool,
}

/// The text behind a flag.
fn flag(name: &str) -> Result<String> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    Ok(args.nth(1).ok_or(format!("{name} is missing"))?)
}

/// The numbers behind a flag, with commas between them.
fn numbers(name: &str) -> Result<Vec<u32>> {
    flag(name)?.split(',').map(|number| Ok(number.parse()?)).collect()
}

impl Work {
    fn from_flags() -> Result<Self> {
        let [hidden, intermediate, layers, heads, kv_heads, vocab, theta] = numbers("--shape")?[..] else {
            return Err("--shape: hidden, intermediate, layers, heads, kv heads, vocabulary, theta".into());
        };
        Ok(Self {
            weights: PathBuf::from(flag("--weights")?).join("model.safetensors"),
            config: SmolLM2Config {
                vocab_size: vocab as usize,
                hidden_size: hidden as usize,
                num_hidden_layers: layers as usize,
                num_attention_heads: heads,
                num_key_value_heads: kv_heads,
                intermediate_size: intermediate as usize,
                rms_norm_eps: 1e-5,
                rope_theta: theta as f32,
                tie_word_embeddings: true,
            },
            inputs: numbers("--inputs")?,
            targets: numbers("--targets")?,
            context: numbers("--context")?[0] as usize,
            decode: numbers("--decode")?[0] as usize,
            repeats: numbers("--repeats")?[0] as usize,
            tune: std::env::args().any(|arg| arg == "--tune"),
        })
    }

    /// A graph made ready to run, with the weights in it; matrices lie as [in, out] there.
    fn session(&self, graph: &Graph, mode: Mode) -> Result<Session> {
        let mut session = meganeura::build(graph, SessionConfig { mode, tune: self.tune, ..SessionConfig::default() }).0;
        let weights = SafeTensorsModel::load(self.weights.clone())?;
        for name in smollm2::weight_names(&self.config) {
            let values = match name.ends_with("_proj.weight") {
                true => weights.tensor_f32_auto_transposed(&name)?,
                false => weights.tensor_f32_auto(&name)?,
            };
            session.set_parameter(&name, &values);
        }
        Ok(session)
    }

    /// Seconds of every step with AdamW, and the loss before each update.
    fn training(&self) -> Result<(Vec<f64>, Vec<f32>)> {
        let mut session = self.session(&smollm2::build_training_graph(&self.config, self.inputs.len()), Mode::Training)?;
        let mut labels = vec![0.0; self.targets.len() * self.config.vocab_size];
        for (row, target) in labels.chunks_mut(self.config.vocab_size).zip(&self.targets) {
            row[*target as usize] = 1.0;
        }
        session.set_input_u32("token_ids", &self.inputs);
        session.set_input("labels", &labels);
        session.set_adam(1e-4, 0.9, 0.95, 1e-8);
        session.set_weight_decay(0.1);
        let (mut secs, mut losses) = (Vec::new(), Vec::new());
        for _ in 0..=self.repeats {
            let started = Instant::now();
            session.step();
            session.wait();
            secs.push(started.elapsed().as_secs_f64());
            losses.push(session.read_loss());
        }
        Ok((secs.split_off(1), losses))
    }

    /// Seconds of every round of single tokens behind a context (whose cache stays zero: the time does not depend on it),
    /// and the mean loss of the batch's first tokens, decoded from an empty cache.
    fn decoding(&self) -> Result<(Vec<f64>, f64)> {
        let vocab = self.config.vocab_size;
        let mut graph = Graph::new();
        let (logits, _, _) = smollm2::build_decode_graph(&mut graph, &self.config, self.context + self.decode);
        graph.set_outputs(vec![logits]);
        let mut session = self.session(&graph, Mode::Inference)?;
        let caches: Vec<String> =
            session.param_names().iter().filter(|name| name.starts_with("kv_cache")).map(|name| (*name).into()).collect();
        for name in caches {
            let size = session.param_size(&name).ok_or("a cache without a size")?;
            session.set_parameter(&name, &vec![0.0; size]);
        }
        let mut next = |token: u32, position: usize| {
            session.set_input_u32("token_ids", &[token]);
            session.set_input_u32("kv_pos", &[position as u32]);
            session.step();
            session.wait();
            session.read_output(vocab)
        };
        let checked = self.inputs.len().min(16);
        let mut loss = 0.0;
        for position in 0..checked {
            loss += negative_log_likelihood(&next(self.inputs[position], position), self.targets[position]);
        }
        let mut secs = Vec::new();
        for _ in 0..self.repeats {
            let (started, mut token) = (Instant::now(), 1);
            for position in self.context..self.context + self.decode {
                let logits = next(token, position);
                token = (0..vocab).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32;
            }
            secs.push(started.elapsed().as_secs_f64());
        }
        Ok((secs, loss / checked as f64))
    }
}

fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let most = logits.iter().fold(f32::MIN, |most, logit| most.max(*logit));
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    sum.ln() + f64::from(most - logits[target as usize])
}

/// `"name": {"secs", "tokens_per_sec"}` of the median.
fn phase(name: &str, mut secs: Vec<f64>, tokens: usize) -> String {
    secs.sort_by(f64::total_cmp);
    let secs = secs[secs.len() / 2];
    format!(r#""{name}": {{"secs": {secs:.6}, "tokens_per_sec": {:.3}}}"#, tokens as f64 / secs)
}

/// Peak resident memory, where the system tells it.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn main() -> Result<()> {
    let work = Work::from_flags()?;
    let mut phases = Vec::new();
    let (secs, losses) = work.training()?;
    let train_peak = peak_rss_bytes().unwrap_or(0);
    phases.push(phase("step", secs, work.inputs.len()));
    let mut loss_of_decode = None;
    if work.decode > 0 {
        let (secs, loss) = work.decoding()?;
        phases.push(phase("decode", secs, work.decode));
        loss_of_decode = Some(loss);
    }
    let decoded = loss_of_decode.map_or("null".into(), |loss| format!("{loss:.6}"));
    println!(
        r#"{{"event": "bench_meganeura", "phases": {{{}}}, "losses": {losses:?}, "loss_of_first": {decoded}, "train_peak_rss_bytes": {train_peak}}}"#,
        phases.join(", ")
    );
    Ok(())
}
