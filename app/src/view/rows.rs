//! Rows as a model reads them: what is wrong with them, how long they are, and which of their tokens are learned.

use egui::text::{LayoutJob, TextFormat};
use egui::{FontId, Id, Rect, RichText, ScrollArea, Sense, Stroke, TextStyle, Ui, WidgetInfo, pos2, vec2};
use smolforge_engine::config::finetune::{Files, FinetuneConfig};
use smolforge_engine::protocol::{Command, ExampleReport, Lengths, Level, Piece, Preflight};

use super::{Ask, settled, tune, unless_hidden};
use crate::forms::{Forms, RowsShown};
use crate::session::{JobState, Rows, Session};
use crate::theme;
use crate::units::{count, headline, visible};

/// Examples on a page.
const PAGE: usize = 20;

/// Examples that are asked for at once: for every question all rows are read and encoded.
const BLOCK: usize = 10 * PAGE;

/// Height of the histogram.
const HEIGHT: f32 = 72.0;

/// What has to be asked to see the rows of the form; `None` where there are none, or no model.
pub fn wanted(session: &Session, forms: &Forms) -> Option<Command> {
    let Forms { tune, rows: RowsShown { validation, first, row }, .. } = forms;
    let evaluated = *validation && tune.validation_file.named().next().is_some();
    let files = if evaluated { &tune.validation_file } else { &tune.train_file };
    if tune.model_name.trim().is_empty() || files.named().next().is_none() {
        return None;
    }
    // Keys that change nothing of what is seen keep their defaults.
    let config = Box::new(FinetuneConfig {
        model_name: tune.model_name.clone(),
        train_file: Files(files.named().cloned().collect()),
        dataset_format: tune.dataset_format,
        columns: tune.columns.clone(),
        task_prefix_format: tune.task_prefix_format.clone(),
        max_seq_length: tune.max_seq_length,
        chat_template: tune.chat_template.clone(),
        date: tune.date.clone(),
        loss_on: tune.loss_on,
        bad_rows: tune.bad_rows,
        ..FinetuneConfig::default()
    });
    let block = Command::Inspect { config: config.clone(), first: first / BLOCK * BLOCK, count: BLOCK, row: None };
    let known = |row: &String| session.rows.as_ref().is_some_and(|rows| rows.command == block && rows.place(row).is_some());
    match row {
        Some(row) if !known(row) => Some(Command::Inspect { config, first: 0, count: 1, row: Some(row.clone()) }),
        _ => Some(block),
    }
}

/// The configuration in what is asked.
fn config_of(command: &Command) -> Option<&FinetuneConfig> {
    if let Command::Inspect { config, .. } = command { Some(config) } else { None }
}

/// Asks in place of what was asked before.
pub fn begin(session: &Session, wanted: Command, asks: &mut Vec<Ask>) {
    let open = session.open(|command| matches!(command, Command::Inspect { .. })).filter(|(_, job)| !job.stopping);
    asks.extend(open.map(|(id, _)| Ask::Tell(id, Command::Stop)));
    asks.push(Ask::Begin(wanted));
}

