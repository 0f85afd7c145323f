//! Weights that stay f16 on a graphics device: how much of it they take, what is computed from them, what is refused.

use burn::tensor::wgpu::{WgpuSetup, wgpu};
use burn::tensor::{DType, Device};
use futures_lite::future::block_on;
use smolforge_engine::control::Control;
use smolforge_engine::data::random::Random;
use smolforge_engine::device::Compute;
use smolforge_engine::generate::{Limits, generate, load, load_f32};
use smolforge_engine::model::hub::{self, Weights};
use smolforge_engine::model::llama::ids;
use smolforge_engine::model::safetensors::{Dtype, SafeWriter};
use smolforge_engine::model::{Llama, LlamaConfig};
use smolforge_engine::ops::attention::Mask;
use smolforge_engine::ops::linear_f16;
use smolforge_engine::protocol::Sampling;
use smolforge_engine::store::Store;
use smolforge_engine::text::Tokenizer;
use smolforge_engine::train::{checkpoint, forward};
use smolforge_tests::*;

/// The devices on which weights stay f16: all of them, unless `SMOLFORGE_KERNELS=off`.
fn keeping_f16() -> Vec<Compute> {
    let kept: Vec<Compute> = devices().into_iter().filter(|compute| linear_f16::serves(&compute.device, 8)).collect();
    if kept.is_empty() {
        println!("skipped: no device here keeps f16 weights");
    }
    kept
}

/// The golden model `folder` as an FP16 export.
fn export(folder: &str) -> Store {
    let store = Store::memory();
    block_on(async {
        let config = hub::read_config(&golden(), folder).await.unwrap();
        let weights = Weights::open(&golden(), folder).await.unwrap();
        checkpoint::export(&store, &weights, &config, None, "m", Dtype::F16, &[]).await.unwrap();
    });
    store
}

/// A folder of random F16 weights, with `bad` as the first number of the embedding.
fn random_folder(config: &LlamaConfig, bad: Option<f32>) -> Store {
    let store = Store::memory();
    let tensors: Vec<_> = config.tensors().into_iter().map(|(name, shape)| (name, Dtype::F16, shape)).collect();
    block_on(async {
        hub::write_config_files(&store, "m", config, "float16", None).await.unwrap();
        let mut writer = SafeWriter::create(&store, "m/model.safetensors", &tensors, &[]).await.unwrap();
        for (seed, (name, _, shape)) in tensors.iter().enumerate() {
            let mut bytes = halves(seed as u64, shape.iter().product());
            if let (Some(bad), 0) = (bad, seed) {
                bytes[0] = burn::tensor::f16::from_f32(bad);
            }
            let bytes: Vec<u8> = bytes.into_iter().flat_map(|x| x.to_le_bytes()).collect();
            writer.write_bytes(name, &bytes).unwrap();
        }
        writer.finish().await.unwrap();
    });
    store
}

fn shape(intermediate_size: usize, tie_word_embeddings: bool) -> LlamaConfig {
    LlamaConfig {
        hidden_size: 24,
        intermediate_size,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 8,
        vocab_size: 301,
        tie_word_embeddings,
        ..LlamaConfig::preset("nano").unwrap()
    }
}

fn open(store: &Store, compute: &Compute) -> Llama {
    block_on(async {
        let config = hub::read_config(store, "m").await.unwrap();
        load(store, "m", &config, compute, 128).await.unwrap()
    })
}

fn logits(model: &Llama, tokens: &[i32]) -> Vec<f32> {
    let (device, t) = (model.norm.weight.tensor.device(), tokens.len());
    let mask = Mask::causal(1, t, 0, &device);
    values(model.logits(model.forward(ids(tokens.to_vec(), &device), t, &mask, None)))
}

/// The device computes the same from the file as the CPU from all of it in f32, in one piece and token by token of a head of
/// many blocks.
#[track_caller]
fn check_logits(store: &Store, gpu: &Compute) {
    let model = open(store, gpu);
    let on_cpu = block_on(load_f32(store, "m", &model.config, &cpu(), 128)).unwrap();
    for t in [1, 5, 70] {
        let tokens: Vec<i32> = (0..t).map(|i| i * 37 % model.config.vocab_size as i32).collect();
        let (found, expected) = (logits(&model, &tokens), logits(&on_cpu, &tokens));
        let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
        let difference = max_difference(&found, &expected);
        assert!(difference <= 2e-5 * largest, "{t} tokens: {difference} of {largest}"); // f32 sums in another order
        let targets: Vec<i64> = tokens.iter().map(|id| i64::from(id + 1) % 301).collect();
        let batch = batch(&tokens.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), &targets, t as usize);
        let (found, expected) = (values(forward(&model, &batch, 1.0).losses.nll), values(forward(&on_cpu, &batch, 1.0).losses.nll));
        assert!(max_difference(&found, &expected) <= 2e-5 * largest, "losses of {t} tokens");
    }
}

