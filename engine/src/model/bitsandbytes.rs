//! Matrices of 4 bits in a checkpoint that bitsandbytes wrote: `X.weight` and, beside it, what is needed to read it.

use serde::Deserialize;

use super::safetensors::{Dtype, SafeFile};
use crate::error::{Error, Result};
use crate::ops::quant::nf4::{BLOCK, CODE};
use crate::ops::quant::{Absmax, Nf4, dynamic8};

const STATE_NF4: &str = ".quant_state.bitsandbytes__nf4";
const STATE_FP4: &str = ".quant_state.bitsandbytes__fp4";
const PARTS: [&str; 6] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE_NF4, STATE_FP4];
/// Far more than the settings of a matrix take.
const MAX_STATE_BYTES: usize = 1 << 16;

/// Settings of a matrix, which lie in a tensor of bytes as JSON.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The matrix that a tensor belongs to: `X.weight` of `X.weight.absmax`.
pub fn owner(name: &str) -> Option<&str> {
    PARTS.iter().find_map(|part| name.strip_suffix(part)).filter(|owner| !owner.is_empty())
}

/// Rows and columns of the matrix `name`; none where it is not one of 4 bits. `find` tells in which file a tensor lies.
///
/// # Errors
/// As [`read`], as far as the settings alone show it.
pub fn shape<'a>(find: impl Fn(&str) -> Option<&'a SafeFile>, name: &str) -> Result<Option<[usize; 2]>> {
    Ok(settings(&find, name)?.map(|(_, _, shape)| shape))
}

/// Reads the matrix `name`; none where it is not one of 4 bits. `find` tells in which file a tensor lies: sharded
/// checkpoints may keep the parts of a matrix apart.
///
/// # Errors
/// [`Error::Format`] where a part is missing, has another size than the matrix asks for or holds NaN or infinity, and for
/// what is not read: FP4, blocks of other than 64 and 256 numbers, codes packed into other types than bytes.
pub fn read<'a>(find: impl Fn(&str) -> Option<&'a SafeFile>, name: &str) -> Result<Option<Nf4>> {
    let Some((file, state, [rows, columns])) = settings(&find, name)? else { return Ok(None) };
    let parts = Parts { find: &find, matrix: name, settings: file };
    let count = rows * columns;
    let blocks = count.div_ceil(BLOCK);

    let map = parts.floats(".quant_map", CODE.len())?;
    // bitsandbytes itself reads this table from its own code.
    if map.iter().zip(CODE).any(|(a, b)| (a - b).abs() > 1e-6) {
        return Err(parts.bad(".quant_map", "holds another code book than that of NF4"));
    }
    let codes = parts.bytes("", count.div_ceil(2))?;
    let absmax = match (state.nested_blocksize, state.nested_offset) {
        (Some(_), Some(offset)) => {
            let map = parts.floats(".nested_quant_map", 256)?;
            if map.iter().any(|value| value.abs() > 1.0) {
                return Err(parts.bad(".nested_quant_map", "holds values beyond -1 and 1"));
            }
            let map = map.try_into().map_err(|_| parts.bad(".nested_quant_map", "has not 256 values"))?;
            let absmax = parts.floats(".nested_absmax", blocks.div_ceil(dynamic8::BLOCK))?;
            Absmax::Nested { codes: parts.bytes(".absmax", blocks)?, absmax, map, offset }
        }
        _ => Absmax::Plain(parts.floats(".absmax", blocks)?),
    };
    Ok(Some(Nf4 { rows, columns, codes, absmax }))
}

/// The settings of a matrix, the file they lie in, and its shape.
fn settings<'a>(find: &impl Fn(&str) -> Option<&'a SafeFile>, name: &str) -> Result<Option<(&'a SafeFile, State, [usize; 2])>> {
    let tensor = format!("{name}{STATE_NF4}");
    let Some(file) = find(&tensor) else {
        return match find(&format!("{name}{STATE_FP4}")) {
            Some(file) => Err(refused(file, name, "FP4")),
            None => Ok(None),
        };
    };
    let bad = |reason: String| Error::format(file.path(), format!("tensor {tensor} {reason}"));
    if let Some((dtype, shape)) = file.info(&tensor)
        && (dtype != Dtype::U8 || elements(shape).is_none_or(|count| count > MAX_STATE_BYTES))
    {
        return Err(bad(format!("is {} {shape:?}; a short text in U8 belongs there", dtype.name())));
    }
    let state: State = serde_json::from_slice(&file.read_u8(&tensor)?).map_err(|e| bad(format!("cannot be read: {e}")))?;
    if state.quant_type != "nf4" {
        return Err(refused(file, name, &format!("of type {:?}", state.quant_type)));
    }
    let nested = state.nested_blocksize.unwrap_or(dynamic8::BLOCK);
    if (state.blocksize, nested) != (BLOCK, dynamic8::BLOCK) {
        return Err(refused(file, name, &format!("in blocks of {} numbers and {nested} scales", state.blocksize)));
    }
    if state.nested_blocksize.is_some() != state.nested_offset.is_some() || state.nested_offset.is_some_and(|x| !x.is_finite()) {
        return Err(bad(format!("gives {:?} as nested_offset", state.nested_offset)));
    }
    match state.shape[..] {
        // Twice the codes, so that no size below can overflow.
        [rows, columns] if rows.checked_mul(columns).is_some_and(|count| count <= usize::MAX / 2) => {
            Ok(Some((file, state, [rows, columns])))
        }
        _ => Err(bad(format!("gives {:?} as shape; rows and columns are needed", state.shape))),
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n))
}

