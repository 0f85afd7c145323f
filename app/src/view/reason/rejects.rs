//! Questions that no sample of a rollout answers rightly: people write how they are worked out, and keep that.

use egui::{CollapsingHeader, Id, Label, RichText, TextEdit, Ui};
use smolforge_engine::protocol::{Command, ReasonVerb, Reject};
use smolforge_engine::tasks::reason::answer;

use super::replies::pages;
use super::{begin, empty, scrolled};
use crate::forms::Reason;
use crate::session::{JobState, Session};
use crate::theme;
use crate::units::amount;
use crate::view::{Ask, START, named, pressed, settled, with_keys};

/// Rejects on a page.
const PAGE: usize = 10;

/// The rejects of the form's rollout, asked for when nobody types any more.
pub fn show(ui: &mut Ui, session: &Session, reason: &mut Reason, asks: &mut Vec<Ask>) {
    let data = reason.at("rft.json");
    let ask = begin(&reason.config, ReasonVerb::Rejects { data: data.clone() });
    let is_it = |command: &Command| matches!(command, Command::Reason { verb: ReasonVerb::Rejects { data: asked }, .. } if *asked == data);
    let last = session.last(is_it).map(|job| &job.state);
    let free = session.reasoning().is_none() && session.training().is_none();
    if last.is_none() && free && settled(ui, Id::unique("rejects"), &data) {
        asks.push(ask.clone());
    }
    let open = matches!(last, Some(JobState::Waiting(_) | JobState::Running));
    ui.horizontal_wrapped(|ui| {
        if ui.add_enabled(free && !open, egui::Button::new("look again")).on_hover_text(format!("Reads {data} anew")).clicked() {
            asks.push(ask);
        }
        if open {
            ui.spinner();
        } else if !free {
            ui.weak("These questions are read when the job in progress has ended.");
        }
        if let Some(JobState::Failed(why)) = last {
            ui.add(Label::new(RichText::new(format!("error: {why}")).color(theme::error(ui.visuals().dark_mode))).wrap());
        }
    });
    match session.reason.rejected.as_ref().filter(|(of, _)| *of == data) {
        None if free && !open => empty(ui, "No rollout yet", "Press roll out: what no sample answers rightly is mended here by hand."),
        None => {}
        Some((_, rejects)) if rejects.is_empty() => empty(ui, "No rejects", "Every question has a right sample."),
        Some((_, rejects)) => scrolled(ui, "rejects", |ui| {
            let questions = amount(rejects.len() as u64, "questions");
            ui.label(format!("{questions} without a right sample: what you write is learned like what the teacher wrote"));
            pages(ui, &mut reason.first, rejects.len(), PAGE);
            for (place, reject) in rejects.iter().enumerate().skip(reason.first).take(PAGE) {
                ui.push_id(("reject", place, &reject.question), |ui| card(ui, session, reason, reject, free, asks));
            }
        }),
    }
}

/// A question, what the teacher wrote, and what people write instead.
fn card(ui: &mut Ui, session: &Session, reason: &mut Reason, reject: &Reject, free: bool, asks: &mut Vec<Ask>) {
    let Reject { question, expected, samples } = reject;
    let mut text = reason.mends.get(question).cloned().unwrap_or_default();
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        ui.horizontal_wrapped(|ui| {
            ui.strong(question);
            ui.label(format!("right answer {}", answer::shown(*expected)));
        });
        CollapsingHeader::new(amount(samples.len() as u64, "samples")).id_salt("samples").show(ui, |ui| {
            for sample in samples {
                ui.horizontal_wrapped(|ui| {
                    if ui.small_button("take up").on_hover_text("Puts it into the field below, to be mended").clicked() {
                        text = sample.trim().into();
                    }
                    ui.weak(verdict(sample, *expected, reason.config.tolerance).unwrap_or_else(|why| why));
                });
                ui.add(Label::new(sample.trim()).wrap());
            }
        });
        let hint = "how it is worked out, and <answer>the number</answer>";
        let edit = TextEdit::multiline(&mut text).id_salt("mend").desired_rows(2).desired_width(f32::INFINITY).hint_text(hint);
        let edit = ui.add(edit);
        named(&edit, "reasoning", &text);
        let verdict = verdict(&text, *expected, reason.config.tolerance);
        let mends =
            |command: &Command| matches!(command, Command::Reason { verb: ReasonVerb::Mend { question: of, .. }, .. } if of == question);
        ui.horizontal_wrapped(|ui| {
            let why_not = match &verdict {
                Ok(_) if free && session.active(mends).is_none() => None,
                Ok(_) => Some("The job in progress comes first"),
                Err(why) => Some(why.as_str()),
            };
            let keep = ui.add_enabled(why_not.is_none(), egui::Button::new("keep")).on_disabled_hover_text(why_not.unwrap_or_default());
            let keep = keep.on_hover_text(with_keys(ui, "Puts it into the rows to learn", &START));
            if keep.clicked() || (why_not.is_none() && edit.has_focus() && pressed(ui, &START)) {
                let verb = ReasonVerb::Mend { data: reason.at("rft.json"), question: question.clone(), reasoning: text.clone() };
                asks.push(begin(&reason.config, verb));
            }
            let dark = ui.visuals().dark_mode;
            match &verdict {
                Ok(said) => drop(ui.colored_label(theme::good(dark), format!("● {said}"))),
                Err(why) if !text.trim().is_empty() => drop(ui.colored_label(theme::warning(dark), format!("● {why}"))),
                Err(_) => {}
            }
        });
    });
    match text.is_empty() {
        true => drop(reason.mends.remove(question)),
        false => drop(reason.mends.insert(question.clone(), text)),
    }
}

/// Whether the answer of a text is right, in words.
fn verdict(text: &str, expected: f64, tolerance: f64) -> Result<String, String> {
    let found = answer::parse(text);
    match answer::is_right(found, expected, tolerance) {
        true => Ok(format!("its answer {} is right", answer::shown(found))),
        false if found.is_nan() => Err("it has no answer: <answer>the number</answer>".into()),
        false => Err(format!("its answer {} is not right", answer::shown(found))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<&str, &str>) {
        assert_eq!(verdict(text, 6000.0, 0.05).as_deref().map_err(String::as_str), expect);
    }

    #[test]
    fn a_text_is_judged_by_its_answer() {
        let nothing = Err("it has no answer: <answer>the number</answer>");
        check("", nothing);
        check("6 * 1000 = 6000", nothing);
        check("<answer>6,000</answer>", nothing);
        check("6 * 100 = <answer>600</answer>", Err("its answer 600.0 is not right"));
        check("6 * 1000 = <answer>6000</answer>", Ok("its answer 6000.0 is right"));
        check("about <answer>6100", Ok("its answer 6100.0 is right"));
    }
}
