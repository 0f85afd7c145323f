//! Adapters against PEFT, frozen weights against dense ones, and gradients a layer at a time against gradients at once.

use burn::tensor::Tensor;
use futures_lite::future::block_on;
use smolforge_engine::config::TrainConfig;
use smolforge_engine::config::finetune::{Optim, Targets};
use smolforge_engine::device::Compute;
use smolforge_engine::model::adapter::{Adapter, AdapterConfig, Pair, Patterns};
use smolforge_engine::model::llama::ids;
use smolforge_engine::model::load::{Keep, load};
use smolforge_engine::model::safetensors::SafeFile;
use smolforge_engine::model::{Llama, LlamaConfig, hub};
use smolforge_engine::ops::attention::Mask;
use smolforge_engine::ops::dropout::{self, Noise, dropout};
use smolforge_engine::ops::frozen::{self, Frozen, frozen, frozen_dx};
use smolforge_engine::ops::linear_nf4::{self, Nf4Weight};
use smolforge_engine::ops::quant::Nf4;
use smolforge_engine::ops::sum_of_squares;
use smolforge_engine::store::Store;
use smolforge_engine::train::optimizer::{Moments, Optimizer};
use smolforge_engine::train::{accumulate, clip, layer_by_layer, losses_and_gradients};
use smolforge_tests::*;

const PREFIX: &str = "base_model.model.";

/// A golden model with its linear layers kept in some way.
fn kept(folder: &str, compute: &Compute, keep: Keep) -> Llama {
    block_on(async {
        let config = hub::read_config(&golden(), folder).await.unwrap();
        load(&golden(), folder, &config, compute, 64, keep, |_, _| ()).await.unwrap()
    })
}

/// The adapter of a case of the golden file, before the first update or after the last.
fn golden_adapter(file: &SafeFile, case: &serde_json::Value, name: &str, when: &str) -> Adapter {
    let config = AdapterConfig {
        base_model: "tiny_llama".into(),
        four_bits: false,
        r: case["r"].as_u64().unwrap() as usize,
        alpha: case["lora_alpha"].as_f64().unwrap(),
        rslora: case["use_rslora"].as_bool().unwrap(),
        dropout: 0.0,
        targets: Targets::Pattern("all-linear".into()),
        ranks: Patterns::default(),
        alphas: Patterns::default(),
    };
    let start = format!("{name}.{when}.{PREFIX}");
    let layers = file.names().filter_map(|tensor| tensor.strip_prefix(&start)?.strip_suffix(".lora_A.weight"));
    let pair = |layer: &str| {
        let tensor = |matrix: &str| format!("{start}{layer}.{matrix}.weight");
        let (Some((_, a)), Some((_, b))) = (file.info(&tensor("lora_A")), file.info(&tensor("lora_B"))) else { panic!("{layer}") };
        let sizes = [a[0], a[1], b[0]];
        let read = |matrix: &str| file.read_f32(&tensor(matrix)).unwrap();
        Pair { a: read("lora_A"), b: read("lora_B"), sizes, scale: config.scale(layer) }
    };
    let pairs = layers.map(|layer| (layer.to_string(), pair(layer))).collect();
    Adapter { config, pairs }
}

/// Logits of every position of `rows` rows.
fn logits(model: &Llama, tokens: &[i64], rows: usize) -> Vec<f32> {
    let (device, t) = (model.norm.weight.tensor.device(), tokens.len() / rows);
    let mask = Mask::causal(rows, t, 0, &device);
    let tokens = ids(tokens.iter().map(|id| *id as i32).collect(), &device);
    values(model.logits(model.forward(tokens, t, &mask, None)))
}

