//! What is wanted of a task: roles, questions, ranks and limits; and the steps that people begin.

use std::sync::LazyLock;

use egui::{Grid, RichText, Slider, TextEdit, Ui};
use serde_json::Value;
use smolforge_engine::config::reason::REASON_FIELDS;
use smolforge_engine::model::fetch::NOT_HERE;
use smolforge_engine::protocol::{Command, JobId, ReasonConfig, ReasonVerb, RunState};

use super::{begin, scrolled};
use crate::files::{Pick, Picker};
use crate::forms::{Reason, ReasonPart};
use crate::session::{Job, Session};
use crate::theme;
use crate::view::fields::Fields;
use crate::view::generate::model;
use crate::view::{Ask, START, jobs, named, pressed, tune, with_keys};

/// Values of the keys that nobody has changed.
static DEFAULTS: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(ReasonConfig::default()).unwrap_or_default());

/// Keys that have a place of their own above the others.
const OWN: [&str; 13] = [
    "student",
    "teacher",
    "out",
    "train_file",
    "valid_file",
    "oversample",
    "temperature",
    "keep",
    "sft_r",
    "rft_r",
    "max_params",
    "max_adapter_mb",
    "max_zip_mb",
];

/// The left side: the steps, and what they need.
pub fn form(ui: &mut Ui, session: &Session, reason: &mut Reason, picker: &Picker, asks: &mut Vec<Ask>) {
    let busy = session.reasoning();
    controls(ui, session, reason, busy, asks);
    if reason.bundling && busy.is_none() {
        bundle(ui, reason, picker, asks);
    }
    ui.separator();
    for (role, model) in [("student", &reason.config.student), ("teacher", &reason.config.teacher)] {
        ui.push_id(role, |ui| tune::describe(ui, session, model, asks));
    }
    scrolled(ui, "form", |ui| {
        if busy.is_some() {
            ui.weak("The next step");
        }
        ui.add_enabled_ui(busy.is_none(), |ui| {
            ui.strong("Student");
            role(ui, session, "student", &mut reason.config.student, picker);
            ui.strong("Teacher");
            role(ui, session, "teacher", &mut reason.config.teacher, picker);
            ui.add_space(theme::GAP);
            ui.strong("Folder and questions");
            fields(reason, picker, |fields| grid(ui, fields, &["out", "train_file", "valid_file"]));
            if reason.config.train_file.is_none() || reason.config.valid_file.is_none() {
                ui.weak("Without a file questions are made.");
            }
            ui.add_space(theme::GAP);
            ui.strong("Rollouts");
            Grid::new("temperature").num_columns(2).min_col_width(130.0).show(ui, |ui| {
                let label = ui.label("temperature").on_hover_text("Higher: samples differ more; 0: they are all the same");
                let slider = Slider::new(&mut reason.config.temperature, 0.0..=2.0).step_by(0.05).fixed_decimals(2);
                ui.add(slider).labelled_by(label.id);
                ui.end_row();
            });
            fields(reason, picker, |fields| grid(ui, fields, &["oversample", "keep"]));
            ui.add_space(theme::GAP);
            ui.strong("Ranks and caps");
            fields(reason, picker, |fields| grid(ui, fields, &["sft_r", "rft_r", "max_params", "max_adapter_mb", "max_zip_mb"]));
            ui.add_space(theme::GAP);
            fields(reason, picker, |fields| fields.groups(ui, &[], &OWN));
            ui.add_space(2.0 * theme::GAP); // the last field stands clear of the edge
        });
    });
}

/// The keys of the form as fields.
fn fields(reason: &mut Reason, picker: &Picker, draw: impl FnOnce(&mut Fields<'_>)) {
    let Reason { config, drafts, .. } = reason;
    let values = serde_json::to_value(&*config).unwrap_or_default();
    let set = &mut |key: &str, text: &str| config.set(key, text).map_err(|error| error.to_string());
    draw(&mut Fields { fields: REASON_FIELDS, values, defaults: &DEFAULTS, drafts, picker, set });
}

/// Some keys below one another.
fn grid(ui: &mut Ui, fields: &mut Fields<'_>, keys: &[&'static str]) {
    Grid::new(keys).num_columns(2).min_col_width(130.0).show(ui, |ui| keys.iter().for_each(|key| fields.named(ui, key)));
}

