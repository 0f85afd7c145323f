//! The twins: plain loops over slices.

pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
pub mod cross_entropy;
pub mod decode;
pub mod dropout;
pub mod embedding;
pub mod embedding_f16;
pub mod linear;
pub mod linear_f16;
pub mod linear_nf4;
pub mod rms_norm;
pub mod rope;
pub mod sum_of_squares;
pub mod swiglu;

pub use adamw::adamw;
pub use adamw_8bit::adamw_8bit;
pub use attention::{attention, attention_backward, attention_delta};
pub use cross_entropy::{cross_entropy, cross_entropy_dlogits};
pub use decode::{
    decode_add, decode_attention, decode_combine, decode_embed, decode_gate_up, decode_norm_linear, decode_residual, decode_sample,
};
pub use dropout::dropout;
pub use embedding::{embedding, embedding_dw};
pub use embedding_f16::embedding_f16;
pub use linear::{linear, linear_dw, linear_dx};
pub use linear_f16::{halves, linear_f16, linear_f16_dx};
pub use linear_nf4::{Nf4, dequantize_nf4, linear_nf4, linear_nf4_dx};
pub use rms_norm::{rms_norm, rms_norm_dw, rms_norm_dx};
pub use rope::rope;
pub use sum_of_squares::sum_of_squares;
pub use swiglu::{swiglu, swiglu_backward};

/// The two f16 of a word, the low half first: WGSL's `unpack2x16float`.
pub fn unpack(word: u32) -> [f32; 2] {
    [word as u16, (word >> 16) as u16].map(|bits| {
        let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
        let size = match exponent {
            0 => fraction * 2f32.powi(-24),
            31 if fraction == 0.0 => f32::INFINITY,
            31 => f32::NAN,
            _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
        };
        if sign == 0 { size } else { -size }
    })
}
