//! The words and numbers of a task's page.

use super::figures::kinds;
use super::{Story, TITLE, answer, named, percent, share};
use crate::protocol::{BudgetReport, Capped, FunnelReport, GradeReport, Reject, Reply, Tally, TestReport};
use crate::train::log::duration;
use crate::train::report::plot::{escape, swatch};
use crate::train::report::tables::grouped;

/// Right replies of a test that are shown, and wrong ones.
const REPLIES: usize = 4;
/// Rejects that are shown.
const REJECTS: usize = 12;
/// Characters of a text that are shown.
const MOST: usize = 600;

/// Name, models and seed.
pub(super) fn header(story: &Story) -> String {
    let config = &story.config;
    let facts = [format!("student {}", config.student), format!("teacher {}", config.teacher), format!("seed {}", config.seed)];
    let facts: String = facts.iter().map(|fact| format!("<span>{}</span>", escape(fact))).collect();
    format!("<header class=\"wide\"><h1>{TITLE}</h1><p class=\"facts\">{facts}</p></header>")
}

/// The numbers that people look for first.
pub(super) fn tiles(story: &Story) -> String {
    let mut tiles: Vec<(String, String, String)> = Vec::new();
    for test in story.tests.iter().rev().take(3).rev() {
        let rate = format!("{} answered", percent(test.all.answer_rate()));
        tiles.push((format!("{}: right answers", named(&test.what)), percent(test.all.accuracy()), rate));
    }
    if let Some(funnel) = &story.funnel {
        tiles.push(("Reasoning kept".into(), grouped(funnel.kept), format!("{} of the questions solved", percent(funnel.pass_at_k()))));
    }
    if let Some(grade) = &story.grade {
        tiles.push(("Grade".into(), format!("{} / {}", grade.score(), grade.points()), format!("{} parts", grade.cases.len())));
    }
    if let Some(BudgetReport { bundle_bytes: Capped { used, cap }, .. }) = &story.budget {
        let cap = if *cap > 0 { format!("of {}", megabytes(*cap)) } else { String::new() };
        tiles.push(("Both adapters".into(), megabytes(*used), cap));
    }
    let tiles: String = tiles
        .iter()
        .map(|(name, value, note)| {
            let [name, value, note] = [name, value, note].map(|text| escape(text));
            format!("<div class=\"tile\"><h3>{name}</h3><strong>{value}</strong><small>{note}</small></div>")
        })
        .collect();
    if tiles.is_empty() { tiles } else { format!("<section class=\"tiles wide\">{tiles}</section>") }
}

/// A card of half the page's width, or of all of it; `body` is markup.
fn card(class: &str, title: &str, body: &str) -> String {
    format!("<section class=\"card {class}\"><h2>{title}</h2>{body}</section>")
}

