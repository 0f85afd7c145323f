//! Models from a hub, in the cache that Hugging Face's own programs use: `models--OWNER--NAME/{blobs,refs,snapshots}`.
//!
//! A blob is a file named by its hash (what the hub calls its ETag), a snapshot a folder of links to blobs, a ref the
//! commit that a branch had last. What has arrived of a blob waits as `HASH.incomplete` and is gone on with.

mod http;
mod settings;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};

use graviola::hashing::{Hash, HashContext, Sha256};
use serde_json::Value;
use web_time::{Duration, Instant};

use self::http::Client;
use self::settings::Settings;
use crate::error::{Error, Result};
use crate::platform::{Download, Update};

use super::{make_parent, sync_folder};

/// Files around the weights that are taken where they exist. Never pickles: reading one runs code.
const AROUND: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    ADAPTER_CONFIG,
];
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER: &str = "adapter_model.safetensors";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_SHARDS: usize = 1000;
/// A list of files or an index is text of some kilobytes.
const MAX_TEXT_BYTES: u64 = 64 << 20;
/// Attempts in a row that bring nothing new.
const ATTEMPTS: u32 = 5;
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Begins to load a model on a thread of its own, unless the cache has it. Names were checked by the caller.
///
/// # Errors
/// [`Error::File`] where the system has no thread for it.
pub fn download_model(repo: &str, revision: &str) -> Result<Download> {
    start(Settings::from_environment(|name| std::env::var(name).ok()), repo, revision)
}

/// The folder of a model that the cache has whole; nobody is asked whether there is a newer one.
///
/// # Errors
/// None: a browser, which has no cache, says so.
pub fn cached_model(repo: &str, revision: &str) -> Result<Option<String>> {
    let settings = Settings::from_environment(|name| std::env::var(name).ok());
    let folder = settings.cache.join(format!("models--{}", repo.replace('/', "--")));
    Ok(cached(&folder, repo, revision).and_then(|folder| folder.into_os_string().into_string().ok()))
}

fn start(settings: Settings, repo: &str, revision: &str) -> Result<Download> {
    let (sender, updates) = async_channel::unbounded();
    let (going, stop) = mpsc::channel();
    let cache = std::path::absolute(&settings.cache).map_err(|e| Error::file(settings.cache.to_string_lossy(), &e))?;
    let name = format!("models--{}", repo.replace('/', "--"));
    let (repo, revision) = (repo.to_string(), revision.to_string());
    let job = Job {
        folder: cache.join(&name),
        locks: cache.join(".locks").join(name),
        settings,
        repo: repo.clone(),
        revision,
        updates: sender,
        stop,
        told: None,
        done: 0,
        total: 0,
    };
    let thread = std::thread::Builder::new().name("smolforge-download".into()).spawn(move || job.run());
    thread.map_err(|e| Error::file(repo, &e))?;
    Ok(Download { updates, going })
}

/// The snapshot of a revision in the folder of a model, where it was loaded before.
fn cached(folder: &Path, repo: &str, revision: &str) -> Option<PathBuf> {
    let commit = if is_commit(revision) {
        revision.to_string()
    } else {
        fs::read_to_string(folder.join("refs").join(revision)).ok()?.trim().to_string()
    };
    let folder = folder.join("snapshots").join(Some(commit).filter(|commit| is_commit(commit))?);
    let has = |name: &str| folder.join(name).is_file();
    let whole = match () {
        () if has(ADAPTER_CONFIG) && has(ADAPTER) => true,
        () if has(SINGLE) => has("config.json"),
        () => has("config.json") && shards(&folder.join(INDEX), repo).is_ok_and(|shards| shards.iter().all(|name| has(name))),
    };
    whole.then_some(folder)
}

