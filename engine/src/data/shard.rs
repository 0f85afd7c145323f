//! A source in tokens: made once, kept in a cache folder, memory-mapped by every run that needs it.
//!
//! The name of a shard is the hash of the text, the tokenizer and the held-out share, so a changed file or
//! tokenizer makes a new one, and an unchanged one is never tokenised twice.

mod brought;

use crate::config::SourceConfig;
use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::data::source::{Report, Source, Survey};
use crate::data::tokens::{Counts, TokenWriter, Tokens};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::text::Tokenizer;

pub use brought::{brought, file_names};

/// Changes when the same text would give other tokens or another split than before.
const VERSION: &str = "smolforge shard 1";

/// Fewest bytes of a long document that are held out, if it has twice as many.
const LEAST_TAIL: u64 = 2048;

/// Shorter documents are never cut in two.
const LEAST_CUT: u64 = 64;

/// The tokens of a source, for training and for evaluation.
#[derive(Debug, Clone)]
pub struct Shard {
    /// Name of the source.
    pub name: String,
    /// What is trained on.
    pub training: Tokens,
    /// What is only evaluated: no token of it is in `training`.
    pub held_out: Tokens,
    hash: String,
}

impl Shard {
    async fn open(store: &Store, files: &[String; 2], key: &[u8; 32], name: &str, hash: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let training = Tokens::open(store, &files[0], key, tokenizer.vocab_size()).await?;
        let held_out = Tokens::open(store, &files[1], key, tokenizer.vocab_size()).await?;
        Ok(Self { name: name.into(), training, held_out, hash: hash.into() })
    }

    /// Hash of the text, the tokenizer and the split.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Tokens that are trained on.
    pub fn train_tokens(&self) -> u64 {
        self.training.len() as u64
    }

    /// Tokens that are only evaluated.
    pub fn held_out_tokens(&self) -> u64 {
        self.held_out.len() as u64
    }

    /// Bytes of UTF-8 text that the held-out tokens stand for.
    pub fn held_out_bytes(&self) -> u64 {
        self.held_out.counts().text_bytes
    }
}

/// Opens the shard of a source, after tokenising the source if that was not done before. `None` when
/// stopped; nothing half-written is left then.
///
/// Documents longer than the held-out share of the whole source give their tail to evaluation; shorter ones
/// are held out whole, by a draw that depends on their number alone.
///
/// # Errors
/// [`Error::File`], [`Error::DiskFull`], and [`Error::Data`] for text that cannot be trained on.
pub async fn build(
    store: &Store,
    cache_folder: &str,
    name: &str,
    config: &SourceConfig,
    tokenizer: &Tokenizer,
    held_out: f64,
    control: &Control,
) -> Result<Option<Shard>> {
    let source = Source::open(store, name, config).await?;
    let Some(survey) = source.survey(control).await? else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    for part in [VERSION.as_bytes(), survey.hash.as_bytes(), tokenizer.hash().as_bytes(), &held_out.to_le_bytes()] {
        hasher.update(part);
    }
    let key = *hasher.finalize().as_bytes();
    let hash = hasher.finalize().to_hex()[..32].to_string();
    let files = file_names(cache_folder, &hash);

    let open = async || Shard::open(store, &files, &key, name, &hash, tokenizer).await;
    if store.exists(&files[0]).await && store.exists(&files[1]).await {
        match open().await {
            Ok(shard) => {
                let Counts { replaced_bytes, skipped_rows, .. } = shard.training.counts();
                let first_skipped = vec!["as reported when the text was first read".to_string()];
                Report { replaced_bytes, skipped_rows, first_skipped }.tell(name, control);
                return Ok(Some(shard));
            }
            Err(error) => control.warn(format!("{error}: tokenizing {name} again")),
        }
    }
    let split = Split::new(&survey, held_out);
    match tokenize(store, &files, &key, &source, split, tokenizer, control).await? {
        Flow::Stop => Ok(None),
        Flow::Continue => open().await.map(Some),
    }
}

