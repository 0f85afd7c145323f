//! Checkpoints: a folder that is whole or not there.
//!
//! `step_000500/` is a Hugging Face folder in f32 (so `generate` loads it), or an adapter's folder, with `optimizer.safetensors` and
//! `state.json` beside. It is written under another name, every file synced, and renamed when whole.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::optimizer::{LossScale, Moments, Optimizer, is_full};
use super::run::quoted;
use super::runs::TUNING;
use crate::config::finetune::Optim;
use crate::data::batch::Cursor;
use crate::device::Compute;
use crate::device::read_f32;
use crate::error::{Error, Result};
use crate::generate::speech::{Files, write_files};
use crate::model::adapter::AdapterConfig;
use crate::model::hub::{self, Weights};
use crate::model::linear::Parameter;
use crate::model::safetensors::{Dtype, SafeFile, SafeWriter};
use crate::model::{Adapter, Llama, LlamaConfig};
use crate::ops::quant::adamw8::Moments8;
use crate::ops::quant::dynamic8::BLOCK;
use crate::store::{Store, inside};

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
    /// Best of what makes a checkpoint the best one, and its step: held-out loss, or 1 − accuracy.
    pub best: Option<(f64, u32)>,
    /// Whether the last step still owes its evaluation, sample and what follows them.
    #[serde(default)]
    pub due: bool,
    /// What a resumed run must share: configuration, tokenizer, data.
    pub fingerprint: String,
}

const FORMAT: u32 = 1;

impl State {
    /// Before the first step.
    pub fn new(cursor: Cursor, loss_scale: LossScale, fingerprint: String) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            updates: 0,
            cursor,
            loss_scale,
            skipped_in_a_row: 0,
            total_tokens: 0,
            stage_loss: (0.0, 0),
            best: None,
            due: false,
            fingerprint,
        }
    }
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

/// The model that a name stands for: of a run the one that it ended with, else its newest checkpoint, else the folder itself.
pub async fn newest_of(store: &Store, name: &str) -> String {
    let run = name.trim_end_matches('/');
    let last = format!("{run}/model");
    if store.exists(&format!("{run}/{TUNING}")).await && store.exists(&format!("{last}/model.safetensors")).await {
        return last;
    }
    match steps(store, run).await.ok().and_then(|steps| steps.last().copied()) {
        Some(step) if !store.exists(&format!("{run}/model.safetensors")).await => folder(run, step),
        _ => name.into(),
    }
}

/// As [`newest_of`], for a model that must be whole; `flags` are those that name a model and an adapter.
///
/// # Errors
/// [`Error::Config`] for what holds an adapter alone, with the base that it needs.
pub async fn model_of(store: &Store, name: &str, flags: [&str; 2]) -> Result<String> {
    let folder = newest_of(store, name).await;
    let path = inside(&folder, "adapter_config.json");
    if store.exists(&inside(&folder, "config.json")).await || !store.exists(&path).await {
        return Ok(folder);
    }
    let base = AdapterConfig::from_peft_json(&store.read_text(&path).await?, &path)?.base_model;
    let ([model, adapter], base, own) = (flags, quoted(&base), quoted(name));
    Err(Error::Config(format!("{name}: holds an adapter, which needs its base: {model} {base} {adapter} {own}")))
}

/// The adapter that a name stands for: of a run the one that it ended with, else its newest checkpoint's.
pub async fn adapter_of(store: &Store, name: &str) -> String {
    let run = name.trim_end_matches('/');
    let last = format!("{run}/adapter");
    if store.exists(&format!("{run}/adapter_config.json")).await {
        return run.into();
    }
    if store.exists(&format!("{last}/adapter_config.json")).await { last } else { newest_of(store, run).await }
}

