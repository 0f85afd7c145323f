//! `smolforge eval --data`: a model's answers against those of examples.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use smolforge_engine::config::finetune::{Files, FinetuneConfig};
use smolforge_engine::protocol::{AdapterChoice, AnswerReport, AnswersRequest, Command, DeviceChoice, Event, Match, Matches, Sampling};

use super::eval;
use super::progress::Screen;
use super::table::Table;
use super::{Usage, adapter, drive, is_last};
use crate::units::{count, percent};

/// Wrong answers that are shown.
const SHOWN: usize = 5;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Examples")]
pub struct AnswerFlags {
    /// JSONL files of examples, as for finetune
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub data: Vec<String>,

    /// Adapter's folder or run, with :STRENGTH for another one than 1; repeat for several
    #[arg(long, value_name = "DIR[:STRENGTH]", value_parser = adapter)]
    adapter: Vec<AdapterChoice>,

    /// Questions to ask; all rows are scored
    #[arg(long, value_name = "N", default_value_t = 50)]
    questions: usize,

    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 150)]
    max_new_tokens: usize,

    /// What rows look like: auto, messages, sharegpt, alpaca, prompt_completion or text
    #[arg(long, value_name = "TEXT")]
    dataset_format: Option<String>,

    /// Other names of the rows' keys, e.g. {messages: dialog, prompt: question}
    #[arg(long, value_name = "YAML")]
    columns: Option<String>,

    /// What is scored: assistant (all replies), completion (the last one) or all (every token)
    #[arg(long, value_name = "TEXT")]
    loss_on: Option<String>,

    /// How rows with a task are asked, e.g. [{TASK}] {instruction}
    #[arg(long, value_name = "TEXT")]
    task_prefix_format: Option<String>,

    /// Jinja file to write conversations with instead of the model's own chat template
    #[arg(long, value_name = "FILE")]
    chat_template: Option<String>,

    /// Date that chat templates print; default: today
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<String>,

    /// Draw answers with this temperature; 0: the likeliest token every time
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f32,

    /// Seed of the draw
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
}

impl AnswerFlags {
    /// Scores, asks and prints: a row per task, and the first wrong answers.
    pub fn run(self, model: String, device: DeviceChoice, json: bool) -> anyhow::Result<()> {
        let mut config = FinetuneConfig {
            model_name: model,
            train_file: Files(self.data),
            task_prefix_format: self.task_prefix_format,
            chat_template: self.chat_template,
            date: self.date,
            max_seq_length: usize::MAX >> 8,
            ..FinetuneConfig::default()
        };
        for (key, value) in [("dataset_format", self.dataset_format), ("columns", self.columns), ("loss_on", self.loss_on)] {
            value.map_or(Ok(()), |value| config.set(key, &value)).map_err(|error| Usage(error.to_string()))?;
        }
        let sampling = Sampling { greedy: self.temperature == 0.0, temperature: self.temperature, seed: self.seed, ..Sampling::default() };
        let request =
            AnswersRequest { config, adapters: self.adapter, device, limit: self.questions, max_new_tokens: self.max_new_tokens, sampling };
        let mut found = Found::new(&[]);
        drive(Command::Answers(Box::new(request)), json, |screen, event| found.show(screen, event))
    }
}

/// What is known of a model's answers until they are printed.
pub struct Found {
    /// What the next results stand below, if anything.
    headings: VecDeque<&'static str>,
    scores: Table,
    wrong: Vec<AnswerReport>,
}

impl Found {
    /// Nothing yet; `headings` are those of the results to come.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.iter().copied().collect(), scores: eval::table("task"), wrong: Vec::new() }
    }

    /// Collects scores and wrong answers, and prints both when all questions are answered, or when the job ends before.
    pub fn show(&mut self, screen: &Screen, event: &Event) -> io::Result<()> {
        let tasks = match event {
            Event::Scored { file, score } => {
                eval::row(&mut self.scores, file, score);
                return Ok(());
            }
            Event::Answer(answer) => {
                if answer.matched == Match::None && self.wrong.len() < SHOWN {
                    self.wrong.push(answer.clone());
                }
                return Ok(());
            }
            Event::Matches { tasks } => tasks.clone(),
            event if is_last(event) => BTreeMap::new(),
            _ => return Ok(()),
        };
        let (scores, wrong) = (std::mem::replace(&mut self.scores, eval::table("task")), std::mem::take(&mut self.wrong));
        if !(scores.is_empty() && tasks.is_empty())
            && let Some(heading) = self.headings.pop_front()
        {
            screen.println(format!("\n{heading}"))?;
        }
        if !scores.is_empty() {
            screen.println(scores.to_string())?;
        }
        show(screen, &tasks, &wrong)
    }
}

fn show(screen: &Screen, tasks: &BTreeMap<String, Matches>, wrong: &[AnswerReport]) -> io::Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["answers", ">exact", ">partial", ">none", ">right", ">asked"]);
    let mut all = Matches::default();
    let mut row = |name: &str, found: &Matches| {
        let share = |part: u64| percent(part as f64 / found.all().max(1) as f64);
        let cells = [share(found.exact), share(found.partial), share(found.none), share(found.exact + found.partial)];
        table.row([name.to_string()].into_iter().chain(cells).chain([count(found.all())]));
    };
    for (task, found) in tasks {
        row(task, found);
        all = Matches { exact: all.exact + found.exact, partial: all.partial + found.partial, none: all.none + found.none };
    }
    if tasks.len() > 1 {
        row("together", &all);
    }
    screen.println(format!("\n{table}"))?;
    for AnswerReport { row, question, expected, answer, stopped, .. } in wrong {
        let cut = if *stopped { "" } else { " (did not stop)" };
        screen.println(format!("\nrow {row}: {question:?}\n  expected {expected:?}\n  found    {answer:?}{cut}"))?;
    }
    Ok(())
}
