//! The demos that fine-tune and reason: stopped anywhere, the same command goes on with them.

use futures_lite::future::{block_on, or};
use smolforge_engine::control::Control;
use smolforge_engine::error::Result;
use smolforge_engine::protocol::{DeviceChoice, Event};
use smolforge_engine::store::Store;
use smolforge_engine::tasks::demo;
use smolforge_engine::train::Ended;
use smolforge_tests::cpu;

type Told = Result<(Ended, Vec<String>)>;

/// Runs the demo that fine-tunes until an event; what it says at its end, and all events.
fn run(store: &Store, seed: u64, until: impl Fn(&Event) -> bool) -> (Told, Vec<Event>) {
    watched(async |control| demo::finetune::run("d", DeviceChoice::Cpu, seed, [5, 1], store, control).await, until)
}

fn watched(demo: impl AsyncFnOnce(&Control) -> Told, until: impl Fn(&Event) -> bool) -> (Told, Vec<Event>) {
    let (control, signals, events) = Control::connect();
    let job = async { Some(demo(&control).await) };
    let mut seen = Vec::new();
    let watching = async {
        while let Ok((_, event)) = events.recv().await {
            if until(&event) {
                signals.stop();
            }
            seen.push(event);
        }
        None
    };
    let ended = block_on(or(job, watching)).unwrap();
    seen.extend(std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event));
    (ended, seen)
}

fn asks(event: &Event) -> bool {
    matches!(event, Event::Notice { text, .. } if text.starts_with("asking the base"))
}

/// The steps after which runs went on.
fn begun(events: &[Event]) -> Vec<u32> {
    events.iter().filter_map(|event| if let Event::Run(run) = event { Some(run.step) } else { None }).collect()
}

#[test]
fn a_stopped_demo_goes_on_by_the_same_command() {
    cpu();
    let store = Store::memory();
    let hint = "stopped; go on with: smolforge demo --finetune --out d --device cpu --seed 7 --steps 5 --updates 1";
    let stopped = |(ended, events): (Told, Vec<Event>)| {
        assert_eq!(ended.unwrap(), (Ended::Stopped, vec![hint.to_string()]));
        events
    };
    let events = stopped(run(&store, 7, |event| matches!(event, Event::Step(_))));
    assert_eq!(begun(&events), [0]);
    let events = stopped(run(&store, 7, asks));
    assert!(matches!(begun(&events).as_slice(), [1..5]), "the base goes on: {:?}", begun(&events));
    let rows = block_on(store.read("d/rows/train.jsonl")).unwrap().to_vec();

    // The base is whole: what is left is to ask, and to learn.
    let events = stopped(run(&store, 7, asks));
    assert!(begun(&events).is_empty() && events.iter().any(asks));
    assert!(!events.iter().any(|event| matches!(event, Event::Wrote { .. })));
    assert_eq!(*block_on(store.read("d/rows/train.jsonl")).unwrap(), *rows);

    let refused = |seed| run(&store, seed, |_| false).0.unwrap_err().to_string();
    let error = refused(8);
    assert!(error.contains("begun with another seed"), "{error}");
    block_on(store.write("d/answers.json", b"{}")).unwrap();
    let error = refused(7);
    assert!(error.contains("this demo has ended") && error.contains("another --out"), "{error}");
}

#[test]
fn a_stopped_demo_of_a_task_goes_on_by_the_same_command() {
    cpu();
    let store = Store::memory();
    let run = |seed, until: fn(&Event) -> bool| {
        watched(async |control| demo::task::run("d", DeviceChoice::Cpu, seed, 5, &store, control).await, until)
    };
    let stopped = |until| {
        let (ended, events) = run(7, until);
        let hint = "stopped; go on with: smolforge demo --task --out d --device cpu --seed 7 --steps 5";
        assert_eq!(ended.unwrap(), (Ended::Stopped, vec![hint.to_string()]));
        events
    };
    let texts =
        |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Wrote { what, .. } if what.starts_with("text"))).count();
    let models = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Step(step) if step.step == 5)).count();
    assert!(texts(&stopped(|event| matches!(event, Event::Wrote { .. }))) < 5);
    let events = stopped(|event| matches!(event, Event::Step(_)));
    assert_eq!((texts(&events), models(&events)), (5, 0));

    // Both models are made, then the first task asks its first questions.
    let events = stopped(|event| matches!(event, Event::Budget(_)));
    assert_eq!((texts(&events), models(&events)), (0, 2));
    let questions = |name: &str| block_on(store.read(&format!("d/seed-7/questions/{name}.json"))).unwrap().to_vec();
    let asked = ["train", "valid"].map(questions);
    let events = stopped(|event| matches!(event, Event::Budget(_)));
    assert_eq!((texts(&events), models(&events)), (0, 0));
    assert_eq!(["train", "valid"].map(questions), asked);

    // As if it had been stopped behind its texts: no model knows the seed.
    for model in ["d/student", "d/teacher"] {
        block_on(store.remove(model)).unwrap();
    }
    let error = run(8, |_| false).0.unwrap_err().to_string();
    assert!(error.contains("begun with another seed; go on with --seed 7"), "{error}");
    block_on(store.write("d/results.json", b"[]")).unwrap();
    let error = run(7, |_| false).0.unwrap_err().to_string();
    assert!(error.contains("this demo has ended") && error.contains("another --out"), "{error}");
}
