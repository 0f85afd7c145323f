//! Files of questions: JSON arrays of `[question, answer]`, and of `[question, answer, reasoning]`.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::text::python::repr;

/// More than any such file has; every row takes several times its text while it is read.
const MOST_BYTES: usize = 64 << 20;
const NOT_JSON: &str = "not JSON: ";
const WANTED: &str = "a row is [question, number] or [question, number, reasoning]";

/// A question and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What is asked.
    pub text: String,
    /// The right answer.
    pub answer: f64,
    /// How it is worked out, with `<answer>…</answer>` in it.
    pub reasoning: Option<String>,
}

/// Reads a file; `path` is named where something is wrong.
///
/// # Errors
/// [`Error::Format`] naming the row: not the shape, an empty question, an answer that is not finite.
pub fn read(text: &str, path: &str) -> Result<Vec<Question>> {
    if text.len() > MOST_BYTES {
        let (held, most) = (text.len() >> 20, MOST_BYTES >> 20);
        return Err(Error::format(path, format!("holds {held} MiB of questions, and {most} are read at most: split the file")));
    }
    let text = text.trim_start_matches('\u{feff}');
    if !text.trim_start().starts_with('[') {
        return Err(Error::format(path, format!("no JSON array of rows: {WANTED}")));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let rows = de::Deserializer::deserialize_seq(&mut reader, Rows).and_then(|rows| reader.end().map(|()| rows));
    let rows = rows.map_err(|e| Error::format(path, reason(&e, text)))?;
    if rows.is_empty() {
        return Err(Error::format(path, format!("holds no questions: {WANTED}")));
    }
    Ok(rows)
}

/// The questions as such a file, a row a line.
pub fn written(questions: &[Question]) -> String {
    let rows: Vec<String> = questions.iter().map(row).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

fn row(question: &Question) -> String {
    let mut cells = vec![quoted(&question.text), repr(question.answer)];
    cells.extend(question.reasoning.as_deref().map(quoted));
    format!("[{}]", cells.join(", "))
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What is odd about questions to learn from and to be tested on: how many repeat others of their file, and how many
/// stand in both. `None` where nothing is.
pub fn oddities(train: &[Question], valid: &[Question]) -> Option<String> {
    let learned: HashSet<&str> = train.iter().map(|question| question.text.trim()).collect();
    let both = valid.iter().filter(|question| learned.contains(question.text.trim())).count();
    let mut told = Vec::new();
    for (count, what) in [(repeats(train), "questions to learn from"), (repeats(valid), "questions to be tested on")] {
        match count {
            0 => {}
            1 => told.push(format!("1 of the {what} repeats another")),
            _ => told.push(format!("{count} {what} repeat others")),
        }
    }
    match both {
        0 => {}
        1 => told.push("1 of the questions to be tested on is learned, too".into()),
        _ => told.push(format!("{both} of the questions to be tested on are learned, too")),
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// How many are the same as one before them. Several ways to work out one question do not repeat each other.
fn repeats(questions: &[Question]) -> usize {
    let mut seen = HashSet::new();
    questions.iter().filter(|question| !seen.insert((question.text.trim(), question.reasoning.as_deref()))).count()
}

/// Reads row by row, so that only good ones are ever held.
struct Rows;

impl<'de> Visitor<'de> for Rows {
    type Value = Vec<Question>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Self::Value, A::Error> {
        let mut questions = Vec::new();
        loop {
            let place = questions.len() + 1;
            let wrong = |reason: &dyn fmt::Display| de::Error::custom(format_args!("row {place}: {reason}"));
            match rows.next_element().map_err(|e| wrong(&format_args!("{NOT_JSON}{e}")))? {
                Some(row) => questions.push(question(row).map_err(|reason| wrong(&reason))?),
                None => return Ok(questions),
            }
        }
    }
}

fn question(row: Value) -> Result<Question, String> {
    let Value::Array(cells) = row else { return Err(format!("is {}, and {WANTED}", name(&row))) };
    if !(2..=3).contains(&cells.len()) {
        return Err(format!("holds {} values, and {WANTED}", cells.len()));
    }
    let mut cells = cells.into_iter();
    let text = words(cells.next(), "question")?;
    let answer = match cells.next() {
        Some(Value::Number(number)) => number.as_f64().filter(|number| number.is_finite()).ok_or("the answer is not finite")?,
        other => return Err(format!("the answer is {}, not a number", name(&other.unwrap_or_default()))),
    };
    let reasoning = cells.next().map(|cell| words(Some(cell), "reasoning")).transpose()?;
    Ok(Question { text, answer, reasoning })
}

fn words(cell: Option<Value>, what: &str) -> Result<String, String> {
    match cell.unwrap_or_default() {
        Value::String(text) if text.trim().is_empty() => Err(format!("the {what} is empty")),
        Value::String(text) => Ok(text),
        other => Err(format!("the {what} is {}, not text", name(&other))),
    }
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What is wrong in words of ours, as far as it is something that people meet.
fn reason(error: &serde_json::Error, text: &str) -> String {
    let message = error.to_string();
    if let (Some((row, _)), Some(name)) = (message.split_once(": "), python_number(text, error.line(), error.column())) {
        return format!("{row}: {name}, which Python writes, is no JSON, and no answer either: an answer is a finite number");
    }
    match message.rsplit_once(" at line ") {
        _ if message.contains(NOT_JSON) => message,
        Some((reason, _)) if message.starts_with("row ") => reason.to_string(),
        _ => format!("no JSON array of rows: {message}; {WANTED}"),
    }
}

/// `NaN` or `Infinity` where the reader of JSON stopped.
fn python_number(text: &str, line: usize, column: usize) -> Option<&'static str> {
    let line = text.split('\n').nth(line.checked_sub(1)?)?;
    let found = line.as_bytes().get(column.checked_sub(1)?..)?;
    ["NaN", "Infinity"].into_iter().find(|name| found.starts_with(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(text: &str, answer: f64) -> Question {
        Question { text: text.into(), answer, reasoning: None }
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = read(text, "train.json").unwrap_err().to_string();
        assert_eq!(error, format!("train.json: {expected}"), "{text}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn rows_have_two_or_three_values() {
        let text = "\u{feff} [[\"How many cm are 2 m?\", 200],\n[\"Größe?\",1.5e-3, \"a <answer>0.0015</answer>\"],[\" \\u00e9 \",-0]]\n";
        let mut expected = vec![new("How many cm are 2 m?", 200.0), new("Größe?", 0.0015), new(" é ", -0.0)];
        expected[1].reasoning = Some("a <answer>0.0015</answer>".into());
        assert_eq!(read(text, "a.json").unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_row() {
        let good = r#"["a", 1]"#;
        for (row, reason) in [
            ("3", format!("is a number, and {WANTED}")),
            ("\"a\"", format!("is text, and {WANTED}")),
            ("null", format!("is null, and {WANTED}")),
            (r#"{"question": "a", "answer": 1}"#, format!("is an object, and {WANTED}")),
            ("[]", format!("holds 0 values, and {WANTED}")),
            (r#"["a"]"#, format!("holds 1 values, and {WANTED}")),
            (r#"["a", 1, "b", 2]"#, format!("holds 4 values, and {WANTED}")),
            ("[1, \"a\"]", "the question is a number, not text".into()),
            (r#"[["a"], 1]"#, "the question is an array, not text".into()),
            (r#"["", 1]"#, "the question is empty".into()),
            (r#"[" \t\n", 1]"#, "the question is empty".into()),
            (r#"["a", "1"]"#, "the answer is text, not a number".into()),
            (r#"["a", true]"#, "the answer is true or false, not a number".into()),
            (r#"["a", null]"#, "the answer is null, not a number".into()),
            (r#"["a", 1, 2]"#, "the reasoning is a number, not text".into()),
            (r#"["a", 1, null]"#, "the reasoning is null, not text".into()),
            (r#"["a", 1, " "]"#, "the reasoning is empty".into()),
        ] {
            refused(&format!("[{row}]"), &format!("row 1: {reason}"));
            refused(&format!("[{good},\n{good},\n{row},{good}]"), &format!("row 3: {reason}"));
        }
    }

    #[test]
    fn numbers_that_only_python_writes_are_named() {
        for (number, name) in [("NaN", "NaN"), ("Infinity", "Infinity"), ("-Infinity", "Infinity")] {
            for before in ["", " ", "\n", "\r\n  "] {
                let expected =
                    format!("row 2: {name}, which Python writes, is no JSON, and no answer either: an answer is a finite number");
                refused(&format!("[[\"é\", 1],\n[\"é\",{before}{number}]]"), &expected);
                refused(&format!("[[\"é\", 1], [\"é\",{before}{number}, \"x\"]]"), &expected);
            }
        }
    }

    #[test]
    fn what_is_no_array_of_rows_is_refused() {
        refused("[]", &format!("holds no questions: {WANTED}"));
        refused(" [ ] ", &format!("holds no questions: {WANTED}"));
        for text in ["", " \n", "x", "{}", "NaN", "5", "\"[]\"", "{\"a\": 1}\n{\"a\": 2}"] {
            refused(text, &format!("no JSON array of rows: {WANTED}"));
        }
        for (text, part) in [
            ("[[\"a\", 1]] x", "no JSON array of rows: trailing characters at line 1 column 12"),
            ("[[\"a\", 1]", "row 2: not JSON: EOF while parsing a list at line 1 column 9"),
            ("[[\"a\", 1],]", "row 2: not JSON: trailing comma at line 1 column 11"),
            ("[[\"a\",\n 1e999]]", "row 1: not JSON: number out of range at line 2 column"),
            ("[[\"a\", 1,000]]", "row 1: not JSON: invalid number at line 1"),
            ("[[\"a\", 01]]", "row 1: not JSON: invalid number at line 1"),
            ("[[\"a\nb\", 1]]", "row 1: not JSON: control character"),
            ("[[\"\\ud800\", 1]]", "row 1: not JSON: unexpected end of hex escape"),
            (&"[".repeat(100_000), "row 1: not JSON: recursion limit exceeded"),
        ] {
            let error = read(text, "a.json").unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.json: {part}")) && !error.contains('\n'), "{error}");
        }
        let error = read(&" ".repeat(MOST_BYTES + 1), "a.json").unwrap_err().to_string();
        assert_eq!(error, "a.json: holds 64 MiB of questions, and 64 are read at most: split the file");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut questions = vec![new("How many \"cm\" are 2 m?", 120.0), new("Größe\n\u{1f980} \\", 1e22), new("c", 5999.999999999999)];
        questions[1].reasoning = Some("1 + 1\t<answer>2</answer>".into());
        let text = written(&questions);
        assert_eq!(
            text,
            "[\n[\"How many \\\"cm\\\" are 2 m?\", 120.0],\n\
             [\"Größe\\n\u{1f980} \\\\\", 1e+22, \"1 + 1\\t<answer>2</answer>\"],\n[\"c\", 5999.999999999999]\n]\n"
        );
        assert_eq!(read(&text, "a.json").unwrap(), questions);
        assert_eq!(serde_json::from_str::<Vec<Value>>(&written(&[])).unwrap(), Vec::<Value>::new());
    }

    #[track_caller]
    fn odd(train: &[&str], valid: &[&str], expected: Option<&str>) {
        let questions = |texts: &[&str]| texts.iter().map(|text| new(text, 1.0)).collect::<Vec<_>>();
        assert_eq!(oddities(&questions(train), &questions(valid)).as_deref(), expected);
    }

    #[test]
    fn repeated_and_shared_questions_are_counted() {
        odd(&[], &[], None);
        odd(&["a", "b"], &["c"], None);
        odd(&["a", "b", "a", " a "], &["c"], Some("2 questions to learn from repeat others"));
        odd(&["a", "b", "a"], &["c"], Some("1 of the questions to learn from repeats another"));
        odd(&["a"], &["b", "b", "c", "c"], Some("2 questions to be tested on repeat others"));
        odd(&["a", "b"], &["a", "c"], Some("1 of the questions to be tested on is learned, too"));
        let all = "1 of the questions to learn from repeats another; 1 of the questions to be tested on repeats another; \
                   3 of the questions to be tested on are learned, too";
        odd(&["a", "b", "a"], &["a", "a", "b", "c"], Some(all));
    }

    #[test]
    fn two_ways_to_work_out_a_question_are_no_repetition() {
        let way = |reasoning: &str| Question { reasoning: Some(reasoning.into()), ..new("a", 1.0) };
        assert_eq!(oddities(&[way("x"), way("y"), new("a", 1.0)], &[]), None);
        assert!(oddities(&[way("x"), way("x")], &[]).is_some());
    }

    #[test]
    fn the_reference_file_is_read() {
        let Some(path) = crate::text::tokenizer::tests::shared_data("unit-conversion/train.json") else { return };
        let questions = read(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
        assert_eq!(questions.len(), 1000);
        assert_eq!(questions[0], new("Can you change 2 hour to its equivalent in min?", 120.0));
        assert_eq!(read(&written(&questions), "a.json").unwrap(), questions);
    }
}
