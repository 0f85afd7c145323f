//! `smolforge train-tokenizer`: a byte-level BPE of one's own text.

use smolforge_engine::config::TrainConfig;
use smolforge_engine::protocol::Command;

use super::drive;

/// Train a byte-level BPE tokenizer on text files
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,

    /// Entries of the vocabulary
    #[arg(long, value_name = "N", default_value_t = TrainConfig::default().tokenizer_vocab_size)]
    vocab_size: usize,

    /// tokenizer.json to write
    #[arg(long, value_name = "FILE", default_value = "tokenizer.json")]
    out: String,
}

impl Args {
    /// Trains; the engine names the file it wrote.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { files, vocab_size, out } = self;
        drive(Command::TrainTokenizer { files, vocab_size, out }, json, |_, _| Ok(()))
    }
}
