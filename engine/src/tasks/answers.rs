//! How well a model answers: loss and accuracy of examples, and its own answers against theirs.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::config::finetune::{BadRows, FinetuneConfig};
use crate::control::{Control, Flow};
use crate::data::examples::Examples;
use crate::device::Compute;
use crate::error::Result;
use crate::generate::speech::{Speech, template_of};
use crate::generate::{Limits, batch, sampler};
use crate::model::Adapter;
use crate::model::load::{self, Keep};
use crate::protocol::{AnswerReport, AnswersRequest, Event, Match, Matches};
use crate::store::Store;
use crate::train::eval;
use crate::train::rows;

/// Scores the examples of `request.config.train_file` and lets the model answer the first of them. Returns how many of
/// the answers were right, by task; `None` where it was stopped.
///
/// # Errors
/// What is wrong with model, adapters, files or device.
pub async fn run(request: &AnswersRequest, store: &Store, control: &Control) -> Result<Option<BTreeMap<String, Matches>>> {
    let config = FinetuneConfig { packing: false, validation_split: 0.0, ..request.config.clone() };
    sampler::validate(&request.sampling)?;
    let template = match &config.chat_template {
        Some(file) => Some(file.clone()),
        None => template_of(store, &request.adapters).await,
    };
    let speech = Speech::load(store, &config.model_name, template.as_deref(), config.date.as_deref()).await?;
    let Some(mut read) = rows::read(&config, &config.train_file, store, control).await? else { return Ok(None) };
    let encoder = speech.encoder(config.loss_on, config.max_seq_length);
    let Some(encoded) = read.encode("rows", &encoder, control).await? else { return Ok(None) };
    read.leave_out("rows", BadRows::Skip, control)?;
    let kinds = rows::kinds(read.examples.iter());
    let kinded: Vec<_> = encoded.into_iter().map(|done| (rows::kind(&kinds, done.task.as_deref()), done.document)).collect();
    let examples = Examples::new(kinds.clone(), kinded, Vec::new(), [1, 1], None, 1, 0)?;

    let context = speech.shape.max_position_embeddings;
    let mut questions = Vec::new();
    for example in read.examples.iter().take(request.limit) {
        match speech.question(example).ok().flatten() {
            Some(question) if question.1.len() + request.max_new_tokens <= context => questions.push((example, question)),
            Some((_, prompt, _)) => control.warn(format!(
                "row {} is not asked: {} tokens and {} new ones are more than the context of {context}",
                example.place,
                prompt.len(),
                request.max_new_tokens
            )),
            None => {}
        }
    }
    let asked = questions.iter().map(|(_, (_, prompt, _))| prompt.len() + request.max_new_tokens).max().unwrap_or(0);
    let positions = (examples.longest() + 16).max(asked).min(context.max(examples.longest() + 16));
    let (compute, why) = Compute::open(request.device).await?;
    control.notice(why);
    let loading = |done, total| control.progress("load the model", done, total, "bytes");
    let model = load::load(store, &config.model_name, &speech.shape, &compute, positions, Keep::Stored, loading).await?;
    let model = model.with_adapter(Adapter::load_mix(store, &request.adapters, &config.model_name, control).await?.as_ref())?;

    for (kind, name) in kinds.iter().enumerate() {
        let batches = examples.in_order(kind, config.per_device_eval_batch_size);
        let (total, bytes) = (batches.len() as u64, Cell::new(0));
        let counted = batches.enumerate().map(|(done, batch)| {
            control.progress(&format!("score {name}"), done as u64, total, "batches");
            bytes.set(bytes.get() + batch.target_bytes(&speech.tokenizer));
            batch
        });
        let Some(scored) = eval::run(&model, counted, control).await? else { return Ok(None) };
        control.emit(Event::Scored { file: name.clone(), score: scored.score(bytes.get()) });
    }

    let prompts = questions.iter().zip(0..).map(|((_, (_, ids, _)), stream)| batch::Prompt { ids: ids.clone(), samples: 1, stream });
    let prompts: Vec<batch::Prompt> = prompts.collect();
    let limits = Limits { max_new_tokens: request.max_new_tokens, stop: &[], end: &speech.stops };
    let (mut answers, mut done) = (vec![None; prompts.len()], 0);
    let side_by_side = batch::rows(&speech.shape, positions, &compute);
    let answering =
        batch::generate(&model, &speech.tokenizer, &prompts, &request.sampling, &limits, side_by_side, control, |place, _, answer| {
            answers[place] = Some(answer);
            done += 1;
            control.progress("asked", done, prompts.len() as u64, "questions");
            Ok(())
        });
    let flow = answering.await?;
    let mut matches: BTreeMap<String, Matches> = BTreeMap::new();
    for ((example, (question, _, expected)), answer) in questions.into_iter().zip(answers) {
        let Some(answer) = answer else { continue };
        let matched = matched(&expected, &answer.text);
        let task = kinds[rows::kind(&kinds, example.task.as_deref())].clone();
        matches.entry(task.clone()).or_default().add(matched);
        let (row, stopped) = (example.place.to_string(), answer.finish == "stop");
        control.emit(Event::Answer(AnswerReport { row, task, question, expected, answer: answer.text, stopped, matched }));
    }
    control.emit(Event::Matches { tasks: matches.clone() });
    Ok((flow == Flow::Continue).then_some(matches))
}

/// How an answer compares, spaces around it and capitals aside: equal, or with what was expected in it.
pub fn matched(expected: &str, answer: &str) -> Match {
    let (expected, answer) = (expected.trim().to_lowercase(), answer.trim().to_lowercase());
    if expected == answer {
        Match::Exact
    } else if !expected.is_empty() && answer.contains(&expected) {
        Match::Partial
    } else {
        Match::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_without_capitals_and_spaces_around() {
        let check = |expected, answer, found| assert_eq!(matched(expected, answer), found, "{expected:?} {answer:?}");
        check("12 Nm", " 12 nm\n", Match::Exact);
        check("12 Nm", "It is 12 Nm.", Match::Partial);
        check("12 Nm", "12  Nm", Match::None);
        check("12 Nm", "2 Nm", Match::None);
        check("", "", Match::Exact);
        check("", "anything", Match::None);
        check("Grün", "GRÜN", Match::Exact);
    }
}
