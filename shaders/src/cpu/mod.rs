//! The twins: plain loops over slices.

pub mod adamw;
pub mod rms_norm;

pub use adamw::adamw;
pub use rms_norm::{rms_norm, rms_norm_dw, rms_norm_dx};
