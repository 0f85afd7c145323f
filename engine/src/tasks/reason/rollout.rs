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
use crate::config::reason::{Keep, ReasonConfig};
use crate::control::{Control, Flow};
use crate::error::{Error, Result};
use crate::generate::batch;
use crate::generate::loaded::hash_of;
use crate::protocol::{Event, FunnelReport, Reject, Sampling};
use crate::store::{Store, inside};
use crate::tasks::folder_of;

/// Seconds between reports.
const REPORT_EVERY_SECS: f64 = 0.5;

/// A file in the folder of another.
fn beside(path: &str, name: &str) -> String {
    path.rsplit_once('/').map_or_else(|| name.into(), |(folder, _)| inside(folder, name))
}

/// What samples depend on: the first line of their file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Origin {
    teacher: String,
    weights: String,
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

/// Files of a rollout that writes its rows to `out`: all samples, and questions without a right one.
pub fn files(out: &str) -> [String; 2] {
    let stem = out.strip_suffix(".json").unwrap_or(out);
    [format!("{stem}.samples.jsonl"), format!("{stem}.rejects.json")]
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
    let text = store.read_text(data).await?;
    let questions = questions::read(&text, data)?;
    let Some(folder) = folder_of(&config.teacher, store, control).await? else { return Ok(None) };
    let prompt = Prompt::worked(&config.system, shots);
    let origin = Origin {
        teacher: config.teacher.clone(),
        weights: hash_of(store, &folder).await?,
        questions: blake3::hash(text.as_bytes()).to_hex().to_string(),
        prompt: blake3::hash(format!("{prompt:?}").as_bytes()).to_hex().to_string(),
        oversample: config.oversample,
        temperature: config.temperature,
        max_new_tokens: config.max_new_tokens,
        seed: config.seed,
    };
    let [path, _] = files(out);
    let _lock = store.lock(&beside(&path, ".rollout.lock")).await?;
    let known = begun(&path, &origin, questions.len(), store).await?;
    let mut funnel = Funnel::new(&questions, config);
    known.iter().for_each(|sampled| funnel.add(sampled));
    if known.len() < questions.len() {
        if !known.is_empty() {
            control.notice(format!("{path}: goes on behind {} of {} questions", known.len(), questions.len()));
        }
        let missing: Vec<usize> = (0..questions.len()).filter(|index| funnel.rows[*index].is_none()).collect();
        if draw(config, &folder, &missing, &prompt, &path, &mut funnel, store, control).await? == Flow::Stop {
            control.emit(Event::Funnel(funnel.report));
            return Ok(None);
        }
    }
    let report = funnel.report.clone();
    control.emit(Event::Funnel(report.clone()));
    write(&funnel, out, store, control).await?;
    if report.kept == 0 {
        let remedy = match report.answered {
            0 => {
                "no sample holds an <answer>: show worked examples with --shots, take an Instruct model as --teacher, or raise --max-new-tokens"
            }
            _ => "no answer is right: take a larger --teacher, better --shots, or a larger --oversample",
        };
        return Err(Error::Data(format!("0 % of {} questions are solved; {remedy}", questions.len())));
    }
    Ok(Some(report))
}

/// The samples that are there. A line that was not written to its end is cut off.
async fn begun(path: &str, origin: &Origin, questions: usize, store: &Store) -> Result<Vec<Sampled>> {
    let head = format!("{}\n", json!(origin));
    if !store.exists(path).await {
        store.write(path, head.as_bytes()).await?;
        return Ok(Vec::new());
    }
    let text = store.read_text(path).await?;
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut lines = whole.lines();
    let Some(first) = lines.next() else {
        store.write(path, head.as_bytes()).await?; // stopped before its first line was complete
        return Ok(Vec::new());
    };
    let damaged = |line: usize| Error::format(path, format!("line {line} is damaged; remove the file to draw all samples anew"));
    let found: Origin = serde_json::from_str(first).map_err(|_| damaged(1))?;
    if let Some(what) = difference(&found, origin) {
        return Err(Error::Resume(format!("{path} holds samples of another {what}; remove it, or choose another --out")));
    }
    let mut known = BTreeMap::new();
    for (line, number) in lines.zip(2..) {
        let sampled: Sampled = serde_json::from_str(line).map_err(|_| damaged(number))?;
        if sampled.question >= questions || sampled.samples.len() != origin.oversample {
            return Err(damaged(number));
        }
        known.insert(sampled.question, sampled);
    }
    if whole.len() < text.len() {
        store.write(path, whole.as_bytes()).await?;
    }
    Ok(known.into_values().collect())
}

