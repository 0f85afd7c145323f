//! A run in numbers, as columns: a plot of a hundred thousand updates is drawn from them in every frame.

use std::collections::BTreeMap;

use smolforge_engine::data::curriculum::Curriculum;
use smolforge_engine::protocol::{Event, RunInfo, StepReport, TextScore, TrainConfig};

/// A run in numbers.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Whether it is a run in progress that fine-tunes.
    pub tunes: bool,
    /// Its frozen configuration, where it is known.
    pub config: Option<TrainConfig>,
    /// Its stages with the shares that they have now, where the configuration is known.
    pub curriculum: Option<Curriculum>,
    /// Updates made when the shares of a stage were changed.
    pub changes: Vec<u32>,
    /// Device, model and sources, once it has begun.
    pub info: Option<RunInfo>,
    /// First step, step after the last one, and name of every stage that was entered.
    pub stages: Vec<(u32, u32, String)>,
    /// Every update.
    pub steps: Steps,
    /// Step, loss and scores per source of every evaluation.
    pub evaluations: Vec<(u32, f64, BTreeMap<String, TextScore>)>,
    /// Step, prompt and text of every sample.
    pub samples: Vec<(u32, String, String)>,
    /// Step and folder of the last checkpoint.
    pub saved: Option<(u32, String)>,
}

/// Every update of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steps {
    /// The numbers that every update has, in the order of their steps.
    pub moments: Vec<Moment>,
    /// Step and loss of the updates that drew from a source.
    pub source_loss: BTreeMap<String, Vec<[f64; 2]>>,
    /// Tokens of a source up to and with every update.
    pub source_tokens: BTreeMap<String, Vec<u64>>,
}

/// The numbers of one update; see [`StepReport`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moment {
    /// Updates made, this one included.
    pub step: u32,
    /// Mean loss per target token; may be NaN.
    pub loss: f64,
    /// Learning rate used.
    pub lr: f64,
    /// Global gradient norm before clipping; may be NaN.
    pub grad_norm: f64,
    /// Tokens per second.
    pub tokens_per_sec: f64,
    /// Seconds until the end.
    pub eta_secs: f64,
    /// Target tokens since the run began.
    pub total_tokens: u64,
}

impl Run {
    /// A run of this configuration.
    pub fn of(config: TrainConfig) -> Self {
        let mut run = Self::default();
        run.configure(config);
        run
    }

    /// Takes a configuration and the stages it asks for.
    pub fn configure(&mut self, config: TrainConfig) {
        self.config = Some(config);
        self.recall(0);
    }

    /// The stages as they were after so many updates.
    fn recall(&mut self, step: u32) {
        let Some(config) = self.config.as_ref().filter(|config| !config.sources.is_empty()) else { return };
        let names: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        let mut curriculum = config.data_stages.fitted(&names, config.steps);
        for change in config.mix_changes.iter().filter(|change| change.step < step) {
            if let Some(stage) = curriculum.stages.get_mut(change.stage) {
                stage.weights.clone_from(&change.weights);
            }
        }
        self.curriculum = Some(curriculum);
    }

    /// Folds one event of the run.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Run(info) => {
                self.info = Some(info.clone());
                // A run that goes on makes the updates after its last checkpoint once more.
                self.steps.truncate(info.step);
                self.evaluations.retain(|(step, _, _)| *step <= info.step);
                self.samples.retain(|(step, _, _)| *step <= info.step);
                self.changes.retain(|step| *step < info.step);
                self.recall(info.step);
            }
            Event::Stage { start, end, name, .. } => {
                self.stages.retain(|(known, _, _)| known != start);
                self.stages.push((*start, *end, name.clone()));
            }
            Event::Reweighted { step, stage, weights } => {
                self.changes.push(*step);
                self.reweigh(*stage, weights);
            }
            Event::Step(step) => self.steps.push(step),
            Event::Evaluated { step, loss, sources, .. } => self.evaluations.push((*step, *loss, sources.clone())),
            Event::Sample { step, prompt, text, .. } => self.samples.push((*step, prompt.clone(), text.clone())),
            Event::Saved { step, path } => self.saved = Some((*step, path.clone())),
            _ => {}
        }
    }

    fn reweigh(&mut self, stage: usize, weights: &BTreeMap<String, f64>) {
        if let Some(stage) = self.curriculum.as_mut().and_then(|curriculum| curriculum.stages.get_mut(stage)) {
            stage.weights.clone_from(weights);
        }
    }

    /// The last update.
    pub fn last(&self) -> Option<&Moment> {
        self.steps.moments.last()
    }

    /// Updates made.
    pub fn step(&self) -> u32 {
        self.last().map(|last| last.step).or(self.info.as_ref().map(|info| info.step)).unwrap_or(0)
    }

    /// Updates in all.
    pub fn total_steps(&self) -> u32 {
        let planned = self.config.as_ref().map(|config| config.steps);
        self.info.as_ref().map(|info| info.steps).or(planned).unwrap_or(0)
    }

    /// Names of the sources, in the order of their colours.
    pub fn sources(&self) -> Vec<String> {
        let told = self.info.iter().flat_map(|info| info.sources.keys());
        let asked = self.config.iter().filter(|_| self.info.is_none()).flat_map(|config| config.sources.keys());
        told.chain(asked).cloned().collect()
    }
}

