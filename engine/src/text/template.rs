//! The chat template of a model: the Jinja text that turns messages into what the model reads, as `transformers` renders it.

mod json;
mod replies;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use chrono::{NaiveDate, NaiveTime};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior, context, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

pub use minijinja::Value;
pub use replies::{Found, Rendered, Reply};

/// More text than any conversation has.
const MOST_BYTES: usize = 64 << 20;
/// Instructions of a template that every conversation may take, and those that each message or tool may. A template that
/// needs more does not end; the bound also keeps values that it nests into each other from filling the stack.
const FUEL: u64 = 50_000;
const FUEL_EACH: u64 = 1_000;

/// Names of the templates in [`ChatTemplate::environment`].
const DEFAULT: &str = "default";
const WITH_TOOLS: &str = "tool_use";

/// What `{% generation %}` puts round a reply while its place is looked for: characters that Unicode keeps out of texts.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// For tokenizers that know `<|im_start|>` and `<|im_end|>` but bring no template.
pub const CHATML: &str = "{% for message in messages %}
{% if message.tool_calls %}{{ raise_exception('tools need a model with a chat template of its own') }}{% endif %}
{{ '<|im_start|>' ~ message.role ~ '\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content ~ '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message.content ~ '<|im_end|>' }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// Its text; none where the turn is only a call of tools.
    pub content: Option<String>,
    /// Whether the model is to learn this turn, if it is the assistant's.
    #[serde(default = "yes")]
    pub learn: bool,
    /// What else the template may read: `tool_calls`, `name`, `reasoning_content`, …
    #[serde(default)]
    pub other: Vec<(String, Value)>,
}

fn yes() -> bool {
    true
}

impl Message {
    /// A turn that is only text.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: Some(content.into()), learn: true, other: Vec::new() }
    }

    /// As a template reads it: without what is null, and with reasoning under all names that templates know it by.
    fn value(&self) -> Value {
        let own = [("role", Value::from(self.role.as_str())), ("content", Value::from(self.content.clone()))];
        let other = self.other.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let mut fields: Vec<(&str, Value)> = own.into_iter().chain(other).filter(|(_, value)| !value.is_none()).collect();
        let named = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        if let Some(reasoning) = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(named) {
            if named("thinking").is_none() {
                fields.insert(0, ("thinking", reasoning.clone()));
            }
            fields.retain(|(key, _)| *key != "reasoning_content");
            fields.push(("reasoning_content", reasoning));
        }
        Value::from_pairs(fields)
    }
}

/// A compiled template with what it is given besides messages. The date is part of it: a clock would make training differ
/// from one day to the next.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, … as `tokenizer_config.json` spells them.
    tokens: BTreeMap<String, String>,
    date: NaiveDate,
    marked: bool,
    plain: bool,
    missing: bool,
    /// Why it cannot be used.
    failure: Option<Error>,
}

impl ChatTemplate {
    /// Reads the template of a model from the texts of its `tokenizer_config.json` and `chat_template.jinja`; the latter
    /// wins. Without any, a tokenizer with `<|im_start|>` and `<|im_end|>` gets plain ChatML, others get none. `date` is
    /// what the template is told if it asks for today's.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for other JSON and for templates that are no Jinja.
    pub fn read(config: Option<&str>, jinja: Option<&str>, tokenizer: &Tokenizer, date: NaiveDate) -> Result<Option<Self>> {
        let config: Value = serde_json::from_str(config.unwrap_or("{}"))
            .map_err(|e| Error::Tokenizer(format!("tokenizer_config.json: {}; is it whole?", one_line(&e.to_string()))))?;
        let mut sources = match jinja {
            Some(jinja) => BTreeMap::from([(DEFAULT.to_string(), jinja.to_string())]),
            None => templates(&config.get_attr("chat_template").unwrap_or_default())?,
        };
        let missing = sources.is_empty();
        if missing {
            if tokenizer.token_id("<|im_start|>").is_none() || tokenizer.token_id("<|im_end|>").is_none() {
                return Ok(None);
            }
            sources.insert(DEFAULT.into(), CHATML.into());
        }
        let plain = sources.get(DEFAULT).is_some_and(|source| source == CHATML); // also as we write it into folders
        let mut environment = environment(date);
        let mut marked = false;
        for (name, source) in sources.into_iter().filter(|(name, _)| name == DEFAULT || name == WITH_TOOLS) {
            let (source, marks) = mark(&source);
            marked |= marks;
            environment.add_template_owned(name, source).map_err(|e| Error::Tokenizer(failure(&e)))?;
        }
        if environment.get_template(DEFAULT).is_err() {
            return Err(Error::Tokenizer("tokenizer_config.json: none of its chat templates is named `default`".into()));
        }
        Ok(Some(Self { environment, tokens: special_tokens(&config), date, marked, plain, missing, failure: None }))
    }

