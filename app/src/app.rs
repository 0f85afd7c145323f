//! The window, a shell of the engine: clicks become [`Command`]s, [`Event`]s are folded into a [`Session`].

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use egui::{
    Align, CentralPanel, Context, Key, KeyboardShortcut, Layout, Modifiers, Panel, ThemePreference, Ui, ViewportBuilder, ViewportCommand,
    vec2,
};
use futures_lite::future::block_on;
use smolforge_engine::Engine;
use smolforge_engine::protocol::{Command, Event, JobId};
use smolforge_engine::store::Store;

use crate::cli;
use crate::files::{self, Pick, Picker};
use crate::forms::{Forms, Tab};
use crate::session::Session;
use crate::theme;
use crate::units::count;
use crate::view::{self, Ask};

/// The tabs, with their names and the keys that go with Ctrl.
const TABS: [(Tab, &str, Key); 4] = [
    (Tab::Train, "Train", Key::Num1),
    (Tab::Generate, "Generate", Key::Num2),
    (Tab::Runs, "Runs", Key::Num3),
    (Tab::Device, "Device", Key::Num4),
];

/// Width below which form and main side take turns.
const NARROW: f32 = 700.0;

/// What the window holds.
#[derive(Debug)]
pub struct App {
    engine: Engine,
    events: Receiver<(JobId, Event)>,
    session: Session,
    forms: Forms,
    picker: Picker,
    /// Whether the window closes as soon as nothing trains.
    closing: bool,
}

impl App {
    /// Starts an engine in the current folder, and takes up the forms where they were left.
    pub fn new(creation: &eframe::CreationContext<'_>) -> Self {
        theme::apply(&creation.egui_ctx);
        let engine = Engine::start(Store::folder("."));
        let events = forward(engine.clone(), creation.egui_ctx.clone());
        // As JSON, because the format of eframe's file cannot tell the variants of an untagged enum apart.
        let kept = creation.storage.and_then(|storage| eframe::get_value::<String>(storage, eframe::APP_KEY));
        let mut forms: Forms = kept.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let waited = std::mem::take(&mut forms.queue).into_iter().map(Command::Generate);
        let begin = [Command::Devices, runs()].into_iter().chain(waited).map(Ask::Begin).collect();
        let mut app = Self { engine, events, session: Session::default(), forms, picker: Picker::default(), closing: false };
        app.perform(begin);
        app
    }

    fn perform(&mut self, asks: Vec<Ask>) {
        for ask in asks {
            match ask {
                Ask::Begin(command) => {
                    let job = self.engine.send(command.clone());
                    self.session.sent(job, command);
                }
                Ask::Tell(job, command) => {
                    self.session.told(job, &command);
                    self.engine.tell(job, command);
                }
            }
        }
    }

    /// Folds what the engine said since the last frame.
    fn drain(&mut self) {
        let mut changed = false;
        while let Ok((id, event)) = self.events.try_recv() {
            let ended = matches!(event, Event::Done { .. } | Event::Failed { .. });
            let command = self.session.jobs.get(&id).map(|job| &job.command);
            let writes = command.is_some_and(changes_runs);
            changed |= writes && (ended || matches!(event, Event::Run(_) | Event::Saved { .. }));
            if writes && ended {
                self.session.forget();
            }
            let listed = matches!(event, Event::Runs { .. });
            self.session.apply(id, event);
            for model in [&mut self.forms.generate.model, &mut self.forms.second].into_iter().filter(|_| listed) {
                if let Some(newest) = view::generate::current(&self.session, model) {
                    *model = newest;
                }
            }
        }
        if changed {
            self.perform(vec![Ask::Begin(runs())]);
        }
    }

    /// Puts what was chosen in a dialog or dropped on the window where it belongs.
    fn take_files(&mut self, ctx: &Context) {
        let dropped = files::dropped(ctx);
        if !dropped.is_empty() {
            self.forms.tab = Tab::Train;
            dropped.into_iter().for_each(|path| self.forms.add_source(path));
        }
        while let Some((pick, paths)) = self.picker.chosen() {
            let first = paths.first().cloned();
            match (pick, first) {
                (Pick::Texts | Pick::TextFolder, _) => paths.into_iter().for_each(|path| self.forms.add_source(path)),
                (Pick::Tokenizer, Some(path)) => self.forms.train.tokenizer = Some(path),
                (Pick::Init, Some(path)) => self.forms.train.init = Some(path),
                (Pick::Model, Some(path)) => self.forms.generate.model = path,
                (Pick::Zip, Some(file)) => {
                    let out = view::runs::unpacked(&self.session, &file);
                    self.perform(vec![Ask::Begin(Command::Unpack { file, out })]);
                }
                (_, None) => {}
            }
        }
    }

