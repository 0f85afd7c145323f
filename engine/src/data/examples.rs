//! Batches out of examples: every pass takes each of them once, in an order of its own.

use std::collections::BTreeMap;

use crate::data::batch::{Batch, Cursor, Place, together};
use crate::data::document::Document;
use crate::data::mixture::Mixture;
use crate::data::pack::{IGNORED, Row};
use crate::data::random::{Permutation, Random, mix};
use crate::error::{Error, Result};

/// Lengths of batches are multiples of this, so that devices meet few different ones.
const STRIDE: usize = 16;

/// Examples side by side that fill one row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// Which kind of example they are.
    kind: usize,
    tokens: Vec<u32>,
    mask: Vec<bool>,
    /// Where examples begin.
    begins: Vec<usize>,
}

/// Examples of several kinds (tasks), in memory.
#[derive(Debug)]
pub struct Examples {
    kinds: Vec<String>,
    training: Vec<Line>,
    held_out: Vec<Line>,
    batch_size: usize,
    accumulation: usize,
    seed: u64,
    pad: u32,
    epoch: u64,
    row: u64,
    drawn: Mixture,
    shares: BTreeMap<String, f64>,
    fingerprint: String,
}

/// An example with its kind.
pub type Kinded = (usize, Document);

impl Examples {
    /// Begins at the first example. With `packing`, examples of a kind share rows of at most `length` tokens.
    ///
    /// # Errors
    /// [`Error::Data`] where nothing is to be learned.
    pub fn new(
        kinds: Vec<String>,
        training: Vec<Kinded>,
        held_out: Vec<Kinded>,
        [batch_size, accumulation]: [usize; 2],
        packing: Option<usize>,
        seed: u64,
        pad: u32,
    ) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        for (kind, document) in training.iter().chain(&held_out) {
            hasher.update(&(*kind as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(&document.tokens));
            hasher.update(&(0..document.tokens.len()).map(|i| u8::from(document.is_target(i))).collect::<Vec<_>>());
        }
        hasher.update(format!("{kinds:?} {} {batch_size} {accumulation} {packing:?} {seed}", training.len()).as_bytes());
        let lines = |examples: Vec<Kinded>| {
            let examples = examples.into_iter().filter(|(_, document)| (1..document.tokens.len()).any(|i| document.is_target(i)));
            let lines: Vec<Line> = examples.map(Line::of).collect();
            match packing {
                Some(length) => packed(lines, length),
                None => lines,
            }
        };
        let (training, held_out) = (lines(training), lines(held_out));
        if training.is_empty() {
            return Err(Error::Data("no example has a token to learn; look at them with `smolforge inspect`".into()));
        }
        let mut targets = vec![0u64; kinds.len()];
        training.iter().for_each(|line| targets[line.kind] += line.targets());
        let total = targets.iter().sum::<u64>() as f64;
        Ok(Self {
            shares: kinds.iter().zip(&targets).map(|(kind, targets)| (kind.clone(), *targets as f64 / total)).collect(),
            drawn: Mixture::new(vec![0.0; kinds.len()], Random::new(seed)),
            fingerprint: hasher.finalize().to_hex()[..16].to_string(),
            kinds,
            training,
            held_out,
            batch_size,
            accumulation,
            seed,
            pad,
            epoch: 0,
            row: 0,
        })
    }

    /// Updates of one pass; the last one of a pass may be smaller.
    pub fn updates_per_epoch(&self) -> u32 {
        self.training.len().div_ceil(self.batch_size * self.accumulation) as u32
    }

    /// Rows of a pass and tokens that are learned in it.
    pub fn size(&self) -> (usize, u64) {
        (self.training.len(), self.training.iter().map(Line::targets).sum())
    }

    /// Tokens of a pass, those included that are only read.
    pub fn tokens(&self) -> u64 {
        self.training.iter().map(|line| line.tokens.len() as u64).sum()
    }

