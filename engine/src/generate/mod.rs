//! Text from a model: prompt → cache → one token after the other.

pub mod batch;
pub mod decode;
pub mod loaded;
pub mod sampler;
pub mod speech;
pub mod text_stream;

use web_time::Instant;

use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::device::{Compute, read_f32};
use crate::error::{Error, Result};
use crate::model::llama::ids;
use crate::model::load::{self, Keep};
use crate::model::{KvCache, Llama, LlamaConfig};
use crate::ops::attention::Mask;
use crate::protocol::{Event, GenerateRequest, Sampling};
use crate::store::Store;
use crate::text::tokenizer::Tokenizer;
use decode::{Decoder, MOST_STEPS, Standing};
pub use loaded::Loaded;
use speech::Speech;
use text_stream::TextStream;

/// Prompt tokens that go through the model at a time: bounds the memory of a long prompt.
const PREFILL_TOKENS: usize = 512;

/// Text is shown at least so often where tokens are drawn several at a time.
const SHOW_EVERY_SECS: f64 = 0.1;

/// Most alternatives that are told of a token.
const MOST_ALTERNATIVES: usize = 20;

/// When a sample ends.
#[derive(Debug, Clone)]
pub struct Limits<'a> {
    /// Most new tokens.
    pub max_new_tokens: usize,
    /// Strings that end it.
    pub stop: &'a [String],
    /// Tokens that end it.
    pub end: &'a [u32],
}

/// A finished sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// New text.
    pub text: String,
    /// New tokens, an end token included.
    pub tokens: Vec<u32>,
    /// `stop`, `length` or `cancelled`.
    pub finish: &'static str,
}

/// A sample on its way.
struct Written {
    /// Prompt and new tokens.
    all: Vec<u32>,
    prompt: usize,
    text: String,
    stream: TextStream,
    random: Random,
    finish: Option<&'static str>,
}

impl Written {
    fn new(prompt: &[u32], random: Random, limits: &Limits<'_>) -> Self {
        let finish = (limits.max_new_tokens == 0).then_some("length");
        let stream = TextStream::new(limits.stop.to_vec());
        Self { all: prompt.to_vec(), prompt: prompt.len(), text: String::new(), stream, random, finish }
    }

    fn tokens(&self) -> &[u32] {
        &self.all[self.prompt..]
    }

    /// Draws the next token; it, and the text that can be shown now.
    fn next(&mut self, logits: &[f32], tokenizer: &Tokenizer, sampling: &Sampling, limits: &Limits<'_>) -> Result<(u32, String)> {
        let id = sampler::draw(logits, sampling, &self.all, &mut self.random)?;
        Ok((id, self.take(id, tokenizer, limits)))
    }

    /// Appends a token; the text that can be shown now.
    fn take(&mut self, id: u32, tokenizer: &Tokenizer, limits: &Limits<'_>) -> String {
        self.all.push(id);
        if limits.end.contains(&id) {
            self.finish = Some("stop");
            return String::new();
        }
        let piece = self.stream.push(tokenizer.token_bytes(id));
        self.text.push_str(&piece.text);
        self.finish = match () {
            () if piece.stopped => Some("stop"),
            () if self.tokens().len() >= limits.max_new_tokens => Some("length"),
            () => None,
        };
        piece.text
    }

    /// The sample, and its last text, which was held back until now.
    fn end(self) -> (Generation, String) {
        let (rest, tokens) = (self.stream.finish(), self.all[self.prompt..].to_vec());
        (Generation { text: self.text + &rest, tokens, finish: self.finish.unwrap_or("cancelled") }, rest)
    }
}

/// Gets every new token with the logits it was drawn from.
pub type OnToken<'a> = &'a mut dyn FnMut(u32, &[f32]);

