//! What there is to compute on.

use egui::Ui;
use smolforge_engine::protocol::{Command, DeviceInfo};

use super::Ask;
use crate::session::Session;
use crate::theme;
use crate::units::limit;

/// The adapters, and which one `auto` takes and why.
pub fn show(ui: &mut Ui, session: &Session, asks: &mut Vec<Ask>) {
    ui.horizontal(|ui| {
        ui.heading("Devices");
        if ui.button("look again").clicked() {
            asks.push(Ask::Begin(Command::Devices));
        }
    });
    egui::ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| session.devices.iter().for_each(|device| card(ui, device)));
}

fn card(ui: &mut Ui, device: &DeviceInfo) {
    ui.add_space(theme::GAP);
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        ui.horizontal(|ui| {
            ui.strong(&device.name);
            if device.auto {
                ui.label("● what `auto` takes");
            }
        });
        ui.weak(&device.reason);
        egui::Grid::new((&device.name, &device.backend)).num_columns(2).show(ui, |ui| {
            let rows = [
                ("backend", device.backend.clone()),
                ("kind", device.kind.clone()),
                ("driver", device.driver.clone()),
                ("largest binding", limit(device.max_binding_bytes)),
                ("largest buffer", limit(device.max_buffer_bytes)),
                ("features", if device.features.is_empty() { "–".into() } else { device.features.join(", ") }),
            ];
            for (name, value) in rows {
                ui.weak(name);
                ui.label(value);
                ui.end_row();
            }
        });
    });
}
