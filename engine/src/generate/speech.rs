//! What a model's folder says about text: tokenizer, template, where to stop.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate};
use web_time::{SystemTime, UNIX_EPOCH};

use crate::data::chat::{Content, Example};
use crate::data::example::{Encoder, LossOn};
use crate::error::{Error, Result};
use crate::model::{LlamaConfig, hub};
use crate::protocol::AdapterChoice;
use crate::store::{Store, inside};
use crate::text::template::{CHATML, ChatTemplate, Message};
use crate::text::tokenizer::Tokenizer;

const TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";

/// Small files by their names.
pub type Files = BTreeMap<&'static str, Vec<u8>>;

/// A model as far as text is concerned.
pub struct Speech {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its shape.
    pub shape: LlamaConfig,
    /// How it reads conversations.
    pub template: Option<ChatTemplate>,
    /// The template's text where that does not lie in the model's folder.
    jinja: Option<String>,
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
        let mut own = match template {
            Some(file) => Some(store.read_text(file).await?),
            None => None,
        };
        let jinja = match &own {
            Some(jinja) => Some(jinja.clone()),
            None => text(inside(folder, "chat_template.jinja")).await?,
        };
        let date = match date {
            Some(date) => {
                date.parse::<NaiveDate>().map_err(|_| Error::Config(format!("--date {date}: a date such as 2026-01-31 is needed")))?
            }
            None => today(),
        };
        // Prompts and rows without turns need none, so one that cannot be read is no matter yet.
        let template = ChatTemplate::read(config.as_deref(), jinja.as_deref(), &tokenizer, date);
        let template = template.unwrap_or_else(|error| Some(ChatTemplate::broken(error, date)));
        let mut stops = super::end_tokens(&tokenizer, &shape);
        if template.as_ref().is_some_and(ChatTemplate::is_plain) {
            own = Some(CHATML.into());
            // What plain ChatML ends turns with; the first id ends texts.
            stops.extend(tokenizer.token_id("<|im_end|>").filter(|end| !stops.contains(end)));
        }
        Ok(Self { tokenizer, shape, template, jinja: own, stops, date: date.to_string() })
    }

    /// What belongs beside the weights of a model that was trained from `folder` in this way: see [`files_around`], with
    /// the template that is in use, and where that is plain ChatML with the end of its turns.
    ///
    /// # Errors
    /// [`Error::File`] where a file cannot be read, [`Error::Format`] for a `generation_config.json` that is no JSON.
    pub async fn files(&self, store: &Store, folder: &str) -> Result<Files> {
        let mut files = files_around(store, folder).await?;
        let Some(jinja) = &self.jinja else { return Ok(files) };
        files.insert(TEMPLATE, jinja.clone().into_bytes());
        if self.template.as_ref().is_some_and(ChatTemplate::is_plain) {
            let path = inside(folder, GENERATION);
            let own = self.shape.generation_config_json().into_bytes();
            let config: serde_json::Result<serde_json::Map<_, _>> = serde_json::from_slice(files.get(GENERATION).unwrap_or(&own));
            let mut config = config.map_err(|e| Error::format(path, format!("not valid JSON: {e}")))?;
            config.insert("eos_token_id".into(), self.stops.clone().into());
            files.insert(GENERATION, format!("{:#}\n", serde_json::Value::Object(config)).into_bytes());
        }
        Ok(files)
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

/// What lies around the weights of a chat model and is the same for what is trained from it.
///
/// # Errors
/// [`Error::File`] where a file cannot be read.
pub async fn files_around(store: &Store, folder: &str) -> Result<Files> {
    let mut files = Files::new();
    for file in ["tokenizer_config.json", "special_tokens_map.json", TEMPLATE, GENERATION] {
        let path = inside(folder, file);
        if store.exists(&path).await {
            files.insert(file, store.read(&path).await?.to_vec());
        }
    }
    Ok(files)
}

/// Writes files into a folder.
///
/// # Errors
/// [`Error::File`] or [`Error::DiskFull`].
pub async fn write_files(store: &Store, folder: &str, files: &Files) -> Result<()> {
    for (name, bytes) in files {
        store.write(&inside(folder, name), bytes).await?;
    }
    Ok(())
}

/// The template that an adapter was trained with, where its folder has one.
pub async fn template_of(store: &Store, adapters: &[AdapterChoice]) -> Option<String> {
    for adapter in adapters {
        let path = inside(&adapter.path, TEMPLATE);
        if store.exists(&path).await {
            return Some(path);
        }
    }
    None
}

/// Today by UTC.
fn today() -> NaiveDate {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DateTime::from_timestamp(secs as i64, 0).map_or(NaiveDate::MIN, |time| time.date_naive())
}
