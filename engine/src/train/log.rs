//! What a run leaves to read: `events.jsonl` (the event stream written down), `training.log`, TensorBoard files and
//! `report.html`.
//!
//! Everything but `events.jsonl` follows from it: a resumed run cuts it back to the checkpoint and writes
//! `training.log` anew.

mod text;

use serde::{Deserialize, Serialize};
use web_time::{SystemTime, UNIX_EPOCH};

use super::report;
use super::tensorboard::TensorBoard;
use crate::error::{Error, Result};
use crate::protocol::Event;
use crate::store::{Appender, Store, inside};

pub use text::TextLog;
pub(crate) use text::{duration, shares};

const EVENTS: &str = "events.jsonl";
const TEXT: &str = "training.log";
const REPORT: &str = "report.html";
const TENSORBOARD: &str = "tensorboard";

/// The log of one run folder, open for adding.
pub struct RunLog {
    store: Store,
    folder: String,
    config_yaml: String,
    events: Appender,
    text: Appender,
    lines: TextLog,
    board: TensorBoard,
}

/// One line of `events.jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    time: f64,
    #[serde(flatten)]
    event: &'a Event,
}

impl RunLog {
    /// Begins the log of a new run; an older log in `folder` is replaced.
    /// `log_every`: updates between lines of `training.log` (`events.jsonl` has them all).
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::DiskFull`].
    pub async fn create(store: &Store, folder: &str, config_yaml: &str, log_every: u32) -> Result<Self> {
        store.remove(&inside(folder, TENSORBOARD)).await?;
        Self::open(store, folder, config_yaml, log_every, Vec::new()).await
    }

    /// Goes on after `step` updates: events of later steps, left by a run that was killed, are dropped, and those
    /// of this step's evaluation and samples if they are still `due`.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::DiskFull`]; the log of before is then intact.
    pub async fn resume(store: &Store, folder: &str, config_yaml: &str, log_every: u32, step: u32, due: bool) -> Result<Self> {
        let path = inside(folder, EVENTS);
        let bytes = if store.exists(&path).await { store.read(&path).await?.to_vec() } else { Vec::new() };
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let mut kept: Vec<(&[u8], Event)> = lines.filter_map(|line| Some((line, read_line(line).ok()?.1))).collect();
        // The file is in order of time: from the first later step on, everything belongs to the future that was lost.
        if let Some(end) = kept.iter().position(|(_, event)| is_later(event, step, due)) {
            kept.truncate(end);
        }
        let mut log = Self::open(store, folder, config_yaml, log_every, kept).await?;
        log.board.resumed(now(), step);
        Ok(log)
    }

    async fn open(store: &Store, folder: &str, config_yaml: &str, log_every: u32, kept: Vec<(&[u8], Event)>) -> Result<Self> {
        let mut lines = TextLog::new(log_every);
        let mut text = store.create(&inside(folder, TEXT)).await?;
        let mut events = store.create(&inside(folder, EVENTS)).await?;
        for (line, event) in &kept {
            events.write(line)?; // as it was: numbers keep every digit
            events.write(b"\n")?;
            text.write(lines.push(event).as_bytes())?;
        }
        events.finish().await?;
        text.finish().await?;
        Ok(Self {
            store: store.clone(),
            folder: folder.into(),
            config_yaml: config_yaml.into(),
            events: store.append(&inside(folder, EVENTS)).await?,
            text: store.append(&inside(folder, TEXT)).await?,
            lines,
            board: TensorBoard::create(store, &inside(folder, TENSORBOARD), now()).await?,
        })
    }

    /// The configuration that the report shows from now on.
    pub fn set_config(&mut self, config_yaml: String) {
        self.config_yaml = config_yaml;
    }

    /// Takes an event for the next [`RunLog::flush`]. Progress and streamed text are passing and leave no trace.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn push(&mut self, event: &Event) -> Result<()> {
        if matches!(event, Event::Progress { .. } | Event::Text { .. }) {
            return Ok(());
        }
        let time = now();
        self.events.push(line(time, event)?.as_bytes());
        self.text.push(self.lines.push(event).as_bytes());
        self.push_to_tensorboard(time, event);
        Ok(())
    }

    /// Writes down what was taken.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::DiskFull`]; what is not written then waits for the next time.
    pub fn flush(&mut self) -> Result<()> {
        self.events.flush()?;
        self.text.flush()?;
        self.board.flush()
    }

    /// Tags as Hugging Face's Trainer writes them.
    fn push_to_tensorboard(&mut self, time: f64, event: &Event) {
        match event {
            Event::Step(report) => {
                let named: Vec<(String, f64)> =
                    report.source_loss.iter().map(|(name, loss)| (format!("train/loss/{name}"), *loss)).collect();
                let mut values =
                    vec![("train/loss", report.loss), ("train/learning_rate", report.lr), ("train/grad_norm", report.grad_norm)];
                values.extend(named.iter().map(|(tag, loss)| (tag.as_str(), *loss)));
                values.push(("train/tokens_per_second", report.tokens_per_sec));
                if report.loss_scale != 1.0 {
                    values.push(("train/loss_scale", report.loss_scale));
                }
                self.board.scalars(time, report.step, values)
            }
            Event::Evaluated { step, loss, sources, .. } => {
                let named: Vec<(String, f64)> = sources.iter().map(|(name, score)| (format!("eval/loss/{name}"), score.loss)).collect();
                let total = std::iter::once(("eval/loss", *loss));
                self.board.scalars(time, *step, total.chain(named.iter().map(|(tag, loss)| (tag.as_str(), *loss))))
            }
            Event::Sample { step, stage, prompt, text } => {
                // Four spaces make a block of code, so that Markdown leaves the text alone.
                let block = format!("{prompt}{text}").replace('\n', "\n    ");
                self.board.text(time, *step, "samples/text_summary", &format!("{stage}, step {step}\n\n    {block}"))
            }
            Event::Reweighted { step, stage, weights } => {
                self.board.text(time, *step, "mix/text_summary", &format!("stage {}: {}", stage + 1, shares(weights)))
            }
            _ => {}
        }
    }

    /// Writes `report.html` from all that the log holds, also of earlier sessions, and returns its path.
    ///
    /// # Errors
    /// As [`read_events`] and [`RunLog::create`].
    pub async fn report(&self) -> Result<String> {
        let path = inside(&self.folder, REPORT);
        let events = read_events(&self.store, &self.folder).await?;
        let title = self.folder.trim_end_matches('/').rsplit('/').next().unwrap_or(&self.folder);
        self.store.write(&path, report::html(title, &events, &self.config_yaml).as_bytes()).await?;
        Ok(path)
    }
}

