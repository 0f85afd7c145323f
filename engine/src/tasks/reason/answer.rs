//! The answer in a text, and whether it is right: exactly as the reference's Python does it.

use crate::text::python::repr;

/// The zeros of Unicode 14, as Python 3.11 knows them: the nine digits of each script follow its zero.
#[rustfmt::skip]
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20, 0x1040,
    0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0,
    0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0,
    0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6,
    0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// The number between the first `<answer>` and `</answer>` of a text; NaN where there is none. Without `</answer>` it ends
/// with the text; another `<answer>` ends it, too.
pub fn parse(text: &str) -> f64 {
    let after = text.split("<answer>").nth(1);
    after.and_then(|after| after.split("</answer>").next()).and_then(float).unwrap_or(f64::NAN)
}

/// Whether an answer is right: `|round(found, 3) − round(expected, 3)| < tolerance · |round(expected, 3)|`.
pub fn is_right(found: f64, expected: f64, tolerance: f64) -> bool {
    let (found, expected) = (rounded(found), rounded(expected));
    (found - expected).abs() < tolerance * expected.abs()
}

/// A number with three decimals, as Python's `str(round(x, 3))` writes it: `120.0`, `0.333`.
pub fn shown(number: f64) -> String {
    repr(rounded(number))
}

/// Three decimals; of two equally near numbers the even one, measured on the exact value.
fn rounded(number: f64) -> f64 {
    format!("{number:.3}").parse().unwrap_or(number)
}

/// Python's `float`: digits of every script, single underscores between them, white space around them.
fn float(text: &str) -> Option<f64> {
    let (mut plain, mut before) = (String::new(), ' ');
    for letter in text.trim().chars().map(plain_digit) {
        if letter == '_' && !before.is_ascii_digit() || before == '_' && !letter.is_ascii_digit() {
            return None;
        }
        if letter != '_' {
            plain.push(letter);
        }
        before = letter;
    }
    if before == '_' { None } else { plain.parse().ok() } // what is left of its grammar is Rust's
}

/// `0` to `9` for the digits of every script; other characters as they are.
fn plain_digit(letter: char) -> char {
    let code = u32::from(letter);
    let above = ZEROS.partition_point(|zero| *zero <= code);
    let digit = above.checked_sub(1).and_then(|index| char::from_digit(code - ZEROS[index], 10));
    digit.unwrap_or(letter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// A table of the golden file, its cells as texts.
    fn golden(table: &str) -> Vec<Vec<Value>> {
        let text = std::fs::read_to_string("../tests/golden/answers_golden.json").unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        let rows = file[table].as_array().unwrap();
        assert!(rows.len() > 200, "{table}");
        rows.iter().map(|row| row.as_array().unwrap().clone()).collect()
    }

    fn text(cell: &Value) -> &str {
        cell.as_str().unwrap()
    }

    fn number(cell: &Value) -> f64 {
        text(cell).parse().unwrap()
    }

    #[test]
    fn numbers_are_written_as_python_does() {
        for row in golden("reprs") {
            let exact = f64::from_bits(u64::from_str_radix(text(&row[0]), 16).unwrap());
            assert_eq!(repr(exact), text(&row[1]));
            assert_eq!(float(text(&row[1])).unwrap().to_bits(), exact.to_bits(), "{}", row[1]);
        }
    }

    #[test]
    fn answers_are_those_that_python_finds() {
        for row in golden("answers") {
            assert_eq!(repr(parse(text(&row[0]))), text(&row[1]), "{:?}", row[0]);
        }
    }

    #[test]
    fn three_decimals_are_those_of_python() {
        for row in golden("rounded") {
            assert_eq!(shown(number(&row[0])), text(&row[1]), "{}", row[0]);
        }
    }

    #[test]
    fn what_is_right_is_what_python_calls_right() {
        let rows = golden("checks");
        for row in &rows {
            let found = is_right(number(&row[0]), number(&row[1]), number(&row[2]));
            assert_eq!(found, row[3].as_bool().unwrap(), "{row:?}");
        }
        assert!(rows.iter().any(|row| row[3] == true) && rows.iter().any(|row| row[3] == false));
    }

    #[test]
    fn digits_are_those_that_python_knows() {
        let text = std::fs::read_to_string("../tests/golden/answers_golden.json").unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(file["zeros"], serde_json::json!(ZEROS.as_slice()));
        for zero in ZEROS {
            let digits: String = (zero..zero + 10).map(|code| char::from_u32(code).unwrap()).collect();
            assert_eq!(float(&digits), Some(123_456_789.0), "{digits}");
        }
        assert_eq!((char::MIN..=char::MAX).filter(|letter| float(&letter.to_string()).is_some()).count(), ZEROS.len() * 10);
    }
}
