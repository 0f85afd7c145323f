//! The actor: commands in, events out; one long job and one text at a time, questions at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_channel::{Receiver, Sender};
use async_executor::LocalExecutor;
use futures_lite::FutureExt;

use crate::bench;
use crate::config::SourceConfig;
use crate::control::{Control, Flow, Signals};
use crate::data::source;
use crate::data::vocabulary;
use crate::device::{self, Compute};
use crate::error::{Error, Result};
use crate::generate::{self, Loaded};
use crate::model::hub;
use crate::plan;
use crate::platform;
use crate::protocol::{AdapterChoice, Command, DeviceChoice, Event, GenerateRequest, JobId, ReasonVerb};
use crate::store::Store;
use crate::tasks::{answers, demo, describe, export, folder_of, inspect, merge, pack, reason, self_test, unpack};
use crate::text::tokenizer::Tokenizer;
use crate::train::runs::{self, ReadLogs};
use crate::train::{Ended, checkpoint, eval, finetune, pretrain};

/// A shell's handle on the engine, which runs on a thread (or worker) of its own.
#[derive(Debug, Clone)]
pub struct Engine {
    commands: Sender<(JobId, Command)>,
    events: Receiver<(JobId, Event)>,
    next_job: Arc<AtomicU64>,
}

impl Engine {
    /// Starts an engine that reads and writes in `store`.
    pub fn start(store: Store) -> Self {
        let (commands, command_queue) = async_channel::unbounded();
        let (event_queue, events) = async_channel::unbounded();
        platform::spawn(move || serve(store, command_queue, event_queue));
        Self { commands, events, next_job: Arc::new(AtomicU64::new(1)) }
    }

    /// Begins a job; answers come as events of this id.
    pub fn send(&self, command: Command) -> JobId {
        let job = self.next_job.fetch_add(1, Ordering::Relaxed);
        self.tell(job, command);
        job
    }

    /// Says something about a job: `Stop`, `Pause`, `Continue`, `Save`, `Move`, `Reweight`.
    pub fn tell(&self, job: JobId, command: Command) {
        let _ = self.commands.try_send((job, command)); // an engine that has ended needs no telling
    }

    /// The next event; `None` when the engine has ended.
    pub async fn next(&self) -> Option<(JobId, Event)> {
        self.events.recv().await.ok()
    }
}

/// Until the shell has gone.
async fn serve(store: Store, commands: Receiver<(JobId, Command)>, events: Sender<(JobId, Event)>) {
    let actor = Rc::new(Actor {
        store,
        jobs: Queue::new(events.clone()),
        texts: Queue::new(events.clone()),
        logs: ReadLogs::default(),
        loaded: Loaded::default(),
        computing: Cell::new(false),
        crowded: Cell::new(false),
        events,
    });
    let executor = Rc::new(LocalExecutor::new());
    executor.spawn(actor.clone().work(true)).detach();
    executor.spawn(actor.clone().work(false)).detach();
    // A task like the others: the executor looks at the future that it runs only now and then.
    let receive = executor.spawn(actor.receive(commands, executor.clone()));
    executor.run(receive).await;
}

/// What the engine is doing and what waits.
struct Actor {
    store: Store,
    events: Sender<(JobId, Event)>,
    jobs: Queue,
    texts: Queue,
    logs: ReadLogs,
    loaded: Loaded,
    /// Whether a text is being generated; one whose model is still on its way is not.
    computing: Cell<bool>,
    /// Whether the longer job in progress wants the memory that the model of a text takes.
    crowded: Cell<bool>,
}

impl Actor {
    /// Passes on what the shell says, until it has gone.
    async fn receive(self: Rc<Self>, commands: Receiver<(JobId, Command)>, executor: Rc<LocalExecutor<'static>>) {
        while let Ok((job, command)) = commands.recv().await {
            match command {
                Command::Stop | Command::Pause | Command::Continue | Command::Save | Command::Move { .. } | Command::Reweight { .. } => {
                    [&self.jobs, &self.texts].iter().for_each(|queue| queue.tell(job, &command));
                }
                Command::Devices { .. }
                | Command::Memory
                | Command::Runs { .. }
                | Command::OpenRun { .. }
                | Command::Delete { .. }
                | Command::Describe { .. }
                | Command::Preview { .. } => {
                    let actor = self.clone();
                    executor.spawn(async move { actor.run(job, command, Signals::new()).await }).detach();
                }
                Command::Generate(_) => self.texts.push(job, command),
                command => self.jobs.push(job, command),
            }
        }
        self.finish().await;
    }

