//! The kernels of attention, position and gate against their twins.

use burn::tensor::{Device, Tensor};
use smolforge_shaders::cpu as twins;

use super::{Pairs, SIZES, cpu, matrix, numbers, tensor, value_and_gradients, with_lanes};
use crate::ops::attention::{self, Mask};
use crate::ops::{rope, swiglu, without_lanes};

/// What is looked at.
#[derive(Clone, Copy)]
pub(super) enum Which {
    /// The output.
    Value,
    /// The gradient of the queries.
    Dq,
    /// Those of keys and values.
    Dkv,
}

/// Two documents in every sequence; `few`: queries of a step of decoding.
pub(super) fn plain(device: &Device, which: Which, few: bool) -> Pairs {
    without_lanes(|| attended(device, which, few))
}

/// As [`plain`], by the kernels for eight lanes where they are in use.
pub(super) fn lanes(device: &Device, which: Which, few: bool) -> Pairs {
    with_lanes(device, || attended(device, which, few))
}

fn attended(device: &Device, which: Which, few: bool) -> Pairs {
    let pairs = |[b, t, h, g, e]: [usize; 5]| {
        let t = if few { t.min(3) } else { t };
        let starts: Vec<i32> = (0..b * t).map(|i| if i % t >= t / 3 { (t / 3) as i32 } else { 0 }).collect();
        let mask = Mask::new(b, t, 0, &starts, device);
        let op = |x: &[Tensor<2>]| attention::attention(x[0].clone(), x[1].clone(), x[2].clone(), &mask, h, g);
        let there = vec![matrix(1, b * t, h * e, device), matrix(2, b * t, g * e, device), matrix(3, b * t, g * e, device)];
        let mut found = value_and_gradients(op, there);
        let [q, k, v, dout] = [(1, h), (2, g), (3, g), (99, h)].map(|(seed, heads)| numbers(seed, b * t * heads * e));
        let shape = twins::attention::Shape { b, t, h, g, e, capacity: t, offset: 0 };
        let inputs = twins::attention::Inputs { q: &q, k: &k, v: &v, starts: &starts, shape };
        let (out, lse) = twins::attention(inputs);
        let pair = |found, expected, heads| (found, tensor(expected, b * t, heads * e, &cpu()));
        if matches!(which, Which::Value) {
            return vec![pair(found.swap_remove(0), out, h)];
        }
        let [dq, dk, dv] = twins::attention_backward(inputs, &dout, &out, &lse);
        match which {
            Which::Dq => vec![pair(found.swap_remove(1), dq, h)],
            _ => vec![pair(found.swap_remove(3), dv, g), pair(found.swap_remove(2), dk, g)],
        }
    };
    [[2, 5, 4, 2, 8], [1, 63, 3, 1, 64], [1, 65, 4, 2, 64], [1, 70, 2, 1, 128]].into_iter().flat_map(pairs).collect()
}

pub(super) fn rope_kernel(device: &Device) -> Pairs {
    let pair = |(b, t, h, e): (usize, usize, usize, usize)| {
        let angles = numbers(5, t * e / 2);
        let table = |of: fn(f32) -> f32| angles.iter().map(|angle| of(angle * 9.0)).collect::<Vec<f32>>();
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let there = |values: &[f32]| tensor(values.to_vec(), t, e / 2, device);
        let found = rope::rope(matrix(1, b * t, h * e, device), there(&cos), there(&sin));
        (found, tensor(twins::rope(&numbers(1, b * t * h * e), &cos, &sin, h * e, e / 2, 1.0), b * t, h * e, &cpu()))
    };
    [(1, 1, 1, 8), (2, 5, 3, 8), (3, 65, 2, 64)].into_iter().map(pair).collect()
}

/// The value, or with `back` both gradients.
pub(super) fn swiglu_kernel(device: &Device, back: bool) -> Pairs {
    let pairs = |(n, f): (usize, usize)| {
        let op = |x: &[Tensor<2>]| swiglu::swiglu(x[0].clone(), x[1].clone());
        let mut found = value_and_gradients(op, vec![matrix(1, n, f, device), matrix(2, n, f, device)]);
        let (gate, up, dy) = (numbers(1, n * f), numbers(2, n * f), numbers(99, n * f));
        let there = |values| tensor(values, n, f, &cpu());
        if !back {
            return vec![(found.swap_remove(0), there(twins::swiglu(&gate, &up)))];
        }
        let (dgate, dup) = twins::swiglu_backward(&dy, &gate, &up);
        vec![(found.swap_remove(2), there(dup)), (found.swap_remove(1), there(dgate))]
    };
    SIZES.into_iter().flat_map(pairs).collect()
}
