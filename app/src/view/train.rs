//! Texts, their mix, the configuration of a run, and the run in progress.

use std::sync::LazyLock;

use egui::{ComboBox, RichText, ScrollArea, TextEdit, Ui};
use serde_json::Value;
use smolforge_engine::config::{FIELDS, Field, TrainConfig};
use smolforge_engine::protocol::{Command, DeviceChoice, JobId};

use super::{Ask, SAVE, START, STOP, mix, plain, plan, pressed, run, sources, with_keys};
use crate::files::{Pick, Picker};
use crate::forms::Forms;
use crate::session::{Job, JobState, Session};
use crate::theme;
use crate::units::amount;

/// Updates of the demo run: a minute or two on two CPU cores.
const DEMO_STEPS: u32 = 600;

/// Values of the keys that nobody has changed.
static DEFAULTS: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(TrainConfig::default()).unwrap_or_default());

/// Words of the keys that take one of a few.
fn words(key: &str) -> &'static [&'static str] {
    match key {
        "device" => &["auto", "gpu", "cpu"],
        "precision" => &["auto", "f32", "mixed"],
        "preset" => smolforge_engine::model::config::PRESETS,
        _ => &[],
    }
}

/// The left side: what to train on, and how.
pub fn form(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    let busy = session.training();
    controls(ui, session, forms, busy, asks);
    ui.separator();
    sources::preview(ui, session, forms, asks);
    ScrollArea::vertical().id_salt("form").auto_shrink([false, false]).show(ui, |ui| {
        if let (Some((job, _)), Some(live)) = (busy, &session.live) {
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
            plan::show(ui, session, forms, asks);
            ui.add_space(theme::GAP);
            let values = serde_json::to_value(&forms.train).unwrap_or_default();
            let mut groups: Vec<&str> = FIELDS.iter().map(|field| field.group).collect();
            groups.dedup();
            for group in groups {
                let open = matches!(group, "Run" | "Model" | "Batch" | "Optimizer");
                egui::CollapsingHeader::new(group).default_open(open).show(ui, |ui| {
                    egui::Grid::new(group).num_columns(2).min_col_width(130.0).show(ui, |ui| {
                        let shown =
                            |field: &&Field| field.group == group && !matches!(field.name, "sources" | "data_stages" | "mix_changes");
                        for field in FIELDS.iter().filter(shown) {
                            row(ui, field, &values[field.name], &DEFAULTS[field.name], forms, picker);
                            ui.end_row();
                        }
                    });
                });
            }
        });
    });
}

