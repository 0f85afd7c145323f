//! A model in a test: it is loaded, asked, and its answers are checked.

use web_time::Instant;

use super::questions::Question;
use super::{answer, conversion};
use crate::config::reason::{Quantize, ReasonConfig};
use crate::control::{Control, Flow};
use crate::data::random::Random;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::generate::{self, Generation, Limits, batch};
use crate::model::load::{self, Keep};
use crate::model::{Adapter, Llama};
use crate::protocol::{Event, Reply, Sampling, TestReport};
use crate::store::Store;
use crate::tasks::folder_of;
use crate::text::template::Message;

/// Most positions that a model has here: longer questions and answers there are none.
const POSITIONS: usize = 4096;

/// A model that can be asked.
pub struct Examinee {
    /// Its weights, with its adapter.
    pub model: Llama,
    /// How it reads and where it stops.
    pub speech: Speech,
    /// Whether its linear layers were put into 4 bits.
    pub four_bits: bool,
    compute: Compute,
}

/// What a question is asked with.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Nothing.
    Plain,
    /// What stands before it in a conversation by the model's chat template.
    Worked(Vec<Message>),
}

impl Prompt {
    /// The system's words, and examples as questions of the user and reasoning of the assistant.
    pub fn worked(system: &str, shots: &[Question]) -> Self {
        let system = (!system.trim().is_empty()).then(|| Message::new("system", system));
        let shots = shots.iter().flat_map(|shot| {
            let reasoning = shot.reasoning.clone().unwrap_or_else(|| format!("<answer>{}</answer>", answer::shown(shot.answer)));
            [Message::new("user", &shot.text), Message::new("assistant", &reasoning)]
        });
        Self::Worked(system.into_iter().chain(shots).collect())
    }

    /// Tokens of a question.
    ///
    /// # Errors
    /// A model without a chat template, where it needs one.
    pub fn ids(&self, question: &str, speech: &Speech) -> Result<Vec<u32>> {
        match self {
            Self::Plain => Ok(generate::prompt_ids(&speech.tokenizer, &speech.shape, question)),
            Self::Worked(before) => {
                let messages: Vec<Message> = before.iter().cloned().chain([Message::new("user", question)]).collect();
                speech.prompt(&messages)
            }
        }
    }
}

impl Examinee {
    /// Loads a model with an adapter. `None` where it was stopped.
    ///
    /// # Errors
    /// What is wrong with folder, adapter or device; [`Error::OutOfMemory`] where it does not fit in f16.
    pub async fn load(
        config: &ReasonConfig,
        model: &str,
        adapter: Option<&Adapter>,
        store: &Store,
        control: &Control,
    ) -> Result<Option<Self>> {
        Self::load_kept(config, model, adapter, None, store, control).await
    }

