//! Reasoned answers: rows as the reference's tokenizer makes them, rollouts that go on, a whole task on a tiny model.

use futures_lite::future::block_on;
use smolforge_engine::config::finetune::{Files, FinetuneConfig, Interval, Method};
use smolforge_engine::config::reason::ReasonConfig;
use smolforge_engine::control::Control;
use smolforge_engine::data::chat::{self, RowFormat};
use smolforge_engine::data::example::{Encoder, LossOn};
use smolforge_engine::protocol::{DeviceChoice, Event, ReasonVerb};
use smolforge_engine::store::Store;
use smolforge_engine::tasks::reason;
use smolforge_engine::tasks::reason::learn::{Lesson, rows};
use smolforge_engine::tasks::reason::questions::Question;
use smolforge_engine::text::tokenizer::Tokenizer;
use smolforge_engine::train::{Ended, finetune};
use smolforge_tests::*;

#[test]
fn rows_have_the_ids_and_masks_of_the_reference() {
    let data = Store::folder("../../shared/data"); // tests run in their package's folder
    let Ok(text) = block_on(data.read_text("unit-conversion/sft_tokenize_reference.json")) else {
        println!("skipped: no unit-conversion/sft_tokenize_reference.json in ../shared/data");
        return;
    };
    let tokenizer = block_on(Tokenizer::load(&data, "smollm2")).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let encoder = Encoder { tokenizer: &tokenizer, template: None, stops: &[end], loss_on: LossOn::Completion, max_length: 128 };
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    for case in reference["cases"].as_array().unwrap() {
        let reasoning = case["answer"].as_str().unwrap().to_string();
        let lesson = if reasoning.starts_with("<answer>") { Lesson::Answers } else { Lesson::Reasoning };
        let text = case["question"].as_str().unwrap().to_string();
        let question = Question { text, answer: case["raw_answer"].as_f64().unwrap(), reasoning: Some(reasoning) };
        let file = chat::read(&rows(&[question], lesson, "f").unwrap(), &RowFormat::default());
        let document = encoder.encode(&file.examples[0]).unwrap().document;
        let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>();
        let (ids, labels) = (numbers("input_ids"), numbers("labels"));
        let used = document.tokens.len();
        assert_eq!(document.tokens.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), ids[..used], "{case}");
        assert!(ids[used..].iter().all(|id| *id == i64::from(end)) && labels[used..].iter().all(|label| *label == -100));
        let learned: Vec<i64> = (0..used).map(|at| if document.is_target(at) { ids[at] } else { -100 }).collect();
        assert_eq!(learned, labels[..used], "{case}");
    }
}

/// A teacher that has learned nothing, four questions for it, and a short example.
fn rollout() -> (Store, ReasonConfig) {
    cpu();
    let store = Store::memory();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = block_on(golden().read(&format!("tiny_llama/{file}"))).unwrap();
        block_on(store.write(&format!("m/{file}"), &bytes)).unwrap();
    }
    let write = |name: &str, text: &str| block_on(store.write(name, text.as_bytes())).unwrap();
    write("q.json", r#"[["2 m in cm?", 200.0], ["3 g in kg?", 0.003], ["4 h in min?", 240.0], ["5?", 5.0]]"#);
    write("shots.json", r#"[["1?", 1.0, "<answer>1</answer>"]]"#);
    let config = ReasonConfig {
        student: "m".into(),
        teacher: "m".into(),
        device: DeviceChoice::Cpu,
        shots: Some("shots.json".into()),
        system: String::new(),
        oversample: 3,
        temperature: 1.0,
        max_new_tokens: 12,
        batch_rows: 2,
        ..ReasonConfig::default()
    };
    (store, config)
}

fn verb(store: &Store, config: &ReasonConfig, control: &Control, out: &str) -> smolforge_engine::Result<(Ended, Vec<String>)> {
    block_on(reason::run(config, ReasonVerb::Rollout { data: "q.json".into(), out: out.into() }, store, control))
}

#[test]
fn a_teacher_that_solves_nothing_ends_with_advice() {
    let (store, config) = rollout();
    let (control, _signals, events) = Control::connect();
    let error = verb(&store, &config, &control, "rft.json").unwrap_err().to_string();
    assert!(error.starts_with("0 % of 4 questions are solved") && error.contains("--shots"), "{error}");
    let funnels = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|(_, event)| match event {
        Event::Funnel(funnel) => Some(funnel),
        _ => None,
    });
    let last = funnels.last().unwrap();
    assert_eq!((last.done, last.samples, last.right, last.pass_at_1, last.eta_secs), (4, 12, 0, 0.0, 0.0));
    assert_eq!(block_on(reason::rollout::rejects("rft.json", &store)).unwrap().len(), 4);
}

