use super::*;

/// The shape of the reference system's file, with its old spellings.
const REFERENCE: &str = r#"
huggingface:
  model_name: meta-llama/Llama-3.2-3B-Instruct
  task_prefix_format: "[{TASK}] {instruction}"
  max_seq_length: 512
qlora:
  r: 16
  lora_alpha: 32
  lora_dropout: 0.05
  target_modules: [q_proj, v_proj, k_proj, o_proj]
  bias: none
  task_type: CAUSAL_LM
training:
  num_epochs: 3
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 2
  learning_rate: 2e-4
  warmup_ratio: "0.1"
  weight_decay: 0.01
  optim: paged_adamw_8bit
  logging_steps: 10
  save_strategy: epoch
  evaluation_strategy: epoch
  save_total_limit: 2
  load_best_model_at_end: true
  metric_for_best_model: loss
  gradient_checkpointing: true
  fp16: true
class_weights: { spec: 0.5, explanation: 1, procedure: 3, wiring: 5, troubleshooting: 10 }
sections: { include_patterns: ["*"] }
unit_canon: { Nm: [nm] }
task_rules: { spec: value_only }
validation: { max_output_tokens: 200 }
"#;

#[test]
fn the_reference_file_is_read_as_it_is() {
    let (config, notes) = FinetuneConfig::from_yaml(REFERENCE).unwrap();
    let expect = FinetuneConfig {
        model_name: "meta-llama/Llama-3.2-3B-Instruct".into(),
        task_prefix_format: Some("[{TASK}] {instruction}".into()),
        max_seq_length: 512,
        method: Method::Qlora,
        target_modules: Targets::Names(["q_proj", "v_proj", "k_proj", "o_proj"].map(String::from).to_vec()),
        gradient_accumulation_steps: 2,
        warmup_ratio: 0.1,
        weight_decay: 0.01,
        optim: Optim::PagedAdamw8bit,
        load_best_model_at_end: true,
        fp16: true,
        ..FinetuneConfig::default()
    };
    assert_eq!(config, expect);
    let without = notes.last().unwrap();
    assert!(without.starts_with("without effect here: ") && without.contains("class_weights") && without.contains("unit_canon"));
    assert!(notes.iter().any(|note| note == r#"warmup_ratio: "0.1" was read as the number 0.1"#), "{notes:?}");
}

#[test]
fn text_that_is_a_number_is_one_where_a_number_is_wanted() {
    for text in ["2e-4", "'2e-4'", "\"0.0002\"", "2.0e-4", "0.0002"] {
        let (config, _) = FinetuneConfig::from_yaml(&format!("learning_rate: {text}\nr: '8'\nmodel: '8'")).unwrap();
        assert_eq!((config.learning_rate, config.r, config.model_name.as_str()), (2e-4, 8, "8"), "{text}");
    }
}

#[test]
fn what_is_written_reads_back() {
    for config in [FinetuneConfig::default(), FinetuneConfig::from_yaml(REFERENCE).unwrap().0] {
        let config = FinetuneConfig { date: Some("2026-01-31".into()), ..config };
        let (again, notes) = FinetuneConfig::from_yaml(&config.to_yaml()).unwrap();
        assert_eq!((again, notes), (config, Vec::new()));
    }
}

#[track_caller]
fn refused(yaml: &str, expect: &str) {
    let error = FinetuneConfig::from_yaml(yaml).unwrap_err().to_string();
    assert!(error.contains(expect) && !error.contains('\n'), "{error}");
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    refused("training: { learning_rte: 1 }", "unknown key `learning_rte` in training; did you mean `learning_rate`?");
    refused("qlora: { lora_alfa: 1 }", "did you mean `lora_alpha`?");
    refused("validation: held-out.jsonl", "unknown key `validation`; did you mean `validation_file`?");
    refused("zzz: 1", "unknown key `zzz`; `smolforge finetune --help` lists the keys");
    refused("hugingface: { r: 1 }", "unknown key `hugingface`; did you mean `huggingface`?");
    refused("r: many", "r: invalid type: string \"many\", expected a whole number");
    refused("training: { epochs: three }", "epochs in training: invalid type: string \"three\", expected a number");
    refused("columns: msgs", "columns: invalid type: string \"msgs\", expected a map; for example '{messages: dialog}'");
    refused("- 1", "a configuration is a map");
    refused("optim: sgd", "sgd");
    refused("a: [", "line 2");
}

#[test]
fn flags_take_lists_and_words() {
    let mut config = FinetuneConfig::default();
    for (key, text) in
        [("target_modules", "[q_proj, v_proj]"), ("train_file", "[a.jsonl, b.jsonl]"), ("date", "2026-01-31"), ("packing", "true")]
    {
        config.set(key, text).unwrap();
    }
    assert_eq!(config.target_modules, Targets::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!((config.train_file.0.len(), config.packing, config.date.as_deref()), (2, true, Some("2026-01-31")));
    config.set("target_modules", r".*\.(q|v)_proj").unwrap();
    assert_eq!(config.target_modules, Targets::Pattern(r".*\.(q|v)_proj".into()));
    config.set("train_file", "rows.jsonl").unwrap();
    assert_eq!(config.train_file, Files(vec!["rows.jsonl".into()]));
    assert_eq!(Files(vec![" ".into(), "rows.jsonl".into(), String::new()]).named().collect::<Vec<_>>(), ["rows.jsonl"]);
    assert!(config.set("r", "x").unwrap_err().to_string().contains("--r x"));
    assert!(config.set("columns", "msgs").unwrap_err().to_string().ends_with("; for example '{messages: dialog}'"));
}
