//! A run as curves.

use std::sync::Arc;

use egui::{Color32, Context, Id, RichText, Ui, Vec2b};
use egui_plot::{Corner, HoverPosition, Legend, Line, LineStyle, Plot, PlotPoints, Points, VLine, uniform_grid_spacer};

use crate::forms::Plots;
use crate::session::{Moment, Run};
use crate::theme;
use crate::units::rate;

/// Room for the half of the last label that sticks out.
const EDGE: f32 = 14.0;

/// Points on either side of what is shown: enough for axes that reach from end to end.
const UNSEEN: usize = 64;

/// A curve: name, colour, points of step and value.
struct Curve<'a> {
    name: String,
    color: Color32,
    /// Another number whenever the points are others.
    state: u64,
    /// Makes the points: called when the state is another one than in the frame before, because they may be many.
    points: Box<dyn Fn() -> Vec<[f64; 2]> + 'a>,
    dots: bool,
}

/// Curves on axes.
struct Chart<'a> {
    title: &'a str,
    height: f32,
    curves: Vec<Curve<'a>>,
    /// Of the run, where there is only one: its stages and its changes are marked.
    run: Option<&'a Run>,
    log: bool,
    legend: Key,
}

/// Where the names of the curves stand.
#[derive(PartialEq)]
enum Key {
    None,
    /// In a corner of the plot; a click hides a curve.
    Inside,
    /// Beside the title: nothing is covered.
    Above,
}

/// A number of an update.
type Number = fn(&Moment) -> f64;

/// Losses, large, and the other numbers, small, of one or several runs. A click asks for a step.
pub fn show(ui: &mut Ui, id: &str, runs: &[(&str, &Run)], settings: &mut Plots) {
    ui.scope(|ui| {
        ui.set_max_width(ui.available_width() - EDGE);
        charts(ui, id, runs, settings);
    });
}

fn charts(ui: &mut Ui, id: &str, runs: &[(&str, &Run)], settings: &mut Plots) {
    ui.horizontal_wrapped(|ui| {
        let label = ui.label("smoothing");
        let slider = ui.add(egui::Slider::new(&mut settings.smoothing, 0.0..=0.99)).labelled_by(label.id);
        slider.on_hover_text("Share of the past in every point of a curve");
        ui.checkbox(&mut settings.log, "log axis");
        if runs.len() == 1 {
            ui.checkbox(&mut settings.by_source, "by source").on_hover_text("Loss of every source, too");
        }
        ui.label(RichText::new("drag: pan · Ctrl+wheel: zoom · double-click: all").small().weak());
    });
    let mut losses = Vec::new();
    for (index, (name, run)) in runs.iter().enumerate() {
        losses.extend(loss_curves(name, index, run, runs.len() == 1, settings, ui.visuals().text_color()));
    }
    let alone = runs.first().filter(|_| runs.len() == 1).map(|(_, run)| *run);
    let large = Chart { title: "loss", height: 260.0, curves: losses, run: alone, log: settings.log, legend: Key::Inside };
    chart(ui, id, large, &mut settings.at);
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
                state: state(run, *smoothing),
                points: Box::new(|| smoothed(run.steps.moments.iter().map(|step| [f64::from(step.step), value(step)]), *smoothing)),
                dots: false,
            });
            let count = columns.len();
            let small = Chart { title: name, height: 130.0, curves: curves.collect(), run: None, log: false, legend: Key::None };
            chart(&mut columns[place % count], id, small, &mut settings.at);
        }
        if let [(_, run)] = runs {
            let title = "share of tokens by source";
            let mix = Chart { title, height: 130.0, curves: mix_curves(run), run: alone, log: false, legend: Key::Above };
            let count = columns.len();
            chart(&mut columns[3 % count], id, mix, &mut settings.at);
        }
    });
}

