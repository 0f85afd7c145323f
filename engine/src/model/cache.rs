//! Keys and values of the tokens seen so far.

use burn::tensor::{DType, Device, Tensor};

use super::config::LlamaConfig;

/// Per layer `[b, capacity, g·e]` of keys and of values, of which `len` rows per sequence are filled.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<(Tensor<3>, Tensor<3>)>,
    batch: usize,
    capacity: usize,
    /// Tokens stored per sequence.
    pub len: usize,
}

impl KvCache {
    /// Room for `capacity` tokens of `batch` sequences.
    pub fn new(config: &LlamaConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        let empty = || Tensor::zeros([batch, capacity, width], (device, DType::F32));
        let layers = (0..config.num_hidden_layers).map(|_| (empty(), empty())).collect();
        Self { layers, batch, capacity, len: 0 }
    }

    /// Stores the keys and values of `t` new tokens of a layer and returns all of its buffer as
    /// `[b·capacity, g·e]`. `len` moves on only when the last layer has stored its own: see [`KvCache::advance`].
    pub fn store(&mut self, layer: usize, k: Tensor<2>, v: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let [rows, width] = k.dims();
        let t = rows / self.batch;
        assert!(self.len + t <= self.capacity, "cache of {} tokens is full", self.capacity);
        let range = [0..self.batch, self.len..self.len + t, 0..width];
        let (keys, values) = &mut self.layers[layer];
        keys.inplace(|keys| keys.slice_assign(range.clone(), k.reshape([self.batch, t, width])));
        values.inplace(|values| values.slice_assign(range.clone(), v.reshape([self.batch, t, width])));
        let all = [self.batch * self.capacity, width];
        (keys.clone().reshape(all), values.clone().reshape(all))
    }

    /// Counts `t` tokens as stored.
    pub fn advance(&mut self, t: usize) {
        self.len += t;
    }
}
