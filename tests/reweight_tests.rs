//! Weights that are moved while a run is in progress.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use futures_lite::future::block_on;
use smolforge_engine::Engine;
use smolforge_engine::config::TrainConfig;
use smolforge_engine::protocol::{Command, Event};
use smolforge_engine::store::Store;
use smolforge_engine::train::Ended;
use smolforge_tests::cpu;

use crate::run_tests::{run, small_run, told, watched, weights, whole_run};

fn shares<const N: usize>(shares: [(&str, f64); N]) -> BTreeMap<String, f64> {
    shares.into_iter().map(|(source, share)| (source.to_string(), share)).collect()
}

/// What the run has written down of itself.
fn recorded(store: &Store) -> TrainConfig {
    TrainConfig::from_yaml(&block_on(store.read_text("runs/small/config.yaml")).unwrap()).unwrap()
}

/// Runs; at the report of step 3 asks for other shares of the present stage and the next one, and dies at the report of
/// `dies_at`.
fn run_and_move(store: &Store, config: &TrainConfig, dies_at: Option<u32>) {
    let (ended, _) = watched(store, config, false, |event, signals| {
        let Event::Step(report) = event else { return ControlFlow::Continue(()) };
        if report.step == 3 {
            signals.reweight(2, shares([("math", 3.0), ("code", 1.0)]));
            signals.reweight(3, shares([("code", 1.0)]));
        }
        if Some(report.step) == dies_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(ended.map(Result::unwrap), dies_at.is_none().then_some(Ended::Finished));
}

#[test]
fn moved_weights_are_recorded_and_repeat_exactly() {
    cpu();
    let (store, config) = small_run(14); // stages begin at 0, 2, 5, 8, 13
    run_and_move(&store, &config, None);
    let changes = recorded(&store).mix_changes;
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!((3..5).contains(&changes[0].step), "a change waits for the end of the update: {changes:?}");
    assert_eq!(changes[0].weights, shares([("math", 0.75), ("code", 0.25)]));
    let log = block_on(store.read_text("runs/small/training.log")).unwrap();
    assert!(log.contains("stage 3 has other shares: code 25.0 %, math 75.0 %"), "{log}");
    let report = block_on(store.read_text("runs/small/report.html")).unwrap();
    assert!(report.contains("on stage 3 had other shares") && report.contains("mix_changes:"));

    // The same run once more, from what it has recorded.
    let (again, _) = whole_run(&recorded(&store));
    assert_eq!(told(&again), told(&store));
    assert_eq!(weights(&again, 14), weights(&store, 14));

    // A run that was never changed is another one.
    let (other, _) = whole_run(&config);
    assert_ne!(weights(&other, 14), weights(&store, 14));
}

#[test]
fn a_run_that_died_after_weights_were_moved_resumes_as_it_was() {
    cpu();
    // Checkpoints at 3, 6, 9 …: one death lies before the first checkpoint after the change, one behind it.
    for dies_at in [5, 10] {
        let (store, config) = small_run(14);
        run_and_move(&store, &config, Some(dies_at));
        let (whole, _) = whole_run(&recorded(&store));
        // Whoever resumes may know nothing of the change.
        assert_eq!(run(&store, &config, true, None).0.unwrap(), Ended::Finished);
        assert_eq!(told(&store), told(&whole), "died at {dies_at}");
        assert_eq!(weights(&store, 14), weights(&whole, 14));
    }
}

#[test]
fn another_change_than_the_recorded_one_is_refused_on_resume() {
    cpu();
    let (store, mut config) = small_run(6);
    run(&store, &config, false, Some(2)).0.unwrap();
    config.mix_changes = vec![smolforge_engine::data::MixChange { step: 4, stage: 3, weights: shares([("code", 1.0)]) }];
    let error = run(&store, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("another mix_changes"), "{error}");
}

#[test]
fn what_cannot_be_moved_is_told_and_changes_nothing() {
    cpu();
    let (store, config) = small_run(8);
    let (whole, _) = whole_run(&config);
    let engine = Engine::start(store.clone());
    let train = engine.send(Command::Train { config: Box::new(config.clone()), resume: false });
    let second = engine.send(Command::Train { config: Box::new(config), resume: false });
    let asks = [
        (9, shares([("code", 1.0)])),
        (0, shares([("code", 1.0)])),
        (4, shares([("cdoe", 1.0)])),
        (4, shares([("code", -1.0)])),
        (4, shares([("code", 0.0)])),
    ];
    let (mut warnings, mut waits) = (Vec::new(), Vec::new());
    loop {
        let (job, event) = block_on(engine.next()).unwrap();
        match event {
            Event::Step(report) if report.step == 3 => {
                asks.iter().for_each(|(stage, weights)| engine.tell(train, Command::Reweight { stage: *stage, weights: weights.clone() }));
                engine.tell(second, Command::Reweight { stage: 4, weights: shares([("code", 1.0)]) });
            }
            Event::Notice { warning: true, text } if job == train => warnings.push(text),
            Event::Notice { warning: true, text } => waits.push(text),
            Event::Reweighted { .. } => panic!("nothing may change"),
            Event::Failed { error, .. } if job == train => panic!("{error}"),
            Event::Done { .. } if job == train => break,
            _ => {}
        }
    }
    let words = ["no stage 9", "ends at step", "did you mean \"code\"", "is -1", "sum to 0"];
    assert_eq!(warnings.len(), words.len(), "{warnings:?}");
    for (warning, word) in warnings.iter().zip(words) {
        assert!(warning.contains(word) && warning.contains("stay as they are"), "{warning}");
    }
    assert!(waits.len() == 1 && waits[0].contains("waits for its turn"), "{waits:?}");
    assert_eq!(weights(&store, 8), weights(&whole, 8));
    assert!(recorded(&store).mix_changes.is_empty());
}
