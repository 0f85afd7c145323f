//! How long a run will take: from the times of its steps, evaluations, samples and checkpoints so far, and how many
//! of each are still to come.

use std::collections::VecDeque;

use crate::config::TrainConfig;

/// Steps that the present speed is taken from.
const RECENT: usize = 100;

/// Times of what a run does, in seconds.
#[derive(Debug, Clone)]
pub struct Pace {
    steps: VecDeque<f64>,
    seen: usize,
    /// Evaluations of all held-out text.
    pub evaluation: Cost,
    /// Samples.
    pub sample: Cost,
    /// Checkpoints.
    pub save: Cost,
}

/// Times of something that is done now and then.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// What one is thought to take in steps before the first was timed.
    guess_steps: f64,
    times: Vec<f64>,
}

impl Cost {
    /// One more was done.
    pub fn add(&mut self, secs: f64) {
        self.times.push(secs);
    }

    /// What the next one will take. The first one may have compiled shaders: it counts only while it is the only one.
    fn secs(&self, step_secs: f64) -> f64 {
        match self.times.as_slice() {
            [] => self.guess_steps * step_secs,
            [one] => *one,
            [_, rest @ ..] => middle(&mut rest[rest.len().saturating_sub(9)..].to_vec()),
        }
    }
}

impl Pace {
    /// Nothing was timed yet. `held_out_tokens`: how many an evaluation reads.
    pub fn new(config: &TrainConfig, held_out_tokens: u64) -> Self {
        let step_tokens = config.tokens_per_step().max(1) as f64;
        let cost = |guess_steps| Cost { guess_steps, times: Vec::new() };
        Self {
            steps: VecDeque::new(),
            seen: 0,
            // Forward alone is a third of the work of a step.
            evaluation: cost(held_out_tokens as f64 / step_tokens / 3.0),
            // Tokens one by one are some times slower than side by side.
            sample: cost(config.sample_tokens as f64 / step_tokens * 3.0),
            save: cost(0.5),
        }
    }

    /// One more step was made.
    pub fn step(&mut self, secs: f64) {
        self.seen += 1;
        self.steps.push_back(secs);
        if self.steps.len() > RECENT {
            self.steps.pop_front();
        }
    }

    /// Seconds of the next step: the mean of the recent ones without the slowest and fastest tenth, and without the
    /// first ones, which compile shaders and warm up.
    fn step_secs(&self) -> f64 {
        let warming = (self.seen / 2).min(3);
        let first = self.seen - self.steps.len();
        middle(&mut self.steps.iter().skip(warming.saturating_sub(first)).copied().collect::<Vec<_>>())
    }

    /// Seconds until everything is done.
    pub fn left_secs(&self, left: &Left) -> f64 {
        let step = self.step_secs();
        let costs = [(left.evaluations, &self.evaluation), (left.samples, &self.sample), (left.saves, &self.save)];
        left.steps * step + costs.iter().map(|(count, cost)| count * cost.secs(step)).sum::<f64>()
    }
}

/// Mean without the smallest and the largest tenth; 0 of nothing.
fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let cut = times.len().div_ceil(10).min(times.len().saturating_sub(1) / 2);
    let kept = &times[cut..times.len() - cut];
    kept.iter().sum::<f64>() / kept.len().max(1) as f64
}

/// How much of everything is still to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Left {
    /// Updates.
    pub steps: f64,
    /// Evaluations.
    pub evaluations: f64,
    /// Samples.
    pub samples: f64,
    /// Checkpoints.
    pub saves: f64,
}

impl Left {
    /// After `step` updates have been made and reported, but before what is due after them. `improving`: share of the
    /// evaluations that are the best so far, each of which is saved.
    pub fn after(step: u32, config: &TrainConfig, improving: f64) -> Self {
        let ends: Vec<u32> = (0..config.data_stages.stages.len()).map(|stage| config.data_stages.range(stage, config.steps).1).collect();
        // Those at multiples of `every` from `step` on, and those at ends of stages that are none.
        let due = |every: u32| {
            let multiples = config.steps.checked_div(every).unwrap_or(0) - (step.max(1) - 1).checked_div(every).unwrap_or(0);
            let others = ends.iter().filter(|end| **end >= step && (every == 0 || !end.is_multiple_of(every))).count();
            f64::from(multiples) + others as f64
        };
        let evaluations = due(config.eval_every);
        let every = config.save_every;
        let regular = config.steps / every - (step.max(1) - 1) / every + u32::from(!config.steps.is_multiple_of(every));
        // Evaluations at a step that is saved anyway cost no checkpoint of their own.
        let both = match config.eval_every {
            0 => 0,
            eval => {
                let common = u64::from(eval) / gcd(eval, every) * u64::from(every);
                u64::from(config.steps) / common - u64::from(step.max(1) - 1) / common
            }
        };
        let others = (evaluations - both as f64 - 1.0).max(0.0); // the last one is at the end, which is saved
        Self {
            steps: f64::from(config.steps - step),
            evaluations,
            samples: due(config.sample_every),
            saves: f64::from(regular) + others * improving,
        }
    }
}

