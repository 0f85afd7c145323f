//! Whole jobs in one command.

pub mod demo;
pub mod export;
