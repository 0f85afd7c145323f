//! The Llama family: shapes, weights on disk, the forward pass.

pub mod adapter;
pub mod bitsandbytes;
pub mod cache;
pub mod config;
pub mod fetch;
pub mod hub;
pub mod linear;
pub mod llama;
pub mod load;
pub mod rope;
pub mod safetensors;

pub use adapter::Adapter;
pub use cache::KvCache;
pub use config::LlamaConfig;
pub use llama::Llama;
