//! A task with right answers: its steps, budget and funnel, tests, points, and rejects that are mended.

use egui_kittest::kittest::NodeT;
use smolforge_engine::protocol::{
    BudgetReport, Capped, FunnelReport, GradeCase, GradeReport, ReasonConfig, ReasonVerb, Reject, Reply, Tally, TestReport,
};

use super::super::reason;
use super::*;
use crate::forms::{Reason, ReasonPart};

/// A form that is filled in, with one of its parts in front.
pub fn looking(part: ReasonPart) -> Reason {
    let config = ReasonConfig { student: "m".into(), teacher: "n".into(), out: "t".into(), ..ReasonConfig::default() };
    Reason { config, part, ..Reason::default() }
}

fn forms(part: ReasonPart) -> Forms {
    Forms { reason: looking(part), ..Forms::default() }
}

fn asked(verb: ReasonVerb) -> Command {
    Command::Reason { config: Box::new(looking(ReasonPart::Funnel).config), verb }
}

/// A step that ends with a test.
fn tested(verb: ReasonVerb) -> Command {
    let config = ReasonConfig { valid_file: Some("t/valid.json".into()), ..looking(ReasonPart::Funnel).config };
    Command::Reason { config: Box::new(config), verb }
}

fn rollout() -> Command {
    asked(ReasonVerb::Rollout { data: "t/train.json".into(), out: "t/rft.json".into() })
}

fn started() -> Event {
    Event::Started { job: "reason".into(), version: String::new() }
}

fn done() -> Event {
    Event::Done { hints: Vec::new(), stopped: false }
}

fn budget() -> BudgetReport {
    BudgetReport {
        parameters: Capped { used: 370_504_640, cap: 380_000_000 },
        bundle_bytes: Capped { used: 52_101_120, cap: 50_000_000 },
        device_bytes: Capped { used: 3 << 30, cap: 0 },
        ranks: [8, 16],
        largest_ranks: [33, 11],
    }
}

fn tally(asked: u64, answered: u64, right: u64) -> Tally {
    Tally { asked, answered, right }
}

fn funnel() -> FunnelReport {
    FunnelReport {
        questions: 10,
        done: 4,
        per_question: 5,
        samples: 20,
        answered: 18,
        right: 9,
        kept: 3,
        duplicates: 2,
        solved: 3,
        pass_at_1: 0.45,
        kinds: [("length", tally(2, 2, 2)), ("mass", tally(2, 2, 1))].map(|(kind, tally)| (kind.to_string(), tally)).into(),
        tokens: 800,
        secs: 4.0,
        eta_secs: 65.0,
    }
}

fn test(what: &str, right: u64) -> TestReport {
    let reply = |question: &str, found: f64, text: &str| Reply {
        question: question.into(),
        expected: 2000.0,
        found,
        right: found == 2000.0,
        text: text.into(),
    };
    let replies = vec![
        reply("How many g are 2 kg?", 2000.0, &format!("{what}: 2 * 1000 = <answer>2000</answer>")),
        reply("What is 2 km in m?", 20.0, &format!("{what}: <answer>20</answer>")),
        reply("Tell me 2 l in ml", f64::NAN, &format!("{what}: I do not know")),
    ];
    let kinds = [("length".to_string(), tally(4, 4, right / 2)), ("mass".to_string(), tally(4, 3, right - right / 2))];
    TestReport { what: what.into(), all: tally(8, 7, right), kinds: kinds.into(), replies, tokens: 400, secs: 2.0 }
}

/// A rollout in progress as job 1, and what came before it.
pub fn rolling() -> Session {
    let mut session = Session { runs: Some(Vec::new()), ..Session::default() };
    for model in ["m", "n"] {
        session.models.insert(model.into(), tune::described(true));
    }
    session.sent(1, rollout());
    session.apply(1, started());
    session.apply(1, Event::Budget(budget()));
    session.apply(1, Event::Funnel(funnel()));
    for (what, right) in [("cot", 3), ("sft", 5), ("rft", 7)] {
        session.apply(1, Event::Tested(test(what, right)));
    }
    let case = |name: &str, [score, points]: [u32; 2], value: f64, remark: &str| GradeCase {
        name: name.into(),
        score,
        points,
        value,
        remark: remark.into(),
        secs: 12.0,
    };
    let cases =
        vec![case("SFT", [20, 25], 0.56, "answer rate 0.98"), case("RFT", [0, 25], f64::NAN, "380,541,120 parameters are too many")];
    session.apply(1, Event::Graded(GradeReport { cases }));
    session
}

