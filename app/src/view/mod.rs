//! What people see: functions of a session and the forms that say what was asked for.

pub mod compare;
pub mod device;
pub mod fields;
pub mod generate;
pub mod jobs;
pub mod mix;
pub mod notices;
pub mod plan;
pub mod plots;
pub mod reason;
pub mod rows;
pub mod run;
pub mod runs;
pub mod shelf;
pub mod sources;
#[cfg(test)]
mod tests;
pub mod texts;
pub mod train;
pub mod tune;

use std::time::Duration;

use egui::{Id, Key, KeyboardShortcut, Modifiers, Rect, Response, Ui, WidgetInfo, vec2};
use smolforge_engine::protocol::{Command, JobId};

/// Begins what the tab is for.
pub const START: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Enter);

/// Stops what the tab shows.
pub const STOP: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Period);

/// Saves what the tab shows.
pub const SAVE: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::S);

/// What a click asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// A job.
    Begin(Command),
    /// Something about a job.
    Tell(JobId, Command),
}

/// Whether a shortcut was pressed; once for each press.
pub fn pressed(ui: &Ui, shortcut: &KeyboardShortcut) -> bool {
    ui.input_mut(|input| input.consume_shortcut(shortcut))
}

/// A tooltip that ends in the keys that do the same.
pub fn with_keys(ui: &Ui, text: &str, shortcut: &KeyboardShortcut) -> String {
    format!("{text} · {}", ui.ctx().format_shortcut(shortcut))
}

/// Names a field that has no label beside it, for those who do not see it.
pub fn named(edit: &Response, name: &str, text: &str) {
    edit.widget_info(|| WidgetInfo { label: Some(name.into()), ..WidgetInfo::text_edit(true, text, text, "") });
}

/// Draws what can be seen. What has ended keeps its height, so that it need not be drawn to know it.
pub fn unless_hidden(ui: &mut Ui, id: Id, ended: bool, draw: impl FnOnce(&mut Ui)) {
    let width = ui.available_width();
    let known = ui.data(|data| data.get_temp::<(f32, f32)>(id)).filter(|(of, _)| ended && *of == width);
    if let Some((_, height)) = known
        && !ui.is_rect_visible(Rect::from_min_size(ui.cursor().min, vec2(width, height)))
    {
        ui.allocate_space(vec2(width, height));
        return;
    }
    let height = ui.push_id(id, draw).response.rect.height();
    ui.data_mut(|data| data.insert_temp(id, (width, height)));
}

/// Whether something has been as it is for a moment: nobody types it any more.
pub fn settled(ui: &Ui, id: Id, what: &str) -> bool {
    const MOMENT_SECS: f64 = 0.6;
    let (now, state) = (ui.input(|input| input.time), Id::unique(what));
    let since = ui.data_mut(|data| {
        let known = data.get_temp_mut_or_insert_with(id, || (state, now));
        if known.0 != state {
            *known = (state, now);
        }
        known.1
    });
    let left = MOMENT_SECS - (now - since);
    if left > 0.0 {
        ui.ctx().request_repaint_after(Duration::from_secs_f64(left));
    }
    left <= 0.0
}

/// A value as people would type it.
pub fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
