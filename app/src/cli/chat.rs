//! `smolforge chat`: a conversation with a model, by its chat template.

use std::io::{self, BufRead, IsTerminal, Write};

use smolforge_engine::protocol::{AdapterChoice, Command, DeviceChoice, Event, GenerateRequest, Message, Sampling};

use super::generate::SamplingFlags;
use super::progress::{dim, red};
use super::{DEVICES, JobFailed, Shell, adapter, choice};

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
                    continue;
                }
                "/undo" => {
                    messages.truncate(messages.len().saturating_sub(2).max(first.len()));
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
