//! The Llama family: shapes, weights on disk, the forward pass.

pub mod cache;
pub mod config;
pub mod hub;
pub mod llama;
pub mod rope;
pub mod safetensors;

pub use cache::KvCache;
pub use config::LlamaConfig;
pub use llama::Llama;
