//! The reference's grader: its parts, bounds, limits and points.

pub mod loss;
pub mod marks;

use web_time::Instant;

use super::bundle::{self, Submission};
use super::questions::{self, Question};
use super::test::{Examinee, Prompt};
use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::model::{Adapter, hub};
use crate::protocol::{Event, GradeReport, TestReport};
use crate::store::{Store, inside};
use crate::tasks::folder_of;
use crate::train::checkpoint;
use marks::PARTS;

/// Questions whose answers' loss is looked at.
const LOSS_QUESTIONS: usize = 32;

/// Tokens that go through the model together for that loss.
const TOKENS_AT_ONCE: usize = 2048;

/// Grades the student of a configuration by the questions in `data`: with the adapters of a submission, or with those that
/// `sft` and `rft` name (folders or runs); a part whose adapter is missing gets no points. The report so far is emitted after
/// every part. `None` where it was stopped.
///
/// The student is loaded once, and adapters are put on it. In the reference every part loads its model within its time, so
/// the seconds that loading took count in every part here, too.
///
/// # Errors
/// What is wrong with questions, student, or the submission as a whole. What is wrong with an adapter costs its points.
pub async fn run(
    config: &ReasonConfig,
    data: &str,
    submission: Option<&str>,
    sft: Option<&str>,
    rft: Option<&str>,
    store: &Store,
    control: &Control,
) -> Result<Option<GradeReport>> {
    let questions = questions::read(&store.read_text(data).await?, data)?;
    let submission = match submission {
        None => None,
        Some(name) => match bundle::read(config, name, store, control).await? {
            Some(submission) => Some(submission),
            None => return Ok(None),
        },
    };
    let adapters = match &submission {
        Some(submission) => submitted(submission).await,
        None => [named("sft", sft, store).await?, named("rft", rft, store).await?],
    };
    let prompt = match &submission {
        Some(submission) => submission.prompt().await?,
        None => None,
    };
    let own = super::shots(config, store).await.map(|shots| Prompt::worked(&config.system, &shots));
    let given = config.shots.is_some() || config.system != ReasonConfig::default().system;
    let prompt = match prompt {
        Some(prompt) => {
            if given && !own.is_ok_and(|own| own == prompt) {
                control.warn("--system and --shots do not count: the submission brings its own in task.json");
            }
            prompt
        }
        None => own?,
    };
    let Some(folder) = folder_of(&config.student, store, control).await? else { return Ok(None) };
    let parameters = hub::read_config(store, &folder).await?.parameters();
    if let Some(why) = too_many(parameters, config) {
        let cases = PARTS.iter().map(|part| part.failed(why.clone(), 0.0)).collect();
        let report = GradeReport { cases };
        control.emit(Event::Graded(report.clone()));
        return Ok(Some(report));
    }
    let started = Instant::now();
    let Some(examinee) = Examinee::load(config, &config.student, None, store, control).await? else { return Ok(None) };
    let load_secs = started.elapsed().as_secs_f64();
    Sitting { config, folder, parameters, questions, prompt, adapters, examinee, load_secs, store, control }.grade().await
}

/// Everything that the parts of a grade need.
struct Sitting<'a> {
    config: &'a ReasonConfig,
    folder: String,
    /// Of the student alone.
    parameters: u64,
    questions: Vec<Question>,
    /// What stands before a question of a model that shall work it out.
    prompt: Prompt,
    /// Where the adapters lie: answers, reasoning.
    adapters: [Option<(Store, String)>; 2],
    examinee: Examinee,
    load_secs: f64,
    store: &'a Store,
    control: &'a Control,
}

