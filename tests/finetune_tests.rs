//! Fine-tuning runs: what they learn, what they leave, and that a stopped one is the one that never stopped.

use futures_lite::future::block_on;
use smolforge_engine::Error;
use smolforge_engine::config::finetune::{BadRows, Files, FinetuneConfig, Interval, Method, Metric, Optim, Targets};
use smolforge_engine::control::Control;
use smolforge_engine::model::Adapter;
use smolforge_engine::protocol::{
    AdapterChoice, AnswersRequest, DeviceChoice, Event, ExportDtype, GenerateRequest, Message, Sampling, StepReport,
};
use smolforge_engine::store::Store;
use smolforge_engine::tasks::{answers, describe, inspect, merge};
use smolforge_engine::train::{Ended, checkpoint, finetune, runs};
use smolforge_engine::{data::example::LossOn, generate};
use smolforge_tests::*;

/// A tiny chat model and rows of two tasks that it can learn by heart.
fn small() -> (Store, FinetuneConfig) {
    cpu();
    let store = Store::memory();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = block_on(golden().read(&format!("tiny_llama/{file}"))).unwrap();
        block_on(store.write(&format!("base/{file}"), &bytes)).unwrap();
    }
    // Its template ends turns with <|im_end|>.
    block_on(store.write("base/generation_config.json", br#"{"eos_token_id": [0, 2]}"#)).unwrap();
    let row = |task: &str, question: &str, answer: &str| {
        let ask = format!("[{task}] {question}");
        serde_json::json!({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}).to_string()
    };
    let mut rows = Vec::new();
    for i in 0..12 {
        rows.push(row("SPEC", &format!("part {i}?"), &format!("{} mm", i % 3)));
        rows.push(row("STEPS", &format!("part {i}?"), "1. Open it."));
    }
    block_on(store.write("train.jsonl", rows.join("\n").as_bytes())).unwrap();
    block_on(store.write("val.jsonl", rows[..6].join("\n").as_bytes())).unwrap();
    let config = FinetuneConfig {
        model_name: "base".into(),
        train_file: Files(vec!["train.jsonl".into()]),
        validation_file: Files(vec!["val.jsonl".into()]),
        output_dir: "runs/tuned".into(),
        device: DeviceChoice::Cpu,
        max_seq_length: 100,
        r: 8,
        lora_dropout: 0.1,
        per_device_train_batch_size: 3,
        gradient_accumulation_steps: 2,
        learning_rate: 2e-2,
        num_epochs: 3.0,
        logging_steps: 1,
        sample_tokens: 4,
        save_total_limit: 9,
        ..FinetuneConfig::default()
    };
    (store, config)
}

/// Runs; stops after a step.
fn run(store: &Store, config: &FinetuneConfig, resume: bool, stop_after: Option<u32>) -> (Result<Ended, Error>, Vec<Event>) {
    let (control, signals, events) = Control::connect();
    let job = async { Some(finetune::run(config, resume, store, &control).await.map(|(ended, _)| ended)) };
    let mut seen = Vec::new();
    let watching = async {
        while let Ok((_, event)) = events.recv().await {
            if matches!(&event, Event::Step(report) if Some(report.step) == stop_after) {
                signals.stop();
            }
            seen.push(event);
        }
        None
    };
    let ended = block_on(futures_lite::future::or(job, watching)).unwrap();
    seen.extend(std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event));
    (ended, seen)
}

fn steps(events: &[Event]) -> Vec<&StepReport> {
    events.iter().filter_map(|event| if let Event::Step(report) = event { Some(report) } else { None }).collect()
}

fn numbers_of(events: &[Event]) -> Vec<(u32, u64)> {
    steps(events).into_iter().map(|report| (report.step, report.loss.to_bits())).collect()
}

fn bytes(store: &Store, name: &str) -> Vec<u8> {
    block_on(store.read(name)).unwrap().to_vec()
}

