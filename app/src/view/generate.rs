//! Texts from a model: what to ask for, and what was written.

use egui::{Align, ComboBox, DragValue, Grid, Key, Layout, Modifiers, RichText, ScrollArea, Slider, TextEdit, Ui};
use smolforge_engine::protocol::{Command, DeviceChoice, GenerateRequest, JobId, RunState, Sampling};

use super::Ask;
use crate::files::{Pick, Picker};
use crate::forms::Forms;
use crate::session::{Job, JobState, Session, Text};
use crate::theme;
use crate::units::{count, rate};

/// Ways to draw that are known to be good for something.
fn presets(seed: u64, repetition_penalty: f32) -> [(&'static str, &'static str, Sampling); 4] {
    let own = Sampling { seed, repetition_penalty, ..Sampling::default() };
    [
        ("precise", "temperature 0.3, top-p 0.9", Sampling { temperature: 0.3, top_p: 0.9, ..own }),
        ("balanced", "temperature 0.7, top-k 40", Sampling { temperature: 0.7, top_k: 40, ..own }),
        ("wild", "temperature 1.2, top-p 0.98", Sampling { temperature: 1.2, top_p: 0.98, ..own }),
        ("greedy", "always the most likely token", Sampling { greedy: true, ..own }),
    ]
}

/// Folders that can be generated with, the newest first: checkpoints, and exports that are likely to be there.
pub fn models(session: &Session) -> Vec<String> {
    let mut models: Vec<String> = session.live.iter().filter_map(|run| Some(run.saved.as_ref()?.1.clone())).collect();
    for run in session.runs.iter().flatten() {
        let demo = run.path.strip_suffix("/run").filter(|_| run.state == RunState::Finished);
        models.extend(run.checkpoints.iter().rev().map(|step| checkpoint(&run.path, *step)));
        models.extend(demo.map(|folder| format!("{folder}/export")));
        let exported = session.jobs.values().rev().find_map(|job| match &job.command {
            Command::Export { run: of, out, .. } if *of == run.path && job.state == JobState::Done => Some(out.clone()),
            _ => None,
        });
        models.extend(exported);
    }
    let mut known = std::collections::BTreeSet::new();
    models.retain(|model| known.insert(model.clone()));
    models
}

/// The model of a form: where its checkpoint has made room for newer ones of the same run, the newest of them.
pub fn current(session: &Session, model: &str) -> Option<String> {
    let (path, step) = model.rsplit_once("/step_")?;
    let run = session.runs.iter().flatten().find(|run| run.path == path)?;
    let gone = !run.checkpoints.contains(&step.parse().ok()?);
    run.checkpoints.last().filter(|_| gone).map(|newest| checkpoint(path, *newest))
}

/// The folder of a checkpoint.
pub fn checkpoint(run: &str, step: u32) -> String {
    format!("{run}/step_{step:06}")
}

