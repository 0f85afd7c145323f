//! The window, a shell of the engine: clicks become [`Command`]s, [`Event`]s are folded into a [`Session`].

use egui::{Align, CentralPanel, Context, Key, KeyboardShortcut, Layout, Modifiers, Panel, ThemePreference, Ui, ViewportCommand};
use smolforge_engine::protocol::{Command, Event};

use crate::files::{Chosen, Pick, Picker};
use crate::forms::{Forms, Tab};
use crate::session::{NoticeKind, Session};
use crate::shell::Link;
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

/// Lost devices that are replaced without asking: more of them are no accident.
const MOST_REVIVALS: u32 = 5;

/// What the window holds.
#[derive(Debug)]
pub struct App {
    link: Link,
    session: Session,
    forms: Forms,
    picker: Picker,
    /// Whether the window closes as soon as nothing trains.
    closing: bool,
    /// How often the engine was started again without asking.
    revived: u32,
}

impl App {
    /// Starts an engine, and takes up the forms where they were left.
    pub fn new(creation: &eframe::CreationContext<'_>) -> Self {
        theme::apply(&creation.egui_ctx);
        let (link, picker) = (Link::start(&creation.egui_ctx), Picker::new(&creation.egui_ctx));
        // As JSON, because the format of eframe's file cannot tell the variants of an untagged enum apart.
        let kept = creation.storage.and_then(|storage| eframe::get_value::<String>(storage, eframe::APP_KEY));
        let forms = kept.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let mut app = Self { link, session: Session::default(), forms, picker, closing: false, revived: 0 };
        app.perform(vec![Ask::Begin(Command::Devices), Ask::Begin(runs())]);
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
        let mut changed = false;
        while let Some((id, event)) = self.link.next() {
            let ended = matches!(event, Event::Done { .. } | Event::Failed { .. });
            let command = self.session.jobs.get(&id).map(|job| &job.command);
            let writes = matches!(command, Some(Command::Train { .. } | Command::Demo { .. } | Command::Export { .. }));
            changed |= writes && (ended || matches!(event, Event::Run(_) | Event::Saved { .. }));
            if writes && ended {
                self.session.forget();
            }
            let listed = matches!(event, Event::Runs { .. });
            self.session.apply(id, event);
            if let Some(model) = view::generate::current(&self.session, &self.forms.generate.model).filter(|_| listed) {
                self.forms.generate.model = model;
            }
        }
        if changed {
            self.perform(vec![Ask::Begin(runs())]);
        }
    }

    /// Puts what was chosen in a dialog or dropped on the window where it belongs.
    fn take_files(&mut self, ctx: &Context) {
        self.picker.take_dropped(ctx);
        while let Some(chosen) = self.picker.chosen() {
            let (pick, paths) = match chosen {
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
                (Pick::Texts | Pick::TextFolder, _) => {
                    self.forms.tab = Tab::Train;
                    paths.into_iter().for_each(|path| self.forms.add_source(path));
                }
                (Pick::Tokenizer, Some(path)) => self.forms.train.tokenizer = Some(path),
                (Pick::Init, Some(path)) => self.forms.train.init = Some(path),
                (Pick::Model, Some(path)) => self.forms.generate.model = path,
                (Pick::Zip, _) | (_, None) => {}
            }
        }
    }

    /// Says that the engine has ended, and starts another one; what trained goes on from its last checkpoint.
    fn revive_ui(&mut self, ctx: &Context) {
        let Some(why) = self.link.ended() else { return };
        let trained = self.session.training().is_some();
        if why.contains("device was lost") && self.revived < MOST_REVIVALS {
            self.revived += 1;
            return self.revive(&why);
        }
        egui::Modal::new(egui::Id::unique("ended")).show(ctx, |ui| {
            ui.set_max_width(460.0);
            ui.heading("The engine has ended");
            ui.add(egui::Label::new(&why).wrap());
            ui.weak("What was saved is intact.");
            let label = if trained { "Start it again and go on with the run" } else { "Start it again" };
            if ui.button(label).clicked() {
                self.revive(&why);
            }
        });
    }

    fn revive(&mut self, why: &str) {
        self.link.restart();
        let again = self.session.lost(&format!("the engine ended and was started again: {why}"));
        self.perform(again.into_iter().chain([Command::Devices, runs()]).map(Ask::Begin).collect());
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

    fn top_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            for (tab, name, key) in TABS {
                let shortcut = KeyboardShortcut::new(Modifiers::COMMAND, key);
                let label = ui.selectable_label(self.forms.tab == tab, name).on_hover_text(ui.ctx().format_shortcut(&shortcut));
                if label.clicked() || ui.input_mut(|input| input.consume_shortcut(&shortcut)) {
                    self.forms.tab = tab;
                }
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                theme_ui(ui);
                if let Some((_, job)) = self.session.training().filter(|_| self.forms.tab != Tab::Train) {
                    let live = self.session.live.as_ref();
                    let step = live
                        .and_then(|run| Some(format!("step {} of {}", count(run.last()?.step.into()), count(run.total_steps().into()))));
                    let what = if job.paused { "paused" } else { "training" };
                    ui.weak(format!("{what} · {}", step.unwrap_or_else(|| "preparing".into())));
                }
            });
        });
    }

    fn form_ui(&mut self, ui: &mut Ui, asks: &mut Vec<Ask>) {
        let Self { session, forms, picker, .. } = self;
        match forms.tab {
            Tab::Train => view::train::form(ui, session, forms, picker, asks),
            Tab::Generate => view::generate::form(ui, session, forms, picker, asks),
            Tab::Runs => view::runs::list(ui, session, forms, asks),
            Tab::Device => {}
        }
    }

    fn main_ui(&mut self, ui: &mut Ui, asks: &mut Vec<Ask>) {
        let Self { session, forms, .. } = self;
        match forms.tab {
            Tab::Train => view::train::progress(ui, session, forms, asks),
            Tab::Generate => view::generate::texts(ui, session, forms, asks),
            Tab::Runs => view::runs::detail(ui, session, forms, asks),
            Tab::Device => view::device::show(ui, session, asks),
        }
    }
}

impl eframe::App for App {
    fn logic(&mut self, ctx: &Context, _frame: &mut eframe::Frame) {
        self.drain();
        self.take_files(ctx);
        self.close_when_saved(ctx);
    }

    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        let mut asks = Vec::new();
        Panel::top("tabs").show(ui, |ui| self.top_ui(ui));
        Panel::bottom("notices").show(ui, |ui| view::notices::show(ui, &self.session, &mut self.forms.notices_open));
        if self.forms.tab != Tab::Device {
            let id = format!("form of {:?}", self.forms.tab);
            let (size, most) = (if self.forms.tab == Tab::Runs { 320.0 } else { 440.0 }, ui.available_width() * 0.6);
            Panel::left(id).default_size(size).size_range(240.0..=most).show(ui, |ui| self.form_ui(ui, &mut asks));
        }
        CentralPanel::default().show(ui, |ui| self.main_ui(ui, &mut asks));
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
        if let Ok(text) = serde_json::to_string(&self.forms) {
            eframe::set_value(storage, eframe::APP_KEY, &text);
        }
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

/// The runs below the current folder.
fn runs() -> Command {
    Command::Runs { folder: ".".into() }
}
