//! An adapter that learns answers (SFT) or reasoning (RFT): rows of a fine-tuning run, and the run.

use serde_json::json;

use super::questions::{self, Question};
use super::{answer, budget};
use crate::config::finetune::{DatasetFormat, Decay, Files, FinetuneConfig, Interval, Method, Targets};
use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::data::example::LossOn;
use crate::error::{Error, Result};
use crate::model::hub;
use crate::store::{Store, inside};
use crate::tasks::folder_of;
use crate::train::{Ended, finetune};

/// Rows below which reasoning is hardly learned: the reference is worse with fewer.
pub const FEW_ROWS: usize = 850;

/// Tokens of an example, as in the reference.
const MAX_LENGTH: usize = 128;

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lesson {
    /// `question <answer>x</answer>`.
    Answers,
    /// `question reasoning`.
    Reasoning,
}

impl Lesson {
    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answers => "sft",
            Self::Reasoning => "rft",
        }
    }
}

/// Rows of prompts with completions: the space between them belongs to what is learned, as the tokens of both have it.
///
/// # Errors
/// [`Error::Format`] where a question has no reasoning to learn.
pub fn rows(questions: &[Question], lesson: Lesson, path: &str) -> Result<String> {
    let mut text = String::new();
    for (index, question) in questions.iter().enumerate() {
        let completion = match (lesson, &question.reasoning) {
            (Lesson::Answers, _) => format!(" <answer>{}</answer>", answer::shown(question.answer)),
            (Lesson::Reasoning, Some(reasoning)) => format!(" {}", reasoning.trim_start()),
            (Lesson::Reasoning, None) => {
                let reason =
                    format!("row {} has no reasoning: rows of [question, answer, reasoning] are needed, as rollout writes them", index + 1);
                return Err(Error::format(path, reason));
            }
        };
        text += &format!("{}\n", json!({"prompt": question.text, "completion": completion}));
    }
    Ok(text)
}

/// The rank that is asked for, and the alpha that goes with it.
fn asked(config: &ReasonConfig, lesson: Lesson) -> (usize, f64) {
    match lesson {
        Lesson::Answers => (config.sft_r, config.sft_alpha),
        Lesson::Reasoning => (config.rft_r, config.rft_alpha),
    }
}

/// The alpha of an adapter of rank `r`: it is multiplied by alpha / r, and that stays where the rank was lowered.
fn alpha(config: &ReasonConfig, lesson: Lesson, r: usize) -> f64 {
    let (asked, alpha) = asked(config, lesson);
    alpha * (r as f64 / asked as f64)
}

/// The fine-tuning run of a lesson; `r` is the rank of its adapter.
pub fn config(config: &ReasonConfig, lesson: Lesson, r: usize, rows: &str, out: &str) -> FinetuneConfig {
    let (dropout, rate, epochs, batch) = match lesson {
        Lesson::Answers => (config.sft_dropout, config.sft_learning_rate, config.sft_epochs, config.sft_batch_size),
        Lesson::Reasoning => (config.rft_dropout, config.rft_learning_rate, config.rft_epochs, config.rft_batch_size),
    };
    FinetuneConfig {
        model_name: config.student.clone(),
        train_file: Files(vec![rows.into()]),
        validation_split: 0.0,
        dataset_format: DatasetFormat::PromptCompletion,
        max_seq_length: MAX_LENGTH,
        loss_on: LossOn::Completion,
        method: Method::Lora,
        r,
        lora_alpha: alpha(config, lesson, r),
        lora_dropout: dropout,
        target_modules: Targets::Pattern("all-linear".into()),
        output_dir: out.into(),
        device: config.device,
        seed: config.seed,
        num_epochs: epochs,
        per_device_train_batch_size: batch,
        learning_rate: rate,
        lr_scheduler_type: Decay::Linear,
        max_grad_norm: 1.0,
        logging_steps: 1,
        eval_strategy: Interval::No,
        save_total_limit: 1,
        sample_tokens: 0,
        ..FinetuneConfig::default()
    }
}

/// The rank that a lesson's adapter gets: what is asked for, or what the limits allow.
///
/// # Errors
/// Where not even rank 1 is within the limits.
pub async fn rank(config: &ReasonConfig, lesson: Lesson, folder: &str, store: &Store, control: &Control) -> Result<usize> {
    let (asked, usual) = asked(config, lesson);
    let (r, why) = budget::fitting_rank(config, asked, &hub::read_config(store, folder).await?)?;
    if let Some(why) = why {
        let lowered = alpha(config, lesson, r);
        control.warn(format!("{why}; its alpha is {lowered} instead of {usual}, so that its scale stays"));
    }
    Ok(r)
}

