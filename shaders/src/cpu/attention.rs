//! Causal attention with grouped key/value heads, a query and a head at a time.

/// Sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub b: usize,
    /// Queries per sequence.
    pub t: usize,
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub g: usize,
    /// Head size.
    pub e: usize,
    /// Rows per sequence of the key and value buffers.
    pub capacity: usize,
    /// Position of the first query; keys `0..offset + t` are filled.
    pub offset: usize,
}

/// What both directions read: `q: [b·t, h·e]`, `k`, `v`: `[b·capacity, g·e]`, `starts: [b·t]` the first key of every query.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Where the documents of the queries begin.
    pub starts: &'a [i32],
    /// Sizes.
    pub shape: Shape,
}

impl Inputs<'_> {
    /// Of query `row` in head `head`: the index of its first element, and of those of the keys that it sees.
    fn places(&self, row: usize, head: usize) -> (usize, impl Iterator<Item = usize> + Clone + use<>) {
        let Shape { t, h, g, e, capacity, offset, .. } = self.shape;
        let keys = self.starts[row].max(0) as usize..=offset + row % t;
        ((row * h + head) * e, keys.map(move |key| ((row / t * capacity + key) * g + head / (h / g)) * e))
    }

    fn score(&self, query: usize, key: usize) -> f32 {
        let e = self.shape.e;
        dot(&self.q[query..][..e], &self.k[key..][..e]) / (e as f32).sqrt()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// `softmax(q·kᵀ/√e)·v` over the keys a query sees as `[b·t, h·e]`, and the log-sum-exp of its scores as `[b·t, h]`.
pub fn attention(inputs: Inputs) -> (Vec<f32>, Vec<f32>) {
    let Shape { b, t, h, e, .. } = inputs.shape;
    let (mut out, mut lse) = (vec![0.0; b * t * h * e], Vec::new());
    for (row, head) in (0..b * t).flat_map(|row| (0..h).map(move |head| (row, head))) {
        let (query, keys) = inputs.places(row, head);
        let largest = keys.clone().map(|key| inputs.score(query, key)).fold(f32::MIN, f32::max);
        let total: f32 = keys.clone().map(|key| (inputs.score(query, key) - largest).exp()).sum();
        lse.push(largest + total.ln());
        for key in keys {
            let p = (inputs.score(query, key) - largest).exp() / total;
            add(&mut out[query..][..e], p, &inputs.v[key..][..e]);
        }
    }
    (out, lse)
}

/// `Σ dout·out` of every query and head, `[b·t, h]`.
pub fn attention_delta(dout: &[f32], out: &[f32], e: usize) -> Vec<f32> {
    dout.chunks(e).zip(out.chunks(e)).map(|(dout, out)| dot(dout, out)).collect()
}

/// Gradients of `q`, `k` and `v`: with `p = exp(score − lse)` and `ds = p·(dout·v − delta)/√e`, `dq = Σ ds·k`,
/// `dk = Σ ds·q`, `dv = Σ p·dout`.
pub fn attention_backward(inputs: Inputs, dout: &[f32], out: &[f32], lse: &[f32]) -> [Vec<f32>; 3] {
    let Shape { b, t, h, e, .. } = inputs.shape;
    let delta = attention_delta(dout, out, e);
    let [mut dq, mut dk, mut dv] = [inputs.q, inputs.k, inputs.v].map(|x| vec![0.0; x.len()]);
    for (row, head) in (0..b * t).flat_map(|row| (0..h).map(move |head| (row, head))) {
        let (query, keys) = inputs.places(row, head);
        for key in keys {
            let p = (inputs.score(query, key) - lse[row * h + head]).exp();
            let dp = dot(&dout[query..][..e], &inputs.v[key..][..e]);
            let ds = p * (dp - delta[row * h + head]) / (e as f32).sqrt();
            add(&mut dq[query..][..e], ds, &inputs.k[key..][..e]);
            add(&mut dk[key..][..e], ds, &inputs.q[query..][..e]);
            add(&mut dv[key..][..e], p, &dout[query..][..e]);
        }
    }
    [dq, dk, dv]
}
