//! What there is to compute on, and whether it computes what it should.

use std::time::Duration;

use egui::{ComboBox, Grid, Id, Response, RichText, ScrollArea, Ui};
use smolforge_engine::protocol::{Command, DeviceChoice, DeviceInfo, MemoryReport};

use super::Ask;
use crate::forms::Forms;
use crate::session::{JobState, Session};
use crate::theme;
use crate::units::{bytes, limit};

/// Width from which on cards stand in two columns.
const TWO_COLUMNS: f32 = 800.0;

/// How often memory is looked at.
const MEMORY_EVERY_SECS: f64 = 1.0;

/// The adapters, which one `auto` takes and why, and the self-test.
pub fn show(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    ui.horizontal(|ui| {
        ui.heading("Devices");
        if ui.button("look again").clicked() {
            asks.push(Ask::Begin(Command::Devices { test: true }));
        }
    });
    ScrollArea::vertical().auto_shrink([false, false]).show(ui, |ui| {
        memory(ui, session, asks);
        let columns = if ui.available_width() > TWO_COLUMNS { 2 } else { 1 };
        ui.columns(columns, |columns| {
            let number = columns.len();
            session.devices.iter().enumerate().for_each(|(place, device)| card(&mut columns[place % number], device));
        });
        ui.add_space(2.0 * theme::GAP);
        self_test(ui, session, &mut forms.test_device, asks);
    });
}

/// Memory in use, asked for again and again while it is in sight.
fn memory(ui: &mut Ui, session: &Session, asks: &mut Vec<Ask>) {
    let (id, now) = (Id::unique("memory"), ui.input(|input| input.time));
    let asked = ui.data(|data| data.get_temp::<f64>(id));
    let answered = session.active(|command| matches!(command, Command::Memory)).is_none();
    if answered && asked.is_none_or(|asked| now - asked >= MEMORY_EVERY_SECS) {
        ui.data_mut(|data| data.insert_temp(id, now));
        asks.push(Ask::Begin(Command::Memory));
    }
    ui.ctx().request_repaint_after(Duration::from_secs_f64(MEMORY_EVERY_SECS));
    let Some(MemoryReport { process_bytes, device_bytes, device_reserved_bytes }) = session.memory else { return };
    let device = device_bytes.zip(device_reserved_bytes);
    let device = device.map(|(used, taken)| format!("graphics device {} in tensors, {} taken", bytes(used), bytes(taken)));
    let text = [Some(format!("engine {}", limit(process_bytes))), device].into_iter().flatten().collect::<Vec<_>>().join(" · ");
    ui.label(format!("Memory in use: {text}"));
}

fn card(ui: &mut Ui, device: &DeviceInfo) {
    ui.add_space(theme::GAP);
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        ui.horizontal_wrapped(|ui| {
            ui.strong(&device.name);
            if device.auto {
                ui.label("● what `auto` takes");
            }
        });
        ui.weak(&device.reason);
        Grid::new((&device.name, &device.backend)).num_columns(2).show(ui, |ui| {
            let rows = [
                ("backend", device.backend.clone()),
                ("kind", device.kind.clone()),
                ("driver", device.driver.clone()),
                ("largest binding", limit(device.max_binding_bytes)),
                ("largest buffer", limit(device.max_buffer_bytes)),
                ("matrix products", if device.products.is_empty() { "–".into() } else { device.products.join(", ") }),
                ("features", if device.features.is_empty() { "–".into() } else { device.features.join(", ") }),
            ];
            for (name, value) in rows {
                ui.weak(name);
                ui.add(egui::Label::new(value).wrap());
                ui.end_row();
            }
        });
    });
}

/// Every kernel against its definition, on the device of choice.
fn self_test(ui: &mut Ui, session: &Session, device: &mut DeviceChoice, asks: &mut Vec<Ask>) {
    ui.heading("Self-test");
    ui.weak("Runs every kernel on a device and compares the numbers with those of its definition.");
    let last = session.last(|command| matches!(command, Command::SelfTest { .. }));
    let running = last.is_some_and(|job| matches!(job.state, JobState::Waiting(_) | JobState::Running));
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("on");
        choose_device(ui, "test device", device).labelled_by(label.id);
        if ui.add_enabled(!running, egui::Button::new("run the self-test")).clicked() {
            asks.push(Ask::Begin(Command::SelfTest { device: *device }));
        }
        if running {
            ui.spinner();
            if session.training().is_some() {
                ui.weak("waits for the run in progress");
            }
        }
    });
    let (good, bad) = (theme::good(ui.visuals().dark_mode), theme::error(ui.visuals().dark_mode));
    if let Some(JobState::Failed(why)) = last.map(|job| &job.state) {
        ui.colored_label(bad, format!("error: {why}"));
    }
    if session.kernels.is_empty() {
        return;
    }
    let passed = session.kernels.iter().filter(|kernel| kernel.passed).count();
    let all = passed == session.kernels.len();
    ui.colored_label(if all { good } else { bad }, format!("{passed} of {} pass", session.kernels.len()));
    Grid::new("kernels").num_columns(4).striped(true).show(ui, |ui| {
        ["kernel", "", "largest error", "tolerance"].into_iter().for_each(|title| drop(ui.weak(title)));
        ui.end_row();
        for kernel in &session.kernels {
            ui.label(&kernel.name);
            ui.label(if kernel.passed { RichText::new("pass").color(good) } else { RichText::new("fail").color(bad).strong() });
            ui.label(format!("{:.1e}", kernel.max_error));
            ui.label(format!("{:.0e}", kernel.tolerance));
            ui.end_row();
        }
    });
}

/// A menu of the kinds of devices.
pub fn choose_device(ui: &mut Ui, id: &str, device: &mut DeviceChoice) -> Response {
    let menu = ComboBox::from_id_salt(id).selected_text(word(*device)).show_ui(ui, |ui| {
        for choice in [DeviceChoice::Auto, DeviceChoice::Gpu, DeviceChoice::Cpu] {
            ui.selectable_value(device, choice, word(choice));
        }
    });
    menu.response
}

fn word(choice: DeviceChoice) -> &'static str {
    match choice {
        DeviceChoice::Auto => "auto",
        DeviceChoice::Gpu => "gpu",
        DeviceChoice::Cpu => "cpu",
    }
}
