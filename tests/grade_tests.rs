//! The reference's grader against transformers, and submissions: there and back, and what hostile ones try.

use futures_lite::future::block_on;
use smolforge_engine::config::reason::ReasonConfig;
use smolforge_engine::control::Control;
use smolforge_engine::error::Result;
use smolforge_engine::model::Adapter;
use smolforge_engine::model::hub;
use smolforge_engine::protocol::{DeviceChoice, Event, GradeReport};
use smolforge_engine::store::Store;
use smolforge_engine::tasks::reason;
use smolforge_engine::tasks::reason::bundle::{self, Submission};
use smolforge_engine::tasks::reason::grade::loss::padded_loss;
use smolforge_engine::tasks::reason::test::Prompt;
use smolforge_engine::text::Tokenizer;
use smolforge_tests::*;

use crate::pack_tests::{Entry, entry, zip_of};

#[test]
fn the_loss_counts_padding_as_transformers_does() {
    let golden = golden_json("grade_golden.json");
    let pad = golden["pad"].as_u64().unwrap() as u32;
    let tokenizer = block_on(Tokenizer::load(&smolforge_tests::golden(), "tiny_llama")).unwrap();
    for compute in devices() {
        // f32 sums in another order, on a graphics device of other products, too.
        let tolerance = if compute.is_cpu() { 1e-5 } else { 1e-4 };
        let model = golden_model("tiny_llama", &compute);
        for (name, case) in golden["cases"].as_object().unwrap() {
            let text = |row: &serde_json::Value| [&row["question"], &row["answer"]].map(|text| text.as_str().unwrap()).concat();
            let rows: Vec<_> = case["rows"].as_array().unwrap().iter().map(|row| tokenizer.encode_prompt(&text(row))).collect();
            let ids = |row: &serde_json::Value| row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let expected: Vec<Vec<u32>> = case["rows"].as_array().unwrap().iter().map(ids).collect();
            assert_eq!(rows, expected, "{name}");
            let expected = case["loss"].as_f64().unwrap();
            for at_once in [1, 100, 100_000] {
                let model = if at_once == 100 { model.clone().with_positions(8) } else { model.clone() };
                let loss = block_on(padded_loss(&model, &rows, pad, at_once, &Control::connect().0)).unwrap().unwrap();
                let error = (loss - expected).abs() / expected;
                assert!(error < tolerance, "{name}, {at_once} at once on {}: {loss}, transformers {expected}", compute.info.name);
            }
        }
        let loss = |rows: &[Vec<u32>]| block_on(padded_loss(&model, rows, pad, 64, &Control::connect().0)).unwrap().unwrap();
        assert!(loss(&[vec![1], vec![2]]).is_nan() && loss(&[]).is_nan(), "nothing follows anything");
        let (control, signals, _events) = Control::connect();
        signals.stop();
        assert_eq!(block_on(padded_loss(&model, &[vec![1, 2]], pad, 64, &control)).unwrap(), None);
    }
}

/// A store with the golden adapter: as a folder, as a run that ended with it, and beside a course's files.
fn adapters() -> Store {
    let (store, golden) = (Store::memory(), golden());
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let bytes = block_on(golden.read(&format!("tiny_llama_lora/{file}"))).unwrap();
        ["a", "run/adapter", "course/homework/sft_model"].iter().for_each(|folder| write(&store, &format!("{folder}/{file}"), &bytes));
    }
    let others = ["cot.py", "data/train.json", "__pycache__/cot.pyc", "x.pyc", "notes.ipynb", ".git/config", "rft_model/old", "task.json"];
    others.iter().for_each(|file| write(&store, &format!("course/homework/{file}"), b"old"));
    store
}

fn write(store: &Store, name: &str, bytes: &[u8]) {
    block_on(store.write(name, bytes)).unwrap();
}

/// Bundles both adapters, and tells what was said.
fn bundled(store: &Store, config: &ReasonConfig, folder: Option<&str>) -> (Result<Option<u64>>, Vec<Event>) {
    let (control, _signals, events) = Control::connect();
    let result = block_on(bundle::write(config, "a", "run", folder, "out/my_name.zip", store, &control));
    (result, std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect())
}

fn names(submission: &Submission) -> Vec<String> {
    let folder = format!("{}/", submission.folder);
    let files = block_on(smolforge_engine::train::runs::files(&submission.store, &submission.folder)).unwrap();
    let mut names: Vec<String> = files.iter().map(|file| file.name.strip_prefix(&folder).unwrap().to_string()).collect();
    names.sort();
    names
}

