//! A run as curves.

use std::collections::BTreeMap;

use egui::{Color32, Ui};
use egui_plot::{Corner, HoverPosition, Legend, Line, Plot, PlotPoints, Points, VLine, uniform_grid_spacer};
use smolforge_engine::protocol::StepReport;

use crate::forms::Plots;
use crate::session::Run;
use crate::theme;
use crate::units::rate;

/// Room for the half of the last label that sticks out.
const EDGE: f32 = 14.0;

/// A curve: name, colour, points of step and value.
struct Curve {
    name: String,
    color: Color32,
    points: Vec<[f64; 2]>,
    dots: bool,
}

/// Curves on axes.
struct Chart<'a> {
    title: &'a str,
    height: f32,
    curves: Vec<Curve>,
    stages: &'a [(u32, u32, String)],
    log: bool,
    legend: bool,
}

/// A number of an update.
type Number = fn(&StepReport) -> f64;

/// Losses, large, and the other numbers, small, of one or several runs.
pub fn show(ui: &mut Ui, id: &str, runs: &[(&str, &Run)], settings: &mut Plots) {
    ui.scope(|ui| {
        ui.set_max_width(ui.available_width() - EDGE);
        charts(ui, id, runs, settings);
    });
}

fn charts(ui: &mut Ui, id: &str, runs: &[(&str, &Run)], settings: &mut Plots) {
    ui.horizontal_wrapped(|ui| {
        ui.label("smoothing");
        ui.add(egui::Slider::new(&mut settings.smoothing, 0.0..=0.99)).on_hover_text("Share of the past in every point of a curve");
        ui.checkbox(&mut settings.log, "log axis");
        if runs.len() == 1 {
            ui.checkbox(&mut settings.by_source, "by source").on_hover_text("Loss of every source, too");
        }
        ui.weak("drag: pan · Ctrl + wheel: zoom · double-click: all");
    });
    let mut losses = Vec::new();
    for (index, (name, run)) in runs.iter().enumerate() {
        losses.extend(loss_curves(name, index, run, runs.len() == 1, settings));
    }
    let stages = runs.first().filter(|_| runs.len() == 1).map(|(_, run)| run.stages.as_slice()).unwrap_or_default();
    let large = Chart { title: "loss", height: 260.0, curves: losses, stages, log: settings.log, legend: true };
    chart(ui, id, large);
    let small: [(&str, Number, f64); 3] = [
        ("learning rate", |step| step.lr, 0.0),
        ("gradient norm", |step| step.grad_norm, settings.smoothing),
        ("tokens/s", |step| step.tokens_per_sec, settings.smoothing),
    ];
    ui.add_space(theme::GAP);
    let columns = if ui.available_width() > 700.0 { 2 } else { 1 };
    ui.columns(columns, |columns| {
        for (place, (name, value, smoothing)) in small.iter().enumerate() {
            let curves = runs.iter().enumerate().map(|(index, (run_name, run))| Curve {
                name: run_name.to_string(),
                color: theme::series(index),
                points: smoothed(run.steps.iter().map(|step| [f64::from(step.step), value(step)]), *smoothing),
                dots: false,
            });
            let count = columns.len();
            let small = Chart { title: name, height: 130.0, curves: curves.collect(), stages: &[], log: false, legend: false };
            chart(&mut columns[place % count], id, small);
        }
        if let [(_, run)] = runs {
            let title = "share of tokens by source";
            let mix = Chart { title, height: 130.0, curves: mix_curves(run), stages: &[], log: false, legend: true };
            let count = columns.len();
            chart(&mut columns[3 % count], id, mix);
        }
    });
}

fn loss_curves(name: &str, index: usize, run: &Run, alone: bool, settings: &Plots) -> Vec<Curve> {
    let color = theme::series(index);
    let points = smoothed(run.steps.iter().map(|step| [f64::from(step.step), step.loss]), settings.smoothing);
    let mut curves = vec![Curve { name: if alone { "all".into() } else { name.into() }, color, points, dots: false }];
    let held_out = run.evaluations.iter().map(|(step, loss, _)| [f64::from(*step), *loss]).collect();
    let held_out_name = if alone { "held out".to_string() } else { format!("{name}, held out") };
    curves.push(Curve { name: held_out_name, color, points: held_out, dots: true });
    if alone && settings.by_source {
        let mut by_source: BTreeMap<&str, Vec<[f64; 2]>> = BTreeMap::new();
        for step in &run.steps {
            for (source, loss) in &step.source_loss {
                by_source.entry(source).or_default().push([f64::from(step.step), *loss]);
            }
        }
        for (source, points) in by_source {
            let place = run.info.iter().flat_map(|info| info.sources.keys()).position(|known| known == source).unwrap_or(0);
            let points = smoothed(points.into_iter(), settings.smoothing);
            curves.push(Curve { name: source.into(), color: theme::series(place + 1), points, dots: false });
        }
    }
    curves
}

