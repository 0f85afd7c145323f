//! `smolforge demo`: the whole main job on text that the program writes itself.

use smolforge_engine::protocol::{Command, DeviceChoice};
use smolforge_engine::tasks::demo::{SEED, finetune, task};

use super::answers::Found;
use super::generate::Samples;
use super::task::show::Teller;
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

    /// Reason instead: a small student and a larger teacher of 600 updates each, then the whole of a task with three seeds: worked examples, answers (SFT), the teacher's right reasoning (RFT); goes on where it was stopped
    #[arg(long, conflicts_with = "finetune")]
    task: bool,

    /// Updates of the adapter
    #[arg(long, value_name = "N", default_value_t = finetune::UPDATES, requires = "finetune")]
    updates: u32,
}

impl Args {
    /// Runs the demo and shows it as `train` and `generate` show theirs.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { out, device, seed, steps, finetune: tunes, task: reasons, updates } = self;
        let steps = steps.unwrap_or(match (tunes, reasons) {
            (true, _) => finetune::STEPS,
            (_, true) => task::STEPS,
            _ => STEPS,
        });
        if reasons {
            let mut teller = Teller::default();
            return drive(Command::DemoTask { out, device, seed, steps }, json, |screen, event| teller.show(screen, event));
        }
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
