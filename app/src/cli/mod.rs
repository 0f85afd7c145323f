//! The command line, a shell of the engine: a verb builds one [`Command`] and shows the [`Event`]s that answer it.
//!
//! Results go to standard output, what happens meanwhile to standard error; with `--json` standard
//! output carries one event a line and nothing else. Exit codes: 0 done or stopped, 1 the job failed,
//! 2 wrong usage, 101 a defect of smolforge, 130 interrupted twice.

mod answers;
mod bench;
mod chat;
mod demo;
mod devices;
mod eval;
mod export;
mod finetune;
mod flags;
mod generate;
mod inspect;
mod interrupt;
mod merge;
mod pack;
mod plan;
mod progress;
mod runs;
mod self_test;
mod table;
mod task;
mod tokenize;
mod train;
mod train_tokenizer;
mod web;

use std::fmt;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use futures_lite::future::block_on;
use serde::de::DeserializeOwned;
use smolforge_engine::Engine;
use smolforge_engine::protocol::{AdapterChoice, Command, Event, JobId};
use smolforge_engine::store::Store;

use crate::units::one_line;

use self::progress::Screen;

/// Train and run small language models on any GPU and on a plain CPU.
#[derive(Debug, Parser)]
#[command(name = "smolforge", version, arg_required_else_help = true, disable_help_subcommand = true, args_override_self = true)]
#[command(after_help = "Start with `smolforge demo`. `smolforge VERB --help` lists the flags of a verb.\n\
    Results go to standard output, progress to standard error. Ctrl-C stops and saves; twice: at once.")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// Print one event a line as JSON on standard output instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Train(Box<train::Args>),
    Finetune(Box<finetune::Args>),
    Inspect(Box<inspect::Args>),
    Generate(generate::Args),
    Chat(chat::Args),
    Eval(Box<eval::Args>),
    Merge(merge::Args),
    Task(task::Args),
    Export(export::Args),
    Tokenize(tokenize::Args),
    TrainTokenizer(train_tokenizer::Args),
    Devices(devices::Args),
    Plan(Box<plan::Args>),
    Bench(bench::Args),
    Runs(runs::Args),
    Pack(pack::PackArgs),
    Unpack(pack::UnpackArgs),
    SelfTest(self_test::Args),
    Web(web::Args),
}

/// A command line that cannot be meant: exit code 2.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Parses the arguments of the process, runs the verb and reports the outcome.
pub fn main() -> ExitCode {
    panic::set_hook(Box::new(note_panic));
    let cli = match definition().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "{} {}", progress::red("error:"), usage_error(&error));
            return ExitCode::from(2);
        }
    };
    let outcome = match panic::catch_unwind(|| run(cli)) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error,
        Err(_) => defect(),
    };
    let _ = writeln!(io::stderr(), "{} {}", progress::red("error:"), one_line(&format!("{outcome:#}")));
    match () {
        () if outcome.is::<Usage>() => ExitCode::from(2),
        () if outcome.is::<Defect>() => ExitCode::from(101),
        () => ExitCode::FAILURE,
    }
}

/// The command line as clap knows it. A negative number is a value everywhere, so that what is said
/// about it is that it is too small and not that it is an unknown flag.
fn definition() -> clap::Command {
    fn allowing(command: clap::Command) -> clap::Command {
        let allow = |arg: clap::Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
        command.mut_args(allow).mut_subcommands(allowing)
    }
    allowing(Cli::command())
}

/// What clap says about a command line, on one line: its synopsis is left to `--help`.
fn usage_error(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let of_plan = text.split_once("\nUsage:").is_some_and(|(_, usage)| usage.contains(" plan "));
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && of_plan
        && error.kind() == ErrorKind::UnknownArgument
        && plan::is_finetuning(flag)
    {
        return format!("{flag}: {}", plan::ONLY_BUDGET);
    }
    let said = text.split("\nUsage:").next().unwrap_or_default();
    let said = said.split("\nFor more information").next().unwrap_or_default();
    let said = one_line(said.strip_prefix("error: ").unwrap_or(said)).replace(" tip: ", "; ");
    format!("{said}; --help lists what there is")
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let json = cli.json;
    match cli.verb {
        Verb::Demo(args) => args.run(json),
        Verb::Train(args) => args.run(json),
        Verb::Finetune(args) => args.run(json),
        Verb::Inspect(args) => args.run(json),
        Verb::Generate(args) => args.run(json),
        Verb::Chat(args) => args.run(json),
        Verb::Eval(args) => args.run(json),
        Verb::Merge(args) => args.run(json),
        Verb::Task(args) => args.run(json),
        Verb::Export(args) => args.run(json),
        Verb::Tokenize(args) => args.run(json),
        Verb::TrainTokenizer(args) => args.run(json),
        Verb::Devices(args) => args.run(json),
        Verb::Plan(args) => args.run(json),
        Verb::Bench(args) => args.run(json),
        Verb::Runs(args) => args.run(json),
        Verb::Pack(args) => args.run(json),
        Verb::Unpack(args) => args.run(json),
        Verb::SelfTest(args) => args.run(json),
        Verb::Web(args) => args.run(json),
    }
}

