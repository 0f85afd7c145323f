//! Models by the name that they have at a hub: `HuggingFaceTB/SmolLM2-360M-Instruct`, or with `@` and a branch, tag or commit.

use futures_lite::future;

use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::platform::{self, Update};
use crate::store::Store;

/// The folder that `model` means: itself where there is one, otherwise the one that a model of this name at the hub is
/// downloaded to. `None` where the job was stopped meanwhile; what has arrived by then is kept.
///
/// # Errors
/// [`Error::File`], [`Error::Format`], [`Error::DiskFull`] or [`Error::Config`], each with what to do about it.
pub async fn folder(store: &Store, model: &str, control: &Control) -> Result<Option<String>> {
    let here = Ok(Some(model.to_string())); // and where it does not exist, its reader says so
    if matches!(store, Store::Memory(_)) || store.exists(model).await {
        return here;
    }
    let Some((repo, revision)) = parse(model) else { return here };
    check_owner(store, model, repo, revision).await?;
    let download = platform::download_model(repo, revision.unwrap_or("main"))?;
    let task = format!("downloading {repo}");
    loop {
        let next = async { Some(download.updates.recv().await) };
        let changed = async {
            control.changed().await;
            None
        };
        match future::or(next, changed).await {
            _ if control.flow() == Flow::Stop => {
                control.notice(format!("{model}: stopped; what has arrived is kept, and the same command goes on from there"));
                return Ok(None);
            }
            Some(Ok(Update::Progress { done, total })) => control.progress(&task, done, total, "bytes"),
            Some(Ok(Update::Notice { warning: true, text })) => control.warn(text),
            Some(Ok(Update::Notice { warning: false, text })) => control.notice(text),
            Some(Ok(Update::Done(result))) => return result.map(Some),
            Some(Err(_)) => return Err(Error::Internal(format!("the download of {model} ended without a result"))),
            None => {}
        }
    }
}

/// Refuses what could be a name at the hub, but stands below a folder that is here: it is rather a path with a slip.
async fn check_owner(store: &Store, model: &str, repo: &str, revision: Option<&str>) -> Result<()> {
    let owner = repo.split('/').next().unwrap_or_default();
    if revision.is_none() && store.is_folder(owner).await {
        let reason = format!("no such file or folder in {owner}; if a model of the hub is meant, write {model}@main");
        return Err(Error::File { path: model.into(), reason });
    }
    Ok(())
}

/// How the error ends of a model of the hub that was not downloaded.
pub const NOT_HERE: &str = "is not on this machine yet";

/// The folder that `model` means where it is on this machine; nothing is downloaded.
///
/// # Errors
/// [`Error::File`] for a model of the hub that is not here; [`Error::Config`] in a browser, which cannot download any.
pub async fn present(store: &Store, model: &str) -> Result<String> {
    let known = matches!(store, Store::Memory(_)) || store.exists(model).await;
    let Some((repo, revision)) = parse(model).filter(|_| !known) else { return Ok(model.into()) };
    check_owner(store, model, repo, revision).await?;
    platform::cached_model(repo, revision.unwrap_or("main"))?.ok_or_else(|| Error::File { path: model.into(), reason: NOT_HERE.into() })
}