    /// Takes the jobs of a queue one after the other.
    async fn work(self: Rc<Self>, long: bool) {
        let own = if long { &self.jobs } else { &self.texts };
        loop {
            let (job, command) = own.next().await;
            let signals = Signals::new();
            *own.running.borrow_mut() = Some((job, signals.clone()));
            own.announce();
            if long {
                self.crowded.set(takes_memory(&command));
                if self.crowded.get() {
                    self.loaded.clear();
                }
                if self.computing.get() {
                    signals.guest(true);
                }
            }
            self.run(job, command, signals).await;
            *own.running.borrow_mut() = None;
            if long {
                self.crowded.set(false);
            }
            if !long {
                self.leave();
            }
        }
    }

    /// A text begins to compute: the longer job, also one that is yet to begin, waits meanwhile.
    fn compute(&self) {
        self.computing.set(true);
        if let Some(host) = self.jobs.signals() {
            host.guest(true);
        }
    }

    /// A text has ended, well or not.
    fn leave(&self) {
        let computed = self.computing.take();
        if self.crowded.get() {
            self.loaded.clear();
        }
        if let Some(host) = self.jobs.signals().filter(|_| computed) {
            host.guest(false);
        }
    }

    /// The shell has gone: what is in progress saves and ends.
    async fn finish(&self) {
        for queue in [&self.jobs, &self.texts] {
            queue.waiting.borrow_mut().clear();
            while let Some(signals) = queue.signals() {
                signals.stop();
                platform::yield_now().await;
            }
        }
    }

    async fn run(&self, job: JobId, command: Command, signals: Rc<Signals>) {
        let control = Control::new(job, self.events.clone(), signals);
        let event = match AssertUnwindSafe(perform(command, self, &control)).catch_unwind().await {
            Ok(Ok((ended, hints))) => Event::Done { hints, stopped: ended == Ended::Stopped },
            Ok(Err(error)) => Event::failed(&error),
            Err(panic) => Event::failed(&from_panic(panic.as_ref())),
        };
        if !control.take_reweights().is_empty() {
            control.warn("no update is left that other shares could change");
        }
        control.emit(event);
    }
}

/// Jobs that wait, and the one in progress.
struct Queue {
    waiting: RefCell<VecDeque<(JobId, Command)>>,
    running: RefCell<Option<(JobId, Rc<Signals>)>>,
    arrived: (Sender<()>, Receiver<()>),
    events: Sender<(JobId, Event)>,
}

impl Queue {
    fn new(events: Sender<(JobId, Event)>) -> Self {
        Self { waiting: RefCell::default(), running: RefCell::default(), arrived: async_channel::bounded(1), events }
    }

    fn push(&self, job: JobId, command: Command) {
        self.waiting.borrow_mut().push_back((job, command));
        self.announce();
        let _ = self.arrived.0.try_send(()); // full: the queue is looked at anyway
    }

    async fn next(&self) -> (JobId, Command) {
        loop {
            let first = self.waiting.borrow_mut().pop_front();
            match first {
                Some(first) => return first,
                None => drop(self.arrived.1.recv().await),
            }
        }
    }

    fn signals(&self) -> Option<Rc<Signals>> {
        self.running.borrow().as_ref().map(|(_, signals)| signals.clone())
    }

    /// Passes on what is said about a job, if it is one of this queue.
    fn tell(&self, job: JobId, command: &Command) {
        if let Some((_, signals)) = self.running.borrow().as_ref().filter(|(running, _)| *running == job) {
            match command {
                Command::Stop => signals.stop(),
                Command::Pause => signals.pause(true),
                Command::Continue => signals.pause(false),
                Command::Save => signals.save(),
                Command::Reweight { stage, weights } => signals.reweight(*stage, weights.clone()),
                _ => {}
            }
        }
        let mut waiting = self.waiting.borrow_mut();
        let Some(place) = waiting.iter().position(|(waits, _)| *waits == job) else { return };
        match command {
            Command::Stop => {
                waiting.remove(place);
                let _ = self.events.try_send((job, Event::Done { hints: Vec::new(), stopped: true }));
            }
            Command::Move { position } => {
                if let Some(moved) = waiting.remove(place) {
                    let position = (*position).min(waiting.len());
                    waiting.insert(position, moved);
                }
            }
            Command::Reweight { .. } => {
                let text = "the run waits for its turn: change the stages of its configuration instead".to_string();
                let _ = self.events.try_send((job, Event::Notice { warning: true, text }));
            }
            _ => {}
        }
        drop(waiting);
        self.announce();
    }

