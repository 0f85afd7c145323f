//! What fine-tuning needs to know: the rows as a model reads them, and runs that are to go on.

use serde::{Deserialize, Serialize};
use smolforge_engine::protocol::{Command, Event, ExampleReport, FinetuneConfig, Preflight, TrainConfig};

use super::{JobState, Session};

/// Rows as a model reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// What was asked for: [`Command::Inspect`].
    pub command: Command,
    /// What was found of all of them.
    pub preflight: Preflight,
    /// Those that were asked for.
    pub examples: Vec<ExampleReport>,
}

impl Rows {
    /// Rows that can be used.
    pub fn count(&self) -> usize {
        self.preflight.lengths.bins.iter().map(|(_, count)| *count).sum()
    }
}

/// A run that is to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Unfinished {
    /// The folder of one that trains on texts.
    Training(String),
    /// One that fine-tunes.
    Tuning {
        /// Its folder.
        output_dir: String,
    },
}

impl Unfinished {
    /// What makes it go on as it was begun; its past is read beside.
    pub fn commands(self) -> [Command; 2] {
        match self {
            Self::Training(out) => {
                let config = Box::new(TrainConfig { out: out.clone(), ..TrainConfig::default() });
                [Command::OpenRun { path: out }, Command::Train { config, resume: true }]
            }
            Self::Tuning { output_dir } => {
                let config = Box::new(FinetuneConfig { output_dir: output_dir.clone(), ..FinetuneConfig::default() });
                [Command::OpenRun { path: output_dir }, Command::Finetune { config, resume: true }]
            }
        }
    }
}

/// Whether a command trains a run.
pub fn trains(command: &Command) -> bool {
    matches!(command, Command::Train { .. } | Command::Demo { .. } | Command::Finetune { .. })
}

impl Session {
    /// Whether a fine-tuning run is in progress.
    pub fn tunes(&self) -> bool {
        self.training().is_some_and(|(_, job)| matches!(job.command, Command::Finetune { .. }))
    }

    /// Folds what is told of rows.
    pub(super) fn hear_of_rows(&mut self, command: &Command, event: Event) {
        match event {
            Event::Preflight(preflight) => {
                self.rows = Some(Rows { command: command.clone(), preflight, examples: Vec::new() });
                // Its model is here now, wherever it was before.
                self.jobs.retain(|_, job| !matches!((&job.command, &job.state), (Command::Describe { .. }, JobState::Failed(_))));
            }
            Event::Example(example) => self.rows.iter_mut().for_each(|rows| rows.examples.push(example.clone())),
            _ => {}
        }
    }

    /// Why a model is not known, where it was asked for in vain.
    pub fn unknown(&self, model: &str) -> Option<&str> {
        match &self.last(|command| matches!(command, Command::Describe { model: asked } if asked == model))?.state {
            JobState::Failed(why) => Some(why),
            _ => None,
        }
    }
}
