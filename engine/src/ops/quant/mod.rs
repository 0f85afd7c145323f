//! Numbers of few bits, exactly as bitsandbytes makes them.

pub mod adamw8;
pub mod dynamic8;
mod mean;
pub mod nf4;

pub use nf4::{Absmax, Nf4};
