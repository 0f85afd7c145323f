//! The page: the canvas, the worker behind it, and files on their way in and out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use egui::Context;
use js_sys::{Array, Promise, Reflect};
use smolforge_engine::protocol::{Command, Event, JobId, ReasonVerb};
use wasm_bindgen::prelude::Closure;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    Document, ErrorEvent, File, FileList, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions,
    FileSystemGetFileOptions, FileSystemWritableFileStream, HtmlAnchorElement, HtmlCanvasElement, HtmlInputElement, MessageEvent, Url,
    Window, Worker, WorkerOptions, WorkerType,
};

use super::worker::Said;
use super::{mirror, reason};
use crate::app::App;
use crate::files::{Chosen, Pick};

type Js<T> = Result<T, JsValue>;

/// More bytes than a source may have in a tab; copying them in would only waste space.
const MOST_TEXT_BYTES: f64 = (1u64 << 30) as f64;

fn window() -> Window {
    web_sys::window().expect("a page has a window")
}

fn document() -> Document {
    window().document().expect("a page has a document")
}

/// Draws the window on the page's canvas.
pub fn open() {
    console_error_panic_hook::set_once();
    let canvas = document().get_element_by_id("smolforge").and_then(|element| element.dyn_into::<HtmlCanvasElement>().ok());
    let canvas = canvas.expect("index.html has the canvas");
    spawn_local(async move {
        let runner = eframe::WebRunner::new();
        let create: eframe::AppCreator<'static> = Box::new(|creation| {
            if let Some(state) = &creation.wgpu_render_state {
                state.device.set_device_lost_callback(|reason, _| begin_again(reason));
            }
            let _ = mirror::offer(&creation.egui_ctx, &document()); // the window works without it
            Ok(Box::new(App::new(creation)))
        });
        match runner.start(canvas, eframe::WebOptions::default(), create).await {
            Ok(()) => show("ready", ""),
            Err(error) => show("failed", &reason(&error)),
        }
    });
}

/// After this, the page was loaded because its graphics device was lost.
const GOES_ON: &str = "#goes-on";

/// Loads the page again: a window has no other way to another graphics device.
fn begin_again(reason: wgpu::DeviceLostReason) {
    let location = window().location();
    // A device that is lost at once would be lost for ever.
    if !matches!(reason, wgpu::DeviceLostReason::Destroyed) && location.hash().is_ok_and(|hash| hash != GOES_ON) {
        let _ = location.set_hash(GOES_ON);
        let _ = location.reload();
    }
}

/// Tells the page how it went: it shows or hides what it says without this module.
fn show(state: &str, why: &str) {
    let body = document().body().expect("a page has a body");
    let _ = body.set_attribute("data-state", state);
    let _ = body.set_attribute("data-why", why);
}

/// The page's side of the conversation with the worker.
#[derive(Debug, Clone)]
pub struct Link(Rc<Talk>);

#[derive(Debug)]
struct Talk {
    ctx: Context,
    worker: RefCell<Option<Worker>>,
    ready: Cell<bool>,
    unsent: RefCell<Vec<String>>,
    events: RefCell<VecDeque<(JobId, Event)>>,
    next_job: Cell<JobId>,
    ended: RefCell<Option<String>>,
}

impl Link {
    /// Starts the worker; `ctx` is drawn again when it says something.
    pub fn start(ctx: &Context) -> Self {
        let talk = Talk {
            ctx: ctx.clone(),
            worker: RefCell::default(),
            ready: Cell::new(false),
            unsent: RefCell::default(),
            events: RefCell::default(),
            next_job: Cell::new(1),
            ended: RefCell::default(),
        };
        let link = Self(Rc::new(talk));
        link.restart();
        link
    }

    /// Whether the page was loaded because its graphics device was lost: what trained goes on then.
    pub fn goes_on() -> bool {
        let location = window().location();
        let goes_on = location.hash().is_ok_and(|hash| hash == GOES_ON);
        if goes_on {
            // Forgotten when the window has stood for a while.
            let forget = Closure::once_into_js(move || drop(location.set_hash("")));
            let _ = window().set_timeout_with_callback_and_timeout_and_arguments(forget.unchecked_ref(), 30_000, &Array::new());
        }
        goes_on
    }

