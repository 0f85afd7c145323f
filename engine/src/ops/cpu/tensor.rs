//! Between burn's CPU tensors and slices.

use std::cell::Cell;

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use half::f16;

/// A tensor whose elements lie in row-major order without gaps.
pub fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a contiguous f32 tensor.
pub fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor")
}

/// The elements of a contiguous f16 tensor.
pub fn halves(tensor: &FlexTensor) -> &[f16] {
    tensor.as_slice::<f16>().expect("a contiguous f16 tensor")
}

/// The elements of a contiguous i32 tensor.
pub fn ints(tensor: &FlexTensor) -> &[i32] {
    tensor.as_slice::<i32>().expect("a contiguous i32 tensor")
}

/// A tensor that owns `values`.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

/// Sizes of a matrix: `[rows, columns]`.
pub fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// `len` numbers that `write` writes: to fill them with zeros before would take as long as many a product.
///
/// # Safety
/// `write` must write every one of them.
pub unsafe fn written(len: usize, write: impl FnOnce(*mut f32)) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    write(values.as_mut_ptr());
    // SAFETY: there is room for so many, and they were written by the caller's promise.
    unsafe { values.set_len(len) };
    values
}

/// Room for `len` numbers, which this thread keeps for the next time; what is in it is left from the last.
pub fn with_space<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local!(static SPACE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
    let mut space = SPACE.take();
    if space.len() < len {
        space.resize(len, 0.0);
    }
    let result = work(&mut space[..len]);
    SPACE.set(space);
    result
}

/// A buffer that parallel tasks write in places that never overlap.
#[derive(Clone, Copy)]
pub struct Disjoint {
    start: *mut f32,
    len: usize,
}

// SAFETY: the tasks that share it write disjoint places only, which is the contract of `piece` and `write`.
unsafe impl Send for Disjoint {}
// SAFETY: as above.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    /// Over all of `buffer`.
    pub fn new(buffer: &mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// Over `len` numbers, which need not have been written.
    ///
    /// # Safety
    /// They must be valid for writes as long as tasks write.
    pub unsafe fn at(start: *mut f32, len: usize) -> Self {
        Self { start, len }
    }

    /// Where `offset` lies, after checking that `len` elements follow.
    pub fn pointer(&self, offset: usize, len: usize) -> *mut f32 {
        assert!(offset + len <= self.len, "place {offset}+{len} of {}", self.len);
        // SAFETY: inside the buffer by the check above.
        unsafe { self.start.add(offset) }
    }

    /// Writes `values` there.
    ///
    /// # Safety
    /// No other task may touch that place at the same time.
    pub unsafe fn write(&self, offset: usize, values: &[f32]) {
        // SAFETY: inside the buffer by `pointer`'s check; disjoint by the caller's promise.
        unsafe { self.pointer(offset, values.len()).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// A piece of it.
    ///
    /// # Safety
    /// No other task may touch `offset..offset + len` while the piece lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn piece(&self, offset: usize, len: usize) -> &mut [f32] {
        // SAFETY: inside the buffer by `pointer`'s check; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(offset, len), len) }
    }
}
