//! Text files as a stream of documents, read in pieces of at most a mebibyte.
//!
//! A text file is one document unless `<|endoftext|>` separates several (a line break right after it
//! belongs to the separator); of a JSONL file every row is one. Bytes are taken as they are (BOM, NUL and
//! CRLF included), except that invalid UTF-8 is replaced by U+FFFD and counted. Rows without text are
//! skipped and counted. Files that are not text at all are refused.

mod preview;

use std::collections::HashSet;

use crate::config::SourceConfig;
use crate::control::{Control, Flow};
use crate::data::jsonl::text_of;
use crate::data::raw::{check_text, count_of, find, good_cut, lossy};
use crate::error::{Error, Result};
use crate::protocol::Event;
use crate::store::{Bytes, Store};
use crate::text::Tokenizer;

pub use preview::preview;

/// Separates documents within a text file.
pub const SEPARATOR: &str = "<|endoftext|>";

/// Longest piece of text that is handled at once.
pub const PIECE_BYTES: usize = 1 << 20;

/// The files of a source, checked to be text.
#[derive(Debug, Clone)]
pub struct Source {
    store: Store,
    name: String,
    files: Vec<String>,
    text_key: String,
    keyed: bool,
    size_bytes: u64,
}

/// What reading did to the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Bytes of invalid UTF-8 that were replaced.
    pub replaced_bytes: u64,
    /// JSONL rows that were left out.
    pub skipped_rows: u64,
    /// Where and why, for the first few.
    pub first_skipped: Vec<String>,
}

/// One look at all bytes of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Hash of names of formats, key and contents; file names do not count.
    pub hash: blake3::Hash,
    /// Bytes in all files.
    pub size_bytes: u64,
    /// Documents, or some more: empty ones and broken rows are counted here.
    pub documents: u64,
}

impl Source {
    /// Finds the files and checks that they hold text.
    ///
    /// # Errors
    /// [`Error::File`] for missing files, [`Error::Data`] for empty and binary ones.
    pub async fn open(store: &Store, name: &str, config: &SourceConfig) -> Result<Self> {
        let keyed = matches!(config, SourceConfig::Keyed { .. });
        let mut files: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for path in config.paths() {
            files.extend(store.expand(path).await?.into_iter().filter(|file| seen.insert(file.clone())));
        }
        let (mut kept, mut size_bytes) = (Vec::new(), 0);
        let single = files.len() == 1;
        for file in files {
            let blob = store.open(&file).await?;
            if blob.size_bytes() == 0 && !single {
                continue;
            }
            check_text(&file, &blob)?;
            size_bytes += blob.size_bytes();
            kept.push(file);
        }
        if kept.is_empty() {
            return Err(Error::Data(format!("source {name}: {} holds no text", config.paths().join(", "))));
        }
        Ok(Self { store: store.clone(), name: name.into(), files: kept, text_key: config.text_key().into(), keyed, size_bytes })
    }

    /// Name of the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its files.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Bytes in all its files.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn has_rows(&self, file: &str) -> bool {
        let lower = file.to_ascii_lowercase();
        self.keyed || lower.ends_with(".jsonl") || lower.ends_with(".ndjson")
    }

    /// Hashes the contents and counts the documents. `None` when stopped.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn survey(&self, control: &Control) -> Result<Option<Survey>> {
        let task = format!("read {}", self.name);
        let mut hasher = blake3::Hasher::new();
        let (mut documents, mut done) = (0u64, 0u64);
        for file in &self.files {
            let blob = self.store.read(file).await?;
            let rows = self.has_rows(file);
            hasher.update(if rows { b"rows" } else { b"text" });
            hasher.update(self.text_key.as_bytes());
            hasher.update(&(blob.len() as u64).to_le_bytes());
            documents += 1;
            let mut at = 0;
            while at < blob.len() {
                let end = (at + (16 << 20)).min(blob.len());
                hasher.update(&blob[at..end]);
                documents += if rows {
                    blob[at..end].iter().filter(|byte| **byte == b'\n').count() as u64
                } else {
                    count_of(SEPARATOR.as_bytes(), &blob, at, end)
                };
                done += (end - at) as u64;
                at = end;
                if self.size_bytes > 64 << 20 {
                    control.progress(&task, done, self.size_bytes, "bytes");
                }
                if control.breathe().await == Flow::Stop {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Survey { hash: hasher.finalize(), size_bytes: self.size_bytes, documents }))
    }

    /// Begins to read.
    pub fn reader(&self) -> Reader {
        Reader {
            source: self.clone(),
            file: 0,
            open: None,
            offset: 0,
            line: 0,
            read_before: 0,
            told: 0,
            document: None,
            report: Report::default(),
        }
    }
}

