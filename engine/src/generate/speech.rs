//! What a model's folder says about text: tokenizer, template, where to stop.

use chrono::{DateTime, NaiveDate};
use web_time::{SystemTime, UNIX_EPOCH};

use crate::data::chat::{Content, Example};
use crate::data::example::{Encoder, LossOn};
use crate::error::{Error, Result};
use crate::model::{LlamaConfig, hub};
use crate::store::{Store, inside};
use crate::text::template::{ChatTemplate, Message};
use crate::text::tokenizer::Tokenizer;

/// A model as far as text is concerned.
pub struct Speech {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its shape.
    pub shape: LlamaConfig,
    /// How it reads conversations.
    pub template: Option<ChatTemplate>,
    /// Ids at which it stops.
    pub stops: Vec<u32>,
    /// What its template takes for today, `YYYY-MM-DD`.
    pub date: String,
}

impl Speech {
    /// Reads what lies in a model's folder; `template` is a Jinja file instead of the model's own.
    ///
    /// # Errors
    /// What is wrong with config, tokenizer or template.
    pub async fn load(store: &Store, folder: &str, template: Option<&str>, date: Option<&str>) -> Result<Self> {
        let shape = hub::read_config(store, folder).await?;
        let tokenizer = Tokenizer::load(store, folder).await?;
        super::fits(&tokenizer, &shape)?;
        let text = async |name: String| match store.exists(&name).await {
            true => store.read_text(&name).await.map(Some),
            false => Ok(None),
        };
        let config = text(inside(folder, "tokenizer_config.json")).await?;
        let jinja = match template {
            Some(file) => Some(store.read_text(file).await?),
            None => text(inside(folder, "chat_template.jinja")).await?,
        };
        let date = match date {
            Some(date) => {
                date.parse::<NaiveDate>().map_err(|_| Error::Config(format!("--date {date}: a date such as 2026-01-31 is needed")))?
            }
            None => today(),
        };
        let template = ChatTemplate::read(config.as_deref(), jinja.as_deref(), &tokenizer, date)?;
        let mut stops = super::end_tokens(&tokenizer, &shape);
        if template.as_ref().is_some_and(ChatTemplate::is_fallback)
            && let Some(end) = tokenizer.token_id("<|im_end|>")
            && !stops.contains(&end)
        {
            stops.push(end); // what plain ChatML ends turns with; the first id ends texts
        }
        Ok(Self { tokenizer, shape, template, stops, date: date.to_string() })
    }

    /// How examples become ids for it.
    pub fn encoder(&self, loss_on: LossOn, max_length: usize) -> Encoder<'_> {
        Encoder {
            tokenizer: &self.tokenizer,
            template: self.template.as_ref(),
            stops: &self.stops,
            loss_on,
            max_length: max_length.min(self.shape.max_position_embeddings),
        }
    }

    /// Ids of a conversation up to where the model is to go on.
    ///
    /// # Errors
    /// [`Error::Config`] where the model has no chat template, [`Error::Data`] where that refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self
            .template
            .as_ref()
            .ok_or_else(|| Error::Config("the model has no chat template: take an Instruct model, or a prompt without roles".into()))?;
        Ok(self.tokenizer.encode(&template.render(messages, None, true)?))
    }

    /// Ids of what comes before an example's last answer, and that answer: what the model is asked, and what it should say.
    ///
    /// # Errors
    /// Where the template refuses the conversation.
    pub fn question(&self, example: &Example) -> Result<Option<(String, Vec<u32>, String)>> {
        match &example.content {
            Content::Chat { messages, tools } => {
                let Some(last) = messages.iter().rposition(|message| message.role == "assistant") else { return Ok(None) };
                let Some(template) = &self.template else { return Ok(None) };
                let text = template.render(&messages[..last], tools.as_ref(), true)?;
                let asked =
                    messages[..last].iter().rev().find(|message| message.role == "user").and_then(|message| message.content.clone());
                let answer = messages[last].content.clone().unwrap_or_default();
                Ok(Some((asked.unwrap_or_default(), self.tokenizer.encode(&text), answer)))
            }
            Content::Completion { prompt, completion } => {
                Ok(Some((prompt.clone(), super::prompt_ids(&self.tokenizer, &self.shape, prompt), completion.clone())))
            }
            Content::Text(_) => Ok(None),
        }
    }
}

/// Today by UTC.
fn today() -> NaiveDate {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DateTime::from_timestamp(secs as i64, 0).map_or(NaiveDate::MIN, |time| time.date_naive())
}
