//! Tests side by side, and what models replied in them.

use std::collections::{BTreeMap, BTreeSet};

use egui::{CollapsingHeader, Grid, Id, Label, RichText, Ui};
use smolforge_engine::protocol::{Reply, Tally, TestReport};
use smolforge_engine::tasks::reason::answer;

use super::{NAMES, bar, empty, scrolled};
use crate::forms::{Reason, Replies};
use crate::session::Session;
use crate::theme;
use crate::units::{count, duration, percent, rate};
use crate::view::unless_hidden;

/// Replies on a page.
const PAGE: usize = 20;

/// Tests in the order in which a task makes them, with what they are called.
const TESTS: [(&str, &str); 4] = [("base", "student alone"), ("cot", "CoT"), ("sft", "SFT"), ("rft", "RFT")];

/// The last test of everything that was tested.
pub fn show(ui: &mut Ui, session: &Session, reason: &mut Reason) {
    let tests = in_order(&session.reason.tests);
    if tests.is_empty() {
        let how = match reason.tested() {
            Some(_) => "Press test (CoT), or let the student learn: it is tested at the end.",
            None => "Press test (CoT), or choose a valid file: the student is then tested whenever it has learned.",
        };
        return empty(ui, "No test yet", how);
    }
    let shown = &mut reason.replies;
    scrolled(ui, "tests", |ui| {
        table(ui, &tests);
        ui.add_space(theme::GAP);
        CollapsingHeader::new("What they replied").id_salt("replies").show(ui, |ui| replies(ui, &tests, shown));
    });
}

/// Tests that were made, with their names.
fn in_order(tests: &BTreeMap<String, TestReport>) -> Vec<(&str, &TestReport)> {
    let known = TESTS.iter().filter_map(|(what, name)| Some((*name, tests.get(*what)?)));
    let others = tests.iter().filter(|(what, _)| TESTS.iter().all(|(known, _)| known != what));
    known.chain(others.map(|(what, test)| (what.as_str(), test))).collect()
}

/// A column for every test: shares of all questions, and by kind of unit.
fn table(ui: &mut Ui, tests: &[(&str, &TestReport)]) {
    let columns = tests.len() as f32;
    let space = ui.spacing().item_spacing.x;
    let width = ((ui.available_width() - NAMES - space * (columns + 1.0)) / columns).clamp(140.0, 180.0);
    let kinds: BTreeSet<&String> = tests.iter().flat_map(|(_, test)| test.kinds.keys()).collect();
    let (rate_bar, accuracy_bar, kind_bar) = (theme::bar(ui.visuals(), 5), theme::bar(ui.visuals(), 2), theme::bar(ui.visuals(), 0));
    egui::ScrollArea::horizontal().id_salt("table").show(ui, |ui| {
        Grid::new("tests").num_columns(tests.len() + 1).min_col_width(NAMES).show(ui, |ui| {
            ui.label("");
            tests.iter().for_each(|(name, _)| drop(ui.strong(*name)));
            ui.end_row();
            ui.label("accuracy").on_hover_text("Share of the questions with the right answer");
            for (_, test) in tests {
                bar(ui, width, test.all.accuracy(), accuracy_bar, &told(test.all.right, &test.all));
            }
            ui.end_row();
            ui.label("answer rate").on_hover_text("Share of the questions with any number as their answer");
            for (_, test) in tests {
                bar(ui, width, test.all.answer_rate(), rate_bar, &told(test.all.answered, &test.all));
            }
            ui.end_row();
            for kind in kinds {
                ui.label(kind);
                for (_, test) in tests {
                    match test.kinds.get(kind) {
                        Some(tally) => drop(bar(ui, width, tally.accuracy(), kind_bar, &told(tally.right, tally))),
                        None => drop(ui.weak("–")),
                    }
                }
                ui.end_row();
            }
            ui.label("speed");
            for (_, TestReport { tokens, secs, .. }) in tests {
                let speed = rate(*tokens as f64 / secs);
                ui.weak(format!("{speed} tokens/s")).on_hover_text(format!("{} new tokens in {}", count(*tokens), duration(*secs)));
            }
            ui.end_row();
        });
    });
}