/// The error of a run that does not begin; nothing must be left of it.
#[track_caller]
fn refused(change: impl FnOnce(&mut FinetuneConfig, &Store), expect: &str) {
    let (store, mut config) = small();
    change(&mut config, &store);
    let error = run(&store, &config, false, None).0.unwrap_err().to_string();
    assert!(error.contains(expect), "{error}");
    assert!(!error.contains('\n'), "{error}");
    assert!(!block_on(store.exists("runs/tuned/config.yaml")), "{error}: a run was left");
}

#[test]
fn a_stopped_and_resumed_fine_tuning_is_the_one_that_never_stopped() {
    for (method, optim, packing) in
        [(Method::Lora, Optim::Adamw, false), (Method::Qlora, Optim::PagedAdamw8bit, true), (Method::Full, Optim::Adamw8bit, false)]
    {
        let change = |config: FinetuneConfig| FinetuneConfig { method, optim, packing, ..config };
        let (whole_store, config) = small();
        let config = change(config);
        let (ended, whole) = run(&whole_store, &config, false, None);
        assert_eq!(ended.unwrap(), Ended::Finished);
        let (count, first) = (steps(&whole).len() as u32, steps(&whole)[0].loss);
        assert_eq!(count, 12, "24 rows, 6 an update, 3 epochs");
        let last = steps(&whole)[count as usize - 1].loss;
        assert!(last < 0.7 * first, "{method:?}: loss {first} to {last}");
        for stop in [1, 4, 7] {
            let (store, _) = small();
            let (ended, begun) = run(&store, &config, false, Some(stop));
            assert_eq!(ended.unwrap(), Ended::Stopped);
            let resumed = FinetuneConfig { gradient_checkpointing: false, ..config.clone() };
            // Asked for with other words that change nothing, or with none at all.
            let resumed = if stop == 4 { FinetuneConfig { train_file: Files::default(), ..resumed } } else { config.clone() };
            let (ended, rest) = run(&store, &resumed, true, None);
            assert_eq!(ended.unwrap(), Ended::Finished);
            let both: Vec<_> = numbers_of(&begun).into_iter().chain(numbers_of(&rest)).collect();
            assert_eq!(both, numbers_of(&whole), "{method:?} stopped at {stop}");
            let (what, file) = if method == Method::Full { ("model", "model") } else { ("adapter", "adapter_model") };
            let name = format!("runs/tuned/{what}/{file}.safetensors");
            assert_eq!(bytes(&store, &name), bytes(&whole_store, &name));
            let moments = format!("{}/optimizer.safetensors", checkpoint::folder("runs/tuned", 12));
            assert_eq!(bytes(&store, &moments), bytes(&whole_store, &moments));
        }
    }
}

