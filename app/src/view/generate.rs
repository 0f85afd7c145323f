//! Texts from a model: what to ask for, and what was written.

use std::collections::BTreeSet;

use egui::{DragValue, Grid, Response, RichText, ScrollArea, Slider, TextEdit, Ui};
use smolforge_engine::protocol::{Command, GenerateRequest, Sampling};
use smolforge_engine::train::checkpoint;

use super::device::choose_device;
use super::{Ask, START, named, pressed, texts, with_keys};
use crate::files::{Pick, Picker};
use crate::forms::Forms;
use crate::session::Session;
use crate::theme;

/// Alternatives that are shown of every token.
const ALTERNATIVES: usize = 5;

/// Ways to draw that are known to be good for something.
pub fn presets(seed: u64, repetition_penalty: f32) -> [(&'static str, &'static str, Sampling); 4] {
    let own = Sampling { seed, repetition_penalty, ..Sampling::default() };
    [
        ("precise", "temperature 0.3, top-p 0.9", Sampling { temperature: 0.3, top_p: 0.9, ..own }),
        ("balanced", "temperature 0.7, top-k 40", Sampling { temperature: 0.7, top_k: 40, ..own }),
        ("wild", "temperature 1.2, top-p 0.98", Sampling { temperature: 1.2, top_p: 0.98, ..own }),
        ("greedy", "always the most likely token", Sampling { greedy: true, ..own }),
    ]
}

/// Folders that can be generated with, the newest first: checkpoints and exports.
pub fn models(session: &Session) -> Vec<String> {
    let mut models: Vec<String> =
        session.live.iter().filter(|run| !run.tunes).filter_map(|run| Some(run.saved.as_ref()?.1.clone())).collect();
    for run in session.runs.iter().flatten() {
        let steps = run.checkpoints.iter().rev().filter(|_| !run.has_adapters());
        models.extend(steps.map(|step| checkpoint::folder(&run.path, *step)));
        models.extend(run.exports.iter().cloned());
    }
    let mut known = BTreeSet::new();
    models.retain(|model| known.insert(model.clone()));
    models
}

/// The model of a form: where its checkpoint has made room for newer ones of the same run, the newest of them.
pub fn current(session: &Session, model: &str) -> Option<String> {
    let (path, step) = model.rsplit_once("/step_")?;
    let run = session.runs.iter().flatten().find(|run| run.path == path && !run.has_adapters())?;
    let gone = !run.checkpoints.contains(&step.parse().ok()?);
    run.checkpoints.last().filter(|_| gone).map(|newest| checkpoint::folder(path, *newest))
}

/// The left side: the next text.
pub fn form(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    if forms.generate.model.is_empty() {
        forms.generate.model = models(session).into_iter().next().unwrap_or_default();
    }
    texts::stop_by_keys(ui, session, asks);
    ui.horizontal_wrapped(|ui| {
        let second = !forms.compare || !forms.second.trim().is_empty();
        let ready = !forms.generate.model.trim().is_empty() && !forms.prompt.is_empty() && second;
        let button = ui.add_enabled(ready, egui::Button::new(RichText::new("▶ generate").strong()));
        let button = button.on_hover_text(with_keys(ui, "Adds a text to the queue", &START));
        if button.on_disabled_hover_text("Choose a model and write a prompt first").clicked() || (pressed(ui, &START) && ready) {
            let stop = forms.stop.lines().filter(|line| !line.is_empty()).map(String::from).collect();
            let request = GenerateRequest { prompts: vec![forms.prompt.clone()], stop, ..forms.generate.clone() };
            let second = forms.compare.then(|| GenerateRequest { model: forms.second.clone(), ..request.clone() });
            asks.extend([Some(request), second].into_iter().flatten().map(|request| Ask::Begin(Command::Generate(request))));
        }
        if session.training().is_some() {
            ui.weak("training waits meanwhile");
        }
    });
    ui.separator();
    ScrollArea::vertical().id_salt("generate").auto_shrink([false, false]).show(ui, |ui| {
        ui.strong("Model");
        if let Some(pick) = model(ui, "model", &mut forms.generate.model, session, Some(Pick::Model)) {
            picker.open(pick);
        }
        ui.checkbox(&mut forms.compare, "compare with a second model").on_hover_text("The same prompt to both, side by side");
        if forms.compare {
            let _ = model(ui, "second model", &mut forms.second, session, None);
        }
        ui.add_space(theme::GAP);
        let label = ui.strong("Prompt");
        ui.add(TextEdit::multiline(&mut forms.prompt).desired_rows(5).desired_width(f32::INFINITY)).labelled_by(label.id);
        ui.add_space(theme::GAP);
        ui.horizontal_wrapped(|ui| {
            let sampling = &mut forms.generate.sampling;
            for (name, what, preset) in presets(sampling.seed, sampling.repetition_penalty) {
                let button = egui::Button::new(name).selected(*sampling == preset);
                if ui.add(button).on_hover_text(what).clicked() {
                    *sampling = preset;
                }
            }
        });
        numbers(ui, &mut forms.generate);
        ui.add_space(theme::GAP);
        let label = ui.strong("Stop at").on_hover_text("A text ends before the first of these strings; one a line");
        let hint = "one string a line";
        let edit = TextEdit::multiline(&mut forms.stop).desired_rows(2).desired_width(f32::INFINITY).hint_text(hint);
        ui.add(edit).labelled_by(label.id);
    });
}

