//! Training of our own byte-level BPE: the vocabulary of a run that brings no tokenizer.
//!
//! Splits text as SmolLM2 does (every digit alone, then GPT-2's words), holds all 256 bytes so that
//! no text is lost, and writes a `tokenizer.json` that Python's `tokenizers` and `transformers` load.
//! The result depends on the texts alone: ties go to the older pair, nothing to the order of a hash map.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use serde_json::{Map, Value, json};

use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::text::tokenizer::{Tokenizer, byte_alphabet};

/// The token that ends a document in vocabularies of our own.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Longer words (in bytes) are left out of the count: runs of one character teach nothing about text.
const LONGEST_WORD: usize = 128;

/// Counts words, then merges.
pub struct Trainer {
    splitter: Tokenizer,
    special: Vec<String>,
    words: HashMap<String, u64>,
}

impl Trainer {
    /// Begins with no text. The special tokens get the first ids.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for special tokens that are empty or occur twice.
    pub fn new(special: &[&str]) -> Result<Self> {
        for (index, token) in special.iter().enumerate() {
            if token.is_empty() || special[..index].contains(token) {
                return Err(Error::Tokenizer(format!("special token {token:?} is empty or given twice")));
            }
        }
        let special: Vec<String> = special.iter().map(ToString::to_string).collect();
        let splitter = Vocabulary::new(&special).tokenizer()?;
        Ok(Self { splitter, special, words: HashMap::new() })
    }

    /// Counts the words of a text (a piece of at most some MiB). Special tokens in it are left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the text cannot be split.
    pub fn feed(&mut self, text: &str) -> Result<()> {
        let mut rest = text;
        while !rest.is_empty() {
            let next = self.special.iter().filter_map(|token| rest.find(token.as_str()).map(|at| (at, token.len()))).min();
            let (end, skip) = next.unwrap_or((rest.len(), 0));
            for word in self.splitter.pieces(&rest[..end])? {
                if word.len() > LONGEST_WORD {
                    continue;
                }
                match self.words.get_mut(word) {
                    Some(count) => *count += 1,
                    None => drop(self.words.insert(word.to_string(), 1)),
                }
            }
            rest = &rest[end + skip..];
        }
        Ok(())
    }

    /// Merges the most frequent pairs until the vocabulary has `vocab_size` entries or no pair occurs
    /// twice. `None` when stopped.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where `vocab_size` has no room for the special tokens and all bytes.
    pub async fn finish(self, vocab_size: usize, control: &Control) -> Result<Option<Tokenizer>> {
        let mut vocabulary = Vocabulary::new(&self.special);
        let least = vocabulary.tokens.len();
        if vocab_size < least {
            return Err(Error::Tokenizer(format!(
                "a vocabulary of {vocab_size} has no room for {} special tokens and 256 bytes; use at least {least}",
                self.special.len()
            )));
        }
        let Some(mut pairs) = Pairs::count(self.words, self.special.len() as u32, control).await else { return Ok(None) };
        let total = (vocab_size - least) as u64;
        while vocabulary.tokens.len() < vocab_size {
            let Some(pair) = pairs.most_frequent() else { break };
            let id = vocabulary.merge(pair);
            pairs.merge(pair, id);
            let done = vocabulary.merges.len() as u64;
            if done.is_multiple_of(64) {
                control.progress("train tokenizer", done, total, "tokens");
            }
            if control.breathe_if_due().await == Flow::Stop {
                return Ok(None);
            }
        }
        control.progress("train tokenizer", total, total, "tokens");
        vocabulary.tokenizer().map(Some)
    }
}

/// Trains a tokenizer on texts, the `special` tokens first. `None` when stopped.
///
/// # Errors
/// As [`Trainer::new`] and [`Trainer::finish`].
pub async fn train(
    texts: impl IntoIterator<Item = String>,
    vocab_size: usize,
    special: &[&str],
    control: &Control,
) -> Result<Option<Tokenizer>> {
    let mut trainer = Trainer::new(special)?;
    for text in texts {
        trainer.feed(&text)?;
        if control.breathe().await == Flow::Stop {
            return Ok(None);
        }
    }
    trainer.finish(vocab_size, control).await
}

