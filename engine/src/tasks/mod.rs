//! Whole jobs in one command.

pub mod answers;
pub mod demo;
pub mod describe;
pub mod export;
pub mod inspect;
pub mod merge;
pub mod pack;
pub mod reason;
pub mod self_test;
pub mod unpack;
