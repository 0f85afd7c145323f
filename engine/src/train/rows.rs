//! From rows of files to the examples of a fine-tuning run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::finetune::{BadRows, Files, FinetuneConfig, Interval};
use crate::control::{Control, Flow};
use crate::data::chat::{self, BadRow, Example, RowFormat};
use crate::data::example::{Encoded, Encoder};
use crate::data::examples::Examples;
use crate::data::preflight::{Level, Preflight, preflight, target_count};
use crate::data::random::{Permutation, mix};
use crate::error::{Error, Result};
use crate::generate::speech::Speech;
use crate::store::Store;

/// Name of what belongs to no task.
const NO_TASK: &str = "examples";
/// More names than this are no kinds of tasks.
const MOST_TASKS: usize = 32;

/// Rows of some files.
#[derive(Debug, Default)]
pub struct Read {
    /// Rows that can be trained on.
    pub examples: Vec<Example>,
    /// Rows that cannot.
    pub bad: Vec<BadRow>,
}

/// Reads the rows of some files.
///
/// # Errors
/// [`Error::File`], [`Error::Data`] where no file is named, and for files without a usable row.
pub async fn read(config: &FinetuneConfig, patterns: &Files, store: &Store, control: &Control) -> Result<Option<Read>> {
    let format = RowFormat {
        shape: config.dataset_format.shape(),
        keys: config.columns.clone(),
        task_prefix_format: config.task_prefix_format.clone(),
    };
    format.check()?;
    let mut files = Vec::new();
    for pattern in patterns.named() {
        files.extend(store.expand(pattern).await?);
    }
    let mut read = Read::default();
    if files.is_empty() {
        return Err(Error::Data("no rows: name a JSONL file".into()));
    }
    for file in &files {
        if control.breathe().await == Flow::Stop {
            return Ok(None);
        }
        let mut rows = chat::read(&String::from_utf8_lossy(&store.read(file).await?), &format);
        if files.len() > 1 {
            let name: Arc<str> = file.as_str().into();
            let places = rows.examples.iter_mut().map(|example| &mut example.place);
            places.chain(rows.bad.iter_mut().map(|bad| &mut bad.place)).for_each(|place| place.file = Some(name.clone()));
        }
        if rows.examples.is_empty() {
            return Err(Error::Data(match rows.bad.first() {
                Some(BadRow { place, reason }) => {
                    let told = reason.contains("--columns");
                    let remedy = if told { "" } else { "; mend the rows, or tell other names of keys with --columns" };
                    format!("{file} holds no row that can be used; line {}: {reason}{remedy}", place.line)
                }
                None => format!("{file} holds no rows"),
            }));
        }
        read.examples.extend(rows.examples);
        read.bad.extend(rows.bad);
    }
    Ok(Some(read))
}

impl Read {
    /// Makes ids of the rows. What the template refuses is bad, and what loses all that is to be learned to the limit of
    /// length. `part` is what the rows are for. `None` where it was stopped.
    ///
    /// # Errors
    /// [`Error::Data`] where no row is left.
    pub async fn encode(&mut self, part: &str, encoder: &Encoder<'_>, control: &Control) -> Result<Option<Vec<Encoded>>> {
        let total = self.examples.len() as u64;
        let (mut examples, mut encoded) = (Vec::new(), Vec::new());
        for (index, example) in std::mem::take(&mut self.examples).into_iter().enumerate() {
            if index % 256 == 0 {
                if control.breathe().await == Flow::Stop {
                    return Ok(None);
                }
                control.progress(&format!("tokenize {part}"), index as u64, total, "rows");
            }
            let reason = match encoder.encode(&example) {
                Ok(done) if done.lost_targets > 0 && target_count(&done) == 0 => {
                    format!("its answer begins after the {} tokens that an example may have", encoder.max_length)
                }
                Ok(done) => {
                    encoded.push(done);
                    examples.push(example);
                    continue;
                }
                Err(error) => error.to_string(),
            };
            self.bad.push(BadRow { place: example.place, reason });
        }
        self.examples = examples;
        if encoded.is_empty() && !self.bad.is_empty() {
            return Err(Error::Data(format!("none of the {part} can be used; {}", chat::reasons(&self.bad))));
        }
        Ok(Some(encoded))
    }

    /// Tells which rows are bad and why: they are left out, or refused. `part` is what the rows are for.
    ///
    /// # Errors
    /// [`Error::Data`] where bad rows are to be refused.
    pub fn leave_out(&self, part: &str, bad_rows: BadRows, control: &Control) -> Result<()> {
        if self.bad.is_empty() {
            return Ok(());
        }
        let places: Vec<String> = self.bad.iter().take(MOST_NAMED).map(|bad| bad.place.to_string()).collect();
        let more = if self.bad.len() > MOST_NAMED { ", …" } else { "" };
        let (count, rows, reasons) = (self.bad.len(), format!("rows {}{more}", places.join(", ")), chat::reasons(&self.bad));
        if bad_rows == BadRows::Refuse {
            let remedy = "mend the rows, or leave bad ones out with --bad-rows skip";
            return Err(Error::Data(format!("{count} of the {part} cannot be used ({rows}); {reasons}; {remedy}")));
        }
        control.warn(format!("{count} of the {part} cannot be used and are left out ({rows}); {reasons}"));
        Ok(())
    }
}

