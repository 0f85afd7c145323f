//! One row of a JSONL file.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The text under `key` in a JSON object; everything else is skipped without being stored. The error says
/// what is wrong with the row.
pub(crate) fn text_of(row: &str, key: &str) -> Result<String, String> {
    struct Pick<'a>(&'a str);
    impl<'de> DeserializeSeed<'de> for Pick<'_> {
        type Value = Option<serde_json::Value>;
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(self)
        }
    }
    impl<'de> Visitor<'de> for Pick<'_> {
        type Value = Option<serde_json::Value>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<String>()? {
                if key == self.0 {
                    found = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(row);
    let found = Pick(key).deserialize(&mut deserializer).and_then(|found| deserializer.end().map(|()| found));
    match found {
        Err(e) => Err(format!("not a JSON object ({})", e.to_string().replace('\n', " "))),
        Ok(None) => Err(format!("no key `{key}`")),
        Ok(Some(serde_json::Value::String(text))) if text.trim().is_empty() => Err(format!("`{key}` is empty")),
        Ok(Some(serde_json::Value::String(text))) => Ok(text),
        Ok(Some(_)) => Err(format!("`{key}` is not text")),
    }
}