fn read(store: &Store, name: &str) -> Result<Submission> {
    block_on(bundle::read(&ReasonConfig::default(), name, store, &Control::connect().0)).map(|submission| submission.unwrap())
}

#[test]
fn what_is_bundled_is_read_again() {
    let (store, config) = (adapters(), ReasonConfig { system: "Say it \"briefly\".".into(), ..ReasonConfig::default() });
    let pairs = block_on(Adapter::load(&store, "a")).unwrap().pairs;
    let own = ["rft_model/adapter_config.json", "rft_model/adapter_model.safetensors"];
    let own = [own[0], own[1], "sft_model/adapter_config.json", "sft_model/adapter_model.safetensors", "task.json"];
    for (folder, more) in [(None, &[][..]), (Some("course/homework/"), &["cot.py", "data/train.json"])] {
        let (result, events) = bundled(&store, &config, folder);
        let zip_bytes = result.unwrap().unwrap();
        let zip = block_on(store.read("out/my_name.zip")).unwrap().to_vec();
        assert_eq!(zip.len() as u64, zip_bytes);
        let wrote = Event::Wrote { what: "bundle".into(), path: "out/my_name.zip".into() };
        assert!(events.contains(&wrote) && !events.iter().any(|event| matches!(event, Event::Notice { warning: true, .. })));
        let top = if folder.is_some() { "homework/cot.py" } else { "my_name/task.json" };
        assert!(zip.windows(top.len()).any(|bytes| bytes == top.as_bytes()), "{top}");

        let submission = read(&store, "out/my_name.zip").unwrap();
        let mut expect = [&own[..], more].concat();
        expect.sort_unstable();
        assert_eq!(names(&submission), expect);
        for at in 0..2 {
            let folder = block_on(submission.adapter(at)).unwrap();
            assert_eq!(block_on(Adapter::load(&submission.store, &folder)).unwrap().pairs, pairs);
        }
        let shots = block_on(reason::shots(&config, &store)).unwrap();
        let prompt = block_on(submission.prompt()).unwrap();
        assert_eq!(prompt, Some(Prompt::worked(&config.system, &shots)));
        assert_eq!(bundled(&store, &config, folder).0.unwrap().unwrap(), zip_bytes);
        assert_eq!(block_on(store.read("out/my_name.zip")).unwrap().to_vec(), zip, "the same files give the same bytes");
    }
    let folder = read(&store, "course/homework/").unwrap();
    assert!(block_on(folder.adapter(0)).is_some() && block_on(folder.adapter(1)).is_none());
    assert!(block_on(folder.prompt()).is_err(), "no JSON");
}

#[test]
fn a_bundle_over_its_limit_is_refused_and_leaves_nothing() {
    let store = adapters();
    let size = bundled(&store, &ReasonConfig::default(), None).0.unwrap().unwrap() as f64 / 1e6;
    let before = block_on(store.read("out/my_name.zip")).unwrap().to_vec();
    let limited = |max_zip_mb, warn_zip_mb| bundled(&store, &ReasonConfig { max_zip_mb, warn_zip_mb, ..ReasonConfig::default() }, None);
    let warned = |events: &[Event]| events.iter().any(|event| matches!(event, Event::Notice { warning: true, .. }));
    let (result, events) = limited(size, size);
    assert!(result.unwrap().is_some() && !warned(&events));
    let (result, events) = limited(size, size - 1e-6);
    assert!(result.unwrap().is_some() && warned(&events));
    let task = block_on(read(&store, "out/my_name.zip").unwrap().store.open("submission/task.json")).unwrap().size_bytes() as f64;
    let rank = 2.0 * f64::from(1065 + 9176) / 4.0; // bytes that a rank more takes in both adapters, which have four
    for (most, words) in [
        (size - 1e-6, "so it was not written"),
        ((task + 2.1 * rank) / 1e6, "two of rank 2 would fit"),
        ((task + 1.1 * rank) / 1e6, "two of rank 1 would fit"),
        (0.0, "not even adapters of rank 1"),
    ] {
        let error = limited(most, 0.0).0.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("--max-zip-mb") && !error.contains('\n'), "{error}");
        assert_eq!(block_on(store.read("out/my_name.zip")).unwrap().to_vec(), before, "what was there is there");
    }
    block_on(store.remove("out/my_name.zip")).unwrap();
    limited(0.009, 0.0).0.unwrap_err();
    assert!(!block_on(store.exists("out")), "nothing is left behind");
    let (control, signals, _events) = Control::connect();
    signals.stop();
    assert_eq!(block_on(bundle::write(&ReasonConfig::default(), "a", "run", None, "x.zip", &store, &control)).unwrap(), None);
    assert!(!block_on(store.exists("x.zip")));
    for (adapter, folder, out) in [("nothing", None, "x.zip"), ("a", Some("nothing"), "x.zip"), ("a", None, "x"), ("a", None, "a")] {
        let result = block_on(bundle::write(&ReasonConfig::default(), adapter, "run", folder, out, &store, &Control::connect().0));
        assert!(!result.unwrap_err().to_string().contains('\n'));
    }
}