    /// Lets a run be saved before the window closes.
    fn close_when_saved(&mut self, ctx: &Context) {
        let training = self.session.training().map(|(id, job)| (id, job.stopping));
        if let Some((id, stopping)) = training {
            if ctx.input(|input| input.viewport().close_requested()) {
                ctx.send_viewport_cmd(ViewportCommand::CancelClose);
                self.closing = true;
            }
            if self.closing && !stopping {
                self.perform(vec![Ask::Tell(id, Command::Stop)]);
            }
        } else if self.closing {
            ctx.send_viewport_cmd(ViewportCommand::Close);
        }
    }

    fn top_ui(&mut self, ui: &mut Ui, narrow: bool) {
        ui.horizontal(|ui| {
            for (tab, name, key) in TABS {
                let shortcut = KeyboardShortcut::new(Modifiers::COMMAND, key);
                let label = ui.selectable_label(self.forms.tab == tab, name).on_hover_text(ui.ctx().format_shortcut(&shortcut));
                if label.clicked() || view::pressed(ui, &shortcut) {
                    self.forms.tab = tab;
                }
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if narrow {
                    ui.menu_button("theme", theme_ui);
                } else {
                    theme_ui(ui);
                    self.training_ui(ui);
                }
            });
        });
        if !narrow {
            return;
        }
        ui.horizontal(|ui| {
            if let Some((form, main)) = sides(self.forms.tab) {
                ui.selectable_value(&mut self.forms.front, false, form);
                ui.selectable_value(&mut self.forms.front, true, main);
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| self.training_ui(ui));
        });
    }

    /// How far the run in progress is, where its plots are not in sight.
    fn training_ui(&self, ui: &mut Ui) {
        let Some((_, job)) = self.session.training().filter(|_| self.forms.tab != Tab::Train) else { return };
        let live = self.session.live.as_ref();
        let step = live.and_then(|run| Some(format!("step {} of {}", count(run.last()?.step.into()), count(run.total_steps().into()))));
        let what = if job.paused { "paused" } else { "training" };
        ui.weak(format!("{what} · {}", step.unwrap_or_else(|| "preparing".into())));
    }

    fn form_ui(&mut self, ui: &mut Ui, asks: &mut Vec<Ask>) {
        ui.add_space(theme::EDGE);
        let Self { session, forms, picker, .. } = self;
        match forms.tab {
            Tab::Train => view::train::form(ui, session, forms, picker, asks),
            Tab::Generate => view::generate::form(ui, session, forms, picker, asks),
            Tab::Runs => view::runs::list(ui, session, forms, picker, asks),
            Tab::Device => {}
        }
    }

    fn main_ui(&mut self, ui: &mut Ui, asks: &mut Vec<Ask>) {
        let Self { session, forms, .. } = self;
        match forms.tab {
            Tab::Train => view::train::progress(ui, session, forms, asks),
            Tab::Generate => view::texts::show(ui, session, forms, asks),
            Tab::Runs => view::runs::detail(ui, session, forms, asks),
            Tab::Device => view::device::show(ui, session, forms, asks),
        }
    }
}

