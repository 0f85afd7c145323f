//! What the jobs of a task with right answers have told: its limits, funnel, tests, points, and what nobody has solved yet.

use std::collections::BTreeMap;

use smolforge_engine::protocol::{
    BudgetReport, Command, Event, FunnelReport, GradeReport, JobId, ReasonConfig, ReasonVerb, Reject, TestReport,
};

use super::{Job, JobState, Run, Session};

/// What is known of a task.
#[derive(Debug, Default)]
pub struct Reasoning {
    /// Folder of the task.
    pub out: String,
    /// What limits its adapters, with the configuration it is of.
    pub budget: Option<(ReasonConfig, BudgetReport)>,
    /// What has become of the samples of its rollout.
    pub funnel: Option<FunnelReport>,
    /// The last tests, by what was tested.
    pub tests: BTreeMap<String, TestReport>,
    /// The last points.
    pub grade: Option<GradeReport>,
    /// The file of a rollout, and its questions without a right sample; `None` before they were asked for.
    pub rejected: Option<(String, Vec<Reject>)>,
    /// The adapter that learned last.
    pub run: Option<Run>,
}

/// Whether a command works on a task, and is not over at once.
pub fn reasons(command: &Command) -> bool {
    matches!(command, Command::Reason { verb, .. } if !matches!(verb, ReasonVerb::Rejects { .. } | ReasonVerb::Mend { .. }))
}

/// Whether a command asks for the rejects of a rollout.
pub fn asks_for_rejects(command: &Command) -> bool {
    matches!(command, Command::Reason { verb: ReasonVerb::Rejects { .. }, .. })
}

/// Whether a command leaves a run behind.
pub fn learns(command: &Command) -> bool {
    matches!(command, Command::Reason { verb: ReasonVerb::Sft { .. } | ReasonVerb::Rft { .. } | ReasonVerb::Run, .. })
}

impl Session {
    /// The job that works on a task and has not ended.
    pub fn reasoning(&self) -> Option<(JobId, &Job)> {
        self.active(reasons)
    }

