//! Other shares for a stage, from a step on: asked for while a run is in progress, written into its configuration,
//! and so repeated whenever the run is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data::curriculum::{Curriculum, check_weights};
use crate::error::{Error, Result};

/// A stage has other shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixChange {
    /// Updates made before it: it takes effect with the next one.
    pub step: u32,
    /// The stage; the first one is 0.
    pub stage: usize,
    /// Share of training tokens per source; they sum to 1.
    pub weights: BTreeMap<String, f64>,
}

impl MixChange {
    /// What was asked for after `step` updates, with weights that sum to 1.
    ///
    /// # Errors
    /// [`Error::Config`]: a stage that is over or does not exist, unknown sources, weights that cannot be shares.
    pub fn asked(
        step: u32,
        stage: usize,
        weights: &BTreeMap<String, f64>,
        curriculum: &Curriculum,
        sources: &[&str],
        steps: u32,
    ) -> Result<Self> {
        check_weights(weights, sources).map_err(Error::Config)?;
        let sum: f64 = weights.values().sum();
        if !(sum > 0.0 && sum.is_finite()) {
            return Err(Error::Config(format!("the weights sum to {sum}; give at least one source a share")));
        }
        let weights = weights.iter().map(|(source, weight)| (source.clone(), weight / sum)).collect();
        let change = Self { step, stage, weights };
        change.check(curriculum, sources, steps).map_err(Error::Config)?;
        Ok(change)
    }

    fn check(&self, curriculum: &Curriculum, sources: &[&str], steps: u32) -> Result<(), String> {
        let Some(stage) = curriculum.stages.get(self.stage) else {
            return Err(format!("there is no stage {}; they are 0 to {}", self.stage, curriculum.stages.len() - 1));
        };
        let (_, end) = curriculum.range(self.stage, steps);
        if end <= self.step {
            return Err(format!("stage {:?} ends at step {end}, and this is step {}", stage.name, self.step));
        }
        check_weights(&self.weights, sources)?;
        let sum: f64 = self.weights.values().sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(format!("weights must sum to 1, these sum to {sum:.6}"));
        }
        Ok(())
    }
}

/// Checks changes against the stages that they are about, the sources and the length of the run.
///
/// # Errors
/// [`Error::Config`] with the step of the change.
pub fn validate(changes: &[MixChange], curriculum: &Curriculum, sources: &[&str], steps: u32) -> Result<()> {
    for change in changes {
        let named = |why| Error::Config(format!("mix_changes: step {}: {why}", change.step));
        change.check(curriculum, sources, steps).map_err(named)?;
    }
    match changes.windows(2).find(|pair| pair[1].step < pair[0].step) {
        Some(pair) => Err(Error::Config(format!("mix_changes: step {} comes after step {}", pair[1].step, pair[0].step))),
        None => Ok(()),
    }
}

/// Adds a change in order of steps; it replaces one of the same stage and step.
pub fn insert(changes: &mut Vec<MixChange>, change: MixChange) {
    changes.retain(|known| (known.step, known.stage) != (change.step, change.stage));
    let place = changes.partition_point(|known| known.step <= change.step);
    changes.insert(place, change);
}

/// Shares of a stage at the update that comes after `step` updates.
pub fn weights_at<'a>(curriculum: &'a Curriculum, changes: &'a [MixChange], stage: usize, step: u32) -> &'a BTreeMap<String, f64> {
    let last = changes.iter().rfind(|change| change.stage == stage && change.step <= step);
    last.map_or(&curriculum.stages[stage].weights, |change| &change.weights)
}

/// Passes over a source from which on it is learnt by heart (Muennighoff et al. 2023).
pub const MANY_EPOCHS: f64 = 4.0;

