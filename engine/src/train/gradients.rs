//! Losses and gradients of a micro-batch: at once, or a layer at a time.

use std::ops::Range;

use burn::tensor::{Gradients, Int, Tensor};

use crate::data::batch::{Batch, together};
use crate::model::Llama;
use crate::model::llama::{Layer, Pass, ids};
use crate::ops::attention::Mask;
use crate::ops::cross_entropy::{Losses, Wanted, seeded};
use crate::ops::embedding::add_gradient;
use crate::ops::many;

/// A micro-batch after its forward pass.
pub struct Forward {
    /// Losses of its targets, and gradients by the head and by what goes into it.
    pub losses: Losses,
    ids: Tensor<1, Int>,
    /// What the table gave: the leaf from which on the model is differentiated.
    x: Tensor<2>,
    hidden: Tensor<2>,
}

/// The forward pass over a micro-batch; `scale` is what one target weighs. A model that is not trained tells its losses only.
pub fn forward(model: &Llama, batch: &Batch, scale: f64) -> Forward {
    let (mask, device) = (mask(model, batch), model.norm.weight.tensor.device());
    let (ids, wanted) = (ids(batch.inputs.clone(), &device), wanted(model, scale));
    let x = model.embed(ids.clone()); // [b·t, d]
    let x = if matches!(wanted, Wanted::All(_)) { x.require_grad() } else { x };
    let hidden = model.forward_from(x.clone(), batch.len, &mask);
    let losses = model.loss(hidden.clone(), &batch.targets, wanted);
    Forward { losses, ids, x, hidden }
}

impl Forward {
    /// Gradients of `scale · Σ nll` in the order of [`Llama::trained`].
    pub fn gradients(self, model: &Llama) -> Vec<Tensor<2>> {
        let Losses { dh, dhead, .. } = self.losses;
        let loss = seeded(self.hidden, dh.expect("wanted of a model that is trained"));
        let mut grads = many(&loss.device(), || loss.backward());
        if model.is_adapted() {
            return model.trained().into_iter().map(|parameter| take(&parameter.tensor, &mut grads)).collect();
        }
        let (table, head) = ends(model, dhead, self.ids, take(&self.x, &mut grads));
        let layers = model.layers.iter().flat_map(Layer::parameters).chain([&model.norm.weight]);
        let layers = layers.map(|parameter| take(&parameter.tensor, &mut grads));
        table.into_iter().chain(layers).chain(head).collect()
    }
}

/// Which gradients the loss makes: the head is trained with all the rest, or not; none of a model that is not trained.
fn wanted(model: &Llama, scale: f64) -> Wanted {
    match (model.norm.weight.tensor.is_autodiff(), model.is_adapted()) {
        (false, _) => Wanted::Nothing,
        (true, true) => Wanted::Hidden(scale),
        (true, false) => Wanted::All(scale),
    }
}

/// Gradients of the table and of a head of its own, by those of the head and of what the table gave.
fn ends(model: &Llama, dhead: Vec<Tensor<2>>, ids: Tensor<1, Int>, dx: Tensor<2>) -> (Vec<Tensor<2>>, Vec<Tensor<2>>) {
    let (table, head) = match model.lm_head {
        Some(_) => (model.embed_tokens.weight.iter().map(|block| block.tensor.clone().inner().zeros_like()).collect(), dhead),
        None => (dhead, Vec::new()),
    };
    (add_gradient(table, ids.inner(), dx), head)
}

/// Loss of every target, and gradients of `scale · Σ nll` in the order of [`Llama::trained`].
///
/// With `checkpointing` the inputs of the layers are all that is kept of the forward pass: every layer is computed again
/// when its gradients are made (Chen et al. 2016, <https://arxiv.org/abs/1604.06174>), [`together`] sequences at a time.
pub fn losses_and_gradients(model: &Llama, batch: &Batch, scale: f64, checkpointing: bool) -> (Tensor<1>, Vec<Tensor<2>>) {
    if checkpointing {
        return layer_by_layer(model, batch, scale, together(batch.len));
    }
    let forward = forward(model, batch, scale);
    (forward.losses.nll.clone(), forward.gradients(model))
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
    let hidden = model.norm.forward(x.clone());
    let Losses { nll, dh, dhead, .. } = model.loss(hidden.clone(), &batch.targets, wanted(model, scale));
    let mut grads = seeded(hidden, dh.expect("wanted of a model that is trained")).backward();
    let mut dx = take(&x, &mut grads);
    let norm = (!adapted).then(|| take(&model.norm.weight.tensor, &mut grads));
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
    let (table, head) = ends(model, dhead, ids(batch.inputs.clone(), &dx.device()), dx);
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

fn mask(model: &Llama, batch: &Batch) -> Mask {
    Mask::new(batch.rows, batch.len, 0, &batch.starts, &model.norm.weight.tensor.device())
}