/// Why a step did not come to its end.
enum End {
    /// Nobody waits any more.
    Stopped,
    /// For good.
    Failed(Error),
    /// The connection: another attempt may help.
    Cut(String),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Step<T> = Result<T, End>;

/// A file as the hub describes it.
struct Remote {
    name: String,
    etag: String,
    size: u64,
}

struct Job {
    settings: Settings,
    repo: String,
    revision: String,
    folder: PathBuf,
    locks: PathBuf,
    updates: async_channel::Sender<Update>,
    stop: mpsc::Receiver<()>,
    told: Option<Instant>,
    done: u64,
    total: u64,
}

impl Job {
    fn run(mut self) {
        let result = match self.fetch() {
            Ok(folder) => folder.into_os_string().into_string().map_err(|path| Error::File {
                path: path.to_string_lossy().into_owned(),
                reason: "not a name in Unicode; set HF_HOME to a folder that has one".into(),
            }),
            Err(End::Failed(error)) => Err(error),
            Err(End::Cut(reason)) => Err(self.error(reason)),
            Err(End::Stopped) => return,
        };
        let _ = self.updates.try_send(Update::Done(result));
    }

    fn fetch(&mut self) -> Step<PathBuf> {
        let cached = cached(&self.folder, &self.repo, &self.revision);
        if self.settings.offline {
            let why = format!(
                "HF_HUB_OFFLINE is set, and the cache {} does not hold it; unset it to download, or give a folder",
                self.settings.cache.display()
            );
            return cached.ok_or_else(|| self.error(why).into());
        }
        let client = Client::new(&self.settings)?;
        match (self.list(&client), cached) {
            (Ok((commit, files)), _) => self.snapshot(&client, &commit, &files),
            (Err(End::Failed(error)), Some(folder)) => {
                self.notice(true, format!("{error}; going on with the copy in the cache"));
                Ok(folder)
            }
            (Err(end), _) => Err(end),
        }
    }

    /// The commit that the revision stands for, and the names of its files.
    fn list(&self, client: &Client) -> Step<(String, Vec<String>)> {
        let path = format!("api/models/{}/revision/{}", self.repo, self.revision.replace('/', "%2F"));
        let unreachable = |reason: &str| self.error(format!("there is no such folder here, and {}", client.unreachable(reason)));
        let mut answer = client.get(&path, 0).map_err(|reason| unreachable(&reason))?;
        if !answer.status().is_success() {
            return Err(self.error(client.refusal(&answer, &self.repo, &self.revision)).into());
        }
        let strange = || self.error(format!("{} does not answer as a hub of models does; is HF_ENDPOINT right?", self.settings.endpoint));
        let mut text = Vec::new();
        let read = answer.body_mut().with_config().limit(MAX_TEXT_BYTES).reader().read_to_end(&mut text);
        read.map_err(|e| unreachable(&e.to_string()))?;
        let listing: Value = serde_json::from_slice(&text).map_err(|_| strange())?;
        let commit = listing["sha"].as_str().filter(|commit| is_commit(commit)).ok_or_else(strange)?;
        let files = listing["siblings"].as_array().ok_or_else(strange)?;
        Ok((commit.into(), files.iter().filter_map(|file| Some(file["rfilename"].as_str()?.to_string())).collect()))
    }

    /// Loads what the snapshot lacks; the weights come last, so that it never looks whole before it is.
    fn snapshot(&mut self, client: &Client, commit: &str, files: &[String]) -> Step<PathBuf> {
        let folder = self.folder.join("snapshots").join(commit);
        let has = |name: &str| files.iter().any(|file| file == name);
        let mut wanted: Vec<String> = AROUND.iter().filter(|name| has(name)).map(|name| (*name).to_string()).collect();
        match () {
            () if has(ADAPTER_CONFIG) && has(ADAPTER) => wanted.push(ADAPTER.into()),
            () if has(SINGLE) => wanted.push(SINGLE.into()),
            () if has(INDEX) => {
                let index = folder.join(INDEX);
                if !index.is_file()
                    && let Some(remote) = self.describe(client, commit, INDEX)?
                {
                    self.fetch_file(client, commit, &remote)?;
                }
                let shards = shards(&index, &self.repo)?;
                if let Some(missing) = shards.iter().find(|name| !has(name)) {
                    return Err(self
                        .error(format!("{INDEX} names {missing}, which is not there; the model is incomplete at the hub"))
                        .into());
                }
                wanted.extend(shards);
            }
            () => {
                let pickled = files.iter().any(|name| [".bin", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending)));
                let pickled = if pickled { " (only pickles, which can run code and are never read)" } else { "" };
                let reason =
                    format!("has no {SINGLE}{pickled}; choose a model that has one, or convert it with transformers' save_pretrained");
                return Err(self.error(reason).into());
            }
        }
        let mut missing = Vec::new();
        for name in wanted.iter().filter(|name| !folder.join(name).is_file()) {
            missing.extend(self.describe(client, commit, name)?);
        }
        if !missing.is_empty() {
            let files = if missing.len() == 1 { "1 file".into() } else { format!("{} files", missing.len()) };
            self.notice(false, format!("{} at {}: downloading {files} into {}", self.repo, &commit[..8], folder.display()));
            self.total = missing.iter().map(|remote| remote.size).sum();
            self.done = missing.iter().map(|remote| self.arrived(remote)).sum();
        }
        for remote in &missing {
            self.fetch_file(client, commit, remote)?;
        }
        self.done = self.total;
        self.tell(true);
        if self.revision != commit {
            let at = self.folder.join("refs").join(&self.revision);
            if fs::read_to_string(&at).ok().as_deref() != Some(commit) {
                replace(&at, |temporary| fs::write(temporary, commit))?;
            }
        }
        Ok(folder)
    }