    /// Loads a teacher, in 4 bits where `config.quantize_teacher` says so. `None` where it was stopped.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_teacher(config: &ReasonConfig, model: &str, store: &Store, control: &Control) -> Result<Option<Self>> {
        Self::load_kept(config, model, None, Some(config.quantize_teacher), store, control).await
    }

    async fn load_kept(
        config: &ReasonConfig,
        model: &str,
        adapter: Option<&Adapter>,
        quantize: Option<Quantize>,
        store: &Store,
        control: &Control,
    ) -> Result<Option<Self>> {
        let Some(folder) = folder_of(model, store, control).await? else { return Ok(None) };
        let speech = Speech::load(store, &folder, None, None).await?;
        let (compute, why) = Compute::open(config.device).await?;
        control.notice(why);
        let sizes = [Keep::F32, Keep::F16, Keep::Nf4].map(|keep| load::size_bytes(&speech.shape, keep, &compute.device));
        let keep = keep(sizes, compute.free_bytes(), quantize)
            .map_err(|why| Error::OutOfMemory { device: compute.info.name.clone(), detail: format!("{model} {why}") })?;
        if keep == Keep::Nf4 && quantize == Some(Quantize::Auto) {
            control.warn(format!(
                "{model} is kept in 4 bits: it takes {} MiB, and {} MiB in f16 are not free",
                sizes[2] >> 20,
                sizes[1] >> 20
            ));
        }
        let positions = POSITIONS.min(speech.shape.max_position_embeddings);
        let loading = |done, total| control.progress("load the model", done, total, "bytes");
        let model = load::load(store, &folder, &speech.shape, &compute, positions, keep, loading).await?.with_adapter(adapter)?;
        Ok(Some(Self { model, speech, compute, four_bits: keep == Keep::Nf4 }))
    }

    /// Samples written side by side where `longest` is the number of tokens of prompt and sample together: never more than
    /// there is memory for, if anybody knows how much that is.
    fn rows(&self, config: &ReasonConfig, longest: usize, control: &Control) -> usize {
        let asked = config.batch_rows;
        if asked == 0 {
            return batch::rows(&self.speech.shape, longest, &self.compute);
        }
        let most = self.compute.free_bytes().map_or(asked, |free| batch::rows_within(&self.speech.shape, longest, free));
        if most < asked {
            control.warn(format!("--batch-rows {asked}: there is memory for {most} samples of {longest} tokens side by side"));
        }
        asked.min(most)
    }

    /// The text of a sample, without special tokens.
    fn text(&self, sample: &Generation) -> String {
        let ended = sample.tokens.last().is_some_and(|last| self.speech.stops.contains(last));
        self.speech.tokenizer.decode(&sample.tokens[..sample.tokens.len() - usize::from(ended)], true)
    }

    /// Lets it continue prompts; `on_done` gets every sample when it is complete, without special tokens, with the places of
    /// its prompt and of the sample.
    ///
    /// # Errors
    /// Prompts that do not fit the context; what `on_done` returns.
    pub async fn continue_all(
        &self,
        prompts: &[batch::Prompt],
        sampling: &Sampling,
        config: &ReasonConfig,
        control: &Control,
        mut on_done: impl FnMut(usize, usize, Generation) -> Result<()>,
    ) -> Result<Flow> {
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let room = self.model.positions().saturating_sub(longest);
        if room == 0 {
            return Err(Error::Context { prompt: longest, context: self.model.positions() });
        }
        let limits = Limits { max_new_tokens: config.max_new_tokens.min(room), stop: &[], end: &self.speech.stops };
        let rows = self.rows(config, longest + limits.max_new_tokens, control);
        let on_done = |prompt, place, sample: Generation| on_done(prompt, place, Generation { text: self.text(&sample), ..sample });
        batch::generate(&self.model, &self.speech.tokenizer, prompts, sampling, &limits, rows, control, on_done).await
    }

    /// What it writes greedily after every question, all of them side by side, with the number of new tokens; `None` where
    /// it was stopped.
    ///
    /// # Errors
    /// Prompts that do not fit the context.
    pub async fn write(
        &self,
        questions: &[&str],
        prompt: &Prompt,
        config: &ReasonConfig,
        control: &Control,
    ) -> Result<Option<(Vec<String>, u64)>> {
        let prompts =
            questions.iter().map(|question| Ok(batch::Prompt { ids: prompt.ids(question, &self.speech)?, samples: 1, stream: 0 }));
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        let (mut texts, mut done, mut tokens) = (vec![String::new(); questions.len()], 0, 0);
        let greedy = greedy();
        let flow = self.continue_all(&prompts, &greedy, config, control, |place, _, sample| {
            texts[place] = sample.text;
            (done, tokens) = (done + 1, tokens + sample.tokens.len() as u64);
            control.progress("answer", done, questions.len() as u64, "questions");
            Ok(())
        });
        Ok((flow.await? == Flow::Continue).then_some((texts, tokens)))
    }

    /// As [`Self::write`], one question after the other.
    ///
    /// # Errors
    /// Prompts that do not fit the context.
    pub async fn write_one_by_one(
        &self,
        questions: &[&str],
        prompt: &Prompt,
        config: &ReasonConfig,
        control: &Control,
    ) -> Result<Option<(Vec<String>, u64)>> {
        let (mut texts, mut tokens) = (Vec::new(), 0);
        for (done, question) in questions.iter().enumerate() {
            let ids = prompt.ids(question, &self.speech)?;
            let room = self.model.positions().saturating_sub(ids.len());
            let limits = Limits { max_new_tokens: config.max_new_tokens.min(room), stop: &[], end: &self.speech.stops };
            let (model, tokenizer) = (&self.model, &self.speech.tokenizer);
            let (sample, _) =
                generate::generate(model, tokenizer, &ids, &greedy(), &limits, Random::stream(0, 0), control, None, |_| {}).await?;
            if sample.finish == "cancelled" {
                return Ok(None);
            }
            control.progress("answer one by one", done as u64 + 1, questions.len() as u64, "questions");
            tokens += sample.tokens.len() as u64;
            texts.push(self.text(&sample));
        }
        Ok(Some((texts, tokens)))
    }

    /// Asks the first `config.test_questions` questions and checks the answers; the report is emitted as well. `what` is its
    /// name. `None` where it was stopped.
    ///
    /// # Errors
    /// Prompts that do not fit the context.
    pub async fn test(
        &self,
        what: &str,
        questions: &[Question],
        prompt: &Prompt,
        config: &ReasonConfig,
        control: &Control,
    ) -> Result<Option<TestReport>> {
        let asked = &questions[..questions.len().min(config.test_questions)];
        let started = Instant::now();
        let texts: Vec<&str> = asked.iter().map(|question| question.text.as_str()).collect();
        let Some((written, tokens)) = self.write(&texts, prompt, config, control).await? else { return Ok(None) };
        let report = TestReport { what: what.into(), tokens, secs: started.elapsed().as_secs_f64(), ..checked(asked, written, config) };
        control.emit(Event::Tested(report.clone()));
        Ok(Some(report))
    }
}

