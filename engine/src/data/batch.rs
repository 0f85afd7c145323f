//! Batches out of shards: which rows, in which order, and how to continue exactly.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data::curriculum::Curriculum;
use crate::data::document::Document;
use crate::data::mix_change::{MixChange, weights_at};
use crate::data::mixture::Mixture;
use crate::data::pack::{self, IGNORED, Row};
use crate::data::random::{Permutation, Random, mix};
use crate::data::shard::Shard;
use crate::data::source::SEPARATOR;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Tokens from which on a layer is no faster for taking more of them at once, and needs memory for each.
const TOGETHER: usize = 1024;

/// Sequences of `t` tokens that a layer takes together where memory counts.
pub fn together(t: usize) -> usize {
    (TOGETHER / t.max(1)).max(1)
}

/// Rows side by side: what one forward pass reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Positions in a row.
    pub len: usize,
    /// `rows × len` token ids.
    pub inputs: Vec<i32>,
    /// `rows × len` next ids; −100: ignored.
    pub targets: Vec<i32>,
    /// `rows × len` positions: where the document of each position begins in its row.
    pub starts: Vec<i32>,
    /// Which source each row is from.
    pub sources: Vec<usize>,
}

impl Batch {
    /// Joins rows of `len` positions with the sources they are from.
    pub fn from_rows(len: usize, rows: impl IntoIterator<Item = (usize, Row)>) -> Self {
        let mut batch = Self { rows: 0, len, inputs: Vec::new(), targets: Vec::new(), starts: Vec::new(), sources: Vec::new() };
        for (source, row) in rows {
            batch.rows += 1;
            batch.inputs.extend(row.tokens[..len].iter().map(|token| *token as i32));
            batch.targets.extend(&row.targets);
            batch.starts.extend(&row.starts);
            batch.sources.push(source);
        }
        batch
    }

    /// Positions that are trained on.
    pub fn target_tokens(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED).count()
    }

    /// Positions up to the last target of every row: what padding is not.
    pub fn read_tokens(&self) -> usize {
        let rows = self.targets.chunks(self.len.max(1));
        rows.map(|row| row.iter().rposition(|target| *target != IGNORED).map_or(0, |last| last + 1)).sum()
    }

    /// Bytes of text that the targets stand for; special tokens, which end texts and turns, have none.
    pub fn target_bytes(&self, tokenizer: &Tokenizer) -> u64 {
        let ids = self.targets.iter().filter_map(|target| u32::try_from(*target).ok());
        ids.filter(|id| !tokenizer.is_special(*id)).map(|id| tokenizer.token_bytes(id).len() as u64).sum()
    }
}

/// Where a loader is: saved with a checkpoint, enough to continue exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Stage of the last batch; none before the first.
    pub stage: Option<usize>,
    /// Tokens of the stage so far.
    pub mixture: Mixture,
    /// Place in every source.
    pub sources: BTreeMap<String, Place>,
}

/// A place in a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// Complete passes.
    pub epoch: u64,
    /// Rows drawn of the present pass.
    pub row: u64,
}

/// Draws batches as the curriculum says.
#[derive(Debug)]
pub struct Loader {
    shards: Vec<(String, Shard)>,
    curriculum: Curriculum,
    changes: Vec<MixChange>,
    length: usize,
    seed: u64,
    pad: u32,
    stage: Option<usize>,
    mixture: Mixture,
    places: Vec<Place>,
}