    /// Rows of a pass by kind.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let count = |kind: usize| self.training.iter().filter(|line| line.kind == kind).count() as u64;
        self.kinds.iter().enumerate().map(|(kind, name)| (name.clone(), count(kind))).collect()
    }

    /// Longest row in tokens.
    pub fn longest(&self) -> usize {
        self.training.iter().chain(&self.held_out).map(|line| line.tokens.len()).max().unwrap_or(0)
    }

    /// Share of the learned tokens of every kind.
    pub fn shares(&self) -> &BTreeMap<String, f64> {
        &self.shares
    }

    /// Per kind: learned tokens of a pass, tokens that are held out.
    pub fn sizes(&self) -> BTreeMap<String, (u64, u64)> {
        let sum = |lines: &[Line], kind: usize| lines.iter().filter(|line| line.kind == kind).map(Line::targets).sum::<u64>();
        self.kinds.iter().enumerate().map(|(kind, name)| (name.clone(), (sum(&self.training, kind), sum(&self.held_out, kind)))).collect()
    }

    /// The micro-batches of update `step` (from 0).
    pub fn batches(&mut self, step: u32) -> Vec<Batch> {
        let (per_epoch, count) = (self.updates_per_epoch(), self.training.len());
        let epoch = u64::from(step / per_epoch);
        if epoch != self.epoch {
            (self.epoch, self.drawn) = (epoch, Mixture::new(vec![0.0; self.kinds.len()], Random::new(self.seed)));
        }
        let order = self.order(epoch);
        let size = self.batch_size * self.accumulation;
        let first = (step % per_epoch) as usize * size;
        let lines: Vec<&Line> = (first..(first + size).min(count)).map(|i| &self.training[order.at(i as u64) as usize]).collect();
        for line in &lines {
            self.drawn.add(line.kind, line.targets());
        }
        self.row = (first + lines.len()) as u64;
        lines.chunks(self.batch_size).map(|lines| batch(lines, self.pad)).collect()
    }

    /// Positions that a pass computes, padding included.
    pub fn positions(&self) -> u64 {
        let order = self.order(0);
        let lines = (0..self.training.len() as u64).map(|i| &self.training[order.at(i) as usize]).collect::<Vec<_>>();
        let micro = lines.chunks(self.batch_size * self.accumulation).flat_map(|lines| lines.chunks(self.batch_size));
        micro.map(|lines| (lines.len() * padded(lines)) as u64).sum()
    }

    /// The order of a pass.
    fn order(&self, epoch: u64) -> Permutation {
        Permutation::new(self.training.len() as u64, mix(self.seed ^ mix(epoch)))
    }

    /// Batches of the held-out examples of a kind, of `rows` examples where memory allows.
    pub fn held_out(&self, kind: usize, rows: usize) -> impl ExactSizeIterator<Item = Batch> + '_ {
        self.side_by_side(&self.held_out, kind, rows)
    }

    /// Batches of the examples of a kind that are learned, in the order in which they were given.
    pub fn in_order(&self, kind: usize, rows: usize) -> impl ExactSizeIterator<Item = Batch> + '_ {
        self.side_by_side(&self.training, kind, rows)
    }

    fn side_by_side<'a>(&'a self, lines: &'a [Line], kind: usize, rows: usize) -> impl ExactSizeIterator<Item = Batch> + 'a {
        let lines: Vec<&Line> = lines.iter().filter(|line| line.kind == kind).collect();
        let rows = rows.clamp(1, together(self.longest()));
        (0..lines.len()).step_by(rows).map(move |first| batch(&lines[first..lines.len().min(first + rows)], self.pad))
    }

    /// Where it is.
    pub fn cursor(&self) -> Cursor {
        let place = Place { epoch: self.epoch, row: self.row };
        let sources = self.kinds.iter().map(|kind| (kind.clone(), place)).collect();
        Cursor { stage: Some(self.epoch as usize), mixture: self.drawn.clone(), sources }
    }

    /// Goes to a place of before.
    ///
    /// # Errors
    /// [`Error::Resume`] where the place belongs to other examples.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        let place = self.kinds.first().and_then(|kind| cursor.sources.get(kind));
        let same = cursor.sources.len() == self.kinds.len() && cursor.mixture.tokens().len() == self.kinds.len();
        let Some(place) = place.filter(|place| same && place.row <= self.training.len() as u64) else {
            return Err(Error::Resume("the checkpoint was made with other examples; resume with the data of the run".into()));
        };
        (self.epoch, self.row, self.drawn) = (place.epoch, place.row, cursor.mixture.clone());
        Ok(())
    }

    /// Hash of what decides what is learned in which order.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Passes since the run began.
    pub fn epochs(&self) -> BTreeMap<String, f64> {
        let passes = self.epoch as f64 + self.row as f64 / self.training.len() as f64;
        self.kinds.iter().map(|kind| (kind.clone(), passes)).collect()
    }

    /// Share of the learned tokens of this pass that every kind had.
    pub fn shares_of_epoch(&self) -> BTreeMap<String, f64> {
        self.kinds.iter().zip(self.drawn.shares()).map(|(kind, share)| (kind.clone(), share)).collect()
    }
}