/// A model in its role, and what it is.
fn role(ui: &mut Ui, session: &Session, name: &'static str, chosen: &mut String, picker: &Picker) {
    if let Some(pick) = model(ui, name, chosen, session, Some(Pick::Folder(name))) {
        picker.open(pick);
    }
    match session.unknown(chosen) {
        Some(why) if why.ends_with(NOT_HERE) => drop(ui.small("It is not on this machine yet: the step that needs it downloads it.")),
        _ => tune::description(ui, session, chosen),
    }
}

/// A step of the task, as a button.
struct Step {
    label: &'static str,
    help: String,
    /// Where its outcome is seen.
    part: ReasonPart,
    verb: ReasonVerb,
}

/// The steps in their order.
fn steps(session: &Session, reason: &Reason) -> [Step; 6] {
    let [sft, rft, rows] = ["sft", "rft", "rft.json"].map(|name| reason.at(name));
    let (train, valid) = (reason.train(), reason.valid());
    let goes_on = |out: &str| {
        let mut runs = session.runs.iter().flatten();
        runs.any(|run| run.path == out && run.state != RunState::Finished)
    };
    let test = reason.tested().map(|file| format!("; it is tested with {file} at the end")).unwrap_or_default();
    let learning = |what: &str, out: &str| {
        let learned = if goes_on(out) { format!("Goes on with {out}") } else { format!("{what} into {out}") };
        learned + &test
    };
    let step = |label, help, part, verb| Step { label, help, part, verb };
    [
        step(
            "make questions",
            format!("Writes {} and {}", reason.at("train.json"), reason.at("valid.json")),
            ReasonPart::Funnel,
            ReasonVerb::MakeData { out: reason.config.out.clone() },
        ),
        step("test (CoT)", "Asks the student after worked examples".into(), ReasonPart::Tests, ReasonVerb::Cot { data: valid.clone() }),
        step(
            "learn answers (SFT)",
            learning("An adapter of questions with their answers", &sft),
            ReasonPart::Run,
            ReasonVerb::Sft { data: train.clone(), resume: goes_on(&sft), out: sft.clone() },
        ),
        step(
            "roll out",
            format!("The teacher answers every question several times; what is right goes into {rows}"),
            ReasonPart::Funnel,
            ReasonVerb::Rollout { data: train, out: rows.clone() },
        ),
        step(
            "learn reasoning (RFT)",
            learning("An adapter of questions with their reasoning", &rft),
            ReasonPart::Run,
            ReasonVerb::Rft { data: rows, resume: goes_on(&rft), out: rft.clone() },
        ),
        step(
            "grade",
            "Points of both adapters".into(),
            ReasonPart::Grade,
            ReasonVerb::Grade { data: valid, submission: None, sft: Some(sft), rft: Some(rft) },
        ),
    ]
}

/// The steps, or what the one in progress can be told.
fn controls(ui: &mut Ui, session: &Session, reason: &mut Reason, busy: Option<(JobId, &Job)>, asks: &mut Vec<Ask>) {
    ui.horizontal_wrapped(|ui| match busy {
        Some((id, job)) => {
            jobs::controls(ui, id, job, asks);
            ui.weak(doing(&job.command));
        }
        None => {
            let why_not = why_not(reason);
            let ready = why_not.is_none();
            let why_not = why_not.unwrap_or_default();
            let all = ui.add_enabled(ready, egui::Button::new(RichText::new("▶ run all").strong())).on_disabled_hover_text(&why_not);
            let all = all.on_hover_text(with_keys(ui, "All steps in order; what is done already is left out", &START));
            // Among the rejects the keys keep what was written.
            if all.clicked() || (ready && reason.part != ReasonPart::Rejects && pressed(ui, &START)) {
                asks.push(begin(&reason.config, ReasonVerb::Run));
                reason.part = ReasonPart::Funnel;
            }
            for Step { label, help, part, verb } in steps(session, reason) {
                let button = ui.add_enabled(ready, egui::Button::new(label)).on_disabled_hover_text(&why_not);
                if button.on_hover_text(help).clicked() {
                    asks.push(begin_tested(reason, verb));
                    reason.part = part;
                }
            }
            let more = egui::Button::new("bundle …").selected(reason.bundling);
            let points = if reason.tested().is_some() { ", and its points" } else { "" };
            if ui.add(more).on_hover_text(format!("Both adapters as one .zip{points}")).clicked() {
                reason.bundling = !reason.bundling;
            }
        }
    });
    jobs::progress(ui, session);
}

