//! Named blobs: where everything the engine reads and writes lies.
//!
//! A shell decides what a name means: a path below a folder (native), an entry of a map (tests, and a
//! browser before its files are copied in). Writing is atomic: a blob has its name only when it is whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::platform::{self, MappedFile, RandomFile};

/// A place for named blobs. Clones share it.
#[derive(Debug, Clone)]
pub enum Store {
    /// Paths, relative ones below this folder.
    Folder(String),
    /// A map in memory.
    Memory(Arc<InMemory>),
}

/// Blobs in memory.
#[derive(Debug)]
pub struct InMemory {
    blobs: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    /// Bytes that they may have together.
    room_bytes: AtomicU64,
}

impl InMemory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Vec<u8>>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many bytes more have room.
    fn fits(&self, blobs: &BTreeMap<String, Arc<Vec<u8>>>, name: &str, more: usize) -> Result<()> {
        let room = self.room_bytes.load(Ordering::Relaxed);
        let full = room < u64::MAX && (blobs.values().map(|blob| blob.len()).sum::<usize>() + more) as u64 > room;
        if full { Err(Error::DiskFull { path: name.into(), written: 0 }) } else { Ok(()) }
    }
}

/// A blob whose bytes are read where they are wanted: nothing of it needs to be in memory.
#[derive(Debug, Clone)]
pub enum Blob {
    /// An open file.
    File(Arc<RandomFile>),
    /// Bytes in memory.
    Memory(Arc<Vec<u8>>),
}

impl Blob {
    /// Bytes in all.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.size_bytes(),
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// The bytes of a range, which is cut at the end of the blob.
    ///
    /// # Errors
    /// [`Error::File`] where they cannot be read.
    pub fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let end = range.end.min(self.size_bytes());
        let start = range.start.min(end);
        match self {
            Self::File(file) => file.read(start..end),
            Self::Memory(bytes) => Ok(Cow::Borrowed(&bytes[start as usize..end as usize])),
        }
    }
}

/// All bytes of a blob: mapped from disk where the system can, so that there may be more of them than memory.
#[derive(Debug, Clone)]
pub enum Bytes {
    /// A memory-mapped file.
    Mapped(Arc<MappedFile>),
    /// Bytes in memory.
    Memory(Arc<Vec<u8>>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full name.
    pub name: String,
    /// Size; 0 for folders.
    pub size_bytes: u64,
    /// Whether it is a folder.
    pub folder: bool,
}

impl Store {
    /// Names are paths, relative ones below `root`.
    pub fn folder(root: impl Into<String>) -> Self {
        Self::Folder(root.into())
    }

    /// An empty store in memory.
    pub fn memory() -> Self {
        Self::Memory(Arc::new(InMemory { blobs: Mutex::default(), room_bytes: AtomicU64::new(u64::MAX) }))
    }

    /// How many bytes a store in memory may hold from now on. A folder holds what its disk does.
    pub fn set_room(&self, bytes: u64) {
        if let Self::Memory(memory) = self {
            memory.room_bytes.store(bytes, Ordering::Relaxed);
        }
    }

    /// Opens a blob whose parts are read one by one.
    ///
    /// # Errors
    /// [`Error::File`] where it does not exist or cannot be read.
    pub async fn open(&self, name: &str) -> Result<Blob> {
        match self {
            Self::Folder(root) => Ok(Blob::File(Arc::new(platform::open(&path(root, name), name).await?))),
            Self::Memory(memory) => Ok(Blob::Memory(in_memory(memory, name)?)),
        }
    }

    /// All bytes of a blob.
    ///
    /// # Errors
    /// As [`Store::open`]; in a browser also where it is too large for the memory of a tab.
    pub async fn read(&self, name: &str) -> Result<Bytes> {
        match self {
            Self::Folder(root) => Ok(Bytes::Mapped(Arc::new(platform::map(&path(root, name), name).await?))),
            Self::Memory(memory) => Ok(Bytes::Memory(in_memory(memory, name)?)),
        }
    }

    /// Reads a blob as UTF-8 text of at most 64 MiB (configurations, not corpora).
    ///
    /// # Errors
    /// As [`Store::open`], and [`Error::Format`] for other bytes.
    pub async fn read_text(&self, name: &str) -> Result<String> {
        let blob = self.open(name).await?;
        if blob.size_bytes() > 64 << 20 {
            return Err(Error::format(name, format!("{} bytes are too many for a text of this kind", blob.size_bytes())));
        }
        String::from_utf8(blob.read(0..blob.size_bytes())?.into_owned()).map_err(|e| Error::format(name, format!("not UTF-8 text: {e}")))
    }

