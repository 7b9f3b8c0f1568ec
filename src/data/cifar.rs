//! CIFAR-10 and CIFAR-100 in their binary form.
//!
//! A record is its label bytes (one for CIFAR-10; coarse, then fine for CIFAR-100) and 3,072 pixels, the red plane first.

use super::place::{below, packed};
use super::{Dataset, Images, Samples, Splits, check_labels};
use crate::error::{Error, IoContext, Result};
use std::fs;
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

/// What sets the two apart.
struct Variant {
    name: &'static str,
    folder: &'static str,
    /// The folder of the Python version.
    python: &'static str,
    /// A file of the other variant, and how that is given.
    other: &'static [(&'static str, &'static str)],
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
    classes: usize,
    /// Label bytes of a record; the last one is the class.
    label_bytes: usize,
}

/// Reads CIFAR-10 from a folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
pub(super) fn open_cifar10(dir: &Path) -> Result<Splits> {
    open(
        dir,
        &Variant {
            name: "CIFAR-10",
            folder: "cifar-10-batches-bin",
            python: "cifar-10-batches-py",
            other: &[("CIFAR-100, cifar100:DIR", "train.bin")],
            train: &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            test: "test_batch.bin",
            names: "batches.meta.txt",
            classes: 10,
            label_bytes: 1,
        },
    )
}

/// Reads CIFAR-100 from a folder with `train.bin` and `test.bin`.
pub(super) fn open_cifar100(dir: &Path) -> Result<Splits> {
    open(
        dir,
        &Variant {
            name: "CIFAR-100",
            folder: "cifar-100-binary",
            python: "cifar-100-python",
            other: &[("CIFAR-10, cifar10:DIR", "data_batch_1.bin")],
            train: &["train.bin"],
            test: "test.bin",
            names: "fine_label_names.txt",
            classes: 100,
            label_bytes: 2,
        },
    )
}

fn open(dir: &Path, variant: &Variant) -> Result<Splits> {
    let dir = folder(dir, variant)?;
    Ok(Splits {
        train: read(&dir, variant.train, variant)?,
        valid: None,
        test: Some(read(&dir, &[variant.test], variant)?),
        classes: class_names(&dir.join(variant.names), variant)?,
        named: dir.join(variant.names).is_file(),
        notes: Vec::new(),
    })
}

/// The folder itself, or the one that the archive unpacks into.
fn folder(dir: &Path, variant: &Variant) -> Result<PathBuf> {
    let unpacked = dir.join(variant.folder);
    if let Some(found) = [dir, &unpacked].into_iter().find(|d| d.join(variant.train[0]).is_file()) {
        return Ok(found.to_path_buf());
    }
    let missing = Error::new(format!("no {} here", variant.train[0])).in_file(dir);
    Err(missing.hint(instead(dir, variant)))
}

/// What a folder without the files holds instead, and what to do.
fn instead(dir: &Path, variant: &Variant) -> String {
    let has = |name: &str| dir.join(name).exists();
    let binary = format!("download the binary version of {} (not the Python one)", variant.name);
    let first = |name: &str| name == variant.train[0];
    if let Some(found) =
        below(dir, &first).or_else(|| dir.parent().filter(|p| p.join(variant.train[0]).is_file()).map(Path::to_owned))
    {
        return format!("give {}", found.display());
    }
    if let Some((other, there)) = variant.other.iter().find(|(_, file)| has(file)) {
        return format!("the folder holds {there}: it is {other}");
    }
    let python = [variant.python, "data_batch_1", "train"].into_iter().find(|name| has(name) && !has("train.bin"));
    if let Some(name) = python.filter(|n| *n != "train" || has("meta")) {
        return format!("{name} is of the Python version: {binary}");
    }
    packed(dir).unwrap_or_else(|| format!("{binary} and give the folder that has {}", variant.train[0]))
}

