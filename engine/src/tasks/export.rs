//! A run's weights as a Hugging Face folder.

use crate::control::Control;
use crate::error::{Error, Result};
use crate::generate::speech::{files_around, write_files};
use crate::model::hub::{self, Weights};
use crate::model::safetensors::{Dtype, SafeFile};
use crate::protocol::{Event, ExportDtype};
use crate::store::Store;
use crate::train::checkpoint;

/// What a file of weights says of where it comes from: an export may be made again, and of another step.
const ORIGIN: &str = "origin";
/// Bytes at the beginning of a log that tell it from others: they hold its first line, or most of that.
const FIRST_BYTES: u64 = 4096;

/// Writes the weights of a checkpoint: `which` is `last`, `best` or a step.
///
/// # Errors
/// No such run or checkpoint; a weight that does not fit the type; a full disk.
pub async fn run(run: &str, out: &str, dtype: ExportDtype, which: &str, store: &Store, control: &Control) -> Result<()> {
    for owned in ["state.json", "events.jsonl", "adapter_config.json"] {
        if store.exists(&format!("{out}/{owned}")).await {
            return Err(Error::Config(format!("--out {out}: holds a run, a checkpoint or an adapter; choose another folder")));
        }
    }
    let steps = checkpoint::steps(store, run).await?;
    let last = *steps.last().ok_or_else(|| Error::Config(format!("{run}: no checkpoint here; train first, or check --run")))?;
    let listed = || steps.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let step = match which {
        "last" => last,
        "best" => {
            let state = checkpoint::read_state(store, &checkpoint::folder(run, last)).await?;
            state
                .best
                .map(|(_, step)| step)
                .ok_or_else(|| Error::Config(format!("{run}: was not evaluated yet, so there is no best checkpoint")))?
        }
        step => step.parse().map_err(|_| Error::Config(format!("--step {step}: give `last`, `best` or one of {}", listed())))?,
    };
    if !steps.contains(&step) {
        return Err(Error::Config(format!("{run}: no checkpoint of step {step}; there are {}", listed())));
    }
    let folder = checkpoint::folder(run, step);
    if store.exists(&format!("{folder}/adapter_config.json")).await {
        return Err(Error::Config(format!("{run}: has trained an adapter; smolforge merge makes one model of it and its base")));
    }
    let fingerprint = checkpoint::read_state(store, &folder).await?.fingerprint;
    let origin = format!("smolforge export {fingerprint} {}", beginning(store, run).await?);
    if holds_another(store, out, &origin).await {
        return Err(Error::Config(format!("--out {out}: holds another model; choose another folder, or remove that model first")));
    }
    let config = hub::read_config(store, &folder).await?;
    let weights = Weights::open(store, &folder).await?;
    weights.check(&config)?;
    let tokenizer = store.read(&format!("{folder}/tokenizer.json")).await?;
    let (dtype, name) = match dtype {
        ExportDtype::F16 => (Dtype::F16, "FP16 export"),
        ExportDtype::F32 => (Dtype::F32, "FP32 export"),
    };
    checkpoint::export(store, &weights, &config, Some(&tokenizer), out, dtype, &[(ORIGIN, &origin)]).await?;
    write_files(store, out, &files_around(store, &folder).await?).await?;
    control.emit(Event::Wrote { what: format!("{name} of step {step}"), path: out.into() });
    Ok(())
}

/// What tells a run from others of the same configuration: a hash of the first line of its log, which has its time.
async fn beginning(store: &Store, run: &str) -> Result<String> {
    let Ok(log) = store.open(&format!("{run}/events.jsonl")).await else { return Ok(String::new()) };
    let bytes = log.read(0..FIRST_BYTES)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(blake3::hash(line).to_hex()[..12].to_string())
}

/// Whether a folder has a model that is no export of the same run.
async fn holds_another(store: &Store, out: &str, origin: &str) -> bool {
    let weights = format!("{out}/model.safetensors");
    if !store.exists(&weights).await {
        let has = async |file: &str| store.exists(&format!("{out}/{file}")).await;
        return has("config.json").await || has("model.safetensors.index.json").await;
    }
    let Ok(blob) = store.open(&weights).await else { return true };
    SafeFile::open(blob, &weights).map_or(true, |file| file.metadata().get(ORIGIN).is_none_or(|found| found != origin))
}