/// The tokens by id and the merges that made them.
struct Vocabulary {
    special: Vec<String>,
    tokens: Vec<String>,
    merges: Vec<String>,
}

impl Vocabulary {
    /// Special tokens, then the bytes in byte order.
    fn new(special: &[String]) -> Self {
        let tokens = special.iter().cloned().chain(byte_alphabet().into_iter().map(String::from)).collect();
        Self { special: special.to_vec(), tokens, merges: Vec::new() }
    }

    fn merge(&mut self, (left, right): (u32, u32)) -> u32 {
        let (left, right) = (&self.tokens[left as usize], &self.tokens[right as usize]);
        self.merges.push(format!("{left} {right}"));
        let token = format!("{left}{right}");
        self.tokens.push(token);
        self.tokens.len() as u32 - 1
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let added = self.special.iter().enumerate().map(|(id, content)| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        });
        let vocabulary: Map<String, Value> = self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let byte_level = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true });
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<Value>>(),
            "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level(false)] },
            "post_processor": null,
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": self.merges,
            },
        });
        Tokenizer::from_json(file.to_string().as_bytes(), "trained tokenizer")
    }
}

struct Word {
    symbols: Vec<u32>,
    count: u64,
}

/// How often every pair of neighbours occurs, and in which words.
struct Pairs {
    words: Vec<Word>,
    counts: HashMap<(u32, u32), u64>,
    places: HashMap<(u32, u32), Vec<u32>>,
    /// Counts may be out of date (too high): they are corrected when a pair comes to the top.
    queue: BinaryHeap<(u64, Reverse<(u32, u32)>)>,
}

impl Pairs {
    /// `None` when stopped.
    async fn count(words: HashMap<String, u64>, first_byte: u32, control: &Control) -> Option<Self> {
        let symbols = |word: &str| word.bytes().map(|byte| first_byte + u32::from(byte)).collect();
        let words: Vec<Word> = words.into_iter().map(|(word, count)| Word { symbols: symbols(&word), count }).collect();
        let mut counts: HashMap<(u32, u32), u64> = HashMap::new();
        let mut places: HashMap<(u32, u32), Vec<u32>> = HashMap::new();
        for (word, place) in words.iter().zip(0u32..) {
            for pair in neighbours(&word.symbols) {
                *counts.entry(pair).or_default() += word.count;
                places.entry(pair).or_default().push(place);
            }
            if place.is_multiple_of(256) && control.breathe_if_due().await == Flow::Stop {
                return None;
            }
        }
        let queue = counts.iter().map(|(pair, count)| (*count, Reverse(*pair))).collect();
        Some(Self { words, counts, places, queue })
    }

    /// The pair that occurs most often, at least twice; of equals the one of the oldest tokens.
    fn most_frequent(&mut self) -> Option<(u32, u32)> {
        loop {
            let (count, Reverse(pair)) = self.queue.pop()?;
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if count == now {
                return (count >= 2).then_some(pair);
            }
            if now > 0 {
                self.queue.push((now, Reverse(pair)));
            }
        }
    }

    /// Replaces a pair by `id` in every word.
    fn merge(&mut self, pair: (u32, u32), id: u32) {
        let mut fresh: HashMap<(u32, u32), u64> = HashMap::new();
        for place in self.places.remove(&pair).unwrap_or_default() {
            let word = &mut self.words[place as usize];
            for old in neighbours(&word.symbols) {
                if let Some(count) = self.counts.get_mut(&old) {
                    *count -= word.count;
                }
            }
            replace(&mut word.symbols, pair, id);
            for new in neighbours(&word.symbols) {
                *self.counts.entry(new).or_default() += word.count;
                if new.0 == id || new.1 == id {
                    let places = self.places.entry(new).or_default();
                    if places.last() != Some(&place) {
                        places.push(place);
                    }
                    fresh.insert(new, 0);
                }
            }
        }
        self.counts.remove(&pair);
        self.queue.extend(fresh.into_keys().map(|new| (self.counts[&new], Reverse(new))));
    }
}

