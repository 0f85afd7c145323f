//! `smolforge train`: pre-train a model by a curriculum, stop it, resume it.

use std::collections::BTreeMap;

use smolforge_engine::protocol::{Command, Event, RunInfo, TextScore};

use super::flags::RunFlags;
use super::progress::{Screen, bold, dim};
use super::table::Table;
use super::{drive, eval};
use crate::units::{count, shares};

/// Pre-train a model by a curriculum of text sources
#[derive(Debug, clap::Args)]
#[command(after_help = "Values: defaults, then CONFIG, then flags. Ctrl-C saves and prints how to go on.")]
pub struct Args {
    /// YAML file with any of the keys below (`batch_size: 4`)
    config: Option<String>,

    /// Continue the run in --out from its last good checkpoint, with the configuration frozen there
    #[arg(long)]
    resume: bool,

    #[command(flatten)]
    flags: RunFlags,
}

impl Args {
    /// Trains, and shows stages, losses, evaluations and samples.
    pub fn run(&self, json: bool) -> anyhow::Result<()> {
        let file = self.config.as_deref();
        let config = if self.resume { self.flags.resumed(file) } else { self.flags.config(file) }?;
        drive(Command::Train { config: Box::new(config), resume: self.resume }, json, |screen, event| {
            show(screen, event);
            Ok(())
        })
    }
}

/// The story of a run, on standard error.
pub fn show(screen: &Screen, event: &Event) {
    match event {
        Event::Run(run) => show_run(screen, run),
        Event::Stage { index, name, start, end, weights } => {
            let steps = format!("steps {} to {}", count(u64::from(*start)), count(u64::from(*end)));
            screen.line(format!("\n{} · {steps} · {}", bold(&format!("Stage {}: {name}", index + 1)), shares(weights)));
        }
        Event::Reweighted { step, stage, weights } => {
            let step = count(u64::from(*step));
            screen.line(format!("from step {step} on stage {} has other shares · {}", stage + 1, shares(weights)));
        }
        Event::Evaluated { step, loss, sources, best } => {
            let best = if *best { ", the best so far" } else { "" };
            screen.line(format!("evaluation at step {}: loss {loss:.4}{best}", count(u64::from(*step))));
            screen.line(indent(&scores(sources).to_string()));
        }
        Event::Sample { step, prompt, text, .. } => {
            screen.line(format!("sample at step {}:", count(u64::from(*step))));
            screen.line(indent(&format!("{}{}", dim(&printable(prompt)), printable(text))));
        }
        Event::StageDone { name, average_loss, shares: achieved, epochs } => {
            let passes: Vec<String> = epochs.iter().map(|(name, passes)| format!("{name} {passes:.2}")).collect();
            screen.line(format!("{name} is done: average loss {average_loss:.4}"));
            screen.line(indent(&format!("share of tokens: {}\npasses so far: {}", shares(achieved), passes.join(", "))));
        }
        Event::Saved { path, .. } => screen.line(dim(&format!("saved {path}"))),
        _ => {}
    }
}

fn show_run(screen: &Screen, run: &RunInfo) {
    let steps = count(u64::from(run.steps));
    let resumed = match run.step {
        0 => String::new(),
        step => format!(", resumed after step {}", count(u64::from(step))),
    };
    let total = run.tokens_per_step * u64::from(run.steps);
    screen.line(format!("run     {}{resumed}", bold(&run.path)));
    let trained = match run.trained {
        all if all == 0 || all == run.parameters => String::new(),
        part => format!(", an adapter of {} is trained", count(part)),
    };
    screen.line(format!("model   {} parameters{}, {}", count(run.parameters), trained, run.precision));
    screen.line(format!("device  {}", run.device));
    let tokens = run.tokens();
    screen.line(format!("plan    {steps} updates of {} {tokens}: {} {tokens}", count(run.tokens_per_step), count(total)));
    let [training, held_out] = ["training", "held-out"].map(|part| format!(">{part}, {tokens}"));
    let mut table = Table::new(&["source", &training, &held_out]);
    for (name, (training, held_out)) in &run.sources {
        table.row([name.clone(), count(*training), count(*held_out)]);
    }
    screen.line(table.to_string());
}

fn scores(sources: &BTreeMap<String, TextScore>) -> Table {
    let mut table = eval::table("source");
    for (name, score) in sources {
        eval::row(&mut table, name, score);
    }
    table
}

/// What a young model writes may hold control characters that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\n' && char != '\t' { '·' } else { char }).collect()
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
