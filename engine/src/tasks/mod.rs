//! Whole jobs in one command.

pub mod demo;
pub mod export;
pub mod pack;
pub mod self_test;
pub mod unpack;
