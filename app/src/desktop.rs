//! The window of an operating system: the engine on a thread beside it, dialogs and paths of files.

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use egui::{Context, ViewportBuilder, vec2};
use futures_lite::future::block_on;
use smolforge_engine::Engine;
use smolforge_engine::protocol::{Command, Event, JobId};
use smolforge_engine::store::Store;

use crate::app::App;
use crate::cli;
use crate::files::{Chosen, Pick};
use crate::units::one_line;

/// The window's side of the conversation with its engine.
#[derive(Debug)]
pub struct Link {
    engine: Engine,
    events: Receiver<(JobId, Event)>,
}

impl Link {
    /// Starts an engine in the current folder; `ctx` is drawn again when it says something.
    pub fn start(ctx: &Context) -> Self {
        let engine = Engine::start(Store::folder("."));
        let (sender, events) = channel();
        let (speaker, ctx) = (engine.clone(), ctx.clone());
        std::thread::spawn(move || {
            while let Some(event) = block_on(speaker.next()) {
                if sender.send(event).is_err() {
                    return; // the window has gone
                }
                ctx.request_repaint();
            }
        });
        Self { engine, events }
    }

    /// Begins a job.
    pub fn send(&self, command: Command) -> JobId {
        self.engine.send(command)
    }

    /// Says something about a job.
    pub fn tell(&self, job: JobId, command: Command) {
        self.engine.tell(job, command);
    }

    /// What the engine said next, if it has.
    pub fn next(&self) -> Option<(JobId, Event)> {
        self.events.try_recv().ok()
    }

    /// Why there is no engine any more. A native engine outlives its errors.
    pub fn ended(&self) -> Option<String> {
        None
    }

    /// Whether the window was opened because another one could not go on: never here.
    pub fn goes_on() -> bool {
        false
    }

    /// Starts another engine in the place of one that has ended.
    pub fn restart(&self) {}
}

/// Dialogs that are open, and what was chosen in them.
#[derive(Debug)]
pub struct Picker {
    ctx: Context,
    sender: Sender<Chosen>,
    chosen: Receiver<Chosen>,
}

impl Picker {
    /// No dialog is open.
    pub fn new(ctx: &Context) -> Self {
        let (sender, chosen) = channel();
        Self { ctx: ctx.clone(), sender, chosen }
    }

    /// Opens a dialog. The window goes on meanwhile and is drawn again when something was chosen.
    pub fn open(&self, pick: Pick) {
        let (sender, ctx) = (self.sender.clone(), self.ctx.clone());
        let dialog = rfd::AsyncFileDialog::new();
        let ask = async move {
            match pick {
                Pick::Texts => {
                    let dialog = dialog.add_filter("text", &["txt", "md", "jsonl", "ndjson", "py", "rs"]);
                    dialog.add_filter("all files", &["*"]).pick_files().await
                }
                Pick::Questions(_) => dialog.add_filter("questions", &["json"]).pick_file().await.map(|file| vec![file]),
                Pick::Tokenizer => dialog.add_filter("tokenizer.json", &["json"]).pick_file().await.map(|file| vec![file]),
                Pick::Zip => dialog.add_filter("zip", &["zip"]).pick_file().await.map(|file| vec![file]),
                Pick::Rows | Pick::Validation => {
                    let dialog = dialog.add_filter("rows", &["jsonl", "ndjson", "json"]);
                    dialog.add_filter("all files", &["*"]).pick_files().await
                }
                Pick::Dropped => None,
                Pick::TextFolder | Pick::Init | Pick::Model | Pick::Base | Pick::Adapter | Pick::Folder(_) => {
                    dialog.pick_folder().await.map(|folder| vec![folder])
                }
            }
        };
        std::thread::spawn(move || {
            let files = block_on(ask).unwrap_or_default();
            let paths = files.iter().map(|file| shortened(file.path())).collect();
            let _ = sender.send(Chosen::Files(pick, paths)); // a window that has closed needs no file
            ctx.request_repaint();
        });
    }

    /// What was chosen since the last call.
    pub fn chosen(&self) -> Option<Chosen> {
        self.chosen.try_recv().ok()
    }

    /// Takes what was dropped on the window.
    pub fn take_dropped(&self, ctx: &Context) {
        let paths: Vec<String> = ctx.input(|input| input.raw.dropped_files.iter().map(|file| shortened(file.path())).collect());
        if !paths.is_empty() {
            let (zips, texts): (Vec<String>, Vec<String>) = paths.into_iter().partition(|path| path.to_ascii_lowercase().ends_with(".zip"));
            let picked = [(Pick::Zip, zips), (Pick::Dropped, texts)].into_iter().filter(|(_, paths)| !paths.is_empty());
            picked.for_each(|(pick, paths)| drop(self.sender.send(Chosen::Files(pick, paths))));
        }
    }

    /// What else must be done, or is done here, so that people have what a job wrote. It lies where they said.
    pub fn hand_over(&self, _ended: &Command, _well: bool) -> Option<Command> {
        None
    }
}

/// A path as people would type it here: relative where it lies below the current folder.
fn shortened(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).to_string_lossy().into_owned()
}

/// What an error says, on one line and without the place in winit's source that its texts begin with.
fn reason(text: &str) -> String {
    let line = one_line(text);
    let said = line.split_once(".rs:").and_then(|(_, rest)| rest.split_once(": ")).map(|(_, said)| said.to_string());
    said.unwrap_or(line).trim_end_matches('.').to_string()
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
