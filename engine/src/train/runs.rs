//! The runs on disk, as a list shows them and as they were told.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::checkpoint;
use super::log::{read_events, read_line};
use crate::config::TrainConfig;
use crate::config::finetune::FinetuneConfig;
use crate::error::{Error, Result};
use crate::platform;
use crate::protocol::{Event, RunState, RunSummary};
use crate::store::{Blob, Entry, Lock, Store};

/// How deep below a folder runs are looked for.
const DEPTH: usize = 3;

/// Held by whoever trains or moves a run.
const LOCK: &str = ".lock";

/// What a fine-tuning run was asked for.
pub const TUNING: &str = "finetune.yaml";

/// Points of a loss curve in a list.
const POINTS: usize = 64;

/// Bytes of a log that are read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// The last bytes that were read of a log, by which it is known again: some lines, each with its time.
const END_BYTES: usize = 4096;

/// What logs have said so far, by folder.
#[derive(Debug, Default)]
pub struct ReadLogs(RefCell<BTreeMap<String, Told>>);

/// What a log says of its run, as far as it was read.
#[derive(Debug)]
struct Told {
    /// Bytes that were read.
    bytes: u64,
    /// The last of them.
    end: Vec<u8>,
    state: RunState,
    step: u32,
    parameters: u64,
    changed: f64,
    losses: Vec<(u32, f64)>,
    best: Option<(f64, u32)>,
}

