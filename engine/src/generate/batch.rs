//! Many samples side by side: all end in the same column of one cache, begin where they are long enough for, and count their
//! positions from there. A sample that ends leaves, and the next one takes its row.
//!
//! Yu et al. 2022 (iteration-level scheduling), <https://www.usenix.org/conference/osdi22/presentation/yu>

use rayon::prelude::*;

use super::decode::{self, Decoder, Standing};
use super::{Generation, Limits, PREFILL_TOKENS, Written};
use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::device::{Compute, read_f32};
use crate::error::{Error, Result};
use crate::model::llama::ids;
use crate::model::{KvCache, Llama, LlamaConfig};
use crate::ops::attention::Mask;
use crate::protocol::Sampling;
use crate::text::tokenizer::Tokenizer;

/// Columns of the cache beyond the longest sample: so many tokens are written before it has to be tidied up.
const SLACK: usize = 64;

/// Tokens of every sample that a device writes before the host looks for those that have ended.
const STEPS: usize = 4;

/// Most samples side by side where memory alone limits them: more would hardly be faster.
pub const MOST_ROWS: usize = 256;

/// Share of the free memory that caches and logits may take.
const MEMORY_SHARE: f64 = 0.25;

/// Memory for caches and logits where nobody knows what is free.
const UNKNOWN_MEMORY_BYTES: u64 = 2 << 30;

/// A prompt that is continued one or several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// How often it is continued.
    pub samples: usize,
    /// Stream of random numbers of its first sample; the others have the next ones. What is drawn does not depend on
    /// anything else in the batch.
    pub stream: u64,
}

/// Samples side by side for which there is memory; `longest` is the number of tokens of prompt and sample together.
pub fn rows(shape: &LlamaConfig, longest: usize, compute: &Compute) -> usize {
    let memory = compute.free_bytes().map_or(UNKNOWN_MEMORY_BYTES, |free| (free as f64 * MEMORY_SHARE) as u64);
    rows_within(shape, longest, memory).min(MOST_ROWS)
}

/// Samples side by side whose caches and logits fit into so many bytes, at least one.
pub fn rows_within(shape: &LlamaConfig, longest: usize, bytes: u64) -> usize {
    // The logits, what is read of them and a sorted copy; the activations of a layer are less.
    let row = KvCache::row_bytes(shape, longest + SLACK) + 16 * shape.vocab_size as u64;
    (bytes / row.max(1)).max(1) as usize
}

/// Continues all prompts, at most `rows` samples at a time; `on_done` gets every sample, with the places of its prompt and
/// of the sample, as soon as it is complete. Every sample is the one that its prompt gets alone, up to the rounding of
/// products of other sizes.
///
/// # Errors
/// [`Error::Context`] where a prompt and its tokens do not fit the model's context; an empty prompt.
pub async fn generate(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    sampling: &Sampling,
    limits: &Limits<'_>,
    rows: usize,
    control: &Control,
    mut on_done: impl FnMut(usize, usize, Generation) -> Result<()>,
) -> Result<Flow> {
    let Some(longest) = prompts.iter().map(|prompt| prompt.ids.len()).max() else { return Ok(Flow::Continue) };
    if prompts.iter().any(|prompt| prompt.ids.is_empty()) {
        return Err(Error::Config("a prompt is empty: give at least one character".into()));
    }
    if limits.max_new_tokens == 0 {
        return Err(Error::Config("--max-new-tokens 0: give 1 or more".into()));
    }
    if longest + limits.max_new_tokens > model.positions() {
        return Err(Error::Context { prompt: longest, context: model.positions() });
    }
    let mut waiting = prompts.iter().enumerate().flat_map(|(place, prompt)| (0..prompt.samples).map(move |sample| (place, sample)));
    let mut next = waiting.next();
    let total: usize = prompts.iter().map(|prompt| prompt.samples).sum();
    let mut batch = Batch::new(model, rows.clamp(1, total.max(1)), longest, limits.max_new_tokens);
    while next.is_some() || batch.active() > 0 {
        if control.breathe().await == Flow::Stop {
            return Ok(Flow::Stop);
        }
        // New samples come several at a time: what a prompt costs is shared.
        if next.is_some() && batch.free() * 4 >= batch.rows.len() {
            let mut coming = Vec::new();
            while let Some((place, sample)) = next.filter(|(place, _)| batch.takes(&coming, prompts, *place)) {
                coming.push((place, sample));
                next = waiting.next();
            }
            let logits = batch.enter(&coming, prompts, sampling, limits, control).await?;
            let Some(logits) = logits else { return Ok(Flow::Stop) };
            batch.draw(&logits, true, tokenizer, sampling, limits)?;
        } else {
            if next.is_none() && batch.active() * 4 <= batch.rows.len() * 3 {
                batch.shrink();
            }
            if decode::is_served(model) {
                batch.write(tokenizer, sampling, limits).await?;
            } else {
                let logits = batch.step().await?;
                batch.draw(&logits, false, tokenizer, sampling, limits)?;
            }
        }
        for (prompt, sample, generation) in batch.leave() {
            on_done(prompt, sample, generation)?;
        }
    }
    Ok(Flow::Continue)
}

