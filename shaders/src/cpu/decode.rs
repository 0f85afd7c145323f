//! One new token a row: what the kernels of decoding join.

use super::{linear, rms_norm};

/// Rows of a table of `d` columns.
pub fn decode_embed(tokens: &[u32], table: &[f32], d: usize) -> Vec<f32> {
    tokens.iter().flat_map(|token| &table[*token as usize * d..][..d]).copied().collect()
}

/// `norm(x)·wᵀ`.
pub fn decode_norm_linear(x: &[f32], norm: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    linear(&rms_norm(x, norm, eps).0, w, norm.len())
}

/// `silu(norm(x)·gateᵀ) · (norm(x)·upᵀ)`.
pub fn decode_gate_up(x: &[f32], norm: &[f32], gate: &[f32], up: &[f32], eps: f32) -> Vec<f32> {
    let (gate, up) = (decode_norm_linear(x, norm, gate, eps), decode_norm_linear(x, norm, up, eps));
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// `x + y·wᵀ`, where rows of `y` and `w` have `columns` numbers.
pub fn decode_residual(x: &[f32], y: &[f32], w: &[f32], columns: usize) -> Vec<f32> {
    linear(y, w, columns).iter().zip(x).map(|(y, x)| x + y).collect()
}

/// `x + y`.
pub fn decode_add(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

/// A row of keys and values, and where its new token stands.
pub struct Attended<'a> {
    /// Cosines and sines of its position: `e/2` each.
    pub angles: [&'a [f32]; 2],
    /// `[capacity, groups·e]`; the new key is written.
    pub keys: &'a mut [f32],
    /// Likewise.
    pub values: &'a mut [f32],
    /// Where the new key goes.
    pub column: usize,
    /// The first key that is seen.
    pub start: usize,
}

/// Rope and attention (the kernels `decode_rope` and `decode_attention`) of one new token: `qkv` holds `heads` queries, then `groups` keys and as many values, of `e` numbers.
pub fn decode_attention(qkv: &[f32], row: Attended<'_>, heads: usize, groups: usize, e: usize) -> Vec<f32> {
    let Attended { angles: [cos, sin], keys, values, column, start } = row;
    let turned = |head: &[f32]| -> Vec<f32> {
        let (low, high) = head.split_at(e / 2);
        let first = (0..e / 2).map(|i| low[i] * cos[i] - high[i] * sin[i]);
        first.chain((0..e / 2).map(|i| high[i] * cos[i] + low[i] * sin[i])).collect()
    };
    let (queries, rest) = qkv.split_at(heads * e);
    let (new_keys, new_values) = rest.split_at(groups * e);
    let width = groups * e;
    keys[column * width..][..width].copy_from_slice(&new_keys.chunks(e).flat_map(turned).collect::<Vec<f32>>());
    values[column * width..][..width].copy_from_slice(new_values);
    let mut out = Vec::new();
    for (h, query) in queries.chunks(e).enumerate() {
        let (query, at) = (turned(query), h / (heads / groups) * e);
        let of = |rows: &[f32], key: usize| rows[key * width + at..][..e].to_vec();
        let scale = (e as f32).powf(-0.5);
        let scores: Vec<f32> =
            (start..=column).map(|key| scale * of(keys, key).iter().zip(&query).map(|(k, q)| k * q).sum::<f32>()).collect();
        let largest = scores.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut sums = vec![0.0; e];
        for (key, score) in (start..).zip(&scores) {
            let p = (score - largest).exp() / total;
            sums.iter_mut().zip(of(values, key)).for_each(|(sum, value)| *sum += p * value);
        }
        out.extend(sums);
    }
    out
}

/// Joins runs of keys: per run of a head `e` sums, the largest score and the sum of exponentials.
pub fn decode_combine(parts: &[f32], e: usize, splits: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in parts.chunks(splits * (e + 2)) {
        let largest = head.chunks(e + 2).map(|part| part[e]).fold(f32::MIN, f32::max);
        let share = |part: &[f32]| (part[e] - largest).exp();
        let total: f32 = head.chunks(e + 2).map(|part| share(part) * part[e + 1]).sum();
        out.extend((0..e).map(|i| head.chunks(e + 2).map(|part| share(part) * part[i]).sum::<f32>() / total));
    }
    out
}

/// How [`decode_sample`] draws.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Take the likeliest, of equals the lowest id.
    pub greedy: bool,
    /// Divides the logits.
    pub temperature: f32,
    /// Keeps so many and what equals the last of them; 0 keeps all.
    pub top_k: usize,
    /// Drops a token where it and all that are not likelier have at most `1 − top_p`.
    pub top_p: f32,
    /// Drops what is less likely than so many times the likeliest.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that were seen.
    pub penalty: f32,
}

/// The token at which the running sum of probabilities, by id, passes `share` of all; none for logits that are no numbers.
pub fn decode_sample(logits: &[f32], seen: impl Fn(usize) -> bool, draw: Draw, share: f32) -> Option<u32> {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) || logits.iter().all(|x| *x == f32::NEG_INFINITY) {
        return None;
    }
    let penalised = |(id, x): (usize, &f32)| match (seen(id), *x < 0.0) {
        (false, _) => *x,
        (true, true) => x * draw.penalty,
        (true, false) => x / draw.penalty,
    };
    let logits: Vec<f32> = logits.iter().enumerate().map(penalised).collect();
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    if draw.greedy {
        return logits.iter().position(|x| *x == top).map(|id| id as u32);
    }
    let mut sorted = logits.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut least = if draw.top_k == 0 { f32::MIN } else { sorted[draw.top_k.min(sorted.len()) - 1] };
    let p = |x: f32| if x >= least { f64::from((x - top) / draw.temperature).exp() } else { 0.0 };
    if draw.top_p < 1.0 {
        let cut = f64::from(1.0 - draw.top_p) * logits.iter().map(|x| p(*x)).sum::<f64>();
        let upto = |x: f32| logits.iter().filter(|other| **other <= x).map(|other| p(*other)).sum::<f64>();
        least = sorted.iter().rev().copied().filter(|x| *x >= least).find(|x| upto(*x) > cut).unwrap_or(top);
    }
    let weight = |x: f32| {
        let p = if x >= least { f64::from((x - top) / draw.temperature).exp() } else { 0.0 };
        if p >= f64::from(draw.min_p) { p } else { 0.0 }
    };
    let mut rest = f64::from(share) * logits.iter().map(|x| weight(*x)).sum::<f64>();
    let mut chosen = None;
    for (id, x) in logits.iter().enumerate().filter(|(_, x)| weight(**x) > 0.0) {
        chosen = Some(id as u32);
        rest -= weight(*x);
        if rest < 0.0 {
            break;
        }
    }
    chosen
}
