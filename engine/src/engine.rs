//! The actor: commands in, events out, one job at a time.

use std::panic::AssertUnwindSafe;

use async_channel::{Receiver, Sender};
use futures_lite::FutureExt;

use crate::bench;
use crate::config::TrainConfig;
use crate::control::{Control, Flow};
use crate::data::source;
use crate::data::vocabulary;
use crate::device::{self, Compute};
use crate::error::{Error, Result};
use crate::generate;
use crate::model::hub::{self, Weights};
use crate::model::safetensors::Dtype;
use crate::plan;
use crate::platform;
use crate::protocol::{Command, DeviceChoice, Event, ExportDtype, GenerateRequest, TextScore};
use crate::store::Store;
use crate::tasks::demo;
use crate::text::tokenizer::Tokenizer;
use crate::train::pretrain;
use crate::train::{Ended, checkpoint, eval};

/// A shell's handle on the engine, which runs on a thread (or worker) of its own.
#[derive(Debug, Clone)]
pub struct Engine {
    commands: Sender<Command>,
    events: Receiver<Event>,
}

impl Engine {
    /// Starts an engine that reads and writes in `store`.
    pub fn start(store: Store) -> Self {
        let (commands, command_queue) = async_channel::unbounded();
        let (event_queue, events) = async_channel::unbounded();
        platform::spawn(move || serve(store, Control::new(command_queue, event_queue)));
        Self { commands, events }
    }

