//! The keys of a configuration, group by group: a field for each, what is wrong with it, and a way back.

use egui::{ComboBox, RichText, TextEdit, Ui};
use serde_json::Value;
use smolforge_engine::config::Field;
use smolforge_engine::config::finetune::{BadRows, BaseDtype, DatasetFormat, Decay, Interval, Method, Metric, Optim};

use super::plain;
use crate::files::{Pick, Picker};
use crate::forms::Drafts;
use crate::theme;

/// A configuration as a form shows it.
pub struct Fields<'a> {
    /// All its keys.
    pub fields: &'static [Field],
    /// Values of the keys.
    pub values: Value,
    /// Values of the keys that nobody has changed.
    pub defaults: &'a Value,
    /// What is typed and is not a value yet.
    pub drafts: &'a mut Drafts,
    /// Opens dialogs.
    pub picker: &'a Picker,
    /// Sets a key from text, or says what is wrong with that.
    pub set: &'a mut dyn FnMut(&str, &str) -> Result<(), String>,
}

/// Words of the keys that take one of a few.
fn words(key: &str) -> &'static [&'static str] {
    match key {
        "device" => &["auto", "gpu", "cpu"],
        "precision" => &["auto", "f32", "mixed"],
        "preset" => smolforge_engine::model::config::PRESETS,
        "optim" => Optim::WORDS,
        "lr_scheduler_type" => Decay::WORDS,
        "method" => Method::WORDS,
        "base_dtype" => BaseDtype::WORDS,
        "bad_rows" => BadRows::WORDS,
        "dataset_format" => DatasetFormat::WORDS,
        "loss_on" => &["assistant", "completion", "all"],
        "save_strategy" | "eval_strategy" => Interval::WORDS,
        "metric_for_best_model" => Metric::WORDS,
        "quantize_teacher" => &["auto", "yes", "no"],
        _ => &[],
    }
}

/// What a group is called, where that is not the name of its section.
fn title(group: &str) -> &str {
    match group {
        "huggingface" => "Rows and template",
        "qlora" => "Adapter",
        "training" => "Training",
        group => group,
    }
}

impl Fields<'_> {
    /// All keys but those that are shown elsewhere, in their groups.
    pub fn groups(&mut self, ui: &mut Ui, open: &[&str], elsewhere: &[&str]) {
        let here = |field: &&Field| !elsewhere.contains(&field.name);
        let mut groups: Vec<&str> = self.fields.iter().filter(here).map(|field| field.group).collect();
        groups.dedup();
        for group in groups {
            egui::CollapsingHeader::new(title(group)).id_salt(group).default_open(open.contains(&group)).show(ui, |ui| {
                egui::Grid::new(group).num_columns(2).min_col_width(130.0).show(ui, |ui| {
                    for field in self.fields.iter().filter(here).filter(|field| field.group == group) {
                        self.row(ui, field);
                        ui.end_row();
                    }
                });
            });
        }
    }

    /// A key by its name, in a grid of two columns.
    pub fn named(&mut self, ui: &mut Ui, name: &str) {
        if let Some(field) = self.fields.iter().find(|field| field.name == name) {
            self.row(ui, field);
            ui.end_row();
        }
    }

    /// A key: its name, its value, and a way back to the default.
    fn row(&mut self, ui: &mut Ui, field: &Field) {
        let text = |value: &Value| match value {
            Value::Null => String::new(),
            Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(", ")),
            value => plain(value),
        };
        let (value, default) = (&self.values[field.name], &self.defaults[field.name]);
        let changed = value != default;
        let name = field.name.replace('_', " ");
        let label = if changed { RichText::new(name).strong() } else { RichText::new(name) };
        let label = ui.label(label).on_hover_text(field.help);
        ui.horizontal(|ui| {
            let mut typed = self.drafts.get(field.name).map_or_else(|| text(value), |(draft, _)| draft.clone());
            let before = typed.clone();
            let choices = words(field.name);
            if let Value::Bool(mut on) = *value {
                ui.checkbox(&mut on, "").labelled_by(label.id);
                typed = on.to_string();
            } else if choices.is_empty() {
                let width = match value {
                    Value::Number(_) => 80.0,
                    Value::Array(_) => (ui.available_width() - 40.0).clamp(100.0, 240.0),
                    _ => 150.0,
                };
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
                "train_file" | "valid_file" | "shots" => Some(Pick::Questions(field.name)),
                _ => None,
            };
            if let Some(pick) = pick.filter(|_| ui.small_button("…").clicked()) {
                self.picker.open(pick);
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
                match (self.set)(field.name, if empty { "null" } else { &typed }) {
                    Ok(()) => drop(self.drafts.remove(field.name)),
                    Err(why) => drop(self.drafts.insert(field.name, (typed, Some(why)))),
                }
            }
        });
        if let Some((typed, Some(why))) = self.drafts.get(field.name) {
            let why = why.split_once(&format!("{typed}: ")).map_or(why.as_str(), |(_, why)| why); // the field shows the rest
            ui.end_row();
            ui.label("");
            ui.add(egui::Label::new(RichText::new(why).small().color(theme::error(ui.visuals().dark_mode))).wrap());
        }
    }
}
