//! The loss of the reference's grader, which counts its padding, too.

use burn::tensor::{DType, Tensor};

use crate::control::{Control, Flow};
use crate::device::read_f32;
use crate::error::Result;
use crate::model::Llama;
use crate::model::linear::{Linear, Parameter, Weight};
use crate::model::llama::ids;
use crate::ops::attention::Mask;
use crate::ops::cross_entropy::Wanted;

/// Mean cross-entropy of the next token over every position of a batch that is padded on the left, those of padding
/// included, as transformers 5.23 gives it with torch 2.15 and its default attention (SDPA). NaN where nothing follows
/// anything; `None` where it was stopped.
///
/// A padded query sees no key there, and since torch 2.5 its attention then is 0: padding is one token whose layers' attention
/// adds nothing, the same in every column. It is scored on the padding that follows, and in its last column on the first
/// token of the row. Positions are counted from the first column; only their distances matter.
///
/// Axes: `b` rows, `t` tokens of the longest of them. `at_once` tokens go through the model together.
///
/// # Errors
/// Where the device fails.
pub async fn padded_loss(model: &Llama, rows: &[Vec<u32>], pad: u32, at_once: usize, control: &Control) -> Result<Option<f64>> {
    let t = rows.iter().map(Vec::len).max().unwrap_or(0);
    let model = if model.positions() < t { model.clone().with_positions(t) } else { model.clone() };
    let after_pad = pad_losses(&model, pad).await?;
    let mut total = 0.0;
    for rows in rows.chunks((at_once / t.max(1)).max(1)) {
        if control.breathe().await == Flow::Stop {
            return Ok(None);
        }
        total += row_losses(&model, rows, pad).await?;
    }
    for row in rows.iter().filter(|row| row.len() < t) {
        let first = row.first().map_or(0.0, |first| after_pad(*first));
        total += (t - row.len() - 1) as f64 * after_pad(pad) + first;
    }
    Ok(Some(total / (rows.len() * t.saturating_sub(1)) as f64))
}

/// Sum of the losses of all tokens but the first of every row. They are padded on the right here, where nothing sees it.
async fn row_losses(model: &Llama, rows: &[Vec<u32>], pad: u32) -> Result<f64> {
    let (b, t) = (rows.len(), rows.iter().map(Vec::len).max().unwrap_or(0));
    if t < 2 {
        return Ok(0.0);
    }
    let device = model.norm.weight.tensor.device();
    let (mut inputs, mut targets) = (Vec::with_capacity(b * t), Vec::with_capacity(b * t));
    for row in rows {
        let tokens = || row.iter().map(|id| *id as i32);
        inputs.extend(tokens().chain(std::iter::repeat(pad as i32)).take(t));
        targets.extend(tokens().skip(1).chain(std::iter::repeat(-1)).take(t));
    }
    let mask = Mask::causal(b, t, 0, &device);
    let hidden = model.forward(ids(inputs, &device), t, &mask, None); // [b·t, d]
    let losses = read_f32(model.loss(hidden, &targets, Wanted::Nothing).nll).await?;
    Ok(losses.into_iter().map(f64::from).sum())
}

/// The loss of any token after padding that nothing comes before.
async fn pad_losses(model: &Llama, pad: u32) -> Result<impl Fn(u32) -> f64> {
    let device = model.norm.weight.tensor.device();
    let mask = Mask::causal(1, 1, 0, &device);
    let hidden = deaf(model).forward(ids(vec![pad as i32], &device), 1, &mask, None); // [1, d]
    let logits = read_f32(model.logits(hidden)).await?; // [v]
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    Ok(move |id: u32| logits.get(id as usize).map_or(f64::NAN, |logit| sum.ln() - f64::from(logit - largest)))
}

/// The same model, in which attention adds nothing.
fn deaf(model: &Llama) -> Llama {
    let mut model = model.clone();
    let device = model.norm.weight.tensor.device();
    let Some(dims) = model.layers.first().map(|layer| layer.self_attn.o_proj.dims()) else { return model };
    let tensor = Tensor::zeros(dims, (&device, DType::F32)); // one for all layers
    for layer in &mut model.layers {
        let weight = Parameter { name: String::new(), first_row: 0, vector: false, tensor: tensor.clone() };
        layer.self_attn.o_proj = Linear { weight: Weight::Dense(weight), lora: None };
    }
    model
}