/// The rows of the form, asked for when nobody types any more.
pub fn show(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    if forms.tune.validation_file.named().next().is_some() {
        ui.horizontal_wrapped(|ui| {
            let before = forms.rows.validation;
            ui.selectable_value(&mut forms.rows.validation, false, "to learn");
            ui.selectable_value(&mut forms.rows.validation, true, "to evaluate on");
            if before != forms.rows.validation {
                (forms.rows.first, forms.rows.row) = (0, None);
            }
        });
    }
    let Some(wanted) = wanted(session, forms) else {
        ui.vertical_centered(|ui| {
            ui.add_space(ui.available_height() * 0.3);
            ui.heading("No rows yet");
            ui.weak("Choose a model and add rows: JSONL with chats, instructions, prompts with completions, or texts.");
            ui.weak("Here you see what the model will read of them, and what it will learn.");
        });
        return;
    };
    let last = session.last(|command| matches!(command, Command::Inspect { .. })).filter(|job| job.command == wanted);
    let model = &forms.tune.model_name;
    let here = session.models.contains_key(model);
    let free = session.training().is_none();
    if last.is_none() && here && free && settled(ui, Id::unique("rows"), &format!("{wanted:?}")) {
        begin(session, wanted.clone(), asks);
    }
    let known = session.rows.as_ref().filter(|rows| config_of(&rows.command) == config_of(&wanted));
    match last.map(|job| &job.state) {
        Some(JobState::Failed(why)) if known.is_none_or(|rows| rows.examples.is_empty()) => {
            ui.colored_label(theme::error(ui.visuals().dark_mode), format!("error: {why}"));
        }
        None if !free => drop(ui.weak("These rows are read when the run in progress has ended.")),
        Some(JobState::Done | JobState::Failed(_)) => {}
        state => match tune::unknown(session, model).filter(|_| state.is_none()) {
            Some(why) => drop(ui.colored_label(theme::warning(ui.visuals().dark_mode), why)),
            None => drop(ui.horizontal(|ui| {
                ui.spinner();
                ui.weak("reading rows …");
            })),
        },
    }
    let Some(rows) = &session.rows else { return };
    ScrollArea::vertical().id_salt("rows").auto_shrink([false, false]).show(ui, |ui| {
        if known.is_none() {
            ui.multiply_opacity(0.5); // of other settings
        }
        let row = list(ui, &rows.preflight);
        ui.add_space(theme::GAP);
        lengths(ui, &rows.preflight);
        ui.add_space(theme::GAP);
        pages(ui, rows, &mut forms.rows);
        ui.scope(|ui| {
            if rows.command != wanted {
                ui.multiply_opacity(0.5);
            }
            for row in in_sight(rows, &forms.rows) {
                unless_hidden(ui, Id::unique(("row", &row.row)), true, |ui| example(ui, row));
            }
        });
        if row.is_some() {
            forms.rows.row = row;
        }
    });
}

/// Those of the rows that are looked at; while others are still being read, the nearest.
fn in_sight<'a>(rows: &'a Rows, shown: &RowsShown) -> &'a [ExampleReport] {
    let first = if let Command::Inspect { first, .. } = rows.command { first } else { 0 };
    let (from, count) = match shown.row.as_ref().and_then(|row| rows.place(row)) {
        Some(place) => (place, 1),
        None => (shown.first.saturating_sub(first).min(rows.examples.len().saturating_sub(1) / PAGE * PAGE), PAGE),
    };
    &rows.examples[from..rows.examples.len().min(from + count)]
}

/// The checks, the worst first; the row that was clicked.
fn list(ui: &mut Ui, preflight: &Preflight) -> Option<String> {
    let dark = ui.visuals().dark_mode;
    let look = |level: Level| match level {
        Level::Green => ("● ok", theme::good(dark)),
        Level::Yellow => ("● look", theme::warning(dark)),
        Level::Red => ("● wrong", theme::error(dark)),
    };
    let counted = |level: Level| preflight.checks.iter().filter(|check| check.level == level).count();
    let [green, yellow, red] = [Level::Green, Level::Yellow, Level::Red].map(counted);
    ui.horizontal_wrapped(|ui| {
        ui.strong("Pre-flight");
        let verdict = match preflight.level() {
            Level::Red => "the run would not begin",
            Level::Yellow => "the run can begin",
            Level::Green => "all as it should be",
        };
        ui.label(RichText::new(verdict).color(look(preflight.level()).1));
        ui.weak(format!("{green} ok, {yellow} to look at, {red} wrong"));
    });
    let mut checks: Vec<_> = preflight.checks.iter().collect();
    checks.sort_by_key(|check| std::cmp::Reverse(check.level));
    let mut clicked = None;
    for check in checks {
        let (mark, color) = look(check.level);
        ui.horizontal_top(|ui| {
            let (rect, response) = ui.allocate_exact_size(vec2(64.0, ui.spacing().interact_size.y), Sense::hover());
            response.widget_info(|| WidgetInfo::labeled(egui::Role::Label, true, mark));
            ui.painter().text(rect.left_center(), egui::Align2::LEFT_CENTER, mark, TextStyle::Body.resolve(ui.style()), color);
            ui.horizontal_wrapped(|ui| {
                ui.label(&check.line);
                for row in &check.rows {
                    if ui.small_button(row).on_hover_text("Shows this row").clicked() {
                        clicked = Some(row.clone());
                    }
                }
            });
        });
    }
    clicked
}

