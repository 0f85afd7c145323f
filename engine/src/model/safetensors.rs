//! safetensors files: read without trusting them, written piece by piece.
//!
//! A file is a length (u64, little-endian), a JSON header `{name: {dtype, shape, data_offsets}}`, and one buffer.
//! A [`SafeFile`] exists only if every tensor lies inside the file, none overlap and no byte is unaccounted for.

mod header;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::store::Blob;

pub use write::SafeWriter;

/// Numbers are converted in pieces of this many, so that they stay in the cache and threads share the work.
const PIECE: usize = 1 << 16;

/// How a number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl Dtype {
    const NAMES: [(&'static str, Self); 15] = [
        ("BOOL", Self::Bool),
        ("U8", Self::U8),
        ("I8", Self::I8),
        ("F8_E4M3", Self::F8E4M3),
        ("F8_E5M2", Self::F8E5M2),
        ("U16", Self::U16),
        ("I16", Self::I16),
        ("F16", Self::F16),
        ("BF16", Self::BF16),
        ("U32", Self::U32),
        ("I32", Self::I32),
        ("F32", Self::F32),
        ("U64", Self::U64),
        ("I64", Self::I64),
        ("F64", Self::F64),
    ];

    /// The type by its name in a header.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype)
    }

    /// The name in a header.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, dtype)| *dtype == self).map_or("", |(name, _)| name)
    }

    /// Bytes of one number.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

#[derive(Debug, Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes within the file.
    range: Range<usize>,
}

/// An opened safetensors file whose header has been proved against its bytes.
#[derive(Debug, Clone)]
pub struct SafeFile {
    blob: Blob,
    path: String,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl SafeFile {
    /// Checks the header against the file. `path` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Format`] naming the rule that is broken.
    pub fn open(blob: Blob, path: &str) -> Result<Self> {
        let (tensors, metadata) = header::read(&blob).map_err(|reason| Error::format(path, reason))?;
        Ok(Self { blob, path: path.into(), tensors, metadata })
    }

    /// The file's name as given to [`SafeFile::open`].
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensors.get(name).map(|tensor| (tensor.dtype, tensor.shape.as_slice()))
    }

    /// A tensor as f32. f64 is rounded; f16 and bf16 are exact.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or holds no floating-point numbers.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.find(name)?;
        self.convert(name, tensor.dtype, &self.part(tensor.range.clone())?)
    }

    /// Rows of a tensor (its first axis) as f32.
    ///
    /// # Errors
    /// As [`SafeFile::read_f32`], and for rows that it does not have.
    pub fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let (dtype, range) = self.find_rows(name, rows)?;
        self.convert(name, dtype, &self.part(range)?)
    }

    /// Rows of a tensor of F16 as they are.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or of another type, and for rows that it does not have.
    pub fn read_rows_f16(&self, name: &str, rows: Range<usize>) -> Result<Vec<f16>> {
        let (dtype, range) = self.find_rows(name, rows)?;
        if dtype != Dtype::F16 {
            return Err(Error::format(&self.path, format!("tensor {name} is {}, but F16 is needed", dtype.name())));
        }
        Ok(self.part(range)?.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect())
    }

    /// Type of a tensor, and where some of its rows lie.
    fn find_rows(&self, name: &str, rows: Range<usize>) -> Result<(Dtype, Range<usize>)> {
        let tensor = self.find(name)?;
        let height = tensor.shape.first().copied().unwrap_or(0);
        if rows.start > rows.end || rows.end > height {
            return Err(Error::format(&self.path, format!("tensor {name} has {height} rows, not {rows:?}")));
        }
        let row_bytes = tensor.range.len().checked_div(height).unwrap_or(0);
        let start = tensor.range.start + rows.start * row_bytes;
        Ok((tensor.dtype, start..start + rows.len() * row_bytes))
    }

    /// A tensor of whole numbers (I64).
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or of another type.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let tensor = self.find(name)?;
        if tensor.dtype != Dtype::I64 {
            return Err(Error::format(&self.path, format!("tensor {name} is {}, but I64 is needed", tensor.dtype.name())));
        }
        let bytes = self.part(tensor.range.clone())?;
        Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// A tensor of bytes (U8).
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or of another type.
    pub fn read_u8(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.find(name)?;
        if tensor.dtype != Dtype::U8 {
            return Err(Error::format(&self.path, format!("tensor {name} is {}, but U8 is needed", tensor.dtype.name())));
        }
        Ok(self.part(tensor.range.clone())?.into_owned())
    }

    /// Bytes of the file.
    fn part(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        self.blob.read(range.start as u64..range.end as u64)
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::format(&self.path, format!("there is no tensor {name}")))
    }

    fn convert(&self, name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
        let convert: fn(&[u8], &mut [f32]) = match dtype {
            Dtype::F32 => from_f32,
            Dtype::F16 => from_f16,
            Dtype::BF16 => from_bf16,
            Dtype::F64 => from_f64,
            other => {
                let reason =
                    format!("tensor {name} is stored as {}; F32, F16 or BF16 is needed (quantised weights cannot be read)", other.name());
                return Err(Error::format(&self.path, reason));
            }
        };
        let size = dtype.size_bytes();
        let mut values = vec![0.0f32; bytes.len() / size];
        if values.len() <= PIECE {
            convert(bytes, &mut values);
        } else {
            values.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * size)).for_each(|(out, bytes)| convert(bytes, out));
        }
        Ok(values)
    }
}