#[test]
fn a_rollout_that_was_stopped_goes_on_with_the_same_samples() {
    let samples = |store: &Store, out: &str| {
        let text = block_on(store.read_text(&format!("{out}.samples.jsonl"))).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        lines[1..].sort(); // questions end in no order
        lines
    };
    let (store, config) = rollout();
    assert!(verb(&store, &config, &Control::connect().0, "whole.json").is_err());
    let whole = samples(&store, "whole");
    assert_eq!(whole.len(), 5);
    let (control, signals, events) = Control::connect();
    let part = std::cell::Cell::new(false);
    // Stopped as soon as a question is complete.
    let watched = async {
        while !part.get() {
            smolforge_engine::platform::yield_now().await;
            if let Ok(text) = store.read_text("part.samples.jsonl").await {
                part.set(text.lines().count() > 1);
            }
            while events.try_recv().is_ok() {}
        }
        signals.stop();
        std::future::pending().await
    };
    let config_of_fewer_rows = ReasonConfig { batch_rows: 1, ..config.clone() };
    let run = reason::run(&config_of_fewer_rows, ReasonVerb::Rollout { data: "q.json".into(), out: "part.json".into() }, &store, &control);
    let ended = block_on(futures_lite::future::or(run, watched)).unwrap().0;
    assert_eq!(ended, Ended::Stopped);
    assert!((2..5).contains(&samples(&store, "part").len()));
    assert!(!block_on(store.exists("part.json")));
    assert!(verb(&store, &config, &Control::connect().0, "part.json").is_err());
    assert_eq!(samples(&store, "part"), whole, "neither the stop nor the rows side by side change a sample");
    let other = ReasonConfig { seed: 2, ..config };
    let error = verb(&store, &other, &Control::connect().0, "part.json").unwrap_err().to_string();
    assert!(error.contains("--seed"), "{error}");
}

