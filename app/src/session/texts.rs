//! Texts that were asked for: what was written, which belong together, and when they will be there.

use smolforge_engine::protocol::{GenerateRequest, JobId};

use crate::units::written_per_sec;

use super::{JobState, Session};

/// A text that was asked for.
#[derive(Debug, Clone)]
pub struct Text {
    /// The job that writes it.
    pub job: JobId,
    /// What was asked for.
    pub request: GenerateRequest,
    /// What was written so far, per sample.
    pub samples: Vec<String>,
    /// The tokens of it, per sample, where alternatives were asked for.
    pub tokens: Vec<Vec<Token>>,
    /// Pieces of text that have come: about the tokens written so far.
    pub pieces: usize,
    /// New tokens, seconds and why it ended, per finished sample.
    pub finished: Vec<(usize, f64, String)>,
}

/// A token as the model saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// Its probability.
    pub probability: f64,
    /// The likeliest tokens with theirs.
    pub alternatives: Vec<(String, f64)>,
}

impl Text {
    /// A text of which nothing was written yet.
    pub fn new(job: JobId, request: GenerateRequest) -> Self {
        let samples = request.num_samples.max(1);
        Self { job, request, samples: vec![String::new(); samples], tokens: vec![Vec::new(); samples], pieces: 0, finished: Vec::new() }
    }

    /// Most tokens that it can have.
    fn most_tokens(&self) -> usize {
        self.request.max_new_tokens * self.samples.len()
    }

    /// Tokens that are still to come, at most.
    fn remaining(&self) -> usize {
        let ended: usize = self.finished.iter().map(|(tokens, _, _)| *tokens).sum();
        let spared = self.finished.len() * self.request.max_new_tokens - ended.min(self.finished.len() * self.request.max_new_tokens);
        self.most_tokens().saturating_sub(spared + self.pieces.max(ended))
    }

    /// Whether the two were asked for alike, only of different models or adapters.
    fn is_twin(&self, other: &Self) -> bool {
        let GenerateRequest { model, adapters, prompts, messages, date, device, max_new_tokens, num_samples, sampling, stop, alternatives } =
            &self.request;
        let other = &other.request;
        (model, adapters) != (&other.model, &other.adapters)
            && (prompts, messages, date, stop) == (&other.prompts, &other.messages, &other.date, &other.stop)
            && (device, max_new_tokens, num_samples) == (&other.device, &other.max_new_tokens, &other.num_samples)
            && (sampling, alternatives) == (&other.sampling, &other.alternatives)
    }
}

impl Session {
    /// Texts in the order they were asked for; those that differ in their model only stand together.
    pub fn cards(&self) -> Vec<Vec<&Text>> {
        let mut cards: Vec<Vec<&Text>> = Vec::new();
        for text in &self.texts {
            match cards.last_mut().filter(|card| card.iter().all(|other| other.is_twin(text))) {
                Some(card) => card.push(text),
                None => cards.push(vec![text]),
            }
        }
        cards
    }

    /// Requests that wait or are in progress, in the order in which they will be answered.
    pub fn unfinished(&self) -> Vec<GenerateRequest> {
        let mut open: Vec<(usize, &Text)> = self.texts.iter().filter_map(|text| Some((self.place(text.job)?, text))).collect();
        open.sort_by_key(|(place, text)| (*place, text.job));
        open.into_iter().map(|(_, text)| text.request.clone()).collect()
    }

    /// 0 for the text in progress, else how many are before it; `None` for one that has ended.
    fn place(&self, job: JobId) -> Option<usize> {
        match self.jobs.get(&job)?.state {
            _ if self.jobs.get(&job)?.stopping => None,
            JobState::Running => Some(0),
            JobState::Waiting(before) => Some(before.max(1)),
            JobState::Done | JobState::Failed(_) => None,
        }
    }

    /// Seconds until a text is complete, if none comes to its end early; known once a text of any model was written.
    pub fn eta_secs(&self, job: JobId) -> Option<f64> {
        let place = self.place(job)?;
        let before = |text: &&Text| text.job == job || self.place(text.job).is_some_and(|other| other < place);
        let times = self.texts.iter().filter(before).map(|text| Some(text.remaining() as f64 / self.speed(&text.request.model)?));
        times.sum()
    }