impl Sitting<'_> {
    async fn grade(mut self) -> Result<Option<GradeReport>> {
        let (control, limited) = (self.control, self.config.time_limits);
        let mut report = GradeReport::default();
        for (index, part) in PARTS.iter().enumerate() {
            control.progress("grade", index as u64, PARTS.len() as u64, "parts");
            let (started, waited) = (Instant::now(), control.waited_secs());
            let measured = self.measure(index).await;
            let secs = self.load_secs + started.elapsed().as_secs_f64() - (control.waited_secs() - waited);
            report.cases.push(match measured {
                Ok(None) => return Ok(None),
                Ok(Some((value, remark))) => part.marked(value, remark, secs, limited),
                Err(error) => part.failed(error.to_string(), secs),
            });
            control.emit(Event::Graded(report.clone()));
        }
        control.progress("grade", PARTS.len() as u64, PARTS.len() as u64, "parts");
        Ok(Some(report))
    }

    /// The value of a part, and what else there is to say.
    async fn measure(&mut self, part: usize) -> Result<Option<(f64, String)>> {
        let report = match part {
            0 | 1 => return self.loss(part == 1).await,
            2 => self.examinee.test("cot", &self.questions, &self.prompt, self.config, self.control).await?,
            _ => self.adapted(part - 3).await?,
        };
        Ok(report.map(|TestReport { all, .. }| {
            (all.accuracy(), format!("{} of {} right, {:.0} % answered", all.right, all.asked, 100.0 * all.answer_rate()))
        }))
    }

    /// The loss of the student's own answers behind their questions.
    async fn loss(&self, batched: bool) -> Result<Option<(f64, String)>> {
        let Self { config, control, examinee, .. } = self;
        let count = LOSS_QUESTIONS.min(config.test_questions).min(self.questions.len());
        let asked: Vec<&str> = self.questions[..count].iter().map(|question| question.text.as_str()).collect();
        let written = match batched {
            true => examinee.write(&asked, &Prompt::Plain, config, control).await?,
            false => examinee.write_one_by_one(&asked, &Prompt::Plain, config, control).await?,
        };
        let Some((answers, _)) = written else { return Ok(None) };
        let speech = &examinee.speech;
        let rows = asked.iter().zip(answers).map(|(question, answer)| speech.tokenizer.encode_prompt(&format!("{question}{answer}")));
        let rows: Vec<Vec<u32>> = rows.collect();
        let pad = speech.stops.first().copied().unwrap_or(0);
        let loss = loss::padded_loss(&examinee.model, &rows, pad, TOKENS_AT_ONCE, control).await?;
        Ok(loss.map(|loss| (loss, format!("loss of {count} questions with their answers"))))
    }

    /// How the student does with one of the adapters.
    async fn adapted(&mut self, at: usize) -> Result<Option<TestReport>> {
        let Some((store, folder)) = &self.adapters[at] else { return Err(Error::Config("Not Implemented".into())) };
        let adapter = Adapter::load(store, folder).await?;
        if let Some(why) = too_many(self.parameters + adapter.parameters(), self.config) {
            return Err(Error::Config(why));
        }
        adapter.compare_base(bundle::ADAPTERS[at], &self.folder, self.store, self.control).await;
        self.examinee.model = self.examinee.model.clone().with_adapter(Some(&adapter))?;
        self.examinee.test(["sft", "rft"][at], &self.questions, &Prompt::Plain, self.config, self.control).await
    }
}

/// Where the adapters of a submission lie.
async fn submitted(submission: &Submission) -> [Option<(Store, String)>; 2] {
    let place = async |at: usize| submission.adapter(at).await.map(|folder| (submission.store.clone(), folder));
    [place(0).await, place(1).await]
}

/// Where an adapter that was named by a flag lies.
async fn named(flag: &str, name: Option<&str>, store: &Store) -> Result<Option<(Store, String)>> {
    let Some(name) = name else { return Ok(None) };
    let folder = checkpoint::adapter_of(store, name).await;
    match store.exists(&inside(&folder, "adapter_config.json")).await {
        true => Ok(Some((store.clone(), folder))),
        false => Err(Error::Config(format!("--{flag} {name}: neither an adapter nor a run that has one"))),
    }
}

/// What is said of a model with too many parameters, the adapter's included.
fn too_many(parameters: u64, config: &ReasonConfig) -> Option<String> {
    let most = config.max_params;
    (parameters > most)
        .then(|| format!("the model has {parameters} parameters, its adapter's included; {most} are the most (--max-params)"))
}
