//! Fine-tuning: a model, rows, what to change and how; beside it the rows, the run and the shelf of adapters.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use egui::{Grid, Id, RichText, ScrollArea, Slider, SliderClamping, TextEdit, Ui};
use serde_json::Value;
use smolforge_engine::config::finetune::{FINETUNE_FIELDS, Files, FinetuneConfig, Method, Targets};
use smolforge_engine::model::LlamaConfig;
use smolforge_engine::model::adapter::{AdapterConfig, layers};
use smolforge_engine::model::fetch::NOT_HERE;
use smolforge_engine::protocol::{Command, JobId, ModelReport};
use smolforge_engine::train::finetune;

use super::fields::Fields;
use super::generate::model;
use super::{Ask, START, jobs, named, plain, plan, pressed, rows, settled, shelf, with_keys};
use crate::files::{Pick, Picker};
use crate::forms::{Forms, Part, Tab};
use crate::session::{Job, Session};
use crate::theme;
use crate::units::{bytes, count};

/// Values of the keys that nobody has changed.
static DEFAULTS: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(FinetuneConfig::default()).unwrap_or_default());

/// Keys that have a place of their own above the others.
const OWN: [&str; 7] = ["model_name", "train_file", "validation_file", "method", "target_modules", "r", "lora_alpha"];

/// The left side: what to learn from, and how.
pub fn form(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    let busy = session.training();
    controls(ui, session, forms, busy, asks);
    ui.separator();
    describe(ui, session, &forms.tune.model_name, asks);
    ScrollArea::vertical().id_salt("tune").auto_shrink([false, false]).show(ui, |ui| {
        if busy.is_some() {
            ui.weak("The next run");
        }
        ui.add_enabled_ui(busy.is_none(), |ui| {
            ui.strong("Model");
            if let Some(pick) = model(ui, "model", &mut forms.tune.model_name, session, Some(Pick::Base)) {
                picker.open(pick);
            }
            description(ui, session, &forms.tune.model_name);
            ui.add_space(theme::GAP);
            ui.strong("Rows to learn");
            files(ui, "rows", &mut forms.tune.train_file, Pick::Rows, picker);
            ui.strong("Rows to evaluate on");
            files(ui, "validation rows", &mut forms.tune.validation_file, Pick::Validation, picker);
            if forms.tune.validation_file.named().next().is_none() && forms.tune.validation_split > 0.0 {
                ui.weak(format!("none: {} % of the others are kept for that", 100.0 * forms.tune.validation_split));
            }
            ui.add_space(theme::GAP);
            change(ui, session.models.get(&forms.tune.model_name), forms, picker);
            planned(ui, session, forms, asks);
            ui.add_space(theme::GAP);
            fields(forms, picker, |fields| fields.groups(ui, &["huggingface", "training"], &OWN));
            ui.add_space(2.0 * theme::GAP); // the last field stands clear of the edge
        });
    });
}

