//! What the engine has told us: events folded into what a window shows. No widgets, no tensors.

mod reason;
mod run;
mod texts;
mod tune;

use std::collections::BTreeMap;

use smolforge_engine::config::SourceConfig;
use smolforge_engine::protocol::{
    Command, DeviceInfo, Event, FinetuneConfig, JobId, KernelReport, MemoryReport, ModelReport, PlanReport, PreviewReport, RunSummary,
    TrainConfig,
};
use smolforge_engine::tasks::demo;

use crate::units::shares;

pub use reason::{Reasoning, asks_for_rejects, learns, reasons};
pub use run::{Moment, Run};
pub use texts::{Text, Token};
pub use tune::{Rows, Unfinished, trains};

/// Notices that are kept.
const MOST_NOTICES: usize = 200;

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Session {
    /// Jobs that were asked for, by id.
    pub jobs: BTreeMap<JobId, Job>,
    /// The run of the last training job, as it is told.
    pub live: Option<Run>,
    /// Runs read from disk, by folder.
    pub opened: BTreeMap<String, Run>,
    /// The list of runs; `None` before it was read.
    pub runs: Option<Vec<RunSummary>>,
    /// The adapters; empty before they were asked for.
    pub devices: Vec<DeviceInfo>,
    /// The last plan, with the configuration it is for.
    pub plan: Option<(TrainConfig, PlanReport)>,
    /// The same of fine-tuning.
    pub tune_plan: Option<(FinetuneConfig, PlanReport)>,
    /// Models that were asked for, by the names they were asked for by.
    pub models: BTreeMap<String, ModelReport>,
    /// Rows that were looked at last.
    pub rows: Option<Rows>,
    /// The task with right answers that was worked on last.
    pub reason: Reasoning,
    /// Pages of sources, the last one of each that was asked for.
    pub previews: Vec<(SourceConfig, PreviewReport)>,
    /// What the last self-test found.
    pub kernels: Vec<KernelReport>,
    /// Memory in use when it was asked for last.
    pub memory: Option<MemoryReport>,
    /// Texts that were asked for, in order.
    pub texts: Vec<Text>,
    /// What people should know, oldest first.
    pub notices: Vec<Notice>,
}

/// A job from being asked for to its end.
#[derive(Debug, Clone)]
pub struct Job {
    /// What was asked for.
    pub command: Command,
    /// How far it is.
    pub state: JobState,
    /// A task of known length in it: name, done, total, unit.
    pub progress: Option<(String, u64, u64, String)>,
    /// What its end says to do next.
    pub hints: Vec<String>,
    /// Whether it was told to pause.
    pub paused: bool,
    /// Whether it was told to stop.
    pub stopping: bool,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Asked for; so many are before it.
    Waiting(usize),
    /// In progress.
    Running,
    /// Ended well, or stopped.
    Done,
    /// Ended with this error.
    Failed(String),
}

/// One sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub kind: NoticeKind,
    /// The sentence.
    pub text: String,
}

/// How much a notice matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// To know.
    Note,
    /// Deserves attention.
    Warning,
    /// Something did not work.
    Error,
}

impl Session {
    /// Notes that a job was asked for.
    pub fn sent(&mut self, job: JobId, command: Command) {
        if let Command::Generate(request) = &command {
            self.texts.push(Text::new(job, request.clone()));
        }
        let state = JobState::Waiting(0);
        self.jobs.insert(job, Job { command, state, progress: None, hints: Vec::new(), paused: false, stopping: false });
    }

    /// Notes that a job was told something.
    pub fn told(&mut self, job: JobId, command: &Command) {
        let Some(job) = self.jobs.get_mut(&job) else { return };
        match command {
            Command::Stop => job.stopping = true,
            Command::Pause => job.paused = true,
            Command::Continue => job.paused = false,
            _ => {}
        }
    }

