//! Files that people choose: dialogs of the system and what is dropped on the window.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use futures_lite::future::block_on;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Text files for sources.
    Texts,
    /// A folder of texts.
    TextFolder,
    /// A tokenizer.json.
    Tokenizer,
    /// A Hugging Face folder to start a run from.
    Init,
    /// A Hugging Face folder to generate with.
    Model,
    /// A run or a model as one .zip.
    Zip,
}

/// Dialogs that are open, and what was chosen in them.
#[derive(Debug)]
pub struct Picker {
    sender: Sender<(Pick, Vec<String>)>,
    chosen: Receiver<(Pick, Vec<String>)>,
}

impl Default for Picker {
    fn default() -> Self {
        let (sender, chosen) = channel();
        Self { sender, chosen }
    }
}

impl Picker {
    /// Opens a dialog. The window goes on meanwhile and is drawn again when something was chosen.
    pub fn open(&self, pick: Pick, ctx: &egui::Context) {
        let (sender, ctx) = (self.sender.clone(), ctx.clone());
        let dialog = rfd::AsyncFileDialog::new();
        let ask = async move {
            match pick {
                Pick::Texts => {
                    dialog
                        .add_filter("text", &["txt", "md", "jsonl", "ndjson", "py", "rs"])
                        .add_filter("all files", &["*"])
                        .pick_files()
                        .await
                }
                Pick::Tokenizer => dialog.add_filter("tokenizer.json", &["json"]).pick_file().await.map(|file| vec![file]),
                Pick::Zip => dialog.add_filter("packed run", &["zip"]).pick_file().await.map(|file| vec![file]),
                Pick::TextFolder | Pick::Init | Pick::Model => dialog.pick_folder().await.map(|folder| vec![folder]),
            }
        };
        std::thread::spawn(move || {
            let files = block_on(ask).unwrap_or_default();
            let paths = files.iter().map(|file| shortened(file.path())).collect();
            let _ = sender.send((pick, paths)); // a window that has closed needs no file
            ctx.request_repaint();
        });
    }

    /// What was chosen since the last call.
    pub fn chosen(&self) -> Option<(Pick, Vec<String>)> {
        self.chosen.try_recv().ok()
    }
}

/// Paths of files that were dropped on the window.
pub fn dropped(ctx: &egui::Context) -> Vec<String> {
    ctx.input(|input| input.raw.dropped_files.iter().map(|file| shortened(file.path())).collect())
}

/// A path as people would type it here: relative where it lies below the current folder.
fn shortened(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).to_string_lossy().into_owned()
}
