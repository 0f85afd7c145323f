//! Where in a rendered conversation the assistant's replies lie.

use std::ops::Range;

use minijinja::Value;

use super::{CLOSE, ChatTemplate, Message, OPEN};
use crate::error::{Error, Result};

/// Stands for a reply while its place is looked for.
const PROBE: &str = "\u{fdd2}";

/// A conversation as text, and what of it the assistant says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What a model reads.
    pub text: String,
    /// In the order of the text.
    pub replies: Vec<Reply>,
    /// How the replies were found.
    pub found: Found,
}

/// A turn of the assistant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Index of the message.
    pub message: usize,
    /// Bytes of the text.
    pub bytes: Range<usize>,
}

/// Ways to find replies, surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// The template has `{% generation %}`.
    Marks,
    /// The text up to a reply, with the generation prompt, begins the text with the reply, which begins the whole text.
    /// A reply reaches to the end of what the template writes for it: end token, line break.
    Prefixes,
    /// The template writes a turn in another way when more turns follow: at least one reply was found by rendering another
    /// text in its place. Such a reply is only what the message says, without the end token.
    Contents,
}

impl ChatTemplate {
    /// The rendered conversation with the places of the assistant's turns.
    ///
    /// # Errors
    /// [`Error::Data`] where the conversation cannot be rendered, or a reply not be found for certain.
    pub fn spans(&self, messages: &[Message], tools: Option<&Value>) -> Result<Rendered> {
        let values: Vec<Value> = messages.iter().map(Message::value).collect();
        let text = self.render_values(&values, tools, false, false)?;
        let assistants: Vec<usize> = (0..messages.len()).filter(|index| messages[*index].role == "assistant").collect();
        if self.is_marked()
            && let Some(replies) = self.marked_replies(&values, tools, &text, &assistants)?
        {
            return Ok(Rendered { text, replies, found: Found::Marks });
        }
        let mut found = Found::Prefixes;
        let mut replies = Vec::with_capacity(assistants.len());
        for message in assistants {
            let bytes = match self.by_prefixes(&values, tools, &text, message) {
                Some(bytes) => bytes,
                None => {
                    found = Found::Contents;
                    self.by_content(messages, &values, tools, &text, message).ok_or_else(|| {
                        Error::Data(format!(
                            "the chat template hides where the reply in message {} lies: it writes a turn in another way when more turns follow",
                            message + 1
                        ))
                    })?
                }
            };
            replies.push(Reply { message, bytes });
        }
        Ok(Rendered { text, replies, found })
    }

    /// None where marks do not survive what the template does with them, or do not belong to replies one to one.
    fn marked_replies(&self, values: &[Value], tools: Option<&Value>, text: &str, assistants: &[usize]) -> Result<Option<Vec<Reply>>> {
        let Some((plain, ranges)) = unmarked(&self.render_values(values, tools, false, true)?) else { return Ok(None) };
        if plain != text {
            return Ok(None);
        }
        if ranges.len() == assistants.len() {
            return Ok(Some(assistants.iter().zip(ranges).map(|(message, bytes)| Reply { message: *message, bytes }).collect()));
        }
        // Several marks in a turn, or none: a message owns those that come with it.
        let mut replies: Vec<Reply> = Vec::new();
        for message in assistants {
            let Ok(marked) = self.render_values(&values[..=*message], tools, false, true) else { return Ok(None) };
            let Some(count) = unmarked(&marked).map(|(_, ranges)| ranges.len()) else { return Ok(None) };
            if count > ranges.len() || count < replies.len() {
                return Ok(None);
            }
            replies.extend(ranges[replies.len()..count].iter().map(|bytes| Reply { message: *message, bytes: bytes.clone() }));
        }
        Ok((replies.len() == ranges.len()).then_some(replies))
    }

    fn by_prefixes(&self, values: &[Value], tools: Option<&Value>, text: &str, message: usize) -> Option<Range<usize>> {
        let before = self.render_values(&values[..message], tools, true, false).ok()?;
        let after = self.render_values(&values[..=message], tools, false, false).ok()?;
        (after.starts_with(&before) && text.starts_with(&after)).then_some(before.len()..after.len())
    }

    fn by_content(
        &self,
        messages: &[Message],
        values: &[Value],
        tools: Option<&Value>,
        text: &str,
        message: usize,
    ) -> Option<Range<usize>> {
        let said = &messages[message];
        if text.contains(PROBE) || said.content.as_deref().unwrap_or_default().trim().is_empty() {
            return None;
        }
        let mut values = values.to_vec();
        values[message] = Message { content: Some(PROBE.into()), ..said.clone() }.value();
        let probed = self.render_values(&values, tools, false, false).ok()?;
        let (before, after) = probed.split_once(PROBE)?;
        let end = text.len().checked_sub(after.len())?;
        (!after.contains(PROBE) && before.len() <= end && text.starts_with(before) && text.ends_with(after)).then_some(before.len()..end)
    }
}

/// The text without the marks, and what lay between them; none where they are not in pairs.
fn unmarked(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let (mut text, mut ranges, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for piece in marked.split_inclusive([OPEN, CLOSE]) {
        text.push_str(piece.trim_end_matches([OPEN, CLOSE]));
        if piece.ends_with(OPEN) {
            if open.replace(text.len()).is_some() {
                return None;
            }
        } else if piece.ends_with(CLOSE) {
            ranges.push(open.take()?..text.len());
        }
    }
    open.is_none().then_some((text, ranges))
}
