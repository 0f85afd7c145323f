//! How models speak that were trained, exported and merged: with the template, the stops and the numbers that they learned by.

use futures_lite::future::block_on;
use smolforge_engine::config::finetune::{Files, FinetuneConfig, Interval, Method, Metric};
use smolforge_engine::control::Control;
use smolforge_engine::generate::{self, Loaded, speech};
use smolforge_engine::model::Adapter;
use smolforge_engine::model::hub::Weights;
use smolforge_engine::ops::quant::Nf4;
use smolforge_engine::protocol::{AdapterChoice, DeviceChoice, Event, ExportDtype, GenerateRequest, Message};
use smolforge_engine::store::Store;
use smolforge_engine::tasks::{export, merge};
use smolforge_engine::train::{checkpoint, finetune, rows};
use smolforge_tests::*;
use speech::Speech;

fn write(store: &Store, name: &str, text: &str) {
    block_on(store.write(name, text.as_bytes())).unwrap();
}

/// A tiny chat model as `base`, and the settings of a run that learns eight rows.
fn small(method: Method) -> (Store, FinetuneConfig) {
    cpu();
    let store = Store::memory();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = block_on(golden().read(&format!("tiny_llama/{file}"))).unwrap();
        block_on(store.write(&format!("base/{file}"), &bytes)).unwrap();
    }
    // Its template ends turns with <|im_end|>.
    write(&store, "base/generation_config.json", r#"{"eos_token_id": [0, 2], "temperature": 0.5}"#);
    let row = |i: usize| {
        format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{i}?\"}},{{\"role\":\"assistant\",\"content\":\"yes\"}}]}}\n")
    };
    write(&store, "rows.jsonl", &(0..8).map(row).collect::<String>());
    let config = FinetuneConfig {
        model_name: "base".into(),
        train_file: Files(vec!["rows.jsonl".into()]),
        validation_file: Files(vec!["rows.jsonl".into()]),
        output_dir: "runs/tuned".into(),
        device: DeviceChoice::Cpu,
        method,
        max_seq_length: 64,
        r: 4,
        per_device_train_batch_size: 2,
        learning_rate: 1e-2,
        num_epochs: 2.0,
        logging_steps: 3,
        sample_tokens: 0,
        save_total_limit: 9,
        ..FinetuneConfig::default()
    };
    (store, config)
}

fn train(store: &Store, config: &FinetuneConfig) {
    block_on(finetune::run(config, false, store, &Control::connect().0)).unwrap();
}

fn speaks(store: &Store, folder: &str, template: Option<&str>) -> (Vec<u32>, Vec<u32>) {
    let speech = block_on(Speech::load(store, folder, template, Some("2026-01-31"))).unwrap();
    let said = [Message::new("user", "a"), Message::new("assistant", "b"), Message::new("user", "c")];
    (speech.prompt(&said).unwrap(), speech.stops)
}

fn chosen(path: &str) -> Vec<AdapterChoice> {
    vec![AdapterChoice { path: path.into(), strength: 1.0 }]
}

fn exported(store: &Store, run: &str, out: &str, step: &str) -> Result<(), String> {
    block_on(export::run(run, out, ExportDtype::F16, step, store, &Control::connect().0)).map_err(|error| error.to_string())
}

