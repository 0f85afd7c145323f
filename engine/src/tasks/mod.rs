//! Whole jobs in one command.

pub mod demo;
