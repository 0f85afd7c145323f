//! What a task tells, for people: budget, yield of a rollout, tests, grade, rejects.

use std::collections::BTreeMap;
use std::io;

use smolforge_engine::protocol::{BudgetReport, Capped, Event, FunnelReport, GradeReport, Reject, Reply, Tally, TestReport};

use super::super::progress::{Screen, bold, red, yellow};
use super::super::table::Table;
use super::super::{is_last, train};
use crate::units::{amount, bytes, count, duration, limit, megabytes, one_line, percent, rate};

/// Right replies of a test that are shown, and wrong ones.
const SHOWN: usize = 3;
/// Characters of a reply that are shown.
const MOST: usize = 400;
/// Cells of a bar.
const WIDTH: usize = 24;

/// What was told before and is still needed.
#[derive(Default)]
pub struct Teller {
    budget: Option<BudgetReport>,
    /// Of a rollout whose table is still to be printed.
    funnel: Option<FunnelReport>,
    grade: Option<GradeReport>,
}

impl Teller {
    /// Shows an event. The tables of rollout and grade come when these are over, or when the job ends before.
    pub fn show(&mut self, screen: &Screen, event: &Event) -> io::Result<()> {
        match event {
            Event::Funnel(report) => self.funnel = Some(report.clone()),
            Event::Graded(report) => self.grade = Some(report.clone()),
            Event::Progress { .. } => {}
            event => {
                let over = |report: &mut FunnelReport| is_last(event) || report.done >= report.questions;
                self.funnel.take_if(over).map_or(Ok(()), |report| screen.println(format!("\n{}", funnel(&report))))?;
                self.grade.take_if(|_| is_last(event)).map_or(Ok(()), |report| screen.println(format!("\n{}", graded(&report))))?;
            }
        }
        match event {
            Event::Budget(report) if self.budget.as_ref() != Some(report) => {
                screen.line(budget(report));
                self.budget = Some(report.clone());
                Ok(())
            }
            Event::Tested(report) => screen.println(tested(report)),
            Event::Rejected { data, rejects } => screen.println(rejected(data, rejects)),
            event => {
                train::show(screen, event);
                Ok(())
            }
        }
    }
}

/// The budget bar: a line for every quantity with its cap, and the ranks.
fn budget(report: &BudgetReport) -> String {
    let BudgetReport { parameters, bundle_bytes, device_bytes, ranks: [sft, rft], largest_ranks: [by_parameters, by_bundle] } = report;
    let mut lines = vec![
        format!("{} parameters  {}", bold("budget"), capped(parameters, count, false)),
        format!("       bundle      {}", capped(bundle_bytes, megabytes, true)),
    ];
    if device_bytes.used > 0 {
        lines.push(format!("       device      {}", capped(device_bytes, bytes, false)));
    }
    lines.push(format!(
        "       ranks       {sft} for answers, {rft} for reasoning; the largest that fits: {by_parameters} by parameters, \
         {by_bundle} twice in the bundle, uncompressed"
    ));
    lines.join("\n")
}

/// `━━━━━━━━━━━━────────────  24 MB of 50 MB`; where no cap is known the quantity alone. What is still to be compressed may be
/// a little above its cap.
fn capped(quantity: &Capped, write: fn(u64) -> String, compressed: bool) -> String {
    let Capped { used, cap } = *quantity;
    if limit(cap) == "–" {
        return format!("{:WIDTH$}  {}", "", write(used));
    }
    let full = cells(used as f64 / cap as f64);
    let bar = format!("{}{}", "━".repeat(full), "─".repeat(WIDTH - full));
    let amounts = format!("{} of {}", write(used), write(cap));
    match quantity.fits() {
        true => format!("{bar}  {amounts}"),
        false if compressed => {
            let more = format!("{} too many, unless compression saves them", write(used - cap));
            format!("{}  {amounts}: {}", yellow(&bar), yellow(&more))
        }
        false => format!("{}  {amounts}: {}", red(&bar), red(&format!("{} too many", write(used - cap)))),
    }
}

/// How many cells of a bar a share fills.
fn cells(share: f64) -> usize {
    (WIDTH as f64 * share.clamp(0.0, 1.0)).round() as usize
}

/// What became of the samples of a rollout, and of its questions by kind of unit.
fn funnel(report: &FunnelReport) -> String {
    let FunnelReport { questions, done, per_question, samples, answered, right, kept, duplicates, solved, .. } = report;
    let mut table = Table::new(&["samples", ">number", ">share", ""]);
    for (name, number) in [("drawn", *samples), ("with a number", *answered), ("right", *right), ("kept", *kept)] {
        let share = number as f64 / (*samples).max(1) as f64;
        table.row([name.into(), count(number), percent(share), "━".repeat(cells(share))]);
    }
    let time =
        format!("{} in {} ({} tokens/s)", amount(report.tokens, "tokens"), duration(report.secs), rate(report.tokens as f64 / report.secs));
    format!(
        "{table}\n\n{} of {} done, {} solved · pass@1 {}, pass@{per_question} {} · {} kept, {duplicates} like one that was kept · {time}\n\n{}",
        count(*done),
        amount(*questions, "questions"),
        count(*solved),
        percent(report.pass_at_1),
        percent(report.pass_at_k()),
        amount(*kept, "rows"),
        kinds("questions by kind", ["done", "answered", "solved"], &report.kinds, None),
    )
}

