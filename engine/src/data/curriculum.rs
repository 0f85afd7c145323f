//! Which sources a run draws from, and when: stages in nanotron's shape.
//!
//! ```yaml
//! data_stages:
//!   - name: Foundation
//!     start_training_step: 0
//!     data:
//!       dataset: { dataset_folder: [input], dataset_weights: [1.0] }
//!   - name: General + Code
//!     start_training_step: 1000
//!     weights: { input: 0.8, code: 0.2 }   # the same in short
//! ```
//!
//! A weight is the share of *training tokens* of a stage, whatever the sizes of the files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, nearest};

/// The stages of a run, in the order of their first steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Curriculum {
    /// At least one; the first starts at step 0.
    pub stages: Vec<Stage>,
    /// Whether nobody wrote it: then it is fitted to the sources and the length of the run.
    implied: bool,
}

/// One stage: from `start` until the next stage or the end of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Name for the log.
    pub name: String,
    /// First step, counted from 0. nanotron counts from 1: a first stage that starts at 1 starts at 0.
    pub start: u32,
    /// Share of training tokens per source; they sum to 1.
    pub weights: BTreeMap<String, f64>,
}

impl Default for Curriculum {
    /// The five stages of the SmolLM2 reference run, made for 5050 steps and the sources `input`, `code`, `math`.
    fn default() -> Self {
        let stage = |name: &str, start, weights: &[(&str, f64)]| Stage {
            name: name.into(),
            start,
            weights: weights.iter().map(|(source, weight)| (source.to_string(), *weight)).collect(),
        };
        Self {
            stages: vec![
                stage("Foundation", 0, &[("input", 1.0)]),
                stage("General + Code", 1000, &[("input", 0.8), ("code", 0.2)]),
                stage("Specialized", 2000, &[("input", 0.6), ("code", 0.2), ("math", 0.2)]),
                stage("Refinement", 3000, &[("input", 0.4), ("code", 0.3), ("math", 0.3)]),
                stage("Final Polish", 5000, &[("input", 0.4), ("code", 0.3), ("math", 0.3)]),
            ],
            implied: true,
        }
    }
}

impl Curriculum {
    /// Steps that [`Curriculum::default`] is made for.
    pub const DEFAULT_STEPS: u32 = 5050;

    /// Stages as somebody wants them.
    pub fn written(stages: Vec<Stage>) -> Self {
        Self { stages, implied: false }
    }

    /// One stage in which every source has the same share.
    pub fn uniform(sources: &[&str]) -> Self {
        let share = 1.0 / sources.len().max(1) as f64;
        let weights = sources.iter().map(|source| (source.to_string(), share)).collect();
        Self::written(vec![Stage { name: "Training".into(), start: 0, weights }])
    }

    /// The curriculum for these sources and so many steps: the default stages, scaled, where the sources are exactly
    /// `input`, `code` and `math`, else one stage with equal shares. Stages that somebody wrote are never changed.
    pub fn fitted(&self, sources: &[&str], steps: u32) -> Self {
        if !self.implied {
            return self.clone();
        }
        let known: BTreeSet<&str> = self.stages.iter().flat_map(|stage| stage.weights.keys()).map(String::as_str).collect();
        if known == sources.iter().copied().collect() { self.scaled(Self::DEFAULT_STEPS, steps) } else { Self::uniform(sources) }
    }

    /// The same stages for a run of another length; every stage keeps at least one step while there
    /// are enough, and stages for which there is no step are left out.
    pub fn scaled(&self, from_total: u32, to_total: u32) -> Self {
        let count = self.stages.len() as u64;
        let mut stages: Vec<Stage> = Vec::new();
        for (index, stage) in self.stages.iter().enumerate() {
            let exact = u64::from(stage.start) * u64::from(to_total) / u64::from(from_total.max(1));
            let latest = u64::from(to_total).saturating_sub(count - index as u64);
            let earliest = stages.last().map_or(0, |previous| u64::from(previous.start) + 1);
            let start = exact.min(latest).max(earliest);
            if start < u64::from(to_total) || index == 0 {
                stages.push(Stage { start: start as u32, ..stage.clone() });
            }
        }
        Self::written(stages)
    }

