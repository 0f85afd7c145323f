//! The mask X-ray: examples as the model reads them, token by token, and the pre-flight list.

use crate::config::finetune::{BadRows, FinetuneConfig};
use crate::control::Control;
use crate::data::chat::{Example, Place};
use crate::data::document::Document;
use crate::data::example::{Encoder, Piece};
use crate::data::preflight::preflight;
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::protocol::{Event, ExampleReport};
use crate::store::Store;
use crate::train::rows;

/// Tokens that are shown of what is cut off an example.
const MOST_CUT: usize = 200;

/// Tells the pre-flight list of all rows, then `count` examples from the `first`-th on, or that of a row.
///
/// # Errors
/// What is wrong with model, files or rows; [`Error::Data`] where the list has a red line, or bad rows are to be refused.
pub async fn run(config: &FinetuneConfig, first: usize, count: usize, row: Option<&str>, store: &Store, control: &Control) -> Result<()> {
    if config.model_name.trim().is_empty() {
        return Err(Error::Config("--model is missing: name the model whose tokenizer and template the rows will meet".into()));
    }
    let speech = Speech::load(store, &config.model_name, config.chat_template.as_deref(), config.date.as_deref()).await?;
    let Some(mut read) = rows::read(config, &config.train_file, store, control).await? else { return Ok(()) };
    let encoder = speech.encoder(config.loss_on, config.max_seq_length);
    let Some(encoded) = read.encode("rows", &encoder, control).await? else { return Ok(()) };
    let report = preflight(&encoder, &encoded, &read.bad, speech.shape.pad_token_id);
    control.emit(Event::Preflight(report.clone()));
    let wanted = |place: &Place| row.is_none_or(|row| place.to_string() == row || place.line.to_string() == row);
    let rows = read.examples.iter().zip(&encoded).filter(|(_, example)| wanted(&example.place));
    for (row, example) in rows.skip(if row.is_some() { 0 } else { first }).take(count) {
        control.emit(Event::Example(ExampleReport {
            row: example.place.to_string(),
            task: example.task.clone(),
            lost_tokens: example.lost_tokens,
            pieces: encoder.pieces(&example.document),
            cut: if example.lost_tokens > 0 { cut(&encoder, row, example.document.tokens.len())? } else { Vec::new() },
        }));
    }
    if let Some(bad) = read.bad.iter().find(|bad| row.is_some() && wanted(&bad.place)) {
        return Err(Error::Data(format!("row {} is left out: {}", bad.place, bad.reason)));
    }
    if let Some(row) = row.filter(|_| !encoded.iter().any(|example| wanted(&example.place))) {
        return Err(Error::Data(format!("there is no example of row {row}; the last one is row {}", encoded[encoded.len() - 1].place)));
    }
    if config.bad_rows == BadRows::Refuse {
        read.leave_out("rows", config.bad_rows, control)?;
    }
    rows::refuse(&report, "mend it before training")
}

/// The first of the tokens that an example loses by being cut after `kept`.
fn cut(encoder: &Encoder<'_>, example: &Example, kept: usize) -> Result<Vec<Piece>> {
    let Document { tokens, mask } = Encoder { max_length: usize::MAX, ..*encoder }.encode(example)?.document;
    let until = tokens.len().min(kept + MOST_CUT);
    Ok(encoder.pieces(&Document { tokens: tokens[kept..until].to_vec(), mask: mask[kept..until].to_vec() }))
}
