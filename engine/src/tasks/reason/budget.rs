//! What limits a task's adapters: parameters, bytes of the bundle, memory of the device; and the largest rank within it.

use super::learn::{self, Lesson};
use crate::config::TrainConfig;
use crate::config::finetune::Targets;
use crate::config::reason::ReasonConfig;
use crate::device::Compute;
use crate::error::{Error, Result};
use crate::model::LlamaConfig;
use crate::model::adapter::{AdapterConfig, Patterns, layers};
use crate::plan;
use crate::protocol::{BudgetReport, Capped};

/// The largest rank that is asked for anywhere.
const MOST_RANK: u64 = 4096;

/// Bytes in an adapter's file that say what a tensor is, at most: some 140 where name and place are long.
const TENSOR_BYTES: u64 = 160;

/// Bytes of `adapter_config.json`, at most.
const CONFIG_BYTES: u64 = 2000;

/// Bytes of megabytes, which have a million of them.
pub fn bytes(mb: f64) -> u64 {
    (mb * 1e6).round() as u64
}

/// Megabytes of bytes.
pub fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What the student's adapters need, at the ranks that they get, and what the limits are.
///
/// # Errors
/// Where there is no device as asked.
pub async fn report(config: &ReasonConfig, shape: &LlamaConfig) -> Result<BudgetReport> {
    let (compute, _) = Compute::open(config.device).await?;
    let ranks = [config.sft_r, config.rft_r].map(|asked| fitting_rank(config, asked, shape).map_or(asked, |(r, _)| r));
    let needed =
        [Lesson::Answers, Lesson::Reasoning].into_iter().zip(ranks).map(|(lesson, r)| training_bytes(config, shape, lesson, r, &compute));
    let device_bytes = Capped { used: needed.max().unwrap_or(0), cap: compute.free_bytes().unwrap_or(0) };
    Ok(BudgetReport { device_bytes, ..files(config, shape, ranks) })
}

/// The same without the device.
fn files(config: &ReasonConfig, shape: &LlamaConfig, ranks: [usize; 2]) -> BudgetReport {
    let parameters = ranks.map(|r| shape.parameters() + numbers(shape, r));
    BudgetReport {
        parameters: Capped { used: parameters[0].max(parameters[1]), cap: config.max_params },
        bundle_bytes: Capped { used: ranks.map(|r| size_bytes(shape, r)).iter().sum(), cap: bytes(config.max_zip_mb) },
        device_bytes: Capped::default(),
        ranks,
        largest_ranks: [largest_of_parameters(config, shape), largest_of_bundle(config, shape)],
    }
}

/// Memory that a lesson takes, with examples as long as they may be.
fn training_bytes(config: &ReasonConfig, shape: &LlamaConfig, lesson: Lesson, r: usize, compute: &Compute) -> u64 {
    let run = learn::config(config, lesson, r, "", "");
    let plan = TrainConfig {
        batch_size: run.per_device_train_batch_size,
        accumulation: run.gradient_accumulation_steps,
        gradient_checkpointing: run.gradient_checkpointing,
        optim: run.optim,
        sequence_length: run.max_seq_length.min(shape.max_position_embeddings),
        ..TrainConfig::default()
    };
    plan::memory(shape, &plan, compute, plan::finetune::trained(&run, numbers(shape, r), compute)).values().sum()
}

/// The largest rank with which the student stays within `max_params`; 0 where none does.
pub fn largest_of_parameters(config: &ReasonConfig, shape: &LlamaConfig) -> usize {
    largest(config.max_params, |r| shape.parameters() + numbers(shape, r))
}

/// The largest rank that two adapters of the same rank may have in a bundle of `max_zip_mb`, which counts on no
/// compression; 0 where there is none.
pub fn largest_of_bundle(config: &ReasonConfig, shape: &LlamaConfig) -> usize {
    largest(bytes(config.max_zip_mb), |r| 2 * size_bytes(shape, r))
}

/// The rank that an adapter gets where `asked` is asked for: `max_params` and `max_adapter_mb` may lower it, which the
/// sentence says.
///
/// # Errors
/// [`Error::Config`] where not even rank 1 is within them.
pub fn fitting_rank(config: &ReasonConfig, asked: usize, shape: &LlamaConfig) -> Result<(usize, Option<String>)> {
    let all = shape.parameters() + numbers(shape, asked.max(1));
    let of_parameters = (
        largest_of_parameters(config, shape),
        format!("the student would have {all} parameters with it, and --max-params is {}", config.max_params),
    );
    let of_bytes = (config.max_adapter_mb > 0.0).then(|| {
        let (size, most) = (mb(size_bytes(shape, asked.max(1))), config.max_adapter_mb);
        let why = format!("its files would have {size:.1} MB, and --max-adapter-mb is {most}");
        (largest(bytes(most), |r| size_bytes(shape, r)), why)
    });
    let limits = [Some(of_parameters), of_bytes].into_iter().flatten();
    let Some((most, why)) = limits.min_by_key(|(most, _)| *most).filter(|(most, _)| *most < asked) else { return Ok((asked, None)) };
    match most {
        0 => Err(Error::Config(format!("not even an adapter of rank 1 is within the limits; one of rank {asked}: {why}"))),
        most => Ok((most, Some(format!("an adapter of rank {most} instead of {asked}: {why}")))),
    }
}

