//! Rejection sampling: a teacher answers every question several times, and what is right is kept.
//!
//! All samples are written down as they come, a line a question, so that a rollout goes on where it was stopped and other
//! rows can be kept of the same samples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use web_time::Instant;

use super::questions::{self, Question};
use super::test::{Examinee, Prompt};
use super::{answer, conversion};
use crate::config::reason::{Keep, Quantize, ReasonConfig};
use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::generate::batch;
use crate::generate::loaded::hash_of;
use crate::protocol::{Event, FunnelReport, Reject, Sampling};
use crate::store::{Store, inside};
use crate::tasks::folder_of;

/// Seconds between reports.
const REPORT_EVERY_SECS: f64 = 0.5;

/// What samples depend on: the first line of their file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Origin {
    teacher: String,
    weights: String,
    /// Whether the teacher was kept in 4 bits; unknown until it is loaded.
    four_bits: Option<bool>,
    questions: String,
    prompt: String,
    oversample: usize,
    temperature: f64,
    max_new_tokens: usize,
    seed: u64,
}

/// The samples of a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sampled {
    /// Its place in the file of questions, from 0.
    question: usize,
    /// What the teacher wrote, in the order of the seeds.
    samples: Vec<String>,
}

/// Files of a rollout beside the rows that it writes.
struct Files {
    /// All samples.
    samples: String,
    /// Questions without a right sample.
    rejects: String,
    /// Rows that people wrote for such questions.
    mended: String,
    /// Held by who writes them.
    lock: String,
}

impl Files {
    /// Of a rollout that writes its rows to `out`.
    fn of(out: &str) -> Self {
        let stem = out.strip_suffix(".json").unwrap_or(out);
        let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
        let lock = if folder.is_empty() { format!(".{name}.lock") } else { inside(folder, &format!(".{name}.lock")) };
        let [samples, rejects, mended] = ["samples.jsonl", "rejects.json", "mended.json"].map(|name| format!("{stem}.{name}"));
        Self { samples, rejects, mended, lock }
    }
}

/// Lets the teacher answer the questions of `data` and keeps what is right in `out`. `None` where it was stopped: it goes on
/// there.
///
/// # Errors
/// What is wrong with questions, teacher or device; [`Error::Resume`] where the samples that are there are others';
/// [`Error::Data`] where no sample is right.
pub async fn run(
    config: &ReasonConfig,
    data: &str,
    shots: &[Question],
    out: &str,
    store: &Store,
    control: &Control,
) -> Result<Option<FunnelReport>> {
    if out == data {
        return Err(Error::Config(format!("--out {out}: these are the questions; name another file for the rows")));
    }
    let text = store.read_text(data).await?;
    let questions = questions::read(&text, data)?;
    if let Some(odd) = questions::oddities(&questions, &[]) {
        control.warn(format!("{data}: {odd}"));
    }
    let Some(folder) = folder_of(&config.teacher, store, control).await? else { return Ok(None) };
    let prompt = Prompt::worked(&config.system, shots);
    let origin = Origin {
        teacher: config.teacher.clone(),
        weights: hash_of(store, &folder).await?,
        four_bits: match config.quantize_teacher {
            Quantize::Auto => None,
            quantize => Some(quantize == Quantize::Yes),
        },
        questions: blake3::hash(text.as_bytes()).to_hex().to_string(),
        prompt: blake3::hash(format!("{prompt:?}").as_bytes()).to_hex().to_string(),
        oversample: config.oversample,
        temperature: config.temperature,
        max_new_tokens: config.max_new_tokens,
        seed: config.seed,
    };
    let Files { samples: path, lock, .. } = Files::of(out);
    let _lock = store.lock(&lock).await?;
    let (origin, known) = begun(&path, origin, questions.len(), store).await?;
    let mut funnel = Funnel::new(&questions, config);
    known.iter().for_each(|sampled| funnel.add(sampled));
    if known.len() < questions.len() {
        if !known.is_empty() {
            control.notice(format!("{path}: goes on behind {} of {} questions", known.len(), questions.len()));
        }
        let missing: Vec<usize> = (0..questions.len()).filter(|index| funnel.rows[*index].is_none()).collect();
        if draw(config, &folder, origin, &missing, &prompt, &path, &mut funnel, store, control).await? == Flow::Stop {
            control.emit(Event::Funnel(funnel.report));
            return Ok(None);
        }
    }
    let report = funnel.report.clone();
    control.emit(Event::Funnel(report.clone()));
    if write(&funnel, out, store, control).await? == 0 {
        let remedy = match report.answered {
            0 => {
                "no sample holds an <answer>: show worked examples with --shots, take an Instruct model as --teacher, or raise --max-new-tokens"
            }
            _ => "no answer is right: take a larger --teacher, better --shots, or a larger --oversample",
        };
        let way = format!("{remedy}; then remove {path}, or choose another --out");
        return Err(Error::Data(format!("0 % of {} questions are solved; {way}", questions.len())));
    }
    Ok(Some(report))
}

