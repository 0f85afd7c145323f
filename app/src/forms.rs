//! What people have typed and chosen, kept over restarts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smolforge_engine::config::{SourceConfig, TrainConfig};
use smolforge_engine::protocol::{AdapterChoice, DeviceChoice, FinetuneConfig, GenerateRequest, ReasonConfig, Sampling};

use crate::session::Unfinished;

/// Text in fields that is not a value (yet), with what is wrong with it, by key.
pub type Drafts = BTreeMap<&'static str, (String, Option<String>)>;

/// The views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Tab {
    /// Corpora, configuration, and the run in progress.
    #[default]
    Train,
    /// Rows, what to change of a model, and what came of it.
    Tune,
    /// A task with one right answer to every question.
    Reason,
    /// Text from a model.
    Generate,
    /// All runs on disk.
    Runs,
    /// Adapters.
    Device,
}

/// Everything that can be filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forms {
    /// The view in front.
    pub tab: Tab,
    /// The next run.
    pub train: TrainConfig,
    /// Text in its fields that is not a value (yet).
    #[serde(skip)]
    pub drafts: Drafts,
    /// The next fine-tuning run.
    pub tune: FinetuneConfig,
    /// Text in its fields that is not a value (yet).
    #[serde(skip)]
    pub tune_drafts: Drafts,
    /// Which part of fine-tuning is looked at.
    pub part: Part,
    /// Which rows are looked at.
    pub rows: RowsShown,
    /// Adapters that are tried.
    pub shelf: Shelf,
    /// A task with right answers.
    pub reason: Reason,
    /// The next text.
    pub generate: GenerateRequest,
    /// The prompt of the next text.
    pub prompt: String,
    /// Stop strings, one a line.
    pub stop: String,
    /// Whether a second model writes beside the first.
    pub compare: bool,
    /// The second model.
    pub second: String,
    /// Requests that were not answered when the window closed: they are sent again.
    pub queue: Vec<GenerateRequest>,
    /// The run that was in progress when the forms were saved.
    pub training: Option<Unfinished>,
    /// How plots are drawn.
    pub plots: Plots,
    /// Runs that are looked at.
    pub selected: Vec<String>,
    /// What a self-test runs on.
    pub test_device: DeviceChoice,
    /// Shares of a run in progress that are being moved, or that the engine has not taken up yet.
    #[serde(skip)]
    pub reweight: Option<Reweight>,
    /// The source whose texts are looked at, and the page.
    #[serde(skip)]
    pub preview: Option<(String, usize)>,
    /// The run that is deleted when people say yes.
    #[serde(skip)]
    pub deleting: Option<String>,
    /// Whether a narrow window shows the main side instead of the form.
    #[serde(skip)]
    pub front: bool,
    /// Whether all notices are shown.
    #[serde(skip)]
    pub notices_open: bool,
}

/// The parts of fine-tuning beside its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Part {
    /// What is learned from.
    #[default]
    Rows,
    /// The run in progress.
    Run,
    /// What was learned, beside what was known before.
    Shelf,
}

/// Which rows are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowsShown {
    /// Those to evaluate on instead of those to learn.
    pub validation: bool,
    /// The first one, from 0.
    #[serde(skip)]
    pub first: usize,
    /// This one only, as reports name it.
    #[serde(skip)]
    pub row: Option<String>,
}

/// Adapters that are tried, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shelf {
    /// The model they are beside.
    pub model: String,
    /// Folders of adapters, with whether each is taken and how much it counts.
    pub adapters: BTreeMap<String, (bool, f64)>,
    /// Folders that were added by hand.
    pub added: Vec<String>,
    /// What both models are asked.
    pub question: String,
    /// How they answer.
    pub request: GenerateRequest,
    /// Folder for what they are merged into; empty: one that is free.
    pub out: String,
}

impl Default for Shelf {
    fn default() -> Self {
        let sampling = Sampling { greedy: true, ..Sampling::default() };
        Self {
            model: String::new(),
            adapters: BTreeMap::new(),
            added: Vec::new(),
            question: String::new(),
            request: GenerateRequest { sampling, ..GenerateRequest::default() },
            out: String::new(),
        }
    }
}

impl Shelf {
    /// Those that are taken.
    pub fn chosen(&self) -> Vec<AdapterChoice> {
        let taken = self.adapters.iter().filter(|(_, (taken, _))| *taken);
        taken.map(|(path, (_, strength))| AdapterChoice { path: path.clone(), strength: *strength }).collect()
    }
}

/// A task with right answers: what is asked for, and what is looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reason {
    /// What its verbs share.
    pub config: ReasonConfig,
    /// Text in its fields that is not a value (yet).
    #[serde(skip)]
    pub drafts: Drafts,
    /// What is looked at.
    pub part: ReasonPart,
    /// A folder whose files go along in the bundle; empty: none.
    pub folder: String,
    /// Whether what goes into the bundle is asked for.
    #[serde(skip)]
    pub bundling: bool,
    /// Which replies of a test are looked at.
    pub replies: Replies,
    /// Reasoning that people write, by its question. It stays, should another rollout reject the same question.
    pub mends: BTreeMap<String, String>,
    /// The first reject in sight, from 0.
    #[serde(skip)]
    pub first: usize,
}

