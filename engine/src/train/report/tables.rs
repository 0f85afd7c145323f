//! The parts of the page that are words and numbers.

use std::collections::BTreeMap;

use super::super::log::{duration, shares};
use super::History;
use super::plot::{escape, swatch};
use crate::protocol::Event;

/// Name, state and what ran where.
pub(super) fn header(title: &str, history: &History) -> String {
    let (class, state) = match history.ending {
        Some(Event::Done { stopped: false, .. }) => ("good", "finished"),
        Some(Event::Done { .. }) => ("calm", "stopped"),
        Some(_) => ("bad", "failed"),
        None => ("calm", "in progress"),
    };
    let mut facts = Vec::new();
    if let Some(info) = history.run {
        facts.push(format!("{} parameters", count(info.parameters as f64)));
        facts.push(format!("{} · {}", info.device, info.precision));
        facts.push(format!("{} {} per update", grouped(info.tokens_per_step), info.tokens()));
    }
    if let Some(begun) = history.begun.filter(|time| *time > 1e9) {
        facts.push(format!("begun {}", date(begun)));
    }
    let facts: String = facts.iter().map(|fact| format!("<span>{}</span>", escape(fact))).collect();
    let title = escape(title);
    format!("<header class=\"wide\"><h1>{title} <span class=\"state {class}\">{state}</span></h1><p class=\"facts\">{facts}</p></header>")
}

/// The numbers that people look for first.
pub(super) fn tiles(history: &History) -> String {
    let made = history.made().count();
    let recent: Vec<f64> = history.made().rev().take((made / 20).clamp(1, 100)).map(|report| report.loss).collect();
    let loss = match recent.len() {
        0 => ("–".to_string(), "no update yet".to_string()),
        1 => (format!("{:.4}", recent[0]), "last update".into()),
        n => (format!("{:.4}", recent.iter().sum::<f64>() / n as f64), format!("mean of the last {n} updates")),
    };
    let best = match history.best() {
        Some((step, loss)) => {
            (format!("{loss:.4}"), format!("perplexity {} at step {}", significant(loss.exp()), grouped(u64::from(step))))
        }
        None => ("–".into(), "not evaluated".into()),
    };
    let last = history.steps.keys().next_back().copied().unwrap_or(0);
    let planned = history.run.map_or(String::new(), |info| format!("of {} planned", grouped(u64::from(info.steps))));
    let tokens = history.steps.values().next_back().map_or(0, |report| report.total_tokens);
    let mut speeds: Vec<f64> = history.made().map(|report| report.tokens_per_sec).filter(|speed| speed.is_finite()).collect();
    speeds.sort_by(f64::total_cmp);
    let speed = speeds.get(speeds.len() / 2).map_or("–".into(), |speed| count(*speed));
    let skipped = match history.skipped().count() {
        0 => "no update skipped".into(),
        1 => "1 update skipped".into(),
        n => format!("{n} updates skipped"),
    };
    let learned_only = history.learned_only();
    let tiles = [
        ("Training loss", loss),
        ("Best held-out loss", best),
        ("Updates", (grouped(u64::from(last)), planned)),
        (if learned_only { "Tokens learned" } else { "Tokens trained" }, (count(tokens as f64), format!("{} exactly", grouped(tokens)))),
        ("Tokens per second", (speed, if learned_only { "median update, prompts included" } else { "median update" }.into())),
        ("Training time", (duration(history.elapsed_secs), skipped)),
    ];
    let tiles: String = tiles
        .iter()
        .map(|(name, (value, note))| {
            format!("<div class=\"tile\"><h3>{name}</h3><strong>{}</strong><small>{}</small></div>", escape(value), escape(note))
        })
        .collect();
    format!("<section class=\"tiles wide\">{tiles}</section>")
}