    /// Hash and size of a file; `None` for one that is listed but not there and can be done without.
    fn describe(&self, client: &Client, commit: &str, name: &str) -> Step<Option<Remote>> {
        let answer = self.persist(|| {
            let answer = client.head(&self.path(commit, name)).map_err(|reason| End::Cut(client.unreachable(&reason)))?;
            let busy = matches!(answer.status().as_u16(), 429 | 500..);
            if busy { Err(End::Cut(client.refusal(&answer, &self.repo, commit))) } else { Ok(answer) }
        })?;
        let status = answer.status();
        if status == 404 && AROUND.contains(&name) && !["config.json", ADAPTER_CONFIG].contains(&name) {
            return Ok(None);
        }
        if !status.is_success() && !status.is_redirection() {
            return Err(self.error(format!("{name}: {}", client.refusal(&answer, &self.repo, commit))).into());
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        // It becomes the name of a file.
        if etag.is_empty() || etag.len() > 200 || !etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return Err(self.error(format!("{name}: the hub gives {etag:?} as its hash; is HF_ENDPOINT a hub of models?")).into());
        }
        let size = header("x-linked-size").or_else(|| header("content-length").filter(|_| !status.is_redirection()));
        let size = size.and_then(|size| size.parse::<u64>().ok());
        let size = size.ok_or_else(|| self.error(format!("{name}: the hub does not tell its size; is HF_ENDPOINT a hub of models?")))?;
        if size > MAX_TEXT_BYTES && !name.ends_with(".safetensors") {
            return Err(Error::format(&self.repo, format!("{name}: {size} bytes are too many for a file of this kind")).into());
        }
        Ok(Some(Remote { name: name.into(), etag: etag.into(), size }))
    }

    /// Brings a file into the snapshot.
    fn fetch_file(&mut self, client: &Client, commit: &str, remote: &Remote) -> Step<()> {
        let blob = self.folder.join("blobs").join(&remote.etag);
        let whole = || fs::metadata(&blob).is_ok_and(|meta| meta.len() == remote.size);
        if !whole() {
            let _lock = self.lock(remote)?;
            if !whole() {
                self.fetch_blob(client, commit, remote, &blob)?;
            }
        }
        let place = self.folder.join("snapshots").join(commit).join(&remote.name);
        Ok(replace(&place, |temporary| link(&blob, &remote.etag, temporary))?)
    }

