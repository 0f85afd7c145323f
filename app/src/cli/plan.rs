//! `smolforge plan`: what a run needs, before it starts.

use std::io;

use anyhow::Context;
use futures_lite::future::block_on;
use smolforge_engine::config::finetune::FINETUNE_FIELDS;
use smolforge_engine::protocol::{Command, Event, FinetuneConfig, PlanReport};
use smolforge_engine::train::run::quoted;

use super::flags::RunFlags;
use super::progress::{Screen, yellow};
use super::table::Table;
use super::{Usage, drive, store};
use crate::units::{bytes, count, duration};

/// What flags of fine-tuning runs are answered with.
pub const ONLY_BUDGET: &str = "of a fine-tuning run only --budget is taken here: put everything else into the file";

/// Show memory, tokens, passes over the sources and expected time of a run before it starts
#[derive(Debug, clap::Args)]
#[command(after_help = "Of a fine-tuning run only CONFIG and --budget are taken: everything else is read from the file.")]
pub struct Args {
    /// YAML file, as for train or finetune
    config: Option<String>,

    /// Memory that the run may take, e.g. 4GiB or 600MB: what makes it fit is shown
    #[arg(long, value_name = "SIZE", value_parser = size)]
    budget: Option<u64>,

    #[command(flatten)]
    flags: RunFlags,
}

impl Args {
    /// Plans with the same file and flags that `train` takes.
    pub fn run(&self, json: bool) -> anyhow::Result<()> {
        let budget_bytes = self.budget;
        let mut remedy = String::new();
        let command = match self.config.as_deref().map(finetuning).transpose()?.flatten() {
            Some(config) if self.flags.is_empty() => {
                remedy = format!("smolforge finetune {} ", quoted(self.config.as_deref().unwrap_or_default()));
                Command::PlanFinetune { config, budget_bytes }
            }
            Some(_) => return Err(Usage(ONLY_BUDGET.into()).into()),
            None => Command::Plan { config: Box::new(self.flags.config(self.config.as_deref())?), budget_bytes },
        };
        drive(command, json, |screen, event| match event {
            Event::Plan(plan) => show(screen, plan, &remedy),
            _ => Ok(()),
        })
    }
}

/// Whether a flag is one of a fine-tuning run's.
pub fn is_finetuning(flag: &str) -> bool {
    let key = flag.trim_start_matches('-').replace('-', "_");
    key == "model" || FINETUNE_FIELDS.iter().any(|field| field.name == key)
}

/// The configuration in a file, if it is one of a fine-tuning run.
fn finetuning(file: &str) -> anyhow::Result<Option<Box<FinetuneConfig>>> {
    let text = block_on(store().read_text(file))?;
    if !FinetuneConfig::is_meant(&text) {
        return Ok(None);
    }
    Ok(Some(Box::new(FinetuneConfig::from_yaml(&text).with_context(|| file.to_string())?.0)))
}

/// `remedy` is the command that the flags which make a run fit belong to; nothing where those of `plan` do.
fn show(screen: &Screen, plan: &PlanReport, remedy: &str) -> io::Result<()> {
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

    let mut sources = Table::new(&["source", ">documents", ">tokens", ">planned tokens", ">passes"]);
    for (name, source) in &plan.sources {
        let planned = count(source.planned.max(0.0).round() as u64);
        sources.row([name.clone(), count(source.documents), count(source.tokens), planned, format!("{:.2}", source.epochs)]);
    }
    if !sources.is_empty() {
        screen.println(format!("\n{sources}"))?;
    }
    if let Some(keys) = &plan.suggestion {
        let flags: Vec<String> = keys.iter().map(|(key, value)| format!("--{} {value}", key.replace('_', "-"))).collect();
        screen.println(format!("\nto make it fit: {remedy}{}", flags.join(" ")))?;
    }
    plan.warnings.iter().for_each(|warning| screen.line(format!("{} {warning}", yellow("warning:"))));
    Ok(())
}

/// Bytes as people write them: `4GiB`, `600 MB`, `1.5g`, `1073741824`.
fn size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        _ => return Err("expected a size such as 4GiB or 600MB".into()),
    };
    match number.parse::<f64>() {
        Ok(number) if number * unit >= 1.0 => Ok((number * unit) as u64),
        _ => Err("expected a size such as 4GiB or 600MB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expect) in [("4GiB", Some(4 << 30)), ("600 MB", Some(600_000_000)), ("1.5g", Some(3 << 29)), ("77", Some(77))] {
            assert_eq!(size(text).ok(), expect, "{text}");
        }
        for text in ["", "GiB", "-1", "0", "4 apples", "1e9x"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