/// Writes a checkpoint and gives it its name. Of a model with an adapter, which is what `adapter` says, that alone is
/// written, as PEFT's files; `files` lie beside either.
///
/// # Errors
/// [`Error::DiskFull`], [`Error::File`], or a non-finite weight: nothing of it remains then.
pub async fn save(
    store: &Store,
    run: &str,
    model: &Llama,
    adapter: Option<&AdapterConfig>,
    optimizer: &Optimizer,
    state: &State,
    tokenizer_json: &[u8],
    files: &Files,
) -> Result<String> {
    let path = folder(run, state.step);
    let temporary = format!("{run}/.saving");
    store.remove(&temporary).await?;
    let result = async {
        match adapter {
            Some(config) => Adapter::read(model, config).await?.save(store, &temporary).await?,
            None => write_weights(store, &temporary, model, tokenizer_json).await?,
        }
        write_files(store, &temporary, files).await?;
        write_state(store, &temporary, model, optimizer, state).await
    };
    if let Err(error) = result.await {
        store.remove(&temporary).await?;
        return Err(match error {
            Error::DiskFull { written, .. } => Error::DiskFull { path, written },
            other => other,
        });
    }
    store.rename(&temporary, &path).await?;
    Ok(path)
}

async fn write_weights(store: &Store, folder: &str, model: &Llama, tokenizer_json: &[u8]) -> Result<()> {
    hub::write_config_files(store, folder, &model.config, "float32", Some(tokenizer_json)).await?;
    let tensors: Vec<_> = model.config.tensors().into_iter().map(|(name, shape)| (name, Dtype::F32, shape)).collect();
    let weights = model.parameters().into_iter().map(|parameter| (parameter.name.clone(), parameter.tensor.clone().inner()));
    write_tensors(store, &format!("{folder}/model.safetensors"), &tensors, weights).await
}

