//! Keys and values of the tokens seen so far.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::config::LlamaConfig;

/// Per layer `[b, capacity, g·e]` of keys and of values, of which `len` columns are filled.
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

    /// Bytes of such a cache for one sequence.
    pub fn row_bytes(config: &LlamaConfig, capacity: usize) -> u64 {
        8 * (config.num_hidden_layers * config.num_key_value_heads * config.head_dim * capacity) as u64
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Columns that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
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

    /// Keys and values of a layer, `[b, capacity, g·e]` each.
    pub fn layer(&self, layer: usize) -> (&Tensor<3>, &Tensor<3>) {
        (&self.layers[layer].0, &self.layers[layer].1)
    }

    /// Counts `t` tokens as stored.
    pub fn advance(&mut self, t: usize) {
        self.len += t;
    }

    /// Writes sequences of another cache over some of this one: their last columns are the last ones here. `rows` pairs a
    /// sequence of `from` with the one here that it replaces, which come in rising order.
    pub fn replace(&mut self, from: &Self, rows: &[(usize, usize)]) {
        let t = from.len;
        assert!(t <= self.len, "{t} columns do not fit before column {}", self.len);
        let runs: Vec<&[(usize, usize)]> = rows.chunk_by(|a, b| a.1 + 1 == b.1).collect();
        for (here, there) in self.layers.iter_mut().zip(&from.layers) {
            for run in &runs {
                let chosen = indices(run.iter().map(|(from, _)| *from), &there.0.device());
                let (first, width) = (run[0].1, there.0.dims()[2]);
                let range = [first..first + run.len(), self.len - t..self.len, 0..width];
                let taken = |tensor: &Tensor<3>| tensor.clone().narrow(1, 0, t).select(0, chosen.clone());
                here.0.inplace(|keys| keys.slice_assign(range.clone(), taken(&there.0)));
                here.1.inplace(|values| values.slice_assign(range.clone(), taken(&there.1)));
            }
        }
    }

    /// Keeps only some sequences, in their order.
    pub fn keep(&mut self, rows: &[usize]) {
        self.batch = rows.len();
        for (keys, values) in &mut self.layers {
            let chosen = indices(rows.iter().copied(), &keys.device());
            keys.inplace(|keys| keys.select(0, chosen.clone()));
            values.inplace(|values| values.select(0, chosen));
        }
    }

    /// Drops the first `columns` of every sequence.
    pub fn drop_first(&mut self, columns: usize) {
        let kept = self.len - columns;
        for (keys, values) in &mut self.layers {
            let width = keys.dims()[2];
            let range = [0..self.batch, 0..kept, 0..width];
            let moved = |tensor: Tensor<3>| {
                let rest = tensor.clone().narrow(1, columns, kept);
                tensor.slice_assign(range.clone(), rest)
            };
            keys.inplace(moved);
            values.inplace(moved);
        }
        self.len = kept;
    }
}

fn indices(values: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (device, DType::I32))
}
