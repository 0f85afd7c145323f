//! A safetensors file written tensor by tensor: memory holds one piece at a time.

use half::slice::HalfFloatSliceExt;

use super::{Dtype, PIECE, first_non_finite, header};
use crate::error::{Error, Result};
use crate::store::{Store, Writer};

/// Writes a safetensors file in the order of its header; the file exists only after [`SafeWriter::finish`].
pub struct SafeWriter {
    writer: Writer,
    path: String,
    tensors: Vec<(String, Dtype, u64)>,
    /// Tensor being written.
    index: usize,
    /// Bytes of it that are written.
    written: u64,
}

impl SafeWriter {
    /// Begins a file that will hold `tensors` (name, type, shape) in this order.
    /// `metadata` without entries becomes `{"format": "pt"}`, which transformers demands.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::DiskFull`]; [`Error::Internal`] for names that repeat or types that would lie unaligned.
    pub async fn create(store: &Store, path: &str, tensors: &[(String, Dtype, Vec<usize>)], metadata: &[(&str, &str)]) -> Result<Self> {
        let metadata = if metadata.is_empty() { &[("format", "pt")] } else { metadata };
        let (header, ranges) = header::write(tensors, metadata).map_err(|reason| Error::Internal(format!("{path}: {reason}")))?;
        let mut writer = store.create(path).await?;
        writer.write(&header)?;
        let tensors = tensors.iter().zip(ranges).map(|((name, dtype, _), range)| (name.clone(), *dtype, range.end - range.start));
        Ok(Self { writer, path: path.into(), tensors: tensors.collect(), index: 0, written: 0 })
    }

