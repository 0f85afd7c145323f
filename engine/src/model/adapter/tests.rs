use futures_lite::future::block_on;
use serde_json::{Value, json};

use super::*;
use crate::protocol::Event;

fn layers() -> Vec<String> {
    let names = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"];
    (0..2).flat_map(|i| names.map(|name| format!("model.layers.{i}.{name}"))).collect()
}

#[track_caller]
fn chosen(targets: Targets, expect: &[&str]) {
    let found = targets.choose(&layers()).unwrap();
    assert_eq!(found.iter().map(|layer| layer.strip_prefix("model.layers.").unwrap()).collect::<Vec<_>>(), expect);
}

#[test]
fn targets_are_ends_of_names_whole_names_or_patterns() {
    let names = |names: &[&str]| Targets::Names(names.iter().map(ToString::to_string).collect());
    chosen(names(&["q_proj"]), &["0.self_attn.q_proj", "1.self_attn.q_proj"]);
    chosen(names(&["model.layers.1.mlp.up_proj", "k_proj"]), &["0.self_attn.k_proj", "1.self_attn.k_proj", "1.mlp.up_proj"]);
    chosen(Targets::Pattern(r"model\.layers\.0\..*(q|up)_proj".into()), &["0.self_attn.q_proj", "0.mlp.up_proj"]);
    chosen(
        Targets::Pattern(r".*(?<!up)_proj".into()),
        &["0.self_attn.q_proj", "0.self_attn.k_proj", "1.self_attn.q_proj", "1.self_attn.k_proj"],
    );
    chosen(Targets::Pattern("k_proj".into()), &["0.self_attn.k_proj", "1.self_attn.k_proj"]);
    chosen(Targets::Pattern("k_proj, 0.mlp.up_proj".into()), &["0.self_attn.k_proj", "0.mlp.up_proj", "1.self_attn.k_proj"]);
    assert_eq!(Targets::Pattern("all-linear".into()).choose(&layers()).unwrap(), layers());
    for (targets, expect) in [
        (names(&["proj"]), "no linear layer of the model matches"),
        (names(&["q_proj", "v_proj"]), "there are k_proj, q_proj, up_proj"),
        (names(&[]), "the list is empty"),
        (Targets::Pattern("(q)_proj".into()), "matches"), // a pattern is for the whole name, as in PEFT
        (Targets::Pattern("q_proj,qq_proj".into()), "did you mean q_proj?"),
    ] {
        let error = targets.choose(&layers()).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}

fn read(json: Value) -> Result<AdapterConfig> {
    AdapterConfig::from_peft_json(&json.to_string(), "a/adapter_config.json")
}

#[test]
fn scales_and_ranks_follow_peft() {
    let config = read(json!({
        "peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["q_proj"], "use_dora": false, "bias": "none",
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "^model.layers.0.mlp.up_proj": 4}, "alpha_pattern": {"k_proj": 5.0},
        "some_key_of_the_future": {"a": 1}, "modules_to_save": null,
    }))
    .unwrap();
    assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 4.0);
    assert_eq!((config.rank("model.layers.1.self_attn.q_proj"), config.scale("model.layers.1.self_attn.q_proj")), (2, 16.0));
    assert_eq!(config.rank("model.layers.0.mlp.up_proj"), 4);
    assert_eq!(config.scale("model.layers.3.self_attn.k_proj"), 5.0 / 8.0);
    let stable = AdapterConfig { rslora: true, ..config.clone() };
    assert_eq!(stable.scale("model.layers.0.self_attn.q_proj"), 32.0 / 8f64.sqrt());
    let again = AdapterConfig::from_peft_json(&config.to_peft_json(("", None), ["x.q_proj"].into_iter()), "b").unwrap();
    assert_eq!(again, config);
    let all = AdapterConfig { targets: Targets::Pattern("all-linear".into()), ..config };
    let written: Value = serde_json::from_str(&all.to_peft_json(("", None), ["a.q_proj", "b.up_proj", "c.q_proj"].into_iter())).unwrap();
    assert_eq!((&written["target_modules"], &written["lora_alpha"]), (&json!(["q_proj", "up_proj"]), &json!(32)));
}