/// The samples that are there, and what they depend on: `asked`, with what is known of it by now. A line that was not written
/// to its end is cut off.
async fn begun(path: &str, asked: Origin, questions: usize, store: &Store) -> Result<(Origin, Vec<Sampled>)> {
    let none = (asked.clone(), Vec::new());
    if !store.exists(path).await {
        return Ok(none);
    }
    let bytes = store.read(path).await?.to_vec();
    let whole = &bytes[..bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)];
    let mut lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return Ok(none) }; // stopped before its first line was complete
    let damaged = |line: usize| Error::format(path, format!("line {line} is damaged; remove the file to draw all samples anew"));
    let found: Origin = serde_json::from_slice(first).map_err(|_| damaged(1))?;
    if let Some(what) = difference(&found, &asked) {
        return Err(Error::Resume(format!("{path} holds samples of another {what}; remove it, or choose another --out")));
    }
    let mut known = BTreeMap::new();
    for (line, number) in lines.zip(2..) {
        let sampled: Sampled = serde_json::from_slice(line).map_err(|_| damaged(number))?;
        if sampled.question >= questions || sampled.samples.len() != asked.oversample {
            return Err(damaged(number));
        }
        known.insert(sampled.question, sampled);
    }
    if whole.len() < bytes.len() {
        store.write(path, whole).await?;
    }
    Ok((found, known.into_values().collect()))
}

fn difference(found: &Origin, asked: &Origin) -> Option<&'static str> {
    let pairs = [
        (found.weights == asked.weights, "teacher"),
        (asked.four_bits.is_none() || found.four_bits == asked.four_bits, "--quantize-teacher"),
        (found.questions == asked.questions, "file of questions"),
        (found.prompt == asked.prompt, "--system or --shots"),
        (found.oversample == asked.oversample, "--oversample"),
        (found.temperature == asked.temperature, "--temperature"),
        (found.max_new_tokens == asked.max_new_tokens, "--max-new-tokens"),
        (found.seed == asked.seed, "--seed"),
    ];
    pairs.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
}

