//! `smolforge export`: a checkpoint of a run as a Hugging Face folder.

use smolforge_engine::protocol::{Command, ExportDtype};

use super::{choice, drive};

/// Write a checkpoint of a run as a Hugging Face folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the run
    #[arg(long, value_name = "DIR")]
    run: String,

    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: String,

    /// Type of the stored numbers
    #[arg(long, value_parser = choice::<ExportDtype>(&["f16", "f32"]), default_value = "f16")]
    dtype: ExportDtype,

    /// Which checkpoint: last, best or the number of a step
    #[arg(long, value_name = "N|best|last", value_parser = checkpoint, default_value = "last")]
    step: String,
}

impl Args {
    /// Exports; the engine names what it wrote.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { run, out, dtype, step: checkpoint } = self;
        drive(Command::Export { run, out, dtype, checkpoint }, json, |_, _| Ok(()))
    }
}

fn checkpoint(text: &str) -> Result<String, String> {
    match text {
        "last" | "best" => Ok(text.into()),
        step => match step.parse::<u32>() {
            Ok(step) => Ok(step.to_string()),
            Err(_) => Err("expected last, best or the number of a step".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_words_or_steps() {
        for (text, expect) in [("last", Some("last")), ("best", Some("best")), ("0500", Some("500")), ("-1", None), ("new", None)] {
            assert_eq!(checkpoint(text).ok().as_deref(), expect, "{text}");
        }
    }
}