/// A model, typed, from a menu, or from a dialog for what is to be picked; whether that is to be opened.
pub fn model(ui: &mut Ui, name: &str, chosen: &mut String, session: &Session, pick: Option<Pick>) -> Option<Pick> {
    let mut opened = None;
    ui.push_id(name, |ui| {
        ui.horizontal(|ui| {
            let width = (ui.available_width() - 80.0).max(100.0);
            let hint = "run/step_000500 or a Hugging Face folder";
            let edit = ui.add(TextEdit::singleline(chosen).desired_width(width).hint_text(hint));
            named(&edit, name, chosen);
            let menu = ui.menu_button("▼", |ui| {
                let models = models(session);
                if models.is_empty() {
                    ui.weak("No checkpoints yet: train something first");
                }
                ScrollArea::vertical().max_height(320.0).show(ui, |ui| {
                    for model in models {
                        ui.selectable_value(chosen, model.clone(), model);
                    }
                });
            });
            menu.response.on_hover_text("Checkpoints and exports of the runs here");
            if pick.is_some() && ui.button("…").on_hover_text("Choose a folder").clicked() {
                opened = pick;
            }
        });
    });
    opened
}

/// How a text is drawn, and how long it is.
pub fn numbers(ui: &mut Ui, request: &mut GenerateRequest) {
    let row = |ui: &mut Ui, name: &str, help: &str, enabled: bool, widget: &mut dyn FnMut(&mut Ui) -> Response| {
        let label = ui.label(name).on_hover_text(help);
        ui.add_enabled_ui(enabled, |ui| widget(ui).labelled_by(label.id));
        ui.end_row();
    };
    let GenerateRequest { sampling, max_new_tokens, num_samples, alternatives, device, .. } = request;
    ui.spacing_mut().slider_width = 150.0;
    Grid::new("sampling").num_columns(2).min_col_width(120.0).show(ui, |ui| {
        row(ui, "new tokens", "Most tokens that are written", true, &mut |ui| ui.add(Slider::new(max_new_tokens, 10..=500)));
        row(ui, "samples", "Independent texts after the same prompt", true, &mut |ui| ui.add(Slider::new(num_samples, 1..=4)));
        let greedy = &mut sampling.greedy;
        row(ui, "greedy", "Always take the most likely token", true, &mut |ui| ui.checkbox(greedy, "always the likeliest"));
        let draws = !*greedy;
        row(ui, "temperature", "Below 1: safer, above 1: more surprising", draws, &mut |ui| {
            ui.add(Slider::new(&mut sampling.temperature, 0.0..=2.0).step_by(0.05).fixed_decimals(2))
        });
        row(ui, "top-k", "Draw from this many most likely tokens; 0: from all", draws, &mut |ui| {
            ui.add(Slider::new(&mut sampling.top_k, 0..=200))
        });
        row(ui, "top-p", "Draw from the smallest set of tokens that has this probability; 1: from all", draws, &mut |ui| {
            ui.add(Slider::new(&mut sampling.top_p, 0.01..=1.0).step_by(0.01).fixed_decimals(2))
        });
        row(ui, "min-p", "Leave out tokens less likely than this share of the most likely one; 0: none", draws, &mut |ui| {
            ui.add(Slider::new(&mut sampling.min_p, 0.0..=0.5).step_by(0.01).fixed_decimals(2))
        });
        row(ui, "repetition penalty", "Above 1: tokens that were seen become less likely", true, &mut |ui| {
            ui.add(Slider::new(&mut sampling.repetition_penalty, 1.0..=2.0).step_by(0.05).fixed_decimals(2))
        });
        row(ui, "seed", "The same seed draws the same text", draws, &mut |ui| ui.add(DragValue::new(&mut sampling.seed)));
        let help = "Shades every token by how likely it was; its alternatives show when the pointer is on it";
        row(ui, "probabilities", help, true, &mut |ui| {
            let mut shown = *alternatives > 0;
            let check = ui.checkbox(&mut shown, "show");
            *alternatives = if shown { ALTERNATIVES } else { 0 };
            check
        });
        row(ui, "device", "Where to compute", true, &mut |ui| choose_device(ui, "device", device));
    });
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::{RunState, RunSummary};

    use super::*;

    fn run(path: &str, state: RunState, checkpoints: &[u32]) -> RunSummary {
        RunSummary { path: path.into(), state, checkpoints: checkpoints.to_vec(), ..RunSummary::default() }
    }

    #[test]
    fn models_are_checkpoints_from_the_newest_on_and_exports() {
        let mut demo = run("demo/run", RunState::Finished, &[200, 600]);
        demo.exports = vec!["demo/export".into(), "demo/run/export".into()];
        let session = Session { runs: Some(vec![demo, run("b", RunState::Stopped, &[5])]), ..Session::default() };
        let expect = ["demo/run/step_000600", "demo/run/step_000200", "demo/export", "demo/run/export", "b/step_000005"];
        assert_eq!(models(&session), expect);
    }

    #[test]
    fn a_checkpoint_that_is_gone_makes_way_for_the_newest() {
        let session = Session { runs: Some(vec![run("a", RunState::Open, &[5, 10])]), ..Session::default() };
        assert_eq!(current(&session, "a/step_000001").as_deref(), Some("a/step_000010"));
        for kept in ["a/step_000005", "b/step_000001", "a", "a/step_x"] {
            assert_eq!(current(&session, kept), None, "{kept}");
        }
    }
}
