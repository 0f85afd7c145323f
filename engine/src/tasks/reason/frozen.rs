//! What a task's folder was made with: a key is free until something there depends on it.

use serde_json::Value;

use crate::config::reason::{REASON_FIELDS, ReasonConfig};
use crate::error::{Error, Result};

/// Keys by what they belong to.
pub type Keys = &'static [&'static [&'static str]];

const SAMPLED: &[&str] = &[
    "teacher",
    "quantize_teacher",
    "train_file",
    "seed",
    "oversample",
    "temperature",
    "keep",
    "system",
    "shots",
    "max_new_tokens",
    "tolerance",
];
const LEARNED: &[&str] = &["student", "seed", "max_params", "max_adapter_mb"];

/// What questions depend on that are made.
pub const QUESTIONS: Keys = &[&["seed", "train_questions", "valid_questions", "temperatures"]];
/// What tests and the grade depend on.
pub const TESTS: Keys = &[&["student", "valid_file", "system", "shots", "test_questions", "max_new_tokens", "tolerance", "max_params"]];
/// What the adapter of answers depends on.
pub const SFT: Keys = &[LEARNED, &["train_file", "sft_r", "sft_alpha", "sft_dropout", "sft_learning_rate", "sft_epochs", "sft_batch_size"]];
/// What the rows of a rollout depend on.
pub const ROLLOUT: Keys = &[SAMPLED];
/// What the adapter of reasoning depends on: it learns these rows.
pub const RFT: Keys = &[LEARNED, SAMPLED, &["rft_r", "rft_alpha", "rft_dropout", "rft_learning_rate", "rft_epochs", "rft_batch_size"]];

/// Refuses another value of a key that something depends on; `there` is what there is, each with the keys that it depends on.
///
/// # Errors
/// [`Error::Resume`] naming the key, both values, and what to remove for the other one.
pub fn check(begun_with: &ReasonConfig, asked: &ReasonConfig, there: &[(String, Keys)]) -> Result<()> {
    let (old, new) = (begun_with.values(), asked.values());
    for key in REASON_FIELDS.iter().map(|field| field.name).filter(|key| old.get(*key) != new.get(*key)) {
        let depends = |keys: Keys| keys.iter().any(|keys| keys.contains(&key));
        let paths: Vec<&str> = there.iter().filter(|(_, keys)| depends(keys)).map(|(path, _)| path.as_str()).collect();
        if !paths.is_empty() {
            let [old, new] = [old.get(key), new.get(key)].map(shown);
            let (flag, out, paths) = (key.replace('_', "-"), &asked.out, paths.join(" and "));
            let way = format!("go on with that, choose another --out, or remove {paths} to make it anew");
            return Err(Error::Resume(format!("--{flag} is {new}, and the task in {out} was begun with {old}: {way}")));
        }
    }
    Ok(())
}

fn shown(value: Option<&Value>) -> String {
    value.filter(|value| !value.is_null()).map_or_else(|| "not set".into(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that change nothing of what is made, or only the bundle, which no later stage needs.
    const FREE: &[&str] = &["out", "device", "batch_rows", "max_zip_mb", "warn_zip_mb", "time_limits"];

    #[test]
    fn every_key_is_free_or_something_depends_on_it() {
        let named: Vec<&str> = [QUESTIONS, TESTS, SFT, ROLLOUT, RFT].concat().concat();
        for key in named.iter().chain(FREE) {
            assert!(REASON_FIELDS.iter().any(|field| field.name == *key), "{key}");
        }
        for field in REASON_FIELDS {
            assert_ne!(named.contains(&field.name), FREE.contains(&field.name), "{}", field.name);
        }
    }

    #[track_caller]
    fn refused(asked: &ReasonConfig, there: &[(&str, Keys)]) -> String {
        let there: Vec<(String, Keys)> = there.iter().map(|(path, keys)| (path.to_string(), *keys)).collect();
        check(&ReasonConfig::default(), asked, &there).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_key_is_free_until_something_depends_on_it() {
        let default = ReasonConfig::default;
        let smaller = ReasonConfig { sft_r: 4, ..default() };
        assert_eq!(refused(&smaller, &[]), "");
        assert_eq!(refused(&smaller, &[("o/results.json", TESTS), ("o/rft.json", ROLLOUT), ("o/rft", RFT)]), "");
        let error = refused(&smaller, &[("o/results.json", TESTS), ("o/sft", SFT)]);
        assert_eq!(
            error,
            "--sft-r is 4, and the task in runs/unit-conversion was begun with 8: go on with that, choose another --out, or remove o/sft \
             to make it anew"
        );
        let shots = ReasonConfig { shots: Some("s.json".into()), ..default() };
        let error = refused(&shots, &[("o/results.json", TESTS), ("o/sft", SFT), ("o/rft.json", ROLLOUT)]);
        assert!(error.starts_with("--shots is \"s.json\"") && error.contains("begun with not set"), "{error}");
        assert!(error.contains("remove o/results.json and o/rft.json to"), "{error}");
        let free = ReasonConfig { batch_rows: 1, max_zip_mb: 9.0, time_limits: false, out: "o".into(), ..default() };
        assert_eq!(refused(&free, &[("a", TESTS), ("b", SFT), ("c", ROLLOUT), ("d", RFT), ("e", QUESTIONS)]), "");
    }
}