    /// Index of the stage in which a step lies.
    pub fn stage_at(&self, step: u32) -> usize {
        self.stages.iter().rposition(|stage| stage.start <= step).unwrap_or(0)
    }

    /// First step of a stage and the step after its last one.
    pub fn range(&self, index: usize, total_steps: u32) -> (u32, u32) {
        let end = self.stages.get(index + 1).map_or(total_steps, |next| next.start.min(total_steps));
        (self.stages[index].start, end)
    }

    /// Checks the stages against the sources and the length of the run.
    ///
    /// # Errors
    /// [`Error::Config`] naming the stage: weights that are not finite, negative or do not sum to 1,
    /// unknown sources, starts that do not increase or lie behind the last step.
    pub fn validate(&self, sources: &[&str], steps: u32) -> Result<()> {
        let bad = |why: String| Err(Error::Config(format!("data_stages: {why}")));
        let Some(first) = self.stages.first() else {
            return bad("no stage; leave the key out for the default stages".into());
        };
        if first.start != 0 {
            return bad(format!("the first stage, {:?}, starts at step {}; it must start at 0", first.name, first.start));
        }
        for pair in self.stages.windows(2) {
            if pair[1].start <= pair[0].start {
                return bad(format!(
                    "stage {:?} starts at step {}, but {:?} before it starts at {}; starts must increase",
                    pair[1].name, pair[1].start, pair[0].name, pair[0].start
                ));
            }
        }
        for stage in &self.stages {
            if stage.start >= steps {
                return bad(format!(
                    "stage {:?} starts at step {}, but the run has {steps} steps: it would never run; raise --steps or leave it out",
                    stage.name, stage.start
                ));
            }
            if let Err(why) = check_weights(&stage.weights, sources) {
                return bad(format!("stage {:?}: {why}", stage.name));
            }
            let sum: f64 = stage.weights.values().sum();
            if (sum - 1.0).abs() > 1e-6 {
                let list: Vec<String> = stage.weights.iter().map(|(source, weight)| format!("{source} {weight}")).collect();
                return bad(format!("stage {:?}: weights must sum to 1, these sum to {sum:.6} ({})", stage.name, list.join(", ")));
            }
        }
        Ok(())
    }
}

/// Refuses weights of sources that do not exist, and those that are negative or not finite.
pub(super) fn check_weights(weights: &BTreeMap<String, f64>, sources: &[&str]) -> Result<(), String> {
    for (source, weight) in weights {
        if !sources.contains(&source.as_str()) {
            let hint = match nearest(source, sources.iter().copied()) {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("the sources are {}", sources.join(", ")),
            };
            return Err(format!("the source {source:?} does not exist; {hint}"));
        }
        if !weight.is_finite() || *weight < 0.0 {
            return Err(format!("the weight of {source} is {weight}; it must be 0 or more"));
        }
    }
    Ok(())
}

impl Serialize for Curriculum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.implied {
            return serializer.serialize_none();
        }
        let stages = self.stages.iter().map(|stage| {
            let folders: Vec<&String> = stage.weights.keys().collect();
            let weights: Vec<f64> = stage.weights.values().copied().collect();
            json!({
                "name": stage.name,
                "start_training_step": stage.start,
                "data": { "dataset": { "dataset_folder": folders, "dataset_weights": weights } },
            })
        });
        serializer.collect_seq(stages)
    }
}