/// The events of a run with their Unix times, in order. A last line that a killed run left unfinished is no error.
///
/// # Errors
/// [`Error::File`] where there is no log, [`Error::Format`] with the number of a damaged line.
pub async fn read_events(store: &Store, folder: &str) -> Result<Vec<(f64, Event)>> {
    let path = inside(folder, EVENTS);
    let blob = store.read(&path).await?;
    let mut events: Vec<Result<(f64, Event)>> = parse(&blob).collect();
    if !blob.ends_with(b"\n") && events.last().is_some_and(Result::is_err) {
        events.pop();
    }
    let located =
        events.into_iter().enumerate().map(|(i, event)| event.map_err(|e| Error::format(format!("{path}:{}", i + 1), e.to_string())));
    located.collect()
}

fn parse(bytes: &[u8]) -> impl Iterator<Item = Result<(f64, Event)>> {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| read_line(line).map_err(|e| Error::Data(format!("not an event of smolforge: {e}"))))
}

fn line(time: f64, event: &Event) -> Result<String> {
    let text = serde_json::to_string(&Line { time, event }).map_err(|e| Error::Internal(format!("an event cannot be written: {e}")))?;
    Ok(text + "\n")
}

/// Reads a line with its Unix time.
pub(super) fn read_line(line: &[u8]) -> serde_json::Result<(f64, Event)> {
    #[derive(Deserialize)]
    struct Read {
        time: f64,
        #[serde(flatten)]
        event: Event,
    }
    serde_json::from_slice::<Read>(line).map(|read| (read.time, read.event))
}