/// A table; headings that begin with `>` and what stands below them are numbers. All cells are markup.
fn table(headings: &[String], rows: &[Vec<String>]) -> String {
    let class = |i: usize| if headings.get(i).is_some_and(|heading| heading.starts_with('>')) { " class=\"num\"" } else { "" };
    let head: String =
        headings.iter().enumerate().map(|(i, heading)| format!("<th{}>{}</th>", class(i), heading.trim_start_matches('>'))).collect();
    let cells = |row: &Vec<String>| row.iter().enumerate().map(|(i, cell)| format!("<td{}>{cell}</td>", class(i))).collect::<String>();
    let rows: String = rows.iter().map(|row| format!("<tr>{}</tr>", cells(row))).collect();
    format!("<div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
}

fn headings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// The numbers of the tests: a row each.
pub(super) fn accuracies(tests: &[TestReport]) -> String {
    let tests: Vec<&TestReport> = tests.iter().filter(|test| test.all.asked > 0).collect();
    if tests.is_empty() {
        return String::new();
    }
    let kinds = kinds(&tests);
    let names = kinds.iter().map(|kind| format!(">{}", escape(kind)));
    let heads: Vec<String> = headings(&["Stage", ">Questions", ">Accuracy", ">Answer rate"])
        .into_iter()
        .chain(names)
        .chain([">Tokens per second".into()])
        .collect();
    let rows: Vec<Vec<String>> = tests
        .iter()
        .enumerate()
        .map(|(i, test)| {
            let TestReport { what, all, tokens, secs, .. } = test;
            let of = |kind: &&str| test.kinds.get(*kind).map_or("–".into(), |Tally { asked, right, .. }| format!("{right} / {asked}"));
            let name = format!("<span class=\"part\">{}<b>{}</b></span>", swatch(i), escape(named(what)));
            let speed = if *secs > 0.0 { grouped((*tokens as f64 / secs).round() as u64) } else { "–".into() };
            let shares = [grouped(all.asked), percent(all.accuracy()), percent(all.answer_rate())];
            [name].into_iter().chain(shares).chain(kinds.iter().map(of)).chain([speed]).collect()
        })
        .collect();
    card("wide", "Right answers by stage", &table(&heads, &rows))
}

/// What a rollout yielded for every kind of unit.
pub(super) fn yields(report: &FunnelReport) -> String {
    if report.kinds.is_empty() {
        return String::new();
    }
    let row = |(kind, tally): (&String, &Tally)| {
        let Tally { asked, answered, right } = *tally;
        let parts = [("good", right), ("wrong", answered.saturating_sub(right)), ("lost", asked.saturating_sub(answered))];
        let bars = parts.map(|(class, part)| format!("<i class=\"{class}\" style=\"width:{:.2}%\"></i>", 100.0 * share(part, asked)));
        let bar = format!("<div class=\"stack\">{}</div>", bars.concat());
        vec![format!("<b>{}</b>", escape(kind)), grouped(asked), percent(tally.answer_rate()), percent(tally.accuracy()), bar]
    };
    let rows: Vec<Vec<String>> = report.kinds.iter().map(row).collect();
    let heads = headings(&["Unit", ">Questions", ">Answered", ">Solved", ""]);
    let legend =
        "<p class=\"hint\"><i class=\"good\"></i>solved <i class=\"wrong\"></i>answered, never rightly <i class=\"lost\"></i>no number</p>";
    card("wide yields", "Yield by kind of unit", &format!("{legend}{}", table(&heads, &rows)))
}

/// The parts of the grade and their sum.
pub(super) fn grade(report: &GradeReport) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for case in &report.cases {
        let value = if case.value.is_finite() { format!("{:.4}", case.value) } else { "–".into() };
        let points = format!("{} / {}", case.score, case.points);
        let bar = gauge(f64::from(case.score) / f64::from(case.points.max(1)), case.score > 0);
        rows.push(vec![format!("<b>{}</b>", escape(&case.name)), points, bar, value, escape(&case.remark), escape(&duration(case.secs))]);
    }
    let sum = format!("<b>{} / {}</b>", report.score(), report.points());
    rows.push(vec!["<b>Total</b>".into(), sum, String::new(), String::new(), String::new(), String::new()]);
    let heads = headings(&["Part", ">Points", "", ">Loss or accuracy", "", ">Time"]);
    card("wide", "Grade", &table(&heads, &rows))
}

/// Caps of the adapters, and the sizes of what was written.
pub(super) fn budget(budget: Option<&BudgetReport>, sizes: &[(String, u64)]) -> String {
    let mut body = String::new();
    if let Some(BudgetReport { parameters, bundle_bytes, device_bytes, ranks: [sft, rft], largest_ranks: [params, bundle] }) = budget {
        let mut rows = vec![capped("Parameters", parameters, grouped), capped("Bundle", bundle_bytes, megabytes)];
        if device_bytes.used > 0 {
            rows.push(capped("Device memory", device_bytes, megabytes));
        }
        body += &table(&headings(&["", ">Used", ">At most", "", ""]), &rows);
        body += &format!(
            "<p class=\"hint\">Ranks: {sft} for answers, {rft} for reasoning. The largest that fits the parameters is {params}, the largest of \
             which two fit the bundle {bundle}.</p>"
        );
    }
    if !sizes.is_empty() {
        let rows: Vec<Vec<String>> = sizes.iter().map(|(name, size)| vec![escape(name), megabytes(*size)]).collect();
        body += &table(&headings(&["File", ">Size"]), &rows);
    }
    if body.is_empty() { body } else { card("wide", "Budget and sizes", &body) }
}

