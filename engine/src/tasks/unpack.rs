//! A `.zip` of a run, a model or an adapter as a folder. Nothing in the file is believed.

use std::collections::HashSet;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use zip::ZipArchive;
use zip::read::ZipFile;
use zip::result::ZipError;

use super::pack::{self, PIECE_BYTES};
use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::protocol::Event;
use crate::store::{Blob, Store};
use crate::train::run::quoted;
use crate::train::runs;

/// What a `.zip` may hold.
pub(super) struct Rules {
    /// Most files.
    pub(super) files: usize,
    /// Most bytes of all files together.
    pub(super) bytes: u64,
    /// How much larger than the `.zip` they may be, beyond `free_bytes`.
    pub(super) ratio: u64,
    /// Text compresses well: so much is fine whatever the `.zip` measures.
    pub(super) free_bytes: u64,
    /// Looks at the files and changes their names to those that they get.
    pub(super) accept: fn(&mut [Named]) -> Result<(), String>,
}

/// A run, a model or an adapter.
const PACKED: Rules = Rules { files: 100_000, bytes: 64 << 30, ratio: 100, free_bytes: 64 << 20, accept: accept_packed };

/// Makes a folder of a `.zip`; returns what to tell the user.
///
/// # Errors
/// [`Error::Config`] for a folder that exists, [`Error::Format`] for a file that is damaged, hostile, or holds no run, model
/// or adapter, [`Error::DiskFull`]. Nothing is left behind then.
pub async fn run(file: &str, out: &str, store: &Store, control: &Control) -> Result<Vec<String>> {
    let out = out.trim_end_matches('/');
    if store.exists(out).await {
        return Err(Error::Config(format!("--out {out}: exists already; choose another folder")));
    }
    let (parent, name) = out.rsplit_once('/').map_or(("", out), |(parent, name)| (parent, name));
    let temporary = if parent.is_empty() { format!(".{name}.unpacking") } else { format!("{parent}/.{name}.unpacking") };
    store.remove(&temporary).await?;
    match unpack(file, store, &PACKED, &temporary, store, control).await {
        Ok(Flow::Continue) => {
            store.rename(&temporary, out).await?;
            let what = pack::kind(store, out).await.unwrap_or_default();
            control.emit(Event::Wrote { what: what.into(), path: out.into() });
            let command = match store.exists(&format!("{out}/{}", runs::TUNING)).await {
                true => "finetune --resume --output-dir",
                false => "train --resume --out",
            };
            let hint = || format!("where its updates are not all made, go on with: smolforge {command} {}", quoted(out));
            Ok((what == pack::RUN).then(hint).into_iter().collect())
        }
        ended => {
            store.remove(&temporary).await?;
            ended.map(|_| Vec::new())
        }
    }
}

/// Writes the files of a `.zip` that lies in the store `from` into a folder of the store `to`.
///
/// # Errors
/// [`Error::Format`] for what breaks the rules or is damaged, [`Error::DiskFull`]. What was written until then is left.
pub(super) async fn unpack(file: &str, from: &Store, rules: &Rules, folder: &str, to: &Store, control: &Control) -> Result<Flow> {
    let damaged = |why: String| Error::format(file, why);
    let reader = Reading { blob: from.open(file).await?, at: 0 };
    let size_bytes = reader.size_bytes();
    let mut zip = ZipArchive::new(BufReader::with_capacity(1 << 16, reader)).map_err(|e| damaged(words(&e)))?;
    let names = check(&mut zip, size_bytes, rules).map_err(damaged)?;
    let total: u64 = names.iter().map(|named| named.size_bytes).sum();
    let mut done = 0;
    for Named { index, name, size_bytes } in &names {
        let mut entry = zip.by_index(*index).map_err(|e| damaged(format!("{name}: {}", words(&e))))?;
        let mut writer = to.create(&format!("{folder}/{name}")).await?;
        let mut left = *size_bytes;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = read_piece(&mut entry, &mut piece).map_err(|e| damaged(format!("{name}: is damaged ({e})")))?;
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| damaged(format!("{name}: is larger than it says")))?;
            writer.write(&piece[..read])?;
            done += read as u64;
            control.progress("unpack", done, total, "bytes");
            if control.breathe().await == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        if left > 0 {
            return Err(damaged(format!("{name}: is smaller than it says")));
        }
        writer.finish().await?;
    }
    Ok(Flow::Continue)
}

