//! Token ids on disk: written once, memory-mapped afterwards.
//!
//! ```text
//! header   64 bytes   magic "SMOLTOK1" · width u32 (2 or 4) · vocabulary u32 · key [32] · zeros
//! tokens   count × width, little endian, filled up with zeros to a multiple of 8
//! index    documents × u64: the token at which each document begins
//! footer   80 bytes   count · documents · text bytes · replaced bytes · skipped rows (u64 each) · BLAKE3
//!                     of all before it [32] · magic "SMOLTOK1"
//! ```
//! The footer comes last because the counts are known only then; a file without one is not whole.

use crate::error::{Error, Result};
use crate::platform;
use crate::store::{Bytes, Store, Writer};

const MAGIC: &[u8; 8] = b"SMOLTOK1";
const HEADER: usize = 64;
const FOOTER: usize = 80;

/// Counts that are known when all tokens are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Bytes of UTF-8 text that the tokens stand for.
    pub text_bytes: u64,
    /// Bytes of invalid UTF-8 that were replaced.
    pub replaced_bytes: u64,
    /// Rows without text that were left out.
    pub skipped_rows: u64,
}

/// Writes tokens; dropped without [`TokenWriter::finish`] it leaves nothing behind.
pub struct TokenWriter {
    writer: Writer,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    width: usize,
    count: u64,
    starts: Vec<u64>,
    end_of_text: Option<u32>,
    begin: bool,
}

impl TokenWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::DiskFull`].
    pub async fn create(store: &Store, name: &str, key: &[u8; 32], vocab_size: usize, end_of_text: Option<u32>) -> Result<Self> {
        let width: usize = if vocab_size <= 1 << 16 { 2 } else { 4 };
        let mut buffer = Vec::with_capacity(1 << 20);
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&(width as u32).to_le_bytes());
        buffer.extend_from_slice(&(vocab_size as u32).to_le_bytes());
        buffer.extend_from_slice(key);
        buffer.resize(HEADER, 0);
        let writer = store.create(name).await?;
        Ok(Self { writer, hasher: blake3::Hasher::new(), buffer, width, count: 0, starts: Vec::new(), end_of_text, begin: true })
    }

    /// The next token begins a document.
    pub fn begin_document(&mut self) {
        self.begin = true;
    }

    /// Adds tokens. What follows an end-of-text token begins a document.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::DiskFull`].
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        for &token in tokens {
            if self.begin {
                self.starts.push(self.count);
            }
            self.begin = self.end_of_text == Some(token);
            self.buffer.extend_from_slice(&token.to_le_bytes()[..self.width]);
            self.count += 1;
        }
        if self.buffer.len() >= 1 << 20 { self.flush() } else { Ok(()) }
    }

    /// Ends a document with the end-of-text token, unless it ends so already.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::DiskFull`].
    pub fn end_document(&mut self) -> Result<()> {
        if let (Some(token), false) = (self.end_of_text, self.begin) {
            self.push(&[token])?;
        }
        self.begin = true;
        Ok(())
    }

    /// Tokens written so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.writer.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the index and the footer and gives the file its name.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::DiskFull`].
    pub async fn finish(mut self, counts: Counts) -> Result<()> {
        let tokens = HEADER + self.count as usize * self.width;
        self.buffer.resize(self.buffer.len() + tokens.next_multiple_of(8) - tokens, 0);
        let starts = std::mem::take(&mut self.starts);
        for part in starts.chunks(1 << 16) {
            self.buffer.extend(part.iter().flat_map(|start| start.to_le_bytes()));
            self.flush()?;
        }
        for number in [self.count, starts.len() as u64, counts.text_bytes, counts.replaced_bytes, counts.skipped_rows] {
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        self.flush()?;
        self.writer.write(self.hasher.finalize().as_bytes())?;
        self.writer.write(MAGIC)?;
        self.writer.finish().await
    }
}

/// Tokens of a source: one part of a shard.
#[derive(Debug, Clone)]
pub struct Tokens {
    bytes: Bytes,
    width: usize,
    count: usize,
    index: usize,
    documents: usize,
    vocab_size: usize,
    counts: Counts,
}

