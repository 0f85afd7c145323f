//! What the keys of a row mean.

use minijinja::value::ValueKind;

use super::{Content, Example, RowFormat, Shape, task_of};
use crate::error::{Error, nearest};
use crate::text::template::{Message, Value};

/// Names of a role → the role. `function_call` is the assistant's.
const ROLES: [(&str, &str); 16] = [
    ("system", "system"),
    ("developer", "developer"),
    ("user", "user"),
    ("human", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("function_call", "assistant"),
    ("tool", "tool"),
    ("function", "tool"),
    ("observation", "tool"),
    ("tool_response", "tool"),
    ("function_response", "tool"),
    ("ipython", "ipython"),
];

/// Keys of ours that rows may have under other names.
const KEYS: [&str; 15] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "text",
    "system",
    "tools",
    "role",
    "content",
    "from",
    "value",
];

impl RowFormat {
    /// Refuses other names for keys that are none of ours.
    ///
    /// # Errors
    /// [`Error::Config`] with the nearest one.
    pub fn check(&self) -> Result<(), Error> {
        let Some((key, other)) = self.keys.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) else { return Ok(()) };
        let turned = KEYS.contains(&other.as_str()).then(|| format!("; did you mean {other}: {key}?"));
        let near = nearest(key, KEYS.into_iter()).map(|near| format!("; did you mean {near}?"));
        let known = || format!("; there are {}", KEYS.join(", "));
        Err(Error::Config(format!("--columns {key}: no key of rows{}", near.or(turned).unwrap_or_else(known))))
    }
}

/// What says per message whether it is learned.
const WEIGHTS: [&str; 3] = ["weight", "train", "training"];

/// The value under one of our keys; none where it is missing or null.
fn get(row: &Value, key: &str, format: &RowFormat) -> Option<Value> {
    let key = format.keys.get(key).map_or(key, String::as_str);
    row.get_attr(key).ok().filter(|value| !value.is_undefined() && !value.is_none())
}

fn name<'a>(key: &'a str, format: &'a RowFormat) -> &'a str {
    format.keys.get(key).map_or(key, String::as_str)
}

fn check_object(value: &Value) -> Result<(), String> {
    if value.kind() == ValueKind::Map { Ok(()) } else { Err(format!("a {}, where a JSON object is needed", value.kind())) }
}

/// The layout of a row by its keys.
pub(super) fn shape(row: &Value, format: &RowFormat) -> Result<Shape, String> {
    check_object(row)?;
    let has = |key| get(row, key, format).is_some();
    let shapes = [
        ("messages", Shape::Messages),
        ("conversations", Shape::Conversations),
        ("instruction", Shape::Instruction),
        ("prompt", Shape::PromptCompletion),
        ("text", Shape::Text),
    ];
    shapes.iter().find(|(key, _)| has(key)).map(|(_, shape)| *shape).ok_or_else(|| {
        let known = shapes.map(|(key, _)| format!("`{}`", name(key, format))).join(", ");
        let found: Vec<String> = row.try_iter().into_iter().flatten().take(8).map(|key| key.to_string()).collect();
        if found.is_empty() {
            return format!("none of the keys {known}; the row is empty");
        }
        let named: Vec<String> = found.iter().map(|key| format!("`{key}`")).collect();
        let example = columns(row, &found);
        format!("none of the keys {known}; there are: {}; name them with --columns, e.g. --columns '{example}'", named.join(", "))
    })
}

/// What the keys of a row could be called, as a value of `--columns`.
fn columns(row: &Value, keys: &[String]) -> String {
    let are = |kind: ValueKind| {
        let is_kind = move |key: &&String| row.get_attr(key).is_ok_and(|value| value.kind() == kind);
        keys.iter().filter(is_kind).collect::<Vec<_>>()
    };
    match (are(ValueKind::Seq).as_slice(), are(ValueKind::String).as_slice()) {
        ([list, ..], _) => format!("{{messages: {list}}}"),
        (_, [prompt, completion, ..]) => format!("{{prompt: {prompt}, completion: {completion}}}"),
        (_, [text]) => format!("{{text: {text}}}"),
        _ => "{messages: dialog}".into(),
    }
}

