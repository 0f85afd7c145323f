//! The runs on disk, as a list shows them and as they were told.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::checkpoint;
use super::log::read_events;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::platform;
use crate::protocol::{Event, RunState, RunSummary};
use crate::store::{Entry, Lock, Store};

/// How deep below a folder runs are looked for.
const DEPTH: usize = 3;

/// Held by whoever trains or moves a run.
const LOCK: &str = ".lock";

/// Points of a loss curve in a list.
const POINTS: usize = 64;

/// What logs said when they were last read, by folder: with the size that the log had then.
#[derive(Debug, Default)]
pub struct ReadLogs(RefCell<BTreeMap<String, (u64, Told)>>);

/// What a log says of its run.
#[derive(Debug, Clone)]
struct Told {
    state: RunState,
    step: u32,
    parameters: u64,
    changed: f64,
    losses: Vec<(u32, f64)>,
    best: Option<(f64, u32)>,
}

/// All runs below a folder, the one changed last first. What cannot be read is left out; a log that has not grown
/// since it is in `known` is not read again.
pub async fn list(store: &Store, folder: &str, known: &ReadLogs) -> Vec<RunSummary> {
    let mut runs = Vec::new();
    let mut folders = vec![(folder.to_string(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        if store.exists(&format!("{folder}/events.jsonl")).await {
            runs.extend(summary(store, &folder, known).await.ok());
            platform::yield_now().await;
        } else if depth < DEPTH {
            let inside = store.list(&folder).await.unwrap_or_default().into_iter();
            let inside = inside.map(|entry| Entry { name: entry.name.strip_prefix("./").unwrap_or(&entry.name).to_string(), ..entry });
            folders.extend(inside.filter(|entry| entry.folder && !is_hidden(&entry.name)).map(|entry| (entry.name, depth + 1)));
        }
    }
    runs.sort_by(|a, b| b.changed.total_cmp(&a.changed).then_with(|| a.path.cmp(&b.path)));
    runs
}

async fn summary(store: &Store, path: &str, known: &ReadLogs) -> Result<RunSummary> {
    let config = config(store, path).await?;
    let files = files(store, path).await?;
    let log = format!("{path}/events.jsonl");
    let log_bytes = files.iter().find(|entry| entry.name == log).map_or(0, |entry| entry.size_bytes);
    let kept = known.0.borrow().get(path).filter(|(bytes, _)| *bytes == log_bytes).map(|(_, told)| told.clone());
    let told = match kept {
        Some(told) => told,
        None => {
            let told = read(store, path).await?;
            known.0.borrow_mut().insert(path.to_string(), (log_bytes, told.clone()));
            told
        }
    };
    Ok(RunSummary {
        path: path.into(),
        state: told.state,
        step: told.step,
        steps: config.steps,
        parameters: told.parameters,
        changed: told.changed,
        losses: told.losses,
        best: told.best,
        checkpoints: checkpoint::steps(store, path).await?,
        size_bytes: files.iter().map(|entry| entry.size_bytes).sum(),
        exports: exports(store, path).await?,
    })
}

async fn read(store: &Store, path: &str) -> Result<Told> {
    let events = read_events(store, path).await?;
    let changed = events.last().map_or(0.0, |(time, _)| *time);
    let mut told = Told { state: RunState::Open, step: 0, parameters: 0, changed, losses: Vec::new(), best: None };
    let mut losses = Vec::new();
    for (_, event) in &events {
        match event {
            Event::Run(info) => (told.state, told.parameters) = (RunState::Open, info.parameters),
            Event::Step(report) => {
                told.step = report.step;
                losses.extend(report.loss.is_finite().then_some((report.step, report.loss)));
            }
            Event::Evaluated { step, loss, best: true, .. } => told.best = Some((*loss, *step)),
            Event::Done { stopped, .. } => told.state = if *stopped { RunState::Stopped } else { RunState::Finished },
            Event::Failed { .. } => told.state = RunState::Failed,
            _ => {}
        }
    }
    let every = losses.len().div_ceil(POINTS).max(1);
    told.losses = losses.chunks(every).map(|part| *part.last().expect("chunks are not empty")).collect();
    Ok(told)
}

/// Folders of weights that were exported into the run's folder; the demo writes them beside it.
async fn exports(store: &Store, path: &str) -> Result<Vec<String>> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_string();
    let inside = store.list(path).await?.into_iter().filter(|entry| entry.folder).map(|entry| entry.name);
    let mut folders: Vec<String> = inside.filter(|folder| name(folder).starts_with("export")).collect();
    folders.extend(path.strip_suffix("/run").map(|demo| format!("{demo}/export")));
    let mut exports = Vec::new();
    for folder in folders {
        if store.exists(&format!("{folder}/config.json")).await && store.exists(&format!("{folder}/model.safetensors")).await {
            exports.push(folder);
        }
    }
    Ok(exports)
}

/// The first of the files that make a folder one of a run that this one lacks.
async fn lacks(store: &Store, folder: &str) -> Option<&'static str> {
    for file in ["config.yaml", "events.jsonl"] {
        if !store.exists(&format!("{folder}/{file}")).await {
            return Some(file);
        }
    }
    None
}