/// Index of the first number that is NaN or infinite.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Two passes: the first has no branches, and nearly always it is the only one.
    let finite = |piece: &[f32]| piece.iter().fold(true, |finite, x| finite & (x.abs() < f32::INFINITY));
    let whole = if values.len() <= PIECE { finite(values) } else { values.par_chunks(PIECE).all(finite) };
    if whole { None } else { values.iter().position(|x| !x.is_finite()) }
}

/// As [`first_non_finite`], of f16.
pub fn first_non_finite_f16(values: &[f16]) -> Option<usize> {
    let finite = values.iter().fold(true, |finite, x| finite & (x.to_bits() & 0x7c00 != 0x7c00)); // as above, no branches
    if finite { None } else { values.iter().position(|x| !x.is_finite()) }
}

fn from_f32(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks().0.iter().zip(out) {
        *x = f32::from_le_bytes(*b);
    }
}

fn from_f64(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks().0.iter().zip(out) {
        *x = f64::from_le_bytes(*b) as f32;
    }
}

fn from_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks().0.iter().zip(out) {
        *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

fn from_f16(bytes: &[u8], out: &mut [f32]) {
    // A tensor may begin at any byte, so the bits go through an aligned buffer to the processor's own conversion.
    let mut buffer = [f16::ZERO; 1024];
    for (bytes, out) in bytes.chunks(2 * buffer.len()).zip(out.chunks_mut(buffer.len())) {
        for (b, x) in bytes.as_chunks().0.iter().zip(&mut buffer) {
            *x = f16::from_le_bytes(*b);
        }
        buffer[..out.len()].convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn file(entries: &[(&str, &str, &[usize])], data: &[u8]) -> SafeFile {
        let mut header = String::from("{");
        let mut start = 0;
        for (name, dtype, shape) in entries {
            let end = start + shape.iter().product::<usize>() * Dtype::from_name(dtype).unwrap().size_bytes();
            header += &format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}},");
            start = end;
        }
        let header = format!("{}}}", header.trim_end_matches(','));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        SafeFile::open(Blob::Memory(Arc::new(bytes)), "model.safetensors").unwrap()
    }

    #[test]
    fn every_floating_type_becomes_the_same_numbers_at_any_alignment() {
        let values: Vec<f32> = (0..5000).map(|i| ((i % 2000) as f32 - 1000.0) / 8.0).collect(); // exact in f16; bf16 rounds
        let mut data = vec![7u8]; // everything after it is misaligned
        data.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()));
        data.extend(values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()));
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        data.extend(values.iter().flat_map(|x| f64::from(*x).to_le_bytes()));
        let shape: &[usize] = &[50, 100];
        let file = file(&[("x", "U8", &[1]), ("h", "F16", shape), ("b", "BF16", shape), ("s", "F32", shape), ("d", "F64", shape)], &data);
        for name in ["h", "s", "d"] {
            assert!(file.read_f32(name).unwrap() == values, "{name}");
            assert!(file.read_rows_f32(name, 3..7).unwrap() == values[300..700], "{name}");
        }
        let halves: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
        assert!(file.read_rows_f16("h", 3..7).unwrap() == halves[300..700]);
        let rounded: Vec<f32> = values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        assert!(file.read_f32("b").unwrap() == rounded);
        assert_eq!(file.info("b"), Some((Dtype::BF16, shape)));
        assert_eq!(file.names().collect::<Vec<_>>(), ["b", "d", "h", "s", "x"]);
        assert_eq!(file.info("x"), Some((Dtype::U8, &[1][..])));
    }

    #[test]
    fn every_f16_is_read_exactly_denormals_infinities_and_nan_included() {
        let data: Vec<u8> = (0..=u16::MAX).flat_map(|bits| bits.to_le_bytes()).collect();
        let read = file(&[("x", "F16", &[65_536])], &data).read_f32("x").unwrap();
        for (bits, x) in (0..=u16::MAX).zip(read) {
            let expect = f16::from_bits(bits).to_f32();
            assert!(x == expect || (x.is_nan() && expect.is_nan()), "{bits:#06x}: {x} against {expect}");
        }
    }

    #[test]
    fn large_tensors_are_read_by_all_threads_in_order() {
        let values: Vec<f32> = (0..3 * PIECE + 17).map(|i| i as f32).collect();
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(file(&[("x", "F32", &[values.len()])], &data).read_f32("x").unwrap() == values);
    }

    #[test]
    fn wrong_requests_are_errors() {
        let file = file(&[("a", "I64", &[2]), ("s", "F32", &[]), ("z", "F32", &[0, 4])], &[0; 20]);
        assert_eq!(file.read_i64("a").unwrap(), [0, 0]);
        assert_eq!(file.read_f32("s").unwrap(), [0.0]);
        assert!(file.read_f32("z").unwrap().is_empty());
        assert!(file.read_rows_f32("z", 0..0).unwrap().is_empty());
        for message in [
            file.read_f32("a").unwrap_err().to_string(),
            file.read_f32("missing").unwrap_err().to_string(),
            file.read_rows_f32("z", 0..1).unwrap_err().to_string(),
            file.read_rows_f32("s", 0..1).unwrap_err().to_string(),
            file.read_rows_f16("a", 0..1).unwrap_err().to_string(),
            file.read_rows_f16("missing", 0..1).unwrap_err().to_string(),
            file.read_i64("s").unwrap_err().to_string(),
        ] {
            assert!(message.starts_with("model.safetensors: ") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn first_non_finite_is_found() {
        let mut values = vec![f32::MAX; 2 * PIECE + 3];
        assert_eq!(first_non_finite(&values), None);
        values[2 * PIECE + 1] = f32::NAN;
        assert_eq!(first_non_finite(&values), Some(2 * PIECE + 1));
        values[5] = f32::NEG_INFINITY;
        assert_eq!(first_non_finite(&values), Some(5));
        assert_eq!(first_non_finite(&[]), None);
        assert_eq!(first_non_finite_f16(&[f16::MAX, f16::MIN, f16::ZERO]), None);
        assert_eq!(first_non_finite_f16(&[f16::MAX, f16::NEG_INFINITY, f16::NAN]), Some(1));
    }
}