/// Continues `prompt`; returns the sample with the seconds until its first token and those for the others. With
/// `on_token` the host draws the tokens; `on_text` gets whole characters as they come.
///
/// # Errors
/// [`Error::Context`] where prompt and new tokens do not fit the model's context; an empty prompt of a
/// model without a beginning-of-text token.
pub async fn generate(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    sampling: &Sampling,
    limits: &Limits<'_>,
    random: Random,
    control: &Control,
    mut on_token: Option<OnToken<'_>>,
    mut on_text: impl FnMut(&str),
) -> Result<(Generation, [f64; 2])> {
    if prompt.is_empty() {
        return Err(Error::Config("the prompt is empty: give at least one character".into()));
    }
    let capacity = prompt.len() + limits.max_new_tokens;
    if capacity > model.positions() {
        return Err(Error::Context { prompt: prompt.len(), context: model.positions() });
    }
    let started = Instant::now();
    let device = model.norm.weight.tensor.device();
    let mut cache = KvCache::new(&model.config, 1, capacity, &device);
    let mut new = prompt.to_vec(); // what the model has not seen yet
    let mut written = Written::new(prompt, random, limits);
    let mut prefill_secs = 0.0;
    let on_device = on_token.is_none() && decode::is_served(model);
    let mut decoder = None;
    let mut secs_per_token = f64::INFINITY;
    while written.finish.is_none() {
        if on_device && !written.tokens().is_empty() {
            if control.breathe().await == Flow::Stop {
                written.finish = Some("cancelled");
                break;
            }
            let decoder = match &mut decoder {
                Some(decoder) => decoder,
                empty => empty.insert(Decoder::new(model, &cache, sampling)?),
            };
            let steps =
                ((SHOW_EVERY_SECS / secs_per_token) as usize).clamp(1, MOST_STEPS).min(limits.max_new_tokens - written.tokens().len());
            let (from, standing) = (Instant::now(), Standing { tokens: &written.all, start: 0 });
            let drawn = decoder.write(&mut cache, &[standing], &mut [&mut written.random], steps).await?;
            secs_per_token = from.elapsed().as_secs_f64() / steps as f64;
            for id in drawn {
                on_text(&written.take(id, tokenizer, limits));
                if written.finish.is_some() {
                    break;
                }
            }
            continue;
        }
        let mut hidden = None;
        for piece in new.chunks(PREFILL_TOKENS) {
            if control.breathe().await == Flow::Stop {
                written.finish = Some("cancelled");
                break;
            }
            let (t, mask) = (piece.len(), Mask::causal(1, piece.len(), cache.len, &device));
            let piece = ids(piece.iter().map(|id| *id as i32).collect(), &device);
            let states = model.forward(piece, t, &mask, Some(&mut cache)); // [t, d]
            hidden = Some(states.narrow(0, t - 1, 1));
        }
        let Some(hidden) = hidden.filter(|_| written.finish.is_none()) else { break };
        let logits = read_f32(model.logits(hidden)).await?;
        let (id, piece) = written.next(&logits, tokenizer, sampling, limits)?;
        if written.tokens().len() == 1 {
            prefill_secs = started.elapsed().as_secs_f64();
        }
        if let Some(on_token) = &mut on_token {
            on_token(id, &logits);
        }
        on_text(&piece);
        new = vec![id];
    }
    let (generation, rest) = written.end();
    on_text(&rest);
    let decode_secs = started.elapsed().as_secs_f64() - prefill_secs;
    Ok((generation, [prefill_secs, decode_secs]))
}

