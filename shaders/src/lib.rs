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
    /// Product with packed f16 weights, many rows.
    LINEAR_F16 "linear_f16" 64,
    /// The same for few rows.
    LINEAR_F16_ROW "linear_f16_row" 64,
    /// Its gradient by the input, many rows and few.
    LINEAR_F16_DX "linear_f16_dx" 64,
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
