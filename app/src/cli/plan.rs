//! `smolforge plan`: what a run needs, before it starts.

use std::io;

use smolforge_engine::protocol::{Command, Event, PlanReport};

use super::drive;
use super::flags::RunFlags;
use super::progress::{Screen, yellow};
use super::table::Table;
use crate::units::{bytes, count, duration};

/// Show memory, tokens, passes over the sources and expected time of a run before it starts
#[derive(Debug, clap::Args)]
pub struct Args {
    /// YAML file, as for train
    config: Option<String>,

    #[command(flatten)]
    flags: RunFlags,
}

impl Args {
    /// Plans with the same file and flags that `train` takes.
    pub fn run(&self, json: bool) -> anyhow::Result<()> {
        let config = Box::new(self.flags.config(self.config.as_deref())?);
        drive(Command::Plan { config, budget_bytes: None }, json, |screen, event| match event {
            Event::Plan(plan) => show(screen, plan),
            _ => Ok(()),
        })
    }
}

fn show(screen: &Screen, plan: &PlanReport) -> io::Result<()> {
    screen.println(format!("device      {}", plan.device))?;
    screen.println(format!("parameters  {}", count(plan.parameters)))?;
    screen.println(format!("tokens      {}", count(plan.tokens)))?;
    screen.println(format!("compute     {:.3e} floating-point operations", plan.flops))?;
    let time =
        if plan.expected_secs > 0.0 { format!("about {}", duration(plan.expected_secs)) } else { "not measured: it does not fit".into() };
    screen.println(format!("time        {time}"))?;

    let mut memory = Table::new(&["memory", ">size"]);
    let mut categories: Vec<_> = plan.memory_bytes.iter().collect();
    categories.sort_by_key(|(_, size)| std::cmp::Reverse(**size));
    for (category, size) in categories {
        memory.row([category.clone(), bytes(*size)]);
    }
    memory.row(["at the peak".into(), bytes(plan.peak_bytes)]);
    screen.println(format!("\n{memory}"))?;

    let mut sources = Table::new(&["source", ">tokens", ">planned tokens", ">passes"]);
    for (name, source) in &plan.sources {
        let planned = count(source.planned.max(0.0).round() as u64);
        sources.row([name.clone(), count(source.tokens), planned, format!("{:.2}", source.epochs)]);
    }
    if !sources.is_empty() {
        screen.println(format!("\n{sources}"))?;
    }
    plan.warnings.iter().for_each(|warning| screen.line(format!("{} {warning}", yellow("warning:"))));
    Ok(())
}
