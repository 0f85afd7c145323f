//! `smolforge runs`: what was trained so far, and away with it.

use std::io::{self, BufRead, IsTerminal};

use smolforge_engine::protocol::{Command, Event, RunState, RunSummary};

use super::table::Table;
use super::{Usage, drive};
use crate::units::{bytes, count};

/// List all runs below a folder; `runs delete` removes one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Folder to look in
    #[arg(default_value = ".")]
    folder: String,

    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Remove a run with its checkpoints, its log and the models in its folder
    Delete {
        /// Folder of the run
        path: String,

        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

impl Args {
    /// Lists the runs, or removes one after asking.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Some(Act::Delete { path, yes }) = self.act else {
            return drive(Command::Runs { folder: self.folder }, json, |screen, event| match event {
                Event::Runs { runs } if runs.is_empty() => screen.println("no runs here"),
                Event::Runs { runs } => screen.println(table(runs).to_string()),
                _ => Ok(()),
            });
        };
        if !yes && !agreed(&path)? {
            return Ok(());
        }
        drive(Command::Delete { path }, json, |_, _| Ok(()))
    }
}

fn agreed(path: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Usage(format!("nobody can be asked whether to remove {path}; give --yes")).into());
    }
    eprint!("remove {path} with its checkpoints, its log and the models in its folder? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn table(runs: &[RunSummary]) -> Table {
    let mut table = Table::new(&["run", "kind", "state", ">step", ">of", ">best held-out loss", ">size"]);
    for run in runs {
        let state = match run.state {
            RunState::Finished => "finished",
            RunState::Stopped => "stopped",
            RunState::Failed => "failed",
            RunState::Open => "not ended",
        };
        let best = run.best.map_or("–".into(), |(loss, step)| format!("{loss:.4} at {}", count(u64::from(step))));
        let steps = [run.step, run.steps].map(|steps| count(u64::from(steps)));
        let [step, steps] = steps;
        let kind = if run.tuning.is_some() { "fine-tuning" } else { "training" };
        table.row([run.path.clone(), kind.into(), state.into(), step, steps, best, bytes(run.size_bytes)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::{Verb, tests::parse};
    use super::*;

    #[test]
    fn runs_are_listed_or_one_is_removed() {
        let Verb::Runs(args) = parse("smolforge runs some/folder").verb else { panic!("another verb") };
        assert!(args.folder == "some/folder" && args.act.is_none());
        let Verb::Runs(args) = parse("smolforge runs delete runs/x --yes").verb else { panic!("another verb") };
        assert!(matches!(args.act, Some(Act::Delete { path, yes: true }) if path == "runs/x"));
    }
}
