//! Which kernels multiply matrices on a graphics device, and how they are launched.

use std::cell::Cell;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

use burn::backend::Wgpu;
use burn::backend::ops::FloatTensorOps;
use burn::backend::wgpu::into_contiguous;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use futures_lite::FutureExt;
use smolforge_shaders::{Kernel, LINEAR, LINEAR_DW, LINEAR_DW_LANES, LINEAR_DX, LINEAR_DX_LANES, LINEAR_LANES, LINEAR_ROW, cpu};
use web_time::Instant;

use super::launch::{buffer, dims, launch, row_groups};
use crate::device::read_f32;
use crate::error::Result;

/// Most rows of `x` that are multiplied one by one: each reads all of `w`, as decoding does.
pub(super) const FEW_ROWS: usize = 16;
/// Outputs of a workgroup of [`LINEAR_ROW`].
pub(super) const ROW_OUTPUTS: usize = 16;
/// Columns that a kernel reads at once.
const WIDE: usize = 4;
/// Seconds that a dispatch may take: a watchdog may end what takes two.
const DISPATCH_SECS: f64 = 0.5;
/// Speed of a device of which nothing is known, in 10⁹ operations a second.
const SLOW_GFLOPS: f64 = 2.0;

/// Kernels for the products of many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// burn's own.
    Burn,
    /// Tiles of 64 × 64 outputs in workgroup memory: any GPU, any browser.
    Tile,
    /// Tiles of 32 × 32 by one subgroup of eight lanes: adapters that are software.
    Lanes,
}

impl Kernels {
    /// As it is shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Burn => "burn",
            Self::Tile => "tile",
            Self::Lanes => "lanes",
        }
    }

    /// Height and width of the outputs of a workgroup.
    fn tile(self) -> usize {
        if self == Self::Lanes { 32 } else { 64 }
    }
}

/// A product and its two gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// `y = x · wᵀ`: `[n, k]`, `[m, k]`, `[n, m]`.
    Forward,
    /// `dx = dy · w`: `[n, m]`, `[m, k]`, `[n, k]`.
    Dx,
    /// `dw = dyᵀ · x`: `[n, m]`, `[n, k]`, `[m, k]`.
    Dw,
}

impl Product {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Dx, Self::Dw];
}

/// What the graphics device of this process multiplies with, and how fast: see [`Trial`].
static CHOSEN: OnceLock<(Kernels, f64)> = OnceLock::new();

thread_local! {
    static WITHOUT_LANES: Cell<bool> = const { Cell::new(false) };
}

/// The kernels of the open graphics device; see [`choose`].
pub fn chosen() -> Kernels {
    match CHOSEN.get() {
        Some((Kernels::Lanes, _)) if WITHOUT_LANES.get() => Kernels::Tile,
        Some((kernels, _)) => *kernels,
        None => Kernels::Tile,
    }
}

/// Whether kernels for subgroups of eight lanes (named `…_lanes`) are in use.
pub(super) fn lanes() -> bool {
    chosen() == Kernels::Lanes
}

/// Runs `work` with the kernels that every device has, also where those for eight lanes would be faster.
pub fn without_lanes<T>(work: impl FnOnce() -> T) -> T {
    let before = WITHOUT_LANES.replace(true);
    let result = work();
    WITHOUT_LANES.set(before);
    result
}

/// `a` by `b`, unless burn's own kernels are better or the only ones for these sizes.
pub(super) fn product(product: Product, a: &CubeTensor, b: &CubeTensor) -> Option<CubeTensor> {
    by(chosen(), product, a, b, None)
}

/// `sum + dyᵀ·x`, in the memory of `sum` where nobody else reads it.
pub(super) fn add_dw(dy: CubeTensor, x: CubeTensor, sum: Option<CubeTensor>) -> CubeTensor {
    if serves(chosen(), Product::Dw, &dy, &x) {
        return by(chosen(), Product::Dw, &dy, &x, sum).expect("sizes that are served");
    }
    let product = CubeBackend::float_matmul(CubeBackend::float_swap_dims(dy, 0, 1), x);
    match sum {
        Some(sum) => CubeBackend::float_add(sum, product),
        None => product,
    }
}