async fn tokenize(
    store: &Store,
    files: &[String; 2],
    key: &[u8; 32],
    source: &Source,
    mut split: Split,
    tokenizer: &Tokenizer,
    control: &Control,
) -> Result<Flow> {
    let (vocab_size, end_of_text) = (tokenizer.vocab_size(), tokenizer.end_of_text());
    let mut training = TokenWriter::create(store, &files[0], key, vocab_size, end_of_text).await?;
    let mut held_out = TokenWriter::create(store, &files[1], key, vocab_size, end_of_text).await?;
    let mut text_bytes = [0u64; 2];
    let (task, total) = (format!("tokenize {}", source.name()), source.size_bytes());
    let mut reader = source.reader();
    while let Some(size) = reader.next_document().await? {
        let cut = split.cut(size);
        training.begin_document();
        held_out.begin_document();
        let mut last = None;
        while let Some((text, held)) = reader.next_piece(cut) {
            text_bytes[usize::from(held)] += text.len() as u64;
            let writer = if held { &mut held_out } else { &mut training };
            writer.push(&tokenizer.encode(&text))?;
            last = Some(held);
            if reader.breathe(&task, control).await == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        // Where a tail is held out, the training part has no end: the text went on.
        match last {
            Some(true) => held_out.end_document()?,
            Some(false) => training.end_document()?,
            None => {}
        }
    }
    let report = reader.report();
    report.tell(source.name(), control);
    if training.count() < 2 {
        let why = match report.first_skipped.first() {
            Some(first) => format!("no row has text ({first}); name the right key as {{path: …, text_key: …}}"),
            None => "too little text to train on".to_string(),
        };
        return Err(Error::Data(format!("source {}: {why}", source.name())));
    }
    let counts = |text_bytes| Counts { text_bytes, replaced_bytes: report.replaced_bytes, skipped_rows: report.skipped_rows };
    held_out.finish(counts(text_bytes[1])).await?;
    training.finish(counts(text_bytes[0])).await?;
    control.progress(&task, total, total, "bytes");
    Ok(Flow::Continue)
}

/// Which part of every document is held out.
struct Split {
    share: f64,
    /// Documents of more bytes give their tail.
    long: f64,
    /// The first short document from this number on is held out, so that there is one.
    sure: u64,
    number: u64,
    held: Option<u64>,
    draw: Random,
}

impl Split {
    fn new(survey: &Survey, share: f64) -> Self {
        let mut draw = Random::stream(0x5eed, survey.documents);
        let sure = draw.below((survey.documents / 2).max(1));
        // Of so few documents none is held out whole: what looks like one may be an empty end of a file.
        let long = if survey.documents < 4 { -1.0 } else { share * survey.size_bytes as f64 };
        Self { share, long, sure, number: 0, held: None, draw }
    }

    /// From which byte on the next document is held out: 0 all of it, `size` nothing.
    fn cut(&mut self, size: u64) -> u64 {
        let number = self.number;
        self.number += 1;
        let drawn = self.draw.f64() < self.share;
        if self.share <= 0.0 {
            return size;
        }
        if size as f64 > self.long {
            let tail = ((size as f64 * self.share) as u64).max(LEAST_TAIL.min(size / 2));
            return if size < LEAST_CUT { size } else { size - tail };
        }
        let sure = self.held.is_none() && number >= self.sure;
        // The document after the first one held out is always trained on, so that there is one.
        let kept = self.held.is_some_and(|held| number == held + 1);
        if sure || (drawn && !kept) {
            self.held = self.held.or(Some(number));
            return 0;
        }
        size
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::protocol::Event;
    use crate::text::tokenizer::tests::{shared_data, shared_tokenizer};
    use futures_lite::future::block_on;

    /// A shard of these documents, all of them for training.
    pub(crate) fn shard_of(name: &str, documents: &[Vec<u32>], held_out: &[Vec<u32>]) -> Shard {
        let store = Store::memory();
        let key = *blake3::hash(format!("{name} {documents:?}").as_bytes()).as_bytes();
        let file = |part: &'static str, documents: &[Vec<u32>]| {
            block_on(async {
                let mut writer = TokenWriter::create(&store, part, &key, 1000, Some(0)).await.unwrap();
                for document in documents {
                    writer.begin_document();
                    writer.push(document).unwrap();
                    writer.end_document().unwrap();
                }
                let text_bytes = 3 * writer.count();
                writer.finish(Counts { text_bytes, ..Counts::default() }).await.unwrap();
                Tokens::open(&store, part, &key, 1000).await.unwrap()
            })
        };
        Shard { name: name.into(), training: file("training", documents), held_out: file("held_out", held_out), hash: name.into() }
    }

    fn tokenizer() -> Tokenizer {
        let quiet = Control::connect().0;
        block_on(crate::text::bpe::train(["the cat sat on the mat, the cat ".repeat(9)], 280, &["<|endoftext|>"], &quiet)).unwrap().unwrap()
    }

    fn built(store: &Store, file: &str, tokenizer: &Tokenizer, held_out: f64) -> (Result<Option<Shard>>, Vec<Event>) {
        let (control, _, events) = Control::connect();
        let shard = block_on(build(store, "cache", "s", &SourceConfig::Path(file.into()), tokenizer, held_out, &control));
        (shard, std::iter::from_fn(|| Some(events.try_recv().ok()?.1)).collect())
    }

    fn text(tokenizer: &Tokenizer, tokens: &Tokens) -> String {
        tokenizer.decode(&tokens.read(0..tokens.len()), false)
    }

    fn memory(text: &str) -> Store {
        let store = Store::memory();
        block_on(store.write("a.txt", text.as_bytes())).unwrap();
        store
    }

    #[test]
    fn one_long_document_gives_its_tail() {
        let words: String = (0..20_000).map(|i| format!("word{i} ")).collect();
        let tokenizer = tokenizer();
        let shard = built(&memory(&words), "a.txt", &tokenizer, 0.1).0.unwrap().unwrap();
        let (training, held_out) = (text(&tokenizer, &shard.training), text(&tokenizer, &shard.held_out));
        assert_eq!(training.clone() + &held_out, words.clone() + "<|endoftext|>");
        let share = held_out.len() as f64 / words.len() as f64;
        assert!((share - 0.1).abs() < 0.01, "{share}");
        assert_eq!(shard.held_out_bytes() as usize, held_out.len() - "<|endoftext|>".len());
        assert_eq!((shard.training.documents(), shard.held_out.documents()), (1, 1));
    }

    #[test]
    fn of_many_documents_some_are_held_out_whole() {
        let documents: Vec<String> = (0..500).map(|i| format!("document number {i} has its own words {}", i * i)).collect();
        let tokenizer = tokenizer();
        let store = memory(&documents.join("<|endoftext|>\n"));
        let shard = built(&store, "a.txt", &tokenizer, 0.1).0.unwrap().unwrap();
        let parts =
            |tokens: &Tokens| -> Vec<String> { text(&tokenizer, tokens).split_terminator("<|endoftext|>").map(str::to_string).collect() };
        let (training, held_out) = (parts(&shard.training), parts(&shard.held_out));
        let mut all = [training, held_out.clone()].concat();
        all.sort();
        let mut expected = documents.clone();
        expected.sort();
        assert_eq!(all, expected, "every document is on exactly one side, whole");
        assert!((25..=80).contains(&held_out.len()), "{}", held_out.len());
        assert_eq!(shard.held_out.documents(), held_out.len());
    }

    #[test]
    fn there_is_always_something_on_both_sides() {
        let tokenizer = tokenizer();
        for count in 1..60 {
            for held_out in [0.01, 0.05, 0.5, 0.9] {
                let documents: Vec<String> =
                    (0..count).map(|i| format!("a small document, the one that has got the number {i}, and no more than that")).collect();
                let shard = built(&memory(&documents.join("<|endoftext|>")), "a.txt", &tokenizer, held_out).0.unwrap().unwrap();
                assert!(shard.train_tokens() > 1 && shard.held_out_tokens() > 1, "{count} documents, {held_out}");
            }
        }
        let shard = built(&memory("some words"), "a.txt", &tokenizer, 0.0).0.unwrap().unwrap();
        assert_eq!(shard.held_out_tokens(), 0);
    }

    #[test]
    fn a_shard_is_made_once_and_again_when_anything_changes() {
        let tokenizer = tokenizer();
        let store = memory(&"the cat sat on the mat. ".repeat(1000));
        let names = || block_on(store.list("cache")).unwrap().into_iter().map(|entry| entry.name).collect::<Vec<_>>();
        let tokenized = |events: &[Event]| events.iter().any(|event| matches!(event, Event::Progress { task, .. } if task == "tokenize s"));
        let (first, events) = built(&store, "a.txt", &tokenizer, 0.1);
        let first = first.unwrap().unwrap();
        assert!(tokenized(&events) && names().len() == 2);
        let (second, events) = built(&store, "a.txt", &tokenizer, 0.1);
        assert_eq!(second.unwrap().unwrap().hash(), first.hash());
        assert!(!tokenized(&events));

        let damaged = names()[1].clone();
        let mut bytes = block_on(store.read(&damaged)).unwrap().to_vec();
        bytes[100] ^= 4;
        block_on(store.write(&damaged, &bytes)).unwrap();
        let (third, events) = built(&store, "a.txt", &tokenizer, 0.1);
        assert_eq!(third.unwrap().unwrap().training.read(0..50), first.training.read(0..50));
        assert!(
            tokenized(&events)
                && events.iter().any(|event| matches!(event, Event::Notice { warning: true, text } if text.contains("damaged")))
        );

        assert_ne!(built(&store, "a.txt", &tokenizer, 0.2).0.unwrap().unwrap().hash(), first.hash());
        block_on(store.write("a.txt", &b"the dog sat on the mat. ".repeat(1000))).unwrap();
        assert_ne!(built(&store, "a.txt", &tokenizer, 0.1).0.unwrap().unwrap().hash(), first.hash());
    }

    #[test]
    fn stop_leaves_nothing_behind() {
        let store = memory(&"the cat sat on the mat. ".repeat(100_000));
        let (control, signals, _) = Control::connect();
        signals.stop();
        let shard = block_on(build(&store, "cache", "s", &SourceConfig::Path("a.txt".into()), &tokenizer(), 0.1, &control));
        assert!(shard.unwrap().is_none());
        assert!(block_on(store.list("cache")).unwrap().is_empty());
    }

    #[test]
    fn rows_without_text_are_an_error_that_names_the_first() {
        let store = Store::memory();
        block_on(store.write("a.jsonl", b"{\"body\": \"x\"}\n{\"body\": \"y\"}\n")).unwrap();
        let error = built(&store, "a.jsonl", &tokenizer(), 0.1).0.unwrap_err().to_string();
        assert!(error.contains("a.jsonl:1: no key `text`") && error.contains("text_key"), "{error}");
    }

    #[test]
    fn pieces_give_the_tokens_of_the_whole_text() {
        let (Some(tokenizer), Some(path)) = (shared_tokenizer("smollm2"), shared_data("corpora/math.txt")) else { return };
        let whole = tokenizer.encode(&std::fs::read_to_string(&path).unwrap());
        let folder = Store::memory();
        block_on(folder.write("a.txt", &std::fs::read(&path).unwrap())).unwrap();
        let shard = built(&folder, "a.txt", &tokenizer, 0.05).0.unwrap().unwrap();
        let pieces = [shard.training.read(0..usize::MAX), shard.held_out.read(0..usize::MAX)].concat();
        assert_eq!(pieces[..whole.len()], whole[..]);
        assert_eq!(pieces[whole.len()..], [0]);
    }

    #[test]
    fn shakespeare_has_341094_smollm2_tokens() {
        let (Some(tokenizer), Some(path)) = (shared_tokenizer("smollm2"), shared_data("corpora/input.txt")) else { return };
        let store = Store::memory();
        block_on(store.write("a.txt", &std::fs::read(path).unwrap())).unwrap();
        let shard = built(&store, "a.txt", &tokenizer, 0.0).0.unwrap().unwrap();
        assert_eq!(shard.train_tokens(), 341_094 + 1); // and <|endoftext|>
    }
}
