//! Texts, their mix, the configuration of a run, and the run in progress.

use std::sync::LazyLock;

use egui::{RichText, ScrollArea, Ui};
use serde_json::Value;
use smolforge_engine::config::{FIELDS, TrainConfig};
use smolforge_engine::protocol::{Command, DeviceChoice, JobId};

use super::fields::Fields;
use super::{Ask, START, jobs, mix, plan, pressed, sources, with_keys};
use crate::files::Picker;
use crate::forms::{Forms, Tab};
use crate::session::{Job, Session};
use crate::theme;

/// Updates of the demo run: a minute or two on two CPU cores.
const DEMO_STEPS: u32 = 600;

/// Values of the keys that nobody has changed.
static DEFAULTS: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(TrainConfig::default()).unwrap_or_default());

/// The left side: what to train on, and how.
pub fn form(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    let busy = session.training();
    controls(ui, session, forms, busy, asks);
    ui.separator();
    sources::preview(ui, session, forms, asks);
    ScrollArea::vertical().id_salt("form").auto_shrink([false, false]).show(ui, |ui| {
        if session.tunes() {
            ui.weak("A model is being fine-tuned: the next run");
        } else if let (Some((job, _)), Some(live)) = (busy, &session.live) {
            ui.strong("Mix of this run");
            mix::running(ui, session, live, job, &mut forms.reweight, asks);
            ui.separator();
            ui.weak("The next run");
        } else {
            forms.reweight = None;
        }
        ui.add_enabled_ui(busy.is_none(), |ui| {
            ui.strong("Texts");
            sources::show(ui, session, forms, picker, asks);
            ui.add_space(theme::GAP);
            ui.strong("Mix");
            mix::show(ui, session, &mut forms.train);
            planned(ui, session, forms, asks);
            ui.add_space(theme::GAP);
            let Forms { train, drafts, .. } = forms;
            let values = serde_json::to_value(&*train).unwrap_or_default();
            let set = &mut |key: &str, text: &str| train.set(key, text).map_err(|error| error.to_string());
            let mut fields = Fields { fields: FIELDS, values, defaults: &DEFAULTS, drafts, picker, set };
            fields.groups(ui, &["Run", "Model", "Batch", "Optimizer"], &["sources", "data_stages", "mix_changes"]);
        });
    });
}

/// The last plan, and a way to make the run fit.
fn planned(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    let Some((config, plan)) = &session.plan else { return };
    if let Some(suggestion) = plan::show(ui, plan, *config == forms.train) {
        plan::apply(suggestion, &mut forms.drafts, |key, text| forms.train.set(key, text));
        asks.push(Ask::Begin(Command::Plan { config: Box::new(forms.train.clone()), budget_bytes: None }));
    }
}

fn controls(ui: &mut Ui, session: &Session, forms: &Forms, busy: Option<(JobId, &Job)>, asks: &mut Vec<Ask>) {
    ui.horizontal_wrapped(|ui| match busy {
        Some((id, job)) => jobs::controls(ui, id, job, asks),
        None => {
            let wrong = forms.drafts.values().any(|(_, why)| why.is_some());
            let ready = !forms.train.sources.is_empty() && !wrong;
            let why_not = if wrong { "A value below is not one yet" } else { "Add texts first" };
            let start = ui.add_enabled(ready, egui::Button::new(RichText::new("▶ train").strong()));
            let start = start.on_hover_text(with_keys(ui, "Starts the run", &START));
            if start.on_disabled_hover_text(why_not).clicked() || (ready && pressed(ui, &START)) {
                asks.push(Ask::Begin(Command::Train { config: Box::new(forms.train.clone()), resume: false }));
            }
            let planning = session.active(|command| matches!(command, Command::Plan { .. })).is_some();
            let plan = ui
                .add_enabled(ready && !planning, egui::Button::new("plan"))
                .on_hover_text("Memory, passes over the texts and time, before it starts");
            if plan.clicked() {
                asks.push(Ask::Begin(Command::Plan { config: Box::new(forms.train.clone()), budget_bytes: None }));
            }
            if ui.button("demo").on_hover_text("A small run on texts that the program writes itself").clicked() {
                asks.push(demo(session));
            }
            if planning {
                ui.spinner();
            }
        }
    });
    jobs::progress(ui, session);
}

/// A demo in a folder of its own.
fn demo(session: &Session) -> Ask {
    let taken = |out: &str| session.runs.iter().flatten().any(|run| run.path.starts_with(&format!("{out}/")));
    let names = (1..).map(|number| if number == 1 { "runs/demo".to_string() } else { format!("runs/demo-{number}") });
    let out = names.into_iter().find(|out| !taken(out)).expect("numbers do not end");
    Ask::Begin(Command::Demo { out, device: DeviceChoice::Auto, seed: 1337, steps: DEMO_STEPS })
}

/// The right side: the run in progress, or how to begin.
pub fn progress(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    if jobs::live(ui, session, false, &mut forms.plots) {
        return;
    }
    match session.tunes() {
        true => jobs::elsewhere(ui, forms, Tab::Tune),
        false => welcome(ui, session, asks),
    }
}

fn welcome(ui: &mut Ui, session: &Session, asks: &mut Vec<Ask>) {
    ui.vertical_centered(|ui| {
        ui.add_space(ui.available_height() * 0.22);
        ui.heading("smolforge");
        ui.label("Train small language models on this machine, and watch them learn.");
        ui.add_space(2.0 * theme::GAP);
        let idle = session.training().is_none();
        let button = ui.add_enabled(idle, egui::Button::new(RichText::new("▶  Run the demo").size(18.0)));
        // Where the form has no texts the keys that start a run are free.
        if button.on_hover_text(with_keys(ui, "Starts the demo", &START)).clicked() || (idle && pressed(ui, &START)) {
            asks.push(demo(session));
        }
        ui.weak("It writes three small texts, trains a model of about a million parameters on them in five stages, and lets it write.");
        ui.weak("No files, no network, a minute or two.");
        ui.add_space(2.0 * theme::GAP);
        ui.label("Or add texts of your own, and press train.");
    });
}