/// Whether a folder is one of a run.
pub async fn is_run(store: &Store, folder: &str) -> bool {
    lacks(store, folder).await.is_none()
}

/// Removes a run with all its files.
///
/// # Errors
/// [`Error::Config`] for what is no run, or holds another one; [`Error::File`] while it is in progress.
pub async fn delete(store: &Store, path: &str) -> Result<()> {
    let path = path.trim_end_matches('/');
    let missing = if path.is_empty() { Some("name") } else { lacks(store, path).await };
    if let Some(file) = missing {
        return Err(Error::Config(format!("{path:?} is no run: it has no {file}; nothing was removed")));
    }
    let own = format!("{path}/events.jsonl");
    if let Some(other) = files(store, path).await?.iter().find(|entry| entry.name.ends_with("/events.jsonl") && entry.name != own) {
        return Err(Error::Config(format!("{path} holds another run ({}); remove that one first", other.name)));
    }
    let lock = hold(store, path).await?;
    // What makes it a run goes last, so that removing can be taken up again where it was interrupted.
    for entry in store.list(path).await? {
        if !["config.yaml", "events.jsonl", LOCK].iter().any(|last| entry.name.ends_with(&format!("/{last}"))) {
            store.remove(&entry.name).await?;
        }
    }
    drop(lock);
    store.remove(path).await
}

/// Keeps others from a run.
///
/// # Errors
/// [`Error::File`] while it is in progress.
pub async fn hold(store: &Store, path: &str) -> Result<Lock> {
    let busy = |_| Error::File { path: path.into(), reason: "is in progress; stop it first".into() };
    store.lock(&format!("{path}/{LOCK}")).await.map_err(busy)
}

/// Every file below a folder.
///
/// # Errors
/// [`Error::File`] where a folder cannot be read.
pub async fn files(store: &Store, folder: &str) -> Result<Vec<Entry>> {
    let mut folders = vec![folder.to_string()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in store.list(&folder).await? {
            if entry.folder {
                folders.push(entry.name);
            } else {
                files.push(entry);
            }
        }
    }
    Ok(files)
}

/// Whether the last part of a name begins with a dot.
pub fn is_hidden(name: &str) -> bool {
    name.rsplit('/').next().unwrap_or(name).starts_with('.')
}

/// A run as it was told.
///
/// # Errors
/// [`Error::File`] where there is none, [`Error::Format`] for a damaged log.
pub async fn open(store: &Store, path: &str) -> Result<Event> {
    let config = Box::new(config(store, path).await?);
    Ok(Event::Opened { path: path.into(), config, events: read_events(store, path).await? })
}