/// Begins a step; what it makes is tested at its end where there are questions for that.
fn begin_tested(reason: &Reason, verb: ReasonVerb) -> Ask {
    let makes = matches!(verb, ReasonVerb::Sft { .. } | ReasonVerb::Rft { .. } | ReasonVerb::Bundle { .. });
    let valid_file = if makes { reason.tested() } else { reason.config.valid_file.clone() };
    begin(&ReasonConfig { valid_file, ..reason.config.clone() }, verb)
}

/// What a job does, in a few words.
fn doing(command: &Command) -> &'static str {
    let Command::Reason { verb, .. } = command else { return "" };
    match verb {
        ReasonVerb::MakeData { .. } => "making questions",
        ReasonVerb::Cot { .. } | ReasonVerb::Test { .. } => "testing",
        ReasonVerb::Sft { .. } => "learning answers",
        ReasonVerb::Rollout { .. } => "rolling out",
        ReasonVerb::Rejects { .. } | ReasonVerb::Mend { .. } => "mending",
        ReasonVerb::Rft { .. } => "learning reasoning",
        ReasonVerb::Grade { .. } => "grading",
        ReasonVerb::Bundle { .. } => "bundling",
        ReasonVerb::Run => "running all steps",
    }
}

/// Why no step can begin.
fn why_not(reason: &Reason) -> Option<String> {
    for (role, model) in [("student", &reason.config.student), ("teacher", &reason.config.teacher)] {
        if model.trim().is_empty() {
            return Some(format!("Choose a {role} first"));
        }
    }
    if reason.drafts.values().any(|(_, why)| why.is_some()) {
        return Some("A value below is not one yet".into());
    }
    reason.config.validate().err().map(|error| error.to_string())
}

/// What goes into a bundle, and what it is worth.
fn bundle(ui: &mut Ui, reason: &mut Reason, picker: &Picker, asks: &mut Vec<Ask>) {
    let out = reason.at("submission.zip");
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        ui.horizontal(|ui| {
            ui.label("with the files of").on_hover_text("Such as a course's Python files; they go along as they are");
            let width = (ui.available_width() - 40.0).max(80.0);
            let edit = ui.add(TextEdit::singleline(&mut reason.folder).desired_width(width).hint_text("no folder"));
            named(&edit, "folder that goes along", &reason.folder);
            if ui.button("…").on_hover_text("Choose a folder").clicked() {
                picker.open(Pick::Folder("folder"));
            }
        });
        let why_not = why_not(reason);
        let (ready, why_not) = (why_not.is_none(), why_not.unwrap_or_default());
        ui.horizontal_wrapped(|ui| {
            let write = ui.add_enabled(ready, egui::Button::new("write the bundle")).on_disabled_hover_text(&why_not);
            let graded = reason.tested().map(|file| format!(", and grades it with {file}")).unwrap_or_default();
            if write.on_hover_text(format!("Writes {out}{graded}")).clicked() {
                let folder = Some(reason.folder.trim().to_string()).filter(|folder| !folder.is_empty());
                let verb = ReasonVerb::Bundle { sft: reason.at("sft"), rft: reason.at("rft"), folder, out: out.clone() };
                asks.push(begin_tested(reason, verb));
                reason.part = ReasonPart::Funnel;
            }
            let grade = ui.add_enabled(ready, egui::Button::new("grade the bundle")).on_disabled_hover_text(&why_not);
            if grade.on_hover_text(format!("Points of {out}, as it is")).clicked() {
                let verb = ReasonVerb::Grade { data: reason.valid(), submission: Some(out.clone()), sft: None, rft: None };
                asks.push(begin(&reason.config, verb));
                reason.part = ReasonPart::Grade;
            }
        });
    });
}