impl Loader {
    /// Begins at the first row. Every source needs text enough for one target; rows that are too short are
    /// filled with the end-of-text token.
    ///
    /// # Errors
    /// [`Error::Config`] where the curriculum does not fit, [`Error::Data`] for sources without a target.
    pub fn new(
        shards: Vec<(String, Shard)>,
        curriculum: Curriculum,
        sequence_length: usize,
        seed: u64,
        steps: u32,
        end_of_text: Option<u32>,
    ) -> Result<Self> {
        let names: Vec<&str> = shards.iter().map(|(name, _)| name.as_str()).collect();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(Error::Config(format!("two sources are called {name:?}")));
            }
        }
        curriculum.validate(&names, steps)?;
        if sequence_length == 0 {
            return Err(Error::Config("--sequence-length 0: must be at least 1".into()));
        }
        for (name, shard) in &shards {
            if shard.training.len() <= shard.training.documents() {
                return Err(Error::Data(format!("source {name}: no document is long enough to predict a token in it")));
            }
        }
        let mixture = Mixture::new(vec![0.0; shards.len()], Random::new(seed));
        let places = vec![Place::default(); shards.len()];
        let (changes, pad) = (Vec::new(), end_of_text.unwrap_or(0));
        Ok(Self { shards, curriculum, changes, length: sequence_length, seed, pad, stage: None, mixture, places })
    }

    /// Shares that differ from the curriculum's, each from its step on.
    pub fn set_changes(&mut self, changes: &[MixChange]) {
        self.changes = changes.to_vec();
    }

    /// Shares of a stage at the update that comes after `step` updates.
    pub fn weights_at(&self, stage: usize, step: u32) -> &BTreeMap<String, f64> {
        weights_at(&self.curriculum, &self.changes, stage, step)
    }

    /// The next micro-batch of the stage in which `step` (from 0) lies.
    pub fn next_batch(&mut self, step: u32, rows: usize) -> Batch {
        let stage = self.curriculum.stage_at(step);
        let weights = self.weights_at(stage, step);
        let weights = self.shards.iter().map(|(name, _)| weights.get(name).copied().unwrap_or(0.0)).collect();
        if self.stage == Some(stage) {
            self.mixture.reweigh(weights);
        } else {
            self.stage = Some(stage);
            self.mixture = Mixture::new(weights, Random::stream(self.seed, stage as u64));
        }
        let rows = (0..rows).map(|_| {
            let source = self.mixture.next_source();
            let row = self.next_row(source);
            self.mixture.add(source, row.target_count() as u64);
            (source, row)
        });
        let rows: Vec<(usize, Row)> = rows.collect();
        Batch::from_rows(self.length, rows)
    }

    fn rows_of(&self, source: usize) -> u64 {
        pack::row_count(self.shards[source].1.training.len(), self.length, false) as u64
    }

    /// The next row of a source that has a target; `Loader::new` made sure that there is text for one.
    fn next_row(&mut self, source: usize) -> Row {
        let count = self.rows_of(source);
        let shard = &self.shards[source].1;
        let place = &mut self.places[source];
        let mut tries = 0;
        loop {
            let key = mix(self.seed ^ mix(((source as u64) << 40) ^ place.epoch));
            let index = Permutation::new(count, key).at(place.row);
            let row = pack::row(&shard.training, index as usize, self.length, self.pad);
            place.row += 1;
            if place.row >= count {
                *place = Place { epoch: place.epoch + 1, row: 0 };
            }
            tries += 1;
            if row.target_count() > 0 || tries > count {
                return row;
            }
        }
    }

    /// Where the loader is.
    pub fn cursor(&self) -> Cursor {
        let places = self.shards.iter().zip(&self.places).map(|((name, _), place)| (name.clone(), *place));
        Cursor { stage: self.stage, mixture: self.mixture.clone(), sources: places.collect() }
    }

    /// Goes to a place of before; the next batch is the one that would have come then.
    ///
    /// # Errors
    /// [`Error::Resume`] where the cursor belongs to other sources or stages.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        let other = |what: &str| {
            Error::Resume(format!("the checkpoint was made with other {what}; resume with the configuration and data of the run"))
        };
        if cursor.sources.len() != self.shards.len() || cursor.mixture.tokens().len() != self.shards.len() {
            return Err(other("sources"));
        }
        if cursor.stage.is_some_and(|stage| stage >= self.curriculum.stages.len()) {
            return Err(other("stages"));
        }
        let mut places = Vec::new();
        for (source, (name, _)) in self.shards.iter().enumerate() {
            let place = cursor.sources.get(name).copied().ok_or_else(|| other("sources"))?;
            if place.row >= self.rows_of(source).max(1) {
                return Err(other("text"));
            }
            places.push(place);
        }
        (self.stage, self.mixture, self.places) = (cursor.stage, cursor.mixture.clone(), places);
        Ok(())
    }

    /// Batches of a source's held-out text; the same at every call: all of it, or rows spread evenly over it that
    /// hold about `max_tokens`.
    pub fn held_out(&self, source: usize, max_tokens: usize, rows_per_batch: usize) -> impl Iterator<Item = Batch> + '_ {
        let shard = &self.shards[source].1;
        let (length, pad) = (self.length, self.pad);
        let count = pack::row_count(shard.held_out.len(), length, true);
        let wanted = max_tokens.div_ceil(length).clamp(1, count.max(1)).min(count);
        let spread: Vec<usize> = (0..wanted).map(|i| (i as u128 * count as u128 / wanted as u128) as usize).collect();
        let starts = (0..wanted).step_by(rows_per_batch.max(1));
        starts.map(move |start| {
            let rows = &spread[start..(start + rows_per_batch.max(1)).min(wanted)];
            Batch::from_rows(length, rows.iter().map(|index| (source, pack::row(&shard.held_out, *index, length, pad))))
        })
    }

    /// Hash of what decides the order of rows: text, tokenizer, split, stages, sequence length, seed.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, shard) in &self.shards {
            hasher.update(format!("{name:?} {}\n", shard.hash()).as_bytes());
        }
        hasher.update(serde_json::to_string(&self.curriculum).unwrap_or_default().as_bytes());
        hasher.update(format!("{} {}", self.length, self.seed).as_bytes());
        hasher.finalize().to_hex()[..16].to_string()
    }

    /// Passes over every source since the run began.
    pub fn epochs(&self) -> BTreeMap<String, f64> {
        let passes = |source: usize| self.places[source].epoch as f64 + self.places[source].row as f64 / self.rows_of(source).max(1) as f64;
        self.shards.iter().enumerate().map(|(source, (name, _))| (name.clone(), passes(source))).collect()
    }

    /// Share of training tokens that every source had since the stage began.
    pub fn shares_of_stage(&self) -> BTreeMap<String, f64> {
        self.shards.iter().zip(self.mixture.shares()).map(|((name, _), share)| (name.clone(), share)).collect()
    }
}