/// Whether `kernels` multiply these.
fn serves(kernels: Kernels, product: Product, a: &CubeTensor, b: &CubeTensor) -> bool {
    let ([_, inner], [_, columns]) = (dims(a), dims(b));
    let whole = inner.is_multiple_of(WIDE) && (product == Product::Forward || columns.is_multiple_of(WIDE));
    kernels != Kernels::Burn && whole && a.dtype == DType::F32 && b.dtype == DType::F32
}

/// [`product`] with given kernels.
fn by(kernels: Kernels, product: Product, a: &CubeTensor, b: &CubeTensor, sum: Option<CubeTensor>) -> Option<CubeTensor> {
    let ([rows, inner], [b_rows, b_columns]) = (dims(a), dims(b));
    if !serves(kernels, product, a, b) {
        return None;
    }
    let (a, b) = (into_contiguous(a.clone()), into_contiguous(b.clone()));
    let lanes = kernels == Kernels::Lanes;
    let (kernel, [n, m], depth, params) = match product {
        Product::Forward if rows <= FEW_ROWS && !lanes => {
            let y = buffer(&a, [rows, b_rows]);
            let groups = row_groups(rows * b_rows.div_ceil(ROW_OUTPUTS));
            launch(LINEAR_ROW, groups, &[&a, &b, &y], &[rows as u32, b_rows as u32, (inner / WIDE) as u32, 0]);
            return Some(y);
        }
        Product::Forward => (if lanes { LINEAR_LANES } else { LINEAR }, [rows, b_rows], inner, [rows, b_rows, inner / WIDE]),
        Product::Dx => (if lanes { LINEAR_DX_LANES } else { LINEAR_DX }, [rows, b_columns], inner, [rows, inner / WIDE, b_columns / WIDE]),
        Product::Dw => (if lanes { LINEAR_DW_LANES } else { LINEAR_DW }, [inner, b_columns], rows, [rows, inner / WIDE, b_columns / WIDE]),
    };
    let add = u32::from(sum.is_some());
    let c = match sum {
        Some(sum) if sum.can_mut() && sum.is_contiguous() => sum,
        Some(sum) => into_contiguous(sum).copy(),
        None => buffer(&a, [n, m]),
    };
    let more = if product == Product::Dw { &[add, 0, 0, 0][..] } else { &[] };
    launch_tiles(kernel, kernels.tile(), [n, m], depth, &[&a, &b, &c], params, more);
    Some(c)
}

/// Dispatches a kernel that makes `[n, m]` outputs of `depth` multiply-adds each in square tiles, which its parameters
/// number from the fourth word on; as many at a time as are surely done before a watchdog loses patience.
pub(super) fn launch_tiles(
    kernel: Kernel,
    tile: usize,
    [n, m]: [usize; 2],
    depth: usize,
    buffers: &[&CubeTensor],
    params: [usize; 3],
    more: &[u32],
) {
    let tiles = n.div_ceil(tile) * m.div_ceil(tile);
    let gflops = CHOSEN.get().filter(|_| !WITHOUT_LANES.get()).map_or(SLOW_GFLOPS, |(_, gflops)| *gflops);
    let at_once = (gflops * 1e9 * DISPATCH_SECS / (2 * tile * tile * depth.max(1)) as f64).max(1.0) as usize;
    for first in (0..tiles).step_by(at_once) {
        let params = [&[params[0] as u32, params[1] as u32, params[2] as u32, first as u32], more].concat();
        launch(kernel, row_groups(at_once.min(tiles - first)), buffers, &params);
    }
}

/// Kernels that were tried on a device.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Which.
    pub kernels: Kernels,
    /// Multiply-adds a second, in 10⁹, doubled as usual; none where they compute something else than they should.
    pub gflops: Option<f64>,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gflops {
            Some(gflops) => write!(f, "{} {gflops:.0} GFLOP/s", self.kernels.name()),
            None => write!(f, "{} failed its self-test", self.kernels.name()),
        }
    }
}

