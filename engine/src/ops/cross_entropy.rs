//! Language-model head and cross-entropy in one: `[n, v]` logits exist only a chunk of rows at a time.
//!
//! The gradients are computed in the forward pass, chunk by chunk (as in Liger Kernel, Hsu et al. 2024,
//! <https://arxiv.org/abs/2410.10989>).

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, Wgpu, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use smolforge_shaders::{CROSS_ENTROPY, CROSS_ENTROPY_DLOGITS};

use super::cpu::cross_entropy::linear_cross_entropy as cpu_linear_cross_entropy;
use super::cpu::matmul::{Floats, Halves};
use super::cpu::tensor::{floats, halves};
use super::launch::{buffer, launch, row_groups};
use super::linear::{self, linear};
use super::product::add_dw;
use super::{cube, flex, from_cube, from_flex, kernels_enabled, on_cpu};

/// Bytes of logits that exist at a time.
const CHUNK_BYTES: usize = 32 << 20;

/// Losses of a batch, with the gradients that were wanted.
pub struct Losses {
    /// Negative log-likelihood per target in nats, 0 where the target is ignored: `[n]`.
    pub nll: Tensor<1>,
    /// 1 where no id is likelier than the target, else 0: `[n]`.
    pub hits: Tensor<1>,
    /// Gradient by the hidden states: `[n, d]`.
    pub dh: Option<Tensor<2>>,
    /// Gradient by every block of the head; none where they were not wanted.
    pub dhead: Vec<Tensor<2>>,
}

/// Which gradients are made, with what one target weighs in the loss: `loss_scale / targets of the whole step`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    /// None.
    Nothing,
    /// That of the hidden states: the head is not trained.
    Hidden(f64),
    /// That of the head, too.
    All(f64),
}

impl Wanted {
    fn scale(self) -> Option<f64> {
        match self {
            Self::Nothing => None,
            Self::Hidden(scale) | Self::All(scale) => Some(scale),
        }
    }
}

/// Cross-entropy of `h·wᵀ` against `targets`; targets below 0 are ignored. All tensors are without gradients.
///
/// # Shapes
/// - `h`: `[n, d]`; `head`: consecutive blocks of rows `[v_j, d]`; `targets`: `n` ids
pub fn linear_cross_entropy(h: Tensor<2>, head: &[Tensor<2>], targets: &[i32], wanted: Wanted) -> Losses {
    let [n, d] = h.dims();
    assert_eq!(n, targets.len(), "one target per row");
    let v: usize = head.iter().map(|block| block.dims()[0]).sum();
    let chunk = (CHUNK_BYTES / 4 / v).clamp(1, n);
    if let ([w], true) = (head, on_cpu(&h.device())) {
        let (h, w) = (flex(h), flex(w.clone()));
        let (all, scale) = (matches!(wanted, Wanted::All(_)), wanted.scale().map(|scale| scale as f32));
        let losses = match w.dtype() {
            DType::F16 => cpu_linear_cross_entropy(floats(&h), &Halves(halves(&w), d), targets, [v, d], chunk, scale, all),
            _ => cpu_linear_cross_entropy(floats(&h), &Floats(floats(&w), d), targets, [v, d], chunk, scale, all),
        };
        let vector = |values| from_flex::<1>(super::cpu::tensor::tensor(values, [n]));
        let matrix = |values, rows| from_flex::<2>(super::cpu::tensor::tensor(values, [rows, d]));
        return Losses {
            nll: vector(losses.nll),
            hits: vector(losses.hits),
            dh: losses.dh.map(|dh| matrix(dh, n)),
            dhead: losses.dw.map(|dw| matrix(dw, v)).into_iter().collect(),
        };
    }
    if kernels_enabled() && !on_cpu(&h.device()) {
        return on_gpu(h, head, targets, chunk, wanted);
    }
    reference(h, head, targets, chunk, wanted)
}