/// Teaches the student what is in `data`; the run lies in `out`, its rows beside it. Returns what to tell the user.
///
/// # Errors
/// What is wrong with questions, limits, or the run.
pub async fn run(
    config: &ReasonConfig,
    lesson: Lesson,
    data: &str,
    out: &str,
    resume: bool,
    store: &Store,
    control: &Control,
) -> Result<(Ended, Vec<String>)> {
    let questions = questions::read(&store.read_text(data).await?, data)?;
    if lesson == Lesson::Reasoning && questions.len() < FEW_ROWS {
        control.warn(format!(
            "{} rows: with fewer than {FEW_ROWS} reasoning is hardly learned; raise --oversample or --temperature of the rollout",
            questions.len()
        ));
    }
    let Some(folder) = folder_of(&config.student, store, control).await? else { return Ok((Ended::Stopped, Vec::new())) };
    let r = rank(config, lesson, &folder, store, control).await?;
    let path = format!("{}.rows.jsonl", out.trim_end_matches('/'));
    keep_rows(&rows(&questions, lesson, data)?, &path, data, out, resume, store).await?;
    finetune::run(&self::config(config, lesson, r, &path, out), resume, store, control).await
}

/// Writes the rows of a run that is to begin; those of one that has begun stay as they are.
///
/// # Errors
/// [`Error::Resume`] where a run is to go on with other rows.
async fn keep_rows(text: &str, path: &str, data: &str, out: &str, resume: bool, store: &Store) -> Result<()> {
    let begun = resume || store.exists(&inside(out, "config.yaml")).await;
    if !begun || !store.exists(path).await {
        return store.write(path, text.as_bytes()).await;
    }
    if resume && *store.read(path).await? != *text.as_bytes() {
        let way = format!("give that data again, choose another --out, or remove {out} to begin anew");
        return Err(Error::Resume(format!("the run in {out} was begun with other rows than {data} gives now; {way}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn a_lower_rank_keeps_the_scale() {
        let asked = ReasonConfig::default();
        for (r, expect) in [(16, 64.0), (8, 32.0), (1, 4.0)] {
            assert_eq!(config(&asked, Lesson::Reasoning, r, "f", "o").lora_alpha, expect);
        }
    }

    #[test]
    fn rows_of_a_run_that_has_begun_stay_as_they_are() {
        let store = Store::memory();
        let keep = |text: &str, resume| block_on(keep_rows(text, "o.rows.jsonl", "d.json", "o", resume, &store));
        let written = || block_on(store.read_text("o.rows.jsonl")).unwrap();
        keep("a", false).unwrap();
        keep("b", false).unwrap();
        assert_eq!(written(), "b", "nothing was begun");
        block_on(store.write("o/config.yaml", b"")).unwrap();
        keep("c", false).unwrap(); // the run itself refuses to begin twice
        keep("b", true).unwrap();
        let error = keep("c", true).unwrap_err().to_string();
        assert!(error.contains("d.json") && error.contains("remove o") && !error.contains('\n'), "{error}");
        assert_eq!(written(), "b");
    }

    #[test]
    fn rows_hold_what_is_learned_behind_a_space() {
        let question = Question {
            text: "How many \"g\" are 6 kg?".into(),
            answer: 6000.0004,
            reasoning: Some("1 kg = 1000 g. <answer>6000</answer>".into()),
        };
        let row = |lesson| rows(std::slice::from_ref(&question), lesson, "f.json").unwrap();
        let value: serde_json::Value = serde_json::from_str(&row(Lesson::Answers)).unwrap();
        assert_eq!(value, json!({"prompt": "How many \"g\" are 6 kg?", "completion": " <answer>6000.0</answer>"}));
        let value: serde_json::Value = serde_json::from_str(&row(Lesson::Reasoning)).unwrap();
        assert_eq!(value["completion"], " 1 kg = 1000 g. <answer>6000</answer>");
        let bare = Question { reasoning: None, ..question };
        let error = rows(&[bare], Lesson::Reasoning, "f.json").unwrap_err().to_string();
        assert!(error.contains("f.json") && error.contains("row 1"), "{error}");
    }
}
