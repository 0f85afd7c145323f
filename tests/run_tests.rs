//! Whole runs: what a user starts, stops, kills and resumes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::Tensor;
use futures_lite::future::block_on;
use smolforge_engine::config::finetune::Optim;
use smolforge_engine::config::{SourceConfig, TrainConfig};
use smolforge_engine::control::{Control, Signals};
use smolforge_engine::data::builtin;
use smolforge_engine::device::Compute;
use smolforge_engine::model::{Llama, LlamaConfig};
use smolforge_engine::protocol::{Command, DeviceChoice, Event, GenerateRequest, StepReport};
use smolforge_engine::store::Store;
use smolforge_engine::train::optimizer::Optimizer;
use smolforge_engine::train::{Ended, checkpoint, forward, pretrain};
use smolforge_engine::{Engine, Error};
use smolforge_tests::*;

/// A store with three small corpora and the configuration of a short run on them.
pub fn small_run(steps: u32) -> (Store, TrainConfig) {
    let store = Store::memory();
    let mut sources = BTreeMap::new();
    for (name, text) in builtin::corpora(3, 40_000) {
        block_on(store.write(&format!("{name}.txt"), text.as_bytes())).unwrap();
        sources.insert(name.to_string(), SourceConfig::Path(format!("{name}.txt")));
    }
    let config = TrainConfig {
        out: "runs/small".into(),
        device: DeviceChoice::Cpu,
        preset: "nano".into(),
        tokenizer_vocab_size: 400,
        sources,
        batch_size: 2,
        accumulation: 2,
        sequence_length: 32,
        steps,
        warmup_steps: 2,
        lr: 3e-3,
        eval_tokens: 256,
        eval_every: 4,
        sample_every: 0,
        sample_tokens: 4,
        save_every: 3,
        ..TrainConfig::default()
    };
    (store, config)
}

/// A run that nothing interrupts, in a store of its own.
pub fn whole_run(config: &TrainConfig) -> (Store, Vec<StepReport>) {
    let (store, _) = small_run(config.steps);
    let (ended, steps) = run(&store, config, false, None);
    assert_eq!(ended.unwrap(), Ended::Finished);
    (store, steps)
}

/// Resumes a run and expects the steps that it lacks of `whole`; returns the number of the first.
pub fn resume(store: &Store, config: &TrainConfig, whole: &[StepReport]) -> u32 {
    let (ended, rest) = run(store, config, true, None);
    assert_eq!(ended.unwrap(), Ended::Finished);
    assert_eq!(losses(&rest), losses(&whole[whole.len() - rest.len()..]), "same batches, same losses, bit for bit");
    rest[0].step
}

/// Runs and shows every event to `watch`; where that breaks, the run is dropped in the middle as if its process had died.
pub fn watched(
    store: &Store,
    config: &TrainConfig,
    resume: bool,
    mut watch: impl FnMut(&Event, &Signals) -> ControlFlow<()>,
) -> (Option<Result<Ended, Error>>, Vec<StepReport>) {
    let (control, signals, events) = Control::connect();
    let job = async { Some(pretrain::run(config, resume, store, &control).await.map(|(ended, _)| ended)) };
    let mut steps = Vec::new();
    let watching = async {
        while let Ok((_, event)) = events.recv().await {
            let died = watch(&event, &signals).is_break();
            steps.extend(step_of(event));
            if died {
                return None;
            }
        }
        unreachable!("the job ends first")
    };
    let ended = block_on(futures_lite::future::or(job, watching));
    steps.extend(std::iter::from_fn(|| events.try_recv().ok()).filter_map(|(_, event)| step_of(event)));
    (ended, steps)
}

/// Runs, and asks for a stop at every event for which `when` holds.
pub fn run_until(
    store: &Store,
    config: &TrainConfig,
    resume: bool,
    when: impl Fn(&Event) -> bool,
) -> (Result<Ended, Error>, Vec<StepReport>) {
    let (ended, steps) = watched(store, config, resume, |event, signals| {
        if when(event) {
            signals.stop();
        }
        ControlFlow::Continue(())
    });
    (ended.expect("nothing ends the process"), steps)
}

