//! From rows of files to the examples of a fine-tuning run.

use std::collections::BTreeMap;

use crate::config::finetune::{BadRows, FinetuneConfig};
use crate::control::{Control, Flow};
use crate::data::chat::{self, BadRow, Example, RowFormat};
use crate::data::example::Encoded;
use crate::data::examples::{Examples, Kinded};
use crate::data::preflight::{Level, Preflight, preflight};
use crate::data::random::{Permutation, mix};
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::store::Store;

/// Name of what belongs to no task.
const NO_TASK: &str = "examples";
/// More names than this are no kinds of tasks.
const MOST_TASKS: usize = 32;

/// Rows of some files as they were read, with the file of each bad one.
#[derive(Debug, Default)]
pub struct Read {
    /// Rows that can be trained on; lines count through all files.
    pub examples: Vec<Example>,
    /// Rows that cannot.
    pub bad: Vec<BadRow>,
}

/// Reads the rows of some files.
///
/// # Errors
/// [`Error::File`], [`Error::Data`] for files without a usable row, and for any bad row where those are to be refused.
pub async fn read(config: &FinetuneConfig, files: &[String], store: &Store, control: &Control) -> Result<Option<Read>> {
    let format = RowFormat {
        shape: config.dataset_format.shape(),
        keys: config.columns.clone(),
        task_prefix_format: config.task_prefix_format.clone(),
    };
    format.check()?;
    let mut read = Read::default();
    for pattern in files {
        for file in store.expand(pattern).await? {
            if control.breathe().await == Flow::Stop {
                return Ok(None);
            }
            let rows = chat::read(&String::from_utf8_lossy(&store.read(&file).await?), &format);
            if let Some(bad) = rows.bad.first() {
                let count = rows.bad.len();
                let line = format!("{file}: line {}: {}", bad.line, bad.reason);
                if rows.examples.is_empty() || config.bad_rows == BadRows::Refuse {
                    let more = if count > 1 { format!(" (and {} more rows)", count - 1) } else { String::new() };
                    return Err(Error::Data(format!("{line}{more}; mend the rows, or tell other names of keys with --columns")));
                }
                control.warn(format!("{file}: {count} rows cannot be used and are left out; the first: line {}: {}", bad.line, bad.reason));
            }
            if rows.examples.is_empty() {
                return Err(Error::Data(format!("{file} holds no rows")));
            }
            read.examples.extend(rows.examples);
            read.bad.extend(rows.bad);
        }
    }
    Ok(Some(read))
}

/// Everything about a fine-tuning run that does not need the model's weights.
pub struct Prepared {
    /// The model as far as text is concerned.
    pub speech: Speech,
    /// What is learned and what is held out.
    pub examples: Examples,
    /// A question of every kind, to be answered after every evaluation.
    pub prompts: Vec<(String, Vec<u32>)>,
    /// What was looked at.
    pub preflight: Preflight,
}

