//! The whole task in order, stage by stage; what is done already is left out.

use serde::{Deserialize, Serialize};

use super::learn::Lesson;
use super::{ask, bundle, data_files, frozen, grade, learn, look_over, made, questions, report, rollout, shots, write_questions};
use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::protocol::{BudgetReport, Event, FunnelReport, GradeReport, TestReport};
use crate::store::{Store, inside};
use crate::tasks::folder_of;
use crate::train::Ended;
use crate::train::log::read_events;
use crate::train::run::quoted;
use crate::train::runs::TUNING;

/// What a run has in its folder once it is done.
const ADAPTER: &str = "adapter/adapter_config.json";

/// What is done, and what came of it: `results.json` in the folder of the task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Results {
    /// What is odd about the questions.
    pub oddities: Option<String>,
    /// What limits the adapters.
    pub budget: Option<BudgetReport>,
    /// The student with worked examples.
    pub cot: Option<TestReport>,
    /// With the adapter that learned answers.
    pub sft: Option<TestReport>,
    /// What the teacher's samples yielded.
    pub funnel: Option<FunnelReport>,
    /// With the adapter that learned reasoning.
    pub rft: Option<TestReport>,
    /// The grade of both.
    pub grade: Option<GradeReport>,
    /// Bytes of the submission.
    pub bundle_bytes: Option<u64>,
}

impl Results {
    /// Forgets stages whose files were removed, so that they are done anew.
    async fn forget(&mut self, places: &Places, store: &Store) {
        let adapter = async |run: &str| store.exists(&inside(run, ADAPTER)).await;
        let (sft, rft) = (adapter(&places.sft).await, adapter(&places.rft).await);
        self.sft.take_if(|_| !sft);
        self.rft.take_if(|_| !rft);
        self.grade.take_if(|_| !sft || !rft);
        self.bundle_bytes.take_if(|_| !sft || !rft);
        if !store.exists(&places.rows).await {
            self.funnel = None;
        }
        if !store.exists(&places.bundle).await {
            self.bundle_bytes = None;
        }
    }
}

/// Paths of a task's folder.
struct Places {
    questions: [String; 2],
    results: String,
    config: String,
    report: String,
    rows: String,
    sft: String,
    rft: String,
    bundle: String,
}

impl Places {
    fn of(out: &str) -> Self {
        let [results, config, report, rows, sft, rft, bundle] =
            ["results.json", "config.yaml", "report.html", "rft.json", "sft", "rft", "submission.zip"].map(|name| inside(out, name));
        Self { questions: data_files(out), results, config, report, rows, sft, rft, bundle }
    }
}

/// Runs all stages that are not done; returns what to tell the user.
///
/// # Errors
/// [`Error::Resume`] where what lies in the folder was made with other settings; what is wrong with a stage.
pub async fn run(config: &ReasonConfig, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    let places = Places::of(&config.out);
    let mut results = read(&places.results, store).await?;
    results.forget(&places, store).await;
    if store.exists(&places.config).await {
        let begun_with = ReasonConfig::from_yaml(&store.read_text(&places.config).await?)?;
        frozen::check(&begun_with, config, &there(&begun_with, &places, &results, store).await)?;
    }
    let hint = format!("smolforge task unit-conversion run {}", quoted(&places.config));
    let stopped = Ok((Ended::Stopped, vec![format!("stopped; go on with: {hint}")]));
    let [train, valid] = data(config, &places.questions, store, control).await?;
    store.write(&places.config, config.to_yaml().as_bytes()).await?;
    results.oddities = look_over(&train, Some(&valid), store, control).await?;
    // The student comes first, for its budget.
    if results.cot.is_none() && folder_of(&config.student, store, control).await?.is_none() {
        return stopped;
    }
    results.budget = super::budget(config, store, control).await?.or(results.budget);
    if results.cot.is_some() {
        save(&results, config, &places, store).await?; // without what was forgotten
    }
    tell(&results, control);

    if results.cot.is_none() {
        let Some(report) = ask("cot", config, None, &valid, store, control).await? else { return stopped };
        results.cot = Some(report);
        save(&results, config, &places, store).await?;
    }
    if results.sft.is_none() {
        let Some(report) = lesson(config, Lesson::Answers, &train, &places.sft, &valid, store, control).await? else { return stopped };
        results.sft = Some(report);
        save(&results, config, &places, store).await?;
    }
    if results.funnel.is_none() {
        let shots = shots(config, store).await?;
        let Some(funnel) = rollout::run(config, &train, &shots, &places.rows, store, control).await? else { return stopped };
        results.funnel = Some(funnel);
        save(&results, config, &places, store).await?;
    }
    if results.rft.is_none() {
        let Some(report) = lesson(config, Lesson::Reasoning, &places.rows, &places.rft, &valid, store, control).await? else {
            return stopped;
        };
        results.rft = Some(report);
        save(&results, config, &places, store).await?;
    }
    if results.grade.is_none() {
        let grade = grade::run(config, &valid, None, Some(&places.sft), Some(&places.rft), store, control).await?;
        let Some(grade) = grade else { return stopped };
        results.grade = Some(grade);
        save(&results, config, &places, store).await?;
    }
    if results.bundle_bytes.is_none() {
        let Some(zip_bytes) = bundle::write(config, &places.sft, &places.rft, None, &places.bundle, store, control).await? else {
            return stopped;
        };
        results.bundle_bytes = Some(zip_bytes);
        save(&results, config, &places, store).await?;
    }
    Ok((Ended::Finished, hints(&results, config, &places)))
}

