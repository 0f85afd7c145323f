//! `x · wᵀ` with a weight of 4 bits, which is not trained.
//!
//! Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>

use std::sync::Arc;

use burn::backend::Wgpu;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;
use smolforge_shaders::{Kernel, LINEAR_NF4, LINEAR_NF4_DX, LINEAR_NF4_ROW};

use super::frozen::{Frozen, frozen};
use super::launch::{buffer, dims, launch, row_groups, words};
use super::program::Buffer;
use super::quant::nf4::BLOCK;
use super::quant::{Absmax, Nf4};
use super::{kernels_enabled, on_cpu};
use crate::error::{Error, Result};

/// Most rows of `x` that are multiplied one by one.
const FEW_ROWS: usize = 8;
/// Outputs of a workgroup of [`LINEAR_NF4_ROW`].
const ROW_OUTPUTS: usize = 32;
/// Height and width of the outputs of a workgroup of the other kernels.
const TILE: usize = 64;

/// A matrix of 4 bits where its device computes.
#[derive(Debug, Clone)]
pub enum Nf4Weight {
    /// In main memory.
    Host(Arc<Nf4>),
    /// On a graphics device.
    Device(Arc<OnDevice>),
}

/// A matrix as the kernels read it.
#[derive(Debug)]
pub struct OnDevice {
    rows: usize,
    columns: usize,
    /// Eight numbers a word.
    codes: Tensor<1, Int>,
    /// Scales of four blocks a word.
    absmax: Tensor<1, Int>,
    /// Values of the scales' codes, then a factor for every 256 blocks.
    nested: Tensor<1>,
    offset: f32,
}

impl Nf4Weight {
    /// Brings a matrix to a device. On a graphics device its rows must be whole blocks of 64 and its scales nested, see
    /// [`serves`].
    pub fn new(weight: Nf4, device: &Device) -> Self {
        match &weight.absmax {
            Absmax::Nested { codes, absmax, map, offset } if serves(device, weight.columns) => {
                let nested: Vec<f32> = map.iter().chain(absmax).copied().collect();
                let len = nested.len();
                Self::Device(Arc::new(OnDevice {
                    rows: weight.rows,
                    columns: weight.columns,
                    codes: words(&weight.codes, device),
                    absmax: words(codes, device),
                    nested: Tensor::from_data(TensorData::new(nested, [len]), (device, DType::F32)),
                    offset: *offset,
                }))
            }
            _ => Self::Host(Arc::new(weight)),
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Host(weight) => [weight.rows, weight.columns],
            Self::Device(weight) => [weight.rows, weight.columns],
        }
    }

    fn on_device(&self) -> &OnDevice {
        match self {
            Self::Device(weight) => weight,
            Self::Host(_) => unreachable!("a graphics device has its own copy"),
        }
    }
}

/// Whether a graphics device multiplies with matrices of 4 bits that have so many columns.
pub fn serves(device: &Device, columns: usize) -> bool {
    kernels_enabled() && !on_cpu(device) && columns.is_multiple_of(BLOCK)
}

/// `y = x · wᵀ`, summed in f32; nothing of `w` is written in f32 anywhere on a graphics device.
///
/// # Shapes
/// - `x`: `[n, in]`, returns `[n, out]`
pub fn linear_nf4(x: Tensor<2>, w: &Nf4Weight) -> Tensor<2> {
    frozen(x, Frozen::Nf4(w.clone()))
}

