//! Against PyTorch, transformers and tokenizers: see `golden/README.md`.

use burn::tensor::{FloatDType, Tensor, f16};
use futures_lite::future::block_on;
use serde_json::Value;
use smolforge_engine::config::TrainConfig;
use smolforge_engine::config::finetune::{Decay, Optim};
use smolforge_engine::control::Control;
use smolforge_engine::data::batch::Batch;
use smolforge_engine::data::random::Random;
use smolforge_engine::device::Compute;
use smolforge_engine::generate::{self, Limits, generate, sampler};
use smolforge_engine::model::llama::ids;
use smolforge_engine::model::rope::inverse_frequencies;
use smolforge_engine::model::{KvCache, Llama, LlamaConfig, hub};
use smolforge_engine::ops::attention::Mask;
use smolforge_engine::ops::sum_of_squares;
use smolforge_engine::protocol::{DeviceChoice, Event, GenerateRequest, Sampling};
use smolforge_engine::store::Store;
use smolforge_engine::text::Tokenizer;
use smolforge_engine::train::optimizer::Optimizer;
use smolforge_engine::train::schedule::Schedule;
use smolforge_engine::train::{Forward, accumulate, clip, forward};
use smolforge_tests::*;

const FILE: &str = "tiny_llama_golden.safetensors";

fn logits(model: &Llama, inputs: &[i64], t: usize) -> Vec<f32> {
    let device = model.norm.weight.tensor.device();
    let batch = batch(inputs, inputs, t);
    let mask = Mask::causal(batch.rows, t, 0, &device);
    values(model.logits(model.forward(ids(batch.inputs, &device), t, &mask, None)))
}

#[track_caller]
fn check_logits(folder: &str, prefix: &str, compute: &Compute) {
    let golden = golden_tensors(FILE);
    let model = golden_model(folder, compute);
    let found = logits(&model, &golden.read_i64("input_ids").unwrap(), 16);
    let expected = golden.read_f32(&format!("{prefix}logits")).unwrap();
    let difference = max_difference(&found, &expected);
    assert!(difference <= 1e-4, "{folder} on {}: {difference}", compute.info.name); // 1e-4: f32 sums in another order
}

#[test]
fn logits_equal_transformers() {
    for compute in devices() {
        check_logits("tiny_llama", "", &compute);
        check_logits("tiny_llama_sharded", "sharded.", &compute);
        check_logits("tiny_llama_untied", "untied.", &compute);
    }
}

#[test]
fn a_table_split_into_blocks_gives_the_same_logits_and_gradients() {
    for compute in devices() {
        let split = Compute { max_binding_bytes: 100 * 32 * 4, ..compute };
        assert_eq!(golden_model("tiny_llama", &split).embed_tokens.weight.len(), 6);
        check_logits("tiny_llama", "", &split);
        check_gradients(&split);
    }
}

/// Mean loss of a batch's targets.
fn mean(forward: &Forward, batch: &Batch) -> f32 {
    values(forward.losses.nll.clone()).iter().sum::<f32>() / batch.target_tokens() as f32
}

#[track_caller]
fn check_gradients(compute: &Compute) {
    let golden = golden_tensors(FILE);
    let model = golden_model("tiny_llama", compute).trainable();
    let batch = batch(&golden.read_i64("input_ids").unwrap(), &golden.read_i64("targets").unwrap(), 16);
    let forward = forward(&model, &batch, 1.0 / batch.target_tokens() as f64);
    let loss = mean(&forward, &batch);
    let expected = golden.read_f32("loss").unwrap()[0];
    assert!((loss - expected).abs() <= 1e-5 * expected, "loss {loss}, PyTorch {expected}");
    let mut found: Vec<(String, Vec<f32>)> = Vec::new();
    for (parameter, grad) in model.parameters().iter().zip(forward.gradients(&model)) {
        let grad = values(grad);
        match found.last_mut() {
            Some((name, rows)) if *name == parameter.name => rows.extend(grad), // the next block of a table
            _ => found.push((parameter.name.clone(), grad)),
        }
    }
    for (name, grad) in found {
        let expected = golden.read_f32(&format!("grad.{name}")).unwrap();
        let (cosine, difference) = (cosine(&grad, &expected), max_difference(&grad, &expected));
        assert!(cosine >= 0.99999, "{name} on {}: cosine {cosine}", compute.info.name);
        assert!(difference <= 1e-4, "{name} on {}: difference {difference}", compute.info.name);
    }
}

