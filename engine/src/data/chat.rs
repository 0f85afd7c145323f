//! Rows of fine-tuning sets, one JSON object a line: conversations, tasks with answers, prompts with completions, texts.

mod shapes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::template::{Message, Value};

/// No row is longer.
const MOST_BYTES: usize = 16 << 20;

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// `{"messages": [{"role", "content"}], "tools"?}`; a message of the assistant may have `weight` 0 or 1.
    Messages,
    /// ShareGPT: `{"conversations": [{"from": "human", "value"}], "system"?, "tools"?}`.
    Conversations,
    /// Alpaca: `{"instruction", "input"?, "output", "system"?, "history"?: [[user, assistant]]}`.
    Instruction,
    /// `{"prompt", "completion"}`, both texts or both lists of messages.
    PromptCompletion,
    /// `{"text"}`.
    Text,
}

/// What the reader is told about a file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowFormat {
    /// None: that of the first good row.
    pub shape: Option<Shape>,
    /// Our key → the key in the file, e.g. `messages` → `dialog`.
    pub keys: BTreeMap<String, String>,
    /// How the task of an Alpaca row stands before its instruction, e.g. `[{TASK}] {instruction}`; `{TASK}` in capitals,
    /// `{task}` as it is.
    pub task_prefix_format: Option<String>,
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Line in the file from 1 on; in a JSON array the number of the row.
    pub line: usize,
    /// The file, where rows of several are together.
    pub file: Option<Arc<str>>,
}

impl From<usize> for Place {
    fn from(line: usize) -> Self {
        Self { line, file: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}:{}", self.line),
            None => write!(f, "{}", self.line),
        }
    }
}

/// A row that can be trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Where it stands.
    pub place: Place,
    /// The kind of task, in small letters: `meta.task`, `task`, or `[TASK]` at the start of what the user says first.
    pub task: Option<String>,
    /// What it holds.
    pub content: Content,
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A conversation; `tools` is a list of their JSON schemas.
    Chat {
        /// At least one of them is the assistant's.
        messages: Vec<Message>,
        /// What the assistant may call.
        tools: Option<Value>,
    },
    /// A text and how it goes on.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// A text.
    Text(String),
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Where it stands.
    pub place: Place,
    /// What is wrong with it.
    pub reason: String,
}

/// Different reasons that are told of bad rows.
const MOST_REASONS: usize = 3;

/// What is wrong with some bad rows, every reason once with the first row of it: `row 6: not JSON; row 9: no key `text``.
pub fn reasons(bad: &[BadRow]) -> String {
    let mut told: Vec<&BadRow> = Vec::new();
    for row in bad {
        if told.len() < MOST_REASONS && told.iter().all(|other| other.reason != row.reason) {
            told.push(row);
        }
    }
    told.iter().map(|row| format!("row {}: {}", row.place, row.reason)).collect::<Vec<_>>().join("; ")
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    /// The layout that was found or asked for; none where no row is good.
    pub shape: Option<Shape>,
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// In the order of the file.
    pub bad: Vec<BadRow>,
}

/// Reads JSONL, or a JSON array of rows. Empty lines are skipped; a row of another shape than the first good one is bad.
pub fn read(text: &str, format: &RowFormat) -> Rows {
    let text = text.trim_start_matches('\u{feff}');
    let mut rows = Rows { shape: format.shape, ..Rows::default() };
    if text.trim_start().starts_with('[') {
        match serde_json::from_str::<Vec<Value>>(text) {
            Ok(values) => values.into_iter().zip(1..).for_each(|(value, line)| rows.add(line, Ok(value), format)),
            Err(e) => {
                rows.bad.push(BadRow { place: e.line().into(), reason: format!("no JSON array of rows: {}", one_line(&e.to_string())) })
            }
        }
        return rows;
    }
    for (text, line) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        rows.add(line, value(text), format);
    }
    rows
}

