//! Views as people use them: a session in, a click by its label, what it asks for out.

use std::collections::BTreeMap;

use egui::accesskit::Role;
use egui::{Key, Modifiers, Ui};
use egui_kittest::Harness;
use egui_kittest::kittest::Queryable;
use smolforge_engine::config::{SourceConfig, TrainConfig};
use smolforge_engine::protocol::{
    Command, DeviceChoice, Event, GenerateRequest, KernelReport, PlanReport, PreviewReport, RunInfo, RunState, RunSummary, StepReport,
};
use smolforge_engine::tasks::demo;

mod pictures;
mod reason;
mod tune;

use super::{Ask, device, generate, runs, sources, texts, train};
use crate::files::Picker;
use crate::forms::Forms;
use crate::session::Session;
use crate::theme;

/// What a view is given, and what it asked for.
struct State {
    session: Session,
    forms: Forms,
    picker: Picker,
    asks: Vec<Ask>,
}

/// A window of the smallest size that shows everything, with one view in it.
fn window<'a>(session: Session, forms: Forms, view: fn(&mut Ui, &mut State)) -> Harness<'a, State> {
    sized(egui::vec2(1024.0, 700.0), session, forms, view)
}

fn sized<'a>(size: egui::Vec2, session: Session, forms: Forms, view: fn(&mut Ui, &mut State)) -> Harness<'a, State> {
    let state = State { session, forms, picker: Picker::new(&egui::Context::default()), asks: Vec::new() };
    let mut harness = Harness::builder().with_size(size).with_context_setup(theme::apply).build_ui_state(view, state);
    // Sources are read when they are there: that is asked for once.
    for (job, ask) in (100..).zip(std::mem::take(&mut harness.state_mut().asks)) {
        if let Ask::Begin(command) = ask {
            harness.state_mut().session.sent(job, command);
        }
    }
    harness.run_steps(3);
    harness.state_mut().asks.clear();
    harness
}

/// Clicks what has this label; what that asks for.
#[track_caller]
fn click(harness: &mut Harness<'_, State>, label: &str) -> Vec<Ask> {
    harness.get_by_label(label).click();
    harness.run_steps(2);
    std::mem::take(&mut harness.state_mut().asks)
}

fn keys(harness: &mut Harness<'_, State>, key: Key) -> Vec<Ask> {
    harness.key_press_modifiers(Modifiers::COMMAND, key);
    harness.run_steps(2);
    std::mem::take(&mut harness.state_mut().asks)
}

fn config() -> TrainConfig {
    demo::config("d", DeviceChoice::Cpu, 1, 100)
}

fn summary(path: &str, state: RunState) -> RunSummary {
    let losses = vec![(1, 3.0), (50, 2.0)];
    RunSummary {
        path: path.into(),
        state,
        step: 50,
        steps: 100,
        losses,
        checkpoints: vec![25, 50],
        size_bytes: 1 << 20,
        ..RunSummary::default()
    }
}

fn story() -> Vec<(f64, Event)> {
    let sources = ["code", "input", "math"].map(|name| (name.to_string(), (10_000, 500))).into();
    let info =
        RunInfo { path: "d/run".into(), device: "a device".into(), steps: 100, tokens_per_step: 1024, sources, ..RunInfo::default() };
    let steps = (1..=50u32).map(|step| {
        let source_tokens = BTreeMap::from([("input".to_string(), 1024)]);
        Event::Step(StepReport { step, loss: 3.0 - f64::from(step) / 50.0, source_tokens, tokens: 1024, ..StepReport::default() })
    });
    let sample = |step| Event::Sample { step, stage: "s".into(), prompt: "p".into(), text: format!(" written at {step}") };
    let events = [Event::Run(info)].into_iter().chain(steps).chain([sample(20), sample(40)]);
    events.map(|event| (0.0, event)).collect()
}

/// A demo in its 50th of 100 steps, as job 1.
fn training() -> Session {
    let mut session = Session::default();
    session.sent(1, Command::Train { config: Box::new(config()), resume: false });
    session.apply(1, Event::Started { job: "train".into(), version: String::new() });
    story().into_iter().for_each(|(_, event)| session.apply(1, event));
    session
}