pub(super) fn example(line: usize, row: &Value, shape: Shape, format: &RowFormat) -> Result<Example, String> {
    check_object(row)?;
    let text = |key| text(row, key, format);
    let mut task = task(row);
    let content = match shape {
        Shape::Text => Content::Text(text("text")?.ok_or_else(|| missing("text", format))?),
        Shape::Messages => chat(row, messages(row, "messages", format)?, format)?,
        Shape::Conversations => chat(row, messages(row, "conversations", format)?, format)?,
        Shape::Instruction => chat(row, instruction(row, task.as_deref(), format)?, format)?,
        Shape::PromptCompletion if get(row, "prompt", format).is_some_and(|prompt| prompt.kind() == ValueKind::Seq) => {
            let mut all = messages(row, "prompt", format)?;
            all.iter_mut().filter(|message| message.role == "assistant").for_each(|message| message.learn = false);
            let completion = messages(row, "completion", format)?;
            if !completion.iter().any(|message| message.role == "assistant") {
                return Err(format!("no turn of the assistant in `{}`: nothing to learn", name("completion", format)));
            }
            all.extend(completion);
            chat(row, all, format)?
        }
        Shape::PromptCompletion => Content::Completion {
            prompt: text("prompt")?.ok_or_else(|| missing("prompt", format))?,
            completion: text("completion")?.ok_or_else(|| missing("completion", format))?,
        },
    };
    if task.is_none() {
        task = match &content {
            Content::Chat { messages, .. } => {
                messages.iter().find(|message| message.role == "user").and_then(|message| task_of(message.content.as_deref()?))
            }
            Content::Completion { prompt, .. } => task_of(prompt),
            Content::Text(_) => None,
        };
    }
    Ok(Example { place: line.into(), task, content })
}

fn missing(key: &str, format: &RowFormat) -> String {
    format!("no key `{}`", name(key, format))
}

/// A text that is not empty; none where the key is missing.
fn text(row: &Value, key: &str, format: &RowFormat) -> Result<Option<String>, String> {
    let Some(value) = get(row, key, format) else { return Ok(None) };
    let Some(text) = value.as_str() else { return Err(format!("`{}` is no text but a {}", name(key, format), value.kind())) };
    if text.trim().is_empty() {
        return Err(format!("`{}` is empty", name(key, format)));
    }
    Ok(Some(text.to_string()))
}

/// Like [`text`], for what may be empty.
fn optional(row: &Value, key: &str, format: &RowFormat) -> Result<Option<String>, String> {
    match get(row, key, format) {
        Some(value) if value.as_str().is_some_and(|text| text.trim().is_empty()) => Ok(None),
        _ => text(row, key, format),
    }
}

/// `meta.task`, or `task`.
fn task(row: &Value) -> Option<String> {
    let of = |value: &Value| value.get_attr("task").ok()?.as_str().map(|task| task.trim().to_lowercase());
    row.get_attr("meta").ok().and_then(|meta| of(&meta)).or_else(|| of(row)).filter(|task| !task.is_empty())
}

fn chat(row: &Value, mut messages: Vec<Message>, format: &RowFormat) -> Result<Content, String> {
    if let Some(system) = optional(row, "system", format)?
        && messages.first().is_none_or(|message| message.role != "system")
    {
        messages.insert(0, Message::new("system", &system));
    }
    if !messages.iter().any(|message| message.role == "assistant") {
        return Err("no turn of the assistant: nothing to learn".into());
    }
    Ok(Content::Chat { messages, tools: tools(row, format)? })
}

