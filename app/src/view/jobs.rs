//! A job in progress: what it can be told, how far it is, and the plots of a run.

use egui::{ScrollArea, Ui};
use smolforge_engine::protocol::{Command, JobId};

use super::{Ask, SAVE, STOP, pressed, run, with_keys};
use crate::forms::{Forms, Part, Plots, Tab};
use crate::session::{Job, JobState, Session, trains};
use crate::units::amount;

/// Pausing and stopping a job, and saving one that trains.
pub fn controls(ui: &mut Ui, id: JobId, job: &Job, asks: &mut Vec<Ask>) {
    let (label, command) = if job.paused { ("▶ go on", Command::Continue) } else { ("pause", Command::Pause) };
    if ui.add_enabled(!job.stopping && job.state == JobState::Running, egui::Button::new(label)).clicked() {
        asks.push(Ask::Tell(id, command));
    }
    let trains = trains(&job.command);
    if trains {
        let runs = !job.stopping && !job.paused && job.state == JobState::Running;
        let save = ui.add_enabled(runs, egui::Button::new("save")).on_disabled_hover_text("The run must be going on for that");
        let save = save.on_hover_text(with_keys(ui, "Writes a checkpoint after this step and goes on", &SAVE));
        if save.clicked() || (runs && pressed(ui, &SAVE)) {
            asks.push(Ask::Tell(id, Command::Save));
        }
    }
    let (label, help) = match trains {
        true => ("stop and save", "Finishes the micro-batch and saves; the run can go on later"),
        false => ("stop", "What is done is kept, and the same button goes on from there"),
    };
    let stop = ui.add_enabled(!job.stopping, egui::Button::new(label));
    if stop.on_hover_text(with_keys(ui, help, &STOP)).clicked() || (!job.stopping && pressed(ui, &STOP)) {
        asks.push(Ask::Tell(id, Command::Stop));
    }
    match (&job.state, job.stopping) {
        (_, true) => drop(ui.spinner()),
        (JobState::Waiting(before), _) if *before > 0 => drop(ui.weak(format!("waits for {before}"))),
        _ => {}
    }
}

/// How far the task of known length is that is done just now.
pub fn progress(ui: &mut Ui, session: &Session) {
    let running = |job: &&Job| job.state == JobState::Running;
    let progress = session.jobs.values().rev().filter(running).find_map(|job| job.progress.as_ref());
    if let Some((task, done, total, unit)) = progress {
        let share = *done as f32 / (*total).max(1) as f32;
        ui.add(egui::ProgressBar::new(share).text(format!("{task}: {} of {}", amount(*done, unit), amount(*total, unit))));
    }
}

/// The run of the last training job, where it is one that fine-tunes, or one that does not; whether there is one.
pub fn live(ui: &mut Ui, session: &Session, tunes: bool, settings: &mut Plots) -> bool {
    let training = session.training();
    let Some(live) = session.live.as_ref().filter(|run| run.tunes == tunes && (run.info.is_some() || training.is_some())) else {
        return false;
    };
    ScrollArea::vertical().id_salt("live").auto_shrink([false, false]).show(ui, |ui| {
        if live.steps.moments.is_empty() && training.is_some() {
            ui.horizontal(|ui| {
                ui.spinner();
                ui.label(if tunes { "reading rows and preparing the model …" } else { "reading texts and preparing the model …" });
            });
        }
        if let Some((_, job)) = training.filter(|(_, job)| job.paused) {
            ui.weak(if job.stopping { "stopping" } else { "paused" });
        }
        run::show(ui, "this run", live, settings);
    });
    true
}

/// Says that what trains is what another tab shows.
pub fn elsewhere(ui: &mut Ui, forms: &mut Forms, tab: Tab) {
    ui.vertical_centered(|ui| {
        ui.add_space(ui.available_height() * 0.3);
        let (text, name) =
            if tab == Tab::Tune { ("A model is being fine-tuned", "Tune") } else { ("A run on texts is in progress", "Train") };
        ui.heading(text);
        if ui.button(format!("look at it in {name}")).clicked() {
            (forms.tab, forms.part) = (tab, Part::Run);
        }
    });
}