/// How long the rows are: figures, and a bar for every range.
fn lengths(ui: &mut Ui, preflight: &Preflight) {
    let Lengths { min, mean, p95, max, bins } = &preflight.lengths;
    ui.strong("Tokens");
    let share = 100.0 * preflight.targets as f64 / preflight.tokens.max(1) as f64;
    ui.label(format!(
        "{} in all, {} learned ({share:.1} %) · per row: least {}, mean {mean:.1}, 95 % up to {}, most {}",
        count(preflight.tokens as u64),
        count(preflight.targets as u64),
        count(*min as u64),
        count(*p95 as u64),
        count(*max as u64)
    ));
    let most = bins.iter().map(|(_, number)| *number).max().unwrap_or(0).max(1);
    let width = ui.available_width().min(640.0);
    let (rect, response) = ui.allocate_exact_size(vec2(width, HEIGHT), Sense::hover());
    let said: Vec<String> = bins.iter().map(|(up_to, number)| format!("{number} up to {up_to}")).collect();
    response.widget_info(|| WidgetInfo::labeled(egui::Role::Image, true, format!("rows by length: {}", said.join(", "))));
    let painter = ui.painter();
    let bar = width / bins.len().max(1) as f32;
    let at = response.hover_pos().map(|pointer| ((pointer.x - rect.left()) / bar) as usize);
    for (place, (_, number)) in bins.iter().enumerate() {
        let height = if *number == 0 { 0.0 } else { (HEIGHT * *number as f32 / most as f32).max(2.0) };
        let left = rect.left() + place as f32 * bar;
        let bar = Rect::from_min_max(pos2(left + 1.0, rect.bottom() - height), pos2(left + bar - 1.0, rect.bottom()));
        let color = theme::series(0);
        painter.rect_filled(bar, 1.0, if at == Some(place) { color } else { color.gamma_multiply(0.8) });
    }
    painter.hline(rect.x_range(), rect.bottom(), Stroke::new(1.0, theme::grid(ui.visuals())));
    if let Some((place, (up_to, number))) = at.and_then(|place| Some((place, bins.get(place)?))) {
        let from = place.checked_sub(1).and_then(|before| bins.get(before)).map_or(1, |(before, _)| before + 1);
        response.on_hover_text_at_pointer(format!("{from} to {up_to} tokens: {} rows", count(*number as u64)));
    }
    ui.allocate_ui_with_layout(vec2(width, 14.0), egui::Layout::left_to_right(egui::Align::Min), |ui| {
        ui.label(RichText::new("1").small().weak());
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Min), |ui| {
            ui.label(RichText::new(format!("{} tokens", bins.last().map_or(0, |(up_to, _)| *up_to))).small().weak());
        });
    });
}

/// Which rows are shown, what the colours mean, and ways to others.
fn pages(ui: &mut Ui, rows: &Rows, shown: &mut RowsShown) {
    let all = rows.count();
    ui.horizontal_wrapped(|ui| {
        ui.strong("Rows");
        match shown.row.clone() {
            Some(row) => {
                ui.label(format!("row {row}"));
                if ui.button("all rows").clicked() {
                    shown.row = None;
                }
            }
            None => {
                shown.first = shown.first.min(all.saturating_sub(1) / PAGE * PAGE);
                let first = shown.first;
                if ui.add_enabled(first > 0, egui::Button::new("◀")).on_hover_text("Rows before").clicked() {
                    shown.first = first.saturating_sub(PAGE);
                }
                let last = (first + PAGE).min(all);
                ui.label(format!("{} to {} of {}", count(all.min(first + 1) as u64), count(last as u64), count(all as u64)));
                if ui.add_enabled(last < all, egui::Button::new("▶")).on_hover_text("Next rows").clicked() {
                    shown.first = first + PAGE;
                }
            }
        }
        for (word, kind) in [("learned", Kind::Learned), ("read only", Kind::Read), ("cut off", Kind::Cut)] {
            let TextFormat { color, background, .. } = format(ui, kind, true);
            let text = RichText::new(word).color(color).background_color(background);
            ui.label(if kind == Kind::Cut { text.strikethrough() } else { text });
        }
    });
}

