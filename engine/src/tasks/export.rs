//! A run's weights as a Hugging Face folder.

use crate::control::Control;
use crate::error::{Error, Result};
use crate::model::hub::{self, Weights};
use crate::model::safetensors::Dtype;
use crate::protocol::{Event, ExportDtype};
use crate::store::Store;
use crate::train::checkpoint;

/// Writes the weights of a checkpoint: `which` is `last`, `best` or a step.
///
/// # Errors
/// No such run or checkpoint; a weight that does not fit the type; a full disk.
pub async fn run(run: &str, out: &str, dtype: ExportDtype, which: &str, store: &Store, control: &Control) -> Result<()> {
    for owned in ["state.json", "events.jsonl"] {
        if store.exists(&format!("{out}/{owned}")).await {
            return Err(Error::Config(format!("--out {out}: holds a run or one of its checkpoints; choose another folder")));
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
    let config = hub::read_config(store, &folder).await?;
    let weights = Weights::open(store, &folder).await?;
    weights.check(&config)?;
    let tokenizer = store.read(&format!("{folder}/tokenizer.json")).await?;
    let (dtype, name) = match dtype {
        ExportDtype::F16 => (Dtype::F16, "FP16 export"),
        ExportDtype::F32 => (Dtype::F32, "FP32 export"),
    };
    checkpoint::export(store, &weights, &config, Some(&tokenizer), out, dtype).await?;
    control.emit(Event::Wrote { what: format!("{name} of step {step}"), path: out.into() });
    Ok(())
}
