//! The table of the reference's grader: what its parts are worth, and how many points a measured value gets.

use crate::protocol::GradeCase;

/// A part of the grade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// What is looked at.
    pub name: &'static str,
    /// Most points, extra credit left out.
    pub points: u32,
    /// Seconds that it may take.
    pub limit_secs: f64,
    /// How its value becomes points.
    pub bounds: Bounds,
}

/// How a value becomes a share of the points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bounds {
    /// A loss: all points at `full` and below, none at `none` and above.
    Loss {
        /// Where there are no points any more.
        none: f64,
        /// Where there are all.
        full: f64,
    },
    /// An accuracy: no points at `none` and below, all at `full` and above.
    Accuracy {
        /// Up to which there are no points.
        none: f64,
        /// From where on there are all.
        full: f64,
        /// Whether there are up to 5 more from there to 0.1 above it.
        extra: bool,
    },
}

/// Extra credit, and how much accuracy gives all of it.
const EXTRA: (f64, f64) = (5.0, 0.1);

/// The parts in order.
pub const PARTS: [Part; 5] = [
    part("Generate: one question after the other", 10, 40.0, LOSS),
    part("Batched generate: questions side by side", 15, 15.0, LOSS),
    part("CoT: worked examples before the question", 25, 60.0, Bounds::Accuracy { none: 0.0, full: 0.4, extra: false }),
    part("SFT: the adapter that gives answers", 25, 60.0, Bounds::Accuracy { none: 0.4, full: 0.6, extra: false }),
    part("RFT: the adapter that gives reasoning", 25, 60.0, Bounds::Accuracy { none: 0.6, full: 0.7, extra: true }),
];

const LOSS: Bounds = Bounds::Loss { none: 8.0, full: 6.2 };

const fn part(name: &'static str, points: u32, limit_secs: f64, bounds: Bounds) -> Part {
    Part { name, points, limit_secs, bounds }
}

impl Bounds {
    /// The share of the points that a value gets, more than 1 with extra credit; NaN gets NaN.
    fn share(self, value: f64, points: u32) -> f64 {
        match self {
            Self::Loss { none, full } => (1.0 - (value - full) / (none - full)).clamp(0.0, 1.0),
            Self::Accuracy { none, full, extra } => {
                let share = ((value - none) / (full - none)).clamp(0.0, 1.0);
                let more = if extra { ((value - full) / EXTRA.1).clamp(0.0, 1.0) * EXTRA.0 / f64::from(points) } else { 0.0 };
                share + more
            }
        }
    }
}

impl Part {
    /// Its line for a value that was found in so many seconds; `remark` is what else there is to say.
    pub fn marked(&self, value: f64, remark: String, secs: f64, limited: bool) -> GradeCase {
        let points = f64::from(self.points);
        let score = (self.bounds.share(value, self.points) * points + 0.5) as u32; // NaN: 0
        let case = GradeCase { name: self.name.into(), score, points: self.points, value, remark, secs };
        match limited && secs > self.limit_secs {
            true => GradeCase { score: 0, remark: format!("Timeout after {secs:.2} s, {:.0} s are the most", self.limit_secs), ..case },
            false => case,
        }
    }

    /// Its line where there is nothing to measure.
    pub fn failed(&self, why: String, secs: f64) -> GradeCase {
        GradeCase { name: self.name.into(), score: 0, points: self.points, value: f64::NAN, remark: why, secs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(part: usize, value: f64, expect: u32) {
        assert_eq!(PARTS[part].marked(value, String::new(), 1.0, true).score, expect);
    }

    #[test]
    fn points_are_those_of_the_reference() {
        assert_eq!(PARTS.iter().map(|part| part.points).sum::<u32>(), 100);
        // Losses: (1 − (x − 6.2) / 1.8) · points + 0.5, cut.
        for (loss, one, side) in
            [(5.0, 10, 15), (6.2, 10, 15), (6.3, 9, 14), (7.0, 6, 8), (7.1, 5, 8), (7.9, 1, 1), (7.95, 0, 0), (8.0, 0, 0), (10.8, 0, 0)]
        {
            check(0, loss, one);
            check(1, loss, side);
        }
        for (accuracy, points) in [(0.0, 0), (0.01, 1), (0.2, 13), (0.39, 24), (0.4, 25), (1.0, 25)] {
            check(2, accuracy, points);
        }
        for (accuracy, points) in [(0.0, 0), (0.4, 0), (0.41, 1), (0.5, 13), (0.59, 24), (0.6, 25), (0.71, 25), (1.0, 25)] {
            check(3, accuracy, points);
        }
        for (accuracy, points) in [(0.6, 0), (0.65, 13), (0.7, 25), (0.71, 26), (0.76, 28), (0.78, 29), (0.8, 30), (0.83, 30), (1.0, 30)] {
            check(4, accuracy, points);
        }
        (0..5).for_each(|part| check(part, f64::NAN, 0));
        check(0, f64::INFINITY, 0);
    }

    #[test]
    fn who_takes_too_long_gets_nothing() {
        for (secs, limited, score) in [(15.0, true, 15), (15.01, true, 0), (1e6, false, 15)] {
            let case = PARTS[1].marked(6.0, "fine".into(), secs, limited);
            assert_eq!(case.score, score, "{secs}");
            assert_eq!(case.value, 6.0);
            assert_eq!(case.remark, if score == 0 { "Timeout after 15.01 s, 15 s are the most" } else { "fine" });
        }
        let failed = PARTS[3].failed("Not Implemented".into(), 0.0);
        assert!((failed.score, failed.points) == (0, 25) && failed.value.is_nan());
    }
}
