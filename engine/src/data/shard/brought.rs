//! Shards without their texts: what a run brings along when it moves.

use super::Shard;
use crate::data::tokens::Tokens;
use crate::error::{Error, Result};
use crate::store::Store;

/// Names of the two files of a shard in a folder: what is trained on, and what is held out.
pub fn file_names(folder: &str, hash: &str) -> [String; 2] {
    ["training", "held_out"].map(|part| format!("{}/{hash}.{part}.tokens", folder.trim_end_matches('/')))
}

/// Opens the shard of this hash. `None` where the folder does not hold it.
///
/// # Errors
/// [`Error::Format`] for files that are damaged or of another shard.
pub async fn brought(store: &Store, folder: &str, name: &str, hash: &str) -> Result<Option<Shard>> {
    let files = file_names(folder, hash);
    if !store.exists(&files[0]).await || !store.exists(&files[1]).await {
        return Ok(None);
    }
    // The key lies behind magic, width and vocabulary; its beginning is the hash.
    let head = store.open(&files[0]).await?;
    let key: [u8; 32] = head.read(16..48)?.as_ref().try_into().unwrap_or_default();
    if !blake3::Hash::from_bytes(key).to_hex().starts_with(hash) {
        return Err(Error::format(&files[0], "is damaged: it is not the file that its name promises"));
    }
    let training = Tokens::open(store, &files[0], &key).await?;
    let held_out = Tokens::open(store, &files[1], &key).await?;
    Ok(Some(Shard { name: name.into(), training, held_out, hash: hash.into() }))
}
