//! The header of a safetensors file, read as if an enemy had written it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Dtype, Tensor};
use crate::store::Blob;

/// Longest header of the format, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// More tensors than any language model has; bounds the memory that a header can cost.
const MAX_TENSORS: usize = 100_000;
/// Most axes of a tensor.
const MAX_AXES: usize = 8;

type Metadata = BTreeMap<String, String>;

/// Tensors with their place in the file, and `__metadata__`; or which rule is broken.
pub(super) fn read(file: &Blob) -> Result<(BTreeMap<String, Tensor>, Metadata), String> {
    let size = usize::try_from(file.size_bytes()).map_err(|_| "the file is too large for this machine".to_string())?;
    let part = |range| file.read(range).map_err(|e| e.to_string());
    let Ok(prefix) = <[u8; 8]>::try_from(&*part(0..8)?) else {
        return Err(format!("{size} bytes are too few for a safetensors file; was the download cut off?"));
    };
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(format!("the header claims {length} bytes (the format allows {MAX_HEADER}); this is not a safetensors file"));
    }
    if length > size as u64 - 8 {
        return Err(format!("the header claims {length} bytes, but only {} follow; was the download cut off?", size - 8));
    }
    let header = part(8..8 + length)?;
    let text = std::str::from_utf8(&header).map_err(|e| format!("the header is not UTF-8 text: {e}"))?;
    if !text.starts_with('{') {
        return Err("the header does not begin with `{`; this is not a safetensors file".into());
    }
    let header: Header = serde_json::from_str(text).map_err(|e| format!("the header is not valid: {e}"))?;
    let offset = 8 + length as usize;
    let mut tensors = BTreeMap::new();
    let mut places = Vec::with_capacity(header.tensors.len());
    for (name, entry) in header.tensors {
        let tensor = check(&name, entry, size - offset, offset)?;
        places.push((tensor.range.start, tensor.range.end, name.clone()));
        tensors.insert(name, tensor);
    }
    check_places(places, offset, size)?;
    Ok((tensors, header.metadata))
}

/// One entry on its own: known type, size without overflow, range inside the buffer and as long as the shape says.
fn check(name: &str, entry: Entry, buffer: usize, offset: usize) -> Result<Tensor, String> {
    let name = shorten(name);
    let Some(dtype) = Dtype::from_name(&entry.dtype) else {
        return Err(format!("tensor {name} has the unknown type {}", shorten(&entry.dtype)));
    };
    let size = entry.shape.0.iter().try_fold(dtype.size_bytes() as u64, |size, &n| size.checked_mul(n));
    let Some(size) = size else {
        return Err(format!("tensor {name} has the impossible shape {:?}", entry.shape.0));
    };
    let [start, end] = entry.data_offsets;
    if start > end {
        return Err(format!("tensor {name} ends at byte {end}, before it begins at {start}"));
    }
    if end > buffer as u64 {
        return Err(format!("tensor {name} ends at byte {end} of a buffer of {buffer}; was the download cut off?"));
    }
    if end - start != size {
        return Err(format!("tensor {name} of shape {:?} needs {size} bytes, but has {}", entry.shape.0, end - start));
    }
    // `end <= buffer` makes start and end fit; an axis can exceed usize only beside an axis of 0.
    let shape = entry.shape.0.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| format!("tensor {name} has the impossible shape {:?}", entry.shape.0))?;
    Ok(Tensor { dtype, shape, range: offset + start as usize..offset + end as usize })
}