/// The left side: the next text.
pub fn form(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    let models = models(session);
    if forms.generate.model.is_empty()
        && let Some(newest) = models.first()
    {
        forms.generate.model.clone_from(newest);
    }
    let keys = ui.input_mut(|input| input.consume_key(Modifiers::COMMAND, Key::Enter));
    ui.horizontal(|ui| {
        let ready = !forms.generate.model.trim().is_empty() && !forms.prompt.is_empty();
        let button = ui.add_enabled(ready, egui::Button::new(RichText::new("▶ generate").strong())).on_hover_text("Ctrl+Enter");
        if button.on_disabled_hover_text("Choose a model and write a prompt first").clicked() || (keys && ready) {
            let stop = forms.stop.lines().filter(|line| !line.is_empty()).map(String::from).collect();
            let request = GenerateRequest { prompts: vec![forms.prompt.clone()], stop, ..forms.generate.clone() };
            asks.push(Ask::Begin(Command::Generate(request)));
        }
        if session.training().is_some() {
            ui.weak("training waits meanwhile");
        }
    });
    ui.separator();
    ScrollArea::vertical().id_salt("generate").auto_shrink([false, false]).show(ui, |ui| {
        ui.strong("Model");
        ui.horizontal(|ui| {
            let width = (ui.available_width() - 80.0).max(100.0);
            ui.add(
                TextEdit::singleline(&mut forms.generate.model).desired_width(width).hint_text("run/step_000500 or a Hugging Face folder"),
            );
            ui.menu_button("▼", |ui| {
                if models.is_empty() {
                    ui.weak("No checkpoints yet: train something first");
                }
                ScrollArea::vertical().max_height(320.0).show(ui, |ui| {
                    for model in &models {
                        ui.selectable_value(&mut forms.generate.model, model.clone(), model);
                    }
                });
            })
            .response
            .on_hover_text("Checkpoints and exports of the runs here");
            if ui.button("…").on_hover_text("Choose a folder").clicked() {
                picker.open(Pick::Model, ui.ctx());
            }
        });
        ui.add_space(theme::GAP);
        ui.strong("Prompt");
        ui.add(TextEdit::multiline(&mut forms.prompt).desired_rows(5).desired_width(f32::INFINITY));
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
        ui.strong("Stop at").on_hover_text("A text ends before the first of these strings; one a line");
        let hint = "one string a line";
        ui.add(TextEdit::multiline(&mut forms.stop).desired_rows(2).desired_width(f32::INFINITY).hint_text(hint));
    });
}

fn numbers(ui: &mut Ui, request: &mut GenerateRequest) {
    let row = |ui: &mut Ui, name: &str, help: &str| {
        ui.label(name).on_hover_text(help);
    };
    let sampling = &mut request.sampling;
    ui.spacing_mut().slider_width = 150.0;
    Grid::new("sampling").num_columns(2).min_col_width(120.0).show(ui, |ui| {
        row(ui, "new tokens", "Most tokens that are written");
        ui.add(Slider::new(&mut request.max_new_tokens, 10..=500));
        ui.end_row();
        row(ui, "samples", "Independent texts after the same prompt");
        ui.add(Slider::new(&mut request.num_samples, 1..=4));
        ui.end_row();
        row(ui, "greedy", "Always take the most likely token");
        ui.checkbox(&mut sampling.greedy, "");
        ui.end_row();
        let draws = !sampling.greedy;
        row(ui, "temperature", "Below 1: safer, above 1: more surprising");
        ui.add_enabled(draws, Slider::new(&mut sampling.temperature, 0.0..=2.0).step_by(0.05).fixed_decimals(2));
        ui.end_row();
        row(ui, "top-k", "Draw from this many most likely tokens; 0: from all");
        ui.add_enabled(draws, Slider::new(&mut sampling.top_k, 0..=200));
        ui.end_row();
        row(ui, "top-p", "Draw from the smallest set of tokens that has this probability; 1: from all");
        ui.add_enabled(draws, Slider::new(&mut sampling.top_p, 0.01..=1.0).step_by(0.01).fixed_decimals(2));
        ui.end_row();
        row(ui, "min-p", "Leave out tokens less likely than this share of the most likely one; 0: none");
        ui.add_enabled(draws, Slider::new(&mut sampling.min_p, 0.0..=0.5).step_by(0.01).fixed_decimals(2));
        ui.end_row();
        row(ui, "repetition penalty", "Above 1: tokens that were seen become less likely");
        ui.add(Slider::new(&mut sampling.repetition_penalty, 1.0..=2.0).step_by(0.05).fixed_decimals(2));
        ui.end_row();
        row(ui, "seed", "The same seed gives the same text");
        ui.add_enabled(draws, DragValue::new(&mut sampling.seed));
        ui.end_row();
        row(ui, "device", "Where to compute");
        let word = |choice: DeviceChoice| match choice {
            DeviceChoice::Auto => "auto",
            DeviceChoice::Gpu => "gpu",
            DeviceChoice::Cpu => "cpu",
        };
        ComboBox::from_id_salt("device").selected_text(word(request.device)).show_ui(ui, |ui| {
            for choice in [DeviceChoice::Auto, DeviceChoice::Gpu, DeviceChoice::Cpu] {
                ui.selectable_value(&mut request.device, choice, word(choice));
            }
        });
        ui.end_row();
    });
}

