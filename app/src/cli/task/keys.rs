//! Which settings of a task matter to which of its verbs, and what else their flags are called.

const STUDENT: &[&str] = &["student", "device"];
const TEACHER: &[&str] = &["teacher", "quantize_teacher", "device", "seed", "oversample", "temperature", "keep"];
const MADE: &[&str] = &["seed", "train_questions", "valid_questions", "temperatures"];
const WORKED: &[&str] = &["system", "shots"];
const ANSWERS: &[&str] = &["max_new_tokens", "tolerance", "batch_rows"];
const TEST: &[&str] = &["test_questions"];
const LEARNED: &[&str] = &["seed", "valid_file", "max_params", "max_adapter_mb"];
const SFT: &[&str] = &["sft_r", "sft_alpha", "sft_dropout", "sft_learning_rate", "sft_epochs", "sft_batch_size"];
const RFT: &[&str] = &["rft_r", "rft_alpha", "rft_dropout", "rft_learning_rate", "rft_epochs", "rft_batch_size"];
const GRADED: &[&str] = &["max_params", "max_zip_mb", "time_limits"];

/// The keys of every verb but `run`, to which all matter.
const VERBS: &[(&str, &[&[&str]])] = &[
    ("make-data", &[MADE]),
    ("cot", &[STUDENT, WORKED, ANSWERS, TEST]),
    ("sft", &[STUDENT, LEARNED, SFT, ANSWERS, TEST]),
    ("rollout", &[TEACHER, WORKED, ANSWERS]),
    ("rejects", &[]),
    ("mend", &[&["tolerance"]]),
    ("rft", &[STUDENT, LEARNED, RFT, ANSWERS, TEST]),
    ("test", &[STUDENT, ANSWERS, TEST]),
    ("grade", &[STUDENT, WORKED, ANSWERS, TEST, GRADED]),
    ("bundle", &[STUDENT, WORKED, ANSWERS, TEST, GRADED, &["valid_file", "warn_zip_mb"]]),
];

/// Whether a key is a flag of a verb.
pub fn matters(verb: &str, key: &str) -> bool {
    verb == "run" || VERBS.iter().any(|(name, keys)| *name == verb && keys.concat().contains(&key))
}

/// What else the flag of a key is called.
pub fn other_names(verb: &str, key: &'static str) -> Vec<&'static str> {
    match (verb, key) {
        (_, "student") => vec!["model"],
        ("run", _) => Vec::new(),
        (_, "test_questions") => vec!["questions"],
        ("bundle", "valid_file") => vec!["data"],
        ("make-data", "train_questions") => vec!["train"],
        ("make-data", "valid_questions") => vec!["valid"],
        _ => match key.strip_prefix("sft_").or_else(|| key.strip_prefix("rft_")) {
            Some("learning_rate") => vec!["learning-rate", "lr"],
            Some("batch_size") => vec!["batch-size"],
            short => short.into_iter().collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::config::reason::REASON_FIELDS;

    use super::*;

    #[test]
    fn verbs_name_known_keys_only_and_none_twice() {
        for (verb, keys) in VERBS {
            let keys = keys.concat();
            for (i, key) in keys.iter().enumerate() {
                assert!(REASON_FIELDS.iter().any(|field| field.name == *key), "{verb}: {key}");
                assert!(!keys[..i].contains(key), "{verb} has {key} twice");
            }
        }
    }

    #[test]
    fn every_key_matters_to_a_verb_besides_run() {
        let of_run = ["out", "train_file"];
        for field in REASON_FIELDS {
            let named = VERBS.iter().any(|(verb, _)| matters(verb, field.name));
            assert_eq!(named, !of_run.contains(&field.name), "{}", field.name);
        }
    }
}