impl Rows {
    fn add(&mut self, line: usize, value: Result<Value, String>, format: &RowFormat) {
        let shape = |value: &Value| self.shape.map_or_else(|| shapes::shape(value, format), Ok);
        match value.and_then(|value| shape(&value).and_then(|shape| Ok((shape, shapes::example(line, &value, shape, format)?)))) {
            Ok((shape, example)) => {
                self.shape = Some(shape);
                self.examples.push(example);
            }
            Err(reason) => self.bad.push(BadRow { place: line.into(), reason }),
        }
    }
}

fn value(line: &str) -> Result<Value, String> {
    if line.len() > MOST_BYTES {
        return Err(format!("{} MiB long; a row has at most {}", line.len() >> 20, MOST_BYTES >> 20));
    }
    serde_json::from_str(line).map_err(|e| format!("not JSON: {}", one_line(&e.to_string())))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The task that a text names before all else: `[SPEC] What is …` → `spec`.
pub fn task_of(text: &str) -> Option<String> {
    let name = text.trim_start().strip_prefix('[')?.split_once(']')?.0;
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
    let letters = name.chars().any(char::is_alphabetic) && name.chars().all(fits);
    (letters && name.len() <= 40).then(|| name.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(row: &str) -> (Vec<Message>, Option<Value>) {
        match only(row, &RowFormat::default()).content {
            Content::Chat { messages, tools } => (messages, tools),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn only(row: &str, format: &RowFormat) -> Example {
        let rows = read(row, format);
        assert_eq!(rows.bad, []);
        assert_eq!(rows.examples.len(), 1);
        rows.examples.into_iter().next().unwrap()
    }

    #[track_caller]
    fn refused(row: &str, reason: &str) {
        let rows = read(row, &RowFormat::default());
        assert_eq!(rows.examples, []);
        assert_eq!(rows.bad.len(), 1, "{:?}", rows.bad);
        let found = &rows.bad[0].reason;
        assert!(found.contains(reason) && !found.contains('\n'), "{found}");
    }

    #[test]
    fn shapes_of_a_conversation_are_one() {
        let expected = vec![Message::new("system", "s"), Message::new("user", "q"), Message::new("assistant", "a")];
        for row in [
            r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            r#"{"messages":[{"role":"system","content":[{"type":"text","text":"s"}]},{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":1}]}"#,
            r#"{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
            r#"{"conversations":[{"from":"user","value":"q"},{"from":"assistant","value":"a"}],"system":"s","tools":""}"#,
            r#"{"instruction":"q","input":"","output":"a","system":"s","history":[]}"#,
            r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]}"#,
        ] {
            assert_eq!(chat(row), (expected.clone(), None), "{row}");
        }
    }

    #[test]
    fn other_shapes_keep_their_texts() {
        let default = RowFormat::default();
        assert_eq!(
            only(r#"{"prompt":"1+1=","completion":"2"}"#, &default).content,
            Content::Completion { prompt: "1+1=".into(), completion: "2".into() }
        );
        assert_eq!(only("{\"text\":\"a\\nb\"}\r\n\n", &default).content, Content::Text("a\nb".into()));
        let (messages, _) = chat(r#"{"instruction":"q","input":"more","output":"a","history":[["q0","a0"]]}"#);
        let texts: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_deref().unwrap())).collect();
        assert_eq!(texts, [("user", "q0"), ("assistant", "a0"), ("user", "q\n\nmore"), ("assistant", "a")]);
    }

    #[test]
    fn the_first_good_row_decides_the_shape() {
        let text = "\u{feff}oops\n{\"text\":\"a\"}\n\n{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"text\":\"b\"}";
        let rows = read(text, &RowFormat::default());
        assert_eq!(rows.shape, Some(Shape::Text));
        assert_eq!(rows.examples.iter().map(|example| example.place.line).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(rows.bad.iter().map(|bad| bad.place.line).collect::<Vec<_>>(), [1, 4]);
        assert!(rows.bad[1].reason.contains("`text`"), "{}", rows.bad[1].reason);
    }

    #[test]
    fn an_array_of_rows_is_read_as_well() {
        let rows = read("[\n {\"text\": \"a\"},\n 7,\n {\"text\": \"b\"}\n]\n", &RowFormat::default());
        assert_eq!(rows.examples.iter().map(|example| example.place.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((rows.bad[0].place.line, rows.bad[0].reason.as_str()), (2, "a number, where a JSON object is needed"));
        let rows = read("[{\"text\": \"a\"},\n {\"text\": }]", &RowFormat::default());
        assert_eq!((rows.examples.len(), rows.bad[0].place.line), (0, 2));
        assert_eq!(read("[]", &RowFormat::default()), Rows::default());
    }

    #[test]
    fn every_reason_is_told_once_with_its_first_row() {
        let reason = |line: usize, reason: &str| BadRow { place: line.into(), reason: reason.into() };
        assert_eq!(reasons(&[]), "");
        let bad = [reason(2, "a"), reason(3, "a"), reason(5, "b"), reason(6, "c"), reason(7, "d")];
        assert_eq!(reasons(&bad), "row 2: a; row 5: b; row 6: c");
    }

    #[test]
    fn keys_can_have_other_names() {
        let keys = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let format = RowFormat { keys: keys(&[("messages", "dialog")]), ..RowFormat::default() };
        let row = r#"{"dialog":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
        assert!(matches!(only(row, &format).content, Content::Chat { .. }));
        let format = RowFormat { keys: keys(&[("prompt", "question"), ("completion", "answer")]), ..RowFormat::default() };
        assert!(matches!(only(r#"{"question":"q","answer":"a","text":"t"}"#, &format).content, Content::Completion { .. }));
    }

    #[test]
    fn a_task_stands_before_the_instruction() {
        let format = RowFormat { task_prefix_format: Some("[{TASK}] {instruction}".into()), ..RowFormat::default() };
        let first = |row: &str| {
            let example = only(row, &format);
            let Content::Chat { messages, .. } = example.content else { panic!() };
            (example.task, messages[0].content.clone().unwrap())
        };
        let row = |text: &str| format!(r#"{{"instruction":{text:?},"input":"","output":"12 Nm","meta":{{"task":"spec"}}}}"#);
        assert_eq!(first(&row("Which {task}?")), (Some("spec".into()), "[SPEC] Which {task}?".into()));
        assert_eq!(first(&row("[SPEC] Which?")), (Some("spec".into()), "[SPEC] Which?".into()));
        assert_eq!(first(r#"{"instruction":"q","output":"a"}"#), (None, "q".into()));
        assert_eq!(first(r#"{"instruction":"q","output":"a","task":"Wiring"}"#), (Some("wiring".into()), "[WIRING] q".into()));
    }

    #[test]
    fn the_task_of_a_conversation_is_found() {
        let row = |user: &str, more: &str| {
            format!(r#"{{"messages":[{{"role":"user","content":{user:?}}},{{"role":"assistant","content":"a"}}]{more}}}"#)
        };
        let task = |user: &str, more: &str| only(&row(user, more), &RowFormat::default()).task;
        assert_eq!(task("[SPEC] What?", "").as_deref(), Some("spec"));
        assert_eq!(task("What?", r#","meta":{"task":"Explanation"}"#).as_deref(), Some("explanation"));
        for none in ["What?", "[] x", "[1] x", "[a, b] x", "[SPEC"] {
            assert_eq!(task(none, ""), None, "{none}");
        }
    }

    #[test]
    fn weights_leave_turns_out() {
        let (messages, _) = chat(
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0},{"role":"user","content":"q"},{"role":"assistant","content":"b","weight":1}]}"#,
        );
        assert_eq!(messages.iter().map(|message| message.learn).collect::<Vec<_>>(), [true, false, true, true]);
        let (messages, _) = chat(
            r#"{"prompt":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"b"}]}"#,
        );
        assert_eq!(messages.iter().map(|message| message.learn).collect::<Vec<_>>(), [true, false, true, true]);
    }

    #[test]
    fn tools_keep_the_order_of_their_keys() {
        let tool = r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"z":1,"a":2}}}"#;
        let call = r#"{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{\"z\": 1, \"a\": [2.0]}"}}]}"#;
        let row = |tools: &str| {
            format!(r#"{{"messages":[{{"role":"user","content":"q"}},{call},{{"role":"tool","content":"7"}}],"tools":{tools}}}"#)
        };
        for tools in [format!("[{tool}]"), serde_json::to_string(&format!("[{tool}]")).unwrap()] {
            let (messages, tools) = chat(&row(&tools));
            assert_eq!(serde_json::to_string(&tools).unwrap(), format!("[{tool}]"));
            assert_eq!(messages[1].content, None);
            let calls = serde_json::to_string(&messages[1].other).unwrap();
            assert!(calls.contains(r#""arguments":{"z":1,"a":[2.0]}"#), "{calls}");
        }
        let (messages, _) = chat(
            r#"{"conversations":[{"from":"human","value":"q"},{"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{\"a\":1}}"},{"from":"observation","value":"7"},{"from":"gpt","value":"7"}]}"#,
        );
        assert_eq!(messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["user", "assistant", "tool", "assistant"]);
        assert_eq!(messages[1].other[0].0, "tool_calls");
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        refused("{", "not JSON");
        refused("7", "a number");
        refused("{}", "none of the keys `messages`, `conversations`, `instruction`, `prompt`, `text`; the row is empty");
        refused(r#"{"id":"7","dialog":[]}"#, "there are: `id`, `dialog`; name them with --columns, e.g. --columns '{messages: dialog}'");
        refused(r#"{"id":7,"question":"q","answer":"a"}"#, "--columns '{prompt: question, completion: answer}'");
        refused(r#"{"body":"b"}"#, "--columns '{text: body}'");
        refused(r#"{"messages":"x"}"#, "`messages` is no list");
        refused(r#"{"messages":[]}"#, "no turn of the assistant");
        refused(r#"{"messages":[7]}"#, "message 1: a number");
        refused(r#"{"messages":[{"content":"x"}]}"#, "message 1: no `role`");
        refused(r#"{"messages":[{"role":"","content":"x"}]}"#, "message 1: the role is empty");
        refused(r#"{"messages":[{"role":"wizard","content":"x"}]}"#, "role \"wizard\"");
        refused(r#"{"messages":[{"role":"user"}]}"#, "message 1: no `content`");
        refused(r#"{"messages":[{"role":"user","content":" \n"}]}"#, "message 1: the content is empty");
        refused(r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":""}]}"#, "message 2: the content is empty");
        refused(r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"x"}]}]}"#, "image_url");
        refused(r#"{"messages":[{"role":"user","content":{"a":[{"b":[]}]}}]}"#, "neither a text");
        refused(r#"{"messages":[{"role":"user","content":"q"}]}"#, "no turn of the assistant");
        refused(r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0.5}]}"#, "`weight`");
        refused(r#"{"conversations":[{"from":"function_call","value":"f(1)"}]}"#, "function_call");
        refused(r#"{"instruction":"q","output":""}"#, "`output` is empty");
        refused(r#"{"instruction":"","input":"","output":"a"}"#, "`instruction`");
        refused(r#"{"instruction":"q","output":"a","history":[["q"]]}"#, "`history`");
        refused(r#"{"prompt":"q"}"#, "`completion`");
        refused(r#"{"prompt":"q","completion":7}"#, "`completion`");
        refused(r#"{"text":" "}"#, "`text` is empty");
        refused(r#"{"text":["a"]}"#, "`text` is no text");
        refused(r#"{"text":"\ud800"}"#, "not JSON");
        refused(&"[".repeat(100_000), "no JSON array");
        refused(&format!("{{\"messages\":{}", "[".repeat(100_000)), "not JSON: recursion");
        refused(&format!("{{\"text\":\"{}\"}}", "a".repeat(MOST_BYTES)), "16 MiB long");
        assert_eq!(read("", &RowFormat::default()), Rows::default());
    }
}