impl<'de> Deserialize<'de> for Curriculum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Read as plain values, so that every mistake gets a sentence of ours.
        let rows = match Value::deserialize(deserializer)? {
            Value::Null => return Ok(Self::default()),
            Value::Array(rows) => rows,
            Value::Object(mut map) if map.contains_key("data_stages") => match map.remove("data_stages") {
                Some(Value::Array(rows)) => rows,
                _ => return Err(de::Error::custom("data_stages: expected a list of stages under `data_stages`")),
            },
            other => return Err(de::Error::custom(format!("data_stages: expected a list of stages, found {}", kind(&other)))),
        };
        let stages: Result<Vec<Stage>, String> = rows.iter().enumerate().map(|(index, row)| stage(index, row)).collect();
        stages.map(Self::written).map_err(|why| de::Error::custom(format!("data_stages: {why}")))
    }
}

/// Keys of one level, checked; `place` begins every message.
fn object<'a>(value: &'a Value, place: &str, known: &[&str]) -> Result<&'a Map<String, Value>, String> {
    let map = value.as_object().ok_or_else(|| format!("{place}: expected keys with values, found {}", kind(value)))?;
    if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
        let hint =
            nearest(key, known.iter().copied()).map_or(format!("known are {}", known.join(", ")), |name| format!("did you mean `{name}`?"));
        return Err(format!("{place}: unknown key `{key}`; {hint}"));
    }
    Ok(map)
}

fn stage(index: usize, row: &Value) -> Result<Stage, String> {
    let place = format!("stage {}", index + 1);
    let map = object(row, &place, &["name", "start_training_step", "data", "weights"])?;
    let name = match map.get("name") {
        None => format!("Stage {}", index + 1),
        Some(Value::String(name)) => name.clone(),
        Some(other) => return Err(format!("{place}: `name` must be text, found {}", kind(other))),
    };
    let place = format!("stage {name:?}");
    let start = match map.get("start_training_step") {
        None if index == 0 => 0,
        None => return Err(format!("{place}: `start_training_step` is missing")),
        Some(value) => {
            whole(value).ok_or_else(|| format!("{place}: `start_training_step` must be a whole number of 0 or more, found {value}"))?
        }
    };
    let start = if index == 0 && start == 1 { 0 } else { start };
    let weights = match (map.get("weights"), map.get("data")) {
        (Some(_), Some(_)) => return Err(format!("{place}: has both `weights` and `data`; write one of them")),
        (None, None) => return Err(format!("{place}: `weights` or `data` is missing: which sources, with which shares?")),
        (Some(weights), None) => {
            let map = weights.as_object().ok_or_else(|| format!("{place}: `weights` must be written as {{source: share}}"))?;
            map.iter().map(|(source, value)| Ok((source.clone(), share(&place, source, value)?))).collect::<Result<_, String>>()?
        }
        (None, Some(data)) => dataset(&place, data)?,
    };
    Ok(Stage { name, start, weights })
}

/// nanotron's `data`. Its `seed` and `num_loading_workers` are accepted so that its files load; the
/// order of data comes from the run's seed.
fn dataset(place: &str, data: &Value) -> Result<BTreeMap<String, f64>, String> {
    let data = object(data, &format!("{place}: data"), &["dataset", "seed", "num_loading_workers"])?;
    let inner = format!("{place}: data.dataset");
    let dataset = data.get("dataset").ok_or_else(|| format!("{inner} is missing"))?;
    let dataset = object(dataset, &inner, &["dataset_folder", "dataset_weights", "dataset_max_tokens"])?;
    if let Some(limits) = dataset.get("dataset_max_tokens") {
        let none = limits.is_null() || limits.as_array().is_some_and(|list| list.iter().all(Value::is_null));
        if !none {
            return Err(format!("{inner}: `dataset_max_tokens` is not supported; leave it out or null"));
        }
    }
    let folders = match dataset.get("dataset_folder") {
        Some(Value::String(folder)) => vec![folder.clone()],
        Some(Value::Array(list)) => {
            let names: Option<Vec<String>> = list.iter().map(|name| name.as_str().map(str::to_string)).collect();
            names.ok_or_else(|| format!("{inner}: `dataset_folder` must list names of sources"))?
        }
        _ => return Err(format!("{inner}: `dataset_folder` must list names of sources")),
    };
    let weights = match dataset.get("dataset_weights") {
        None | Some(Value::Null) if folders.len() == 1 => vec![Value::from(1.0)],
        Some(Value::Array(list)) => list.clone(),
        Some(single @ Value::Number(_)) => vec![single.clone()],
        _ => return Err(format!("{inner}: `dataset_weights` must list one share per source")),
    };
    if weights.len() != folders.len() {
        return Err(format!("{inner}: {} names in `dataset_folder`, but {} shares in `dataset_weights`", folders.len(), weights.len()));
    }
    let mut shares = BTreeMap::new();
    for (source, value) in folders.iter().zip(&weights) {
        if shares.insert(source.clone(), share(place, source, value)?).is_some() {
            return Err(format!("{inner}: the source {source:?} is listed twice"));
        }
    }
    Ok(shares)
}

