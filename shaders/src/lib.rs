//! WGSL kernels and what they mean.
//!
//! Every kernel is a file in `wgsl/` that is valid WGSL as it stands, with entry point `main`, and has a twin of
//! the same name in [`cpu`]: plain loops, the definition of correct. This crate knows nothing of burn.

pub mod cpu;

/// A compute shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the file and of the twin.
    pub name: &'static str,
    /// WGSL.
    pub source: &'static str,
    /// Threads of a workgroup.
    pub workgroup_size: u32,
}

macro_rules! kernels {
    ($($(#[doc = $doc:literal])* $constant:ident $name:literal $size:literal,)*) => {
        $($(#[doc = $doc])* pub const $constant: Kernel =
            Kernel { name: $name, source: include_str!(concat!("../wgsl/", $name, ".wgsl")), workgroup_size: $size };)*
        /// Every kernel.
        pub const KERNELS: &[Kernel] = &[$($constant,)*];
    };
}

kernels! {
    /// Root-mean-square normalisation.
    RMS_NORM "rms_norm" 64,
    /// Its gradient by the input.
    RMS_NORM_DX "rms_norm_dx" 64,
    /// Its gradient by the weight, in parts.
    RMS_NORM_DW "rms_norm_dw" 64,
    /// An optimizer update.
    ADAMW "adamw" 64,
    /// Product of many rows.
    LINEAR "linear" 64,
    /// The same for few rows.
    LINEAR_ROW "linear_row" 64,
    /// Its gradient by the input.
    LINEAR_DX "linear_dx" 64,
    /// Its gradient by the weight.
    LINEAR_DW "linear_dw" 64,
    /// The product where a subgroup has eight lanes.
    LINEAR_LANES "linear_lanes" 8,
    /// Its gradient by the input, likewise.
    LINEAR_DX_LANES "linear_dx_lanes" 8,
    /// Its gradient by the weight, likewise.
    LINEAR_DW_LANES "linear_dw_lanes" 8,
    /// Product with packed f16 weights, many rows.
    LINEAR_F16 "linear_f16" 64,
    /// The same for few rows.
    LINEAR_F16_ROW "linear_f16_row" 64,
    /// Its gradient by the input, many rows and few.
    LINEAR_F16_DX "linear_f16_dx" 64,
    /// The product where a subgroup has eight lanes.
    LINEAR_F16_LANES "linear_f16_lanes" 8,
    /// Its gradient by the input, likewise.
    LINEAR_F16_DX_LANES "linear_f16_dx_lanes" 8,
    /// Numbers rounded to packed f16.
    HALVES "halves" 64,
    /// Product with NF4 weights, many rows.
    LINEAR_NF4 "linear_nf4" 64,
    /// Its gradient by the input, many rows and few.
    LINEAR_NF4_DX "linear_nf4_dx" 64,
    /// The product for few rows.
    LINEAR_NF4_ROW "linear_nf4_row" 64,
    /// Zeros in random places.
    DROPOUT "dropout" 64,
    /// An optimizer update with moments of eight bits.
    ADAMW_8BIT "adamw_8bit" 64,
    /// Rows of a packed f16 table.
    EMBEDDING_F16 "embedding_f16" 64,
    /// Embeddings of the newest tokens.
    DECODE_EMBED "decode_embed" 64,
    /// Normalisation and up to three products of a few rows.
    DECODE_NORM_LINEAR "decode_norm_linear" 64,
    /// The same where a subgroup has eight lanes.
    DECODE_NORM_LINEAR_LANES "decode_norm_linear_lanes" 8,
    /// Positions of one new token a row, and its place in the cache.
    DECODE_ROPE "decode_rope" 64,
    /// Attention of one new token a row, in parts.
    DECODE_ATTENTION "decode_attention" 64,
    /// The same where a subgroup has eight lanes.
    DECODE_ATTENTION_LANES "decode_attention_lanes" 8,
    /// Joins these parts.
    DECODE_COMBINE "decode_combine" 64,
    /// Normalisation and the gated half of the feed-forward block.
    DECODE_GATE_UP "decode_gate_up" 64,
    /// The same where a subgroup has eight lanes.
    DECODE_GATE_UP_LANES "decode_gate_up_lanes" 8,
    /// A product added to its rows.
    DECODE_RESIDUAL "decode_residual" 64,
    /// The same where a subgroup has eight lanes.
    DECODE_RESIDUAL_LANES "decode_residual_lanes" 8,
    /// Rows added to rows.
    DECODE_ADD "decode_add" 64,
    /// Draws the next token of every row.
    DECODE_SAMPLE "decode_sample" 256,
    /// Rows of a table.
    EMBEDDING "embedding" 64,
    /// Its gradient by the table, added to a sum.
    EMBEDDING_DW "embedding_dw" 64,
    /// Cross-entropy of a block of logits.
    CROSS_ENTROPY "cross_entropy" 256,
    /// Its gradient by the logits, in place.
    CROSS_ENTROPY_DLOGITS "cross_entropy_dlogits" 256,
    /// Squared norms, in parts, of up to seven buffers.
    SUM_OF_SQUARES "sum_of_squares" 64,
    /// Causal attention with grouped heads.
    ATTENTION "attention" 64,
    /// The same for subgroups of 8.
    ATTENTION_LANES "attention_lanes" 8,
    /// The same for few queries.
    ATTENTION_ROW "attention_row" 64,
    /// For few queries and subgroups of 8.
    ATTENTION_ROW_LANES "attention_row_lanes" 8,
    /// What its gradients need of every query.
    ATTENTION_DELTA "attention_delta" 64,
    /// Its gradient by the queries.
    ATTENTION_DQ "attention_dq" 64,
    /// The same for subgroups of 8.
    ATTENTION_DQ_LANES "attention_dq_lanes" 8,
    /// Its gradients by keys and values.
    ATTENTION_DKV "attention_dkv" 64,
    /// The same for subgroups of 8.
    ATTENTION_DKV_LANES "attention_dkv_lanes" 8,
    /// Rotary position embedding.
    ROPE "rope" 64,
    /// The gate of the feed-forward block.
    SWIGLU "swiglu" 64,
    /// Its gradients.
    SWIGLU_BACKWARD "swiglu_backward" 64,
}
