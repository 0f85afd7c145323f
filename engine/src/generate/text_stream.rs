//! Bytes of tokens in, text out: whole characters only, and never a part of a stop string.

/// Turns the bytes of generated tokens into text that can be shown at once.
#[derive(Debug, Clone)]
pub struct TextStream {
    stops: Vec<String>,
    /// The beginning of a character that is not complete.
    bytes: Vec<u8>,
    /// Text that could be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// What can be shown after a token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    /// New text; may be empty.
    pub text: String,
    /// Whether a stop string is complete: the text ends before it.
    pub stopped: bool,
}

impl TextStream {
    /// Ends the text before the first of these strings to be completed. Empty strings stop nothing.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, bytes: Vec::new(), held: String::new(), stopped: false }
    }

    /// Adds the bytes of one token. How the bytes are spread over calls makes no difference to the text.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        if self.stopped {
            return Piece { text: String::new(), stopped: true };
        }
        self.bytes.extend_from_slice(bytes);
        let incomplete = incomplete_suffix(&self.bytes);
        let tail = self.bytes.split_off(self.bytes.len() - incomplete);
        let whole = std::mem::replace(&mut self.bytes, tail);
        self.held.push_str(&String::from_utf8_lossy(&whole));
        self.release()
    }

    fn release(&mut self) -> Piece {
        // The stop that is complete first wins; of several that end together, the longest.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at))).min();
        if let Some((_, at)) = found {
            self.held.truncate(at);
            self.stopped = true;
            self.bytes.clear();
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let held = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - held);
        Piece { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// What was held back when no more tokens come; an unfinished character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(&String::from_utf8_lossy(&self.bytes));
        self.held
    }
}

/// Length of the beginning of a character that later bytes can complete.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so only the last three can be the beginning of one.
    let lead = bytes.iter().rev().take(3).position(|byte| byte & 0xc0 != 0x80);
    let Some(start) = lead.map(|back| bytes.len() - 1 - back) else { return 0 };
    match std::str::from_utf8(&bytes[start..]) {
        Err(e) if e.error_len().is_none() => bytes.len() - start,
        _ => 0,
    }
}

/// Longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool, String) {
        let mut stream = TextStream::new(stops.iter().map(ToString::to_string).collect());
        let mut texts = Vec::new();
        let mut stopped = false;
        for bytes in pieces {
            let piece = stream.push(bytes);
            texts.push(piece.text);
            stopped = piece.stopped;
        }
        (texts, stopped, stream.finish())
    }

    #[track_caller]
    fn check(stops: &[&str], bytes: &[u8], text: &str, stops_there: bool) {
        for size in 1..=bytes.len().max(1) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            let (texts, stopped, rest) = stream(stops, &pieces);
            assert_eq!((texts.concat() + &rest, stopped), (text.to_string(), stops_there), "in pieces of {size}");
        }
    }

    #[test]
    fn characters_stay_whole() {
        let (texts, _, rest) = stream(&[], &[b"a\xf0\x9f", b"\x98", b"\x80b", b"\xe8\xaa"]);
        assert_eq!(texts, ["a", "", "😀b", ""]);
        assert_eq!(rest, "\u{fffd}");
        check(&[], "héllo 語 😀 e\u{301}".as_bytes(), "héllo 語 😀 e\u{301}", false);
    }

    #[test]
    fn invalid_bytes_become_replacement_characters() {
        for bytes in [&b"a\xffb"[..], b"\xc3(", b"\xe2\x28\xa1", b"\xf0\x9f\x98x", b"\x80\x80\x80\x80", b"\xed\xa0\x80", b"\xf5", b"\xc3"] {
            check(&[], bytes, &String::from_utf8_lossy(bytes), false);
        }
    }

    #[test]
    fn no_part_of_a_stop_string_is_shown() {
        check(&["\n\n"], b"one\ntwo\n\nthree", "one\ntwo", true);
        check(&["User:"], b"Use Users User: no", "Use Users ", true);
        check(&["aab"], b"aaaab", "aa", true);
        check(&["</s>"], b"a < b </ c </s", "a < b </ c </s", false);
        check(&["語x"], "語語x".as_bytes(), "語", true);
        check(&[""], b"abc", "abc", false);
        check(&["a"], b"a", "", true);
    }

    #[test]
    fn the_stop_that_is_complete_first_wins() {
        check(&["abcX", "bc"], b"abcX", "a", true);
        check(&["bc", "abc"], b"xabc", "x", true);
        check(&["b", "a"], b"ab", "", true);
    }

    #[test]
    fn what_cannot_become_a_stop_is_shown_at_once() {
        let (texts, _, rest) = stream(&["STOP"], &[b"now S", b"T", b"AY"]);
        assert_eq!(texts, ["now ", "", "STAY"]);
        assert_eq!(rest, "");
    }
}
