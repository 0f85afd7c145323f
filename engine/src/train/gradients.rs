//! Losses and gradients of a micro-batch: at once, or a layer at a time.

use std::ops::Range;

use burn::tensor::{DType, Gradients, Tensor};

use crate::data::batch::{Batch, together};
use crate::model::Llama;
use crate::model::linear::Parameter;
use crate::model::llama::{Pass, ids};
use crate::ops::attention::Mask;
use crate::ops::cross_entropy::{Losses, attach};
use crate::ops::embedding::add_gradient;
use crate::ops::many;

/// Losses of a micro-batch; `scale` is what one target weighs.
pub fn forward(model: &Llama, batch: &Batch, scale: f64) -> Losses {
    let (mask, device) = (mask(model, batch), model.norm.weight.tensor.device());
    let hidden = model.forward(ids(batch.inputs.clone(), &device), batch.len, &mask, None); // [b·t, d]
    model.loss(hidden, &batch.targets, scale)
}

/// Loss of every target, and gradients of `scale · Σ nll` in the order of [`Llama::trained`].
///
/// With `checkpointing` the inputs of the layers are all that is kept of the forward pass: every layer is computed again
/// when its gradients are made (Chen et al. 2016, <https://arxiv.org/abs/1604.06174>), [`together`] sequences at a time.
pub fn losses_and_gradients(model: &Llama, batch: &Batch, scale: f64, checkpointing: bool) -> (Tensor<1>, Vec<Tensor<2>>) {
    if checkpointing {
        return layer_by_layer(model, batch, scale, together(batch.len));
    }
    let Losses { scaled, nll, .. } = forward(model, batch, scale);
    (nll, gradients(model, scaled))
}

/// Gradients of a loss in the order of [`Llama::trained`].
pub fn gradients(model: &Llama, loss: Tensor<1>) -> Vec<Tensor<2>> {
    gradients_of(model.trained().iter().map(|parameter| &parameter.tensor), loss)
}

/// Gradients of a loss by some leaves, in their order; zeros where it does not depend on one.
pub fn gradients_of<'a>(leaves: impl Iterator<Item = &'a Tensor<2>>, loss: Tensor<1>) -> Vec<Tensor<2>> {
    let mut grads = many(&loss.device(), || loss.backward());
    leaves.map(|leaf| take(leaf, &mut grads)).collect()
}

fn take(leaf: &Tensor<2>, grads: &mut Gradients) -> Tensor<2> {
    leaf.grad_remove(grads).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// As [`losses_and_gradients`] with checkpointing; a layer takes `together` sequences at a time.
pub fn layer_by_layer(model: &Llama, batch: &Batch, scale: f64, together: usize) -> (Tensor<1>, Vec<Tensor<2>>) {
    let device = model.norm.weight.tensor.device();
    let mut plain = model.plain();
    plain.dropout = model.dropout;
    let groups: Vec<Group> = (0..batch.rows).step_by(together.max(1)).map(|row| Group::new(model, batch, row, together)).collect();

    let mut inputs = vec![plain.embed(ids(batch.inputs.clone(), &device))]; // [b·t, d] each
    for (i, layer) in plain.layers.iter().enumerate() {
        let parts = groups.iter().map(|group| layer.forward(group.of(&inputs[i]), &group.pass(&plain), i, None));
        inputs.push(joined(parts.collect()));
    }

    let adapted = model.is_adapted();
    let x = leaf(inputs.pop().expect("what the last layer made"));
    let Losses { scaled, nll, .. } = model.loss(model.norm.forward(x.clone()), &batch.targets, scale);
    let mut grads = scaled.backward();
    let mut dx = take(&x, &mut grads);
    let mut outer =
        |parameters: &[Parameter]| -> Vec<Tensor<2>> { parameters.iter().map(|parameter| take(&parameter.tensor, &mut grads)).collect() };
    let (head, norm, table) = match adapted {
        true => Default::default(),
        false => (
            model.lm_head.as_ref().map(|head| outer(&head.weight)).unwrap_or_default(),
            outer(std::slice::from_ref(&model.norm.weight)),
            outer(&model.embed_tokens.weight),
        ),
    };
    drop((x, grads));

    let mut layers = Vec::new(); // gradients of the last layer first
    for (i, layer) in model.layers.iter().enumerate().rev() {
        let input = inputs.pop().expect("every layer has an input");
        let trained = if adapted { layer.adapter() } else { layer.parameters() };
        let mut sums: Vec<Tensor<2>> = Vec::new();
        let mut parts = Vec::new();
        for group in &groups {
            let x = leaf(group.of(&input));
            let y = layer.forward(x.clone(), &group.pass(model), i, None);
            let mut grads = seeded(y, group.of(&dx)).backward();
            parts.push(take(&x, &mut grads));
            let of_group = trained.iter().map(|parameter| take(&parameter.tensor, &mut grads));
            sums = match sums.is_empty() {
                true => of_group.collect(),
                false => sums.into_iter().zip(of_group).map(|(sum, grad)| sum + grad).collect(),
            };
        }
        dx = joined(parts);
        layers.push(sums);
    }
    let layers = layers.into_iter().rev().flatten();
    if adapted {
        return (nll, layers.collect());
    }
    let table = add_gradient(table, ids(batch.inputs.clone(), &dx.device()), dx);
    (nll, table.into_iter().chain(layers).chain(norm).chain(head).collect())
}

/// Sequences that a layer takes together.
struct Group {
    /// Their rows of the activations.
    rows: Range<usize>,
    t: usize,
    mask: Mask,
}

impl Group {
    fn new(model: &Llama, batch: &Batch, first: usize, together: usize) -> Self {
        let (t, sequences) = (batch.len, together.min(batch.rows - first));
        let rows = first * t..(first + sequences) * t;
        let mask = Mask::new(sequences, t, 0, &batch.starts[rows.clone()], &model.norm.weight.tensor.device());
        Self { rows, t, mask }
    }

    fn of(&self, x: &Tensor<2>) -> Tensor<2> {
        if self.rows.len() == x.dims()[0] { x.clone() } else { x.clone().slice([self.rows.clone()]) }
    }

    fn pass<'a>(&'a self, model: &'a Llama) -> Pass<'a> {
        model.pass(&self.mask, 0, self.t).from_row(self.rows.start)
    }
}

fn joined(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

/// The input of a piece of the model that is differentiated by itself.
fn leaf(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_inner(x).require_grad()
}

/// A number whose gradient by `y` is `dy`.
fn seeded(y: Tensor<2>, dy: Tensor<2>) -> Tensor<1> {
    let zero = Tensor::<1>::zeros([1], (&dy.device(), DType::F32));
    attach(Tensor::from_inner(zero), y, dy)
}

fn mask(model: &Llama, batch: &Batch) -> Mask {
    Mask::new(batch.rows, batch.len, 0, &batch.starts, &model.norm.weight.tensor.device())
}
