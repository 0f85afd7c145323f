//! Files in the browser's own file system (the origin-private one, OPFS) of this page's origin.
//!
//! A name is a path below its root. Files are read through snapshots (`File`), which any number of tabs may have, and
//! written through access handles, of which there is one at a time: that is what locks are made of. Folders cannot be
//! renamed there; their files are moved one by one, and a marker hides a folder until that is done.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use js_sys::{ArrayBuffer, Function, JsString, Promise, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    File, FileReaderSync, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions, FileSystemGetFileOptions,
    FileSystemHandle, FileSystemHandleKind, FileSystemReadWriteOptions, FileSystemRemoveOptions, FileSystemSyncAccessHandle,
    WorkerGlobalScope,
};
use web_time::Instant;

use crate::error::{Error, Result};
use crate::platform::GLOB;
use crate::store::Entry;

/// Bytes of a file that is taken into the memory of a tab at most: a tab has 4 GiB in all.
const MOST_IN_MEMORY: f64 = (1u64 << 30) as f64;

/// Bytes that are written at a time.
const BUFFER: usize = 1 << 20;

/// Hides a folder whose files are being moved.
const MOVING: &str = ".moving";

type Js<T> = std::result::Result<T, JsValue>;

/// What a browser says, in words.
fn failed(name: &str, error: &JsValue) -> Error {
    let text = |key: &str| Reflect::get(error, &key.into()).ok().and_then(|value| value.as_string()).unwrap_or_default();
    let reason = match text("name").as_str() {
        "QuotaExceededError" => return Error::DiskFull { path: name.into(), written: 0 },
        "NotFoundError" => "no such file or folder".to_string(),
        "NoModificationAllowedError" => "in use by another tab of this page; close that one first".into(),
        "TypeMismatchError" => "a folder where a file is needed, or a file where a folder is".into(),
        "NotReadableError" => "was changed while it was read; try again".into(),
        _ => text("message"),
    };
    Error::File { path: name.into(), reason }
}

fn is_called(error: &JsValue, names: &[&str]) -> bool {
    let name = Reflect::get(error, &"name".into()).ok().and_then(|value| value.as_string()).unwrap_or_default();
    names.contains(&name.as_str())
}

fn is_missing(error: &JsValue) -> bool {
    is_called(error, &["NotFoundError", "TypeMismatchError"])
}

async fn wait<T: JsCast>(promise: Promise) -> Js<T> {
    JsFuture::from(promise).await?.dyn_into()
}

/// The steps of a path; `.` is no step.
fn steps(path: &str) -> Js<Vec<&str>> {
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty() && *step != ".").collect();
    if steps.contains(&"..") {
        return Err(js_sys::Error::new("there is nothing above the browser's own folder").into());
    }
    Ok(steps)
}

async fn root() -> Js<FileSystemDirectoryHandle> {
    let scope: WorkerGlobalScope = js_sys::global().dyn_into()?;
    wait(scope.navigator().storage().get_directory()).await
}

/// A folder, with all above it made where `create` says so.
async fn folder(steps: &[&str], create: bool) -> Js<FileSystemDirectoryHandle> {
    let options = FileSystemGetDirectoryOptions::new();
    options.set_create(create);
    let mut folder = root().await?;
    for step in steps {
        folder = wait(folder.get_directory_handle_with_options(step, &options)).await?;
    }
    Ok(folder)
}

/// The folder that something lies in, and its name there.
async fn place<'a>(path: &'a str, create: bool) -> Js<(FileSystemDirectoryHandle, &'a str)> {
    let steps = steps(path)?;
    let (name, above) = steps.split_last().ok_or_else(|| JsValue::from(js_sys::Error::new("the name is empty")))?;
    Ok((folder(above, create).await?, name))
}

async fn file(folder: &FileSystemDirectoryHandle, name: &str, create: bool) -> Js<FileSystemFileHandle> {
    let options = FileSystemGetFileOptions::new();
    options.set_create(create);
    wait(folder.get_file_handle_with_options(name, &options)).await
}

async fn snapshot(path: &str) -> Js<File> {
    let (folder, name) = place(path, false).await?;
    wait(file(&folder, name, false).await?.get_file()).await
}