/// Draws the samples of some questions and writes those of a question as soon as they are complete.
async fn draw(
    config: &ReasonConfig,
    folder: &str,
    origin: Origin,
    missing: &[usize],
    prompt: &Prompt,
    path: &str,
    funnel: &mut Funnel<'_>,
    store: &Store,
    control: &Control,
) -> Result<Flow> {
    let Some(teacher) = Examinee::load_teacher(config, folder, store, control).await? else { return Ok(Flow::Stop) };
    if missing.len() == funnel.questions.len() {
        let origin = Origin { four_bits: Some(teacher.four_bits), ..origin };
        store.write(path, format!("{}\n", json!(origin)).as_bytes()).await?;
    } else if origin.four_bits != Some(teacher.four_bits) {
        let (quantize, how) = if teacher.four_bits { ("no", "in more than 4 bits") } else { ("yes", "in 4 bits") };
        let way = format!("go on with --quantize-teacher {quantize}, or choose another --out");
        return Err(Error::Resume(format!("{path} holds samples of the teacher {how}; {way}")));
    }
    let n = config.oversample;
    let prompts = missing.iter().map(|index| {
        let ids = prompt.ids(&funnel.questions[*index].text, &teacher.speech)?;
        Ok(batch::Prompt { ids, samples: n, stream: (index * n) as u64 })
    });
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let sampling = Sampling { temperature: config.temperature as f32, seed: config.seed, ..Sampling::default() };
    let mut appender = store.append(path).await?;
    let mut open: BTreeMap<usize, Vec<Option<String>>> = BTreeMap::new();
    let (started, mut reported, mut drawn) = (Instant::now(), 0.0, 0u64);
    let all = (prompts.len() * n) as f64;
    let flow = teacher.continue_all(&prompts, &sampling, config, control, |place, sample, generation| {
        let samples = open.entry(place).or_insert_with(|| vec![None; n]);
        samples[sample] = Some(generation.text);
        drawn += 1;
        funnel.report.tokens += generation.tokens.len() as u64;
        funnel.report.secs = started.elapsed().as_secs_f64();
        funnel.report.eta_secs = funnel.report.secs / drawn as f64 * (all - drawn as f64);
        if samples.iter().all(Option::is_some) {
            let samples = open.remove(&place).into_iter().flatten().flatten().collect();
            let sampled = Sampled { question: missing[place], samples };
            appender.push(format!("{}\n", json!(sampled)).as_bytes());
            appender.flush()?;
            funnel.add(&sampled);
        }
        if funnel.report.secs - reported >= REPORT_EVERY_SECS {
            reported = funnel.report.secs;
            control.emit(Event::Funnel(funnel.report.clone()));
        }
        Ok(())
    });
    let flow = flow.await?;
    funnel.report.eta_secs = if flow == Flow::Continue { 0.0 } else { funnel.report.eta_secs };
    Ok(flow)
}

/// What has become of the samples.
struct Funnel<'a> {
    questions: &'a [Question],
    config: &'a ReasonConfig,
    /// By question: what is kept of its samples, and the samples where none is right; none before they are complete.
    rows: Vec<Option<(Vec<String>, Vec<String>)>>,
    report: FunnelReport,
}

impl<'a> Funnel<'a> {
    fn new(questions: &'a [Question], config: &'a ReasonConfig) -> Self {
        let report = FunnelReport { questions: questions.len() as u64, per_question: config.oversample as u64, ..FunnelReport::default() };
        Self { questions, config, rows: vec![None; questions.len()], report }
    }

    /// Counts the samples of a question.
    fn add(&mut self, sampled: &Sampled) {
        let question = &self.questions[sampled.question];
        let numbers: Vec<f64> = sampled.samples.iter().map(|sample| answer::parse(sample)).collect();
        let is_right = |number: &f64| answer::is_right(*number, question.answer, self.config.tolerance);
        let right: Vec<String> =
            sampled.samples.iter().zip(&numbers).filter(|(_, number)| is_right(number)).map(|(sample, _)| trimmed(sample)).collect();
        let answered = numbers.iter().filter(|number| !number.is_nan()).count() as u64;
        let kept = kept(&right, self.config.keep);
        let report = &mut self.report;
        report.done += 1;
        report.samples += numbers.len() as u64;
        report.answered += answered;
        report.right += right.len() as u64;
        report.kept += kept.len() as u64;
        report.duplicates += right.iter().filter(|sample| kept.contains(sample)).count() as u64 - kept.len() as u64;
        report.solved += u64::from(!right.is_empty());
        report.pass_at_1 = report.right as f64 / report.samples.max(1) as f64;
        report.kinds.entry(conversion::kind(&question.text).into()).or_default().add(answered > 0, !right.is_empty());
        let rejected = if right.is_empty() { sampled.samples.clone() } else { Vec::new() };
        self.rows[sampled.question] = Some((kept, rejected));
    }
}