/// Tells what came of the stages that are done already.
fn tell(results: &Results, control: &Control) {
    let tests = [&results.cot, &results.sft, &results.rft].map(|test| test.clone().map(Event::Tested));
    let others = [results.funnel.clone().map(Event::Funnel), results.grade.clone().map(Event::Graded)];
    tests.into_iter().chain(others).flatten().for_each(|event| control.emit(event));
}

/// What has come of a task.
fn hints(results: &Results, config: &ReasonConfig, places: &Places) -> Vec<String> {
    let share = |report: &Option<TestReport>| report.as_ref().map_or(f64::NAN, |report| 100.0 * report.all.accuracy());
    let [cot, sft, rft] = [&results.cot, &results.sft, &results.rft].map(share);
    vec![
        format!("right answers: {cot:.0} % with worked examples, {sft:.0} % after SFT, {rft:.0} % after RFT"),
        format!("{}: the funnel, accuracies, samples and losses", places.report),
        format!("{}: both adapters; {} and {}: the runs", places.bundle, places.sft, places.rft),
        format!("mend what the teacher got wrong: smolforge task unit-conversion rejects --data {}", quoted(&places.rows)),
        format!(
            "ask it: smolforge generate --model {} --adapter {} --prompt \"How many g are there per 6 kg?\"",
            quoted(&config.student),
            quoted(&places.rft)
        ),
    ]
}

/// What lies in the folder already, and the keys that it was made with.
async fn there(begun_with: &ReasonConfig, places: &Places, results: &Results, store: &Store) -> Vec<(String, frozen::Keys)> {
    let mut there = Vec::new();
    for (path, named) in places.questions.iter().zip([&begun_with.train_file, &begun_with.valid_file]) {
        if named.is_none() && store.exists(path).await {
            there.push((path.clone(), frozen::QUESTIONS));
        }
    }
    if store.exists(&places.results).await {
        there.push((places.results.clone(), frozen::TESTS));
    }
    if results.funnel.is_some() {
        there.push((places.rows.clone(), frozen::ROLLOUT));
    }
    for (run, keys) in [(&places.sft, frozen::SFT), (&places.rft, frozen::RFT)] {
        if store.exists(&inside(run, TUNING)).await {
            there.push((run.clone(), keys));
        }
    }
    there
}

/// The files of questions: those that are named, else those in the folder, which are made where they are missing.
async fn data(config: &ReasonConfig, in_folder: &[String; 2], store: &Store, control: &Control) -> Result<[String; 2]> {
    let named = [&config.train_file, &config.valid_file];
    for path in named.into_iter().flatten() {
        questions::read(&store.read_text(path).await?, path)?; // before anything is written
    }
    for index in [0, 1] {
        if named[index].is_none() && !store.exists(&in_folder[index]).await {
            write_questions(&made(config)?[index], in_folder[index].clone(), store, control).await?;
        }
    }
    Ok([0, 1].map(|index| named[index].clone().unwrap_or_else(|| in_folder[index].clone())))
}

/// Teaches the student and tests it; `None` where it was stopped.
async fn lesson(
    config: &ReasonConfig,
    lesson: Lesson,
    data: &str,
    out: &str,
    valid: &str,
    store: &Store,
    control: &Control,
) -> Result<Option<TestReport>> {
    if !store.exists(&inside(out, ADAPTER)).await {
        let begun = store.exists(&inside(out, TUNING)).await;
        if learn::run(config, lesson, data, out, begun, store, control).await?.0 == Ended::Stopped {
            return Ok(None);
        }
    }
    ask(lesson.name(), config, Some(out), valid, store, control).await
}