/// The four questions of [`rollout`] as a teacher learns them by heart, behind the worked example.
fn teach(store: &Store) {
    let row = |question: &str, answer: &str| {
        let turn = |role: &str, text: &str| format!("{{\"role\":\"{role}\",\"content\":\"{text}\"}}");
        let example = turn("user", "1?") + "," + &turn("assistant", "<answer>1</answer>");
        format!("{{\"messages\":[{example},{},{}]}}\n", turn("user", question), turn("assistant", answer))
    };
    let rows = [
        ("2 m in cm?", "<answer>200</answer>"),
        ("3 g in kg?", "<answer>0.003</answer>"),
        ("4 h in min?", "<answer>240</answer>"),
        ("5?", "I do not know"),
    ];
    let rows: String = rows.into_iter().map(|(question, answer)| row(question, answer)).collect();
    block_on(store.write("rows.jsonl", rows.as_bytes())).unwrap();
    block_on(store.write("m/generation_config.json", br#"{"eos_token_id": [0, 2]}"#)).unwrap();
    let config = FinetuneConfig {
        model_name: "m".into(),
        train_file: Files(vec!["rows.jsonl".into()]),
        validation_split: 0.0,
        output_dir: "t".into(),
        device: DeviceChoice::Cpu,
        method: Method::Full,
        max_seq_length: 128,
        per_device_train_batch_size: 4,
        max_steps: 150,
        learning_rate: 3e-3,
        gradient_checkpointing: false,
        logging_steps: 50,
        eval_strategy: Interval::No,
        save_strategy: Interval::No,
        sample_tokens: 0,
        ..FinetuneConfig::default()
    };
    block_on(finetune::run(&config, false, store, &Control::connect().0)).unwrap();
}

#[test]
fn a_task_runs_to_its_bundle_and_then_is_done() {
    let (store, config) = rollout();
    teach(&store);
    let config = ReasonConfig {
        teacher: "t".into(),
        out: "task".into(),
        train_file: Some("q.json".into()),
        valid_file: Some("q.json".into()),
        temperature: 0.1,
        max_new_tokens: 24,
        sft_epochs: 2.0,
        rft_epochs: 2.0,
        ..config
    };
    let run = |config: &ReasonConfig| {
        let (control, _signals, events) = Control::connect();
        let ended = block_on(reason::run(config, ReasonVerb::Run, &store, &control));
        (ended, std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect::<Vec<_>>())
    };
    let (ended, events) = run(&config);
    let (ended, hints) = ended.unwrap();
    assert_eq!(ended, Ended::Finished, "{hints:?}");
    let funnel = events.iter().rev().find_map(|event| if let Event::Funnel(funnel) = event { Some(funnel) } else { None }).unwrap();
    assert_eq!((funnel.done, funnel.solved, funnel.kept), (4, 3, 3), "{funnel:?}");
    let grade = events.iter().rev().find_map(|event| if let Event::Graded(grade) = event { Some(grade) } else { None }).unwrap();
    assert_eq!((grade.cases.len(), grade.points()), (5, 100));
    for file in [
        "results.json",
        "rft.json",
        "rft.rejects.json",
        "sft/adapter/adapter_model.safetensors",
        "rft/report.html",
        "submission.zip",
        "report.html",
    ] {
        assert!(block_on(store.exists(&format!("task/{file}"))), "{file}");
    }
    let oddities = events.iter().any(|event| matches!(event, Event::Notice { warning: true, text } if text.contains("4 of the questions")));
    assert!(oddities, "the files are the same");
    let (again, told) = run(&config);
    assert_eq!(again.unwrap().0, Ended::Finished);
    assert!(told.iter().any(|event| matches!(event, Event::Graded(_))) && !told.iter().any(|event| matches!(event, Event::Step(_))));
    let other = run(&ReasonConfig { oversample: 2, ..config.clone() }).0.unwrap_err().to_string();
    assert!(other.starts_with("--oversample is 2, ") && other.contains("remove task/rft.json and task/rft to"), "{other}");
    let smaller = ReasonConfig { sft_r: 4, max_zip_mb: 45.0, ..config };
    let other = run(&smaller).0.unwrap_err().to_string();
    assert!(other.starts_with("--sft-r is 4, ") && other.contains("remove task/sft to"), "{other}");
    for gone in ["task/sft", "task/rft.rejects.json"] {
        block_on(store.remove(gone)).unwrap();
    }
    let (anew, told) = run(&smaller);
    assert_eq!(anew.unwrap().0, Ended::Finished);
    let trained = |event: &&Event| matches!(event, Event::Run(run) if run.path == "task/sft" || run.path == "task/rft");
    assert_eq!(told.iter().filter(trained).count(), 1, "answers are learned anew, reasoning is not");
}

#[test]
fn questions_that_are_there_are_never_replaced() {
    let store = Store::memory();
    let make = |seed: u64| {
        let config = ReasonConfig { seed, train_questions: 5, valid_questions: 3, ..ReasonConfig::default() };
        block_on(reason::run(&config, ReasonVerb::MakeData { out: "d".into() }, &store, &Control::connect().0))
    };
    make(1).unwrap();
    let first = block_on(store.read_text("d/train.json")).unwrap();
    make(1).unwrap();
    let error = make(2).unwrap_err().to_string();
    assert!(error.starts_with("d/train.json: ") && error.contains("remove it or choose another --out"), "{error}");
    assert_eq!(block_on(store.read_text("d/train.json")).unwrap(), first);
}