/// The right side: texts that wait in the order in which they will be written, the one in progress, then the others
/// from the last on.
pub fn texts(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    if session.texts.is_empty() {
        ui.vertical_centered(|ui| {
            ui.add_space(ui.available_height() * 0.3);
            ui.heading("Nothing written yet");
            let known = !models(session).is_empty() || !forms.generate.model.is_empty();
            ui.weak(if known {
                "Write a prompt on the left and press generate."
            } else {
                "Train a model first, or choose a Hugging Face folder."
            });
        });
        return;
    }
    let mut shown: Vec<(&Text, &Job)> = session.texts.iter().filter_map(|text| Some((text, session.jobs.get(&text.job)?))).collect();
    let place = |job: &Job| match job.state {
        JobState::Waiting(before) => before, // above the text that grows, so that they stay where they are
        JobState::Running => usize::MAX - 1,
        JobState::Done | JobState::Failed(_) => usize::MAX,
    };
    let ended = |job: &Job| place(job) == usize::MAX;
    shown.sort_by_key(|(text, job)| (place(job), if ended(job) { JobId::MAX - text.job } else { text.job }));
    let last = shown.iter().filter(|(_, job)| matches!(job.state, JobState::Waiting(_))).map(|(_, job)| place(job)).max();
    ScrollArea::vertical().id_salt("texts").auto_shrink([false, false]).show(ui, |ui| {
        for (text, job) in shown {
            ui.push_id(text.job, |ui| {
                ui.group(|ui| {
                    ui.set_width(ui.available_width());
                    card(ui, text, job, Some(place(job)) == last, asks);
                });
            });
        }
    });
}

fn card(ui: &mut Ui, text: &Text, job: &Job, last: bool, asks: &mut Vec<Ask>) {
    ui.horizontal_wrapped(|ui| {
        let mut tell = |command| asks.push(Ask::Tell(text.job, command));
        match &job.state {
            JobState::Waiting(before) => {
                ui.label(if *before == 0 { "waits".to_string() } else { format!("{before} before it") });
                // The text in progress counts as one before it, and has no place in the queue.
                if ui.add_enabled(*before > 1, egui::Button::new("↑").small()).on_hover_text("Earlier").clicked() {
                    tell(Command::Move { position: before - 2 });
                }
                if ui.add_enabled(*before > 0 && !last, egui::Button::new("↓").small()).on_hover_text("Later").clicked() {
                    tell(Command::Move { position: *before });
                }
                if ui.add_enabled(!job.stopping, egui::Button::new("cancel").small()).clicked() {
                    tell(Command::Stop);
                }
            }
            JobState::Running => {
                ui.spinner();
                ui.label("writes");
                if ui.add_enabled(!job.stopping, egui::Button::new("stop").small()).clicked() {
                    tell(Command::Stop);
                }
            }
            JobState::Done | JobState::Failed(_) => {
                if ui.small_button("again").on_hover_text("The same with the next seed").clicked() {
                    let seed = text.request.sampling.seed.wrapping_add(1);
                    let sampling = Sampling { seed, ..text.request.sampling };
                    asks.push(Ask::Begin(Command::Generate(GenerateRequest { sampling, ..text.request.clone() })));
                }
            }
        }
        ui.weak(format!("{} · {}", text.request.model, drawn(&text.request.sampling)));
    });
    let prompt = text.request.prompts.first().map_or("", String::as_str);
    ui.add(egui::Label::new(RichText::new(prompt).weak()).wrap());
    match &job.state {
        JobState::Failed(error) => drop(ui.colored_label(theme::error(ui.visuals().dark_mode), format!("error: {error}"))),
        JobState::Done if text.finished.is_empty() => drop(ui.weak("cancelled before it began")),
        JobState::Waiting(_) => {}
        _ => ui.columns(text.samples.len().max(1), |columns| {
            for (index, (ui, written)) in columns.iter_mut().zip(&text.samples).enumerate() {
                // Columns are justified: that is for buttons, not for texts.
                ui.with_layout(Layout::top_down(Align::LEFT), |ui| sample(ui, text, prompt, written, text.finished.get(index), asks));
            }
        }),
    }
}