    /// Tokens per second of the last text of a model, or of any.
    fn speed(&self, model: &str) -> Option<f64> {
        let speeds = self.texts.iter().rev().filter_map(|text| {
            let add = |(tokens, secs), (more, took, _): &(usize, f64, String)| (tokens + more.saturating_sub(1), secs + took);
            let (after_first, secs) = text.finished.iter().fold((0, 0.0), add);
            Some((text.request.model.as_str(), written_per_sec(after_first + 1, secs)?))
        });
        let speeds: Vec<(&str, f64)> = speeds.collect();
        speeds.iter().find(|(of, _)| *of == model).or(speeds.first()).map(|(_, speed)| *speed)
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::{AdapterChoice, Command, Event};

    use super::*;

    fn request(model: &str, prompt: &str) -> GenerateRequest {
        GenerateRequest { model: model.into(), prompts: vec![prompt.into()], max_new_tokens: 10, ..GenerateRequest::default() }
    }

    fn session(requests: &[(&str, &str)]) -> Session {
        let mut session = Session::default();
        for (job, (model, prompt)) in (1..).zip(requests) {
            session.sent(job, Command::Generate(request(model, prompt)));
            session.apply(job, Event::Waiting { position: job as usize - 1 });
        }
        session
    }

    fn end(session: &mut Session, job: JobId, tokens: usize, decode_secs: f64) {
        let tokens = vec![0; tokens];
        let (text, finish) = ("t".to_string(), "length".to_string());
        session
            .apply(job, Event::Generated { prompt: 0, sample: 0, text, prompt_tokens: 1, tokens, finish, prefill_secs: 0.0, decode_secs });
        session.apply(job, Event::Done { hints: Vec::new(), stopped: false });
    }

    #[test]
    fn one_prompt_to_several_models_is_one_card() {
        let session = session(&[("m", "a"), ("n", "a"), ("m", "a"), ("m", "b"), ("n", "c")]);
        let jobs: Vec<Vec<JobId>> = session.cards().iter().map(|card| card.iter().map(|text| text.job).collect()).collect();
        assert_eq!(jobs, [vec![1, 2], vec![3], vec![4], vec![5]]);
    }

    #[test]
    fn a_model_and_the_same_with_an_adapter_are_one_card() {
        let mut session = session(&[("m", "a")]);
        let adapters = vec![AdapterChoice { path: "x".into(), strength: 0.5 }];
        session.sent(2, Command::Generate(GenerateRequest { adapters: adapters.clone(), ..request("m", "a") }));
        session.sent(3, Command::Generate(GenerateRequest { adapters, ..request("m", "a") }));
        let jobs: Vec<Vec<JobId>> = session.cards().iter().map(|card| card.iter().map(|text| text.job).collect()).collect();
        assert_eq!(jobs, [vec![1, 2], vec![3]], "what was asked twice is asked anew");
    }

    #[test]
    fn what_has_not_ended_is_asked_for_again_in_its_order() {
        let mut session = session(&[("m", "a"), ("m", "b"), ("m", "c"), ("m", "d")]);
        end(&mut session, 1, 10, 1.0);
        session.apply(2, Event::Started { job: "generate".into(), version: String::new() });
        session.apply(3, Event::Waiting { position: 2 });
        session.apply(4, Event::Waiting { position: 1 });
        let prompts = |session: &Session| session.unfinished().iter().map(|request| request.prompts[0].clone()).collect::<Vec<_>>();
        assert_eq!(prompts(&session), ["b", "d", "c"]);
        session.told(4, &Command::Stop);
        assert_eq!(prompts(&session), ["b", "c"], "what was cancelled is not");
    }

    #[test]
    fn times_follow_from_what_was_written_before() {
        let mut session = session(&[("m", "a"), ("m", "b"), ("m", "c")]);
        assert_eq!(session.eta_secs(3), None, "nothing was written yet");
        end(&mut session, 1, 11, 2.0);
        session.apply(2, Event::Started { job: "generate".into(), version: String::new() });
        session.apply(2, Event::Text { prompt: 0, sample: 0, text: "x".into() });
        session.apply(3, Event::Waiting { position: 1 });
        let near = |found: Option<f64>, expect: f64| assert!((found.expect("known") - expect).abs() < 1e-9, "{found:?}");
        near(session.eta_secs(2), 9.0 / 5.0);
        near(session.eta_secs(3), 19.0 / 5.0);
        assert_eq!(session.eta_secs(1), None, "it has ended");
    }
}