fn greedy() -> Sampling {
    Sampling { greedy: true, ..Sampling::default() }
}

/// Answers as they are found in what was written, and whether they are right.
fn checked(questions: &[Question], written: Vec<String>, config: &ReasonConfig) -> TestReport {
    let mut report = TestReport::default();
    for (question, text) in questions.iter().zip(written) {
        let found = answer::parse(&text);
        let right = answer::is_right(found, question.answer, config.tolerance);
        report.all.add(!found.is_nan(), right);
        report.kinds.entry(conversion::kind(&question.text).into()).or_default().add(!found.is_nan(), right);
        report.replies.push(Reply { question: question.text.clone(), expected: question.answer, found, right, text });
    }
    report
}

/// How a model is kept that takes so many bytes in f32, f16 and 4 bits: as it is stored where it fits, which only a device in
/// the machine's own memory can tell, else in f16, else, if that is allowed, in 4 bits; or why not.
fn keep([full, half, small]: [u64; 3], free: Option<u64>, quantize: Option<Quantize>) -> std::result::Result<Keep, String> {
    let fits = |bytes: u64| free.is_none_or(|free| bytes <= free);
    match quantize {
        Some(Quantize::Yes) if fits(small) => Ok(Keep::Nf4),
        Some(Quantize::No | Quantize::Auto) | None if fits(full) => Ok(Keep::Stored),
        Some(Quantize::No | Quantize::Auto) | None if fits(half) => Ok(Keep::F16),
        Some(Quantize::Auto) if fits(small) => Ok(Keep::Nf4),
        _ => {
            let fitting =
                if quantize == Some(Quantize::No) && fits(small) { "keep it in 4 bits with --quantize-teacher auto, or " } else { "" };
            let (half, small, free) = (half >> 20, small >> 20, free.unwrap_or(0) >> 20);
            Err(format!("takes {half} MiB in f16 ({small} MiB in 4 bits), and {free} MiB are free; {fitting}take a smaller model"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, answer: f64) -> Question {
        Question { text: text.into(), answer, reasoning: None }
    }

    #[test]
    fn answers_are_counted_by_kind() {
        let questions = [question("How many g are there per 6 kg?", 6000.0), question("How many m are 2 km?", 2000.0), question("?", 1.0)];
        let written = ["6 * 1000 = <answer>6000</answer>", "<answer>12</answer>", "I do not know"].map(String::from).to_vec();
        let report = checked(&questions, written, &ReasonConfig::default());
        assert_eq!((report.all.asked, report.all.answered, report.all.right), (3, 2, 1));
        assert_eq!((report.kinds["mass"].right, report.kinds["length"].right, report.kinds["other"].answered), (1, 0, 0));
        assert!(report.replies[2].found.is_nan() && report.replies[0].right);
    }

    #[test]
    fn a_model_is_kept_as_it_fits() {
        let check =
            |free, quantize, expect: std::result::Result<Keep, &str>| match (keep([40 << 20, 20 << 20, 5 << 20], free, quantize), expect) {
                (Err(why), Err(words)) => assert!(why.contains(words) && why.contains("20 MiB in f16"), "{why}"),
                (found, expect) => assert_eq!(found, expect.map_err(String::from)),
            };
        let free = |mib: u64| Some(mib << 20);
        for quantize in [None, Some(Quantize::No), Some(Quantize::Auto)] {
            check(None, quantize, Ok(Keep::Stored));
            check(free(40), quantize, Ok(Keep::Stored));
            check(free(39), quantize, Ok(Keep::F16));
        }
        check(free(19), None, Err("19 MiB are free; take a smaller"));
        check(free(19), Some(Quantize::No), Err("--quantize-teacher auto"));
        check(free(19), Some(Quantize::Auto), Ok(Keep::Nf4));
        check(free(40), Some(Quantize::Yes), Ok(Keep::Nf4));
        for quantize in [None, Some(Quantize::No), Some(Quantize::Auto), Some(Quantize::Yes)] {
            check(free(4), quantize, Err("4 MiB are free; take a smaller"));
        }
    }

    #[test]
    fn worked_examples_stand_between_system_and_question() {
        let shot = Question { reasoning: Some("2 * 3 = <answer>6</answer>".into()), ..question("q", 6.0) };
        let Prompt::Worked(messages) = Prompt::worked("Be brief.", &[shot, question("r", 7.0)]) else { panic!() };
        let said: Vec<(&str, &str)> = messages.iter().map(|m| (m.role.as_str(), m.content.as_deref().unwrap_or(""))).collect();
        let expect = [
            ("system", "Be brief."),
            ("user", "q"),
            ("assistant", "2 * 3 = <answer>6</answer>"),
            ("user", "r"),
            ("assistant", "<answer>7.0</answer>"),
        ];
        assert_eq!(said, expect);
        assert_eq!(Prompt::worked(" ", &[]), Prompt::Worked(Vec::new()));
    }
}
