//! `smolforge eval`: how well a model predicts text files, or answers the questions of examples.

use smolforge_engine::protocol::{Command, DeviceChoice, Event, TextScore};

use super::answers::AnswerFlags;
use super::table::Table;
use super::{DEVICES, choice, drive, is_last};
use crate::units::{count, percent};

/// Measure loss, perplexity and bits per byte of text files, or loss and right answers of examples
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").args(["text", "data"]).required(true),
    after_help = "Of answers, exact are those like the row's, capitals and spaces around them aside; partial those with the row's in \
    them; right is both together."
)]
pub struct Args {
    /// Hugging Face folder, run, or name on the hub
    #[arg(long, value_name = "DIR|NAME")]
    model: String,

    /// Text files
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<String>,

    #[command(flatten)]
    answers: AnswerFlags,

    /// Where to compute
    #[arg(long, value_parser = choice::<DeviceChoice>(DEVICES), default_value = "auto")]
    device: DeviceChoice,

    /// Tokens per window; 0: the model's context, at most 2048
    #[arg(long, value_name = "N", default_value_t = 0)]
    sequence_length: usize,
}

impl Args {
    /// Evaluates and prints a row per file, and their sum.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        if !self.answers.data.is_empty() {
            return self.answers.run(self.model, self.device, json);
        }
        let Self { model, text: files, device, sequence_length, .. } = self;
        let mut scores: Vec<(String, TextScore)> = Vec::new();
        drive(Command::Eval { model, files, device, sequence_length }, json, |screen, event| {
            if let Event::Scored { file, score } = event {
                scores.push((file.clone(), *score));
            }
            if !is_last(event) || scores.is_empty() {
                return Ok(());
            }
            let mut table = table("file");
            for (file, score) in &scores {
                row(&mut table, file, score);
            }
            if scores.len() > 1 {
                row(&mut table, "together", &together(scores.iter().map(|(_, score)| score)));
            }
            screen.println(table.to_string())
        })
    }
}

/// A table of scores; `first` heads the column of names.
pub fn table(first: &str) -> Table {
    Table::new(&[first, ">loss", ">perplexity", ">bits/byte", ">accuracy", ">tokens"])
}

/// Adds one score.
pub fn row(table: &mut Table, name: &str, score: &TextScore) {
    table.row([
        name.to_string(),
        format!("{:.4}", score.loss),
        format!("{:.2}", score.perplexity),
        format!("{:.4}", score.bits_per_byte),
        score.accuracy.map(percent).unwrap_or_default(),
        count(score.tokens),
    ]);
}

/// The score of all texts as one: every token counts alike.
fn together<'a>(scores: impl Iterator<Item = &'a TextScore>) -> TextScore {
    let (mut nats, mut hits, mut tokens, mut bytes) = (0.0, 0.0, 0, 0);
    for score in scores {
        nats += score.loss * score.tokens as f64;
        hits += score.accuracy.unwrap_or(0.0) * score.tokens as f64;
        tokens += score.tokens;
        bytes += score.bytes;
    }
    TextScore { accuracy: Some(hits / tokens.max(1) as f64), ..TextScore::new(nats, tokens, bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_weigh_alike_in_the_sum() {
        let sum = together([TextScore::new(10.0, 10, 40), TextScore::new(90.0, 30, 80)].iter());
        assert_eq!((sum.loss, sum.tokens, sum.bytes), (2.5, 40, 120));
    }
}
