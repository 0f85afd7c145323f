//! Checkpoints: a folder that is whole or not there.
//!
//! `step_000500/` is a Hugging Face folder in f32 (so `generate` loads it) with `optimizer.safetensors` and
//! `state.json` beside. It is written under another name, every file synced, and renamed when whole.

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::optimizer::{LossScale, Optimizer};
use crate::data::batch::Cursor;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generate::read_f32;
use crate::model::hub::{self, Weights};
use crate::model::llama::Parameter;
use crate::model::safetensors::{Dtype, SafeFile, SafeWriter};
use crate::model::{Llama, LlamaConfig};
use crate::store::Store;

/// Everything besides tensors that a run needs to go on exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Updates made or skipped.
    pub step: u32,
    /// Updates made: the optimizer's `t`.
    pub updates: u32,
    /// Place in the data.
    pub cursor: Cursor,
    /// Loss scale.
    pub loss_scale: LossScale,
    /// Skipped updates in a row.
    pub skipped_in_a_row: u32,
    /// Target tokens trained on.
    pub total_tokens: u64,
    /// Sum of losses and number of updates of the stage so far.
    pub stage_loss: (f64, u32),
    /// Best held-out loss and its step.
    pub best: Option<(f64, u32)>,
    /// Whether the last step still owes its evaluation, sample and what follows them.
    #[serde(default)]
    pub due: bool,
    /// What a resumed run must share: configuration, tokenizer, data.
    pub fingerprint: String,
}

const FORMAT: u32 = 1;

impl State {
    /// Version that this build writes.
    pub const FORMAT: u32 = FORMAT;
}

/// Name of the checkpoint folder of a step.
pub fn folder(run: &str, step: u32) -> String {
    format!("{run}/step_{step:06}")
}