/// What is done in the folder of a task.
///
/// # Errors
/// [`Error::Format`] for a damaged file.
pub async fn results(out: &str, store: &Store) -> Result<Results> {
    read(&Places::of(out).results, store).await
}

async fn read(path: &str, store: &Store) -> Result<Results> {
    if !store.exists(path).await {
        return Ok(Results::default());
    }
    serde_json::from_str(&store.read_text(path).await?)
        .map_err(|e| Error::format(path, format!("is damaged ({e}); remove it, and the stages are tested anew")))
}

/// Writes down what is done, and the report of it.
async fn save(results: &Results, config: &ReasonConfig, places: &Places, store: &Store) -> Result<()> {
    let json = serde_json::to_string_pretty(results).map_err(|e| Error::Internal(e.to_string()))?;
    store.write(&places.results, json.as_bytes()).await?;
    let mut losses = Vec::new();
    // Models that were pre-trained here are runs, too.
    for (name, run) in [("student", &config.student), ("teacher", &config.teacher), ("sft", &places.sft), ("rft", &places.rft)] {
        let events = read_events(store, run).await.unwrap_or_default();
        let steps = events.into_iter().filter_map(|(_, event)| match event {
            Event::Step(step) => Some((step.step, step.loss)),
            _ => None,
        });
        losses.push((name.to_string(), steps.collect()));
    }
    let mut sizes = Vec::new();
    for (name, run) in [("adapter of answers", &places.sft), ("adapter of reasoning", &places.rft)] {
        if let Ok(blob) = store.open(&format!("{run}/adapter/adapter_model.safetensors")).await {
            sizes.push((name.to_string(), blob.size_bytes()));
        }
    }
    sizes.extend(results.bundle_bytes.map(|bytes| (places.bundle.clone(), bytes)));
    let story = report::Story {
        config: config.clone(),
        tests: [&results.cot, &results.sft, &results.rft].into_iter().flatten().cloned().collect(),
        funnel: results.funnel.clone(),
        // None where people removed their file, which nothing else needs.
        rejects: rollout::rejects(&places.rows, store).await.unwrap_or_default(),
        grade: results.grade.clone(),
        budget: results.budget.clone(),
        losses,
        sizes,
        warnings: results.oddities.iter().cloned().collect(),
    };
    store.write(&places.report, report::html(&story).as_bytes()).await
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn only_questions_that_are_missing_are_made() {
        let (store, control) = (Store::memory(), Control::connect().0);
        let config = ReasonConfig { out: "o".into(), train_questions: 3, valid_questions: 2, ..ReasonConfig::default() };
        let in_folder = data_files("o");
        let make = |config: &ReasonConfig| block_on(data(config, &in_folder, &store, &control));
        let text = |path: &str| block_on(store.read_text(path)).unwrap();
        block_on(store.write("o/train.json", b"[[\"mine\", 1]]")).unwrap();
        assert_eq!(make(&config).unwrap(), in_folder);
        assert_eq!(text("o/train.json"), "[[\"mine\", 1]]");
        assert_eq!(questions::read(&text("o/valid.json"), "v").unwrap().len(), 2);
        block_on(store.remove("o/valid.json")).unwrap();
        let slip = ReasonConfig { train_file: Some("nowhere.json".into()), ..config.clone() };
        assert!(make(&slip).unwrap_err().to_string().contains("nowhere.json"));
        assert!(!block_on(store.exists("o/valid.json")), "a slip writes nothing");
        let named = ReasonConfig { train_file: Some("o/train.json".into()), valid_file: Some("o/train.json".into()), ..config };
        assert_eq!(make(&named).unwrap(), ["o/train.json", "o/train.json"]);
        assert!(!block_on(store.exists("o/valid.json")));
    }

    #[test]
    fn a_stage_is_forgotten_with_its_files() {
        let store = Store::memory();
        let places = Places::of("o");
        for path in ["o/sft/adapter/adapter_config.json", "o/rft/adapter/adapter_config.json", "o/rft.json", "o/submission.zip"] {
            block_on(store.write(path, b"x")).unwrap();
        }
        let mut results = Results {
            cot: Some(TestReport::default()),
            sft: Some(TestReport::default()),
            rft: Some(TestReport::default()),
            funnel: Some(FunnelReport::default()),
            grade: Some(GradeReport::default()),
            bundle_bytes: Some(1),
            ..Results::default()
        };
        let whole = results.clone();
        block_on(results.forget(&places, &store));
        assert_eq!(results, whole);
        block_on(store.remove("o/sft")).unwrap();
        block_on(results.forget(&places, &store));
        assert_eq!(results, Results { sft: None, grade: None, bundle_bytes: None, ..whole });
    }
}