/// The rollout has ended; two questions have no right sample, and are known.
pub fn rolled_out() -> Session {
    let mut session = rolling();
    session.apply(1, done());
    session.sent(2, asked(ReasonVerb::Rejects { data: "t/rft.json".into() }));
    session.apply(2, started());
    let reject = |question: &str, expected: f64, samples: &[&str]| Reject {
        question: question.into(),
        expected,
        samples: samples.iter().map(ToString::to_string).collect(),
    };
    let rejects = vec![
        reject("How many gram are there per 6 kg?", 6000.0, &["6 * 100 = <answer>600</answer>", "I do not know"]),
        reject("What is 3 min in s?", 180.0, &["<answer>3</answer>"]),
    ];
    session.apply(2, Event::Rejected { data: "t/rft.json".into(), rejects });
    session.apply(2, done());
    session
}

pub fn reason_form(ui: &mut Ui, state: &mut State) {
    reason::form(ui, &state.session, &mut state.forms.reason, &state.picker, &mut state.asks);
}

pub fn reason_parts(ui: &mut Ui, state: &mut State) {
    reason::parts(ui, &state.session, &mut state.forms, &mut state.asks);
}

#[track_caller]
fn seen(harness: &Harness<'_, State>, labels: &[&str]) {
    for label in labels {
        assert!(harness.query_all_by_label(label).next().is_some(), "{label} is not shown");
    }
}

#[test]
fn every_step_works_below_the_folder_of_the_task() {
    let mut harness = sized(egui::vec2(440.0, 1400.0), rolled_out(), forms(ReasonPart::Tests), reason_form);
    let [train, valid, rows] = ["train", "valid", "rft"].map(|name| format!("t/{name}.json"));
    let [sft, rft] = ["t/sft", "t/rft"].map(String::from);
    let resume = false;
    for (label, part, command) in [
        ("make questions", ReasonPart::Funnel, asked(ReasonVerb::MakeData { out: "t".into() })),
        ("test (CoT)", ReasonPart::Tests, asked(ReasonVerb::Cot { data: valid.clone() })),
        ("learn answers (SFT)", ReasonPart::Run, tested(ReasonVerb::Sft { data: train.clone(), out: sft.clone(), resume })),
        ("roll out", ReasonPart::Funnel, asked(ReasonVerb::Rollout { data: train, out: rows.clone() })),
        ("learn reasoning (RFT)", ReasonPart::Run, tested(ReasonVerb::Rft { data: rows, out: rft.clone(), resume })),
        ("grade", ReasonPart::Grade, asked(ReasonVerb::Grade { data: valid, submission: None, sft: Some(sft), rft: Some(rft) })),
        ("▶ run all", ReasonPart::Funnel, asked(ReasonVerb::Run)),
    ] {
        assert_eq!(click(&mut harness, label), [Ask::Begin(command)], "{label}");
        assert_eq!(harness.state().forms.reason.part, part, "{label}: its outcome is in front");
    }
    assert_eq!(keys(&mut harness, Key::Enter), [Ask::Begin(asked(ReasonVerb::Run))]);
    harness.state_mut().forms.reason.config.tolerance = 7.0;
    harness.run_steps(2);
    assert_eq!(keys(&mut harness, Key::Enter), [], "a value is out of its range");
    assert_eq!(click(&mut harness, "roll out"), []);
}