    /// A template that cannot be used: says why when somebody needs it.
    pub fn broken(failure: Error, date: NaiveDate) -> Self {
        let (tokens, failure) = (BTreeMap::new(), Some(failure));
        Self { environment: environment(date), tokens, date, marked: false, plain: false, missing: false, failure }
    }

    /// Whether this is plain ChatML: the model's own template, or for want of one.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Whether the model has no template of its own.
    pub fn is_missing(&self) -> bool {
        self.missing
    }

    /// Whether it cannot be used.
    pub fn is_broken(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether `{% generation %}` says in the template what a model is to learn.
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// Whether the template asks for today's date.
    pub fn asks_for_date(&self) -> bool {
        self.environment.templates().any(|(_, template)| template.undeclared_variables(false).contains("strftime_now"))
    }

    /// The date that it is told.
    pub fn date(&self) -> NaiveDate {
        self.date
    }

    /// A special token that `tokenizer_config.json` names, e.g. `bos_token`.
    pub fn token(&self, name: &str) -> Option<&str> {
        self.tokens.get(name).map(String::as_str)
    }

    /// The text that a model reads; with `add_generation_prompt` it ends where the model is to go on.
    ///
    /// # Errors
    /// [`Error::Data`] where the template refuses the conversation, does not end, or writes more than 64 MiB.
    pub fn render(&self, messages: &[Message], tools: Option<&Value>, add_generation_prompt: bool) -> Result<String> {
        let values: Vec<Value> = messages.iter().map(Message::value).collect();
        self.render_values(&values, tools, add_generation_prompt, false)
    }

    fn render_values(&self, messages: &[Value], tools: Option<&Value>, prompt: bool, marks: bool) -> Result<String> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let each = messages.len() + tools.and_then(Value::len).unwrap_or(0);
        let mut environment = self.environment.clone(); // shares the templates
        environment.set_fuel(Some(FUEL + FUEL_EACH * each as u64));
        let name = if tools.is_some() && self.environment.get_template(WITH_TOOLS).is_ok() { WITH_TOOLS } else { DEFAULT };
        let template = environment.get_template(name).map_err(|e| Error::Data(failure(&e)))?;
        let given = context! {
            messages => messages,
            tools => tools.cloned().unwrap_or(Value::from(())),
            documents => Value::from(()),
            add_generation_prompt => prompt,
            generation_marks => marks,
            ..Value::from_pairs(self.tokens.iter().map(|(name, token)| (name.as_str(), token.as_str())))
        };
        let mut output = Bounded(Vec::new());
        let result = template.render_captured_to(given, &mut output).map(drop);
        if output.0.len() > MOST_BYTES {
            return Err(Error::Data(format!("the chat template writes more than {} MiB; does it loop?", MOST_BYTES >> 20)));
        }
        result.map_err(|e| Error::Data(failure(&e)))?;
        String::from_utf8(output.0).map_err(|_| Error::Data("the chat template writes bytes that are no text".into()))
    }

    /// The special tokens, like `<|im_end|>`, that the template writes and the tokenizer splits into several ids or drops.
    pub fn split_tokens(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        // What lies in a branch for tools or images need not be known: a plain conversation shows what is written.
        let sample = [Message::new("user", "a"), Message::new("assistant", "b")];
        let Ok(text) = self.render(&sample, None, true) else { return found };
        let named = self.tokens.values().filter(|token| text.contains(token.as_str())).cloned();
        for token in named.chain(bracketed(&text)) {
            if tokenizer.encode(&token).len() != 1 && !found.contains(&token) {
                found.push(token);
            }
        }
        found
    }
}