fn gcd(a: u32, b: u32) -> u64 {
    if b == 0 { u64::from(a) } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceConfig;
    use crate::train::pretrain::resolve;

    fn config(steps: u32, eval_every: u32, sample_every: u32, save_every: u32) -> TrainConfig {
        let sources = ["input", "code", "math"].map(|name| (name.to_string(), SourceConfig::Path(name.into())));
        resolve(&TrainConfig { steps, eval_every, sample_every, save_every, sources: sources.into(), ..TrainConfig::default() })
    }

    /// What `Left` says, counted step by step as the loop does it; every evaluation improves.
    fn counted(step: u32, config: &TrainConfig) -> Left {
        let mut left = Left { steps: f64::from(config.steps - step), evaluations: 0.0, samples: 0.0, saves: 0.0 };
        for at in step.max(1)..=config.steps {
            let end = (0..config.data_stages.stages.len()).any(|stage| config.data_stages.range(stage, config.steps).1 == at);
            let due = |every: u32| end || (every > 0 && at.is_multiple_of(every));
            left.evaluations += f64::from(u8::from(due(config.eval_every)));
            left.samples += f64::from(u8::from(due(config.sample_every)));
            left.saves += f64::from(u8::from(due(config.eval_every) || at.is_multiple_of(config.save_every) || at == config.steps));
        }
        left
    }

    #[test]
    fn what_is_left_is_what_the_loop_will_do() {
        for config in [config(240, 0, 0, 80), config(505, 25, 50, 100), config(101, 7, 3, 9), config(5, 1, 1, 1)] {
            for step in 0..=config.steps {
                let (found, exact) = (Left::after(step, &config, 1.0), counted(step, &config));
                assert_eq!((found.steps, found.evaluations, found.samples), (exact.steps, exact.evaluations, exact.samples), "{step}");
                // Ends of stages that are saved anyway may count twice.
                assert!(found.saves >= exact.saves - 1.0 && found.saves <= exact.saves + 5.0, "{step}: {found:?} {exact:?}");
            }
        }
    }

    /// Simulates a run and returns the largest error of the estimate after 5 % of it, relative to the whole time.
    fn worst(config: &TrainConfig, step_secs: impl Fn(u32) -> f64, eval: f64, sample: f64, save: f64) -> f64 {
        let mut pace = Pace::new(config, (eval / step_secs(config.steps) * 3.0 * config.tokens_per_step() as f64) as u64);
        let mut estimates = Vec::new();
        let mut time = 0.0;
        for step in 1..=config.steps {
            time += step_secs(step);
            pace.step(step_secs(step));
            estimates.push((step, time, pace.left_secs(&Left::after(step, config, 1.0))));
            let now = counted(step, config);
            let next =
                if step == config.steps { Left { evaluations: 0.0, samples: 0.0, saves: 0.0, ..now } } else { counted(step + 1, config) };
            for (cost, secs, count) in [
                (&mut pace.evaluation, eval, now.evaluations - next.evaluations),
                (&mut pace.sample, sample, now.samples - next.samples),
                (&mut pace.save, save, now.saves - next.saves),
            ] {
                for _ in 0..count as u32 {
                    cost.add(secs);
                    time += secs;
                }
            }
        }
        let late = estimates.iter().filter(|(step, ..)| *step >= config.steps.div_ceil(20));
        late.map(|(_, at, left)| (at + left - time).abs() / time).fold(0.0, f64::max)
    }

    #[test]
    fn the_first_steps_and_what_comes_between_do_not_mislead() {
        // Shaders are compiled in the first two steps.
        let compiling = |step: u32| if step <= 2 { 9.0 } else { 0.1 };
        assert!(worst(&config(240, 0, 0, 80), compiling, 0.8, 0.2, 0.1) < 0.05);
        assert!(worst(&config(100, 10, 50, 50), compiling, 0.8, 0.2, 0.1) < 0.1);
        // A step now and then takes long; evaluations make up half of the time.
        let uneven = |step: u32| if step.is_multiple_of(10) { 0.15 } else { 0.1 };
        assert!(worst(&config(1000, 20, 100, 250), uneven, 2.0, 0.5, 0.3) < 0.1);
        // Of a run that is all the same the estimate is exact.
        assert!(worst(&config(400, 0, 0, 400), |_| 0.25, 0.0, 0.0, 0.125) < 0.01);
    }

    #[test]
    fn a_speed_that_changes_is_followed() {
        let mut pace = Pace::new(&config(1000, 0, 0, 1000), 0);
        (0..300).for_each(|step| pace.step(if step < 150 { 0.1 } else { 0.3 }));
        let left = Left { steps: 700.0, evaluations: 0.0, samples: 0.0, saves: 0.0 };
        assert!((pace.left_secs(&left) - 210.0).abs() < 1e-6);
    }
}
