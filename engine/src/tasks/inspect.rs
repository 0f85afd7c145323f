//! The mask X-ray: examples as the model reads them, token by token, and the pre-flight list.

use crate::config::finetune::FinetuneConfig;
use crate::control::Control;
use crate::data::chat::BadRow;
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
    let mut encoded = Vec::new();
    for (index, example) in read.examples.iter().enumerate() {
        if index % 256 == 0 {
            control.breathe().await;
            control.progress("tokenize examples", index as u64, read.examples.len() as u64, "rows");
        }
        match encoder.encode(example) {
            Ok(example) => encoded.push(example),
            Err(error) => read.bad.push(BadRow { line: example.line, reason: error.to_string() }),
        }
    }
    let report = preflight(&encoder, &encoded, &read.bad, speech.shape.pad_token_id);
    control.emit(Event::Preflight(report.clone()));
    let shown = encoded.iter().filter(|example| line.is_none_or(|line| example.line == line)).skip(first).take(count);
    for example in shown {
        control.emit(Event::Example(ExampleReport {
            line: example.line,
            task: example.task.clone(),
            lost_tokens: example.lost_tokens,
            pieces: encoder.pieces(&example.document),
        }));
    }
    rows::refuse(&report)
}
