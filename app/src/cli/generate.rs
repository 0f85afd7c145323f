//! `smolforge generate`: text from a model, streamed to standard output.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context;
use clap::ArgGroup;
use futures_lite::future::block_on;
use smolforge_engine::protocol::{AdapterChoice, Command, DeviceChoice, Event, GenerateRequest, Sampling};

use super::progress::{Screen, dim};
use super::table::Table;
use super::{DEVICES, Usage, adapter, choice, drive, is_last, store};
use crate::units::{amount, duration, percent, rate, written_per_sec};

/// Generate text from a model
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").args(["prompt", "prompt_file"]).required(true))]
#[command(after_help = "Standard output gets the generated text alone (--echo puts the prompt before it), standard \
    error the speed. Several samples are told apart by a heading line.")]
pub struct Args {
    /// Hugging Face folder (config.json, tokenizer.json, model.safetensors), a run (its newest checkpoint), or a name on the hub
    #[arg(long, value_name = "DIR|NAME")]
    model: String,

    /// Adapter's folder or run, with :STRENGTH for another one than 1; repeat for several
    #[arg(long, value_name = "DIR[:STRENGTH]", value_parser = adapter)]
    adapter: Vec<AdapterChoice>,

    /// What the text begins with; repeat for several prompts
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,

    /// File with one prompt a line; - reads standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<String>,

    /// Print the prompt before its text
    #[arg(long)]
    echo: bool,

    /// Where to compute
    #[arg(long, value_parser = choice::<DeviceChoice>(DEVICES), default_value = "auto")]
    device: DeviceChoice,

    /// Most new tokens per sample
    #[arg(long, value_name = "N", default_value_t = GenerateRequest::default().max_new_tokens)]
    max_new_tokens: usize,

    /// Independent samples per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_samples: usize,

    /// End a sample at this text, which is left out; repeat for several; \n, \t, \r, \\ are understood
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    stop: Vec<String>,

    /// Show after the text every token with its probability and the N likeliest ones, at most 20
    #[arg(long, value_name = "N", default_value_t = 0)]
    alternatives: usize,

    #[command(flatten)]
    sampling: SamplingFlags,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingFlags {
    /// Take the most likely token every time
    #[arg(long)]
    greedy: bool,

    /// Divides the logits: below 1 safer, above 1 wilder; 0 is --greedy
    #[arg(long, value_name = "X", default_value_t = Sampling::default().temperature)]
    temperature: f32,

    /// Keep the N most likely tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = Sampling::default().top_k)]
    top_k: usize,

    /// Keep the fewest tokens whose probabilities sum to X; 1: all
    #[arg(long, value_name = "X", default_value_t = Sampling::default().top_p)]
    top_p: f32,

    /// Keep tokens at least X times as likely as the most likely one; 0: all
    #[arg(long, value_name = "X", default_value_t = Sampling::default().min_p)]
    min_p: f32,

    /// Make tokens that were there before less likely; 1: off
    #[arg(long, value_name = "X", default_value_t = Sampling::default().repetition_penalty)]
    repetition_penalty: f32,

    /// Seed of the draw
    #[arg(long, value_name = "N", default_value_t = Sampling::default().seed)]
    seed: u64,
}

impl Args {
    /// Generates and streams.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let prompts = match &self.prompt_file {
            Some(file) => read_prompts(file)?,
            None => self.prompt.clone(),
        };
        let mut samples = Samples::new(prompts.clone(), self.num_samples, self.echo);
        drive(Command::Generate(self.request(prompts)), json, |screen, event| samples.show(screen, event))
    }

    fn request(self, prompts: Vec<String>) -> GenerateRequest {
        GenerateRequest {
            model: self.model,
            adapters: self.adapter,
            prompts,
            device: self.device,
            max_new_tokens: self.max_new_tokens,
            num_samples: self.num_samples,
            sampling: self.sampling.into(),
            stop: self.stop,
            alternatives: self.alternatives,
            ..GenerateRequest::default()
        }
    }
}

impl From<SamplingFlags> for Sampling {
    fn from(flags: SamplingFlags) -> Self {
        let SamplingFlags { greedy, temperature, top_k, top_p, min_p, repetition_penalty, seed } = flags;
        Self { greedy, temperature, top_k, top_p, min_p, repetition_penalty, seed }
    }
}

fn read_prompts(file: &str) -> anyhow::Result<Vec<String>> {
    let text = match file {
        "-" => io::read_to_string(io::stdin()).context("standard input")?,
        file => block_on(store().read_text(file))?,
    };
    let prompts: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(String::from).collect();
    if prompts.is_empty() {
        return Err(Usage(format!("{file}: no prompt in it; write one a line")).into());
    }
    Ok(prompts)
}

fn stop_text(text: &str) -> Result<String, String> {
    let mut stop = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (char, chars.as_str().chars().next()) {
            ('\\', Some('n')) => stop.push('\n'),
            ('\\', Some('t')) => stop.push('\t'),
            ('\\', Some('r')) => stop.push('\r'),
            ('\\', Some('\\')) => stop.push('\\'),
            (char, _) => {
                stop.push(char);
                continue;
            }
        }
        chars.next();
    }
    if stop.is_empty() { Err("is empty: it would end every sample at once".into()) } else { Ok(stop) }
}

/// Samples in the order of their prompts, however their pieces arrive: the first unfinished one
/// streams, later ones wait.
pub struct Samples {
    prompts: Vec<String>,
    per_prompt: usize,
    echo: bool,
    current: (usize, usize),
    begun: bool,
    line_open: bool,
    waiting: BTreeMap<(usize, usize), Waiting>,
    tokens: BTreeMap<(usize, usize), Table>,
}