fn share(place: &str, source: &str, value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| format!("{place}: the weight of {source} must be a number from 0 to 1, found {}", kind(value)))
}

fn whole(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing (or a number that is not finite)",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "keys with values",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [&str; 3] = ["input", "code", "math"];

    fn parse(yaml: &str) -> Result<Curriculum, String> {
        serde_norway::from_str(yaml).map_err(|e| e.to_string())
    }

    #[track_caller]
    fn refused(yaml: &str, steps: u32, words: &[&str]) {
        let error = match parse(yaml) {
            Ok(curriculum) => curriculum.validate(&SOURCES, steps).expect_err("must be refused").to_string(),
            Err(error) => error,
        };
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn default_is_the_reference_run() {
        let curriculum = Curriculum::default();
        curriculum.validate(&SOURCES, Curriculum::DEFAULT_STEPS).unwrap();
        assert_eq!(curriculum.stages.iter().map(|stage| stage.start).collect::<Vec<_>>(), [0, 1000, 2000, 3000, 5000]);
        assert_eq!([0, 999, 1000, 4999, 5000, 9999].map(|step| curriculum.stage_at(step)), [0, 0, 1, 3, 4, 4]);
        assert_eq!((curriculum.range(0, 5050), curriculum.range(4, 5050)), ((0, 1000), (5000, 5050)));
    }

    #[test]
    fn yaml_and_json_round_trip() {
        assert_eq!(parse("null").unwrap(), Curriculum::default());
        assert_eq!(serde_norway::to_string(&Curriculum::default()).unwrap().trim(), "null");
        assert_eq!(parse("{data_stages: [{weights: {input: 1}}]}"), parse("[{weights: {input: 1}}]"));
        let curriculum = Curriculum::written(Curriculum::default().stages);
        let yaml = serde_norway::to_string(&curriculum).unwrap();
        assert!(yaml.contains("start_training_step: 1000") && yaml.contains("dataset_folder:"), "{yaml}");
        assert_eq!(parse(&yaml).unwrap(), curriculum);
        let value = serde_json::to_value(&curriculum).unwrap();
        assert_eq!(serde_json::from_value::<Curriculum>(value).unwrap(), curriculum);
    }

    #[test]
    fn nanotron_and_short_spelling_are_the_same() {
        let long = parse(
            "- name: stable phase\n  start_training_step: 1\n  data:\n    dataset:\n      dataset_folder: [input, code]\n      dataset_weights: [0.8, 0.2]\n      dataset_max_tokens: [null, null]\n    num_loading_workers: 0\n    seed: 8\n",
        );
        let short = parse("- {name: stable phase, weights: {input: 0.8, code: 0.2}}");
        assert_eq!(long.unwrap(), short.unwrap());
        let single = parse("- {name: a, data: {dataset: {dataset_folder: input}}}").unwrap();
        single.validate(&SOURCES, 1).unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        refused("[]", 10, &["no stage"]);
        refused("{}", 10, &["list of stages"]);
        refused("- {name: a, weigths: {input: 1.0}}", 10, &["stage 1", "`weigths`", "`weights`"]);
        refused("- {name: a, data: {dataset: {dataset_folders: [input]}}}", 10, &["dataset_folders", "did you mean `dataset_folder`?"]);
        refused("- {name: a, weights: {input: 0.5, code: 0.4}}", 10, &["\"a\"", "0.900000", "sum to 1"]);
        refused("- {name: a, weights: {input: 1.5, code: -0.5}}", 10, &["code is -0.5"]);
        refused("- {name: a, weights: {input: .nan}}", 10, &["input"]);
        refused("- {name: a, weights: {input: .inf}}", 10, &["input"]);
        refused("- {name: a, weights: {inptu: 1.0}}", 10, &["\"inptu\"", "did you mean \"input\"?"]);
        refused("- {name: a, weights: {zzz: 1.0}}", 10, &["input, code, math"]);
        refused("- {name: a, start_training_step: 5, weights: {input: 1}}", 10, &["must start at 0"]);
        refused("- {name: a, start_training_step: -1, weights: {input: 1}}", 10, &["start_training_step"]);
        refused("- {weights: {input: 1}}\n- {name: b, start_training_step: 0, weights: {input: 1}}", 10, &["\"b\"", "increase"]);
        refused("- {weights: {input: 1}}\n- {name: b, weights: {input: 1}}", 10, &["\"b\"", "missing"]);
        refused("- {weights: {input: 1}}\n- {name: b, start_training_step: 10, weights: {input: 1}}", 10, &["never run", "10 steps"]);
        refused("- {name: a, data: {dataset: {dataset_folder: [input, input], dataset_weights: [0.5, 0.5]}}}", 10, &["twice"]);
        refused("- {name: a, data: {dataset: {dataset_folder: [input], dataset_weights: [0.5, 0.5]}}}", 10, &["1 names", "2 shares"]);
        refused("- {name: a}", 10, &["missing"]);
        refused("- {name: a, weights: {input: lots}}", 10, &["number"]);
    }

    #[test]
    fn scaled_stages_keep_their_order_and_a_step_each() {
        for steps in [5, 6, 10, 100, 240, 5050, 100_000] {
            let scaled = Curriculum::default().scaled(5050, steps);
            assert_eq!(scaled.stages.len(), 5, "{steps}");
            scaled.validate(&SOURCES, steps).unwrap();
        }
        let scaled = Curriculum::default().scaled(5050, 505);
        assert_eq!(scaled.stages.iter().map(|stage| stage.start).collect::<Vec<_>>(), [0, 100, 200, 300, 500]);
        let short = Curriculum::default().scaled(5050, 3);
        short.validate(&SOURCES, 3).unwrap();
        assert_eq!(Curriculum::default().scaled(5050, 1).stages.len(), 1);
    }

    #[test]
    fn default_stages_fit_themselves_and_written_ones_stay() {
        let default = Curriculum::default();
        assert_eq!(default.fitted(&SOURCES, 5050).stages, default.stages);
        assert_eq!(default.fitted(&["math", "code", "input"], 505), default.scaled(5050, 505));
        let other = default.fitted(&["books", "web"], 1);
        other.validate(&["books", "web"], 1).unwrap();
        assert_eq!(other.stages[0].weights["web"], 0.5);
        assert_eq!(default.fitted(&["input"], 9), Curriculum::uniform(&["input"]));
        let more = ["input", "code", "math", "books"];
        assert_eq!(default.fitted(&more, 9), Curriculum::uniform(&more), "no source is left out unasked");
        let written = Curriculum::written(default.stages.clone());
        assert_eq!(written.fitted(&SOURCES, 10_000), written);
    }
}
