//! Where a job talks to its shell: events out, and the one place where it can be interrupted.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use async_channel::{Receiver, Sender};
use web_time::Instant;

use crate::platform;
use crate::protocol::{Event, JobId};

/// Whether a job goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Save and end.
    Stop,
}

/// A browser's worker can answer only between two breaths.
const BREATHE_EVERY_MS: u128 = 20;

/// Weights that were asked for, with their stage.
type Reweight = (usize, BTreeMap<String, f64>);

/// What others want of a job in progress. The engine sets it, the job reads it in [`Control::breathe`].
#[derive(Debug)]
pub struct Signals {
    stopping: Cell<bool>,
    paused: Cell<bool>,
    saving: Cell<bool>,
    guests: Cell<usize>,
    waited_secs: Cell<f64>,
    reweights: RefCell<Vec<Reweight>>,
    changed: (Sender<()>, Receiver<()>),
}

impl Signals {
    /// Nothing is wanted.
    pub fn new() -> Rc<Self> {
        let changed = async_channel::bounded(1);
        Rc::new(Self {
            stopping: Cell::new(false),
            paused: Cell::new(false),
            saving: Cell::new(false),
            guests: Cell::new(0),
            waited_secs: Cell::new(0.0),
            reweights: RefCell::default(),
            changed,
        })
    }

    /// Save and end.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }

    /// Wait between micro-batches, or go on.
    pub fn pause(&self, paused: bool) {
        self.paused.set(paused);
        self.wake();
    }

    /// Save after the step, and go on.
    pub fn save(&self) {
        self.saving.set(true);
    }

    /// Other weights for a stage, from the next step on.
    pub fn reweight(&self, stage: usize, weights: BTreeMap<String, f64>) {
        self.reweights.borrow_mut().push((stage, weights));
    }

    /// Wait while a guest computes on the same device; called again with `false` when it has gone.
    pub fn guest(&self, comes: bool) {
        let guests = self.guests.get();
        self.guests.set(if comes { guests + 1 } else { guests.saturating_sub(1) });
        self.wake();
    }

    fn waits(&self) -> bool {
        (self.paused.get() || self.guests.get() > 0) && !self.stopping.get()
    }

    fn wake(&self) {
        let _ = self.changed.0.try_send(()); // full: it will be woken anyway
    }
}

/// A job's side of the conversation with its shell.
pub struct Control {
    job: JobId,
    events: Sender<(JobId, Event)>,
    signals: Rc<Signals>,
    breathed: Cell<Instant>,
    remarks: RefCell<Vec<Event>>,
}

impl Control {
    /// The conversation about `job`.
    pub fn new(job: JobId, events: Sender<(JobId, Event)>, signals: Rc<Signals>) -> Self {
        Self { job, events, signals, breathed: Cell::new(Instant::now()), remarks: RefCell::default() }
    }

    /// A conversation for callers that run a job themselves instead of through an engine.
    pub fn connect() -> (Self, Rc<Signals>, Receiver<(JobId, Event)>) {
        let (sender, events) = async_channel::unbounded();
        let signals = Signals::new();
        (Self::new(0, sender, signals.clone()), signals, events)
    }

    /// Tells the shell; a shell that has gone away is no reason to lose the job.
    pub fn emit(&self, event: Event) {
        let _ = self.events.try_send((self.job, event));
    }

    /// A sentence that is not a number.
    pub fn notice(&self, text: impl Into<String>) {
        self.emit(Event::Notice { warning: false, text: text.into() });
    }

    /// A sentence that deserves attention.
    pub fn warn(&self, text: impl Into<String>) {
        self.remarked(Event::Notice { warning: true, text: text.into() });
    }

    /// A sentence that belongs into the log of a run.
    pub fn remark(&self, text: impl Into<String>) {
        self.remarked(Event::Notice { warning: false, text: text.into() });
    }

    fn remarked(&self, event: Event) {
        self.remarks.borrow_mut().push(event.clone());
        self.emit(event);
    }

    /// Warnings and remarks since the last call, for the log of a run.
    pub fn take_remarks(&self) -> Vec<Event> {
        self.remarks.take()
    }

    /// How far a long task is.
    pub fn progress(&self, task: &str, done: u64, total: u64, unit: &str) {
        self.emit(Event::Progress { task: task.into(), done, total, unit: unit.into() });
    }

    /// Called between micro-batches, tokens and pieces of files: lets the shell and other jobs run, waits while
    /// paused or while a guest computes.
    pub async fn breathe(&self) -> Flow {
        platform::yield_now().await;
        if self.signals.waits() {
            let since = Instant::now();
            while self.signals.waits() {
                let _ = self.signals.changed.1.recv().await;
            }
            self.signals.waited_secs.set(self.waited_secs() + since.elapsed().as_secs_f64());
        }
        self.breathed.set(Instant::now());
        self.flow()
    }

    /// Waits until the shell has said something about the job: for tasks that wait for others, not for the device.
    pub async fn changed(&self) {
        let _ = self.signals.changed.1.recv().await;
    }

    /// Waits, because of something that people must do first, until the shell says to go on or to stop.
    pub async fn hold(&self, why: String) {
        self.signals.pause(true);
        self.emit(Event::Held { why });
        self.breathe().await;
    }

    /// As [`Control::breathe`] if that was some time ago: for pieces of work too small to do it after each.
    pub async fn breathe_if_due(&self) -> Flow {
        if self.breathed.get().elapsed().as_millis() >= BREATHE_EVERY_MS { self.breathe().await } else { self.flow() }
    }

    /// Stages and weights that were asked for since the last call.
    pub fn take_reweights(&self) -> Vec<Reweight> {
        self.signals.reweights.take()
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn take_save(&self) -> bool {
        self.signals.saving.take()
    }

    /// Seconds that this job has waited in [`Control::breathe`].
    pub fn waited_secs(&self) -> f64 {
        self.signals.waited_secs.get()
    }

    /// Whether the job was asked to stop.
    pub fn flow(&self) -> Flow {
        if self.signals.stopping.get() { Flow::Stop } else { Flow::Continue }
    }
}
