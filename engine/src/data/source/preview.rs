//! A page of a source for people to look at, read from its place in the files and from nowhere else.

use std::ops::Range;

use super::{SEPARATOR, Source};
use crate::config::SourceConfig;
use crate::control::{Control, Flow};
use crate::data::jsonl::text_of;
use crate::data::raw::{find, lossy};
use crate::error::{Error, Result};
use crate::protocol::{Event, PreviewReport};
use crate::store::{Blob, Store};

/// Bytes of the files that make a page.
const PAGE_BYTES: usize = 16 << 10;

/// Characters of a document that are shown.
const MOST_CHARS: usize = 2000;

/// Longest row that is read to its end.
const MOST_ROW_BYTES: u64 = 1 << 20;

/// Shows a page of a source: the documents of which a part lies in its bytes, or whose row begins there.
///
/// # Errors
/// As [`Source::open`]; [`Error::Config`] for a page that does not exist, [`Error::Data`] for rows without text.
pub async fn preview(config: &SourceConfig, page: usize, store: &Store, control: &Control) -> Result<()> {
    let source = Source::open(store, "preview", config).await?;
    let size = source.size_bytes;
    let pages = usize::try_from(size.div_ceil(PAGE_BYTES as u64)).unwrap_or(usize::MAX);
    if page >= pages {
        return Err(Error::Config(format!("page {page}: the text has {pages} pages, 0 to {}", pages.saturating_sub(1))));
    }
    // Places in all files one after the other.
    let (start, end) = (page as u64 * PAGE_BYTES as u64, (page as u64 + 1) * PAGE_BYTES as u64);
    let (mut before, mut texts, mut trouble) = (0, Vec::new(), None);
    for file in &source.files {
        let blob = store.open(file).await?;
        let after = before + blob.size_bytes();
        if after > start && before < end {
            let inside = |place: u64| place.clamp(before, after) - before;
            let range = inside(start)..inside(end);
            if source.has_rows(file) {
                rows(&blob, range, &source.text_key, &mut texts, &mut trouble)?;
            } else {
                parts(&blob, range, &mut texts)?;
            }
        }
        before = after;
        if before >= end || control.breathe().await == Flow::Stop {
            break;
        }
    }
    match trouble {
        Some(why) if texts.is_empty() => Err(Error::Data(format!("page {page} has no row with text: {why}"))),
        _ => {
            control.emit(Event::Preview(PreviewReport { size_bytes: size, files: source.files.len(), page, pages, texts }));
            Ok(())
        }
    }
}

/// What lies between separators, as far as it lies in the range.
fn parts(blob: &Blob, range: Range<u64>, texts: &mut Vec<String>) -> Result<()> {
    // A separator may begin before the range and end behind it; a character belongs to the page in which it begins.
    let margin = SEPARATOR.len() as u64 - 1;
    let low = range.start.saturating_sub(margin);
    let bytes = blob.read(low..range.end + margin)?;
    let begins = |at: usize| bytes.get(at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let edge = |at: usize| (at..at + 4).find(|at| begins(*at)).unwrap_or(at).min(bytes.len());
    let (first, last) = (edge((range.start - low) as usize), edge((range.end - low) as usize));
    let mut at = 0;
    while at < bytes.len() {
        let end = find(&bytes[at..], SEPARATOR.as_bytes()).map_or(bytes.len(), |found| at + found);
        let (from, to) = (at.max(first), end.min(last));
        if from < to {
            push(texts, lossy(&bytes[from..to], &mut 0));
        }
        at = end + SEPARATOR.len();
    }
    Ok(())
}

/// Texts of the rows that begin in the range.
fn rows(blob: &Blob, range: Range<u64>, key: &str, texts: &mut Vec<String>, trouble: &mut Option<String>) -> Result<()> {
    // From the byte before, which says whether a row begins with the range, to the end of the last row.
    let low = range.start.saturating_sub(1);
    let bytes = blob.read(low..range.end + MOST_ROW_BYTES)?;
    let line_end = |at: usize| bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |found| at + found);
    let mut at = if range.start == 0 { 0 } else { line_end(0) + 1 };
    let last = ((range.end - low) as usize).min(bytes.len());
    while at < last {
        let end = line_end(at);
        let row = lossy(&bytes[at..end], &mut 0);
        let row = row.trim_start_matches('\u{feff}').trim();
        if !row.is_empty() {
            match text_of(row, key) {
                Ok(text) => push(texts, text),
                Err(why) => *trouble = trouble.take().or(Some(why)),
            }
        }
        at = end + 1;
    }
    Ok(())
}

