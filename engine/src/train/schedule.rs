//! The learning rate of every update: linear warm-up, then a cosine, a straight line, or nothing.

use crate::config::TrainConfig;
use crate::config::finetune::Decay;

/// A learning rate per step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate, reached after warm-up.
    pub lr: f64,
    /// Learning rate at the end of the cosine and after it.
    pub min_lr: f64,
    /// Updates of linear warm-up.
    pub warmup: u32,
    /// Updates of the whole run.
    pub steps: u32,
    /// How it falls.
    pub decay: Decay,
    /// Whether warm-up begins at 0, so that the first update changes nothing, as Hugging Face's does.
    pub from_zero: bool,
}

impl From<&TrainConfig> for Schedule {
    fn from(config: &TrainConfig) -> Self {
        Self {
            lr: config.lr,
            min_lr: config.lowest_lr(),
            warmup: config.warmup_steps,
            steps: config.steps,
            decay: config.lr_scheduler_type,
            from_zero: false,
        }
    }
}

impl Schedule {
    /// Learning rate of the update that comes after `step` updates (the first one is step 0).
    ///
    /// `lr · (step + 1) / (warmup + 1)` below `warmup`, or `lr · step / warmup` from zero; then
    /// `min_lr + (lr − min_lr) · (1 + cos(π · (step − warmup) / (steps − warmup))) / 2`; `min_lr` from `steps` on.
    pub fn lr(&self, step: u32) -> f64 {
        if self.decay == Decay::Constant {
            return self.lr;
        }
        if step < self.warmup {
            let (step, warmup) = (f64::from(step), f64::from(self.warmup));
            return self.lr * if self.from_zero { step / warmup } else { (step + 1.0) / (warmup + 1.0) };
        }
        if step >= self.steps && self.decay != Decay::ConstantWithWarmup {
            return self.min_lr;
        }
        let progress = f64::from(step - self.warmup) / f64::from(self.steps.saturating_sub(self.warmup).max(1));
        let height = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1.0 - progress,
            Decay::Constant | Decay::ConstantWithWarmup => 1.0,
        };
        self.min_lr + (self.lr - self.min_lr) * height
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: Schedule = Schedule { lr: 6e-4, min_lr: 3e-4, warmup: 100, steps: 5050, decay: Decay::Cosine, from_zero: false };

    #[test]
    fn warm_up_is_linear_and_meets_the_cosine() {
        assert_eq!(SMOLLM2.lr(0), 6e-4 / 101.0);
        assert_eq!(SMOLLM2.lr(99), 6e-4 * 100.0 / 101.0);
        assert_eq!(SMOLLM2.lr(100), 6e-4);
    }

    #[test]
    fn cosine_passes_its_middle_and_ends_at_the_minimum() {
        let middle = SMOLLM2.lr(2575); // (100 + 5050) / 2
        assert!((middle - 4.5e-4).abs() < 1e-18, "{middle}");
        assert_eq!(SMOLLM2.lr(5050), 3e-4);
        assert_eq!(SMOLLM2.lr(u32::MAX), 3e-4);
        assert!((100..5049).all(|step| SMOLLM2.lr(step) > SMOLLM2.lr(step + 1)));
    }

    #[test]
    fn reference_run_is_met_within_its_rounding() {
        // Logged lines of the reference run, three digits each. It was begun as a run of 5000 updates and given
        // 50 more at the lowest rate, so its cosine ends at 5000.
        let schedule = Schedule { steps: 5000, ..SMOLLM2 };
        let logged = [
            (283, 5.99e-4),
            (366, 5.98e-4),
            (499, 5.95e-4),
            (616, 5.92e-4),
            (782, 5.86e-4),
            (949, 5.78e-4),
            (1000, 5.76e-4),
            (1083, 5.71e-4),
            (1333, 5.56e-4),
            (1500, 5.44e-4),
            (2000, 5.02e-4),
            (2500, 4.55e-4),
            (3000, 4.07e-4),
            (4000, 3.30e-4),
            (5000, 3.0e-4),
            (5050, 3.0e-4),
        ];
        for (step, lr) in logged {
            // 1e-6: the log keeps three digits, some cut and some rounded.
            assert!((schedule.lr(step) - lr).abs() < 1e-6, "step {step}: {} against {lr}", schedule.lr(step));
        }
    }

    #[test]
    fn schedules_from_zero_are_those_of_transformers() {
        // transformers 5.23: get_scheduler(name, AdamW(lr=2e-4), num_warmup_steps=3, num_training_steps=10)
        let first = [0.0, 6.666_666_666_666_667e-5, 1.333_333_333_333_333_4e-4, 2e-4];
        let cosine = [
            1.900_968_867_902_419e-4,
            1.623_489_801_858_733_7e-4,
            1.222_520_933_956_314_5e-4,
            7.774_790_660_436_858e-5,
            3.7651019814126654e-05,
            9.903_113_209_758_096e-6,
            0.0,
        ];
        let linear = [
            1.714_285_714_285_714_3e-4,
            1.428_571_428_571_428_7e-4,
            1.142_857_142_857_142_8e-4,
            8.571_428_571_428_571e-5,
            5.714_285_714_285_714e-5,
            2.857_142_857_142_857e-5,
            0.0,
        ];
        for (decay, rest) in [(Decay::Cosine, cosine), (Decay::Linear, linear), (Decay::ConstantWithWarmup, [2e-4; 7])] {
            let schedule = Schedule { lr: 2e-4, min_lr: 0.0, warmup: 3, steps: 10, decay, from_zero: true };
            for (step, expected) in first.into_iter().chain(rest).enumerate() {
                let found = schedule.lr(step as u32);
                assert!((found - expected).abs() < 1e-18, "{decay:?} {step}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn degenerate_runs_stay_finite() {
        for (warmup, steps) in [(0, 1), (0, 0), (1, 1), (10, 5), (5, 5)] {
            let schedule = Schedule { lr: 1.0, min_lr: 0.1, warmup, steps, decay: Decay::Cosine, from_zero: false };
            assert!((0..20).all(|step| (0.0..=1.0).contains(&schedule.lr(step))), "{schedule:?}");
        }
        assert_eq!(Schedule { lr: 1.0, min_lr: 1.0, warmup: 0, steps: 9, decay: Decay::Linear, from_zero: false }.lr(4), 1.0);
    }
}
