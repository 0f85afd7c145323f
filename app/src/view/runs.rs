//! The runs on disk: a list, and one of them in full.

use egui::{Frame, Modal, RichText, ScrollArea, Sense, Ui, UiBuilder, vec2};
use smolforge_engine::protocol::{Command, ExportDtype, FinetuneConfig, RunState, RunSummary, TrainConfig};
use smolforge_engine::train::checkpoint;
use web_time::{SystemTime, UNIX_EPOCH};

use super::{Ask, compare, plots, run};
use crate::files::{Pick, Picker};
use crate::forms::{Forms, Part, Tab};
use crate::session::{JobState, Run, Session, Unfinished};
use crate::theme;
use crate::units::{bytes, count};

/// Width and height of a loss curve in the list.
const CURVE: egui::Vec2 = vec2(76.0, 30.0);

/// Height of a row of the list.
const ROW: f32 = 70.0;

/// The left side: all runs.
pub fn list(ui: &mut Ui, session: &Session, forms: &mut Forms, picker: &Picker, asks: &mut Vec<Ask>) {
    let reading = session.active(|command| matches!(command, Command::Runs { .. })).is_some();
    ui.horizontal_wrapped(|ui| {
        if ui.add_enabled(!reading, egui::Button::new("look again")).clicked() {
            asks.push(Ask::Begin(Command::Runs { folder: ".".into() }));
        }
        if ui.button("unpack …").on_hover_text("Makes a run out of a .zip that was packed here or elsewhere").clicked() {
            picker.open(Pick::Zip);
        }
        if forms.selected.len() > 1 {
            ui.weak(format!("{} selected", forms.selected.len()));
        } else {
            ui.weak("Ctrl + click compares");
        }
    });
    ui.separator();
    let Some(runs) = &session.runs else {
        ui.horizontal(|ui| {
            ui.spinner();
            ui.weak("looking for runs …");
        });
        return;
    };
    forms.selected.retain(|path| runs.iter().any(|run| run.path == *path));
    if runs.is_empty() {
        ui.weak("No runs below this folder yet: train something, or start smolforge in another folder.");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    ui.spacing_mut().item_spacing.y = 2.0;
    ScrollArea::vertical().id_salt("runs").auto_shrink([false, false]).show_rows(ui, ROW, runs.len(), |ui, shown| {
        for run in &runs[shown] {
            let selected = forms.selected.contains(&run.path);
            if !row(ui, run, selected, live(session, &run.path).is_some(), now) {
                continue;
            }
            match (ui.input(|input| input.modifiers.command), selected) {
                (false, _) => {
                    forms.selected = vec![run.path.clone()];
                    forms.front = true;
                }
                (true, false) => forms.selected.push(run.path.clone()),
                (true, true) => forms.selected.retain(|path| *path != run.path),
            }
        }
    });
}

/// A run in the list; whether it was clicked.
fn row(ui: &mut Ui, run: &RunSummary, selected: bool, live: bool, now: f64) -> bool {
    let inside = |ui: &mut Ui| {
        let fill = theme::row(ui.visuals(), selected, ui.response().hovered());
        ui.style_mut().interaction.selectable_labels = false;
        Frame::new().fill(fill).inner_margin(6).corner_radius(4).show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.set_height(ROW - 12.0);
            ui.horizontal(|ui| {
                plots::sparkline(ui, &run.losses, run.steps, CURVE);
                ui.vertical(|ui| {
                    ui.add(egui::Label::new(RichText::new(&run.path).strong()).truncate());
                    let steps = format!("{} of {}", count(u64::from(run.step)), count(u64::from(run.steps)));
                    let best = run.best.map(|(loss, _)| format!(" · best {loss:.3}")).unwrap_or_default();
                    ui.add(egui::Label::new(RichText::new(format!("{} · {steps}{best}", state(run, live))).small()).truncate());
                    let age = ago(now - run.changed);
                    let kind = run.tuning.as_ref().map(|_| "fine-tuning · ").unwrap_or_default();
                    ui.add(egui::Label::new(RichText::new(format!("{kind}{} · {age}", bytes(run.size_bytes))).small().weak()).truncate());
                });
            });
        });
    };
    let row = ui.scope_builder(UiBuilder::new().id_salt(&run.path).sense(Sense::click()), inside).response;
    row.widget_info(|| egui::WidgetInfo::selected(egui::Role::Button, true, selected, &run.path));
    row.clicked()
}