/// A sample in a row of the batch.
struct Row {
    prompt: usize,
    sample: usize,
    /// Column of the cache in which its prompt begins.
    start: usize,
    /// Whether it has entered and no token of it was drawn yet.
    fresh: bool,
    written: Written,
}

/// The samples that are being written.
struct Batch<'a> {
    model: &'a Llama,
    cache: KvCache,
    /// Tokens of the longest prompt: the cache never has fewer columns filled.
    longest: usize,
    /// By row of the cache; a row may be empty.
    rows: Vec<Option<Row>>,
    /// Writes into the cache as it is; gone where anything else changes it.
    decoder: Option<Decoder>,
}

impl<'a> Batch<'a> {
    fn new(model: &'a Llama, rows: usize, longest: usize, new_tokens: usize) -> Self {
        let device = model.norm.weight.tensor.device();
        let mut cache = KvCache::new(&model.config, rows, longest + new_tokens + SLACK, &device);
        cache.len = longest;
        Self { model, cache, longest, rows: (0..rows).map(|_| None).collect(), decoder: None }
    }

    fn active(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    fn free(&self) -> usize {
        self.rows.len() - self.active()
    }

    /// Whether one more sample can enter beside those that are coming.
    fn takes(&self, coming: &[(usize, usize)], prompts: &[Prompt], place: usize) -> bool {
        let longest = coming.iter().map(|(place, _)| *place).chain([place]).map(|place| prompts[place].ids.len()).max().unwrap_or(0);
        let different = 1 + coming.chunk_by(|a, b| a.0 == b.0).filter(|group| group[0].0 != place).count();
        coming.len() < self.free() && (coming.is_empty() || different * longest <= 4 * PREFILL_TOKENS)
    }

    /// Reads the prompts of new samples, every one once, into free rows; logits of their next tokens, `[coming, v]`, in their
    /// order. `None` where it was stopped.
    async fn enter(
        &mut self,
        coming: &[(usize, usize)],
        prompts: &[Prompt],
        sampling: &Sampling,
        limits: &Limits<'_>,
        control: &Control,
    ) -> Result<Option<Vec<f32>>> {
        self.decoder = None;
        if self.active() == 0 {
            self.cache.len = self.longest;
        }
        let device = self.model.norm.weight.tensor.device();
        let groups: Vec<&[(usize, usize)]> = coming.chunk_by(|a, b| a.0 == b.0).collect();
        let tokens: Vec<&[u32]> = groups.iter().map(|group| prompts[group[0].0].ids.as_slice()).collect();
        let (b, t) = (tokens.len(), tokens.iter().map(|tokens| tokens.len()).max().unwrap_or(0));
        let mut read = KvCache::new(&self.model.config, b, t, &device);
        let mut hidden = None;
        while read.len < t {
            if control.breathe().await == Flow::Stop {
                return Ok(None);
            }
            let columns = read.len..(read.len + (4 * PREFILL_TOKENS / b).max(1)).min(t);
            let (mut new, mut positions, mut starts) = (Vec::new(), Vec::new(), Vec::new());
            for tokens in &tokens {
                let pads = t - tokens.len(); // on the left
                for column in columns.clone() {
                    new.push(column.checked_sub(pads).map_or(0, |at| tokens[at] as i32));
                    positions.push(column.saturating_sub(pads) as i32);
                    starts.push(pads.min(column) as i32);
                }
            }
            let (count, mask) = (columns.len(), Mask::new(b, columns.len(), read.len, &starts, &device));
            let states = self.model.forward_at(ids(new, &device), count, &positions, &mask, &mut read); // [b·count, d]
            let d = states.dims()[1];
            hidden = Some(states.reshape([b, count, d]).narrow(1, count - 1, 1).reshape([b, d]));
        }
        let logits = match hidden {
            Some(hidden) => read_f32(self.model.logits(hidden)).await?,
            None => Vec::new(),
        };
        let free = self.rows.iter().enumerate().filter(|(_, row)| row.is_none()).map(|(row, _)| row);
        let from = groups.iter().enumerate().flat_map(|(group, samples)| samples.iter().map(move |_| group));
        let places: Vec<(usize, usize)> = from.zip(free).collect();
        self.cache.replace(&read, &places);
        let v = self.model.config.vocab_size;
        let mut entered = Vec::with_capacity(coming.len() * v);
        for ((group, row), (prompt, sample)) in places.into_iter().zip(coming) {
            let Prompt { ids, stream, .. } = &prompts[*prompt];
            let written = Written::new(ids, Random::stream(sampling.seed, stream + *sample as u64), limits);
            let start = self.cache.len - ids.len();
            self.rows[row] = Some(Row { prompt: *prompt, sample: *sample, start, fresh: true, written });
            entered.extend_from_slice(&logits[group * v..][..v]);
        }
        Ok(Some(entered))
    }

    /// Makes room where the cache is full.
    fn tidy(&mut self) {
        if self.cache.len == self.cache.capacity() {
            self.decoder = None;
            let first = self.rows.iter().flatten().map(|row| row.start).min().unwrap_or(0);
            let columns = first.min(self.cache.len - self.longest);
            self.cache.drop_first(columns);
            self.rows.iter_mut().flatten().for_each(|row| row.start -= columns);
        }
    }

    /// Writes a few tokens of every sample on the device.
    async fn write(&mut self, tokenizer: &Tokenizer, sampling: &Sampling, limits: &Limits<'_>) -> Result<()> {
        self.tidy();
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            empty => empty.insert(Decoder::new(self.model, &self.cache, sampling)?),
        };
        let longest = self.rows.iter().flatten().map(|row| limits.max_new_tokens - row.written.tokens().len()).max().unwrap_or(1);
        let steps = STEPS.min(self.cache.capacity() - self.cache.len).min(longest);
        let mut unused: Vec<Random> = self.rows.iter().map(|_| Random::new(0)).collect(); // for rows that are empty
        let (mut standing, mut randoms) = (Vec::new(), Vec::new());
        for (row, unused) in self.rows.iter_mut().zip(&mut unused) {
            match row {
                Some(Row { start, written: Written { all, random, .. }, .. }) => {
                    standing.push(Standing { tokens: all, start: *start });
                    randoms.push(random);
                }
                None => {
                    standing.push(Standing { tokens: &[], start: self.cache.len });
                    randoms.push(unused);
                }
            }
        }
        let drawn = decoder.write(&mut self.cache, &standing, &mut randoms, steps).await?;
        for tokens in drawn.chunks(self.rows.len()) {
            for (row, token) in self.rows.iter_mut().zip(tokens) {
                if let Some(row) = row.as_mut().filter(|row| row.written.finish.is_none()) {
                    row.written.take(*token, tokenizer, limits);
                }
            }
        }
        Ok(())
    }

