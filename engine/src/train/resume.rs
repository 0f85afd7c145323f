//! Going on with a run: what must be as it was, and the checkpoint to go on from.

use super::checkpoint::{self, State};
use super::pretrain::resolve;
use super::runs;
use crate::config::TrainConfig;
use crate::control::Control;
use crate::data::batch::Loader;
use crate::error::{Error, Result};
use crate::model::{LlamaConfig, hub};
use crate::store::Store;
use crate::text::tokenizer::Tokenizer;

/// The configuration of a run that exists; refuses one that asks for something else.
pub async fn frozen(asked: &TrainConfig, store: &Store) -> Result<TrainConfig> {
    let path = format!("{}/config.yaml", asked.out);
    if !store.exists(&path).await {
        return Err(Error::Resume(format!("{}: there is no run to resume here; start it without --resume", asked.out)));
    }
    if store.exists(&format!("{}/{}", asked.out, runs::TUNING)).await {
        let out = &asked.out;
        return Err(Error::Resume(format!("{out} is a fine-tuning run; resume it with: smolforge finetune --resume --output-dir {out}")));
    }
    let mut frozen = TrainConfig::from_yaml(&store.read_text(&path).await?)?;
    if asked.sources.is_empty() {
        return Ok(TrainConfig { out: asked.out.clone(), ..frozen }); // as it was begun
    }
    // A run may move on to another device or folder; how often it talks and saves changes nothing either.
    let TrainConfig { out, device, log_every, save_every, save_total_limit, .. } = asked.clone();
    frozen = TrainConfig { out, device, log_every, save_every, save_total_limit, ..frozen };
    let mut asked = resolve(asked);
    // Weights were moved since the run was begun: whoever asks need not know.
    if asked.mix_changes.iter().all(|change| frozen.mix_changes.contains(change)) {
        asked.mix_changes = frozen.mix_changes.clone();
    }
    let (old, new) = (serde_json::to_value(&frozen), serde_json::to_value(&asked));
    let (Ok(serde_json::Value::Object(old)), Ok(serde_json::Value::Object(new))) = (old, new) else {
        return Err(Error::Internal("a configuration is a map".into()));
    };
    let changed: Vec<&str> = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    if !changed.is_empty() {
        return Err(Error::Resume(format!(
            "the run in {} was begun with another {}; resume it without that, or start a new run with another --out",
            asked.out,
            changed.join(", ")
        )));
    }
    Ok(frozen)
}

/// The shape in the newest checkpoint that has a readable one.
pub async fn newest_shape(store: &Store, out: &str) -> Option<LlamaConfig> {
    for step in checkpoint::steps(store, out).await.ok()?.into_iter().rev() {
        if let Ok(model) = hub::read_config(store, &checkpoint::folder(out, step)).await {
            return Some(model);
        }
    }
    None
}

/// Keys that runs of before do not have, with the values that they had in effect.
const LATER: [&str; 4] = ["mix_changes: []\n", "gradient_checkpointing: false\n", "optim: adamw_torch\n", "lr_scheduler_type: cosine\n"];

/// What a resumed run must share with its beginning, as `config-tokenizer-data`.
pub fn fingerprint(config: &TrainConfig, tokenizer: &Tokenizer, loader: &Loader) -> String {
    let d = TrainConfig::default();
    let neutral = TrainConfig {
        out: d.out,
        device: d.device,
        log_every: d.log_every,
        save_every: d.save_every,
        save_total_limit: d.save_total_limit,
        mix_changes: d.mix_changes,
        gradient_checkpointing: d.gradient_checkpointing, // changes memory and time, no numbers
        ..config.clone()
    };
    let yaml = LATER.iter().fold(neutral.to_yaml(), |yaml, line| yaml.replace(line, ""));
    let config = blake3::hash(yaml.as_bytes()).to_hex();
    format!("{}-{}-{}", &config[..12], tokenizer.hash(), loader.fingerprint())
}

/// The newest checkpoint that is whole, as `load` reads it; an unreadable one is skipped with a warning. `None` where none
/// was finished.
///
/// # Errors
/// [`Error::Resume`] where none of them can be read, or what else `load` says.
pub async fn newest<T>(
    store: &Store,
    out: &str,
    steps: &[u32],
    load: impl AsyncFn(&str) -> Result<T>,
    control: &Control,
) -> Result<Option<T>> {
    if steps.is_empty() {
        control.warn(format!("{out}: no checkpoint was finished; starting from the first step"));
        return Ok(None);
    }
    let mut damaged: Vec<u32> = Vec::new();
    for step in steps.iter().rev() {
        match load(&checkpoint::folder(out, *step)).await {
            Ok(loaded) => {
                for step in damaged {
                    checkpoint::set_aside(store, out, step).await?;
                }
                return Ok(Some(loaded));
            }
            Err(error) if error.is_damage() => control.warn(format!("{error}; trying the checkpoint before")),
            Err(error) => return Err(error),
        }
        damaged.push(*step);
    }
    Err(Error::Resume(format!(
        "{out}: none of its {} checkpoints can be read; nothing was changed; repair them, or start anew in another folder",
        steps.len()
    )))
}

/// The state of a checkpoint of a run with this fingerprint.
///
/// # Errors
/// [`Error::Resume`] naming what is not as it was.
pub async fn state(store: &Store, folder: &str, fingerprint: &str) -> Result<State> {
    let state = checkpoint::read_state(store, folder).await?;
    let names = ["configuration", "tokenizer", "data", "base model"];
    let differing = state.fingerprint.split('-').zip(fingerprint.split('-')).zip(names).find(|((old, new), _)| old != new);
    match differing {
        None => Ok(state),
        Some((_, name)) => Err(Error::Resume(format!(
            "{folder}: the {name} is not the one this run was begun with; restore it, or start a new run in another folder"
        ))),
    }
}
