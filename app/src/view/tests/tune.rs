//! Fine-tuning: rows, figures, the shelf.

use smolforge_engine::config::finetune::{FinetuneConfig, Method, Targets};
use smolforge_engine::model::LlamaConfig;
use smolforge_engine::protocol::{
    AdapterChoice, Check, ExampleReport, ExportDtype, Lengths, Level, Message, ModelReport, Piece, Preflight, TextScore,
};
use smolforge_engine::train::finetune;

use super::super::{rows, shelf, tune};
use super::*;
use crate::forms::{Part, RowsShown};

/// A model of a known shape with a chat template.
pub fn described(has_chat: bool) -> ModelReport {
    let shape = LlamaConfig::preset("nano").expect("a preset");
    ModelReport { shape, has_chat, has_template: has_chat }
}

/// A form that is filled in.
pub fn tuning() -> Forms {
    let mut forms = Forms { tab: crate::forms::Tab::Tune, ..Forms::default() };
    forms.tune.model_name = "m".into();
    forms.tune.set("train_file", "rows.jsonl").expect("a file");
    forms
}

fn pieces(texts: &[(&str, bool)]) -> Vec<Piece> {
    (5..).zip(texts).map(|(id, (text, is_target))| Piece { text: text.to_string(), id, is_target: *is_target }).collect()
}

/// The model is known, and the rows were looked at.
pub fn looked_at() -> Session {
    let mut session = Session::default();
    session.models.insert("m".into(), described(true));
    session.sent(1, rows::wanted(&session, &tuning()).expect("model and rows"));
    session.apply(1, Event::Started { job: "inspect".into(), version: String::new() });
    let check = |level, line: &str, rows: &[usize]| Check { level, line: line.into(), rows: rows.iter().map(usize::to_string).collect() };
    let checks = vec![
        check(Level::Green, "no example occurs twice", &[]),
        check(Level::Yellow, "1 of 30 examples (3.3 %) are cut at 9 tokens", &[7]),
        check(Level::Red, "the answers never stop", &[2, 3]),
    ];
    let lengths = Lengths { min: 3, mean: 7.5, p95: 9, max: 9, bins: vec![(3, 4), (6, 10), (9, 16)] };
    session.apply(1, Event::Preflight(Preflight { checks, lengths, tokens: 225, targets: 75 }));
    let shown = [("<|im_start|>", false), ("user\n", false), (" What?", false), ("<|im_end|>", false), ("74", true), (" bar", true)];
    let line = |line: usize, cut: &[(&str, bool)]| {
        let line = line.to_string();
        let report =
            ExampleReport { row: line, task: Some("spec".into()), lost_tokens: cut.len(), pieces: pieces(&shown), cut: pieces(cut) };
        Event::Example(report)
    };
    session.apply(1, line(1, &[]));
    session.apply(1, line(7, &[(" or", true), (" more", true)]));
    session.apply(1, Event::Failed { error: "pre-flight: the answers never stop".into(), defect: false });
    session
}

/// Two adapters of runs and a run that trained on texts.
pub fn with_adapters() -> Session {
    let run = |path: &str, r| {
        let tuning = FinetuneConfig { model_name: "m".into(), r, date: Some("2026-01-31".into()), ..FinetuneConfig::default() };
        let adapter = Some(format!("{path}/adapter"));
        let state = RunState::Stopped;
        RunSummary { tuning: Some(Box::new(tuning)), adapter, best: Some((0.5, 40)), ..summary(path, state) }
    };
    let mut session =
        Session { runs: Some(vec![run("runs/a", 8), run("runs/b", 16), summary("d/run", RunState::Stopped)]), ..Session::default() };
    session.models.insert("m".into(), described(true));
    session
}