fn controls(ui: &mut Ui, session: &Session, forms: &Forms, busy: Option<(JobId, &Job)>, asks: &mut Vec<Ask>) {
    ui.horizontal_wrapped(|ui| match busy {
        Some((id, job)) => {
            let (label, command) = if job.paused { ("▶ go on", Command::Continue) } else { ("pause", Command::Pause) };
            if ui.add_enabled(!job.stopping && job.state == JobState::Running, egui::Button::new(label)).clicked() {
                asks.push(Ask::Tell(id, command));
            }
            let runs = !job.stopping && !job.paused && job.state == JobState::Running;
            let save = ui.add_enabled(runs, egui::Button::new("save")).on_disabled_hover_text("The run must be going on for that");
            let save = save.on_hover_text(with_keys(ui, "Writes a checkpoint after this step and goes on", &SAVE));
            if save.clicked() || (runs && pressed(ui, &SAVE)) {
                asks.push(Ask::Tell(id, Command::Save));
            }
            let stop = ui.add_enabled(!job.stopping, egui::Button::new("stop and save"));
            let help = with_keys(ui, "Finishes the micro-batch and saves; the run can go on later", &STOP);
            if stop.on_hover_text(help).clicked() || (!job.stopping && pressed(ui, &STOP)) {
                asks.push(Ask::Tell(id, Command::Stop));
            }
            match (&job.state, job.stopping) {
                (_, true) => drop(ui.spinner()),
                (JobState::Waiting(before), _) if *before > 0 => drop(ui.weak(format!("waits for {before}"))),
                _ => {}
            }
        }
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
    let progress = session.jobs.values().rev().find_map(|job| job.progress.as_ref().filter(|_| job.state == JobState::Running));
    if let Some((task, done, total, unit)) = progress {
        let share = *done as f32 / (*total).max(1) as f32;
        ui.add(egui::ProgressBar::new(share).text(format!("{task}: {} of {}", amount(*done, unit), amount(*total, unit))));
    }
}

/// A demo in a folder of its own.
fn demo(session: &Session) -> Ask {
    let taken = |out: &str| session.runs.iter().flatten().any(|run| run.path.starts_with(&format!("{out}/")));
    let names = (1..).map(|number| if number == 1 { "runs/demo".to_string() } else { format!("runs/demo-{number}") });
    let out = names.into_iter().find(|out| !taken(out)).expect("numbers do not end");
    Ask::Begin(Command::Demo { out, device: DeviceChoice::Auto, seed: 1337, steps: DEMO_STEPS })
}

/// A key: its name, its value, and a way back to the default.
fn row(ui: &mut Ui, field: &Field, value: &Value, default: &Value, forms: &mut Forms, picker: &Picker) {
    let text = |value: &Value| if value.is_null() { String::new() } else { plain(value) };
    let changed = value != default;
    let name = field.name.replace('_', " ");
    let label = if changed { RichText::new(name).strong() } else { RichText::new(name) };
    let label = ui.label(label).on_hover_text(field.help);
    ui.horizontal(|ui| {
        let mut typed = forms.drafts.get(field.name).map_or_else(|| text(value), |(draft, _)| draft.clone());
        let before = typed.clone();
        let choices = words(field.name);
        if choices.is_empty() {
            let width = if value.is_number() { 80.0 } else { 150.0 };
            let hint = if default.is_null() { "–" } else { "" };
            ui.add(TextEdit::singleline(&mut typed).desired_width(width).hint_text(hint)).labelled_by(label.id);
        } else {
            let menu = ComboBox::from_id_salt(field.name).selected_text(&typed).show_ui(ui, |ui| {
                choices.iter().for_each(|word| drop(ui.selectable_value(&mut typed, word.to_string(), *word)));
            });
            menu.response.labelled_by(label.id);
        }
        let pick = match field.name {
            "tokenizer" => Some(Pick::Tokenizer),
            "init" => Some(Pick::Init),
            _ => None,
        };
        if let Some(pick) = pick.filter(|_| ui.small_button("…").clicked()) {
            picker.open(pick);
        }
        if changed
            && ui
                .small_button("↺")
                .on_hover_text(format!("Back to {}", if default.is_null() { "nothing".into() } else { text(default) }))
                .clicked()
        {
            typed = text(default);
        }
        if typed != before {
            let empty = typed.is_empty() && default.is_null();
            let set = forms.train.set(field.name, if empty { "null" } else { &typed });
            match set {
                Ok(()) => drop(forms.drafts.remove(field.name)),
                Err(error) => drop(forms.drafts.insert(field.name, (typed, Some(error.to_string())))),
            }
        }
    });
    if let Some((typed, Some(why))) = forms.drafts.get(field.name) {
        let why = why.split_once(&format!("{typed}: ")).map_or(why.as_str(), |(_, why)| why); // the field shows the rest
        ui.end_row();
        ui.label("");
        ui.add(egui::Label::new(RichText::new(why).small().color(theme::error(ui.visuals().dark_mode))).wrap());
    }
}

/// The right side: the run in progress, or how to begin.
pub fn progress(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    match session.live.as_ref().filter(|run| run.info.is_some() || session.training().is_some()) {
        Some(live) => {
            ScrollArea::vertical().id_salt("live").auto_shrink([false, false]).show(ui, |ui| {
                if live.steps.moments.is_empty() && session.training().is_some() {
                    ui.horizontal(|ui| {
                        ui.spinner();
                        ui.label("reading texts and preparing the model …");
                    });
                }
                if let Some((_, job)) = session.training().filter(|(_, job)| job.paused) {
                    ui.weak(if job.stopping { "stopping" } else { "paused" });
                }
                run::show(ui, "this run", live, &mut forms.plots);
            });
        }
        None => welcome(ui, session, asks),
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