#[test]
fn a_run_tells_what_every_task_has_learned_and_ends_with_the_best() {
    let (store, mut config) = small();
    config.load_best_model_at_end = true;
    config.metric_for_best_model = Metric::Accuracy;
    config.task_prefix_format = Some("[{TASK}] {instruction}".into());
    let (ended, events) = run(&store, &config, false, None);
    ended.unwrap();
    let evaluated: Vec<_> = events.iter().filter(|event| matches!(event, Event::Evaluated { .. })).collect();
    assert_eq!(evaluated.len(), 3, "after every epoch");
    let Event::Evaluated { loss, sources, .. } = evaluated[2] else { panic!() };
    assert_eq!(sources.keys().collect::<Vec<_>>(), ["spec", "steps"]);
    let tokens: u64 = sources.values().map(|score| score.tokens).sum();
    let mean = sources.values().map(|score| score.loss * score.tokens as f64).sum::<f64>() / tokens as f64;
    assert!((loss - mean).abs() < 1e-12 && sources["spec"].accuracy.unwrap() > 0.2, "{sources:?}");
    assert!(steps(&events)[0].source_loss.contains_key("steps"));
    let samples: Vec<_> =
        events.iter().filter_map(|event| if let Event::Sample { prompt, .. } = event { Some(prompt) } else { None }).collect();
    assert_eq!(samples.len(), 6, "a question of every task after every epoch");
    assert!(samples[0].starts_with("[SPEC] part") && samples[1].starts_with("[STEPS]"), "{samples:?}");
    let best = events.iter().rev().find_map(|event| match event {
        Event::Evaluated { step, best: true, .. } => Some(*step),
        _ => None,
    });
    let checkpoint = format!("{}/adapter_model.safetensors", checkpoint::folder("runs/tuned", best.unwrap()));
    assert_eq!(bytes(&store, "runs/tuned/adapter/adapter_model.safetensors"), bytes(&store, &checkpoint));
    for file in ["adapter/tokenizer.json", "adapter/tokenizer_config.json", "report.html", "finetune.yaml", "config.yaml"] {
        assert!(block_on(store.exists(&format!("runs/tuned/{file}"))), "{file}");
    }
    let (frozen, notes) = FinetuneConfig::from_yaml(&block_on(store.read_text("runs/tuned/finetune.yaml")).unwrap()).unwrap();
    assert!(frozen.date.is_some() && notes.is_empty(), "{notes:?}");
}

#[test]
fn a_merged_model_says_what_the_model_with_its_adapter_says() {
    let (store, config) = small();
    run(&store, &config, false, None).0.unwrap();
    let choice = |path: &str, strength| vec![AdapterChoice { path: path.into(), strength }];
    let (control, _, events) = Control::connect();
    let tuned = choice("runs/tuned/adapter", 1.0);
    block_on(merge::run("base", &tuned, "merged", ExportDtype::F32, &store, &control)).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(block_on(store.exists(&format!("merged/{file}"))), "{file}");
    }
    let say = |model: &str, adapters: Vec<AdapterChoice>| {
        let request = GenerateRequest {
            model: model.into(),
            adapters,
            messages: vec![Message::new("user", "[SPEC] part 4?")],
            device: DeviceChoice::Cpu,
            max_new_tokens: 12,
            sampling: Sampling { greedy: true, ..Sampling::default() },
            ..GenerateRequest::default()
        };
        block_on(generate::run(&request, &generate::Loaded::default(), &store, &control)).unwrap();
        let all = std::iter::from_fn(|| events.try_recv().ok());
        all.filter_map(|(_, event)| if let Event::Generated { text, .. } = event { Some(text) } else { None }).last().unwrap()
    };
    let (tuned, base) = (say("base", choice("runs/tuned/adapter", 1.0)), say("base", Vec::new()));
    assert_ne!(tuned, base);
    assert_eq!(say("merged", Vec::new()), tuned);
    assert_eq!(say("base", choice("runs/tuned/adapter", 0.0)), base);
    let half = [choice("runs/tuned/adapter", 0.5), choice("runs/tuned/adapter", 0.5)].concat();
    assert_eq!(say("base", half), tuned, "halves make a whole");
    let one = choice("runs/tuned/adapter", 1.0);
    assert!(
        block_on(merge::run("base", &one, "runs/tuned", ExportDtype::F16, &store, &control))
            .unwrap_err()
            .to_string()
            .contains("holds a run")
    );
}

#[test]
fn answers_are_scored_by_task() {
    let (store, config) = small();
    let config = FinetuneConfig { num_epochs: 20.0, lora_dropout: 0.0, ..config };
    run(&store, &config, false, None).0.unwrap();
    let (control, _, events) = Control::connect();
    let request = AnswersRequest {
        config: FinetuneConfig { train_file: Files(vec!["val.jsonl".into()]), ..config },
        adapters: vec![AdapterChoice { path: "runs/tuned/adapter".into(), strength: 1.0 }],
        device: DeviceChoice::Cpu,
        limit: 4,
        max_new_tokens: 12,
        sampling: Sampling { greedy: true, ..Sampling::default() },
    };
    block_on(answers::run(&request, &store, &control)).unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect();
    let answers = events.iter().filter(|event| matches!(event, Event::Answer(answer) if answer.question.starts_with('['))).count();
    assert_eq!(answers, 4);
    let Some(Event::Matches { tasks }) = events.last() else { panic!("{:?}", events.last()) };
    assert_eq!(tasks["spec"].all() + tasks["steps"].all(), 4);
    assert_eq!(tasks["steps"].exact, 2, "learned by heart: {events:?}");
}

