//! Several runs: their curves over each other, and the settings in which they differ.

use egui::{Grid, ScrollArea, Ui};
use serde_json::Value;
use smolforge_engine::config::FIELDS;
use smolforge_engine::protocol::RunSummary;

use super::runs::known;
use super::{plain, plots};
use crate::forms::Forms;
use crate::session::{Run, Session};
use crate::theme;
use crate::units::{count, shares};

/// The selected runs over each other.
pub fn show(ui: &mut Ui, session: &Session, forms: &mut Forms, selected: &[&RunSummary]) {
    let known: Vec<(&str, &Run)> = selected.iter().filter_map(|run| Some((run.path.as_str(), known(session, &run.path)?))).collect();
    ui.horizontal_wrapped(|ui| {
        ui.heading(format!("{} runs", selected.len()));
        if known.len() < selected.len() {
            ui.spinner();
        }
    });
    ScrollArea::both().id_salt("compare").auto_shrink([false, false]).show(ui, |ui| {
        plots::show(ui, "compared", &known, &mut forms.plots);
        ui.add_space(theme::GAP);
        ui.strong("Different settings");
        let differing = differences(&known);
        if differing.is_empty() {
            ui.weak("None: only the folders differ.");
            return;
        }
        Grid::new("differences").num_columns(known.len() + 1).striped(true).show(ui, |ui| {
            ui.weak("key");
            for (index, (name, _)) in known.iter().enumerate() {
                ui.horizontal(|ui| {
                    ui.colored_label(theme::series(index), "■");
                    ui.strong(*name);
                });
            }
            ui.end_row();
            for (key, values) in differing {
                ui.label(key.replace('_', " "));
                values.into_iter().for_each(|value| drop(ui.label(value)));
                ui.end_row();
            }
        });
    });
}

/// The keys in which configurations differ, with the values of every run. That runs lie in different folders is no news.
fn differences(runs: &[(&str, &Run)]) -> Vec<(&'static str, Vec<String>)> {
    let configs: Vec<Value> = runs.iter().map(|(_, run)| serde_json::to_value(&run.config).unwrap_or_default()).collect();
    let keys = FIELDS.iter().map(|field| field.name).filter(|name| *name != "out");
    let differs = keys.filter(|key| configs.windows(2).any(|pair| pair[0].get(key) != pair[1].get(key)));
    differs
        .map(|key| match key {
            "data_stages" => (key, runs.iter().map(|(_, run)| stages(run)).collect()),
            _ => (key, configs.iter().map(|config| short(config.get(key).unwrap_or(&Value::Null))).collect()),
        })
        .collect()
}

/// The stages of a run, a line each.
fn stages(run: &Run) -> String {
    let stages = run.config.iter().flat_map(|config| &config.data_stages.stages);
    stages.map(|stage| format!("from {}: {}", count(stage.start.into()), shares(&stage.weights))).collect::<Vec<_>>().join("\n")
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::Object(map) => map.keys().cloned().collect::<Vec<_>>().join(", "),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::config::TrainConfig;

    use super::*;

    #[test]
    fn only_keys_that_differ_are_compared() {
        let run = |lr, out: &str| Run { config: Some(TrainConfig { lr, out: out.into(), ..TrainConfig::default() }), ..Run::default() };
        let (a, b) = (run(0.001, "a"), run(0.002, "b"));
        assert_eq!(differences(&[("a", &a), ("b", &b)]), [("lr", vec!["0.001".to_string(), "0.002".to_string()])]);
        assert_eq!(differences(&[("a", &a), ("a", &a)]), []);
    }
}
