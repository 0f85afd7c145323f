//! A run: where it is, its plots, what it wrote; at its last step or at one that people look at.

use egui::{Id, RichText, Slider, Ui};

use super::{plots, unless_hidden};
use crate::forms::Plots;
use crate::session::{Moment, Run};
use crate::theme;
use crate::units::{count, duration, percent, rate};

/// The numbers of a run in a line, its plots, and its samples from the last on.
pub fn show(ui: &mut Ui, name: &str, run: &Run, settings: &mut Plots) {
    numbers(ui, run);
    ui.add_space(theme::GAP);
    plots::show(ui, name, &[(name, run)], settings);
    scrub(ui, run, settings);
    let until = settings.at.unwrap_or(u32::MAX);
    if let Some((step, _, scores)) = run.evaluations.iter().rev().find(|(step, _, _)| *step <= until) {
        ui.add_space(theme::GAP);
        ui.strong(format!("Held-out text at step {}", count(u64::from(*step))));
        let told = scores.values().any(|score| score.accuracy.is_some());
        egui::Grid::new("scores").num_columns(6).striped(true).show(ui, |ui| {
            for title in ["source", "loss", "perplexity", "bits/byte", "tokens"] {
                ui.weak(title);
            }
            if told {
                ui.weak("token accuracy").on_hover_text("Share of the tokens that no other was likelier than");
            }
            ui.end_row();
            for (source, score) in scores {
                ui.label(source);
                ui.label(format!("{:.4}", score.loss));
                ui.label(format!("{:.2}", score.perplexity));
                ui.label(format!("{:.4}", score.bits_per_byte));
                ui.label(count(score.tokens));
                if let Some(accuracy) = score.accuracy {
                    ui.label(percent(accuracy));
                }
                ui.end_row();
            }
        });
    }
    let mut samples = run.samples.iter().rev().filter(|(step, _, _)| *step <= until).peekable();
    if samples.peek().is_some() {
        ui.add_space(theme::GAP);
        ui.strong("Samples");
        for (step, prompt, text) in samples {
            unless_hidden(ui, Id::unique(("sample", name, step)), true, |ui| {
                ui.weak(format!("step {}", count(u64::from(*step))));
                ui.horizontal_wrapped(|ui| {
                    ui.spacing_mut().item_spacing.x = 0.0;
                    ui.label(RichText::new(prompt).weak());
                    ui.label(text.trim_end());
                });
            });
        }
    }
}

/// A slider along the run, and the numbers of the step it stands at.
fn scrub(ui: &mut Ui, run: &Run, settings: &mut Plots) {
    let Some(last) = run.last().map(|last| last.step).filter(|last| *last > 1) else { return };
    let first = run.steps.moments.first().map_or(1, |first| first.step);
    settings.at = settings.at.map(|at| at.clamp(first, last));
    ui.add_space(theme::GAP);
    ui.horizontal(|ui| {
        let label = ui.label("look at step");
        let mut at = settings.at.unwrap_or(last);
        ui.spacing_mut().slider_width = (ui.available_width() - 180.0).max(80.0);
        let slider = ui.add(Slider::new(&mut at, first..=last)).labelled_by(label.id);
        if slider.on_hover_text("Or click into a plot").changed() {
            settings.at = Some(at);
        }
        if ui.add_enabled(settings.at.is_some(), egui::Button::new("last")).on_hover_text("Back to the last step").clicked() {
            settings.at = None;
        }
    });
    let Some(moment) = settings.at.and_then(|at| run.steps.at(at)) else { return };
    ui.horizontal_wrapped(|ui| {
        ui.strong(format!("step {}", count(moment.step.into())));
        facts(moment, run).into_iter().for_each(|text| drop(ui.label(text)));
        let sources = run.sources();
        for (name, loss) in run.steps.source_losses_at(moment.step) {
            let place = sources.iter().position(|known| known == name).unwrap_or(0);
            ui.colored_label(theme::series(place + 1), "■");
            ui.label(format!("{name} {loss:.4}"));
        }
    });
}

fn numbers(ui: &mut Ui, run: &Run) {
    if let Some(info) = &run.info {
        let parameters = format!("{} parameters, {}", count(info.parameters), info.precision);
        let text = format!("{} · {parameters} · {} {} per update · {}", info.path, count(info.tokens_per_step), info.tokens(), info.device);
        ui.add(egui::Label::new(RichText::new(text).weak()).wrap());
    }
    let Some(step) = run.last() else { return };
    let total = run.total_steps();
    let done = step.step as f32 / total.max(1) as f32;
    ui.add(egui::ProgressBar::new(done).text(format!("step {} of {}", count(u64::from(step.step)), count(u64::from(total)))));
    ui.horizontal_wrapped(|ui| {
        let eta = if step.step < total { format!("{} to go", duration(step.eta_secs)) } else { "finished".into() };
        let stage = run.stages.iter().rev().find(|(start, _, _)| *start < step.step).map(|(_, _, name)| format!("stage {name}"));
        let saved = run.saved.as_ref().map(|(step, _)| format!("saved at step {}", count(u64::from(*step))));
        facts(step, run).into_iter().chain([eta]).chain(stage).chain(saved).for_each(|text| drop(ui.label(text)));
    });
}

/// The numbers of an update.
fn facts(moment: &Moment, run: &Run) -> [String; 5] {
    let done = if run.info.as_ref().is_some_and(|info| info.learned_only) { "learned" } else { "seen" };
    [
        format!("loss {:.4}", moment.loss),
        format!("learning rate {:.2e}", moment.lr),
        format!("gradient norm {:.3}", moment.grad_norm),
        format!("{} tokens/s", rate(moment.tokens_per_sec)),
        format!("{} tokens {done}", count(moment.total_tokens)),
    ]
}