/// Numbers of an adapter of all linear layers; none where there is no such layer.
fn numbers(shape: &LlamaConfig, r: usize) -> u64 {
    let adapter = AdapterConfig {
        base_model: String::new(),
        four_bits: false,
        r,
        alpha: 1.0,
        rslora: false,
        dropout: 0.0,
        targets: Targets::Pattern("all-linear".into()),
        ranks: Patterns::default(),
        alphas: Patterns::default(),
    };
    adapter.parameters(shape).unwrap_or(0)
}

/// Bytes of the files of an adapter of all linear layers, at most.
fn size_bytes(shape: &LlamaConfig, r: usize) -> u64 {
    let tensors = 2 * layers(shape).len() as u64;
    4 * numbers(shape, r) + TENSOR_BYTES * tensors + CONFIG_BYTES
}

/// The largest rank that costs at most `most`, where every rank costs as much more than the one before; 0: there is none.
pub fn largest(most: u64, cost: impl Fn(usize) -> u64) -> usize {
    let (one, two) = (cost(1), cost(2));
    let step = two.saturating_sub(one).max(1);
    let more = most.checked_sub(one).map(|left| 1 + left / step);
    more.unwrap_or(0).min(MOST_RANK) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> LlamaConfig {
        LlamaConfig::preset("smollm2-360m").unwrap()
    }

    #[test]
    fn adapters_of_360m_have_the_parameters_of_the_reference() {
        for (r, all) in [(8, 366_162_880), (16, 370_504_640), (32, 379_188_160)] {
            let report = files(&ReasonConfig::default(), &shape(), [4, r]);
            assert_eq!(report.parameters, Capped { used: all, cap: 380_000_000 });
            assert!(report.parameters.fits());
        }
        assert!(!files(&ReasonConfig::default(), &shape(), [34, 1]).parameters.fits());
    }

    #[track_caller]
    fn check(max_params: u64, max_zip_mb: f64, expect: [usize; 2]) {
        let config = ReasonConfig { max_params, max_zip_mb, ..ReasonConfig::default() };
        let found = files(&config, &shape(), [8, 16]);
        assert_eq!(found.largest_ranks, expect);
        let fits = |r: usize| files(&config, &shape(), [r, r]);
        for r in [expect[0], expect[0] + 1].into_iter().filter(|r| *r > 0) {
            assert_eq!(fits(r).parameters.fits(), r <= expect[0], "rank {r}");
        }
        for r in [expect[1], expect[1] + 1].into_iter().filter(|r| *r > 0) {
            assert_eq!(fits(r).bundle_bytes.fits(), r <= expect[1], "rank {r}");
        }
    }

    #[test]
    fn the_largest_ranks_are_those_of_the_reference() {
        check(380_000_000, 50.0, [33, 11]);
        check(380_000_000, 40.0, [33, 9]);
        check(361_821_120 + 542_720, 4.5, [1, 1]);
        check(361_821_120 + 542_719, 4.0, [0, 0]);
        check(100, 0.0, [0, 0]);
    }

    #[track_caller]
    fn check_rank(max_params: u64, max_adapter_mb: f64, asked: usize, expect: usize, words: &str) {
        let config = ReasonConfig { max_params, max_adapter_mb, ..ReasonConfig::default() };
        let (r, why) = fitting_rank(&config, asked, &shape()).unwrap();
        assert_eq!(r, expect);
        assert_eq!(why.is_some(), r < asked);
        let why = why.unwrap_or_default();
        assert!(why.contains(words) && !why.contains('\n'), "{why}");
    }

    #[test]
    fn a_rank_is_lowered_to_what_the_limits_allow() {
        check_rank(380_000_000, 0.0, 33, 33, "");
        check_rank(380_000_000, 0.0, 34, 33, "380273600");
        check_rank(380_000_000, 20.0, 8, 8, "");
        check_rank(380_000_000, 20.0, 33, 9, "--max-adapter-mb is 20");
        check_rank(363_000_000, 20.0, 33, 2, "--max-params is 363000000");
        for (max_params, max_adapter_mb, words) in [(362_000_000, 0.0, "--max-params"), (380_000_000, 1.5, "--max-adapter-mb")] {
            let config = ReasonConfig { max_params, max_adapter_mb, ..ReasonConfig::default() };
            let error = fitting_rank(&config, 8, &shape()).unwrap_err().to_string();
            assert!(error.contains("not even an adapter of rank 1") && error.contains(words), "{error}");
        }
    }
}