/// Finds the fastest kernels that multiply rightly on a device, which its products use from then on: those for software
/// adapters where they can run, else the fastest of the others. The best come first.
pub async fn choose(device: &Device, software: bool, subgroups: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    if software && subgroups {
        trials.push(tried(Kernels::Lanes, device, software).await);
    }
    if trials.iter().all(|trial| trial.gflops.is_none()) {
        for kernels in [Kernels::Tile, Kernels::Burn] {
            trials.push(tried(kernels, device, software).await);
        }
    }
    let rate = |trial: &Trial| trial.gflops.unwrap_or(-1.0);
    trials.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    let best = trials.first().and_then(|trial| Some((trial.kernels, trial.gflops?))).unwrap_or((Kernels::Burn, SLOW_GFLOPS));
    CHOSEN.get_or_init(|| best);
    trials
}

async fn tried(kernels: Kernels, device: &Device, software: bool) -> Trial {
    let rate = async {
        match kernels == Kernels::Burn || is_right(kernels, device).await? {
            true => rate(kernels, device, software).await.map(Some),
            false => Ok(None),
        }
    };
    // A shader that a driver refuses panics.
    let gflops = AssertUnwindSafe(rate).catch_unwind().await.ok().and_then(Result::ok).flatten();
    Trial { kernels, gflops }
}

/// Whether the three products are those of the twins, with tiles that are cut off at every side.
async fn is_right(kernels: Kernels, device: &Device) -> Result<bool> {
    let [n, m, k] = [65, 100, 72];
    let numbers = |count: usize, seed: usize| (0..count).map(|i| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.5).collect::<Vec<f32>>();
    let (x, w, dy) = (numbers(n * k, 1), numbers(m * k, 2), numbers(n * m, 3));
    for product in Product::ALL {
        let (a, b, expected) = match product {
            Product::Forward => ((&x, n), (&w, m), cpu::linear(&x, &w, k)),
            Product::Dx => ((&dy, n), (&w, m), cpu::linear_dx(&dy, &w, k)),
            Product::Dw => ((&dy, n), (&x, n), cpu::linear_dw(&dy, &x, k, m)),
        };
        let [a, b] = [a, b].map(|(values, rows)| {
            let data = TensorData::new(values.clone(), [rows, values.len() / rows]);
            Tensor::<2>::from_data(data, (device, DType::F32))
        });
        let Some(found) = multiplied(kernels, product, &a, &b) else { return Ok(false) };
        let found = read_f32(found).await?;
        // Sums of at most 100 products of numbers up to 1/2.
        let same = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4); // what is no number is not
        if found.len() != expected.len() || !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// 10⁹ floating-point operations a second over the three products, small enough to take a few hundredths of a second.
async fn rate(kernels: Kernels, device: &Device, software: bool) -> Result<f64> {
    let (side, repeats): (usize, usize) = if software { (256, 1) } else { (512, 8) };
    let x = Tensor::<2>::ones([side, side], (device, DType::F32));
    let mut secs = 0.0;
    for _ in 0..2 {
        let started = Instant::now();
        for product in Product::ALL {
            let mut last = None;
            for _ in 0..repeats {
                last = multiplied(kernels, product, &x, &x);
            }
            if let Some(last) = last {
                read_f32(last.slice([0..1, 0..1])).await?;
            }
        }
        secs = started.elapsed().as_secs_f64(); // of the second round: the first one compiles
    }
    Ok((6 * repeats * side.pow(3)) as f64 / secs / 1e9)
}

/// A product by given kernels on tensors without gradients.
pub fn multiplied(kernels: Kernels, product: Product, a: &Tensor<2>, b: &Tensor<2>) -> Option<Tensor<2>> {
    if kernels == Kernels::Burn {
        let (a, b) = (a.clone(), b.clone());
        return Some(match product {
            Product::Forward => a.matmul(b.transpose()),
            Product::Dx => a.matmul(b),
            Product::Dw => a.transpose().matmul(b),
        });
    }
    let cube = |tensor: &Tensor<2>| tensor.clone().try_into_primitive::<Wgpu>().expect("a tensor of a graphics device");
    by(kernels, product, &cube(a), &cube(b), None).map(Tensor::from_primitive::<Wgpu>)
}
