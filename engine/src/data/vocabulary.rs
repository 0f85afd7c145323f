//! A tokenizer for sources that come without one.

use std::collections::BTreeMap;

use crate::config::SourceConfig;
use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::data::source::Source;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::text::{Tokenizer, bpe};

/// Special tokens of our vocabularies: the end of a document, and what turns of a conversation stand between (as SmolLM2's).
const SPECIAL: [&str; 3] = [bpe::END_OF_TEXT, "<|im_start|>", "<|im_end|>"];

/// Smallest vocabulary: the special tokens and every byte.
pub const LEAST: usize = SPECIAL.len() + 256;

/// Text of a source that a tokenizer is trained on at most.
const TOKENIZER_BYTES: u64 = 64 << 20;

/// Trains a byte-level BPE on the sources; of a long one, pieces drawn from all of it. `None` when stopped.
///
/// # Errors
/// As [`Source::open`] and [`bpe::Trainer::finish`].
pub async fn train(
    store: &Store,
    sources: &BTreeMap<String, SourceConfig>,
    vocab_size: usize,
    control: &Control,
) -> Result<Option<Tokenizer>> {
    let mut trainer = bpe::Trainer::new(&SPECIAL)?;
    let mut documents = 0;
    for (name, config) in sources {
        let source = Source::open(store, name, config).await?;
        let task = format!("read {name}");
        let share = TOKENIZER_BYTES as f64 / source.size_bytes().max(1) as f64;
        let mut draw = Random::new(source.size_bytes());
        let mut reader = source.reader();
        while let Some(size) = reader.next_document().await? {
            documents += 1;
            while let Some((text, _)) = reader.next_piece(size) {
                if draw.f64() < share {
                    trainer.feed(&text)?;
                }
                if reader.breathe(&task, control).await == Flow::Stop {
                    return Ok(None);
                }
            }
        }
        control.progress(&task, source.size_bytes(), source.size_bytes(), "bytes");
    }
    if documents == 0 {
        return Err(Error::Data("no text to learn a vocabulary from: there is only white space".into()));
    }
    trainer.finish(vocab_size, control).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Event;
    use futures_lite::future::block_on;

    #[test]
    fn sources_of_any_kind_make_one_vocabulary() {
        let store = Store::memory();
        block_on(store.write("a.txt", &b"hello hello ".repeat(50))).unwrap();
        block_on(store.write("b.jsonl", b"{\"text\": \"world world world<|endoftext|>world\"}")).unwrap();
        let quiet = Control::connect().0;
        let sources = [("a", "a.txt"), ("b", "b.jsonl")].map(|(name, path)| (name.to_string(), SourceConfig::Path(path.into())));
        let tokenizer = block_on(train(&store, &sources.into(), 300, &quiet)).unwrap().unwrap();
        assert!(tokenizer.token_id("Ġhello").is_some() && tokenizer.token_id("Ġworld").is_some());
        assert_eq!(tokenizer.token_id("<|"), None, "the separator is a token, not text");
    }

    #[test]
    fn small_documents_are_not_told_one_by_one() {
        let store = Store::memory();
        block_on(store.write("a.txt", "a few words<|endoftext|>".repeat(30_000).as_bytes())).unwrap();
        let (control, signals, events) = Control::connect();
        let sources = [("a".to_string(), SourceConfig::Path("a.txt".into()))].into();
        block_on(train(&store, &sources, 260, &control)).unwrap().unwrap();
        let read = |(_, event)| match event {
            Event::Progress { task, done, total, .. } => (task == "read a").then_some((done, total)),
            _ => None,
        };
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).filter_map(read).collect();
        assert!((2..=4).contains(&told.len()) && told.is_sorted(), "{told:?}");
        assert_eq!(told.last(), Some(&(720_000, 720_000)));
        signals.stop();
        assert!(block_on(train(&store, &sources, 260, &control)).unwrap().is_none());
    }
}
