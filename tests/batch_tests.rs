//! Many samples side by side are what each is alone.

use futures_lite::future::block_on;
use smolforge_engine::control::{Control, Flow};
use smolforge_engine::data::random::Random;
use smolforge_engine::device::Compute;
use smolforge_engine::generate::batch::{self, Prompt};
use smolforge_engine::generate::{self, Generation, Limits};
use smolforge_engine::protocol::Sampling;
use smolforge_engine::text::tokenizer::Tokenizer;
use smolforge_tests::*;

/// Prompts of many lengths, some twice, some continued more than once.
fn prompts() -> Vec<Prompt> {
    let lengths = [1, 9, 2, 17, 3, 5, 1, 12, 4, 7, 2, 6];
    let mut random = Random::stream(7, 0);
    let ids = lengths.map(|length| (0..length).map(|_| 3 + random.below(200) as u32).collect::<Vec<_>>());
    let samples = [1, 2, 1, 3, 1, 1, 2, 1, 1, 4, 1, 1];
    ids.into_iter().zip(samples).zip((0..).step_by(10)).map(|((ids, samples), stream)| Prompt { ids, samples, stream }).collect()
}

/// What every sample is alone.
fn alone(compute: &Compute, sampling: &Sampling, limits: &Limits<'_>) -> Vec<Vec<Generation>> {
    let (model, tokenizer, control) = (golden_model("tiny_llama", compute), tokenizer(), Control::connect().0);
    let one = |prompt: &Prompt, sample: usize| {
        let random = Random::stream(sampling.seed, prompt.stream + sample as u64);
        let done = generate::generate(&model, &tokenizer, &prompt.ids, sampling, limits, random, &control, None, |_| {});
        block_on(done).unwrap().0
    };
    prompts().iter().map(|prompt| (0..prompt.samples).map(|sample| one(prompt, sample)).collect()).collect()
}

fn tokenizer() -> Tokenizer {
    block_on(Tokenizer::load(&golden(), "tiny_llama")).unwrap()
}

fn side_by_side(compute: &Compute, sampling: &Sampling, limits: &Limits<'_>, rows: usize) -> Vec<Vec<Generation>> {
    let (model, tokenizer, prompts) = (golden_model("tiny_llama", compute), tokenizer(), prompts());
    let control = Control::connect().0;
    let mut found: Vec<Vec<Option<Generation>>> = prompts.iter().map(|prompt| vec![None; prompt.samples]).collect();
    let flow = batch::generate(&model, &tokenizer, &prompts, sampling, limits, rows, &control, |prompt, sample, generation| {
        assert_eq!(found[prompt][sample].replace(generation), None, "a sample came twice");
        Ok(())
    });
    assert_eq!(block_on(flow).unwrap(), Flow::Continue);
    found.into_iter().map(|samples| samples.into_iter().map(Option::unwrap).collect()).collect()
}

#[test]
fn samples_side_by_side_are_those_of_every_prompt_alone() {
    for compute in devices() {
        for sampling in [Sampling { greedy: true, ..Sampling::default() }, Sampling { temperature: 0.8, seed: 3, ..Sampling::default() }] {
            // Some end early: what is likely for this model ends them.
            let limits = Limits { max_new_tokens: 24, stop: &["e".into()], end: &[5, 17, 40, 41, 42, 43, 44] };
            let expected = alone(&compute, &sampling, &limits);
            let lengths: Vec<usize> = expected.iter().flatten().map(|generation| generation.tokens.len()).collect();
            assert!(lengths.iter().min() < lengths.iter().max(), "all samples are of one length: {lengths:?}");
            for rows in [1, 2, 3, 8, 64] {
                let found = side_by_side(&compute, &sampling, &limits, rows);
                assert_eq!(found, expected, "{rows} rows on {}, greedy {}", compute.info.name, sampling.greedy);
            }
        }
    }
}

#[test]
fn long_samples_make_the_cache_tidy_itself_up() {
    let compute = cpu();
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    let limits = Limits { max_new_tokens: 40, stop: &[], end: &[] };
    assert_eq!(side_by_side(&compute, &sampling, &limits, 3), alone(&compute, &sampling, &limits));
}

#[test]
fn prompts_that_cannot_be_continued_are_refused() {
    let (model, tokenizer, control) = (golden_model("tiny_llama", &cpu()), tokenizer(), Control::connect().0);
    let sampling = Sampling::default();
    let refused = |ids: Vec<u32>, max_new_tokens| {
        let limits = Limits { max_new_tokens, stop: &[], end: &[] };
        let prompts = [Prompt { ids, samples: 1, stream: 0 }];
        let done = batch::generate(&model, &tokenizer, &prompts, &sampling, &limits, 4, &control, |_, _, _| Ok(()));
        block_on(done).unwrap_err().to_string()
    };
    assert!(refused(Vec::new(), 5).contains("empty"));
    assert!(refused(vec![3; 9], 5000).contains("context"));
    assert!(refused(vec![3; 9], 0).contains("--max-new-tokens 0"));
}

#[test]
fn a_batch_can_be_stopped() {
    let (model, tokenizer, prompts) = (golden_model("tiny_llama", &cpu()), tokenizer(), prompts());
    let ((control, signals, _events), sampling) = (Control::connect(), Sampling::default());
    let limits = Limits { max_new_tokens: 30, stop: &[], end: &[] };
    let mut done = 0;
    let flow = batch::generate(&model, &tokenizer, &prompts, &sampling, &limits, 2, &control, |_, _, _| {
        done += 1;
        signals.stop();
        Ok(())
    });
    assert_eq!((block_on(flow).unwrap(), done < 10), (Flow::Stop, true));
}