/// Reads a source document by document, piece by piece.
pub struct Reader {
    source: Source,
    file: usize,
    open: Option<Bytes>,
    offset: usize,
    line: u64,
    read_before: u64,
    told: u64,
    document: Option<Document>,
    report: Report,
}

/// The text of a document that is being read.
struct Document {
    text: Text,
    /// Bytes that were handed out.
    at: usize,
    size: usize,
}

enum Text {
    /// Bytes of a file from this offset on.
    Range(Bytes, usize),
    Row(String),
}

impl Document {
    fn bytes(&self) -> &[u8] {
        match &self.text {
            Text::Range(blob, start) => &blob[*start..*start + self.size],
            Text::Row(text) => text.as_bytes(),
        }
    }
}

impl Reader {
    /// Goes to the next document that holds more than white space and returns its size in bytes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn next_document(&mut self) -> Result<Option<u64>> {
        self.document = None;
        loop {
            let Some(name) = self.source.files.get(self.file) else { return Ok(None) };
            let blob = match &self.open {
                Some(blob) => blob.clone(),
                None => self.source.store.read(name).await?,
            };
            self.open = Some(blob.clone());
            if self.offset >= blob.len() {
                self.read_before += blob.len() as u64;
                (self.open, self.offset, self.line) = (None, 0, 0);
                self.file += 1;
                continue;
            }
            let document = if self.source.has_rows(name) { self.row(&blob) } else { self.text(&blob) };
            let document = document.filter(|document| !document.bytes().iter().all(u8::is_ascii_whitespace));
            if let Some(document) = document {
                let size = document.size as u64;
                self.document = Some(document);
                return Ok(Some(size));
            }
        }
    }

    fn text(&mut self, blob: &Bytes) -> Option<Document> {
        let start = self.offset;
        let end = find(&blob[start..], SEPARATOR.as_bytes()).map(|at| start + at);
        self.offset = end.map_or(blob.len(), |end| end + SEPARATOR.len());
        if end.is_some() {
            let rest = &blob[self.offset..];
            self.offset += if rest.starts_with(b"\r\n") { 2 } else { usize::from(rest.starts_with(b"\n")) };
        }
        Some(Document { text: Text::Range(blob.clone(), start), at: 0, size: end.unwrap_or(blob.len()) - start })
    }

    fn row(&mut self, blob: &Bytes) -> Option<Document> {
        let rest = &blob[self.offset..];
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        self.offset += end + 1;
        self.line += 1;
        let bytes = rest[..end].strip_prefix(b"\xef\xbb\xbf").unwrap_or(&rest[..end]);
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let row = lossy(bytes, &mut self.report.replaced_bytes);
        match text_of(&row, &self.source.text_key) {
            Ok(text) => Some(Document { at: 0, size: text.len(), text: Text::Row(text) }),
            Err(why) => {
                self.report.skipped_rows += 1;
                if self.report.first_skipped.len() < 3 {
                    self.report.first_skipped.push(format!("{}:{}: {why}", self.source.files[self.file], self.line));
                }
                None
            }
        }
    }

    /// The next piece of the document, at most [`PIECE_BYTES`] long, and whether it lies at or behind byte
    /// `cut` (moved back to a good place), as the held-out tail of a long document does.
    pub fn next_piece(&mut self, cut: u64) -> Option<(String, bool)> {
        let document = self.document.as_mut()?;
        let (at, size) = (document.at, document.size);
        if at >= size {
            return None;
        }
        let cut = usize::try_from(cut).unwrap_or(size).min(size);
        let bytes = document.bytes();
        let cut = if cut == 0 || cut == size { cut } else { good_cut(bytes, cut) };
        let end = if at < cut { cut } else { size };
        let end = if end - at > PIECE_BYTES { good_cut(&bytes[at..], PIECE_BYTES) + at } else { end };
        let text = lossy(&bytes[at..end], &mut self.report.replaced_bytes);
        document.at = end;
        Some((text, at >= cut))
    }

    /// Between two pieces: tells how far the reading is, a quarter of a mebibyte at a time, and lets others run.
    pub async fn breathe(&mut self, task: &str, control: &Control) -> Flow {
        let at = self.position();
        if at >= self.told + (1 << 18) {
            self.told = at;
            control.progress(task, at, self.source.size_bytes, "bytes");
        }
        control.breathe_if_due().await
    }

    /// Bytes of the files that were read so far.
    pub fn position(&self) -> u64 {
        let inside = match &self.document {
            Some(Document { text: Text::Range(_, start), at, .. }) => start + at,
            _ => self.offset,
        };
        self.read_before + self.open.as_ref().map_or(0, |blob| inside.min(blob.len())) as u64
    }

    /// What was replaced and skipped so far.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl Report {
    /// Tells people about it, if there is something to tell.
    pub fn tell(&self, source: &str, control: &Control) {
        if self.replaced_bytes > 0 {
            control.warn(format!(
                "{source}: {} bytes were not valid UTF-8 and became U+FFFD; is the file in another encoding?",
                self.replaced_bytes
            ));
        }
        if self.skipped_rows > 0 {
            let rows = if self.skipped_rows == 1 { "1 row was" } else { &format!("{} rows were", self.skipped_rows) };
            let dots = if self.skipped_rows > self.first_skipped.len() as u64 { ", …" } else { "" };
            control.warn(format!("{source}: {rows} skipped ({}{dots})", self.first_skipped.join("; ")));
        }
    }
}