/// The keys of the form as fields.
fn fields(forms: &mut Forms, picker: &Picker, draw: impl FnOnce(&mut Fields<'_>)) {
    let Forms { tune, tune_drafts, .. } = forms;
    let values = serde_json::to_value(&*tune).unwrap_or_default();
    let set = &mut |key: &str, text: &str| tune.set(key, text).map_err(|error| error.to_string());
    draw(&mut Fields { fields: FINETUNE_FIELDS, values, defaults: &DEFAULTS, drafts: tune_drafts, picker, set });
}

fn controls(ui: &mut Ui, session: &Session, forms: &mut Forms, busy: Option<(JobId, &Job)>, asks: &mut Vec<Ask>) {
    ui.horizontal_wrapped(|ui| match busy {
        Some((id, job)) => jobs::controls(ui, id, job, asks),
        None => {
            let why_not = why_not(forms);
            let ready = why_not.is_none();
            let why_not = why_not.unwrap_or_default();
            let start = ui.add_enabled(ready, egui::Button::new(RichText::new("▶ tune").strong()));
            let start = start.on_hover_text(with_keys(ui, "Starts the run", &START)).on_disabled_hover_text(&why_not);
            // On the shelf the keys ask a question.
            if start.clicked() || (ready && forms.part != Part::Shelf && pressed(ui, &START)) {
                asks.push(Ask::Begin(Command::Finetune { config: Box::new(forms.tune.clone()), notes: Vec::new(), resume: false }));
                forms.part = Part::Run;
            }
            let planning = session.active(|command| matches!(command, Command::PlanFinetune { .. })).is_some();
            let plan = ui.add_enabled(ready && !planning, egui::Button::new("plan")).on_disabled_hover_text(&why_not);
            if plan.on_hover_text("Memory, passes over the rows and time, before it starts").clicked() {
                asks.push(Ask::Begin(Command::PlanFinetune { config: Box::new(forms.tune.clone()), budget_bytes: None }));
            }
            let wanted = rows::wanted(session, forms);
            let look = ui.add_enabled(wanted.is_some(), egui::Button::new("look at the rows")).on_disabled_hover_text(&why_not);
            if let Some(wanted) = wanted.filter(|_| look.on_hover_text("Reads them anew, token by token").clicked()) {
                rows::begin(session, wanted, asks);
                (forms.part, forms.front) = (Part::Rows, true);
            }
            if planning {
                ui.spinner();
            }
        }
    });
    jobs::progress(ui, session);
}

/// Why the run of the form cannot begin.
fn why_not(forms: &Forms) -> Option<String> {
    if forms.tune.model_name.trim().is_empty() {
        return Some("Choose a model first".into());
    }
    if forms.tune.train_file.named().next().is_none() {
        return Some("Add rows first".into());
    }
    if forms.tune_drafts.values().any(|(_, why)| why.is_some()) {
        return Some("A value below is not one yet".into());
    }
    forms.tune.validate().err().map(|error| error.to_string())
}

/// Asks what a model is, once nobody types its name any more.
pub fn describe(ui: &Ui, session: &Session, model: &str, asks: &mut Vec<Ask>) {
    let ask = Ask::Begin(Command::Describe { model: model.into(), adapters: Vec::new() });
    let open = session.active(|command| matches!(command, Command::Describe { model: asked, .. } if asked == model)).is_some();
    let known = model.trim().is_empty() || session.models.contains_key(model) || session.unknown(model).is_some();
    if !known && !open && settled(ui, Id::unique(("model", ui.scope_id())), model) && !asks.contains(&ask) {
        asks.push(ask);
    }
}

/// Why a model is not known, where it was asked for in vain, and what downloads it.
pub fn unknown(session: &Session, model: &str) -> Option<String> {
    let why = session.unknown(model)?;
    let remedy = if why.ends_with(NOT_HERE) { "; looking at the rows, plan and tune download it" } else { "" };
    Some(format!("{why}{remedy}"))
}

/// What a model is, or why that is not known.
pub fn description(ui: &mut Ui, session: &Session, model: &str) {
    if model.trim().is_empty() {
        return;
    }
    if let Some(why) = unknown(session, model) {
        ui.add(egui::Label::new(RichText::new(why).small().color(theme::error(ui.visuals().dark_mode))).wrap());
        return;
    }
    let text = match session.models.get(model) {
        Some(ModelReport { shape, has_chat, has_template, .. }) => {
            let chat = match (has_chat, has_template) {
                (false, _) => "no chat template: prompts with completions, and texts",
                (true, false) => "no chat template of its own: chats as plain ChatML",
                (true, true) => "chat template",
            };
            format!("{} parameters · context of {} · {chat}", count(shape.parameters()), count(shape.max_position_embeddings as u64))
        }
        None => "looking at it …".into(),
    };
    ui.add(egui::Label::new(RichText::new(text).small().weak()).wrap());
}

/// Files of rows: one a line.
fn files(ui: &mut Ui, name: &str, files: &mut Files, pick: Pick, picker: &Picker) {
    let mut removed = None;
    for (place, path) in files.0.iter_mut().enumerate() {
        ui.horizontal(|ui| {
            let width = (ui.available_width() - 36.0).max(80.0);
            let edit = TextEdit::singleline(path).id_salt((name, place)).desired_width(width).hint_text("file, folder or glob");
            let edit = ui.add(edit);
            named(&edit, name, path);
            if ui.small_button("×").on_hover_text("Leave it out").clicked() {
                removed = Some(place);
            }
        });
    }
    removed.into_iter().for_each(|place| drop(files.0.remove(place)));
    ui.horizontal_wrapped(|ui| {
        if ui.button(format!("add {name} …")).on_hover_text("JSONL: chats, instructions, prompts with completions, or texts").clicked() {
            picker.open(pick);
        }
        if ui.button("type a path").clicked() {
            files.0.push(String::new());
        }
        if pick == Pick::Rows {
            ui.weak("or drop them here");
        }
    });
}

/// What adapters on some of a model's layers would be.
struct Figures {
    shape: LlamaConfig,
    targets: Targets,
    /// Last parts of the names of its linear layers, in its order.
    ends: Vec<String>,
    /// What is known of those with an adapter, or why there are none.
    chosen: Result<Chosen, String>,
}

/// Layers that have an adapter.
struct Chosen {
    /// Last parts of their names.
    ends: BTreeSet<String>,
    /// Numbers of an adapter of rank 1.
    parameters: u64,
    /// Its bytes on disk.
    size_bytes: u64,
}

/// What the adapter of a configuration would be. All names of layers are gone through for it, so it is kept until they, or
/// those that are wanted, change; rank and alpha only multiply.
fn figures(ui: &Ui, shape: &LlamaConfig, config: &FinetuneConfig) -> Arc<Figures> {
    let id = Id::unique("figures");
    let known = ui.data(|data| data.get_temp::<Arc<Figures>>(id));
    if let Some(known) = known.filter(|known| (&known.shape, &known.targets) == (shape, &config.target_modules)) {
        return known;
    }
    let names: Vec<String> = layers(shape).into_iter().map(|(name, _)| name).collect();
    let mut ends: Vec<String> = Vec::new();
    for end in names.iter().filter_map(|name| name.rsplit('.').next()) {
        if !ends.iter().any(|known| known == end) {
            ends.push(end.into());
        }
    }
    let work_out = || {
        let one = AdapterConfig { r: 1, ..finetune::adapter(config) };
        let chosen = one.targets.choose(&names)?;
        let left_out = |end: &str| names.iter().any(|name| name.rsplit('.').next() == Some(end) && !chosen.contains(name));
        let ends = ends.iter().filter(|end| !left_out(end)).cloned().collect();
        Ok::<_, smolforge_engine::Error>(Chosen { ends, parameters: one.parameters(shape)?, size_bytes: one.size_bytes(shape)? })
    };
    let chosen = work_out().map_err(|error| error.to_string());
    let found = Arc::new(Figures { shape: shape.clone(), targets: config.target_modules.clone(), ends, chosen });
    ui.data_mut(|data| data.insert_temp(id, found.clone()));
    found
}

/// What is changed of the model: method, layers, rank, and what comes of it.
fn change(ui: &mut Ui, model: Option<&ModelReport>, forms: &mut Forms, picker: &Picker) {
    ui.horizontal_wrapped(|ui| {
        ui.strong("What trains");
        for (method, help) in [
            (Method::Lora, "An adapter beside a frozen model"),
            (Method::Qlora, "An adapter beside a frozen model of 4 bits: least memory"),
            (Method::Full, "All weights: most memory"),
        ] {
            let word = serde_json::to_value(method).map(|word| plain(&word)).unwrap_or_default();
            ui.selectable_value(&mut forms.tune.method, method, word).on_hover_text(help);
        }
    });
    if forms.tune.method == Method::Full {
        if let Some(model) = model {
            let parameters = model.shape.parameters();
            ui.label(format!("all {} parameters train; the model ends as {} of FP16", count(parameters), bytes(2 * parameters)));
        }
        return;
    }
    let found = model.map(|model| (model, figures(ui, &model.shape, &forms.tune)));
    targets(ui, found.as_ref().map(|(_, found)| &**found), forms, picker);
    let tune = &mut forms.tune;
    ui.spacing_mut().slider_width = 180.0;
    Grid::new("rank").num_columns(2).min_col_width(130.0).show(ui, |ui| {
        let label = ui.label("rank").on_hover_text("More can be learned, and more has to be kept");
        let slider = Slider::new(&mut tune.r, 1..=256).logarithmic(true).clamping(SliderClamping::Edits);
        ui.add(slider).labelled_by(label.id);
        ui.end_row();
        let label = ui.label("alpha").on_hover_text("The adapter is multiplied by alpha / rank");
        let slider = Slider::new(&mut tune.lora_alpha, 1.0..=512.0).logarithmic(true).max_decimals(1).clamping(SliderClamping::Edits);
        ui.add(slider).labelled_by(label.id);
        ui.end_row();
    });
    if let Some((model, Ok(chosen))) = found.as_ref().map(|(model, found)| (model, &found.chosen)) {
        let [parameters, size_bytes] = [chosen.parameters, chosen.size_bytes].map(|of_one| of_one * tune.r as u64);
        let all = model.shape.parameters();
        let share = 100.0 * parameters as f64 / all.max(1) as f64;
        ui.label(format!("{} parameters train: {share:.2} % of {}", count(parameters), count(all)));
        ui.label(format!("the adapter takes {} on disk, and counts × {}", bytes(size_bytes), finetune::adapter(tune).scale("")));
    }
    if tune.init_adapter.is_some() {
        ui.weak("It goes on from an adapter, whose rank and layers it keeps");
    }
}

/// Which layers have an adapter.
fn targets(ui: &mut Ui, found: Option<&Figures>, forms: &mut Forms, picker: &Picker) {
    let ends = found.map_or(&[][..], |found| &found.ends);
    let on = |end: &String| found.is_some_and(|found| found.chosen.as_ref().is_ok_and(|chosen| chosen.ends.contains(end)));
    let mut other = None;
    ui.horizontal_wrapped(|ui| {
        let mut all = forms.tune.target_modules == Targets::Pattern("all-linear".into());
        if ui.checkbox(&mut all, "all-linear").on_hover_text("Every linear layer but the head").changed() {
            let some = if ends.is_empty() { vec!["q_proj".into(), "v_proj".into()] } else { ends.to_vec() };
            other = Some(if all { Targets::Pattern("all-linear".into()) } else { Targets::Names(some) });
        }
        for end in ends {
            let mut checked = on(end);
            if ui.checkbox(&mut checked, end).changed() {
                let names = ends.iter().filter(|name| if *name == end { checked } else { on(name) });
                other = Some(Targets::Names(names.cloned().collect()));
            }
        }
    });
    if let Some(other) = other {
        forms.tune.target_modules = other;
        forms.tune_drafts.remove("target_modules");
    }
    Grid::new("targets").num_columns(2).min_col_width(130.0).show(ui, |ui| {
        fields(forms, picker, |fields| fields.named(ui, "target_modules"));
    });
    if let Some(Err(why)) = found.map(|found| &found.chosen) {
        ui.add(egui::Label::new(RichText::new(why).small().color(theme::error(ui.visuals().dark_mode))).wrap());
    }
}

/// The last plan, and a way to make the run fit.
fn planned(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    let Some((config, plan)) = &session.tune_plan else { return };
    if let Some(suggestion) = plan::show(ui, plan, *config == forms.tune) {
        plan::apply(suggestion, &mut forms.tune_drafts, |key, text| forms.tune.set(key, text));
        asks.push(Ask::Begin(Command::PlanFinetune { config: Box::new(forms.tune.clone()), budget_bytes: None }));
    }
}

/// The right side: rows, the run, or the shelf.
pub fn parts(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    ui.add_space(theme::EDGE);
    ui.horizontal_wrapped(|ui| {
        for (part, name, help) in [
            (Part::Rows, "rows", "What is learned, token by token, and what is wrong with it"),
            (Part::Run, "run", "The run in progress"),
            (Part::Shelf, "shelf", "Adapters: asked beside their model, mixed and merged"),
        ] {
            ui.selectable_value(&mut forms.part, part, name).on_hover_text(help);
        }
    });
    ui.separator();
    match forms.part {
        Part::Rows => {
            describe(ui, session, &forms.tune.model_name, asks);
            rows::show(ui, session, forms, asks);
        }
        Part::Run if jobs::live(ui, session, true, &mut forms.plots) => {}
        Part::Run if session.training().is_some() && !session.tunes() => jobs::elsewhere(ui, forms, Tab::Train),
        Part::Run => drop(ui.vertical_centered(|ui| {
            ui.add_space(ui.available_height() * 0.3);
            ui.heading("No run yet");
            ui.weak("Choose a model and rows, and press tune.");
        })),
        Part::Shelf => shelf::show(ui, session, forms, picker, asks),
    }
}
