//! `smolforge tokenize`: how many tokens files have.

use smolforge_engine::protocol::{Command, Event};

use super::table::Table;
use super::{drive, is_last};
use crate::units::{bytes, count};

/// Count the tokens of text files
#[derive(Debug, clap::Args)]
pub struct Args {
    /// tokenizer.json, or a folder that holds one
    #[arg(long, value_name = "FILE")]
    tokenizer: String,

    /// Text files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
}

impl Args {
    /// Counts and prints a row per file, and their sum.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { tokenizer, files } = self;
        let mut rows: Vec<(String, [u64; 4])> = Vec::new();
        drive(Command::Tokenize { tokenizer, files }, json, |screen, event| {
            if let Event::Tokenized { file, size_bytes, text_bytes, tokens, replaced_bytes } = event {
                rows.push((file.clone(), [*size_bytes, *text_bytes, *tokens, *replaced_bytes]));
            }
            if !is_last(event) || rows.is_empty() {
                return Ok(());
            }
            if rows.len() > 1 {
                let sum = |column: usize| rows.iter().map(|(_, numbers)| numbers[column]).sum();
                rows.push(("together".into(), [sum(0), sum(1), sum(2), sum(3)]));
            }
            let mut table = Table::new(&["file", ">size", ">tokens", ">text bytes/token", ">replaced bytes"]);
            for (file, [size_bytes, text_bytes, tokens, replaced_bytes]) in &rows {
                let per_token = *text_bytes as f64 / (*tokens).max(1) as f64;
                table.row([file.clone(), bytes(*size_bytes), count(*tokens), format!("{per_token:.2}"), count(*replaced_bytes)]);
            }
            screen.println(table.to_string())
        })
    }
}
