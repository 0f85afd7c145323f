//! TensorBoard event files: TFRecords of hand-written protobuf, a few messages only.
//!
//! A record is its length (u64), the masked CRC-32C of the length, the bytes, and the masked CRC-32C of the bytes.
//! Field numbers: tensorflow/core/util/event.proto, framework/summary.proto and framework/tensor.proto.

use crate::error::Result;
use crate::platform;
use crate::store::{Appender, Store};

/// One event file of a run, growing at its end with every [`TensorBoard::flush`].
pub struct TensorBoard {
    file: Appender,
}

impl TensorBoard {
    /// Begins a new event file in `folder`; `now_secs` is the Unix time.
    ///
    /// # Errors
    /// [`crate::Error::File`] or [`crate::Error::DiskFull`].
    pub async fn create(store: &Store, folder: &str, now_secs: f64) -> Result<Self> {
        let stem = format!("{}/events.out.tfevents.{:010}.{}", folder.trim_end_matches('/'), now_secs as u64, platform::host_name());
        let mut count = 0;
        let mut path = format!("{stem}.{count}");
        while store.exists(&path).await {
            count += 1;
            path = format!("{stem}.{count}");
        }
        let mut board = Self { file: store.append(&path).await? };
        let mut event = Message::default();
        event.double(1, now_secs);
        event.bytes(3, b"brain.Event:2");
        board.push(&event);
        Ok(board)
    }

    /// Says that the run goes on after `step`: what earlier files hold of later steps is void.
    pub fn resumed(&mut self, time_secs: f64, step: u32) {
        let mut session = Message::default();
        session.varint(1, 1); // START
        let mut event = Message::default();
        event.double(1, time_secs);
        event.varint(2, u64::from(step) + 1);
        event.bytes(7, &session.0);
        self.push(&event);
    }

    /// Adds numbers of one step.
    pub fn scalars<'a>(&mut self, time_secs: f64, step: u32, values: impl IntoIterator<Item = (&'a str, f64)>) {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        self.summary(time_secs, step, &summary);
    }

    /// Adds a text, which TensorBoard shows as Markdown.
    pub fn text(&mut self, time_secs: f64, step: u32, tag: &str, text: &str) {
        let mut plugin = Message::default();
        plugin.bytes(1, b"text");
        let mut metadata = Message::default();
        metadata.bytes(1, &plugin.0);
        metadata.varint(4, 2); // DATA_CLASS_TENSOR
        let mut axis = Message::default();
        axis.varint(1, 1);
        let mut shape = Message::default();
        shape.bytes(2, &axis.0);
        let mut tensor = Message::default();
        tensor.varint(1, 7); // DT_STRING
        tensor.bytes(2, &shape.0);
        tensor.bytes(8, text.as_bytes());
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.bytes(8, &tensor.0);
        entry.bytes(9, &metadata.0);
        let mut summary = Message::default();
        summary.bytes(1, &entry.0);
        self.summary(time_secs, step, &summary);
    }

    fn summary(&mut self, time_secs: f64, step: u32, summary: &Message) {
        let mut event = Message::default();
        event.double(1, time_secs);
        event.varint(2, u64::from(step));
        event.bytes(5, &summary.0);
        self.push(&event);
    }

    fn push(&mut self, event: &Message) {
        self.file.push(&record(&event.0)); // whole, so that a reader never meets half a record
    }

    /// Writes down what was added.
    ///
    /// # Errors
    /// As [`TensorBoard::create`]; it then waits for the next time.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, kind: u64) {
        self.raw(field << 3 | kind);
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// TFRecord rotates and shifts its checksums, so that a checksum of a checksum is not special.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    fn written(fill: impl FnOnce(&mut TensorBoard)) -> Vec<Vec<u8>> {
        let store = Store::memory();
        let mut board = block_on(TensorBoard::create(&store, "run/tensorboard", 1_700_000_000.5)).unwrap();
        fill(&mut board);
        board.flush().unwrap();
        let entries = block_on(store.list("run/tensorboard")).unwrap();
        assert!(entries[0].name.starts_with("run/tensorboard/events.out.tfevents.1700000000."), "{}", entries[0].name);
        let blob = block_on(store.read(&entries[0].name)).unwrap();
        let (mut rest, mut records) = (&blob[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(data).to_le_bytes());
            records.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        records
    }

    #[test]
    fn checksum_is_the_published_one() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283); // RFC 3720's polynomial, the usual check value
        assert_eq!(masked_crc(b""), 0xa282_ead8);
    }

    #[test]
    fn first_record_names_the_version() {
        let mut expect = vec![0x09];
        expect.extend(1_700_000_000.5f64.to_le_bytes());
        expect.extend([0x1a, 13]);
        expect.extend(b"brain.Event:2");
        assert_eq!(written(|_| ()), [expect]);
    }

    #[test]
    fn scalars_of_a_step_are_one_event() {
        let records = written(|board| board.scalars(2.0, 300, [("a", 1.5), ("bc", -1.0)]));
        let mut expect = vec![0x09];
        expect.extend(2.0f64.to_le_bytes());
        expect.extend([0x10, 0xac, 0x02, 0x2a, 21]); // step 300, summary of 21 bytes
        expect.extend([0x0a, 8, 0x0a, 1, b'a', 0x15]);
        expect.extend(1.5f32.to_le_bytes());
        expect.extend([0x0a, 9, 0x0a, 2, b'b', b'c', 0x15]);
        expect.extend((-1.0f32).to_le_bytes());
        assert_eq!(records[1], expect);
    }

    #[test]
    fn files_of_the_same_second_do_not_mix() {
        let store = Store::memory();
        for _ in 0..3 {
            block_on(TensorBoard::create(&store, "t", 5.0)).unwrap();
        }
        assert_eq!(block_on(store.list("t")).unwrap().len(), 3);
    }

    #[test]
    fn text_and_resume_are_whole_records() {
        let records = written(|board| {
            board.text(1.0, 7, "sample", &"ä".repeat(300));
            board.resumed(1.0, 7);
        });
        assert!(records[1].windows(4).any(|window| window == b"text"));
        assert_eq!(records[2][9..], [0x10, 8, 0x3a, 2, 0x08, 1]); // step 8, session log START
    }
}
