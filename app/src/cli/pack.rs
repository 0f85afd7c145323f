//! `smolforge pack` and `smolforge unpack`: a run, a model or an adapter as one file, and back.

use std::path::Path;

use anyhow::bail;
use smolforge_engine::protocol::Command;

use super::drive;

/// Write the folder of a run, a model or an adapter as one .zip
#[derive(Debug, clap::Args)]
#[command(after_help = "The .zip of a run holds its checkpoints, its log and the tokens of its texts: it can be resumed anywhere. \
                  A fine-tuning run needs its rows and its base there, too.")]
pub struct PackArgs {
    /// Folder of the run, model or adapter
    folder: String,

    /// File to write
    #[arg(long, value_name = "ZIP")]
    out: String,
}

/// Make a folder of what `smolforge pack` wrote
#[derive(Debug, clap::Args)]
#[command(after_help = "Go on with an unpacked run: smolforge train --resume --out DIR, or smolforge finetune --resume --output-dir DIR")]
pub struct UnpackArgs {
    /// The .zip
    file: String,

    /// Folder to make
    #[arg(long, value_name = "DIR")]
    out: String,
}

impl PackArgs {
    /// Packs; the engine names what it wrote.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        if Path::new(&self.out).exists() {
            bail!("--out {}: exists already; choose another file", self.out);
        }
        drive(Command::Pack { folder: self.folder, out: self.out }, json, |_, _| Ok(()))
    }
}

impl UnpackArgs {
    /// Unpacks; the engine names what it wrote.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        drive(Command::Unpack { file: self.file, out: self.out }, json, |_, _| Ok(()))
    }
}