fn state(run: &RunSummary, live: bool) -> &'static str {
    match run.state {
        _ if live => "in progress",
        RunState::Finished => "finished",
        RunState::Stopped => "stopped",
        RunState::Failed => "failed",
        RunState::Open => "interrupted",
    }
}

/// How long ago something was, in the largest unit.
fn ago(secs: f64) -> String {
    match secs {
        s if s < 60.0 => "just now".into(),
        s if s < 3600.0 => format!("{:.0} min ago", (s / 60.0).floor()),
        s if s < 86_400.0 => format!("{:.0} h ago", (s / 3600.0).floor()),
        s if s < 730.0 * 86_400.0 => format!("{:.0} d ago", (s / 86_400.0).floor()),
        _ => "long ago".into(),
    }
}

/// The run in progress, if it is the one in this folder.
fn live<'a>(session: &'a Session, path: &str) -> Option<&'a Run> {
    session.training()?;
    session.live.as_ref().filter(|run| run.info.as_ref().is_some_and(|info| info.path == path))
}

/// A run as it is told now, or as it was read from disk.
pub fn known<'a>(session: &'a Session, path: &str) -> Option<&'a Run> {
    live(session, path).or_else(|| session.opened.get(path))
}

/// The right side: the selected run, or the selected ones over each other.
pub fn detail(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    let find = |path: &String| session.runs.iter().flatten().find(|run| run.path == *path);
    let selected: Vec<&RunSummary> = forms.selected.iter().filter_map(find).collect();
    for run in &selected {
        if known(session, &run.path).is_none() && !was_asked(session, &run.path) {
            asks.push(Ask::Begin(Command::OpenRun { path: run.path.clone() }));
        }
    }
    match selected.as_slice() {
        [] => {
            ui.vertical_centered(|ui| {
                ui.add_space(ui.available_height() * 0.3);
                ui.heading("No run selected");
                ui.weak("Click a run on the left; Ctrl + click adds others to compare.");
            });
        }
        [run] => one(ui, session, forms, run, asks),
        several => compare::show(ui, session, forms, several),
    }
}

/// Whether opening a run is on its way, or did not work.
fn was_asked(session: &Session, path: &str) -> bool {
    opening(session, path).is_some_and(|state| *state != JobState::Done)
}

/// How far opening a run is.
fn opening<'a>(session: &'a Session, path: &str) -> Option<&'a JobState> {
    let last = session.last(|command| matches!(command, Command::OpenRun { path: asked } if asked == path));
    last.map(|job| &job.state)
}

