//! What fine-tuning needs to know: the rows as a model reads them, and runs that are to go on.

use serde::{Deserialize, Serialize};
use smolforge_engine::protocol::{Command, ExampleReport, FinetuneConfig, Preflight, TrainConfig};

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

    /// Where a row is among those that were asked for.
    pub fn place(&self, row: &str) -> Option<usize> {
        self.examples.iter().position(|example| example.row == row)
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
    /// What makes it go on as it was begun: only where it lies is told.
    pub fn resume(self) -> Command {
        match self {
            Self::Training(out) => Command::Train { config: Box::new(TrainConfig { out, ..TrainConfig::default() }), resume: true },
            Self::Tuning { output_dir } => {
                let config = Box::new(FinetuneConfig { output_dir, ..FinetuneConfig::default() });
                Command::Finetune { config, notes: Vec::new(), resume: true }
            }
        }
    }

    /// The same, and its past is read beside.
    pub fn commands(self) -> [Command; 2] {
        let (Self::Training(path) | Self::Tuning { output_dir: path }) = self.clone();
        [Command::OpenRun { path }, self.resume()]
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

    /// Folds what was found of rows.
    pub(super) fn hear_of_rows(&mut self, command: Command, preflight: Preflight) {
        self.rows = Some(Rows { command, preflight, examples: Vec::new() });
        // Its model is here now, wherever it was before.
        self.jobs.retain(|_, job| !matches!((&job.command, &job.state), (Command::Describe { .. }, JobState::Failed(_))));
    }

    /// Why a model is not known, where it was asked for in vain.
    pub fn unknown(&self, model: &str) -> Option<&str> {
        match &self.last(|command| matches!(command, Command::Describe { model: asked, .. } if asked == model))?.state {
            JobState::Failed(why) => Some(why),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::{Event, RunInfo, StepReport};

    use super::*;
    use crate::session::Run;

    fn finetune(out: &str, resume: bool) -> Command {
        Command::Finetune {
            config: Box::new(FinetuneConfig { output_dir: out.into(), ..FinetuneConfig::default() }),
            notes: Vec::new(),
            resume,
        }
    }

    fn started() -> Event {
        Event::Started { job: "finetune".into(), version: String::new() }
    }

    #[test]
    fn a_fine_tuning_job_is_a_training_job_and_goes_on_as_one() {
        let mut session = Session::default();
        session.sent(1, finetune("a", false));
        assert!(session.training().is_some() && session.tunes());
        assert_eq!(session.in_progress(), None, "nothing of it is on disk yet");
        session.apply(1, started());
        session.apply(1, Event::Run(RunInfo { path: "a".into(), steps: 9, ..RunInfo::default() }));
        session.apply(1, Event::Step(StepReport { step: 1, loss: 2.0, ..StepReport::default() }));
        assert!(session.live.as_ref().is_some_and(|run| run.tunes && run.total_steps() == 9));
        let unfinished = Unfinished::Tuning { output_dir: "a".into() };
        assert_eq!(session.in_progress(), Some(unfinished.clone()));
        assert_eq!(session.lost("the device was lost"), Some(unfinished.clone()));
        let [look, resume] = unfinished.commands();
        assert_eq!((look, &resume), (Command::OpenRun { path: "a".into() }, &finetune("a", true)));
        let Command::Finetune { config, .. } = &resume else { panic!("another command") };
        assert!(config.train_file.0.is_empty(), "it goes on as it was begun");
        session.sent(2, resume);
        assert_eq!(session.in_progress(), Some(Unfinished::Tuning { output_dir: "a".into() }));
    }

    #[test]
    fn a_resumed_fine_tuning_run_keeps_its_past() {
        let mut session = Session::default();
        let mut past = Run::default();
        (1..=9).for_each(|step| past.apply(&Event::Step(StepReport { step, ..StepReport::default() })));
        for (job, late) in [(1, false), (2, true)] {
            session.opened.clear();
            session.opened.extend((!late).then(|| ("r".to_string(), past.clone())));
            session.sent(job, finetune("r", true));
            session.apply(job, started());
            session.opened.insert("r".into(), past.clone());
            session.apply(job, Event::Run(RunInfo { path: "r".into(), step: 5, ..RunInfo::default() }));
            assert!(session.live.as_ref().is_some_and(|run| run.tunes && run.steps.moments.len() == 5));
        }
    }

    #[test]
    fn what_is_asked_while_people_type_makes_no_notices() {
        let mut session = Session::default();
        session.sent(1, Command::Describe { model: "x".into(), adapters: Vec::new() });
        session.apply(1, Event::Failed { error: "no such file".into(), defect: false });
        assert_eq!((session.unknown("x"), session.unknown("y")), (Some("no such file"), None));
        assert!(session.notices.is_empty());
        let preflight = Preflight { checks: Vec::new(), lengths: Default::default(), tokens: 0, targets: 0 };
        session.sent(2, Command::Inspect { config: Box::default(), first: 0, count: 1, row: None });
        session.apply(2, Event::Notice { warning: true, text: "rows are left out".into() });
        session.apply(2, Event::Preflight(preflight));
        assert_eq!(session.unknown("x"), None, "it may have been downloaded for that");
        assert!(session.notices.is_empty() && session.rows.is_some());
    }
}
