//! `smolforge inspect`: rows as a model will read them, and what to mend before they are learned.

use std::io;

use console::style;
use smolforge_engine::config::finetune::Files;
use smolforge_engine::protocol::{Command, Event, ExampleReport, Level, Preflight};

use super::flags::FinetuneFlags;
use super::progress::Screen;
use super::{Usage, drive};
use crate::units::{count, headline, visible};

/// Show rows token by token with what is learned of them, and check them before they are
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tokens that are learned are coloured on a terminal and stand between ⟦ ⟧ elsewhere. Exit code 1 where a check is red."
)]
pub struct Args {
    /// JSONL files, or the YAML file of a fine-tuning run
    #[arg(value_name = "DATA", required = true, num_args = 1..)]
    data: Vec<String>,

    /// Examples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,

    /// The first one to show, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: usize,

    /// Show the example of this line only, or of FILE:LINE where there are several files
    #[arg(long, value_name = "LINE")]
    row: Option<String>,

    #[command(flatten)]
    flags: FinetuneFlags,
}

impl Args {
    /// Inspects.
    pub fn run(&self, json: bool) -> anyhow::Result<()> {
        let is_config = |file: &String| file.ends_with(".yaml") || file.ends_with(".yml");
        let config = match self.data.as_slice() {
            [file] if is_config(file) => self.flags.config(Some(file), false)?.0,
            files if files.iter().any(is_config) => return Err(Usage("give JSONL files, or one YAML file".into()).into()),
            files => {
                let mut config = self.flags.config(None, false)?.0;
                config.train_file = Files(files.to_vec());
                config
            }
        };
        let command = Command::Inspect { config: Box::new(config), first: self.first, count: self.show, row: self.row.clone() };
        drive(command, json, |screen, event| match event {
            Event::Preflight(report) => show(screen, report),
            Event::Example(example) => show_example(screen, example),
            _ => Ok(()),
        })
    }
}

fn show(screen: &Screen, report: &Preflight) -> io::Result<()> {
    for check in &report.checks {
        let mark = match check.level {
            Level::Green => style("ok     ").green(),
            Level::Yellow => style("look   ").yellow().bold(),
            Level::Red => style("WRONG  ").red().bold(),
        };
        let rows = if check.rows.is_empty() { String::new() } else { format!(" (rows {})", check.rows.join(", ")) };
        screen.println(format!("{mark}{}{rows}", check.line))?;
    }
    let (lengths, most) = (&report.lengths, report.lengths.bins.iter().map(|(_, count)| *count).max().unwrap_or(0));
    screen.println(format!(
        "\ntokens  {} in all, {} learned · per example: least {}, mean {:.1}, 95 % up to {}, most {}",
        count(report.tokens as u64),
        count(report.targets as u64),
        lengths.min,
        lengths.mean,
        lengths.p95,
        lengths.max
    ))?;
    let is_full = |(_, number): &(usize, usize)| *number > 0;
    let (first, end) = (lengths.bins.iter().position(is_full), lengths.bins.iter().rposition(is_full).map_or(0, |last| last + 1));
    for (up_to, number) in &lengths.bins[first.unwrap_or(0)..end] {
        let bar = "█".repeat((40 * number).div_ceil(most.max(1)));
        screen.println(format!("{up_to:>7}  {bar} {}", count(*number as u64)))?;
    }
    Ok(())
}

fn show_example(screen: &Screen, example: &ExampleReport) -> io::Result<()> {
    screen.println(format!("\n{}", headline(example)))?;
    let coloured = console::colors_enabled();
    let mut text = String::new();
    let mut open = false;
    for piece in &example.pieces {
        let visible = visible(&piece.text);
        if coloured {
            let part = style(visible);
            text += &if piece.is_target { part.black().on_green() } else { part.dim() }.to_string();
        } else {
            if piece.is_target != open {
                text += if piece.is_target { "⟦" } else { "⟧" };
                open = piece.is_target;
            }
            text += &visible;
        }
    }
    if open {
        text.push('⟧');
    }
    screen.println(text)
}