#[test]
fn gradients_equal_pytorch() {
    for compute in devices() {
        check_gradients(&compute);
    }
}

#[test]
fn mixed_precision_stays_near_pytorch_in_f32() {
    let golden = golden_tensors(FILE);
    let batch = batch(&golden.read_i64("input_ids").unwrap(), &golden.read_i64("targets").unwrap(), 16);
    let expected = golden.read_f32("loss").unwrap()[0];
    for compute in devices() {
        if !compute.mixes() {
            continue;
        }
        let model = golden_model("tiny_llama", &compute).with_half(true).trainable();
        let forward = forward(&model, &batch, 1.0 / batch.target_tokens() as f64);
        let loss = mean(&forward, &batch);
        assert!((loss - expected).abs() <= 5e-4 * expected, "loss {loss}, PyTorch {expected}"); // 2⁻¹¹: f16 has 11 bits
        assert!(loss != expected, "f16 leaves a trace");
        for (parameter, grad) in model.parameters().iter().zip(forward.gradients(&model)) {
            let cosine = cosine(&values(grad), &golden.read_f32(&format!("grad.{}", parameter.name)).unwrap());
            assert!(cosine >= 0.9999, "{} on {}: cosine {cosine}", parameter.name, compute.info.name); // NaN is not
        }
    }
}

#[test]
fn ten_adamw_steps_equal_pytorch() {
    let (golden, settings) = (golden_tensors("adamw_golden.safetensors"), golden_json("adamw_golden.json"));
    let number = |name: &str| settings[name].as_f64().unwrap();
    let config = TrainConfig {
        beta1: number("beta1"),
        beta2: number("beta2"),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        ..TrainConfig::default()
    };
    let (inputs, targets) = (golden.read_i64("input_ids").unwrap(), golden.read_i64("targets").unwrap());
    let steps = number("steps") as usize;
    let schedule = Schedule {
        from_zero: false,
        lr: number("lr_max"),
        min_lr: number("lr_min"),
        warmup: number("warmup") as u32,
        steps: steps as u32,
        decay: Decay::Cosine,
    };
    for compute in devices() {
        let mut model = golden_model("tiny_llama", &compute).trainable();
        let mut optimizer = Optimizer::new(&model, Optim::Adamw);
        for step in 0..steps {
            let micro_batches: Vec<_> =
                (step * 2..step * 2 + 2).map(|i| batch(&inputs[i * 32..][..32], &targets[i * 32..][..32], 16)).collect();
            let count: usize = micro_batches.iter().map(|batch| batch.target_tokens()).sum();
            let (mut grads, mut loss) = (Vec::new(), 0.0);
            for batch in &micro_batches {
                let forward = forward(&model, batch, 1.0 / count as f64);
                loss += values(forward.losses.nll.clone()).iter().map(|nll| f64::from(*nll)).sum::<f64>() / count as f64;
                accumulate(&mut grads, forward.gradients(&model));
            }
            let squares = sum_of_squares(&grads);
            let norm = f64::from(values(squares)[0]).sqrt();
            let check = |what: &str, found: f64, expected: &Value, tolerance: f64| {
                let expected = expected[step].as_f64().unwrap();
                let error = (found - expected).abs() / expected;
                assert!(error <= tolerance, "step {step} on {}: {what} {found}, PyTorch {expected}", compute.info.name);
            };
            check("loss", loss, &settings["losses"], 1e-5);
            check("norm", norm, &settings["grad_norms"], 1e-4);
            check("lr", schedule.lr(step as u32), &settings["lrs"], 1e-12);
            block_on(optimizer.step(&mut model, grads, &config, schedule.lr(step as u32), clip(norm, number("max_grad_norm")))).unwrap();
        }
        for parameter in model.parameters() {
            let expected = golden.read_f32(&format!("final.{}", parameter.name)).unwrap();
            let difference = max_difference(&values(parameter.tensor.clone().inner()), &expected);
            assert!(difference <= 1e-4, "{} after {steps} steps on {}: {difference}", parameter.name, compute.info.name);
        }
    }
}

