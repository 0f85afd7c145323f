//! What the engine has told us: events folded into what a window shows. No widgets, no tensors.

use std::collections::BTreeMap;

use smolforge_engine::protocol::{
    Command, DeviceInfo, Event, GenerateRequest, JobId, PlanReport, RunInfo, RunSummary, StepReport, TextScore, TrainConfig,
};

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

/// A run in numbers.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Its frozen configuration, where it is known.
    pub config: Option<TrainConfig>,
    /// Device, model and sources, once it has begun.
    pub info: Option<RunInfo>,
    /// First step, step after the last one, and name of every stage that was entered.
    pub stages: Vec<(u32, u32, String)>,
    /// Every update.
    pub steps: Vec<StepReport>,
    /// Step, loss and scores per source of every evaluation.
    pub evaluations: Vec<(u32, f64, BTreeMap<String, TextScore>)>,
    /// Step, prompt and text of every sample.
    pub samples: Vec<(u32, String, String)>,
    /// Step and folder of the last checkpoint.
    pub saved: Option<(u32, String)>,
}

/// A text that was asked for.
#[derive(Debug, Clone)]
pub struct Text {
    /// The job that writes it.
    pub job: JobId,
    /// What was asked for.
    pub request: GenerateRequest,
    /// What was written so far, per sample.
    pub samples: Vec<String>,
    /// New tokens, seconds and why it ended, per finished sample.
    pub finished: Vec<(usize, f64, String)>,
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
            let samples = vec![String::new(); request.num_samples];
            self.texts.push(Text { job, request: request.clone(), samples, finished: Vec::new() });
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
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let trains = matches!(job.command, Command::Train { .. } | Command::Demo { .. });
        if trains && matches!(event, Event::Started { .. }) {
            self.live = Some(match &job.command {
                Command::Train { config, resume } => {
                    let before = self.opened.get(&config.out).filter(|_| *resume).cloned();
                    Run { config: Some(*config.clone()), ..before.unwrap_or_default() }
                }
                _ => Run::default(),
            });
        }
        if trains && let Some(run) = &mut self.live {
            run.apply(&event);
        }
        match event {
            Event::Waiting { position } => job.state = JobState::Waiting(position),
            Event::Started { .. } => job.state = JobState::Running,
            Event::Progress { task, done, total, unit } => job.progress = (done < total).then_some((task, done, total, unit)),
            Event::Notice { warning, text } => {
                self.note(if warning { NoticeKind::Warning } else { NoticeKind::Note }, text);
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
                let mut run = Run { config: Some(*config), ..Run::default() };
                events.iter().for_each(|(_, event)| run.apply(event));
                self.opened.insert(path, run);
            }
            Event::Plan(report) => {
                if let Command::Plan { config, .. } = &job.command {
                    self.plan = Some((*config.clone(), report));
                }
            }
            Event::Text { sample, text, .. } => {
                if let Some(known) = self.texts.iter_mut().find(|text| text.job == id).and_then(|text| text.samples.get_mut(sample)) {
                    known.push_str(&text);
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
            Event::Done { hints, .. } => {
                (job.state, job.progress, job.hints) = (JobState::Done, None, hints);
            }
            Event::Failed { error, .. } => {
                (job.state, job.progress) = (JobState::Failed(error.clone()), None);
                self.note(NoticeKind::Error, error);
            }
            _ => {}
        }
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
        self.jobs.retain(|_, job| !matches!((&job.command, &job.state), (Command::OpenRun { .. }, JobState::Failed(_))));
    }

    /// Ends all jobs, because the engine has ended; returns what goes on with the run that was in progress.
    pub fn lost(&mut self, why: &str) -> Option<Command> {
        // The last error of a lost device may come before the news of it.
        let last = self.jobs.values().rev().find(|job| matches!(job.command, Command::Train { .. } | Command::Demo { .. }));
        let trains = last.is_some_and(|job| match &job.state {
            JobState::Waiting(_) | JobState::Running => true,
            JobState::Failed(error) => error.contains("device"),
            JobState::Done => false,
        });
        let run = self.live.as_ref().and_then(|run| run.info.as_ref()).filter(|_| trains).map(|info| info.path.clone());
        let open = self.jobs.values_mut().filter(|job| matches!(job.state, JobState::Waiting(_) | JobState::Running));
        open.for_each(|job| (job.state, job.progress) = (JobState::Failed(why.into()), None));
        self.note(NoticeKind::Error, why.into());
        // Without sources it says: as the run was begun.
        run.map(|out| Command::Train { config: Box::new(TrainConfig { out, ..TrainConfig::default() }), resume: true })
    }

    /// The job of this kind that has not ended.
    pub fn active(&self, kind: impl Fn(&Command) -> bool) -> Option<(JobId, &Job)> {
        let open = |job: &Job| matches!(job.state, JobState::Waiting(_) | JobState::Running);
        self.jobs.iter().find(|(_, job)| kind(&job.command) && open(job)).map(|(id, job)| (*id, job))
    }

    /// The training job that has not ended.
    pub fn training(&self) -> Option<(JobId, &Job)> {
        self.active(|command| matches!(command, Command::Train { .. } | Command::Demo { .. }))
    }
}

impl Run {
    /// Folds one event of the run.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Run(info) => {
                self.info = Some(info.clone());
                // A run that goes on makes the updates after its last checkpoint once more.
                self.steps.retain(|step| step.step <= info.step);
                self.evaluations.retain(|(step, _, _)| *step <= info.step);
                self.samples.retain(|(step, _, _)| *step <= info.step);
            }
            Event::Stage { start, end, name, .. } => {
                self.stages.retain(|(known, _, _)| known != start);
                self.stages.push((*start, *end, name.clone()));
            }
            Event::Step(step) => self.steps.push(step.clone()),
            Event::Evaluated { step, loss, sources, .. } => self.evaluations.push((*step, *loss, sources.clone())),
            Event::Sample { step, prompt, text, .. } => self.samples.push((*step, prompt.clone(), text.clone())),
            Event::Saved { step, path } => self.saved = Some((*step, path.clone())),
            _ => {}
        }
    }

    /// The last update.
    pub fn last(&self) -> Option<&StepReport> {
        self.steps.last()
    }

    /// Updates in all.
    pub fn total_steps(&self) -> u32 {
        let planned = self.config.as_ref().map(|config| config.steps);
        self.info.as_ref().map(|info| info.steps).or(planned).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u32, loss: f64) -> Event {
        Event::Step(StepReport { step, loss, ..StepReport::default() })
    }

    fn demo() -> Command {
        Command::Demo { out: "d".into(), device: Default::default(), seed: 1, steps: 9 }
    }

    #[test]
    fn a_training_job_becomes_the_live_run() {
        let mut session = Session::default();
        session.sent(1, demo());
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
        session.sent(1, demo());
        let report = StepReport { step: 3, skipped: Some("non-finite loss".into()), ..StepReport::default() };
        session.apply(1, Event::Step(report));
        session.apply(1, Event::Failed { error: "no space".into(), defect: false });
        session.apply(1, Event::Failed { error: "no space".into(), defect: false });
        let kinds: Vec<NoticeKind> = session.notices.iter().map(|notice| notice.kind).collect();
        assert_eq!(kinds, [NoticeKind::Warning, NoticeKind::Error], "said once each");
        assert_eq!(session.jobs[&1].state, JobState::Failed("no space".into()));
    }

    #[test]
    fn an_opened_run_is_what_a_live_one_was() {
        let mut session = Session::default();
        session.sent(1, demo());
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
        let past = Run { steps: (1..=9).map(|step| StepReport { step, ..StepReport::default() }).collect(), ..Run::default() };
        session.opened.insert("r".into(), past);
        let config = Box::new(TrainConfig { out: "r".into(), ..TrainConfig::default() });
        session.sent(1, Command::Train { config: config.clone(), resume: true });
        let info = RunInfo {
            path: "r".into(),
            parameters: 1,
            device: String::new(),
            precision: String::new(),
            step: 5,
            steps: 9,
            tokens_per_step: 1,
            sources: BTreeMap::new(),
            fingerprint: String::new(),
        };
        let started = || Event::Started { job: "train".into(), version: String::new() };
        session.apply(1, started());
        session.apply(1, Event::Run(info));
        session.apply(1, step(6, 1.0));
        let steps: Vec<u32> = session.live.iter().flat_map(|run| &run.steps).map(|step| step.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
        session.sent(2, Command::Train { config, resume: false });
        session.apply(2, started());
        assert!(session.live.is_some_and(|run| run.steps.is_empty()), "a new run has no past");
    }

    #[test]
    fn what_belongs_to_no_job_of_ours_is_left_alone() {
        let mut session = Session::default();
        session.apply(7, step(1, 1.0));
        assert!(session.live.is_none() && session.jobs.is_empty());
    }
}