fn sample(ui: &mut Ui, text: &Text, prompt: &str, written: &str, finished: Option<&(usize, f64, String)>, asks: &mut Vec<Ask>) {
    ui.add(egui::Label::new(written).wrap());
    let Some((tokens, secs, finish)) = finished else { return };
    ui.horizontal_wrapped(|ui| {
        let why = match finish.as_str() {
            "stop" => "came to its end",
            "length" => "as long as asked for",
            "cancelled" => "stopped",
            other => other,
        };
        ui.weak(format!("{} tokens · {} tokens/s · {why}", count(*tokens as u64), rate(*tokens as f64 / secs.max(1e-9))));
        if ui.small_button("go on").on_hover_text("Prompt and text become the next prompt").clicked() {
            let prompts = vec![format!("{prompt}{written}")];
            asks.push(Ask::Begin(Command::Generate(GenerateRequest { prompts, num_samples: 1, ..text.request.clone() })));
        }
        if ui.small_button("copy").on_hover_text("Prompt and text").clicked() {
            ui.ctx().copy_text(format!("{prompt}{written}"));
        }
    });
}

/// How a text was drawn, in a few words.
fn drawn(sampling: &Sampling) -> String {
    let Sampling { greedy, temperature, top_k, top_p, min_p, repetition_penalty, seed } = *sampling;
    let parts = match greedy {
        true => vec!["greedy".to_string()],
        false => vec![
            format!("temperature {temperature}"),
            if top_k > 0 { format!("top-k {top_k}") } else { String::new() },
            if top_p < 1.0 { format!("top-p {top_p}") } else { String::new() },
            if min_p > 0.0 { format!("min-p {min_p}") } else { String::new() },
            format!("seed {seed}"),
        ],
    };
    let penalty = if repetition_penalty == 1.0 { String::new() } else { format!("penalty {repetition_penalty}") };
    parts.into_iter().chain([penalty]).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::{Event, RunSummary};

    use super::super::runs::export;
    use super::*;

    fn run(path: &str, state: RunState, checkpoints: &[u32]) -> RunSummary {
        RunSummary {
            path: path.into(),
            state,
            step: 9,
            steps: 9,
            parameters: 0,
            changed: 0.0,
            losses: Vec::new(),
            best: None,
            checkpoints: checkpoints.to_vec(),
            size_bytes: 0,
            exports: Vec::new(),
        }
    }

    #[test]
    fn models_are_checkpoints_from_the_newest_on_and_exports() {
        let mut session = Session::default();
        let runs = vec![run("demo/run", RunState::Finished, &[200, 600]), run("b", RunState::Stopped, &[5])];
        session.runs = Some(runs);
        session.sent(1, export("b"));
        assert_eq!(models(&session), ["demo/run/step_000600", "demo/run/step_000200", "demo/export", "b/step_000005"]);
        session.apply(1, Event::Done { hints: Vec::new(), stopped: false });
        assert_eq!(models(&session).last().map(String::as_str), Some("b/export"));
    }

    #[test]
    fn a_checkpoint_that_is_gone_makes_way_for_the_newest() {
        let session = Session { runs: Some(vec![run("a", RunState::Open, &[5, 10])]), ..Session::default() };
        assert_eq!(current(&session, "a/step_000001").as_deref(), Some("a/step_000010"));
        for kept in ["a/step_000005", "b/step_000001", "a", "a/step_x"] {
            assert_eq!(current(&session, kept), None, "{kept}");
        }
    }

    #[test]
    fn the_way_of_drawing_is_told_in_a_few_words() {
        let [precise, balanced, _, greedy] = presets(7, 1.0).map(|(_, _, sampling)| drawn(&sampling));
        assert_eq!(precise, "temperature 0.3, top-p 0.9, seed 7");
        assert_eq!(balanced, "temperature 0.7, top-k 40, seed 7");
        assert_eq!(greedy, "greedy");
    }
}