#[test]
fn ten_updates_of_an_adapter_are_those_of_peft() {
    let (json, file) = (golden_json("lora_golden.json"), golden_tensors("lora_golden.safetensors"));
    let number = |key: &str| json[key].as_f64().unwrap();
    let config = TrainConfig {
        beta1: number("beta1"),
        beta2: number("beta2"),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        ..TrainConfig::default()
    };
    let (inputs, targets) = (file.read_i64("input_ids").unwrap(), file.read_i64("targets").unwrap());
    let steps = number("steps") as usize;
    for compute in devices() {
        for (name, case) in json["cases"].as_object().unwrap() {
            let keep = if name.starts_with("nf4") { Keep::Nf4 } else { Keep::F32 };
            let first = golden_adapter(&file, case, name, "initial");
            let base = kept(case["base"].as_str().unwrap(), &compute, keep);
            let mut model = base.with_adapter(Some(&first)).unwrap().trainable();
            let mut optimizer = Optimizer::new(&model, Optim::Adamw);
            for step in 0..steps {
                let batches: Vec<_> =
                    (step * 2..step * 2 + 2).map(|i| batch(&inputs[i * 32..][..32], &targets[i * 32..][..32], 16)).collect();
                let count: usize = batches.iter().map(|batch| batch.target_tokens()).sum();
                let (mut grads, mut loss) = (Vec::new(), 0.0);
                for batch in &batches {
                    // Both ways in turns: they are to be the same.
                    let (nll, more) = losses_and_gradients(&model, batch, 1.0 / count as f64, step % 2 == 0);
                    accumulate(&mut grads, more);
                    loss += values(nll).iter().map(|nll| f64::from(*nll)).sum::<f64>() / count as f64;
                }
                let expected = case["losses"][step].as_f64().unwrap();
                let error = (loss - expected).abs() / expected;
                // On a graphics device the tables beside matrices of 4 bits are of f16.
                let tolerance = if keep == Keep::Nf4 && !compute.is_cpu() { 1e-4 } else { 1e-5 };
                assert!(error < tolerance, "{name} on {}: loss of update {step}: {loss} and {expected}", compute.info.name);
                let squares: f32 = values(sum_of_squares(&grads))[0];
                let scale = clip(f64::from(squares).sqrt(), case["max_grad_norm"].as_f64().unwrap());
                block_on(optimizer.step(&mut model, grads, &config, json["lrs"][step].as_f64().unwrap(), scale)).unwrap();
            }
            let found = block_on(Adapter::read(&model, &first.config)).unwrap();
            let expected = golden_adapter(&file, case, name, "final");
            for (layer, pair) in &expected.pairs {
                let found = &found.pairs[layer];
                assert!(
                    cosine(&found.a, &pair.a) > 0.99999 && cosine(&found.b, &pair.b) > 0.99999,
                    "{name} {layer} on {}",
                    compute.info.name
                );
            }
        }
    }
}

#[test]
fn an_adapter_of_peft_does_here_what_it_does_there() {
    let (json, file) = (golden_json("lora_golden.json"), golden_tensors("lora_golden.safetensors"));
    let prompt = file.read_i64("prompt").unwrap();
    for compute in devices() {
        let adapter = block_on(Adapter::load(&golden(), "tiny_llama_lora")).unwrap();
        assert_eq!(
            adapter,
            Adapter { config: adapter.config.clone(), ..golden_adapter(&file, &json["cases"]["attention"], "attention", "initial") }
        );
        let model = kept("tiny_llama", &compute, Keep::F32).with_adapter(Some(&adapter)).unwrap();
        let expected = file.read_f32("attention.logits").unwrap();
        assert!(max_difference(&logits(&model, &prompt, 2), &expected) < 2e-4, "{}", compute.info.name);

        let case = &json["cases"]["nf4_all_linear"];
        let adapter = golden_adapter(&file, case, "nf4_all_linear", "initial");
        let expected = file.read_f32("nf4_all_linear.logits").unwrap();
        for (folder, keep) in [("tiny_llama_nf4", Keep::Stored), ("tiny_llama_nf4", Keep::F32), ("tiny_llama", Keep::Nf4)] {
            if folder == "tiny_llama" && !compute.is_cpu() {
                continue; // rows of 32 numbers: the kernels want whole blocks of 64, so nothing is quantised there
            }
            let model = kept(folder, &compute, keep).with_adapter(Some(&adapter)).unwrap();
            assert!(max_difference(&logits(&model, &prompt, 2), &expected) < 2e-4, "{folder} on {}", compute.info.name);
        }
    }
}

#[test]
fn an_adapter_reads_back_as_it_was_written() {
    let store = Store::memory();
    let adapter = block_on(Adapter::load(&golden(), "tiny_llama_lora")).unwrap();
    block_on(adapter.save(&store, "a")).unwrap();
    assert_eq!(block_on(Adapter::load(&store, "a")).unwrap(), adapter);
    let (ours, theirs) = (
        SafeFile::open(block_on(store.open("a/adapter_model.safetensors")).unwrap(), "a").unwrap(),
        golden_tensors("tiny_llama_lora/adapter_model.safetensors"),
    );
    assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
    for name in theirs.names() {
        assert_eq!(ours.info(name), theirs.info(name));
        assert_eq!(ours.read_f32(name).unwrap(), theirs.read_f32(name).unwrap());
    }
}

