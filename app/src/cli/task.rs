//! `smolforge task`: a task with one right answer to every question, from questions to a graded bundle.

pub mod keys;
pub mod show;

use std::io;

use anyhow::Context;
use futures_lite::future::block_on;
use smolforge_engine::protocol::{Command, Event, GradeCase, GradeReport, ReasonConfig, ReasonVerb};

use self::show::Teller;
use super::flags::ReasonFlags;
use super::{JobFailed, Shell, store};

/// Questions with one right answer: make them, ask them, learn answers and reasoning, grade and bundle
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// How many gram are 6 kg? Worked examples, answers (SFT), a teacher's right reasoning (RFT), grade, bundle
    #[command(arg_required_else_help = true, disable_help_subcommand = true)]
    UnitConversion {
        #[command(subcommand)]
        verb: Verb,
    },
}

/// A verb of a task. Its flags besides these are the keys of `run`'s file that matter to it: [`keys`].
#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write questions to learn from and to be tested on: train.json and valid.json
    MakeData {
        /// Folder to write
        #[arg(long = "out", value_name = "DIR")]
        to: String,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Ask the student with worked examples before every question
    Cot {
        /// JSON array of [question, answer]
        #[arg(long, value_name = "FILE")]
        data: String,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Teach the student answers, and test it
    #[command(after_help = "The run in --out is one of finetune's: with its log, its report and adapter/.")]
    Sft {
        /// JSON array of [question, answer]
        #[arg(long, value_name = "FILE")]
        data: String,

        /// Folder of the run
        #[arg(long = "out", value_name = "DIR")]
        to: String,

        /// Continue the run in --out from its last good checkpoint
        #[arg(long)]
        resume: bool,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Let the teacher answer every question several times, and keep what is right; goes on where it was stopped
    #[command(after_help = "What is kept is [question, answer, reasoning]; questions without a right sample lie beside it: see rejects.")]
    Rollout {
        /// JSON array of [question, answer]
        #[arg(long, value_name = "FILE")]
        data: String,

        /// JSON file of what is kept
        #[arg(long = "out", value_name = "FILE")]
        to: String,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// List the questions of a rollout without a right sample
    Rejects {
        /// What rollout wrote
        #[arg(long, value_name = "FILE")]
        data: String,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Put reasoning of your own into a rollout's rows, for a question without a right sample
    Mend {
        /// What rollout wrote
        #[arg(long, value_name = "FILE")]
        data: String,

        /// The question, as rejects lists it
        #[arg(long, value_name = "TEXT")]
        question: String,

        #[command(flatten)]
        reasoning: Reasoning,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Teach the student reasoning, and test it
    #[command(after_help = "The run in --out is one of finetune's: with its log, its report and adapter/.")]
    Rft {
        /// JSON array of [question, answer, reasoning]: what rollout wrote
        #[arg(long, value_name = "FILE")]
        data: String,

        /// Folder of the run
        #[arg(long = "out", value_name = "DIR")]
        to: String,

        /// Continue the run in --out from its last good checkpoint
        #[arg(long)]
        resume: bool,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Ask a model, with an adapter or without, and check its answers
    Test {
        /// JSON array of [question, answer]
        #[arg(long, value_name = "FILE")]
        data: String,

        /// Adapter's folder or run
        #[arg(long, value_name = "DIR")]
        adapter: Option<String>,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Grade a submission, or a model and its adapters, out of 100 points
    #[command(after_help = EXIT_CODES)]
    Grade {
        /// A .zip or a folder that holds sft_model and rft_model
        #[arg(conflicts_with_all = ["sft", "rft"])]
        submission: Option<String>,

        /// JSON array of [question, answer]
        #[arg(long, value_name = "FILE", default_value = "data/valid.json")]
        data: String,

        /// Adapter that gives answers: folder or run
        #[arg(long, value_name = "DIR", visible_alias = "adapter")]
        sft: Option<String>,

        /// Adapter that gives reasoning: folder or run
        #[arg(long, value_name = "DIR")]
        rft: Option<String>,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// Write a submission as one .zip; with --data it is then graded as it lies there
    #[command(after_help = EXIT_CODES)]
    Bundle {
        /// Adapter that gives answers: folder or run
        #[arg(long, value_name = "DIR")]
        sft: String,

        /// Adapter that gives reasoning: folder or run
        #[arg(long, value_name = "DIR")]
        rft: String,

        /// The .zip to write
        #[arg(long = "out", value_name = "FILE")]
        to: String,

        /// Folder whose files go along, such as a course's Python files
        #[arg(long, value_name = "DIR")]
        folder: Option<String>,

        #[command(flatten)]
        flags: ReasonFlags,
    },
    /// All of it in order, with one report.html; what is done already is left out
    #[command(after_help = "Values: defaults, then CONFIG, then flags. Ctrl-C saves; the same command goes on.")]
    Run {
        /// YAML file with any of the keys below (`oversample: 10`)
        config: Option<String>,

        #[command(flatten)]
        flags: ReasonFlags,
    },
}

const EXIT_CODES: &str = "Exit code 0 where every part of the grade was looked at, however few its points; 1 where one could not be: there is no \
    adapter for it, the model has too many parameters, or something failed.";

/// Reasoning with its `<answer>…</answer>`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Reasoning {
    /// The reasoning, with <answer>…</answer> in it
    #[arg(long = "reasoning", value_name = "TEXT")]
    text: Option<String>,

    /// Text file that holds it; - is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
}

impl Args {
    /// Does what the verb asks for.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let Task::UnitConversion { verb } = self.task;
        let (config, verb) = verb.asked()?;
        let saves = matches!(verb, ReasonVerb::Sft { .. } | ReasonVerb::Rft { .. } | ReasonVerb::Rollout { .. } | ReasonVerb::Run);
        let (mut teller, mut grade) = (Teller::default(), GradeReport::default());
        let note = |event: &Event| {
            if let Event::Graded(report) = event {
                grade = report.clone();
            }
        };
        let command = Command::Reason { config: Box::new(config), verb };
        Shell::start(saves)?.run(command, json, note, |screen, event| teller.show(screen, event))?;
        ungraded(&grade).map_or(Ok(()), |why| Err(JobFailed(why).into()))
    }
}

impl Verb {
    /// The settings, and what the engine is asked for.
    fn asked(self) -> anyhow::Result<(ReasonConfig, ReasonVerb)> {
        let (flags, file, verb) = match self {
            Self::MakeData { to: out, flags } => (flags, None, ReasonVerb::MakeData { out }),
            Self::Cot { data, flags } => (flags, None, ReasonVerb::Cot { data }),
            Self::Sft { data, to: out, resume, flags } => (flags, None, ReasonVerb::Sft { data, out, resume }),
            Self::Rollout { data, to: out, flags } => (flags, None, ReasonVerb::Rollout { data, out }),
            Self::Rejects { data, flags } => (flags, None, ReasonVerb::Rejects { data }),
            Self::Mend { data, question, reasoning, flags } => {
                (flags, None, ReasonVerb::Mend { data, question, reasoning: reasoning.read()? })
            }
            Self::Rft { data, to: out, resume, flags } => (flags, None, ReasonVerb::Rft { data, out, resume }),
            Self::Test { data, adapter, flags } => (flags, None, ReasonVerb::Test { adapter, data }),
            Self::Grade { submission, data, sft, rft, flags } => (flags, None, ReasonVerb::Grade { data, submission, sft, rft }),
            Self::Bundle { sft, rft, to: out, folder, flags } => (flags, None, ReasonVerb::Bundle { sft, rft, folder, out }),
            Self::Run { config, flags } => (flags, config, ReasonVerb::Run),
        };
        Ok((flags.config(file.as_deref())?, verb))
    }
}

impl Reasoning {
    fn read(self) -> anyhow::Result<String> {
        let text = match self.file.as_deref() {
            Some("-") => io::read_to_string(io::stdin()).context("standard input")?,
            Some(file) => block_on(store().read_text(file))?,
            None => self.text.unwrap_or_default(),
        };
        Ok(text.trim().into())
    }
}

/// What to say of a grade of which parts could not be looked at: they have neither points nor a value.
fn ungraded(grade: &GradeReport) -> Option<String> {
    let failed = |case: &&GradeCase| case.score == 0 && case.points > 0 && !case.value.is_finite();
    let names: Vec<&str> = grade.cases.iter().filter(failed).map(|case| case.name.as_str()).collect();
    (!names.is_empty()).then(|| format!("{} of {} parts could not be graded: {}", names.len(), grade.cases.len(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use smolforge_engine::config::reason::{Keep, REASON_FIELDS};

    use super::super::tests::parse;
    use super::super::{Cli, Usage, Verb as CliVerb, definition};
    use super::*;

    fn asked_of(cli: Cli) -> anyhow::Result<(ReasonConfig, ReasonVerb)> {
        let CliVerb::Task(Args { task: Task::UnitConversion { verb } }) = cli.verb else { panic!("another verb") };
        verb.asked()
    }

    /// What a line after `smolforge task unit-conversion` asks for.
    #[track_caller]
    fn asked(line: &str) -> (ReasonConfig, ReasonVerb) {
        asked_of(parse(&format!("smolforge task unit-conversion {line}"))).expect("values of the right kind")
    }

    #[track_caller]
    fn check(line: &str, config: ReasonConfig, verb: ReasonVerb) {
        assert_eq!(asked(line), (config, verb), "{line}");
    }

    fn help(verb: &str) -> String {
        let mut cli = definition();
        let task = cli.find_subcommand_mut("task").and_then(|task| task.find_subcommand_mut("unit-conversion"));
        task.and_then(|task| task.find_subcommand_mut(verb)).expect("a verb").render_help().to_string()
    }

    #[test]
    fn every_key_is_a_flag_of_run() {
        let help = help("run");
        for field in REASON_FIELDS {
            assert!(help.contains(&format!("--{} <", field.name.replace('_', "-"))), "{} is not in:\n{help}", field.name);
        }
        for default in ["[default: 0.6]", "[default: 380000000]", "[default: 0.0007]", "[default: first]"] {
            assert!(help.contains(default), "{default} is not in:\n{help}");
        }
    }

    #[test]
    fn a_verb_takes_the_keys_that_matter_to_it_and_no_others() {
        let (cot, mend) = (help("cot"), help("mend"));
        assert!(cot.contains("--shots") && !cot.contains("--oversample") && !cot.contains("--sft-r"), "{cot}");
        assert!(mend.contains("--tolerance") && !mend.contains("--student"), "{mend}");
    }

    #[test]
    fn verbs_of_the_task_set_what_their_flags_say() {
        let default = ReasonConfig::default;
        let student = || ReasonConfig { student: "M".into(), ..default() };
        check(
            "make-data --train 7 --valid 3 --seed 2 --temperatures --out d",
            ReasonConfig { train_questions: 7, valid_questions: 3, seed: 2, temperatures: true, ..default() },
            ReasonVerb::MakeData { out: "d".into() },
        );
        check(
            "make-data --temperatures false --out d",
            ReasonConfig { temperatures: false, ..default() },
            ReasonVerb::MakeData { out: "d".into() },
        );
        check(
            "cot --model M --data f --shots s --questions 9",
            ReasonConfig { shots: Some("s".into()), test_questions: 9, ..student() },
            ReasonVerb::Cot { data: "f".into() },
        );
        check(
            "sft --model M --data f --out a --r 4 --alpha 16 --lr 1e-3 --batch-size 2 --max-adapter-mb 20 --max-params 1000 --resume",
            ReasonConfig {
                sft_r: 4,
                sft_alpha: 16.0,
                sft_learning_rate: 1e-3,
                sft_batch_size: 2,
                max_adapter_mb: 20.0,
                max_params: 1000,
                ..student()
            },
            ReasonVerb::Sft { data: "f".into(), out: "a".into(), resume: true },
        );
        check(
            "rollout --teacher T --data f --oversample 4 --temperature 0.7 --keep 2 --out r",
            ReasonConfig { teacher: "T".into(), oversample: 4, temperature: 0.7, keep: Keep::Distinct(2), ..default() },
            ReasonVerb::Rollout { data: "f".into(), out: "r".into() },
        );
        check(
            "rft --student M --data r --out a --rft-r 4 --epochs 2",
            ReasonConfig { rft_r: 4, rft_epochs: 2.0, ..student() },
            ReasonVerb::Rft { data: "r".into(), out: "a".into(), resume: false },
        );
        check("test --model M --adapter a --data f", student(), ReasonVerb::Test { adapter: Some("a".into()), data: "f".into() });
        check("rejects --data r", default(), ReasonVerb::Rejects { data: "r".into() });
        check(
            "mend --data r --question q --reasoning <answer>1</answer>",
            default(),
            ReasonVerb::Mend { data: "r".into(), question: "q".into(), reasoning: "<answer>1</answer>".into() },
        );
        check("run --keep shortest --out o", ReasonConfig { keep: Keep::Shortest, out: "o".into(), ..default() }, ReasonVerb::Run);
    }

    #[test]
    fn a_bundle_is_graded_where_there_are_questions() {
        let verb = ReasonVerb::Bundle { sft: "a".into(), rft: "b".into(), folder: None, out: "n.zip".into() };
        let config = ReasonConfig { student: "M".into(), max_zip_mb: 30.0, valid_file: Some("v".into()), ..ReasonConfig::default() };
        check("bundle --model M --sft a --rft b --out n.zip --data v --max-zip-mb 30", config, verb.clone());
        check("bundle --sft a --rft b --out n.zip", ReasonConfig::default(), verb);
    }

    #[test]
    fn a_submission_or_adapters_are_graded_but_not_both() {
        let of = |submission: Option<&str>, sft: Option<&str>| ReasonVerb::Grade {
            data: "data/valid.json".into(),
            submission: submission.map(String::from),
            sft: sft.map(String::from),
            rft: None,
        };
        assert_eq!(asked("grade n.zip").1, of(Some("n.zip"), None));
        assert_eq!(asked("grade --adapter a").1, of(None, Some("a")));
        assert_eq!(asked("grade --sft a").1, of(None, Some("a")));
        let both = "smolforge task unit-conversion grade n.zip --rft b";
        definition().try_get_matches_from(both.split(' ')).expect_err("two submissions");
    }

    #[test]
    fn numbers_below_zero_are_values_of_nested_verbs_too() {
        let cli = parse("smolforge task unit-conversion cot --data f --tolerance -1");
        assert_eq!(asked_of(cli).expect("checked by the engine").0.tolerance, -1.0);
        let error = asked_of(parse("smolforge task unit-conversion cot --data f --batch-rows -1")).expect_err("no such number");
        assert!(error.is::<Usage>() && error.to_string().contains("--batch-rows -1"), "{error:#}");
    }

    #[test]
    fn a_grade_fails_where_a_part_has_neither_points_nor_a_value() {
        let case = |name: &str, score, value| GradeCase { name: name.into(), score, points: 25, value, ..GradeCase::default() };
        let grade = |cases: Vec<GradeCase>| ungraded(&GradeReport { cases });
        assert_eq!(grade(vec![case("a", 25, 0.5), case("b", 0, 0.1)]), None);
        assert_eq!(grade(vec![case("a", 0, f64::NAN), case("b", 0, 0.1)]), Some("1 of 2 parts could not be graded: a".into()));
        assert_eq!(grade(Vec::new()), None);
    }
}
