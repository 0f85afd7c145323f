//! The runs on disk, as a list shows them and as they were told.

use super::checkpoint;
use super::log::read_events;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::platform;
use crate::protocol::{Event, RunState, RunSummary};
use crate::store::{Entry, Store};

/// How deep below a folder runs are looked for.
const DEPTH: usize = 3;

/// Points of a loss curve in a list.
const POINTS: usize = 64;

/// All runs below a folder, the one changed last first. What cannot be read is left out.
pub async fn list(store: &Store, folder: &str) -> Vec<RunSummary> {
    let mut runs = Vec::new();
    let mut folders = vec![(folder.to_string(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        if store.exists(&format!("{folder}/events.jsonl")).await {
            runs.extend(summary(store, &folder).await.ok());
            platform::yield_now().await;
        } else if depth < DEPTH {
            let inside = store.list(&folder).await.unwrap_or_default().into_iter();
            let inside = inside.map(|entry| Entry { name: entry.name.strip_prefix("./").unwrap_or(&entry.name).to_string(), ..entry });
            let visible = |name: &str| !name.rsplit('/').next().unwrap_or(name).starts_with('.');
            folders.extend(inside.filter(|entry| entry.folder && visible(&entry.name)).map(|entry| (entry.name, depth + 1)));
        }
    }
    runs.sort_by(|a, b| b.changed.total_cmp(&a.changed).then_with(|| a.path.cmp(&b.path)));
    runs
}

async fn summary(store: &Store, path: &str) -> Result<RunSummary> {
    let config = config(store, path).await?;
    let events = read_events(store, path).await?;
    let mut run = RunSummary {
        path: path.into(),
        state: RunState::Open,
        step: 0,
        steps: config.steps,
        parameters: 0,
        changed: events.last().map_or(0.0, |(time, _)| *time),
        losses: Vec::new(),
        best: None,
        checkpoints: checkpoint::steps(store, path).await?,
        size_bytes: size(store, path).await?,
        exports: Vec::new(),
    };
    let mut losses = Vec::new();
    for (_, event) in &events {
        match event {
            Event::Run(info) => (run.state, run.parameters) = (RunState::Open, info.parameters),
            Event::Step(report) => {
                run.step = report.step;
                losses.extend(report.loss.is_finite().then_some((report.step, report.loss)));
            }
            Event::Evaluated { step, loss, best: true, .. } => run.best = Some((*loss, *step)),
            Event::Done { stopped, .. } => run.state = if *stopped { RunState::Stopped } else { RunState::Finished },
            Event::Failed { .. } => run.state = RunState::Failed,
            _ => {}
        }
    }
    let every = losses.len().div_ceil(POINTS).max(1);
    run.losses = losses.chunks(every).map(|part| *part.last().expect("chunks are not empty")).collect();
    Ok(run)
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
    TrainConfig::from_yaml(&store.read_text(&name).await?).map_err(|e| Error::format(name, e.to_string()))
}

async fn size(store: &Store, path: &str) -> Result<u64> {
    let mut folders = vec![path.to_string()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in store.list(&folder).await? {
            bytes += entry.size_bytes;
            if entry.folder {
                folders.push(entry.name);
            }
        }
    }
    Ok(bytes)
}