    /// Whether a blob or folder of this name exists.
    pub async fn exists(&self, name: &str) -> bool {
        match self {
            Self::Folder(root) => platform::exists(&path(root, name)).await,
            Self::Memory(memory) => {
                let inside = format!("{name}/");
                memory.lock().keys().any(|key| key == name || key.starts_with(&inside))
            }
        }
    }

    /// Whether there is a folder of this name.
    pub async fn is_folder(&self, name: &str) -> bool {
        match self {
            Self::Folder(root) => platform::is_folder(&path(root, name)).await,
            Self::Memory(memory) => {
                let inside = format!("{}/", name.trim_end_matches('/'));
                memory.lock().keys().any(|key| key.starts_with(&inside))
            }
        }
    }

    /// What lies directly in a folder, sorted by name; empty where there is no such folder.
    ///
    /// # Errors
    /// [`Error::File`] where the folder cannot be read.
    pub async fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        match self {
            Self::Folder(root) => platform::list(&path(root, folder), folder).await,
            Self::Memory(memory) => {
                let inside = format!("{folder}/");
                let mut entries = BTreeMap::new();
                for (key, bytes) in memory.lock().iter() {
                    let Some(rest) = key.strip_prefix(&inside) else { continue };
                    let (first, deeper) = rest.split_once('/').map_or((rest, false), |(first, _)| (first, true));
                    let name = format!("{inside}{first}");
                    let size_bytes = if deeper { 0 } else { bytes.len() as u64 };
                    entries.insert(name.clone(), Entry { name, size_bytes, folder: deeper });
                }
                Ok(entries.into_values().collect())
            }
        }
    }

    /// Writes a whole blob atomically: temporary file, fsync, rename, fsync of the folder.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::File`]; the blob of before is then intact.
    pub async fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut writer = self.create(name).await?;
        writer.write(bytes)?;
        writer.finish().await
    }

    /// Begins a blob that is written piece by piece and named only by [`Writer::finish`].
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn create(&self, name: &str) -> Result<Writer> {
        match self {
            Self::Folder(root) => Ok(Writer::File(platform::AtomicFile::create(&path(root, name), name).await?)),
            Self::Memory(_) => Ok(Writer::Memory { store: self.clone(), name: name.into(), bytes: Vec::new() }),
        }
    }

    /// Opens a blob for adding at its end.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn append(&self, name: &str) -> Result<Appender> {
        match self {
            Self::Folder(root) => Ok(Appender::to(End::File(platform::AppendFile::open(&path(root, name), name).await?))),
            Self::Memory(memory) => {
                memory.lock().entry(name.into()).or_default();
                Ok(Appender::to(End::Memory(memory.clone(), name.into())))
            }
        }
    }

    /// Takes a name for this process until the lock is dropped (or the process dies).
    ///
    /// # Errors
    /// [`Error::File`] where another process holds it.
    pub async fn lock(&self, name: &str) -> Result<Lock> {
        match self {
            Self::Folder(root) => Ok(Lock(Some(platform::lock(&path(root, name), name).await?))),
            Self::Memory(_) => Ok(Lock(None)), // a store in memory has one process
        }
    }

    /// Renames a blob or folder; what had the new name is replaced. The folder is synced.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        match self {
            Self::Folder(root) => platform::rename(&path(root, from), &path(root, to), to).await,
            Self::Memory(memory) => {
                self.remove(to).await?;
                let mut map = memory.lock();
                let inside = format!("{from}/");
                let moved: Vec<String> = map.keys().filter(|key| *key == from || key.starts_with(&inside)).cloned().collect();
                for key in moved {
                    if let Some(bytes) = map.remove(&key) {
                        map.insert(format!("{to}{}", &key[from.len()..]), bytes);
                    }
                }
                Ok(())
            }
        }
    }

    /// Removes a blob or a folder with all that it holds; nothing happens where there is none.
    ///
    /// # Errors
    /// [`Error::File`].
    pub async fn remove(&self, name: &str) -> Result<()> {
        match self {
            Self::Folder(root) => platform::remove(&path(root, name), name).await,
            Self::Memory(memory) => {
                let inside = format!("{name}/");
                memory.lock().retain(|key, _| key != name && !key.starts_with(&inside));
                Ok(())
            }
        }
    }

    /// The files that a file name, folder (searched to any depth) or glob stands for, sorted. Hidden files and
    /// folders (`.git`, editors' leftovers) are meant only where their name is given.
    ///
    /// # Errors
    /// [`Error::File`] where it matches nothing.
    pub async fn expand(&self, pattern: &str) -> Result<Vec<String>> {
        let files: Vec<String> = match self {
            Self::Folder(root) => {
                let files = platform::expand(&path(root, pattern), pattern).await?;
                let inside = format!("{root}/");
                let relative = path(root, pattern) != pattern;
                let name = |file: String| if relative { file.strip_prefix(&inside).map_or(file.clone(), str::to_string) } else { file };
                files.into_iter().map(name).collect()
            }
            Self::Memory(memory) => {
                let inside = format!("{}/", pattern.trim_end_matches('/'));
                let visible = |key: &str| key.strip_prefix(&inside).is_some_and(|rest| !rest.split('/').any(|part| part.starts_with('.')));
                let glob = glob::Pattern::new(pattern).ok();
                let matches = |key: &str| glob.as_ref().is_some_and(|glob| glob.matches_with(key, platform::GLOB));
                memory.lock().keys().filter(|key| *key == pattern || visible(key) || matches(key)).cloned().collect()
            }
        };
        if files.is_empty() {
            return Err(Error::File { path: pattern.into(), reason: "no such file, folder or match of the pattern".into() });
        }
        Ok(files)
    }
}

