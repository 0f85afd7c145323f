//! The curriculum: stages on a step axis, and a slider for every source of a stage.

use std::collections::BTreeMap;

use egui::text::{LayoutJob, TextWrapping};
use egui::{Align, Align2, CursorIcon, FontId, Layout, Pos2, Rect, Response, RichText, Sense, SliderClamping, Ui, pos2, vec2};
use smolforge_engine::config::TrainConfig;
use smolforge_engine::data::curriculum::{Curriculum, Stage};
use smolforge_engine::data::mix_change::{MANY_EPOCHS, MixChange, updates_per_source};
use smolforge_engine::protocol::{Command, JobId};

use super::{Ask, named};
use crate::forms::Reweight;
use crate::session::{Run, Session};
use crate::theme;
use crate::units::{count, percent};

/// Height of the timeline.
const HEIGHT: f32 = 64.0;

/// Room for the name of a stage, or for a source with its share.
const CELL: egui::Vec2 = vec2(200.0, 24.0);

/// Changes the stages of a configuration. Weights always sum to 1.
pub fn show(ui: &mut Ui, session: &Session, config: &mut TrainConfig) {
    let sources: Vec<String> = config.sources.keys().cloned().collect();
    if sources.is_empty() {
        ui.weak("Add texts first: the mix decides which of them the model sees, and when.");
        return;
    }
    let names: Vec<&str> = sources.iter().map(String::as_str).collect();
    let mut curriculum = fitting(config, &names);
    let before = curriculum.clone();
    let mut other = false;
    ui.horizontal_wrapped(|ui| {
        if ui.button("one stage, equal shares").clicked() {
            curriculum = Curriculum::uniform(&names);
            other = true;
        }
        let reference = Curriculum::default().scaled(Curriculum::DEFAULT_STEPS, config.steps);
        let known = reference.stages.iter().flat_map(|stage| stage.weights.keys()).all(|name| sources.contains(name));
        let button = ui.add_enabled(known, egui::Button::new("the five stages of SmolLM2"));
        if button.on_disabled_hover_text("needs sources named input, code and math").clicked() {
            curriculum = reference;
            other = true;
        }
        if ui.button("add a stage").on_hover_text("Splits the longest stage in two").clicked() {
            split_longest(&mut curriculum, config.steps);
        }
    });
    timeline(ui, &mut curriculum, &names, config.steps, None);
    let mut removed = None;
    let many = curriculum.stages.len() > 1;
    for (index, stage) in curriculum.stages.iter_mut().enumerate() {
        ui.horizontal_wrapped(|ui| {
            ui.allocate_ui_with_layout(CELL, Layout::left_to_right(Align::Center), |ui| {
                ui.set_min_width(CELL.x);
                let edit = ui.add(egui::TextEdit::singleline(&mut stage.name).desired_width(CELL.x - 60.0));
                named(&edit, "name of the stage", &stage.name);
                if many && ui.small_button("×").on_hover_text("Leave this stage out").clicked() {
                    removed = Some(index);
                }
            });
            shares(ui, stage, &names);
        });
    }
    if let Some(index) = removed {
        curriculum.stages.remove(index);
        curriculum.stages[0].start = 0;
    }
    if other || curriculum.stages.len() != before.stages.len() {
        config.mix_changes.clear(); // they were made to other stages
    }
    if !config.mix_changes.is_empty() {
        ui.horizontal_wrapped(|ui| {
            let help = "Weights that were moved in the run these settings are from; they are moved again at the same steps";
            ui.label(format!("{} recorded changes of the mix are repeated", config.mix_changes.len())).on_hover_text(help);
            if ui.small_button("forget them").clicked() {
                config.mix_changes.clear();
            }
        });
    }
    let tokens_per_step = config.tokens_per_step() as f64;
    let planned = updates_per_source(&curriculum, &config.mix_changes, 0, config.steps)
        .into_iter()
        .map(|(name, steps)| (name, steps * tokens_per_step))
        .collect();
    passes(ui, session, config, &planned);
    if curriculum != before {
        config.data_stages = curriculum;
    }
}