/// A sample up to the end of its answer, which is closed.
fn trimmed(sample: &str) -> String {
    let end = sample.find("<answer>").and_then(|start| Some(start + sample[start..].find("</answer>")?));
    match end {
        Some(end) => format!("{}</answer>", sample[..end].trim_start()),
        None => format!("{}</answer>", sample.trim()),
    }
}

/// Which of the right samples of a question are kept, none twice.
fn kept(right: &[String], keep: Keep) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for sample in right {
        if !distinct.contains(sample) {
            distinct.push(sample.clone());
        }
    }
    match keep {
        Keep::First => distinct.truncate(1),
        Keep::Shortest => distinct = distinct.into_iter().min_by_key(|sample| sample.chars().count()).into_iter().collect(),
        Keep::Distinct(count) => distinct.truncate(count),
    }
    distinct
}

/// Writes what is kept, with what people mended, and what is not; the number of rows.
async fn write(funnel: &Funnel<'_>, out: &str, store: &Store, control: &Control) -> Result<usize> {
    let Files { rejects: rejects_path, mended: mended_path, .. } = Files::of(out);
    let mended = mended(&mended_path, store).await?;
    let (mut rows, mut rejects) = (Vec::new(), Vec::new());
    for (question, found) in funnel.questions.iter().zip(&funnel.rows) {
        let Some((kept, samples)) = found else { continue };
        rows.extend(kept.iter().map(|reasoning| Question { reasoning: Some(reasoning.clone()), ..question.clone() }));
        if kept.is_empty() {
            match mended.iter().find(|row| mends(row, &question.text, question.answer, funnel.config.tolerance)) {
                Some(row) => rows.push(row.clone()),
                None => rejects.push(json!([question.text, question.answer, samples])),
            }
        }
    }
    store.write(out, questions::written(&rows).as_bytes()).await?;
    control.emit(Event::Wrote { what: format!("{} rows of reasoning", rows.len()), path: out.into() });
    store.write(&rejects_path, listed(&rejects).as_bytes()).await?;
    control.emit(Event::Wrote { what: format!("{} rejects", rejects.len()), path: rejects_path });
    Ok(rows.len())
}

/// Rows that people wrote for questions without a right sample.
async fn mended(path: &str, store: &Store) -> Result<Vec<Question>> {
    if store.exists(path).await { questions::read(&store.read_text(path).await?, path) } else { Ok(Vec::new()) }
}

/// Whether a row that people wrote works out a question rightly.
fn mends(row: &Question, question: &str, answer: f64, tolerance: f64) -> bool {
    let found = row.reasoning.as_deref().map_or(f64::NAN, answer::parse);
    row.text == question && answer::is_right(found, answer, tolerance)
}

/// Rows of JSON, a row a line.
fn listed(rows: &[serde_json::Value]) -> String {
    let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
    if lines.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", lines.join(",\n")) }
}

/// The questions of a rollout without a right sample.
///
/// # Errors
/// [`Error::File`] where there are none, [`Error::Format`] where the file is no such list.
pub async fn rejects(out: &str, store: &Store) -> Result<Vec<Reject>> {
    let path = Files::of(out).rejects;
    let rows: Vec<(String, f64, Vec<String>)> = serde_json::from_str(&store.read_text(&path).await?)
        .map_err(|e| Error::format(&path, format!("no list of [question, answer, [samples]]: {e}")))?;
    Ok(rows.into_iter().map(|(question, expected, samples)| Reject { question, expected, samples }).collect())
}