/// Two runs on disk, the first one read.
fn on_disk() -> Session {
    let runs = vec![summary("d/run", RunState::Stopped), summary("e", RunState::Finished)];
    let mut session = Session { runs: Some(runs), ..Session::default() };
    session.sent(1, Command::OpenRun { path: "d/run".into() });
    session.apply(1, Event::Opened { path: "d/run".into(), config: Box::new(config()), events: story() });
    session
}

fn train_form(ui: &mut Ui, state: &mut State) {
    train::form(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
}

fn generate_form(ui: &mut Ui, state: &mut State) {
    generate::form(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
}

fn written(ui: &mut Ui, state: &mut State) {
    texts::show(ui, &state.session, &state.forms, &mut state.asks);
}

fn run_detail(ui: &mut Ui, state: &mut State) {
    runs::detail(ui, &state.session, &mut state.forms, &mut state.asks);
}

#[test]
fn train_begins_the_run_of_the_form_by_click_and_by_keys() {
    let forms = Forms { train: config(), ..Forms::default() };
    let mut harness = window(Session::default(), forms, train_form);
    let begin = vec![Ask::Begin(Command::Train { config: Box::new(config()), resume: false })];
    assert_eq!(click(&mut harness, "▶ train"), begin);
    assert_eq!(keys(&mut harness, Key::Enter), begin);
    assert_eq!(click(&mut harness, "plan"), [Ask::Begin(Command::Plan { config: Box::new(config()), budget_bytes: None })]);
}

#[test]
fn a_run_in_progress_is_paused_saved_and_stopped() {
    let mut harness = window(training(), Forms::default(), train_form);
    assert_eq!(click(&mut harness, "pause"), [Ask::Tell(1, Command::Pause)]);
    assert_eq!(click(&mut harness, "save"), [Ask::Tell(1, Command::Save)]);
    assert_eq!(keys(&mut harness, Key::S), [Ask::Tell(1, Command::Save)]);
    assert_eq!(click(&mut harness, "stop and save"), [Ask::Tell(1, Command::Stop)]);
    assert_eq!(keys(&mut harness, Key::Period), [Ask::Tell(1, Command::Stop)]);
    harness.state_mut().session.told(1, &Command::Stop);
    assert_eq!(keys(&mut harness, Key::Period), [], "it stops already");
}

#[test]
fn a_weight_that_is_moved_is_asked_for_once() {
    // Of the five stages of the demo the run is in the third: a slider for every source of each.
    let mut harness = window(training(), Forms::default(), train_form);
    let sliders: Vec<_> = harness.get_all_by_role(Role::Slider).collect();
    assert_eq!(sliders.len(), 15);
    sliders[2].increment_accesskit(); // a stage that is over
    sliders[8].increment_accesskit(); // math, in the present one
    harness.run_steps(4);
    let asks = std::mem::take(&mut harness.state_mut().asks);
    let [Ask::Tell(1, Command::Reweight { stage: 2, weights })] = asks.as_slice() else { panic!("{asks:?}") };
    assert!(weights["math"] > 0.2 && (weights.values().sum::<f64>() - 1.0).abs() < 1e-9, "{weights:?}");
    assert!(harness.state().forms.reweight.is_some(), "it is shown until the run has taken it up");
    let weights = weights.clone();
    harness.state_mut().session.apply(1, Event::Reweighted { step: 50, stage: 2, weights });
    harness.run_steps(2);
    assert!(harness.state().forms.reweight.is_none());
    assert_eq!(harness.state().session.live.as_ref().map(|run| run.changes.clone()), Some(vec![50]));
}

#[test]
fn make_it_fit_takes_up_what_the_plan_suggests() {
    let mut session = Session::default();
    let suggestion = BTreeMap::from([("batch_size".to_string(), 2.into()), ("accumulation".to_string(), 4.into())]);
    let report = PlanReport { suggestion: Some(suggestion), ..PlanReport::default() };
    session.sent(1, Command::Plan { config: Box::new(config()), budget_bytes: None });
    session.apply(1, Event::Plan(report));
    session.apply(1, Event::Done { hints: Vec::new(), stopped: false });
    let mut harness = sized(egui::vec2(440.0, 1600.0), session, Forms { train: config(), ..Forms::default() }, train_form);
    let smaller = TrainConfig { batch_size: 2, accumulation: 4, ..config() };
    assert_eq!(click(&mut harness, "make it fit"), [Ask::Begin(Command::Plan { config: Box::new(smaller.clone()), budget_bytes: None })]);
    assert_eq!(harness.state().forms.train, smaller);
    assert!(harness.query_by_label("make it fit").is_none(), "the plan is of other settings now");
    assert!(harness.query_by_label("of other settings: press plan again").is_some());
}

#[test]
fn sources_are_read_when_they_are_there_and_page_by_page() {
    let source = SourceConfig::Path("a.txt".into());
    let mut forms = Forms::default();
    forms.add_source("a.txt".into());
    let view = |ui: &mut Ui, state: &mut State| {
        sources::show(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
        sources::preview(ui, &state.session, &mut state.forms, &mut state.asks);
    };
    let asked = |page| Ask::Begin(Command::Preview { source: source.clone(), page });
    let state = State { session: Session::default(), forms, picker: Picker::new(&egui::Context::default()), asks: Vec::new() };
    let setup = Harness::builder().with_size(egui::vec2(800.0, 600.0)).with_context_setup(theme::apply);
    let mut harness = setup.build_ui_state(view, state);
    assert_eq!(harness.state().asks.first(), Some(&asked(0)));
    let shown = |page, text: &str| Event::Preview(PreviewReport { size_bytes: 9, files: 1, page, pages: 2, texts: vec![text.into()] });
    let session = &mut harness.state_mut().session;
    session.sent(1, Command::Preview { source: source.clone(), page: 0 });
    session.apply(1, shown(0, "the first page"));
    session.apply(1, Event::Done { hints: Vec::new(), stopped: false });
    harness.run_steps(2);
    harness.state_mut().asks.clear();
    click(&mut harness, "look");
    assert!(harness.query_by_label("the first page").is_some());
    assert!(click(&mut harness, "▶").contains(&asked(1)));
    let session = &mut harness.state_mut().session;
    session.sent(2, Command::Preview { source: source.clone(), page: 1 });
    session.apply(2, shown(1, "the second page"));
    session.apply(2, Event::Done { hints: Vec::new(), stopped: false });
    harness.run_steps(2);
    assert!(harness.query_by_label("the second page").is_some());
}

#[test]
fn one_click_asks_two_models() {
    let request = GenerateRequest { model: "m".into(), ..GenerateRequest::default() };
    let forms = Forms { generate: request, prompt: "once".into(), compare: true, second: "n".into(), ..Forms::default() };
    let mut harness = window(Session::default(), forms, generate_form);
    let asks = click(&mut harness, "▶ generate");
    let models: Vec<(&str, &str)> = asks
        .iter()
        .map(|ask| match ask {
            Ask::Begin(Command::Generate(request)) => (request.model.as_str(), request.prompts[0].as_str()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(models, [("m", "once"), ("n", "once")]);
    for (job, ask) in (1..).zip(asks) {
        if let Ask::Begin(command) = ask {
            harness.state_mut().session.sent(job, command);
        }
    }
    assert_eq!(harness.state().session.cards().len(), 1, "they are one card");
    harness.state_mut().forms.second.clear();
    harness.run_steps(2);
    assert_eq!(keys(&mut harness, Key::Enter), [], "a second model is missing");
}

#[test]
fn probabilities_are_asked_for_and_shown() {
    let forms = Forms { generate: GenerateRequest { model: "m".into(), ..GenerateRequest::default() }, ..Forms::default() };
    let mut harness = window(Session::default(), forms, generate_form);
    harness.get_by_role_and_label(Role::CheckBox, "probabilities").click();
    harness.run_steps(2);
    assert_eq!(harness.state().forms.generate.alternatives, 5);
    let mut session = Session::default();
    session.sent(1, Command::Generate(GenerateRequest { alternatives: 5, ..GenerateRequest::default() }));
    session.apply(1, Event::Started { job: "generate".into(), version: String::new() });
    for text in ["The", " fox"] {
        let alternatives = vec![(text.to_string(), 0.5), (" owl".to_string(), 0.25)];
        session.apply(1, Event::Token { prompt: 0, sample: 0, text: text.into(), probability: 0.5, alternatives });
    }
    let mut harness = window(session, Forms::default(), written);
    harness.get_by_label_contains("fox").hover();
    harness.run_steps(60); // a tooltip waits a moment
    assert!(harness.query_by_label_contains("owl").is_some(), "what it might have been");
}

#[test]
fn texts_that_wait_are_cancelled_and_moved() {
    let mut session = Session::default();
    for job in 1..=3 {
        session.sent(job, Command::Generate(GenerateRequest { prompts: vec![format!("prompt {job}")], ..GenerateRequest::default() }));
        session.apply(job, Event::Waiting { position: job as usize - 1 });
    }
    session.apply(1, Event::Started { job: "generate".into(), version: String::new() });
    let mut harness = window(session, Forms::default(), written);
    assert_eq!(click(&mut harness, "stop"), [Ask::Tell(1, Command::Stop)]);
    let cancel: Vec<_> = harness.get_all_by_label("cancel").collect();
    cancel[1].click();
    harness.run_steps(2);
    assert_eq!(std::mem::take(&mut harness.state_mut().asks), [Ask::Tell(3, Command::Stop)]);
    let earlier: Vec<_> = harness.get_all_by_label("↑").collect();
    earlier[1].click();
    harness.run_steps(2);
    assert_eq!(std::mem::take(&mut harness.state_mut().asks), [Ask::Tell(3, Command::Move { position: 0 })]);
}

#[test]
fn a_run_is_deleted_only_after_a_question() {
    let forms = Forms { selected: vec!["d/run".into()], ..Forms::default() };
    let mut harness = window(on_disk(), forms, run_detail);
    assert_eq!(click(&mut harness, "delete …"), []);
    assert_eq!(click(&mut harness, "keep it"), []);
    assert!(harness.query_by_label("delete the run").is_none());
    click(&mut harness, "delete …");
    assert_eq!(click(&mut harness, "delete the run"), [Ask::Begin(Command::Delete { path: "d/run".into() })]);
    assert_eq!(harness.state().forms.deleting, None);
}

#[test]
fn a_run_is_resumed_packed_and_looked_at_along_its_steps() {
    let forms = Forms { selected: vec!["d/run".into()], ..Forms::default() };
    let mut harness = sized(egui::vec2(1024.0, 1600.0), on_disk(), forms, run_detail);
    assert_eq!(click(&mut harness, "pack"), [Ask::Begin(Command::Pack { folder: "d/run".into(), out: "d/run.zip".into() })]);
    let begun = Box::new(TrainConfig { out: "d/run".into(), ..TrainConfig::default() });
    assert_eq!(click(&mut harness, "▶ resume"), [Ask::Begin(Command::Train { config: begun, resume: true })]);
    assert!(harness.query_by_label(" written at 40").is_some());
    harness.state_mut().forms.plots.at = Some(30);
    harness.run_steps(2);
    assert!(harness.query_by_label(" written at 40").is_none() && harness.query_by_label(" written at 20").is_some());
    assert!(harness.query_by_label("loss 2.4000").is_some(), "the loss of step 30");
    click(&mut harness, "last");
    assert_eq!(harness.state().forms.plots.at, None);
}

#[test]
fn a_run_of_the_list_is_selected_by_a_click() {
    let view = |ui: &mut Ui, state: &mut State| runs::list(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
    let mut harness = window(on_disk(), Forms::default(), view);
    click(&mut harness, "e");
    assert_eq!((&harness.state().forms.selected, harness.state().forms.front), (&vec!["e".to_string()], true));
    assert_eq!(click(&mut harness, "look again"), [Ask::Begin(Command::Runs { folder: ".".into() })]);
}

#[test]
fn the_self_test_is_run_and_says_what_failed() {
    let view = |ui: &mut Ui, state: &mut State| device::show(ui, &state.session, &mut state.forms, &mut state.asks);
    let mut harness = window(Session::default(), Forms { test_device: DeviceChoice::Cpu, ..Forms::default() }, view);
    let asks = click(&mut harness, "run the self-test");
    assert_eq!(asks, [Ask::Begin(Command::SelfTest { device: DeviceChoice::Cpu })]);
    let session = &mut harness.state_mut().session;
    session.sent(1, Command::SelfTest { device: DeviceChoice::Cpu });
    session.apply(1, Event::Started { job: "self_test".into(), version: String::new() });
    for (name, passed) in [("rms_norm", true), ("adamw", false)] {
        session.apply(1, Event::Kernel(KernelReport { name: name.into(), passed, max_error: 0.5, tolerance: 0.1 }));
    }
    session.apply(1, Event::Done { hints: Vec::new(), stopped: false });
    harness.run_steps(2);
    assert!(harness.query_by_label("1 of 2 pass").is_some() && harness.query_by_label("fail").is_some());
}

#[test]
fn memory_in_use_is_asked_for_again_when_the_last_answer_has_come() {
    let view = |ui: &mut Ui, state: &mut State| device::show(ui, &state.session, &mut state.forms, &mut state.asks);
    let mut harness = window(Session::default(), Forms::default(), view);
    harness.run_steps(8); // two seconds
    assert_eq!(harness.state().asks, []);
    let (job, _) = harness.state().session.active(|command| matches!(command, Command::Memory)).expect("asked for at once");
    harness.state_mut().session.apply(job, Event::Done { hints: Vec::new(), stopped: false });
    harness.run_steps(2);
    assert_eq!(harness.state().asks, [Ask::Begin(Command::Memory)]);
}

#[test]
fn a_phone_has_room_for_generating() {
    let forms = Forms { generate: GenerateRequest { model: "m".into(), ..GenerateRequest::default() }, ..Forms::default() };
    let harness = sized(egui::vec2(390.0, 800.0), Session::default(), forms, generate_form);
    for label in ["▶ generate", "greedy", "▼", "Prompt"] {
        for node in harness.get_all_by_label(label) {
            let rect = node.rect();
            assert!(rect.left() >= 0.0 && rect.right() <= 390.0, "{label}: {rect:?}");
        }
    }
}

/// Points of all lines that are drawn.
fn points(shape: &egui::Shape) -> usize {
    match shape {
        egui::Shape::Vec(parts) => parts.iter().map(points).sum(),
        egui::Shape::Path(path) => path.points.len(),
        _ => 1,
    }
}

#[test]
fn a_long_run_is_drawn_from_few_points() {
    let mut session = on_disk();
    let steps = (1..=100_000u32).map(|step| {
        let source = |name: &str, number: f64| (name.to_string(), number + f64::from(step % 10));
        let source_loss = ["code", "input", "math"].map(|name| source(name, 1.0)).into();
        let source_tokens = ["code", "input", "math"].map(|name| (name.to_string(), 300)).into();
        let loss = f64::from(step % 10);
        (0.0, Event::Step(StepReport { step, loss, source_loss, source_tokens, tokens: 900, ..StepReport::default() }))
    });
    session.apply(1, Event::Opened { path: "d/run".into(), config: Box::new(config()), events: steps.collect() });
    let forms = Forms { selected: vec!["d/run".into()], ..Forms::default() };
    let harness = sized(egui::vec2(1024.0, 1600.0), session, forms, run_detail);
    let drawn: usize = harness.output().shapes.iter().map(|clipped| points(&clipped.shape)).sum();
    assert!(drawn > 1000 && drawn < 40_000, "{drawn} points");
}