/// Text that [`read_text`] takes into memory at most.
const MOST_TEXT: u64 = 1 << 30;

/// All text of a file, for scoring; documents are joined by [`SEPARATOR`]. Ends early when stopped.
///
/// # Errors
/// As [`Source::open`]; [`Error::Data`] for more than a gibibyte.
pub async fn read_text(store: &Store, file: &str, control: &Control) -> Result<String> {
    let source = Source::open(store, file, &SourceConfig::Path(file.into())).await?;
    if source.size_bytes > MOST_TEXT {
        return Err(Error::Data(format!("{file}: {} bytes are too many to score at once; give a part of it", source.size_bytes)));
    }
    let mut reader = source.reader();
    let mut all = String::new();
    while let Some(size) = reader.next_document().await? {
        if !all.is_empty() {
            all.push_str(SEPARATOR);
        }
        while let Some((text, _)) = reader.next_piece(size) {
            all.push_str(&text);
        }
        if control.breathe_if_due().await == Flow::Stop {
            break;
        }
    }
    reader.report.tell(file, control);
    Ok(all)
}

/// Counts the tokens of a file without keeping them. `None` when stopped.
///
/// # Errors
/// As [`Source::open`].
pub async fn count(store: &Store, file: &str, tokenizer: &Tokenizer, control: &Control) -> Result<Option<Event>> {
    let source = Source::open(store, file, &SourceConfig::Path(file.into())).await?;
    let task = format!("tokenize {file}");
    let mut reader = source.reader();
    let (mut tokens, mut text_bytes) = (0, 0);
    while let Some(size) = reader.next_document().await? {
        while let Some((text, _)) = reader.next_piece(size) {
            text_bytes += text.len() as u64;
            tokens += tokenizer.encode(&text).len() as u64;
            if reader.breathe(&task, control).await == Flow::Stop {
                return Ok(None);
            }
        }
    }
    control.progress(&task, source.size_bytes, source.size_bytes, "bytes");
    reader.report.tell(file, control);
    let replaced_bytes = reader.report.replaced_bytes;
    Ok(Some(Event::Tokenized { file: file.into(), size_bytes: source.size_bytes, text_bytes, tokens, replaced_bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::Random;
    use futures_lite::future::block_on;

    fn quiet() -> Control {
        Control::connect().0
    }

    fn source(files: &[(&str, &[u8])], config: SourceConfig) -> Result<Source> {
        let store = Store::memory();
        for (name, bytes) in files {
            block_on(store.write(name, bytes)).unwrap();
        }
        block_on(Source::open(&store, "s", &config))
    }

    fn path(path: &str) -> SourceConfig {
        SourceConfig::Path(path.into())
    }

    fn documents(source: &Source) -> (Vec<String>, Report) {
        let mut reader = source.reader();
        let mut all = Vec::new();
        while let Some(size) = block_on(reader.next_document()).unwrap() {
            let mut text = String::new();
            while let Some((piece, held)) = reader.next_piece(size) {
                assert!(piece.len() <= PIECE_BYTES * 3 && !held);
                text += &piece;
            }
            all.push(text);
        }
        assert_eq!(reader.position(), source.size_bytes());
        (all, reader.report().clone())
    }

    #[track_caller]
    fn reads(bytes: &[u8], expected: &[&str]) -> Report {
        let (texts, report) = documents(&source(&[("a.txt", bytes)], path("a.txt")).unwrap());
        assert_eq!(texts, expected);
        report
    }

    #[test]
    fn a_file_is_a_document_unless_it_is_separated() {
        reads(b"one\ntwo\n", &["one\ntwo\n"]);
        reads(b"one<|endoftext|>two<|endoftext|>\nthree\n<|endoftext|>\r\n\nfour<|endoftext|>", &["one", "two", "three\n", "\nfour"]);
        reads(b"<|endoftext|><|endoftext|>x<|endoftex", &["x<|endoftex"]);
    }

    #[test]
    fn bytes_are_left_as_they_are() {
        reads(b"\xef\xbb\xbfa\r\nb\0c\x1b[0m\r\n", &["\u{feff}a\r\nb\0c\x1b[0m\r\n"]);
    }

    #[test]
    fn invalid_utf8_is_replaced_and_counted() {
        let report = reads(b"caf\xe9 and \xff\xfe\xf0\x9f\x98 end", &["caf\u{fffd} and \u{fffd}\u{fffd}\u{fffd} end"]);
        assert_eq!(report.replaced_bytes, 6);
        let (control, _, events) = Control::connect();
        report.tell("books", &control);
        let Ok((_, Event::Notice { warning: true, text })) = events.try_recv() else { panic!("no warning") };
        assert!(text.starts_with("books: 6 bytes"), "{text}");
    }

    #[test]
    fn long_lines_and_long_documents_come_in_pieces() {
        for unit in ["x", "語", "word ", "line\n", "\n"] {
            let text = unit.repeat(3 * PIECE_BYTES / unit.len() + 7);
            let (texts, report) = documents(&source(&[("a.txt", text.as_bytes())], path("a.txt")).unwrap_or_else(|_| panic!("{unit:?}")));
            assert_eq!(report.replaced_bytes, 0);
            assert!(if unit == "\n" { texts.is_empty() } else { texts.concat() == text }, "{unit:?}");
        }
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let noise: Vec<u8> = {
            let mut random = Random::new(1);
            (0..5000).map(|_| random.next_u64() as u8).collect()
        };
        let latin: Vec<u8> = b"\xe4\xf6\xfc\xdf ".repeat(1000);
        let utf16: Vec<u8> = "\u{feff}some text".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let bare16: Vec<u8> = "some text in sixteen bits".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases: [(&[u8], &str); 6] =
            [(b"", "empty"), (&noise, "binary"), (&latin, "not UTF-8"), (&utf16, "UTF-16"), (&bare16, "binary"), (&[0; 100], "binary")];
        for (bytes, word) in cases {
            let error = source(&[("a.txt", bytes)], path("a.txt")).unwrap_err().to_string();
            assert!(error.starts_with("a.txt: ") && error.contains(word) && !error.contains('\n'), "{error}");
        }
        assert!(source(&[], path("missing.txt")).unwrap_err().to_string().contains("no such file"));
        let error = source(&[("d/a.txt", b""), ("d/b.txt", b"")], path("d")).unwrap_err().to_string();
        assert!(error.contains("holds no text"), "{error}");
    }

    #[test]
    fn folders_are_read_in_order_without_hidden_and_empty_files() {
        let files: [(&str, &[u8]); 5] =
            [("d/b.txt", b"b"), ("d/a.txt", b"a"), ("d/.git/x", b"no"), ("d/c/d.jsonl", b"{\"text\": \"d\"}"), ("d/e.txt", b"")];
        let source = source(&files, path("d")).unwrap();
        assert_eq!(documents(&source).0, ["a", "b", "d"]);
    }

    #[test]
    fn broken_rows_are_skipped_counted_and_named() {
        let rows = b"\xef\xbb\xbf{\"body\": \"one\", \"x\": [[{}]]}\r\n\n{\"body\": 5}\nnonsense\n{\"body\": \"\"}\n{\"text\": \"no\"}\n[1]\n{\"body\": \"t\xffwo\\n\\u00e9\"}";
        let config = SourceConfig::Keyed { path: "r.txt".into(), text_key: "body".into() };
        let (texts, report) = documents(&source(&[("r.txt", rows)], config).unwrap());
        assert_eq!(texts, ["one", "t\u{fffd}wo\né"]);
        assert_eq!((report.skipped_rows, report.replaced_bytes), (5, 1));
        assert_eq!(report.first_skipped.len(), 3);
        assert!(report.first_skipped[0].starts_with("r.txt:3: ") && report.first_skipped[1].starts_with("r.txt:4: "), "{report:?}");
        let deep = [b"{\"x\": ".as_slice(), &b"[".repeat(100_000), b"\n{\"text\": \"fine\"}"].concat();
        let (texts, report) = documents(&source(&[("r.jsonl", &deep)], path("r.jsonl")).unwrap());
        assert_eq!((texts, report.skipped_rows), (vec!["fine".to_string()], 1));
    }

    #[test]
    fn survey_depends_on_content_alone() {
        let survey = |files: &[(&str, &[u8])], at: &str| block_on(source(files, path(at)).unwrap().survey(&quiet())).unwrap().unwrap();
        let one = survey(&[("a.txt", b"x<|endoftext|>y")], "a.txt");
        assert_eq!((one.documents, one.size_bytes), (2, 15));
        assert_eq!(one, survey(&[("other.txt", b"x<|endoftext|>y")], "other.txt"));
        assert_ne!(one.hash, survey(&[("a.txt", b"x<|endoftext|>z")], "a.txt").hash);
        assert_ne!(survey(&[("d/a", b"xy"), ("d/b", b"z")], "d").hash, survey(&[("d/a", b"x"), ("d/b", b"yz")], "d").hash);
    }
}