/// `m.NAME` and `v.NAME` of every weight: in f32 with its shape, or 8-bit codes, and then `m_absmax.NAME` and `v_absmax.NAME`.
async fn write_state(store: &Store, folder: &str, model: &Llama, optimizer: &Optimizer, state: &State) -> Result<()> {
    let parameters = model.trained();
    let mut header: Vec<(String, Dtype, Vec<usize>)> = Vec::new();
    let mut declare = |name: String, dtype: Dtype, shape: &[usize]| match header.iter_mut().find(|(known, ..)| *known == name) {
        Some((.., known)) => known[0] += shape[0], // the blocks of a table
        None => header.push((name, dtype, shape.to_vec())),
    };
    for (parameter, moments) in parameters.iter().zip(&optimizer.moments) {
        let (name, [rows, columns]) = (&parameter.name, parameter.tensor.dims());
        match moments {
            Moments::Full { .. } => {
                let shape = if parameter.vector { vec![columns] } else { vec![rows, columns] };
                ["m", "v"].iter().for_each(|part| declare(format!("{part}.{name}"), Dtype::F32, &shape));
            }
            Moments::Host(_) | Moments::Device(_) => {
                let (len, blocks) = (rows * columns, (rows * columns).div_ceil(BLOCK));
                ["m", "v"].iter().for_each(|part| declare(format!("{part}.{name}"), Dtype::U8, &[len]));
                ["m_absmax", "v_absmax"].iter().for_each(|part| declare(format!("{part}.{name}"), Dtype::F32, &[blocks]));
            }
        }
    }
    header.sort_by_key(|(_, dtype, _)| *dtype != Dtype::F32); // codes, of any number of bytes, lie behind what must be aligned
    let mut eights: Vec<Option<Cow<'_, Moments8>>> = Vec::new();
    for moments in &optimizer.moments {
        eights.push(match moments {
            Moments::Full { .. } => None,
            Moments::Host(host) => Some(Cow::Borrowed(host)),
            Moments::Device(moments) => Some(Cow::Owned(moments.download().await?)),
        });
    }
    let mut writer = SafeWriter::create(store, &format!("{folder}/optimizer.safetensors"), &header, &[("format", "pt")]).await?;
    for (name, ..) in &header {
        for ((parameter, moments), eight) in parameters.iter().zip(&optimizer.moments).zip(&eights) {
            let Some(part) = name.strip_suffix(&parameter.name).and_then(|part| part.strip_suffix('.')) else { continue };
            match (part, moments, eight) {
                ("m", Moments::Full { m, .. }, _) => writer.write_f32(name, &read_f32(m.clone()).await?)?,
                ("v", Moments::Full { v, .. }, _) => writer.write_f32(name, &read_f32(v.clone()).await?)?,
                ("m", _, Some(eight)) => writer.write_bytes(name, &eight.m)?,
                ("v", _, Some(eight)) => writer.write_bytes(name, &eight.v)?,
                ("m_absmax", _, Some(eight)) => writer.write_f32(name, &eight.m_absmax)?,
                ("v_absmax", _, Some(eight)) => writer.write_f32(name, &eight.v_absmax)?,
                _ => {}
            }
        }
    }
    writer.finish().await?;
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

/// Weights of a model as a Hugging Face folder; `metadata` is what their file says besides.
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
    metadata: &[(&str, &str)],
) -> Result<()> {
    let name = if dtype == Dtype::F16 { "float16" } else { "float32" };
    let tensors: Vec<_> = config.tensors().into_iter().map(|(name, shape)| (name, dtype, shape)).collect();
    let metadata = [&[("format", "pt")], metadata].concat();
    let mut writer = SafeWriter::create(store, &format!("{out}/model.safetensors"), &tensors, &metadata).await?;
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

/// Loads the optimizer of a checkpoint for what `model` trains.
///
/// # Errors
/// Missing, misshapen or non-finite moments, by name.
pub async fn read_optimizer(
    store: &Store,
    folder: &str,
    model: &Llama,
    compute: &Compute,
    optim: Optim,
    updates: u32,
) -> Result<Optimizer> {
    let path = format!("{folder}/optimizer.safetensors");
    let file = SafeFile::open(store.open(&path).await?, &path)?;
    let wrong = |name: String, expected: Vec<usize>| {
        let found = file.info(&name).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
        Error::Shape { path: path.clone(), name, expected, found }
    };
    let full = |part: &str, parameter: &Parameter| {
        let name = format!("{part}.{}", parameter.name);
        let shape = parameter.tensor.dims();
        let rows = if parameter.vector { 0..shape[1] } else { parameter.first_row..parameter.first_row + shape[0] };
        let values = file.read_rows_f32(&name, rows)?;
        if values.len() != shape[0] * shape[1] {
            return Err(wrong(name, shape.to_vec()));
        }
        Ok(Tensor::from_data(TensorData::new(values, shape), (&compute.device, DType::F32)))
    };
    // The blocks of a table lie behind each other, scales and codes alike.
    let eight = |parameter: &Parameter| {
        let ([rows, columns], name) = (parameter.tensor.dims(), &parameter.name);
        let (len, first) = (rows * columns, parameter.first_row * columns);
        let codes = |part: &str| {
            let name = format!("{part}.{name}");
            let bytes = file.read_u8(&name)?;
            bytes.get(first..first + len).map(<[u8]>::to_vec).ok_or_else(|| wrong(name, vec![len]))
        };
        let scales = |part: &str| {
            let name = format!("{part}.{name}");
            let blocks = len.div_ceil(BLOCK);
            let first = blocks_before(model, parameter);
            let values = file.read_rows_f32(&name, first..first + blocks)?;
            if values.len() == blocks { Ok(values) } else { Err(wrong(name, vec![blocks])) }
        };
        Ok::<_, Error>(Moments8 { m: codes("m")?, v: codes("v")?, m_absmax: scales("m_absmax")?, v_absmax: scales("v_absmax")? })
    };
    let read = |parameter: &Parameter| match is_full(optim, parameter.tensor.dims()) {
        true => Ok(Moments::Full { m: full("m", parameter)?, v: full("v", parameter)? }),
        false => eight(parameter).map(Moments::Host),
    };
    let moments = model.trained().into_iter().map(read).collect::<Result<Vec<_>>>()?;
    Ok(Optimizer { moments, updates }.placed(model, optim))
}

/// Scales of the blocks of a table that come before this one of it.
fn blocks_before(model: &Llama, parameter: &Parameter) -> usize {
    let before = model.trained().into_iter().filter(|other| other.name == parameter.name && other.first_row < parameter.first_row);
    before.map(|other| other.len().div_ceil(BLOCK)).sum()
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
