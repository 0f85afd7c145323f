//! The plots of a run.

use std::collections::BTreeMap;

use super::History;
use super::plot::{Format, Line, Look, Plot, Points, smooth};
use crate::protocol::StepReport;

/// Windows into which the mix over time is counted.
const WINDOWS: u32 = 120;
const MIX: &str = "Mix over time";

/// Every plot that the run has numbers for, in the order of the page.
pub(super) fn all(history: &History) -> Vec<String> {
    let span = (history.steps.len() / 40).clamp(1, 50);
    let mut plots: Vec<Plot> = [
        Some(loss(history, span)),
        Some(source_loss(history, span)),
        Some(held_out(history)),
        mix(history),
        Some(learning_rate(history)),
        Some(gradient_norm(history, span)),
        Some(speed(history, span)),
        loss_scale(history),
    ]
    .into_iter()
    .flatten()
    .filter(Plot::has_points)
    .collect();
    // Half-wide plots come in pairs: no holes in the page.
    if plots.iter().filter(|plot| !plot.wide).count() % 2 == 1 {
        let place = plots.iter().position(|plot| plot.title == MIX).unwrap_or(plots.len() - 1);
        plots[place].wide = true;
    }
    plots.into_iter().map(Plot::html).collect()
}

fn plot(title: &str, history: &History, format: Format) -> Plot {
    let stages = history.stages.iter().map(|stage| (f64::from(stage.start), f64::from(stage.end), stage.name.to_string()));
    let first = history.steps.keys().next().map_or(0, |step| step - 1);
    let last = history.steps.keys().next_back().copied().unwrap_or(0);
    Plot {
        title: title.into(),
        note: String::new(),
        wide: false,
        format,
        lines: Vec::new(),
        stages: stages.collect(),
        from_zero: false,
        top: None,
        x: (f64::from(first), f64::from(last)),
    }
}

fn smoothed(history: &History, points: &[(f64, f64)], span: usize) -> Points {
    let ends: Vec<f64> = history.stages.iter().map(|stage| f64::from(stage.end)).collect();
    smooth(points, span, &ends)
}

fn line(name: &str, color: Option<usize>, look: Look, points: Points) -> Line {
    Line { name: name.into(), color, points, look }
}

fn numbers(history: &History, number: impl Fn(&StepReport) -> f64) -> Points {
    history.made().map(|report| (f64::from(report.step), number(report))).collect()
}

/// The numbers of every update faintly behind their mean over `span` updates.
fn raw_and_smoothed(name: &str, color: Option<usize>, raw: Points, history: &History, span: usize) -> Vec<Line> {
    if span == 1 {
        return vec![line(name, color, Look::Solid, raw)];
    }
    let bold = line(&format!("{name}, smoothed"), color, Look::Solid, smoothed(history, &raw, span));
    vec![line(&format!("{name}, this update"), color, Look::Faint, raw), bold]
}

fn loss(history: &History, span: usize) -> Plot {
    let mut lines = raw_and_smoothed("training", None, numbers(history, |report| report.loss), history, span);
    let held_out: Points = history.evaluated.iter().map(|(step, (loss, _))| (f64::from(*step), *loss)).collect();
    if !held_out.is_empty() {
        let name = if history.learned_only() { "held-out, per learned token" } else { "held-out, weighted as the last stage" };
        lines.push(line(name, Some(4), Look::Dotted, held_out));
    }
    let bold = if span > 1 { format!(" · bold: mean of {span} updates") } else { String::new() };
    Plot { wide: true, note: format!("nats per token{bold}"), lines, ..plot("Loss", history, Format::Plain) }
}

fn source_loss(history: &History, span: usize) -> Plot {
    let mut lines = Vec::new();
    for (i, source) in history.sources.iter().enumerate() {
        let points: Points =
            history.made().filter_map(|report| Some((f64::from(report.step), *report.source_loss.get(*source)?))).collect();
        lines.push(line(source, Some(i), Look::Solid, smoothed(history, &points, span)));
    }
    Plot { note: "smoothed, nats per token".into(), lines, ..plot("Training loss per source", history, Format::Plain) }
}

fn held_out(history: &History) -> Plot {
    let mut lines = Vec::new();
    for (i, source) in history.sources.iter().enumerate() {
        let points = history.evaluated.iter().filter_map(|(step, (_, scores))| Some((f64::from(*step), scores.get(*source)?.loss)));
        lines.push(line(source, Some(i), Look::Dotted, points.collect()));
    }
    Plot { note: "text never trained on, nats per token".into(), lines, ..plot("Held-out loss per source", history, Format::Plain) }
}

