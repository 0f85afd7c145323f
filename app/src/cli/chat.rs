//! `smolforge chat`: a conversation with a model, by its chat template.

use std::io::{self, BufRead, IsTerminal, Write};

use smolforge_engine::model::fetch::NOT_HERE;
use smolforge_engine::protocol::{AdapterChoice, Command, DeviceChoice, Event, GenerateRequest, Message, Sampling};

use super::generate::SamplingFlags;
use super::progress::{dim, red};
use super::{DEVICES, JobFailed, Shell, adapter, choice, print_json};

/// What may be said besides questions.
const COMMANDS: &str = "/new begins anew, /undo takes back the last turn, /quit ends";

/// Talk with a model: it sees the whole conversation by its chat template
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Standard input is read line by line, one turn each; /new begins anew, /undo takes back the last turn, /quit ends.\n\
    Ctrl-C stops an answer; twice: at once."
)]
pub struct Args {
    /// Hugging Face folder, run, or name on the hub
    #[arg(long, value_name = "DIR|NAME")]
    model: String,

    /// Adapter's folder or run, with :STRENGTH for another one than 1; repeat for several
    #[arg(long, value_name = "DIR[:STRENGTH]", value_parser = adapter)]
    adapter: Vec<AdapterChoice>,

    /// What the conversation begins with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Where to compute
    #[arg(long, value_parser = choice::<DeviceChoice>(DEVICES), default_value = "auto")]
    device: DeviceChoice,

    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: usize,

    #[command(flatten)]
    sampling: SamplingFlags,
}

impl Args {
    /// Talks until the input ends.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let sampling: Sampling = self.sampling.into();
        let first: Vec<Message> = self.system.iter().map(|text| Message::new("system", text)).collect();
        let mut messages = first.clone();
        let asks = io::stdin().is_terminal() && !json;
        let (mut turn, mut answered) = (0, false);
        let mut shell = Shell::start(false)?;
        let later = look(&self.model, &self.adapter, json, &mut shell)?;
        if asks {
            let named = |AdapterChoice { path, strength }: &AdapterChoice| format!(" + {path}:{strength}");
            let adapters: String = self.adapter.iter().map(named).collect();
            eprintln!("{}", dim(&format!("{}{adapters}{later} · {COMMANDS}", self.model)));
        }
        loop {
            if asks {
                print!("{} ", dim("you:"));
                io::stdout().flush()?;
            }
            let mut line = String::new();
            if io::stdin().lock().read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => return Ok(()),
                "/new" => {
                    messages.clone_from(&first);
                    eprintln!("{}", dim("a new conversation: all that was said is forgotten"));
                    continue;
                }
                "/undo" => {
                    let kept = messages.len().saturating_sub(2).max(first.len());
                    let undone =
                        if kept < messages.len() { "the last question and its answer are taken back" } else { "nothing was said yet" };
                    messages.truncate(kept);
                    eprintln!("{}", dim(undone));
                    continue;
                }
                text if is_command(&line) => {
                    eprintln!("{} there is no {text}; {COMMANDS} (a question may begin with / after a space)", red("error:"));
                    continue;
                }
                text => messages.push(Message::new("user", text)),
            }
            let request = GenerateRequest {
                model: self.model.clone(),
                adapters: self.adapter.clone(),
                messages: messages.clone(),
                device: self.device,
                max_new_tokens: self.max_new_tokens,
                sampling: Sampling { seed: sampling.seed.wrapping_add(turn), ..sampling },
                ..GenerateRequest::default()
            };
            turn += 1;
            let mut answer = None;
            let note = |event: &Event| {
                if let Event::Generated { text, tokens, .. } = event {
                    answer = Some(text.clone()).filter(|_| !tokens.is_empty());
                }
            };
            let ended = shell.run(Command::Generate(request), json, note, |screen, event| match event {
                Event::Text { text, .. } => screen.print(text),
                Event::Generated { .. } => screen.print("\n"),
                _ => Ok(()),
            });
            match (ended, answer) {
                (Ok(()), Some(answer)) => {
                    messages.push(Message::new("assistant", &answer));
                    answered = true;
                }
                (Ok(()), None) => drop(messages.pop()), // stopped before the first token
                // What cannot be answered is no reason to lose what was said before.
                (Err(error), _) if answered && error.is::<JobFailed>() => {
                    messages.pop();
                    eprintln!("{} {error}; the question is taken back (/undo takes back the turn before, /new all)", red("error:"));
                }
                (Err(error), _) => return Err(error),
            }
        }
    }
}

/// Looks at model and adapters before anything is asked. Returns what is to be said of a model that is not here yet.
fn look(model: &str, adapters: &[AdapterChoice], json: bool, shell: &mut Shell) -> anyhow::Result<&'static str> {
    let describe = Command::Describe { model: model.into(), adapters: adapters.to_vec() };
    let mut failed = None;
    let note = |event: &Event| failed = matches!(event, Event::Failed { .. }).then(|| event.clone());
    match shell.run(describe, false, note, |_, _| Ok(())) {
        Err(error) if error.is::<JobFailed>() && error.to_string().ends_with(NOT_HERE) => Ok(" (downloaded with the first question)"),
        ended => {
            failed.filter(|_| json).map_or(Ok(()), |event| print_json(&event))?;
            ended.map(|()| "")
        }
    }
}

/// Whether a line is a word behind a `/`, which means a command of the conversation and no question.
fn is_command(line: &str) -> bool {
    let word = line.strip_prefix('/').and_then(|rest| rest.split_whitespace().next());
    word.is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_behind_a_slash_is_a_command() {
        for (line, expect) in [("/help\n", true), ("/undo it", true), (" /help", false), ("/usr/bin?", false), ("/", false), ("1/2", false)]
        {
            assert_eq!(is_command(line), expect, "{line:?}");
        }
    }
}