#[test]
fn what_would_teach_something_wrong_does_not_begin() {
    refused(|config, _| config.model_name = "nowhere".into(), "nowhere");
    refused(|config, _| config.train_file = Files(vec!["gone.jsonl".into()]), "gone.jsonl");
    refused(|config, _| config.r = 0, "--r 0");
    refused(|config, _| config.lora_alpha = f64::NAN, "--lora-alpha NaN");
    refused(|config, _| config.target_modules = Targets::Names(vec!["q_porj".into()]), "did you mean q_proj?");
    refused(|config, _| config.target_modules = Targets::Pattern("(".into()), "not a regular expression");
    refused(|config, _| config.target_modules = Targets::Pattern("nothing".into()), "there are down_proj");
    refused(|config, _| config.init_adapter = Some("base".into()), "adapter_config.json");
    refused(|config, _| config.max_seq_length = 12, "its answer begins after the 12 tokens");
    refused(|config, _| config.date = Some("tomorrow".into()), "--date tomorrow");
    let rows =
        |text: &'static str| move |_: &mut FinetuneConfig, store: &Store| block_on(store.write("train.jsonl", text.as_bytes())).unwrap();
    refused(rows(""), "train.jsonl");
    refused(rows("{\"messages\":[]}\n"), "line 1");
    refused(rows("no json\n"), "line 1: not JSON");
    refused(rows("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n"), "line 1");
    refused(
        |config, store| {
            config.bad_rows = BadRows::Refuse;
            let mut text = block_on(store.read_text("train.jsonl")).unwrap();
            text.push_str("\n{\"messages\":1}");
            block_on(store.write("train.jsonl", text.as_bytes())).unwrap();
        },
        "row 25: ",
    );
}

#[test]
fn bad_rows_are_counted_and_left_out() {
    let (store, mut config) = small();
    let text = block_on(store.read_text("train.jsonl")).unwrap();
    block_on(store.write("train.jsonl", format!("{text}\nbroken\n{{}}\n").as_bytes())).unwrap();
    (config.max_steps, config.eval_strategy) = (1, Interval::No);
    let (ended, events) = run(&store, &config, false, None);
    ended.unwrap();
    let warned = events.iter().any(|event| matches!(event, Event::Notice { warning: true, text } if text.contains("2 of the training rows cannot be used") && text.contains("rows 25, 26")));
    assert!(warned, "{events:?}");
}

#[test]
fn what_is_not_held_out_is_told() {
    let (store, config) = small();
    let told = |config: &FinetuneConfig, part: &str| {
        let (ended, events) = run(&store, config, false, None);
        ended.unwrap();
        let told = events.iter().any(|event| matches!(event, Event::Notice { warning: false, text } if text.contains(part)));
        assert!(told, "{part}: {events:?}");
    };
    let config = FinetuneConfig { max_steps: 1, max_seq_length: 999, ..config };
    told(&config, "--max-seq-length 999: the model's context of 128 tokens is the limit");
    let named = |out: &str| FinetuneConfig { output_dir: out.into(), ..config.clone() };
    told(&FinetuneConfig { validation_file: Files::default(), validation_split: 0.01, ..named("runs/none") }, "holds out none of 24 rows");
    let text = block_on(store.read_text("val.jsonl")).unwrap();
    let first = text.lines().next().unwrap();
    block_on(store.write("val.jsonl", first.as_bytes())).unwrap();
    told(&named("runs/some"), "no rows of steps are held out");
}