    /// Adds numbers, converted to the type the header promises. A tensor may come in several calls, rows in order.
    ///
    /// # Errors
    /// [`Error::Format`] for NaN, infinity and numbers beyond the range of f16: a checkpoint never holds them;
    /// [`Error::Internal`] out of order; [`Error::DiskFull`] or [`Error::File`].
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let dtype = self.begin(name, values.len())?;
        if let Some(index) = first_non_finite(values) {
            let what =
                format!("tensor {name} holds {} (number {index} of this piece); not saved, what was saved before is intact", values[index]);
            return Err(Error::format(&self.path, what));
        }
        match dtype {
            Dtype::F32 if cfg!(target_endian = "little") => self.write_bytes(name, bytemuck::cast_slice(values)),
            Dtype::F32 => self.pieces(name, values, |piece, out| out.extend(piece.iter().flat_map(|x| x.to_le_bytes()))),
            Dtype::F16 => {
                // 65520 lies half-way between the largest f16, 65504, and what would come next; it rounds to infinity.
                if let Some(x) = values.iter().find(|x| x.abs() >= 65_520.0) {
                    let reason = format!("tensor {name} holds {x}, beyond the range of f16 (65504); export with --dtype f32");
                    return Err(Error::format(&self.path, reason));
                }
                self.pieces(name, values, |piece, out| {
                    let mut halves = vec![half::f16::ZERO; piece.len()];
                    halves.convert_from_f32_slice(piece);
                    out.extend(halves.iter().flat_map(|x| x.to_le_bytes()));
                })
            }
            Dtype::BF16 => {
                self.pieces(name, values, |piece, out| out.extend(piece.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())))
            }
            other => Err(Error::Internal(format!("{}: tensor {name} is {}, not a type of fractions", self.path, other.name()))),
        }
    }

    /// Adds whole numbers to a tensor of type I64.
    ///
    /// # Errors
    /// As [`SafeWriter::write_f32`].
    pub fn write_i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        match self.begin(name, values.len())? {
            Dtype::I64 => self.write_bytes(name, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
            other => Err(Error::Internal(format!("{}: tensor {name} is {}, not I64", self.path, other.name()))),
        }
    }

    /// Adds bytes as they are, little-endian. Nothing is checked but the order and the length.
    ///
    /// # Errors
    /// [`Error::Internal`] out of order or too long; [`Error::DiskFull`] or [`Error::File`].
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name, 0)?;
        let Some((_, _, size)) = self.tensors.get(self.index) else { return Ok(()) };
        if self.written + bytes.len() as u64 > *size {
            return Err(Error::Internal(format!("{}: tensor {name} is longer than the {size} bytes of its header", self.path)));
        }
        self.writer.write(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes sure that every tensor is whole, syncs the file and gives it its name.
    ///
    /// # Errors
    /// [`Error::Internal`] where something is missing; [`Error::DiskFull`] or [`Error::File`].
    pub async fn finish(mut self) -> Result<()> {
        self.skip_whole();
        if let Some((name, _, size)) = self.tensors.get(self.index) {
            return Err(Error::Internal(format!("{}: tensor {name} has {} of {size} bytes", self.path, self.written)));
        }
        self.writer.finish().await
    }

    /// Moves on where the tensor before is whole, checks that `name` is next and has room; returns its type.
    fn begin(&mut self, name: &str, count: usize) -> Result<Dtype> {
        if self.tensors.get(self.index).is_some_and(|(current, _, size)| current != name && self.written == *size) {
            self.skip_whole();
        }
        let Some((current, dtype, size)) = self.tensors.get(self.index) else {
            return Err(Error::Internal(format!("{}: tensor {name} comes after the last one", self.path)));
        };
        if current != name {
            return Err(Error::Internal(format!("{}: tensor {name} comes before {current} is whole", self.path)));
        }
        if self.written + (count * dtype.size_bytes()) as u64 > *size {
            return Err(Error::Internal(format!("{}: tensor {name} is longer than the {size} bytes of its header", self.path)));
        }
        Ok(*dtype)
    }

    /// To the first tensor that lacks bytes.
    fn skip_whole(&mut self) {
        while self.tensors.get(self.index).is_some_and(|(_, _, size)| self.written == *size) {
            self.index += 1;
            self.written = 0;
        }
    }

    fn pieces(&mut self, name: &str, values: &[f32], convert: impl Fn(&[f32], &mut Vec<u8>)) -> Result<()> {
        let mut bytes = Vec::new();
        for piece in values.chunks(PIECE) {
            bytes.clear();
            convert(piece, &mut bytes);
            self.write_bytes(name, &bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::super::SafeFile;
    use super::*;

    fn tensors(list: &[(&str, Dtype, &[usize])]) -> Vec<(String, Dtype, Vec<usize>)> {
        list.iter().map(|(name, dtype, shape)| (name.to_string(), *dtype, shape.to_vec())).collect()
    }

    fn begin(list: &[(&str, Dtype, &[usize])]) -> (Store, SafeWriter) {
        let store = Store::memory();
        let writer = block_on(SafeWriter::create(&store, "x.safetensors", &tensors(list), &[])).unwrap();
        (store, writer)
    }

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.37).sin() * 3.0).collect()
    }

    #[test]
    fn what_is_written_reads_back_in_every_type() {
        let list: [(&str, Dtype, &[usize]); 6] = [
            ("i", Dtype::I64, &[3]),
            ("s", Dtype::F32, &[70, 1000]),
            ("none", Dtype::F32, &[0, 7]),
            ("h", Dtype::F16, &[70, 1000]),
            ("b", Dtype::BF16, &[5]),
            ("last", Dtype::U8, &[0]),
        ];
        let (store, mut writer) = begin(&list);
        let values = numbers(70_000);
        writer.write_i64("i", &[1, -2, i64::MAX]).unwrap();
        for rows in values.chunks(30_000) {
            writer.write_f32("s", rows).unwrap();
        }
        for rows in values.chunks(1000) {
            writer.write_f32("h", rows).unwrap();
        }
        writer.write_f32("b", &values[..5]).unwrap();
        block_on(writer.finish()).unwrap();
        let file = SafeFile::open(block_on(store.open("x.safetensors")).unwrap(), "x.safetensors").unwrap();
        assert_eq!(file.read_i64("i").unwrap(), [1, -2, i64::MAX]);
        assert!(file.read_f32("s").unwrap() == values);
        let halves: Vec<f32> = values.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect();
        assert!(file.read_f32("h").unwrap() == halves);
        assert_eq!(file.read_f32("b").unwrap(), values[..5].iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>());
        assert_eq!(file.metadata()["format"], "pt");
    }

    #[test]
    fn the_reference_implementation_reads_what_we_write() {
        let (store, mut writer) = begin(&[("a\"é", Dtype::F32, &[2, 3]), ("h", Dtype::F16, &[5])]);
        writer.write_f32("a\"é", &numbers(6)).unwrap();
        writer.write_f32("h", &[1.0, -0.5, 65_519.0, 6e-8, 0.0]).unwrap();
        block_on(writer.finish()).unwrap();
        let blob = block_on(store.read("x.safetensors")).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&blob).unwrap();
        assert_eq!(theirs.tensor("a\"é").unwrap().shape(), [2, 3]);
        assert_eq!(theirs.tensor("a\"é").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&numbers(6)));
        let halves: Vec<f32> =
            theirs.tensor("h").unwrap().data().chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        assert_eq!(halves, [1.0, -0.5, 65_504.0, 5.960_464_5e-8, 0.0]);
        let length = u64::from_le_bytes(blob[..8].try_into().unwrap());
        assert_eq!(length % 8, 0, "the buffer is aligned");
    }

    #[test]
    fn we_read_what_the_reference_implementation_writes() {
        let data: Vec<u8> = numbers(12).iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![3, 4], &data).unwrap();
        let bytes = safetensors::serialize([("w", view)], None).unwrap();
        let file = SafeFile::open(crate::store::Blob::Memory(std::sync::Arc::new(bytes)), "theirs").unwrap();
        assert_eq!(file.read_rows_f32("w", 1..3).unwrap(), numbers(12)[4..]);
    }

    #[test]
    fn numbers_that_f16_cannot_hold_are_refused_by_name() {
        let (_, mut writer) = begin(&[("h", Dtype::F16, &[2])]);
        let message = writer.write_f32("h", &[0.0, -65_520.0]).unwrap_err().to_string();
        assert!(message.contains("tensor h holds -65520") && message.contains("--dtype f32"), "{message}");
    }

    #[test]
    fn a_non_finite_checkpoint_is_never_written() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let (store, mut writer) = begin(&[("w", dtype, &[3])]);
                let message = writer.write_f32("w", &[0.0, bad, 1.0]).unwrap_err().to_string();
                assert!(message.contains("tensor w holds"), "{message}");
                drop(writer);
                assert!(!block_on(store.exists("x.safetensors")));
            }
        }
    }

    #[test]
    fn an_incomplete_file_never_gets_its_name() {
        let (store, mut writer) = begin(&[("a", Dtype::F32, &[2]), ("b", Dtype::F32, &[2])]);
        writer.write_f32("a", &[0.0]).unwrap();
        assert!(writer.write_f32("b", &[0.0]).is_err(), "a is not whole");
        assert!(writer.write_f32("a", &[0.0, 1.0]).is_err(), "a would be too long");
        writer.write_f32("a", &[0.0]).unwrap();
        assert!(writer.write_f32("c", &[0.0]).is_err(), "there is no c");
        assert!(writer.write_i64("b", &[0]).is_err(), "b is not I64");
        assert!(block_on(writer.finish()).unwrap_err().to_string().contains("tensor b has 0 of 8 bytes"));
        assert!(!block_on(store.exists("x.safetensors")));
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let create = |list: &[(&str, Dtype, &[usize])]| {
            block_on(SafeWriter::create(&Store::memory(), "x", &tensors(list), &[])).map(|_| ()).unwrap_err().to_string()
        };
        assert!(create(&[("a", Dtype::F32, &[1]), ("a", Dtype::F32, &[1])]).contains("twice"));
        assert!(create(&[("a", Dtype::F16, &[1]), ("b", Dtype::F32, &[1])]).contains("aligned"));
        assert!(create(&[("a", Dtype::F32, &[usize::MAX, 2])]).contains("too large"));
    }
}
