//! One example → the ids a model reads and which of them it learns.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::data::chat::{Content, Example, Place};
use crate::data::document::Document;
use crate::error::{Error, Result};
use crate::text::template::{ChatTemplate, Found, Message, Value};
use crate::text::tokenizer::{Tokenizer, byte_alphabet};

/// Which tokens are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// What the assistant says in every turn, and the token that ends it; completions and texts.
    #[default]
    Assistant,
    /// The assistant's last turn, with the token that ends it; completions and texts.
    Completion,
    /// Everything, prompts included.
    All,
}

/// How examples become ids.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// The model's; conversations need one.
    pub template: Option<&'a ChatTemplate>,
    /// Ids at which the model stops when it generates. The first one ends completions and texts.
    pub stops: &'a [u32],
    /// Which tokens are learned.
    pub loss_on: LossOn,
    /// Most tokens of an example; the rest is cut off.
    pub max_length: usize,
}

/// An example as a model reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Where it comes from.
    pub place: Place,
    /// The kind of task.
    pub task: Option<String>,
    /// Ids and mask.
    pub document: Document,
    /// Tokens that were cut off.
    pub lost_tokens: usize,
    /// How many of them were to be learned.
    pub lost_targets: usize,
    /// How the replies of a conversation were found; none for other examples.
    pub found: Option<Found>,
}

/// A token of an example, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its text; bytes that are no character by themselves as `<0xF0>`.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// Whether it is learned.
    pub is_target: bool,
}

impl Encoder<'_> {
    /// Ids and mask of an example.
    ///
    /// # Errors
    /// [`Error::Data`] where there is no template for a conversation, or the template refuses it.
    pub fn encode(&self, example: &Example) -> Result<Encoded> {
        let mut found = None;
        let (mut tokens, mut mask) = match &example.content {
            Content::Chat { messages, tools } => {
                let (tokens, mask, how) = self.chat(messages, tools.as_ref())?;
                found = Some(how);
                (tokens, mask)
            }
            Content::Completion { prompt, completion } => {
                // Apart from each other: when the model generates, it gets the ids of the prompt alone.
                let mut tokens = self.with_begin(prompt);
                let mut mask = vec![self.loss_on == LossOn::All; tokens.len()];
                tokens.extend(self.tokenizer.encode(completion));
                self.end(&mut tokens);
                mask.resize(tokens.len(), true);
                (tokens, mask)
            }
            Content::Text(text) => {
                let mut tokens = self.with_begin(text);
                self.end(&mut tokens);
                let mask = vec![true; tokens.len()];
                (tokens, mask)
            }
        };
        let kept = self.max_length.min(tokens.len());
        let lost_targets = mask[kept..].iter().filter(|target| **target).count();
        let lost_tokens = tokens.len() - kept;
        tokens.truncate(kept);
        mask.truncate(kept);
        let document = Document { tokens, mask };
        Ok(Encoded { place: example.place.clone(), task: example.task.clone(), document, lost_tokens, lost_targets, found })
    }

    /// The tokens of an example with their texts.
    pub fn pieces(&self, document: &Document) -> Vec<Piece> {
        let piece = |(index, id): (usize, &u32)| Piece {
            text: shown(self.tokenizer.token_bytes(*id)),
            id: *id,
            is_target: document.is_target(index),
        };
        document.tokens.iter().enumerate().map(piece).collect()
    }

    /// Ids as they are when the model generates; a text that spells the first token out does not get it twice.
    fn with_begin(&self, text: &str) -> Vec<u32> {
        let mut tokens = self.tokenizer.encode_prompt(text);
        if self.tokenizer.begin().is_some_and(|begin| tokens.starts_with(&[begin, begin])) {
            tokens.remove(0);
        }
        tokens
    }

    fn end(&self, tokens: &mut Vec<u32>) {
        if let Some(stop) = self.stops.first().filter(|_| tokens.last().is_none_or(|last| !self.stops.contains(last))) {
            tokens.push(*stop);
        }
    }

    fn chat(&self, messages: &[Message], tools: Option<&Value>) -> Result<(Vec<u32>, Vec<bool>, Found)> {
        let Some(template) = self.template else {
            return Err(Error::Data(
                "the model has no chat template: take an Instruct model, or rows with `prompt` and `completion`".into(),
            ));
        };
        let rendered = template.spans(messages, tools)?;
        let tokens = self.tokenizer.encode(&rendered.text);
        if self.loss_on == LossOn::All {
            let mask = vec![true; tokens.len()];
            return Ok((tokens, mask, rendered.found));
        }
        let last = rendered.replies.last().map(|reply| reply.message);
        let mut mask = vec![false; tokens.len()];
        let places = Places::of(self.tokenizer, &rendered.text, &tokens);
        for reply in rendered.replies {
            if messages[reply.message].learn && (self.loss_on == LossOn::Assistant || Some(reply.message) == last) {
                let range = places.touching(&reply.bytes);
                mask[self.until_stop(&tokens, range, rendered.found)].fill(true);
            }
        }
        Ok((tokens, mask, rendered.found))
    }

    /// A reply ends with the token at which the model stops: what the template writes behind it is not learned, and a stop
    /// that stands right behind the range belongs to it.
    fn until_stop(&self, tokens: &[u32], range: Range<usize>, found: Found) -> Range<usize> {
        let is_stop = |index: &usize| tokens.get(*index).is_some_and(|id| self.stops.contains(id));
        let end = match range.clone().rev().find(is_stop) {
            Some(stop) if found != Found::Marks => stop + 1,
            _ if is_stop(&range.end) && (range.is_empty() || !is_stop(&(range.end - 1))) => range.end + 1,
            _ => range.end,
        };
        range.start..end
    }
}

