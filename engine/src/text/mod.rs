//! Text and tokens: Hugging Face tokenizers and the training of our own.

pub mod bpe;
pub mod python;
pub mod template;
pub mod tokenizer;

pub use tokenizer::Tokenizer;
