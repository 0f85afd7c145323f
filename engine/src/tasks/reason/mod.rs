//! Tasks with one right answer to every question: a prompt, a parser, a checker, and what is learned from them.
//!
//! Yuan et al. 2023 (rejection-sampling fine-tuning), <https://arxiv.org/abs/2308.01825>

pub mod answer;
pub mod budget;
pub mod bundle;
pub mod conversion;
pub mod grade;
pub mod learn;
pub mod pipeline;
pub mod questions;
pub mod report;
pub mod rollout;
pub mod test;

use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::error::Result;
use crate::model::adapter::AdapterConfig;
use crate::model::{Adapter, fetch, hub};
use crate::protocol::{BudgetReport, Event, ReasonVerb, TestReport};
use crate::store::{Store, inside};
use crate::train::run::quoted;
use crate::train::{Ended, checkpoint};

use self::learn::Lesson;
use self::questions::Question;
use self::test::{Examinee, Prompt};

/// Does what a verb asks for; returns what to tell the user.
///
/// # Errors
/// What is wrong with configuration, files, models or device.
pub async fn run(config: &ReasonConfig, verb: ReasonVerb, store: &Store, control: &Control) -> Result<(Ended, Vec<String>)> {
    config.validate()?;
    if !matches!(verb, ReasonVerb::MakeData { .. } | ReasonVerb::Rejects { .. } | ReasonVerb::Mend { .. } | ReasonVerb::Run) {
        budget(&with_ranks_of(&verb, config, store).await, store, control).await?;
    }
    let done = match verb {
        ReasonVerb::Run => return pipeline::run(config, store, control).await,
        ReasonVerb::MakeData { out } => make_data(config, &out, store, control).await?,
        ReasonVerb::Cot { data } => ask("cot", config, None, &data, store, control).await?.is_some(),
        ReasonVerb::Test { adapter, data } => {
            let what = if adapter.is_some() { "adapter" } else { "base" };
            ask(what, config, adapter.as_deref(), &data, store, control).await?.is_some()
        }
        ReasonVerb::Sft { data, out, resume } => return teach(config, Lesson::Answers, &data, &out, resume, store, control).await,
        ReasonVerb::Rft { data, out, resume } => return teach(config, Lesson::Reasoning, &data, &out, resume, store, control).await,
        ReasonVerb::Rollout { data, out } => {
            let shots = shots(config, store).await?;
            let Some(_) = rollout::run(config, &data, &shots, &out, store, control).await? else {
                return Ok((Ended::Stopped, vec!["stopped; the same command goes on behind the questions that are done".into()]));
            };
            true
        }
        ReasonVerb::Rejects { data } => {
            control.emit(Event::Rejected { rejects: rollout::rejects(&data, store).await?, data });
            true
        }
        ReasonVerb::Mend { data, question, reasoning } => {
            rollout::mend(config, &data, &question, &reasoning, store, control).await?;
            true
        }
        ReasonVerb::Grade { data, submission, sft, rft } => {
            grade::run(config, &data, submission.as_deref(), sft.as_deref(), rft.as_deref(), store, control).await?.is_some()
        }
        ReasonVerb::Bundle { sft, rft, folder, out } => {
            let written = bundle::write(config, &sft, &rft, folder.as_deref(), &out, store, control).await?.is_some();
            match &config.valid_file {
                Some(data) if written => grade::run(config, data, Some(&out), None, None, store, control).await?.is_some(),
                _ => written,
            }
        }
    };
    Ok((if done { Ended::Finished } else { Ended::Stopped }, Vec::new()))
}

/// Files of questions in a folder: to learn from, and to be tested on.
pub fn data_files(folder: &str) -> [String; 2] {
    ["train.json", "valid.json"].map(|name| inside(folder, name))
}

async fn make_data(config: &ReasonConfig, out: &str, store: &Store, control: &Control) -> Result<bool> {
    let made = conversion::make([config.train_questions, config.valid_questions], config.temperatures, config.seed)?;
    for (questions, path) in made.iter().zip(data_files(out)) {
        store.write(&path, questions::written(questions).as_bytes()).await?;
        control.emit(Event::Wrote { what: format!("{} questions", questions.len()), path });
    }
    Ok(true)
}

/// The worked examples of a configuration.
///
/// # Errors
/// What is wrong with their file.
pub async fn shots(config: &ReasonConfig, store: &Store) -> Result<Vec<Question>> {
    match &config.shots {
        Some(path) => questions::read(&store.read_text(path).await?, path),
        None => Ok(conversion::shots()),
    }
}

/// Tests the student: with an adapter by the question alone, else with worked examples, or, where it is to be the `base`,
/// without.
async fn ask(
    what: &str,
    config: &ReasonConfig,
    adapter: Option<&str>,
    data: &str,
    store: &Store,
    control: &Control,
) -> Result<Option<TestReport>> {
    let questions = questions::read(&store.read_text(data).await?, data)?;
    let prompt = match what {
        "cot" => Prompt::worked(&config.system, &shots(config, store).await?),
        _ => Prompt::Plain,
    };
    let adapter = match adapter {
        Some(adapter) => Some(Adapter::load(store, &checkpoint::adapter_of(store, adapter).await).await?),
        None => None,
    };
    let Some(model) = Examinee::load(config, &config.student, adapter.as_ref(), store, control).await? else { return Ok(None) };
    model.test(what, &questions, &prompt, config, control).await
}

/// Teaches the student, and tests it where there are questions for that.
async fn teach(
    config: &ReasonConfig,
    lesson: Lesson,
    data: &str,
    out: &str,
    resume: bool,
    store: &Store,
    control: &Control,
) -> Result<(Ended, Vec<String>)> {
    let (ended, hints) = learn::run(config, lesson, data, out, resume, store, control).await?;
    let Some(valid) = config.valid_file.as_ref().filter(|_| ended == Ended::Finished) else { return Ok((ended, hints)) };
    if ask(lesson.name(), config, Some(out), valid, store, control).await?.is_some() {
        return Ok((ended, hints));
    }
    let again = format!("test it with: smolforge task unit-conversion test --adapter {} --data {}", quoted(out), quoted(valid));
    Ok((Ended::Stopped, vec![again]))
}

/// The settings with the ranks of the adapters that a verb is about.
async fn with_ranks_of(verb: &ReasonVerb, config: &ReasonConfig, store: &Store) -> ReasonConfig {
    let mut config = config.clone();
    let named = match verb {
        ReasonVerb::Bundle { sft, rft, .. } => [Some(sft), Some(rft)],
        ReasonVerb::Grade { sft, rft, .. } => [sft.as_ref(), rft.as_ref()],
        _ => return config,
    };
    for (name, r) in named.into_iter().zip([&mut config.sft_r, &mut config.rft_r]) {
        let Some(name) = name else { continue };
        let path = inside(&checkpoint::adapter_of(store, name).await, "adapter_config.json");
        if let Ok(text) = store.read_text(&path).await {
            *r = AdapterConfig::from_peft_json(&text, &path).map_or(*r, |adapter| adapter.r);
        }
    }
    config
}

/// Tells what limits the adapters, where the student is on this machine.
async fn budget(config: &ReasonConfig, store: &Store, control: &Control) -> Result<Option<BudgetReport>> {
    let Ok(folder) = fetch::present(store, &config.student).await else { return Ok(None) };
    let folder = checkpoint::newest_of(store, &folder).await;
    let Ok(shape) = hub::read_config(store, &folder).await else { return Ok(None) };
    let report = budget::report(config, &shape).await?;
    control.emit(Event::Budget(report.clone()));
    Ok(Some(report))
}
