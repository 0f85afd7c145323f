//! Standard error as people see it: bars where it is a terminal, a line now and then where it is not.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use smolforge_engine::protocol::{Event, FunnelReport, StepReport};

use crate::units::{amount, count, duration, percent, rate};

/// Time between lines where there is no terminal to redraw.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// A bar with one message beside it, and one with a message of its own line.
const ONE_LINE: &str = "  {prefix} [{bar:24.cyan/dim}] {wide_msg}";
const TWO_LINES: &str = "  {prefix} [{bar:24.cyan/dim}]\n  {wide_msg}";

/// Standard error, and standard output where both meet on one terminal.
pub struct Screen {
    lines: Lines,
    run: Bar,
    task: Bar,
}

/// What other threads may write with: whole lines above the bars.
#[derive(Clone)]
pub struct Lines {
    bars: MultiProgress,
    live: bool,
}

/// A bar on a terminal, or the memory of the last line printed in its place.
#[derive(Default)]
struct Bar {
    name: String,
    drawn: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// Whether a line was printed that is not the last one.
    open: bool,
}

impl Screen {
    /// The screen of this process.
    pub fn new() -> Self {
        let bars = MultiProgress::new();
        let live = !bars.is_hidden();
        Self { lines: Lines { bars, live }, run: Bar::default(), task: Bar::default() }
    }

    /// For the thread that handles interrupts.
    pub fn handle(&self) -> Lines {
        self.lines.clone()
    }

    /// A line on standard error, above the bars.
    pub fn line(&self, text: impl AsRef<str>) {
        self.lines.line(text);
    }

    /// A piece of the result on standard output.
    pub fn print(&self, text: &str) -> io::Result<()> {
        self.lines.bars.suspend(|| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        })
    }

    /// A line of the result on standard output.
    pub fn println(&self, text: impl AsRef<str>) -> io::Result<()> {
        self.print(&format!("{}\n", text.as_ref()))
    }

    /// What every verb shows alike: notices, progress, files, the end. The rest is the verb's.
    pub fn show(&mut self, event: &Event) {
        if let Event::Progress { task, done, total, unit } = event {
            return self.progress(task, *done, *total, unit);
        }
        if let Event::Funnel(report) = event {
            return self.funnel(report);
        }
        self.task.clear();
        match event {
            Event::Run(run) => self.run.name = run.steps.to_string(),
            Event::Step(step) => self.step(step),
            Event::Notice { warning: true, text } => self.line(format!("{} {text}", yellow("warning:"))),
            Event::Notice { warning: false, text } => self.line(text),
            Event::Wrote { what, path } => self.line(format!("wrote {what}: {path}")),
            Event::Done { hints, .. } => {
                self.run.clear();
                hints.iter().for_each(|hint| self.line(hint));
            }
            Event::Failed { .. } => self.run.clear(),
            _ => {}
        }
    }

    fn progress(&mut self, task: &str, done: u64, total: u64, unit: &str) {
        let part = match (total, unit) {
            (0, _) => amount(done, unit),
            (_, "bytes") => format!("{} of {}", amount(done, unit), amount(total, unit)),
            _ => format!("{} of {}", count(done), amount(total, unit)),
        };
        self.part(task, done, total, &part, "");
    }

    fn funnel(&mut self, report: &FunnelReport) {
        let part = format!("{} of {}", count(report.done), amount(report.questions, "questions"));
        self.part("rollout", report.done, report.questions, &part, &super::task::show::yielded(report));
    }

    /// Redraws the bar of a task, or prints its line where one is due; `more` stands below the bar, or at the line's end.
    fn part(&mut self, task: &str, done: u64, total: u64, part: &str, more: &str) {
        if self.task.name != task {
            self.task.clear();
            // The line of a task that is over at once says nothing: the first one waits its turn.
            self.task = Bar { name: task.into(), drawn: None, last_line: Some(Instant::now()), open: false };
        }
        if self.lines.live {
            let bar = self.task.draw(&self.lines, total, if more.is_empty() { ONE_LINE } else { TWO_LINES });
            bar.set_prefix(if more.is_empty() { task.to_string() } else { format!("{task}: {part}") });
            bar.set_position(done);
            bar.set_message(if more.is_empty() { part } else { more }.to_string());
        } else if self.task.is_due() || (self.task.open && done == total) {
            let share = if total == 0 { String::new() } else { format!(" ({})", percent(done as f64 / total as f64)) };
            let more = if more.is_empty() { String::new() } else { format!(" · {more}") };
            self.line(format!("{task}: {part}{share}{more}"));
            self.task.open = done != total;
        }
    }

    fn step(&mut self, step: &StepReport) {
        if let Some(why) = &step.skipped {
            self.line(format!("{} step {}: update skipped: {why}", yellow("warning:"), step.step));
        }
        let steps: u64 = self.run.name.parse().unwrap_or(0);
        let last = u64::from(step.step) >= steps;
        let eta = if last { String::new() } else { format!("  ETA {}", duration(step.eta_secs)) };
        let numbers = format!("loss {:.4}  lr {:.2e}  {} tokens/s{eta}", step.loss, step.lr, rate(step.tokens_per_sec));
        if self.lines.live && !last {
            let bar = self.run.draw(&self.lines, steps, "[{bar:24.green/dim}] {human_pos}/{human_len}  {wide_msg}");
            bar.set_position(u64::from(step.step));
            bar.set_message(numbers);
        } else if self.run.is_due() || last {
            self.run.clear();
            self.line(format!("step {:>w$}/{steps}  {numbers}", step.step, w = self.run.name.len()));
        }
    }
}

impl Lines {
    /// A line on standard error, above the bars. A terminal that has gone away is no reason to stop.
    pub fn line(&self, text: impl AsRef<str>) {
        if self.live {
            let _ = self.bars.println(text);
        } else {
            let _ = writeln!(io::stderr(), "{}", text.as_ref());
        }
    }

    /// Removes the bars before the process ends.
    pub fn clear(&self) {
        let _ = self.bars.clear();
    }
}

impl Bar {
    fn draw(&mut self, lines: &Lines, total: u64, template: &str) -> &ProgressBar {
        self.drawn.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(template).expect("our templates are well-formed");
            let length = (total > 0).then_some(total);
            // Hidden until it is added: a bar draws on its own at every change.
            let bar = lines.bars.add(ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden()));
            bar.set_style(style.progress_chars("━╸─"));
            bar
        })
    }

    fn is_due(&mut self) -> bool {
        let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }

    fn clear(&mut self) {
        if let Some(bar) = self.drawn.take() {
            bar.finish_and_clear();
        }
    }
}

/// For headings on standard error.
pub fn bold(text: &str) -> String {
    style(text).for_stderr().bold().to_string()
}

/// For what matters less, on standard error.
pub fn dim(text: &str) -> String {
    style(text).for_stderr().dim().to_string()
}

/// For warnings on standard error.
pub fn yellow(text: &str) -> String {
    style(text).for_stderr().yellow().bold().to_string()
}

/// For errors on standard error.
pub fn red(text: &str) -> String {
    style(text).for_stderr().red().bold().to_string()
}
