//! JSON as Python's `json.dumps` writes it, for the filter `tojson`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use crate::text::python::repr;

/// Deeper than any tool's schema; templates can nest further than the stack reaches.
const MOST_LEVELS: usize = 128;

struct Style {
    ascii: bool,
    /// What one level is indented by; none for one line.
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` with the defaults of `transformers`: characters as they
/// are, keys in their order.
pub(super) fn dumps(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_string),
        Some(count) => Some(" ".repeat(count.as_i64().unwrap_or(0).clamp(0, 64) as usize)),
        None => None,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (between, after_key) = match separators.as_deref() {
        Some([between, after_key]) => (between.clone(), after_key.clone()),
        Some(_) => return Err(refused("`separators` of tojson are two texts")),
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let flag = |name| options.get::<Option<bool>>(name).map(Option::unwrap_or_default);
    let style = Style { ascii: flag("ensure_ascii")?, indent, between, after_key, sorted: flag("sort_keys")? };
    let mut output = String::new();
    style.write(value, 0, &mut output)?;
    Ok(output)
}

impl Style {
    fn write(&self, value: &Value, level: usize, output: &mut String) -> Result<(), Error> {
        if level > MOST_LEVELS {
            return Err(refused("tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => output.push_str("null"),
            ValueKind::Bool => output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => output.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), output),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], &items, level, output, |item, output| self.write(item, level + 1, output))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list(['{', '}'], &keys, level, output, |key, output| {
                    self.text(&key_text(key)?, output);
                    output.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, level + 1, output)
                })?;
            }
            kind => return Err(refused(&format!("tojson: {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn list(
        &self,
        [open, close]: [char; 2],
        items: &[Value],
        level: usize,
        output: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |level: usize, output: &mut String| {
            if let Some(indent) = &self.indent {
                output.push('\n');
                output.push_str(&indent.repeat(level));
            }
        };
        output.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                output.push_str(&self.between);
            }
            line(level + 1, output);
            write(item, output)?;
        }
        if !items.is_empty() {
            line(level, output);
        }
        output.push(close);
        Ok(())
    }

    fn text(&self, text: &str, output: &mut String) {
        let quoted = serde_json::to_string(text).unwrap_or_default(); // escapes exactly what Python does
        for unit in quoted.chars() {
            if self.ascii && !(' '..='~').contains(&unit) {
                unit.encode_utf16(&mut [0; 2]).iter().for_each(|code| output.push_str(&format!("\\u{code:04x}")));
            } else {
                output.push(unit);
            }
        }
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_string()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_string()),
        ValueKind::None => Ok("null".to_string()),
        kind => Err(refused(&format!("tojson: a key is a text, not {kind}"))),
    }
}

/// A number as Python's `json` writes it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => match repr(number) {
            special if number.is_finite() => special,
            special => special.replace("nan", "NaN").replace("inf", "Infinity"),
        },
        _ => value.to_string(),
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.to_string())
}
