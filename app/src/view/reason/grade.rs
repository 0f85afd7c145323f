//! The points of a submission, part by part.

use egui::{Grid, Label, RichText, Ui};
use smolforge_engine::protocol::GradeCase;

use super::{empty, scrolled};
use crate::session::Session;
use crate::theme;
use crate::units::{count, duration, rate};

/// The last grade.
pub fn show(ui: &mut Ui, session: &Session) {
    let Some(grade) = &session.reason.grade else {
        return empty(ui, "No grade yet", "Press grade when both adapters have learned, or grade a bundle.");
    };
    scrolled(ui, "grade", |ui| {
        let dark = ui.visuals().dark_mode;
        ui.heading(format!("{} of {} points", count(grade.score().into()), count(grade.points().into())));
        ui.add_space(theme::GAP);
        Grid::new("grade").num_columns(5).striped(true).show(ui, |ui| {
            ["part", "points", "value", "time", "remark"].into_iter().for_each(|title| drop(ui.weak(title)));
            ui.end_row();
            for GradeCase { name, score, points, value, remark, secs } in &grade.cases {
                ui.label(name);
                let told = RichText::new(format!("{score} of {points}"));
                ui.label(match score {
                    0 => told.color(theme::error(dark)).strong(),
                    score if score >= points => told.color(theme::good(dark)),
                    _ => told,
                });
                ui.label(rate(*value));
                ui.label(duration(*secs));
                ui.add(Label::new(remark).wrap());
                ui.end_row();
            }
        });
    });
}