/// The reference's line, a table by kind of unit, and replies.
fn tested(report: &TestReport) -> String {
    let TestReport { what, all, replies, tokens, secs, .. } = report;
    let mut text = format!(
        "\nbenchmark_result.accuracy={:?}  benchmark_result.answer_rate={:?}\n\n{}",
        all.accuracy(),
        all.answer_rate(),
        kinds(what, ["asked", "answered", "right"], &report.kinds, Some(all)),
    );
    if *tokens > 0 {
        text += &format!("\n{} in {} ({} tokens/s)", amount(*tokens, "tokens"), duration(*secs), rate(*tokens as f64 / secs));
    }
    let (right, wrong): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| reply.right);
    for (name, replies) in [("right", right), ("wrong", wrong)] {
        replies.iter().take(SHOWN).for_each(|reply| text += &format!("\n\n{name}  {}", sample(reply)));
    }
    text
}

/// A table of questions by kind of unit; `all` is their sum where it is to be shown.
fn kinds(name: &str, headings: [&str; 3], kinds: &BTreeMap<String, Tally>, all: Option<&Tally>) -> Table {
    let [asked, answered, right] = headings.map(|heading| format!(">{heading}"));
    let mut table = Table::new(&[name, &asked, &answered, &right]);
    let mut row = |name: &str, tally: &Tally| {
        table.row([name.into(), count(tally.asked), percent(tally.answer_rate()), percent(tally.accuracy())]);
    };
    kinds.iter().for_each(|(kind, tally)| row(kind, tally));
    all.into_iter().for_each(|all| row("together", all));
    table
}

fn sample(reply: &Reply) -> String {
    let Reply { question, expected, found, text, .. } = reply;
    format!("{}\n       expected {}, found {}\n       {:?}", one_line(question), answer(*expected), answer(*found), cut(text))
}

