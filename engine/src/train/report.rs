//! `report.html`: a run on one self-contained page, drawn from its events.

mod figures;
pub(crate) mod plot;
pub(crate) mod tables;

use std::collections::BTreeMap;

use crate::protocol::{Event, RunInfo, StepReport, TextScore};
use plot::escape;

const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// A stage as it was announced and as it went.
struct Stage<'a> {
    name: &'a str,
    start: u32,
    end: u32,
    weights: &'a BTreeMap<String, f64>,
    done: Option<StageDone<'a>>,
}

/// What a stage reported when it ended.
struct StageDone<'a> {
    average_loss: f64,
    shares: &'a BTreeMap<String, f64>,
    epochs: &'a BTreeMap<String, f64>,
}

/// The events of a run, sorted by what a page shows.
#[derive(Default)]
struct History<'a> {
    run: Option<&'a RunInfo>,
    stages: Vec<Stage<'a>>,
    /// Updates in order; one that was made again after a resume counts once.
    steps: BTreeMap<u32, &'a StepReport>,
    evaluated: BTreeMap<u32, (f64, &'a BTreeMap<String, TextScore>)>,
    samples: Vec<(u32, &'a str, &'a str, &'a str)>,
    /// Step, stage and shares of every change of the mix.
    changes: Vec<(u32, usize, &'a BTreeMap<String, f64>)>,
    warnings: Vec<(f64, &'a str)>,
    ending: Option<&'a Event>,
    /// Every source that was announced or trained on; its place decides its colour.
    sources: Vec<&'a str>,
    /// Seconds of training in all sessions.
    elapsed_secs: f64,
    begun: Option<f64>,
}

impl<'a> History<'a> {
    /// Whether its tokens are those that are learned alone.
    fn learned_only(&self) -> bool {
        self.run.is_some_and(|info| info.learned_only)
    }

    fn new(events: &'a [(f64, Event)]) -> Self {
        let mut history = Self { begun: events.first().map(|(time, _)| *time), ..Self::default() };
        let mut session = 0.0f64;
        for (time, event) in events {
            match event {
                Event::Run(info) => {
                    history.run = Some(info);
                    history.elapsed_secs += std::mem::take(&mut session);
                }
                Event::Stage { name, start, end, weights, .. } => {
                    history.stages.retain(|stage| stage.start != *start); // a resumed run announces its stage again
                    history.stages.push(Stage { name, start: *start, end: *end, weights, done: None });
                }
                Event::Reweighted { step, stage, weights } => history.changes.push((*step, *stage, weights)),
                Event::Step(report) => {
                    session = session.max(report.elapsed_secs);
                    history.steps.insert(report.step, report);
                }
                Event::Evaluated { step, loss, sources, .. } => drop(history.evaluated.insert(*step, (*loss, sources))),
                Event::Sample { step, stage, prompt, text } => history.samples.push((*step, stage, prompt, text)),
                Event::StageDone { name, average_loss, shares, epochs } => {
                    if let Some(stage) = history.stages.iter_mut().rfind(|stage| stage.name == name) {
                        stage.done = Some(StageDone { average_loss: *average_loss, shares, epochs });
                    }
                }
                Event::Notice { warning: true, text } => history.warnings.push((*time, text)),
                Event::Started { .. } => history.ending = None,
                Event::Done { .. } | Event::Failed { .. } => history.ending = Some(event),
                _ => {}
            }
        }
        history.elapsed_secs += session;
        let announced = history.run.iter().flat_map(|info| info.sources.keys());
        let planned = history.stages.iter().flat_map(|stage| stage.weights.keys());
        let trained = history.steps.values().flat_map(|report| report.source_tokens.keys());
        let mut sources: Vec<&str> = announced.chain(planned).chain(trained).map(String::as_str).collect();
        sources.sort_unstable();
        sources.dedup();
        history.sources = sources;
        history
    }

    /// Updates that were made, in order.
    fn made(&self) -> impl DoubleEndedIterator<Item = &'a StepReport> {
        self.steps.values().copied().filter(|report| report.skipped.is_none())
    }

    fn skipped(&self) -> impl Iterator<Item = &'a StepReport> {
        self.steps.values().copied().filter(|report| report.skipped.is_some())
    }

    fn best(&self) -> Option<(u32, f64)> {
        let finite = self.evaluated.iter().map(|(step, (loss, _))| (*step, *loss)).filter(|(_, loss)| loss.is_finite());
        finite.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Training tokens per source of the updates after `start` up to `end`.
    fn tokens(&self, start: u32, end: u32) -> BTreeMap<&'a str, u64> {
        let mut tokens = BTreeMap::new();
        if start < end {
            for (_, report) in self.steps.range(start + 1..=end) {
                for (source, count) in &report.source_tokens {
                    *tokens.entry(source.as_str()).or_default() += *count;
                }
            }
        }
        tokens
    }
}

/// One page with plots, tables and samples; it needs nothing but itself. `events`: Unix time and event, in order.
pub fn html(title: &str, events: &[(f64, Event)], config_yaml: &str) -> String {
    let history = History::new(events);
    let figures: String = figures::all(&history).concat();
    let body = [
        tables::header(title, &history),
        tables::tiles(&history),
        figures,
        tables::stages(&history),
        tables::sources(&history),
        tables::samples(&history),
        tables::trouble(&history),
        tables::config(config_yaml),
    ]
    .concat();
    page(title, "", &body)
}

/// A page that needs nothing but itself, with `style` besides what all pages have; `body` is markup.
pub(crate) fn page(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title} · smolforge</title><style>{STYLE}{style}</style></head>\
         <body><main>{body}</main><div id=\"tip\" hidden></div><script>{SCRIPT}</script></body></html>\n",
        title = escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn map<V, const N: usize>(entries: [(&str, V); N]) -> BTreeMap<String, V> {
        entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn step(step: u32, skipped: Option<&str>) -> Event {
        let loss = if skipped.is_some() { f64::NAN } else { 8.0 / (1.0 + f64::from(step) / 50.0) + 0.5 };
        Event::Step(StepReport {
            step,
            loss,
            source_loss: map([("input", loss), ("co</script>de", loss * 0.8)]),
            source_tokens: map([("input", 3000), ("co</script>de", 1096)]),
            lr: 6e-4,
            grad_norm: 0.8,
            loss_scale: 1.0,
            skipped: skipped.map(String::from),
            tokens: 4096,
            read_tokens: 4096,
            total_tokens: 4096 * u64::from(step),
            tokens_per_sec: 1000.0,
            elapsed_secs: 4.096 * f64::from(step),
            eta_secs: 1.0,
        })
    }

    fn events(steps: u32) -> Vec<(f64, Event)> {
        let mut events = vec![Event::Started { job: "train".into(), version: "0.1.0".into() }];
        let weights = map([("input", 0.75), ("co</script>de", 0.25)]);
        events.push(Event::Stage { index: 0, name: "One <b>".into(), start: 0, end: steps, weights: weights.clone() });
        events.extend((1..=steps).map(|i| step(i, (i == 7).then_some("the loss is NaN & more"))));
        events.push(Event::Sample { step: 3, stage: "One <b>".into(), prompt: "<p>".into(), text: "<script>alert(1)</script>".into() });
        let score = TextScore::new(20.0, 10, 40);
        events.push(Event::Evaluated { step: steps, loss: 2.0, sources: map([("input", score), ("co</script>de", score)]), best: true });
        events.push(Event::StageDone {
            name: "One <b>".into(),
            average_loss: 3.25,
            shares: weights,
            epochs: map([("input", 1.5), ("co</script>de", 0.5)]),
        });
        events.push(Event::Done { hints: Vec::new(), stopped: false });
        events.into_iter().enumerate().map(|(i, event)| (1.7e9 + i as f64, event)).collect()
    }

    #[test]
    fn page_needs_nothing_but_itself() {
        let page = html("run", &events(100), "steps: 100\n");
        for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn text_of_the_run_cannot_become_markup() {
        let page = html("<i>title", &events(20), "a: <b>\n");
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1 + page.matches("application/json").count());
        assert!(!page.contains("<i>title") && !page.contains("One <b>") && page.contains("a: &lt;b&gt;"));
        assert!(page.contains("NaN &amp; more"));
    }

    #[test]
    fn page_shows_what_the_run_reported() {
        let page = html("run", &events(100), "");
        for part in [
            "3.2500",
            "finished",
            "Training loss",
            "Held-out",
            "Learning rate",
            "Gradient norm",
            "Tokens per second",
            "Mix",
            "1 update skipped",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN<") && !page.contains("\"NaN") && !page.contains(",NaN"));
    }

    #[test]
    fn runs_of_any_length_make_a_page_of_bounded_size() {
        let short = html("run", &[], "");
        assert!(short.contains("in progress"));
        html("run", &events(1), "");
        html("run", &events(2), "");
        let long = html("run", &events(50_000), "");
        assert!(long.len() < 1_500_000, "{} bytes", long.len());
    }

    #[test]
    fn a_resumed_run_is_one_run() {
        let mut all = events(50);
        all.extend(events(50));
        let history = History::new(&all);
        assert_eq!((history.steps.len(), history.stages.len()), (50, 1));
        assert_eq!(history.tokens(0, 10)["input"], 30_000);
    }
}
