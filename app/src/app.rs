//! The window, a shell of the engine: clicks become [`Command`]s, [`Event`]s are folded into a [`Session`].

use std::time::Duration;

use egui::{Align, CentralPanel, Context, Key, KeyboardShortcut, Layout, Modifiers, Panel, ThemePreference, Ui, ViewportCommand};
use smolforge_engine::protocol::{Command, Event, GenerateRequest};

use crate::files::{Chosen, Pick, Picker};
use crate::forms::{Forms, Part, Tab};
use crate::session::{NoticeKind, Session, Unfinished, learns, reasons, trains};
use crate::shell::Link;
use crate::theme;
use crate::units::{count, percent};
use crate::view::{self, Ask};

/// The tabs, with their names and the keys that go with Ctrl.
const TABS: [(Tab, &str, Key); 6] = [
    (Tab::Train, "Train", Key::Num1),
    (Tab::Tune, "Tune", Key::Num2),
    (Tab::Reason, "Reason", Key::Num3),
    (Tab::Generate, "Generate", Key::Num4),
    (Tab::Runs, "Runs", Key::Num5),
    (Tab::Device, "Device", Key::Num6),
];

/// Lost devices that are replaced without asking: more of them are no accident.
const MOST_REVIVALS: u32 = 5;
/// Width below which form and main side take turns.
const NARROW: f32 = 780.0;

/// What the window holds.
#[derive(Debug)]
pub struct App {
    link: Link,
    session: Session,
    forms: Forms,
    picker: Picker,
    /// Whether the window closes as soon as nothing trains.
    closing: bool,
    /// Whether the list of runs is an old one.
    changed: bool,
    /// How often the engine was started again without asking.
    revived: u32,
}

impl App {
    /// Starts an engine, and takes up the forms where they were left.
    pub fn new(creation: &eframe::CreationContext<'_>) -> Self {
        theme::apply(&creation.egui_ctx);
        // A busy machine may draw a frame a second: press and release are a click all the same.
        creation.egui_ctx.options_mut(|options| options.input_options.max_click_duration = 3.0);
        let (link, picker) = (Link::start(&creation.egui_ctx), Picker::new(&creation.egui_ctx));
        // As JSON, because the format of eframe's file cannot tell the variants of an untagged enum apart.
        let kept = creation.storage.and_then(|storage| eframe::get_value::<String>(storage, eframe::APP_KEY));
        let mut forms: Forms = kept.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let goes_on = Link::goes_on();
        let begin = first(forms.training.take().filter(|_| goes_on), std::mem::take(&mut forms.queue));
        let mut app = Self { link, session: Session::default(), forms, picker, closing: false, changed: false, revived: 0 };
        if goes_on {
            app.session.note(NoticeKind::Warning, "the graphics device was lost: the page was loaded again, and goes on".into());
        }
        app.perform(begin);
        app
    }

    fn perform(&mut self, asks: Vec<Ask>) {
        for ask in asks {
            match ask {
                Ask::Begin(command) => {
                    let job = self.link.send(command.clone());
                    self.session.sent(job, command);
                }
                Ask::Tell(job, command) => {
                    self.session.told(job, &command);
                    self.link.tell(job, command);
                }
            }
        }
    }

    /// Folds what the engine said since the last frame.
    fn drain(&mut self) {
        let mut begin = Vec::new();
        while let Some((id, event)) = self.link.next() {
            let ended = matches!(event, Event::Done { .. } | Event::Failed { .. });
            let command = self.session.jobs.get(&id).map(|job| &job.command);
            let writes = command.is_some_and(changes_runs);
            if let (true, Some(command)) = (ended, command) {
                let well = matches!(event, Event::Done { stopped: false, .. });
                begin.extend(self.picker.hand_over(command, well).map(Ask::Begin));
            }
            self.changed |= writes && (ended || matches!(event, Event::Run(_) | Event::Saved { .. }));
            if ended && writes {
                self.session.forget();
            }
            let listed = matches!(event, Event::Runs { .. });
            self.session.apply(id, event);
            if listed {
                let Forms { generate, second, tune, reason, .. } = &mut self.forms;
                let [student, teacher] = [&mut reason.config.student, &mut reason.config.teacher];
                for model in [&mut generate.model, second, &mut tune.model_name, student, teacher] {
                    if let Some(newest) = view::generate::current(&self.session, model) {
                        *model = newest;
                    }
                }
            }
        }
        if self.changed && self.session.active(|command| matches!(command, Command::Runs { .. })).is_none() {
            self.changed = false;
            begin.push(Ask::Begin(runs()));
        }
        self.perform(begin);
    }

