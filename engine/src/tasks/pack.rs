//! A run, a model or an adapter as one `.zip`.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use zip::result::ZipError;
use zip::write::{SimpleFileOptions, StreamWriter, ZipWriter};
use zip::{CompressionMethod, DateTime};

use crate::config::finetune::FinetuneConfig;
use crate::control::{Control, Flow};
use crate::data::shard;
use crate::error::{Error, Result};
use crate::protocol::Event;
use crate::store::{Blob, Entry, Store, Writer};
use crate::train::{runs, tokens};

/// What a folder that trained is called.
pub(super) const RUN: &str = "run";

/// Bytes that are read and written at once.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Writes a folder as a `.zip`: of a run everything that it needs to be resumed, the tokens of its texts included, but not
/// the rows and the base of one that fine-tunes; hidden files (locks, temporaries, caches) and what was packed before are left out. A file that exists is replaced.
///
/// # Errors
/// [`Error::Config`] for what is no run, model or adapter, and where a folder has the name; [`Error::File`] while the run is in
/// progress; [`Error::DiskFull`]. Nothing is left behind then.
pub async fn run(folder: &str, out: &str, store: &Store, control: &Control) -> Result<()> {
    let folder = folder.trim_end_matches('/');
    let Some(what) = kind(store, folder).await else {
        return Err(Error::Config(format!(
            "{folder}: neither a run nor a model or adapter; there is no config.yaml, config.json or adapter_config.json in it"
        )));
    };
    let is_run = what == RUN;
    if store.is_folder(out).await {
        return Err(Error::Config(format!("--out {out}: is a folder; choose another file")));
    }
    let _lock = if is_run { Some(runs::hold(store, folder).await?) } else { None };
    let mut entries = files(store, folder).await?;
    if store.exists(&format!("{folder}/{}", runs::TUNING)).await {
        tell_needed(store, folder, control).await?;
    } else if is_run {
        add_tokens(store, folder, &mut entries, control).await?;
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    if zip(store, &entries, out, control).await? == Flow::Continue {
        control.emit(Event::Wrote { what: what.into(), path: out.into() });
    }
    Ok(())
}

/// What a folder holds that can be packed.
pub(super) async fn kind(store: &Store, folder: &str) -> Option<&'static str> {
    let has = async |file: &str| store.exists(&format!("{folder}/{file}")).await;
    match () {
        () if runs::is_run(store, folder).await => Some(RUN),
        () if has("config.json").await => Some("model"),
        () if has("adapter_config.json").await => Some("adapter"),
        () => None,
    }
}

/// Says what a fine-tuning run needs wherever it goes on, and does not bring along.
async fn tell_needed(store: &Store, run: &str, control: &Control) -> Result<()> {
    let (config, _) = FinetuneConfig::from_yaml(&store.read_text(&format!("{run}/{}", runs::TUNING)).await?)?;
    let FinetuneConfig { model_name, train_file, validation_file, chat_template, .. } = config;
    let files = train_file.named().chain(validation_file.named()).chain(&chat_template);
    let files: Vec<&str> = files.chain([&model_name]).map(String::as_str).collect();
    control.notice(format!("to go on elsewhere it needs its rows and its base there, too, under the same names: {}", files.join(", ")));
    Ok(())
}

/// What goes into the `.zip`: the name there and the file.
async fn files(store: &Store, folder: &str) -> Result<Vec<(String, Entry)>> {
    let inside = format!("{folder}/");
    let named = runs::files(store, folder).await?.into_iter().filter_map(|entry| {
        let name = entry.name.strip_prefix(&inside)?.to_string();
        let left_out = name.ends_with(".zip") || name.split('/').any(|part| part.starts_with('.'));
        (!left_out).then_some((name, entry))
    });
    Ok(named.collect())
}

/// The tokens of a run's sources that do not lie in its folder already.
async fn add_tokens(store: &Store, run: &str, entries: &mut Vec<(String, Entry)>, control: &Control) -> Result<()> {
    let hashes = tokens::hashes(store, run).await?;
    let cached = store.list(&tokens::cache(run)).await?;
    let mut missing = hashes.is_empty();
    for hash in hashes.values() {
        for (name, file) in shard::file_names(tokens::OWN, hash).into_iter().zip(shard::file_names(&tokens::cache(run), hash)) {
            if entries.iter().any(|(known, _)| *known == name) {
                continue;
            }
            match cached.iter().find(|entry| entry.name == file) {
                Some(entry) => entries.push((name, entry.clone())),
                None => missing = true,
            }
        }
    }
    if missing {
        control.warn("the tokens of the run's texts are not here: to resume it elsewhere, put the texts there, too");
    }
    Ok(())
}