fn refused(file: &SafeFile, name: &str, what: &str) -> Error {
    let reason = format!(
        "tensor {name} is quantised {what}; only NF4 in blocks of 64 numbers and 256 scales can be read, so use such a checkpoint, or the unquantised one"
    );
    Error::format(file.path(), reason)
}

/// The tensors of a matrix.
struct Parts<'f, 'a, F> {
    find: &'f F,
    matrix: &'f str,
    /// Where its settings lie.
    settings: &'a SafeFile,
}

impl<'a, F: Fn(&str) -> Option<&'a SafeFile>> Parts<'_, 'a, F> {
    fn bad(&self, part: &str, reason: &str) -> Error {
        let name = format!("{}{part}", self.matrix);
        let file = (self.find)(&name).unwrap_or(self.settings);
        Error::format(file.path(), format!("tensor {name} {reason}"))
    }

    /// Where a part lies, which must have a type and a size.
    fn part(&self, part: &str, dtype: Dtype, count: usize) -> Result<(&'a SafeFile, String)> {
        let name = format!("{}{part}", self.matrix);
        let Some((file, (found, shape))) = (self.find)(&name).and_then(|file| Some((file, file.info(&name)?))) else {
            return Err(self.bad(part, "is missing; are all files of one download?"));
        };
        if found != dtype || elements(shape) != Some(count) {
            let reason = format!("is {} {shape:?}, but its matrix needs {count} numbers in {}", found.name(), dtype.name());
            return Err(self.bad(part, &reason));
        }
        Ok((file, name))
    }

    fn bytes(&self, part: &str, count: usize) -> Result<Vec<u8>> {
        let (file, name) = self.part(part, Dtype::U8, count)?;
        file.read_u8(&name)
    }

    fn floats(&self, part: &str, count: usize) -> Result<Vec<f32>> {
        let (file, name) = self.part(part, Dtype::F32, count)?;
        let values = file.read_f32(&name)?;
        match values.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(self.bad(part, &format!("holds {x}; this checkpoint is broken"))),
            None => Ok(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::Blob;

    const NAME: &str = "model.layers.0.mlp.up_proj.weight";

    /// Name after the matrix, type, count, bytes.
    type Part = (&'static str, &'static str, usize, Vec<u8>);

    fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    fn state(json: &str) -> Part {
        (STATE_NF4, "U8", json.len(), json.as_bytes().to_vec())
    }

    /// A matrix of 3 · 50 numbers with scales in 8 bits.
    fn nested() -> Vec<Part> {
        let settings = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 50], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}"#;
        let map = (0..256).map(|i| (i as f32 - 128.0) / 128.0);
        vec![
            ("", "U8", 75, (0..75).map(|i| i * 3).collect()),
            (".absmax", "U8", 3, vec![128, 192, 0]),
            (".quant_map", "F32", 16, floats(CODE)),
            (".nested_absmax", "F32", 1, floats([2.0])),
            (".nested_quant_map", "F32", 256, floats(map)),
            state(settings),
        ]
    }

    fn plain() -> Vec<Part> {
        let mut parts = nested();
        parts.retain(|part| !part.0.starts_with(".nested"));
        parts[1] = (".absmax", "F32", 3, floats([0.5, 1.0, 2.0]));
        *parts.last_mut().unwrap() = state(r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [3, 50]}"#);
        parts
    }

    fn file(parts: &[Part]) -> SafeFile {
        let (mut header, mut data) = (Vec::new(), Vec::new());
        for (part, dtype, count, bytes) in parts {
            let range = [data.len(), data.len() + bytes.len()];
            header.push(format!("\"{NAME}{part}\":{{\"dtype\":\"{dtype}\",\"shape\":[{count},1],\"data_offsets\":{range:?}}}"));
            data.extend(bytes);
        }
        let header = format!("{{{}}}", header.join(","));
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        SafeFile::open(Blob::Memory(Arc::new(bytes)), "model.safetensors").unwrap()
    }

