//! Adapters: how much of each counts, what a model says with and without them, and both as one model.

use egui::{Id, RichText, ScrollArea, Slider, TextEdit, Ui};
use smolforge_engine::protocol::{Command, ExportDtype, GenerateRequest, Message, RunSummary};

use super::generate::{model, numbers};
use super::tune::{describe, description};
use super::{Ask, START, named, pressed, texts, with_keys};
use crate::files::{Pick, Picker};
use crate::forms::{Forms, Shelf};
use crate::session::{Session, Text};
use crate::theme;

/// Adapters, a question, and the answers side by side.
pub fn show(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    // While something trains they stop that.
    if session.training().is_none() {
        texts::stop_by_keys(ui, session, asks);
    }
    let shelf = &mut forms.shelf;
    let runs: Vec<&RunSummary> = session.runs.iter().flatten().filter(|run| run.adapter.is_some()).collect();
    if session.runs.is_some() {
        let Shelf { adapters, added, .. } = shelf;
        adapters.retain(|path, _| runs.iter().any(|run| run.path == *path) || added.contains(path));
    }
    ui.push_id("shelf", |ui| describe(ui, session, &shelf.model, asks));
    ScrollArea::vertical().id_salt("shelf").auto_shrink([false, false]).show(ui, |ui| {
        adapters(ui, shelf, &runs, picker);
        ui.add_space(theme::GAP);
        ui.strong("Beside the model");
        if let Some(pick) = model(ui, "base model", &mut shelf.model, session, None) {
            picker.open(pick);
        }
        description(ui, session, &shelf.model);
        ui.add_space(theme::GAP);
        ask(ui, session, shelf, &runs, asks);
        ui.add_space(theme::GAP);
        merge(ui, session, shelf, &runs, asks);
        ui.add_space(theme::GAP);
        texts::cards(ui, session, is_answer, asks);
    });
}

/// Whether a text is one of a comparison that was asked for here.
fn is_answer(card: &[&Text]) -> bool {
    card.iter().any(|text| !text.request.adapters.is_empty())
}

/// A line for every adapter: whether it counts, and how much.
fn adapters(ui: &mut Ui, shelf: &mut Shelf, runs: &[&RunSummary], picker: &Picker) {
    ui.horizontal_wrapped(|ui| {
        ui.strong("Adapters");
        if ui.button("add a folder …").on_hover_text("An adapter in PEFT's files that was trained elsewhere").clicked() {
            picker.open(Pick::Adapter);
        }
    });
    if runs.is_empty() && shelf.added.is_empty() {
        ui.weak("None yet: fine-tune a model, and its adapter stands here.");
        return;
    }
    let added = shelf.added.clone();
    let paths = runs.iter().map(|run| (run.path.as_str(), Some(*run))).chain(added.iter().map(|path| (path.as_str(), None)));
    for (path, run) in paths {
        let others = shelf.adapters.iter().any(|(other, (taken, _))| *taken && other != path);
        let (taken, strength) = shelf.adapters.entry(path.into()).or_insert((false, 1.0));
        ui.horizontal_wrapped(|ui| {
            let checked = ui.checkbox(taken, path);
            let base = run.and_then(|run| run.tuning.as_ref()).map(|tuning| &tuning.model_name);
            if let Some(base) = base.filter(|_| checked.changed() && *taken && !others) {
                shelf.model.clone_from(base);
            }
            let slider = ui.add_enabled(*taken, Slider::new(strength, 0.0..=2.0).step_by(0.05).fixed_decimals(2));
            slider.labelled_by(checked.id).on_hover_text("1: as it was trained; 0: not at all");
            let text = run.map_or_else(|| "added by hand".into(), |run| about(run, &shelf.model));
            ui.label(RichText::new(text).small().weak());
            if run.is_none() && ui.small_button("×").on_hover_text("Leave it out").clicked() {
                shelf.added.retain(|other| other != path);
            }
        });
    }
}

/// What the adapter of a run is, in a few words.
fn about(run: &RunSummary, model: &str) -> String {
    let Some(tuning) = &run.tuning else { return String::new() };
    let best = run.best.map(|(loss, _)| format!(" · best {loss:.3}")).unwrap_or_default();
    let beside = if tuning.model_name == model { String::new() } else { format!(" · of {}", tuning.model_name) };
    let targets = serde_json::to_value(&tuning.target_modules).map(|targets| super::plain(&targets)).unwrap_or_default();
    format!("rank {} · {} · step {}{best}{beside}", tuning.r, targets.replace(['[', ']', '"'], "").replace(',', ", "), run.step)
}

