//! Where a job talks to its shell: events out, and the one place where it can be interrupted.

use std::cell::RefCell;
use std::collections::VecDeque;

use async_channel::{Receiver, Sender};

use crate::platform;
use crate::protocol::{Command, Event};

/// Whether a job goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Save and end.
    Stop,
}

/// A job's side of the conversation with its shell.
pub struct Control {
    commands: Receiver<Command>,
    events: Sender<Event>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    paused: bool,
    waiting: VecDeque<Command>,
}

impl Control {
    pub(crate) fn new(commands: Receiver<Command>, events: Sender<Event>) -> Self {
        Self { commands, events, state: RefCell::default() }
    }

    /// Both ends of a conversation, for callers that run a job themselves instead of through an engine.
    pub fn connect() -> (Self, Sender<Command>, Receiver<Event>) {
        let (commands, command_queue) = async_channel::unbounded();
        let (event_queue, events) = async_channel::unbounded();
        (Self::new(command_queue, event_queue), commands, events)
    }

    /// Tells the shell; a shell that has gone away is no reason to lose the job.
    pub fn emit(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// A sentence that is not a number.
    pub fn notice(&self, text: impl Into<String>) {
        self.emit(Event::Notice { warning: false, text: text.into() });
    }

    /// A sentence that deserves attention.
    pub fn warn(&self, text: impl Into<String>) {
        self.emit(Event::Notice { warning: true, text: text.into() });
    }

    /// How far a long task is.
    pub fn progress(&self, task: &str, done: u64, total: u64, unit: &str) {
        self.emit(Event::Progress { task: task.into(), done, total, unit: unit.into() });
    }

    /// Called between micro-batches, tokens and pieces of files: lets the shell run, takes its
    /// commands, waits while paused.
    pub async fn breathe(&self) -> Flow {
        platform::yield_now().await;
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        while self.state.borrow().paused && !self.state.borrow().stopping {
            match self.commands.recv().await {
                Ok(command) => self.take(command),
                Err(_) => break,
            }
        }
        if self.state.borrow().stopping { Flow::Stop } else { Flow::Continue }
    }

    fn take(&self, command: Command) {
        let mut state = self.state.borrow_mut();
        match command {
            Command::Stop => state.stopping = true,
            Command::Pause => state.paused = true,
            Command::Continue => state.paused = false,
            job => state.waiting.push_back(job),
        }
    }

    /// The next job: one that came while another ran, or the next to arrive; `None` when the shell is gone.
    pub(crate) async fn next_job(&self) -> Option<Command> {
        loop {
            let waiting = self.state.borrow_mut().waiting.pop_front();
            let command = match waiting {
                Some(job) => job,
                None => self.commands.recv().await.ok()?,
            };
            match command {
                Command::Stop | Command::Pause | Command::Continue => {} // no job to act on
                job => {
                    let mut state = self.state.borrow_mut();
                    (state.stopping, state.paused) = (false, false);
                    return Some(job);
                }
            }
        }
    }
}