/// A list of schemas, or a text that holds one.
fn tools(row: &Value, format: &RowFormat) -> Result<Option<Value>, String> {
    let Some(mut tools) = get(row, "tools", format) else { return Ok(None) };
    let bad = || format!("`{}` is no list of JSON objects", name("tools", format));
    if let Some(text) = tools.as_str() {
        if text.trim().is_empty() {
            return Ok(None);
        }
        tools = serde_json::from_str(text).map_err(|_| bad())?;
    }
    if tools.kind() != ValueKind::Seq || tools.try_iter().into_iter().flatten().any(|tool| tool.kind() != ValueKind::Map) {
        return Err(bad());
    }
    Ok(tools.is_true().then_some(tools))
}

/// The turns of an Alpaca row.
fn instruction(row: &Value, task: Option<&str>, format: &RowFormat) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    if let Some(history) = get(row, "history", format) {
        let bad = || format!("`{}` is no list of [user, assistant] pairs", name("history", format));
        for pair in history.try_iter().map_err(|_| bad())? {
            let texts: Vec<Value> = pair.try_iter().map_err(|_| bad())?.collect();
            let [Some(user), Some(assistant)] = [0, 1].map(|index| texts.get(index).and_then(Value::as_str)) else { return Err(bad()) };
            messages.extend([Message::new("user", user), Message::new("assistant", assistant)]);
        }
    }
    let mut said = text(row, "instruction", format)?.ok_or_else(|| missing("instruction", format))?;
    if let (Some(pattern), Some(task)) = (&format.task_prefix_format, task) {
        let before = fill(pattern, task, "");
        if !said.starts_with(before.trim()) {
            said = fill(pattern, task, &said);
        }
    }
    if let Some(input) = optional(row, "input", format)? {
        said = format!("{said}\n\n{input}");
    }
    messages.push(Message::new("user", &said));
    messages.push(Message::new("assistant", &text(row, "output", format)?.ok_or_else(|| missing("output", format))?));
    Ok(messages)
}

/// The pattern with its places filled; what is put in is not looked at again.
fn fill(pattern: &str, task: &str, instruction: &str) -> String {
    let places = [("{TASK}", task.to_uppercase()), ("{task}", task.to_string()), ("{instruction}", instruction.to_string())];
    let (mut output, mut rest) = (String::new(), pattern);
    while let Some((at, (place, text))) = places.iter().filter_map(|place| Some((rest.find(place.0)?, place))).min_by_key(|found| found.0) {
        output.push_str(&rest[..at]);
        output.push_str(text);
        rest = &rest[at + place.len()..];
    }
    output + rest
}

fn messages(row: &Value, key: &str, format: &RowFormat) -> Result<Vec<Message>, String> {
    let list = get(row, key, format).ok_or_else(|| missing(key, format))?;
    if list.kind() != ValueKind::Seq {
        return Err(format!("`{}` is no list but a {}", name(key, format), list.kind()));
    }
    let items = list.try_iter().map_err(|e| e.to_string())?;
    items.zip(1..).map(|(item, number)| message(&item, format).map_err(|why| format!("message {number}: {why}"))).collect()
}

