//! `smolforge devices`: what there is to compute on, and what `auto` takes.

use smolforge_engine::protocol::{Command, DeviceInfo, Event};

use super::table::Table;
use super::{drive, is_last};
use crate::units::limit;

/// List the adapters, their limits, and which one `--device auto` takes and why
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Prints a row per adapter, then what else is to say about each.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let mut devices: Vec<DeviceInfo> = Vec::new();
        drive(Command::Devices { test: true }, json, |screen, event| {
            if let Event::Device(device) = event {
                devices.push(device.clone());
            }
            if !is_last(event) || devices.is_empty() {
                return Ok(());
            }
            let mut table = Table::new(&["", "name", "kind", "backend", ">largest binding", ">largest buffer", "driver"]);
            for device in &devices {
                table.row([
                    if device.auto { "*" } else { "" }.into(),
                    device.name.clone(),
                    device.kind.clone(),
                    device.backend.clone(),
                    limit(device.max_binding_bytes),
                    limit(device.max_buffer_bytes),
                    device.driver.clone(),
                ]);
            }
            screen.println(format!("{table}\n\n* is what --device auto takes"))?;
            for device in &devices {
                screen.println(format!("\n{}: {}", device.name, device.reason))?;
                if !device.features.is_empty() {
                    screen.println(format!("  features: {}", device.features.join(", ")))?;
                }
                if !device.products.is_empty() {
                    screen.println(format!("  matrix products: {}", device.products.join(", ")))?;
                }
            }
            Ok(())
        })
    }
}