fn neighbours(symbols: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    symbols.windows(2).map(|pair| (pair[0], pair[1]))
}

fn replace(symbols: &mut Vec<u32>, pair: (u32, u32), id: u32) {
    let mut write = 0;
    let mut read = 0;
    while read < symbols.len() {
        let found = read + 1 < symbols.len() && (symbols[read], symbols[read + 1]) == pair;
        symbols[write] = if found { id } else { symbols[read] };
        read += if found { 2 } else { 1 };
        write += 1;
    }
    symbols.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;

    fn control() -> Control {
        Control::connect().0
    }

    fn trained(texts: &[&str], vocab_size: usize) -> Tokenizer {
        let texts = texts.iter().map(ToString::to_string);
        block_on(train(texts, vocab_size, &[END_OF_TEXT], &control())).unwrap().unwrap()
    }

    #[test]
    fn the_most_frequent_pairs_are_merged_first() {
        // "ab" occurs five times, "abc" three times, " abc" only once.
        let tokenizer = trained(&["abc abc\nabc\nab\nab"], 261);
        assert_eq!(tokenizer.vocab_size(), 259);
        assert_eq!(tokenizer.token_id("ab"), Some(257));
        assert_eq!(tokenizer.token_id("abc"), Some(258));
        assert_eq!(tokenizer.encode("abc").len(), 1);
        assert_eq!(tokenizer.token_id(END_OF_TEXT), Some(0));
        assert_eq!(tokenizer.end_of_text(), Some(0));
    }

    #[test]
    fn every_text_survives() {
        let tokenizer = trained(&["the cat sat on the mat. the end"], 300);
        let all: String = (0..=255u32).chain([0x301, 0x8a9e, 0x1f600, 0x10ffff]).filter_map(char::from_u32).collect();
        for text in ["", "the cat", "  \n\t", "1234 ½ ²", all.as_str()] {
            let ids = tokenizer.encode(text);
            assert_eq!(tokenizer.decode(&ids, false), text);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
            assert_eq!(bytes, text.as_bytes());
        }
        assert_eq!(tokenizer.encode("a<|endoftext|>b").iter().filter(|id| **id == 0).count(), 1);
        assert_eq!(tokenizer.encode("12").len(), 2, "every digit is a token");
    }

    #[test]
    fn training_twice_gives_the_same_file() {
        let texts: HashMap<_, _> = crate::data::builtin::corpora(3, 40_000).collect();
        let (prose, code) = (&texts["input"], &texts["code"]);
        let once = trained(&[prose, code], 700);
        let again = trained(&[prose, code], 700);
        assert_eq!(once.json(), again.json());
        assert_eq!(once.vocab_size(), 700);
        let other_order = trained(&[code, prose], 700);
        assert_eq!(once.json(), other_order.json());
        // English in bytes has about 4 to 5 bytes a token at 49k entries; 700 entries give at least 2.
        assert!(prose.len() / once.encode(prose).len() >= 2);
    }

    #[test]
    fn too_small_vocabularies_and_bad_special_tokens_are_refused() {
        let error = block_on(train([], 256, &[END_OF_TEXT], &control())).unwrap_err().to_string();
        assert!(error.contains("257"), "{error}");
        assert!(block_on(train([], 300, &["x", "x"], &control())).is_err());
        assert_eq!(trained(&[], 300).vocab_size(), 257);
    }

    #[test]
    fn stop_ends_it() {
        let (control, signals, _) = Control::connect();
        signals.stop();
        assert!(block_on(train(["a".to_string()], 300, &[], &control)).unwrap().is_none());
    }
}
