//! Rows: what one line of a batch holds. Documents in a row never see each other.

use std::ops::Range;

use crate::data::document::Document;
use crate::data::tokens::Tokens;

/// The target of a position that is not trained on.
pub const IGNORED: i32 = -100;

/// A sequence of `T` positions.
///
/// Position `i` reads `tokens[i]` and predicts `targets[i]`, which is `tokens[i + 1]` or [`IGNORED`]; it
/// attends to positions `starts[i]..=i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `T + 1` token ids.
    pub tokens: Vec<u32>,
    /// `T` targets.
    pub targets: Vec<i32>,
    /// `T` positions: where the document of each position begins in this row.
    pub starts: Vec<i32>,
}

impl Row {
    /// A row of `length` positions. `tokens` are up to `length + 1` ids, `begins` the places among them where
    /// documents begin, `is_target` says which tokens may be targets. What is missing is filled with `pad`,
    /// neither predicted nor seen by anything else.
    pub fn new(tokens: &[u32], begins: &[usize], length: usize, pad: u32, is_target: impl Fn(usize) -> bool) -> Self {
        let filled = tokens.len().min(length + 1);
        let mut row = tokens[..filled].to_vec();
        row.resize(length + 1, pad);
        let mut targets = vec![IGNORED; length];
        let mut starts = vec![0i32; length];
        let mut begins = begins.iter().copied().filter(|begin| *begin > 0).peekable();
        let mut start = 0;
        for i in 0..length {
            while begins.next_if(|begin| *begin <= i).is_some() {
                start = i;
            }
            if i == filled {
                start = i;
            }
            starts[i] = start as i32;
            let next = i + 1;
            if next < filled && begins.peek() != Some(&next) && is_target(next) {
                targets[i] = row[next] as i32;
            }
        }
        Self { tokens: row, targets, starts }
    }

    /// Positions that are trained on.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED).count()
    }
}

/// How many rows of `length` positions a sequence of `count` tokens makes. An incomplete last one is left out
/// (unless it is the only one) or, if `partial`, kept.
pub fn row_count(count: usize, length: usize, partial: bool) -> usize {
    let targets = count.saturating_sub(1);
    if partial { targets.div_ceil(length) } else { (targets / length).max(usize::from(targets > 0)) }
}

fn row_range(index: usize, length: usize) -> Range<usize> {
    index * length..(index + 1) * length + 1
}

/// Row `index` of a shard's tokens: rows are consecutive and share one token with their neighbour, so that every
/// token but the first is a target once.
pub fn row(tokens: &Tokens, index: usize, length: usize, pad: u32) -> Row {
    let range = row_range(index, length);
    let begins: Vec<usize> = tokens.starts(range.clone()).into_iter().map(|start| start - range.start).collect();
    Row::new(&tokens.read(range), &begins, length, pad, |_| true)
}

/// Rows of documents in memory, in order, the incomplete last one included.
pub fn rows(documents: &[Document], length: usize, pad: u32) -> Vec<Row> {
    let mut tokens = Vec::new();
    let mut mask = Vec::new();
    let mut begins = Vec::new();
    for document in documents {
        begins.push(tokens.len());
        mask.extend((0..document.tokens.len()).map(|i| document.is_target(i)));
        tokens.extend_from_slice(&document.tokens);
    }
    let count = row_count(tokens.len(), length, true);
    (0..count)
        .map(|index| {
            let range = row_range(index, length);
            let range = range.start..range.end.min(tokens.len());
            let low = begins.partition_point(|begin| *begin < range.start);
            let high = begins.partition_point(|begin| *begin < range.end);
            let inside: Vec<usize> = begins[low..high].iter().map(|begin| begin - range.start).collect();
            Row::new(&tokens[range.clone()], &inside, length, pad, |i| mask[range.start + i])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_next_tokens() {
        let row = Row::new(&[1, 2, 3, 4, 5], &[0], 4, 0, |_| true);
        assert_eq!(row, Row { tokens: vec![1, 2, 3, 4, 5], targets: vec![2, 3, 4, 5], starts: vec![0; 4] });
    }

    #[test]
    fn documents_never_attend_across() {
        // 1 2 0 | 3 0 | 4: the token after 0 is never predicted, and nobody sees what lies before its document.
        let row = Row::new(&[1, 2, 0, 3, 0, 4], &[0, 3, 5], 5, 9, |_| true);
        assert_eq!(row.targets, [2, 0, IGNORED, 0, IGNORED]);
        assert_eq!(row.starts, [0, 0, 0, 3, 3]);
        let later = Row::new(&[0, 3, 0, 4], &[1, 3], 3, 9, |_| true);
        assert_eq!((later.targets, later.starts), (vec![IGNORED, 0, IGNORED], vec![0, 1, 1]));
    }

    #[test]
    fn short_rows_are_filled_and_the_filling_is_ignored() {
        let row = Row::new(&[1, 2, 3], &[0], 5, 9, |_| true);
        assert_eq!(row.tokens, [1, 2, 3, 9, 9, 9]);
        assert_eq!(row.targets, [2, 3, IGNORED, IGNORED, IGNORED]);
        assert_eq!(row.starts, [0, 0, 0, 3, 3]);
        assert_eq!(row.target_count(), 2);
    }

    #[test]
    fn rows_cover_every_token_once() {
        for count in [0usize, 1, 2, 63, 64, 65, 129, 1000] {
            let document = Document::text((0..count as u32).collect());
            for length in [1, 2, 63, 64, 65] {
                let targets: Vec<i32> = rows(std::slice::from_ref(&document), length, 0)
                    .into_iter()
                    .flat_map(|row| row.targets)
                    .filter(|target| *target != IGNORED)
                    .collect();
                assert_eq!(targets, (1..count.max(1) as i32).collect::<Vec<_>>(), "{count} tokens in rows of {length}");
            }
        }
        // As the reference run cuts its text: (tokens − 1) / 128.
        assert_eq!((row_count(341_094, 128, false), row_count(100, 128, false), row_count(1, 128, false)), (2664, 1, 0));
    }

    #[test]
    fn masks_decide_what_is_trained_on() {
        let documents = [Document { tokens: vec![1, 2, 3], mask: vec![false, false, true] }, Document::text(vec![4, 5])];
        let rows = rows(&documents, 4, 0);
        assert_eq!(rows[0].targets, [IGNORED, 3, IGNORED, 5]);
        assert_eq!(rows[0].starts, [0, 0, 0, 3]);
    }
}