pub fn tune_form(ui: &mut Ui, state: &mut State) {
    tune::form(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
}

pub fn parts(ui: &mut Ui, state: &mut State) {
    tune::parts(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
}

/// Texts that are drawn, with the colours behind their parts and whether they are struck through.
fn drawn(harness: &Harness<'_, State>) -> Vec<(String, egui::Color32, bool)> {
    fn texts(shape: &egui::Shape, found: &mut Vec<(String, egui::Color32, bool)>) {
        match shape {
            egui::Shape::Vec(parts) => parts.iter().for_each(|part| texts(part, found)),
            egui::Shape::Text(text) => {
                let job = &text.galley.job;
                found.extend(job.sections.iter().map(|section| {
                    let part = job.text.get(section.byte_range.start.0..section.byte_range.end.0).unwrap_or_default();
                    (part.to_string(), section.format.background, section.format.strikethrough.width > 0.0)
                }));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    harness.output().shapes.iter().for_each(|clipped| texts(&clipped.shape, &mut found));
    found
}

#[test]
fn rows_are_coloured_by_what_is_learned_of_them() {
    let mut harness = sized(egui::vec2(800.0, 900.0), looked_at(), tuning(), parts);
    let visuals = harness.ctx.global_style().visuals.clone();
    let learned = [false, true].map(|odd| theme::learned(&visuals, odd));
    let drawn = drawn(&harness);
    let find = |text: &str| drawn.iter().find(|(part, ..)| part == text).unwrap_or_else(|| panic!("{text} is not drawn: {drawn:?}"));
    assert!(learned.contains(&find("74").1) && learned.contains(&find(" bar").1) && find("74").1 != find(" bar").1);
    for read in ["<|im_start|>", "user↵\n", " What?"] {
        assert!(!learned.contains(&find(read).1) && !find(read).2, "{read} is only read");
    }
    assert!(find(" or more").2, "what is cut off is struck through");
    for label in ["● ok", "● look", "● wrong", "the answers never stop", "the run would not begin", "1 to 20 of 30"] {
        assert!(harness.query_by_label(label).is_some(), "{label}");
    }
    assert!(harness.query_by_label("row 7 · spec · 6 tokens, 2 learned · 2 cut off").is_some());
    assert!(harness.query_by_label_contains("rows by length: 4 up to 3, 10 up to 6").is_some());
    harness.get_all_by_label_contains("<|im_start|>user").next().expect("the first row").hover();
    harness.run_steps(6);
    assert!(harness.query_by_label_contains(": weight ").is_some(), "what the token below the pointer is");
}

#[test]
fn rows_of_the_same_block_are_shown_unasked() {
    let mut harness = sized(egui::vec2(800.0, 900.0), looked_at(), tuning(), parts);
    let [first, seventh] = ["row 1 · spec · 6 tokens, 2 learned", "row 7 · spec · 6 tokens, 2 learned · 2 cut off"];
    harness.get_by_label("7").click();
    harness.run_steps(5);
    assert!(harness.query_by_label(first).is_none() && harness.query_by_label(seventh).is_some());
    click(&mut harness, "all rows");
    harness.get_by_label("▶").click();
    harness.run_steps(5);
    assert_eq!(harness.state().forms.rows.first, 20);
    assert_eq!(harness.state().asks, []);
}

#[test]
fn other_rows_are_a_click_away() {
    let mut session = looked_at();
    session.rows.as_mut().expect("they were looked at").preflight.lengths.bins = vec![(9, 450)];
    let mut forms = tuning();
    forms.rows.first = 180;
    let mut harness = sized(egui::vec2(800.0, 900.0), session, forms, parts);
    harness.get_by_label("3").click();
    harness.run_steps(5);
    let asks = std::mem::take(&mut harness.state_mut().asks);
    assert!(matches!(asks.first(), Some(Ask::Begin(Command::Inspect { row: Some(row), .. })) if row == "3"), "{asks:?}");
    click(&mut harness, "all rows");
    harness.get_by_label("▶").click();
    harness.run_steps(5);
    let asks = std::mem::take(&mut harness.state_mut().asks);
    assert!(matches!(asks.last(), Some(Ask::Begin(Command::Inspect { first: 200, count: 200, row: None, .. }))), "{asks:?}");
}

#[test]
fn rows_that_nobody_wants_any_more_are_not_read() {
    let mut session = looked_at();
    let mut forms = tuning();
    for job in 2..=4 {
        forms.tune.max_seq_length = job as usize;
        session.sent(job, rows::wanted(&session, &forms).expect("model and rows"));
    }
    session.told(2, &Command::Stop);
    let wanted = rows::wanted(&session, &tuning()).expect("model and rows");
    let mut asks = Vec::new();
    rows::begin(&session, wanted.clone(), &mut asks);
    assert_eq!(asks, [Ask::Tell(3, Command::Stop), Ask::Tell(4, Command::Stop), Ask::Begin(wanted)]);
}

#[test]
fn an_empty_line_is_no_file() {
    let mut forms = tuning();
    forms.tune.validation_file.0.push(" ".into());
    forms.rows.validation = true;
    let wanted = rows::wanted(&looked_at(), &forms);
    assert_eq!(wanted, rows::wanted(&looked_at(), &tuning()), "those to learn");
    let harness = sized(egui::vec2(440.0, 900.0), looked_at(), forms.clone(), tune_form);
    assert!(harness.query_by_label("none: 5 % of the others are kept for that").is_some());
    let harness = sized(egui::vec2(800.0, 900.0), looked_at(), forms, parts);
    assert!(harness.query_by_label("to evaluate on").is_none());
}

#[test]
fn a_model_that_is_not_here_is_told_with_what_downloads_it() {
    let mut session = Session::default();
    session.sent(1, Command::Describe { model: "m".into(), adapters: Vec::new() });
    session.apply(1, Event::Failed { error: "m: is not on this machine yet".into(), defect: false });
    let harness = sized(egui::vec2(440.0, 900.0), session, tuning(), tune_form);
    let said = "m: is not on this machine yet; looking at the rows, plan and tune download it";
    assert!(harness.query_by_label(said).is_some());
}

#[test]
fn rows_are_read_when_nobody_types_any_more() {
    let state = State { session: looked_at(), forms: tuning(), picker: Picker::new(&egui::Context::default()), asks: Vec::new() };
    let mut harness = Harness::builder().with_size(egui::vec2(800.0, 600.0)).with_context_setup(theme::apply).build_ui_state(parts, state);
    harness.run_steps(6);
    assert_eq!(harness.state().asks, [], "they are known");
    for length in [1, 12, 128] {
        harness.state_mut().forms.tune.max_seq_length = length;
        harness.run_steps(2); // half a second
        assert_eq!(harness.state().asks, [], "it is being typed");
    }
    harness.run_steps(3);
    let wanted = rows::wanted(&harness.state().session, &harness.state().forms).expect("model and rows");
    assert_eq!(harness.state().asks.first(), Some(&Ask::Begin(wanted.clone())));
    harness.state_mut().asks.clear();
    harness.state_mut().session.sent(2, wanted);
    harness.run_steps(6);
    assert_eq!(harness.state().asks, [], "once");
    // What rows are read with, and nothing else, makes them be read again.
    harness.state_mut().forms.tune.r = 99;
    harness.run_steps(6);
    assert_eq!(harness.state().asks, []);
    harness.state_mut().forms.tune.model_name = "owner/not-here".into();
    harness.run_steps(6);
    let asks = std::mem::take(&mut harness.state_mut().asks);
    let describe = Ask::Begin(Command::Describe { model: "owner/not-here".into(), adapters: Vec::new() });
    assert!(asks.iter().all(|ask| *ask == describe) && !asks.is_empty(), "nothing is downloaded unasked: {asks:?}");
}

#[test]
fn figures_follow_the_rank_and_are_the_engine_s() {
    let mut session = Session::default();
    session.models.insert("m".into(), described(true));
    let mut harness = sized(egui::vec2(440.0, 1400.0), session, tuning(), tune_form);
    let shape = described(true).shape;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let adapter = finetune::adapter(&harness.state().forms.tune);
        let (numbers, size) = (adapter.parameters(&shape).expect("it fits"), adapter.size_bytes(&shape).expect("it fits"));
        let share = 100.0 * numbers as f64 / shape.parameters() as f64;
        let line = format!("{} parameters train: {share:.2} % of", crate::units::count(numbers));
        assert!(harness.query_by_label_contains(&line).is_some(), "{line}");
        assert!(harness.query_by_label_contains(&format!("the adapter takes {} on disk", crate::units::bytes(size))).is_some());
        seen.push(numbers);
        harness.get_by_role_and_label(Role::Slider, "rank").increment_accesskit();
        harness.run_steps(3);
    }
    assert!(seen[0] < seen[1] && seen[1] < seen[2], "{seen:?}");
    // Of the layers, as many as there are check boxes; one that is taken away is left out.
    harness.get_by_role_and_label(Role::CheckBox, "k_proj").click();
    harness.run_steps(3);
    let Targets::Names(names) = &harness.state().forms.tune.target_modules else { panic!("a list") };
    assert_eq!(names, &["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    harness.state_mut().forms.tune.method = Method::Full;
    harness.run_steps(3);
    assert!(harness.query_by_label_contains(&format!("all {} parameters train", crate::units::count(shape.parameters()))).is_some());
}

#[test]
fn layers_that_no_model_has_are_told_with_those_that_it_has() {
    let mut session = Session::default();
    session.models.insert("m".into(), described(true));
    let mut forms = tuning();
    forms.tune.target_modules = Targets::Names(vec!["q_pro".into()]);
    let harness = sized(egui::vec2(440.0, 1400.0), session, forms, tune_form);
    let said = "no linear layer of the model matches; did you mean q_proj?; there are down_proj, gate_proj";
    assert!(harness.query_by_label_contains(said).is_some(), "the candidates");
    assert!(harness.query_by_label_contains("parameters train").is_none(), "there is no figure of it");
}

#[test]
fn tune_begins_the_run_of_the_form() {
    let forms = tuning();
    let mut harness = window(looked_at(), forms.clone(), tune_form);
    let begin = vec![Ask::Begin(Command::Finetune { config: Box::new(forms.tune.clone()), notes: Vec::new(), resume: false })];
    assert_eq!(click(&mut harness, "▶ tune"), begin);
    assert_eq!(harness.state().forms.part, Part::Run);
    assert_eq!(keys(&mut harness, Key::Enter), begin);
    let plan = Ask::Begin(Command::PlanFinetune { config: Box::new(forms.tune.clone()), budget_bytes: None });
    assert_eq!(click(&mut harness, "plan"), [plan]);
    assert_eq!(click(&mut harness, "look at the rows"), [Ask::Begin(rows::wanted(&looked_at(), &forms).expect("rows"))]);
    harness.state_mut().forms.tune.train_file.0.clear();
    harness.run_steps(2);
    assert_eq!(keys(&mut harness, Key::Enter), [], "there are no rows");
}

#[test]
fn a_fine_tuning_run_is_shown_stopped_and_resumed_as_one() {
    let mut session = Session::default();
    session.models.insert("m".into(), described(true));
    session.sent(1, Command::Finetune { config: Box::new(tuning().tune), notes: Vec::new(), resume: false });
    session.apply(1, Event::Started { job: "finetune".into(), version: String::new() });
    story().into_iter().for_each(|(_, event)| session.apply(1, event));
    let score = TextScore { accuracy: Some(0.875), ..TextScore::new(10.0, 8, 30) };
    session.apply(1, Event::Evaluated { step: 50, loss: 1.0, sources: [("spec".to_string(), score)].into(), best: true });
    let forms = Forms { part: Part::Run, ..tuning() };
    let harness = sized(egui::vec2(1024.0, 1600.0), session, forms, parts);
    assert!(harness.query_by_label("token accuracy").is_some() && harness.query_by_label("87.5 %").is_some());
    let State { session, .. } = harness.into_state();
    let mut harness = window(session, tuning(), tune_form);
    assert_eq!(click(&mut harness, "stop and save"), [Ask::Tell(1, Command::Stop)]);
    let State { session, .. } = harness.into_state();
    let mut harness = window(session, Forms::default(), |ui, state| {
        train::progress(ui, &state.session, &mut state.forms, &mut state.asks);
    });
    assert!(harness.query_by_label("A model is being fine-tuned").is_some(), "it is none on texts");
    click(&mut harness, "look at it in Tune");
    assert_eq!(harness.state().forms.part, Part::Run);

    let mut session = with_adapters();
    session.sent(1, Command::OpenRun { path: "runs/a".into() });
    session.apply(1, Event::Opened { path: "runs/a".into(), config: Box::new(config()), events: story() });
    let forms = Forms { selected: vec!["runs/a".into()], ..Forms::default() };
    let mut harness = window(session, forms, run_detail);
    assert!(harness.query_by_label("fine-tuning of m").is_some());
    let begun = FinetuneConfig { output_dir: "runs/a".into(), ..FinetuneConfig::default() };
    assert_eq!(
        click(&mut harness, "▶ resume"),
        [Ask::Begin(Command::Finetune { config: Box::new(begun), notes: Vec::new(), resume: true })]
    );
    click(&mut harness, "use these settings");
    assert_eq!((harness.state().forms.tune.r, harness.state().forms.tune.output_dir.as_str()), (8, "runs/a-2"));
    click(&mut harness, "try it");
    assert_eq!(harness.state().forms.shelf.chosen(), [AdapterChoice { path: "runs/a".into(), strength: 1.0 }]);
    assert_eq!(harness.state().forms.shelf.model, "m");
    assert_eq!(generate::models(&harness.state().session), ["d/run/step_000050", "d/run/step_000025"], "adapters are no models");
}

#[test]
fn the_shelf_asks_the_model_alone_and_with_its_adapters() {
    let view = |ui: &mut Ui, state: &mut State| shelf::show(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
    let mut harness = sized(egui::vec2(900.0, 900.0), with_adapters(), tuning(), view);
    for adapter in ["runs/a", "runs/b"] {
        harness.get_by_role_and_label(Role::CheckBox, adapter).click();
        harness.run_steps(2);
    }
    assert_eq!(harness.state().forms.shelf.model, "m", "what they were trained beside");
    harness.get_by_role_and_label(Role::Slider, "runs/b").increment_accesskit();
    harness.state_mut().forms.shelf.question = "What is it?".into();
    harness.run_steps(2);
    let asks = click(&mut harness, "▶ ask both");
    let [Ask::Begin(Command::Generate(base)), Ask::Begin(Command::Generate(tuned))] = asks.as_slice() else { panic!("{asks:?}") };
    let chosen = [("runs/a", 1.0), ("runs/b", 1.05)].map(|(path, strength)| AdapterChoice { path: path.into(), strength });
    assert_eq!((&base.adapters[..], &tuned.adapters[..]), (&[][..], &chosen[..]));
    assert_eq!((base.model.as_str(), base.date.as_deref()), ("m", Some("2026-01-31")));
    assert_eq!((&base.messages[..], base.prompts.is_empty()), (&[Message::new("user", "What is it?")][..], true));
    assert_eq!(GenerateRequest { adapters: Vec::new(), ..tuned.clone() }, *base, "drawn alike");
    for (job, ask) in (10..).zip(asks.clone()) {
        if let Ask::Begin(command) = ask {
            harness.state_mut().session.sent(job, command);
        }
    }
    harness.run_steps(2);
    assert_eq!(harness.state().session.cards().len(), 1, "side by side");
    assert!(harness.query_by_label_contains("m + runs/a × 1 + runs/b × 1.05").is_some());
    // Without a chat template the question is a prompt.
    harness.state_mut().session.models.insert("m".into(), described(false));
    harness.run_steps(2);
    let asks = keys(&mut harness, Key::Enter);
    assert!(
        matches!(asks.first(), Some(Ask::Begin(Command::Generate(base))) if base.prompts == ["What is it?"] && base.messages.is_empty())
    );
    let merge = Command::Merge { model: "m".into(), adapters: chosen.to_vec(), out: "runs/a/merged".into(), dtype: ExportDtype::F16 };
    assert_eq!(click(&mut harness, "merge"), [Ask::Begin(merge)]);
}

#[test]
fn rows_that_are_added_are_looked_at() {
    let mut forms = tuning();
    forms.rows = RowsShown { validation: false, first: 40, row: Some("3".into()) };
    forms.part = Part::Shelf;
    forms.tune.train_file.0.push(" ".into());
    forms.add_rows(vec!["more.jsonl".into(), "rows.jsonl".into()], false);
    assert_eq!(forms.tune.train_file.0, ["more.jsonl", "rows.jsonl"], "no field is left empty, no file is there twice");
    assert_eq!((forms.part, &forms.rows), (Part::Rows, &RowsShown::default()));
    forms.add_rows(vec!["val.jsonl".into()], true);
    assert!(forms.rows.validation && forms.tune.validation_file.0 == ["val.jsonl"]);
}
