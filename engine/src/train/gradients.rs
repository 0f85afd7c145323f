//! Losses and gradients of a micro-batch: at once, or a layer at a time.

use burn::tensor::{DType, Gradients, Tensor};

use crate::data::batch::Batch;
use crate::model::Llama;
use crate::model::linear::Parameter;
use crate::model::llama::ids;
use crate::ops::attention::Mask;
use crate::ops::cross_entropy::{Losses, attach};

/// Losses of a micro-batch; `scale` is what one target weighs.
pub fn forward(model: &Llama, batch: &Batch, scale: f64) -> Losses {
    let (mask, device) = (mask(model, batch), model.norm.weight.tensor.device());
    let hidden = model.forward(ids(batch.inputs.clone(), &device), batch.len, &mask, None); // [b·t, d]
    model.loss(hidden, &batch.targets, scale)
}

/// Loss of every target, and gradients of `scale · Σ nll` in the order of [`Llama::trained`].
///
/// With `checkpointing` the inputs of the layers are all that is kept of the forward pass: every layer is computed again
/// when its gradients are made (Chen et al. 2016, <https://arxiv.org/abs/1604.06174>).
pub fn losses_and_gradients(model: &Llama, batch: &Batch, scale: f64, checkpointing: bool) -> (Tensor<1>, Vec<Tensor<2>>) {
    if checkpointing {
        return layer_by_layer(model, batch, scale);
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
    let mut grads = loss.backward();
    leaves.map(|leaf| take(leaf, &mut grads)).collect()
}

fn take(leaf: &Tensor<2>, grads: &mut Gradients) -> Tensor<2> {
    leaf.grad_remove(grads).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

fn layer_by_layer(model: &Llama, batch: &Batch, scale: f64) -> (Tensor<1>, Vec<Tensor<2>>) {
    let (mask, device) = (mask(model, batch), model.norm.weight.tensor.device());
    let mut plain = model.plain();
    plain.dropout = model.dropout;

    let pass = plain.pass(&mask, 0, batch.len);
    let mut inputs = vec![plain.embed(ids(batch.inputs.clone(), &device))]; // [b·t, d] each
    for (i, layer) in plain.layers.iter().enumerate() {
        inputs.push(layer.forward(inputs[i].clone(), &pass, i, None));
    }

    let adapted = model.is_adapted();
    let x = leaf(inputs.pop());
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

    let pass = model.pass(&mask, 0, batch.len);
    let mut layers = Vec::new(); // gradients of the last layer first
    for (i, layer) in model.layers.iter().enumerate().rev() {
        let x = leaf(inputs.pop());
        let y = layer.forward(x.clone(), &pass, i, None);
        let mut grads = seeded(y, dx).backward();
        dx = take(&x, &mut grads);
        let trained = if adapted { layer.adapter() } else { layer.parameters() };
        layers.push(trained.iter().map(|parameter| take(&parameter.tensor, &mut grads)).collect::<Vec<_>>());
    }
    let layers = layers.into_iter().rev().flatten();
    if adapted {
        return (nll, layers.collect());
    }
    let x = model.embed(ids(batch.inputs.clone(), &device));
    let rows = gradients_of(model.embed_tokens.weight.iter().map(|block| &block.tensor), seeded(x, dx));
    let table = table.into_iter().zip(rows).map(|(head, rows)| head + rows);
    (nll, table.chain(layers).chain(norm).chain(head).collect())
}

/// The input of a piece of the model that is differentiated by itself.
fn leaf(x: Option<Tensor<2>>) -> Tensor<2> {
    Tensor::from_inner(x.expect("every layer has an input")).require_grad()
}

/// A number whose gradient by `y` is `dy`.
fn seeded(y: Tensor<2>, dy: Tensor<2>) -> Tensor<1> {
    let zero = Tensor::<1>::zeros([1], (&dy.device(), DType::F32));
    attach(Tensor::from_inner(zero), y, dy)
}

fn mask(model: &Llama, batch: &Batch) -> Mask {
    Mask::new(batch.rows, batch.len, 0, &batch.starts, &model.norm.weight.tensor.device())
}