#[test]
fn several_adapters_do_together_what_each_does_by_its_strength() {
    let compute = cpu();
    let model = kept("tiny_llama", &compute, Keep::F32);
    let config = |r, targets: &[&str]| AdapterConfig {
        base_model: String::new(),
        four_bits: false,
        r,
        alpha: 6.0,
        rslora: r == 2,
        dropout: 0.0,
        targets: Targets::Names(targets.iter().map(ToString::to_string).collect()),
        ranks: Patterns::default(),
        alphas: Patterns::default(),
    };
    let filled = |r, targets: &[&str], seed| {
        let mut adapter = Adapter::begin(&config(r, targets), &model, seed).unwrap();
        adapter.pairs.values_mut().for_each(|pair| pair.b = numbers(seed, pair.b.len()));
        adapter
    };
    let (one, two) = (filled(3, &["q_proj", "up_proj"], 1), filled(2, &["up_proj", "o_proj"], 2));
    let mixed = Adapter::mix(&[(one.clone(), 0.5), (two.clone(), -2.0)]).unwrap();
    assert_eq!(mixed.pairs["model.layers.0.mlp.up_proj"].sizes[0], 5);
    for (layer, pair) in &mixed.pairs {
        let [_, inputs, out] = pair.sizes;
        let mut expected = vec![0.0; inputs * out];
        let mut found = vec![0.0; inputs * out];
        for (adapter, strength) in [(&one, 0.5), (&two, -2.0)] {
            if let Some(change) = adapter.change(layer) {
                let mut part = vec![0.0; inputs * out];
                part.chunks_mut(inputs).enumerate().for_each(|(row, part)| change(row, part));
                expected.iter_mut().zip(part).for_each(|(sum, part)| *sum += strength * part);
            }
        }
        let change = mixed.change(layer).unwrap();
        found.chunks_mut(inputs).enumerate().for_each(|(row, found)| change(row, found));
        assert!(max_difference(&found, &expected) < 1e-5, "{layer}");
    }
}

#[test]
fn gradients_made_a_layer_at_a_time_are_those_made_at_once() {
    let (file, json) = (golden_tensors("lora_golden.safetensors"), golden_json("lora_golden.json"));
    let (inputs, targets) = (file.read_i64("input_ids").unwrap(), file.read_i64("targets").unwrap());
    let batch = batch(&inputs[..32], &targets[..32], 16);
    for compute in devices() {
        let mut adapter = golden_adapter(&file, &json["cases"]["attention"], "attention", "initial");
        adapter.config.dropout = 0.3;
        let split = Compute { max_binding_bytes: 40_000, ..compute.clone() }; // the table in two blocks
        for (what, model) in [
            ("all weights", kept("tiny_llama", &compute, Keep::F32)),
            ("all weights, split table", kept("tiny_llama", &split, Keep::F32)),
            ("all weights, own head", kept("tiny_llama_untied", &compute, Keep::F32)),
            ("adapter with dropout", kept("tiny_llama", &compute, Keep::F32).with_adapter(Some(&adapter)).unwrap()),
        ] {
            let mut model = model.trainable();
            model.dropout = Some(7);
            let (nll, at_once) = losses_and_gradients(&model, &batch, 0.1, false);
            let at_once: Vec<Vec<f32>> = at_once.into_iter().map(values).collect();
            let nll = values(nll);
            assert_eq!(at_once.len(), model.trained().len());
            for together in [1, 2] {
                let what = format!("{what}, {together} sequences together, on {}", compute.info.name);
                let (again, by_layer) = layer_by_layer(&model, &batch, 0.1, together);
                assert!(max_difference(&nll, &values(again)) < 5e-6, "{what}"); // products of fewer rows are summed in another order
                assert_eq!(at_once.len(), by_layer.len());
                for ((parameter, a), b) in model.trained().iter().zip(&at_once).zip(by_layer) {
                    let largest = a.iter().fold(1e-3f32, |largest, x| largest.max(x.abs()));
                    assert!(max_difference(a, &values(b)) < 1e-5 * largest, "{what}: {}", parameter.name);
                }
            }
        }
    }
}

#[test]
fn only_the_adapter_has_gradients_and_moments() {
    let compute = cpu();
    let config = LlamaConfig::preset("nano").unwrap();
    let model = Llama::random(&config, &compute, 32, 1);
    let adapter = AdapterConfig {
        base_model: String::new(),
        four_bits: false,
        r: 8,
        alpha: 16.0,
        rslora: false,
        dropout: 0.0,
        targets: Targets::Pattern("all-linear".into()),
        ranks: Patterns::default(),
        alphas: Patterns::default(),
    };
    let adapter = Adapter::begin(&adapter, &model, 3).unwrap();
    let model = model.with_adapter(Some(&adapter)).unwrap().trainable();
    let trained: usize = model.trained().iter().map(|parameter| parameter.len()).sum();
    assert_eq!(trained as u64, adapter.parameters());
    let tracked = |parameters: Vec<&smolforge_engine::model::linear::Parameter>| {
        parameters.iter().filter(|parameter| parameter.tensor.is_tracked()).count()
    };
    assert_eq!(tracked(model.parameters()), 0);
    assert_eq!(tracked(model.trained()), 2 * 7 * config.num_hidden_layers);
    let optimizer = Optimizer::new(&model, Optim::Adamw);
    let moments: usize = optimizer
        .moments
        .iter()
        .map(|moments| match moments {
            Moments::Full { m, v } => [m, v].map(|moment| moment.dims().iter().product::<usize>()).iter().sum(),
            _ => 0,
        })
        .sum();
    assert_eq!(moments, 2 * trained);
    // b is 0 before training: the adapter changes nothing yet.
    let tokens: Vec<i64> = (1..9).collect();
    let plain = Llama::random(&config, &compute, 32, 1);
    assert_eq!(logits(&model.plain(), &tokens, 1), logits(&plain, &tokens, 1));
}

