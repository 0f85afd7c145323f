//! `report.html` of a task: its funnel, accuracies, losses, samples, sizes and grade on one self-contained page.

mod figures;
mod tables;

use crate::config::reason::ReasonConfig;
use crate::protocol::{BudgetReport, FunnelReport, GradeReport, Reject, TestReport};
use crate::train::report::page;
use crate::train::report::tables::config;

const STYLE: &str = include_str!("report/task.css");

const TITLE: &str = "Unit conversion";

/// What a page tells. What is missing is left out.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// The settings.
    pub config: ReasonConfig,
    /// Tests in the order of the stages.
    pub tests: Vec<TestReport>,
    /// What became of a rollout's samples.
    pub funnel: Option<FunnelReport>,
    /// Questions without a right sample.
    pub rejects: Vec<Reject>,
    /// The points.
    pub grade: Option<GradeReport>,
    /// What limits the adapters.
    pub budget: Option<BudgetReport>,
    /// Training losses of every run that there was: its name, updates and losses.
    pub losses: Vec<(String, Vec<(u32, f64)>)>,
    /// What was written, with its bytes.
    pub sizes: Vec<(String, u64)>,
    /// What deserves attention, a sentence each.
    pub warnings: Vec<String>,
}

/// The page.
pub fn html(story: &Story) -> String {
    let funnel = story.funnel.as_ref();
    let body = [
        tables::header(story),
        tables::tiles(story),
        funnel.map(figures::funnel).unwrap_or_default(),
        figures::accuracies(&story.tests),
        tables::accuracies(&story.tests),
        funnel.map(tables::yields).unwrap_or_default(),
        figures::losses(&story.losses),
        story.grade.as_ref().map(tables::grade).unwrap_or_default(),
        tables::budget(story.budget.as_ref(), &story.sizes),
        story.tests.iter().map(tables::samples).collect(),
        tables::rejects(&story.rejects),
        tables::warnings(&story.warnings),
        config(&story.config.to_yaml()),
    ];
    page(TITLE, STYLE, &body.concat())
}

/// What a test is called.
fn named(what: &str) -> &str {
    match what {
        "base" => "Student alone",
        "adapter" => "Adapter",
        "cot" => "CoT",
        "sft" => "SFT",
        "rft" => "RFT",
        what => what,
    }
}

/// An answer, rounded to three decimals.
fn answer(number: f64) -> String {
    match number {
        x if x.is_nan() => "no number".into(),
        x if x.abs() >= 1e15 => format!("{x:e}"),
        x => ((x * 1000.0).round() / 1000.0).to_string(),
    }
}

/// `60 %`, `60.5 %`
fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * if share.is_finite() { share } else { 0.0 });
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