/// What lies in a folder, by name.
async fn entries(folder: &FileSystemDirectoryHandle) -> Js<Vec<FileSystemHandle>> {
    let values = folder.values();
    let mut entries = Vec::new();
    loop {
        let next = JsFuture::from(values.next()?).await?;
        if Reflect::get(&next, &"done".into())?.is_truthy() {
            return Ok(entries);
        }
        entries.push(Reflect::get(&next, &"value".into())?.dyn_into()?);
    }
}

async fn has(folder: &FileSystemDirectoryHandle, name: &str) -> bool {
    file(folder, name, false).await.is_ok()
}

/// `FileSystemFileHandle.move`, which web-sys does not know.
async fn move_file(file: &FileSystemFileHandle, folder: &FileSystemDirectoryHandle, name: &str) -> Js<()> {
    let function: Function = Reflect::get(file, &"move".into())?.dyn_into()?;
    let promise: Promise = function.call2(file, folder, &JsString::from(name))?.dyn_into()?;
    JsFuture::from(promise).await.map(drop)
}

/// The bytes of a file, in the memory of the tab.
#[derive(Debug)]
pub struct MappedFile(Vec<u8>);

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a file.
pub async fn map(path: &str, name: &str) -> Result<MappedFile> {
    let read = async || -> Js<Result<MappedFile>> {
        let file = snapshot(path).await?;
        if file.size() > MOST_IN_MEMORY {
            let reason =
                format!("{:.1} GiB are too many for a browser tab; cut it into files of at most 1 GiB", file.size() / MOST_IN_MEMORY);
            return Ok(Err(Error::File { path: name.into(), reason }));
        }
        let buffer: ArrayBuffer = wait(file.array_buffer()).await?;
        Ok(Ok(MappedFile(Uint8Array::new(&buffer).to_vec())))
    };
    match read().await {
        Ok(result) => result,
        // A log that grew meanwhile: the second snapshot has all of it.
        Err(_) => read().await.map_err(|e| failed(name, &e))?,
    }
}

/// A file whose bytes are read where they are wanted.
#[derive(Debug)]
pub struct RandomFile {
    file: File,
    reader: FileReaderSync,
    name: String,
}

/// Opens a file for reading.
pub async fn open(path: &str, name: &str) -> Result<RandomFile> {
    let open =
        async || -> Js<RandomFile> { Ok(RandomFile { file: snapshot(path).await?, reader: FileReaderSync::new()?, name: name.into() }) };
    open().await.map_err(|e| failed(name, &e))
}

impl RandomFile {
    /// Bytes in the file.
    pub fn size_bytes(&self) -> u64 {
        self.file.size() as u64
    }

    /// The bytes of a range that lies within the file.
    pub fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let read = || -> Js<Vec<u8>> {
            let slice = self.file.slice_with_f64_and_f64(range.start as f64, range.end as f64)?;
            Ok(Uint8Array::new(&self.reader.read_as_array_buffer(&slice)?.into()).to_vec())
        };
        read().map(Cow::Owned).map_err(|e| failed(&self.name, &e))
    }
}

/// Whether there is a file or folder at `path`.
pub async fn exists(path: &str) -> bool {
    is_folder(path).await || snapshot(path).await.is_ok()
}

/// Whether there is a folder at `path`.
pub async fn is_folder(path: &str) -> bool {
    match steps(path) {
        Ok(steps) => folder(&steps, false).await.is_ok(),
        Err(_) => false,
    }
}

