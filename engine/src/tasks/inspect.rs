//! The mask X-ray: examples as the model reads them, token by token, and the pre-flight list.

use crate::config::finetune::FinetuneConfig;
use crate::control::{Control, Flow};
use crate::data::chat::{BadRow, Example};
use crate::data::document::Document;
use crate::data::example::{Encoder, Piece};
use crate::data::preflight::preflight;
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::protocol::{Event, ExampleReport};
use crate::store::Store;
use crate::train::checkpoint;
use crate::train::rows;

/// Tokens that are shown of what is cut off an example.
const MOST_CUT: usize = 200;

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
    let base = checkpoint::newest_of(store, &config.model_name).await;
    let speech = Speech::load(store, &base, config.chat_template.as_deref(), config.date.as_deref()).await?;
    let Some(mut read) = rows::read(config, &config.train_file.0, store, control).await? else { return Ok(()) };
    let encoder = speech.encoder(config.loss_on, config.max_seq_length);
    let mut encoded = Vec::new();
    for (index, example) in read.examples.iter().enumerate() {
        if index % 256 == 0 {
            if control.breathe().await == Flow::Stop {
                return Ok(());
            }
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
            cut: match read.examples.iter().find(|row| row.line == example.line && example.lost_tokens > 0) {
                Some(row) => cut(&encoder, row, example.document.tokens.len())?,
                None => Vec::new(),
            },
        }));
    }
    rows::refuse(&report)
}

/// The first of the tokens that an example loses by being cut after `kept`.
fn cut(encoder: &Encoder<'_>, example: &Example, kept: usize) -> Result<Vec<Piece>> {
    let Document { tokens, mask } = Encoder { max_length: usize::MAX, ..*encoder }.encode(example)?.document;
    let until = tokens.len().min(kept + MOST_CUT);
    Ok(encoder.pieces(&Document { tokens: tokens[kept..until].to_vec(), mask: mask[kept..until].to_vec() }))
}
