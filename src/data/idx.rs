//! The MNIST family (MNIST, Fashion-MNIST, KMNIST, EMNIST): IDX files, gzipped or not.
//!
//! An IDX file is `0, 0, element type, rank`, the dimensions as big-endian 32-bit numbers, and the elements.

use super::place::{below, packed};
use super::{Dataset, Images, Samples, Splits, numbered_classes};
use crate::error::{Error, IoContext, Result};
use flate2::read::MultiGzDecoder;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Element type of unsigned bytes.
const BYTES: u8 = 8;

/// Reads `train-images…`, `train-labels…` and, where they are there, `t10k-images…` and `t10k-labels…` (or `test-…`).
pub(super) fn open(dir: &Path) -> Result<Splits> {
    let files = list(dir)?;
    let hint = "the usual names are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and \
                t10k-labels-idx1-ubyte, each with or without .gz";
    let need = |found: Option<PathBuf>, what: &str| {
        found.ok_or_else(|| {
            Error::new(format!("no {what} here")).in_file(dir).hint(instead(dir).unwrap_or(hint.to_owned()))
        })
    };
    let train_images = need(find(&files, &["train"], "images-idx3-ubyte")?, "training images")?;
    let train_labels = need(find(&files, &["train"], "labels-idx1-ubyte")?, "training labels")?;
    let train = read(&train_images, &train_labels)?;
    let mut labelled = vec![(train_labels.as_path(), &train)];

    let test_images = find(&files, &["t10k", "test"], "images-idx3-ubyte")?;
    let test_labels = find(&files, &["t10k", "test"], "labels-idx1-ubyte")?;
    let test = match (test_images, test_labels) {
        (None, None) => None,
        (images, labels) => {
            let labels = need(labels, "test labels")?;
            Some((read(&need(images, "test images")?, &labels)?, labels))
        }
    };
    labelled.extend(test.iter().map(|(set, file)| (file.as_path(), set)));
    let classes = numbered_classes(&labelled)?;
    Ok(Splits { train, valid: None, test: test.map(|(set, _)| set), classes, named: false, notes: Vec::new() })
}

/// Where the files are that this folder does not hold.
fn instead(dir: &Path) -> Option<String> {
    let images = |name: &str| name.to_lowercase().replace(".idx", "-idx").contains("train-images-idx3-ubyte");
    let found = below(dir, &images).map(|found| format!("give idx:{}", found.display()));
    found.or_else(|| packed(dir))
}

/// The files of the folder, or of `raw` in it, where torchvision keeps them.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let raw = dir.join("raw");
    let dir = if raw.is_dir() { &raw } else { dir };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).file(dir)? {
        files.push(entry.file(dir)?.path());
    }
    files.sort();
    Ok(files)
}

/// The file of one part, such as `emnist-letters-train-images-idx3-ubyte.gz`. A plain file is preferred to its gzipped
/// twin.
fn find(files: &[PathBuf], parts: &[&str], kind: &str) -> Result<Option<PathBuf>> {
    let wanted: Vec<String> = parts.iter().map(|part| format!("{part}-{kind}")).collect();
    let mut found: Vec<(String, &PathBuf)> = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase().replace(".idx", "-idx");
        let stem = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
        let fits =
            wanted.iter().any(|w| stem.strip_suffix(w.as_str()).is_some_and(|p| p.is_empty() || p.ends_with('-')));
        if fits && found.iter().all(|(other, _)| *other != stem) {
            found.push((stem, file));
        }
    }
    if let [(_, first), (_, second), ..] = found[..] {
        let cause = format!("both {} and {} could be meant", first.display(), second.display());
        return Err(Error::new(cause).hint("keep one data set per folder"));
    }
    Ok(found.first().map(|(_, file)| (*file).clone()))
}

fn read(images: &Path, labels: &Path) -> Result<Dataset> {
    let (shape, pixels) = parse(images, 3)?;
    let (count, classes) = parse(labels, 1)?;
    if shape[0] != count[0] {
        let cause = format!("{} labels for the {} images of {}", count[0], shape[0], images.display());
        return Err(Error::new(cause).in_file(labels));
    }
    let images = Images::new(pixels, shape[1], shape[2], 1);
    Ok(Dataset::new(Samples::Images(images), classes.into_iter().map(i64::from).collect()))
}

