//! A submission as one `.zip`, written and read: two adapters in PEFT's files, and what else a course wants in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zip::CompressionMethod;

use super::budget::{bytes, largest, mb};
use super::questions;
use super::test::Prompt;
use crate::config::reason::ReasonConfig;
use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::model::Adapter;
use crate::protocol::Event;
use crate::store::{Blob, Store, inside};
use crate::tasks::pack::Zip;
use crate::tasks::unpack::{self, Named, Rules, allowed, take_off_folder};
use crate::train::{checkpoint, runs};

/// Folders of the adapters in a submission: that of answers, that of reasoning.
pub const ADAPTERS: [&str; 2] = ["sft_model", "rft_model"];

/// What a model is asked with.
const TASK: &str = "task.json";

/// Files of a submission.
const MOST_FILES: usize = 10_000;

/// Where a submission lies in its store.
const UNPACKED: &str = "submission";

/// A submission.
#[derive(Debug)]
pub struct Submission {
    /// Its files.
    pub store: Store,
    /// Folder that they lie in.
    pub folder: String,
}

/// What stands before a question, as a bundle has it.
#[derive(Serialize, Deserialize)]
struct Task {
    system: String,
    /// As a file of questions.
    shots: Value,
}

/// Writes a submission: the adapters that `sft` and `rft` name (folders or runs), what stands before a question, and the
/// files of `folder`, such as a course's Python files. All of it lies in one folder that is called as `folder`, else as the
/// `.zip`. A file that exists is replaced. Returns
/// the bytes of the `.zip`; `None` where it was stopped.
///
/// # Errors
/// [`Error::Config`] over `max_zip_mb`, with the rank that would fit; what is wrong with adapters and names;
/// [`Error::DiskFull`]. Nothing is left behind then.
pub async fn write(
    config: &ReasonConfig,
    sft: &str,
    rft: &str,
    folder: Option<&str>,
    out: &str,
    store: &Store,
    control: &Control,
) -> Result<Option<u64>> {
    let top = top_folder(folder, out)?;
    if store.is_folder(out).await {
        return Err(Error::Config(format!("--out {out}: is a folder; choose another file")));
    }
    let mut files = match folder {
        Some(folder) => files_of(store, folder, out).await?,
        None => Vec::new(),
    };
    files.push((TASK.to_string(), Blob::Memory(Arc::new(task(config, store).await?.into_bytes()))));
    let others: u64 = files.iter().map(|(_, blob)| blob.size_bytes()).sum();
    let (mut ranks, mut adapter_bytes, mut rank_bytes) = ([0; 2], [0; 2], 0);
    for (at, name) in [sft, rft].into_iter().enumerate() {
        let folder = checkpoint::adapter_of(store, name).await;
        ranks[at] = Adapter::load(store, &folder).await?.config.r;
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let blob = store.open(&inside(&folder, file)).await?;
            adapter_bytes[at] += blob.size_bytes();
            files.push((format!("{}/{file}", ADAPTERS[at]), blob));
        }
        rank_bytes += adapter_bytes[at].div_ceil(ranks[at] as u64);
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let fitting = largest(bytes(config.max_zip_mb), |r| others + r as u64 * rank_bytes);
    let total = others + adapter_bytes[0] + adapter_bytes[1];
    let limit = (bytes(config.max_zip_mb), refusal(config, out, ranks, fitting));
    let mut zip = Zip::create(out, total, Some(limit), store).await?;
    for (name, blob) in &files {
        if zip.add(&format!("{top}/{name}"), blob, CompressionMethod::Deflated, control).await? == Flow::Stop {
            return Ok(None);
        }
    }
    let zip_bytes = zip.finish().await?;
    if zip_bytes > bytes(config.warn_zip_mb) {
        let (size, most, warned) = (mb(zip_bytes), config.max_zip_mb, config.warn_zip_mb);
        control.warn(format!("{out}: has {size:.2} MB of at most {most}; more than {warned} (--warn-zip-mb) are close to the limit"));
    }
    control.emit(Event::Wrote { what: "bundle".into(), path: out.into() });
    Ok(Some(zip_bytes))
}

/// Reads a submission: a folder as it is, a `.zip` into memory. `None` where it was stopped.
///
/// # Errors
/// [`Error::File`] where there is none; [`Error::Format`] for a file that is damaged or hostile, or has not exactly one folder
/// at its top.
pub async fn read(config: &ReasonConfig, name: &str, store: &Store, control: &Control) -> Result<Option<Submission>> {
    let folder = name.trim_end_matches('/');
    if store.is_folder(folder).await {
        return Ok(Some(Submission { store: store.clone(), folder: folder.into() }));
    }
    let size = store.open(name).await?.size_bytes();
    if size > bytes(config.max_zip_mb) {
        control.warn(format!("{name}: has {:.2} MB; a submission may have {} (--max-zip-mb)", mb(size), config.max_zip_mb));
    }
    let most = 4 * bytes(config.max_zip_mb) + (16 << 20);
    let rules = Rules { files: MOST_FILES, bytes: most, ratio: 100, free_bytes: 16 << 20, accept: accept_submission };
    let memory = Store::memory();
    memory.set_room(most);
    match unpack::unpack(name, store, &rules, UNPACKED, &memory, control).await? {
        Flow::Continue => Ok(Some(Submission { store: memory, folder: UNPACKED.into() })),
        Flow::Stop => Ok(None),
    }
}

impl Submission {
    /// The folder of one of its adapters, if it is there.
    pub async fn adapter(&self, at: usize) -> Option<String> {
        let folder = inside(&self.folder, ADAPTERS[at]);
        self.store.exists(&inside(&folder, "adapter_config.json")).await.then_some(folder)
    }

