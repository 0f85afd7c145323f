//! A run: where it is, its plots, what it wrote.

use egui::{RichText, Ui};

use super::plots;
use crate::forms::Plots;
use crate::session::Run;
use crate::theme;
use crate::units::{count, duration, rate};

/// The numbers of a run in a line, its plots, and its samples from the last on.
pub fn show(ui: &mut Ui, name: &str, run: &Run, settings: &mut Plots) {
    numbers(ui, run);
    ui.add_space(theme::GAP);
    plots::show(ui, name, &[(name, run)], settings);
    if let Some((step, _, scores)) = run.evaluations.last() {
        ui.add_space(theme::GAP);
        ui.strong(format!("Held-out text at step {}", count(u64::from(*step))));
        egui::Grid::new("scores").num_columns(5).striped(true).show(ui, |ui| {
            for title in ["source", "loss", "perplexity", "bits/byte", "tokens"] {
                ui.weak(title);
            }
            ui.end_row();
            for (source, score) in scores {
                ui.label(source);
                ui.label(format!("{:.4}", score.loss));
                ui.label(format!("{:.2}", score.perplexity));
                ui.label(format!("{:.4}", score.bits_per_byte));
                ui.label(count(score.tokens));
                ui.end_row();
            }
        });
    }
    if !run.samples.is_empty() {
        ui.add_space(theme::GAP);
        ui.strong("Samples");
        for (step, prompt, text) in run.samples.iter().rev() {
            ui.weak(format!("step {}", count(u64::from(*step))));
            ui.horizontal_wrapped(|ui| {
                ui.spacing_mut().item_spacing.x = 0.0;
                ui.label(RichText::new(prompt).weak());
                ui.label(text.trim_end());
            });
        }
    }
}

fn numbers(ui: &mut Ui, run: &Run) {
    if let Some(info) = &run.info {
        let parameters = format!("{} parameters, {}", count(info.parameters), info.precision);
        ui.weak(format!("{} · {parameters} · {} tokens per update · {}", info.path, count(info.tokens_per_step), info.device));
    }
    let Some(step) = run.last() else { return };
    let total = run.total_steps();
    let done = step.step as f32 / total.max(1) as f32;
    ui.add(egui::ProgressBar::new(done).text(format!("step {} of {}", count(u64::from(step.step)), count(u64::from(total)))));
    ui.horizontal_wrapped(|ui| {
        let eta = if step.step < total { format!("{} to go", duration(step.eta_secs)) } else { "finished".into() };
        let stage = run.stages.iter().rev().find(|(start, _, _)| *start < step.step).map(|(_, _, name)| format!("stage {name}"));
        let numbers = [
            Some(format!("loss {:.4}", step.loss)),
            Some(format!("learning rate {:.2e}", step.lr)),
            Some(format!("gradient norm {:.3}", step.grad_norm)),
            Some(format!("{} tokens/s", rate(step.tokens_per_sec))),
            Some(format!("{} tokens seen", count(step.total_tokens))),
            Some(eta),
            stage,
        ];
        numbers.into_iter().flatten().for_each(|text| drop(ui.label(text)));
    });
}