/// The parts of a task beside its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReasonPart {
    /// What limits the adapters, and what becomes of the teacher's samples.
    #[default]
    Funnel,
    /// The adapter that learns.
    Run,
    /// How models did in tests.
    Tests,
    /// Points.
    Grade,
    /// Questions that no sample answers rightly.
    Rejects,
}

/// Which replies of a test are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replies {
    /// What was tested.
    pub what: String,
    /// Only those that are right, or only those that are not.
    pub right: Option<bool>,
    /// The first one in sight, from 0.
    #[serde(skip)]
    pub first: usize,
}

impl Reason {
    /// A file or folder of the task.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.config.out.trim_end_matches('/'))
    }

    /// Questions to learn from: those that were chosen, or those that are made.
    pub fn train(&self) -> String {
        self.config.train_file.clone().unwrap_or_else(|| self.at("train.json"))
    }

    /// Questions to be tested on.
    pub fn valid(&self) -> String {
        self.config.valid_file.clone().unwrap_or_else(|| self.at("valid.json"))
    }

    /// Questions that end a step which learns or bundles: those that were chosen, or those that are made with the ones to
    /// learn from. Beside a file of one's own there may be none.
    pub fn tested(&self) -> Option<String> {
        let made = self.config.train_file.is_none();
        self.config.valid_file.clone().or_else(|| made.then(|| self.valid()))
    }

    /// Puts a path that was chosen for a key where it belongs.
    pub fn put(&mut self, key: &str, path: String) {
        let config = &mut self.config;
        match key {
            "student" => config.student = path,
            "teacher" => config.teacher = path,
            "train_file" => config.train_file = Some(path),
            "valid_file" => config.valid_file = Some(path),
            "shots" => config.shots = Some(path),
            _ => self.folder = path,
        }
        self.drafts.remove(key);
    }
}

/// Other shares for a stage of a run in progress.
#[derive(Debug, Clone, PartialEq)]
pub struct Reweight {
    /// The stage, from 0.
    pub stage: usize,
    /// Share per source.
    pub weights: BTreeMap<String, f64>,
    /// Changes that the run had before this one.
    pub changes: usize,
}

/// How plots are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plots {
    /// Share of the past in a smoothed curve, 0 to 0.99.
    pub smoothing: f64,
    /// Whether losses are on a logarithmic axis.
    pub log: bool,
    /// Whether losses are shown by source.
    pub by_source: bool,
    /// The step that is looked at; `None`: the last one.
    #[serde(skip)]
    pub at: Option<u32>,
}

impl Default for Plots {
    fn default() -> Self {
        Self { smoothing: 0.6, log: false, by_source: true, at: None }
    }
}

impl Default for Forms {
    fn default() -> Self {
        Self {
            tab: Tab::Train,
            train: TrainConfig {
                preset: "nano".into(),
                out: "runs/first".into(),
                steps: 500,
                lr: 3e-3,
                warmup_steps: 25,
                accumulation: 1,
                batch_size: 8,
                ..TrainConfig::default()
            },
            drafts: Drafts::new(),
            tune: FinetuneConfig { output_dir: "runs/tuned".into(), ..FinetuneConfig::default() },
            tune_drafts: Drafts::new(),
            part: Part::Rows,
            rows: RowsShown::default(),
            shelf: Shelf::default(),
            reason: Reason::default(),
            generate: GenerateRequest::default(),
            prompt: "Once upon a time".into(),
            stop: String::new(),
            compare: false,
            second: String::new(),
            queue: Vec::new(),
            training: None,
            plots: Plots::default(),
            selected: Vec::new(),
            test_device: DeviceChoice::Auto,
            reweight: None,
            preview: None,
            deleting: None,
            front: false,
            notices_open: false,
        }
    }
}

impl Forms {
    /// Adds a file or folder as a source named after it.
    pub fn add_source(&mut self, path: String) {
        let stem = path.trim_end_matches('/').rsplit(['/', '\\']).next().unwrap_or("text");
        let stem = stem.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("text");
        let mut name = stem.to_string();
        for number in 2.. {
            if !self.train.sources.contains_key(&name) {
                break;
            }
            name = format!("{stem}-{number}");
        }
        self.train.sources.insert(name, SourceConfig::Path(path));
    }

    /// Adds files of rows, to learn or to evaluate on; empty fields make room for them.
    pub fn add_rows(&mut self, paths: Vec<String>, validation: bool) {
        let files = if validation { &mut self.tune.validation_file } else { &mut self.tune.train_file };
        let others: Vec<String> = files.named().filter(|known| !paths.contains(known)).cloned().collect();
        files.0 = [others, paths].concat();
        self.rows = RowsShown { validation, ..RowsShown::default() };
        self.part = Part::Rows;
    }