/// Which bytes of a text its tokens stand for.
enum Places<'a> {
    /// Bytes of every token.
    Known(Vec<Range<usize>>),
    /// The tokenizer changes texts: places follow from the ids of the text's beginnings.
    Beginnings(&'a Tokenizer, &'a str, &'a [u32]),
}

impl<'a> Places<'a> {
    fn of(tokenizer: &'a Tokenizer, text: &'a str, tokens: &'a [u32]) -> Self {
        match places(tokenizer, text, tokens) {
            Some(places) => Self::Known(places),
            None => Self::Beginnings(tokenizer, text, tokens),
        }
    }

    /// The tokens that have a byte in a range.
    fn touching(&self, bytes: &Range<usize>) -> Range<usize> {
        match self {
            Self::Known(places) => {
                let last = places.partition_point(|place| place.start < bytes.end);
                if bytes.is_empty() { last..last } else { places.partition_point(|place| place.end <= bytes.start)..last }
            }
            Self::Beginnings(tokenizer, text, tokens) => {
                // Ids that a beginning shares with the whole lie within it; where it has more, one reaches across its end.
                let shared = |end: usize| {
                    let ids = tokenizer.encode(&text[..end]);
                    let same = ids.iter().zip(*tokens).take_while(|(a, b)| a == b).count();
                    (same, same < ids.len() && same < tokens.len())
                };
                let (first, (last, across)) = (shared(bytes.start).0, shared(bytes.end));
                first..(last + usize::from(across)).max(first)
            }
        }
    }
}

/// Which bytes of a text its tokens stand for; none where their bytes are not those of the text. Bytes for which the
/// vocabulary has no token are passed over.
fn places(tokenizer: &Tokenizer, text: &str, tokens: &[u32]) -> Option<Vec<Range<usize>>> {
    let alphabet = byte_alphabet();
    let is_dropped = |byte: &u8| tokenizer.token_id(alphabet[*byte as usize].encode_utf8(&mut [0; 4])).is_none();
    let text = text.as_bytes();
    let mut places = Vec::with_capacity(tokens.len());
    let mut at = 0;
    for id in tokens {
        let bytes = tokenizer.token_bytes(*id);
        while !text[at..].starts_with(bytes) && text.get(at).is_some_and(is_dropped) {
            at += 1;
        }
        if bytes.is_empty() || !text[at..].starts_with(bytes) {
            return None;
        }
        places.push(at..at + bytes.len());
        at += bytes.len();
    }
    text[at..].iter().all(is_dropped).then_some(places)
}

fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("<0x{byte:02X}>")));
    }
    text
}

#[cfg(test)]
mod tests;