/// The runs whose adapters are taken.
fn taken<'a>(shelf: &Shelf, runs: &[&'a RunSummary]) -> Vec<&'a RunSummary> {
    runs.iter().filter(|run| shelf.adapters.get(&run.path).is_some_and(|(taken, _)| *taken)).copied().collect()
}

/// A question to the model with and without the adapters.
fn ask(ui: &mut Ui, session: &Session, shelf: &mut Shelf, runs: &[&RunSummary], asks: &mut Vec<Ask>) {
    let known = session.models.get(&shelf.model);
    let chats = known.is_none_or(|known| known.has_chat);
    let label = ui.strong(if chats { "Question" } else { "Prompt" });
    let hint = if chats { "asked through the chat template" } else { "the model has no chat template: it goes on with this text" };
    let edit = TextEdit::multiline(&mut shelf.question).desired_rows(2).desired_width(f32::INFINITY).hint_text(hint);
    ui.add(edit).labelled_by(label.id);
    ui.horizontal_wrapped(|ui| {
        let chosen = shelf.chosen();
        let why_not = match () {
            () if chosen.is_empty() => "Take an adapter first",
            () if known.is_none() => "Name the model that they are beside",
            () if shelf.question.is_empty() => "Write a question first",
            () => "",
        };
        let ready = why_not.is_empty();
        let button = ui.add_enabled(ready, egui::Button::new(RichText::new("▶ ask both").strong()));
        let button = button.on_hover_text(with_keys(ui, "The model alone and with the adapters, drawn alike", &START));
        if button.on_disabled_hover_text(why_not).clicked() || (ready && pressed(ui, &START)) {
            let (messages, prompts) = match chats {
                true => (vec![Message::new("user", &shelf.question)], Vec::new()),
                false => (Vec::new(), vec![shelf.question.clone()]),
            };
            // As the rows were written that it has learned from.
            let date = taken(shelf, runs).iter().find_map(|run| run.tuning.as_ref()?.date.clone());
            let base =
                GenerateRequest { model: shelf.model.clone(), adapters: Vec::new(), prompts, messages, date, ..shelf.request.clone() };
            let tuned = GenerateRequest { adapters: chosen, ..base.clone() };
            asks.extend([base, tuned].map(|request| Ask::Begin(Command::Generate(request))));
        }
        if session.training().is_some() {
            ui.weak("training waits meanwhile");
        }
    });
    egui::CollapsingHeader::new("How they answer").id_salt("answers").show(ui, |ui| numbers(ui, &mut shelf.request));
}

/// The model with the adapters as one model.
fn merge(ui: &mut Ui, session: &Session, shelf: &mut Shelf, runs: &[&RunSummary], asks: &mut Vec<Ask>) {
    let chosen = shelf.chosen();
    ui.horizontal_wrapped(|ui| {
        let merging = session.active(|command| matches!(command, Command::Merge { .. })).is_some();
        let ready = !chosen.is_empty() && !shelf.model.trim().is_empty() && !merging;
        let out = if shelf.out.trim().is_empty() { free(shelf, runs) } else { shelf.out.clone() };
        let button = ui.add_enabled(ready, egui::Button::new("merge")).on_hover_text("Writes model and adapters as one model of FP16");
        if button.on_disabled_hover_text("Take an adapter and name its model first").clicked() {
            asks.push(Ask::Begin(Command::Merge {
                model: shelf.model.clone(),
                adapters: chosen,
                out: out.clone(),
                dtype: ExportDtype::F16,
            }));
        }
        ui.label("into");
        let width = (ui.available_width() - 30.0).clamp(100.0, 320.0);
        let edit = TextEdit::singleline(&mut shelf.out).id_salt(Id::unique("merge into")).desired_width(width).hint_text(out);
        let edit = ui.add(edit);
        named(&edit, "merge into", &shelf.out);
        if merging {
            ui.spinner();
        }
    });
}

/// A folder for what is merged: beside the adapter of the first run, and none that is known.
fn free(shelf: &Shelf, runs: &[&RunSummary]) -> String {
    let Some(run) = taken(shelf, runs).into_iter().next() else { return "merged".into() };
    let mut names = (1..).map(|number| format!("{}/merged{}", run.path, if number == 1 { String::new() } else { format!("-{number}") }));
    names.find(|name| !run.exports.contains(name)).unwrap_or_default()
}