#[test]
fn a_bundle_is_written_and_graded_from_the_zip() {
    let mut harness = sized(egui::vec2(440.0, 1400.0), rolled_out(), forms(ReasonPart::Funnel), reason_form);
    assert!(harness.query_by_label("write the bundle").is_none());
    assert_eq!(click(&mut harness, "bundle …"), []);
    let out = "t/submission.zip".to_string();
    let bundle = |folder| tested(ReasonVerb::Bundle { sft: "t/sft".into(), rft: "t/rft".into(), folder, out: out.clone() });
    assert_eq!(click(&mut harness, "write the bundle"), [Ask::Begin(bundle(None))]);
    harness.state_mut().forms.reason.folder = "homework".into();
    harness.run_steps(2);
    assert_eq!(click(&mut harness, "write the bundle"), [Ask::Begin(bundle(Some("homework".into())))]);
    let grade = ReasonVerb::Grade { data: "t/valid.json".into(), submission: Some(out.clone()), sft: None, rft: None };
    assert_eq!(click(&mut harness, "grade the bundle"), [Ask::Begin(asked(grade))]);
}

#[test]
fn what_is_learned_is_tested_by_questions_that_are_chosen_or_made() {
    let [mine, other] = ["mine.json", "other.json"].map(|name| Some(name.to_string()));
    let made = Some("t/valid.json".to_string());
    for (train_file, valid_file, expected) in [
        (None, None, made),
        (None, other.clone(), other.clone()),
        (mine.clone(), other.clone(), other),
        (mine, None, None), // beside a file of one's own there may be none
    ] {
        let mut forms = forms(ReasonPart::Tests);
        forms.reason.config = ReasonConfig { train_file, valid_file, ..forms.reason.config };
        let parts = sized(egui::vec2(800.0, 600.0), Session::default(), forms.clone(), reason_parts);
        let promised = parts.query_by_label_contains("it is tested at the end").is_some();
        assert_eq!(promised, expected.is_some());
        let mut harness = sized(egui::vec2(440.0, 1400.0), rolled_out(), forms, reason_form);
        let asks = click(&mut harness, "learn answers (SFT)");
        let [Ask::Begin(Command::Reason { config, .. })] = asks.as_slice() else { panic!("{asks:?}") };
        assert_eq!(config.valid_file, expected);
    }
}

#[test]
fn an_adapter_that_was_stopped_goes_on() {
    let died = RunSummary { checkpoints: Vec::new(), ..summary("t/sft", RunState::Open) }; // before its first checkpoint
    for begun in [summary("t/sft", RunState::Stopped), died] {
        let mut session = rolled_out();
        session.runs = Some(vec![begun, summary("t/rft", RunState::Finished)]);
        let mut harness = sized(egui::vec2(440.0, 1400.0), session, forms(ReasonPart::Funnel), reason_form);
        for (label, goes_on) in [("learn answers (SFT)", true), ("learn reasoning (RFT)", false)] {
            let asks = click(&mut harness, label);
            let [Ask::Begin(Command::Reason { verb: ReasonVerb::Sft { resume, .. } | ReasonVerb::Rft { resume, .. }, .. })] =
                asks.as_slice()
            else {
                panic!("{asks:?}")
            };
            assert_eq!(*resume, goes_on, "{label}");
        }
    }
}

#[test]
fn a_step_in_progress_is_paused_and_stopped() {
    let mut harness = sized(egui::vec2(440.0, 1400.0), rolling(), forms(ReasonPart::Funnel), reason_form);
    seen(&harness, &["rolling out", "The next step"]);
    assert!(harness.query_by_label("roll out").is_none() && harness.query_by_label("save").is_none(), "it saves as it goes");
    assert_eq!(click(&mut harness, "pause"), [Ask::Tell(1, Command::Pause)]);
    assert_eq!(click(&mut harness, "stop"), [Ask::Tell(1, Command::Stop)]);
    assert_eq!(keys(&mut harness, Key::Period), [Ask::Tell(1, Command::Stop)]);
}

#[test]
fn what_is_over_its_cap_says_so() {
    let mut harness = sized(egui::vec2(800.0, 700.0), rolling(), forms(ReasonPart::Funnel), reason_parts);
    seen(&harness, &["370,504,640 of 380,000,000", "largest rank that fits: 33"]);
    seen(&harness, &["52.1 MB of 50 MB · uncompressed", "largest rank that fits twice: 11"]);
    seen(&harness, &["3.00 GiB · no cap is known", "rank 8 for answers, 16 for reasoning"]);
    assert!(harness.query_by_label_contains("of other settings").is_none());
    harness.state_mut().forms.reason.config.rft_r = 11;
    harness.run_steps(2);
    seen(&harness, &["of other settings: the next step counts anew"]);
    harness.state_mut().forms.reason.config.out = "u".into();
    harness.run_steps(2);
    seen(&harness, &["of t"]);
}