/// Moves weights of a run in progress: of the stage it is in, and of those to come.
pub fn running(ui: &mut Ui, session: &Session, run: &Run, job: JobId, moved: &mut Option<Reweight>, asks: &mut Vec<Ask>) {
    let (Some(curriculum), Some(config)) = (&run.curriculum, &run.config) else {
        ui.weak("The mix is shown when the run has begun.");
        return;
    };
    let now = curriculum.stage_at(run.step());
    let answered = |moved: &Reweight| moved.changes != run.changes.len();
    if moved.as_ref().is_some_and(|moved| answered(moved) || moved.stage < now || moved.stage >= curriculum.stages.len()) {
        *moved = None; // the run has taken it up, or the stage is over
    }
    let mut shown = curriculum.clone();
    if let Some(moved) = moved {
        shown.stages[moved.stage].weights.clone_from(&moved.weights);
    }
    let (sources, step, steps) = (run.sources(), run.step(), run.total_steps());
    let names: Vec<&str> = sources.iter().map(String::as_str).collect();
    timeline(ui, &mut shown, &names, steps, Some(step));
    for (index, stage) in shown.stages.iter_mut().enumerate() {
        ui.add_enabled_ui(index >= now, |ui| {
            ui.horizontal_wrapped(|ui| {
                ui.allocate_ui_with_layout(CELL, Layout::left_to_right(Align::Center), |ui| {
                    ui.set_min_width(CELL.x);
                    let name = RichText::new(&stage.name);
                    ui.add(egui::Label::new(if index == now { name.strong() } else { name }).truncate());
                });
                let (changed, settled) = shares(ui, stage, &names);
                if changed && index >= now {
                    *moved = Some(Reweight { stage: index, weights: stage.weights.clone(), changes: run.changes.len() });
                }
                if let (true, Some(moved)) = (settled && index >= now, &moved) {
                    asks.push(Ask::Tell(job, Command::Reweight { stage: moved.stage, weights: moved.weights.clone() }));
                }
            });
        });
    }
    ui.weak("Moved weights count from the next step on.");
    let tokens_per_step = run.info.as_ref().map_or(config.tokens_per_step(), |info| info.tokens_per_step) as f64;
    let recorded: Vec<MixChange> = config.mix_changes.iter().filter(|change| change.step > step).cloned().collect();
    let to_come = updates_per_source(&shown, &recorded, step, steps);
    let planned = sources
        .iter()
        .map(|name| (name.clone(), run.steps.tokens_of(name) as f64 + to_come.get(name).copied().unwrap_or(0.0) * tokens_per_step));
    passes(ui, session, config, &planned.collect());
}

/// Planned tokens and, where the tokens of the texts are known, passes over every source.
fn passes(ui: &mut Ui, session: &Session, config: &TrainConfig, planned: &BTreeMap<String, f64>) {
    ui.horizontal_wrapped(|ui| {
        for (place, name) in config.sources.keys().enumerate() {
            let tokens = planned.get(name).copied().unwrap_or(0.0);
            let epochs = session.tokens_of(name, config).map(|known| tokens / known.max(1) as f64);
            ui.spacing_mut().item_spacing.x = 4.0;
            ui.colored_label(theme::series(place + 1), "■");
            let text = format!("{name}: {} tokens", count(tokens.round() as u64));
            let text = epochs.map_or_else(|| text.clone(), |epochs| format!("{text}, {epochs:.2} passes"));
            if epochs.is_some_and(|epochs| epochs > MANY_EPOCHS) {
                let text = RichText::new(format!("{text}: many")).color(theme::warning(ui.visuals().dark_mode));
                ui.label(text)
                    .on_hover_text("Beyond about four passes a model learns a text by heart: give it a smaller share, or more text");
            } else {
                ui.label(text);
            }
            ui.add_space(8.0);
        }
    });
}

/// A slider for every source; whether one was moved, and whether it was let go.
fn shares(ui: &mut Ui, stage: &mut Stage, names: &[&str]) -> (bool, bool) {
    let (mut changed, mut settled) = (false, false);
    for (place, source) in names.iter().enumerate() {
        let mut weight = stage.weights.get(*source).copied().unwrap_or(0.0);
        let cell = ui.allocate_ui_with_layout(CELL, Layout::left_to_right(Align::Center), |ui| share(ui, place, source, &mut weight));
        let slider = cell.inner;
        if slider.changed() {
            set_weight(stage, source, weight, names);
        }
        changed |= slider.changed();
        settled |= slider.drag_stopped() || (slider.changed() && !slider.dragged());
    }
    (changed, settled)
}