/// A name that this process alone may use.
pub struct Lock(#[allow(dead_code)] Option<platform::FileLock>);

/// A blob being written; dropped without [`Writer::finish`] it leaves nothing behind.
pub enum Writer {
    /// A temporary file beside the final one.
    File(platform::AtomicFile),
    /// Bytes for a store in memory.
    Memory {
        /// Where they go.
        store: Store,
        /// Under which name.
        name: String,
        /// What was written so far.
        bytes: Vec<u8>,
    },
}

impl Writer {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::File`].
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        match self {
            Self::File(file) => file.write(data),
            Self::Memory { bytes, .. } => {
                bytes.extend_from_slice(data);
                Ok(())
            }
        }
    }

    /// Makes the blob durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::File`].
    pub async fn finish(self) -> Result<()> {
        match self {
            Self::File(file) => file.finish().await,
            Self::Memory { store, name, bytes } => {
                if let Store::Memory(memory) = &store {
                    let mut blobs = memory.lock();
                    memory.fits(&blobs, &name, bytes.len())?; // beside the old one, as on a disk
                    blobs.insert(name, Arc::new(bytes));
                }
                Ok(())
            }
        }
    }
}

/// A blob that grows at its end. What has no room there waits here.
pub struct Appender {
    end: End,
    waiting: Vec<u8>,
}

enum End {
    File(platform::AppendFile),
    Memory(Arc<InMemory>, String),
}

impl Appender {
    fn to(end: End) -> Self {
        Self { end, waiting: Vec::new() }
    }

    /// Bytes for the next [`Appender::flush`].
    pub fn push(&mut self, data: &[u8]) {
        self.waiting.extend_from_slice(data);
    }

    /// Writes what waits, all of it or nothing; it has reached the operating system when this returns.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::File`]; it then waits on.
    pub fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        match &mut self.end {
            End::File(file) => file.write(&self.waiting)?,
            End::Memory(memory, name) => {
                let mut blobs = memory.lock();
                memory.fits(&blobs, name, self.waiting.len())?;
                Arc::make_mut(blobs.entry(name.clone()).or_default()).extend_from_slice(&self.waiting);
            }
        }
        self.waiting.clear();
        Ok(())
    }
}

/// The name of a blob in a folder.
pub fn inside(folder: &str, file: &str) -> String {
    format!("{}/{file}", folder.trim_end_matches('/'))
}

fn path(root: &str, name: &str) -> String {
    if root.is_empty() || root == "." || name.starts_with('/') || name.chars().nth(1) == Some(':') {
        name.to_string()
    } else {
        format!("{root}/{name}")
    }
}

fn in_memory(memory: &InMemory, name: &str) -> Result<Arc<Vec<u8>>> {
    let bytes = memory.lock().get(name).cloned();
    bytes.ok_or_else(|| Error::File { path: name.into(), reason: "no such file or folder".into() })
}
