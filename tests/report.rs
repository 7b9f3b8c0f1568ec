//! What a run leaves for readers: its report, and events for TensorBoard.

use crate::common::{StopAfter, engine, repo};
use bisam::data::write_npz;
use bisam::ir::Tensor;
use bisam::report::{Run, html, write};
use bisam::step::Preset;
use bisam::train::{Recipe, train};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Samples with labels that follow from them, under names that start with `prefix`.
fn samples(arrays: &mut BTreeMap<String, Tensor>, prefix: &str, n: usize) {
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 10).collect();
    let x: Vec<f32> = labels.iter().flat_map(|l| (0..192).map(move |i| ((l * 7 + i) % 10) as f32 / 10.0)).collect();
    arrays.insert(format!("{prefix}x"), Tensor::new(&[n, 3, 8, 8], &x).expect("fits"));
    arrays.insert(format!("{prefix}labels"), Tensor::new(&[n], &labels).expect("fits"));
}

/// Trains for 11 steps, 8 to the epoch, or until stopped after `stop_after`.
fn run(out: &Path, resume: bool, stop_after: u64) -> bisam::Result<()> {
    std::fs::create_dir_all(out).expect("a folder");
    let data = out.with_file_name("data.npz");
    let mut arrays = BTreeMap::new();
    for (prefix, n) in [("", 64), ("valid_", 20), ("test_", 20)] {
        samples(&mut arrays, prefix, n);
    }
    write_npz(&data, &arrays).expect("writes");
    let recipe = Recipe {
        model: repo("models/tiny_bn.onnx"),
        data: format!("npz:{}", data.display()),
        batch_size: 8,
        steps: Some(11),
        log_every: 1,
        step: Preset::Bisam.options(),
        ..Recipe::default()
    };
    let stop = AtomicBool::new(false);
    train(&engine(), &recipe, out, resume, &stop, &mut StopAfter(stop_after, &stop)).map(drop)
}

#[test]
fn a_run_can_be_read_about() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("<run>");
    run(&out, false, 10).expect_err("stops");
    let unfinished = html("unfinished", &[Run::load(&out).expect("reads")], &[]).expect("is written");
    assert!(unfinished.contains("<dd>not finished</dd>"));
    run(&out, true, u64::MAX).expect("goes on");

    let file = write(&out).expect("is written");
    let page = std::fs::read_to_string(file).expect("reads");
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("summary.json")).expect("reads")).expect("is JSON");
    let accuracy = format!("test accuracy {:.2} %", 100.0 * summary["test_accuracy"].as_f64().expect("is there"));
    for text in
        [&accuracy, "<title>&lt;run&gt;</title>", "[step]", "batch-size = 8", "model = &quot;", "predicted class"]
    {
        assert!(page.contains(text), "{text} is missing");
    }
    for bad in ["<run>", "<script", "<link", "src=", "url(", "https://"] {
        assert!(!page.contains(bad), "{bad} is there");
    }
    let names = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(page.matches("http://").count(), names, "the report refers to something outside");
    assert!(names >= 5, "{names} figures");

    check_events(&out);
}

/// What TensorBoard makes of a folder that was resumed after step 10 holds every line of `metrics.jsonl` once.
fn check_events(out: &Path) {
    let mut files: Vec<_> = std::fs::read_dir(out).expect("reads").map(|e| e.expect("reads").path()).collect();
    files.retain(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("events.out.tfevents.")));
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    let mut scalars: BTreeMap<String, BTreeMap<i64, f32>> = BTreeMap::new();
    for (file, first) in files.iter().zip([1, 11]) {
        let events = events(&std::fs::read(file).expect("reads"));
        assert_eq!(events[0].version, "brain.Event:2");
        assert_eq!((events[1].starts, events[1].step), (true, first));
        for event in &events[2..] {
            assert!(event.step >= first && event.wall_time > 1.7e9, "{event:?}");
            for (tag, value) in &event.scalars {
                let before = scalars.entry(tag.clone()).or_default().insert(event.step, *value);
                assert_eq!(before, None, "{tag} of step {} is there twice", event.step);
            }
        }
    }
    let steps = |tag: &str| scalars[tag].keys().copied().collect::<Vec<_>>();
    for tag in ["train/loss", "train/ascent_loss", "train/accuracy", "train/lr"] {
        assert_eq!(steps(tag), (1..=11).collect::<Vec<_>>(), "{tag}");
    }
    for tag in ["valid/loss", "valid/accuracy", "valid/f1", "valid/matthews"] {
        assert_eq!(steps(tag), [8, 11], "{tag}");
    }
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("reads");
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().expect("a line")).expect("is JSON");
    assert_eq!(scalars["train/loss"][&1], first["loss"].as_f64().expect("is there") as f32);
}

#[derive(Debug, Default)]
struct Event {
    wall_time: f64,
    step: i64,
    version: String,
    starts: bool,
    scalars: Vec<(String, f32)>,
}

/// The events of a file, every checksum verified.
fn events(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        assert_eq!(bytes[8..12], masked_crc(&bytes[..8]).to_le_bytes());
        let message = &bytes[12..12 + length];
        assert_eq!(bytes[12 + length..16 + length], masked_crc(message).to_le_bytes());
        events.push(event(message));
        bytes = &bytes[16 + length..];
    }
    events
}

/// CRC-32C bit by bit, masked as TFRecords want it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn event(bytes: &[u8]) -> Event {
    let mut event = Event::default();
    for (field, value) in fields(bytes) {
        match field {
            1 => event.wall_time = f64::from_le_bytes(value.try_into().expect("8 bytes")),
            2 => event.step = i64::from_le_bytes(value.try_into().expect("8 bytes")),
            3 => event.version = String::from_utf8(value).expect("text"),
            5 => event.scalars.extend(fields(&value).into_iter().map(|(_, value)| scalar(&value))),
            7 => event.starts = fields(&value) == [(1, 1u64.to_le_bytes().to_vec())],
            other => panic!("field {other}"),
        }
    }
    event
}

fn scalar(bytes: &[u8]) -> (String, f32) {
    let fields = fields(bytes);
    assert_eq!(fields.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2]);
    let tag = String::from_utf8(fields[0].1.clone()).expect("text");
    (tag, f32::from_le_bytes(fields[1].1[..].try_into().expect("4 bytes")))
}

/// The fields of a message: number, and the bytes of the value; a varint is written out in 8.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|b| b & 0x80 == 0).expect("an end") + 1;
        let (number, rest) = bytes.split_at(length);
        *bytes = rest;
        number.iter().rev().fold(0, |sum, b| (sum << 7) | u64::from(b & 0x7f))
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => varint(&mut bytes).to_le_bytes().to_vec(),
            kind => {
                let length = if kind == 2 { varint(&mut bytes) as usize } else { [8, 0, 0, 0, 4][kind as usize - 1] };
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
        };
        fields.push((key >> 3, value));
    }
    fields
}
