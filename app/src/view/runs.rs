//! The runs on disk: a list, one of them in full, several of them compared.

use egui::{Frame, Grid, RichText, ScrollArea, Sense, Ui, UiBuilder, vec2};
use serde_json::Value;
use smolforge_engine::config::FIELDS;
use smolforge_engine::protocol::{Command, ExportDtype, RunState, RunSummary};
use web_time::{SystemTime, UNIX_EPOCH};

use super::generate::checkpoint;
use super::{Ask, plots, run};
use crate::forms::{Forms, Tab};
use crate::session::{JobState, Run, Session};
use crate::theme;
use crate::units::{bytes, count, shares};

/// Width and height of a loss curve in the list.
const CURVE: egui::Vec2 = vec2(76.0, 30.0);

/// The left side: all runs.
pub fn list(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    let reading = session.active(|command| matches!(command, Command::Runs { .. })).is_some();
    ui.horizontal(|ui| {
        if ui.add_enabled(!reading, egui::Button::new("look again")).clicked() {
            asks.push(Ask::Begin(Command::Runs { folder: ".".into() }));
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
    ScrollArea::vertical().id_salt("runs").auto_shrink([false, false]).show(ui, |ui| {
        ui.spacing_mut().item_spacing.y = 2.0;
        for run in runs {
            let selected = forms.selected.contains(&run.path);
            if !row(ui, run, selected, live(session, &run.path).is_some(), now) {
                continue;
            }
            match (ui.input(|input| input.modifiers.command), selected) {
                (false, _) => forms.selected = vec![run.path.clone()],
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
            ui.horizontal(|ui| {
                plots::sparkline(ui, &run.losses, run.steps, CURVE);
                ui.vertical(|ui| {
                    ui.add(egui::Label::new(RichText::new(&run.path).strong()).truncate());
                    let steps = format!("{} of {}", count(u64::from(run.step)), count(u64::from(run.steps)));
                    let best = run.best.map(|(loss, _)| format!(" · best {loss:.3}")).unwrap_or_default();
                    ui.add(egui::Label::new(RichText::new(format!("{} · {steps}{best}", state(run, live))).small()).truncate());
                    let age = ago(now - run.changed);
                    ui.add(egui::Label::new(RichText::new(format!("{} · {age}", bytes(run.size_bytes))).small().weak()).truncate());
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
fn known<'a>(session: &'a Session, path: &str) -> Option<&'a Run> {
    live(session, path).or_else(|| session.opened.get(path))
}

/// The right side: the selected run, or the selected ones over each other.
pub fn detail(ui: &mut Ui, session: &Session, forms: &mut Forms, asks: &mut Vec<Ask>) {
    let selected: Vec<RunSummary> =
        forms.selected.iter().filter_map(|path| session.runs.iter().flatten().find(|run| run.path == *path).cloned()).collect();
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
        several => compare(ui, session, forms, several),
    }
}

/// Whether opening a run is on its way, or did not work.
fn was_asked(session: &Session, path: &str) -> bool {
    let last = session.jobs.values().rev().find(|job| matches!(&job.command, Command::OpenRun { path: asked } if asked == path));
    last.is_some_and(|job| job.state != JobState::Done)
}

fn why_not(session: &Session, path: &str) -> Option<String> {
    session.jobs.values().rev().find_map(|job| match (&job.command, &job.state) {
        (Command::OpenRun { path: asked }, JobState::Failed(error)) if asked == path => Some(error.clone()),
        _ => None,
    })
}

fn one(ui: &mut Ui, session: &Session, forms: &mut Forms, summary: &RunSummary, asks: &mut Vec<Ask>) {
    let path = &summary.path;
    let story = known(session, path);
    let config = session.opened.get(path).or(story).and_then(|run| run.config.clone());
    ui.horizontal_wrapped(|ui| {
        ui.heading(path);
        ui.weak(state(summary, live(session, path).is_some()));
    });
    ui.horizontal_wrapped(|ui| {
        let idle = session.training().is_none();
        let more = summary.state != RunState::Finished;
        let resume = ui.add_enabled(idle && more && config.is_some(), egui::Button::new("▶ resume"));
        let why = if more { "Something trains already" } else { "All its updates were made" };
        if resume.on_hover_text("Go on from the last checkpoint").on_disabled_hover_text(why).clicked()
            && let Some(config) = &config
        {
            let config = Box::new(smolforge_engine::config::TrainConfig { out: path.clone(), ..config.clone() });
            asks.push(Ask::Begin(Command::Train { config, resume: true }));
            forms.tab = Tab::Train;
        }
        let newest = summary.checkpoints.last();
        let exporting = session.active(|command| matches!(command, Command::Export { run, .. } if run == path)).is_some();
        let button = ui.add_enabled(newest.is_some() && !exporting, egui::Button::new("export FP16"));
        if button
            .on_hover_text(format!("Writes {path}/export, which transformers can load"))
            .on_disabled_hover_text("No checkpoint yet")
            .clicked()
        {
            asks.push(Ask::Begin(export(path)));
        }
        let button = ui.add_enabled(config.is_some(), egui::Button::new("use these settings"));
        if button.on_hover_text("Copies its configuration for a new run").clicked()
            && let Some(config) = &config
        {
            forms.train = config.clone();
            forms.train.out = fresh(session, path);
            forms.drafts.clear();
            forms.tab = Tab::Train;
        }
        let button = ui.add_enabled(newest.is_some(), egui::Button::new("generate"));
        if button.on_hover_text("With its newest checkpoint").on_disabled_hover_text("No checkpoint yet").clicked()
            && let Some(step) = newest
        {
            forms.generate.model = checkpoint(path, *step);
            forms.tab = Tab::Generate;
        }
        if exporting {
            ui.spinner();
        }
    });
    ui.separator();
    match (story, why_not(session, path)) {
        (Some(story), _) => drop(ScrollArea::vertical().id_salt("run").auto_shrink([false, false]).show(ui, |ui| {
            run::show(ui, path, story, &mut forms.plots);
        })),
        (None, Some(why)) => drop(ui.colored_label(theme::error(ui.visuals().dark_mode), format!("error: {why}"))),
        (None, None) => drop(ui.spinner()),
    }
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

fn compare(ui: &mut Ui, session: &Session, forms: &mut Forms, selected: &[RunSummary]) {
    let known: Vec<(&str, &Run)> = selected.iter().filter_map(|run| Some((run.path.as_str(), known(session, &run.path)?))).collect();
    ui.horizontal_wrapped(|ui| {
        ui.heading(format!("{} runs", selected.len()));
        if known.len() < selected.len() {
            ui.spinner();
        }
    });
    ScrollArea::both().id_salt("compare").auto_shrink([false, false]).show(ui, |ui| {
        plots::show(ui, "compared", &known, &mut forms.plots);
        ui.add_space(theme::GAP);
        ui.strong("Different settings");
        let differing = differences(&known);
        if differing.is_empty() {
            ui.weak("None: only the folders differ.");
            return;
        }
        Grid::new("differences").num_columns(known.len() + 1).striped(true).show(ui, |ui| {
            ui.weak("key");
            for (index, (name, _)) in known.iter().enumerate() {
                ui.horizontal(|ui| {
                    ui.colored_label(theme::series(index), "■");
                    ui.strong(*name);
                });
            }
            ui.end_row();
            for (key, values) in differing {
                ui.label(key.replace('_', " "));
                values.into_iter().for_each(|value| drop(ui.label(value)));
                ui.end_row();
            }
        });
    });
}

/// The keys in which configurations differ, with the values of every run. That runs lie in different folders is no news.
fn differences(runs: &[(&str, &Run)]) -> Vec<(&'static str, Vec<String>)> {
    let configs: Vec<Value> = runs.iter().map(|(_, run)| serde_json::to_value(&run.config).unwrap_or_default()).collect();
    let keys = FIELDS.iter().map(|field| field.name).filter(|name| *name != "out");
    let differs = keys.filter(|key| configs.windows(2).any(|pair| pair[0].get(key) != pair[1].get(key)));
    differs
        .map(|key| match key {
            "data_stages" => (key, runs.iter().map(|(_, run)| stages(run)).collect()),
            _ => (key, configs.iter().map(|config| short(config.get(key).unwrap_or(&Value::Null))).collect()),
        })
        .collect()
}

/// The stages of a run, a line each.
fn stages(run: &Run) -> String {
    let stages = run.config.iter().flat_map(|config| &config.data_stages.stages);
    stages.map(|stage| format!("from {}: {}", count(stage.start.into()), shares(&stage.weights))).collect::<Vec<_>>().join("\n")
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::String(text) => text.clone(),
        Value::Object(map) => map.keys().cloned().collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use smolforge_engine::config::TrainConfig;
    use smolforge_engine::protocol::Event;

    use super::*;

    fn summary(path: &str) -> RunSummary {
        RunSummary {
            path: path.into(),
            state: RunState::Stopped,
            step: 1,
            steps: 2,
            parameters: 0,
            changed: 0.0,
            losses: Vec::new(),
            best: None,
            checkpoints: Vec::new(),
            size_bytes: 0,
            exports: Vec::new(),
        }
    }

    #[test]
    fn a_fresh_folder_is_one_that_no_run_has() {
        let session = Session { runs: Some(["a", "a-2", "b-9"].map(summary).into()), ..Session::default() };
        assert_eq!(fresh(&session, "a"), "a-3");
        assert_eq!(fresh(&session, "a-2"), "a-3");
        assert_eq!(fresh(&session, "b-9"), "b-10");
    }

    #[test]
    fn only_keys_that_differ_are_compared() {
        let run = |lr, out: &str| Run { config: Some(TrainConfig { lr, out: out.into(), ..TrainConfig::default() }), ..Run::default() };
        let (a, b) = (run(0.001, "a"), run(0.002, "b"));
        assert_eq!(differences(&[("a", &a), ("b", &b)]), [("lr", vec!["0.001".to_string(), "0.002".to_string()])]);
        assert_eq!(differences(&[("a", &a), ("a", &a)]), []);
    }

    #[test]
    fn a_run_is_asked_for_once() {
        let mut session = Session::default();
        assert!(!was_asked(&session, "a"));
        session.sent(1, Command::OpenRun { path: "a".into() });
        assert!(was_asked(&session, "a"));
        session.apply(1, Event::Failed { error: "damaged".into(), defect: false });
        assert!(was_asked(&session, "a"), "what failed is not tried in every frame");
        assert_eq!(why_not(&session, "a").as_deref(), Some("damaged"));
    }

    #[test]
    fn ages_are_in_the_largest_unit() {
        for (secs, text) in [(-5.0, "just now"), (59.0, "just now"), (119.0, "1 min ago"), (7200.0, "2 h ago"), (200_000.0, "2 d ago")] {
            assert_eq!(ago(secs), text);
        }
    }
}