/// Positions in a batch of windows; longer windows come one by one.
const WINDOW_POSITIONS: usize = 2048;

/// A text as batches to be scored, and the bytes that its targets stand for. Windows follow one another; the
/// first token of a document is never a target unless the tokenizer begins texts with a token of its own.
///
/// # Errors
/// [`Error::Data`] where the text has nothing to predict.
pub fn windows(tokenizer: &Tokenizer, text: &str, length: usize) -> Result<(Vec<Batch>, u64)> {
    let texts = text.split(SEPARATOR).filter(|text| !text.trim().is_empty());
    let documents: Vec<Document> = texts.map(|text| Document::text(tokenizer.encode_prompt(text))).collect();
    let rows = pack::rows(&documents, length, tokenizer.end_of_text().unwrap_or(0));
    let mut rows = rows.into_iter().map(|row| (0, row)).peekable();
    let mut batches = Vec::new();
    while rows.peek().is_some() {
        batches.push(Batch::from_rows(length, rows.by_ref().take((WINDOW_POSITIONS / length).max(1))));
    }
    let bytes = batches.iter().map(|batch| batch.target_bytes(tokenizer)).sum();
    if bytes == 0 {
        return Err(Error::Data("the text has no second token that could be predicted; give more text".into()));
    }
    Ok((batches, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::tests::shard_of;

    fn documents(count: usize, length: usize, first: u32) -> Vec<Vec<u32>> {
        (0..count).map(|i| (0..length).map(|j| first + ((i * length + j) % 97) as u32).collect()).collect()
    }

    fn row_targets(batch: &Batch, row: usize) -> usize {
        batch.targets[row * batch.len..(row + 1) * batch.len].iter().filter(|target| **target != IGNORED).count()
    }

    /// A large source, a tiny one (less than a row) and one of many small documents.
    fn loader(weights: &[(u32, [f64; 3])], steps: u32, seed: u64) -> Loader {
        let shards = vec![
            ("input".to_string(), shard_of("input", &documents(3, 9000, 1), &documents(1, 300, 1))),
            ("code".to_string(), shard_of("code", &documents(1, 20, 200), &documents(1, 9, 200))),
            ("math".to_string(), shard_of("math", &documents(300, 11, 400), &documents(30, 11, 400))),
        ];
        let names = ["input", "code", "math"];
        let stages = weights.iter().map(|(start, weights)| crate::data::Stage {
            name: format!("from {start}"),
            start: *start,
            weights: names.iter().map(ToString::to_string).zip(*weights).collect(),
        });
        Loader::new(shards, Curriculum::written(stages.collect()), 64, seed, steps, Some(0)).unwrap()
    }

    #[test]
    fn mixture_shares_hold_for_sources_of_very_different_size() {
        let mut loader = loader(&[(0, [0.6, 0.25, 0.15])], 1000, 1);
        let mut tokens = [0u64; 3];
        for step in 0..500 {
            let batch = loader.next_batch(step, 4);
            for (row, source) in batch.sources.iter().enumerate() {
                tokens[*source] += row_targets(&batch, row) as u64;
            }
        }
        let total: u64 = tokens.iter().sum();
        for (count, weight) in tokens.iter().zip([0.6, 0.25, 0.15]) {
            let share = *count as f64 / total as f64;
            assert!((share - weight).abs() < 0.01, "{share} for {weight}: 2,000 rows");
        }
        let shares = loader.shares_of_stage();
        assert!((shares["code"] - tokens[1] as f64 / total as f64).abs() < 1e-12);
        assert!(loader.epochs()["code"] > 500.0 && loader.epochs()["input"] < 5.0, "{:?}", loader.epochs());
    }

    #[test]
    fn loader_resumes_exactly() {
        let stages = [(0, [1.0, 0.0, 0.0]), (20, [0.4, 0.3, 0.3]), (60, [0.1, 0.1, 0.8])];
        let mut whole = loader(&stages, 100, 5);
        let batches: Vec<Batch> = (0..100).map(|step| whole.next_batch(step, 3)).collect();
        for stop in [0, 1, 19, 20, 21, 59, 60, 99] {
            let mut first = loader(&stages, 100, 5);
            for step in 0..stop {
                first.next_batch(step, 3);
            }
            let json = serde_json::to_string(&first.cursor()).unwrap();
            let mut second = loader(&stages, 100, 5);
            second.seek(&serde_json::from_str(&json).unwrap()).unwrap();
            for step in stop..100 {
                assert_eq!(second.next_batch(step, 3), batches[step as usize], "stopped at {stop}, step {step}");
            }
            assert_eq!(second.cursor(), whole.cursor());
        }
    }

    #[test]
    fn changed_shares_resume_exactly_and_keep_what_the_stage_had() {
        let stages = [(0, [1.0, 0.0, 0.0]), (60, [0.1, 0.1, 0.8])];
        let change = |step, stage, weights: [f64; 3]| {
            let weights = ["input", "code", "math"].map(String::from).into_iter().zip(weights).collect();
            MixChange { step, stage, weights }
        };
        let changes = [change(20, 0, [0.5, 0.0, 0.5]), change(20, 1, [0.0, 0.0, 1.0]), change(40, 0, [0.0, 1.0, 0.0])];
        let changed = || {
            let mut loader = loader(&stages, 100, 5);
            loader.set_changes(&changes);
            loader
        };
        let mut whole = changed();
        let mut batches: Vec<Batch> = Vec::new();
        for step in 0..100 {
            batches.push(whole.next_batch(step, 4));
            if step == 59 {
                let shares = whole.shares_of_stage();
                let drawn = |source: usize| {
                    batches.iter().flat_map(move |batch| {
                        (0..4).filter(move |row| batch.sources[*row] == source).map(move |row| row_targets(batch, row))
                    })
                };
                let tokens = [0, 1, 2].map(|source| drawn(source).sum::<usize>() as f64);
                assert!((shares["code"] - tokens[1] / tokens.iter().sum::<f64>()).abs() < 1e-12, "{shares:?} {tokens:?}");
            }
        }
        let rows = |steps: std::ops::Range<usize>, source: usize| {
            batches[steps].iter().flat_map(|batch| &batch.sources).filter(|s| **s == source).count()
        };
        assert_eq!((rows(0..20, 0), rows(40..60, 1), rows(60..100, 2)), (80, 80, 160));
        assert!((35..=45).contains(&rows(20..40, 0)), "{}", rows(20..40, 0));
        for stop in [19, 20, 21, 40, 60] {
            let mut first = changed();
            (0..stop).for_each(|step| drop(first.next_batch(step, 4)));
            let json = serde_json::to_string(&first.cursor()).unwrap();
            let mut second = changed();
            second.seek(&serde_json::from_str(&json).unwrap()).unwrap();
            for step in stop..100 {
                assert_eq!(second.next_batch(step, 4), batches[step as usize], "stopped at {stop}, step {step}");
            }
        }
        assert_eq!(changed().fingerprint(), loader(&stages, 100, 5).fingerprint());
    }

    #[test]
    fn a_pass_takes_every_row_once_in_an_order_of_its_own() {
        let mut loader = loader(&[(0, [1.0, 0.0, 0.0])], 100, 3);
        let rows = loader.rows_of(0) as usize;
        let mut pass = || -> Vec<Vec<i32>> { loader.next_batch(0, rows).inputs.chunks(64).map(<[i32]>::to_vec).collect() };
        let (first, second) = (pass(), pass());
        assert_ne!(first, second);
        let sorted = |mut rows: Vec<Vec<i32>>| {
            rows.sort();
            rows
        };
        assert_eq!(sorted(first), sorted(second));
        assert_eq!(loader.epochs()["input"], 2.0);
    }

    #[test]
    fn seeds_change_the_order_and_nothing_else_does() {
        let batch = |seed| loader(&[(0, [0.4, 0.3, 0.3])], 10, seed).next_batch(0, 8);
        assert_eq!(batch(1), batch(1));
        assert_ne!(batch(1), batch(2));
        let fingerprint = |seed, weights| loader(&[(0, weights)], 10, seed).fingerprint();
        assert_eq!(fingerprint(1, [0.4, 0.3, 0.3]), fingerprint(1, [0.4, 0.3, 0.3]));
        assert_ne!(fingerprint(1, [0.4, 0.3, 0.3]), fingerprint(2, [0.4, 0.3, 0.3]));
        assert_ne!(fingerprint(1, [0.4, 0.3, 0.3]), fingerprint(1, [0.3, 0.4, 0.3]));
    }

    #[test]
    fn batches_hold_what_their_rows_say() {
        let mut loader = loader(&[(0, [0.4, 0.3, 0.3])], 10, 1);
        let batch = loader.next_batch(0, 16);
        assert_eq!([batch.inputs.len(), batch.targets.len(), batch.starts.len(), batch.sources.len()], [1024, 1024, 1024, 16]);
        for row in 0..16 {
            for i in 0..64 {
                let at = row * 64 + i;
                assert!(batch.starts[at] >= 0 && batch.starts[at] as usize <= i);
                assert!(i == 63 || batch.targets[at] == IGNORED || batch.targets[at] == batch.inputs[at + 1]);
                assert!(
                    batch.targets[at] == IGNORED || i == 63 || batch.starts[at] == batch.starts[at + 1],
                    "no target in another document"
                );
            }
        }
        // The tiny source: 20 tokens and their end make 20 targets, the rest is filling.
        let tiny = batch.sources.iter().position(|source| *source == 1).unwrap();
        assert_eq!(row_targets(&batch, tiny), 20);
    }

    #[test]
    fn held_out_text_is_scored_once_and_never_trained_on() {
        let loader = loader(&[(0, [0.4, 0.3, 0.3])], 10, 1);
        let batches: Vec<Batch> = loader.held_out(0, usize::MAX / 2, 2).collect();
        assert_eq!(batches.iter().map(Batch::target_tokens).sum::<usize>(), 300);
        assert_eq!((batches.len(), batches[2].rows), (3, 1));
        assert_eq!(loader.held_out(0, 100, 8).map(|batch| batch.rows).sum::<usize>(), 2);
        assert_eq!(loader.held_out(0, usize::MAX / 2, 2).collect::<Vec<_>>(), batches);
        let none = shard_of("none", &documents(1, 100, 1), &[]);
        let loader = Loader::new(vec![("none".into(), none)], Curriculum::uniform(&["none"]), 64, 1, 1, None).unwrap();
        assert_eq!(loader.held_out(0, 100, 2).count(), 0);
    }

    #[test]
    fn foreign_cursors_and_hopeless_sources_are_refused() {
        let mut small = loader(&[(0, [0.4, 0.3, 0.3])], 10, 1);
        let mut cursor = small.cursor();
        cursor.sources.remove("code");
        assert!(small.seek(&cursor).is_err());
        let mut cursor = small.cursor();
        cursor.sources.insert("code".into(), Place { epoch: 0, row: 5 });
        assert!(small.seek(&cursor).is_err());
        let mut cursor = small.cursor();
        cursor.stage = Some(1);
        assert!(small.seek(&cursor).is_err());
        let empty = shard_of("x", &[vec![]], &[]);
        let error = Loader::new(vec![("x".into(), empty)], Curriculum::uniform(&["x"]), 8, 1, 1, None).unwrap_err();
        assert!(error.to_string().contains("source x"), "{error}");
    }

    #[test]
    fn windows_score_every_byte_but_the_first_token() {
        let quiet = crate::control::Control::connect().0;
        let tokenizer = futures_lite::future::block_on(crate::text::bpe::train([], 257, &["<|endoftext|>"], &quiet)).unwrap().unwrap();
        let (batches, bytes) = windows(&tokenizer, "0123456789<|endoftext|>ab", 4).unwrap();
        assert_eq!(bytes, 9 + 1);
        assert_eq!(batches.iter().map(Batch::target_tokens).sum::<usize>(), 10);
        assert!(windows(&tokenizer, "a", 4).is_err());
        assert!(windows(&tokenizer, "", 4).is_err());
    }
}