/// Reading a submission of these files says these words.
#[track_caller]
fn refused(entries: &[Entry], words: &str) {
    let store = Store::memory();
    write(&store, "x.zip", &zip_of(entries));
    let error = read(&store, "x.zip").expect_err("must be refused").to_string();
    assert!(error.contains(words) && error.starts_with("x.zip: ") && !error.contains('\n'), "{error}");
}

#[test]
fn hostile_submissions_are_refused() {
    let model = entry(b"homework/sft_model/adapter_config.json", b"{}");
    let with = |other: Entry| [model.clone(), other];
    refused(&[], "holds nothing at its top");
    refused(&with(entry(b"other/x", b"")), "holds homework, other at its top; a submission is exactly one folder");
    refused(&with(entry(b"x", b"")), "holds homework, x at its top");
    refused(&[entry(b"adapter_config.json", b"{}")], "at its top");
    for name in [&b"../evil"[..], b"/etc/evil", b"homework/../../evil", b"C:\\evil"] {
        refused(&with(entry(name, b"x")), "no name that a packed file may have");
    }
    refused(&with(Entry { mode: 0o120_777, ..entry(b"homework/link", b"/etc/passwd") }), "is a link");
    refused(&with(entry(b"homework/sft_model/adapter_config.json", b"again")), "same name");
    refused(&with(entry(b"homework/sft_model", b"a file")), "is a file, too");
    refused(&with(Entry { size: 300_000_000, ..entry(b"homework/bomb", b"x") }), "are the most for a file of its size");
    refused(&with(Entry { size: 9, ..entry(b"homework/short", b"shorter") }), "x.zip: short: ");
    let many: Vec<Entry> = (0..10_001u32).map(|n| entry(Box::leak(format!("h/{n}").into_bytes().into()), b"")).collect();
    refused(&many, "10001 files");
    // Folders, hidden files and what systems add do not count.
    let store = Store::memory();
    let odd = [entry(b"homework/", b""), entry(b"__MACOSX/homework/._x", b"?"), entry(b".DS_Store", b"?"), model.clone()];
    write(&store, "x.zip", &zip_of(&odd));
    assert_eq!(names(&read(&store, "x.zip").unwrap()), ["sft_model/adapter_config.json"]);
    write(&store, "x.zip", b"no zip");
    assert!(read(&store, "x.zip").is_err() && read(&store, "nothing.zip").is_err());
}

#[test]
fn the_budget_counts_what_the_adapters_of_a_model_have() {
    let shape = block_on(hub::read_config(&golden(), "tiny_llama")).unwrap();
    let config =
        ReasonConfig { sft_r: 4, rft_r: 8, max_params: shape.parameters() + 6000, device: DeviceChoice::Cpu, ..ReasonConfig::default() };
    let report = block_on(reason::budget::report(&config, &shape)).unwrap();
    // A rank more: 32 → 32, 16, 16, 32 → 32, 64, 64 and 64 → 32, in two layers.
    let rank = 2 * (64 + 48 + 48 + 64 + 3 * 96);
    assert_eq!((report.ranks, report.largest_ranks), ([4, 5], [5, 4096]));
    assert_eq!(report.parameters.used, shape.parameters() + 5 * rank);
    assert!(report.parameters.fits() && report.bundle_bytes.fits() && report.bundle_bytes.used > 9 * 4 * rank);
    assert!(report.device_bytes.used > 4 * shape.parameters());
}

/// A store with the golden model as the student, questions, and adapters.
fn student() -> (Store, ReasonConfig) {
    let (store, golden) = (adapters(), golden());
    for entry in block_on(golden.list("tiny_llama")).unwrap() {
        let file = entry.name.rsplit('/').next().unwrap();
        write(&store, &format!("m/{file}"), &block_on(golden.read(&entry.name)).unwrap());
    }
    write(&store, "q.json", b"[[\"How many g are 6 kg?\", 6000.0], [\"How many m are 2 km?\", 2000.0], [\"a\", 1.0]]");
    write(&store, "shots.json", b"[[\"a\", 1.0, \"<answer>1</answer>\"]]");
    let config = ReasonConfig {
        student: "m".into(),
        device: DeviceChoice::Cpu,
        system: "b".into(),
        shots: Some("shots.json".into()),
        max_new_tokens: 6,
        time_limits: false,
        ..ReasonConfig::default()
    };
    (store, config)
}

