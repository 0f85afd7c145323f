//! `smolforge demo`: the whole main job on text that the program writes itself.

use smolforge_engine::protocol::{Command, DeviceChoice};

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
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,

    /// Updates of the whole run; the curriculum is scaled to them
    #[arg(long, value_name = "N", default_value_t = STEPS)]
    steps: u32,
}

impl Args {
    /// Runs the demo and shows it as `train` and `generate` show theirs.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { out, device, seed, steps } = self;
        let mut samples = Samples::new(Vec::new(), 1, false);
        drive(Command::Demo { out, device, seed, steps }, json, |screen, event| {
            train::show(screen, event);
            samples.show(screen, event)
        })
    }
}