#[test]
fn cached_decode_equals_full_forward() {
    let inputs = golden_tensors(FILE).read_i64("input_ids").unwrap();
    for compute in devices() {
        for folder in ["tiny_llama", "tiny_llama_untied"] {
            let model = golden_model(folder, &compute);
            let full = logits(&model, &inputs, 16); // [2·16, v]
            let v = model.config.vocab_size;
            let mut cache = KvCache::new(&model.config, 2, 20, &compute.device);
            let mut at = 0;
            for t in [1, 5, 1, 1, 8] {
                let piece: Vec<i32> = (0..2).flat_map(|row| inputs[row * 16 + at..][..t].iter().map(|id| *id as i32)).collect();
                let mask = Mask::causal(2, t, at, &compute.device);
                let hidden = model.forward(ids(piece, &compute.device), t, &mask, Some(&mut cache));
                let found = values(model.logits(hidden));
                for row in 0..2 {
                    let expected = &full[(row * 16 + at) * v..][..t * v];
                    let difference = max_difference(&found[row * t * v..][..t * v], expected);
                    assert!(difference <= 1e-4, "{folder}, {t} tokens at {at} on {}: {difference}", compute.info.name);
                }
                at += t;
            }
        }
    }
}

#[test]
fn greedy_text_equals_transformers() {
    let tokenizer = block_on(Tokenizer::load(&golden(), "tiny_llama")).unwrap();
    let (control, _, _) = Control::connect();
    for compute in devices() {
        for case in golden_json("generate_golden.json")["cases"].as_array().unwrap() {
            let model = golden_model(case["model"].as_str().unwrap(), &compute);
            let tokens = |key: &str| case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
            let penalty = case["repetition_penalty"].as_f64().unwrap() as f32;
            let sampling = Sampling { greedy: true, repetition_penalty: penalty, ..Sampling::default() };
            let prompt = tokens("prompt");
            let run = |end: &[u32]| {
                let limits = Limits { max_new_tokens: 24, stop: &[], end };
                let random = Random::new(0);
                let text = generate(&model, &tokenizer, &prompt, &sampling, &limits, random, &control, None, |_| {});
                block_on(text).unwrap().0.tokens
            };
            assert_eq!(run(&[]), tokens("output"), "{case}");
            assert_eq!(run(&model.config.eos_token_id), tokens("output_until_eos"), "{case}");
        }
    }
}

#[test]
fn tokens_come_with_the_probabilities_of_the_model() {
    let (tokenizer, model) = (block_on(Tokenizer::load(&golden(), "tiny_llama")).unwrap(), golden_model("tiny_llama", &cpu()));
    let (control, _, events) = Control::connect();
    let request = GenerateRequest {
        model: "tiny_llama".into(),
        prompts: vec!["the cat".into()],
        device: DeviceChoice::Cpu,
        max_new_tokens: 12,
        // What the sampling rules out has its probability all the same.
        sampling: Sampling { temperature: 0.7, top_k: 3, ..Sampling::default() },
        alternatives: 4,
        ..GenerateRequest::default()
    };
    block_on(generate::run(&request, &generate::Loaded::default(), &golden(), &control)).unwrap();
    let told: Vec<Event> = std::iter::from_fn(|| Some(events.try_recv().ok()?.1)).collect();
    let Some(Event::Generated { tokens, .. }) = told.iter().find(|event| matches!(event, Event::Generated { .. })) else {
        panic!("{told:?}")
    };
    let shown: Vec<_> = told
        .iter()
        .filter_map(|event| {
            if let Event::Token { text, probability, alternatives, .. } = event { Some((text, *probability, alternatives)) } else { None }
        })
        .collect();
    assert_eq!(shown.len(), tokens.len());
    let mut all = tokenizer.encode_prompt("the cat");
    for (token, (text, probability, alternatives)) in tokens.iter().zip(shown) {
        let inputs: Vec<i64> = all.iter().map(|id| i64::from(*id)).collect();
        let rows = logits(&model, &inputs, all.len());
        let exp: Vec<f64> = rows[rows.len() - model.config.vocab_size..].iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = exp.iter().sum();
        assert_eq!(**text, String::from_utf8_lossy(tokenizer.token_bytes(*token)));
        assert!((probability - exp[*token as usize] / sum).abs() < 1e-5);
        let mut sorted = exp.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(alternatives.len(), 4);
        for ((_, found), expect) in alternatives.iter().zip(sorted) {
            assert!((found - expect / sum).abs() < 1e-5);
        }
        all.push(*token);
    }
    let error =
        block_on(generate::run(&GenerateRequest { alternatives: 21, ..request }, &generate::Loaded::default(), &golden(), &control))
            .unwrap_err()
            .to_string();
    assert!(error.contains("--alternatives 21"), "{error}");
}