    fn fetch_blob(&mut self, client: &Client, commit: &str, remote: &Remote, blob: &Path) -> Step<()> {
        let partial = blob.with_file_name(format!("{}.incomplete", remote.etag));
        make_parent(&partial, &self.repo)?;
        let mut arriving = Arriving::open(&partial, remote.size)?;
        let before = self.done.saturating_sub(arriving.size);
        let mut failures = 0;
        while arriving.size < remote.size {
            let size = arriving.size;
            match self.receive(client, commit, remote, &mut arriving, before) {
                Err(End::Cut(reason)) => {
                    failures = if arriving.size > size { 1 } else { failures + 1 };
                    if failures >= ATTEMPTS {
                        let kept = format!(
                            "{}: {reason}; {} of {} bytes are kept, and the same command goes on from there",
                            remote.name, arriving.size, remote.size
                        );
                        return Err(self.error(kept).into());
                    }
                    self.notice(true, format!("{}: {reason}; trying again", remote.name));
                    self.pause(self.settings.wait * 2u32.pow(failures - 1))?;
                }
                other => other?,
            }
        }
        // Large files are named by their SHA-256, small ones by the SHA-1 of git, which only their size stands for here.
        let digest = arriving.hash.finish();
        let is_sha256 = remote.etag.len() == 64 && remote.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_sha256 && hex(digest.as_ref()) != remote.etag.to_lowercase() {
            drop(arriving.file);
            let _ = fs::remove_file(&partial);
            let reason =
                format!("{}: SHA-256 is {}, the hub promised {}; removed, try again", remote.name, hex(digest.as_ref()), remote.etag);
            return Err(Error::format(&self.repo, reason).into());
        }
        let named = || {
            arriving.file.sync_all()?;
            fs::rename(&partial, blob)
        };
        named().map_err(|e| Error::file(partial.to_string_lossy(), &e))?;
        Ok(sync_folder(blob)?)
    }

    /// One connection: whatever it brings is on disk when it ends, however it ends.
    fn receive(&mut self, client: &Client, commit: &str, remote: &Remote, arriving: &mut Arriving, before: u64) -> Step<()> {
        self.going()?;
        let name = &remote.name;
        let mut answer = client.get(&self.path(commit, name), arriving.size).map_err(End::Cut)?;
        let header = |key: &str| answer.headers().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_string();
        let told = match answer.status().as_u16() {
            // `bytes 10-19/20`
            206 => {
                let range = header("content-range");
                let (from, total) = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')).unwrap_or_default();
                if from.split('-').next() != Some(&arriving.size.to_string()) {
                    arriving.restart()?;
                    return Err(End::Cut(format!("another part of the file came than was asked for ({range})")));
                }
                total.to_string()
            }
            200 => {
                arriving.restart()?; // a server that cannot begin in the middle
                header("content-length")
            }
            416 => {
                arriving.restart()?;
                return Err(End::Cut("the hub has no such part of the file".into()));
            }
            429 | 500.. => return Err(End::Cut(client.refusal(&answer, &self.repo, commit))),
            _ => return Err(self.error(format!("{name}: {}", client.refusal(&answer, &self.repo, commit))).into()),
        };
        if told.parse::<u64>().is_ok_and(|told| told != remote.size) {
            return Err(Error::format(
                &self.repo,
                format!("{name}: {told} bytes are sent, the hub promised {}; try again later", remote.size),
            )
            .into());
        }
        let measured = answer.body().content_length().is_some();
        let mut body = answer.body_mut().with_config().reader();
        let mut piece = vec![0; 256 << 10];
        while arriving.size < remote.size {
            self.going()?;
            let read = body.read(&mut piece).map_err(|e| End::Cut(e.to_string()))?;
            if read == 0 {
                return Err(End::Cut("the connection was closed".into()));
            }
            let fits = usize::try_from(remote.size - arriving.size).map_or(read, |left| left.min(read));
            arriving.write(&piece[..fits])?;
            self.done = before + arriving.size;
            self.tell(false);
        }
        if measured {
            let _ = body.read(&mut piece); // its end: the connection serves the next file, too
        }
        Ok(())
    }

    fn path(&self, commit: &str, name: &str) -> String {
        format!("{}/resolve/{commit}/{name}", self.repo)
    }

    /// Bytes of a file that are here already.
    fn arrived(&self, remote: &Remote) -> u64 {
        let blobs = self.folder.join("blobs");
        let size = |name: &str| fs::metadata(blobs.join(name)).map_or(0, |meta| meta.len());
        let whole = size(&remote.etag) == remote.size;
        let partial = size(&format!("{}.incomplete", remote.etag));
        if whole { remote.size } else { Some(partial).filter(|size| *size <= remote.size).unwrap_or(0) }
    }