fn read(dir: &Path, files: &[&str], variant: &Variant) -> Result<Dataset> {
    let record = variant.label_bytes + 3 * PLANE;
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for name in files {
        let file = dir.join(name);
        let bytes = fs::read(&file).file(&file)?;
        if bytes.is_empty() || bytes.len() % record != 0 {
            let cause = format!("{} bytes are not a whole number of {record}-byte records", bytes.len());
            let hint = format!("the file is truncated or not binary {}: download it again", variant.name);
            return Err(Error::new(cause).in_file(file).hint(hint));
        }
        let from = labels.len();
        for record in bytes.chunks_exact(record) {
            let (label, planes) = record.split_at(variant.label_bytes);
            labels.extend(label.last().map(|l| i64::from(*l)));
            pixels.extend((0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]));
        }
        let hint = || format!("the file is damaged or not binary {}: download it again", variant.name);
        check_labels(&labels[from..], variant.classes).map_err(|e| e.in_file(&file).hint(hint()))?;
    }
    Ok(Dataset::new(Samples::Images(Images::new(pixels, SIDE, SIDE, 3)), labels))
}

/// One name per line, blank lines aside; numbers where the file is missing.
fn class_names(file: &Path, variant: &Variant) -> Result<Vec<String>> {
    if !file.is_file() {
        return Ok((0..variant.classes).map(|c| c.to_string()).collect());
    }
    let text = fs::read_to_string(file).file(file)?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if names.len() != variant.classes {
        let cause = format!("{} class names where {} has {}", names.len(), variant.name, variant.classes);
        return Err(Error::new(cause).in_file(file));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(labels: &[u8], red: u8, green: u8, blue: u8) -> Vec<u8> {
        [labels, &[red; PLANE], &[green; PLANE], &[blue; PLANE]].concat()
    }

    fn cifar10(dir: &Path) {
        for i in 0..5 {
            fs::write(dir.join(format!("data_batch_{}.bin", i + 1)), record(&[i], 1, 2, 3 + i)).unwrap();
        }
        fs::write(dir.join("test_batch.bin"), record(&[9], 0, 0, 0)).unwrap();
    }

    #[test]
    fn cifar10_is_read_in_file_order_with_interleaved_channels() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("cifar-10-batches-bin");
        fs::create_dir(&inner).unwrap();
        cifar10(&inner);
        let names: Vec<String> = (0..10).map(|i| format!("c{i}")).collect();
        fs::write(inner.join("batches.meta.txt"), names.join("\n") + "\n\n").unwrap();
        let splits = open_cifar10(dir.path()).unwrap();
        assert_eq!(splits.train.labels, [0, 1, 2, 3, 4]);
        assert_eq!(splits.test.unwrap().labels, [9]);
        assert_eq!(splits.classes, names);
        let Samples::Images(images) = splits.train.samples else { panic!() };
        let mut pixels = Vec::new();
        images.read(&[4], &mut pixels).unwrap();
        assert_eq!(pixels[..6], [1, 2, 7, 1, 2, 7]);
    }

    #[test]
    fn cifar100_takes_the_fine_label() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("train.bin"), record(&[3, 77], 0, 0, 0)).unwrap();
        fs::write(dir.path().join("test.bin"), record(&[3, 99], 0, 0, 0)).unwrap();
        let splits = open_cifar100(dir.path()).unwrap();
        assert_eq!(splits.train.labels, [77]);
        assert_eq!(splits.classes.len(), 100);
        fs::write(dir.path().join("test.bin"), record(&[3, 100], 0, 0, 0)).unwrap();
        let e = open_cifar100(dir.path()).unwrap_err();
        assert!(e.to_string().ends_with("test.bin: label 100 of sample 0 is outside 0..100"), "{e}");
    }

    #[test]
    fn truncated_and_missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let e = open_cifar10(dir.path()).unwrap_err();
        assert!(e.cause().contains("data_batch_1.bin") && e.hint_text().unwrap().contains("binary"));
        cifar10(dir.path());
        fs::write(dir.path().join("data_batch_3.bin"), [0; 3000]).unwrap();
        let e = open_cifar10(dir.path()).unwrap_err();
        assert!(e.to_string().contains("data_batch_3.bin: 3000 bytes"), "{e}");
        fs::remove_file(dir.path().join("data_batch_3.bin")).unwrap();
        assert!(open_cifar10(dir.path()).unwrap_err().to_string().contains("data_batch_3.bin"));
    }
}
