//! Threads, files and memory of an operating system.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{Seek, SeekFrom, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::error::{Error, Result};
use crate::store::Entry;

mod download;
pub use download::{cached_model, download_model};

/// Buffers of a graphics device are slices of shared pages.
pub const SHARED_PAGES: bool = true;

/// Runs the engine on a thread of its own; all its device work stays there.
pub fn spawn<F: Future<Output = ()> + 'static>(engine: impl FnOnce() -> F + Send + 'static) {
    share_memory();
    std::thread::Builder::new()
        .name("smolforge-engine".into())
        .stack_size(16 << 20)
        .spawn(move || {
            prepare_threads();
            futures_lite::future::block_on(engine());
        })
        .expect("the system grants a thread");
}

/// Lets all threads allocate from one place: where each keeps what it has freed for itself, as glibc's do, a training step takes
/// half a gigabyte more. Threads that were begun before keep their own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn share_memory() {
    // SAFETY: changes a setting of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn share_memory() {}

/// Prepares the calling thread and the worker threads of the CPU device. Call before the first tensor.
///
/// Denormal numbers are flushed to zero: with them about, arithmetic is up to ten times slower.
pub fn prepare_threads() {
    flush_denormals();
    // The pool may exist already (a second engine in the same process): it is then prepared, too.
    let _ = rayon::ThreadPoolBuilder::new().start_handler(|_| flush_denormals()).build_global();
}

#[cfg(target_arch = "x86_64")]
fn flush_denormals() {
    const FLUSH_TO_ZERO: u32 = 1 << 15;
    const DENORMALS_ARE_ZERO: u32 = 1 << 6;
    let mut control = 0u32;
    // SAFETY: reads and writes the floating-point control register of this thread only.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &mut control);
        control |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &control);
    }
}

#[cfg(target_arch = "aarch64")]
fn flush_denormals() {
    const FLUSH_TO_ZERO: u64 = 1 << 24;
    // SAFETY: reads and writes the floating-point control register of this thread only.
    unsafe {
        let mut control: u64;
        std::arch::asm!("mrs {}, fpcr", out(reg) control);
        control |= FLUSH_TO_ZERO;
        std::arch::asm!("msr fpcr, {}", in(reg) control);
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn flush_denormals() {}

/// Lets other tasks of this thread run. A native engine has its thread to itself.
pub async fn yield_now() {
    futures_lite::future::yield_now().await;
}

/// Sleeps until the device has done what it was told.
pub fn wait<T>(done: impl Future<Output = T>) {
    futures_lite::future::block_on(done);
}

/// What an adapter without a name is called.
pub async fn adapter_name() -> String {
    "an adapter without a name".into()
}

/// Nothing more to do: the job that used the device ends with this error, and the program goes on.
pub fn device_lost(_error: &Error) {}

/// Threads that the CPU device computes with.
pub fn cpu_threads() -> usize {
    rayon::current_num_threads()
}

/// Name of the processor.
pub fn cpu_name() -> String {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_string()).unwrap_or_default();
    if name.is_empty() { std::env::consts::ARCH.into() } else { name }
}

/// Largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    status_kib("VmHWM:") << 10
}

/// Resident memory of this process, in bytes; 0 where the system does not tell.
pub fn memory_bytes() -> u64 {
    memory_stats::memory_stats().map_or(0, |stats| stats.physical_mem as u64)
}

/// Memory that is free for use, in bytes: of the machine, or of the container where that has less. `None` where
/// the system does not tell.
pub fn available_memory_bytes() -> Option<u64> {
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    // The page cache counts as used there, but gives way.
    let container = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    Some(system.available_memory().min(container)).filter(|free| *free > 0)
}

fn status_kib(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Name of this computer, for TensorBoard's file names.
pub fn host_name() -> String {
    System::host_name().filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".into())
}

/// A memory-mapped file.
#[derive(Debug)]
pub struct MappedFile(Option<memmap2::Mmap>);

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// The bytes of a file, as if they were in memory.
pub async fn map(path: &str, name: &str) -> Result<MappedFile> {
    let file = File::open(path).map_err(|e| Error::file(name, &e))?;
    let meta = file.metadata().map_err(|e| Error::file(name, &e))?;
    if meta.is_dir() {
        return Err(Error::File { path: name.into(), reason: "is a folder; a file is needed here".into() });
    }
    if meta.len() == 0 {
        return Ok(MappedFile(None));
    }
    // SAFETY: the map is read only. A file that another program truncates meanwhile faults, as with every mapped file.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::file(name, &e))?;
    Ok(MappedFile(Some(map)))
}

/// A file whose bytes are read where they are wanted.
#[derive(Debug)]
pub struct RandomFile(MappedFile);

/// Opens a file for reading.
pub async fn open(path: &str, name: &str) -> Result<RandomFile> {
    Ok(RandomFile(map(path, name).await?))
}

impl RandomFile {
    /// Bytes in the file.
    pub fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    /// The bytes of a range that lies within the file.
    pub fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.0[range.start as usize..range.end as usize]))
    }
}

/// Whether there is a file or folder at `path`.
pub async fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// Whether there is a folder at `path`.
pub async fn is_folder(path: &str) -> bool {
    Path::new(path).is_dir()
}

