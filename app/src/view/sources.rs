//! The texts to train on: their names and places, how much they are, and what they say.

use egui::{Key, Label, RichText, ScrollArea, TextEdit, Ui};
use smolforge_engine::config::SourceConfig;
use smolforge_engine::protocol::Command;

use super::{Ask, named};
use crate::files::{Pick, Picker};
use crate::forms::Forms;
use crate::session::{JobState, Session};
use crate::theme;
use crate::units::{bytes, count};

/// The list of sources, which can be changed.
pub fn show(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    ui.horizontal_wrapped(|ui| {
        if ui.button("add files …").clicked() {
            picker.open(Pick::Texts);
        }
        if ui.button("add a folder …").clicked() {
            picker.open(Pick::TextFolder);
        }
        ui.weak("or drop them here");
    });
    let (mut removed, mut renamed) = (None, None);
    let counted = |name: &String| (session.documents_of(name, &forms.train), session.tokens_of(name, &forms.train));
    let counted: Vec<(Option<u64>, Option<u64>)> = forms.train.sources.keys().map(counted).collect();
    for (place, (name, source)) in forms.train.sources.iter_mut().enumerate() {
        let typing = ui.horizontal(|ui| {
            ui.colored_label(theme::series(place + 1), "■");
            let mut typed = name.clone();
            let edit = TextEdit::singleline(&mut typed).desired_width(80.0).id_salt(("source", place));
            let edit = ui.add(edit);
            named(&edit, "name of the source", &typed);
            if edit.changed() && !typed.trim().is_empty() {
                renamed = Some((name.clone(), typed));
            }
            let width = (ui.available_width() - 36.0).max(80.0);
            let typing = if let SourceConfig::Path(path) | SourceConfig::Keyed { path, .. } = source {
                let edit = ui.add(TextEdit::singleline(path).desired_width(width).hint_text("file, folder or glob"));
                named(&edit, "file, folder or glob", path);
                edit.has_focus()
            } else {
                ui.add_sized([width, 0.0], Label::new(source.paths().join(", ")).truncate());
                false
            };
            if ui.small_button("×").on_hover_text("Leave it out").clicked() {
                removed = Some(name.clone());
            }
            typing
        });
        if amount(ui, session, source, counted[place], asks) {
            forms.preview = Some((name.clone(), 0));
        }
        if !typing.inner && !source.paths().join("").trim().is_empty() && !was_asked(session, source, 0) {
            asks.push(Ask::Begin(Command::Preview { source: source.clone(), page: 0 }));
        }
    }
    if let Some(name) = removed {
        forms.leave_out(&name);
    }
    if let Some((old, new)) = renamed {
        forms.rename(&old, &new);
    }
}

/// How much a source is; whether its texts are to be shown.
fn amount(ui: &mut Ui, session: &Session, source: &SourceConfig, counted: (Option<u64>, Option<u64>), asks: &mut Vec<Ask>) -> bool {
    let mut look = false;
    ui.horizontal_wrapped(|ui| {
        ui.add_space(16.0);
        if let Some(why) = why_not(session, source) {
            ui.label(RichText::new(why).small().color(theme::error(ui.visuals().dark_mode)));
            if ui.small_button("look again").clicked() {
                asks.push(Ask::Begin(Command::Preview { source: source.clone(), page: 0 }));
            }
            return;
        }
        let Some(preview) = session.preview(source) else { return };
        let files = if preview.files == 1 { String::new() } else { format!(" in {} files", count(preview.files as u64)) };
        let documents = counted.0.or((preview.pages == 1).then_some(preview.texts.len() as u64));
        let much = match documents {
            Some(1) => "1 document".to_string(),
            Some(many) => format!("{} documents", count(many)),
            None => format!("{} pages", count(preview.pages as u64)),
        };
        let tokens = counted.1.map_or_else(|| "tokens counted by plan".into(), |tokens| format!("{} tokens to train on", count(tokens)));
        ui.label(RichText::new(format!("{}{files} · {much} · {tokens}", bytes(preview.size_bytes))).small().weak());
        look = ui.small_button("look").on_hover_text("Shows its texts, page by page").clicked();
    });
    look
}

/// Whether a page of a source was asked for.
fn was_asked(session: &Session, source: &SourceConfig, page: usize) -> bool {
    let wanted = |command: &Command| matches!(command, Command::Preview { source: of, page: asked } if of == source && *asked == page);
    session.jobs.values().any(|job| wanted(&job.command))
}

/// Why the texts of a source could not be read the last time.
fn why_not<'a>(session: &'a Session, source: &SourceConfig) -> Option<&'a str> {
    let last = session.last(|command| matches!(command, Command::Preview { source: of, .. } if of == source))?;
    if let JobState::Failed(why) = &last.state { Some(why) } else { None }
}

/// A window with the texts of the source that is looked at.
pub fn preview(ui: &Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    let Some((name, page)) = &mut forms.preview else { return };
    let Some(source) = forms.train.sources.get(name) else {
        forms.preview = None;
        return;
    };
    let (mut open, before, room) = (true, *page, ui.ctx().content_rect().size());
    let known = session.preview(source);
    egui::Window::new(format!("Texts of {name}"))
        .id(egui::Id::unique("preview"))
        .open(&mut open)
        .default_size(egui::vec2(640.0, 460.0).min(room * 0.9))
        .max_size(room * 0.95)
        .show(ui.ctx(), |ui| {
            let pages = known.map_or(0, |preview| preview.pages);
            ui.horizontal(|ui| {
                if ui.add_enabled(*page > 0, egui::Button::new("◀")).on_hover_text("Page before · ←").clicked() {
                    *page -= 1;
                }
                ui.label(format!("page {} of {}", count(*page as u64 + 1), count(pages.max(1) as u64)));
                if ui.add_enabled(*page + 1 < pages, egui::Button::new("▶")).on_hover_text("Next page · →").clicked() {
                    *page += 1;
                }
                let free = ui.memory(|memory| memory.focused().is_none());
                let (left, right) = ui.input(|input| (input.key_pressed(Key::ArrowLeft), input.key_pressed(Key::ArrowRight)));
                match (free && before == *page, left, right) {
                    (true, true, _) if *page > 0 => *page -= 1,
                    (true, _, true) if *page + 1 < pages => *page += 1,
                    _ => {}
                }
            });
            ui.separator();
            match known.filter(|preview| preview.page == before) {
                Some(preview) => texts(ui, preview.page, &preview.texts),
                None => match why_not(session, source) {
                    Some(why) => drop(ui.colored_label(theme::error(ui.visuals().dark_mode), format!("error: {why}"))),
                    None => drop(ui.spinner()),
                },
            }
        });
    let reading = session.active(|command| matches!(command, Command::Preview { .. })).is_some();
    let shown = known.is_some_and(|preview| preview.page == *page);
    if !shown && !reading && why_not(session, source).is_none() {
        asks.push(Ask::Begin(Command::Preview { source: source.clone(), page: *page }));
    }
    if !open {
        forms.preview = None;
    }
}

fn texts(ui: &mut Ui, page: usize, texts: &[String]) {
    ScrollArea::vertical().id_salt(("page", page)).auto_shrink([false, false]).show(ui, |ui| {
        for text in texts {
            ui.group(|ui| {
                ui.set_width(ui.available_width());
                ui.add(Label::new(text.trim()).wrap());
            });
        }
    });
}