/// The share of a source.
fn share(ui: &mut Ui, place: usize, source: &str, weight: &mut f64) -> Response {
    ui.set_min_width(CELL.x);
    ui.spacing_mut().slider_width = CELL.x * 0.3;
    ui.colored_label(theme::series(place + 1), "■");
    let name = ui.allocate_ui_with_layout(vec2(CELL.x * 0.2, CELL.y), Layout::left_to_right(Align::Center), |ui| {
        ui.set_min_width(CELL.x * 0.2);
        ui.add(egui::Label::new(source).truncate())
    });
    name.response.on_hover_text(source);
    // `Edits`: a share between two steps of the slider stays what it is until it is moved.
    let slider = egui::Slider::new(weight, 0.0..=1.0).step_by(0.01).clamping(SliderClamping::Edits);
    let slider = ui.add(slider.custom_formatter(|value, _| percent(value)));
    slider.labelled_by(name.inner.id)
}

/// The stages as the run would have them: for these sources and this many steps.
fn fitting(config: &TrainConfig, names: &[&str]) -> Curriculum {
    let mut curriculum = config.data_stages.fitted(names, config.steps);
    for stage in &mut curriculum.stages {
        stage.weights.retain(|source, _| names.contains(&source.as_str()));
        normalise(stage, names);
    }
    curriculum.stages.retain(|stage| stage.start < config.steps.max(1));
    curriculum
}

/// Gives a source its share; the others keep their proportions in what is left.
fn set_weight(stage: &mut Stage, source: &str, weight: f64, names: &[&str]) {
    let others: f64 = stage.weights.iter().filter(|(name, _)| *name != source).map(|(_, weight)| weight).sum();
    let left = 1.0 - weight;
    for name in names.iter().filter(|name| **name != source) {
        let old = stage.weights.get(*name).copied().unwrap_or(0.0);
        let share = if others > 0.0 { old / others } else { 1.0 / (names.len() - 1) as f64 };
        stage.weights.insert(name.to_string(), left * share);
    }
    stage.weights.insert(source.into(), if names.len() == 1 { 1.0 } else { weight });
    normalise(stage, names);
}

fn normalise(stage: &mut Stage, names: &[&str]) {
    let sum: f64 = stage.weights.values().sum();
    if sum <= 0.0 || !sum.is_finite() {
        stage.weights = names.iter().map(|name| (name.to_string(), 1.0 / names.len() as f64)).collect();
        return;
    }
    stage.weights.values_mut().for_each(|weight| *weight /= sum);
    stage.weights.retain(|_, weight| *weight > 0.0);
}

fn split_longest(curriculum: &mut Curriculum, steps: u32) {
    let length = |index: usize| {
        let (start, end) = curriculum.range(index, steps);
        end.saturating_sub(start)
    };
    let Some(longest) = (0..curriculum.stages.len()).max_by_key(|index| length(*index)).filter(|index| length(*index) > 1) else { return };
    let start = curriculum.stages[longest].start + length(longest) / 2;
    let name = format!("Stage {}", curriculum.stages.len() + 1);
    let stage = Stage { name, start, ..curriculum.stages[longest].clone() };
    curriculum.stages.insert(longest + 1, stage);
}