/// Reads the model's text side and the rows, and makes examples of them. `None` where it was stopped.
///
/// # Errors
/// What is wrong with model, files, rows or template; see [`refuse`].
pub async fn prepare(config: &FinetuneConfig, base: &str, store: &Store, control: &Control) -> Result<Option<Prepared>> {
    let speech = Speech::load(store, base, config.chat_template.as_deref(), config.date.as_deref()).await?;
    let Some(mut training) = read(config, &config.train_file.0, store, control).await? else { return Ok(None) };
    let mut validation = match config.validation_file.0.as_slice() {
        [] => Read::default(),
        files => match read(config, files, store, control).await? {
            Some(read) => read,
            None => return Ok(None),
        },
    };
    if config.validation_file.0.is_empty() {
        (training.examples, validation.examples) = split(training.examples, config);
    }
    let encoder = speech.encoder(config.loss_on, config.max_seq_length);
    let kinds = kinds(training.examples.iter().chain(&validation.examples));
    let kind = |example: &Example| kind(&kinds, example);
    let mut encoded: [Vec<Encoded>; 2] = Default::default();
    let mut kinded: [Vec<Kinded>; 2] = Default::default();
    let total = (training.examples.len() + validation.examples.len()) as u64;
    for (part, read) in [&mut training, &mut validation].into_iter().enumerate() {
        for (index, example) in read.examples.iter().enumerate() {
            if index % 256 == 0 {
                if control.breathe().await == Flow::Stop {
                    return Ok(None);
                }
                control.progress("tokenize examples", (encoded[0].len() + index) as u64, total, "rows");
            }
            match encoder.encode(example) {
                Ok(done) => {
                    kinded[part].push((kind(example), done.document.clone()));
                    encoded[part].push(done);
                }
                Err(error) => read.bad.push(BadRow { line: example.line, reason: error.to_string() }),
            }
        }
    }
    let preflight = preflight(&encoder, &encoded[0], &training.bad, speech.shape.pad_token_id);
    if encoded[0].is_empty() {
        let reason = training.bad.first().map(|bad| format!("; line {}: {}", bad.line, bad.reason)).unwrap_or_default();
        return Err(Error::Data(format!("none of the rows can be used{reason}")));
    }
    refuse(&preflight)?;
    let mut prompts: Vec<(String, Vec<u32>)> = Vec::new();
    let asked = if validation.examples.is_empty() { &training.examples } else { &validation.examples };
    for index in 0..kinds.len() {
        // The first that the template does not refuse and the context has room for.
        let room = speech.shape.max_position_embeddings.saturating_sub(config.sample_tokens);
        let questions = asked.iter().filter(|example| kind(example) == index && config.sample_tokens > 0);
        let mut questions = questions.filter_map(|example| speech.question(example).ok().flatten());
        prompts.extend(questions.find(|(_, ids, _)| !ids.is_empty() && ids.len() < room).map(|(asked, ids, _)| (asked, ids)));
    }
    let [training, held_out] = kinded;
    let size = [config.per_device_train_batch_size, config.gradient_accumulation_steps];
    let packing = config.packing.then_some(encoder.max_length);
    let pad = speech.shape.pad_token_id.or(speech.stops.first().copied()).unwrap_or(0);
    let examples = Examples::new(kinds, training, held_out, size, packing, config.seed, pad)?;
    Ok(Some(Prepared { speech, examples, prompts, preflight }))
}

/// Refuses what would teach something wrong.
///
/// # Errors
/// [`Error::Data`] with the first red check and its rows.
pub fn refuse(preflight: &Preflight) -> Result<()> {
    match preflight.checks.iter().find(|check| check.level == Level::Red) {
        None => Ok(()),
        Some(check) => {
            let rows: Vec<String> = check.rows.iter().map(ToString::to_string).collect();
            let rows = if rows.is_empty() { String::new() } else { format!(" (rows {})", rows.join(", ")) };
            Err(Error::Data(format!("pre-flight: {}{rows}; look at them with `smolforge inspect`", check.line)))
        }
    }
}

/// Keeps a share of the rows out of training; the same ones for the same seed.
fn split(examples: Vec<Example>, config: &FinetuneConfig) -> (Vec<Example>, Vec<Example>) {
    let count = examples.len();
    let held_out = ((count as f64 * config.validation_split).round() as usize).min(count.saturating_sub(1));
    let order = Permutation::new(count as u64, mix(config.seed ^ 0x5e1ec7));
    let mut chosen = vec![false; count];
    (0..held_out).for_each(|i| chosen[order.at(i as u64) as usize] = true);
    let (held_out, training): (Vec<_>, Vec<_>) = examples.into_iter().zip(chosen).partition(|(_, chosen)| *chosen);
    let examples = |pairs: Vec<(Example, bool)>| pairs.into_iter().map(|(example, _)| example).collect();
    (examples(training), examples(held_out))
}

/// Which of the kinds an example is of.
pub fn kind(kinds: &[String], example: &Example) -> usize {
    let name = example.task.as_deref().unwrap_or(NO_TASK);
    kinds.iter().position(|kind| kind == name).unwrap_or(0)
}

/// Names of the tasks of some examples; all of them are of one kind where there are none, or too many.
pub fn kinds<'a>(examples: impl Iterator<Item = &'a Example>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for example in examples {
        *counts.entry(example.task.as_deref().unwrap_or(NO_TASK)).or_default() += 1;
    }
    match counts.len() {
        1..=MOST_TASKS => counts.into_keys().map(ToString::to_string).collect(),
        _ => vec![NO_TASK.into()],
    }
}