/// All entries together: one after the other from the first byte of the buffer to the last.
fn check_places(mut places: Vec<(usize, usize, String)>, mut at: usize, end: usize) -> Result<(), String> {
    places.sort_unstable();
    for (start, stop, name) in places {
        if start != at {
            let what = if start < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor {} {what}; the file is damaged or forged", shorten(&name)));
        }
        at = stop;
    }
    if at != end {
        return Err(format!("{} bytes at the end belong to no tensor; the file is damaged or forged", end - at));
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().count() <= 80 { text } else { format!("{}…", text.chars().take(80).collect::<String>()) }
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Axes;
        impl<'de> Visitor<'de> for Axes {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a shape of at most {MAX_AXES} axes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(n) = list.next_element()? {
                    if shape.len() == MAX_AXES {
                        return Err(A::Error::custom(format!("a tensor has more than {MAX_AXES} axes")));
                    }
                    shape.push(n);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Axes)
    }
}

struct Header {
    tensors: BTreeMap<String, Entry>,
    metadata: Metadata,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut tensors, mut metadata) = (BTreeMap::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == "__metadata__" {
                        metadata.replace(map.next_value::<UniqueStrings>()?.0).is_some()
                    } else if tensors.contains_key(&name) {
                        true
                    } else {
                        tensors.insert(name.clone(), map.next_value()?).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format!("{} appears twice", shorten(&name))));
                    }
                    if tensors.len() > MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                }
                Ok(Header { tensors, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

struct UniqueStrings(Metadata);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = UniqueStrings;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
                let mut strings = Metadata::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if strings.len() == MAX_TENSORS || strings.insert(key, value).is_some() {
                        return Err(A::Error::custom("__metadata__ repeats a key or is too long"));
                    }
                }
                Ok(UniqueStrings(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

/// Where the tensors of a new file lie: `(name, dtype, shape)` in order to the text of its header and the ranges
/// within the buffer. The text is padded so that the buffer begins at a multiple of 8 bytes.
pub(super) fn write(tensors: &[(String, Dtype, Vec<usize>)], metadata: &[(&str, &str)]) -> Result<(Vec<u8>, Vec<Range<u64>>), String> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let strings: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
    let mut entries = vec![format!("\"__metadata__\":{{{}}}", strings.join(","))];
    let (mut ranges, mut at, mut names) = (Vec::new(), 0u64, std::collections::BTreeSet::new());
    for (name, dtype, shape) in tensors {
        if !names.insert(name) {
            return Err(format!("tensor {name} would be written twice"));
        }
        let size = shape.iter().try_fold(dtype.size_bytes() as u64, |size, &n| size.checked_mul(n as u64));
        let end = size.and_then(|size| at.checked_add(size)).ok_or_else(|| format!("tensor {name} is too large: {shape:?}"))?;
        if at % dtype.size_bytes() as u64 != 0 {
            return Err(format!("tensor {name} would not be aligned; write the wider types first"));
        }
        entries.push(format!("{}:{{\"dtype\":\"{}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}", quoted(name), dtype.name()));
        ranges.push(at..end);
        at = end;
    }
    let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok((header, ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &[u8]) -> Result<(BTreeMap<String, Tensor>, Metadata), String> {
        super::read(&Blob::Memory(std::sync::Arc::new(file.to_vec())))
    }

    fn file(header: &[u8], data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.resize(file.len() + data, 0);
        file
    }

    #[track_caller]
    fn refused(file: &[u8], expect: &str) {
        let reason = read(file).map(|_| ()).unwrap_err();
        assert!(reason.contains(expect), "{reason}");
        assert!(!reason.contains('\n') && reason.len() < 400, "{reason}");
    }

    const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[3],"data_offsets":[8,14]}}"#;

    #[test]
    fn a_good_file_is_read() {
        let (tensors, _) = read(&file(GOOD.as_bytes(), 14)).unwrap();
        assert_eq!(tensors["b"].range.len(), 6);
        assert_eq!(tensors["a"].shape, [2, 1]);
        let (tensors, metadata) = read(&file(b"{\"__metadata__\":{\"format\":\"pt\"}}   ", 0)).unwrap();
        assert!(tensors.is_empty() && metadata["format"] == "pt");
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = file(GOOD.as_bytes(), 14);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        refused(&whole[..5], "too few");
        refused(&whole[..50], "cut off");
        refused(&whole[..whole.len() - 1], "cut off");
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_survived() {
        let whole = file(GOOD.as_bytes(), 14);
        for bit in 0..8 * (8 + GOOD.len()) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok((tensors, _)) = read(&damaged) {
                assert!(tensors.values().all(|tensor| tensor.range.end <= damaged.len()));
            }
        }
    }

    #[test]
    fn lying_lengths_are_refused() {
        let mut longer = file(GOOD.as_bytes(), 14);
        longer[..8].copy_from_slice(&1000u64.to_le_bytes());
        refused(&longer, "only");
        longer[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
        refused(&longer, "the format allows");
        longer[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(&longer, "the format allows");
        longer[..8].copy_from_slice(&0u64.to_le_bytes());
        refused(&longer, "begin with");
    }

    #[test]
    fn headers_that_are_no_json_object_of_tensors_are_refused() {
        refused(&file(b"{\xff}", 0), "UTF-8");
        refused(&file(b" {}", 0), "begin with");
        refused(&file(b"[]", 0), "begin with");
        refused(&file(b"{\"a\":", 0), "not valid");
        refused(&file(b"{} x", 0), "not valid");
        refused(&file(b"{\"a\":7}", 0), "not valid");
        refused(&file(br#"{"a":{"dtype":"F32","shape":[1]}}"#, 4), "data_offsets");
        refused(&file(br#"{"__metadata__":{"n":1}}"#, 0), "not valid");
        refused(&file("{\"a\":".repeat(5000).as_bytes(), 0), "not valid");
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let tensor = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        refused(&file(format!("{{{tensor},{tensor}}}").as_bytes(), 1), "a appears twice");
        refused(&file(br#"{"__metadata__":{},"__metadata__":{}}"#, 0), "appears twice");
        refused(&file(br#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), "repeats a key");
        refused(&file(br#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1), "duplicate");
    }

    #[track_caller]
    fn tensor_refused(dtype: &str, shape: &str, offsets: &str, data: usize, expect: &str) {
        let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        refused(&file(header.as_bytes(), data), expect);
    }

    #[test]
    fn offsets_and_shapes_that_lie_are_refused() {
        tensor_refused("F32", "[1]", "[-4,0]", 4, "not valid");
        tensor_refused("F32", "[-1]", "[0,4]", 4, "not valid");
        tensor_refused("F32", "[1]", "[4,0]", 4, "before it begins");
        tensor_refused("F32", "[1]", "[0,4,8]", 4, "not valid");
        tensor_refused("F32", "[2]", "[0,8]", 4, "cut off");
        tensor_refused("F32", "[1]", "[18446744073709551611,18446744073709551615]", 4, "cut off");
        tensor_refused("F32", "[3]", "[0,8]", 8, "needs 12 bytes");
        tensor_refused("F32", "[1]", "[0,8]", 8, "needs 4 bytes");
        tensor_refused("F32", "[4294967296,4294967296]", "[0,0]", 0, "impossible shape");
        tensor_refused("F32", "[4611686018427387904]", "[0,0]", 0, "impossible shape");
        tensor_refused("F32", "[1.5]", "[0,6]", 6, "not valid");
        tensor_refused("Q4", "[1]", "[0,1]", 1, "unknown type Q4");
        tensor_refused("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]", 4, "more than 8 axes");
        tensor_refused("F32", "[1]", "[4,8]", 8, "hole");
        tensor_refused("F32", "[1]", "[0,4]", 8, "belong to no tensor");
    }

    #[test]
    fn shared_regions_are_refused_whatever_their_number() {
        let tensors: Vec<String> = (0..50_000).map(|i| format!(r#""t{i}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#)).collect();
        refused(&file(format!("{{{}}}", tensors.join(",")).as_bytes(), 4), "overlaps");
    }

    #[test]
    fn more_tensors_than_any_model_has_are_refused() {
        let tensors: Vec<String> =
            (0..=MAX_TENSORS).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
        refused(&file(format!("{{{}}}", tensors.join(",")).as_bytes(), 0), "more than 100000 tensors");
    }

    #[test]
    fn long_and_unprintable_names_do_not_flood_the_terminal() {
        let header = format!(r#"{{"\u001b[2J{}":{{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}}}"#, "x".repeat(9999));
        refused(&file(header.as_bytes(), 1), "…");
        assert!(!read(&file(header.as_bytes(), 1)).map(|_| ()).unwrap_err().contains('\u{1b}'));
    }

    #[test]
    fn tensors_without_numbers_are_allowed() {
        let header = br#"{"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
        assert_eq!(read(&file(header, 4)).unwrap().0.len(), 2);
    }
}