async fn config(store: &Store, path: &str) -> Result<TrainConfig> {
    let name = format!("{path}/config.yaml");
    let config = TrainConfig::from_yaml(&store.read_text(&name).await?).map_err(|e| Error::format(name, e.to_string()))?;
    Ok(TrainConfig { out: path.into(), ..config }) // the folder may have been moved since
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    fn write(store: &Store, name: &str, text: &str) {
        block_on(store.write(name, text.as_bytes())).unwrap();
    }

    fn run(store: &Store, path: &str, log: &str) {
        write(store, &format!("{path}/config.yaml"), "out: elsewhere\nsteps: 9\n");
        write(store, &format!("{path}/events.jsonl"), log);
        write(store, &format!("{path}/step_000003/state.json"), "{}");
    }

    const DONE: &str = "{\"time\":5.0,\"event\":\"done\",\"hints\":[],\"stopped\":true}\n";

    #[test]
    fn a_log_that_has_not_grown_is_read_once() {
        let store = Store::memory();
        run(&store, "runs/a", DONE);
        let known = ReadLogs::default();
        let state = || block_on(list(&store, "runs", &known))[0].state;
        assert_eq!(state(), RunState::Stopped);
        write(&store, "runs/a/events.jsonl", &DONE.replace("true}", "true]")); // damaged, of the same size: not looked at
        assert_eq!(state(), RunState::Stopped);
        write(&store, "runs/a/events.jsonl", &DONE.replace("true", "false"));
        assert_eq!(state(), RunState::Finished);
    }

    #[test]
    fn exports_inside_a_run_and_beside_the_demo_are_found() {
        let store = Store::memory();
        run(&store, "demo/run", DONE);
        run(&store, "runs/a", DONE);
        for folder in ["demo/export", "demo/run/export-f32", "runs/export", "runs/a/other"] {
            write(&store, &format!("{folder}/config.json"), "{}");
            write(&store, &format!("{folder}/model.safetensors"), "");
        }
        write(&store, "runs/a/export/config.json", "{}"); // not whole
        let runs = block_on(list(&store, ".", &ReadLogs::default()));
        assert!(runs.is_empty(), "a store in memory knows no dot");
        let exports = |folder| block_on(list(&store, folder, &ReadLogs::default())).remove(0).exports;
        assert_eq!(exports("demo"), ["demo/run/export-f32", "demo/export"]);
        assert!(exports("runs").is_empty());
    }

    #[test]
    fn a_run_is_told_with_the_folder_that_it_lies_in() {
        let store = Store::memory();
        run(&store, "moved/here", DONE);
        let Event::Opened { config, .. } = block_on(open(&store, "moved/here")).unwrap() else { panic!("another event") };
        assert_eq!((config.out.as_str(), config.steps), ("moved/here", 9));
    }

    #[test]
    fn only_whole_runs_are_removed() {
        let store = Store::memory();
        run(&store, "runs/a", DONE);
        run(&store, "runs/ab", DONE);
        write(&store, "runs/text.txt", "words");
        let refused = |path: &str, word: &str| {
            let error = block_on(delete(&store, path)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused("runs", "no config.yaml");
        refused("runs/text.txt", "no config.yaml");
        refused("", "is no run");
        refused("runs/a/step_000003", "no config.yaml");
        run(&store, "runs/ab/inner", DONE);
        refused("runs/ab", "another run (runs/ab/inner/events.jsonl)");
        block_on(delete(&store, "runs/a/")).unwrap();
        assert!(!block_on(store.exists("runs/a")) && block_on(store.exists("runs/ab/config.yaml")));
        assert!(block_on(store.exists("runs/text.txt")));
    }

    #[test]
    fn a_run_in_progress_stays() {
        let folder = std::env::temp_dir().join(format!("smolforge-delete-{}", std::process::id()));
        let store = Store::folder(folder.to_str().unwrap());
        run(&store, "a", DONE);
        let lock = block_on(store.lock("a/.lock")).unwrap();
        let error = block_on(delete(&store, "a")).unwrap_err().to_string();
        assert_eq!(error, "a: is in progress; stop it first");
        assert!(block_on(store.exists("a/step_000003/state.json")));
        drop(lock);
        block_on(delete(&store, "a")).unwrap();
        assert!(!block_on(store.exists("a")));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
