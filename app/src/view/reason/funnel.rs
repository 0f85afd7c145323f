//! What limits a task's adapters, and what becomes of the samples of its rollout.

use egui::Ui;
use smolforge_engine::protocol::{BudgetReport, Capped, FunnelReport, ReasonConfig};

use super::{Bar, bars, scrolled};
use crate::session::Session;
use crate::theme;
use crate::units::{bytes, count, duration, megabytes, percent, rate};

/// Width from which on both stand beside each other.
const TWO_COLUMNS: f32 = 680.0;

/// Budget and funnel.
pub fn show(ui: &mut Ui, session: &Session, config: &ReasonConfig) {
    scrolled(ui, "funnel", |ui| {
        let number = if ui.available_width() < TWO_COLUMNS { 1 } else { 2 };
        ui.columns(number, |columns| {
            budget(&mut columns[0], session.reason.budget.as_ref(), config);
            columns[0].add_space(2.0 * theme::GAP);
            funnel(&mut columns[number - 1], session.reason.funnel.as_ref());
        });
    });
}

/// What there may be of everything, and which ranks fit.
fn budget(ui: &mut Ui, known: Option<&(ReasonConfig, BudgetReport)>, config: &ReasonConfig) {
    ui.strong("Budget");
    let Some((of, report)) = known else {
        ui.weak("Known as soon as a step has looked at the student.");
        return;
    };
    let counted = |config: &ReasonConfig| {
        let ReasonConfig { student, sft_r, rft_r, max_params, max_adapter_mb, max_zip_mb, .. } = config;
        (student.clone(), [*sft_r, *rft_r], *max_params, [*max_adapter_mb, *max_zip_mb])
    };
    if counted(of) != counted(config) {
        ui.weak("of other settings: the next step counts anew");
    }
    let BudgetReport { parameters, bundle_bytes, device_bytes, ranks: [sft, rft], largest_ranks: [in_parameters, in_bundle] } = report;
    // Whether the bundle fits is known when it is compressed.
    let bundle = if bundle_bytes.fits() { "nearly too much" } else { "uncompressed" };
    let bundle = (bundle_bytes.used as f64 > of.warn_zip_mb * 1e6).then_some(bundle);
    let rows = vec![
        limit(ui, "parameters", parameters, count, None, largest("largest rank that fits", *in_parameters)),
        limit(ui, "bundle", bundle_bytes, megabytes, bundle, largest("largest rank that fits twice", *in_bundle)),
        limit(ui, "device memory", device_bytes, bytes, None, String::new()),
    ];
    bars(ui, "budget", rows);
    ui.label(format!("rank {sft} for answers, {rft} for reasoning"));
}

fn largest(words: &str, rank: usize) -> String {
    if rank == 0 { "no rank fits".into() } else { format!("{words}: {}", count(rank as u64)) }
}

/// How much of a cap is used; a cap of 0 is not known. A warning is told instead of what is too much.
fn limit(ui: &Ui, name: &str, amount: &Capped, written: fn(u64) -> String, warning: Option<&str>, below: String) -> Bar {
    let (visuals, Capped { used, cap }) = (ui.visuals(), *amount);
    let (color, remark) = match warning {
        _ if cap == 0 => (theme::bar(visuals, 0), " · no cap is known".into()),
        Some(warning) => (theme::bar(visuals, 1), format!(" · {warning}")),
        None if amount.fits() => (theme::bar(visuals, 0), String::new()),
        None => (theme::too_long(visuals), " · too much".into()),
    };
    let of = if cap == 0 { String::new() } else { format!(" of {}", written(cap)) };
    let share = if cap == 0 { 0.0 } else { used as f64 / cap as f64 };
    Bar { name: name.into(), share, color, text: format!("{}{of}{remark}", written(used)), below }
}

/// From samples to rows, and which questions yield them.
fn funnel(ui: &mut Ui, report: Option<&FunnelReport>) {
    ui.strong("Funnel");
    let Some(report) = report else {
        ui.weak("Press roll out: the teacher answers every question several times, and what is right is kept.");
        return;
    };
    let FunnelReport { questions, done, per_question, samples, answered, right, kept, duplicates, kinds, tokens, secs, .. } = report;
    let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
    let told = |part: u64, of: u64| format!("{} · {}", count(part), percent(share(part, of)));
    let visuals = ui.visuals().clone();
    let row = |name: &str, part: u64, of: u64, color: usize, text: String| {
        let color = theme::bar(&visuals, color);
        Bar { name: name.into(), share: share(part, of), color, text, below: String::new() }
    };
    let planned = questions * per_question;
    let rows = vec![
        row("questions", *done, *questions, 5, format!("{} of {}", count(*done), count(*questions))),
        row("samples", *samples, planned, 0, format!("{} of {}", count(*samples), count(planned))),
        row("answered", *answered, *samples, 0, told(*answered, *samples)),
        row("right", *right, *samples, 2, told(*right, *samples)),
        row("kept", *kept, *samples, 2, told(*kept, *samples)),
        row("duplicates", *duplicates, *samples, 3, told(*duplicates, *samples)),
    ];
    bars(ui, "funnel", rows);
    ui.horizontal_wrapped(|ui| {
        ui.label(format!("pass@1 {}", percent(report.pass_at_1))).on_hover_text("Chance that one sample is right");
        ui.label(format!("pass@{per_question} {}", percent(report.pass_at_k()))).on_hover_text("Questions with a right sample");
        if *tokens > 0 {
            ui.label(format!("{} tokens/s", rate(*tokens as f64 / secs)));
        }
        ui.label(if done < questions { format!("{} to go", duration(report.eta_secs)) } else { "finished".into() });
    });
    if *done > 0 && *answered == 0 {
        let text = "no answer so far: more new tokens, other worked examples or another teacher may help";
        ui.colored_label(theme::warning(ui.visuals().dark_mode), text);
    }
    if !kinds.is_empty() {
        ui.add_space(theme::GAP);
        ui.strong("Questions solved, by kind");
        let rows = kinds.iter().map(|(kind, tally)| {
            let text = format!("{} of {} · {}", count(tally.right), count(tally.asked), percent(tally.accuracy()));
            row(kind, tally.right, tally.asked, 2, text)
        });
        bars(ui, "kinds", rows.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_rank_is_told() {
        assert_eq!(largest("largest rank that fits", 33), "largest rank that fits: 33");
        assert_eq!(largest("largest rank that fits", 0), "no rank fits");
    }
}