#[test]
fn a_funnel_leads_from_samples_to_rows() {
    let mut harness = sized(egui::vec2(500.0, 900.0), rolling(), forms(ReasonPart::Funnel), reason_parts);
    seen(&harness, &["4 of 10", "20 of 50", "18 · 90 %", "9 · 45 %", "3 · 15 %", "2 · 10 %"]);
    seen(&harness, &["pass@1 45 %", "pass@5 75 %", "200 tokens/s", "1 min 05 s to go"]);
    seen(&harness, &["2 of 2 · 100 %", "1 of 2 · 50 %"]);
    let nothing = FunnelReport { answered: 0, right: 0, ..funnel() };
    harness.state_mut().session.apply(1, Event::Funnel(nothing));
    harness.run_steps(2);
    assert!(harness.query_by_label_contains("no answer so far").is_some(), "a teacher that says nothing");
}

#[test]
fn tests_stand_side_by_side_with_their_replies_on_demand() {
    let mut harness = sized(egui::vec2(800.0, 900.0), rolling(), forms(ReasonPart::Tests), reason_parts);
    seen(&harness, &["CoT", "SFT", "RFT", "37.5 % · 3 of 8", "62.5 % · 5 of 8", "87.5 % · 7 of 8"]);
    seen(&harness, &["length", "mass", "answer rate", "200 tokens/s"]);
    let [right, wrong, none] = ["2 * 1000 = <answer>2000</answer>", "<answer>20</answer>", "I do not know"];
    assert!(harness.query_by_label(&format!("rft: {right}")).is_none(), "nobody has asked for it");
    click(&mut harness, "What they replied");
    harness.run_steps(4);
    for text in [right, wrong, none] {
        seen(&harness, &[&format!("rft: {text}")]);
    }
    seen(&harness, &["● right", "● wrong", "● no answer", "1 to 3 of 3"]);
    click(&mut harness, "wrong");
    harness.run_steps(2);
    assert!(harness.query_by_label(&format!("rft: {right}")).is_none());
    seen(&harness, &["1 to 2 of 2"]);
    harness.get_by_role_and_label(Role::Button, "CoT").click();
    harness.run_steps(4);
    seen(&harness, &[&format!("cot: {wrong}"), &format!("cot: {none}")]);
}

#[test]
fn points_are_shown_with_what_cost_them() {
    let harness = sized(egui::vec2(640.0, 500.0), rolling(), forms(ReasonPart::Grade), reason_parts);
    seen(&harness, &["20 of 50 points", "20 of 25", "0 of 25", "0.560", "380,541,120 parameters are too many"]);
}

#[test]
fn only_reasoning_with_the_right_answer_is_kept() {
    let mut harness = sized(egui::vec2(800.0, 900.0), rolled_out(), forms(ReasonPart::Rejects), reason_parts);
    seen(&harness, &["How many gram are there per 6 kg?", "right answer 6000.0", "2 samples", "1 sample"]);
    let question = "How many gram are there per 6 kg?";
    let keep = |harness: &mut Harness<'_, State>| {
        harness.get_all_by_label("keep").next().expect("one for each").click();
        harness.run_steps(2);
        std::mem::take(&mut harness.state_mut().asks)
    };
    assert_eq!(keep(&mut harness), [], "nothing is written yet");
    harness.get_all_by_label("reasoning").next().expect("one for each").focus();
    harness.run_steps(2);
    for (written, asks) in [("6 kg are ", false), ("<answer>600", false), ("0</answer>", true)] {
        harness.get_all_by_label("reasoning").next().expect("one for each").type_text(written);
        harness.run_steps(2);
        let keeps = harness.get_all_by_label("keep").next().is_some_and(|keep| !keep.accesskit_node().is_disabled());
        assert_eq!(keeps, asks, "{written}");
    }
    seen(&harness, &["● its answer 6000.0 is right"]);
    let reasoning = "6 kg are <answer>6000</answer>".to_string();
    let mend = asked(ReasonVerb::Mend { data: "t/rft.json".into(), question: question.into(), reasoning: reasoning.clone() });
    assert_eq!(keys(&mut harness, Key::Enter), [Ask::Begin(mend.clone())]);
    assert_eq!(keep(&mut harness), [Ask::Begin(mend.clone())]);
    assert_eq!(harness.state().forms.reason.mends.get(question), Some(&reasoning), "it outlives a restart");
    let session = &mut harness.state_mut().session;
    session.sent(3, mend);
    harness.run_steps(2);
    assert_eq!(keep(&mut harness), [], "it is being kept");
    harness.state_mut().session.apply(3, done());
    harness.run_steps(2);
    assert!(harness.query_by_label(question).is_none());
    seen(&harness, &["What is 3 min in s?", "1 question without a right sample: what you write is learned like what the teacher wrote"]);
}

