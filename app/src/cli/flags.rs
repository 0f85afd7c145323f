//! The flags of a run, made from the fields of its configuration: every key of the YAML file is a flag of the same name.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use futures_lite::future::block_on;
use serde_json::Value;
use smolforge_engine::config::finetune::{FINETUNE_FIELDS, FinetuneConfig};
use smolforge_engine::config::reason::{REASON_FIELDS, ReasonConfig};
use smolforge_engine::config::{FIELDS, Field, SourceConfig, TrainConfig};

use super::task::keys::{matters, other_names};
use super::{Usage, store};

/// What was given on the command line, by key of the configuration.
#[derive(Debug, Default)]
pub struct RunFlags {
    keys: Vec<(&'static str, String)>,
    sources: BTreeMap<String, Vec<String>>,
}

impl RunFlags {
    /// The run that file and flags describe: defaults, then the YAML file, then the flags.
    pub fn config(&self, file: Option<&str>) -> anyhow::Result<TrainConfig> {
        let mut config = file.map_or_else(|| Ok(TrainConfig::default()), read)?;
        self.apply(&mut config)?;
        Ok(config)
    }

    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.sources.is_empty()
    }

    /// The run to continue: without a file the configuration that the run itself has frozen. The engine
    /// refuses what would make it another run.
    pub fn resumed(&self, file: Option<&str>) -> anyhow::Result<TrainConfig> {
        let config = self.config(file)?;
        if file.is_some() {
            return Ok(config);
        }
        let out = config.out;
        let mut config =
            read(&format!("{out}/config.yaml")).with_context(|| format!("{out} holds no run to resume; name its folder with --out"))?;
        config.out = out; // the folder may have been moved since
        self.apply(&mut config)?;
        Ok(config)
    }

    fn apply(&self, config: &mut TrainConfig) -> anyhow::Result<()> {
        for (key, text) in &self.keys {
            let set = match *key {
                "data_stages" | "mix_changes" => set_list(config, key, text)?,
                key => config.set(key, text),
            };
            set.map_err(|error| Usage(error.to_string()))?;
        }
        for (name, paths) in &self.sources {
            let source = match paths.as_slice() {
                [path] => SourceConfig::Path(path.clone()),
                paths => SourceConfig::Paths(paths.to_vec()),
            };
            config.sources.insert(name.clone(), source);
        }
        Ok(())
    }
}

fn read(file: &str) -> anyhow::Result<TrainConfig> {
    let text = block_on(store().read_text(file))?;
    TrainConfig::from_yaml(&text).with_context(|| file.to_string())
}

/// A list as YAML text or in a file; stages also under `data_stages:`.
fn set_list(config: &mut TrainConfig, key: &str, text: &str) -> anyhow::Result<smolforge_engine::error::Result<()>> {
    if !block_on(store().exists(text)) {
        return Ok(config.set(key, text));
    }
    Ok(config.set(key, &block_on(store().read_text(text))?))
}