    /// Puts what was chosen in a dialog or dropped on the window where it belongs.
    fn take_files(&mut self, ctx: &Context) {
        self.picker.take_dropped(ctx);
        while let Some(chosen) = self.picker.chosen() {
            let (pick, paths) = match chosen {
                Chosen::Files(Pick::Dropped, paths) => match self.forms.tab {
                    Tab::Tune => (Pick::Rows, paths),
                    Tab::Reason => (Pick::Questions("train_file"), paths),
                    _ => (Pick::Texts, paths),
                },
                Chosen::Files(pick, paths) => (pick, paths),
                Chosen::Copying(text) => {
                    self.session.note(NoticeKind::Note, text);
                    continue;
                }
                Chosen::Refused(text) => {
                    self.session.note(NoticeKind::Error, text);
                    continue;
                }
            };
            let first = paths.first().cloned();
            match (pick, first) {
                (Pick::Texts | Pick::TextFolder | Pick::Dropped, _) => {
                    self.forms.tab = Tab::Train;
                    paths.into_iter().for_each(|path| self.forms.add_source(path));
                }
                (Pick::Tokenizer, Some(path)) => self.forms.train.tokenizer = Some(path),
                (Pick::Init, Some(path)) => self.forms.train.init = Some(path),
                (Pick::Model, Some(path)) => self.forms.generate.model = path,
                (Pick::Base, Some(path)) => self.forms.tune.model_name = path,
                (Pick::Questions(key) | Pick::Folder(key), Some(path)) => self.forms.reason.put(key, path),
                (Pick::Rows, _) => self.forms.add_rows(paths, false),
                (Pick::Validation, _) => self.forms.add_rows(paths, true),
                (Pick::Adapter, Some(path)) => {
                    self.forms.shelf.added.retain(|known| *known != path);
                    self.forms.shelf.adapters.insert(path.clone(), (true, 1.0));
                    self.forms.shelf.added.push(path);
                }
                (Pick::Zip, Some(file)) => {
                    let out = view::runs::unpacked(&self.session, &file);
                    self.perform(vec![Ask::Begin(Command::Unpack { file, out })]);
                }
                (_, None) => {}
            }
        }
    }

    /// Says that the engine has ended, and starts another one; what trained goes on from its last checkpoint.
    fn revive_ui(&mut self, ctx: &Context) {
        let Some(why) = self.link.ended() else { return };
        let goes_on = self.session.in_progress().is_some();
        if why.contains("device was lost") && self.revived < MOST_REVIVALS {
            self.revived += 1;
            return self.revive(&why);
        }
        egui::Modal::new(egui::Id::unique("ended")).show(ctx, |ui| {
            ui.set_max_width(460.0);
            ui.heading("The engine has ended");
            ui.add(egui::Label::new(&why).wrap());
            ui.weak("What was saved is intact.");
            let label = if goes_on { "Start it again and go on with the run" } else { "Start it again" };
            if ui.button(label).clicked() {
                self.revive(&why);
            }
        });
    }

    fn revive(&mut self, why: &str) {
        self.link.restart();
        let waited = self.session.unfinished();
        let trained = self.session.lost(&format!("the engine ended and was started again: {why}"));
        self.perform(first(trained, waited));
    }