/// Warnings of a run.
fn warnings(events: &[Event]) -> Vec<&str> {
    events.iter().filter_map(|event| if let Event::Notice { warning: true, text } = event { Some(text.as_str()) } else { None }).collect()
}

fn add_row(store: &Store, file: &str, first: bool, row: &str) {
    let text = block_on(store.read_text(file)).unwrap();
    let text = if first { format!("{row}\n{text}") } else { format!("{text}\n{row}") };
    block_on(store.write(file, text.as_bytes())).unwrap();
}

#[test]
fn rows_of_several_files_are_told_by_their_file() {
    let (store, mut config) = small();
    block_on(store.write("more.jsonl", bytes(&store, "train.jsonl").as_slice())).unwrap();
    add_row(&store, "more.jsonl", false, "{\"messages\": []}");
    (config.train_file, config.max_steps) = (Files(vec!["train.jsonl".into(), "more.jsonl".into()]), 1);
    let (ended, events) = run(&store, &config, false, None);
    ended.unwrap();
    assert!(warnings(&events).iter().any(|text| text.contains("row more.jsonl:25: ")), "{:?}", warnings(&events));
}

#[test]
fn rows_that_cannot_be_asked_end_no_run() {
    let (store, mut config) = small();
    let template = "{% for m in messages %}{% if loop.first and m.role != 'user' %}{{ raise_exception('the user begins') }}{% endif %}\
                    <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    block_on(store.write("own.jinja", template.as_bytes())).unwrap();
    // Both are the first of their task: one is refused by the template, the other loses its answer to the limit.
    add_row(
        &store,
        "val.jsonl",
        true,
        r#"{"messages": [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "meta": {"task": "spec"}}"#,
    );
    let long = format!("[STEPS] {}", "much longer ".repeat(100));
    let row = serde_json::json!({"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "1 mm"}]});
    add_row(&store, "val.jsonl", true, &row.to_string());
    (config.chat_template, config.max_steps, config.eval_strategy, config.eval_steps) = (Some("own.jinja".into()), 2, Interval::Steps, 1);
    let (ended, events) = run(&store, &config, false, None);
    assert_eq!(ended.unwrap(), Ended::Finished);
    let told = warnings(&events);
    assert!(told.iter().any(|text| text.contains("2 of the validation rows cannot be used") && text.contains("rows 1, 2")), "{told:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Sample { .. })), "the others are asked");
    let request = AnswersRequest {
        config: FinetuneConfig { train_file: Files(vec!["val.jsonl".into()]), ..config },
        adapters: vec![AdapterChoice { path: "runs/tuned/adapter".into(), strength: 1.0 }],
        device: DeviceChoice::Cpu,
        limit: 99,
        max_new_tokens: 4,
        sampling: Sampling { greedy: true, ..Sampling::default() },
    };
    let (control, _, _) = Control::connect();
    let matches = block_on(answers::run(&request, &store, &control)).unwrap().unwrap();
    assert_eq!(matches.values().map(|task| task.all()).sum::<u64>(), 6, "the good rows are asked");
}

#[test]
fn what_cannot_be_used_is_never_held_out() {
    let (store, config) = small();
    for seed in 0..4 {
        let text = block_on(store.read_text("train.jsonl")).unwrap();
        let rows: Vec<&str> = text.lines().take(3).collect();
        let long = serde_json::json!({"messages": [{"role": "user", "content": "much longer ".repeat(100)}, {"role": "assistant", "content": "1 mm"}]});
        block_on(store.write("few.jsonl", format!("{}\n{}", rows.join("\n"), long).as_bytes())).unwrap();
        let config = FinetuneConfig {
            train_file: Files(vec!["few.jsonl".into(), String::new()]), // as a form with an empty line has it
            validation_file: Files(vec![String::new()]),
            validation_split: 0.25,
            max_steps: 1,
            output_dir: format!("runs/few-{seed}"),
            seed,
            ..config.clone()
        };
        let (ended, events) = run(&store, &config, false, None);
        assert_eq!(ended.unwrap(), Ended::Finished);
        assert!(events.iter().any(|event| matches!(event, Event::Evaluated { .. })));
    }
    let (_, many) = small();
    let error = run(&store, &FinetuneConfig { max_steps: 1_000_000_000, ..many }, false, None).0.unwrap_err().to_string();
    assert!(error.contains("--max-steps 1000000000: 250000000 passes"), "{error}");
}

#[test]
fn files_may_be_larger_than_a_configuration() {
    let (store, mut config) = small();
    let mut text = block_on(store.read_text("train.jsonl")).unwrap();
    for _ in 0..5 {
        text.push('\n');
        text.extend(std::iter::repeat_n('x', 14 << 20));
    }
    block_on(store.write("train.jsonl", text.as_bytes())).unwrap();
    config.max_steps = 1;
    let (ended, events) = run(&store, &config, false, None);
    ended.unwrap();
    assert!(warnings(&events).iter().any(|text| text.contains("5 of the training rows cannot be used")));
}

#[test]
fn a_run_is_not_resumed_with_other_data_or_settings() {
    let (store, config) = small();
    run(&store, &config, false, Some(2)).0.unwrap();
    let other = FinetuneConfig { learning_rate: 1e-3, ..config.clone() };
    assert!(run(&store, &other, true, None).0.unwrap_err().to_string().contains("another learning_rate"));
    let text = block_on(store.read_text("train.jsonl")).unwrap();
    block_on(store.write("train.jsonl", text.replacen("1. Open it.", "1. Shut it.", 1).as_bytes())).unwrap();
    let error = run(&store, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("the data is not the one"), "{error}");
    block_on(store.write("train.jsonl", text.as_bytes())).unwrap();
    let weights = block_on(store.read("base/model.safetensors")).unwrap().to_vec();
    let mut trained = weights.clone();
    *trained.last_mut().unwrap() ^= 1;
    let middle = trained.len() / 8 * 4;
    trained[middle] ^= 1;
    block_on(store.write("base/model.safetensors", &trained)).unwrap();
    let error = run(&store, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("the base model is not the one"), "{error}");
    block_on(store.write("base/model.safetensors", &weights)).unwrap();
    assert_eq!(run(&store, &config, true, None).0.unwrap(), Ended::Finished);
    assert!(run(&store, &config, false, None).0.unwrap_err().to_string().contains("there is a run already"));
}

#[test]
fn an_adapter_of_another_model_is_refused_by_name() {
    let (store, config) = small();
    run(&store, &config, false, Some(1)).0.unwrap();
    let folder = checkpoint::folder("runs/tuned", 1);
    let mut adapter = block_on(Adapter::load(&store, &folder)).unwrap();
    let pair = adapter.pairs.remove("model.layers.1.mlp.up_proj").unwrap();
    adapter.pairs.insert("model.layers.7.mlp.up_proj".into(), pair);
    block_on(adapter.save(&store, "other")).unwrap();
    let (control, _, _) = Control::connect();
    let choice = [AdapterChoice { path: "other".into(), strength: 1.0 }];
    let error = block_on(merge::run("base", &choice, "merged", ExportDtype::F16, &store, &control)).unwrap_err().to_string();
    assert!(error.contains("model.layers.7.mlp.up_proj, which this model does not have") && error.contains("\"base\""), "{error}");
}

#[test]
fn the_x_ray_shows_what_is_learned() {
    let (store, mut config) = small();
    let (control, _, events) = Control::connect();
    block_on(inspect::run(&config, 1, 2, None, &store, &control)).unwrap();
    let all: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect();
    let learned = |event: &Event| match event {
        Event::Example(example) => {
            let text = example.pieces.iter().filter(|piece| piece.is_target).map(|piece| piece.text.as_str()).collect::<String>();
            Some((example.row.clone(), text))
        }
        _ => None,
    };
    let shown: Vec<_> = all.iter().filter_map(learned).collect();
    assert_eq!(shown, [("2".to_string(), "1. Open it.<|im_end|>".to_string()), ("3".to_string(), "1 mm<|im_end|>".to_string())]);
    assert!(matches!(&all[0], Event::Progress { .. } | Event::Preflight(_)));
    config.loss_on = LossOn::All;
    block_on(inspect::run(&config, 0, 9, Some("4"), &store, &control)).unwrap();
    let all: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect();
    let shown: Vec<_> = all.iter().filter_map(learned).collect();
    let nameless = FinetuneConfig { train_file: Files(vec![" ".into()]), ..config };
    let error = block_on(inspect::run(&nameless, 0, 9, Some("4"), &store, &control)).unwrap_err().to_string();
    assert_eq!(error, "no rows: name a JSONL file");
    assert_eq!(shown.len(), 1);
    assert!(shown[0].0 == "4" && shown[0].1.starts_with("<|im_start|>system"), "{shown:?}");
}

#[test]
fn the_x_ray_shows_what_is_cut_off() {
    let (store, config) = small();
    let (control, _, events) = Control::connect();
    let shown = |config: &FinetuneConfig| {
        let _ = block_on(inspect::run(config, 0, 1, None, &store, &control)); // cut rows may be refused
        let told = std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event);
        told.filter_map(|event| if let Event::Example(example) = event { Some(example) } else { None }).next().unwrap()
    };
    let whole = shown(&config);
    assert_eq!((whole.cut.len(), whole.lost_tokens), (0, 0));
    let kept = whole.pieces.len() - 2;
    let cut = shown(&FinetuneConfig { max_seq_length: kept, ..config });
    assert_eq!((cut.pieces.len(), cut.cut.len(), cut.lost_tokens), (kept, 2, 2));
    assert_eq!([cut.pieces, cut.cut].concat(), whole.pieces);
}

#[test]
fn a_model_is_described_and_its_runs_are_known_as_what_they_are() {
    let (store, config) = small();
    let (control, _, events) = Control::connect();
    block_on(describe::run("base", &[], &store, &control)).unwrap();
    let Some(Event::Described(model)) = events.try_recv().ok().map(|(_, event)| event) else { panic!("nothing was told") };
    assert!(model.has_chat && model.has_template);
    assert_eq!(model, serde_json::from_str(&serde_json::to_string(&model).unwrap()).unwrap());
    assert!(block_on(describe::run(" ", &[], &store, &control)).is_err());
    let no_adapter = [AdapterChoice { path: "base".into(), strength: 1.0 }];
    let error = block_on(describe::run("base", &no_adapter, &store, &control)).unwrap_err().to_string();
    assert!(error.contains("base/adapter_config.json"), "{error}");
    run(&store, &config, false, Some(3)).0.unwrap();
    let list = || block_on(runs::list(&store, "runs", &Default::default())).remove(0);
    let listed = list();
    assert_eq!(listed.adapter.as_deref(), Some("runs/tuned/step_000003"), "the newest, as long as it has not ended");
    run(&store, &FinetuneConfig { output_dir: "runs/tuned".into(), ..FinetuneConfig::default() }, true, None).0.unwrap();
    let listed = list();
    assert_eq!(listed.adapter.as_deref(), Some("runs/tuned/adapter"));
    assert!(listed.has_adapters() && listed.tuning.as_ref().is_some_and(|tuning| tuning.train_file == config.train_file && tuning.r == 8));
    let error = block_on(describe::run("runs/tuned", &[], &store, &control)).unwrap_err().to_string();
    assert_eq!(error, "runs/tuned: holds an adapter, which needs its base: --model base --adapter runs/tuned");
    // The figure that a form shows is what was written.
    let adapter = block_on(Adapter::load(&store, "runs/tuned")).err().map(|_| ());
    assert!(adapter.is_some(), "a run is no adapter by itself");
    let written = block_on(Adapter::load(&store, "runs/tuned/adapter")).unwrap();
    let asked = finetune::adapter(&config);
    assert_eq!(asked.parameters(&model.shape).unwrap(), written.parameters());
    let size = block_on(store.open("runs/tuned/adapter/adapter_model.safetensors")).unwrap().size_bytes();
    let header = size - asked.size_bytes(&model.shape).unwrap();
    assert!(header > 8 && header < 16 << 10, "{header} bytes besides the tensors");
}

#[test]
fn an_adapter_that_is_continued_keeps_its_rank_and_scale() {
    let (store, config) = small();
    run(&store, &config, false, None).0.unwrap();
    let first = block_on(Adapter::load(&store, "runs/tuned/adapter")).unwrap();
    let next = FinetuneConfig {
        init_adapter: Some("runs/tuned/adapter".into()),
        output_dir: "runs/next".into(),
        r: 2,
        lora_alpha: 1.0,
        max_steps: 2,
        ..config
    };
    let (ended, events) = run(&store, &next, false, None);
    ended.unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Notice { warning: true, text } if text.contains("its own r 8"))));
    let again = block_on(Adapter::load(&store, "runs/next/adapter")).unwrap();
    assert_eq!((again.config.r, again.config.alpha), (first.config.r, first.config.alpha));
    assert_ne!(again.pairs, first.pairs);
}

