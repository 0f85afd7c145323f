//! The pictures of a task: where samples end, accuracies by kind of unit, losses.

use std::fmt::Write;

use super::{named, percent, share};
use crate::protocol::{FunnelReport, TestReport};
use crate::train::report::plot::{Format, Line, Look, Plot, Points, color, escape, smooth};
use crate::train::report::tables::grouped;

const WIDTH: f64 = 1120.0;

/// A card with a drawing; `svg` and `legend` are markup.
fn figure(title: &str, note: &str, legend: &str, height: f64, svg: &str) -> String {
    format!(
        "<figure class=\"card drawing wide\"><figcaption><h2>{title}</h2><p>{}</p>{legend}</figcaption><div class=\"scroll\">\
         <svg viewBox=\"0 0 {WIDTH:.0} {height:.0}\" role=\"img\" aria-label=\"{title}\">{svg}</svg></div></figure>",
        escape(note)
    )
}

/// Where the samples of a rollout end: with every step some are lost.
pub(super) fn funnel(report: &FunnelReport) -> String {
    let FunnelReport { questions, done, per_question, samples, answered, right, kept, duplicates, solved, .. } = report;
    let kept_at_most = *kept.min(right);
    let columns = [("drawn", *samples), ("with a number", *answered), ("right", *right), ("kept", kept_at_most)];
    let lost = ["no number", "wrong", "not needed"];
    let (mut svg, mut nodes) = (String::new(), String::new()); // flows lie below the words
    for (i, (name, number)) in columns.into_iter().enumerate() {
        let fill = if i == 3 { "good" } else { "main" };
        if let Some((_, before)) = i.checked_sub(1).map(|i| columns[i]) {
            let (stays, goes) = (number.min(before), before.saturating_sub(number));
            flow(&mut svg, i, fill, [0.0, height(stays, *samples)], 0.0);
            let from = height(stays, *samples);
            flow(&mut svg, i, "lost", [from, from + height(goes, *samples)], GAP);
            node(&mut nodes, i, "lost", from + GAP, lost[i - 1], goes, *samples);
        }
        node(&mut nodes, i, fill, 0.0, name, number, *samples);
    }
    let note = format!(
        "{} of {} questions, {per_question} samples each · {} solved, pass@1 {}, pass@{per_question} {} · {} rows kept, {} like one of them",
        grouped(*done),
        grouped(*questions),
        grouped(*solved),
        percent(report.pass_at_1),
        percent(report.pass_at_k()),
        grouped(*kept),
        grouped(*duplicates),
    );
    figure("Funnel", &note, "", TOP + TALL + GAP + 16.0, &(svg + &nodes))
}

const TOP: f64 = 12.0;
const TALL: f64 = 190.0;
/// Room between what stays and what is lost.
const GAP: f64 = 26.0;
const NODE: f64 = 12.0;

fn height(number: u64, samples: u64) -> f64 {
    TALL * share(number, samples)
}

fn column(i: usize) -> f64 {
    8.0 + 285.0 * i as f64
}

/// A column's bar, `down` from its top, with name, number and share beside it.
fn node(svg: &mut String, i: usize, fill: &str, down: f64, name: &str, number: u64, samples: u64) {
    let (x, y, tall) = (column(i), TOP + down, height(number, samples).max(1.0));
    let _ = write!(svg, "<rect class=\"{fill}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{NODE:.0}\" height=\"{tall:.1}\" rx=\"2\"/>");
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\"><tspan class=\"strong\">{name}</tspan> {} · {}</text>",
        x + NODE + 8.0,
        y + (tall / 2.0).min(16.0) + 4.0,
        grouped(number),
        percent(share(number, samples)),
    );
}

/// What flows into column `i`: from `[top, bottom]` of the one before to the same place, `down` from there.
fn flow(svg: &mut String, i: usize, fill: &str, [top, bottom]: [f64; 2], down: f64) {
    let (from, to) = (column(i - 1) + NODE, column(i));
    let (top, bottom, middle) = (TOP + top, TOP + bottom, (from + to) / 2.0);
    let _ = write!(
        svg,
        "<path class=\"flow {fill}\" d=\"M{from:.1} {top:.1}C{middle:.1} {top:.1} {middle:.1} {:.1} {to:.1} {:.1}L{to:.1} {:.1}\
         C{middle:.1} {:.1} {middle:.1} {bottom:.1} {from:.1} {bottom:.1}Z\"/>",
        top + down,
        top + down,
        bottom + down,
        bottom + down,
    );
}