/// Steps that have a whole checkpoint, ascending.
///
/// # Errors
/// Where the run's folder cannot be read.
pub async fn steps(store: &Store, run: &str) -> Result<Vec<u32>> {
    let entries = store.list(run).await?;
    let step = |name: &str| name.rsplit('/').next()?.strip_prefix("step_")?.parse().ok();
    let mut steps: Vec<u32> = entries.iter().filter(|entry| entry.folder).filter_map(|entry| step(&entry.name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The model that a name stands for: of a run its newest checkpoint, else the folder itself.
pub async fn newest_of(store: &Store, name: &str) -> String {
    let run = name.trim_end_matches('/');
    match steps(store, run).await.ok().and_then(|steps| steps.last().copied()) {
        Some(step) if !store.exists(&format!("{run}/model.safetensors")).await => folder(run, step),
        _ => name.into(),
    }
}

/// Writes a checkpoint and gives it its name.
///
/// # Errors
/// [`Error::DiskFull`], [`Error::File`], or a non-finite weight: nothing of it remains then.
pub async fn save(store: &Store, run: &str, model: &Llama, optimizer: &Optimizer, state: &State, tokenizer_json: &[u8]) -> Result<String> {
    let path = folder(run, state.step);
    let temporary = format!("{run}/.saving");
    store.remove(&temporary).await?;
    let result = write(store, &temporary, model, optimizer, state, tokenizer_json).await;
    if let Err(error) = result {
        store.remove(&temporary).await?;
        return Err(match error {
            Error::DiskFull { written, .. } => Error::DiskFull { path, written },
            other => other,
        });
    }
    store.rename(&temporary, &path).await?;
    Ok(path)
}

async fn write(store: &Store, folder: &str, model: &Llama, optimizer: &Optimizer, state: &State, tokenizer_json: &[u8]) -> Result<()> {
    let parameters = model.parameters();
    hub::write_config_files(store, folder, &model.config, "float32", Some(tokenizer_json)).await?;
    let tensors: Vec<_> = model.config.tensors().into_iter().map(|(name, shape)| (name, Dtype::F32, shape)).collect();
    let weights = parameters.iter().map(|parameter| (parameter.name.clone(), parameter.tensor.clone().inner()));
    write_tensors(store, &format!("{folder}/model.safetensors"), &tensors, weights).await?;
    let mut moments = Vec::new();
    for prefix in ["m", "v"] {
        moments.extend(tensors.iter().map(|(name, dtype, shape)| (format!("{prefix}.{name}"), *dtype, shape.clone())));
    }
    let named = |prefix: &'static str, tensors: &[Tensor<2>]| {
        let names = parameters.iter().map(move |parameter| format!("{prefix}.{}", parameter.name));
        names.zip(tensors.to_vec()).collect::<Vec<_>>()
    };
    let all = named("m", &optimizer.m).into_iter().chain(named("v", &optimizer.v));
    write_tensors(store, &format!("{folder}/optimizer.safetensors"), &moments, all).await?;
    let text = serde_json::to_vec_pretty(state).map_err(|e| Error::Internal(e.to_string()))?;
    store.write(&format!("{folder}/state.json"), &text).await
}

async fn write_tensors(
    store: &Store,
    path: &str,
    header: &[(String, Dtype, Vec<usize>)],
    tensors: impl Iterator<Item = (String, Tensor<2>)>,
) -> Result<()> {
    let mut writer = SafeWriter::create(store, path, header, &[("format", "pt")]).await?;
    for (name, tensor) in tensors {
        writer.write_f32(&name, &read_f32(tensor).await?)?;
    }
    writer.finish().await
}

/// Weights of a model as a Hugging Face folder.
///
/// # Errors
/// A weight that does not fit the type, by name; a full disk.
pub async fn export(
    store: &Store,
    weights: &Weights,
    config: &LlamaConfig,
    tokenizer_json: Option<&[u8]>,
    out: &str,
    dtype: Dtype,
) -> Result<()> {
    let name = if dtype == Dtype::F16 { "float16" } else { "float32" };
    let tensors: Vec<_> = config.tensors().into_iter().map(|(name, shape)| (name, dtype, shape)).collect();
    let mut writer = SafeWriter::create(store, &format!("{out}/model.safetensors"), &tensors, &[("format", "pt")]).await?;
    for (name, _, _) in &tensors {
        writer.write_f32(name, &weights.read(name)?)?;
    }
    writer.finish().await?;
    hub::write_config_files(store, out, config, name, tokenizer_json).await
}

/// The state of a checkpoint.
///
/// # Errors
/// [`Error::Resume`] where it was written by another version or is damaged.
pub async fn read_state(store: &Store, folder: &str) -> Result<State> {
    let text = store.read_text(&format!("{folder}/state.json")).await?;
    let state: State = serde_json::from_str(&text).map_err(|e| Error::format(format!("{folder}/state.json"), e.to_string()))?;
    if state.format != FORMAT {
        return Err(Error::Resume(format!("{folder}: written in layout {}, this build reads {FORMAT}", state.format)));
    }
    Ok(state)
}

/// Loads the optimizer of a checkpoint for the weights of `model`.
///
/// # Errors
/// Missing, misshapen or non-finite moments, by name.
pub async fn read_optimizer(store: &Store, folder: &str, model: &Llama, compute: &Compute, updates: u32) -> Result<Optimizer> {
    let path = format!("{folder}/optimizer.safetensors");
    let file = SafeFile::open(store.open(&path).await?, &path)?;
    let read = |prefix: &str, parameter: &Parameter| {
        let name = format!("{prefix}.{}", parameter.name);
        let shape = parameter.tensor.dims();
        let rows = if parameter.vector { 0..shape[1] } else { parameter.first_row..parameter.first_row + shape[0] };
        let values = file.read_rows_f32(&name, rows)?;
        if values.len() != shape[0] * shape[1] {
            let found = file.info(&name).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
            return Err(Error::Shape { path: path.clone(), name, expected: shape.to_vec(), found });
        }
        Ok(Tensor::from_data(TensorData::new(values, shape), (&compute.device, DType::F32)))
    };
    let all = |prefix| model.parameters().into_iter().map(|parameter| read(prefix, parameter)).collect::<Result<Vec<_>>>();
    Ok(Optimizer { m: all("m")?, v: all("v")?, updates })
}

/// Renames a checkpoint that cannot be read, so that it neither counts nor is lost.
///
/// # Errors
/// Where the folder cannot be renamed.
pub async fn set_aside(store: &Store, run: &str, step: u32) -> Result<()> {
    store.rename(&folder(run, step), &format!("{run}/damaged_{step:06}")).await
}

/// Removes old checkpoints: the newest `keep` and the best one stay.
///
/// # Errors
/// Where a folder cannot be removed.
pub async fn prune(store: &Store, run: &str, keep: usize, best: Option<u32>) -> Result<()> {
    let steps = steps(store, run).await?;
    let old = steps.len().saturating_sub(keep);
    for step in steps.into_iter().take(old).filter(|step| Some(*step) != best) {
        // Renamed first: a kill in the middle of removing leaves nothing that looks like a checkpoint.
        let removing = format!("{run}/.removing");
        store.rename(&folder(run, step), &removing).await?;
        store.remove(&removing).await?;
    }
    Ok(())
}
