//! Tasks with one right answer to every question: a prompt, a parser, a checker, and what is learned from them.
//!
//! Yuan et al. 2023 (rejection-sampling fine-tuning), <https://arxiv.org/abs/2308.01825>

pub mod answer;
pub mod budget;
pub mod bundle;
pub mod conversion;
mod frozen;
pub mod grade;
pub mod learn;
pub mod pipeline;
pub mod questions;
pub mod report;
pub mod rollout;
pub mod test;

use crate::config::reason::{REASON_FIELDS, ReasonConfig};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::model::adapter::AdapterConfig;
use crate::model::{Adapter, fetch, hub};
use crate::protocol::{BudgetReport, Event, ReasonVerb, TestReport};
use crate::store::{Store, inside};
use crate::train::run::quoted;
use crate::train::runs::TUNING;
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
    if concerns_student(&verb) {
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
            if let Some(data) = &config.valid_file {
                questions::read(&store.read_text(data).await?, data)?; // before anything is written
            }
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

/// Questions to learn from and to be tested on, as they are made.
fn made(config: &ReasonConfig) -> Result<[Vec<Question>; 2]> {
    conversion::make([config.train_questions, config.valid_questions], config.temperatures, config.seed)
}

async fn write_questions(questions: &[Question], path: String, store: &Store, control: &Control) -> Result<()> {
    store.write(&path, questions::written(questions).as_bytes()).await?;
    control.emit(Event::Wrote { what: format!("{} questions", questions.len()), path });
    Ok(())
}

/// Writes questions; files with others stay as they are.
async fn make_data(config: &ReasonConfig, out: &str, store: &Store, control: &Control) -> Result<bool> {
    let (made, paths) = (made(config)?, data_files(out));
    for (questions, path) in made.iter().zip(&paths) {
        if store.exists(path).await && *store.read(path).await? != *questions::written(questions).as_bytes() {
            return Err(Error::Config(format!("{path}: there are other questions already; remove it or choose another --out")));
        }
    }
    for (questions, path) in made.iter().zip(paths) {
        write_questions(questions, path, store, control).await?;
    }
    Ok(true)
}

/// Reads questions to learn from and to be tested on, and warns of what is odd about them, which is returned, too.
async fn look_over(train: &str, valid: Option<&str>, store: &Store, control: &Control) -> Result<Option<String>> {
    let train = questions::read(&store.read_text(train).await?, train)?;
    let valid = match valid {
        Some(valid) => questions::read(&store.read_text(valid).await?, valid)?,
        None => Vec::new(),
    };
    let oddities = questions::oddities(&train, &valid);
    oddities.iter().for_each(|odd| control.warn(odd));
    Ok(oddities)
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
    look_over(data, config.valid_file.as_deref(), store, control).await?;
    let (ended, hints) = learn::run(config, lesson, data, out, resume, store, control).await?;
    if ended == Ended::Stopped {
        let begun = store.exists(&format!("{}/{TUNING}", out.trim_end_matches('/'))).await;
        let resume = if begun { " --resume" } else { "" };
        let again = command(lesson.name(), &[("data", data), ("out", out)], config);
        return Ok((ended, vec![format!("stopped; go on with: {again}{resume}")]));
    }
    let Some(valid) = &config.valid_file else { return Ok((ended, hints)) };
    if ask(lesson.name(), config, Some(out), valid, store, control).await?.is_some() {
        return Ok((ended, hints));
    }
    let again = command("test", &[("adapter", out), ("data", valid)], config);
    Ok((Ended::Stopped, vec![format!("stopped; test it with: {again}")]))
}

/// The command line of a verb: what it is `given`, and the keys that matter to it where they are not as usual.
fn command(verb: &str, given: &[(&str, &str)], config: &ReasonConfig) -> String {
    let learned: &[&str] = if verb == "test" { &[] } else { &["seed", "valid_file", "max_params", "max_adapter_mb"] };
    let tested = ["device", "test_questions", "max_new_tokens", "tolerance", "batch_rows"];
    let matters = |key: &str| tested.contains(&key) || learned.contains(&key) || key.starts_with(&format!("{verb}_"));
    let mut line = format!("smolforge task unit-conversion {verb} --model {}", quoted(&config.student));
    for (flag, value) in given {
        line += &format!(" --{flag} {}", quoted(value));
    }
    let (values, usual) = (config.values(), ReasonConfig::default().values());
    for key in REASON_FIELDS.iter().map(|field| field.name).filter(|key| matters(key) && values[*key] != usual[*key]) {
        let value = &values[key];
        let value = value.as_str().map_or_else(|| value.to_string(), quoted);
        line += &format!(" --{} {value}", key.replace('_', "-"));
    }
    line
}

/// Whether a verb is about the student's adapters, whose budget is then told; `run` tells it itself.
fn concerns_student(verb: &ReasonVerb) -> bool {
    use ReasonVerb::{Bundle, Cot, Grade, Rft, Sft, Test};
    matches!(verb, Cot { .. } | Test { .. } | Sft { .. } | Rft { .. } | Grade { .. } | Bundle { .. })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_what_is_not_as_usual_and_matters_to_its_verb() {
        let config = ReasonConfig {
            student: "my model".into(),
            teacher: "T".into(),
            sft_r: 4,
            rft_r: 2,
            valid_file: Some("v.json".into()),
            tolerance: 0.01,
            ..ReasonConfig::default()
        };
        let of = |verb: &str| command(verb, &[("data", "d.json"), ("out", "runs/a")], &config);
        let begin = |verb: &str| format!("smolforge task unit-conversion {verb} --model 'my model' --data d.json --out runs/a");
        assert_eq!(of("sft"), begin("sft") + " --valid-file v.json --tolerance 0.01 --sft-r 4");
        assert_eq!(of("rft"), begin("rft") + " --valid-file v.json --tolerance 0.01 --rft-r 2");
        assert_eq!(of("test"), begin("test") + " --tolerance 0.01");
    }
}