/// `role` and `content`, or ShareGPT's `from` and `value`.
fn message(value: &Value, format: &RowFormat) -> Result<Message, String> {
    check_object(value)?;
    let of = |own: &str, other: &str| get(value, own, format).or_else(|| get(value, other, format));
    let role = of("role", "from").ok_or("no `role` or `from`")?;
    let said = role.as_str().unwrap_or_default().trim().to_lowercase();
    if said.is_empty() {
        return Err("the role is empty".into());
    }
    let Some((_, role)) = ROLES.iter().find(|(known, _)| *known == said) else {
        return Err(format!("role {said:?} is not known; system, user, assistant and tool are"));
    };
    let mut content = of("content", "value").map(|content| plain(&content)).transpose()?;
    let mut learn = true;
    let mut other = Vec::new();
    for key in value.try_iter().map_err(|e| e.to_string())? {
        let field = value.get_item(&key).map_err(|e| e.to_string())?;
        let key = key.to_string();
        if WEIGHTS.contains(&key.as_str()) {
            learn = weight(&key, &field)?;
        } else if key == "tool_calls" {
            if field.is_true() {
                other.push((key, calls(&field)?));
            }
        } else if ["role", "content", "from", "value"].iter().all(|known| name(known, format) != key && *known != key) {
            other.push((key, field));
        }
    }
    if said == "function_call" {
        let call: Option<Value> = content.take().and_then(|text| serde_json::from_str(&text).ok());
        let call = call.filter(|call| call.get_attr("name").is_ok_and(|name| name.as_str().is_some()));
        let call = call.ok_or("a function_call is JSON with `name` and `arguments`")?;
        let call = Value::from_pairs([("type", Value::from("function")), ("function", call)]);
        other.push(("tool_calls".into(), calls(&Value::from(vec![call]))?));
    }
    let calls_tools = other.iter().any(|(key, _)| key == "tool_calls");
    if content.is_none() && !calls_tools {
        return Err("no `content` or `value`".into());
    }
    let may_be_empty = calls_tools || !matches!(*role, "user" | "assistant");
    if !may_be_empty && content.as_deref().is_some_and(|text| text.trim().is_empty()) {
        return Err("the content is empty".into());
    }
    Ok(Message { role: role.to_string(), content, learn, other })
}

/// A text, or the texts of a list of `{"type": "text", "text"}` joined.
fn plain(content: &Value) -> Result<String, String> {
    if let Some(text) = content.as_str() {
        return Ok(text.to_string());
    }
    if content.kind() != ValueKind::Seq {
        return Err(format!("the content is neither a text nor a list of texts but a {}", content.kind()));
    }
    let part = |part: Value| {
        let text = part.as_str().map(str::to_string).or_else(|| part.get_attr("text").ok()?.as_str().map(str::to_string));
        text.ok_or_else(|| match part.get_attr("type") {
            Ok(kind) if kind.as_str().is_some() => format!("the content has a part of type {kind}; only texts can be trained on"),
            _ => "the content has a part that is no text".to_string(),
        })
    };
    content.try_iter().map_err(|e| e.to_string())?.map(part).collect()
}

fn weight(key: &str, value: &Value) -> Result<bool, String> {
    match (value.kind(), value.as_i64()) {
        (ValueKind::None, _) => Ok(true),
        (ValueKind::Bool, _) => Ok(value.is_true()),
        (_, Some(0)) => Ok(false),
        (_, Some(1)) => Ok(true),
        _ => Err(format!("`{key}` is {value}; 0 and 1 are known")),
    }
}

/// Calls of tools; arguments that are written as a text become the object that templates expect.
fn calls(value: &Value) -> Result<Value, String> {
    let bad = || "`tool_calls` is no list of {\"function\": {\"name\", \"arguments\"}}".to_string();
    if value.kind() != ValueKind::Seq {
        return Err(bad());
    }
    let with = |object: &Value, key: &str, field: Value| {
        let keys = object.try_iter().into_iter().flatten();
        Value::from_pairs(
            keys.map(|k| (k.clone(), if k.as_str() == Some(key) { field.clone() } else { object.get_item(&k).unwrap_or_default() })),
        )
    };
    let one = |call: Value| {
        let function = call.get_attr("function").map_err(|_| bad())?;
        if function.kind() != ValueKind::Map || function.get_attr("name").ok().is_none_or(|name| name.as_str().is_none()) {
            return Err(bad());
        }
        let arguments = function.get_attr("arguments").unwrap_or_default();
        let object =
            arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok()).filter(|value| value.kind() == ValueKind::Map);
        Ok(object.map_or(call.clone(), |object| with(&call, "function", with(&function, "arguments", object))))
    };
    value.try_iter().map_err(|_| bad())?.map(one).collect::<Result<Vec<Value>, String>>().map(Value::from)
}