/// Sends one command to an engine of its own and shows every event until the last one: as JSON, or
/// through the screen and then `show`, which writes what belongs to the verb.
///
/// A reader that has gone away (`| head`) stops the job and is no error.
fn drive(command: Command, json: bool, show: impl FnMut(&Screen, &Event) -> io::Result<()>) -> anyhow::Result<()> {
    let demo = matches!(command, Command::Demo { .. } | Command::DemoFinetune { .. } | Command::DemoTask { .. });
    let saves = demo || matches!(command, Command::Train { .. } | Command::Finetune { .. });
    Shell::start(saves)?.run(command, json, |_| (), show)
}

/// An engine and the terminal in front of it, for one job after the other.
struct Shell {
    engine: Engine,
    screen: Screen,
    /// The job that an interrupt stops.
    job: Arc<AtomicU64>,
    /// Whether an interrupt ends the process: between jobs, and after a first one.
    leaving: Arc<AtomicBool>,
}

impl Shell {
    /// `saves`: whether jobs that are stopped write a checkpoint.
    fn start(saves: bool) -> anyhow::Result<Self> {
        let (engine, screen) = (Engine::start(store()), Screen::new());
        let (job, leaving) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (teller, current) = (engine.clone(), job.clone());
        interrupt::install(&screen, saves, leaving.clone(), move || teller.tell(current.load(Ordering::Relaxed), Command::Stop))?;
        Ok(Self { engine, screen, job, leaving })
    }

    /// See [`drive`]; `note` gets every event also where programs read them.
    fn run(
        &mut self,
        command: Command,
        json: bool,
        note: impl FnMut(&Event),
        show: impl FnMut(&Screen, &Event) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let job = self.engine.send(command);
        self.job.store(job, Ordering::Relaxed);
        self.leaving.store(false, Ordering::Relaxed);
        let ended = watch(&self.engine, &mut self.screen, job, json, note, show);
        self.leaving.store(true, Ordering::Relaxed);
        ended
    }
}

/// Shows a job until it ends.
fn watch(
    engine: &Engine,
    screen: &mut Screen,
    job: JobId,
    json: bool,
    mut note: impl FnMut(&Event),
    mut show: impl FnMut(&Screen, &Event) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut lost_output = None;
    while let Some((_, event)) = block_on(engine.next()) {
        note(&event);
        let written = match &lost_output {
            Some(_) => Ok(()),
            None if json => print_json(&event),
            None => {
                screen.show(&event);
                show(screen, &event)
            }
        };
        if let Err(error) = written {
            engine.tell(job, Command::Stop);
            lost_output = Some(error);
        }
        match event {
            Event::Held { .. } => engine.tell(job, Command::Stop), // nobody could say when to go on
            Event::Failed { error, defect: true } => return Err(Defect(error).into()),
            Event::Failed { error, .. } => return Err(JobFailed(error).into()),
            Event::Done { .. } => {
                return match lost_output {
                    Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
                    _ => Ok(()),
                };
            }
            _ => {}
        }
    }
    Err(defect())
}

/// Where the names on the command line lead: paths, relative ones below the current folder.
fn store() -> Store {
    Store::folder(".")
}

fn print_json(event: &Event) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, event).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Whether this is the event after which no other comes.
fn is_last(event: &Event) -> bool {
    matches!(event, Event::Done { .. } | Event::Failed { .. })
}

/// A flag that takes one of a few words and gives the engine's type of that name.
fn choice<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words.iter().copied())
        .map(|word| serde_json::from_value(word.into()).expect("the words are the names that serde knows"))
}