/// Whether a run that goes on after `step` updates will say this (again).
fn is_later(event: &Event, step: u32, due: bool) -> bool {
    match event {
        Event::Step(report) => report.step > step,
        Event::Evaluated { step: at, .. } | Event::Sample { step: at, .. } => *at > step || (due && *at == step),
        Event::Saved { step: at, .. } => *at > step,
        Event::Stage { start, .. } => *start >= step,
        Event::Reweighted { step: at, .. } => *at >= step,
        _ => false,
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::protocol::{StepReport, TextScore};

    fn step(step: u32) -> Event {
        let loss = 5.0 / f64::from(step + 1);
        Event::Step(StepReport {
            step,
            loss,
            source_loss: [("input".to_string(), loss)].into(),
            source_tokens: [("input".to_string(), 4096)].into(),
            lr: 6e-4,
            grad_norm: 0.83,
            loss_scale: 1.0,
            tokens: 4096,
            read_tokens: 4096,
            total_tokens: 4096 * u64::from(step),
            tokens_per_sec: 1234.0,
            elapsed_secs: f64::from(step),
            eta_secs: 192.0,
            skipped: None,
        })
    }

    fn run(store: &Store, steps: std::ops::RangeInclusive<u32>) -> RunLog {
        let mut log = block_on(RunLog::create(store, "runs/x", "steps: 9\n", 2)).unwrap();
        for i in steps {
            record(&mut log, &step(i));
        }
        log
    }

    fn record(log: &mut RunLog, event: &Event) {
        log.push(event).unwrap();
        log.flush().unwrap();
    }

    fn text(store: &Store, name: &str) -> String {
        block_on(store.read_text(&format!("runs/x/{name}"))).unwrap()
    }

    #[test]
    fn what_is_recorded_reads_back_in_order() {
        let store = Store::memory();
        let mut log = run(&store, 1..=3);
        record(&mut log, &Event::Progress { task: "t".into(), done: 1, total: 2, unit: "u".into() });
        let score = TextScore::new(10.0, 5, 20);
        let evaluated = Event::Evaluated { step: 3, loss: 2.0, sources: [("input".to_string(), score)].into(), best: true };
        record(&mut log, &evaluated);
        let events = block_on(read_events(&store, "runs/x/")).unwrap();
        assert_eq!(events.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(), [step(1), step(2), step(3), evaluated]);
        assert!(events.windows(2).all(|pair| pair[0].0 <= pair[1].0) && events[0].0 > 1.6e9);
        assert!(text(&store, EVENTS).lines().all(|line| line.starts_with("{\"time\":")));
    }

    #[test]
    fn numbers_that_json_cannot_hold_come_back_as_nan() {
        let Event::Step(mut report) = step(1) else { unreachable!() };
        report.loss = f64::NAN;
        report.grad_norm = f64::INFINITY;
        report.source_loss.insert("code".into(), f64::NAN);
        report.skipped = Some("the loss is NaN".into());
        let store = Store::memory();
        let mut log = run(&store, 1..=1);
        record(&mut log, &Event::Step(report));
        let events = block_on(read_events(&store, "runs/x")).unwrap();
        let Event::Step(read) = &events[1].1 else { panic!("{events:?}") };
        assert!(read.loss.is_nan() && read.grad_norm.is_nan() && read.source_loss["code"].is_nan());
        assert_eq!((read.skipped.as_deref(), read.lr), (Some("the loss is NaN"), 6e-4));
        assert_eq!(events[0].1, step(1), "`skipped: null` stays None");
    }

    #[test]
    fn a_cut_last_line_is_no_error_but_a_damaged_one_is() {
        let store = Store::memory();
        let log = run(&store, 1..=2);
        let whole = text(&store, EVENTS);
        for length in (whole.len() - 20)..whole.len() - 1 {
            block_on(store.write("runs/x/events.jsonl", &whole.as_bytes()[..length])).unwrap();
            assert_eq!(block_on(read_events(&store, "runs/x")).unwrap().len(), 1);
        }
        block_on(store.write("runs/x/events.jsonl", format!("{{\"x\n{whole}").as_bytes())).unwrap();
        let message = block_on(read_events(&store, "runs/x")).unwrap_err().to_string();
        assert!(message.starts_with("runs/x/events.jsonl:1: not an event"), "{message}");
        assert!(block_on(log.report()).is_err());
    }

    #[test]
    fn a_resumed_log_tells_one_story() {
        let store = Store::memory();
        let mut killed = run(&store, 1..=4);
        record(&mut killed, &Event::Saved { step: 4, path: "runs/x/step_000004".into() });
        record(&mut killed, &Event::Stage { index: 1, name: "Two".into(), start: 4, end: 9, weights: [].into() });
        record(&mut killed, &step(5));
        record(&mut killed, &Event::Notice { warning: true, text: "of the lost future".into() });
        record(&mut killed, &step(6));
        let mut half = block_on(store.append("runs/x/events.jsonl")).unwrap();
        half.push(b"{\"time\":17");
        half.flush().unwrap();
        drop(killed);
        let mut resumed = block_on(RunLog::resume(&store, "runs/x", "", 2, 4, false)).unwrap();
        for i in 5..=8 {
            record(&mut resumed, &step(i));
        }
        let events = block_on(read_events(&store, "runs/x")).unwrap();
        let at = |event: &Event| match event {
            Event::Step(report) => Some(report.step),
            Event::Saved { step, .. } => Some(*step),
            Event::Stage { .. } => panic!("the stage is entered again"),
            _ => None,
        };
        assert_eq!(events.iter().filter_map(|(_, event)| at(event)).collect::<Vec<_>>(), [1, 2, 3, 4, 4, 5, 6, 7, 8]);
        let log = text(&store, TEXT);
        assert!(!log.contains("lost future") && log.matches("step     6").count() == 1, "{log}");
        assert_eq!(block_on(store.list("runs/x/tensorboard")).unwrap().len(), 2);
        let path = block_on(resumed.report()).unwrap();
        assert_eq!(path, "runs/x/report.html");
        assert!(text(&store, REPORT).starts_with("<!doctype html>"));
    }

    #[test]
    fn an_evaluation_that_is_made_again_is_logged_once() {
        for (due, expect) in [(false, 1), (true, 0)] {
            let store = Store::memory();
            let mut stopped = run(&store, 1..=4);
            record(&mut stopped, &Event::Evaluated { step: 4, loss: 1.0, sources: [].into(), best: true });
            drop(stopped);
            block_on(RunLog::resume(&store, "runs/x", "", 1, 4, due)).unwrap();
            let events = block_on(read_events(&store, "runs/x")).unwrap();
            assert_eq!(events.iter().filter(|(_, event)| matches!(event, Event::Evaluated { .. })).count(), expect);
        }
    }

    #[test]
    fn a_run_without_a_log_can_be_resumed() {
        let store = Store::memory();
        record(&mut block_on(RunLog::resume(&store, "runs/x", "", 1, 9, false)).unwrap(), &step(10));
        assert_eq!(block_on(read_events(&store, "runs/x")).unwrap().len(), 1);
    }

    #[test]
    fn a_new_run_replaces_the_old_log() {
        let store = Store::memory();
        run(&store, 1..=4);
        run(&store, 1..=1);
        assert_eq!(block_on(read_events(&store, "runs/x")).unwrap().len(), 1);
        assert_eq!(block_on(store.list("runs/x/tensorboard")).unwrap().len(), 1);
    }
}