/// Runs; asks for a stop after the report of `stop_after`.
pub fn run(store: &Store, config: &TrainConfig, resume: bool, stop_after: Option<u32>) -> (Result<Ended, Error>, Vec<StepReport>) {
    run_until(store, config, resume, |event| matches!(event, Event::Step(report) if Some(report.step) == stop_after))
}

pub fn step_of(event: Event) -> Option<StepReport> {
    if let Event::Step(report) = event { Some(report) } else { None }
}

pub fn losses(steps: &[StepReport]) -> Vec<(u32, u64, BTreeMap<String, u64>)> {
    steps.iter().map(|report| (report.step, report.loss.to_bits(), report.source_tokens.clone())).collect()
}

pub fn weights(store: &Store, step: u32) -> Vec<u8> {
    let folder = checkpoint::folder("runs/small", step);
    block_on(store.read(&format!("{folder}/model.safetensors"))).unwrap().to_vec()
}

#[test]
fn a_stopped_and_resumed_run_is_the_run_that_never_stopped() {
    cpu();
    let (store, config) = small_run(10);
    let (whole_store, whole) = whole_run(&config);
    let (ended, begun) = run(&store, &config, false, Some(4));
    assert_eq!(ended.unwrap(), Ended::Stopped);
    assert_eq!(losses(&begun), losses(&whole[..begun.len()]));
    assert_eq!(resume(&store, &config, &whole), begun.last().unwrap().step + 1, "the next step follows");
    assert_eq!(weights(&store, 10), weights(&whole_store, 10));
    assert_eq!(told(&store), told(&whole_store), "and the same story");
}

/// What a run says of its steps, evaluations and samples, without times and paths.
pub fn told(store: &Store) -> Vec<String> {
    let events = block_on(smolforge_engine::train::log::read_events(store, "runs/small")).unwrap();
    let told = events.into_iter().filter_map(|(_, event)| match event {
        Event::Step(report) => Some(format!("{} {:?} {:?}", report.step, report.source_loss, report.source_tokens)),
        Event::Evaluated { .. } | Event::Sample { .. } | Event::Stage { .. } | Event::StageDone { .. } | Event::Reweighted { .. } => {
            Some(format!("{event:?}"))
        }
        _ => None,
    });
    told.collect()
}

#[test]
fn an_evaluation_that_was_interrupted_is_told_once_and_is_still_the_best() {
    cpu();
    let (store, mut config) = small_run(6);
    config.sample_every = 4;
    config.sample_tokens = 20;
    let (whole_store, _) = whole_run(&config);
    let evaluated = |event: &Event| matches!(event, Event::Evaluated { step: 4, .. });
    assert_eq!(run_until(&store, &config, false, evaluated).0.unwrap(), Ended::Stopped);
    assert_eq!(run(&store, &config, true, None).0.unwrap(), Ended::Finished);
    assert_eq!(told(&store), told(&whole_store));
}

#[test]
fn a_run_that_died_resumes_from_its_last_checkpoint() {
    cpu();
    let (store, config) = small_run(8);
    let (whole_store, whole) = whole_run(&config);
    let died = watched(&store, &config, false, |event, _| match event {
        Event::Step(report) if report.step == 5 => ControlFlow::Break(()), // steps 4 and 5 are not saved
        _ => ControlFlow::Continue(()),
    });
    assert!(died.0.is_none());
    assert!(resume(&store, &config, &whole) <= 5);
    assert_eq!(weights(&store, 8), weights(&whole_store, 8));
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    cpu();
    let (store, config) = small_run(6);
    run(&store, &config, false, None).0.unwrap();
    let path = format!("{}/model.safetensors", checkpoint::folder("runs/small", 6));
    let bytes = weights(&store, 6);
    block_on(store.write(&path, &bytes[..bytes.len() / 2])).unwrap();
    let (ended, steps) = run(&store, &config, true, None);
    assert_eq!(ended.unwrap(), Ended::Finished);
    assert!(!steps.is_empty(), "the damaged step is made again");
    assert!(block_on(store.exists("runs/small/damaged_000006")), "and kept aside");
    assert_eq!(weights(&store, 6), bytes);
}

