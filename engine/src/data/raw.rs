//! Bytes of a text file before they are text: is it text, where may it be cut, what is invalid in it.

use crate::error::{Error, Result};
use crate::store::Blob;

/// How far back a good place to cut is looked for.
const CUT_WINDOW: usize = 64 << 10;

/// How far back a line break is: in indented text most do not stand alone.
const LINE_WINDOW: usize = 1 << 10;

/// UTF-8 text of bytes; invalid ones are replaced and counted.
pub(crate) fn lossy(bytes: &[u8], replaced: &mut u64) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => {
            *replaced += bytes.utf8_chunks().map(|chunk| chunk.invalid().len() as u64).sum::<u64>();
            String::from_utf8_lossy(bytes).into_owned()
        }
    }
}

/// First occurrence of `needle` in `bytes`.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == needle[0]) {
        if bytes[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// How often `needle` begins in `at..end` of the bytes.
pub(crate) fn count_of(needle: &[u8], bytes: &[u8], mut at: usize, end: usize) -> u64 {
    let last = (end + needle.len() - 1).min(bytes.len());
    let mut count = 0;
    while let Some(found) = bytes.get(at..last).and_then(|rest| find(rest, needle)) {
        at += found + needle.len();
        count += 1;
    }
    count
}

/// The best place at or before `at` to cut text in two so that byte-level tokenizers see no difference:
/// after a line break or before a space that stand alone between other characters; else between characters.
pub(crate) fn good_cut(bytes: &[u8], at: usize) -> usize {
    let plain = |i: usize| bytes.get(i).is_some_and(|byte| !byte.is_ascii_whitespace() && *byte < 0x80);
    let lowest = |window: usize| at.saturating_sub(window).max(2);
    let line = |i: &usize| bytes[i - 1] == b'\n' && plain(i - 2) && plain(*i);
    let word = |i: &usize| bytes.get(*i) == Some(&b' ') && plain(i - 1) && plain(i + 1);
    let character = || (at.saturating_sub(3).max(1)..=at).rev().find(|&i| bytes.get(i).is_none_or(|byte| byte & 0xc0 != 0x80));
    (lowest(LINE_WINDOW)..=at).rev().find(line).or_else(|| (lowest(CUT_WINDOW)..=at).rev().find(word)).or_else(character).unwrap_or(at)
}

/// Refuses what is not text: empty files, other encodings, archives, pictures, weights.
pub(crate) fn check_text(file: &str, blob: &Blob) -> Result<()> {
    let refuse = |why: &str| Err(Error::Data(format!("{file}: {why}")));
    let size = blob.size_bytes();
    if size == 0 {
        return refuse("is empty; a source needs some text");
    }
    if matches!(&*blob.read(0..2)?, b"\xff\xfe" | b"\xfe\xff") {
        return refuse("is UTF-16 text; convert it to UTF-8 first");
    }
    // The beginning and fifteen places further on.
    let (mut sampled, mut control, mut invalid) = (0usize, 0usize, 0usize);
    for place in 0..16 {
        let start = size / 16 * place;
        let end = (start + (8 << 10)).min(if place == 15 { size } else { size / 16 * (place + 1) });
        let part = blob.read(start..end)?;
        let cut = part.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count(); // the rest of a character
        let part = &part[cut..];
        sampled += part.len();
        control += part.iter().filter(|byte| matches!(byte, 0..=8 | 14..=26 | 28..=31)).count();
        invalid += part.utf8_chunks().map(|chunk| chunk.invalid().len()).sum::<usize>();
    }
    if control >= 8 && control * 50 > sampled {
        let share = 100 * control / sampled;
        return refuse(&format!("{share} % of its bytes are control characters: it is a binary file, not text; take it out of the source"));
    }
    if sampled >= 1024 && invalid * 10 > sampled * 3 {
        return refuse("is not UTF-8 text; convert it to UTF-8 first");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_where_tokenizers_cut_anyway() {
        let text = b"one two\nthree\n\n  four, five";
        let cut = |at| std::str::from_utf8(&text[..good_cut(text, at)]).unwrap();
        assert_eq!([cut(26), cut(12), cut(7)], ["one two\n", "one two\n", "one"]);
        assert_eq!(good_cut("aé語".as_bytes(), 5), 3);
        let indented = format!("first line\nsecond{}", "\n    one statement".repeat(1000));
        assert!(good_cut(indented.as_bytes(), 15_000) > 14_900, "a near space is better than a far line");
    }

    #[test]
    fn counts_do_not_depend_on_the_places_in_between() {
        let text = b"ababab-ab";
        for middle in 0..=text.len() {
            assert_eq!(count_of(b"ab", text, 0, middle) + count_of(b"ab", text, middle, text.len()), 4, "{middle}");
        }
        assert_eq!((find(b"aab", b"ab"), find(b"", b"ab"), find(b"a", b"ab")), (Some(1), None, None));
    }
}