#[test]
fn what_is_no_lora_on_linear_layers_is_refused_by_name() {
    for (json, expect) in [
        (json!([]), "not a JSON object"),
        (json!({"peft_type": "IA3"}), "peft_type is IA3"),
        (json!({"use_dora": true}), "use_dora is true"),
        (json!({"bias": "all"}), "bias is \"all\""),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save is [\"lm_head\"]"),
        (json!({"r": 0}), "r is 0"),
        (json!({"r": "8"}), "r is \"8\""),
        (json!({"lora_alpha": []}), "lora_alpha is []"),
        (json!({"rank_pattern": 3}), "rank_pattern cannot be read"),
        (json!({"alpha_pattern": {"q_proj": "a"}}), "alpha_pattern cannot be read"),
        (json!({"alpha_pattern": {"(": 2}}), "\"(\" of a pattern is no regular expression"),
        (json!({"rank_pattern": {"q_proj": 1.5}}), "rank_pattern gives \"q_proj\" the rank 1.5"),
        (json!({"init_lora_weights": "pissa_niter_4"}), "init_lora_weights is pissa_niter_4"),
        (json!({"init_lora_weights": "OLoRA"}), "init_lora_weights is olora"),
        (json!({"init_lora_weights": "loftq"}), "init_lora_weights is loftq"),
        (json!({"layer_replication": [[0, 4], [2, 5]]}), "layer_replication is [[0,4],[2,5]]"),
        (json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens is [1,2]"),
        (json!({"target_parameters": ["experts.down_proj"]}), "target_parameters is"),
        (json!({"target_modules": 3}), "target_modules is 3"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(expect) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn names_of_tensors_are_peft_s() {
    assert_eq!(tensor_name("model.layers.0.mlp.up_proj", "lora_A"), "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight");
    let layer = "model.layers.0.mlp.up_proj";
    assert_eq!(parts(&tensor_name(layer, "lora_B")), Some((layer, "lora_B")));
    assert_eq!(parts("base_model.model.x.lora_A.default.weight"), Some(("x", "lora_A")));
    for name in ["x.lora_A.weight", "base_model.model.x.lora_embedding_A", "base_model.model.x.lora_magnitude_vector.weight"] {
        assert_eq!(parts(name), None, "{name}");
    }
}

#[test]
fn the_first_pattern_that_fits_counts_as_in_peft() {
    // What peft.utils.other.get_pattern_key of PEFT 0.21.2 finds.
    let text = r#"{"rank_pattern": {"up|q_proj": 2, "v_proj": 3, "self_attn.v_proj": 4, "^model.layers.0.self_attn.k_proj": 5,
        "layers.[0-3].self_attn.k_proj": 6, "a.*": 7}}"#;
    let config = AdapterConfig::from_peft_json(text, "a").unwrap();
    for (layer, rank) in [
        ("model.layers.0.mlp.up_proj", 8),
        ("model.layers.0.self_attn.q_proj", 2),
        ("model.layers.0.self_attn.v_proj", 3),
        ("model.layers.0.self_attn.k_proj", 5),
        ("model.layers.1.self_attn.k_proj", 6),
        ("model.layers.9.self_attn.k_proj", 8),
        ("model.layers.9.attn.k_proj", 7),
        ("model.up", 2),
    ] {
        assert_eq!(config.rank(layer), rank, "{layer}");
    }
    let written = config.to_peft_json(("base", None), std::iter::empty());
    assert_eq!(AdapterConfig { base_model: String::new(), ..AdapterConfig::from_peft_json(&written, "b").unwrap() }, config);
    assert!(written.contains("\"up|q_proj\": 2,\n    \"v_proj\": 3,\n    \"self_attn.v_proj\": 4"), "{written}");
}

fn adapter(base: &str, four_bits: bool) -> Adapter {
    let config = read(json!({"r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]})).unwrap();
    let pair = Pair { a: vec![1.0, 2.0], b: vec![3.0], sizes: [1, 2, 1], scale: 1.0 };
    let config = AdapterConfig { base_model: base.into(), four_bits, ..config };
    Adapter { config, pairs: [("model.layers.0.self_attn.q_proj".to_string(), pair)].into() }
}

#[test]
fn bases_are_written_as_peft_reads_them() {
    let store = Store::memory();
    block_on(store.write("local/dir@x", b"")).unwrap();
    for (base, four_bits, name, revision) in [
        ("a/b", false, "a/b", json!(null)),
        ("a/b@v1.0", true, "a/b", json!("v1.0")),
        ("runs/x/model", false, "runs/x/model", json!(null)),
        ("local/dir@x", false, "local/dir@x", json!(null)),
    ] {
        let adapter = adapter(base, four_bits);
        block_on(adapter.save(&store, "a")).unwrap();
        let written: Value = serde_json::from_str(&block_on(store.read_text("a/adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&written["base_model_name_or_path"], &written["revision"]), (&json!(name), &revision));
        assert_eq!(block_on(Adapter::load(&store, "a")).unwrap(), adapter, "{base}");
    }
}

#[test]
fn an_adapter_of_a_model_of_another_name_is_noticed() {
    let check = |base: &str, model: &str, written: &str, expect: Option<bool>| {
        let (store, (control, _signals, events)) = (Store::memory(), Control::connect());
        let config = json!({"_name_or_path": written}).to_string();
        block_on(store.write(&format!("{model}/config.json"), config.as_bytes())).unwrap();
        block_on(adapter(base, false).compare_base("a", model, &store, &control));
        let said: Vec<_> = std::iter::from_fn(|| events.try_recv().ok()).map(|(_, event)| event).collect();
        let told = match said.as_slice() {
            [] => None,
            [Event::Notice { warning, text }] if !text.contains('\n') && text.contains(base) => Some(*warning),
            other => panic!("{base} on {model} ({written}): {other:?}"),
        };
        assert_eq!(told, expect, "{base} on {model} ({written})");
    };
    let cached = "/h/models--HuggingFaceTB--SmolLM2-360M-Instruct/snapshots/0123456789012345678901234567890123456789";
    let (warned, noticed) = (Some(true), Some(false));
    check("HuggingFaceTB/SmolLM2-360M", cached, "HuggingFaceTB/SmolLM2-360M", warned);
    check("HuggingFaceTB/SmolLM2-360M-Instruct@main", cached, "", None);
    check("HuggingFaceTB/SmolLM2-360M-Instruct", "models/smollm2-360m-instruct", "", None);
    check("HuggingFaceTB/SmolLM2-360M-Instruct", "models/mine", "HuggingFaceTB/SmolLM2-360M-Instruct", None);
    check("HuggingFaceTB/SmolLM2-360M-Instruct", "models/mine", "", warned);
    check("HuggingFaceTB/SmolLM2-360M-Instruct", "export", "", noticed);
    check("HuggingFaceTB/SmolLM2-360M-Instruct", "export", "HuggingFaceTB/SmolLM2-360M", warned);
    check("demo/model", "demo/base/step_000300", "", noticed);
    check("demo/model", "othername", "", noticed);
    check("demo/model", "/data/demo/model", "", None);
    check("demo/model", "othername", "demo/model", None);
    check("runs/x", "runs/x/model", "", None);
    check("base", "models/mine", "", noticed);
    check("", "models/mine", "", None);
}
