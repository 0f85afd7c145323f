//! A source in tokens: made once, kept in a cache folder, memory-mapped by every run that needs it.
//!
//! The name of a shard is the hash of the text, the tokenizer and the held-out share, so a changed file or
//! tokenizer makes a new one, and an unchanged one is never tokenised twice.

use crate::config::SourceConfig;
use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::data::source::{Report, Source, Survey};
use crate::data::tokens::{Counts, TokenWriter, Tokens};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::text::Tokenizer;

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
    let files = ["training", "held_out"].map(|part| format!("{}/{hash}.{part}.tokens", cache_folder.trim_end_matches('/')));

    let open = async || -> Result<Shard> {
        let training = Tokens::open(store, &files[0], &key).await?;
        let held_out = Tokens::open(store, &files[1], &key).await?;
        Ok(Shard { name: name.into(), training, held_out, hash: hash.clone() })
    };
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
    let mut waiting = 0;
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
            waiting += text.len();
            if waiting >= 1 << 18 {
                waiting = 0;
                control.progress(&task, reader.position(), total, "bytes");
                if control.breathe().await == Flow::Stop {
                    return Ok(Flow::Stop);
                }
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