impl Steps {
    fn push(&mut self, report: &StepReport) {
        let StepReport { step, loss, lr, grad_norm, tokens_per_sec, eta_secs, total_tokens, .. } = *report;
        for name in report.source_tokens.keys() {
            let before = self.moments.len();
            self.source_tokens.entry(name.clone()).or_insert_with(|| vec![0; before]);
        }
        for (name, column) in &mut self.source_tokens {
            let tokens = report.source_tokens.get(name).copied().unwrap_or(0);
            column.push(column.last().copied().unwrap_or(0) + tokens);
        }
        for (name, loss) in &report.source_loss {
            self.source_loss.entry(name.clone()).or_default().push([f64::from(step), *loss]);
        }
        self.moments.push(Moment { step, loss, lr, grad_norm, tokens_per_sec, eta_secs, total_tokens });
    }

    /// Forgets what came after so many updates.
    fn truncate(&mut self, step: u32) {
        let kept = self.until(step);
        self.moments.truncate(kept);
        self.source_tokens.values_mut().for_each(|column| column.truncate(kept));
        for column in self.source_loss.values_mut() {
            column.truncate(column.partition_point(|[at, _]| *at <= f64::from(step)));
        }
    }

    /// How many updates had been made at a step.
    pub fn until(&self, step: u32) -> usize {
        self.moments.partition_point(|moment| moment.step <= step)
    }

    /// The update at a step, or the last one before it.
    pub fn at(&self, step: u32) -> Option<&Moment> {
        self.moments[..self.until(step)].last()
    }

    /// Loss of every source in its last update up to a step.
    pub fn source_losses_at(&self, step: u32) -> Vec<(&str, f64)> {
        let until = |column: &[[f64; 2]]| column.partition_point(|[at, _]| *at <= f64::from(step));
        self.source_loss.iter().filter_map(|(name, column)| Some((name.as_str(), column[..until(column)].last()?[1]))).collect()
    }

    /// Tokens of a source so far.
    pub fn tokens_of(&self, source: &str) -> u64 {
        self.source_tokens.get(source).and_then(|column| column.last()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u32, tokens: &[(&str, u64)]) -> StepReport {
        let source_tokens = tokens.iter().map(|(name, tokens)| (name.to_string(), *tokens)).collect();
        let source_loss = tokens.iter().map(|(name, _)| (name.to_string(), f64::from(step))).collect();
        StepReport { step, source_tokens, source_loss, ..StepReport::default() }
    }

    #[test]
    fn columns_are_as_long_as_the_run_and_can_be_cut() {
        let mut steps = Steps::default();
        for report in [report(1, &[("a", 5)]), report(2, &[("b", 7)]), report(3, &[("a", 1), ("b", 1)])] {
            steps.push(&report);
        }
        assert_eq!((&steps.source_tokens["a"], &steps.source_tokens["b"]), (&vec![5, 5, 6], &vec![0, 7, 8]));
        assert_eq!(steps.at(2).map(|moment| moment.step), Some(2));
        assert_eq!(steps.source_losses_at(2), [("a", 1.0), ("b", 2.0)]);
        assert!(steps.at(0).is_none());
        steps.truncate(2);
        assert_eq!((steps.tokens_of("a"), steps.tokens_of("b"), steps.moments.len()), (5, 7, 2));
        assert_eq!(steps.source_loss["a"], [[1.0, 1.0]]);
    }

    #[test]
    fn changed_shares_are_the_shares_of_their_stage() {
        let sources = ["a", "b"].map(|name| (name.to_string(), smolforge_engine::config::SourceConfig::Path(name.into())));
        let mut run = Run::of(TrainConfig { sources: sources.into(), ..TrainConfig::default() });
        let weights = BTreeMap::from([("a".to_string(), 0.2), ("b".to_string(), 0.8)]);
        run.apply(&Event::Reweighted { step: 7, stage: 0, weights: weights.clone() });
        assert_eq!(run.curriculum.expect("of the configuration").stages[0].weights, weights);
        assert_eq!(run.changes, [7]);
    }
}