/// Fills the piece as far as there is something to read.
fn read_piece(entry: &mut ZipFile<'_, BufReader<Reading>>, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match entry.read(&mut piece[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// A file in the `.zip` under the name that it gets.
pub(super) struct Named {
    index: usize,
    pub(super) name: String,
    size_bytes: u64,
}

/// The files to write, after a look at every name and size. What is hidden, folders, and what systems add are left out.
fn check(zip: &mut ZipArchive<BufReader<Reading>>, size_bytes: u64, rules: &Rules) -> Result<Vec<Named>, String> {
    if zip.len() > rules.files {
        return Err(format!("holds {} files; {} are the most", zip.len(), rules.files));
    }
    if zip.has_duplicate_names() {
        return Err("holds two files of the same name".into());
    }
    if zip.has_overlapping_files().map_err(|e| words(&e))? {
        return Err("its files overlap".into());
    }
    let mut names = Vec::new();
    for index in 0..zip.len() {
        let entry = zip.by_index_data(index).map_err(|e| words(&e))?;
        let name = entry.name().map_err(|e| words(&e))?.into_owned();
        let name = allowed(&name).ok_or_else(|| format!("{name:?} is no name that a packed file may have"))?;
        if entry.is_symlink() {
            return Err(format!("{name} is a link, not a file"));
        }
        let left_out = name.split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
        if !entry.is_dir() && !left_out {
            names.push(Named { index, name: name.into(), size_bytes: entry.size() });
        }
    }
    let total = names.iter().fold(0u64, |total, named| total.saturating_add(named.size_bytes));
    let most = rules.bytes.min(size_bytes.saturating_mul(rules.ratio).saturating_add(rules.free_bytes));
    if total > most {
        return Err(format!("says that its files have {total} bytes; {most} are the most for a file of its size"));
    }
    (rules.accept)(&mut names)?;
    // Names that differ in nothing but case are one file on some systems; a name cannot be a file and a folder.
    let lower: Vec<String> = names.iter().map(|named| named.name.to_lowercase()).collect();
    let files: HashSet<&str> = lower.iter().map(String::as_str).collect();
    if files.len() < lower.len() {
        return Err("holds two files of the same name".into());
    }
    let is_folder_too = |name: &String| name.match_indices('/').any(|(at, _)| files.contains(&name[..at]));
    if let Some(name) = lower.iter().find(|name| is_folder_too(name)) {
        return Err(format!("{name}: a folder in its name is a file, too"));
    }
    Ok(names)
}

/// Takes off the folder around what was packed, if there is one.
fn accept_packed(names: &mut [Named]) -> Result<(), String> {
    take_off_folder(names);
    let has = |name: &str| names.iter().any(|named| named.name.eq_ignore_ascii_case(name));
    match has("config.json") || has("adapter_config.json") || has("config.yaml") && has("events.jsonl") {
        true => Ok(()),
        false => {
            Err("holds neither a run nor a model or adapter: no config.yaml with events.jsonl, config.json or adapter_config.json".into())
        }
    }
}

/// The name without a slash at its end, if it leads down from the folder and means the same on every system.
pub(super) fn allowed(name: &str) -> Option<&str> {
    let name = name.strip_suffix('/').unwrap_or(name);
    let plain = |part: &str| {
        let bad = |c: char| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
        !part.is_empty() && !part.ends_with(['.', ' ']) && part.len() <= 200 && !part.contains(bad) && !is_device(part)
    };
    (name.len() <= 1000 && name.split('/').all(plain)).then_some(name)
}

/// Whether Windows means a device by a name, whatever ending it has: `CON`, `nul.txt`, `COM1`.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_uppercase();
    let numbered = || stem.strip_prefix("COM").or(stem.strip_prefix("LPT")).unwrap_or_default();
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || matches!(numbered(), "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³")
}

/// Takes off the folder that file managers put around what they zip; says whether there is one.
pub(super) fn take_off_folder(names: &mut [Named]) -> bool {
    let first = |named: &Named| named.name.split_once('/').map(|(first, _)| format!("{first}/"));
    let Some(around) = names.first().and_then(first) else { return false };
    let alone = names.iter().all(|named| named.name.starts_with(&around));
    if alone {
        names.iter_mut().for_each(|named| drop(named.name.drain(..around.len())));
    }
    alone
}

fn words(error: &ZipError) -> String {
    match error {
        ZipError::UnsupportedArchive(what) if *what == ZipError::PASSWORD_REQUIRED => "is encrypted; unpack it with another program".into(),
        ZipError::CompressionMethodNotSupported(_) => "is compressed in a way that is not supported; pack it with `smolforge pack`".into(),
        other => format!("is no whole .zip ({other}); copy it or pack it again"),
    }
}

/// A blob as the zip crate reads it.
struct Reading {
    blob: Blob,
    at: u64,
}

impl Reading {
    fn size_bytes(&self) -> u64 {
        self.blob.size_bytes()
    }
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.at.saturating_add(buffer.len() as u64);
        let bytes = self.blob.read(self.at..end).map_err(|error| io::Error::other(error.to_string()))?;
        let read = bytes.len();
        buffer[..read].copy_from_slice(&bytes);
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Reading {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(by) => self.size_bytes().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