impl Line {
    fn of((kind, document): Kinded) -> Self {
        let mask = (0..document.tokens.len()).map(|i| document.is_target(i)).collect();
        Self { kind, tokens: document.tokens, mask, begins: vec![0] }
    }

    fn targets(&self) -> u64 {
        (1..self.tokens.len()).filter(|i| self.mask[*i] && !self.begins.contains(i)).count() as u64
    }
}

/// Positions of rows side by side: those of the longest of them.
fn padded(lines: &[&Line]) -> usize {
    let longest = lines.iter().map(|line| line.tokens.len()).max().unwrap_or(2);
    (longest - 1).next_multiple_of(STRIDE)
}

/// Rows side by side.
fn batch(lines: &[&Line], pad: u32) -> Batch {
    let length = padded(lines);
    let row = |line: &&Line| (line.kind, Row::new(&line.tokens, &line.begins, length, pad, |i| line.mask[i]));
    let batch = Batch::from_rows(length, lines.iter().map(row));
    debug_assert!(batch.targets.iter().any(|target| *target != IGNORED));
    batch
}

/// Lines of a kind together in rows of at most `length` tokens: the longest first, each where it leaves the least room.
fn packed(lines: Vec<Line>, length: usize) -> Vec<Line> {
    let mut order: Vec<Line> = lines;
    order.sort_by_key(|line| std::cmp::Reverse(line.tokens.len()));
    let mut rows: Vec<Line> = Vec::new();
    // Rows by kind and the room that they have left.
    let mut room: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for line in order {
        let size = line.tokens.len();
        let place = room.range((line.kind, size)..(line.kind + 1, 0)).next().map(|(key, _)| *key);
        let row = match place {
            Some(key) => {
                let places = room.get_mut(&key).expect("a key of the map");
                let row = places.pop().expect("no list is empty");
                if places.is_empty() {
                    room.remove(&key);
                }
                let target = &mut rows[row];
                target.begins.push(target.tokens.len());
                target.tokens.extend(line.tokens);
                target.mask.extend(line.mask);
                row
            }
            None => {
                rows.push(line);
                rows.len() - 1
            }
        };
        let (kind, left) = (rows[row].kind, length.saturating_sub(rows[row].tokens.len()));
        room.entry((kind, left)).or_default().push(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(kind: usize, length: usize, first: u32) -> Kinded {
        let tokens = (first..first + length as u32).collect();
        (kind, Document { tokens, mask: (0..length).map(|i| i >= length / 2).collect() })
    }

    fn examples(count: usize, packing: Option<usize>) -> Examples {
        let training = (0..count).map(|i| example(i % 2, 4 + i % 7, 100 * i as u32)).collect();
        Examples::new(vec!["a".into(), "b".into()], training, vec![example(0, 6, 1)], [3, 2], packing, 5, 0).unwrap()
    }

    fn firsts(batches: &[Batch]) -> Vec<i32> {
        batches.iter().flat_map(|batch| (0..batch.rows).map(|row| batch.inputs[row * batch.len] / 100).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn every_pass_takes_every_example_once_in_another_order() {
        for count in [1, 2, 5, 6, 7, 63, 64, 65] {
            let mut examples = examples(count, None);
            let per_epoch = examples.updates_per_epoch();
            assert_eq!(per_epoch as usize, count.div_ceil(6));
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let order: Vec<i32> = (0..per_epoch).flat_map(|step| firsts(&examples.batches(epoch * per_epoch + step))).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count as i32).collect::<Vec<_>>());
                assert_eq!(examples.epochs()["a"], f64::from(epoch) + 1.0);
                orders.push(order);
            }
            assert!(count < 6 || orders[0] != orders[1] && orders[1] != orders[2]);
        }
    }

    #[test]
    fn held_out_examples_and_those_in_order_come_once() {
        for (count, batches) in [(1, 1), (2, 1), (63, 16), (64, 16), (65, 17)] {
            let all = |i: usize| example(0, 4 + i % 7, 100 * i as u32);
            let (training, held_out) = ((0..count).map(all).collect(), (0..count).map(all).collect());
            let examples = Examples::new(vec!["a".into(), "b".into()], training, held_out, [3, 2], None, 5, 0).unwrap();
            let [ordered, held_out] = [examples.in_order(0, 4).collect::<Vec<_>>(), examples.held_out(0, 4).collect()];
            assert_eq!((ordered.len(), examples.held_out(0, 4).len(), examples.in_order(1, 4).len()), (batches, batches, 0));
            assert_eq!((firsts(&ordered), ordered), ((0..count as i32).collect(), held_out));
        }
    }

    #[test]
    fn padding_and_prompts_are_never_targets() {
        let mut examples = examples(7, None);
        let batches: Vec<Batch> = (0..2).flat_map(|step| examples.batches(step)).collect();
        let targets: usize = batches.iter().map(|batch| batch.target_tokens()).sum();
        assert_eq!(examples.positions(), batches.iter().map(|batch| (batch.rows * batch.len) as u64).sum::<u64>());
        let expected: usize = (0..7).map(|i| (4 + i % 7) - (4 + i % 7) / 2).sum();
        assert_eq!(targets, expected);
        assert_eq!(examples.size(), (7, expected as u64));
        assert_eq!(examples.tokens(), 7 * 7, "4 to 10, and nothing that is held out");
        assert_eq!(examples.sizes()["a"].1, 3);
    }

    #[test]
    fn packed_rows_hold_all_targets_and_examples_do_not_see_each_other() {
        let mut packed = examples(65, Some(20));
        let (rows, targets) = packed.size();
        assert!(rows < 33, "{rows} rows");
        assert_eq!(targets, examples(65, None).size().1);
        for step in 0..packed.updates_per_epoch() {
            for batch in packed.batches(step) {
                assert!(batch.len < 20 + STRIDE);
                for (i, target) in batch.targets.iter().enumerate().filter(|(_, target)| **target != IGNORED) {
                    assert_eq!(target - 1, batch.inputs[i], "the next token of the same example");
                    let start = (i / batch.len * batch.len) as i32 + batch.starts[i];
                    assert_eq!(batch.inputs[start as usize] / 100, batch.inputs[i] / 100);
                    assert_eq!(batch.inputs[start as usize] % 100, 0);
                }
            }
        }
    }

    #[test]
    fn a_place_of_before_is_found_again() {
        let mut whole = examples(20, None);
        let all: Vec<Vec<Batch>> = (0..9).map(|step| whole.batches(step)).collect();
        for stop in [0, 1, 3, 4, 5, 8] {
            let mut first = examples(20, None);
            (0..stop).for_each(|step| drop(first.batches(step)));
            let mut second = examples(20, None);
            second.seek(&serde_json::from_str(&serde_json::to_string(&first.cursor()).unwrap()).unwrap()).unwrap();
            assert_eq!(second.cursor(), first.cursor());
            (stop..9).for_each(|step| assert_eq!(second.batches(step), all[step as usize]));
            assert_eq!(second.shares_of_epoch(), {
                (stop.min(8)..9).for_each(|step| drop(first.batches(step)));
                first.shares_of_epoch()
            });
        }
        assert!(
            examples(20, None)
                .seek(&Examples::new(vec!["a".into()], vec![example(0, 9, 1)], vec![], [1, 1], None, 5, 0).unwrap().cursor())
                .is_err()
        );
    }
}