fn difference(found: &Origin, asked: &Origin) -> Option<&'static str> {
    let pairs = [
        (found.weights == asked.weights, "teacher"),
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
    missing: &[usize],
    prompt: &Prompt,
    path: &str,
    funnel: &mut Funnel<'_>,
    store: &Store,
    control: &Control,
) -> Result<Flow> {
    let teacher = Examinee::load_kept(config, folder, None, 0, config.quantize_teacher, store, control).await?;
    let Some(teacher) = teacher else { return Ok(Flow::Stop) };
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

/// Writes what is kept, with what people mended, and what is not.
async fn write(funnel: &Funnel<'_>, out: &str, store: &Store, control: &Control) -> Result<()> {
    let [_, rejects_path] = files(out);
    let mended: Vec<Question> = mended(out, funnel.questions, store).await;
    let (mut rows, mut rejects) = (Vec::new(), Vec::new());
    for (question, found) in funnel.questions.iter().zip(&funnel.rows) {
        let Some((kept, samples)) = found else { continue };
        rows.extend(kept.iter().map(|reasoning| Question { reasoning: Some(reasoning.clone()), ..question.clone() }));
        if kept.is_empty() {
            match mended.iter().find(|row| row.text == question.text && row.answer == question.answer) {
                Some(row) => rows.push(row.clone()),
                None => rejects.push(json!([question.text, question.answer, samples])),
            }
        }
    }
    store.write(out, questions::written(&rows).as_bytes()).await?;
    control.emit(Event::Wrote { what: format!("{} rows of reasoning", rows.len()), path: out.into() });
    store.write(&rejects_path, listed(&rejects).as_bytes()).await?;
    control.emit(Event::Wrote { what: format!("{} rejects", rejects.len()), path: rejects_path });
    Ok(())
}

/// Rows that people put into the file that is about to be written anew: those of questions that its rejects do not name.
async fn mended(out: &str, questions: &[Question], store: &Store) -> Vec<Question> {
    let Ok(text) = store.read_text(out).await else { return Vec::new() };
    let rows = questions::read(&text, out).unwrap_or_default();
    rows.into_iter().filter(|row| questions.iter().any(|question| question.text == row.text)).collect()
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
    let [_, path] = files(out);
    let rows: Vec<(String, f64, Vec<String>)> = serde_json::from_str(&store.read_text(&path).await?)
        .map_err(|e| Error::format(&path, format!("no list of [question, answer, [samples]]: {e}")))?;
    Ok(rows.into_iter().map(|(question, expected, samples)| Reject { question, expected, samples }).collect())
}

/// Puts reasoning that people wrote into the rows of a rollout.
///
/// # Errors
/// [`Error::Data`] where the question is no reject or the reasoning's answer is not right.
pub async fn mend(config: &ReasonConfig, out: &str, question: &str, reasoning: &str, store: &Store, control: &Control) -> Result<()> {
    let mut rejects = rejects(out, store).await?;
    let Some(place) = rejects.iter().position(|reject| reject.question == question) else {
        return Err(Error::Data(format!("{question:?} is none of the rejects of {out}; list them with: rejects")));
    };
    let (found, expected) = (answer::parse(reasoning), rejects[place].expected);
    if !answer::is_right(found, expected, config.tolerance) {
        let what = if found.is_nan() { "holds no <answer>…</answer> with a number".into() } else { format!("ends in {found}") };
        return Err(Error::Data(format!("the reasoning {what}; the right answer is {}", answer::shown(expected))));
    }
    let text = if store.exists(out).await { store.read_text(out).await? } else { String::new() };
    let none_kept = text.trim().trim_start_matches('[').trim_end_matches(']').trim().is_empty();
    let mut rows = if none_kept { Vec::new() } else { questions::read(&text, out)? };
    rows.push(Question { text: question.into(), answer: expected, reasoning: Some(trimmed(reasoning)) });
    rejects.remove(place);
    store.write(out, questions::written(&rows).as_bytes()).await?;
    let [_, path] = files(out);
    let left: Vec<_> = rejects.iter().map(|reject| json!([reject.question, reject.expected, reject.samples])).collect();
    store.write(&path, listed(&left).as_bytes()).await?;
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
            questions: "q".into(),
            prompt: "p".into(),
            oversample: 1,
            temperature: 0.5,
            max_new_tokens: 9,
            seed: 1,
        };
        let begun = |origin: &Origin| block_on(begun("r.samples.jsonl", origin, 2, &store));
        assert_eq!(begun(&origin).unwrap(), []);
        let mut appender = block_on(store.append("r.samples.jsonl")).unwrap();
        let line = format!("{}\n", json!(sampled(1, &["x"])));
        appender.push(line.as_bytes());
        appender.push(&line.as_bytes()[..9]); // killed while it wrote
        appender.flush().unwrap();
        assert_eq!(begun(&origin).unwrap(), [sampled(1, &["x"])]);
        assert!(block_on(store.read_text("r.samples.jsonl")).unwrap().ends_with(&line));
        let error = begun(&Origin { temperature: 0.6, ..origin.clone() }).unwrap_err().to_string();
        assert!(error.contains("--temperature"), "{error}");
        block_on(store.write("r.samples.jsonl", b"{\"x\n")).unwrap();
        assert!(begun(&origin).unwrap_err().to_string().contains("line 1"));
        block_on(store.write("r.samples.jsonl", b"")).unwrap();
        assert_eq!(begun(&origin).unwrap(), []);
    }

    #[test]
    fn people_mend_rejects_with_right_answers() {
        let (store, (control, _signals, _events)) = (Store::memory(), Control::connect());
        let (questions, config) = (questions(), ReasonConfig { oversample: 1, ..ReasonConfig::default() });
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
        // What people wrote stays when the same rollout is finished again.
        block_on(write(&funnel, "rft.json", &store, &control)).unwrap();
        assert_eq!(rows().len(), 2);
    }
}