/// Serves a request: loads the model, unless it is the one that is `loaded`, and streams every sample of every prompt.
///
/// # Errors
/// What is wrong with the request, the folder or the device.
pub async fn run(request: &GenerateRequest, loaded: &Loaded, store: &Store, control: &Control) -> Result<()> {
    sampler::validate(&request.sampling)?;
    if request.prompts.is_empty() && request.messages.is_empty() {
        return Err(Error::Config("no prompt: give --prompt TEXT or --prompt-file FILE".into()));
    }
    for (flag, value) in [("max-new-tokens", request.max_new_tokens), ("num-samples", request.num_samples)] {
        if value == 0 || value > 1_000_000 {
            return Err(Error::Config(format!("--{flag} {value}: must lie between 1 and 1000000")));
        }
    }
    if request.alternatives > MOST_ALTERNATIVES {
        return Err(Error::Config(format!("--alternatives {}: must lie between 0 and {MOST_ALTERNATIVES}", request.alternatives)));
    }
    let template = speech::template_of(store, &request.adapters).await;
    let speech = Speech::load(store, &request.model, template.as_deref(), request.date.as_deref()).await?;
    if template.is_some() && request.messages.is_empty() {
        control.notice("the prompt is taken as it is; `chat` asks by the chat template that the adapter carries");
    }
    let prompts: Vec<Vec<u32>> = match request.messages.as_slice() {
        [] => request.prompts.iter().map(|prompt| prompt_ids(&speech.tokenizer, &speech.shape, prompt)).collect(),
        messages => vec![speech.prompt(messages)?],
    };
    let Speech { tokenizer, shape: config, stops: end, .. } = speech;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let context = config.max_position_embeddings;
    if longest >= context {
        return Err(Error::Context { prompt: longest, context });
    }
    let positions = (longest + request.max_new_tokens).min(context);
    let (compute, why) = Compute::open(request.device).await?;
    let model = loaded.model(request, &config, &compute, why, positions, store, control).await?;
    for (prompt, prompt_ids) in prompts.iter().enumerate() {
        let max_new_tokens = request.max_new_tokens.min(context - prompt_ids.len());
        if max_new_tokens < request.max_new_tokens && request.messages.is_empty() {
            control.notice(format!("--max-new-tokens: the context of {context} tokens has room for {max_new_tokens} after the prompt"));
        }
        let limits = Limits { max_new_tokens, stop: &request.stop, end: &end };
        for sample in 0..request.num_samples {
            let stream = (prompt * request.num_samples + sample) as u64;
            let random = Random::stream(request.sampling.seed, stream);
            let text_of = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
            let mut tell = |id: u32, logits: &[f32]| {
                let (probability, likeliest) = sampler::likeliest(logits, id, request.alternatives);
                let alternatives = likeliest.into_iter().map(|(id, probability)| (text_of(id), probability)).collect();
                control.emit(Event::Token { prompt, sample, text: text_of(id), probability, alternatives });
            };
            let on_token = (request.alternatives > 0).then_some(&mut tell as OnToken<'_>);
            let on_text = |text: &str| {
                if !text.is_empty() {
                    control.emit(Event::Text { prompt, sample, text: text.into() });
                }
            };
            let (done, [prefill_secs, decode_secs]) =
                generate(&model, &tokenizer, prompt_ids, &request.sampling, &limits, random, control, on_token, on_text).await?;
            let cancelled = done.finish == "cancelled";
            control.emit(Event::Generated {
                prompt,
                sample,
                text: done.text,
                prompt_tokens: prompt_ids.len(),
                tokens: done.tokens,
                finish: done.finish.into(),
                prefill_secs,
                decode_secs,
            });
            if cancelled {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Loads a Hugging Face folder onto a device for sequences of up to `positions` tokens, to generate from or score with.
///
/// # Errors
/// Missing, misshapen or non-finite tensors, by name.
pub async fn load(store: &Store, folder: &str, config: &LlamaConfig, compute: &Compute, positions: usize) -> Result<Llama> {
    load::load(store, folder, config, compute, positions, Keep::Stored, |_, _| ()).await
}

/// As [`load()`], every weight as f32: for training.
///
/// # Errors
/// As [`load()`].
pub async fn load_f32(store: &Store, folder: &str, config: &LlamaConfig, compute: &Compute, positions: usize) -> Result<Llama> {
    load::load(store, folder, config, compute, positions, Keep::F32, |_, _| ()).await
}

/// Refuses a tokenizer whose ids the model does not have.
///
/// # Errors
/// [`Error::Tokenizer`] with both sizes.
pub fn fits(tokenizer: &Tokenizer, config: &LlamaConfig) -> Result<()> {
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(Error::Tokenizer(format!(
            "the tokenizer has {} ids but the model's vocabulary is {}; use the tokenizer that belongs to the model",
            tokenizer.vocab_size(),
            config.vocab_size
        )));
    }
    Ok(())
}

/// Tokens that end a text: the configuration's, else the tokenizer's end-of-text.
pub fn end_tokens(tokenizer: &Tokenizer, config: &LlamaConfig) -> Vec<u32> {
    if config.eos_token_id.is_empty() { tokenizer.end_of_text().into_iter().collect() } else { config.eos_token_id.clone() }
}

/// Tokens of a prompt; an empty one becomes the beginning-of-text token where the model has one.
pub fn prompt_ids(tokenizer: &Tokenizer, config: &LlamaConfig, prompt: &str) -> Vec<u32> {
    let ids = tokenizer.encode_prompt(prompt);
    if ids.is_empty() { config.bos_token_id.or(tokenizer.end_of_text()).into_iter().collect() } else { ids }
}