/// A row of kernels for every chunk of rows: all blocks of the head tell what they add to the loss, then every block's
/// logits become their gradient where they lie.
fn on_gpu(h: Tensor<2>, head: &[Tensor<2>], targets: &[i32], chunk: usize, wanted: Wanted) -> Losses {
    let n = targets.len();
    let targets = integers(targets.to_vec(), &h.device()).try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
    let (states, nll, hits) = (buffer(&targets, [n, 4]), buffer(&targets, [n]), buffer(&targets, [n]));
    let mut dh_chunks = Vec::new();
    let mut dhead: Vec<Option<Tensor<2>>> = vec![None; head.len()];
    for first in (0..n).step_by(chunk) {
        let rows = chunk.min(n - first);
        let h = h.clone().narrow(0, first, rows);
        let mut blocks = Vec::new();
        let mut first_column = 0;
        for w in head {
            let (logits, columns) = (cube(logits(h.clone(), w.clone())), w.dims()[0]); // [rows, v_j]
            let place = [rows, columns, first_column, first].map(|x| x as u32);
            launch(CROSS_ENTROPY, row_groups(rows), &[&logits, &targets, &states, &nll, &hits], &place);
            blocks.push((logits, place));
            first_column += columns;
        }
        let Some(scale) = wanted.scale() else { continue };
        let mut dh_chunk = None;
        for (j, (logits, place)) in blocks.into_iter().enumerate() {
            let params = [&place[..], &[(scale as f32).to_bits(), 0, 0, 0]].concat();
            launch(CROSS_ENTROPY_DLOGITS, row_groups(rows), &[&logits, &targets, &states], &params);
            let dlogits: Tensor<2> = from_cube(logits);
            if matches!(wanted, Wanted::All(_)) {
                let sum = dhead[j].take().map(cube);
                dhead[j] = Some(from_cube(add_dw(cube(dlogits.clone()), cube(h.clone()), sum)));
            }
            dh_chunk = Some(dh(dlogits, head[j].clone(), dh_chunk));
        }
        dh_chunks.extend(dh_chunk);
    }
    let dh = (!dh_chunks.is_empty()).then(|| joined(dh_chunks));
    Losses { nll: from_cube(nll), hits: from_cube(hits), dh, dhead: dhead.into_iter().flatten().collect() }
}

/// `h · wᵀ`
fn logits(h: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    linear(h, w, false)
}

/// `sum + dlogits · w`
fn dh(dlogits: Tensor<2>, w: Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
    plus(linear::dx(dlogits, w), sum)
}

/// `sum + dlogitsᵀ · h`
fn dw(dlogits: Tensor<2>, h: Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
    plus(linear::dw(dlogits, h), sum)
}

fn plus(product: Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
    match sum {
        Some(sum) => sum + product,
        None => product,
    }
}

fn joined(mut chunks: Vec<Tensor<2>>) -> Tensor<2> {
    if chunks.len() == 1 { chunks.remove(0) } else { Tensor::cat(chunks, 0) }
}

fn integers(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
}