/// Bad rows that are named.
const MOST_NAMED: usize = 10;

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
    let encoder = speech.encoder(config.loss_on, config.max_seq_length);
    let Some(mut read_training) = read(config, &config.train_file, store, control).await? else { return Ok(None) };
    let Some(encoded) = read_training.encode("training rows", &encoder, control).await? else { return Ok(None) };
    read_training.leave_out("training rows", config.bad_rows, control)?;
    let preflight = preflight(&encoder, &encoded, &read_training.bad, speech.shape.pad_token_id);
    let rows: Vec<_> = read_training.examples.into_iter().zip(encoded).collect();
    let (training, held_out) = if config.validation_file.named().next().is_none() {
        split(rows, config)
    } else {
        let Some(mut validation) = read(config, &config.validation_file, store, control).await? else { return Ok(None) };
        let Some(encoded) = validation.encode("validation rows", &encoder, control).await? else { return Ok(None) };
        validation.leave_out("validation rows", config.bad_rows, control)?;
        (rows, validation.examples.into_iter().zip(encoded).collect())
    };
    if held_out.is_empty() && config.load_best_model_at_end {
        control.warn("no rows are held out: load_best_model_at_end has nothing to go by, and the last step is taken");
    }
    let kinds = kinds(training.iter().chain(&held_out).map(|(example, _)| example));
    let kind = |task: &Option<String>| kind(&kinds, task.as_deref());
    refuse(&preflight, "look at them with `smolforge inspect`")?;
    let context = speech.shape.max_position_embeddings;
    if config.max_seq_length > context && config.max_seq_length != FinetuneConfig::default().max_seq_length {
        control.remark(format!("--max-seq-length {}: the model's context of {context} tokens is the limit", config.max_seq_length));
    }
    let is_held_out = |index: &usize| held_out.iter().any(|(example, _)| kind(&example.task) == *index);
    let (known, unknown): (Vec<usize>, Vec<usize>) = (0..kinds.len()).partition(is_held_out);
    if !known.is_empty() || config.validation_split > 0.0 {
        let unknown: Vec<&str> = unknown.into_iter().map(|index| kinds[index].as_str()).collect();
        remark_unknown(config, known.is_empty().then_some(training.len()), &unknown, control);
    }
    let mut prompts: Vec<(String, Vec<u32>)> = Vec::new();
    let asked = if held_out.is_empty() { &training } else { &held_out };
    for index in 0..kinds.len() {
        // The first that the template does not refuse and the context has room for.
        let room = speech.shape.max_position_embeddings.saturating_sub(config.sample_tokens);
        let examples = asked.iter().map(|(example, _)| example);
        let questions = examples.filter(|example| kind(&example.task) == index && config.sample_tokens > 0);
        let mut questions = questions.filter_map(|example| speech.question(example).ok().flatten());
        prompts
            .extend(questions.find(|(_, ids, _)| !ids.is_empty() && ids.len() < room).map(|(asked, ids, _)| (format!("{asked}\n"), ids)));
    }
    let [training, held_out] =
        [training, held_out].map(|part| part.into_iter().map(|(_, done)| (kind(&done.task), done.document)).collect());
    let size = [config.per_device_train_batch_size, config.gradient_accumulation_steps];
    let packing = config.packing.then_some(encoder.max_length);
    let pad = speech.shape.pad_token_id.or(speech.stops.first().copied()).unwrap_or(0);
    let examples = Examples::new(kinds, training, held_out, size, packing, config.seed, pad)?;
    Ok(Some(Prepared { speech, examples, prompts, preflight }))
}

/// Says of which tasks no rows are held out; `rows`: how many there are, where none of all are.
fn remark_unknown(config: &FinetuneConfig, rows: Option<usize>, tasks: &[&str], control: &Control) {
    let remedy = match config.validation_file.named().next() {
        Some(_) => "add some to --validation-file",
        None => "raise --validation-split, or give --validation-file",
    };
    if config.eval_strategy == Interval::No || tasks.is_empty() {
        return;
    }
    control.remark(match rows {
        Some(rows) => {
            format!("--validation-split {}: holds out none of {rows} rows, nothing is evaluated; {remedy}", config.validation_split)
        }
        None => format!("no rows of {} are held out: evaluations leave that out; {remedy}", tasks.join(", ")),
    });
}

/// Refuses what would teach something wrong; `remedy` ends what is said.
///
/// # Errors
/// [`Error::Data`] with the first red check and its rows.
pub fn refuse(preflight: &Preflight, remedy: &str) -> Result<()> {
    match preflight.checks.iter().find(|check| check.level == Level::Red) {
        None => Ok(()),
        Some(check) => {
            let rows = if check.rows.is_empty() { String::new() } else { format!(" (rows {})", check.rows.join(", ")) };
            Err(Error::Data(format!("pre-flight: {}{rows}; {remedy}", check.line)))
        }
    }
}

/// Keeps a share of the rows out of training; the same ones for the same seed.
fn split<T>(rows: Vec<T>, config: &FinetuneConfig) -> (Vec<T>, Vec<T>) {
    let count = rows.len();
    let held_out = ((count as f64 * config.validation_split).round() as usize).min(count.saturating_sub(1));
    let order = Permutation::new(count as u64, mix(config.seed ^ 0x5e1ec7));
    let mut chosen = vec![false; count];
    (0..held_out).for_each(|i| chosen[order.at(i as u64) as usize] = true);
    let (held_out, training): (Vec<_>, Vec<_>) = rows.into_iter().zip(chosen).partition(|(_, chosen)| *chosen);
    let rows = |pairs: Vec<(T, bool)>| pairs.into_iter().map(|(row, _)| row).collect();
    (rows(training), rows(held_out))
}

/// Which of the kinds examples of a task are.
pub fn kind(kinds: &[String], task: Option<&str>) -> usize {
    let name = task.unwrap_or(NO_TASK);
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