fn capped(name: &str, quantity: &Capped, write: fn(u64) -> String) -> Vec<String> {
    let Capped { used, cap } = *quantity;
    let known = cap > 0 && cap < u64::MAX / 2;
    let cells = match known {
        true => [write(cap), gauge(share(used, cap), quantity.fits())],
        false => ["–".into(), String::new()],
    };
    let over = if known && !quantity.fits() { format!("<b class=\"bad\">{} too many</b>", write(used - cap)) } else { String::new() };
    [format!("<b>{name}</b>"), write(used)].into_iter().chain(cells).chain([over]).collect()
}

/// A bar that is filled by a share.
fn gauge(share: f64, good: bool) -> String {
    let class = if good { "good" } else { "over" };
    format!("<div class=\"stack\"><i class=\"{class}\" style=\"width:{:.2}%\"></i></div>", 100.0 * share.clamp(0.0, 1.0))
}

/// Some replies of a test, right and wrong ones.
pub(super) fn samples(test: &TestReport) -> String {
    let (right, wrong): (Vec<&Reply>, Vec<&Reply>) = test.replies.iter().partition(|reply| reply.right);
    let cards: String = right.into_iter().take(REPLIES).chain(wrong.into_iter().take(REPLIES)).map(reply).collect();
    if cards.is_empty() {
        return cards;
    }
    card("wide", &format!("What {} wrote", escape(named(&test.what))), &format!("<ol class=\"samples\">{cards}</ol>"))
}

fn reply(reply: &Reply) -> String {
    let Reply { question, expected, found, right, text } = reply;
    let (class, word) = if *right { ("good", "right") } else { ("bad", "wrong") };
    let numbers = if *right { answer(*found) } else { format!("{}, expected {}", answer(*found), answer(*expected)) };
    format!(
        "<li><h3><b class=\"{class}\">{word}</b><span>{}</span></h3><pre><i>{}</i>\n{}</pre></li>",
        escape(&numbers),
        escape(question),
        escape(&cut(text))
    )
}

/// Questions that the teacher never got right.
pub(super) fn rejects(rejects: &[Reject]) -> String {
    let card_of = |reject: &Reject| {
        let Reject { question, expected, samples } = reject;
        let written = samples.first().map(|sample| cut(sample)).unwrap_or_default();
        format!(
            "<li><h3>{} samples<span>expected {}</span></h3><pre><i>{}</i>\n{}</pre></li>",
            grouped(samples.len() as u64),
            escape(&answer(*expected)),
            escape(question),
            escape(&written)
        )
    };
    let cards: String = rejects.iter().take(REJECTS).map(card_of).collect();
    if cards.is_empty() {
        return cards;
    }
    let title = format!("Without a right sample: {} questions", grouped(rejects.len() as u64));
    card("wide", &title, &format!("<ol class=\"samples\">{cards}</ol>"))
}

/// What deserves attention.
pub(super) fn warnings(warnings: &[String]) -> String {
    let lines: String = warnings.iter().map(|text| format!("<li><b>Warning</b>{}</li>", escape(text))).collect();
    if lines.is_empty() { lines } else { card("wide", "Trouble", &format!("<ul class=\"trouble\">{lines}</ul>")) }
}

/// The beginning of a text.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// `17.4 MB`, `3.2 GB`: a million bytes each, as limits of files are given, or a thousand million.
fn megabytes(bytes: u64) -> String {
    let (number, unit) = if bytes < 1_000_000_000 { (bytes as f64 / 1e6, "MB") } else { (bytes as f64 / 1e9, "GB") };
    let text = format!("{number:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}