/// Owner and name, and what stands behind an `@`; `None` for what can only be a path.
pub fn parse(model: &str) -> Option<(&str, Option<&str>)> {
    let (repo, revision) = model.split_once('@').map_or((model, None), |(repo, revision)| (repo, Some(revision)));
    let (owner, name) = repo.split_once('/')?;
    let plain = |part: &str| {
        let edges = part.starts_with(['-', '.']) || part.ends_with(['-', '.']) || part.contains("--") || part.contains("..");
        !part.is_empty() && !edges && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let branch = |part: &str| !part.starts_with('.') && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let usable = revision.is_none_or(|revision| revision.len() <= 200 && revision.split('/').all(|part| !part.is_empty() && branch(part)));
    (plain(owner) && plain(name) && repo.len() <= 96 && usable).then_some((repo, revision))
}

/// Names of folders that say nothing about the model in them.
const SILENT: [&str; 16] = [
    "",
    ".",
    "..",
    "model",
    "models",
    "merged",
    "base",
    "checkpoint",
    "final",
    "best",
    "last",
    "out",
    "output",
    "hf",
    "weights",
    "adapter",
];

/// Whether a part of a path says only which version of a model lies there.
fn is_version(part: &str) -> bool {
    let is_commit = part.len() == 40 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit || part == "snapshots" || part.starts_with("step_") || part.starts_with("checkpoint-")
}

/// Whether two names or paths may mean one folder: one is the end of the other, versions and ways up and down aside.
pub fn may_be_one(a: &str, b: &str) -> bool {
    let (a, b) = (place(a), place(b));
    a.ends_with(&b) || b.ends_with(&a)
}

/// The parts of a name or path that tell where a model lies.
fn place(model: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in parse(model).map_or(model, |(repo, _)| repo).split(['/', '\\']) {
        match part.strip_prefix("models--") {
            Some(cached) => parts.extend(cached.split("--")),
            None if part == ".." => drop(parts.pop()),
            None if part.is_empty() || part == "." || is_version(part) => {}
            None => parts.push(part),
        }
    }
    parts
}

/// What a model is called: the last part of its name or path, without revision and what says only how it is stored. None
/// where that is a name for any model, such as `export`.
pub fn title(model: &str) -> Option<&str> {
    let model = parse(model).map_or(model, |(repo, _)| repo);
    let mut parts = model.trim_end_matches(['/', '\\']).rsplit(['/', '\\']);
    let last = parts.find(|part| !is_version(part))?;
    let name = last.strip_prefix("models--").and_then(|cached| cached.split_once("--")).map_or(last, |(_, name)| name);
    let stored = ["-unsloth-bnb-4bit", "-bnb-4bit", "-4bit"].into_iter().find_map(|end| name.strip_suffix(end));
    let name = stored.unwrap_or(name);
    (!SILENT.contains(&name) && !name.starts_with("export")).then_some(name)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn names_at_the_hub_are_told_from_paths() {
        assert_eq!(parse("HuggingFaceTB/SmolLM2-360M-Instruct"), Some(("HuggingFaceTB/SmolLM2-360M-Instruct", None)));
        assert_eq!(parse("a/b@refs/pr/1"), Some(("a/b", Some("refs/pr/1"))));
        assert_eq!(parse("meta-llama/Llama-3.2-1B@v1.0"), Some(("meta-llama/Llama-3.2-1B", Some("v1.0"))));
        let paths = "/ a a/ /a/b ./a/b ../b a/../b a/b/c a/b@ a/b@../../x a/b@x//y a/b@/x ~/models C:/x a\\b a--b/c a/b. -a/b .a/b a/ä";
        for path in paths.split(' ').chain(["", "a/b c", "a/b@x y"]) {
            assert_eq!(parse(path), None, "{path}");
        }
        assert_eq!(parse(&format!("a/{}", "b".repeat(95))), None);
    }

    #[test]
    fn a_model_is_called_by_what_its_path_says() {
        for (path, title) in [
            ("HuggingFaceTB/SmolLM2-360M-Instruct", Some("SmolLM2-360M-Instruct")),
            ("meta-llama/Llama-3.2-1B@refs/pr/1", Some("Llama-3.2-1B")),
            ("/c/hub/models--HuggingFaceTB--SmolLM2-360M/snapshots/0123456789012345678901234567890123456789", Some("SmolLM2-360M")),
            ("unsloth/SmolLM2-360M-Instruct-bnb-4bit", Some("SmolLM2-360M-Instruct")),
            ("runs/mine/step_000500", Some("mine")),
            ("C:\\models\\Llama", Some("Llama")),
            ("./tiny/", Some("tiny")),
            ("runs/mine/export-f32", None),
            ("/models/export", None),
            ("merged", None),
            ("", None),
        ] {
            assert_eq!(super::title(path), title, "{path}");
        }
    }

    #[test]
    fn two_ways_to_write_one_folder_are_known() {
        let check = |a: &str, b: &str, one: bool| assert_eq!((may_be_one(a, b), may_be_one(b, a)), (one, one), "{a} {b}");
        check("demo/model", "./demo/model/", true);
        check("demo/model", "/data/demo/model", true);
        check("demo/model", "../work/../demo/model", true);
        check("demo/model", ".", true);
        check("runs/base", "runs/base/step_000300", true);
        check("owner/model@v1", "/h/models--owner--model/snapshots/0123456789012345678901234567890123456789", true);
        check("demo\\model", "demo/model", true);
        check("demo/model", "demo/base", false);
        check("demo/model", "other/model", false);
        check("demo/model", "my-demo/model", false);
    }

    #[test]
    fn a_folder_wins_and_a_path_asks_nobody() {
        let (control, _signals, _events) = Control::connect();
        let root = std::env::temp_dir().join(format!("smolforge-fetch-{}", std::process::id()));
        std::fs::create_dir_all(root.join("owner/name")).unwrap();
        let store = Store::folder(root.to_string_lossy());
        for path in ["owner/name", "owner", "no/such/path", "missing"] {
            assert_eq!(block_on(folder(&store, path, &control)).unwrap().as_deref(), Some(path));
        }
        assert_eq!(block_on(present(&store, "owner/name")).unwrap(), "owner/name");
        let error = block_on(present(&store, "nobody/no-such-model")).unwrap_err().to_string();
        assert!(error.contains("is not on this machine yet"), "{error}");
        let error = block_on(folder(&store, "owner/other", &control)).unwrap_err().to_string();
        assert_eq!(error, "owner/other: no such file or folder in owner; if a model of the hub is meant, write owner/other@main");
        assert_eq!(block_on(present(&store, "owner/other")).unwrap_err().to_string(), error);
        assert_eq!(block_on(folder(&Store::memory(), "a/b", &control)).unwrap().as_deref(), Some("a/b"));
        std::fs::remove_dir_all(root).unwrap();
    }
}