    /// Folds one event.
    pub fn apply(&mut self, id: JobId, event: Event) {
        self.hear_of_reason(id, &event);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (trains, tunes) = (trains(&job.command), matches!(job.command, Command::Finetune { .. }));
        let resumes = matches!(job.command, Command::Train { resume: true, .. } | Command::Finetune { resume: true, .. });
        if trains && matches!(event, Event::Started { .. }) {
            self.live = Some(match &job.command {
                Command::Train { config, resume } => {
                    let mut run = self.opened.get(&config.out).filter(|_| *resume).cloned().unwrap_or_default();
                    if run.config.is_none() || !config.sources.is_empty() {
                        run.configure(*config.clone());
                    }
                    run
                }
                Command::Finetune { config, resume, .. } => {
                    self.opened.get(&config.output_dir).filter(|_| *resume).cloned().unwrap_or_default()
                }
                Command::Demo { out, device, seed, steps } => Run::of(demo::config(out, *device, *seed, *steps)),
                _ => Run::default(),
            });
        }
        if let (Command::SelfTest { .. }, Event::Started { .. }) = (&job.command, &event) {
            self.kernels.clear();
        }
        if trains && let Some(run) = &mut self.live {
            if let (true, Event::Run(info)) = (resumes, &event)
                && let Some(past) = self.opened.get(&info.path).filter(|_| run.steps.moments.is_empty())
            {
                run.clone_from(past); // it may have been read only now
            }
            run.tunes = tunes;
            run.apply(&event);
        }
        match event {
            Event::Waiting { position } => job.state = JobState::Waiting(position),
            Event::Started { .. } => job.state = JobState::Running,
            Event::Progress { task, done, total, unit } => job.progress = (done < total).then_some((task, done, total, unit)),
            // Rows are looked at again and again, and their list of checks says the same.
            Event::Notice { warning: true, .. } if matches!(job.command, Command::Inspect { .. }) => {}
            Event::Notice { warning: true, text } => self.note(NoticeKind::Warning, text),
            Event::Notice { warning: false, text } => {
                // Every text says what it is computed on: of interest when that has changed.
                let subject = |text: &str| text.split(' ').next().unwrap_or_default().to_string();
                let said = self.notices.iter().rev().find(|notice| subject(&notice.text) == subject(&text));
                if said.is_none_or(|notice| notice.text != text) {
                    self.note(NoticeKind::Note, text);
                }
            }
            Event::Reweighted { step, stage, weights } => {
                let shares = shares(&weights);
                self.note(NoticeKind::Note, format!("stage {} has other shares from step {} on: {shares}", stage + 1, step + 1));
            }
            Event::Held { why } => {
                job.paused = true;
                self.note(NoticeKind::Error, why);
            }
            Event::Wrote { what, path } => self.note(NoticeKind::Note, format!("wrote {what}: {path}")),
            Event::Step(step) => {
                job.progress = None;
                if let Some(why) = step.skipped {
                    self.note(NoticeKind::Warning, format!("step {}: update skipped: {why}", step.step));
                }
            }
            Event::Device(device) => {
                self.devices.retain(|known| (&known.name, &known.backend) != (&device.name, &device.backend));
                self.devices.push(device);
            }
            Event::Runs { runs } => self.runs = Some(runs),
            Event::Opened { path, config, events } => {
                let mut run = Run::of(*config);
                events.iter().for_each(|(_, event)| run.apply(event));
                self.opened.insert(path, run);
            }
            Event::Plan(report) => match &job.command {
                Command::Plan { config, .. } => self.plan = Some((*config.clone(), report)),
                Command::PlanFinetune { config, .. } => self.tune_plan = Some((*config.clone(), report)),
                _ => {}
            },
            Event::Described(report) => {
                if let Command::Describe { model, .. } = &job.command {
                    self.models.insert(model.clone(), report);
                }
            }
            Event::Preflight(preflight) => {
                let command = job.command.clone();
                self.hear_of_rows(command, preflight);
            }
            Event::Example(example) => {
                if let Some(rows) = &mut self.rows {
                    rows.examples.push(example);
                }
            }
            Event::Preview(report) => {
                if let Command::Preview { source, .. } = &job.command {
                    self.previews.retain(|(known, _)| known != source);
                    self.previews.push((source.clone(), report));
                }
            }
            Event::Memory(report) => self.memory = Some(report),
            Event::Kernel(report) => self.kernels.push(report),
            Event::Text { sample, text, .. } => {
                if let Some(known) = self.texts.iter_mut().find(|text| text.job == id) {
                    known.pieces += 1;
                    known.samples.get_mut(sample).into_iter().for_each(|written| written.push_str(&text));
                }
            }
            Event::Token { sample, text, probability, alternatives, .. } => {
                let known = self.texts.iter_mut().find(|text| text.job == id).and_then(|text| text.tokens.get_mut(sample));
                if let Some(tokens) = known {
                    tokens.push(Token { text, probability, alternatives });
                }
            }
            Event::Generated { sample, text, tokens, finish, decode_secs, .. } => {
                if let Some(known) = self.texts.iter_mut().find(|text| text.job == id) {
                    if let Some(whole) = known.samples.get_mut(sample) {
                        *whole = text;
                    }
                    known.finished.push((tokens.len(), decode_secs, finish));
                }
            }
            // Asked for again and again, and nobody looks back at them.
            Event::Done { .. } if matches!(job.command, Command::Runs { .. } | Command::Devices { .. } | Command::Memory) => {
                self.jobs.remove(&id);
            }
            Event::Done { hints, .. } => {
                (job.state, job.progress, job.hints) = (JobState::Done, None, hints);
            }
            Event::Failed { error, .. } => {
                (job.state, job.progress) = (JobState::Failed(error.clone()), None);
                // What is asked while people type is answered where they look.
                if !matches!(job.command, Command::Describe { .. } | Command::Inspect { .. }) && !asks_for_rejects(&job.command) {
                    self.note(NoticeKind::Error, error);
                }
            }
            _ => {}
        }
    }