    /// Starts another worker in the place of one that has ended.
    pub fn restart(&self) {
        if let Some(old) = self.0.worker.take() {
            old.set_onmessage(None);
            old.set_onerror(None); // what it still has to say is of no interest
            old.terminate();
        }
        self.0.ready.set(false);
        self.0.ended.replace(None);
        self.0.unsent.take();
        self.0.events.take();
        match self.spawn() {
            Ok(worker) => drop(self.0.worker.replace(Some(worker))),
            Err(error) => self.end(format!("the worker could not be started: {}", reason(&error))),
        }
    }

    fn spawn(&self) -> Js<Worker> {
        let options = WorkerOptions::new();
        options.set_type(WorkerType::Module);
        let worker = Worker::new_with_options("worker.js", &options)?;
        let link = self.clone();
        let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |message: MessageEvent| link.hear(&message.data()));
        worker.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        let link = self.clone();
        let on_error = Closure::<dyn FnMut(ErrorEvent)>::new(move |error: ErrorEvent| {
            let why = error.message();
            // Where it does not panic, which it says first, it traps because it gets no more memory.
            let spent = "it has run out of memory, of which a tab has 4 GiB; take a smaller model or batch, or the desktop program";
            link.end(if why.contains("unreachable") { spent.into() } else { why });
        });
        worker.set_onerror(Some(on_error.as_ref().unchecked_ref()));
        on_message.forget(); // as long as the worker, of which there are few
        on_error.forget();
        Ok(worker)
    }

    fn hear(&self, data: &JsValue) {
        let Some(said) = data.as_string().and_then(|text| serde_json::from_str(&text).ok()) else { return };
        match said {
            Said::Ready => {
                self.0.ready.set(true);
                self.0.unsent.take().iter().for_each(|text| self.post(text));
            }
            Said::Event(job, event) => self.0.events.borrow_mut().push_back((job, event)),
            Said::Ended(why) => self.end(why),
        }
        self.0.ctx.request_repaint();
    }

    fn end(&self, why: String) {
        self.0.ended.borrow_mut().get_or_insert(why);
        self.0.ctx.request_repaint();
    }

    fn post(&self, text: &str) {
        if let Some(worker) = self.0.worker.borrow().as_ref() {
            let _ = worker.post_message(&JsValue::from_str(text));
        }
    }

    /// Begins a job.
    pub fn send(&self, command: Command) -> JobId {
        let job = self.0.next_job.replace(self.0.next_job.get() + 1);
        self.tell(job, command);
        job
    }

    /// Says something about a job.
    pub fn tell(&self, job: JobId, command: Command) {
        let text = serde_json::to_string(&(job, command)).expect("plain data");
        if self.0.ready.get() { self.post(&text) } else { self.0.unsent.borrow_mut().push(text) }
    }

    /// What the engine said next, if it has.
    pub fn next(&self) -> Option<(JobId, Event)> {
        self.0.events.borrow_mut().pop_front()
    }

    /// Why there is no engine any more.
    pub fn ended(&self) -> Option<String> {
        self.0.ended.borrow().clone()
    }
}

/// Dialogs of the browser, and copies into and out of its file system.
#[derive(Debug, Clone)]
pub struct Picker {
    ctx: Context,
    chosen: Rc<RefCell<VecDeque<Chosen>>>,
}

impl Picker {
    /// No dialog is open.
    pub fn new(ctx: &Context) -> Self {
        Self { ctx: ctx.clone(), chosen: Rc::default() }
    }

    fn push(&self, chosen: Chosen) {
        self.chosen.borrow_mut().push_back(chosen);
        self.ctx.request_repaint();
    }

    /// What was chosen since the last call.
    pub fn chosen(&self) -> Option<Chosen> {
        self.chosen.borrow_mut().pop_front()
    }

    /// Opens a dialog of the browser.
    pub fn open(&self, pick: Pick) {
        if let Err(error) = self.ask(pick) {
            self.push(Chosen::Refused(format!("no dialog could be opened: {}", reason(&error))));
        }
    }