/// `62 % · 8 of 13`
fn told(part: u64, of: &Tally) -> String {
    format!("{} · {} of {}", percent(part as f64 / of.asked.max(1) as f64), count(part), count(of.asked))
}

/// What a model replied, page by page.
fn replies(ui: &mut Ui, tests: &[(&str, &TestReport)], shown: &mut Replies) {
    let Some((_, last)) = tests.last() else { return };
    if tests.iter().all(|(_, test)| test.what != shown.what) {
        *shown = Replies { what: last.what.clone(), ..Replies::default() };
    }
    let before = (shown.what.clone(), shown.right);
    ui.horizontal_wrapped(|ui| {
        for (name, test) in tests {
            ui.selectable_value(&mut shown.what, test.what.clone(), *name);
        }
        ui.separator();
        for (right, name) in [(None, "all"), (Some(true), "right"), (Some(false), "wrong")] {
            ui.selectable_value(&mut shown.right, right, name);
        }
    });
    if before != (shown.what.clone(), shown.right) {
        shown.first = 0;
    }
    let Some((_, test)) = tests.iter().find(|(_, test)| test.what == shown.what) else { return };
    let wanted = |reply: &&Reply| shown.right.is_none_or(|right| reply.right == right);
    let found: Vec<&Reply> = test.replies.iter().filter(wanted).collect();
    pages(ui, &mut shown.first, found.len(), PAGE);
    for (place, reply) in found.iter().enumerate().skip(shown.first).take(PAGE) {
        unless_hidden(ui, Id::unique(("reply", &test.what, shown.right, place)), true, |ui| card(ui, reply));
    }
}

/// Which of so many things are in sight, and ways to others.
pub fn pages(ui: &mut Ui, first: &mut usize, all: usize, page: usize) {
    *first = (*first).min(all.saturating_sub(1) / page * page);
    ui.horizontal_wrapped(|ui| {
        if ui.add_enabled(*first > 0, egui::Button::new("◀")).on_hover_text("Those before").clicked() {
            *first = first.saturating_sub(page);
        }
        let last = (*first + page).min(all);
        ui.label(format!("{} to {} of {}", count(all.min(*first + 1) as u64), count(last as u64), count(all as u64)));
        if ui.add_enabled(last < all, egui::Button::new("▶")).on_hover_text("The next ones").clicked() {
            *first += page;
        }
    });
}

/// A question, its answer, and what was replied.
fn card(ui: &mut Ui, reply: &Reply) {
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        let dark = ui.visuals().dark_mode;
        let (mark, color) = match reply {
            Reply { right: true, .. } => ("● right", theme::good(dark)),
            Reply { found, .. } if found.is_nan() => ("● no answer", theme::error(dark)),
            _ => ("● wrong", theme::error(dark)),
        };
        ui.horizontal_wrapped(|ui| {
            ui.colored_label(color, mark);
            ui.strong(&reply.question);
        });
        let found = if reply.found.is_nan() { "nothing".into() } else { answer::shown(reply.found) };
        let facts = format!("right answer {} · found {found}", answer::shown(reply.expected));
        ui.label(RichText::new(facts).small().weak());
        ui.add(Label::new(&reply.text).wrap());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_stand_in_the_order_of_the_task() {
        let tests =
            ["sft", "other", "cot", "rft"].map(|what| (what.to_string(), TestReport { what: what.into(), ..TestReport::default() }));
        let tests = tests.into();
        let names: Vec<&str> = in_order(&tests).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["CoT", "SFT", "RFT", "other"]);
    }

    #[test]
    fn a_share_is_told_with_its_numbers() {
        assert_eq!(told(8, &Tally { asked: 16, answered: 12, right: 8 }), "50 % · 8 of 16");
        assert_eq!(told(0, &Tally::default()), "0 % · 0 of 0");
    }
}