    fn read_from(parts: &[Part]) -> Result<Option<Nf4>> {
        let file = file(parts);
        read(|name| file.info(name).map(|_| &file), NAME)
    }

    #[test]
    fn parts_are_read_wherever_they_lie() {
        let matrix = read_from(&nested()).unwrap().unwrap();
        assert_eq!((matrix.rows, matrix.columns, matrix.codes[74]), (3, 50, 222));
        assert_eq!([0, 1, 2].map(|block| matrix.absmax.block(block)), [0.25, 1.25, -1.75]);
        let files = nested().into_iter().map(|part| file(&[part])).collect::<Vec<_>>();
        let find = |name: &str| files.iter().find(|file| file.info(name).is_some());
        assert_eq!(read(find, NAME).unwrap().as_ref(), Some(&matrix));
        assert_eq!(shape(find, NAME).unwrap(), Some([3, 50]));
        assert_eq!(read_from(&plain()).unwrap().unwrap().absmax, Absmax::Plain(vec![0.5, 1.0, 2.0]));
    }

    #[test]
    fn other_tensors_are_none_of_4_bits() {
        assert!(read_from(&[("", "F32", 2, floats([1.0, 2.0]))]).unwrap().is_none());
        assert!(read_from(&[]).unwrap().is_none());
        for (name, expected) in [
            ("a.weight.absmax", Some("a.weight")),
            ("a.weight.nested_quant_map", Some("a.weight")),
            ("a.weight.quant_state.bitsandbytes__nf4", Some("a.weight")),
            ("a.weight", None),
            (".absmax", None),
        ] {
            assert_eq!(owner(name), expected);
        }
    }

    /// Every damage is one line that names the file.
    #[track_caller]
    fn refuses(parts: &[Part], reason: &str) {
        let error = read_from(parts).unwrap_err().to_string();
        assert!(error.starts_with("model.safetensors: ") && !error.contains('\n') && error.contains(reason), "{error}");
    }

    #[test]
    fn damaged_and_foreign_matrices_are_refused() {
        for base in [nested(), plain()] {
            for index in 0..base.len() - 1 {
                let part = &base[index];
                let width = part.3.len() / part.2;
                let mut parts = base.clone();
                parts.remove(index);
                refuses(&parts, "is missing");
                let mut parts = base.clone();
                parts[index] = (part.0, part.1, part.2 - 1, part.3[width..].to_vec());
                refuses(&parts, "but its matrix needs");
                let mut parts = base.clone();
                parts[index] = (part.0, "I16", part.2, vec![0; 2 * part.2]);
                refuses(&parts, "but its matrix needs");
                if part.1 == "F32" {
                    let mut parts = base.clone();
                    parts[index].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                    refuses(&parts, "holds NaN");
                }
            }
        }
        let mut parts = nested();
        parts[2].3[..4].copy_from_slice(&(-0.9f32).to_le_bytes());
        refuses(&parts, "another code book");
        let mut parts = nested();
        parts[4].3[..4].copy_from_slice(&(-1.5f32).to_le_bytes());
        refuses(&parts, "beyond -1 and 1");
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let with = |from: &str, to: &str| {
            let mut parts = nested();
            let settings = String::from_utf8(parts[5].3.clone()).unwrap().replace(from, to);
            parts[5] = state(&settings);
            parts
        };
        refuses(&with("nf4", "fp4"), "of type \"fp4\"");
        refuses(&with("64", "128"), "blocks of 128 numbers and 256 scales");
        refuses(&with("256", "64"), "blocks of 64 numbers and 64 scales");
        refuses(&with("[3, 50]", "[150]"), "rows and columns are needed");
        refuses(&with("[3, 50]", "null"), "cannot be read");
        refuses(&with("[3, 50]", "[-3, 50]"), "cannot be read");
        refuses(&with("[3, 50]", "[4294967296, 4294967296]"), "rows and columns are needed");
        refuses(&with("[3, 50]", "[4000000000, 2000000000]"), "but its matrix needs");
        refuses(&with("[3, 50]", "[0, 50]"), "but its matrix needs");
        refuses(&with("\"nested_offset\": 0.25", "\"nested\": 1"), "nested_offset");
        refuses(&with("0.25", "1e39"), "quant_state.bitsandbytes__nf4");
        refuses(&with("0.25", "NaN"), "cannot be read");
        refuses(&with("}", ""), "cannot be read");
        let mut parts = nested();
        parts[5] = (STATE_NF4, "U8", 100_000, vec![b' '; 100_000]);
        refuses(&parts, "a short text");
        let mut parts = nested();
        parts[5] = (STATE_FP4, "U8", 2, b"{}".to_vec());
        refuses(&parts, "FP4");
    }
}
