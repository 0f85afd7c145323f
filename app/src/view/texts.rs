//! Texts that wait, grow and are written: a card for every request.

use egui::{Align, Id, Label, Layout, RichText, ScrollArea, Ui, vec2};
use smolforge_engine::protocol::{Command, GenerateRequest, JobId, Sampling};

use super::generate::models;
use super::{Ask, STOP, pressed, unless_hidden, with_keys};
use crate::forms::Forms;
use crate::session::{Job, JobState, Session, Text, Token};
use crate::theme;
use crate::units::{count, duration, percent, rate, written_per_sec};

/// The narrowest column in which a text can be read.
const COLUMN: f32 = 180.0;

/// The right side: texts that wait in the order in which they will be written, the one in progress, then the others
/// from the last on.
pub fn show(ui: &mut Ui, session: &Session, forms: &Forms, asks: &mut Vec<Ask>) {
    if session.texts.is_empty() {
        ui.vertical_centered(|ui| {
            ui.add_space(ui.available_height() * 0.3);
            ui.heading("Nothing written yet");
            let known = !models(session).is_empty() || !forms.generate.model.is_empty();
            ui.weak(if known { "Write a prompt and press generate." } else { "Train a model first, or choose a Hugging Face folder." });
        });
        return;
    }
    ScrollArea::vertical().id_salt("texts").auto_shrink([false, false]).show(ui, |ui| cards(ui, session, |_| true, asks));
}

/// Ends the text in progress where people press the keys for that.
pub fn stop_by_keys(ui: &Ui, session: &Session, asks: &mut Vec<Ask>) {
    let running = session.texts.iter().find(|text| session.jobs.get(&text.job).is_some_and(|job| job.state == JobState::Running));
    if let Some(text) = running.filter(|_| pressed(ui, &STOP)) {
        asks.push(Ask::Tell(text.job, Command::Stop));
    }
}

/// Cards of texts, those that wait first.
pub fn cards(ui: &mut Ui, session: &Session, wanted: impl Fn(&[&Text]) -> bool, asks: &mut Vec<Ask>) {
    let place = |text: &Text| match session.jobs.get(&text.job).map(|job| &job.state) {
        Some(JobState::Waiting(before)) => *before, // above the text that grows, so that they stay where they are
        Some(JobState::Running) => usize::MAX - 1,
        _ => usize::MAX,
    };
    let of_card = |card: &[&Text]| card.iter().map(|text| place(text)).min().unwrap_or(usize::MAX);
    let mut cards = session.cards();
    cards.retain(|card| wanted(card));
    cards.sort_by_key(|card| (of_card(card), if of_card(card) == usize::MAX { JobId::MAX - card[0].job } else { card[0].job }));
    let waiting = session.texts.iter().filter(|text| place(text) < usize::MAX - 1);
    let last = waiting.max_by_key(|text| (place(text), text.job)).map(|text| text.job);
    for card in cards {
        unless_hidden(ui, Id::unique(("card", card[0].job)), of_card(&card) == usize::MAX, |ui| {
            ui.group(|ui| {
                ui.set_width(ui.available_width());
                match card.as_slice() {
                    [text] => one(ui, session, text, last, asks),
                    several => columns(ui, several.len(), |index, ui| one(ui, session, several[index], last, asks)),
                }
            });
        });
    }
}

/// Side by side where there is room, else below each other.
fn columns(ui: &mut Ui, number: usize, mut draw: impl FnMut(usize, &mut Ui)) {
    if ui.available_width() < COLUMN * number as f32 {
        (0..number).for_each(|index| {
            ui.push_id(index, |ui| draw(index, ui));
        });
        return;
    }
    ui.columns(number, |columns| {
        for (index, ui) in columns.iter_mut().enumerate() {
            // Columns are justified: that is for buttons, not for texts.
            ui.with_layout(Layout::top_down(Align::LEFT), |ui| draw(index, ui));
        }
    });
}

fn one(ui: &mut Ui, session: &Session, text: &Text, last: Option<JobId>, asks: &mut Vec<Ask>) {
    let Some(job) = session.jobs.get(&text.job) else { return };
    ui.horizontal_wrapped(|ui| {
        controls(ui, session, text, job, last, asks);
        ui.weak(format!("{} · {}", who(&text.request), drawn(&text.request.sampling)));
    });
    let prompt = asked(&text.request);
    ui.add(Label::new(RichText::new(prompt).weak()).wrap());
    match &job.state {
        JobState::Failed(error) => drop(ui.colored_label(theme::error(ui.visuals().dark_mode), format!("error: {error}"))),
        JobState::Done if text.finished.is_empty() => drop(ui.weak("cancelled before it began")),
        JobState::Waiting(_) => {}
        _ => columns(ui, text.samples.len().max(1), |index, ui| sample(ui, text, prompt, index, asks)),
    }
}