/// All of a matrix in f32, by burn ops where it lies on a graphics device.
pub fn dequantized(w: &Nf4Weight, device: &Device) -> Tensor<2> {
    let [rows, columns] = w.dims();
    match w {
        Nf4Weight::Host(weight) => Tensor::from_data(TensorData::new(weight.dense(), [rows, columns]), (device, DType::F32)),
        Nf4Weight::Device(weight) => {
            let OnDevice { codes, absmax, nested, offset, .. } = &**weight;
            let book = Tensor::<1>::from_data(super::quant::nf4::CODE, (device, DType::F32));
            // In a word the bytes come low to high, in a byte the high half first.
            let nibbles = [4, 0, 12, 8, 20, 16, 28, 24].map(|bits| codes.clone().bitwise_right_shift_scalar(bits).bitwise_and_scalar(15));
            let nibbles: Tensor<1, Int> = Tensor::stack::<2>(nibbles.to_vec(), 1).flatten(0, 1); // [rows·columns]
            let blocks = rows * columns / BLOCK;
            let bytes = [0, 8, 16, 24].map(|bits| absmax.clone().bitwise_right_shift_scalar(bits).bitwise_and_scalar(255));
            let bytes: Tensor<1, Int> = Tensor::stack::<2>(bytes.to_vec(), 1).flatten(0, 1);
            let groups = Tensor::<1, Int>::arange(0..blocks as i64, device) / 256 + 256;
            let scales = nested.clone().select(0, bytes.narrow(0, 0, blocks)) * nested.clone().select(0, groups) + *offset;
            let values = book.select(0, nibbles).reshape([blocks, BLOCK]) * scales.reshape([blocks, 1]);
            values.reshape([rows, columns])
        }
    }
}

/// The product on a graphics device.
pub(super) fn forward(x: CubeTensor, w: &Nf4Weight) -> CubeTensor {
    let (x, w) = (into_contiguous(x), w.on_device());
    let ([n, _], out) = (dims(&x), w.rows);
    let y = buffer(&x, [n, out]);
    let (kernel, groups) = kernel(n, out);
    let (codes, absmax, nested) = w.buffers();
    launch(kernel, row_groups(groups), &[&x, &codes, &absmax, &nested, &y], &w.params(n));
    y
}

/// What multiplies `n` rows, and in how many workgroups.
pub(super) fn kernel(n: usize, out: usize) -> (Kernel, usize) {
    match n {
        0..=FEW_ROWS => (LINEAR_NF4_ROW, n * out.div_ceil(ROW_OUTPUTS)),
        _ => (LINEAR_NF4, n.div_ceil(TILE) * out.div_ceil(TILE)),
    }
}

/// A matrix of a graphics device for kernels that are launched again and again.
pub struct Nf4Buffers {
    /// Eight numbers a word.
    pub codes: Buffer,
    /// Scales of four blocks a word.
    pub absmax: Buffer,
    /// See [`OnDevice`].
    pub nested: Buffer,
    /// Rows.
    pub out: usize,
    weight: Arc<OnDevice>,
}

impl Nf4Buffers {
    /// Of a matrix that lies on a graphics device.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn of(weight: &Nf4Weight) -> Result<Self> {
        let Nf4Weight::Device(weight) = weight else { return Err(Error::Internal("a weight of 4 bits in main memory".into())) };
        let [codes, absmax] = [Buffer::of_ints(&weight.codes)?, Buffer::of_ints(&weight.absmax)?];
        Ok(Self { codes, absmax, nested: Buffer::of(&weight.nested)?, out: weight.rows, weight: weight.clone() })
    }

    /// The kernels' parameters for `n` rows.
    pub fn params(&self, n: usize) -> [u32; 4] {
        self.weight.params(n)
    }
}

/// `dy · w` on a graphics device.
pub(super) fn backward(dy: CubeTensor, w: &Nf4Weight) -> CubeTensor {
    let (dy, w) = (into_contiguous(dy), w.on_device());
    let [n, _] = dims(&dy);
    let dx = buffer(&dy, [n, w.columns]);
    let groups = row_groups(n.div_ceil(TILE) * w.columns / BLOCK);
    let (codes, absmax, nested) = w.buffers();
    launch(LINEAR_NF4_DX, groups, &[&dy, &codes, &absmax, &nested, &dx], &w.params(n));
    dx
}

impl OnDevice {
    fn buffers(&self) -> (CubeTensor, CubeTensor, CubeTensor) {
        let whole = |tensor: &Tensor<1, Int>| tensor.clone().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
        let nested = self.nested.clone().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
        (whole(&self.codes), whole(&self.absmax), nested)
    }

    fn params(&self, n: usize) -> [u32; 4] {
        [n as u32, self.rows as u32, (self.columns / BLOCK) as u32, self.offset.to_bits()]
    }
}
