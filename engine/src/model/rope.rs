//! Angles of the rotary position embedding.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::config::LlamaConfig;

/// Cosines and sines of every position: `[positions, e/2]` each, in f32.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rope {
    /// Tables for positions `0..positions`.
    pub fn new(config: &LlamaConfig, positions: usize, device: &Device) -> Self {
        let frequencies = inverse_frequencies(config);
        let half = frequencies.len();
        let table = |f: fn(f32) -> f32| {
            let angle = |position: usize| frequencies.iter().map(move |frequency| f(position as f32 * frequency));
            let values: Vec<f32> = (0..positions).flat_map(angle).collect();
            Tensor::from_data(TensorData::new(values, [positions, half]), (device, DType::F32))
        };
        Self { cos: table(f32::cos), sin: table(f32::sin) }
    }

    /// Rows of positions `offset..offset + t`.
    pub fn at(&self, offset: usize, t: usize) -> (Tensor<2>, Tensor<2>) {
        (self.cos.clone().narrow(0, offset, t), self.sin.clone().narrow(0, offset, t))
    }

    /// Rows of `positions`, one after the other.
    pub fn rows(&self, positions: &[i32]) -> (Tensor<2>, Tensor<2>) {
        let at = Tensor::<1, Int>::from_data(TensorData::new(positions.to_vec(), [positions.len()]), (&self.cos.device(), DType::I32));
        (self.cos.clone().select(0, at.clone()), self.sin.clone().select(0, at))
    }

    /// The whole tables: `[positions, e/2]` each.
    pub fn tables(&self) -> (&Tensor<2>, &Tensor<2>) {
        (&self.cos, &self.sin)
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }
}

/// `θ^(−2i/e)`, stretched for long contexts as Llama 3.1 does.
///
/// Wavelengths above `original/low` are divided by `factor`, those below `original/high` are kept, and
/// those between are blended. In f32 like the reference implementation, whose rounding is part of the weights.
pub fn inverse_frequencies(config: &LlamaConfig) -> Vec<f32> {
    let e = config.head_dim;
    let plain = (0..e / 2).map(|i| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / e as f32));
    let Some(scaling) = &config.rope_scaling else {
        return plain.collect();
    };
    let (factor, low, high) = (scaling.factor as f32, scaling.low_freq_factor as f32, scaling.high_freq_factor as f32);
    let original = scaling.original_max_position_embeddings as f32;
    let stretch = |frequency: f32| {
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength > original / low {
            frequency / factor
        } else if wavelength < original / high {
            frequency
        } else {
            let blend = (original / wavelength - low) / (high - low);
            (1.0 - blend) * frequency / factor + blend * frequency
        }
    };
    plain.map(stretch).collect()
}