impl Tokens {
    /// Maps a file that was written for `key` with a tokenizer of so many ids, and checks all of it: others may have
    /// made it.
    ///
    /// # Errors
    /// [`Error::Format`] where it is not whole, was written for something else, or is damaged.
    pub async fn open(store: &Store, name: &str, key: &[u8; 32], vocab_size: usize) -> Result<Self> {
        let bytes = store.read(name).await?;
        let bad = |why: &str| Error::format(name, why);
        if bytes.len() < HEADER + FOOTER {
            return Err(bad("too short for a token file"));
        }
        let footer = bytes.len() - FOOTER;
        if !bytes.starts_with(MAGIC) || !bytes.ends_with(MAGIC) {
            return Err(bad("not a whole token file"));
        }
        if bytes[16..48] != key[..] || u32_at(&bytes, 12) as usize != vocab_size {
            return Err(bad("made from other text or with another tokenizer"));
        }
        let width = u32_at(&bytes, 8) as usize;
        let [count, documents, text_bytes, replaced_bytes, skipped_rows] = [0, 8, 16, 24, 32].map(|at| u64_at(&bytes, footer + at));
        let size = |count: u64, width: usize| usize::try_from(count).ok()?.checked_mul(width);
        let index = size(count, width).and_then(|bytes| bytes.checked_add(HEADER)?.checked_next_multiple_of(8));
        let end = index.and_then(|index| size(documents, 8)?.checked_add(index));
        let (Some(index), true, true) = (index, end == Some(footer), matches!(width, 2 | 4) && documents <= count) else {
            return Err(bad("its counts do not fit its length"));
        };
        let mut hasher = blake3::Hasher::new();
        for piece in bytes[..footer + 40].chunks(8 << 20) {
            hasher.update(piece);
            platform::yield_now().await;
        }
        if hasher.finalize().as_bytes()[..] != bytes[footer + 40..footer + 72] {
            return Err(bad("damaged: its checksum is wrong"));
        }
        let counts = Counts { text_bytes, replaced_bytes, skipped_rows };
        let tokens = Self { bytes, width, count: count as usize, index, documents: documents as usize, vocab_size, counts };
        if !tokens.index_is_ordered().await {
            return Err(bad("damaged: its documents do not begin one after the other"));
        }
        Ok(tokens)
    }

