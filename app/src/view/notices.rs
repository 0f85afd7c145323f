//! What people should know: the last notice at the foot of the window, all of them on demand.

use egui::{RichText, ScrollArea, Ui};

use crate::session::{Notice, NoticeKind, Session};
use crate::theme;

/// The foot of the window.
pub fn show(ui: &mut Ui, session: &Session, open: &mut bool) {
    if *open {
        let most = (ui.ctx().content_rect().height() * 0.35).max(80.0);
        ScrollArea::vertical().id_salt("notices").max_height(most).stick_to_bottom(true).auto_shrink([false, true]).show(ui, |ui| {
            session.notices.iter().for_each(|notice| line(ui, notice));
        });
        ui.separator();
    }
    ui.horizontal_wrapped(|ui| {
        let label = if *open { "▼ notices" } else { "▲ notices" };
        if ui.small_button(format!("{label} ({})", session.notices.len())).clicked() {
            *open = !*open;
        }
        let urgent = session.notices.iter().filter(|notice| notice.kind != NoticeKind::Note).count();
        if urgent > 0 && !*open {
            let text = if urgent == 1 { "1 problem".to_string() } else { format!("{urgent} problems") };
            ui.label(RichText::new(text).color(theme::warning(ui.visuals().dark_mode))).on_hover_text("Warnings and errors so far");
        }
        if let Some(last) = session.notices.last().filter(|_| !*open) {
            line(ui, last);
        }
    });
}

fn line(ui: &mut Ui, notice: &Notice) {
    let dark = ui.visuals().dark_mode;
    let text = match notice.kind {
        NoticeKind::Note => RichText::new(&notice.text),
        NoticeKind::Warning => RichText::new(format!("warning: {}", notice.text)).color(theme::warning(dark)),
        NoticeKind::Error => RichText::new(format!("error: {}", notice.text)).color(theme::error(dark)),
    };
    ui.add(egui::Label::new(text).wrap());
}