fn loss_curves<'a>(name: &str, index: usize, run: &'a Run, alone: bool, settings: &Plots, ink: Color32) -> Vec<Curve<'a>> {
    let color = theme::series(index);
    let (smoothing, state) = (settings.smoothing, state(run, settings.smoothing));
    let points = move || smoothed(run.steps.moments.iter().map(|step| [f64::from(step.step), step.loss]), smoothing);
    let mut curves =
        vec![Curve { name: if alone { "all".into() } else { name.into() }, color, state, points: Box::new(points), dots: false }];
    let held_out = || run.evaluations.iter().map(|(step, loss, _)| [f64::from(*step), *loss]).collect();
    let held_out_name = if alone { "held out".to_string() } else { format!("{name}, held out") };
    let color = if alone { ink } else { color };
    curves.push(Curve { name: held_out_name, color, state, points: Box::new(held_out), dots: true });
    if alone && settings.by_source {
        let sources = run.sources();
        for (source, points) in &run.steps.source_loss {
            let place = sources.iter().position(|known| known == source).unwrap_or(0);
            let points = move || smoothed(points.iter().copied(), smoothing);
            curves.push(Curve { name: source.clone(), color: theme::series(place + 1), state, points: Box::new(points), dots: false });
        }
    }
    curves
}

/// A number for what the curves of a run are made of.
fn state(run: &Run, smoothing: f64) -> u64 {
    let ends = [run.steps.moments.first(), run.last()].map(|moment| moment.map(|moment| (moment.step, moment.loss.to_bits())));
    let last = run.evaluations.last().map(|(step, loss, _)| (*step, loss.to_bits()));
    Id::unique((run.steps.moments.len(), ends, run.evaluations.len(), last, smoothing.to_bits())).value()
}

/// Shares over the last tokens, because one update may draw from one source only.
fn mix_curves(run: &Run) -> Vec<Curve<'_>> {
    const WINDOW: usize = 20;
    let moments = &run.steps.moments;
    let every = moments.len().div_ceil(400).max(1);
    let windows = move || (0..moments.len()).step_by(every).map(|last| (last.checked_sub(WINDOW), last));
    let tokens = |column: &[u64], (first, last): (Option<usize>, usize)| column[last] - first.map_or(0, |first| column[first]);
    let total = move |window| run.steps.source_tokens.values().map(|column| tokens(column, window)).sum::<u64>().max(1);
    let sources = run.sources().into_iter().enumerate();
    let known = sources.filter_map(|(place, name)| Some((place, run.steps.source_tokens.get(&name)?, name)));
    known
        .map(|(place, column, name)| {
            let share = move |window: (Option<usize>, usize)| tokens(column, window) as f64 / total(window) as f64;
            let points = move || windows().map(|window| [f64::from(moments[window.1].step), share(window)]).collect();
            Curve { name, color: theme::series(place + 1), state: state(run, 0.0), points: Box::new(points), dots: false }
        })
        .collect()
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

/// What was made of a state in the frame before, or is made now.
fn kept(ctx: &Context, id: Id, state: u64, make: impl FnOnce() -> Vec<[f64; 2]>) -> Arc<Vec<[f64; 2]>> {
    let known = ctx.data(|data| data.get_temp::<(u64, Arc<Vec<[f64; 2]>>)>(id));
    if let Some((_, points)) = known.filter(|(of, _)| *of == state) {
        return points;
    }
    let points = Arc::new(make());
    ctx.data_mut(|data| data.insert_temp(id, (state, points.clone())));
    points
}

/// What can be seen of a curve on so many pixels: the lowest and the highest point of every one. What lies outside of
/// the axis is coarser.
fn thinned(points: Vec<[f64; 2]>, (from, to): (f64, f64), pixels: usize) -> Vec<[f64; 2]> {
    if points.len() <= 2 * pixels {
        return points;
    }
    let (first, last) = (points.partition_point(|[x, _]| *x < from), points.partition_point(|[x, _]| *x <= to));
    let parts = [(&points[..first], UNSEEN), (&points[first..last], pixels), (&points[last..], UNSEEN)];
    parts.into_iter().flat_map(|(part, most)| extremes(part, most)).collect()
}