/// Grades it, and checks what is the same for all grades.
fn graded(store: &Store, config: &ReasonConfig, submission: Option<&str>, adapters: [Option<&str>; 2]) -> GradeReport {
    let (control, _signals, events) = Control::connect();
    let report = block_on(reason::grade::run(config, "q.json", submission, adapters[0], adapters[1], store, &control));
    let report = report.unwrap().unwrap();
    let told = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|(_, event)| match event {
        Event::Graded(report) => Some(report.cases.len()),
        _ => None,
    });
    let told: Vec<usize> = told.collect();
    assert!(told == [1, 2, 3, 4, 5] || told == [5], "{told:?}");
    assert_eq!((report.cases.len(), report.points()), (5, 100));
    report
}

#[test]
fn a_submission_gets_the_points_of_its_parts() {
    cpu();
    let (store, config) = student();
    let remarks = |report: &GradeReport| report.cases.iter().map(|case| case.remark.clone()).collect::<Vec<_>>();
    let report = graded(&store, &config, None, [Some("a"), None]);
    let (one, side) = (&report.cases[0], &report.cases[1]);
    assert!((one.value - side.value).abs() < 1e-5 * one.value, "a batch writes what each question alone does: {report:?}");
    let part = reason::grade::marks::PARTS[1];
    assert_eq!(side.score, part.marked(side.value, String::new(), 0.0, true).score);
    assert_eq!(report.cases[3].remark, "0 of 3 right, 0 % answered");
    assert_eq!(report.cases[4].remark, "Not Implemented");

    // The bundle brings what stands before a question, and is graded without the rest.
    block_on(bundle::write(&config, "a", "run", None, "x.zip", &store, &Control::connect().0)).unwrap();
    let other = ReasonConfig { shots: Some("nothing.json".into()), ..config.clone() };
    let again = graded(&store, &other, Some("x.zip"), [None, None]);
    assert_eq!(remarks(&again)[..4], remarks(&report)[..4]);
    assert_eq!(remarks(&again)[4], remarks(&report)[3]);

    // A folder, too large, broken.
    block_on(store.remove("course/homework/task.json")).unwrap();
    let folder = graded(&store, &config, Some("course/homework"), [None, None]);
    assert_eq!((&remarks(&folder)[3], &remarks(&folder)[4]), (&remarks(&report)[3], &remarks(&report)[4]));
    let parameters = block_on(hub::read_config(&store, "m")).unwrap().parameters();
    let capped = |max_params| graded(&store, &ReasonConfig { max_params, ..config.clone() }, None, [Some("a"), Some("run")]);
    let rank_4 = 1792;
    assert_eq!(remarks(&capped(parameters + rank_4))[3], "0 of 3 right, 0 % answered");
    let over = capped(parameters + rank_4 - 1);
    assert!(over.cases[2].value.is_finite() && over.cases[3].score == 0);
    assert!(over.cases[3].remark.contains("parameters") && over.cases[4].remark.contains("--max-params"), "{over:?}");
    assert!(remarks(&capped(parameters - 1)).iter().all(|remark| remark.contains("--max-params")));
    write(&store, "run/adapter/adapter_model.safetensors", b"broken");
    let broken = graded(&store, &config, None, [Some("a"), Some("run")]);
    assert!(broken.cases[3].value.is_finite() && broken.cases[4].remark.contains("adapter_model.safetensors"), "{broken:?}");
    assert!(!broken.cases[4].remark.contains('\n'));
}

#[test]
fn what_is_wrong_with_a_grade_as_a_whole_is_one_line() {
    cpu();
    let (store, config) = student();
    write(&store, "none.json", b"[]");
    let check = |config: &ReasonConfig, data: &str, submission: Option<&str>, sft: Option<&str>, words: &str| {
        let error = block_on(reason::grade::run(config, data, submission, sft, None, &store, &Control::connect().0)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    };
    check(&config, "nothing.json", None, None, "nothing.json");
    check(&config, "none.json", None, None, "no questions");
    check(&config, "q.json", Some("y.zip"), None, "y.zip");
    check(&config, "q.json", None, Some("y"), "--sft y: neither an adapter nor a run");
    check(&config, "q.json", Some("course/homework"), None, "task.json");
    check(&ReasonConfig { student: "./y".into(), ..config.clone() }, "q.json", None, None, "y");
    let (control, signals, _events) = Control::connect();
    signals.stop();
    assert_eq!(block_on(reason::grade::run(&config, "q.json", None, Some("a"), None, &store, &control)).unwrap(), None);
}
