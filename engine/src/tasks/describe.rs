//! A model on this machine, as far as one must know it to train beside it.

use crate::control::Control;
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::model::{Adapter, fetch};
use crate::protocol::{AdapterChoice, Event, ModelReport};
use crate::store::Store;
use crate::train::checkpoint;

/// Tells shape and words of a model, once its adapters were found readable; its weights are not read, and nothing is
/// downloaded.
///
/// # Errors
/// What is wrong with their files, or that the model is not here.
pub async fn run(model: &str, adapters: &[AdapterChoice], store: &Store, control: &Control) -> Result<()> {
    if model.trim().is_empty() {
        return Err(Error::Config("--model is empty: name a Hugging Face folder, a run or a model on the hub".into()));
    }
    for adapter in adapters {
        Adapter::load(store, &adapter.path).await?;
    }
    let path = checkpoint::model_of(store, &fetch::present(store, model).await?, ["--model", "--adapter"]).await?;
    let Speech { shape, template, .. } = Speech::load(store, &path, None, None).await?;
    let template = template.filter(|template| !template.is_broken());
    let has_template = template.as_ref().is_some_and(|template| !template.is_missing());
    control.emit(Event::Described(ModelReport { shape, has_chat: template.is_some(), has_template }));
    Ok(())
}
