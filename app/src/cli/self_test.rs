//! `smolforge self-test`: does the device compute what it should?

use smolforge_engine::protocol::{Command, DeviceChoice, Event, KernelReport};

use super::table::Table;
use super::{DEVICES, choice, drive, is_last};

/// Run every kernel and op on a device against its definition
#[derive(Debug, clap::Args)]
#[command(after_help = "The exit code is 1 where one of them is off.")]
pub struct Args {
    /// Where to compute
    #[arg(long, value_parser = choice::<DeviceChoice>(DEVICES), default_value = "auto")]
    device: DeviceChoice,
}

impl Args {
    /// Prints a row per kernel and op.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let mut table = Table::new(&["", "kernel or op", ">largest error", ">tolerance"]);
        drive(Command::SelfTest { device: self.device }, json, |screen, event| {
            if let Event::Kernel(KernelReport { name, passed, max_error, tolerance }) = event {
                let error = if max_error.is_nan() { "did not run".into() } else { format!("{max_error:.1e}") };
                table.row([if *passed { "passed" } else { "FAILED" }.into(), name.clone(), error, format!("{tolerance:.0e}")]);
            }
            if is_last(event) && !table.is_empty() { screen.println(table.to_string()) } else { Ok(()) }
        })
    }
}