/// Average loss, planned and achieved mix of every stage.
pub(super) fn stages(history: &History) -> String {
    if history.stages.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for (i, stage) in history.stages.iter().enumerate() {
        let reports = || history.made().filter(|report| report.step > stage.start && report.step <= stage.end);
        let tokens = history.tokens(stage.start, stage.end);
        let sum: u64 = tokens.values().sum();
        let counted: BTreeMap<String, f64> = tokens.iter().map(|(name, n)| (name.to_string(), *n as f64 / sum.max(1) as f64)).collect();
        let (loss, achieved, epochs) = match &stage.done {
            Some(done) => (format!("{:.4}", done.average_loss), done.shares, mix(done.epochs, |passes| format!("{passes:.2}×"), history)),
            None if sum == 0 => ("–".into(), &counted, "–".into()),
            None => (
                format!("{:.4} so far", reports().map(|report| report.loss).sum::<f64>() / reports().count().max(1) as f64),
                &counted,
                "–".into(),
            ),
        };
        rows += &format!(
            "<tr><td class=\"num\">{}</td><td><b>{}</b></td><td class=\"num\">{}–{}</td><td class=\"num\">{loss}</td><td>{}</td><td>{}</td><td>{epochs}</td></tr>",
            i + 1,
            escape(stage.name),
            grouped(u64::from(stage.start)),
            grouped(u64::from(stage.end)),
            mix(stage.weights, percent, history),
            mix(achieved, percent, history),
        );
    }
    let changes: String = history
        .changes
        .iter()
        .map(|(step, stage, weights)| {
            format!(
                "<p>From step {} on stage {} had other shares: {}</p>",
                grouped(u64::from(*step)),
                stage + 1,
                mix(weights, percent, history)
            )
        })
        .collect();
    format!(
        "<section class=\"card wide\"><h2>Stages</h2><div class=\"scroll\"><table><thead><tr><th class=\"num\">#</th><th>Stage</th><th class=\"num\">Steps</th>\
         <th class=\"num\">Average loss</th><th>Planned mix</th><th>Achieved mix</th><th>Passes since the start</th></tr></thead><tbody>{rows}</tbody></table></div>{changes}</section>"
    )
}

