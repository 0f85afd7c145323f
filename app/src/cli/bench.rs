//! `smolforge bench`: how fast this machine trains and generates.

use smolforge_engine::config::finetune::Method;
use smolforge_engine::protocol::{BenchRequest, Command, DeviceChoice, Event, Precision};

use super::table::Table;
use super::{DEVICES, choice, drive, is_last};
use crate::units::{bytes, duration, rate};

/// Measure a training step, prefill and decode
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shape of the model: a known one, or a config.json
    #[arg(long, value_name = "NAME", default_value = "smollm2-135m")]
    preset: String,

    /// Where to compute
    #[arg(long, value_parser = choice::<DeviceChoice>(DEVICES), default_value = "auto")]
    device: DeviceChoice,

    /// Arithmetic
    #[arg(long, value_parser = choice::<Precision>(&["auto", "f32", "mixed"]), default_value = "auto")]
    precision: Precision,

    /// What the step trains: full (all weights), lora (rank 16 on all linear layers) or qlora (the same over 4 bits)
    #[arg(long, value_parser = choice::<Method>(Method::WORDS), default_value = "full")]
    method: Method,

    /// Compute layers again for the gradients
    #[arg(long)]
    gradient_checkpointing: bool,

    /// Sequences in a step
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,

    /// Tokens in a sequence
    #[arg(long, value_name = "N", default_value_t = 128)]
    seq: usize,

    /// Timed repetitions of every phase
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,

    /// Tokens of the prefill; 0: skip [default: 512, or what the context leaves]
    #[arg(long, value_name = "N")]
    prefill: Option<usize>,

    /// Tokens to decode; 0: skip [default: 64]
    #[arg(long, value_name = "N")]
    decode: Option<usize>,

    /// Sequences to decode side by side as well; 1: skip
    #[arg(long, value_name = "N", default_value_t = 1)]
    rows: usize,
}

impl Args {
    /// Measures and prints a row per phase.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Self { preset, device, precision, method, gradient_checkpointing, batch, seq, repeats, prefill, decode, rows } = self;
        let request =
            BenchRequest { preset, device, precision, method, gradient_checkpointing, batch, seq, repeats, prefill, decode, rows };
        let mut table = Table::new(&["phase", ">median time", ">tokens/s", ">peak memory", ">on the device"]);
        let mut planned = 0;
        drive(Command::Bench(request), json, |screen, event| {
            if let Event::Bench { phase, secs, tokens_per_sec, peak_rss_bytes, device_bytes, planned_bytes, .. } = event {
                planned = *planned_bytes;
                let speed = if *tokens_per_sec > 0.0 { rate(*tokens_per_sec) } else { "–".into() };
                table.row([phase.clone(), duration(*secs), speed, bytes(*peak_rss_bytes), device_bytes.map_or("–".into(), bytes)]);
            }
            if is_last(event) && !table.is_empty() {
                screen.println(format!("{table}\na plan of the step names {} of memory", bytes(planned)))?;
            }
            Ok(())
        })
    }
}