#[derive(Default)]
struct Waiting {
    text: String,
    stats: Option<String>,
}

impl Samples {
    /// For these prompts; none where the engine chooses them.
    pub fn new(prompts: Vec<String>, per_prompt: usize, echo: bool) -> Self {
        let (current, begun, line_open) = ((0, 0), false, false);
        Self { prompts, per_prompt, echo, current, begun, line_open, waiting: BTreeMap::new(), tokens: BTreeMap::new() }
    }

    /// Folds an event into what is printed.
    pub fn show(&mut self, screen: &Screen, event: &Event) -> io::Result<()> {
        match event {
            Event::Text { prompt, sample, text } => {
                self.waiting.entry((*prompt, *sample)).or_default().text += text;
                self.advance(screen)
            }
            Event::Token { prompt, sample, text, probability, alternatives } => {
                let table =
                    self.tokens.entry((*prompt, *sample)).or_insert_with(|| Table::new(&["token", ">probability", "likeliest tokens"]));
                let likeliest: Vec<String> = alternatives.iter().map(|(text, share)| format!("{text:?} {}", percent(*share))).collect();
                table.row([format!("{text:?}"), percent(*probability), likeliest.join("  ")]);
                Ok(())
            }
            Event::Generated { prompt, sample, prompt_tokens, tokens, finish, prefill_secs, decode_secs, .. } => {
                let per_sec = |speed: Option<f64>| speed.map_or("–".into(), rate);
                let stats = format!(
                    "prompt: {} in {} ({} tokens/s) · text: {} in {} ({} tokens/s) · ended by {finish}",
                    amount(*prompt_tokens as u64, "tokens"),
                    duration(*prefill_secs),
                    per_sec((*prefill_secs > 0.0).then(|| *prompt_tokens as f64 / prefill_secs)),
                    amount(tokens.len() as u64, "tokens"),
                    duration(*decode_secs),
                    per_sec(written_per_sec(tokens.len(), *decode_secs)),
                );
                self.waiting.entry((*prompt, *sample)).or_default().stats = Some(stats);
                self.advance(screen)
            }
            event if is_last(event) => self.flush(screen),
            _ => Ok(()),
        }
    }

    /// Prints what has its turn.
    fn advance(&mut self, screen: &Screen) -> io::Result<()> {
        while let Some(waiting) = self.waiting.remove(&self.current) {
            self.print(screen, &waiting.text)?;
            let Some(stats) = waiting.stats else { break };
            self.close_line(screen)?;
            if let Some(table) = self.tokens.remove(&self.current) {
                screen.println(format!("\n{table}\n"))?;
            }
            screen.line(dim(&stats));
            self.begun = false;
            self.current = match self.current {
                (prompt, sample) if sample + 1 < self.per_prompt => (prompt, sample + 1),
                (prompt, _) => (prompt + 1, 0),
            };
        }
        Ok(())
    }

    /// Prints what is left of a job that ended early.
    fn flush(&mut self, screen: &Screen) -> io::Result<()> {
        while let Some((key, waiting)) = self.waiting.pop_first() {
            self.close_line(screen)?;
            (self.current, self.begun) = (key, false);
            self.print(screen, &waiting.text)?;
        }
        self.close_line(screen)
    }

    fn print(&mut self, screen: &Screen, text: &str) -> io::Result<()> {
        let mut whole = String::new();
        if !self.begun {
            self.begun = true;
            let (prompt, sample) = self.current;
            let total = self.prompts.len();
            match (total, self.per_prompt) {
                (0, _) => whole += &format!("=== prompt {} ===\n", prompt + 1),
                (1, 0 | 1) => {}
                (1, samples) => whole += &format!("=== sample {} of {samples} ===\n", sample + 1),
                (_, 0 | 1) => whole += &format!("=== prompt {} of {total} ===\n", prompt + 1),
                (_, samples) => {
                    whole += &format!("=== prompt {} of {total}, sample {} of {samples} ===\n", prompt + 1, sample + 1);
                }
            }
            if self.echo {
                whole += self.prompts.get(prompt).map_or("", String::as_str);
            }
        }
        whole += text;
        if whole.is_empty() {
            return Ok(());
        }
        self.line_open = !whole.ends_with('\n');
        screen.print(&whole)
    }

    fn close_line(&mut self, screen: &Screen) -> io::Result<()> {
        if std::mem::take(&mut self.line_open) { screen.print("\n") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Verb, tests::parse};
    use super::*;

    #[test]
    fn escapes_in_stop_texts_are_understood() {
        for (text, expect) in [("\\n\\n", "\n\n"), ("a\\tb", "a\tb"), ("\\\\n", "\\n"), ("\\d", "\\d"), ("é", "é"), ("\\", "\\")] {
            assert_eq!(stop_text(text).as_deref(), Ok(expect), "{text}");
        }
        stop_text("").expect_err("an empty stop text ends everything");
    }

    #[test]
    fn flags_become_the_request() {
        let line = "smolforge generate --model m --prompt a --prompt b --top-k 40 --stop \\n --temperature -1 --greedy";
        let Verb::Generate(args) = parse(line).verb else { panic!("another verb") };
        let prompts = args.prompt.clone();
        let expect = GenerateRequest {
            model: "m".into(),
            prompts: vec!["a".into(), "b".into()],
            sampling: Sampling { greedy: true, temperature: -1.0, top_k: 40, ..Sampling::default() },
            stop: vec!["\n".into()],
            ..GenerateRequest::default()
        };
        assert_eq!(args.request(prompts), expect);
    }
}