/// What lies directly in a folder, sorted.
pub async fn list(path: &str, name: &str) -> Result<Vec<Entry>> {
    let list = async || -> Js<Vec<Entry>> {
        let mut found = Vec::new();
        for handle in entries(&folder(&steps(path)?, false).await?).await? {
            let name = format!("{}/{}", name.trim_end_matches('/'), handle.name());
            match handle.kind() {
                FileSystemHandleKind::Directory => {
                    if !has(handle.unchecked_ref(), MOVING).await {
                        found.push(Entry { name, size_bytes: 0, folder: true });
                    }
                }
                _ => {
                    let file: File = wait(handle.unchecked_into::<FileSystemFileHandle>().get_file()).await?;
                    found.push(Entry { name, size_bytes: file.size() as u64, folder: false });
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    };
    match list().await {
        Err(e) if is_missing(&e) => Ok(Vec::new()),
        result => result.map_err(|e| failed(name, &e)),
    }
}

/// The files that a path, folder or glob stands for, sorted.
pub async fn expand(path: &str, name: &str) -> Result<Vec<String>> {
    if snapshot(path).await.is_ok() {
        return Ok(vec![path.to_string()]);
    }
    let folder = is_folder(path).await;
    let pattern = if folder { format!("{}/**/*", glob::Pattern::escape(path.trim_end_matches('/'))) } else { path.to_string() };
    let pattern =
        glob::Pattern::new(&pattern).map_err(|e| Error::File { path: name.into(), reason: format!("not a usable pattern: {e}") })?;
    // Everything below the part of the path in which no sign of a pattern is.
    let plain: Vec<&str> = path.split('/').take_while(|step| folder || !step.contains(['*', '?', '['])).collect();
    let mut folders = vec![plain.join("/")];
    let mut files = Vec::new();
    while let Some(at) = folders.pop() {
        for entry in list(&at, &at).await? {
            let name = entry.name.trim_start_matches('/').to_string();
            if entry.folder {
                folders.push(name);
            } else if pattern.matches_with(&name, GLOB) {
                files.push(name);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Moves a file or folder; what was at `to` is replaced.
pub async fn rename(from: &str, to: &str, name: &str) -> Result<()> {
    let moved = async || -> Js<()> {
        let (target, new) = place(to, true).await?;
        let (source, old) = place(from, false).await?;
        if let Ok(file) = file(&source, old, false).await {
            return move_file(&file, &target, new).await;
        }
        let (from, to) = (folder(&steps(from)?, false).await?, folder(&steps(to)?, true).await?);
        for hidden in [&from, &to] {
            file(hidden, MOVING, true).await?;
        }
        move_files(&from, &to).await?;
        remove_entry(&source, old).await?;
        JsFuture::from(to.remove_entry(MOVING)).await.map(drop)
    };
    if is_folder(to).await {
        remove(to, name).await?;
    }
    moved().await.map_err(|e| failed(name, &e))
}

/// Moves what is in a folder into another, at any depth.
async fn move_files(from: &FileSystemDirectoryHandle, to: &FileSystemDirectoryHandle) -> Js<()> {
    let mut folders = vec![(from.clone(), to.clone())];
    let options = FileSystemGetDirectoryOptions::new();
    options.set_create(true);
    while let Some((from, to)) = folders.pop() {
        for handle in entries(&from).await? {
            let name = handle.name();
            match handle.kind() {
                FileSystemHandleKind::Directory => {
                    let inside = wait(to.get_directory_handle_with_options(&name, &options)).await?;
                    folders.push((handle.unchecked_into(), inside));
                }
                _ if name == MOVING => {}
                _ => move_file(handle.unchecked_ref(), &to, &name).await?,
            }
        }
    }
    Ok(())
}

async fn remove_entry(folder: &FileSystemDirectoryHandle, name: &str) -> Js<()> {
    let options = FileSystemRemoveOptions::new();
    options.set_recursive(true);
    match JsFuture::from(folder.remove_entry_with_options(name, &options)).await {
        Err(e) if !is_missing(&e) => Err(e),
        _ => Ok(()),
    }
}

/// Removes a file or folder if it exists.
pub async fn remove(path: &str, name: &str) -> Result<()> {
    let removed = async || -> Js<()> {
        let (folder, name) = place(path, false).await?;
        remove_entry(&folder, name).await
    };
    match removed().await {
        Err(e) if !is_missing(&e) => Err(failed(name, &e)),
        _ => Ok(()),
    }
}

/// The one handle through which a file is written; closed when dropped, or by the browser when the worker dies.
struct Access(FileSystemSyncAccessHandle);

impl Access {
    async fn open(file: &FileSystemFileHandle) -> Js<Self> {
        Ok(Self(wait(file.create_sync_access_handle()).await?))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Js<()> {
        let mut done = 0;
        while done < bytes.len() {
            let options = FileSystemReadWriteOptions::new();
            options.set_at((at + done as u64) as f64);
            let written = self.0.write_with_u8_array_and_options(&bytes[done..], &options)? as usize;
            if written == 0 {
                let error = js_sys::Error::new("nothing more could be written");
                error.set_name("QuotaExceededError");
                return Err(error.into());
            }
            done += written;
        }
        Ok(())
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Held until it is dropped; the browser lets go of it when the tab is closed.
pub struct FileLock(#[allow(dead_code)] Access);

/// How long a worker that was ended may take to let go of its files.
const LET_GO_SECS: u64 = 3;

/// Locks a file, which is made where it does not exist.
pub async fn lock(path: &str, name: &str) -> Result<FileLock> {
    let lock = async || -> Js<FileLock> {
        let (folder, name) = place(path, true).await?;
        Ok(FileLock(Access::open(&file(&folder, name, true).await?).await?))
    };
    let since = Instant::now();
    loop {
        match lock().await {
            Err(error) if is_called(&error, &["NoModificationAllowedError"]) && since.elapsed().as_secs() < LET_GO_SECS => {
                super::yield_now().await;
            }
            result => return result.map_err(|e| failed(name, &e)),
        }
    }
}

/// A file that gets its name only when it is whole.
pub struct AtomicFile {
    access: Option<Access>,
    handle: FileSystemFileHandle,
    folder: FileSystemDirectoryHandle,
    file_name: String,
    temporary: String,
    name: String,
    buffer: Vec<u8>,
    written: u64,
}

impl AtomicFile {
    /// Begins a temporary file in the folder of `path`.
    pub async fn create(path: &str, name: &str) -> Result<Self> {
        let create = async || -> Js<Self> {
            let (folder, file_name) = place(path, true).await?;
            let prefix = format!(".{file_name}.");
            for left in entries(&folder).await?.iter().map(FileSystemHandle::name) {
                if left.starts_with(&prefix) && left.ends_with(".tmp") {
                    let _ = remove_entry(&folder, &left).await; // one that is being written refuses
                }
            }
            let temporary = format!("{prefix}{:08x}.tmp", (js_sys::Math::random() * f64::from(u32::MAX)) as u32);
            let handle = file(&folder, &temporary, true).await?;
            let access = Some(Access::open(&handle).await?);
            let (file_name, name) = (file_name.to_string(), name.to_string());
            Ok(Self { access, handle, folder, file_name, temporary, name, buffer: Vec::new(), written: 0 })
        };
        create().await.map_err(|e| failed(name, &e))
    }

    fn error(&self, error: &JsValue) -> Error {
        match failed(&self.name, error) {
            Error::DiskFull { path, .. } => Error::DiskFull { path, written: self.written },
            other => other,
        }
    }

    fn flush(&mut self) -> Result<()> {
        let access = self.access.as_ref().expect("open until finished");
        access.write(self.written, &self.buffer).map_err(|e| self.error(&e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Adds bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Makes it durable and gives it its name.
    pub async fn finish(mut self) -> Result<()> {
        self.flush()?;
        let access = self.access.take().expect("finished once");
        access.0.flush().map_err(|e| self.error(&e))?;
        drop(access);
        let result = move_file(&self.handle, &self.folder, &self.file_name).await;
        if result.is_err() {
            let _ = remove_entry(&self.folder, &self.temporary).await;
        }
        result.map_err(|e| self.error(&e))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(access) = self.access.take() {
            drop(access);
            let (folder, temporary) = (self.folder.clone(), std::mem::take(&mut self.temporary));
            wasm_bindgen_futures::spawn_local(async move { drop(remove_entry(&folder, &temporary).await) });
        }
    }
}

/// A file that grows at its end.
pub struct AppendFile {
    access: Access,
    size: u64,
    name: String,
}

impl AppendFile {
    /// Opens or makes the file.
    pub async fn open(path: &str, name: &str) -> Result<Self> {
        let open = async || -> Js<Self> {
            let (folder, file_name) = place(path, true).await?;
            let access = Access::open(&file(&folder, file_name, true).await?).await?;
            let size = access.0.get_size()? as u64;
            Ok(Self { access, size, name: name.into() })
        };
        open().await.map_err(|e| failed(name, &e))
    }

    /// Adds bytes, all of them or none.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let written = self.access.write(self.size, data);
        match written {
            Ok(()) => self.size += data.len() as u64,
            Err(_) => drop(self.access.0.truncate_with_f64(self.size as f64)),
        }
        written.map_err(|e| failed(&self.name, &e))
    }
}