fn push(texts: &mut Vec<String>, text: String) {
    if !text.trim().is_empty() {
        texts.push(text.chars().take(MOST_CHARS).collect());
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    fn look(files: &[(&str, &[u8])], at: &str, page: usize) -> Result<(u64, usize, usize, Vec<String>)> {
        let store = Store::memory();
        files.iter().for_each(|(name, bytes)| block_on(store.write(name, bytes)).unwrap());
        let (control, _, events) = Control::connect();
        block_on(preview(&SourceConfig::Path(at.into()), page, &store, &control))?;
        let Ok((_, Event::Preview(report))) = events.try_recv() else { panic!("no page") };
        assert_eq!(report.page, page);
        Ok((report.size_bytes, report.files, report.pages, report.texts))
    }

    #[test]
    fn a_page_shows_the_documents_that_lie_in_it() {
        let (size, files, pages, texts) =
            look(&[("a.txt", b"one<|endoftext|>\n two <|endoftext|>\n<|endoftext|>three")], "a.txt", 0).unwrap();
        assert_eq!((size, files, pages), (54, 1, 1));
        assert_eq!(texts, ["one", "\n two ", "three"]);
        let several =
            look(&[("d/a.txt", b"a"), ("d/b.jsonl", b"{\"text\": \"b\"}\n{\"text\": \"c\"}"), ("d/c.txt", b"d")], "d", 0).unwrap();
        assert_eq!((several.1, several.3), (3, ["a", "b", "c", "d"].map(String::from).to_vec()));
    }

    #[test]
    fn pages_join_without_a_gap_or_a_doubled_character() {
        let text: String = (0..6000).map(|i| format!("語{i} ")).collect();
        let (_, _, pages, _) = look(&[("a.txt", text.as_bytes())], "a.txt", 0).unwrap();
        assert!(pages >= 3, "{pages}");
        let ends = |page: usize| {
            let shown = look(&[("a.txt", text.as_bytes())], "a.txt", page).unwrap().3.remove(0);
            assert!(!shown.contains('\u{fffd}') && text.contains(&shown) && shown.chars().count() == 2000, "{shown}");
        };
        (0..pages - 1).for_each(ends);
    }

    #[test]
    fn a_separator_on_the_edge_of_a_page_is_no_text() {
        for shift in 0..=SEPARATOR.len() {
            let first = "x".repeat(PAGE_BYTES - shift);
            let text = format!("{first}{SEPARATOR}end");
            let pages: Vec<Vec<String>> =
                (0..2).filter_map(|page| look(&[("a.txt", text.as_bytes())], "a.txt", page).ok()).map(|page| page.3).collect();
            let shown = pages.concat();
            assert_eq!((shown.len(), shown.last().map(String::as_str)), (2, Some("end")), "{shift}: {shown:?}");
        }
    }

    #[test]
    fn a_row_belongs_to_the_page_in_which_it_begins() {
        let row = |i: usize| format!("{{\"text\": \"{i} {}\"}}\n", "y".repeat(700));
        let text: String = (0..60).map(row).collect();
        let pages = look(&[("a.jsonl", text.as_bytes())], "a.jsonl", 0).unwrap().2;
        let all: Vec<String> = (0..pages).flat_map(|page| look(&[("a.jsonl", text.as_bytes())], "a.jsonl", page).unwrap().3).collect();
        let numbers: Vec<String> = all.iter().map(|text| text.split(' ').next().unwrap().to_string()).collect();
        assert_eq!(numbers, (0..60).map(|i| i.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn pages_that_do_not_exist_and_rows_without_text_are_told() {
        assert!(look(&[("a.txt", b"x")], "a.txt", 1).unwrap_err().to_string().contains("has 1 pages"));
        let error = look(&[("a.jsonl", b"{\"body\": \"x\"}")], "a.jsonl", 0).unwrap_err().to_string();
        assert!(error.contains("no key `text`"), "{error}");
    }
}