/// Stages as columns of stacked shares; borders between them are dragged, unless the run is at a step already.
fn timeline(ui: &mut Ui, curriculum: &mut Curriculum, names: &[&str], steps: u32, at: Option<u32>) {
    let (response, painter) = ui.allocate_painter(vec2(ui.available_width(), HEIGHT + 16.0), Sense::hover());
    let area = Rect::from_min_size(response.rect.min, vec2(response.rect.width(), HEIGHT));
    let x_of = |step: u32| area.left() + area.width() * step as f32 / steps.max(1) as f32;
    let (ink, weak) = (ui.visuals().strong_text_color(), ui.visuals().weak_text_color());
    for (index, stage) in curriculum.stages.iter().enumerate() {
        let (start, end) = curriculum.range(index, steps);
        let mut top = area.top();
        for (place, name) in names.iter().enumerate() {
            let height = HEIGHT * stage.weights.get(*name).copied().unwrap_or(0.0) as f32;
            let part = Rect::from_min_max(pos2(x_of(start), top), pos2(x_of(end) - 1.0, top + height));
            painter.rect_filled(part, 0.0, theme::series(place + 1).gamma_multiply(0.55));
            top += height;
        }
        let room = Rect::from_min_max(pos2(x_of(start), area.top()), Pos2::new(x_of(end), area.bottom()));
        let mut name = LayoutJob::simple_singleline(stage.name.clone(), FontId::proportional(12.0), ink);
        name.wrap = TextWrapping::truncate_at_width((room.width() - 8.0).max(0.0));
        painter.with_clip_rect(room).galley(room.left_top() + vec2(4.0, 3.0), painter.layout_job(name), ink);
        let (x, digits) = (x_of(start), start.to_string());
        let align = if x + 24.0 > area.right() { Align2::RIGHT_TOP } else { Align2::LEFT_TOP };
        painter.text(pos2(x.max(area.left()), area.bottom() + 2.0), align, digits, FontId::proportional(11.0), weak);
    }
    if let Some(step) = at {
        let done = Rect::from_min_max(area.min, pos2(x_of(step), area.bottom()));
        painter.rect_filled(done, 0.0, ui.visuals().panel_fill.gamma_multiply(0.6));
        painter.vline(x_of(step), area.y_range(), egui::Stroke::new(2.0, ink));
        return;
    }
    for index in 1..curriculum.stages.len() {
        let x = x_of(curriculum.stages[index].start);
        let handle = Rect::from_center_size(pos2(x, area.center().y), vec2(8.0, HEIGHT));
        let border = ui.interact(handle, response.id.with(index), Sense::drag()).on_hover_cursor(CursorIcon::ResizeHorizontal);
        if border.hovered() || border.dragged() {
            painter.vline(x, area.y_range(), egui::Stroke::new(2.0, ink));
        }
        if let Some(pointer) = border.interact_pointer_pos().filter(|_| border.dragged()) {
            let step = ((pointer.x - area.left()) / area.width() * steps as f32).round().max(0.0) as u32;
            let low = curriculum.stages[index - 1].start + 1;
            let high = curriculum.stages.get(index + 1).map_or(steps, |next| next.start).saturating_sub(1).max(low);
            curriculum.stages[index].start = step.clamp(low, high);
        }
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::config::SourceConfig;

    use super::*;

    fn sum(stage: &Stage) -> f64 {
        stage.weights.values().sum()
    }

    #[test]
    fn weights_always_sum_to_one() {
        let names = ["a", "b", "c"];
        let mut stage = Curriculum::uniform(&names).stages.remove(0);
        set_weight(&mut stage, "a", 0.5, &names);
        assert!((stage.weights["a"] - 0.5).abs() < 1e-12 && (stage.weights["b"] - 0.25).abs() < 1e-12);
        set_weight(&mut stage, "a", 1.0, &names);
        assert_eq!(stage.weights.len(), 1, "what has no share is left out");
        set_weight(&mut stage, "a", 0.4, &names);
        assert!((stage.weights["b"] - 0.3).abs() < 1e-12, "from nothing, equal shares");
        set_weight(&mut stage, "b", 0.0, &names);
        assert!((sum(&stage) - 1.0).abs() < 1e-12);
        set_weight(&mut stage, "b", 0.2, &["b"]);
        assert!(sum(&stage) > 0.99);
    }

    #[test]
    fn what_is_shown_is_what_the_engine_takes() {
        let source = |name: &str| (name.to_string(), SourceConfig::Path(format!("{name}.txt")));
        for (names, steps) in [(vec!["input", "code", "math"], 5050), (vec!["input", "code", "math"], 60), (vec!["mine"], 10)] {
            let mut config = TrainConfig { steps, sources: names.iter().map(|name| source(name)).collect(), ..TrainConfig::default() };
            config.data_stages = fitting(&config, &names);
            config.validate().expect("a mix that can be trained");
            split_longest(&mut config.data_stages, steps);
            config.validate().expect("also after a split");
        }
    }
}