#[test]
fn damaged_checkpoints_stay_in_their_run_whatever_it_is_called() {
    let store = Store::memory();
    block_on(store.write("runs/step_test/step_000004/state.json", b"{")).unwrap();
    block_on(checkpoint::set_aside(&store, "runs/step_test", 4)).unwrap();
    assert!(block_on(store.exists("runs/step_test/damaged_000004/state.json")));
}

#[test]
fn what_would_end_a_run_later_is_refused_before_it_begins() {
    cpu();
    let (store, config) = small_run(4);
    let long = TrainConfig { sample_prompt: "once upon a time ".repeat(500), ..config.clone() };
    let error = run(&store, &long, false, None).0.unwrap_err().to_string();
    assert!(error.contains("--sample-prompt"), "{error}");
    assert!(!block_on(store.exists("runs/small/config.yaml")), "nothing was begun");
    run(&store, &config, false, None).0.unwrap();
}

#[test]
fn what_ends_documents_ends_texts_whatever_the_preset() {
    let (store, config) = small_run(4);
    let (control, _, _) = Control::connect();
    for preset in ["nano", "smollm2-135m", "llama-3.2-1b"] {
        let config = TrainConfig { preset: preset.into(), ..config.clone() };
        let shape = block_on(pretrain::Shape::resolve(&config, false, &store, &control)).unwrap().unwrap();
        let end = shape.tokenizer.end_of_text().unwrap();
        assert!(shape.model.eos_token_id.contains(&end), "{preset}: {:?} without {end}", shape.model.eos_token_id);
    }
}

#[test]
fn what_is_out_of_reach_is_not_damage() {
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    assert!(!Error::file("a", &denied).is_damage());
    assert!(Error::file("a", &std::io::ErrorKind::NotFound.into()).is_damage());
    assert!(Error::format("a", "cut").is_damage());
}

#[test]
fn a_run_has_one_master() {
    cpu();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path().to_str().unwrap());
    let held = block_on(store.lock("runs/small/.lock")).unwrap();
    let error = block_on(store.lock("runs/small/.lock")).err().expect("the second is told").to_string();
    assert!(error.contains("in use"), "{error}");
    drop(held);
    block_on(store.lock("runs/small/.lock")).unwrap();
}

#[test]
fn a_run_without_a_readable_checkpoint_is_not_begun_anew() {
    cpu();
    let (store, config) = small_run(6);
    run(&store, &config, false, None).0.unwrap();
    for step in block_on(checkpoint::steps(&store, "runs/small")).unwrap() {
        let path = format!("{}/model.safetensors", checkpoint::folder("runs/small", step));
        block_on(store.write(&path, b"cut")).unwrap();
    }
    let log = block_on(store.read_text("runs/small/events.jsonl")).unwrap();
    let error = run(&store, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("can be read"), "{error}");
    assert_eq!(block_on(store.read_text("runs/small/events.jsonl")).unwrap(), log, "nothing was touched");
}

#[test]
fn resume_refuses_another_configuration_tokenizer_or_text() {
    cpu();
    let (store, config) = small_run(6);
    run(&store, &config, false, Some(2)).0.unwrap();
    let other = TrainConfig { lr: 1e-3, ..config.clone() };
    let error = run(&store, &other, true, None).0.unwrap_err().to_string();
    assert!(error.contains("lr"), "{error}");
    let error = run(&store, &config, false, None).0.unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    let text = block_on(store.read_text("code.txt")).unwrap();
    block_on(store.write("code.txt", text.replace("def", "fed").as_bytes())).unwrap();
    let error = run(&store, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("data"), "{error}");
    block_on(store.write("code.txt", text.as_bytes())).unwrap();
    run(&store, &config, true, None).0.unwrap();
}

#[test]
fn shares_of_training_tokens_follow_the_curriculum() {
    cpu();
    let (store, config) = small_run(20);
    let (_, steps) = run(&store, &config, false, None);
    let last_stages = &steps[12..]; // Refinement and Final Polish: .4, .3, .3
    let tokens = |source: &str| last_stages.iter().filter_map(|report| report.source_tokens.get(source)).sum::<u64>() as f64;
    let total: f64 = ["input", "code", "math"].iter().map(|source| tokens(source)).sum();
    for (source, share) in [("input", 0.4), ("code", 0.3), ("math", 0.3)] {
        let found = tokens(source) / total;
        assert!((found - share).abs() < 0.08, "{source}: {found}"); // 32 rows: one row is 3 %
    }
}