    fn ask(&self, pick: Pick) -> Js<()> {
        let input: HtmlInputElement = document().create_element("input")?.dyn_into()?;
        input.set_type("file");
        match pick {
            Pick::Texts => {
                input.set_multiple(true);
                input.set_accept(".txt,.md,.jsonl,.ndjson,.py,.rs,text/*");
            }
            Pick::Tokenizer | Pick::Questions(_) => input.set_accept(".json"),
            Pick::Rows | Pick::Validation => {
                input.set_multiple(true);
                input.set_accept(".jsonl,.ndjson,.json");
            }
            Pick::Dropped => return Ok(()),
            Pick::Zip => input.set_accept(".zip"),
            Pick::TextFolder | Pick::Init | Pick::Model | Pick::Base | Pick::Adapter | Pick::Folder(_) => {
                input.set_attribute("webkitdirectory", "")?;
            }
        }
        let (picker, chooser) = (self.clone(), input.clone());
        let on_change = Closure::once_into_js(move || {
            picker.copy(pick, chooser.files().map(files).unwrap_or_default());
        });
        input.set_onchange(Some(on_change.unchecked_ref()));
        input.click();
        Ok(())
    }

    /// Takes what was dropped on the page.
    pub fn take_dropped(&self, ctx: &Context) {
        let dropped: Vec<File> = ctx.input(|input| input.raw.dropped_files.iter().filter_map(|file| file.web_file().cloned()).collect());
        let (zips, texts): (Vec<File>, Vec<File>) =
            dropped.into_iter().partition(|file| file.name().to_ascii_lowercase().ends_with(".zip"));
        for (pick, files) in [(Pick::Zip, zips), (Pick::Dropped, texts)] {
            if !files.is_empty() {
                self.copy(pick, files);
            }
        }
    }

    /// Copies files into the browser's file system, one after the other.
    fn copy(&self, pick: Pick, files: Vec<File>) {
        let picker = self.clone();
        spawn_local(async move {
            let text = matches!(pick, Pick::Texts | Pick::TextFolder | Pick::Rows | Pick::Validation | Pick::Questions(_) | Pick::Dropped);
            let (whole, folder) = (!text && pick != Pick::Zip, picked_folder(pick));
            let all = files.iter().fold(0, |all: u64, file| all.wrapping_mul(31).wrapping_add(mark(file)));
            let mut paths = Vec::new();
            for file in files.into_iter().filter(|file| !folder || !hidden(&inside(file))) {
                let path = format!("{}/{:06x}/{}", kept_in(pick), if folder { all } else { mark(&file) } & 0xff_ffff, inside(&file));
                if text && file.size() > MOST_TEXT_BYTES {
                    let reason = format!(
                        "{}: {:.1} GiB are too many for a browser tab; cut it into files of at most 1 GiB, or use the desktop program",
                        file.name(),
                        file.size() / MOST_TEXT_BYTES
                    );
                    picker.push(Chosen::Refused(reason));
                    continue;
                }
                if file.size() > 32e6 {
                    picker.push(Chosen::Copying(format!("copying {} into the browser: {:.0} MB", file.name(), file.size() / 1e6)));
                }
                match store(&file, &path).await {
                    Ok(()) => paths.push(path),
                    Err(error) => {
                        picker.push(Chosen::Refused(format!("{} could not be copied into the browser: {}", file.name(), reason(&error))));
                        if whole {
                            return;
                        }
                    }
                }
            }
            if folder {
                paths = paths.first().map(|path| path.split('/').take(3).collect::<Vec<_>>().join("/")).into_iter().collect();
            }
            if !paths.is_empty() {
                picker.push(Chosen::Files(pick, paths));
            }
        });
    }

    /// What else must be done, or is done here, so that people have what a job wrote: a folder is packed, a .zip downloaded.
    /// A .zip that was copied in has served its purpose.
    pub fn hand_over(&self, ended: &Command, well: bool) -> Option<Command> {
        match ended {
            Command::Export { out, .. } | Command::Merge { out, .. } if well => {
                return Some(Command::Pack { folder: out.clone(), out: format!("{out}.zip") });
            }
            Command::Pack { out, .. } | Command::Reason { verb: ReasonVerb::Bundle { out, .. }, .. } if well => self.deliver(out),
            Command::Unpack { file, .. } if file.starts_with("zips/") => {
                let file = file.clone();
                spawn_local(async move { drop(remove(&file).await) });
            }
            _ => {}
        }
        None
    }