    /// Whether every document begins behind the one before, and within the tokens.
    async fn index_is_ordered(&self) -> bool {
        let mut least = 0;
        for piece in self.bytes[self.index..self.index + 8 * self.documents].chunks(8 << 20) {
            for start in piece.chunks_exact(8).map(|bytes| u64_at(bytes, 0)) {
                if start < least || start >= self.count as u64 {
                    return false;
                }
                least = start + 1;
            }
            platform::yield_now().await;
        }
        true
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// What is known of the text.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The tokens of a range, which is cut at the end.
    pub fn read(&self, range: std::ops::Range<usize>) -> Vec<u32> {
        let end = range.end.min(self.count);
        let start = range.start.min(end);
        let bytes = &self.bytes[HEADER + start * self.width..HEADER + end * self.width];
        // Of a file of ours every id is below the vocabulary's size; another file's checksum may hold, too.
        let last = self.vocab_size.saturating_sub(1) as u32;
        let token = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte)).min(last);
        bytes.chunks_exact(self.width).map(token).collect()
    }

    /// The tokens within a range at which documents begin.
    pub fn starts(&self, range: std::ops::Range<usize>) -> Vec<usize> {
        let at = |i: usize| u64_at(&self.bytes, self.index + 8 * i) as usize;
        let (mut low, mut high) = (0, self.documents);
        while low < high {
            let middle = low.midpoint(high);
            if at(middle) < range.start { low = middle + 1 } else { high = middle }
        }
        (low..self.documents).map(at).take_while(|start| *start < range.end).collect()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;

    fn written(vocab_size: usize) -> (Store, Tokens) {
        let store = Store::memory();
        let tokens = block_on(async {
            let mut writer = TokenWriter::create(&store, "t", &[7; 32], vocab_size, Some(0)).await.unwrap();
            writer.push(&[5, 6]).unwrap();
            writer.push(&[7]).unwrap();
            writer.end_document().unwrap();
            writer.push(&[8, 0, 9]).unwrap();
            writer.begin_document();
            writer.push(&[10, 0]).unwrap();
            writer.end_document().unwrap();
            assert_eq!(writer.count(), 9);
            writer.finish(Counts { text_bytes: 20, replaced_bytes: 1, skipped_rows: 2 }).await.unwrap();
            Tokens::open(&store, "t", &[7; 32], vocab_size).await.unwrap()
        });
        (store, tokens)
    }

    /// The file again, with this done to it and a checksum that is right.
    fn forged(store: &Store, change: impl Fn(&mut [u8])) -> Result<Tokens> {
        let mut bytes = block_on(store.read("t")).unwrap().to_vec();
        change(&mut bytes);
        let footer = bytes.len() - FOOTER;
        let checksum = *blake3::hash(&bytes[..footer + 40]).as_bytes();
        bytes[footer + 40..footer + 72].copy_from_slice(&checksum);
        block_on(store.write("forged", &bytes)).unwrap();
        block_on(Tokens::open(store, "forged", &[7; 32], 11))
    }

    #[test]
    fn forged_ids_are_bounded_by_the_tokenizer() {
        let (store, _) = written(11);
        let id = |bytes: &mut [u8]| bytes[HEADER + 2..HEADER + 4].fill(0xff);
        assert_eq!(forged(&store, id).unwrap().read(0..3), [5, 10, 7]);
        let error = forged(&store, |bytes| {
            id(bytes);
            bytes[12..16].fill(0xff); // a vocabulary that has it
        });
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "forged: made from other text or with another tokenizer");
    }

    #[test]
    fn a_forged_index_is_refused() {
        let (store, _) = written(11);
        let index = HEADER + (9 * 2usize).next_multiple_of(8); // 0, 4, 6, 7 of nine tokens
        let with = |document: usize, start: u64| {
            forged(&store, move |bytes| bytes[index + 8 * document..][..8].copy_from_slice(&start.to_le_bytes()))
        };
        for (document, start) in [(0, 5), (1, 7), (2, 4), (2, 7), (3, 6), (3, 9), (3, 1 << 40), (0, u64::MAX), (3, u64::MAX)] {
            let error = with(document, start).unwrap_err().to_string();
            assert_eq!(error, "forged: damaged: its documents do not begin one after the other");
        }
        assert_eq!(with(3, 8).unwrap().starts(1..9), [4, 6, 8]);
    }

    #[test]
    fn what_is_written_is_read() {
        for vocab_size in [11, 65_536, 65_537, 128_256] {
            let (_, tokens) = written(vocab_size);
            assert_eq!(tokens.read(0..100), [5, 6, 7, 0, 8, 0, 9, 10, 0]);
            assert_eq!(tokens.read(4..7), [8, 0, 9]);
            assert_eq!(tokens.starts(0..9), [0, 4, 6, 7]);
            assert_eq!(tokens.starts(1..7), [4, 6]);
            assert_eq!((tokens.len(), tokens.documents(), tokens.counts().text_bytes), (9, 4, 20));
        }
    }

    #[test]
    fn every_flipped_byte_and_every_missing_end_is_found() {
        let (store, _) = written(11);
        let whole = block_on(store.read("t")).unwrap().to_vec();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            block_on(store.write("t", &damaged)).unwrap();
            assert!(block_on(Tokens::open(&store, "t", &[7; 32], 11)).is_err(), "byte {i}");
            block_on(store.write("t", &whole[..i])).unwrap();
            assert!(block_on(Tokens::open(&store, "t", &[7; 32], 11)).is_err(), "cut to {i}");
        }
        block_on(store.write("t", &whole)).unwrap();
        assert!(block_on(Tokens::open(&store, "t", &[8; 32], 11)).is_err(), "another key");
    }
}