/// The value and gradients in burn ops.
pub fn reference(h: Tensor<2>, head: &[Tensor<2>], targets: &[i32], chunk: usize, wanted: Wanted) -> Losses {
    let (n, device) = (targets.len(), h.device());
    let (mut nll, mut hits) = (Vec::new(), Vec::new());
    let mut dh_chunks = Vec::new();
    let mut dhead: Vec<Option<Tensor<2>>> = vec![None; head.len()];
    for first in (0..n).step_by(chunk) {
        let rows = chunk.min(n - first);
        let targets = &targets[first..first + rows];
        let used: Vec<f32> = targets.iter().map(|target| if *target < 0 { 0.0 } else { 1.0 }).collect();
        let used = Tensor::<2>::from_data(TensorData::new(used, [rows, 1]), (&device, DType::F32));
        let h = h.clone().narrow(0, first, rows);
        let mut all_logits = Vec::new(); // per block [rows, v_j]
        let mut onehots = Vec::new();
        let mut first_row = 0;
        for block in head {
            let v = block.dims()[0];
            let columns = integers((0..v as i32).collect(), &device).unsqueeze_dim::<2>(0); // [1, v_j]
            let local: Vec<i32> = targets.iter().map(|target| target - first_row).collect();
            let local = integers(local, &device).unsqueeze_dim::<2>(1); // [rows, 1]
            onehots.push(local.expand([rows, v]).equal(columns.expand([rows, v])).float());
            all_logits.push(logits(h.clone(), block.clone()));
            first_row += v as i32;
        }
        let maxima: Vec<Tensor<2>> = all_logits.iter().map(|logits| logits.clone().max_dim(1)).collect();
        let largest = Tensor::cat(maxima, 1).max_dim(1); // [rows, 1]
        let sums: Vec<Tensor<2>> = all_logits.iter().map(|logits| (logits.clone() - largest.clone()).exp().sum_dim(1)).collect();
        let lse = Tensor::cat(sums, 1).sum_dim(1).log() + largest.clone(); // [rows, 1]
        let at_target: Vec<Tensor<2>> =
            all_logits.iter().zip(&onehots).map(|(logits, onehot)| (logits.clone() * onehot.clone()).sum_dim(1)).collect();
        let at_target = Tensor::cat(at_target, 1).sum_dim(1);
        hits.push((at_target.clone().greater_equal(largest).float() * used.clone()).reshape([rows]));
        nll.push(((lse.clone() - at_target) * used.clone()).reshape([rows]));
        let Some(scale) = wanted.scale() else { continue };
        let mut dh_chunk = None;
        for (j, (logits, onehot)) in all_logits.into_iter().zip(onehots).enumerate() {
            let dlogits = ((logits - lse.clone()).exp() - onehot) * (used.clone() * scale); // [rows, v_j]
            if matches!(wanted, Wanted::All(_)) {
                dhead[j] = Some(dw(dlogits.clone(), h.clone(), dhead[j].take()));
            }
            dh_chunk = Some(dh(dlogits, head[j].clone(), dh_chunk));
        }
        dh_chunks.extend(dh_chunk);
    }
    let dh = (!dh_chunks.is_empty()).then(|| joined(dh_chunks));
    Losses { nll: Tensor::cat(nll, 0), hits: Tensor::cat(hits, 0), dh, dhead: dhead.into_iter().flatten().collect() }
}

/// A number whose gradient by `y` is `dy`: where a backward pass begins that is continued from elsewhere.
pub fn seeded(y: Tensor<2>, dy: Tensor<2>) -> Tensor<1> {
    let dy = Tensor::<2>::from_inner(dy);
    Tensor::from_dispatch(Dispatch::seeded(y.into_dispatch(), dy.into_dispatch()))
}

/// A number whose gradient is known already.
#[backend_extension(Flex, Cube, Autodiff)]
pub trait SeededOps: Backend {
    /// Zero; on a differentiating backend with `dy` as its derivative by `y`.
    fn seeded(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SeededOps for Flex {
    fn seeded(y: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        zero::<Self>(&y)
    }
}

impl SeededOps for CubeBackend {
    fn seeded(y: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        zero::<Self>(&y)
    }
}

fn zero<B: Backend>(beside: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_zeros([1].into(), &beside.device(), FloatDType::F32)
}

#[derive(Debug)]
struct SeededBackward;

impl<B: SeededOps> Backward<B, 1> for SeededBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<B>(&ops.node); // one: nothing is computed from this number
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, ops.state);
        }
    }
}

impl<B: SeededOps, C: CheckpointStrategy> SeededOps for Autodiff<B, C> {
    fn seeded(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [y.node()];
        let (y, dy) = (y.into_primitive(), dy.into_primitive());
        let value = B::seeded(y, dy.clone());
        match SeededBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dy, value),
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }
}