/// All runs below a folder, the one changed last first. What cannot be read is left out; of a log in `known` only what
/// was added since is read.
pub async fn list(store: &Store, folder: &str, known: &ReadLogs) -> Vec<RunSummary> {
    let mut runs = Vec::new();
    let mut folders = vec![(folder.to_string(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        platform::yield_now().await;
        if store.exists(&format!("{folder}/events.jsonl")).await {
            runs.extend(summary(store, &folder, known).await.ok());
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
    let tuning = tuning(store, path).await?;
    let (checkpoints, exports) = (checkpoint::steps(store, path).await?, exports(store, path, tuning.is_some()).await?);
    let adapter = if tuning.is_some() { adapter(store, path).await } else { None };
    let kept = known.0.borrow_mut().remove(path).unwrap_or_default();
    let told = kept.read_on(store, &format!("{path}/events.jsonl")).await?;
    let summary = RunSummary {
        path: path.into(),
        state: told.state,
        step: told.step,
        steps: config.steps,
        parameters: told.parameters,
        changed: told.changed,
        losses: told.curve(),
        best: told.best,
        checkpoints,
        size_bytes: files.iter().map(|entry| entry.size_bytes).sum(),
        exports,
        tuning,
        adapter,
    };
    known.0.borrow_mut().insert(path.to_string(), told);
    Ok(summary)
}

impl Default for Told {
    /// Of a log of which nothing was read.
    fn default() -> Self {
        Self { bytes: 0, end: Vec::new(), state: RunState::Open, step: 0, parameters: 0, changed: 0.0, losses: Vec::new(), best: None }
    }
}

impl Told {
    /// Reads what was added to the log; all of it where what was read before is no longer its beginning, as after a
    /// resumed run has cut it back.
    async fn read_on(mut self, store: &Store, log: &str) -> Result<Self> {
        loop {
            // Opened for every piece: what a browser opens ends to be readable with the next line that is written.
            let blob = store.open(log).await?;
            if *blob.read(self.bytes - self.end.len() as u64..self.bytes)? != *self.end {
                self = Self::default();
            }
            if self.read_lines(&blob).map_err(|why| Error::format(log, why.to_string()))? {
                return Ok(self);
            }
            platform::yield_now().await;
        }
    }

    /// Reads the next lines; whether they are the last ones.
    fn read_lines(&mut self, blob: &Blob) -> Result<bool> {
        let mut length = PIECE_BYTES;
        let (piece, whole) = loop {
            let piece = blob.read(self.bytes..self.bytes + length)?;
            match piece.iter().rposition(|byte| *byte == b'\n') {
                Some(at) => break (piece, at + 1),
                None if (piece.len() as u64) < length => break (piece, 0),
                None => length *= 2,
            }
        };
        let (lines, rest) = piece.split_at(whole);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.hear(read_line(line).map_err(|e| Error::Data(format!("not an event of smolforge: {e}")))?);
        }
        let is_last = (piece.len() as u64) < length;
        // A line that is still being written counts as soon as it can be read.
        let unfinished = if is_last { read_line(rest).ok() } else { None };
        let read = if unfinished.is_some() { &piece } else { lines };
        self.bytes += read.len() as u64;
        self.end.extend_from_slice(&read[read.len().saturating_sub(END_BYTES)..]);
        self.end.drain(..self.end.len().saturating_sub(END_BYTES));
        unfinished.into_iter().for_each(|line| self.hear(line));
        Ok(is_last)
    }

    fn hear(&mut self, (time, event): (f64, Event)) {
        self.changed = time;
        match event {
            Event::Run(info) => (self.state, self.parameters) = (RunState::Open, info.parameters),
            Event::Step(report) => {
                self.step = report.step;
                self.losses.extend(report.loss.is_finite().then_some((report.step, report.loss)));
            }
            Event::Evaluated { step, loss, best: true, .. } => self.best = Some((loss, step)),
            Event::Done { stopped, .. } => self.state = if stopped { RunState::Stopped } else { RunState::Finished },
            Event::Failed { .. } => self.state = RunState::Failed,
            _ => {}
        }
    }

    /// The losses, thinned to a list's curve.
    fn curve(&self) -> Vec<(u32, f64)> {
        let every = self.losses.len().div_ceil(POINTS).max(1);
        self.losses.chunks(every).map(|part| *part.last().expect("chunks are not empty")).collect()
    }
}

/// What a run was asked for, if it fine-tunes.
async fn tuning(store: &Store, path: &str) -> Result<Option<Box<FinetuneConfig>>> {
    let name = format!("{path}/{TUNING}");
    if !store.exists(&name).await {
        return Ok(None);
    }
    let (config, _) = FinetuneConfig::from_yaml(&store.read_text(&name).await?).map_err(|e| Error::format(name, e.to_string()))?;
    Ok(Some(Box::new(FinetuneConfig { output_dir: path.into(), ..config }))) // the folder may have been moved since
}

/// The folder of a run's adapter, where there is one yet.
async fn adapter(store: &Store, path: &str) -> Option<String> {
    let folder = checkpoint::adapter_of(store, path).await;
    store.exists(&format!("{folder}/adapter_config.json")).await.then_some(folder)
}

/// Folders of whole models that were exported or merged into the run's folder; the demo writes them beside it.
async fn exports(store: &Store, path: &str, tuned: bool) -> Result<Vec<String>> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_string();
    let inside = store.list(path).await?.into_iter().filter(|entry| entry.folder).map(|entry| entry.name);
    let mut folders: Vec<String> = inside.filter(|folder| is_model(&name(folder), tuned)).collect();
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

/// Whether runs keep whole models under this name in their folder; `tuned`: those that fine-tune.
fn is_model(name: &str, tuned: bool) -> bool {
    name.starts_with("export") || (tuned && (name == "model" || name.starts_with("merged")))
}

/// Whether runs make something of this name in their folder; `tuned`: those that fine-tune.
fn is_own(entry: &Entry, tuned: bool) -> bool {
    let name = entry.name.rsplit('/').next().unwrap_or_default();
    let numbered = |prefix: &str| name.strip_prefix(prefix).is_some_and(|step| step.parse::<u32>().is_ok());
    match entry.folder {
        true => {
            ["tensorboard", "tokens", ".saving", ".removing"].contains(&name)
                || (tuned && name == "adapter")
                || numbered("step_")
                || numbered("damaged_")
                || is_model(name, tuned)
        }
        false => {
            ["config.yaml", TUNING, "events.jsonl", "training.log", "report.html", "tokenizer.json", "shards.json", LOCK].contains(&name)
                || (name.starts_with('.') && name.ends_with(".tmp"))
                || (is_model(name, tuned) && name.ends_with(".zip"))
        }
    }
}

/// What lies in a folder and is no part of a run.
///
/// # Errors
/// [`Error::File`] where the folder cannot be read.
pub async fn foreign(store: &Store, folder: &str) -> Result<Vec<Entry>> {
    let tuned = store.exists(&format!("{folder}/{TUNING}")).await;
    Ok(store.list(folder).await?.into_iter().filter(|entry| !is_own(entry, tuned)).collect())
}

/// Removes a run with all its files; what others have put into its folder stays.
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
    let last = ["config.yaml", TUNING, "events.jsonl", LOCK].map(|name| format!("{path}/{name}"));
    let tuned = store.exists(&format!("{path}/{TUNING}")).await;
    let own = store.list(path).await?.into_iter().filter(|entry| is_own(entry, tuned));
    for entry in own.filter(|entry| !last.contains(&entry.name)) {
        store.remove(&entry.name).await?;
    }
    drop(lock);
    for name in last {
        store.remove(&name).await?;
    }
    if store.list(path).await?.is_empty() { store.remove(path).await } else { Ok(()) }
}

/// Keeps others from a run.
///
/// # Errors
/// [`Error::File`] while it is in progress.
pub async fn hold(store: &Store, path: &str) -> Result<Lock> {
    let busy = |_| Error::File { path: path.into(), reason: "is in progress; stop it first".into() };
    store.lock(&format!("{path}/{LOCK}")).await.map_err(busy)
}

/// Takes back what a run that could not begin has made: its lock, and its folder where that is `new`.
pub async fn withdraw(store: &Store, path: &str, new: bool) {
    let path = path.trim_end_matches('/');
    let lock = format!("{path}/{LOCK}");
    let is_alone = matches!(store.list(path).await.as_deref(), Ok([entry]) if entry.name == lock);
    if !is_alone || hold(store, path).await.is_err() || store.remove(&lock).await.is_err() {
        return;
    }
    if new && store.list(path).await.is_ok_and(|entries| entries.is_empty()) {
        let _ = store.remove(path).await; // an empty folder does no harm
    }
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
    use crate::protocol::StepReport;

    fn write(store: &Store, name: &str, text: &str) {
        block_on(store.write(name, text.as_bytes())).unwrap();
    }

    fn run(store: &Store, path: &str, log: &str) {
        write(store, &format!("{path}/config.yaml"), "out: elsewhere\nsteps: 9\n");
        write(store, &format!("{path}/events.jsonl"), log);
        write(store, &format!("{path}/step_000003/state.json"), "{}");
    }

    const DONE: &str = "{\"time\":5.0,\"event\":\"done\",\"hints\":[],\"stopped\":true}\n";

    /// Lines of steps; `seed` gives other losses and times.
    fn steps(range: std::ops::RangeInclusive<u32>, seed: f64) -> String {
        let line = |step: u32| {
            let loss = if step == 7 { f64::NAN } else { seed / f64::from(step) };
            let report = StepReport { step, loss, ..StepReport::default() };
            let mut line = serde_json::to_value(Event::Step(report)).unwrap();
            line["time"] = (seed + f64::from(step)).into();
            format!("{line}\n")
        };
        range.map(line).collect()
    }

    /// What is read on tells the same as what is read from the beginning.
    #[track_caller]
    fn check_told(log: &str, store: &Store, known: &ReadLogs) {
        write(store, "runs/a/events.jsonl", log);
        let [told, anew] = [known, &ReadLogs::default()].map(|known| block_on(list(store, "runs", known)));
        assert_eq!(told, anew);
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn logs_that_grow_and_are_cut_are_told_as_they_are() {
        let store = Store::memory();
        run(&store, "runs/a", "");
        let known = ReadLogs::default();
        check_told("", &store, &known);
        let first = steps(1..=4000, 3.0);
        assert!(first.len() as u64 > 2 * PIECE_BYTES);
        check_told(&first, &store, &known);
        check_told(&(first.clone() + DONE), &store, &known);
        // Resumed: cut back, and grown beyond where it was; then to the very length that it had.
        let cut = steps(1..=3000, 3.0);
        let grown = cut.clone() + &steps(3001..=4500, 4.123_456);
        check_told(&grown, &store, &known);
        check_told(&grown.replace(".123456", ".654321"), &store, &known);
        check_told(&(cut.clone() + DONE), &store, &known);
        check_told(&steps(1..=3, 5.0), &store, &known);
        check_told("", &store, &known);
        // One line that is longer than a piece.
        let long = serde_json::json!({"time": 9.0, "event": "notice", "warning": true, "text": "x".repeat(3 * PIECE_BYTES as usize)});
        check_told(&format!("{cut}{long}\n{DONE}"), &store, &known);
    }

    #[test]
    fn a_last_line_that_is_half_written_counts_when_it_is_whole() {
        let store = Store::memory();
        run(&store, "runs/a", "");
        let known = ReadLogs::default();
        let log = steps(1..=3, 3.0) + DONE + &steps(4..=4, 3.0);
        for length in 0..=log.len() {
            check_told(&log[..length], &store, &known);
        }
        check_told(&log[..log.len() - 9], &store, &known);
        check_told(&(log + "\n" + DONE), &store, &known);
    }

    #[test]
    fn what_was_read_of_a_log_is_not_read_again() {
        let store = Store::memory();
        let log = steps(1..=100, 3.0);
        run(&store, "runs/a", &log);
        let known = ReadLogs::default();
        let summary = |known: &ReadLogs| block_on(list(&store, "runs", known)).pop();
        assert_eq!(summary(&known).unwrap().state, RunState::Open);
        // Damaged far before its end, which shows who looks there.
        write(&store, "runs/a/events.jsonl", &(log.replacen('{', "[", 1) + DONE));
        let told = summary(&known).unwrap();
        assert_eq!((told.state, told.step, told.losses.len()), (RunState::Stopped, 100, 50));
        assert_eq!(summary(&ReadLogs::default()), None);
        // What was added is damaged: not a run any longer, until it is mended.
        write(&store, "runs/a/events.jsonl", &(log.clone() + DONE + "{}\n"));
        assert_eq!(summary(&known), None);
        write(&store, "runs/a/events.jsonl", &(log + &DONE.replace("true", "false")));
        assert_eq!(summary(&known).unwrap().state, RunState::Finished);
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
        write(&store, "runs/a/.removing/state.json", "{}"); // as a killed run leaves it
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
    fn merged_models_go_with_the_run_that_was_tuned() {
        let store = Store::memory();
        for path in ["runs/a", "runs/b"] {
            run(&store, path, DONE);
            write(&store, &format!("{path}/merged/model.safetensors"), "weights");
            write(&store, &format!("{path}/merged-2.zip"), "packed");
        }
        write(&store, &format!("runs/b/{TUNING}"), "{}");
        block_on(delete(&store, "runs/a")).unwrap();
        block_on(delete(&store, "runs/b")).unwrap();
        assert!(block_on(store.exists("runs/a/merged/model.safetensors")), "a folder of that name is no part of a run of texts");
        assert!(!block_on(store.exists("runs/b")));
    }

    #[test]
    fn a_run_that_could_not_begin_leaves_nothing() {
        let folder = std::env::temp_dir().join(format!("smolforge-withdraw-{}", std::process::id()));
        let store = Store::folder(folder.to_str().unwrap());
        let left = |path: &str, new: bool| {
            block_on(withdraw(&store, path, new));
            (block_on(store.exists(path)), block_on(store.exists(&format!("{path}/{LOCK}"))))
        };
        let locked = |path: &str| block_on(store.lock(&format!("{path}/{LOCK}"))).unwrap();
        let lock = locked("a");
        assert_eq!(left("a", true), (true, true), "another run begins there");
        drop(lock);
        assert_eq!(left("a", true), (false, false));
        drop(locked("b"));
        assert_eq!(left("b", false), (true, false), "a folder that was there before stays");
        drop(locked("c"));
        write(&store, "c/note.txt", "words");
        assert_eq!(left("c", true), (true, true), "so does what others have put there");
        std::fs::remove_dir_all(folder).unwrap();
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
