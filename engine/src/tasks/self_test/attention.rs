//! Attention: its kernels and the op.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use smolforge_shaders::cpu as twins;

use super::{Pairs, compared, cpu, matrix, numbers, tensor, value_and_gradients};
use crate::ops::attention::{Mask, Shape, attention, reference};
use crate::ops::without_lanes;

/// Kernels for `t` queries a sequence; `parts`: 0 the value, then the gradients by q, k and v; with `lanes` the kernels
/// for subgroups of 8 where the device has them.
pub fn kernels(device: &Device, t: usize, parts: Range<usize>, lanes: bool) -> Pairs {
    let run = || {
        let of_shape = |(b, h, g, e, offset, room)| {
            let shape = Shape { b, t, h, g, e, capacity: offset + t + room, offset };
            of_shape(device, shape).drain(parts.clone()).collect::<Pairs>()
        };
        [(2, 6, 2, 64, 0, 0), (1, 5, 1, 36, 70, 7), (1, 2, 2, 128, 3, 1)].into_iter().flat_map(of_shape).collect()
    };
    if lanes { run() } else { without_lanes(run) }
}

/// Two documents in every sequence: the second begins at a third of it.
fn starts(b: usize, t: usize, offset: usize) -> Vec<i32> {
    let border = (offset + t) / 3;
    (0..b * t).map(|i| if offset + i % t >= border { border as i32 } else { 0 }).collect()
}

fn of_shape(device: &Device, shape: Shape) -> Pairs {
    let Shape { b, t, h, g, e, capacity, offset } = shape;
    let starts = starts(b, t, offset);
    let sizes = [(1, b * t, h * e), (2, b * capacity, g * e), (3, b * capacity, g * e)];
    let inputs = sizes.map(|(seed, rows, columns)| matrix(seed, rows, columns, device)).to_vec();
    let op = |x: &[Tensor<2>]| {
        let mask = Mask::new(b, t, offset, &starts, &x[0].device());
        attention(x[0].clone(), x[1].clone(), x[2].clone(), &mask, h, g)
    };
    let [q, k, v] = sizes.map(|(seed, rows, columns)| numbers(seed, rows * columns));
    let twin = twins::attention::Inputs { q: &q, k: &k, v: &v, starts: &starts, shape };
    let (out, lse) = twins::attention(twin);
    let [dq, dk, dv] = twins::attention_backward(twin, &numbers(99, out.len()), &out, &lse);
    let expected = [out, dq, dk, dv].into_iter().zip([sizes[0], sizes[0], sizes[1], sizes[2]]);
    let expected = expected.map(|(values, (_, rows, columns))| tensor(values, rows, columns, &cpu()));
    value_and_gradients(op, inputs).into_iter().zip(expected).collect()
}

/// Against the definition.
pub fn op(device: &Device) -> Pairs {
    let pairs = |(b, t, h, g, e): (usize, usize, usize, usize, usize)| {
        let starts = starts(b, t, 0);
        let sees = |row: usize, key: usize| key >= starts[row] as usize && key <= row % t;
        let seen: Vec<f32> = (0..b * t * t).map(|i| if sees(i / t, i % t) { 0.0 } else { -1e30 }).collect();
        let shape = Shape { b, t, h, g, e, capacity: t, offset: 0 };
        let mask = Mask::new(b, t, 0, &starts, device);
        compared(
            device,
            |x| attention(x[0].clone(), x[1].clone(), x[2].clone(), &mask, h, g),
            |x| {
                let additive = Tensor::from_data(TensorData::new(seen.clone(), [b, 1, t, t]), (&x[0].device(), DType::F32));
                reference(x[0].clone(), x[1].clone(), x[2].clone(), additive, shape)
            },
            |device| vec![matrix(1, b * t, h * e, device), matrix(2, b * t, g * e, device), matrix(3, b * t, g * e, device)],
        )
    };
    [(2, 5, 4, 2, 8), (1, 63, 3, 1, 64), (1, 65, 4, 2, 64)].into_iter().flat_map(pairs).collect()
}
