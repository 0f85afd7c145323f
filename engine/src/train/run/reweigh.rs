//! Weights that are moved while a run is in progress.

use std::collections::BTreeMap;

use super::Run;
use crate::config::TrainConfig;
use crate::data::mix_change::{self, MixChange};
use crate::error::Result;
use crate::protocol::Event;

/// How a change is told.
pub(super) fn event(change: &MixChange) -> Event {
    Event::Reweighted { step: change.step, stage: change.stage, weights: change.weights.clone() }
}

impl Run<'_> {
    /// Takes the weights that were asked for since the last step, and tells the changes that the next one begins with.
    pub(in crate::train) async fn reweigh(&mut self) -> Result<()> {
        for (stage, weights) in self.control.take_reweights() {
            if let Err(error) = self.change(stage, &weights).await {
                self.control.warn(format!("{error}: the shares stay as they are"));
            }
        }
        let step = self.state.step;
        let begun: Vec<Event> = self.config.mix_changes.iter().filter(|change| change.step == step).map(event).collect();
        for event in begun {
            self.emit(event).await?;
        }
        Ok(())
    }

    /// Writes the change into the run's configuration before it has an effect, so that every repetition has it, too.
    async fn change(&mut self, stage: usize, weights: &BTreeMap<String, f64>) -> Result<()> {
        let sources: Vec<&str> = self.sources.iter().map(String::as_str).collect();
        let TrainConfig { data_stages, steps, out, .. } = &self.config;
        let change = MixChange::asked(self.state.step, stage, weights, data_stages, &sources, *steps)?;
        let mut changed = self.config.clone();
        mix_change::insert(&mut changed.mix_changes, change);
        let yaml = changed.to_yaml();
        self.store.write(&format!("{out}/config.yaml"), yaml.as_bytes()).await?;
        self.feed.set_changes(&changed.mix_changes);
        self.log.set_config(yaml);
        self.config = changed;
        Ok(())
    }
}