    /// The page of a source that was read last.
    pub fn preview(&self, source: &SourceConfig) -> Option<&PreviewReport> {
        self.previews.iter().find(|(known, _)| known == source).map(|(_, preview)| preview)
    }

    /// Training tokens of a source, where a plan or a run has counted them with the same tokenizer.
    pub fn tokens_of(&self, name: &str, config: &TrainConfig) -> Option<u64> {
        let alike = |other: &TrainConfig| {
            other.sources.get(name) == config.sources.get(name)
                && (&other.tokenizer, other.tokenizer_vocab_size) == (&config.tokenizer, config.tokenizer_vocab_size)
        };
        let planned = self.plan.iter().filter(|(other, _)| alike(other)).filter_map(|(_, plan)| Some(plan.sources.get(name)?.tokens));
        let runs = self.live.iter().chain(self.opened.values()).filter(|run| run.config.as_ref().is_some_and(alike));
        let trained = runs.filter_map(|run| Some(run.info.as_ref()?.sources.get(name)?.0));
        planned.chain(trained).next()
    }

    /// Documents of a source, where the last plan has counted them.
    pub fn documents_of(&self, name: &str, config: &TrainConfig) -> Option<u64> {
        let (planned, plan) = self.plan.as_ref()?;
        let found = plan.sources.get(name).filter(|_| planned.sources.get(name) == config.sources.get(name));
        found.map(|source| source.documents)
    }

    /// Adds a notice, unless it says the same as the last one.
    pub fn note(&mut self, kind: NoticeKind, text: String) {
        let notice = Notice { kind, text };
        if self.notices.last() == Some(&notice) {
            return;
        }
        self.notices.push(notice);
        let surplus = self.notices.len().saturating_sub(MOST_NOTICES);
        self.notices.drain(..surplus);
    }

    /// Forgets what was read from disk, so that it is read again.
    pub fn forget(&mut self) {
        self.opened.clear();
        self.models.clear();
        let is_read = |command: &Command| matches!(command, Command::OpenRun { .. } | Command::Describe { .. });
        self.jobs.retain(|_, job| !(is_read(&job.command) && matches!(job.state, JobState::Failed(_))));
    }

    /// Ends all jobs, because the engine has ended; returns the run that was in progress.
    pub fn lost(&mut self, why: &str) -> Option<Unfinished> {
        let run = self.in_progress();
        let open = self.jobs.values_mut().filter(|job| matches!(job.state, JobState::Waiting(_) | JobState::Running));
        open.for_each(|job| (job.state, job.progress) = (JobState::Failed(why.into()), None));
        self.note(NoticeKind::Error, why.into());
        run
    }

    /// The run that trains or waits to go on, or that a lost device has just ended.
    pub fn in_progress(&self) -> Option<Unfinished> {
        let last = self.last(trains)?;
        let on_disk = match &last.command {
            Command::Train { config, resume: true } => Some(config.out.clone()),
            Command::Finetune { config, resume: true, .. } => Some(config.output_dir.clone()),
            _ if matches!(last.state, JobState::Waiting(_)) => None, // nothing of it is there yet
            _ => self.live.as_ref().and_then(|run| Some(run.info.as_ref()?.path.clone())),
        };
        let on_disk = on_disk.map(|folder| match last.command {
            Command::Finetune { .. } => Unfinished::Tuning { output_dir: folder },
            _ => Unfinished::Training(folder),
        });
        match &last.state {
            JobState::Done => None,
            JobState::Failed(error) if !error.contains("device") => None, // may come before the news of the loss
            _ => on_disk,
        }
    }

    /// The last job of this kind.
    pub fn last(&self, kind: impl Fn(&Command) -> bool) -> Option<&Job> {
        self.jobs.values().rev().find(|job| kind(&job.command))
    }