/// Shares over the last tokens, because one update may draw from one source only.
fn mix_curves(run: &Run) -> Vec<Curve> {
    const WINDOW: usize = 20;
    let sources: Vec<&String> = run.info.iter().flat_map(|info| info.sources.keys()).collect();
    let every = run.steps.len().div_ceil(400).max(1);
    let mut curves: Vec<Curve> = sources
        .iter()
        .enumerate()
        .map(|(place, name)| Curve { name: name.to_string(), color: theme::series(place + 1), points: Vec::new(), dots: false })
        .collect();
    for end in (1..=run.steps.len()).step_by(every) {
        let window = &run.steps[end.saturating_sub(WINDOW)..end];
        let total: u64 = window.iter().map(|step| step.tokens).sum();
        for (source, curve) in sources.iter().zip(&mut curves) {
            let tokens: u64 = window.iter().filter_map(|step| step.source_tokens.get(*source)).sum();
            curve.points.push([f64::from(window[window.len() - 1].step), tokens as f64 / total.max(1) as f64]);
        }
    }
    curves
}

/// An exponential mean, corrected for its beginning; what is not finite is left out.
fn smoothed(points: impl Iterator<Item = [f64; 2]>, share: f64) -> Vec<[f64; 2]> {
    let (mut mean, mut weight) = (0.0, 0.0);
    let finite = points.filter(|[_, value]| value.is_finite());
    finite
        .map(|[step, value]| {
            mean = share * mean + (1.0 - share) * value;
            weight = share * weight + (1.0 - share);
            [step, mean / weight]
        })
        .collect()
}

fn chart(ui: &mut Ui, id: &str, chart: Chart<'_>) {
    let Chart { title, height, curves, stages, log, legend } = chart;
    ui.label(egui::RichText::new(title).strong());
    let grid = ui.visuals().weak_text_color();
    let value_of = move |y: f64| if log { 10f64.powf(y) } else { y };
    let mut plot = Plot::new((id, title))
        .height(height)
        .grid_color(theme::grid(ui.visuals()))
        .x_grid_spacer(uniform_grid_spacer(|input| [nice(10.0 * input.base_step_size); 3]))
        .y_grid_spacer(uniform_grid_spacer(|input| [nice(4.0 * input.base_step_size); 3]))
        .allow_scroll(false)
        .y_axis_min_width(44.0)
        .y_axis_formatter(move |mark, _| short(value_of(mark.value)))
        .label_formatter(move |position| hover(position, value_of));
    if legend {
        plot = plot.legend(Legend::default().position(Corner::RightTop).background_alpha(0.6));
    }
    plot.show(ui, |plot| {
        for (start, _, _) in stages.iter().filter(|(start, _, _)| *start > 0) {
            plot.vline(VLine::new("", f64::from(*start)).color(grid).width(1.0).allow_hover(false));
        }
        for curve in curves.into_iter().filter(|curve| !curve.points.is_empty()) {
            let scale = |[x, y]: [f64; 2]| [x, if log { y.max(1e-12).log10() } else { y }];
            let points: PlotPoints<'_> = curve.points.into_iter().map(scale).collect();
            if curve.dots {
                plot.points(Points::new(curve.name, points).color(curve.color).radius(4.0));
            } else {
                plot.line(Line::new(curve.name, points).color(curve.color).width(1.6));
            }
        }
    });
}

/// The next number of 1, 2, 5, 10 and so on: what people count in.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power).find(|nice| *nice >= step).unwrap_or(10.0 * power)
}

fn hover(position: &HoverPosition<'_>, value_of: impl Fn(f64) -> f64) -> Option<String> {
    match position {
        HoverPosition::NearDataPoint { plot_name, position, .. } => {
            Some(format!("{plot_name}\nstep {:.0}: {}", position.x, short(value_of(position.y))))
        }
        HoverPosition::Elsewhere { .. } => None,
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        x if x < 0.01 => format!("{value:.1e}"),
        x if x < 100.0 => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').into(),
        _ => rate(value),
    }
}

/// A loss curve without axes.
pub fn sparkline(ui: &mut Ui, losses: &[(u32, f64)], steps: u32, size: egui::Vec2) {
    let (response, painter) = ui.allocate_painter(size, egui::Sense::hover());
    let (low, high) = losses.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
    let rect = response.rect.shrink(2.0);
    let place = |(step, loss): &(u32, f64)| {
        let x = f64::from(*step) / f64::from(steps.max(1));
        let y = (high - loss) / (high - low).max(1e-9);
        rect.left_top() + egui::vec2(x as f32 * rect.width(), y as f32 * rect.height())
    };
    painter.line(losses.iter().map(place).collect(), egui::Stroke::new(1.5, theme::series(0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_constants_and_leaves_out_what_is_not_finite() {
        let points = [[1.0, 2.0], [2.0, f64::NAN], [3.0, 2.0]];
        assert_eq!(smoothed(points.into_iter(), 0.9).len(), 2);
        for [_, value] in smoothed(points.into_iter(), 0.9) {
            assert!((value - 2.0).abs() < 1e-12);
        }
        assert_eq!(smoothed([[1.0, 5.0], [2.0, 1.0]].into_iter(), 0.0), [[1.0, 5.0], [2.0, 1.0]]);
    }

    #[test]
    fn axes_are_divided_by_numbers_that_people_count_in() {
        for (step, expect) in [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (51.0, 100.0), (0.03, 0.05)] {
            assert!((nice(step) - expect).abs() < 1e-9 * expect, "{step}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.0, "0"), (2.5, "2.5"), (0.0003, "3.0e-4"), (1234.4, "1,234"), (3.0, "3")] {
            assert_eq!(short(value), text);
        }
    }
}
