//! `smolforge finetune`: teach a model by examples, with an adapter or all of its weights.

use smolforge_engine::protocol::Command;

use super::drive;
use super::flags::FinetuneFlags;
use super::train::show;

/// Fine-tune a model on chats, instructions or completions: LoRA, QLoRA, or all weights
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Values: defaults, then CONFIG, then flags. CONFIG has the sections huggingface, qlora and training, or none.\nCtrl-C saves and prints how to go on."
)]
pub struct Args {
    /// YAML file with any of the keys below (`r: 16`)
    config: Option<String>,

    /// Continue the run in --output-dir from its last good checkpoint, with the configuration frozen there
    #[arg(long)]
    resume: bool,

    #[command(flatten)]
    flags: FinetuneFlags,
}

impl Args {
    /// Fine-tunes, and shows epochs, losses, evaluations and answers.
    pub fn run(&self, json: bool) -> anyhow::Result<()> {
        let (config, notes) = self.flags.config(self.config.as_deref(), self.resume)?;
        drive(Command::Finetune { config: Box::new(config), notes, resume: self.resume }, json, |screen, event| {
            show(screen, event);
            Ok(())
        })
    }
}