#[test]
fn rope_tables_equal_transformers() {
    for case in golden_json("rope_golden.json")["cases"].as_array().unwrap() {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": case["head_dim"], "vocab_size": 8, "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5, "rope_theta": case["rope_theta"], "rope_scaling": case["rope_scaling"], "tie_word_embeddings": true,
        });
        let found = inverse_frequencies(&LlamaConfig::from_hf_json(&config.to_string(), "case").unwrap());
        let expected: Vec<f32> = case["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 2e-6 * expected, "{}: {found} {expected}", case["name"]);
        }
        for (i, position) in case["positions"].as_array().unwrap().iter().enumerate() {
            let position = position.as_f64().unwrap() as f32;
            let tolerance = 1e-6 + position * 1.2e-7; // the angle's own rounding
            for (function, table) in [(f32::cos as fn(f32) -> f32, "cos"), (f32::sin, "sin")] {
                for (frequency, expected) in found.iter().zip(case[table][i].as_array().unwrap()) {
                    let difference = (function(position * frequency) - expected.as_f64().unwrap() as f32).abs();
                    assert!(difference <= tolerance, "{} {table} at {position}: {difference}", case["name"]);
                }
            }
        }
    }
}

#[test]
fn sampler_chain_equals_transformers() {
    for case in golden_json("sampler_golden.json")["cases"].as_array().unwrap() {
        let floats = |key: &str| case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
        let or = |key: &str, off: f64| case[key].as_f64().unwrap_or(off) as f32;
        let sampling = Sampling {
            temperature: or("temperature", 1.0),
            top_k: case["top_k"].as_u64().unwrap_or(0) as usize,
            top_p: or("top_p", 1.0),
            min_p: or("min_p", 0.0),
            repetition_penalty: or("repetition_penalty", 1.0),
            ..Sampling::default()
        };
        let previous: Vec<u32> = case["previous_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let expected = floats("probs");
        let mut found = vec![0.0; expected.len()];
        for (id, p) in sampler::distribution(&floats("logits"), &sampling, &previous).unwrap() {
            found[id as usize] = p;
        }
        let difference = max_difference(&found, &expected);
        assert!(difference <= 2e-6, "{}: {difference}", case["name"]); // f32 `exp`
    }
}

#[test]
fn tokenizer_equals_hugging_face() {
    let tokenizer = block_on(Tokenizer::load(&golden(), "tokenizer")).unwrap();
    let golden = golden_json("tokenizer_golden.json");
    assert_eq!(tokenizer.vocab_size() as u64, golden["vocab_size"].as_u64().unwrap());
    for case in golden["cases"].as_array().unwrap() {
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()), ids, "{case}");
        assert_eq!(tokenizer.decode(&ids, false), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&ids, true), case["decoded_skip_special"].as_str().unwrap());
    }
}

#[test]
fn an_f16_export_reloads_within_rounding() {
    use smolforge_engine::model::hub::Weights;
    use smolforge_engine::model::safetensors::Dtype;
    use smolforge_engine::train::checkpoint;
    let store = Store::memory();
    let inputs = golden_tensors(FILE).read_i64("input_ids").unwrap();
    for folder in ["tiny_llama", "tiny_llama_untied"] {
        let compute = cpu();
        let model = golden_model(folder, &compute);
        let before = logits(&model, &inputs, 16);
        let reloaded = block_on(async {
            let config = hub::read_config(&golden(), folder).await.unwrap();
            let weights = Weights::open(&golden(), folder).await.unwrap();
            let tokenizer = golden().read("tiny_llama/tokenizer.json").await.unwrap();
            checkpoint::export(&store, &weights, &config, Some(&tokenizer), folder, Dtype::F16, &[]).await.unwrap();
            let again = hub::read_config(&store, folder).await.unwrap();
            assert_eq!(again, config);
            smolforge_engine::generate::load(&store, folder, &again, &compute, 16).await.unwrap()
        });
        let difference = max_difference(&logits(&reloaded, &inputs, 16), &before);
        assert!(difference <= 0.02, "{folder}: {difference}"); // logits up to 10, f16 has 11 bits
        for (found, original) in reloaded.parameters().iter().zip(model.parameters()) {
            let full = |tensor: &Tensor<2>| values(tensor.clone().cast(FloatDType::F32));
            let rounded: Vec<f32> = full(&original.tensor).iter().map(|x| f16::from_f32(*x).to_f32()).collect();
            assert_eq!(full(&found.tensor), rounded, "{folder}: {}", found.name);
        }
    }
}