/// Tokens of every source and how well the model predicts its held-out text.
pub(super) fn sources(history: &History) -> String {
    if history.sources.is_empty() {
        return String::new();
    }
    let scores = history.evaluated.values().next_back().map(|(_, scores)| *scores);
    let all = history.tokens(0, u32::MAX);
    let mut rows = String::new();
    for (i, name) in history.sources.iter().enumerate() {
        let (train, held_out) = history.run.and_then(|info| info.sources.get(*name)).copied().unwrap_or_default();
        let trained = all.get(name).copied().unwrap_or(0);
        let or_dash = |n: u64| if n == 0 { "–".into() } else { grouped(n) };
        let passes = if train == 0 { "–".into() } else { format!("{:.2}×", trained as f64 / train as f64) };
        let score = scores.and_then(|scores| scores.get(*name));
        let (loss, perplexity, bits) = score.map_or(("–".into(), "–".into(), "–".into()), |s| {
            (format!("{:.4}", s.loss), significant(s.perplexity), format!("{:.3}", s.bits_per_byte))
        });
        rows += &format!(
            "<tr><td>{}<b>{}</b></td><td class=\"num\">{}</td><td class=\"num\">{}</td><td class=\"num\">{}</td><td class=\"num\">{passes}</td>\
             <td class=\"num\">{loss}</td><td class=\"num\">{perplexity}</td><td class=\"num\">{bits}</td></tr>",
            swatch(i),
            escape(name),
            or_dash(train),
            or_dash(held_out),
            or_dash(trained),
        );
    }
    format!(
        "<section class=\"card wide\"><h2>Sources</h2><div class=\"scroll\"><table><thead><tr><th>Source</th><th class=\"num\">Training tokens</th>\
         <th class=\"num\">Held out</th><th class=\"num\">Trained on</th><th class=\"num\">Passes</th><th class=\"num\">Held-out loss</th>\
         <th class=\"num\">Perplexity</th><th class=\"num\">Bits per byte</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )
}

/// What the model wrote as it learned.
pub(super) fn samples(history: &History) -> String {
    if history.samples.is_empty() {
        return String::new();
    }
    let cards: String = history
        .samples
        .iter()
        .map(|(step, stage, prompt, text)| {
            let step = grouped(u64::from(*step));
            format!("<li><h3>Step {step}<span>{}</span></h3><pre><i>{}</i>{}</pre></li>", escape(stage), escape(prompt), escape(text))
        })
        .collect();
    format!("<section class=\"card wide\"><h2>Samples as they came</h2><ol class=\"samples\">{cards}</ol></section>")
}

/// Skipped updates, warnings and how a failed run ended; nothing where there was no trouble.
pub(super) fn trouble(history: &History) -> String {
    const MOST: usize = 200;
    let mut lines = Vec::new();
    if let Some(Event::Failed { error, .. }) = history.ending {
        lines.push(format!("<li><b>Failed</b>{}</li>", escape(error)));
    }
    lines.extend(history.skipped().map(|report| {
        let sources: Vec<&str> = report.source_tokens.keys().map(String::as_str).collect();
        let why = report.skipped.as_deref().unwrap_or_default();
        format!(
            "<li><b>Step {} skipped</b>{} (sources: {})</li>",
            grouped(u64::from(report.step)),
            escape(why),
            escape(&sources.join(", "))
        )
    }));
    lines.extend(history.warnings.iter().map(|(_, text)| format!("<li><b>Warning</b>{}</li>", escape(text))));
    if lines.is_empty() {
        return String::new();
    }
    let more = lines.len().saturating_sub(MOST);
    lines.truncate(MOST);
    if more > 0 {
        lines.push(format!("<li><b>…</b>and {more} more in events.jsonl</li>"));
    }
    format!("<section class=\"card wide\"><h2>Trouble</h2><ul class=\"trouble\">{}</ul></section>", lines.concat())
}

/// The frozen configuration, folded away.
pub(crate) fn config(yaml: &str) -> String {
    if yaml.trim().is_empty() {
        return String::new();
    }
    format!("<details class=\"card wide\"><summary>Configuration</summary><pre>{}</pre></details>", escape(yaml.trim_end()))
}

/// Values per source with the colours of the plots.
fn mix(values: &BTreeMap<String, f64>, write: impl Fn(f64) -> String, history: &History) -> String {
    let entries = values.iter().map(|(name, value)| {
        let place = history.sources.iter().position(|source| source == name).unwrap_or(0);
        format!("<span class=\"part\">{}{} {}</span>", swatch(place), escape(name), write(*value))
    });
    let entries: String = entries.collect();
    format!("<div class=\"mix\" title=\"{}\">{entries}</div>", escape(&shares(values)))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `12.3K`, `1.26M`.
fn count(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{}B", significant(n / 1e9)),
        n if n >= 1e6 => format!("{}M", significant(n / 1e6)),
        n if n >= 1e4 => format!("{}K", significant(n / 1e3)),
        n => significant(n),
    }
}

/// Three digits that matter.
fn significant(x: f64) -> String {
    match x.abs() {
        a if !a.is_finite() => "–".into(),
        a if a >= 1e7 => format!("{x:.2e}"),
        a if a >= 100.0 => grouped(x.round() as u64),
        a if a >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}

/// `12,345,678`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `2024-02-29 13:05 UTC` of a Unix time (Howard Hinnant's `civil_from_days`).
fn date(unix_secs: f64) -> String {
    let secs = unix_secs as i64;
    let days = secs.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let minutes = secs.rem_euclid(86_400) / 60;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (134_515_008, "134,515,008")] {
            assert_eq!(grouped(n), text);
        }
        for (n, text) in [(7.0, "7.00"), (999.4, "999"), (12_345.0, "12.3K"), (134_515_008.0, "135M"), (1.7114e9, "1.71B")] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn dates_are_right_also_in_leap_years() {
        for (secs, text) in [
            (0.0, "1970-01-01 00:00 UTC"),
            (951_782_399.0, "2000-02-28 23:59 UTC"),
            (1_709_211_900.0, "2024-02-29 13:05 UTC"),
            (1_735_689_599.0, "2024-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(secs), text);
        }
    }
}
