//! `training.log`: events as lines for people.

use std::collections::BTreeMap;

use crate::protocol::{Event, RunInfo, StepReport};

/// Turns events into lines; knows the stage it is in.
pub struct TextLog {
    log_every: u32,
    skipped: u32,
}

impl TextLog {
    /// `log_every`: updates between lines of steps.
    pub fn new(log_every: u32) -> Self {
        Self { log_every: log_every.max(1), skipped: 0 }
    }

    /// The lines of an event, each with its line feed; empty where people need none.
    pub fn push(&mut self, event: &Event) -> String {
        match event {
            Event::Started { job, version } => format!("smolforge {version}: {job}\n"),
            Event::Notice { warning, text } => format!("{}{text}\n", if *warning { "warning: " } else { "" }),
            Event::Run(info) => run(info),
            Event::Stage { index, name, start, end, weights } => {
                format!("\n=== Stage {}: {name} (steps {start}–{end}) ===\nplanned: {}\n", index + 1, shares(weights))
            }
            Event::Reweighted { step, stage, weights } => {
                format!("from step {step} on stage {} has other shares: {}\n", stage + 1, shares(weights))
            }
            Event::Step(report) => self.step(report),
            Event::Evaluated { step, loss, sources, best } => {
                let named: Vec<String> = sources
                    .iter()
                    .map(|(name, score)| {
                        format!("{name} {:.4} (ppl {:.1}, {:.3} bits/byte)", score.loss, score.perplexity, score.bits_per_byte)
                    })
                    .collect();
                format!("held-out at step {step}: loss {loss:.4}{} | {}\n", if *best { ", the best so far" } else { "" }, named.join(" | "))
            }
            Event::Sample { step, stage, prompt, text } => format!("[{stage} | Step {step}] Generated: {prompt}{text}\n"),
            Event::StageDone { name, average_loss, shares: achieved, epochs } => {
                let passes: Vec<String> = epochs.iter().map(|(name, passes)| format!("{name} {passes:.2}")).collect();
                let mut text = format!(
                    "{name} Average Loss: {average_loss:.4}\nachieved: {} | epochs so far: {}\n",
                    shares(achieved),
                    passes.join(", ")
                );
                if self.skipped > 0 {
                    text += &format!("skipped updates so far: {}\n", self.skipped);
                }
                text
            }
            Event::Saved { step, path } => format!("saved step {step} to {path}\n"),
            Event::Wrote { what, path } => format!("wrote {what}: {path}\n"),
            Event::Done { stopped, .. } => (if *stopped { "stopped as asked; resume with --resume\n" } else { "done\n" }).into(),
            Event::Failed { error, .. } => format!("failed: {error}\n"),
            _ => String::new(),
        }
    }

    fn step(&mut self, report: &StepReport) -> String {
        if let Some(why) = &report.skipped {
            self.skipped += 1;
            let sources: Vec<&str> = report.source_tokens.keys().map(String::as_str).collect();
            return format!("step {:>5} | skipped: {why} (sources: {})\n", report.step, sources.join(", "));
        }
        if !report.step.is_multiple_of(self.log_every) && report.step != 1 {
            return String::new();
        }
        format!(
            "step {:>5} | loss {:.4} | lr {} | norm {:.2} | {:.0} tok/s | eta {}\n",
            report.step,
            report.loss,
            scientific(report.lr),
            report.grad_norm,
            report.tokens_per_sec,
            duration(report.eta_secs)
        )
    }
}

fn run(info: &RunInfo) -> String {
    let sources: Vec<String> =
        info.sources.iter().map(|(name, (train, held_out))| format!("{name} {train} {} (+ {held_out} held out)", info.tokens())).collect();
    let begins = if info.step == 0 { "begins".into() } else { format!("goes on after step {}", info.step) };
    format!(
        "run {} {begins}: {} parameters, {} steps of {} {}, {} on {}\nsources: {}\n",
        info.path,
        info.parameters,
        info.steps,
        info.tokens_per_step,
        info.tokens(),
        info.precision,
        info.device,
        sources.join(", ")
    )
}

