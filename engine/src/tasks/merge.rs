//! A model and its adapter as one model.

use half::f16;

use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::generate::speech::{files_around, write_files};
use crate::model::adapter::Adapter;
use crate::model::hub::{self, Weights};
use crate::model::safetensors::{Dtype, SafeWriter};
use crate::model::{LlamaConfig, fetch};
use crate::ops::quant::Nf4;
use crate::protocol::{AdapterChoice, Event, ExportDtype};
use crate::store::Store;
use crate::train::checkpoint;

/// Writes `w + Σ strength·scale·b·a` of every layer as a Hugging Face folder.
///
/// # Errors
/// What is wrong with model or adapters; a weight that does not fit the type; a full disk.
pub async fn run(model: &str, adapters: &[AdapterChoice], out: &str, dtype: ExportDtype, store: &Store, control: &Control) -> Result<()> {
    for owned in ["state.json", "events.jsonl", "adapter_config.json", "model.safetensors", "model.safetensors.index.json"] {
        if store.exists(&format!("{out}/{owned}")).await {
            return Err(Error::Config(format!("--out {out}: holds a run, a checkpoint, an adapter or a model; choose another folder")));
        }
    }
    let config = hub::read_config(store, model).await?;
    let weights = Weights::open(store, model).await?;
    weights.check(&config)?;
    let adapter = Adapter::load_mix(store, adapters, model, control)
        .await?
        .ok_or_else(|| Error::Config("--adapter is missing: name the adapter's folder".into()))?;
    let sizes = config.tensors();
    adapter.check_sizes(&|layer| {
        let name = format!("{layer}.weight");
        sizes.iter().find(|(tensor, _)| *tensor == name).and_then(|(_, shape)| <[usize; 2]>::try_from(shape.as_slice()).ok())
    })?;
    let (dtype, name) = match dtype {
        ExportDtype::F16 => (Dtype::F16, "float16"),
        ExportDtype::F32 => (Dtype::F32, "float32"),
    };
    let original = original(model, &adapter, &config, store).await;
    let mut measured = Measured::default();
    let header: Vec<_> = sizes.iter().map(|(name, shape)| (name.clone(), dtype, shape.clone())).collect();
    let mut writer = SafeWriter::create(store, &format!("{out}/model.safetensors"), &header, &[("format", "pt")]).await?;
    for (done, (tensor, shape)) in sizes.iter().enumerate() {
        control.progress("merge", done as u64, sizes.len() as u64, "tensors");
        if control.breathe().await == Flow::Stop {
            return Ok(()); // the file has no name yet
        }
        let packed = weights.read_nf4(tensor)?;
        let mut values = match &packed {
            Some(packed) => packed.dense(),
            None => weights.read(tensor)?,
        };
        if let (Some(change), &[rows, columns]) = (tensor.strip_suffix(".weight").and_then(|layer| adapter.change(layer)), &shape[..]) {
            let before = values.clone();
            values.chunks_mut(columns).enumerate().for_each(|(row, values)| change(row, values));
            measured.matrices += squares(&before, &[]);
            measured.change += squares(&before, &values);
            if dtype == Dtype::F16 {
                measured.rounding += values.iter().map(|value| f64::from(f16::from_f32(*value).to_f32() - value).powi(2)).sum::<f64>();
            }
            let full = packed.is_some().then(|| original.as_ref()?.1.read(tensor).ok()).flatten();
            if let Some(full) = full {
                measured.in_4_bits += squares(&before, &full);
            } else if packed.is_none() && adapter.config.four_bits {
                measured.in_4_bits += squares(&before, &Nf4::quantize(&before, rows, columns).dense());
            }
            measured.packed |= packed.is_some();
        }
        writer.write_f32(tensor, &values)?;
    }
    writer.finish().await?;
    let tokenizer = format!("{}/tokenizer.json", model.trim_end_matches('/'));
    let tokenizer = if store.exists(&tokenizer).await { Some(store.read(&tokenizer).await?) } else { None };
    hub::write_config_files(store, out, &config, name, tokenizer.as_deref()).await?;
    write_files(store, out, &files_around(store, model).await?).await?;
    for adapter in adapters.iter().rev() {
        // The template that was trained with, and what its turns end with.
        let mut files = files_around(store, &adapter.path).await?;
        files.retain(|name, _| ["chat_template.jinja", "generation_config.json"].contains(name));
        write_files(store, out, &files).await?;
    }
    measured.tell(original.as_ref().map(|(name, _)| name.as_str()), dtype, adapter.config.four_bits, control);
    control.emit(Event::Wrote { what: format!("merged model ({})", if dtype == Dtype::F16 { "FP16" } else { "FP32" }), path: out.into() });
    Ok(())
}

/// Squares over all matrices that adapters change, summed.
#[derive(Default)]
struct Measured {
    /// Of the matrices before.
    matrices: f64,
    /// Of what the adapters add.
    change: f64,
    /// Of what rounding to the stored type takes away.
    rounding: f64,
    /// Of the distance between the matrices in 4 bits and in full.
    in_4_bits: f64,
    /// Whether the base has some of them in 4 bits.
    packed: bool,
}

impl Measured {
    /// Says how exact the merged model is.
    fn tell(&self, original: Option<&str>, dtype: Dtype, four_bits: bool, control: &Control) {
        let share = |squares: f64| format!("{:.4} %", 100.0 * (squares / self.matrices.max(f64::MIN_POSITIVE)).sqrt());
        let change = share(self.change);
        if dtype == Dtype::F16 {
            let rounding = share(self.rounding);
            control.notice(format!(
                "rounding to F16 moves the changed matrices by {rounding} of their norm; the adapter moves them by {change}"
            ));
        }
        let distance = share(self.in_4_bits);
        match (self.packed, original) {
            (true, Some(original)) => control.notice(format!(
                "the base is of 4 bits: merged into its de-quantised matrices, which lie {distance} of their norm from those of {original}"
            )),
            (true, None) => control.notice("the base is of 4 bits: merged into its de-quantised matrices"),
            (false, _) if four_bits => control.warn(format!(
                "the adapter was trained beside the base in 4 bits, whose matrices lie {distance} of their norm from those that it was merged into; the adapter moves them by {change}"
            )),
            (false, _) => {}
        }
    }
}

/// `Σ (a − b)²`; without `b` `Σ a²`.
fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b.iter().chain(std::iter::repeat(&0.0))).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// The weights that a base of 4 bits was made of, with their folder, where that is at hand.
async fn original(model: &str, adapter: &Adapter, config: &LlamaConfig, store: &Store) -> Option<(String, Weights)> {
    let names = [hub::written_name(store, model).await.unwrap_or_default(), adapter.config.base_model.clone()];
    for name in names.into_iter().filter(|name| !name.is_empty() && name != model) {
        let Ok(folder) = fetch::present(store, &name).await else { continue };
        let Ok(weights) = Weights::open(store, &checkpoint::newest_of(store, &folder).await).await else { continue };
        let is_full = |(tensor, _): &(String, Vec<usize>)| weights.info(tensor).is_some_and(|(dtype, _)| dtype != Dtype::U8);
        if weights.check(config).is_ok() && config.tensors().iter().all(is_full) {
            return Some((name, weights));
        }
    }
    None
}