/// Puts reasoning that people wrote into the rows of a rollout, for a question that none of its samples answers rightly.
///
/// # Errors
/// [`Error::Data`] where the question is no reject or the reasoning's answer is not right.
pub async fn mend(config: &ReasonConfig, out: &str, question: &str, reasoning: &str, store: &Store, control: &Control) -> Result<()> {
    let files = Files::of(out);
    let _lock = store.lock(&files.lock).await?;
    let (asked, left): (Vec<_>, Vec<_>) = rejects(out, store).await?.into_iter().partition(|reject| reject.question == question);
    let Some(Reject { expected, .. }) = asked.first() else {
        return Err(Error::Data(format!("{question:?} is none of the rejects of {out}; list them with: rejects")));
    };
    let row = Question { text: question.into(), answer: *expected, reasoning: Some(trimmed(reasoning)) };
    if !mends(&row, question, *expected, config.tolerance) {
        let found = answer::parse(reasoning);
        let what = if found.is_nan() { "holds no <answer>…</answer> with a number".into() } else { format!("ends in {found}") };
        return Err(Error::Data(format!("the reasoning {what}; the right answer is {}", answer::shown(*expected))));
    }
    // First what a rollout never writes anew.
    let mut mended = mended(&files.mended, store).await?;
    mended.retain(|row| row.text != question);
    mended.push(row.clone());
    store.write(&files.mended, questions::written(&mended).as_bytes()).await?;
    let text = if store.exists(out).await { store.read_text(out).await? } else { String::new() };
    let none_kept = text.trim().trim_start_matches('[').trim_end_matches(']').trim().is_empty();
    let mut rows = if none_kept { Vec::new() } else { questions::read(&text, out)? };
    rows.extend(asked.iter().map(|_| row.clone()));
    store.write(out, questions::written(&rows).as_bytes()).await?;
    let left: Vec<_> = left.iter().map(|reject| json!([reject.question, reject.expected, reject.samples])).collect();
    store.write(&files.rejects, listed(&left).as_bytes()).await?;
    control.emit(Event::Wrote { what: format!("row {} of reasoning", rows.len()), path: out.into() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    fn sampled(question: usize, samples: &[&str]) -> Sampled {
        Sampled { question, samples: samples.iter().map(ToString::to_string).collect() }
    }

    fn questions() -> Vec<Question> {
        let question = |text: &str, answer| Question { text: text.into(), answer, reasoning: None };
        vec![question("How many g are 6 kg?", 6000.0), question("How many m are 2 km?", 2000.0)]
    }

    #[test]
    fn samples_fall_through_the_funnel() {
        let (questions, config) = (questions(), ReasonConfig { oversample: 4, ..ReasonConfig::default() });
        let mut funnel = Funnel::new(&questions, &config);
        let right = "6 * 1000 = <answer>6000</answer>";
        funnel.add(&sampled(0, &["<answer>5</answer>", right, right, "dunno"]));
        funnel.add(&sampled(1, &["no", "no", "<answer>1</answer>", "no"]));
        let report = &funnel.report;
        assert_eq!((report.done, report.samples, report.answered, report.right, report.kept), (2, 8, 4, 2, 1));
        assert_eq!((report.duplicates, report.solved, report.pass_at_1, report.pass_at_k()), (1, 1, 0.25, 0.5));
        assert_eq!((report.kinds["mass"].right, report.kinds["length"].right), (1, 0));
        assert_eq!(funnel.rows[1].as_ref().unwrap().1.len(), 4);
    }

    #[test]
    fn what_is_kept_ends_with_its_answer() {
        let check = |sample: &str, expect: &str| {
            assert_eq!(trimmed(sample), expect);
            assert_eq!(answer::parse(expect).to_bits(), answer::parse(sample).to_bits(), "{sample}");
        };
        check(" 2 * 3 = <answer>6</answer> Good luck!", "2 * 3 = <answer>6</answer>");
        check("<answer> 6 \n", "<answer> 6</answer>");
        check("<answer>6</answer><answer>7</answer>", "<answer>6</answer>");
    }

    #[test]
    fn samples_are_kept_by_policy() {
        let right = ["long answer", "short", "long answer", "other"].map(String::from);
        let check = |keep, expect: &[&str]| assert_eq!(kept(&right, keep), expect);
        check(Keep::First, &["long answer"]);
        check(Keep::Shortest, &["short"]);
        check(Keep::Distinct(2), &["long answer", "short"]);
        check(Keep::Distinct(9), &["long answer", "short", "other"]);
        assert!(kept(&[], Keep::First).is_empty());
    }

    #[test]
    fn samples_that_are_there_are_not_drawn_again() {
        let store = Store::memory();
        let origin = Origin {
            teacher: "t".into(),
            weights: "w".into(),
            four_bits: Some(false),
            questions: "q".into(),
            prompt: "p".into(),
            oversample: 1,
            temperature: 0.5,
            max_new_tokens: 9,
            seed: 1,
        };
        let write = |bytes: &[u8]| block_on(store.write("r.samples.jsonl", bytes)).unwrap();
        let begun = |origin: &Origin| block_on(begun("r.samples.jsonl", origin.clone(), 2, &store));
        assert_eq!(begun(&origin).unwrap().1, []);
        let (head, line) = (format!("{}\n", json!(origin)), format!("{}\n", json!(sampled(1, &["µ"]))));
        let torn = line.find('µ').unwrap() + 1; // killed in the middle of a character
        write(&[head.as_bytes(), line.as_bytes(), &line.as_bytes()[..torn]].concat());
        assert_eq!(begun(&origin).unwrap(), (origin.clone(), vec![sampled(1, &["µ"])]));
        assert!(block_on(store.read_text("r.samples.jsonl")).unwrap().ends_with(&line));
        for (other, word) in [
            (Origin { temperature: 0.6, ..origin.clone() }, "--temperature"),
            (Origin { four_bits: Some(true), ..origin.clone() }, "--quantize-teacher"),
        ] {
            let error = begun(&other).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(begun(&Origin { four_bits: None, ..origin.clone() }).unwrap().0, origin);
        write(b"{\"x\n");
        assert!(begun(&origin).unwrap_err().to_string().contains("line 1"));
        write(b"");
        assert_eq!(begun(&origin).unwrap().1, []);
    }

    #[test]
    fn people_mend_rejects_with_right_answers() {
        let (store, (control, _signals, _events)) = (Store::memory(), Control::connect());
        let (questions, config) = (questions(), ReasonConfig { oversample: 1, ..ReasonConfig::default() });
        let others = [questions[0].clone(), Question { answer: 3.0, ..questions[1].clone() }];
        let mut funnel = Funnel::new(&questions, &config);
        funnel.add(&sampled(0, &["<answer>6000</answer>"]));
        funnel.add(&sampled(1, &["no"]));
        block_on(write(&funnel, "rft.json", &store, &control)).unwrap();
        assert_eq!(block_on(rejects("rft.json", &store)).unwrap().len(), 1);
        let mend = |question: &str, text: &str| block_on(mend(&config, "rft.json", question, text, &store, &control));
        assert!(mend("How many m are 2 km?", "<answer>3</answer>").unwrap_err().to_string().contains("2000"));
        assert!(mend("How many g are 6 kg?", "<answer>6000</answer>").is_err());
        block_on(store.write("rft.json", questions::written(&[]).as_bytes())).unwrap(); // as where nothing was kept
        mend("How many m are 2 km?", "2 * 1000 = <answer>2000</answer>").unwrap();
        let rows = || questions::read(&block_on(store.read_text("rft.json")).unwrap(), "rft.json").unwrap();
        assert_eq!(rows().len(), 1);
        assert!(block_on(rejects("rft.json", &store)).unwrap().is_empty());
        // What people wrote stays when the same rollout is finished again, as long as it is right.
        assert_eq!(block_on(write(&funnel, "rft.json", &store, &control)).unwrap(), 2);
        assert_eq!(rows().len(), 2);
        funnel.questions = &others;
        assert_eq!(block_on(write(&funnel, "rft.json", &store, &control)).unwrap(), 1);
        block_on(store.write("rft.mended.json", b"[[\"How many")).unwrap();
        assert!(block_on(write(&funnel, "rft.json", &store, &control)).is_err(), "it is not lost");
    }
}