    /// Tells those who wait how many are before them.
    fn announce(&self) {
        let before = usize::from(self.running.borrow().is_some());
        if before == 0 {
            return; // the first is taken at once and announces the others
        }
        for (place, (job, _)) in self.waiting.borrow().iter().enumerate() {
            let _ = self.events.try_send((*job, Event::Waiting { position: place + before }));
        }
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

/// Whether a longer job puts a model of its own on a device.
fn takes_memory(command: &Command) -> bool {
    use Command::*;
    use ReasonVerb::{Bundle, MakeData, Mend, Rejects};
    let without = match command {
        Reason { verb, config } => match verb {
            MakeData { .. } | Rejects { .. } | Mend { .. } => true,
            Bundle { .. } => config.valid_file.is_none(),
            _ => false,
        },
        Inspect { .. } | Export { .. } | Merge { .. } | Tokenize { .. } | TrainTokenizer { .. } | Pack { .. } | Unpack { .. } => true,
        _ => false,
    };
    !without
}

type Outcome = Result<(Ended, Vec<String>)>;

async fn perform(command: Command, actor: &Actor, control: &Control) -> Outcome {
    let Actor { store, logs, loaded, .. } = actor;
    let name = serde_json::to_value(&command).ok().and_then(|value| Some(value.get("command")?.as_str()?.to_string()));
    control.emit(Event::Started { job: name.unwrap_or_default(), version: env!("CARGO_PKG_VERSION").into() });
    let named = match &command {
        Command::Export { out, .. }
        | Command::Merge { out, .. }
        | Command::TrainTokenizer { out, .. }
        | Command::Demo { out, .. }
        | Command::DemoFinetune { out, .. }
        | Command::DemoTask { out, .. }
        | Command::Pack { out, .. }
        | Command::Unpack { out, .. } => Some(("--out", out)),
        Command::Generate(GenerateRequest { model, .. }) | Command::Eval { model, .. } => Some(("--model", model)),
        _ => None,
    };
    if let Some((flag, _)) = named.filter(|(_, name)| name.trim().is_empty()) {
        return Err(Error::Config(format!("{flag} is empty: name a folder or file")));
    }
    match command {
        Command::Train { config, resume } => return pretrain::run(&config, resume, store, control).await,
        Command::Finetune { config, notes, resume } => {
            notes.into_iter().for_each(|note| control.remark(note));
            return finetune::run(&config, resume, store, control).await;
        }
        Command::Demo { out, device, seed, steps } => return demo::run(&out, device, seed, steps, store, control).await,
        Command::DemoTask { out, device, seed, steps } => return demo::task::run(&out, device, seed, steps, store, control).await,
        Command::DemoFinetune { out, device, seed, steps, updates } => {
            return demo::finetune::run(&out, device, seed, [steps, updates], store, control).await;
        }
        Command::Generate(mut request) => {
            let Some(model) = folder_of(&request.model, store, control).await? else { return stopped(control) };
            request.model = model;
            request.adapters = adapters_of(request.adapters, store).await;
            actor.compute();
            generate::run(&request, loaded, store, control).await?;
        }
        Command::Inspect { mut config, first, count, row } => {
            let Some(model) = folder_of(&config.model_name, store, control).await? else { return stopped(control) };
            config.model_name = model;
            inspect::run(&config, first, count, row.as_deref(), store, control).await?;
        }
        Command::Merge { model, adapters, out, dtype } => {
            let Some(model) = folder_of(&model, store, control).await? else { return stopped(control) };
            merge::run(&model, &adapters_of(adapters, store).await, &out, dtype, store, control).await?;
        }
        Command::Describe { model, adapters } => describe::run(&model, &adapters_of(adapters, store).await, store, control).await?,
        Command::Answers(mut request) => {
            let Some(model) = folder_of(&request.config.model_name, store, control).await? else { return stopped(control) };
            request.config.model_name = model;
            request.adapters = adapters_of(request.adapters, store).await;
            drop(answers::run(&request, store, control).await?);
        }
        Command::Eval { model, files, device, sequence_length } => {
            let Some(model) = folder_of(&model, store, control).await? else { return stopped(control) };
            score(&model, &files, device, sequence_length, store, control).await?
        }
        Command::Export { run, out, dtype, checkpoint } => export::run(&run, &out, dtype, &checkpoint, store, control).await?,
        Command::Tokenize { tokenizer, files } => tokenize(&tokenizer, &files, store, control).await?,
        Command::TrainTokenizer { files, vocab_size, out } => train_tokenizer(&files, vocab_size, &out, store, control).await?,
        Command::Devices { test } => device::list(test).await.into_iter().for_each(|info| control.emit(Event::Device(info))),
        Command::Memory => control.emit(Event::Memory(device::memory())),
        Command::Plan { config, budget_bytes } => plan::run(&config, budget_bytes, store, control).await?,
        Command::PlanFinetune { config, budget_bytes } => {
            let Some(model) = folder_of(&config.model_name, store, control).await? else { return stopped(control) };
            plan::finetune::run(&config, &model, budget_bytes, store, control).await?;
        }
        Command::Bench(request) => bench::run(&request, store, control).await?,
        Command::Reason { config, verb } => return reason::run(&config, verb, store, control).await,
        Command::Runs { folder } if folder != "." && !store.exists(&folder).await => {
            return Err(Error::File { path: folder, reason: "no such folder".into() });
        }
        Command::Runs { folder } => control.emit(Event::Runs { runs: runs::list(store, &folder, logs).await }),
        Command::OpenRun { path } => control.emit(runs::open(store, &path).await?),
        Command::Delete { path } => {
            runs::delete(store, &path).await?;
            control.notice(format!("removed {path}"));
        }
        Command::Preview { source, page } => source::preview(&source, page, store, control).await?,
        Command::Pack { folder, out } => pack::run(&folder, &out, store, control).await?,
        Command::Unpack { file, out } => {
            let hints = unpack::run(&file, &out, store, control).await?;
            return stopped(control).map(|(ended, _)| (ended, hints));
        }
        Command::SelfTest { device } => self_test::run(device, control).await?,
        // About a job, and no job.
        Command::Stop | Command::Pause | Command::Continue | Command::Save | Command::Move { .. } | Command::Reweight { .. } => {}
    }
    stopped(control)
}

/// The end of a job that leaves nothing to be done.
fn stopped(control: &Control) -> Outcome {
    Ok((if control.flow() == Flow::Stop { Ended::Stopped } else { Ended::Finished }, Vec::new()))
}

async fn adapters_of(mut adapters: Vec<AdapterChoice>, store: &Store) -> Vec<AdapterChoice> {
    for adapter in &mut adapters {
        adapter.path = checkpoint::adapter_of(store, &adapter.path).await;
    }
    adapters
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
    let mut names = Vec::new();
    for file in files {
        names.extend(store.expand(file).await?);
    }
    let (compute, why) = Compute::open(choice).await?;
    control.notice(why);
    let llama = generate::load(store, model, &config, &compute, length).await?;
    for file in names {
        let text = source::read_text(store, &file, control).await?;
        let (batches, bytes) = crate::data::batch::windows(&tokenizer, &text, length)?;
        let total = batches.len() as u64;
        let counted = batches.into_iter().enumerate().map(|(done, batch)| {
            control.progress(&file, done as u64, total, "windows");
            batch
        });
        let Some(scored) = eval::run(&llama, counted, control).await? else { return Ok(()) };
        control.emit(Event::Scored { file: file.clone(), score: scored.score(bytes) });
    }
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
    let sources = [("files".to_string(), SourceConfig::Paths(files.to_vec()))].into();
    if !(vocabulary::LEAST..=1_000_000).contains(&vocab_size) {
        return Err(Error::Config(format!("--vocab-size {vocab_size}: must lie between {} and 1000000", vocabulary::LEAST)));
    }
    let Some(tokenizer) = vocabulary::train(store, &sources, vocab_size, control).await? else { return Ok(()) };
    store.write(out, tokenizer.json()).await?;
    control.emit(Event::Wrote { what: format!("tokenizer of {} tokens", tokenizer.vocab_size()), path: out.into() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, or};

    use super::*;
    use crate::config::finetune::{Files, FinetuneConfig};
    use crate::generate::loaded::tests::{request, tiny};
    use crate::model::safetensors::{Dtype, SafeFile, SafeWriter};

    fn actor(store: Store) -> (Rc<Actor>, Receiver<(JobId, Event)>) {
        let (sender, events) = async_channel::unbounded();
        let [jobs, texts] = [(); 2].map(|()| Queue::new(sender.clone()));
        let (logs, loaded) = (ReadLogs::default(), Loaded::default());
        let [computing, crowded] = [(); 2].map(|()| Cell::new(false));
        (Rc::new(Actor { store, events: sender, jobs, texts, logs, loaded, computing, crowded }), events)
    }

    fn look() -> Command {
        let config = FinetuneConfig { model_name: "m".into(), train_file: Files(vec!["rows.jsonl".into()]), ..FinetuneConfig::default() };
        Command::Inspect { config: Box::new(config), first: 0, count: 0, row: None } // breathes once for every file
    }

    /// Lets one of the two workers work until a job ends, or for some time; how it ended.
    fn ended(actor: &Rc<Actor>, long: bool, events: &Receiver<(JobId, Event)>) -> Option<Event> {
        let working = async {
            actor.clone().work(long).await;
            None
        };
        let watching = async {
            for _ in 0..1000 {
                platform::yield_now().await;
                if let Ok((_, event @ (Event::Done { .. } | Event::Failed { .. }))) = events.try_recv() {
                    return Some(event);
                }
            }
            None
        };
        block_on(or(working, watching))
    }

    #[test]
    fn a_text_that_fails_leaves_no_model_beside_a_run() {
        let store = tiny("tiny_llama");
        let path = "m/model.safetensors";
        let file = SafeFile::open(block_on(store.open(path)).unwrap(), path).unwrap();
        let header: Vec<_> = file.names().map(|name| (name.to_string(), Dtype::F32, file.info(name).unwrap().1.to_vec())).collect();
        let mut writer = block_on(SafeWriter::create(&store, path, &header, &[])).unwrap();
        for (name, ..) in &header {
            let scale = if name == "model.norm.weight" { f32::MAX } else { 1.0 };
            writer
                .write_f32(name, &file.read_f32(name).unwrap().iter().map(|value| (value * scale).clamp(-3e38, 3e38)).collect::<Vec<_>>())
                .unwrap();
        }
        block_on(writer.finish()).unwrap();
        let (actor, events) = actor(store);
        for (running, kept) in [(false, true), (true, false)] {
            let host = Signals::new();
            *actor.jobs.running.borrow_mut() = running.then_some((7, host));
            actor.crowded.set(running);
            actor.texts.push(1, Command::Generate(request()));
            let event = ended(&actor, false, &events);
            assert!(matches!(&event, Some(Event::Failed { defect: false, .. })), "{event:?}");
            assert_eq!(!actor.loaded.is_empty(), kept, "{event:?}");
        }
    }

    #[test]
    fn only_jobs_with_a_model_of_their_own_take_that_of_a_text() {
        let (actor, events) = actor(tiny("tiny_llama"));
        let score = Command::Eval { model: " ".into(), files: Vec::new(), device: DeviceChoice::Cpu, sequence_length: 0 };
        for (command, kept) in [(look(), true), (score, false)] {
            actor.texts.push(1, Command::Generate(request()));
            assert!(matches!(ended(&actor, false, &events), Some(Event::Done { .. })));
            actor.jobs.push(2, command);
            assert_ne!(ended(&actor, true, &events), None);
            assert_eq!(!actor.loaded.is_empty(), kept);
        }
    }

    #[test]
    fn a_run_goes_on_until_a_text_has_its_model() {
        let (actor, events) = actor(tiny("tiny_llama"));
        block_on(actor.store.write("rows.jsonl", b"{\"prompt\": \"a\", \"completion\": \"b\"}\n")).unwrap();
        let text = Signals::new();
        *actor.texts.running.borrow_mut() = Some((1, text)); // its model is on its way
        actor.jobs.push(2, look());
        assert_ne!(ended(&actor, true, &events), None);
        // It has come: a run that begins waits, and so does one in progress.
        actor.compute();
        actor.jobs.push(3, look());
        assert_eq!(ended(&actor, true, &events), None);
        actor.leave();
        let host = Signals::new();
        *actor.jobs.running.borrow_mut() = Some((4, host.clone()));
        actor.compute();
        let control = Control::new(4, actor.events.clone(), host);
        let breathes = || {
            let waits = async {
                for _ in 0..9 {
                    platform::yield_now().await;
                }
                false
            };
            block_on(or(async { control.breathe().await == Flow::Continue }, waits))
        };
        assert!(!breathes());
        actor.leave();
        assert!(breathes());
    }
}
