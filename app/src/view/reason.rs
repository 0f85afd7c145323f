//! A task with one right answer to every question: what to do about it; beside it the budget and the funnel, the adapter that
//! learns, tests, points, and rejects that people mend.

mod form;
mod funnel;
mod grade;
mod rejects;
mod replies;

use egui::{Align2, Color32, Grid, Response, Sense, TextStyle, Ui, WidgetInfo, vec2};
use smolforge_engine::protocol::{Command, ReasonConfig, ReasonVerb};

pub use form::form;

use super::{Ask, run};
use crate::forms::{Forms, ReasonPart};
use crate::session::Session;
use crate::theme;

/// Width of the names beside bars.
const NAMES: f32 = 104.0;

/// The right side: what has come of the task.
pub fn parts(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    ui.add_space(theme::EDGE);
    ui.horizontal_wrapped(|ui| {
        for (part, name, help) in [
            (ReasonPart::Funnel, "funnel", "What limits the adapters, and what becomes of the teacher's samples"),
            (ReasonPart::Run, "run", "The adapter that learns"),
            (ReasonPart::Tests, "tests", "How many questions are answered, and rightly"),
            (ReasonPart::Grade, "grade", "Points, as the reference's grader gives them"),
            (ReasonPart::Rejects, "rejects", "Questions that no sample answers rightly, to be mended by hand"),
        ] {
            ui.selectable_value(&mut forms.reason.part, part, name).on_hover_text(help);
        }
        let out = &session.reason.out;
        if !out.is_empty() && *out != forms.reason.config.out {
            ui.colored_label(theme::warning(ui.visuals().dark_mode), format!("of {out}"));
        }
    });
    ui.separator();
    match forms.reason.part {
        ReasonPart::Funnel => funnel::show(ui, session, &forms.reason.config),
        ReasonPart::Run => match &session.reason.run {
            Some(learned) => scrolled(ui, "run", |ui| run::show(ui, "this adapter", learned, &mut forms.plots)),
            None => empty(ui, "No adapter yet", "Press learn answers or learn reasoning, and look at its losses here."),
        },
        ReasonPart::Tests => replies::show(ui, session, &mut forms.reason),
        ReasonPart::Grade => grade::show(ui, session),
        ReasonPart::Rejects => rejects::show(ui, session, &mut forms.reason, asks),
    }
}

/// What asks for something about a task.
fn begin(config: &ReasonConfig, verb: ReasonVerb) -> Ask {
    Ask::Begin(Command::Reason { config: Box::new(config.clone()), verb })
}

/// Something that may be higher than the window.
fn scrolled(ui: &mut Ui, id: &str, draw: impl FnOnce(&mut Ui)) {
    egui::ScrollArea::vertical().id_salt(("reason", id)).auto_shrink([false, false]).show(ui, draw);
}

/// Says that there is nothing yet, and what makes it.
fn empty(ui: &mut Ui, what: &str, how: &str) {
    ui.vertical_centered(|ui| {
        ui.add_space(ui.available_height() * 0.3);
        ui.heading(what);
        ui.weak(how);
    });
}

/// A share with its name, and words on it.
struct Bar {
    name: String,
    /// Of its whole length; nothing is drawn of what is not a number.
    share: f64,
    color: Color32,
    text: String,
    /// What stands below it.
    below: String,
}

/// Bars below one another.
fn bars(ui: &mut Ui, id: &str, bars: Vec<Bar>) {
    let width = (ui.available_width() - NAMES - 2.0 * ui.spacing().item_spacing.x).clamp(100.0, 460.0);
    Grid::new(id).num_columns(2).min_col_width(NAMES).show(ui, |ui| {
        for Bar { name, share, color, text, below } in bars {
            ui.label(name);
            bar(ui, width, share, color, &text);
            ui.end_row();
            if !below.is_empty() {
                ui.label("");
                ui.small(below);
                ui.end_row();
            }
        }
    });
}

/// A bar as long as a share of the width, with words on it.
fn bar(ui: &mut Ui, width: f32, share: f64, color: Color32, text: &str) -> Response {
    let (rect, response) = ui.allocate_exact_size(vec2(width, ui.spacing().interact_size.y), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(egui::Role::Label, true, text));
    let (painter, visuals) = (ui.painter(), ui.visuals());
    painter.rect_filled(rect, 2.0, theme::track(visuals));
    if share > 0.0 {
        painter.rect_filled(rect.with_max_x(rect.left() + width * share.min(1.0) as f32), 2.0, color);
    }
    let start = rect.left_center() + vec2(theme::EDGE, 0.0);
    painter.text(start, Align2::LEFT_CENTER, text, TextStyle::Body.resolve(ui.style()), visuals.text_color());
    response
}