fn one(ui: &mut Ui, session: &Session, forms: &mut Forms, summary: &RunSummary, asks: &mut Vec<Ask>) {
    let path = &summary.path;
    let story = known(session, path);
    let config = session.opened.get(path).or(story).and_then(|run| run.config.as_ref());
    ui.horizontal_wrapped(|ui| {
        ui.heading(path);
        ui.weak(state(summary, live(session, path).is_some()));
        if let Some(tuning) = &summary.tuning {
            ui.weak(format!("fine-tuning of {}", tuning.model_name));
        }
    });
    ui.horizontal_wrapped(|ui| {
        let idle = session.training().is_none();
        let more = summary.state != RunState::Finished;
        let resume = ui.add_enabled(idle && more && config.is_some(), egui::Button::new("▶ resume"));
        let why = if more { "Something trains already" } else { "All its updates were made" };
        if resume.on_hover_text("Go on from the last checkpoint").on_disabled_hover_text(why).clicked() {
            let (tab, run) = match &summary.tuning {
                Some(_) => (Tab::Tune, Unfinished::Tuning { output_dir: path.clone() }),
                None => (Tab::Train, Unfinished::Training(path.clone())),
            };
            (forms.tab, forms.part) = (tab, Part::Run);
            asks.push(Ask::Begin(run.resume()));
        }
        let newest = summary.checkpoints.last();
        let adapter = summary.has_adapters();
        if adapter && summary.adapter.is_some() {
            let button = ui.button("try it").on_hover_text("Its adapter on the shelf: asked beside its model, mixed and merged");
            if let (true, Some(tuning)) = (button.clicked(), &summary.tuning) {
                forms.shelf.adapters.values_mut().for_each(|(taken, _)| *taken = false);
                forms.shelf.adapters.insert(path.clone(), (true, 1.0));
                forms.shelf.model.clone_from(&tuning.model_name);
                (forms.tab, forms.part, forms.front) = (Tab::Tune, Part::Shelf, true);
            }
        }
        let newest = newest.filter(|_| !adapter);
        let exporting = session.active(|command| matches!(command, Command::Export { run, .. } if run == path)).is_some();
        let none = if adapter { "Its checkpoints are adapters: try it, and merge it there" } else { "No checkpoint yet" };
        let button = ui.add_enabled(newest.is_some() && !exporting, egui::Button::new("export FP16"));
        if button.on_hover_text(format!("Writes {path}/export, which transformers can load")).on_disabled_hover_text(none).clicked() {
            asks.push(Ask::Begin(export(path)));
        }
        let button = ui.add_enabled(config.is_some(), egui::Button::new("use these settings"));
        if button.on_hover_text("Copies its configuration for a new run").clicked()
            && let Some(config) = config
        {
            match &summary.tuning {
                Some(tuning) => {
                    forms.tune = FinetuneConfig { output_dir: fresh(session, path), ..*tuning.clone() };
                    forms.tune_drafts.clear();
                    forms.tab = Tab::Tune;
                }
                None => {
                    forms.train = TrainConfig { out: fresh(session, path), ..config.clone() };
                    forms.drafts.clear();
                    forms.tab = Tab::Train;
                }
            }
        }
        let button = ui.add_enabled(newest.is_some(), egui::Button::new("generate"));
        if button.on_hover_text("With its newest checkpoint").on_disabled_hover_text(none).clicked()
            && let Some(step) = newest
        {
            forms.generate.model = checkpoint::folder(path, *step);
            forms.tab = Tab::Generate;
        }
        let busy = live(session, path).is_some();
        let packing = session.active(|command| matches!(command, Command::Pack { folder, .. } if folder == path)).is_some();
        let button = ui.add_enabled(!packing && !busy, egui::Button::new("pack"));
        if button.on_hover_text(format!("Writes the whole run as {path}.zip")).on_disabled_hover_text("It is in progress").clicked() {
            asks.push(Ask::Begin(Command::Pack { folder: path.clone(), out: format!("{path}.zip") }));
        }
        let button = ui.add_enabled(!busy, egui::Button::new("delete …"));
        if button.on_hover_text("Removes it from disk, after a question").on_disabled_hover_text("It is in progress").clicked() {
            forms.deleting = Some(path.clone());
        }
        if exporting || packing {
            ui.spinner();
        }
    });
    confirm(ui, forms, summary, asks);
    ui.separator();
    match (story, opening(session, path)) {
        (Some(story), _) => drop(ScrollArea::vertical().id_salt("run").auto_shrink([false, false]).show(ui, |ui| {
            run::show(ui, path, story, &mut forms.plots);
        })),
        (None, Some(JobState::Failed(why))) => drop(ui.colored_label(theme::error(ui.visuals().dark_mode), format!("error: {why}"))),
        (None, _) => drop(ui.spinner()),
    }
}