/// `input 60.0 %, code 40.0 %`.
pub(crate) fn shares(shares: &BTreeMap<String, f64>) -> String {
    let named: Vec<String> = shares.iter().map(|(name, share)| format!("{name} {:.1} %", 100.0 * share)).collect();
    named.join(", ")
}

/// `5.99e-04`, as Python writes it.
pub(crate) fn scientific(x: f64) -> String {
    let text = format!("{x:.2e}");
    match text.split_once('e').and_then(|(digits, power)| Some((digits, power.parse::<i32>().ok()?))) {
        Some((digits, power)) => format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs()),
        None => text,
    }
}

/// `12s`, `3m12s`, `2h05m`, `3d04h`.
pub(crate) fn duration(secs: f64) -> String {
    if !secs.is_finite() || secs < 0.0 {
        return "?".into();
    }
    let secs = secs.round() as u64;
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        3600..86_400 => format!("{}h{:02}m", secs / 3600, secs / 60 % 60),
        _ => format!("{}d{:02}h", secs / 86_400, secs / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(entries: [(&str, f64); N]) -> BTreeMap<String, f64> {
        entries.into_iter().map(|(name, x)| (name.to_string(), x)).collect()
    }

    #[test]
    fn lines_are_those_of_the_reference_run() {
        let mut log = TextLog::new(50);
        let stage = Event::Stage { index: 0, name: "Foundation".into(), start: 0, end: 1000, weights: map([("input", 1.0)]) };
        assert_eq!(log.push(&stage), "\n=== Stage 1: Foundation (steps 0–1000) ===\nplanned: input 100.0 %\n");
        let report = StepReport {
            step: 50,
            loss: 4.1234,
            lr: 5.99e-4,
            grad_norm: 0.83,
            tokens_per_sec: 1234.4,
            eta_secs: 192.0,
            ..StepReport::default()
        };
        assert_eq!(log.push(&Event::Step(report.clone())), "step    50 | loss 4.1234 | lr 5.99e-04 | norm 0.83 | 1234 tok/s | eta 3m12s\n");
        assert_eq!(log.push(&Event::Step(StepReport { step: 51, ..report })), "");
        let sample = Event::Sample { step: 500, stage: "Foundation".into(), prompt: "First Citizen:".into(), text: "\nWe are".into() };
        assert_eq!(log.push(&sample), "[Foundation | Step 500] Generated: First Citizen:\nWe are\n");
        let done = Event::StageDone {
            name: "Foundation".into(),
            average_loss: 4.59849,
            shares: map([("input", 1.0)]),
            epochs: map([("input", 12.016)]),
        };
        assert_eq!(log.push(&done), "Foundation Average Loss: 4.5985\nachieved: input 100.0 % | epochs so far: input 12.02\n");
    }

    #[test]
    fn skipped_updates_are_always_told_and_counted() {
        let mut log = TextLog::new(50);
        let report = StepReport {
            step: 7,
            skipped: Some("the loss is NaN".into()),
            source_tokens: [("code".to_string(), 1)].into(),
            ..StepReport::default()
        };
        assert_eq!(log.push(&Event::Step(report)), "step     7 | skipped: the loss is NaN (sources: code)\n");
        let done = Event::StageDone { name: "S".into(), average_loss: 1.0, shares: map([]), epochs: map([]) };
        assert!(log.push(&done).ends_with("skipped updates so far: 1\n"));
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (x, text) in [(6e-4, "6.00e-04"), (0.0, "0.00e+00"), (12_345.0, "1.23e+04"), (f64::NAN, "NaN")] {
            assert_eq!(scientific(x), text);
        }
        for (secs, text) in [
            (0.0, "0s"),
            (59.4, "59s"),
            (59.6, "1m00s"),
            (192.0, "3m12s"),
            (7500.0, "2h05m"),
            (273_600.0, "3d04h"),
            (f64::NAN, "?"),
            (-1.0, "?"),
        ] {
            assert_eq!(duration(secs), text);
        }
    }
}
