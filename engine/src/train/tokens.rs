//! Where the tokens of a run lie: in a cache beside it, which its texts can fill again, or in its own folder, where it
//! brought them along.

use std::collections::BTreeMap;

use crate::data::shard::{self, Shard};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::text::Tokenizer;

/// In a run's folder: hash of the shard of every source.
const RECORD: &str = "shards.json";

/// Folder of tokens in a run's folder.
pub const OWN: &str = "tokens";

/// The folder of tokens that the runs beside each other share.
pub fn cache(run: &str) -> String {
    match run.rsplit_once('/') {
        Some((parent, _)) => format!("{parent}/.tokens"),
        None => ".tokens".into(),
    }
}

/// Notes which shards a run draws from.
///
/// # Errors
/// [`Error::File`], [`Error::DiskFull`].
pub async fn record(store: &Store, run: &str, hashes: &BTreeMap<String, String>) -> Result<()> {
    let text = serde_json::to_vec_pretty(hashes).map_err(|e| Error::Internal(e.to_string()))?;
    store.write(&format!("{run}/{RECORD}"), &text).await
}

/// Hash of the shard of every source; none where the run has not noted them.
///
/// # Errors
/// [`Error::Format`] for a damaged note.
pub async fn hashes(store: &Store, run: &str) -> Result<BTreeMap<String, String>> {
    let path = format!("{run}/{RECORD}");
    if !store.exists(&path).await {
        return Ok(BTreeMap::new());
    }
    let hashes: BTreeMap<String, String> =
        serde_json::from_str(&store.read_text(&path).await?).map_err(|e| Error::format(&path, e.to_string()))?;
    if !hashes.values().all(|hash| !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return Err(Error::format(path, "a hash has other characters than letters and digits"));
    }
    Ok(hashes)
}

/// The shard of a source without its text: from the run's own folder, or the cache beside it.
///
/// # Errors
/// Damaged files.
pub async fn brought(store: &Store, run: &str, source: &str, tokenizer: &Tokenizer) -> Result<Option<Shard>> {
    let hashes = hashes(store, run).await?;
    let Some(hash) = hashes.get(source) else { return Ok(None) };
    for folder in [format!("{run}/{OWN}"), cache(run)] {
        if let Some(shard) = shard::brought(store, &folder, source, hash, tokenizer).await? {
            return Ok(Some(shard));
        }
    }
    Ok(None)
}