    /// Lets a run, or what a task has come to, be saved before the window closes.
    fn close_when_saved(&mut self, ctx: &Context) {
        let busy = self.session.training().or_else(|| self.session.reasoning()).map(|(id, job)| (id, job.stopping));
        if let Some((id, stopping)) = busy {
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
            if narrow {
                (ui.spacing_mut().item_spacing.x, ui.spacing_mut().button_padding.x) = (1.0, 4.0);
            }
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
        if let Some((_, job)) = self.session.reasoning().filter(|_| self.forms.tab != Tab::Reason) {
            let done = job.progress.as_ref().map(|(_, done, total, _)| format!(" · {}", percent(*done as f64 / (*total).max(1) as f64)));
            ui.weak(format!("reasoning{}", done.unwrap_or_default()));
        }
        let shown = if self.session.tunes() { Tab::Tune } else { Tab::Train };
        let Some((_, job)) = self.session.training().filter(|_| self.forms.tab != shown || self.in_other_part()) else { return };
        let live = self.session.live.as_ref();
        let step = live.and_then(|run| Some(format!("step {} of {}", count(run.last()?.step.into()), count(run.total_steps().into()))));
        let what = if job.paused { "paused" } else { "training" };
        ui.weak(format!("{what} · {}", step.unwrap_or_else(|| "preparing".into())));
    }

    /// Whether the tab in front shows something else than the run that it is about.
    fn in_other_part(&self) -> bool {
        self.forms.tab == Tab::Tune && self.forms.part != Part::Run
    }

    fn form_ui(&mut self, ui: &mut Ui, asks: &mut Vec<Ask>) {
        ui.add_space(theme::EDGE);
        let Self { session, forms, picker, .. } = self;
        match forms.tab {
            Tab::Train => view::train::form(ui, session, forms, picker, asks),
            Tab::Tune => view::tune::form(ui, session, forms, picker, asks),
            Tab::Reason => view::reason::form(ui, session, &mut forms.reason, picker, asks),
            Tab::Generate => view::generate::form(ui, session, forms, picker, asks),
            Tab::Runs => view::runs::list(ui, session, forms, picker, asks),
            Tab::Device => {}
        }
    }

    fn main_ui(&mut self, ui: &mut Ui, asks: &mut Vec<Ask>) {
        let Self { session, forms, picker, .. } = self;
        match forms.tab {
            Tab::Train => view::train::progress(ui, session, forms, asks),
            Tab::Tune => view::tune::parts(ui, session, forms, picker, asks),
            Tab::Reason => view::reason::parts(ui, session, forms, asks),
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
        let shows = |command: &Command| trains(command) || reasons(command) || matches!(command, Command::Generate(_));
        let begins = |ask: &Ask| matches!(ask, Ask::Begin(command) if shows(command));
        self.forms.front |= asks.iter().any(begins);
        if self.closing {
            egui::Modal::new(egui::Id::unique("closing")).show(ui.ctx(), |ui| {
                ui.horizontal(|ui| {
                    ui.spinner();
                    ui.label("saving …");
                });
            });
        }
        self.revive_ui(ui.ctx());
        if asks.contains(&Ask::Begin(runs())) {
            self.session.forget();
        }
        self.perform(asks);
    }

    fn save(&mut self, storage: &mut dyn eframe::Storage) {
        self.forms.queue = self.session.unfinished();
        self.forms.training = self.session.in_progress();
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

/// What the two sides of a tab are called; `None` for one that has no form.
fn sides(tab: Tab) -> Option<(&'static str, &'static str)> {
    match tab {
        Tab::Train => Some(("settings", "run")),
        Tab::Tune | Tab::Reason => Some(("settings", "results")),
        Tab::Generate => Some(("prompt", "texts")),
        Tab::Runs => Some(("list", "plots")),
        Tab::Device => None,
    }
}

/// Whether the list of runs is another one after this.
fn changes_runs(command: &Command) -> bool {
    trains(command)
        || learns(command)
        || matches!(command, Command::Export { .. } | Command::Merge { .. } | Command::Delete { .. } | Command::Unpack { .. })
}

/// What a window asks of a new engine: what there is, and to go on with what trained and what waited.
fn first(trained: Option<Unfinished>, waited: Vec<GenerateRequest>) -> Vec<Ask> {
    let trained = trained.into_iter().flat_map(Unfinished::commands);
    [Command::Devices { test: false }, runs()]
        .into_iter()
        .chain(trained)
        .chain(waited.into_iter().map(Command::Generate))
        .map(Ask::Begin)
        .collect()
}

/// The runs below the current folder.
fn runs() -> Command {
    Command::Runs { folder: ".".into() }
}