/// First, lowest, highest and last point of each of so many parts of a curve.
fn extremes(points: &[[f64; 2]], parts: usize) -> Vec<[f64; 2]> {
    if points.len() <= 4 * parts {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(4 * parts);
    for part in points.chunks(points.len().div_ceil(parts)) {
        let by_value = |a: &&[f64; 2], b: &&[f64; 2]| a[1].total_cmp(&b[1]);
        let (low, high) = (part.iter().min_by(by_value), part.iter().max_by(by_value));
        let mut four: Vec<[f64; 2]> = [part.first(), low, high, part.last()].into_iter().flatten().copied().collect();
        four.sort_by(|a, b| a[0].total_cmp(&b[0]));
        four.dedup();
        kept.extend(four);
    }
    kept
}

fn chart(ui: &mut Ui, id: &str, chart: Chart<'_>, at: &mut Option<u32>) {
    let Chart { title, height, curves, run, log, legend } = chart;
    ui.horizontal_wrapped(|ui| {
        ui.label(RichText::new(title).strong());
        for curve in curves.iter().filter(|_| legend == Key::Above) {
            ui.spacing_mut().item_spacing.x = 4.0;
            ui.label(RichText::new("■").small().color(curve.color));
            ui.label(RichText::new(&curve.name).small());
        }
    });
    let (grid, ink, pixels) = (ui.visuals().weak_text_color(), ui.visuals().text_color(), ui.available_width().max(100.0) as usize);
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
    if legend == Key::Above {
        plot = plot.include_y(0.0).include_y(1.0); // shares
    }
    if legend == Key::Inside {
        plot = plot.legend(Legend::default().position(Corner::RightTop).background_alpha(0.6));
    }
    let looked_at = *at;
    let ctx = ui.ctx().clone();
    let shown = plot.show(ui, |plot| {
        let line = |step: u32| VLine::new("", f64::from(step)).width(1.0).allow_hover(false);
        for (start, _, _) in run.iter().flat_map(|run| &run.stages).filter(|(start, _, _)| *start > 0) {
            plot.vline(line(*start).color(grid));
        }
        for step in run.iter().flat_map(|run| &run.changes) {
            plot.vline(line(*step).color(ink).style(LineStyle::dashed_dense()));
        }
        looked_at.into_iter().for_each(|step| plot.vline(line(step).color(ink)));
        let everything = plot.auto_bounds() == Vec2b::TRUE;
        let bounds = plot.plot_bounds();
        let seen = if everything { (f64::NEG_INFINITY, f64::INFINITY) } else { (bounds.min()[0], bounds.max()[0]) };
        for (place, curve) in curves.into_iter().enumerate() {
            let state = Id::unique((curve.state, seen.0.to_bits(), seen.1.to_bits(), pixels)).value();
            let points = kept(&ctx, Id::unique((id, title, place, &curve.name)), state, || thinned((curve.points)(), seen, pixels));
            if points.is_empty() {
                continue;
            }
            let scale = |[x, y]: &[f64; 2]| [*x, if log { y.max(1e-12).log10() } else { *y }];
            let points: PlotPoints<'_> = points.iter().map(scale).collect();
            if curve.dots {
                plot.points(Points::new(curve.name, points).color(curve.color).radius(4.0));
            } else {
                plot.line(Line::new(curve.name, points).color(curve.color).width(1.6));
            }
        }
    });
    if shown.response.double_clicked() {
        *at = None; // it shows everything again
    } else if let Some(pointer) = shown.response.interact_pointer_pos().filter(|_| shown.response.clicked()) {
        *at = Some(shown.transform.value_from_position(pointer).x.round().max(1.0) as u32);
    }
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
    fn a_thinned_curve_keeps_its_ends_and_its_peaks() {
        let mut points: Vec<[f64; 2]> = (0..100_000).map(|step| [f64::from(step), f64::from(step % 7)]).collect();
        (points[50_123][1], points[77_777][1]) = (1000.0, -1000.0);
        let all = thinned(points.clone(), (f64::NEG_INFINITY, f64::INFINITY), 500);
        assert!(all.len() <= 4 * 500, "{}", all.len());
        let seen = thinned(points.clone(), (50_000.0, 50_400.0), 500);
        assert!(seen.len() <= 401 + 8 * UNSEEN, "{}", seen.len());
        for thin in [&all, &seen] {
            assert!(thin.windows(2).all(|pair| pair[0][0] < pair[1][0]), "in the order of the steps");
            assert!(thin.contains(&[50_123.0, 1000.0]) && thin.contains(&[77_777.0, -1000.0]));
            assert_eq!((thin.first(), thin.last()), (points.first(), points.last()));
        }
        assert!((50_000..50_400).all(|step| seen.contains(&points[step])), "what is zoomed into is whole");
        assert_eq!(thinned(points[..9].to_vec(), (0.0, 1.0), 100), points[..9]);
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