    /// Only one program loads a file; Python's huggingface_hub keeps to the same locks.
    fn lock(&self, remote: &Remote) -> Step<File> {
        let path = self.locks.join(format!("{}.lock", remote.etag));
        let failed = |e: &std::io::Error| End::Failed(Error::file(path.to_string_lossy(), e));
        make_parent(&path, &self.repo)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| failed(&e))?;
        let mut waited = false;
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut waited, true) {
                        self.notice(false, format!("{}: another program is downloading it; waiting for that", remote.name));
                    }
                    self.pause(Duration::from_millis(200))?;
                }
                Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Unsupported => return Err(failed(&e)),
                _ => return Ok(file),
            }
        }
    }

    /// Tries again what failed for the connection.
    fn persist<T>(&self, attempt: impl Fn() -> Step<T>) -> Step<T> {
        let mut wait = self.settings.wait;
        for _ in 1..ATTEMPTS {
            self.going()?;
            match attempt() {
                Err(End::Cut(_)) => self.pause(wait)?,
                other => return other,
            }
            wait *= 2;
        }
        attempt()
    }

    fn going(&self) -> Step<()> {
        if self.stop.try_recv() == Err(TryRecvError::Empty) { Ok(()) } else { Err(End::Stopped) }
    }

    fn pause(&self, wait: Duration) -> Step<()> {
        if self.stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) { Ok(()) } else { Err(End::Stopped) }
    }

    fn tell(&mut self, now: bool) {
        if self.total > 0 && (now || self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY)) {
            self.told = Some(Instant::now());
            let _ = self.updates.try_send(Update::Progress { done: self.done.min(self.total), total: self.total });
        }
    }

    fn notice(&self, warning: bool, text: String) {
        let _ = self.updates.try_send(Update::Notice { warning, text }); // nobody listens: then it stops soon
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::File { path: self.repo.clone(), reason: reason.into() }
    }
}

/// A file of which a part is here, with the hash of that part.
struct Arriving {
    file: File,
    path: PathBuf,
    size: u64,
    hash: <Sha256 as Hash>::Context,
}

impl Arriving {
    fn open(path: &Path, most: u64) -> Result<Self> {
        let failed = |e: std::io::Error| Error::file(path.to_string_lossy(), &e);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(failed)?;
        let mut arriving = Self { file, path: path.into(), size: 0, hash: Sha256::new() };
        let mut piece = vec![0; 1 << 20];
        loop {
            match arriving.file.read(&mut piece).map_err(failed)? {
                0 => break,
                read => {
                    arriving.hash.update(&piece[..read]);
                    arriving.size += read as u64;
                }
            }
        }
        if arriving.size > most {
            arriving.restart()?;
        }
        Ok(arriving)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| match Error::file(self.path.to_string_lossy(), &e) {
            Error::DiskFull { path, .. } => Error::DiskFull { path, written: self.size },
            other => other,
        })?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| Error::file(self.path.to_string_lossy(), &e))?;
        (self.size, self.hash) = (0, Sha256::new());
        Ok(())
    }
}

/// The files that an index lists: plain names of this folder, nothing else.
fn shards(index: &Path, repo: &str) -> Result<Vec<String>> {
    let bad = |reason: String| Error::format(repo, format!("{INDEX}: {reason}"));
    let text = fs::read(index).map_err(|e| bad(e.to_string()))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| bad("`weight_map` is missing".into()))?;
    let mut names = std::collections::BTreeSet::new();
    for file in map.values() {
        let plain = |name: &&str| {
            let chars = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            chars && name.len() <= 200 && !name.starts_with('.') && name.ends_with(".safetensors")
        };
        let name = file.as_str().filter(plain).ok_or_else(|| bad(format!("{file} is no name of a .safetensors file of this folder")))?;
        names.insert(name.to_string());
    }
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(bad(format!("lists {} files; between 1 and {MAX_SHARDS} make sense", names.len())));
    }
    Ok(names.into_iter().collect())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes something under a temporary name, then gives it its own.
fn replace(path: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    make_parent(path, &path.to_string_lossy())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    make(&temporary).and_then(|()| fs::rename(&temporary, path)).map_err(|e| Error::file(path.to_string_lossy(), &e))
}

/// A relative link, so that the cache can be moved; where the system allows none, a second name of the file, or a copy.
fn link(blob: &Path, etag: &str, place: &Path) -> std::io::Result<()> {
    let relative: PathBuf = ["..", "..", "blobs", etag].iter().collect();
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(relative, place);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(relative, place);
    linked.or_else(|_| fs::hard_link(blob, place)).or_else(|_| fs::copy(blob, place).map(drop))
}