/// A part as a share; 0 of nothing.
fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::protocol::{Capped, GradeCase, Reply, Tally};

    const EVIL: &str = "<script>alert('6 kg')</script> & \"so\" </pre>";

    fn kinds(counts: &[(&str, u64, u64, u64)]) -> BTreeMap<String, Tally> {
        counts.iter().map(|(kind, asked, answered, right)| (kind.to_string(), tally(*asked, *answered, *right))).collect()
    }

    fn tally(asked: u64, answered: u64, right: u64) -> Tally {
        Tally { asked, answered, right }
    }

    fn test(what: &str, right: [u64; 4], evil: &str) -> TestReport {
        let names = ["data", "length", "mass", "time"];
        let counts: Vec<_> = names.iter().zip(right).map(|(name, right)| (*name, 25, 24, right)).collect();
        let reply = |right: bool, found| Reply {
            question: format!("How many gram are there per 6 kg? {evil}"),
            expected: 6000.0,
            found,
            right,
            text: format!("1 kg = 1000 g. 6 * 1000 = <answer>{}</answer>{evil}", answer(found)),
        };
        TestReport {
            what: what.into(),
            all: tally(100, 96, right.iter().sum()),
            kinds: kinds(&counts),
            replies: vec![reply(true, 6000.0), reply(false, f64::NAN), reply(false, 600.0), reply(true, 6001.0)],
            tokens: 3200,
            secs: 13.0,
        }
    }

    /// A task that went as the reference's did; `evil` stands in every text.
    fn story(evil: &str) -> Story {
        let case = |name: &str, score, points, value, remark: &str| GradeCase {
            name: format!("{name}{evil}"),
            score,
            points,
            value,
            remark: format!("{remark}{evil}"),
            secs: 12.5,
        };
        let curve = |steps: u32, from: f64| {
            (1..=steps).map(|step| (step, from / (1.0 + f64::from(step) / 20.0) + 0.05 * f64::from(step % 3))).collect()
        };
        Story {
            config: ReasonConfig { system: format!("be concise{evil}"), student: format!("M{evil}"), ..ReasonConfig::default() },
            tests: vec![test("cot", [8, 15, 14, 9], evil), test("sft", [15, 20, 19, 14], evil), test("rft", [18, 21, 22, 16], evil)],
            funnel: Some(FunnelReport {
                questions: 1000,
                done: 1000,
                per_question: 10,
                samples: 10_000,
                answered: 9120,
                right: 4310,
                kept: 859,
                duplicates: 340,
                solved: 859,
                pass_at_1: 0.431,
                kinds: kinds(&[
                    ("data", 200, 190, 150),
                    ("length", 400, 390, 372),
                    ("mass", 250, 250, 240),
                    (&format!("x{evil}"), 150, 120, 97),
                ]),
                tokens: 412_000,
                secs: 1490.0,
                eta_secs: 0.0,
            }),
            rejects: vec![crate::protocol::Reject { question: format!("q{evil}"), expected: 0.125, samples: vec![format!("s{evil}")] }],
            grade: Some(GradeReport {
                cases: vec![
                    case("Generate", 10, 10, 6.01, ""),
                    case("Batched generate", 15, 15, 6.02, ""),
                    case("CoT", 25, 25, 0.46, "answer rate 0.96"),
                    case("SFT", 25, 25, 0.68, "answer rate 1"),
                    case("RFT", 0, 25, f64::NAN, "Timeout after 60 s"),
                ],
            }),
            budget: Some(BudgetReport {
                parameters: Capped { used: 370_504_640, cap: 380_000_000 },
                bundle_bytes: Capped { used: 52_100_000, cap: 50_000_000 },
                device_bytes: Capped { used: 3 << 30, cap: 15 << 30 },
                ranks: [8, 16],
                largest_ranks: [33, 11],
            }),
            losses: vec![(format!("SFT{evil}"), curve(160, 3.0)), ("rft".into(), curve(110, 1.5))],
            sizes: vec![(format!("sft/adapter{evil}"), 17_400_000), ("rft/adapter".into(), 34_700_000)],
            warnings: vec![format!("3 questions stand in both files{evil}")],
        }
    }

    #[test]
    fn a_page_needs_nothing_but_itself() {
        let page = html(&story(""));
        for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn text_of_the_task_cannot_become_markup() {
        let (page, harmless) = (html(&story(EVIL)), html(&story("")));
        for tag in ["<script>", "</script>", "</pre>", "<answer>", "<"] {
            assert_eq!(page.matches(tag).count(), harmless.matches(tag).count(), "{tag}");
        }
        assert!(page.contains("&lt;script&gt;alert(&#39;6 kg&#39;)") && !page.contains("alert('6"));
    }

    #[test]
    fn a_page_shows_every_part_of_the_task() {
        let page = html(&story(""));
        for part in [
            "CoT",
            "46 %",
            "68 %",
            "77 %",
            "9,120",
            "43.1 %",
            "no number",
            "Yield by kind",
            "Loss of RFT",
            "Timeout after 60 s",
            "75 / 100",
            "380,000,000",
            "50 MB",
            "2.1 MB too many",
            "0.125",
            "stand in both files",
            "sft_learning_rate",
            "17.4 MB",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let page = html(&Story::default());
        assert!(page.contains("Configuration"));
        for part in ["<figure", "Grade", "Budget", "Accuracy by"] {
            assert!(!page.contains(part), "{part}");
        }
        let nothing = Story {
            tests: vec![TestReport { what: "cot".into(), ..TestReport::default() }],
            funnel: Some(FunnelReport::default()),
            grade: Some(GradeReport::default()),
            budget: Some(BudgetReport::default()),
            losses: vec![("SFT".into(), vec![(1, f64::NAN)]), ("RFT".into(), Vec::new())],
            ..Story::default()
        };
        assert!(!html(&nothing).contains("NaN"));
    }
}