#[test]
fn non_finite_updates_are_skipped_and_end_the_run_with_the_checkpoint_intact() {
    cpu();
    let (store, mut config) = small_run(12);
    config.save_every = 1;
    config.save_total_limit = 1;
    let (whole_store, _) = whole_run(&config);
    run(&store, &config, false, Some(3)).0.unwrap();
    let good = weights(&store, 3);

    let (control, _, events) = Control::connect();
    let broken = async {
        let mut run = pretrain::prepare(config.clone(), true, &store, &control).await.unwrap().unwrap();
        let norm = &mut run.model.norm.weight.tensor;
        *norm = Tensor::from_inner(norm.clone().inner().mul_scalar(f32::INFINITY)).require_grad();
        smolforge_engine::train::train(&mut run).await
    };
    let error = block_on(broken).unwrap_err();
    assert!(matches!(error, Error::NonFinite { step: 8, count: 5, .. }), "{error}");
    assert!(error.to_string().contains("checkpoint of step 3 is intact"), "{error}");
    let mut skipped = Vec::new();
    while let Ok((_, event)) = events.try_recv() {
        if let Event::Step(report) = event {
            assert!(report.skipped.is_some() && !report.loss.is_finite());
            skipped.push(report.step);
        }
    }
    assert_eq!(skipped, [4, 5, 6, 7, 8]);

    assert_eq!(block_on(checkpoint::steps(&store, "runs/small")).unwrap().last(), Some(&3), "nothing was saved over it");
    assert_eq!(weights(&store, 3), good);
    run(&store, &config, true, None).0.unwrap();
    assert_eq!(weights(&store, 12), weights(&whole_store, 12), "made again from there, the run is the one that never broke");
}

#[test]
fn one_batch_overfits() {
    let shape = LlamaConfig::preset("nano").unwrap().with_vocab(300);
    let config = TrainConfig { weight_decay: 0.0, ..TrainConfig::default() };
    let tokens: Vec<i64> = numbers(11, 2 * 33).iter().map(|x| ((x.abs() * 1000.0) as i64) % 300).collect();
    let batch = batch(&tokens[..64], &tokens[1..65], 32);
    let mut model = Llama::random(&shape, &cpu(), 32, 5).trainable();
    let mut optimizer = Optimizer::new(&model, Optim::Adamw);
    let mut last = f32::INFINITY;
    for _ in 0..60 {
        let forward = forward(&model, &batch, 1.0 / 64.0);
        last = values(forward.losses.nll.clone()).iter().sum::<f32>() / 64.0;
        let grads = forward.gradients(&model);
        block_on(optimizer.step(&mut model, grads, &config, 3e-3, 1.0)).unwrap();
    }
    assert!(last < 0.1, "loss {last}");
}

#[test]
fn both_devices_train_alike() {
    let all = devices();
    if all.len() < 2 {
        return;
    }
    let run_on = |device| {
        let (store, mut config) = small_run(4);
        (config.device, config.eval_every, config.precision) = (device, 0, smolforge_engine::config::Precision::F32);
        let (ended, steps) = run(&store, &config, false, None);
        ended.unwrap();
        steps.iter().map(|report| report.loss).collect::<Vec<_>>()
    };
    for (a, b) in run_on(DeviceChoice::Cpu).iter().zip(run_on(DeviceChoice::Gpu)) {
        assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    }
}