    fn deliver(&self, path: &str) {
        let (picker, path) = (self.clone(), path.to_string());
        spawn_local(async move {
            if let Err(error) = download(&path).await {
                picker.push(Chosen::Refused(format!("{path} could not be downloaded: {}", reason(&error))));
            }
        });
    }
}

fn files(list: FileList) -> Vec<File> {
    (0..list.length()).filter_map(|index| list.get(index)).collect()
}

/// Whether a folder is chosen, not files.
fn picked_folder(pick: Pick) -> bool {
    matches!(pick, Pick::TextFolder | Pick::Init | Pick::Model | Pick::Base | Pick::Adapter | Pick::Folder(_))
}

/// The folder of the browser's file system for what is chosen.
fn kept_in(pick: Pick) -> &'static str {
    match pick {
        Pick::Texts | Pick::TextFolder | Pick::Dropped => "texts",
        Pick::Rows | Pick::Validation => "rows",
        Pick::Questions(_) => "questions",
        Pick::Folder("folder") => "folders",
        Pick::Tokenizer => "tokenizers",
        Pick::Init | Pick::Model | Pick::Base | Pick::Folder(_) => "models",
        Pick::Adapter => "adapters",
        Pick::Zip => "zips",
    }
}

/// A file's path in the folder it was chosen with, or its name.
fn inside(file: &File) -> String {
    let path = Reflect::get(file, &"webkitRelativePath".into()).ok().and_then(|path| path.as_string());
    path.filter(|path| !path.is_empty()).unwrap_or_else(|| file.name())
}

fn hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.'))
}

/// A number that tells files of the same name apart.
fn mark(file: &File) -> u64 {
    (file.last_modified() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(32) ^ file.size() as u64
}

async fn wait<T: JsCast>(promise: Promise) -> Js<T> {
    JsFuture::from(promise).await?.dyn_into()
}

/// The folder of a path, made where `create` says so, and the name in it.
async fn place(path: &str, create: bool) -> Js<(FileSystemDirectoryHandle, &str)> {
    let mut folder: FileSystemDirectoryHandle = wait(window().navigator().storage().get_directory()).await?;
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let options = FileSystemGetDirectoryOptions::new();
    options.set_create(create);
    for step in above.split('/').filter(|step| !step.is_empty() && *step != ".") {
        folder = wait(folder.get_directory_handle_with_options(step, &options)).await?;
    }
    Ok((folder, name))
}

async fn handle(path: &str, create: bool) -> Js<FileSystemFileHandle> {
    let (folder, name) = place(path, create).await?;
    let options = FileSystemGetFileOptions::new();
    options.set_create(create);
    wait(folder.get_file_handle_with_options(name, &options)).await
}

async fn remove(path: &str) -> Js<()> {
    let (folder, name) = place(path, false).await?;
    JsFuture::from(folder.remove_entry(name)).await.map(drop)
}

/// Streams a file into the browser's file system; it is there when all of it has come.
async fn store(file: &File, path: &str) -> Js<()> {
    let writable: FileSystemWritableFileStream = wait(handle(path, true).await?.create_writable()).await?;
    let copied = JsFuture::from(file.stream().pipe_to(&writable)).await;
    if copied.is_err() {
        let _ = remove(path).await; // the name was taken before the first byte came
    }
    copied.map(drop)
}

async fn download(path: &str) -> Js<()> {
    let file: File = wait(handle(path, false).await?.get_file()).await?;
    let url = Url::create_object_url_with_blob(&file)?;
    let link: HtmlAnchorElement = document().create_element("a")?.dyn_into()?;
    link.set_href(&url);
    link.set_download(path.rsplit('/').next().unwrap_or(path));
    link.click();
    // The browser reads the file from here on; the address is let go of a minute later.
    let revoke = Closure::once_into_js(move || drop(Url::revoke_object_url(&url)));
    window().set_timeout_with_callback_and_timeout_and_arguments(revoke.unchecked_ref(), 60_000, &Array::new()).map(drop)
}