/// Bars of every test by kind of unit, all kinds together first.
pub(super) fn accuracies(tests: &[TestReport]) -> String {
    const LEFT: f64 = 52.0;
    const FLOOR: f64 = 232.0;
    const HIGH: f64 = 200.0;
    let tests: Vec<&TestReport> = tests.iter().filter(|test| test.all.asked > 0).collect();
    if tests.is_empty() {
        return String::new();
    }
    let kinds = kinds(&tests);
    let mut svg = String::new();
    for part in 0..=4 {
        let (share, y) = (f64::from(part) / 4.0, FLOOR - HIGH * f64::from(part) / 4.0);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT:.0}\" x2=\"{WIDTH:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        let _ = write!(svg, "<text class=\"y\" x=\"{:.0}\" y=\"{:.1}\">{:.0} %</text>", LEFT - 8.0, y + 4.0, 100.0 * share);
    }
    let room = (WIDTH - LEFT) / (kinds.len() + 1) as f64;
    let wide = (0.8 * room / tests.len() as f64).min(46.0);
    for (group, kind) in [None].into_iter().chain(kinds.iter().map(Some)).enumerate() {
        let middle = LEFT + room * (group as f64 + 0.5);
        let name = kind.map_or("all", |kind| *kind);
        let _ = write!(svg, "<text class=\"x\" x=\"{middle:.1}\" y=\"{:.0}\">{}</text>", FLOOR + 19.0, escape(name));
        for (i, test) in tests.iter().enumerate() {
            let Some(tally) = kind.map_or(Some(&test.all), |kind| test.kinds.get(*kind)) else { continue };
            let (tall, x) = (HIGH * tally.accuracy(), middle + wide * (i as f64 - tests.len() as f64 / 2.0));
            let _ = write!(
                svg,
                "<rect style=\"fill:{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" rx=\"2\"><title>{}, {}: {} of {}</title></rect>",
                color(Some(i)),
                x + 1.0,
                FLOOR - tall,
                wide - 2.0,
                escape(named(&test.what)),
                escape(name),
                grouped(tally.right),
                grouped(tally.asked),
            );
            if wide >= 20.0 {
                let _ = write!(
                    svg,
                    "<text class=\"x\" x=\"{:.1}\" y=\"{:.1}\">{:.0}</text>",
                    x + wide / 2.0,
                    FLOOR - tall - 5.0,
                    100.0 * tally.accuracy()
                );
            }
        }
    }
    let _ = write!(svg, "<line class=\"axis\" x1=\"{LEFT:.0}\" x2=\"{WIDTH:.0}\" y1=\"{FLOOR:.0}\" y2=\"{FLOOR:.0}\"/>");
    let entries = tests
        .iter()
        .enumerate()
        .map(|(i, test)| format!("<li><i class=\"box\" style=\"--c:{}\"></i>{}</li>", color(Some(i)), escape(named(&test.what))));
    let legend = format!("<ul class=\"legend\">{}</ul>", entries.collect::<String>());
    figure("Accuracy by kind of unit", "share of right answers", &legend, FLOOR + 30.0, &svg)
}

/// Kinds of unit of all tests.
pub(super) fn kinds<'a>(tests: &[&'a TestReport]) -> Vec<&'a str> {
    let mut kinds: Vec<&str> = tests.iter().flat_map(|test| test.kinds.keys()).map(String::as_str).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// The training loss of every run.
pub(super) fn losses(runs: &[(String, Vec<(u32, f64)>)]) -> String {
    let mut plots: Vec<Plot> = runs.iter().enumerate().map(|(i, run)| loss(i, run)).filter(Plot::has_points).collect();
    // Half-wide plots come in pairs: no holes in the page.
    let odd = plots.len() % 2 == 1;
    plots.last_mut().into_iter().for_each(|plot| plot.wide = odd);
    plots.into_iter().map(Plot::html).collect()
}

fn loss(i: usize, (name, losses): &(String, Vec<(u32, f64)>)) -> Plot {
    let raw: Points = losses.iter().map(|(step, loss)| (f64::from(*step), *loss)).collect();
    let span = (raw.len() / 40).clamp(1, 50);
    let line = |name: &str, look, points| Line { name: name.into(), color: Some(i + 1), points, look };
    let lines = match span {
        1 => vec![line("loss", Look::Solid, raw.clone())],
        _ => vec![line("this update", Look::Faint, raw.clone()), line("smoothed", Look::Solid, smooth(&raw, span, &[]))],
    };
    let bold = if span > 1 { format!(" · bold: mean of {span} updates") } else { String::new() };
    Plot {
        title: format!("Loss of {}", named(name)),
        note: format!("nats per learned token{bold}"),
        wide: false,
        format: Format::Plain,
        lines,
        stages: Vec::new(),
        from_zero: false,
        top: None,
        x: (raw.first().map_or(0.0, |point| point.0 - 1.0), raw.last().map_or(1.0, |point| point.0)),
    }
}