    /// The jobs of this kind that have not ended.
    pub fn open(&self, kind: impl Fn(&Command) -> bool) -> impl Iterator<Item = (JobId, &Job)> {
        let open = move |job: &Job| kind(&job.command) && matches!(job.state, JobState::Waiting(_) | JobState::Running);
        self.jobs.iter().filter(move |(_, job)| open(job)).map(|(id, job)| (*id, job))
    }

    /// The first of them.
    pub fn active(&self, kind: impl Fn(&Command) -> bool) -> Option<(JobId, &Job)> {
        self.open(kind).next()
    }

    /// The training job that has not ended.
    pub fn training(&self) -> Option<(JobId, &Job)> {
        self.active(trains)
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::{GenerateRequest, RunInfo, SourcePlan, StepReport};

    use super::*;

    fn step(step: u32, loss: f64) -> Event {
        Event::Step(StepReport { step, loss, ..StepReport::default() })
    }

    fn demo_job() -> Command {
        Command::Demo { out: "d".into(), device: Default::default(), seed: 1, steps: 9 }
    }

    #[test]
    fn a_training_job_becomes_the_live_run() {
        let mut session = Session::default();
        session.sent(1, demo_job());
        assert!(session.training().is_some_and(|(id, job)| id == 1 && job.state == JobState::Waiting(0)));
        session.apply(1, Event::Started { job: "demo".into(), version: String::new() });
        session.apply(1, Event::Progress { task: "read".into(), done: 1, total: 2, unit: "bytes".into() });
        assert!(session.jobs[&1].progress.is_some());
        session.apply(1, step(1, 3.0));
        session.apply(1, step(2, 2.0));
        assert!(session.jobs[&1].progress.is_none(), "a step ends what came before it");
        assert_eq!(session.live.as_ref().and_then(Run::last).map(|last| last.step), Some(2));
        session.apply(1, Event::Done { hints: vec!["look".into()], stopped: false });
        assert!(session.training().is_none());
        assert_eq!(session.jobs[&1].hints, ["look"]);
    }

    #[test]
    fn texts_grow_and_end_with_what_the_engine_says() {
        let mut session = Session::default();
        session.sent(4, Command::Generate(GenerateRequest { num_samples: 2, ..GenerateRequest::default() }));
        session.apply(4, Event::Waiting { position: 1 });
        assert_eq!(session.jobs[&4].state, JobState::Waiting(1));
        for (sample, text) in [(0, "a"), (1, "x"), (0, "b")] {
            session.apply(4, Event::Text { prompt: 0, sample, text: text.into() });
        }
        assert_eq!(session.texts[0].samples, ["ab", "x"]);
        let generated = Event::Generated {
            prompt: 0,
            sample: 1,
            text: "xyz".into(),
            prompt_tokens: 3,
            tokens: vec![1, 2],
            finish: "length".into(),
            prefill_secs: 0.1,
            decode_secs: 0.5,
        };
        session.apply(4, generated);
        assert_eq!(session.texts[0].samples, ["ab", "xyz"]);
        assert_eq!(session.texts[0].finished, [(2, 0.5, "length".to_string())]);
    }

    #[test]
    fn errors_and_skipped_updates_stay_readable() {
        let mut session = Session::default();
        session.sent(1, demo_job());
        let report = StepReport { step: 3, skipped: Some("non-finite loss".into()), ..StepReport::default() };
        session.apply(1, Event::Step(report));
        session.apply(1, Event::Failed { error: "no space".into(), defect: false });
        session.apply(1, Event::Failed { error: "no space".into(), defect: false });
        let kinds: Vec<NoticeKind> = session.notices.iter().map(|notice| notice.kind).collect();
        assert_eq!(kinds, [NoticeKind::Warning, NoticeKind::Error], "said once each");
        assert_eq!(session.jobs[&1].state, JobState::Failed("no space".into()));
    }

    #[test]
    fn what_is_computed_on_is_told_when_it_changes() {
        let mut session = Session::default();
        session.sent(1, demo_job());
        for text in ["computing on a", "computing on a", "other", "computing on a", "computing on b", "computing on a"] {
            session.apply(1, Event::Notice { warning: false, text: text.into() });
        }
        let texts: Vec<&str> = session.notices.iter().map(|notice| notice.text.as_str()).collect();
        assert_eq!(texts, ["computing on a", "other", "computing on b", "computing on a"]);
    }

    #[test]
    fn tokens_are_known_from_a_plan_of_the_same_texts() {
        let mut session = Session::default();
        let config = demo::config("d", Default::default(), 1, 10);
        assert_eq!(session.tokens_of("code", &config), None);
        let sources = [("code".to_string(), SourcePlan { tokens: 99, ..SourcePlan::default() })].into();
        session.plan = Some((config.clone(), PlanReport { sources, ..PlanReport::default() }));
        assert_eq!(session.tokens_of("code", &config), Some(99));
        let other = TrainConfig { tokenizer_vocab_size: 300, ..config };
        assert_eq!(session.tokens_of("code", &other), None, "another tokenizer counts differently");
    }

    #[test]
    fn an_opened_run_is_what_a_live_one_was() {
        let mut session = Session::default();
        session.sent(1, demo_job());
        session.apply(1, Event::Started { job: "demo".into(), version: String::new() });
        session.sent(2, Command::OpenRun { path: "r".into() });
        let story = vec![step(1, 3.0), Event::Saved { step: 1, path: "r/step_000001".into() }, step(2, 2.5)];
        story.iter().for_each(|event| session.apply(1, event.clone()));
        let events = story.into_iter().map(|event| (0.0, event)).collect();
        session.apply(2, Event::Opened { path: "r".into(), config: Box::default(), events });
        let (live, opened) = (session.live.as_ref().expect("live"), &session.opened["r"]);
        assert_eq!((&live.steps, &live.saved), (&opened.steps, &opened.saved));
    }

    #[test]
    fn a_run_that_goes_on_keeps_its_past_up_to_its_checkpoint() {
        let mut session = Session::default();
        let mut past = Run::default();
        (1..=9).for_each(|number| past.apply(&step(number, 1.0)));
        session.opened.insert("r".into(), past);
        let sources = [("a".to_string(), SourceConfig::Path("a.txt".into()))].into();
        let config = Box::new(TrainConfig { out: "r".into(), sources, ..TrainConfig::default() });
        session.sent(1, Command::Train { config: config.clone(), resume: true });
        let info = RunInfo { path: "r".into(), step: 5, steps: 9, ..RunInfo::default() };
        let started = || Event::Started { job: "train".into(), version: String::new() };
        session.apply(1, started());
        session.apply(1, Event::Run(info));
        session.apply(1, step(6, 1.0));
        let steps: Vec<u32> = session.live.iter().flat_map(|run| &run.steps.moments).map(|step| step.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
        // The past may be read only after the run was begun.
        let past = session.opened.remove("r").expect("it was read");
        session.sent(2, Command::Train { config: config.clone(), resume: true });
        session.apply(2, started());
        session.opened.insert("r".into(), past);
        session.apply(2, Event::Run(RunInfo { path: "r".into(), step: 5, steps: 9, ..RunInfo::default() }));
        assert_eq!(session.live.as_ref().map(|run| run.steps.moments.len()), Some(5));
        session.sent(3, Command::Train { config, resume: false });
        session.apply(3, started());
        assert!(session.live.is_some_and(|run| run.steps.moments.is_empty()), "a new run has no past");
    }

    #[test]
    fn what_is_to_go_on_is_the_run_in_progress_or_the_one_that_waits_for_it() {
        let mut session = Session::default();
        let train =
            |out: &str, resume| Command::Train { config: Box::new(TrainConfig { out: out.into(), ..TrainConfig::default() }), resume };
        session.sent(1, train("a", false));
        assert_eq!(session.in_progress(), None, "nothing of it is on disk yet");
        session.apply(1, Event::Started { job: "train".into(), version: String::new() });
        session.apply(1, Event::Run(RunInfo { path: "a".into(), ..RunInfo::default() }));
        assert_eq!(session.in_progress(), Some(Unfinished::Training("a".into())));
        session.apply(1, Event::Done { hints: Vec::new(), stopped: false });
        assert_eq!(session.in_progress(), None);
        session.sent(2, train("b", true));
        assert_eq!(session.in_progress(), Some(Unfinished::Training("b".into())));
        session.apply(2, Event::Started { job: "train".into(), version: String::new() });
        assert_eq!(session.in_progress(), Some(Unfinished::Training("b".into())), "it is still being prepared");
        assert_eq!(session.lost("gone"), Some(Unfinished::Training("b".into())));
    }

    #[test]
    fn what_belongs_to_no_job_of_ours_is_left_alone() {
        let mut session = Session::default();
        session.apply(7, step(1, 1.0));
        assert!(session.live.is_none() && session.jobs.is_empty());
    }
}