/// What was given of a fine-tuning run on the command line, by key of the configuration.
#[derive(Debug, Default)]
pub struct FinetuneFlags(Vec<(&'static str, String)>);

impl FinetuneFlags {
    /// The run that file and flags describe, and what should be said about how the file was read. A run that is to be
    /// continued without a file has frozen its own.
    pub fn config(&self, file: Option<&str>, resume: bool) -> anyhow::Result<(FinetuneConfig, Vec<String>)> {
        let (mut config, notes) = match file {
            Some(rows) if rows.ends_with(".jsonl") => {
                return Err(Usage(format!("{rows}: these are rows and no configuration; name them with --train-file {rows}")).into());
            }
            Some(file) => {
                let text = block_on(store().read_text(file))?;
                FinetuneConfig::from_yaml(&text).with_context(|| file.to_string())?
            }
            None => (FinetuneConfig::default(), Vec::new()),
        };
        self.apply(&mut config)?;
        if resume && file.is_none() {
            let out = config.output_dir;
            let path = format!("{out}/finetune.yaml");
            let text = block_on(store().read_text(&path))
                .with_context(|| format!("{out} holds no fine-tuning run to resume; name its folder with --output-dir"))?;
            config = FinetuneConfig { output_dir: out, ..FinetuneConfig::from_yaml(&text).context(path)?.0 };
            self.apply(&mut config)?;
        }
        Ok((config, notes))
    }

    fn apply(&self, config: &mut FinetuneConfig) -> anyhow::Result<()> {
        for (key, text) in &self.0 {
            config.set(key, text).map_err(|error| Usage(error.to_string()))?;
        }
        Ok(())
    }
}

impl Args for FinetuneFlags {
    fn augment_args(command: Command) -> Command {
        let defaults = serde_json::to_value(FinetuneConfig::default()).unwrap_or_default();
        let aliased = |field: &Field| {
            let arg = flag(field, &defaults[field.name]);
            match field.name {
                "output_dir" => arg.visible_alias("out"),
                "model_name" => arg.visible_alias("model"),
                "learning_rate" => arg.visible_alias("lr"),
                _ => arg,
            }
        };
        FINETUNE_FIELDS.iter().fold(command, |command, field| command.arg(aliased(field)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FinetuneFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(given(FINETUNE_FIELDS, matches));
        Ok(())
    }
}

/// What was given of a task's settings on the command line, by key of the configuration.
#[derive(Debug, Default)]
pub struct ReasonFlags(Vec<(&'static str, String)>);

impl ReasonFlags {
    /// The settings that file and flags describe: defaults, then the YAML file, then the flags.
    pub fn config(&self, file: Option<&str>) -> anyhow::Result<ReasonConfig> {
        let mut config = match file {
            Some(file) => ReasonConfig::from_yaml(&block_on(store().read_text(file))?).with_context(|| file.to_string())?,
            None => ReasonConfig::default(),
        };
        for (key, text) in &self.0 {
            config.set(key, text).map_err(|error| Usage(error.to_string()))?;
        }
        Ok(config)
    }
}

impl Args for ReasonFlags {
    /// The flags of the keys that matter to the verb, which has the command's name.
    fn augment_args(command: Command) -> Command {
        let verb = command.get_name().to_string();
        let defaults = serde_json::to_value(ReasonConfig::default()).unwrap_or_default();
        let fields = REASON_FIELDS.iter().filter(|field| matters(&verb, field.name));
        fields.fold(command, |command, field| {
            let flag = flag(field, &defaults[field.name]).visible_aliases(other_names(&verb, field.name));
            // A word of its own says yes, too.
            command.arg(if verb == "make-data" && field.name == "temperatures" {
                flag.num_args(0..=1).default_missing_value("true")
            } else {
                flag
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ReasonFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(given(REASON_FIELDS, matches).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(given(REASON_FIELDS, matches));
        Ok(())
    }
}

/// Keys and what was given for them; those that the verb has no flag for are left out.
fn given<'a>(fields: &'static [Field], matches: &'a ArgMatches) -> impl Iterator<Item = (&'static str, String)> + 'a {
    let text = |key| matches.try_get_one::<String>(key).ok().flatten().cloned();
    fields.iter().filter_map(move |field| Some((field.name, text(field.name)?)))
}

impl Args for RunFlags {
    fn augment_args(command: Command) -> Command {
        let defaults = serde_json::to_value(TrainConfig::default()).unwrap_or_default();
        FIELDS.iter().fold(command, |command, field| command.arg(flag(field, &defaults[field.name])))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RunFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for field in FIELDS {
            if field.name == "sources" {
                for (name, path) in matches.get_many::<(String, String)>(field.name).into_iter().flatten() {
                    self.sources.entry(name.clone()).or_default().push(path.clone());
                }
            } else if let Some(text) = matches.get_one::<String>(field.name) {
                self.keys.push((field.name, text.clone()));
            }
        }
        Ok(())
    }
}

/// The flag of one key: its name with `-` for `_`, its group as the heading, its default in the help.
fn flag(field: &Field, default: &Value) -> Arg {
    if field.name == "sources" {
        return Arg::new(field.name)
            .long("source")
            .value_name("NAME=PATH")
            .help("Source of text: a file, folder or glob; repeat for more sources, or the same NAME for more files")
            .help_heading(field.group)
            .action(ArgAction::Append)
            .value_parser(named_path);
    }
    let shown = match default {
        Value::String(text) => format!(" [default: {text}]"),
        Value::Number(number) => format!(" [default: {}]", short(number)),
        Value::Bool(value) => format!(" [default: {value}]"),
        _ => String::new(),
    };
    let value_name = match (field.name, default) {
        ("out" | "init" | "output_dir" | "init_adapter", _) => "DIR",
        ("model_name" | "student" | "teacher", _) => "DIR|NAME",
        ("tokenizer" | "train_file" | "valid_file" | "validation_file" | "chat_template" | "shots", _) => "FILE",
        ("columns", _) => "YAML",
        ("date", _) => "YYYY-MM-DD",
        ("task_prefix_format" | "target_modules" | "system", _) => "TEXT",
        ("keep", _) => "first|shortest|N",
        ("quantize_teacher", _) => "auto|yes|no",
        (_, Value::Bool(_)) => "true|false",
        ("data_stages" | "mix_changes", _) => "YAML|FILE",
        ("sample_prompt", _) => "TEXT",
        (_, Value::Number(number)) if number.is_f64() => "X",
        (_, Value::Number(_)) => "N",
        _ => "NAME",
    };
    Arg::new(field.name)
        .long(field.name.replace('_', "-").leak() as &str) // clap keeps names for the life of the process
        .value_name(value_name)
        .help(format!("{}{shown}", field.help.trim()))
        .help_heading(field.group)
}

/// A number without the digits that a number of 32 bits gets where it is kept in 64.
fn short(number: &serde_json::Number) -> String {
    match number.as_f64().filter(|x| number.is_f64() && f64::from(*x as f32) == *x) {
        Some(x) => format!("{:?}", x as f32),
        None => number.to_string(),
    }
}

fn named_path(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.trim().is_empty() && !path.trim().is_empty() => Ok((name.trim().into(), path.into())),
        _ => Err("expected NAME=PATH, for example input=shakespeare.txt".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> RunFlags {
        let command = RunFlags::augment_args(Command::new("train").no_binary_name(true).allow_negative_numbers(true));
        let matches = command.try_get_matches_from(line).expect("flags that exist");
        RunFlags::from_arg_matches(&matches).expect("values as text")
    }

    fn config(line: &[&str]) -> TrainConfig {
        parse(line).config(None).expect("values of the right kind")
    }

    #[test]
    fn every_key_is_a_flag_with_its_default_in_the_help() {
        let help = RunFlags::augment_args(Command::new("train")).render_help().to_string();
        for field in FIELDS.iter().filter(|field| field.name != "sources") {
            assert!(help.contains(&format!("--{} <", field.name.replace('_', "-"))), "{} is not in:\n{help}", field.name);
        }
        assert!(help.contains("--source <NAME=PATH>"), "{help}");
        assert!(help.contains("[default: 5050]"), "{help}");
    }

    #[test]
    fn every_key_of_fine_tuning_is_a_flag() {
        let help = FinetuneFlags::augment_args(Command::new("finetune")).render_help().to_string();
        for field in FINETUNE_FIELDS {
            assert!(help.contains(&format!("--{} <", field.name.replace('_', "-"))), "{} is not in:\n{help}", field.name);
        }
    }

    #[test]
    fn flags_set_their_key_and_nothing_else() {
        let found = config(&["--batch-size", "2", "--lr", "1e-3", "--device", "cpu", "--tokenizer", "t.json"]);
        let mut expect = TrainConfig::default();
        (expect.batch_size, expect.lr) = (2, 1e-3);
        expect.device = smolforge_engine::protocol::DeviceChoice::Cpu;
        expect.tokenizer = Some("t.json".into());
        assert_eq!(found, expect);
    }

    #[test]
    fn sources_of_one_name_are_collected() {
        let found = config(&["--source", "code=a.py", "--source", "text=b=c.txt", "--source", "code=d"]).sources;
        assert_eq!(found["code"], SourceConfig::Paths(vec!["a.py".into(), "d".into()]));
        assert_eq!(found["text"], SourceConfig::Path("b=c.txt".into()));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let folder = std::env::temp_dir().join(format!("smolforge-flags-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let file = folder.join("config.yaml");
        std::fs::write(&file, "steps: 70\nbatch_size: 3\nsources:\n  input: a.txt\n  code: b.txt\n").expect("written");
        let found = parse(&["--steps", "9", "--source", "code=c.txt"]).config(file.to_str()).expect("a good file");
        std::fs::remove_dir_all(&folder).expect("removed");
        assert_eq!((found.steps, found.batch_size, found.accumulation), (9, 3, 8));
        assert_eq!(found.sources["input"], SourceConfig::Path("a.txt".into()));
        assert_eq!(found.sources["code"], SourceConfig::Path("c.txt".into()));
    }

    #[track_caller]
    fn refused(line: &[&str], expect: &str) {
        let error = parse(line).config(None).expect_err("a value of the wrong kind");
        assert!(error.is::<Usage>(), "{error:#}");
        assert!(error.to_string().contains(expect), "{error:#}");
    }

    #[test]
    fn values_of_the_wrong_kind_name_their_flag() {
        refused(&["--steps", "-5"], "--steps -5");
        refused(&["--steps", "many"], "--steps many");
        refused(&["--batch-size", "few"], "expected a whole number");
        refused(&["--lr", "nan"], "--lr nan");
        refused(&["--device", "tpu"], "--device tpu");
    }

    #[test]
    fn resuming_without_a_run_says_where_it_looked() {
        let error = parse(&["--out", "no/such/run"]).resumed(None).expect_err("no run there");
        assert!(format!("{error:#}").contains("no/such/run holds no run to resume"), "{error:#}");
    }
}