/// Everything of the form `<|…|>` (or with full-width bars).
fn bracketed(text: &str) -> impl Iterator<Item = String> {
    text.match_indices('<').filter_map(|(at, _)| {
        let token = &text[at..=at + text[at..].find('>')?];
        let inner = &token[1..token.len() - 1];
        let bars =
            [('|', '|'), ('｜', '｜')].iter().any(|(a, b)| inner.starts_with(*a) && inner.ends_with(*b) && inner.chars().count() > 2);
        (bars && inner.len() < 64 && !inner.contains(char::is_whitespace)).then(|| token.to_string())
    })
}

/// Name → source: a text, a list of `{name, template}`, or an object.
fn templates(value: &Value) -> Result<BTreeMap<String, String>> {
    let bad = || Error::Tokenizer("tokenizer_config.json: `chat_template` is neither a text nor a list of {name, template}".into());
    let text = |value: Value| value.as_str().map(str::to_string).ok_or_else(bad);
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => Ok(BTreeMap::new()),
        ValueKind::String => Ok(BTreeMap::from([(DEFAULT.to_string(), text(value.clone())?)])),
        ValueKind::Seq => {
            let rows = value.try_iter().map_err(|_| bad())?;
            let field = |row: &Value, key| text(row.get_attr(key).unwrap_or_default());
            rows.map(|row| Ok((field(&row, "name")?, field(&row, "template")?))).collect()
        }
        ValueKind::Map => {
            let names = value.try_iter().map_err(|_| bad())?;
            names.map(|name| Ok((text(name.clone())?, text(value.get_item(&name).unwrap_or_default())?))).collect()
        }
        _ => Err(bad()),
    }
}

/// `bos_token` and its like; each is a text, or an object whose `content` is one.
fn special_tokens(config: &Value) -> BTreeMap<String, String> {
    let names = config.try_iter().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_string));
    let text = |name: &str| {
        let value = config.get_attr(name).ok()?;
        value.as_str().map(str::to_string).or_else(|| value.get_attr("content").ok()?.as_str().map(str::to_string))
    };
    names.filter(|name| name.ends_with("_token")).filter_map(|name| text(&name).map(|token| (name, token))).collect()
}

/// Jinja as `transformers` sets it up.
fn environment(date: NaiveDate) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the usual delimiters differ"));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        let text = json::dumps(&value, &options)?;
        options.assert_all_used()?;
        Ok::<_, minijinja::Error>(text)
    });
    // A text is a sequence in Python.
    environment.add_test("sequence", |value: Value| value.len().is_some());
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| {
        let mut text = String::new();
        match write!(text, "{}", date.and_time(NaiveTime::MIN).format(&format)) {
            Ok(()) => Ok(text),
            Err(_) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no format of a date"))),
        }
    });
    environment.add_filter("generation", |state: &mut State, text: String| match state.lookup("generation_marks") {
        Some(marks) if marks.is_true() => format!("{OPEN}{text}{CLOSE}"),
        _ => text,
    });
    environment
}

/// Rewrites `{% generation %}…{% endgeneration %}`, a tag of `transformers`, into a filter, and tells whether there is one.
fn mark(source: &str) -> (String, bool) {
    let (mut output, mut rest, mut found) = (String::with_capacity(source.len() + 64), source, false);
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let tag = &rest[begin..begin + length];
        let word = tag.trim_start_matches("{%").trim_matches(['-', '+']).trim();
        output.push_str(&rest[..begin]);
        match word {
            "generation" => output.push_str(&tag.replacen("generation", "filter generation", 1)),
            "endgeneration" => output.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => output.push_str(tag),
        }
        found |= word == "generation";
        rest = &rest[begin + length..];
    }
    output.push_str(rest);
    (output, found)
}

/// A failure of a template in one line, with the place in it.
fn failure(error: &minijinja::Error) -> String {
    let place = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "takes more steps than any conversation needs; does it loop?".to_string(),
        kind => error.detail().map_or_else(|| kind.to_string(), one_line),
    };
    format!("chat template{place}: {what}")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Output that fails when there is too much of it.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (MOST_BYTES + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room { Err(io::Error::other("too long")) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