    /// What stands before a question, where it says so.
    ///
    /// # Errors
    /// [`Error::Format`] for a file of another shape.
    pub async fn prompt(&self) -> Result<Option<Prompt>> {
        let path = inside(&self.folder, TASK);
        if !self.store.exists(&path).await {
            return Ok(None);
        }
        let text = self.store.read_text(&path).await?;
        let task: Task = serde_json::from_str(&text).map_err(|e| Error::format(TASK, format!("system and shots are needed ({e})")))?;
        let shots = questions::read(&task.shots.to_string(), TASK)?;
        Ok(Some(Prompt::worked(&task.system, &shots)))
    }
}

/// What stands before a question, as text.
async fn task(config: &ReasonConfig, store: &Store) -> Result<String> {
    let internal = |e: serde_json::Error| Error::Internal(e.to_string());
    let shots = serde_json::from_str(&questions::written(&super::shots(config, store).await?)).map_err(internal)?;
    let task = Task { system: config.system.clone(), shots };
    Ok(serde_json::to_string_pretty(&task).map_err(internal)? + "\n")
}

/// Name of the folder in a `.zip`, which both must be readable anywhere.
fn top_folder(folder: Option<&str>, out: &str) -> Result<String> {
    let last = |path: &str| path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default().to_string();
    let fine = |name: &String| !name.starts_with('.') && !name.ends_with('/') && allowed(name).is_some();
    let file = out.rsplit(['/', '\\']).next().unwrap_or_default();
    let Some(stem) = file.strip_suffix(".zip").map(str::to_string).filter(fine) else {
        return Err(Error::Config(format!("--out {out}: a bundle is called NAME.zip, with letters, digits and _ in NAME")));
    };
    Ok(folder.map(last).filter(fine).unwrap_or(stem))
}

/// Files of a folder that go along: neither caches, notebooks, nor what is hidden, nor what is put there instead.
async fn files_of(store: &Store, folder: &str, out: &str) -> Result<Vec<(String, Blob)>> {
    let folder = folder.trim_end_matches('/');
    if !store.is_folder(folder).await {
        return Err(Error::Config(format!("--folder {folder}: no such folder")));
    }
    let mut files = Vec::new();
    for entry in runs::files(store, folder).await? {
        let Some(name) = entry.name.strip_prefix(folder).and_then(|name| name.strip_prefix('/')) else { continue };
        if entry.name != out && goes_along(name) {
            files.push((name.to_string(), store.open(&entry.name).await?));
        }
    }
    Ok(files)
}

fn goes_along(name: &str) -> bool {
    let mut parts = name.split('/');
    let replaced = name == TASK || parts.clone().next().is_some_and(|first| ADAPTERS.contains(&first));
    let left_out = parts.any(|part| part.starts_with('.') || part == "__pycache__" || part == "__MACOSX");
    !replaced && !left_out && !name.ends_with(".pyc") && !name.ends_with(".ipynb")
}

/// What is said of a bundle that is too large.
fn refusal(config: &ReasonConfig, out: &str, ranks: [usize; 2], fitting: usize) -> Error {
    let (most, [sft, rft]) = (config.max_zip_mb, ranks);
    let advice = match fitting {
        0 => "not even adapters of rank 1 would fit: leave out other files".to_string(),
        r => format!("two of rank {r} would fit: train them with --sft-r {r} and --rft-r {r}"),
    };
    Error::Config(format!(
        "{out}: adapters of the ranks {sft} and {rft} make it larger than {most} MB (--max-zip-mb), so it was not written; {advice}"
    ))
}

/// A submission has exactly one folder at its top, which is taken off.
fn accept_submission(names: &mut [Named]) -> Result<(), String> {
    let tops: BTreeSet<&str> = names.iter().filter_map(|named| named.name.split('/').next()).collect();
    let found = match tops.len() {
        0 => "nothing".to_string(),
        count => {
            let dots = if count > 3 { ", …" } else { "" };
            format!("{}{dots}", tops.into_iter().take(3).collect::<Vec<_>>().join(", "))
        }
    };
    match take_off_folder(names) {
        true => Ok(()),
        false => Err(format!("holds {found} at its top; a submission is exactly one folder with everything in it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(folder: Option<&str>, out: &str, expect: Option<&str>) {
        assert_eq!(top_folder(folder, out).ok().as_deref(), expect);
    }

    #[test]
    fn the_folder_in_a_bundle_has_a_name_that_can_be_read_anywhere() {
        check(None, "runs/x/homework.zip", Some("homework"));
        check(Some("../course/homework/"), "my_name.zip", Some("homework"));
        check(Some("."), "my_name.zip", Some("my_name"));
        check(Some(".."), "C:\\work\\my_name.zip", Some("my_name"));
        check(Some(""), "my_name.zip", Some("my_name"));
        for out in ["", "x", ".zip", "..zip", "x/.zip", "x.tar", "CON.zip", "a?.zip", "x.zip/"] {
            check(Some("homework"), out, None);
        }
    }

    #[test]
    fn neither_caches_nor_notebooks_go_along() {
        for name in ["cot.py", "data/train.json", "rft.py", "a/sft_model/x", "tasks.json"] {
            assert!(goes_along(name), "{name}");
        }
        for name in
            ["__pycache__/cot.py", "a/__pycache__/x.txt", "a.pyc", "a/b.ipynb", ".git/config", "a/.hidden", "sft_model/x", "task.json"]
        {
            assert!(!goes_along(name), "{name}");
        }
    }
}
