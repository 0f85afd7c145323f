//! What a run will need, before it starts.

use std::collections::BTreeMap;

use egui::{RichText, Ui};
use serde_json::Value;
use smolforge_engine::Result;
use smolforge_engine::protocol::PlanReport;

use super::plain;
use crate::forms::Drafts;
use crate::theme;
use crate::units::{bytes, count, duration, percent};

/// A plan, which is of the settings in the form or of other ones; the keys that make the run fit, where people want that.
pub fn show<'a>(ui: &mut Ui, plan: &'a PlanReport, current: bool) -> Option<&'a BTreeMap<String, Value>> {
    let mut wanted = None;
    ui.add_space(theme::GAP);
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        ui.horizontal_wrapped(|ui| {
            ui.strong("Plan");
            if !current {
                ui.weak("of other settings: press plan again");
            }
        });
        ui.scope(|ui| {
            if !current {
                ui.multiply_opacity(0.6);
            }
            numbers(ui, plan);
        });
        if let Some(suggestion) = plan.suggestion.as_ref().filter(|_| current) {
            let words: Vec<String> = suggestion.iter().map(|(key, value)| format!("{} {}", key.replace('_', " "), plain(value))).collect();
            ui.horizontal_wrapped(|ui| {
                let button = ui.button(RichText::new("make it fit").strong());
                if button.on_hover_text("What needs less memory; the first keys change no results").clicked() {
                    wanted = Some(suggestion);
                }
                ui.label(words.join(", "));
            });
        }
    });
    wanted
}

/// Takes up what makes a run fit; `set` gives a key of its form another value.
pub fn apply(suggestion: &BTreeMap<String, Value>, drafts: &mut Drafts, mut set: impl FnMut(&str, &str) -> Result<()>) {
    for (key, value) in suggestion {
        // A key that the form does not know stays as it is: the next plan says what is still missing.
        let _ = set(key, &plain(value));
        drafts.remove(key.as_str());
    }
}

fn numbers(ui: &mut Ui, plan: &PlanReport) {
    let time = if plan.expected_secs > 0.0 { format!("about {}", duration(plan.expected_secs)) } else { "does not fit".into() };
    ui.label(format!("{} parameters on {}", count(plan.parameters), plan.device));
    ui.label(format!("{} tokens, {time}", count(plan.tokens)));
    ui.label(format!("{} of memory at the peak", bytes(plan.peak_bytes)));
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 4.0;
        let parts = plan.memory_bytes.iter().map(|(name, size)| format!("{name} {}", bytes(*size)));
        ui.label(RichText::new(parts.collect::<Vec<_>>().join(" · ")).small().weak());
    });
    let planned: f64 = plan.sources.values().map(|source| source.planned).sum();
    for (name, source) in &plan.sources {
        let share = source.planned / planned.max(1.0);
        ui.label(format!("{name}: {} of the run, {:.2} passes over {} tokens", percent(share), source.epochs, count(source.tokens)));
    }
    for warning in &plan.warnings {
        ui.colored_label(theme::warning(ui.visuals().dark_mode), format!("warning: {warning}"));
    }
}
