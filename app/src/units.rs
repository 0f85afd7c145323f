//! Numbers and rows as people read them.

use smolforge_engine::protocol::ExampleReport;

/// `1,234,567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

/// `1.21 MiB`
pub fn bytes(number: u64) -> String {
    let power = (number.max(1).ilog2() / 10).min(4) as usize;
    match power {
        0 => format!("{number} B"),
        _ => format!("{:.2} {}", number as f64 / (1u64 << (10 * power)) as f64, ["KiB", "MiB", "GiB", "TiB"][power - 1]),
    }
}

/// `47.8 MB`: a million bytes each, as limits of files are given.
pub fn megabytes(number: u64) -> String {
    let text = format!("{:.1}", number as f64 / 1e6);
    format!("{} MB", text.strip_suffix(".0").unwrap_or(&text))
}

/// A limit in bytes; neither 0 nor the largest number is one.
pub fn limit(limit: u64) -> String {
    if limit == 0 || limit >= u64::MAX / 2 { "–".into() } else { bytes(limit) }
}

/// Amount with its unit, as [`Event::Progress`](smolforge_engine::protocol::Event::Progress) names it.
pub fn amount(number: u64, unit: &str) -> String {
    match (number, unit) {
        (_, "bytes") => bytes(number),
        (1, "batches") => "1 batch".into(),
        (1, _) => format!("1 {}", unit.strip_suffix('s').unwrap_or(unit)),
        _ => format!("{} {unit}", count(number)),
    }
}

/// Tokens a second that a text took after its first token, whose time is the prompt's; nothing of a text of one token.
pub fn written_per_sec(tokens: usize, decode_secs: f64) -> Option<f64> {
    (tokens > 1 && decode_secs > 0.0).then(|| (tokens - 1) as f64 / decode_secs)
}

/// Three significant digits below a thousand, separators above: `0.123`, `53.1`, `41,600`.
pub fn rate(number: f64) -> String {
    match number {
        n if !n.is_finite() || n < 0.0 => "–".into(),
        n if n < 1.0 => format!("{n:.3}"),
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => count(n.round() as u64),
    }
}

/// A message on one line, whatever it was made of.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Line breaks are shown and made; other signs without a shape, which a terminal would obey, are named.
pub fn visible(text: &str) -> String {
    let mut shown = String::new();
    for char in text.chars() {
        match char {
            '\n' => shown.push_str("↵\n"),
            '\t' => shown.push('→'),
            char if char.is_control() => shown.push_str(&format!("<0x{:02X}>", char as u32)),
            char => shown.push(char),
        }
    }
    shown
}

/// `row 7 · spec · 6 tokens, 2 learned · 2 cut off`
pub fn headline(example: &ExampleReport) -> String {
    let ExampleReport { row, task, lost_tokens, pieces, .. } = example;
    let task = task.as_ref().map(|task| format!(" · {task}")).unwrap_or_default();
    let learned = pieces.iter().filter(|piece| piece.is_target).count();
    let lost = if *lost_tokens > 0 { format!(" · {} cut off", count(*lost_tokens as u64)) } else { String::new() };
    format!("row {row}{task} · {}, {} learned{lost}", amount(pieces.len() as u64, "tokens"), count(learned as u64))
}

/// `80 %`, `12.5 %`
pub fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.0);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

/// The two largest units: `0.05 s`, `12 s`, `3 min 05 s`, `2 h 14 min`, `3 d 4 h`.
pub fn duration(secs: f64) -> String {
    if !secs.is_finite() || secs < 0.0 {
        return "–".into();
    }
    let whole = secs.round() as u64;
    match whole {
        _ if secs == 0.0 => "0 s".into(),
        _ if secs < 0.001 => format!("{:.0} µs", secs * 1e6),
        _ if secs < 1.0 => format!("{:.3} s", secs),
        _ if secs < 10.0 => format!("{:.2} s", secs),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// `one source 80 %, another 20 %`
pub fn shares<'a>(weights: impl IntoIterator<Item = (&'a String, &'a f64)>) -> String {
    let parts: Vec<String> = weights.into_iter().map(|(name, share)| format!("{name} {}", percent(*share))).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: String, expect: &str) {
        assert_eq!(found, expect);
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        check(count(134_515_008), "134,515,008");
        check(count(0), "0");
        check(count(1_000), "1,000");
        check(bytes(128 << 20), "128.00 MiB");
        check(bytes(1023), "1023 B");
        check(bytes((5 << 40) + (1 << 39)), "5.50 TiB");
        check(amount(3, "windows"), "3 windows");
        check(amount(1, "tokens"), "1 token");
        check(rate(41_600.2), "41,600");
        check(rate(53.04), "53.0");
        check(rate(0.0), "0.000");
        check(rate(f64::NAN), "–");
        check(percent(0.8), "80 %");
        check(percent(0.1254), "12.5 %");
    }

    #[test]
    fn signs_without_a_shape_are_named() {
        check(visible("a\n\tb\r\u{1b}[1m é"), "a↵\n→b<0x0D><0x1B>[1m é");
    }

    #[test]
    fn durations_show_two_units() {
        check(duration(0.0123), "0.012 s");
        check(duration(2.9), "2.90 s");
        check(duration(59.7), "1 min 00 s");
        check(duration(185.0), "3 min 05 s");
        check(duration(8_040.0), "2 h 14 min");
        check(duration(273_600.0), "3 d 4 h");
        check(duration(f64::INFINITY), "–");
    }

    #[test]
    fn megabytes_have_a_million_bytes() {
        check(megabytes(47_760_000), "47.8 MB");
        check(megabytes(50_000_000), "50 MB");
    }
}