    /// Folds one event of a job of a task.
    pub(super) fn hear_of_reason(&mut self, id: JobId, event: &Event) {
        let Some(Job { command: Command::Reason { config, verb }, .. }) = self.jobs.get(&id) else { return };
        let reason = &mut self.reason;
        match event {
            Event::Started { .. } if reason.out != config.out => *reason = Reasoning { out: config.out.clone(), ..Reasoning::default() },
            Event::Budget(report) => reason.budget = Some((*config.clone(), report.clone())),
            Event::Funnel(report) => reason.funnel = Some(report.clone()),
            Event::Tested(report) => drop(reason.tests.insert(report.what.clone(), report.clone())),
            Event::Graded(report) => reason.grade = Some(report.clone()),
            Event::Rejected { data, rejects } => reason.rejected = Some((data.clone(), rejects.clone())),
            Event::Run(info) => {
                let is_it = |run: &Run| run.info.as_ref().is_some_and(|known| known.path == info.path);
                let past = reason.run.take().filter(is_it).or_else(|| self.opened.get(&info.path).cloned());
                let mut run = Run { tunes: true, ..past.unwrap_or_default() };
                run.apply(event);
                reason.run = Some(run);
            }
            Event::Done { stopped: false, .. } if matches!(verb, ReasonVerb::Mend { .. }) => {
                if let (ReasonVerb::Mend { question, .. }, Some((_, rejects))) = (verb, &mut reason.rejected) {
                    rejects.retain(|reject| reject.question != *question);
                }
            }
            Event::Done { .. } | Event::Failed { .. } if matches!(verb, ReasonVerb::Rollout { .. } | ReasonVerb::Run) => {
                reason.rejected = None;
                // Others than before, perhaps: they are asked for again.
                self.jobs.retain(|_, job| !asks_for_rejects(&job.command) || matches!(job.state, JobState::Waiting(_)));
            }
            event => reason.run.iter_mut().for_each(|run| run.apply(event)),
        }
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::{Capped, RunInfo, StepReport, Tally};

    use super::*;

    fn job(out: &str, verb: ReasonVerb) -> Command {
        Command::Reason { config: Box::new(ReasonConfig { out: out.into(), ..ReasonConfig::default() }), verb }
    }

    fn rollout(out: &str) -> Command {
        job(out, ReasonVerb::Rollout { data: "train.json".into(), out: "rft.json".into() })
    }

    fn rejects() -> Command {
        job("t", ReasonVerb::Rejects { data: "rft.json".into() })
    }

    fn started() -> Event {
        Event::Started { job: "reason".into(), version: String::new() }
    }

    fn done() -> Event {
        Event::Done { hints: Vec::new(), stopped: false }
    }

    fn rejected(questions: &[&str]) -> Event {
        let reject = |question: &&str| Reject { question: question.to_string(), expected: 1.0, samples: vec!["no".into()] };
        Event::Rejected { data: "rft.json".into(), rejects: questions.iter().map(reject).collect() }
    }

    fn test(what: &str, right: u64) -> Event {
        Event::Tested(TestReport { what: what.into(), all: Tally { asked: 10, answered: 10, right }, ..TestReport::default() })
    }

    #[test]
    fn reports_of_a_task_are_kept_until_another_folder_is_worked_on() {
        let mut session = Session::default();
        session.sent(1, rollout("t"));
        assert!(session.reasoning().is_some_and(|(id, _)| id == 1) && session.training().is_none());
        session.apply(1, started());
        let parameters = Capped { used: 9, cap: 10 };
        session.apply(1, Event::Budget(BudgetReport { parameters, ..BudgetReport::default() }));
        for done in [1, 2] {
            session.apply(1, Event::Funnel(FunnelReport { done, ..FunnelReport::default() }));
        }
        session.apply(1, done());
        for (job, event) in [(2, test("sft", 5)), (3, test("rft", 8)), (4, test("rft", 9)), (5, Event::Graded(GradeReport::default()))] {
            session.sent(job, rollout("t"));
            session.apply(job, started());
            session.apply(job, event);
            session.apply(job, done());
        }
        let Reasoning { budget, funnel, tests, grade, .. } = &session.reason;
        assert!(budget.as_ref().is_some_and(|(config, budget)| config.out == "t" && budget.parameters.fits()));
        assert_eq!(funnel.as_ref().map(|funnel| funnel.done), Some(2), "the last one");
        assert_eq!(tests.values().map(|test| test.all.right).collect::<Vec<_>>(), [9, 5], "the last one of each");
        assert!(grade.is_some() && session.reasoning().is_none());
        session.sent(6, rollout("u"));
        assert!(session.reason.funnel.is_some(), "it waits yet");
        session.apply(6, started());
        let Reasoning { out, funnel, tests, .. } = &session.reason;
        assert!(out == "u" && funnel.is_none() && tests.is_empty());
    }

    #[test]
    fn a_mended_question_is_no_reject_any_more() {
        let mut session = Session::default();
        let mend = |question: &str| ReasonVerb::Mend { data: "rft.json".into(), question: question.into(), reasoning: String::new() };
        session.sent(1, rejects());
        session.apply(1, rejected(&["a", "b", "c"]));
        session.apply(1, done());
        session.sent(2, job("t", mend("a")));
        session.apply(2, done());
        session.sent(3, job("t", mend("b")));
        session.apply(3, Event::Failed { error: "a full disk".into(), defect: false });
        let left = session.reason.rejected.iter().flat_map(|(_, rejects)| rejects).map(|reject| reject.question.as_str());
        assert_eq!(left.collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(session.notices.len(), 1, "people are told why b was not kept");
    }

    #[test]
    fn after_a_rollout_its_rejects_are_asked_for_again() {
        let mut session = Session::default();
        session.sent(1, rejects());
        session.apply(1, Event::Failed { error: "rft.json: no such file".into(), defect: false });
        assert!(session.notices.is_empty(), "it is told where people look");
        session.sent(2, rollout("t"));
        session.sent(3, rejects());
        session.apply(2, rejected(&["a"]));
        session.apply(2, done());
        assert!(session.reason.rejected.is_none() && session.jobs.keys().eq(&[2, 3]), "one that waits will tell");
    }

    #[test]
    fn an_adapter_that_learns_has_its_run() {
        let mut session = Session::default();
        let step = |step| Event::Step(StepReport { step, loss: 1.0, ..StepReport::default() });
        let begun = |path: &str, step| Event::Run(RunInfo { path: path.into(), step, steps: 9, ..RunInfo::default() });
        session.sent(1, job("t", ReasonVerb::Run));
        session.apply(1, step(7));
        assert!(session.reason.run.is_none(), "it is of no run");
        for event in [begun("t/sft", 0), step(1), step(2), begun("t/rft", 0), step(1), step(2), step(3)] {
            session.apply(1, event);
        }
        session.sent(2, job("t", ReasonVerb::Rft { data: "rft.json".into(), out: "t/rft".into(), resume: true }));
        session.apply(2, begun("t/rft", 2));
        session.apply(2, step(3));
        let run = session.reason.run.as_ref().expect("the second adapter's");
        assert!(run.tunes && run.info.as_ref().is_some_and(|info| info.path == "t/rft"));
        assert_eq!(run.steps.moments.iter().map(|moment| moment.step).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(session.live.is_none(), "what Train and Tune show is another run");
    }
}
