//! A model and its adapter as one model.

use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::generate::speech::{files_around, write_files};
use crate::model::adapter::Adapter;
use crate::model::hub::{self, Weights};
use crate::model::safetensors::{Dtype, SafeWriter};
use crate::protocol::{AdapterChoice, Event, ExportDtype};
use crate::store::Store;

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
    let adapter =
        Adapter::load_mix(store, adapters).await?.ok_or_else(|| Error::Config("--adapter is missing: name the adapter's folder".into()))?;
    let sizes = config.tensors();
    adapter.check_sizes(&|layer| {
        let name = format!("{layer}.weight");
        sizes.iter().find(|(tensor, _)| *tensor == name).and_then(|(_, shape)| <[usize; 2]>::try_from(shape.as_slice()).ok())
    })?;
    let (dtype, name) = match dtype {
        ExportDtype::F16 => (Dtype::F16, "float16"),
        ExportDtype::F32 => (Dtype::F32, "float32"),
    };
    let header: Vec<_> = sizes.iter().map(|(name, shape)| (name.clone(), dtype, shape.clone())).collect();
    let mut writer = SafeWriter::create(store, &format!("{out}/model.safetensors"), &header, &[("format", "pt")]).await?;
    for (done, (tensor, shape)) in sizes.iter().enumerate() {
        control.progress("merge", done as u64, sizes.len() as u64, "tensors");
        if control.breathe().await == Flow::Stop {
            return Ok(()); // the file has no name yet
        }
        let mut values = weights.read_dense(tensor)?;
        if let (Some(change), [_, columns]) = (tensor.strip_suffix(".weight").and_then(|layer| adapter.change(layer)), &shape[..]) {
            values.chunks_mut(*columns).enumerate().for_each(|(row, values)| change(row, values));
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
    control.emit(Event::Wrote { what: format!("merged model ({})", if dtype == Dtype::F16 { "FP16" } else { "FP32" }), path: out.into() });
    Ok(())
}
