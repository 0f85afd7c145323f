//! All cross-crate tests in one binary.
#![allow(missing_docs, clippy::unwrap_used)]

mod architecture_tests;
mod batch_tests;
mod decoder_tests;
mod demo_tests;
mod f16_tests;
mod finetune_tests;
mod golden_tests;
mod grade_tests;
mod lora_tests;
mod loss_tests;
mod ops_tests;
mod pack_tests;
mod quant_tests;
mod reason_tests;
mod reweight_tests;
mod run_tests;
mod shader_tests;
mod speech_tests;
mod store_tests;
