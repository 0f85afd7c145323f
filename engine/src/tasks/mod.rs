//! Whole jobs in one command.

pub mod answers;
pub mod demo;
pub mod describe;
pub mod export;
pub mod inspect;
pub mod merge;
pub mod pack;
pub mod reason;
pub mod self_test;
pub mod unpack;

use crate::control::Control;
use crate::error::Result;
use crate::model::fetch;
use crate::store::Store;
use crate::train::checkpoint;

/// The folder of a model: of a run its newest checkpoint, of a name at the hub where that was downloaded to. `None` where
/// the download was stopped.
///
/// # Errors
/// As [`fetch::folder`]; [`Error::Config`](crate::error::Error::Config) for what holds an adapter alone.
pub async fn folder_of(model: &str, store: &Store, control: &Control) -> Result<Option<String>> {
    match fetch::folder(store, model, control).await? {
        Some(folder) => checkpoint::model_of(store, &folder, ["--model", "--adapter"]).await.map(Some),
        None => Ok(None),
    }
}