#[test]
fn a_sample_is_taken_up_to_be_mended() {
    let mut harness = sized(egui::vec2(800.0, 900.0), rolled_out(), forms(ReasonPart::Rejects), reason_parts);
    click(&mut harness, "2 samples");
    harness.run_steps(4);
    seen(&harness, &["I do not know", "its answer 600.0 is not right"]);
    harness.get_all_by_label("take up").next().expect("the first sample's").click();
    harness.run_steps(2);
    let mends = &harness.state().forms.reason.mends;
    assert_eq!(mends.values().collect::<Vec<_>>(), ["6 * 100 = <answer>600</answer>"]);
    seen(&harness, &["● its answer 600.0 is not right"]);
}

#[test]
fn rejects_are_asked_for_when_they_are_looked_at() {
    let mut session = rolling();
    let state =
        |session| State { session, forms: forms(ReasonPart::Rejects), picker: Picker::new(&egui::Context::default()), asks: Vec::new() };
    let setup = || Harness::builder().with_size(egui::vec2(800.0, 600.0)).with_context_setup(theme::apply);
    let mut harness = setup().build_ui_state(reason_parts, state(session));
    harness.run_steps(6);
    assert_eq!(harness.state().asks, [], "the rollout goes on");
    session = rolling();
    session.apply(1, done());
    let mut harness = setup().build_ui_state(reason_parts, state(session));
    harness.run_steps(6);
    let wanted = asked(ReasonVerb::Rejects { data: "t/rft.json".into() });
    assert_eq!(harness.state().asks.first(), Some(&Ask::Begin(wanted.clone())));
    harness.state_mut().asks.clear();
    let session = &mut harness.state_mut().session;
    session.sent(2, wanted.clone());
    session.apply(2, Event::Failed { error: "t/rft.json: no such file".into(), defect: false });
    harness.run_steps(6);
    assert_eq!(harness.state().asks, [], "once");
    seen(&harness, &["error: t/rft.json: no such file", "No rollout yet"]);
    assert_eq!(click(&mut harness, "look again"), [Ask::Begin(wanted)]);
}

#[test]
fn a_phone_has_room_for_a_task() {
    let size = egui::vec2(390.0, 1400.0);
    let form = sized(size, rolled_out(), forms(ReasonPart::Funnel), reason_form);
    let funnel = sized(size, rolled_out(), forms(ReasonPart::Funnel), reason_parts);
    let rejects = sized(size, rolled_out(), forms(ReasonPart::Rejects), reason_parts);
    let labels = [
        (form, ["▶ run all", "learn reasoning (RFT)", "bundle …", "temperature"]),
        (funnel, ["370,504,640 of 380,000,000", "18 · 90 %", "rejects", "2 of 2 · 100 %"]),
        (rejects, ["How many gram are there per 6 kg?", "reasoning", "keep", "look again"]),
    ];
    for (harness, labels) in labels {
        for label in labels {
            for node in harness.get_all_by_label(label) {
                let rect = node.rect();
                assert!(rect.left() >= 0.0 && rect.right() <= 390.0, "{label}: {rect:?}");
            }
        }
    }
}