/// The beginning of what a model wrote.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// The reference's table.
fn graded(report: &GradeReport) -> String {
    let width = report.cases.iter().map(|case| case.name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for case in &report.cases {
        let value = if case.value.is_finite() { format!("{:.4}", case.value) } else { "–".into() };
        let remark = if case.remark.is_empty() { String::new() } else { format!("  {}", one_line(&case.remark)) };
        let points = format!("[ {:>2} / {:>2} ]", case.score, case.points);
        lines.push(format!("  - {:width$}  {points}  {value}{remark}  ({})", case.name, duration(case.secs)));
    }
    format!("{}\nTotal  {} / {}", lines.join("\n"), report.score(), report.points())
}

/// Questions without a right sample, with the first thing that was written.
fn rejected(data: &str, rejects: &[Reject]) -> String {
    let mut text = format!("{data}: {} without a right sample", amount(rejects.len() as u64, "questions"));
    for Reject { question, expected, samples } in rejects {
        let of = amount(samples.len() as u64, "samples");
        let written = samples.first().map(|sample| format!(", the first of {of}: {:?}", cut(sample))).unwrap_or_default();
        text += &format!("\n\n{question}\n  expected {}{written}", answer(*expected));
    }
    text
}

/// An answer, rounded to three decimals; `no number` where there is none.
fn answer(number: f64) -> String {
    match number {
        x if x.is_nan() => "no number".into(),
        x if x.abs() >= 1e15 => format!("{x:e}"),
        x => ((x * 1000.0).round() / 1000.0).to_string(),
    }
}

/// `301 kept · pass@1 38 %, pass@10 73.1 % · 812 tokens/s · ETA 3 min 05 s · 4,120 samples, 62 % answered, 38 % right`
pub fn yielded(report: &FunnelReport) -> String {
    let FunnelReport { samples, answered, right, kept, per_question, tokens, secs, .. } = report;
    let of_samples = |part: &u64| percent(*part as f64 / (*samples).max(1) as f64);
    let eta = if report.done < report.questions { format!(" · ETA {}", duration(report.eta_secs)) } else { String::new() };
    format!(
        "{} kept · pass@1 {}, pass@{per_question} {} · {} tokens/s{eta} · {}, {} answered, {} right",
        count(*kept),
        percent(report.pass_at_1),
        percent(report.pass_at_k()),
        rate(*tokens as f64 / secs),
        amount(*samples, "samples"),
        of_samples(answered),
        of_samples(right),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: &str, parts: &[&str]) {
        let found = console::strip_ansi_codes(found);
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in:\n{found}");
        }
    }

    fn tally(asked: u64, answered: u64, right: u64) -> Tally {
        Tally { asked, answered, right }
    }

    #[test]
    fn a_budget_shows_every_cap_and_what_is_over_it() {
        let report = BudgetReport {
            parameters: Capped { used: 370_504_640, cap: 380_000_000 },
            bundle_bytes: Capped { used: 52_000_000, cap: 50_000_000 },
            device_bytes: Capped { used: 3 << 30, cap: 0 },
            ranks: [8, 16],
            largest_ranks: [33, 11],
        };
        let text = budget(&report);
        check(&text, &["370,504,640 of 380,000,000", "52 MB of 50 MB: 2 MB too many, unless", "3.00 GiB\n", "33 by parameters, 11 twice"]);
        assert_eq!(text.lines().count(), 4);
        check(&capped(&Capped { used: 1, cap: 2 }, count, false), &["━━━━━━━━━━━━────────────  1 of 2"]);
        assert!(capped(&Capped { used: 3, cap: 2 }, count, false).ends_with("3 of 2: 1 too many"));
    }

    #[test]
    fn a_test_tells_its_numbers_in_the_words_of_the_reference() {
        let reply = |right, found| Reply { question: "6 kg?".into(), expected: 6000.0, found, right, text: "a\u{1b}\nb".into() };
        let report = TestReport {
            what: "cot".into(),
            all: tally(100, 96, 60),
            kinds: [("mass".to_string(), tally(50, 48, 30))].into(),
            replies: vec![reply(true, 6000.0), reply(false, f64::NAN)],
            tokens: 200,
            secs: 2.0,
        };
        check(
            &tested(&report),
            &[
                "benchmark_result.accuracy=0.6  benchmark_result.answer_rate=0.96\n",
                "mass         50      96 %   60 %",
                "together    100",
                "right  6 kg?\n       expected 6000, found 6000\n       \"a\\u{1b}\\nb\"",
                "wrong  6 kg?\n       expected 6000, found no number",
                "(100 tokens/s)",
            ],
        );
        check(&tested(&TestReport::default()), &["benchmark_result.accuracy=0.0  benchmark_result.answer_rate=0.0"]);
        assert_eq!(cut(&"é".repeat(1000)).chars().count(), MOST + 1);
    }

    #[test]
    fn a_grade_has_the_lines_of_the_reference() {
        let case = |name: &str, score, points, value, remark: &str| smolforge_engine::protocol::GradeCase {
            name: name.into(),
            score,
            points,
            value,
            remark: remark.into(),
            secs: 2.0,
        };
        let report =
            GradeReport { cases: vec![case("RFT", 28, 25, 0.77, "answer rate 1"), case("Generate", 0, 10, f64::NAN, "Timeout\nx")] };
        check(
            &graded(&report),
            &[
                "  - RFT       [ 28 / 25 ]  0.7700  answer rate 1  (2.00 s)\n",
                "  - Generate  [  0 / 10 ]  –  Timeout x  (2.00 s)\nTotal  28 / 35",
            ],
        );
    }

    #[test]
    fn a_funnel_tells_what_became_of_samples_and_of_every_kind() {
        let report = FunnelReport {
            questions: 4,
            done: 4,
            per_question: 10,
            samples: 40,
            answered: 30,
            right: 20,
            kept: 3,
            duplicates: 5,
            solved: 3,
            pass_at_1: 0.5,
            kinds: [("mass".to_string(), tally(4, 4, 3))].into(),
            ..FunnelReport::default()
        };
        check(
            &funnel(&report),
            &[
                "drawn",
                "with a number      30",
                "75 %",
                "pass@1 50 %, pass@10 75 %",
                "3 rows kept, 5 like one",
                "mass                  4     100 %    75 %",
            ],
        );
        check(&funnel(&FunnelReport::default()), &["0 of 0 questions"]);
    }

    #[test]
    fn rejects_are_listed_with_what_was_written() {
        let reject = Reject { question: "6 kg?".into(), expected: 6000.0, samples: vec!["60".into(), "600".into()] };
        check(&rejected("r.json", &[reject]), &["r.json: 1 question without", "6 kg?\n  expected 6000, the first of 2 samples: \"60\""]);
        check(&rejected("r.json", &[]), &["r.json: 0 questions without a right sample"]);
    }

    #[test]
    fn answers_have_three_decimals_at_most() {
        told(answer(6000.0), "6000");
        told(answer(0.333_333), "0.333");
        told(answer(f64::NAN), "no number");
        told(answer(f64::NEG_INFINITY), "-inf");
        told(answer(1e300), "1e300");
    }

    #[test]
    fn a_rollout_tells_its_yield_and_when_it_ends() {
        let report = FunnelReport {
            questions: 100,
            done: 40,
            per_question: 10,
            samples: 400,
            answered: 300,
            right: 100,
            kept: 20,
            solved: 20,
            pass_at_1: 0.25,
            tokens: 8000,
            secs: 10.0,
            eta_secs: 15.0,
            ..FunnelReport::default()
        };
        let line = |eta: &str| format!("20 kept · pass@1 25 %, pass@10 50 % · 800 tokens/s{eta} · 400 samples, 75 % answered, 25 % right");
        told(yielded(&report), &line(" · ETA 15 s"));
        told(yielded(&FunnelReport { questions: 40, ..report }), &line(""));
        assert!(yielded(&FunnelReport::default()).contains("– tokens/s"));
    }

    #[track_caller]
    fn told(text: String, expect: &str) {
        assert_eq!(text, expect);
    }
}
