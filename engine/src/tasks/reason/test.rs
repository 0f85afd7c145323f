//! A model in a test: it is loaded, asked, and its answers are checked.

use super::questions::Question;
use crate::config::reason::ReasonConfig;
use crate::control::Control;
use crate::error::Result;
use crate::generate::speech::Speech;
use crate::model::{Adapter, Llama};
use crate::protocol::TestReport;
use crate::store::Store;
use crate::text::template::Message;

/// A model that can be asked.
pub struct Examinee {
    /// Its weights, with its adapter.
    pub model: Llama,
    /// How it reads and where it stops.
    pub speech: Speech,
}

/// What a question is asked with.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Nothing.
    Plain,
    /// What stands before it in a conversation by the model's chat template.
    Worked(Vec<Message>),
}

impl Prompt {
    /// The system's words, and examples as questions of the user and reasoning of the assistant.
    pub fn worked(system: &str, shots: &[Question]) -> Self {
        todo!("{system} {shots:?}")
    }
}

/// The folder of a model; `None` where the download was stopped.
///
/// # Errors
/// Where there is no such model.
pub async fn folder_of(model: &str, store: &Store, control: &Control) -> Result<Option<String>> {
    todo!("{model} {store:?} {:?}", control.flow())
}

impl Examinee {
    /// Loads a model with an adapter. `positions`: the longest sequence it will see, at least that of every prompt with
    /// its answer; 0: as many as its context has, at most 4096.
    ///
    /// # Errors
    /// What is wrong with folder, adapter or device.
    pub async fn load(
        config: &ReasonConfig,
        model: &str,
        adapter: Option<&Adapter>,
        positions: usize,
        store: &Store,
        control: &Control,
    ) -> Result<Option<Self>> {
        todo!("{} {model} {adapter:?} {positions} {:?}", config.out, (store, control.flow()))
    }

    /// What it writes greedily after every prompt, all of them side by side; `None` where it was stopped.
    ///
    /// # Errors
    /// Prompts that do not fit the context.
    pub async fn write(
        &self,
        questions: &[&str],
        prompt: &Prompt,
        config: &ReasonConfig,
        control: &Control,
    ) -> Result<Option<(Vec<String>, u64)>> {
        todo!("{questions:?} {} {:?}", config.out, (matches!(prompt, Prompt::Plain), control.flow()))
    }

    /// As [`Self::write`], one prompt after the other.
    ///
    /// # Errors
    /// Prompts that do not fit the context.
    pub async fn write_one_by_one(
        &self,
        questions: &[&str],
        prompt: &Prompt,
        config: &ReasonConfig,
        control: &Control,
    ) -> Result<Option<(Vec<String>, u64)>> {
        todo!("{questions:?} {} {:?}", config.out, (matches!(prompt, Prompt::Plain), control.flow()))
    }

    /// Asks the first `config.test_questions` questions and checks the answers; the report is emitted as well. `what` is its
    /// name. `None` where it was stopped.
    ///
    /// # Errors
    /// Prompts that do not fit the context.
    pub async fn test(
        &self,
        what: &str,
        questions: &[Question],
        prompt: &Prompt,
        config: &ReasonConfig,
        control: &Control,
    ) -> Result<Option<TestReport>> {
        todo!("{what} {questions:?} {} {:?}", config.out, (matches!(prompt, Prompt::Plain), control.flow()))
    }
}