/// A row: where it is, how long, and its tokens.
fn example(ui: &mut Ui, row: &ExampleReport) {
    ui.group(|ui| {
        ui.set_width(ui.available_width());
        ui.label(RichText::new(headline(row)).small().weak());
        tokens(ui, row);
    });
}

/// What becomes of a token.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Learned,
    Read,
    Cut,
}

/// How a token is written; neighbours differ a little.
fn format(ui: &Ui, kind: Kind, odd: bool) -> TextFormat {
    let visuals = ui.visuals();
    let font_id: FontId = TextStyle::Body.resolve(ui.style());
    match kind {
        Kind::Learned => {
            TextFormat { font_id, color: visuals.strong_text_color(), background: theme::learned(visuals, odd), ..TextFormat::default() }
        }
        Kind::Read => TextFormat { font_id, color: visuals.text_color(), background: theme::read(visuals, odd), ..TextFormat::default() },
        Kind::Cut => {
            let color = theme::error(visuals.dark_mode);
            TextFormat { font_id, color, strikethrough: Stroke::new(1.0, color), ..TextFormat::default() }
        }
    }
}

/// The tokens of a row in one text; the one below the pointer says what it is.
fn tokens(ui: &mut Ui, row: &ExampleReport) {
    let formats = [Kind::Learned, Kind::Read, Kind::Cut].map(|kind| [false, true].map(|odd| format(ui, kind, odd)));
    let mut job = LayoutJob::default();
    job.wrap.max_width = ui.available_width();
    let mut ends = Vec::with_capacity(row.pieces.len() + row.cut.len());
    let mut chars = 0;
    let pieces: Vec<(&Piece, Kind)> = row
        .pieces
        .iter()
        .map(|piece| (piece, if piece.is_target { Kind::Learned } else { Kind::Read }))
        .chain(row.cut.iter().map(|piece| (piece, Kind::Cut)))
        .collect();
    for (place, (piece, kind)) in pieces.iter().enumerate() {
        let mut text = visible(&piece.text);
        if place + 1 == pieces.len() && text.ends_with('\n') {
            text.pop(); // no empty line below
        }
        chars += text.chars().count();
        ends.push(chars);
        job.append(&text, 0.0, formats[*kind as usize][place % 2].clone());
    }
    let unseen = row.lost_tokens.saturating_sub(row.cut.len());
    if unseen > 0 {
        job.append(&format!(" … and {} more", count(unseen as u64)), 0.0, format(ui, Kind::Cut, false));
    }
    let said = job.text.clone();
    let galley = ui.painter().layout_job(job);
    let (rect, response) = ui.allocate_exact_size(galley.size(), Sense::hover());
    response.widget_info(|| WidgetInfo::labeled(egui::Role::Label, true, said.as_str()));
    if let Some(pointer) = response.hover_pos() {
        let pointer = pointer - rect.min;
        let nearest = galley.cursor_from_pos(pointer);
        // A cursor stands between two characters: the pointer is on the one before it, or on the one behind it.
        let before = galley.pos_from_cursor(nearest).left() > pointer.x;
        let char = nearest.index.0 - usize::from(before && nearest.index.0 > 0);
        if let Some((piece, kind)) = pieces.get(ends.partition_point(|end| *end <= char)) {
            let what = match kind {
                Kind::Learned => "learned: weight 1",
                Kind::Read => "read only: weight 0",
                Kind::Cut => "cut off",
            };
            response.clone().on_hover_text_at_pointer(format!("{:?} · id {} · {what}", piece.text, piece.id));
        }
    }
    ui.painter().galley(rect.min, galley, ui.visuals().text_color());
}