/// Updates after the first `from` per source, each counted by the share that the source has in it.
pub fn updates_per_source(curriculum: &Curriculum, changes: &[MixChange], from: u32, steps: u32) -> BTreeMap<String, f64> {
    let mut updates = BTreeMap::new();
    for stage in 0..curriculum.stages.len() {
        let (start, end) = curriculum.range(stage, steps);
        let start = start.max(from).min(end);
        let inside = changes.iter().filter(|change| change.stage == stage && (start..end).contains(&change.step));
        let mut cuts: Vec<u32> = [start].into_iter().chain(inside.map(|change| change.step)).chain([end]).collect();
        cuts.dedup();
        for pair in cuts.windows(2) {
            for (source, weight) in weights_at(curriculum, changes, stage, pair[0]) {
                *updates.entry(source.clone()).or_default() += weight * f64::from(pair[1] - pair[0]);
            }
        }
    }
    updates
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [&str; 3] = ["input", "code", "math"];

    fn weights<const N: usize>(weights: [(&str, f64); N]) -> BTreeMap<String, f64> {
        weights.into_iter().map(|(source, weight)| (source.to_string(), weight)).collect()
    }

    fn change(step: u32, stage: usize, code: f64) -> MixChange {
        MixChange { step, stage, weights: weights([("input", 1.0 - code), ("code", code)]) }
    }

    fn stages() -> Curriculum {
        Curriculum::default().scaled(Curriculum::DEFAULT_STEPS, 505) // starts 0, 100, 200, 300, 500
    }

    #[test]
    fn the_last_change_before_a_step_counts() {
        let stages = stages();
        let mut changes = Vec::new();
        for change in [change(150, 1, 0.5), change(30, 2, 0.25), change(150, 1, 0.75)] {
            insert(&mut changes, change);
        }
        assert_eq!(changes.iter().map(|change| change.step).collect::<Vec<_>>(), [30, 150]);
        validate(&changes, &stages, &SOURCES, 505).unwrap();
        let code = |stage, step| weights_at(&stages, &changes, stage, step).get("code").copied();
        assert_eq!([code(1, 149), code(1, 150), code(2, 200), code(3, 300)], [Some(0.2), Some(0.75), Some(0.25), Some(0.3)]);
    }

    #[test]
    fn planned_updates_follow_the_changes() {
        let stages = stages();
        let before = updates_per_source(&stages, &[], 0, 505);
        assert!((before["math"] - (100.0 * 0.2 + 205.0 * 0.3)).abs() < 1e-9, "{before:?}");
        // Before its first step a stage is changed as a whole, later from there on.
        let after = updates_per_source(&stages, &[change(30, 2, 0.5), change(150, 1, 0.6), change(150, 1, 0.6)], 0, 505);
        assert!((after["code"] - (50.0 * 0.2 + 50.0 * 0.6 + 100.0 * 0.5 + 205.0 * 0.3)).abs() < 1e-9, "{after:?}");
        assert!((after.values().sum::<f64>() - 505.0).abs() < 1e-9);
        let code_later: f64 = (2..5)
            .map(|stage| {
                stages.stages[stage].weights.get("code").copied().unwrap_or(0.0)
                    * f64::from(stages.range(stage, 505).1 - stages.range(stage, 505).0)
            })
            .sum();
        let rest = updates_per_source(&stages, &[change(150, 1, 0.6)], 120, 505);
        assert!((rest["code"] - (30.0 * 0.2 + 50.0 * 0.6 + code_later)).abs() < 1e-9, "{rest:?}");
        assert!((rest.values().sum::<f64>() - 385.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_asked_for_is_made_to_sum_to_one() {
        let asked = MixChange::asked(7, 1, &weights([("code", 3.0), ("math", 1.0)]), &stages(), &SOURCES, 505).unwrap();
        assert_eq!(asked, MixChange { step: 7, stage: 1, weights: weights([("code", 0.75), ("math", 0.25)]) });
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        #[track_caller]
        fn refused<const N: usize>(step: u32, stage: usize, asked: [(&str, f64); N], words: &str) {
            let error = MixChange::asked(step, stage, &weights(asked), &stages(), &SOURCES, 505).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        refused(7, 5, [("code", 1.0)], "they are 0 to 4");
        refused(100, 0, [("code", 1.0)], "\"Foundation\" ends at step 100, and this is step 100");
        refused(7, 1, [("cdoe", 1.0)], "did you mean \"code\"");
        refused(7, 1, [("code", -1.0), ("input", 2.0)], "the weight of code is -1");
        refused(7, 1, [("code", f64::NAN)], "the weight of code is NaN");
        refused(7, 1, [("code", 0.0)], "sum to 0");
        refused(7, 1, [("code", f64::MAX), ("input", f64::MAX)], "sum to inf");
        refused(7, 1, [], "sum to");
        let unsorted = [change(9, 1, 0.5), change(8, 1, 0.5)];
        assert!(validate(&unsorted, &stages(), &SOURCES, 505).unwrap_err().to_string().contains("step 8 comes after step 9"));
        let half = MixChange { weights: weights([("code", 0.5)]), ..change(1, 1, 0.0) };
        assert!(validate(&[half], &stages(), &SOURCES, 505).unwrap_err().to_string().contains("sum to 0.5"));
    }
}
