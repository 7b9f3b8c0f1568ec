//! Event files of TensorBoard: scalars over steps.
//!
//! A file is a row of TFRecords: length (u64), its checksum (u32), a message, its checksum (u32), all little-endian. A checksum is
//! CRC-32C, masked so that checksums of data that hold checksums stay good. The messages are `Event` of TensorBoard's
//! `event.proto`, of which three kinds are written: the file's version, the start of a session, and scalars.

use crate::error::{Error, IoContext, Result};
use crc::{CRC_32_ISCSI, Crc};
use protobuf::CodedOutputStream;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The checksum of a record.
fn masked_crc(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An event file that grows.
#[derive(Debug)]
pub struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// Starts `FOLDER/events.out.tfevents.SECONDS.bisam`, for the steps after the first `done`. Readers forget what files before it
    /// say about these steps, so that a resumed run has no step twice.
    ///
    /// # Errors
    /// An I/O error.
    pub fn create(folder: &Path, done: u64) -> Result<Self> {
        let path = folder.join(format!("events.out.tfevents.{}.bisam", next_stamp(folder)?));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).file(&path)?;
        let mut events = Self { file, path };
        events.write(None, |to| to.write_string(event::FILE_VERSION, "brain.Event:2"))?;
        events
            .write(Some(done + 1), |to| to.write_bytes(event::SESSION_LOG, &[session::STATUS << 3, session::START]))?;
        Ok(events)
    }

    /// Appends scalars, each with its tag.
    ///
    /// # Errors
    /// An I/O error.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f32)]) -> Result<()> {
        if scalars.is_empty() {
            return Ok(());
        }
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let value = message(|to| {
                to.write_string(value::TAG, tag)?;
                to.write_float(value::SIMPLE, *value)
            })?;
            summary.extend(message(|to| to.write_bytes(summary::VALUE, &value))?);
        }
        self.write(Some(step), |to| to.write_bytes(event::SUMMARY, &summary))
    }

    /// Appends an event as a record, in one piece.
    fn write(
        &mut self,
        step: Option<u64>,
        what: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>,
    ) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let event = message(|to| {
            to.write_double(event::WALL_TIME, now)?;
            if let Some(step) = step {
                to.write_int64(event::STEP, step as i64)?;
            }
            what(to)
        })?;
        self.file.write_all(&record(&event)).file(&self.path)
    }
}

/// Field numbers of `Event`.
mod event {
    pub const WALL_TIME: u32 = 1;
    pub const STEP: u32 = 2;
    pub const FILE_VERSION: u32 = 3;
    pub const SUMMARY: u32 = 5;
    pub const SESSION_LOG: u32 = 7;
}

/// Field and value of `SessionLog`.
mod session {
    pub const STATUS: u8 = 1;
    pub const START: u8 = 1;
}

/// Field of `Summary`.
mod summary {
    pub const VALUE: u32 = 1;
}

/// Fields of `Summary.Value`.
mod value {
    pub const TAG: u32 = 1;
    pub const SIMPLE: u32 = 2;
}

/// The bytes of a message.
fn message(fields: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut to = CodedOutputStream::vec(&mut bytes);
    fields(&mut to).and_then(|()| to.flush()).map_err(|e| Error::new(format!("cannot encode an event: {e}")))?;
    drop(to);
    Ok(bytes)
}

/// A message in its frame.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let sums = [masked_crc(&length), masked_crc(message)].map(u32::to_le_bytes);
    [&length, &sums[0][..], message, &sums[1]].concat()
}

/// Seconds since 1970, or more where the folder has a file of that second or a later one: readers go by the order of names.
fn next_stamp(folder: &Path) -> Result<u64> {
    let mut stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for entry in std::fs::read_dir(folder).file(folder)? {
        let name = entry.file(folder)?.file_name();
        let old = name.to_str().and_then(|n| n.strip_prefix("events.out.tfevents.")?.split('.').next()?.parse().ok());
        stamp = old.map_or(stamp, |old: u64| stamp.max(old.saturating_add(1)));
    }
    Ok(stamp)
}

/// What a line of metrics about a step says: `train/loss` and so on.
pub fn of_step(report: &impl Serialize) -> Vec<(String, f32)> {
    numbers(report)
        .filter(|(name, _)| name != "step" && name != "epoch")
        .map(|(n, v)| (format!("train/{n}"), v))
        .collect()
}

/// What a line of metrics about an epoch says of the validation split: `valid/loss` and so on.
pub fn of_epoch(report: &impl Serialize) -> Vec<(String, f32)> {
    numbers(report).filter_map(|(name, v)| Some((format!("valid/{}", name.strip_prefix("valid_")?), v))).collect()
}

/// The fields that are numbers.
fn numbers(report: &impl Serialize) -> impl Iterator<Item = (String, f32)> {
    let fields = match serde_json::to_value(report) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()? as f32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_format() {
        assert_eq!(CRC.checksum(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
        // With this every event file starts that TensorFlow ever wrote: a message of 24 bytes follows.
        assert_eq!(&record(&[0; 24])[..12], b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22");
    }

    #[test]
    fn a_file_starts_with_its_version_and_the_session() {
        let folder = tempfile::tempdir().expect("a folder");
        let events = Events::create(folder.path(), 6).expect("writes");
        let bytes = std::fs::read(&events.path).expect("reads");
        assert_eq!(&bytes[..12], b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22");
        assert_eq!(&bytes[21..36], b"\x1a\x0dbrain.Event:2");
        // Step 7, and a session log whose status is START.
        assert_eq!(&bytes[40 + 12 + 9..40 + 12 + 15], [0x10, 7, 0x3a, 2, 8, 1]);
    }

    #[test]
    fn a_later_file_has_a_later_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = [0, 1, 2].map(|step| Events::create(folder.path(), step).expect("writes").path);
        assert!(names[0] < names[1] && names[1] < names[2], "{names:?}");
    }

    #[test]
    fn tags_come_from_the_fields() {
        let step = serde_json::json!({"step": 5, "epoch": 0, "loss": 0.5, "lr": 0.1, "ascent_loss": null});
        assert_eq!(of_step(&step), [("train/loss".to_owned(), 0.5), ("train/lr".to_owned(), 0.1)]);
        let epoch = serde_json::json!({"epoch": 0, "loss": 0.5, "valid_f1": 0.25});
        assert_eq!(of_epoch(&epoch), [("valid/f1".to_owned(), 0.25)]);
    }
}