/// Asks whether a run is really to be deleted.
fn confirm(ui: &Ui, forms: &mut Forms, run: &RunSummary, asks: &mut Vec<Ask>) {
    if forms.deleting.as_ref() != Some(&run.path) {
        return;
    }
    let modal = Modal::new(egui::Id::unique("delete")).show(ui.ctx(), |ui| {
        ui.set_max_width(420.0);
        ui.heading(format!("Delete {}?", run.path));
        let checkpoints = run.checkpoints.len();
        let result = if run.tuning.is_some() { ", what it trained" } else { "" };
        let inside = run.exports.iter().any(|model| model.starts_with(&run.path));
        let models = if inside { ", models exported or merged into its folder" } else { "" };
        ui.label(format!("Its log, plots{result}{models} and {checkpoints} checkpoints ({}) are removed for good.", bytes(run.size_bytes)));
        ui.add_space(theme::GAP);
        ui.horizontal(|ui| {
            if ui.button(RichText::new("delete the run").color(theme::error(ui.visuals().dark_mode))).clicked() {
                asks.push(Ask::Begin(Command::Delete { path: run.path.clone() }));
                ui.close();
            }
            if ui.button("keep it").clicked() {
                ui.close();
            }
        });
    });
    if modal.should_close() {
        forms.deleting = None;
    }
}

/// A folder for what is unpacked: named after its file, below `runs`, and of no run that is known.
pub fn unpacked(session: &Session, file: &str) -> String {
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
    let path = format!("runs/{}", name.strip_suffix(".zip").unwrap_or(name));
    let taken = session.runs.iter().flatten().any(|run| run.path == path);
    if taken { fresh(session, &path) } else { path }
}

/// Writes a run's last checkpoint as a Hugging Face folder of half-precision numbers.
pub fn export(run: &str) -> Command {
    Command::Export { run: run.into(), out: format!("{run}/export"), dtype: ExportDtype::F16, checkpoint: "last".into() }
}

/// A folder beside a run that no run has: `first` → `first-2`, `first-2` → `first-3`.
fn fresh(session: &Session, path: &str) -> String {
    let numbered = path.rsplit_once('-').and_then(|(stem, number)| Some((stem, number.parse::<u32>().ok()?)));
    let (stem, number) = numbered.unwrap_or((path, 1));
    let taken = |name: &String| session.runs.iter().flatten().any(|run| run.path == *name);
    let mut names = (number.saturating_add(1)..).map(|number| format!("{stem}-{number}"));
    names.find(|name| !taken(name)).unwrap_or_else(|| format!("{path}-new"))
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::Event;

    use super::*;

    fn summary(path: &str) -> RunSummary {
        RunSummary { path: path.into(), ..RunSummary::default() }
    }

    #[test]
    fn a_fresh_folder_is_one_that_no_run_has() {
        let session = Session { runs: Some(["a", "a-2", "b-9"].map(summary).into()), ..Session::default() };
        assert_eq!(fresh(&session, "a"), "a-3");
        assert_eq!(fresh(&session, "a-2"), "a-3");
        assert_eq!(fresh(&session, "b-9"), "b-10");
    }

    #[test]
    fn what_is_unpacked_replaces_nothing() {
        let session = Session { runs: Some(vec![summary("runs/a")]), ..Session::default() };
        assert_eq!(unpacked(&session, "/x/a.zip"), "runs/a-2");
        assert_eq!(unpacked(&session, "C:\\x\\b.zip"), "runs/b");
    }

    #[test]
    fn a_run_is_asked_for_once() {
        let mut session = Session::default();
        assert!(!was_asked(&session, "a"));
        session.sent(1, Command::OpenRun { path: "a".into() });
        assert!(was_asked(&session, "a"));
        session.apply(1, Event::Failed { error: "damaged".into(), defect: false });
        assert!(was_asked(&session, "a"), "what failed is not tried in every frame");
        assert_eq!(opening(&session, "a"), Some(&JobState::Failed("damaged".into())));
    }

    #[test]
    fn ages_are_in_the_largest_unit() {
        for (secs, text) in [(-5.0, "just now"), (59.0, "just now"), (119.0, "1 min ago"), (7200.0, "2 h ago"), (200_000.0, "2 d ago")] {
            assert_eq!(ago(secs), text);
        }
    }
}