impl eframe::App for App {
    fn logic(&mut self, ctx: &Context, _frame: &mut eframe::Frame) {
        self.drain();
        self.take_files(ctx);
        self.close_when_saved(ctx);
        if self.forms.queue != self.session.unfinished() {
            ctx.request_repaint_after(self.auto_save_interval()); // forms are saved in frames only
        }
    }

    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        let mut asks = Vec::new();
        let narrow = ui.available_width() < NARROW;
        Panel::top("tabs").show(ui, |ui| self.top_ui(ui, narrow));
        Panel::bottom("notices").show(ui, |ui| view::notices::show(ui, &self.session, &mut self.forms.notices_open));
        let form = sides(self.forms.tab).is_some();
        if form && !narrow {
            let id = format!("form of {:?}", self.forms.tab);
            let (size, most) = (if self.forms.tab == Tab::Runs { 320.0 } else { 440.0 }, ui.available_width() * 0.6);
            Panel::left(id).default_size(size).size_range(240.0..=most).show(ui, |ui| self.form_ui(ui, &mut asks));
        }
        CentralPanel::default().show(ui, |ui| match form && narrow && !self.forms.front {
            true => self.form_ui(ui, &mut asks),
            false => self.main_ui(ui, &mut asks),
        });
        let begins = |ask: &Ask| matches!(ask, Ask::Begin(Command::Train { .. } | Command::Demo { .. } | Command::Generate(_)));
        self.forms.front |= asks.iter().any(begins);
        if self.closing {
            egui::Modal::new(egui::Id::unique("closing")).show(ui.ctx(), |ui| {
                ui.horizontal(|ui| {
                    ui.spinner();
                    ui.label("saving …");
                });
            });
        }
        if asks.contains(&Ask::Begin(runs())) {
            self.session.forget();
        }
        self.perform(asks);
    }

    fn save(&mut self, storage: &mut dyn eframe::Storage) {
        self.forms.queue = self.session.unfinished();
        if let Ok(text) = serde_json::to_string(&self.forms) {
            eframe::set_value(storage, eframe::APP_KEY, &text);
        }
    }

    fn auto_save_interval(&self) -> Duration {
        Duration::from_secs(5) // what waits in the queue outlives a crash
    }
}

/// Light, dark, or what the system has. In words: not every font has the signs.
fn theme_ui(ui: &mut Ui) {
    let mut preference = ui.options(|options| options.theme_preference);
    for choice in [ThemePreference::Light, ThemePreference::Dark, ThemePreference::System] {
        ui.selectable_value(&mut preference, choice, choice.name());
    }
    ui.ctx().set_theme(preference);
}

/// What an error says, on one line and without the place in winit's source that its texts begin with.
fn reason(text: &str) -> String {
    let line = cli::one_line(text);
    let said = line.split_once(".rs:").and_then(|(_, rest)| rest.split_once(": ")).map(|(_, said)| said.to_string());
    said.unwrap_or(line).trim_end_matches('.').to_string()
}

/// What the two sides of a tab are called; `None` for one that has no form.
fn sides(tab: Tab) -> Option<(&'static str, &'static str)> {
    match tab {
        Tab::Train => Some(("settings", "run")),
        Tab::Generate => Some(("prompt", "texts")),
        Tab::Runs => Some(("list", "plots")),
        Tab::Device => None,
    }
}

/// Whether the list of runs is another one after this.
fn changes_runs(command: &Command) -> bool {
    matches!(
        command,
        Command::Train { .. } | Command::Demo { .. } | Command::Export { .. } | Command::Delete { .. } | Command::Unpack { .. }
    )
}

/// The runs below the current folder.
fn runs() -> Command {
    Command::Runs { folder: ".".into() }
}

/// A channel of the engine's events, of which the window is told.
fn forward(engine: Engine, ctx: Context) -> Receiver<(JobId, Event)> {
    let (sender, events) = channel();
    std::thread::spawn(move || {
        while let Some(event) = block_on(engine.next()) {
            if sender.send(event).is_err() {
                return; // the window has gone
            }
            ctx.request_repaint();
        }
    });
    events
}

/// Opens the window and stays until it is closed.
pub fn open() -> ExitCode {
    panic::set_hook(Box::new(cli::note_panic));
    let viewport = ViewportBuilder::default().with_title("smolforge").with_app_id("smolforge");
    let viewport = viewport.with_inner_size(vec2(1280.0, 800.0)).with_min_inner_size(vec2(360.0, 480.0));
    let options = eframe::NativeOptions { viewport, ..eframe::NativeOptions::default() };
    let opened = AtomicBool::new(false);
    let create: eframe::AppCreator<'_> = Box::new(|creation| {
        opened.store(true, Ordering::Relaxed);
        Ok(Box::new(App::new(creation)))
    });
    // winit panics where a library of the display is missing.
    let why = match panic::catch_unwind(AssertUnwindSafe(|| eframe::run_native("smolforge", options, create))) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error.to_string(),
        Err(_) if opened.load(Ordering::Relaxed) => {
            let _ = writeln!(io::stderr(), "error: {:#}", cli::defect());
            return ExitCode::from(101);
        }
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        }
    };
    let why = reason(&why);
    let _ = writeln!(io::stderr(), "error: no window could be opened ({why}); smolforge --help lists the verbs of the command line");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_line_without_a_place_in_a_source() {
        assert_eq!(reason("winit EventLoopError: os error at /a/b.rs:12: DISPLAY is\nnot set."), "DISPLAY is not set");
        assert_eq!(reason("no adapter"), "no adapter");
    }
}