#[test]
fn a_template_that_cannot_be_read_matters_only_to_conversations() {
    for (file, text, expected) in [
        ("chat_template.jinja", "{% for message in %}", "chat template, line 1"),
        ("tokenizer_config.json", "{", "tokenizer_config.json"),
        ("tokenizer_config.json", r#"{"chat_template": 7}"#, "neither a text nor a list"),
    ] {
        let (store, config) = small(Method::Lora);
        write(&store, &format!("base/{file}"), text);
        let (control, _signals, _events) = Control::connect();
        let ask = |prompts: &[&str], messages: Vec<Message>| {
            let prompts = prompts.iter().map(ToString::to_string).collect();
            let (device, max_new_tokens) = (DeviceChoice::Cpu, 2);
            let request = GenerateRequest { model: "base".into(), prompts, messages, device, max_new_tokens, ..GenerateRequest::default() };
            block_on(generate::run(&request, &Loaded::default(), &store, &control)).map_err(|error| error.to_string())
        };
        ask(&["a b"], Vec::new()).unwrap();
        let error = ask(&[], vec![Message::new("user", "a")]).unwrap_err();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        let error = block_on(finetune::run(&config, false, &store, &control)).unwrap_err().to_string();
        assert!(error.contains("none of the training rows can be used") && error.contains(expected), "{error}");
        write(&store, "rows.jsonl", &"{\"prompt\":\"a\",\"completion\":\"b\"}\n".repeat(8));
        block_on(finetune::run(&config, false, &store, &control)).unwrap();
    }
}

#[test]
fn a_model_speaks_as_it_was_trained() {
    // With a template of its own, and with plain ChatML.
    for own in [true, false] {
        let (store, config) = small(Method::Full);
        if !own {
            write(&store, "base/tokenizer_config.json", r#"{"bos_token": "<|endoftext|>"}"#);
            write(&store, "base/generation_config.json", r#"{"eos_token_id": 0, "temperature": 0.5}"#);
        }
        let expected = speaks(&store, "base", None);
        assert_eq!(expected.1, [0, 2]);
        train(&store, &config);
        assert_eq!(block_on(checkpoint::newest_of(&store, "runs/tuned/")), "runs/tuned/model");
        exported(&store, "runs/tuned", "hf", "last").unwrap();
        for folder in ["runs/tuned/model", "runs/tuned/step_000004", "runs/tuned/step_000008", "hf"] {
            assert_eq!(speaks(&store, folder, None), expected, "{folder}");
            let config = block_on(store.read_text(&format!("{folder}/generation_config.json"))).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(config, serde_json::json!({"eos_token_id": [0, 2], "temperature": 0.5}));
            assert_eq!(block_on(store.exists(&format!("{folder}/chat_template.jinja"))), !own, "{folder}");
        }
    }
}

#[test]
fn an_adapter_is_asked_by_the_template_that_it_was_trained_with() {
    let (store, mut config) = small(Method::Lora);
    write(
        &store,
        "other.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    );
    config.chat_template = Some("other.jinja".into());
    train(&store, &config);
    let expected = speaks(&store, "base", Some("other.jinja"));
    assert_ne!(expected, speaks(&store, "base", None));
    for folder in ["runs/tuned/adapter", "runs/tuned/step_000004"] {
        let template = block_on(speech::template_of(&store, &chosen(folder)));
        assert_eq!(speaks(&store, "base", template.as_deref()), expected, "{folder}");
    }
    block_on(merge::run("base", &chosen("runs/tuned/adapter"), "merged", ExportDtype::F16, &store, &Control::connect().0)).unwrap();
    assert_eq!(speaks(&store, "merged", None), expected);
}

#[test]
fn an_export_replaces_only_exports_of_the_same_run() {
    let (store, config) = small(Method::Full);
    train(&store, &config);
    let twin = FinetuneConfig { output_dir: "runs/twin".into(), ..config.clone() };
    train(&store, &twin);
    let other = FinetuneConfig { seed: 7, output_dir: "runs/other".into(), ..config };
    train(&store, &other);
    exported(&store, "runs/tuned", "hf", "last").unwrap();
    exported(&store, "runs/tuned", "hf", "4").unwrap();
    block_on(store.rename("runs/tuned", "moved")).unwrap();
    exported(&store, "moved", "hf", "last").unwrap();
    for (run, out) in [("runs/other", "hf"), ("runs/twin", "hf"), ("moved", "base"), ("moved", "runs/other/model")] {
        let error = exported(&store, run, out, "last").unwrap_err();
        assert!(error.contains("holds another model"), "{error}");
    }
    write(&store, "old/config.json", "{}");
    assert!(exported(&store, "moved", "old", "last").unwrap_err().contains("holds another model"));
    let (store, config) = small(Method::Lora);
    train(&store, &config);
    assert!(exported(&store, "runs/tuned", "hf", "last").unwrap_err().contains("smolforge merge"));
}

/// Σ (a − b)² over the matrices that an adapter changes.
fn distance(adapter: &Adapter, a: &dyn Fn(&str) -> Vec<f32>, b: &dyn Fn(&str) -> Vec<f32>) -> f64 {
    let squares = |name: String| a(&name).iter().zip(b(&name)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    adapter.pairs.keys().map(|layer| squares(format!("{layer}.weight"))).sum::<f64>()
}

#[test]
fn merging_tells_what_it_loses() {
    let (store, config) = small(Method::Qlora);
    train(&store, &config);
    let adapter = block_on(Adapter::load(&store, "runs/tuned/adapter")).unwrap();
    assert!(adapter.config.four_bits);
    let (control, _signals, events) = Control::connect();
    let merged = |model: &str, out: &str, dtype| {
        block_on(merge::run(model, &chosen("runs/tuned/adapter"), out, dtype, &store, &control)).unwrap();
        let said = std::iter::from_fn(|| events.try_recv().ok());
        said.filter_map(|(_, event)| if let Event::Notice { text, .. } = event { Some(text) } else { None }).collect::<Vec<_>>().join("|")
    };
    let (halves, whole) = (merged("base", "f16", ExportDtype::F16), merged("base", "f32", ExportDtype::F32));
    let weights = |folder: &str| {
        let weights = block_on(Weights::open(&store, folder)).unwrap();
        move |name: &str| weights.read(name).unwrap()
    };
    let base = weights("base");
    let size = distance(&adapter, &base, &|name| vec![0.0; base(name).len()]);
    let share = |squares: f64| format!("{:.4} %", 100.0 * (squares / size).sqrt());
    let change = share(distance(&adapter, &base, &weights("f32")));
    let rounding = share(distance(&adapter, &weights("f32"), &weights("f16")));
    assert!(halves.contains(&format!("by {rounding} of their norm; the adapter moves them by {change}")), "{halves} {rounding} {change}");
    let packed = |name: &str| {
        let shape = block_on(Weights::open(&store, "base")).unwrap().info(name).unwrap().1.to_vec();
        Nf4::quantize(&base(name), shape[0], shape[1]).dense()
    };
    let packing = share(distance(&adapter, &base, &packed));
    assert!(whole.contains(&format!("in 4 bits, whose matrices lie {packing}")) && !whole.contains("rounding"), "{whole} {packing}");

    // A base of 4 bits, with and without the one that it was made of.
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let bytes = block_on(golden().read(&format!("tiny_llama_nf4/{file}")));
        if let Ok(bytes) = bytes {
            block_on(store.write(&format!("nf4/{file}"), &bytes)).unwrap();
        }
    }
    let packed = block_on(Weights::open(&store, "nf4")).unwrap();
    let dense = |name: &str| packed.read_nf4(name).unwrap().unwrap().dense();
    let size = distance(&adapter, &dense, &|name| vec![0.0; dense(name).len()]);
    let expected = format!("{:.4} %", 100.0 * (distance(&adapter, &dense, &base) / size).sqrt());
    let told = merged("nf4", "m1", ExportDtype::F32);
    assert!(told.contains(&format!("lie {expected} of their norm from those of base")), "{told} {expected}");
    // The one that it was made of may be a run.
    block_on(store.rename("base", "base/step_000001")).unwrap();
    let told = merged("nf4", "m2", ExportDtype::F32);
    assert!(told.contains(&format!("lie {expected} of their norm from those of base")), "{told} {expected}");
    block_on(store.rename("base/step_000001", "gone")).unwrap();
    let told = merged("nf4", "m3", ExportDtype::F32);
    assert!(told.ends_with("merged into its de-quantised matrices"), "{told}");
}

#[test]
fn a_checkpoint_tells_its_history_as_a_trainer_does() {
    let (store, mut config) = small(Method::Lora);
    (config.metric_for_best_model, config.load_best_model_at_end) = (Metric::Accuracy, true);
    (config.save_strategy, config.save_steps) = (Interval::Steps, 3);
    train(&store, &config);
    let state = |step| {
        let text = block_on(store.read_text(&format!("{}/trainer_state.json", checkpoint::folder("runs/tuned", step)))).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (middle, last) = (state(3), state(8));
    assert_eq!((middle["global_step"].as_u64(), middle["epoch"].as_f64()), (Some(3), Some(0.75)));
    assert!(middle["best_metric"].is_null() && middle["log_history"].as_array().unwrap().len() == 1);
    assert_eq!((last["max_steps"].as_u64(), last["num_train_epochs"].as_u64()), (Some(8), Some(2)));
    let history = last["log_history"].as_array().unwrap();
    let steps: Vec<_> = history.iter().map(|row| (row["step"].as_u64().unwrap(), row.get("eval_loss").is_some())).collect();
    assert_eq!(steps, [(3, false), (4, true), (6, false), (8, true)]);
    let events = block_on(smolforge_engine::train::log::read_events(&store, "runs/tuned")).unwrap();
    let losses: Vec<f64> =
        events.iter().filter_map(|(_, event)| if let Event::Step(report) = event { Some(report.loss) } else { None }).collect();
    let mean = (losses[3] + losses[4] + losses[5]) / 3.0;
    assert!((history[2]["loss"].as_f64().unwrap() - mean).abs() < 1e-12, "numbers go through JSON twice");
    assert!(history[2]["learning_rate"].is_number() && history[2]["grad_norm"].is_number() && history[2]["epoch"] == 1.5);
    let best = last["best_global_step"].as_u64().unwrap();
    let row = history.iter().find(|row| row["step"] == best && row.get("eval_loss").is_some()).unwrap();
    assert!((last["best_metric"].as_f64().unwrap() - row["eval_mean_token_accuracy"].as_f64().unwrap()).abs() < 1e-12);
    assert_eq!(last["best_model_checkpoint"], checkpoint::folder("runs/tuned", best as u32));
}

#[test]
fn other_names_for_keys_that_nobody_reads_are_refused() {
    let (store, mut config) = small(Method::Lora);
    let refused =
        |config: &FinetuneConfig| block_on(rows::read(config, &config.train_file, &store, &Control::connect().0)).unwrap_err().to_string();
    for (ours, theirs, expected) in [
        ("mesages", "dialog", "did you mean messages?"),
        ("dialog", "messages", "did you mean messages: dialog?"),
        ("xyz", "dialog", "there are messages"),
    ] {
        config.columns = [(ours.to_string(), theirs.to_string())].into();
        let error = refused(&config);
        assert!(error.contains(&format!("--columns {ours}")) && error.contains(expected), "{error}");
    }
    config.columns = Default::default();
    write(&store, "rows.jsonl", "{\"dialog\": []}\n");
    assert!(refused(&config).contains("name them with --columns"));
}
