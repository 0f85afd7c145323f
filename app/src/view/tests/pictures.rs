//! Views as people see them, beside pictures that were looked at. `UPDATE_SNAPSHOTS=force cargo test …` takes them anew.

use eframe::wgpu;
use egui::{Theme, Vec2, vec2};
use egui_kittest::{SnapshotOptions, SnapshotResults};
use smolforge_engine::protocol::{DeviceInfo, SourcePlan};

use super::*;
use crate::forms::{Part, ReasonPart};

/// Two drivers do not smooth every edge alike: this share of a picture's pixels may differ.
const MOST_DIFFERENT: f32 = 0.002;

type View = fn(&mut Ui, &mut State);

/// One text and one stage.
fn one_stage() -> TrainConfig {
    let sources = [("code".to_string(), SourceConfig::Path("code.txt".into()))].into();
    TrainConfig { preset: "nano".into(), steps: 100, sources, ..TrainConfig::default() }
}

/// A plan that does not fit.
fn planned() -> Session {
    let memory_bytes = [("weights", 4u64 << 30), ("optimizer", 8 << 30)].map(|(name, size)| (name.to_string(), size)).into();
    let source = SourcePlan { tokens: 10_000, documents: 12, planned: 51_200.0, epochs: 5.12 };
    let report = PlanReport {
        parameters: 1 << 30,
        device: "a device".into(),
        memory_bytes,
        peak_bytes: 12 << 30,
        tokens: 102_400,
        sources: [("code".to_string(), source)].into(),
        warnings: vec!["training needs more than there is".into()],
        suggestion: Some([("batch_size".to_string(), 2.into())].into()),
        ..PlanReport::default()
    };
    let mut session = Session::default();
    session.sent(1, Command::Plan { config: Box::new(one_stage()), budget_bytes: None });
    session.apply(1, Event::Plan(report));
    session.apply(1, Event::Done { hints: Vec::new(), stopped: false });
    session
}

/// One text that is written, with its probabilities, and one that waits.
fn writing() -> Session {
    let mut session = Session::default();
    for job in [1, 2] {
        let prompts = vec!["Once upon a time".to_string()];
        session.sent(job, Command::Generate(GenerateRequest { model: "m".into(), prompts, alternatives: 5, ..GenerateRequest::default() }));
    }
    session.apply(1, Event::Started { job: "generate".into(), version: String::new() });
    for (text, probability) in [(" there", 0.9), (" was", 0.7), (" a", 0.5), (" fox", 0.1)] {
        let alternatives = vec![(text.to_string(), probability)];
        session.apply(1, Event::Token { prompt: 0, sample: 0, text: text.into(), probability, alternatives });
    }
    session
}

/// An adapter, and a self-test of which one kernel fails.
fn tested() -> Session {
    let mut session = Session::default();
    let info = DeviceInfo {
        name: "An adapter".into(),
        backend: "vulkan".into(),
        kind: "integrated".into(),
        driver: "a driver".into(),
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 2 << 30,
        features: vec!["shader-f16".into()],
        auto: true,
        reason: "a GPU".into(),
        products: vec!["tile 812 GFLOP/s".into(), "burn 430 GFLOP/s".into()],
    };
    session.sent(1, Command::Devices { test: false });
    session.apply(1, Event::Device(info));
    session.sent(2, Command::SelfTest { device: DeviceChoice::Gpu });
    session.apply(2, Event::Started { job: "self_test".into(), version: String::new() });
    for (name, passed) in [("rms_norm", true), ("adamw", false)] {
        session.apply(2, Event::Kernel(KernelReport { name: name.into(), passed, max_error: 0.5, tolerance: 0.1 }));
    }
    session.apply(2, Event::Done { hints: Vec::new(), stopped: false });
    session
}

fn list(ui: &mut Ui, state: &mut State) {
    runs::list(ui, &state.session, &mut state.forms, &state.picker, &mut state.asks);
}

fn devices(ui: &mut Ui, state: &mut State) {
    device::show(ui, &state.session, &mut state.forms, &mut state.asks);
}

fn live(ui: &mut Ui, state: &mut State) {
    train::progress(ui, &state.session, &mut state.forms, &mut state.asks);
}

#[test]
fn views_look_as_they_did() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    if futures_lite::future::block_on(instance.enumerate_adapters(wgpu::Backends::all())).is_empty() {
        println!("skipped: no adapter draws the views");
        return;
    }
    let (form, main) = (vec2(420.0, 620.0), vec2(640.0, 560.0));
    let views: [(&str, Vec2, Theme, Session, View); 17] = [
        ("welcome", main, Theme::Light, Session::default(), live),
        ("plan", form, Theme::Light, planned(), train_form),
        ("mix", form, Theme::Dark, training(), train_form),
        ("run", main, Theme::Light, training(), live),
        ("generate", form, Theme::Dark, Session::default(), generate_form),
        ("texts", vec2(420.0, 240.0), Theme::Light, writing(), written),
        ("list", vec2(300.0, 240.0), Theme::Dark, on_disk(), list),
        ("stopped", main, Theme::Dark, on_disk(), run_detail),
        ("devices", vec2(420.0, 420.0), Theme::Light, tested(), devices),
        ("tune", form, Theme::Light, tune::looked_at(), tune::tune_form),
        ("rows", main, Theme::Light, tune::looked_at(), tune::parts),
        ("shelf", main, Theme::Dark, tune::with_adapters(), tune::parts),
        ("reason", form, Theme::Light, reason::rolled_out(), reason::reason_form),
        ("funnel", vec2(800.0, 480.0), Theme::Light, reason::rolling(), reason::reason_parts),
        ("tests", main, Theme::Dark, reason::rolling(), reason::reason_parts),
        ("grade", vec2(640.0, 240.0), Theme::Light, reason::rolling(), reason::reason_parts),
        ("rejects", main, Theme::Light, reason::rolled_out(), reason::reason_parts),
    ];
    let mut results = SnapshotResults::new();
    for (name, size, theme, session, view) in views {
        let train = if name == "plan" { one_stage() } else { config() };
        let part = if name == "shelf" { Part::Shelf } else { Part::Rows };
        let reason = reason::looking(match name {
            "tests" => ReasonPart::Tests,
            "grade" => ReasonPart::Grade,
            "rejects" => ReasonPart::Rejects,
            _ => ReasonPart::Funnel,
        });
        let forms = Forms { train, part, reason, selected: vec!["d/run".into()], ..tune::tuning() };
        let mut harness = sized(size, session, forms, view);
        harness.ctx.set_theme(theme);
        harness.run_steps(4);
        let most = (size.x * size.y * MOST_DIFFERENT) as usize;
        results.add(harness.try_snapshot_options(name, &SnapshotOptions::new().max_failed_pixels(most)));
    }
}
