//! Shards without their texts: what a run brings along when it moves.

use super::Shard;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::text::Tokenizer;

/// Names of the two files of a shard in a folder: what is trained on, and what is held out.
pub fn file_names(folder: &str, hash: &str) -> [String; 2] {
    ["training", "held_out"].map(|part| format!("{}/{hash}.{part}.tokens", folder.trim_end_matches('/')))
}

/// Opens the shard of this hash. `None` where the folder does not hold it.
///
/// # Errors
/// [`Error::Format`] for files that are damaged, of another shard or of another tokenizer.
pub async fn brought(store: &Store, folder: &str, name: &str, hash: &str, tokenizer: &Tokenizer) -> Result<Option<Shard>> {
    let files = file_names(folder, hash);
    if !store.exists(&files[0]).await || !store.exists(&files[1]).await {
        return Ok(None);
    }
    // The key lies behind magic, width and vocabulary; its beginning is the hash.
    let head = store.open(&files[0]).await?;
    let key: [u8; 32] = head.read(16..48)?.as_ref().try_into().unwrap_or_default();
    if !blake3::Hash::from_bytes(key).to_hex().starts_with(hash) {
        return Err(damaged(&files[0], "damaged: it is not the file that its name promises"));
    }
    match Shard::open(store, &files, &key, name, hash, tokenizer).await {
        Err(Error::Format { path, reason }) => Err(damaged(&path, &reason)),
        opened => opened.map(Some),
    }
}

fn damaged(path: &str, reason: &str) -> Error {
    Error::format(path, format!("{reason}; put the texts where config.yaml names them, or unpack the run again"))
}