/// What lies directly in a folder, sorted.
pub async fn list(path: &str, name: &str) -> Result<Vec<Entry>> {
    let folder = match fs::read_dir(path) {
        Ok(folder) => folder,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file(name, &e)),
    };
    let mut entries = Vec::new();
    for entry in folder {
        let entry = entry.map_err(|e| Error::file(name, &e))?;
        let meta = entry.metadata().map_err(|e| Error::file(name, &e))?;
        let name = format!("{}/{}", name.trim_end_matches('/'), entry.file_name().to_string_lossy());
        let size_bytes = if meta.is_dir() { 0 } else { meta.len() };
        entries.push(Entry { name, size_bytes, folder: meta.is_dir() });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The files that a path, folder or glob stands for, sorted.
pub async fn expand(path: &str, name: &str) -> Result<Vec<String>> {
    let place = Path::new(path);
    if place.is_file() {
        return Ok(vec![path.to_string()]);
    }
    let pattern = if place.is_dir() { format!("{}/**/*", glob::Pattern::escape(path)) } else { path.to_string() };
    let bad = |reason: String| Error::File { path: name.into(), reason };
    let mut files = Vec::new();
    for entry in glob::glob_with(&pattern, super::GLOB).map_err(|e| bad(format!("not a usable pattern: {e}")))? {
        let entry = entry.map_err(|e| bad(e.to_string()))?;
        if entry.is_file() {
            files.push(entry.to_string_lossy().into_owned());
        }
    }
    files.sort();
    Ok(files)
}

/// Renames and makes it durable.
pub async fn rename(from: &str, to: &str, name: &str) -> Result<()> {
    let target = Path::new(to);
    if target.is_dir() {
        fs::remove_dir_all(target).map_err(|e| Error::file(name, &e))?;
    }
    fs::rename(from, to).map_err(|e| Error::file(name, &e))?;
    sync_folder(target)
}

/// Removes a file or folder if it exists.
pub async fn remove(path: &str, name: &str) -> Result<()> {
    let place = Path::new(path);
    let result = if place.is_dir() { fs::remove_dir_all(place) } else { fs::remove_file(place) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file(name, &e)),
        _ => Ok(()),
    }
}

fn make_parent(path: &Path, name: &str) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::create_dir_all(parent).map_err(|e| Error::file(name, &e)),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Folders cannot be opened on Windows, where a rename is durable without this.
    if let Ok(folder) = File::open(parent) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Held until it is dropped; the system lets go of it when the process dies.
pub struct FileLock(#[allow(dead_code)] File);

/// Locks a file, which is made where it does not exist.
pub async fn lock(path: &str, name: &str) -> Result<FileLock> {
    make_parent(Path::new(path), name)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(|e| Error::file(name, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(FileLock(file)),
        // Some network file systems have no locks: better a run without one than none.
        Err(std::fs::TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => Ok(FileLock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::File {
            path: name.into(),
            reason: "in use by another smolforge; stop that one first, or choose another --out".into(),
        }),
        Err(std::fs::TryLockError::Error(e)) => Err(Error::file(name, &e)),
    }
}

/// A file that gets its name only when it is whole.
pub struct AtomicFile {
    file: Option<std::io::BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
    name: String,
    written: u64,
}

impl AtomicFile {
    /// Begins a temporary file in the folder of `path`.
    pub async fn create(path: &str, name: &str) -> Result<Self> {
        let path = PathBuf::from(path);
        make_parent(&path, name)?;
        let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        remove_stale(&path, &format!(".{file_name}."));
        let temporary = path.with_file_name(format!(".{file_name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(|e| Error::file(name, &e))?;
        let _ = file.try_lock(); // tells others that it is being written; some file systems have no locks
        let file = Some(std::io::BufWriter::with_capacity(1 << 20, file));
        Ok(Self { file, temporary, path, name: name.into(), written: 0 })
    }

    fn error(&self, error: &std::io::Error) -> Error {
        match Error::file(&self.name, error) {
            Error::DiskFull { path, .. } => Error::DiskFull { path, written: self.written },
            other => other,
        }
    }

    /// Adds bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("open until finished");
        file.write_all(data).map_err(|e| self.error(&e))?;
        self.written += data.len() as u64;
        Ok(())
    }

    /// fsync, rename, fsync of the folder.
    pub async fn finish(mut self) -> Result<()> {
        let mut file = self.file.take().expect("finished once");
        file.flush().map_err(|e| self.error(&e))?;
        file.get_ref().sync_all().map_err(|e| self.error(&e))?;
        drop(file);
        fs::rename(&self.temporary, &self.path).map_err(|e| self.error(&e))?;
        sync_folder(&self.path)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() || self.temporary.exists() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes what killed processes left of the file that is to be written: temporaries that nobody holds.
fn remove_stale(path: &Path, prefix: &str) {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let left = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".tmp"));
        if left.is_some_and(|process| process.parse::<u32>().is_ok())
            && OpenOptions::new().write(true).open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file that grows at its end.
pub struct AppendFile {
    file: File,
    size: u64,
    name: String,
}

impl AppendFile {
    /// Opens or makes the file.
    pub async fn open(path: &str, name: &str) -> Result<Self> {
        make_parent(Path::new(path), name)?;
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            Ok((file.seek(SeekFrom::End(0))?, file))
        };
        let (size, file) = open().map_err(|e| Error::file(name, &e))?;
        Ok(Self { file, size, name: name.into() })
    }

    /// Adds bytes, all of them or none.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let written = self.file.write_all(data);
        match written {
            Ok(()) => self.size += data.len() as u64,
            Err(_) => drop(self.file.set_len(self.size).and_then(|()| self.file.seek(SeekFrom::Start(self.size)))),
        }
        written.map_err(|e| Error::file(&self.name, &e))
    }
}