#[test]
fn an_f16_file_takes_its_own_size_on_the_device_and_all_of_it_is_f32_for_training() {
    for compute in devices() {
        for folder in ["tiny_llama", "tiny_llama_untied"] {
            let store = export(folder);
            let model = open(&store, &compute);
            let size = |model: &Llama| model.parameters().iter().map(|p| p.len() * p.tensor.dtype().size()).sum::<usize>();
            let all: usize = model.parameters().iter().map(|p| p.len()).sum();
            let vectors: usize = model.parameters().iter().filter(|p| p.vector).map(|p| p.len()).sum();
            let expected = if linear_f16::serves(&compute.device, 8) { 2 * all + 2 * vectors } else { 4 * all };
            assert_eq!(size(&model), expected, "{folder} on {}", compute.info.name);
            let trained = block_on(load_f32(&store, "m", &model.config, &compute, 16)).unwrap();
            assert_eq!(size(&trained), 4 * all, "{folder} on {}", compute.info.name);
        }
    }
}

#[test]
fn f16_weights_give_the_logits_and_losses_of_the_cpu_device() {
    for gpu in keeping_f16() {
        for folder in ["tiny_llama", "tiny_llama_untied"] {
            check_logits(&export(folder), &gpu);
        }
        for tied in [true, false] {
            let store = random_folder(&shape(56, tied), None);
            check_logits(&store, &gpu);
            let split = Compute { max_binding_bytes: 100 * 24 * 2, ..gpu.clone() };
            let table = open(&store, &split).embed_tokens.weight;
            assert_eq!(table.iter().map(|block| block.tensor.dims()).collect::<Vec<_>>(), [[100, 24], [100, 24], [100, 24], [1, 24]]);
            check_logits(&store, &split);
        }
    }
}

/// The graphics adapter opened once more, without `shader-f16`.
async fn without_f16(gpu: &Compute) -> Compute {
    let instance = wgpu::Instance::default();
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await.unwrap();
    let unwanted = wgpu::Features::SHADER_F16 | wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask();
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features().difference(unwanted),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&descriptor).await.unwrap();
    assert!(!device.features().contains(wgpu::Features::SHADER_F16));
    let setup = WgpuSetup { backend: adapter.get_info().backend, instance, adapter, device, queue };
    Compute { device: Device::wgpu_options().setup(setup).init().unwrap(), f16: false, ..gpu.clone() }
}

#[test]
fn f16_weights_need_no_device_that_computes_in_f16() {
    for gpu in keeping_f16() {
        let plain = block_on(without_f16(&gpu));
        let store = export("tiny_llama");
        assert_eq!(open(&store, &plain).embed_tokens.weight[0].tensor.dtype(), DType::F16);
        check_logits(&store, &plain);
    }
}

#[test]
fn rows_that_are_no_whole_vectors_become_f32_on_graphics_devices() {
    for gpu in keeping_f16() {
        for odd in [1, 63, 65, 100] {
            let store = random_folder(&shape(odd, true), None);
            let model = open(&store, &gpu);
            let mlp = &model.layers[0].mlp;
            let expected = if linear_f16::serves(&gpu.device, odd) { DType::F16 } else { DType::F32 };
            assert_eq!(mlp.down_proj.dense().unwrap().tensor.dtype(), expected, "rows of {odd}");
            assert_eq!(gpu.is_cpu(), expected == DType::F16);
            assert_eq!(mlp.up_proj.dense().unwrap().tensor.dtype(), DType::F16, "{odd} rows of 24");
            check_logits(&store, &gpu);
        }
    }
}

#[test]
fn f16_weights_give_the_same_greedy_text_on_every_device() {
    let tokenizer = block_on(Tokenizer::load(&golden(), "tiny_llama")).unwrap();
    let (control, _, _) = Control::connect();
    for folder in ["tiny_llama", "tiny_llama_untied"] {
        let store = export(folder);
        let text = |compute: &Compute| {
            let (model, sampling) = (open(&store, compute), Sampling { greedy: true, ..Sampling::default() });
            let limits = Limits { max_new_tokens: 24, stop: &[], end: &[] };
            let (prompt, random) = ([5, 17, 300, 2], Random::new(0));
            block_on(generate(&model, &tokenizer, &prompt, &sampling, &limits, random, &control, None, |_| {})).unwrap().0.tokens
        };
        let expected = text(&cpu());
        for gpu in keeping_f16() {
            assert_eq!(text(&gpu), expected, "{folder} on {}", gpu.info.name);
        }
    }
}

#[test]
fn f16_weights_that_are_not_finite_are_refused_by_name() {
    for compute in devices() {
        for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let (store, config) = (random_folder(&shape(56, true), Some(bad)), shape(56, true));
            let error = block_on(load(&store, "m", &config, &compute, 16)).unwrap_err().to_string();
            let expected = format!("m/model.safetensors: tensor model.embed_tokens.weight holds {name} (number 0)");
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