#[test]
fn dropout_keeps_the_same_places_on_every_device_and_on_the_way_back() {
    for compute in devices() {
        for (n, d) in [(1, 1), (2, 63), (3, 64), (65, 65), (1000, 3)] {
            for (p, seed) in [(0.05, 1), (0.5, 2), (0.9, u64::MAX - 3)] {
                let noise = Noise { seed, row: 0 };
                let x = matrix(1, n, d, &compute);
                let expected = values(dropout::reference(matrix(1, n, d, &cpu()), p, noise));
                assert_eq!(values(dropout(x.clone(), p, noise)), expected, "{n}x{d} {p} on {}", compute.info.name);
                let x = Tensor::from_inner(x).require_grad();
                let grads = dropout(x.clone(), p, noise).sum().backward();
                let later = Noise { seed, row: n / 2 };
                let rest = dropout(matrix(1, n, d, &compute).narrow(0, n / 2, n - n / 2), p, later);
                assert_eq!(values(rest), expected[n / 2 * d..], "some rows of them on {}", compute.info.name);
                let ones = Tensor::<2>::ones([n, d], &compute.device);
                assert_eq!(values(x.grad(&grads).unwrap()), values(dropout(ones, p, noise)));
            }
        }
        let kept = values(dropout(Tensor::ones([1000, 100], &compute.device), 0.3, Noise { seed: 9, row: 0 }))
            .iter()
            .filter(|x| **x > 0.0)
            .count();
        assert!((kept as f64 / 1e5 - 0.7).abs() < 0.01, "{kept}");
    }
}

#[test]
fn products_with_frozen_weights_are_those_with_dense_ones() {
    for compute in devices() {
        for (n, out, columns) in [(1, 1, 64), (2, 63, 64), (8, 65, 128), (9, 64, 576), (17, 192, 64), (130, 65, 192)] {
            let numbers = numbers(5, out * columns);
            let halves: Vec<_> = numbers.iter().map(|x| burn::tensor::f16::from_f32(*x)).collect();
            let f16 = Frozen::F16(half_matrix(&halves, columns, &compute));
            let nf4 = Nf4::quantize(&numbers, out, columns);
            let mut dense = vec![0.0; out * columns];
            nf4.dequantize_rows(0..out, &mut dense);
            let nf4 = Nf4Weight::new(nf4, &compute.device);
            assert!(max_difference(&values(linear_nf4::dequantized(&nf4, &compute.device)), &dense) < 1e-6);
            for (what, w) in [("f16", f16), ("nf4", Frozen::Nf4(nf4))] {
                let (x, dy) = (matrix(1, n, columns, &compute), matrix(2, n, out, &compute));
                let all = if what == "f16" { values(w.clone().dense(&compute.device)) } else { dense.clone() };
                let on_cpu = |x: Tensor<2>, w: Tensor<2>| values(x.matmul(w));
                let w_cpu = Tensor::<1>::from_data(&all[..], &cpu().device).reshape([out, columns]);
                let y = on_cpu(matrix(1, n, columns, &cpu()), w_cpu.clone().transpose());
                let dx = on_cpu(matrix(2, n, out, &cpu()), w_cpu);
                let name = format!("{what} {n}x{out}x{columns} on {}", compute.info.name);
                let tolerance = |sum: usize| 1e-6 * sum as f32; // numbers are about 1
                assert!(max_difference(&values(frozen(x.clone(), w.clone())), &y) < tolerance(columns), "{name}");
                assert!(max_difference(&values(frozen::reference(x.clone(), w.clone())), &y) < tolerance(columns), "{name}");
                assert!(max_difference(&values(frozen_dx(dy.clone(), w.clone())), &dx) < tolerance(out.max(8)), "{name}");
                let x = Tensor::from_inner(x).require_grad();
                let grads = (frozen(x.clone(), w) * Tensor::from_inner(dy)).sum().backward();
                assert!(max_difference(&values(x.grad(&grads).unwrap()), &dx) < tolerance(out.max(8)), "{name}: gradient");
            }
        }
    }
}
