use super::*;

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
    assert_eq!(Targets::Pattern("all-linear".into()).choose(&layers()).unwrap(), layers());
    for (targets, expect) in [
        (names(&["proj"]), "no linear layer of the model matches"),
        (names(&["q_proj", "v_proj"]), "there are k_proj, q_proj, up_proj"),
        (names(&[]), "the list is empty"),
        (Targets::Pattern("q_proj".into()), "matches"), // a pattern is for the whole name, as in PEFT
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
    let again = AdapterConfig::from_peft_json(&config.to_peft_json(["x.q_proj"].into_iter()), "b").unwrap();
    assert_eq!(again, config);
    let all = AdapterConfig { targets: Targets::Pattern("all-linear".into()), ..config };
    let written: Value = serde_json::from_str(&all.to_peft_json(["a.q_proj", "b.up_proj", "c.q_proj"].into_iter())).unwrap();
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
        (json!({"rank_pattern": 3}), "rank_pattern is 3"),
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