/// Dimensions and elements of an IDX file of bytes with `rank` dimensions.
fn parse(file: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    parse_bytes(fs::read(file).file(file)?, rank).map_err(|e| e.in_file(file))
}

fn parse_bytes(raw: Vec<u8>, rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut bytes = raw;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        let unpacked = MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain);
        unpacked.map_err(|e| Error::new(format!("the gzip data is damaged: {e}")).hint("download the file again"))?;
        bytes = plain;
    }
    let head = 4 + 4 * rank;
    if bytes.len() < head {
        crate::bail!("{} bytes are too few for an IDX header", bytes.len());
    }
    if bytes[..4] != [0, 0, BYTES, rank as u8] {
        let cause =
            format!("magic number {:02x?} is not that of an IDX file of bytes with {rank} dimensions", &bytes[..4]);
        return Err(Error::new(cause));
    }
    let size = |b: &[u8]| b.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
    let shape: Vec<usize> = bytes[4..head].chunks_exact(4).map(size).collect();
    let want = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let have = bytes.len() - head;
    if want != Some(have) {
        let cause = format!("{have} bytes of data where the header says {shape:?}");
        return Err(Error::new(cause).hint("the file is truncated or damaged: download it again"));
    }
    bytes.drain(..head);
    Ok((shape, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
        let dims: Vec<u8> = shape.iter().flat_map(|d| d.to_be_bytes()).collect();
        [&[0, 0, BYTES, shape.len() as u8], &dims[..], data].concat()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn plain_and_gzipped_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: Vec<u8>| fs::write(dir.path().join(name), bytes).unwrap();
        put("train-images-idx3-ubyte.gz", gzip(&idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6])));
        put("train-labels.idx1-ubyte", idx(&[2], &[4, 0]));
        let splits = open(dir.path()).unwrap();
        assert_eq!((splits.train.labels.as_slice(), &splits.test), (&[4, 0][..], &None));
        assert_eq!(splits.classes, ["0", "1", "2", "3", "4"]);
        let Samples::Images(images) = &splits.train.samples else { panic!() };
        assert_eq!(*images, Images::new(vec![1, 2, 3, 4, 5, 6], 1, 3, 1));

        put("t10k-images-idx3-ubyte", idx(&[1, 1, 3], &[7, 8, 9]));
        assert!(open(dir.path()).unwrap_err().to_string().contains("no test labels"));
        put("t10k-labels-idx1-ubyte", idx(&[1], &[5]));
        let splits = open(dir.path()).unwrap();
        assert_eq!((splits.test.unwrap().labels, splits.classes.len()), (vec![5], 6));
        put("emnist-letters-train-images-idx3-ubyte", idx(&[0, 1, 3], &[]));
        assert!(open(dir.path()).unwrap_err().to_string().contains("could be meant"));
    }

    #[test]
    fn damage_is_named() {
        let cause = |raw: Vec<u8>, rank| parse_bytes(raw, rank).unwrap_err().to_string();
        assert!(cause(idx(&[2], &[1]), 1).contains("1 bytes of data where the header says [2]"));
        assert!(cause(idx(&[2], &[1, 2]), 3).contains("too few"));
        assert!(cause(idx(&[1, 1, 8], &[0; 8]), 1).contains("magic number [00, 00, 08, 03]"));
        assert!(cause(idx(&[u32::MAX; 3], &[]), 3).contains("header says"));
        let packed = gzip(&idx(&[300], &[7; 300]));
        assert!(cause(packed[..packed.len() - 6].to_vec(), 1).contains("gzip"));
    }

    #[test]
    fn an_empty_folder_lists_the_usual_names() {
        let dir = tempfile::tempdir().unwrap();
        let e = open(dir.path()).unwrap_err();
        assert!(e.cause().contains("training images") && e.hint_text().unwrap().contains("t10k"));
    }
}