async fn zip(store: &Store, entries: &[(String, Entry)], out: &str, control: &Control) -> Result<Flow> {
    let total = entries.iter().map(|(_, entry)| entry.size_bytes).sum();
    let mut zip = Zip::create(out, total, None, store).await?;
    for (name, entry) in entries {
        let blob = store.open(&entry.name).await?;
        if zip.add(name, &blob, method(name), control).await? == Flow::Stop {
            return Ok(Flow::Stop);
        }
    }
    zip.finish().await?;
    Ok(Flow::Continue)
}

/// Text is compressed; numbers would gain little for their time.
fn method(name: &str) -> CompressionMethod {
    let is_text = [".jsonl", ".json", ".log", ".html", ".yaml"].iter().any(|end| name.ends_with(end));
    if is_text { CompressionMethod::Deflated } else { CompressionMethod::Stored }
}

/// A `.zip` in the making; dropped without [`Zip::finish`] it leaves nothing behind. The same files give the same bytes.
pub(super) struct Zip {
    writer: ZipWriter<StreamWriter<Output>>,
    failed: Rc<RefCell<Option<Error>>>,
    done: u64,
    total: u64,
}

impl Zip {
    /// Begins one of files that have `total` bytes; with a limit that many bytes are the most, and what is said otherwise.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub(super) async fn create(out: &str, total: u64, limit: Option<(u64, Error)>, store: &Store) -> Result<Self> {
        let failed = Rc::new(RefCell::new(None));
        let output = Output { writer: store.create(out).await?, written: 0, limit, failed: failed.clone(), broken: false };
        Ok(Self { writer: ZipWriter::new_stream(output), failed, done: 0, total })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// Where it cannot be read or written, and over the limit.
    pub(super) async fn add(&mut self, name: &str, blob: &Blob, method: CompressionMethod, control: &Control) -> Result<Flow> {
        let options = SimpleFileOptions::default().compression_method(method).last_modified_time(DateTime::default());
        let options = options.large_file(blob.size_bytes() >= u64::from(u32::MAX) / 2);
        self.writer.start_file(name, options).map_err(|e| reason(&self.failed, &e))?;
        for start in (0..blob.size_bytes()).step_by(PIECE_BYTES) {
            let piece = blob.read(start..start + PIECE_BYTES as u64)?;
            self.writer.write_all(&piece).map_err(|e| reason(&self.failed, &e.into()))?;
            self.done += piece.len() as u64;
            control.progress("pack", self.done, self.total, "bytes");
            if control.breathe().await == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    /// Makes it durable and gives it its name; returns its bytes.
    ///
    /// # Errors
    /// Where it cannot be written, and over the limit.
    pub(super) async fn finish(self) -> Result<u64> {
        let Self { writer, failed, .. } = self;
        let output = writer.finish().map_err(|e| reason(&failed, &e))?.into_inner();
        output.writer.finish().await?;
        Ok(output.written)
    }
}

/// What has failed below the zip crate, or what it says itself.
fn reason(failed: &RefCell<Option<Error>>, error: &ZipError) -> Error {
    failed.take().unwrap_or_else(|| Error::Internal(format!("writing a zip: {error}")))
}

/// A blob as the zip crate writes to it. The first error is kept; what comes afterwards is not written any more, nor is it
/// an error, for the zip crate tells those aloud.
struct Output {
    writer: Writer,
    written: u64,
    /// Most bytes, and what is said of more.
    limit: Option<(u64, Error)>,
    failed: Rc<RefCell<Option<Error>>>,
    broken: bool,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        match &self.limit {
            Some((most, error)) if self.written > *most => Err(error.clone()),
            _ => self.writer.write(bytes),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Ok(bytes.len());
        }
        self.add(bytes).map(|()| bytes.len()).map_err(|error| {
            self.broken = true;
            *self.failed.borrow_mut() = Some(error);
            io::ErrorKind::Other.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
