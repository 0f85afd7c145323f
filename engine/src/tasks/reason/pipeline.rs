//! The whole task in order, stage by stage; what is done already is left out.

use serde::{Deserialize, Serialize};

use super::learn::Lesson;
use super::questions::{self, Question};
use super::{ask, bundle, data_files, grade, learn, make_data, report, rollout, shots};
use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::protocol::{BudgetReport, Event, FunnelReport, GradeReport, TestReport};
use crate::store::{Store, inside};
use crate::train::Ended;
use crate::train::log::read_events;
use crate::train::run::quoted;
use crate::train::runs::TUNING;

/// What is done, and what came of it: `task.json` in the folder of the task.
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

/// Paths of a task's folder.
struct Places {
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
            ["task.json", "config.yaml", "report.html", "rft.json", "sft", "rft", "submission.zip"].map(|name| inside(out, name));
        Self { results, config, report, rows, sft, rft, bundle }
    }
}

/// Runs all stages that are not done; returns what to tell the user.
///
/// # Errors
/// [`Error::Resume`] where the folder's stages were made with other settings; what is wrong with a stage.
pub async fn run(config: &ReasonConfig, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    let places = Places::of(&config.out);
    freeze(config, &places.config, store).await?;
    let mut results = read(&places.results, store).await?;
    let hint = format!("smolforge task unit-conversion run {}", quoted(&places.config));
    let stopped = Ok((Ended::Stopped, vec![format!("stopped; go on with: {hint}")]));
    let ([train, valid], oddities) = data(config, store, control).await?;
    results.oddities = oddities;
    results.budget = super::budget(config, store, control).await?;
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

/// Keeps the configuration; another one needs another folder.
async fn freeze(config: &ReasonConfig, path: &str, store: &Store) -> Result<()> {
    if !store.exists(path).await {
        return store.write(path, config.to_yaml().as_bytes()).await;
    }
    let frozen = ReasonConfig::from_yaml(&store.read_text(path).await?)?;
    // Where it is computed, and how many answers at a time, changes nothing of what comes out.
    let asked = ReasonConfig { device: frozen.device, batch_rows: frozen.batch_rows, out: frozen.out.clone(), ..config.clone() };
    let (old, new) = (serde_json::to_value(&frozen), serde_json::to_value(&asked));
    let (Ok(serde_json::Value::Object(old)), Ok(serde_json::Value::Object(new))) = (old, new) else {
        return Err(Error::Internal("a configuration is a map".into()));
    };
    let changed: Vec<&str> = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::Resume(format!(
        "the task in {} was begun with another {}; go on without that, or choose another --out",
        config.out,
        changed.join(", ")
    )))
}

/// The files of questions, those that are named, else those that are made; and what is odd about them.
async fn data(config: &ReasonConfig, store: &Store, control: &Control) -> Result<([String; 2], Option<String>)> {
    let made = data_files(&config.out);
    let named = [&config.train_file, &config.valid_file];
    let paths = [0, 1].map(|index| named[index].clone().unwrap_or_else(|| made[index].clone()));
    let lacks = async |index: usize| named[index].is_none() && !store.exists(&made[index]).await;
    if lacks(0).await || lacks(1).await {
        make_data(config, &config.out, store, control).await?;
    }
    let mut read: [Vec<Question>; 2] = Default::default();
    for (questions, path) in read.iter_mut().zip(&paths) {
        *questions = questions::read(&store.read_text(path).await?, path)?;
    }
    let oddities = questions::oddities(&read[0], &read[1]);
    oddities.iter().for_each(|odd| control.warn(odd));
    Ok((paths, oddities))
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
    if !store.exists(&format!("{out}/adapter/adapter_config.json")).await {
        let begun = store.exists(&format!("{out}/{TUNING}")).await;
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
        rejects: if results.funnel.is_some() { rollout::rejects(&places.rows, store).await? } else { Vec::new() },
        grade: results.grade.clone(),
        budget: results.budget.clone(),
        losses,
        sizes,
        warnings: results.oddities.iter().cloned().collect(),
    };
    store.write(&places.report, report::html(&story).as_bytes()).await
}
