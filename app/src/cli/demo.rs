//! `smolforge demo`: the whole main job on text that the program writes itself.

use smolforge_engine::protocol::{Command, DeviceChoice};
use smolforge_engine::tasks::demo::{SEED, finetune};

use super::answers::Found;
use super::generate::Samples;
use super::{DEVICES, choice, drive, train};

/// Updates of the whole curriculum: some minutes on two CPU cores.
const STEPS: u32 = 600;

/// Run everything once, offline: corpora, tokenizer, five stages, evaluation, FP16 export, generation
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write into
    #[arg(long, value_name = "DIR", default_value = "smolforge-demo")]
    out: String,

    /// Where to compute
    #[arg(long, value_parser = choice::<DeviceChoice>(DEVICES), default_value = "auto")]
    device: DeviceChoice,

    /// Seed of corpora, weights and samples
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,

    /// Updates of the whole run, 600 where none are given; the curriculum is scaled to them
    #[arg(long, value_name = "N")]
    steps: Option<u32>,

    /// Fine-tune instead: a small base of 300 updates, LoRA on rows about a made-up machine, held-out questions before and after; goes on where it was stopped
    #[arg(long)]
    finetune: bool,

    /// Updates of the adapter
    #[arg(long, value_name = "N", default_value_t = finetune::UPDATES, requires = "finetune")]
    updates: u32,
}

impl Args {
    /// Runs the demo and shows it as `train` and `generate` show theirs.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { out, device, seed, steps, finetune: tunes, updates } = self;
        let steps = steps.unwrap_or(if tunes { finetune::STEPS } else { STEPS });
        if tunes {
            let mut found = Found::new(&["Before fine-tuning", "After fine-tuning"]);
            return drive(Command::DemoFinetune { out, device, seed, steps, updates }, json, |screen, event| {
                train::show(screen, event);
                found.show(screen, event)
            });
        }
        let mut samples = Samples::new(Vec::new(), 1, false);
        drive(Command::Demo { out, device, seed, steps }, json, |screen, event| {
            train::show(screen, event);
            samples.show(screen, event)
        })
    }
}