fn controls(ui: &mut Ui, session: &Session, text: &Text, job: &Job, last: Option<JobId>, asks: &mut Vec<Ask>) {
    let mut tell = |command| asks.push(Ask::Tell(text.job, command));
    let eta = session.eta_secs(text.job).map(|secs| format!(" · about {} to go", duration(secs.ceil()))).unwrap_or_default();
    match &job.state {
        JobState::Waiting(before) => {
            ui.label(if *before == 0 { format!("waits{eta}") } else { format!("{before} before it{eta}") });
            // The text in progress counts as one before it, and has no place in the queue.
            if ui.add_enabled(*before > 1, egui::Button::new("↑").small()).on_hover_text("Earlier").clicked() {
                tell(Command::Move { position: before - 2 });
            }
            if ui.add_enabled(*before > 0 && last != Some(text.job), egui::Button::new("↓").small()).on_hover_text("Later").clicked() {
                tell(Command::Move { position: *before });
            }
            if ui.add_enabled(!job.stopping, egui::Button::new("cancel").small()).clicked() {
                tell(Command::Stop);
            }
        }
        JobState::Running => {
            ui.spinner();
            ui.label(format!("writes{eta}"));
            let stop = ui.add_enabled(!job.stopping, egui::Button::new("stop").small());
            if stop.on_hover_text(with_keys(ui, "Ends the text here", &STOP)).clicked() {
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
}

fn sample(ui: &mut Ui, text: &Text, prompt: &str, index: usize, asks: &mut Vec<Ask>) {
    let written = text.samples.get(index).map_or("", String::as_str);
    match text.tokens.get(index).filter(|tokens| !tokens.is_empty()) {
        Some(known) => tokens(ui, known),
        None => drop(ui.add(Label::new(written).wrap())),
    }
    let Some((tokens, secs, finish)) = text.finished.get(index) else { return };
    ui.horizontal_wrapped(|ui| {
        let why = match finish.as_str() {
            "stop" => "came to its end",
            "length" => "as long as asked for",
            "cancelled" => "stopped",
            other => other,
        };
        let speed = written_per_sec(*tokens, *secs).map_or(String::new(), |speed| format!(" · {} tokens/s", rate(speed)));
        ui.weak(format!("{} tokens{speed} · {why}", count(*tokens as u64)));
        if text.request.messages.is_empty() && ui.small_button("go on").on_hover_text("Prompt and text become the next prompt").clicked() {
            let prompts = vec![format!("{prompt}{written}")];
            asks.push(Ask::Begin(Command::Generate(GenerateRequest { prompts, num_samples: 1, ..text.request.clone() })));
        }
        if ui.small_button("copy").on_hover_text("Prompt and text").clicked() {
            let between = if text.request.messages.is_empty() { "" } else { "\n\n" };
            ui.ctx().copy_text(format!("{prompt}{between}{written}"));
        }
    });
}

/// A text token by token: the less likely, the stronger its background.
fn tokens(ui: &mut Ui, tokens: &[Token]) {
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = vec2(0.0, 2.0);
        for token in tokens {
            let shown = token.text.replace('\n', "↵");
            let fill = theme::doubt(ui.visuals(), token.probability);
            let label = ui.add(Label::new(RichText::new(shown).background_color(fill)).sense(egui::Sense::hover()));
            label.on_hover_ui(|ui| alternatives(ui, token));
            if token.text.ends_with('\n') {
                ui.end_row();
            }
        }
    });
}

fn alternatives(ui: &mut Ui, token: &Token) {
    ui.strong(format!("{:?} · {}", token.text, percent(token.probability)));
    egui::Grid::new("alternatives").num_columns(2).show(ui, |ui| {
        for (text, probability) in &token.alternatives {
            let text = RichText::new(format!("{text:?}"));
            ui.label(if *probability == token.probability { text.strong() } else { text });
            ui.label(percent(*probability));
            ui.end_row();
        }
    });
}

/// What the model was given: a prompt, or the last turn of a conversation.
fn asked(request: &GenerateRequest) -> &str {
    let turn = request.messages.last().and_then(|message| message.content.as_deref());
    turn.or(request.prompts.first().map(String::as_str)).unwrap_or_default()
}

/// The model that writes, with its adapters.
fn who(request: &GenerateRequest) -> String {
    let adapters = request.adapters.iter().map(|adapter| format!(" + {} × {}", adapter.path, adapter.strength));
    std::iter::once(request.model.clone()).chain(adapters).collect()
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
    use super::super::generate::presets;
    use super::*;

    #[test]
    fn the_way_of_drawing_is_told_in_a_few_words() {
        let [precise, balanced, _, greedy] = presets(7, 1.0).map(|(_, _, sampling)| drawn(&sampling));
        assert_eq!(precise, "temperature 0.3, top-p 0.9, seed 7");
        assert_eq!(balanced, "temperature 0.7, top-k 40, seed 7");
        assert_eq!(greedy, "greedy");
    }
}