    /// Leaves a source out; what it had in recorded changes of the mix goes to the others.
    pub fn leave_out(&mut self, name: &str) {
        self.train.sources.remove(name);
        for stage in &mut self.train.data_stages.stages {
            stage.weights.remove(name);
        }
        self.train.mix_changes.retain_mut(|change| {
            change.weights.remove(name);
            let sum: f64 = change.weights.values().sum();
            change.weights.values_mut().for_each(|weight| *weight /= sum);
            sum > 0.0
        });
    }

    /// Gives a source another name, unless there is one of that name.
    pub fn rename(&mut self, old: &str, new: &str) {
        if self.train.sources.contains_key(new) {
            return;
        }
        if let Some(source) = self.train.sources.remove(old) {
            self.train.sources.insert(new.into(), source);
        }
        let stages = self.train.data_stages.stages.iter_mut().map(|stage| &mut stage.weights);
        for weights in stages.chain(self.train.mix_changes.iter_mut().map(|change| &mut change.weights)) {
            if let Some(weight) = weights.remove(old) {
                weights.insert(new.into(), weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::data::mix_change::MixChange;

    use super::*;

    #[test]
    fn sources_are_named_after_their_files_and_never_replaced() {
        let mut forms = Forms::default();
        for path in ["texts/a.txt", "other/a.md", "folder/", ".hidden"] {
            forms.add_source(path.into());
        }
        let names: Vec<&str> = forms.train.sources.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "a-2", "folder", "text"]);
    }

    #[test]
    fn forms_survive_a_restart() {
        let mut forms = Forms { tab: Tab::Runs, prompt: "x".into(), ..Forms::default() };
        forms.add_source("a.txt".into());
        forms.tune.set("target_modules", "[q_proj, v_proj]").expect("a list");
        forms.shelf.adapters.insert("runs/a/adapter".into(), (true, 0.5));
        forms.training = Some(Unfinished::Tuning { output_dir: "runs/a".into() });
        forms.reason.config.set("keep", "3").expect("a number");
        forms.reason.mends.insert("How many g are 2 kg?".into(), "2 * 1000 = <answer>2000</answer>".into());
        let text = serde_json::to_string(&forms).expect("plain data");
        assert_eq!(serde_json::from_str::<Forms>(&text).expect("what was written"), forms);
        assert_eq!(serde_json::from_str::<Forms>("{}").expect("keys of an older version"), Forms::default());
        let older = serde_json::from_str::<Forms>(r#"{"training": "runs/b"}"#).expect("it knew runs on texts only");
        assert_eq!(older.training, Some(Unfinished::Training("runs/b".into())));
    }

    #[test]
    fn questions_are_those_that_were_chosen_or_those_that_are_made() {
        let mut reason = Reason::default();
        reason.config.out = "runs/units/".into();
        assert_eq!(
            [reason.train(), reason.valid(), reason.at("rft")],
            ["train.json", "valid.json", "rft"].map(|name| format!("runs/units/{name}"))
        );
        reason.put("train_file", "a.json".into());
        reason.put("teacher", "models/big".into());
        assert_eq!((reason.train().as_str(), reason.valid().as_str()), ("a.json", "runs/units/valid.json"));
        assert_eq!((reason.config.teacher.as_str(), reason.folder.as_str()), ("models/big", ""));
    }

    fn three_sources() -> Forms {
        let mut forms = Forms::default();
        ["a.txt", "b.txt", "other/a.txt"].into_iter().for_each(|path| forms.add_source(path.into()));
        let weights = |weights: &[(&str, f64)]| weights.iter().map(|(name, weight)| (name.to_string(), *weight)).collect();
        let change = |step, of: &[(&str, f64)]| MixChange { step, stage: 0, weights: weights(of) };
        forms.train.mix_changes = vec![change(3, &[("a", 0.5), ("b", 0.25), ("a-2", 0.25)]), change(5, &[("b", 1.0)])];
        forms
    }

    #[test]
    fn a_source_that_is_left_out_leaves_a_mix_that_can_be_trained() {
        let mut forms = three_sources();
        assert_eq!(forms.train.sources.keys().collect::<Vec<_>>(), ["a", "a-2", "b"]);
        forms.leave_out("b");
        assert_eq!(forms.train.mix_changes.len(), 1, "a change to nothing but this source is none");
        let weights = &forms.train.mix_changes[0].weights;
        assert!((weights["a"] - 2.0 / 3.0).abs() < 1e-12 && (weights.values().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_source_keeps_its_shares_under_another_name() {
        let mut forms = three_sources();
        forms.rename("a", "b");
        assert_eq!(forms, three_sources(), "a name that is taken");
        forms.rename("b", "c");
        assert!(forms.train.sources.contains_key("c") && !forms.train.sources.contains_key("b"));
        assert_eq!((forms.train.mix_changes[0].weights["c"], forms.train.mix_changes[1].weights["c"]), (0.25, 1.0));
    }
}