    /// Asks for something; answers come as events.
    pub fn send(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// The queue of commands, for a signal handler.
    pub fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    /// The next event; `None` when the engine has ended.
    pub async fn next(&self) -> Option<Event> {
        self.events.recv().await.ok()
    }
}

async fn serve(store: Store, control: Control) {
    while let Some(command) = control.next_job().await {
        let event = match AssertUnwindSafe(job(command, &store, &control)).catch_unwind().await {
            Ok(Ok((ended, hints))) => Event::Done { hints, stopped: ended == Ended::Stopped },
            Ok(Err(error)) => Event::Failed { error: error.to_string() },
            Err(panic) => Event::Failed { error: from_panic(panic.as_ref()).to_string() },
        };
        control.emit(event);
    }
}

/// burn panics where a device fails or runs out of memory: that is no defect of the program.
fn from_panic(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
    let text = text.unwrap_or_default();
    let lower = text.to_lowercase();
    if ["out of memory", "outofmemory", "buffertoobig", "wgpu", "device lost", "invalid state", "never written"]
        .iter()
        .any(|sign| lower.contains(sign))
    {
        return device::failed(&text);
    }
    Error::Internal(text.lines().next().unwrap_or("a defect without a message").to_string())
}

type Outcome = Result<(Ended, Vec<String>)>;

async fn job(command: Command, store: &Store, control: &Control) -> Outcome {
    let name = serde_json::to_value(&command).ok().and_then(|value| Some(value.get("command")?.as_str()?.to_string()));
    control.emit(Event::Started { job: name.unwrap_or_default(), version: env!("CARGO_PKG_VERSION").into() });
    let named = match &command {
        Command::Export { out, .. } | Command::TrainTokenizer { out, .. } | Command::Demo { out, .. } => Some(("--out", out)),
        Command::Generate(GenerateRequest { model, .. }) | Command::Eval { model, .. } => Some(("--model", model)),
        _ => None,
    };
    if let Some((flag, _)) = named.filter(|(_, name)| name.trim().is_empty()) {
        return Err(Error::Config(format!("{flag} is empty: name a folder or file")));
    }
    match command {
        Command::Train { config, resume } => return pretrain::run(&config, resume, store, control).await,
        Command::Demo { out, device, seed, steps } => return demo::run(&out, device, seed, steps, store, control).await,
        Command::Generate(request) => generate::run(&request, store, control).await?,
        Command::Eval { model, files, device, sequence_length } => score(&model, &files, device, sequence_length, store, control).await?,
        Command::Export { run, out, dtype, checkpoint } => export(&run, &out, dtype, &checkpoint, store, control).await?,
        Command::Tokenize { tokenizer, files } => tokenize(&tokenizer, &files, store, control).await?,
        Command::TrainTokenizer { files, vocab_size, out } => train_tokenizer(&files, vocab_size, &out, store, control).await?,
        Command::Devices => device::list().await.into_iter().for_each(|info| control.emit(Event::Device(info))),
        Command::Plan { config } => plan::run(&config, store, control).await?,
        Command::Bench(request) => bench::run(&request, control).await?,
        Command::Stop | Command::Pause | Command::Continue => {}
    }
    let stopped = control.breathe().await == Flow::Stop;
    Ok((if stopped { Ended::Stopped } else { Ended::Finished }, Vec::new()))
}

async fn score(
    model: &str,
    files: &[String],
    choice: DeviceChoice,
    sequence_length: usize,
    store: &Store,
    control: &Control,
) -> Result<()> {
    let config = hub::read_config(store, model).await?;
    let tokenizer = Tokenizer::load(store, model).await?;
    generate::fits(&tokenizer, &config)?;
    let length = if sequence_length == 0 { config.max_position_embeddings.min(2048) } else { sequence_length };
    if length < 2 || length > config.max_position_embeddings {
        return Err(Error::Config(format!(
            "--sequence-length {length}: must lie between 2 and the model's context of {}",
            config.max_position_embeddings
        )));
    }
    if files.is_empty() {
        return Err(Error::Config("no text: give --text FILE".into()));
    }
    let mut texts = Vec::new();
    for file in files {
        for file in store.expand(file).await? {
            let text = source::read_text(store, &file, control).await?;
            texts.push((file, text));
        }
    }
    let (compute, why) = Compute::open(choice).await?;
    control.notice(why);
    let llama = generate::load(store, model, &config, &compute, length).await?;
    for (file, text) in texts {
        let (batches, bytes) = crate::data::batch::windows(&tokenizer, &text, length)?;
        let total = batches.len() as u64;
        let counted = batches.into_iter().enumerate().map(|(done, batch)| {
            control.progress(&file, done as u64, total, "windows");
            batch
        });
        let Some((nats, tokens)) = eval::run(&llama, counted, control).await? else { return Ok(()) };
        control.emit(Event::Scored { file: file.clone(), score: TextScore::new(nats, tokens, bytes) });
    }
    Ok(())
}

/// Writes a run's weights as a Hugging Face folder.
///
/// # Errors
/// No such run or checkpoint; a weight that does not fit the type; a full disk.
pub(crate) async fn export(run: &str, out: &str, dtype: ExportDtype, which: &str, store: &Store, control: &Control) -> Result<()> {
    for owned in ["state.json", "events.jsonl"] {
        if store.exists(&format!("{out}/{owned}")).await {
            return Err(Error::Config(format!("--out {out}: holds a run or one of its checkpoints; choose another folder")));
        }
    }
    let steps = checkpoint::steps(store, run).await?;
    let last = *steps.last().ok_or_else(|| Error::Config(format!("{run}: no checkpoint here; train first, or check --run")))?;
    let listed = || steps.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let step = match which {
        "last" => last,
        "best" => {
            let state = checkpoint::read_state(store, &checkpoint::folder(run, last)).await?;
            state
                .best
                .map(|(_, step)| step)
                .ok_or_else(|| Error::Config(format!("{run}: was not evaluated yet, so there is no best checkpoint")))?
        }
        step => step.parse().map_err(|_| Error::Config(format!("--step {step}: give `last`, `best` or one of {}", listed())))?,
    };
    if !steps.contains(&step) {
        return Err(Error::Config(format!("{run}: no checkpoint of step {step}; there are {}", listed())));
    }
    let folder = checkpoint::folder(run, step);
    let config = hub::read_config(store, &folder).await?;
    let weights = Weights::open(store, &folder).await?;
    weights.check(&config)?;
    let tokenizer = store.open(&format!("{folder}/tokenizer.json")).await?;
    let (dtype, name) = match dtype {
        ExportDtype::F16 => (Dtype::F16, "FP16 export"),
        ExportDtype::F32 => (Dtype::F32, "FP32 export"),
    };
    checkpoint::export(store, &weights, &config, Some(&tokenizer), out, dtype).await?;
    control.emit(Event::Wrote { what: format!("{name} of step {step}"), path: out.into() });
    Ok(())
}

async fn tokenize(tokenizer: &str, files: &[String], store: &Store, control: &Control) -> Result<()> {
    let tokenizer = Tokenizer::load(store, tokenizer).await?;
    for file in files {
        for file in store.expand(file).await? {
            let Some(event) = source::count(store, &file, &tokenizer, control).await? else { return Ok(()) };
            control.emit(event);
        }
    }
    Ok(())
}

async fn train_tokenizer(files: &[String], vocab_size: usize, out: &str, store: &Store, control: &Control) -> Result<()> {
    let sources = [("files".to_string(), crate::config::SourceConfig::Paths(files.to_vec()))].into();
    let config = TrainConfig { tokenizer_vocab_size: vocab_size, sources, ..TrainConfig::default() };
    if !(257..=1_000_000).contains(&vocab_size) {
        return Err(Error::Config(format!("--vocab-size {vocab_size}: must lie between 257 and 1000000")));
    }
    let Some(tokenizer) = vocabulary::train(store, &config.sources, vocab_size, control).await? else { return Ok(()) };
    store.write(out, tokenizer.json()).await?;
    control.emit(Event::Wrote { what: format!("tokenizer of {} tokens", tokenizer.vocab_size()), path: out.into() });
    Ok(())
}
