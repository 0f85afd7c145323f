//! The mask X-ray: examples as the model reads them, token by token, and the pre-flight list.

use crate::config::finetune::{BadRows, FinetuneConfig};
use crate::control::Control;
use crate::data::preflight::preflight;
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::protocol::{Event, ExampleReport};
use crate::store::Store;
use crate::train::rows;

/// Tells the pre-flight list of all rows, then `count` examples from the `first`-th on, or that of a line.
///
/// # Errors
/// What is wrong with model, files or rows; [`Error::Data`] where the list has a red line.
pub async fn run(config: &FinetuneConfig, first: usize, count: usize, line: Option<usize>, store: &Store, control: &Control) -> Result<()> {
    if config.model_name.trim().is_empty() {
        return Err(Error::Config("--model is missing: name the model whose tokenizer and template the rows will meet".into()));
    }
    if config.train_file.0.is_empty() {
        return Err(Error::Config("no rows: name a JSONL file".into()));
    }
    let speech = Speech::load(store, &config.model_name, config.chat_template.as_deref(), config.date.as_deref()).await?;
    let Some(mut read) = rows::read(config, &config.train_file.0, store, control).await? else { return Ok(()) };
    let encoder = speech.encoder(config.loss_on, config.max_seq_length);
    let lenient = FinetuneConfig { bad_rows: BadRows::Skip, ..config.clone() };
    let Some(encoded) = read.encode("rows", &encoder, &lenient, control).await? else { return Ok(()) };
    let report = preflight(&encoder, &encoded, &read.bad, speech.shape.pad_token_id);
    control.emit(Event::Preflight(report.clone()));
    let shown = encoded.iter().filter(|example| line.is_none_or(|line| example.place.line == line)).skip(first).take(count);
    for example in shown {
        control.emit(Event::Example(ExampleReport {
            row: example.place.to_string(),
            task: example.task.clone(),
            lost_tokens: example.lost_tokens,
            pieces: encoder.pieces(&example.document),
        }));
    }
    if let Some(line) = line.filter(|line| encoded.iter().all(|example| example.place.line != *line)) {
        return Err(Error::Data(format!(
            "no example stands in line {line}; the last one is in line {}",
            encoded[encoded.len() - 1].place.line
        )));
    }
    rows::refuse(&report)
}
