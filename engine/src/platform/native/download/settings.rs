//! The environment variables of Hugging Face's own programs.

use std::fs;
use std::path::PathBuf;

use web_time::Duration;

/// Where models come from and where they go.
pub struct Settings {
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Address of the hub.
    pub endpoint: String,
    /// What the hub knows its user by.
    pub token: Option<String>,
    /// Ask nobody.
    pub offline: bool,
    /// Certificates to trust instead of Mozilla's.
    pub certificates: Option<PathBuf>,
    /// Wait after the first failed attempt; it doubles with each.
    pub wait: Duration,
}

impl Settings {
    /// As Hugging Face's own programs read the environment.
    pub fn from_environment(read: impl Fn(&str) -> Option<String>) -> Self {
        let read = |name: &str| read(name).filter(|value| !value.is_empty());
        let is_on = |name: &str| read(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        let user = std::env::home_dir().unwrap_or_default();
        let path = |name: &str| {
            let value = read(name)?;
            Some(value.strip_prefix("~/").map_or_else(|| PathBuf::from(&value), |rest| user.join(rest)))
        };
        let home = path("HF_HOME").unwrap_or_else(|| path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache")).join("huggingface"));
        let token = read("HF_TOKEN").or_else(|| {
            if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            fs::read_to_string(path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok()
        });
        Self {
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
            endpoint: read("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            certificates: path("SSL_CERT_FILE"),
            wait: Duration::from_secs(1),
        }
    }
}