    /// Reads the last token of every sample; logits of the next ones, `[active, v]`.
    async fn step(&mut self) -> Result<Vec<f32>> {
        self.tidy();
        let device = self.model.norm.weight.tensor.device();
        let (b, column) = (self.rows.len(), self.cache.len);
        let of = |value: &dyn Fn(&Row) -> i32, empty: i32| -> Vec<i32> {
            self.rows.iter().map(|row| row.as_ref().map_or(empty, value)).collect()
        };
        let last = of(&|row| row.written.all.last().map_or(0, |id| *id as i32), 0);
        let positions = of(&|row| (column - row.start) as i32, 0);
        let mask = Mask::new(b, 1, column, &of(&|row| row.start as i32, column as i32), &device);
        let mut hidden = self.model.forward_at(ids(last, &device), 1, &positions, &mask, &mut self.cache); // [b, d]
        if self.active() < b {
            let active = self.rows.iter().enumerate().filter(|(_, row)| row.is_some()).map(|(row, _)| row as i32).collect();
            hidden = hidden.select(0, ids(active, &device));
        }
        read_f32(self.model.logits(hidden)).await
    }

    /// Draws a token for every sample, or for those alone that have just entered, from their logits.
    fn draw(&mut self, logits: &[f32], fresh: bool, tokenizer: &Tokenizer, sampling: &Sampling, limits: &Limits<'_>) -> Result<()> {
        let rows: Vec<&mut Row> = self.rows.iter_mut().flatten().filter(|row| !fresh || row.fresh).collect();
        rows.into_par_iter().zip(logits.par_chunks(self.model.config.vocab_size)).try_for_each(|(row, logits)| {
            row.fresh = false;
            row.written.next(logits, tokenizer, sampling, limits).map(drop)
        })
    }

    /// Takes the samples out that have ended.
    fn leave(&mut self) -> Vec<(usize, usize, Generation)> {
        let ended = self.rows.iter_mut().filter_map(|row| row.take_if(|row| row.written.finish.is_some()));
        ended.map(|row| (row.prompt, row.sample, row.written.end().0)).collect()
    }

    /// Drops the rows that are empty.
    fn shrink(&mut self) {
        self.decoder = None;
        let kept: Vec<usize> = self.rows.iter().enumerate().filter(|(_, row)| row.is_some()).map(|(row, _)| row).collect();
        self.cache.keep(&kept);
        self.rows.retain(Option::is_some);
    }
}