#[test]
fn nothing_is_scored_or_saved_that_was_not_asked_for() {
    let (store, mut config) = small();
    (config.eval_strategy, config.save_strategy) = (Interval::No, Interval::No);
    let (ended, events) = run(&store, &config, false, None);
    ended.unwrap();
    assert!(!events.iter().any(|event| matches!(event, Event::Evaluated { .. } | Event::Sample { .. })));
    assert_eq!(block_on(checkpoint::steps(&store, "runs/tuned")).unwrap(), [12]);

    let (store, mut config) = small();
    (config.eval_strategy, config.eval_steps) = (Interval::Steps, 5);
    (config.save_strategy, config.save_steps) = (Interval::Steps, 3);
    let (ended, events) = run(&store, &config, false, None);
    ended.unwrap();
    let evaluated: Vec<u32> =
        events.iter().filter_map(|event| if let Event::Evaluated { step, .. } = event { Some(*step) } else { None }).collect();
    assert_eq!(evaluated, [5, 10]);
    assert_eq!(block_on(checkpoint::steps(&store, "runs/tuned")).unwrap(), [3, 6, 9, 12]);
}

#[test]
fn adapters_of_different_models_are_not_mixed() {
    let (store, config) = small();
    run(&store, &config, false, Some(1)).0.unwrap();
    let mut adapter = block_on(Adapter::load(&store, "runs/tuned/step_000001")).unwrap();
    for pair in adapter.pairs.values_mut() {
        let [r, inputs, out] = pair.sizes;
        (pair.a, pair.sizes) = (vec![0.1; r * inputs * 2], [r, inputs * 2, out]);
    }
    block_on(adapter.save(&store, "wide")).unwrap();
    let choices = ["runs/tuned/step_000001", "wide"].map(|path| AdapterChoice { path: path.into(), strength: 1.0 });
    let (control, _, _) = Control::connect();
    let error = block_on(Adapter::load_mix(&store, &choices, "base", &control)).unwrap_err().to_string();
    assert!(error.contains("made for different models"), "{error}");
    let error = block_on(merge::run("base", &choices[..1], "base", ExportDtype::F16, &store, &control)).unwrap_err().to_string();
    assert!(error.contains("or a model; choose another folder"), "{error}");
}