/// An adapter with its strength: `DIR` or `DIR:0.5`.
fn adapter(text: &str) -> Result<AdapterChoice, String> {
    let (path, strength) = match text.rsplit_once(':') {
        Some((path, strength)) if strength.parse::<f64>().is_ok() => (path, strength.parse().unwrap_or(1.0)),
        Some((path, strength)) if !block_on(store().exists(text)) && block_on(store().exists(path)) => {
            return Err(format!("the strength {strength:?} is no number; write for example {path}:0.5"));
        }
        _ => (text, 1.0),
    };
    if path.trim().is_empty() {
        return Err("names no folder".into());
    }
    Ok(AdapterChoice { path: path.into(), strength })
}

const DEVICES: &[&str] = &["auto", "gpu", "cpu"];

/// What a job could not do: the next one may.
#[derive(Debug)]
struct JobFailed(String);

impl fmt::Display for JobFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for JobFailed {}

/// A defect of smolforge: exit code 101.
#[derive(Debug)]
struct Defect(String);

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SMOLFORGE_DEBUG=1 shows where it happened)", self.0)
    }
}

impl std::error::Error for Defect {}

/// What the first panic of the process said. The engine may survive one and report it as a failure
/// of the job, so it is printed only where nothing better is said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

pub fn note_panic(info: &PanicHookInfo<'_>) {
    if std::env::var_os("SMOLFORGE_DEBUG").is_some() {
        let backtrace = std::backtrace::Backtrace::capture(); // empty unless RUST_BACKTRACE asks for it
        let _ = writeln!(io::stderr(), "{info}\n{backtrace}");
    }
    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let mut first = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
    first.get_or_insert_with(|| format!("{}{place}", text.unwrap_or("a panic")));
}

pub fn defect() -> anyhow::Error {
    let panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let what = panic.unwrap_or_else(|| "the engine ended without a word".into());
    Defect(format!("internal error: {what}; please report it")).into()
}

#[cfg(test)]
mod tests {
    use smolforge_engine::protocol::DeviceChoice;

    use super::*;

    /// Parses a line that must be right.
    #[track_caller]
    pub fn parse(line: &str) -> Cli {
        let matches = definition().try_get_matches_from(line.split(' ')).expect("a command line that exists");
        Cli::from_arg_matches(&matches).expect("values of the right kind")
    }

    #[test]
    fn the_last_of_several_flags_wins() {
        let Verb::Train(args) = parse("smolforge train --steps 1 --source a=b --steps 2 --source a=c").verb else { panic!("another verb") };
        let args = format!("{args:?}");
        assert!(args.contains(r#"("steps", "2")"#) && args.contains(r#"["b", "c"]"#), "{args}");
    }

    #[test]
    fn flags_of_fine_tuning_runs_are_refused_by_plan_with_what_it_takes() {
        let said = |line: &str| usage_error(&definition().try_get_matches_from(line.split(' ')).expect_err("no such flag"));
        assert_eq!(said("smolforge plan t.yaml --num-epochs 2"), format!("--num-epochs: {}", plan::ONLY_BUDGET));
        assert!(said("smolforge plan t.yaml --nothing 2").contains("unexpected argument '--nothing'"));
        assert!(said("smolforge train --num-epochs 2").contains("unexpected argument '--num-epochs'"));
    }

    #[test]
    fn a_strength_is_a_number() {
        assert_eq!(adapter("tuned:0.5"), Ok(AdapterChoice { path: "tuned".into(), strength: 0.5 }));
        assert_eq!(adapter("C:\\tuned"), Ok(AdapterChoice { path: "C:\\tuned".into(), strength: 1.0 }));
        assert_eq!(adapter("src:abc"), Err("the strength \"abc\" is no number; write for example src:0.5".into()));
    }

    #[test]
    fn the_definition_of_every_verb_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn json_is_understood_before_and_after_the_verb() {
        for line in ["smolforge --json devices", "smolforge devices --json"] {
            assert!(parse(line).json, "{line}");
        }
    }

    #[test]
    fn every_word_of_a_choice_is_a_value_of_the_engine() {
        let parser = choice::<DeviceChoice>(DEVICES);
        for word in DEVICES {
            parser.parse_ref(&Cli::command(), None, word.as_ref()).expect("a known word");
        }
        parser.parse_ref(&Cli::command(), None, "tpu".as_ref()).expect_err("an unknown word");
    }

    #[test]
    fn messages_of_several_lines_become_one() {
        assert_eq!(one_line("line one\n  line two\r\n"), "line one line two");
    }
}