fn learning_rate(history: &History) -> Plot {
    let lines = vec![line("learning rate", Some(4), Look::Solid, numbers(history, |report| report.lr))];
    Plot { lines, from_zero: true, ..plot("Learning rate", history, Format::Scientific) }
}

fn gradient_norm(history: &History, span: usize) -> Plot {
    let lines = raw_and_smoothed("norm", Some(3), numbers(history, |report| report.grad_norm), history, span);
    Plot { note: "global, before clipping".into(), lines, ..plot("Gradient norm", history, Format::Plain) }
}

fn speed(history: &History, span: usize) -> Plot {
    let lines = raw_and_smoothed("speed", Some(5), numbers(history, |report| report.tokens_per_sec), history, span);
    Plot { lines, from_zero: true, ..plot("Tokens per second", history, Format::Count) }
}

fn loss_scale(history: &History) -> Option<Plot> {
    history.made().find(|report| report.loss_scale != 1.0)?;
    let lines = vec![line("loss scale", Some(6), Look::Solid, numbers(history, |report| report.loss_scale))];
    Some(Plot { lines, ..plot("Loss scale", history, Format::Count) })
}

/// Share of every source in windows of updates, stacked, with the planned shares as dashed steps.
fn mix(history: &History) -> Option<Plot> {
    let last = *history.steps.keys().next_back()?;
    let first = *history.steps.keys().next()? - 1;
    if history.sources.len() < 2 {
        return None;
    }
    let width = (last - first).div_ceil(WINDOWS).max(1);
    let mut stacked: Vec<Points> = vec![Points::new(); history.sources.len()];
    for (start, end) in windows(first, last, width, history) {
        let tokens = history.tokens(start, end);
        let sum: u64 = tokens.values().sum();
        if sum == 0 {
            continue;
        }
        let mut below = 0.0;
        for (points, source) in stacked.iter_mut().zip(&history.sources) {
            below += tokens.get(source).copied().unwrap_or(0) as f64 / sum as f64;
            points.extend([(f64::from(start), below), (f64::from(end), below)]);
        }
    }
    let named = history.sources.iter().enumerate().zip(stacked);
    let mut lines: Vec<Line> = named.map(|((i, source), points)| line(source, Some(i), Look::Area, points)).collect();
    lines.extend(planned(history, last));
    let note = format!("share of training tokens per {width} updates · dashed: planned");
    Some(Plot { note, lines, from_zero: true, top: Some(1.0), ..plot(MIX, history, Format::Percent) })
}

/// Windows of at most `width` updates that never reach over the end of a stage.
fn windows(first: u32, last: u32, width: u32, history: &History) -> Vec<(u32, u32)> {
    let mut windows = Vec::new();
    let mut start = first;
    while start < last {
        let stage_end = history.stages.iter().map(|stage| stage.end).filter(|end| *end > start).min().unwrap_or(last);
        let end = (start + width).min(stage_end).min(last);
        windows.push((start, end));
        start = end;
    }
    windows
}

fn planned(history: &History, last: u32) -> Vec<Line> {
    let mut stacked: BTreeMap<usize, Points> = BTreeMap::new();
    for stage in history.stages.iter().filter(|stage| stage.start < last) {
        let sum: f64 = stage.weights.values().sum();
        let mut below = 0.0;
        // The topmost boundary is the frame itself.
        for (i, source) in history.sources.iter().enumerate().take(history.sources.len() - 1) {
            below += stage.weights.get(*source).copied().unwrap_or(0.0) / sum.max(1e-12);
            let y = below.min(1.0);
            stacked.entry(i).or_default().extend([(f64::from(stage.start), y), (f64::from(stage.end.min(last)), y)]);
        }
    }
    let named = stacked.into_values().enumerate();
    named.map(|(i, points)| line(if i == 0 { "planned" } else { "" }, None, Look::Dashed, points)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_where_stages_end() {
        let weights = BTreeMap::new();
        let stage = |start, end| super::super::Stage { name: "s", start, end, weights: &weights, done: None };
        let history = History { stages: vec![stage(0, 10), stage(10, 13)], ..History::default() };
        assert_eq!(windows(0, 13, 4, &history), [(0, 4), (4, 8), (8, 10), (10, 13)]);
        assert_eq!(windows(11, 12, 4, &history), [(11, 12)]);
        assert_eq!(windows(3, 3, 4, &history), []);
    }
}