#[test]
fn texts_are_written_while_a_run_waits_and_change_nothing_of_it() {
    cpu();
    let (store, mut config) = small_run(12);
    (config.save_every, config.eval_every) = (2, 0);
    let (whole_store, _) = whole_run(&config);

    let engine = Engine::start(store.clone());
    let train = engine.send(Command::Train { config: Box::new(config), resume: false });
    let request = GenerateRequest {
        model: "runs/small".into(), // its newest checkpoint
        prompts: vec!["the".into()],
        device: DeviceChoice::Cpu,
        max_new_tokens: 8,
        ..GenerateRequest::default()
    };
    let (mut texts, mut written, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    while !ends.iter().any(|(job, _)| *job == train) {
        let (job, event) = block_on(engine.next()).unwrap();
        match event {
            Event::Saved { step: 2, .. } => {
                texts = (0..3).map(|_| engine.send(Command::Generate(request.clone()))).collect();
                engine.tell(texts[2], Command::Move { position: 0 });
                engine.tell(texts[1], Command::Stop);
            }
            Event::Generated { finish, .. } if finish != "cancelled" => written.push(job),
            Event::Done { stopped, .. } => ends.push((job, stopped)),
            Event::Failed { error, .. } => panic!("{job}: {error}"),
            _ => {}
        }
    }
    assert_eq!(ends.len(), 4, "all texts were written before the run ended: {ends:?}");
    assert!(ends.contains(&(texts[1], true)), "one was cancelled: {ends:?}");
    written.sort_unstable();
    assert_eq!(written, [texts[0], texts[2]]);
    assert_eq!(weights(&store, 12), weights(&whole_store, 12));
}

#[test]
fn a_shell_that_goes_away_leaves_a_run_that_is_saved() {
    cpu();
    let (store, mut config) = small_run(100_000);
    (config.save_every, config.eval_every) = (100_000, 0);
    let engine = Engine::start(store.clone());
    engine.send(Command::Train { config: Box::new(config.clone()), resume: false });
    while !matches!(block_on(engine.next()), Some((_, Event::Step(_)))) {}
    drop(engine);
    let saved = || block_on(checkpoint::steps(&store, "runs/small")).unwrap();
    let patience = std::time::Instant::now();
    while saved().is_empty() && patience.elapsed().as_secs() < 60 {
        std::thread::yield_now();
    }
    assert_eq!(saved().len(), 1);
}

#[test]
fn an_engine_answers_with_started_first_and_one_end() {
    let engine = Engine::start(Store::memory());
    for command in [Command::Devices { test: false }, Command::Tokenize { tokenizer: "none".into(), files: vec![] }] {
        engine.send(command);
        let mut events = Vec::new();
        loop {
            let (_, event) = block_on(engine.next()).unwrap();
            let ended = matches!(event, Event::Done { .. } | Event::Failed { .. });
            events.push(event);
            if ended {
                break;
            }
        }
        assert!(matches!(events[0], Event::Started { .. }));
        assert!(events[1..].iter().all(|event| !matches!(event, Event::Started { .. })));
    }
}

#[test]
fn overflows_of_mixed_precision_halve_the_loss_scale_and_are_not_counted() {
    use smolforge_engine::config::Precision;
    if !devices().iter().any(Compute::mixes) {
        println!("skipped: no device computes in mixed precision");
        return;
    }
    let (store, mut config) = small_run(16);
    (config.device, config.precision, config.eval_every, config.max_skipped) = (DeviceChoice::Gpu, Precision::Mixed, 0, 2);
    let (control, _, events) = Control::connect();
    let huge = 2f64.powi(70); // f32 holds the square of no more than 2⁶⁴
    let (ended, updates) = block_on(async {
        let mut run = pretrain::prepare(config, false, &store, &control).await.unwrap().unwrap();
        run.state.loss_scale.value = huge;
        (smolforge_engine::train::train(&mut run).await, run.optimizer.updates)
    });
    assert_eq!(ended.unwrap(), Ended::Finished);
    let mut steps = Vec::new();
    while let Ok((_, event)) = events.try_recv() {
        if let Event::Step(report) = event {
            steps.push(report);
        }
    }
    // How many, and which, depends on the device: where the scale just fits, the gradients of a later step may not.
    let skipped = steps.iter().filter(|report| report.skipped.is_some()).count();
    assert!((3..16).contains(&skipped), "{skipped} of 16 steps overflow");
    let mut scale = huge;
    for report in &steps {
        assert_eq!(report.loss_scale, scale, "step {}", report.step);
        scale *= if report.skipped.is_some() { 0.5 } else { 1.0 };
        assert!(report.loss.is_finite(), "only gradients overflow");
    }
    assert_eq!(updates as usize, 16 - skipped, "a skipped update is none");
}

#[test]
fn a_checkpoint_that_is_asked_for_is_written_once_and_the_run_goes_on() {
    cpu();
    let (store, mut config) = small_run(8);
    (config.save_every, config.eval_every) = (8, 0);
    let (whole_store, whole) = whole_run(&config);
    let (ended, steps) = watched(&store, &config, false, |event, signals| {
        if matches!(event, Event::Step(report) if report.step == 5) {
            signals.save();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(ended.unwrap().unwrap(), Ended::Finished);
    assert_eq!(losses(&steps), losses(&whole));
    let saved = |store: &Store| {
        let events = block_on(smolforge_engine::train::log::read_events(store, "runs/small")).unwrap();
        events.into_iter().filter_map(|(_, event)| if let Event::Saved { step, .. } = event { Some(step) } else { None }).collect()
    };
    let (mut expected, saved): (Vec<u32>, Vec<u32>) = (saved(&whole_store), saved(&store));
    assert!(!expected.contains(&6), "{expected:?}");
    expected.push(6); // after the step in progress
    expected.sort_unstable();
    assert_eq!(saved, expected);
    assert_eq!(weights(&store, 8), weights(&whole_store, 8));
}

#[test]
fn a_folder_with_other_things_takes_no_run_and_loses_none() {
    cpu();
    let (store, config) = small_run(4);
    block_on(store.write("runs/small/mine.txt", b"mine")).unwrap();
    let error = run(&store, &config, false, None).0.unwrap_err().to_string();
    assert!(error.contains("runs/small/mine.txt") && error.contains("empty --out"), "{error}");
    block_on(store.remove("runs/small/mine.txt")).unwrap();
    run(&store, &config, false, None).0.unwrap();
    block_on(store.write("runs/small/mine.txt", b"mine")).unwrap();
    block_on(smolforge_engine::train::runs::delete(&store, "runs/small")).unwrap();
    let left: Vec<String> = block_on(store.list("runs/small")).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(left, ["runs/small/mine.txt"]);
}

#[test]
fn a_run_on_a_full_disk_waits_until_there_is_room() {
    cpu();
    let (_, config) = small_run(8);
    let (whole_store, _) = whole_run(&config);
    // Full when a step, an evaluation or the end of the run is written down.
    for full in [2, 4, 7] {
        let (store, _) = small_run(8);
        let mut held = 0;
        let (ended, _) = watched(&store, &config, false, |event, signals| {
            if matches!(event, Event::Step(report) if report.step == full) {
                store.set_room(0);
            }
            if let Event::Held { why } = event {
                assert!(why.contains("no space left") && why.contains("free some space"), "{why}");
                held += 1;
                if held == 2 {
                    store.set_room(u64::MAX);
                }
                signals.pause(false);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(ended.unwrap().unwrap(), Ended::Finished);
        assert_eq!(held, 2, "gone on too early, it waits again");
        assert_eq!(told(&store), told(&whole_store));
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let bytes = |store: &Store| block_on(store.read(&format!("{}/{file}", checkpoint::folder(&config.out, 8)))).unwrap().to_vec();
            assert_eq!(bytes(&store), bytes(&whole_store));
        }
    }
}

#[test]
fn a_run_on_a_full_disk_can_be_stopped_and_resumed() {
    cpu();
    for room_is_made in [false, true] {
        let (store, config) = small_run(8);
        let (_, whole) = whole_run(&config);
        let (ended, steps) = run_until(&store, &config, false, |event| {
            if matches!(event, Event::Step(report) if report.step == 5) {
                store.set_room(0);
            }
            let held = matches!(event, Event::Held { .. });
            if held && room_is_made {
                store.set_room(u64::MAX);
            }
            held
        });
        if room_is_made {
            assert_eq!(ended.unwrap(), Ended::Stopped);
            assert_eq!(resume(&store, &config, &whole), steps.last().unwrap().step + 1, "nothing is made again");
        } else {
            assert!(matches!(ended, Err(Error::DiskFull { .. })));
            store.set_room(u64::MAX);
            resume(&store, &config, &whole);
        }
    }
}
