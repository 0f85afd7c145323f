//! Plots as inline SVG: axes, lines, areas, stages; the numbers lie beside them for the pointer.

use std::fmt::Write;

/// Points of a line, in order of x.
pub(crate) type Points = Vec<(f64, f64)>;

/// Most points of a drawn line.
const MOST_POINTS: usize = 1000;

/// How the pointer's numbers are written; the page's script knows these names.
#[derive(Clone, Copy)]
pub(crate) enum Format {
    Plain,
    Scientific,
    Percent,
    Count,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Scientific => "scientific",
            Self::Percent => "percent",
            Self::Count => "count",
        }
    }

    fn tick(self, y: f64) -> String {
        match self {
            Self::Percent => format!("{:.0} %", 100.0 * y),
            Self::Scientific if y == 0.0 => "0".into(),
            Self::Scientific => format!("{y:.1e}"),
            Self::Count if y >= 1e6 => format!("{}M", trim(y / 1e6)),
            Self::Count if y >= 1e3 => format!("{}K", trim(y / 1e3)),
            _ => trim(y),
        }
    }
}

/// One line of a plot.
pub(crate) struct Line {
    pub name: String,
    /// Place in the palette; `None`: the colour of the text.
    pub color: Option<usize>,
    pub points: Points,
    pub look: Look,
}

/// How a line is drawn.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Look {
    /// A plain line.
    Solid,
    /// The restless numbers behind a smoothed line.
    Faint,
    /// Few points, each with a mark.
    Dotted,
    /// A filled band between this line and the one before; the pointer shows the difference.
    Area,
    /// A dashed line, without a number of its own.
    Dashed,
}

/// A plot with its frame.
pub(crate) struct Plot {
    pub title: String,
    pub note: String,
    pub wide: bool,
    pub format: Format,
    pub lines: Vec<Line>,
    /// First step, last step and name of every stage.
    pub stages: Vec<(f64, f64, String)>,
    /// Whether y begins at 0.
    pub from_zero: bool,
    /// Largest y where it is known beforehand.
    pub top: Option<f64>,
    /// First and last x, the same in all plots of a page.
    pub x: (f64, f64),
}

struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scale = |x: f64| if self.log { x.max(self.low * 1e-3).ln() } else { x };
        let share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        self.from + share * (self.to - self.from)
    }

    /// Round values that divide the axis into about `count` parts.
    fn ticks(&self, count: usize) -> Vec<f64> {
        if self.log && self.high / self.low > 8.0 {
            let digits: &[f64] = if self.high / self.low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let ticks = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
            return ticks.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let step = round_step(self.high - self.low, count as f64);
        let first = (self.low / step - 1e-6).ceil() as i64;
        let last = (self.high / step + 1e-6).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// Of 1, 2, 5 × a power of ten what divides `range` most nearly into `count` parts.
fn round_step(range: f64, count: f64) -> f64 {
    let power = 10f64.powf((range / count).max(1e-300).log10().floor());
    let misfit = |step: &f64| (range / step - count).abs();
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    steps.into_iter().min_by(|a, b| misfit(a).total_cmp(&misfit(b))).unwrap_or(power)
}

impl Plot {
    /// The figure; empty where there is nothing to draw.
    pub fn html(mut self) -> String {
        for line in &mut self.lines {
            line.points.retain(|(x, y)| x.is_finite() && y.is_finite());
            if line.look != Look::Area {
                line.points = thin(std::mem::take(&mut line.points));
            }
        }
        self.lines.retain(|line| !line.points.is_empty());
        let Some((x, y)) = self.axes() else { return String::new() };
        let mut svg = String::new();
        self.draw_frame(&mut svg, &x, &y);
        let mut floor: Option<Points> = None;
        for line in &self.lines {
            draw(&mut svg, line, floor.as_ref(), &x, &y);
            floor = Some(line.points.clone());
        }
        let _ = write!(svg, "<line class=\"cursor\" y1=\"{:.0}\" y2=\"{:.0}\"/>", y.to, y.from);
        let (width, height) = self.size();
        let class = if self.wide { "card plot wide" } else { "card plot" };
        let note = if self.note.is_empty() { String::new() } else { format!("<p>{}</p>", escape(&self.note)) };
        format!(
            "<figure class=\"{class}\"><figcaption><h2>{title}</h2>{note}{}</figcaption><div class=\"scroll\">\
             <svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{title}\">{svg}</svg></div>\
             <script type=\"application/json\">{}</script></figure>",
            self.legend(),
            self.numbers(&x),
            title = escape(&self.title),
        )
    }

    /// Whether there is anything to draw.
    pub fn has_points(&self) -> bool {
        self.lines.iter().flat_map(|line| &line.points).any(|(x, y)| x.is_finite() && y.is_finite())
    }

    fn size(&self) -> (f64, f64) {
        if self.wide { (1120.0, 340.0) } else { (540.0, 260.0) }
    }

    fn axes(&self) -> Option<(Axis, Axis)> {
        let (width, height) = self.size();
        let points = || self.lines.iter().flat_map(|line| &line.points);
        points().next()?;
        let (left, right) = (self.x.0, self.x.1.max(self.x.0 + 1.0));
        let (low, high) = points().fold((f64::MAX, f64::MIN), |(a, b), (_, y)| (a.min(*y), b.max(*y)));
        let log = !self.from_zero && low > 0.0 && high / low > 20.0;
        let flat = high - low < 1e-3 * high.abs(); // a constant lies in the middle
        let pad = if flat { 0.5 * high.abs() } else { 0.06 * (high - low) }.max(1e-12);
        let (low, high) = match (log, self.top) {
            (true, _) => (low * 0.85, high * 1.15),
            (false, Some(top)) => (0.0, top),
            (false, None) => (if self.from_zero { 0.0 } else { (low - pad).max(if low >= 0.0 { 0.0 } else { f64::MIN }) }, high + pad),
        };
        let x = Axis { low: left, high: right, log: false, from: 58.0, to: width - 14.0 };
        Some((x, Axis { low, high, log, from: height - 30.0, to: 24.0 }))
    }

    fn draw_frame(&self, svg: &mut String, x: &Axis, y: &Axis) {
        // 6.2: the usual width of a letter at this size.
        let fits = |text: &str, room: f64| text.chars().count() as f64 * 6.2 + 6.0 < room;
        let room = |start: &f64, end: &f64| x.place(end.min(x.high)) - x.place(start.max(x.low));
        // Names where all find room (but for stages too short for a number), else numbers.
        let names = self.stages.iter().all(|(start, end, name)| fits(name, room(start, end)) || !fits("1", room(start, end)));
        for (i, (start, end, name)) in self.stages.iter().enumerate() {
            let (from, to) = (x.place(start.max(x.low)), x.place(end.min(x.high)));
            if to <= from {
                continue;
            }
            let room = to - from;
            if i % 2 == 1 {
                let _ = write!(
                    svg,
                    "<rect class=\"band\" x=\"{from:.1}\" y=\"{:.0}\" width=\"{room:.1}\" height=\"{:.0}\"/>",
                    y.to,
                    y.from - y.to
                );
            }
            let label = if names { name.clone() } else { (i + 1).to_string() };
            if fits(&label, room) {
                let _ =
                    write!(svg, "<text class=\"stage\" x=\"{:.1}\" y=\"{:.0}\">{}</text>", (from + to) / 2.0, y.to - 8.0, escape(&label));
            }
        }
        for tick in y.ticks(5) {
            let at = y.place(tick);
            let _ = write!(svg, "<line class=\"grid\" x1=\"{:.0}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", x.from, x.to);
            let _ = write!(svg, "<text class=\"y\" x=\"{:.0}\" y=\"{:.1}\">{}</text>", x.from - 8.0, at + 4.0, self.format.tick(tick));
        }
        for tick in x.ticks(if self.wide { 10 } else { 5 }).into_iter().filter(|tick| tick.fract() == 0.0) {
            let at = x.place(tick);
            let anchor = if at > x.to - 12.0 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<text class=\"x\" style=\"text-anchor:{anchor}\" x=\"{at:.1}\" y=\"{:.0}\">{}</text>",
                y.from + 19.0,
                super::tables::grouped(tick as u64)
            );
        }
        let _ = write!(svg, "<line class=\"axis\" x1=\"{:.0}\" x2=\"{:.0}\" y1=\"{:.0}\" y2=\"{:.0}\"/>", x.from, x.to, y.from, y.from);
    }

    fn legend(&self) -> String {
        let shown: Vec<&Line> = self.lines.iter().filter(|line| line.look != Look::Faint && !line.name.is_empty()).collect();
        if shown.len() < 2 {
            return String::new();
        }
        let entries = shown.iter().map(|line| {
            let class = match line.look {
                Look::Area => "box",
                Look::Dashed => "dash",
                _ => "bar",
            };
            format!("<li><i class=\"{class}\" style=\"--c:{}\"></i>{}</li>", color(line.color), escape(&line.name))
        });
        format!("<ul class=\"legend\">{}</ul>", entries.collect::<String>())
    }

    /// What the script needs: the frame and the points, as JSON that cannot end its element.
    fn numbers(&self, x: &Axis) -> String {
        let mut below: Option<&Points> = None;
        let mut lines = Vec::new();
        for line in self.lines.iter().filter(|line| line.look != Look::Dashed) {
            let own = |i: usize, y: f64| match below {
                Some(floor) if line.look == Look::Area => y - floor.get(i).map_or(0.0, |point| point.1),
                _ => y,
            };
            let points: Vec<String> =
                line.points.iter().enumerate().map(|(i, (x, y))| format!("[{},{}]", trim(*x), json_number(own(i, *y)))).collect();
            let name = serde_json::Value::from(line.name.as_str()).to_string();
            lines.push(format!("{{\"name\":{name},\"color\":\"{}\",\"points\":[{}]}}", color(line.color), points.join(",")));
            below = Some(&line.points);
        }
        let json = format!(
            "{{\"format\":\"{}\",\"x\":[{},{}],\"px\":[{},{}],\"width\":{},\"lines\":[{}]}}",
            self.format.name(),
            x.low,
            x.high,
            x.from,
            x.to,
            self.size().0,
            lines.join(",")
        );
        json.replace('<', "\\u003c")
    }
}

fn draw(svg: &mut String, line: &Line, floor: Option<&Points>, x: &Axis, y: &Axis) {
    let path = |points: &mut dyn Iterator<Item = &(f64, f64)>| {
        let mut path = String::new();
        for (px, py) in points {
            let _ = write!(path, "{}{:.1} {:.1}", if path.is_empty() { 'M' } else { 'L' }, x.place(*px), y.place(*py));
        }
        path
    };
    let color = color(line.color);
    let d = path(&mut line.points.iter());
    match line.look {
        Look::Area => {
            let base: Points = line.points.iter().map(|point| (point.0, 0.0)).collect();
            let back = path(&mut floor.unwrap_or(&base).iter().rev()).replacen('M', "L", 1);
            let _ = write!(svg, "<path class=\"area\" style=\"fill:{color}\" d=\"{d}{back}Z\"/>");
        }
        Look::Faint => drop(write!(svg, "<path class=\"faint\" style=\"stroke:{color}\" d=\"{d}\"/>")),
        Look::Dashed => drop(write!(svg, "<path class=\"dashed\" style=\"stroke:{color}\" d=\"{d}\"/>")),
        Look::Solid | Look::Dotted => drop(write!(svg, "<path class=\"line\" style=\"stroke:{color}\" d=\"{d}\"/>")),
    }
    if line.look == Look::Dotted || line.points.len() == 1 {
        for (px, py) in line.points.iter().take(200) {
            let _ = write!(svg, "<circle style=\"fill:{color}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"/>", x.place(*px), y.place(*py));
        }
    }
}

/// At most [`MOST_POINTS`] points: of every piece the lowest and the highest, so that no spike is lost.
fn thin(points: Points) -> Points {
    if points.len() <= MOST_POINTS {
        return points;
    }
    let size = points.len().div_ceil(MOST_POINTS / 2);
    let ends = (points[0], points[points.len() - 1]);
    let mut kept = vec![ends.0];
    for piece in points.chunks(size) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut pair: Points = piece.iter().min_by(by_y).into_iter().chain(piece.iter().max_by(by_y)).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        kept.append(&mut pair);
    }
    kept.push(ends.1);
    kept.dedup();
    kept
}

/// Mean of the `span` points around each, never across the end of a stage, where the mix changes.
pub(crate) fn smooth(points: &[(f64, f64)], span: usize, stage_ends: &[f64]) -> Points {
    let mut smoothed = Points::new();
    let finite: Points = points.iter().filter(|(_, y)| y.is_finite()).copied().collect();
    for piece in finite.chunk_by(|a, b| !stage_ends.iter().any(|end| a.0 <= *end && *end < b.0)) {
        let mut sums = vec![0.0];
        sums.extend(piece.iter().scan(0.0, |sum, (_, y)| {
            *sum += y;
            Some(*sum)
        }));
        for (i, (x, _)) in piece.iter().enumerate() {
            let (from, to) = (i.saturating_sub(span / 2), (i + span.div_ceil(2)).min(piece.len()));
            smoothed.push((*x, (sums[to] - sums[from]) / (to - from) as f64));
        }
    }
    smoothed
}

/// The page's colour for a source.
pub(crate) fn color(place: Option<usize>) -> String {
    match place {
        Some(place) => format!("var(--c{})", place % 8),
        None => "var(--ink)".into(),
    }
}

/// A small square in the colour of a source.
pub(crate) fn swatch(place: usize) -> String {
    format!("<i class=\"box\" style=\"--c:{}\"></i>", color(Some(place)))
}

/// Text that cannot become markup.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Up to five digits, no zeros at the end.
fn trim(x: f64) -> String {
    let digits = if x == 0.0 { 0 } else { (4 - x.abs().log10().floor() as i32).clamp(0, 12) };
    let text = format!("{x:.*}", digits as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

fn json_number(x: f64) -> String {
    if x.is_finite() { trim(x) } else { "null".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_every_spike_and_the_order() {
        let mut points: Points = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[4321].1 = 99.0;
        points[77].1 = -99.0;
        let thinned = thin(points);
        assert!(thinned.len() <= MOST_POINTS + 2 && thinned[0].0 == 0.0 && thinned[thinned.len() - 1].0 == 9999.0);
        assert!(thinned.contains(&(4321.0, 99.0)) && thinned.contains(&(77.0, -99.0)));
        assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn smoothing_keeps_a_constant_and_skips_what_is_no_number() {
        let points: Points = (0..50).map(|i| (f64::from(i), if i == 3 { f64::NAN } else { 2.5 })).collect();
        let smoothed = smooth(&points, 10, &[]);
        assert_eq!(smoothed.len(), 49);
        assert!(smoothed.iter().all(|(_, y)| (y - 2.5).abs() < 1e-12));
    }

    #[test]
    fn smoothing_does_not_reach_across_stages() {
        let points: Points = (1..=40).map(|i| (f64::from(i), if i <= 20 { 1.0 } else { 9.0 })).collect();
        assert!(smooth(&points, 10, &[20.0]).iter().all(|(x, y)| *y == if *x <= 20.0 { 1.0 } else { 9.0 }));
        assert!(smooth(&points, 10, &[]).iter().any(|(_, y)| *y > 1.0 && *y < 9.0));
        assert_eq!(smooth(&points, 1, &[]), points);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |low, high, log| Axis { low, high, log, from: 0.0, to: 1.0 };
        assert_eq!(axis(0.0, 5050.0, false).ticks(5), [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]);
        assert_eq!(axis(0.0, 1.0, false).ticks(2), [0.0, 0.5, 1.0]);
        let ticks: Vec<String> = axis(0.045, 12.0, true).ticks(4).into_iter().map(trim).collect();
        assert_eq!(ticks, ["0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]);
    }

    #[test]
    fn numbers_are_short() {
        for (x, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (5050.0, "5050"),
            (0.000_599_99, "0.00059999"),
            (4.123_456, "4.1235"),
            (1e6, "1000000"),
            (-0.25, "-0.25"),
        ] {
            assert_eq!(trim(x), text);
        }
    }
}
