//! NumPy archives: arrays named as the model's inputs, `labels`, and the same with `valid_` and `test_` before the name.

use super::{Dataset, Samples, Splits, numbered_classes};
use crate::error::{Error, IoContext, Result};
use crate::ir::{DType, Element, Tensor};
use ndarray::{ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadNpyError, ReadNpzError};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::ZipArchive;
use zip::read::ZipFile;
use zip::result::ZipError;

const LABELS: &str = "labels";

type Reader = NpzReader<BufReader<File>>;

/// Reads every array of the archive. A prefix names a split only when there are labels for it, so that a model input
/// may be called `test_x`.
pub(super) fn open(path: &Path) -> Result<Splits> {
    let splits = split(read_npz(path)?).map_err(|e| e.in_file(path))?;
    let Parts { train, valid, test } = splits;
    let sets: Vec<(&Path, &Dataset)> =
        [Some(&train), valid.as_ref(), test.as_ref()].into_iter().flatten().map(|s| (path, s)).collect();
    let classes = numbered_classes(&sets)?;
    Ok(Splits { train, valid, test, classes, notes: Vec::new() })
}

/// Every array of an npz file, by name.
///
/// # Errors
/// A file that cannot be read, or an array of a type this crate has no tensors of.
pub fn read_npz(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let open = || File::open(path).file(path).map(BufReader::new);
    let damaged = |e: ZipError| {
        let hint = "save the file again with np.savez, or copy it again";
        Error::new(format!("not an npz archive, or cut short ({e})")).in_file(path).hint(hint)
    };
    let mut archive = ZipArchive::new(open()?).map_err(damaged)?;
    for i in 0..archive.len() {
        check_size(archive.by_index(i).map_err(damaged)?).map_err(|e| e.in_file(path))?;
    }
    let mut reader = NpzReader::new(open()?).map_err(|e| Error::new(e.to_string()).in_file(path))?;
    let mut arrays = BTreeMap::new();
    for name in reader.names().map_err(|e| Error::new(e.to_string()).in_file(path))? {
        let array = read(&mut reader, &name).map_err(|e| e.in_file(path))?;
        arrays.insert(name, array);
    }
    Ok(arrays)
}

/// Refuses an array whose header declares more elements than it has bytes: the reader would ask for memory for all of them.
fn check_size(entry: ZipFile<'_, impl Read>) -> Result<()> {
    let (name, bytes) = (entry.name().trim_end_matches(".npy").to_owned(), entry.size());
    let mut head = Vec::new();
    // A header that cannot be read is left to the reader.
    let _ = entry.take(1 << 16).read_to_end(&mut head);
    let head = String::from_utf8_lossy(&head);
    let shape = head.split_once("'shape'").and_then(|(_, s)| Some(s.split_once('(')?.1.split_once(')')?.0));
    let shape = shape.unwrap_or_default();
    let dims: Vec<u64> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    // The other dimensions of an empty array must be possible too.
    let elements = dims.iter().filter(|d| **d > 0).try_fold(1u64, |n, d| n.checked_mul(*d));
    if elements.is_none_or(|n| n > i64::MAX as u64 || n > bytes && !dims.contains(&0)) {
        let cause = format!("array `{name}` cannot have shape ({shape}) in {bytes} bytes");
        return Err(Error::new(cause).hint("the file is damaged: save it again with np.savez"));
    }
    Ok(())
}

/// Writes arrays as an npz file, to a temporary name first.
///
/// # Errors
/// An I/O error. Half floats are written as float32, integers as int64.
pub fn write_npz(path: &Path, arrays: &BTreeMap<String, Tensor>) -> Result<()> {
    let fail = |e: String| Error::new(e).in_file(path);
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut writer = ndarray_npy::NpzWriter::new_compressed(&mut bytes);
    for (name, t) in arrays {
        let shape = IxDyn(t.shape());
        let written = match t.dtype() {
            DType::F64 => {
                let a = ArrayD::from_shape_vec(shape, t.to_f64()).map_err(|e| fail(e.to_string()))?;
                writer.add_array(name.as_str(), &a)
            }
            d if d.is_float() => {
                let a = ArrayD::from_shape_vec(shape, t.to_f32()).map_err(|e| fail(e.to_string()))?;
                writer.add_array(name.as_str(), &a)
            }
            _ => {
                let a =
                    ArrayD::from_shape_vec(shape, t.to_i64().unwrap_or_default()).map_err(|e| fail(e.to_string()))?;
                writer.add_array(name.as_str(), &a)
            }
        };
        written.map_err(|e| fail(e.to_string()))?;
    }
    writer.finish().map_err(|e| fail(e.to_string()))?;
    crate::onnx::write_atomically(path, bytes.get_ref())
}

struct Parts {
    train: Dataset,
    valid: Option<Dataset>,
    test: Option<Dataset>,
}

fn split(mut arrays: BTreeMap<String, Tensor>) -> Result<Parts> {
    let mut take = |prefix: &str| -> Result<Option<Dataset>> {
        if !arrays.contains_key(&format!("{prefix}{LABELS}")) {
            return Ok(None);
        }
        let names: Vec<String> = arrays.keys().filter(|n| n.starts_with(prefix)).cloned().collect();
        let own = names.iter().filter_map(|n| Some((n[prefix.len()..].to_owned(), arrays.remove(n)?))).collect();
        dataset(own, prefix).map(Some)
    };
    let (valid, test) = (take("valid_")?, take("test_")?);
    let Some(train) = take("")? else {
        let cause = format!("there is no array `{LABELS}`");
        return Err(Error::new(cause).hint("np.savez(FILE, **{model_input: array}, labels=classes)"));
    };
    for (part, set) in [("valid_", &valid), ("test_", &test)] {
        let Some(set) = set else { continue };
        let missing = names(&train).into_iter().find(|n| !names(set).contains(n));
        if let Some(name) = missing {
            crate::bail!("array `{name}` has no `{part}{name}` although there are `{part}{LABELS}`");
        }
    }
    Ok(Parts { train, valid, test })
}

fn names(set: &Dataset) -> Vec<&String> {
    match &set.samples {
        Samples::Arrays(arrays) => arrays.keys().collect(),
        Samples::Images(_) => Vec::new(),
    }
}

fn dataset(mut arrays: BTreeMap<String, Tensor>, prefix: &str) -> Result<Dataset> {
    let labels = arrays.remove(LABELS);
    let label_type = labels.as_ref().map(Tensor::ty);
    let one_axis = labels.filter(|l| l.shape().len() == 1 && l.dtype() != DType::Bool);
    let Some(labels) = one_axis.and_then(|l| l.to_i64()) else {
        let ty = label_type.map_or_else(|| "missing".to_owned(), |t| t.to_string());
        let hint =
            "labels are class numbers, one integer per sample: int64 [N] (for one-hot rows, np.argmax(…, axis=1))";
        return Err(Error::new(format!("array `{prefix}{LABELS}` is {ty}")).hint(hint));
    };
    if arrays.is_empty() {
        crate::bail!("there is `{prefix}{LABELS}` but no input array");
    }
    for (name, array) in &arrays {
        if array.shape().first() != Some(&labels.len()) {
            crate::bail!("array `{prefix}{name}` is {}, but there are {} labels", array.ty(), labels.len());
        }
    }
    Ok(Dataset::new(Samples::Arrays(arrays), labels))
}

/// Reads one array of whatever type it is.
fn read(reader: &mut Reader, name: &str) -> Result<Tensor> {
    macro_rules! first_that_fits {
        ($($element:ty),*) => { $( if let Some(tensor) = read_as::<$element>(reader, name)? { return Ok(tensor); } )* };
    }
    first_that_fits!(f32, f64, i64, i32, u8, i8, i16, u16, u32, u64);
    if let Some(array) = try_read::<bool>(reader, name)? {
        let bytes = array.iter().map(|b| u8::from(*b)).collect();
        return Tensor::from_bytes(DType::Bool, array.shape(), bytes);
    }
    let hint = "save it with a NumPy type from float32, float64, bool and the 8- to 64-bit integers";
    Err(Error::new(format!("array `{name}` has an element type that cannot be read")).hint(hint))
}

fn read_as<T: Element + ndarray_npy::ReadableElement>(reader: &mut Reader, name: &str) -> Result<Option<Tensor>> {
    let Some(array) = try_read::<T>(reader, name)? else { return Ok(None) };
    let array = array.as_standard_layout();
    Tensor::new(array.shape(), array.as_slice().unwrap_or_default()).map(Some)
}

/// The array, or `None` when its elements are of another type.
fn try_read<T: ndarray_npy::ReadableElement>(reader: &mut Reader, name: &str) -> Result<Option<ArrayD<T>>> {
    match reader.by_name::<OwnedRepr<T>, IxDyn>(name) {
        Ok(array) => Ok(Some(array)),
        Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => Ok(None),
        Err(e) => Err(Error::new(format!("array `{name}` cannot be read: {e}"))
            .hint("the file is damaged: save it again with np.savez")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, array};
    use ndarray_npy::{NpzWriter, WritableElement};

    struct Archive(NpzWriter<File>, tempfile::NamedTempFile);

    impl Archive {
        fn new() -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            Self(NpzWriter::new_compressed(file.reopen().unwrap()), file)
        }

        fn with<T: WritableElement, D: ndarray::Dimension>(mut self, name: &str, a: Array<T, D>) -> Self {
            self.0.add_array(name, &a).unwrap();
            self
        }

        fn open(self) -> Result<Splits> {
            self.0.finish().unwrap();
            open(self.1.path())
        }
    }

    #[test]
    fn splits_types_and_fortran_order_are_read() {
        let column_major = array![[1f32, 2., 3.], [4., 5., 6.]].reversed_axes();
        let splits = Archive::new()
            .with("x", column_major)
            .with("test_x", array![[7f64, 8.]])
            .with("mask", array![true, false, true])
            .with("test_mask", array![true])
            .with("test_valid_x", array![[9u8]])
            .with("valid_x", array![[1u8], [2], [3]])
            .with("labels", array![0i32, 2, 1])
            .with("test_labels", array![4u8])
            .open()
            .unwrap();
        let Samples::Arrays(arrays) = &splits.train.samples else { panic!() };
        assert_eq!(arrays["x"], Tensor::new(&[3, 2], &[1f32, 4., 2., 5., 3., 6.]).unwrap());
        assert_eq!(arrays["mask"].dtype(), DType::Bool);
        assert!(arrays.contains_key("valid_x"), "an input's own name, since there are no valid_labels");
        assert_eq!(splits.classes.len(), 5);
        assert!(splits.valid.is_none());
        assert_eq!(splits.test.unwrap().labels, [4]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = || array![[1f32], [2.]];
        let cause = |a: Archive| a.open().unwrap_err().to_string();
        assert!(cause(Archive::new().with("x", x())).contains("no array `labels`"));
        assert!(cause(Archive::new().with("labels", array![1i64])).contains("no input array"));
        assert!(
            cause(Archive::new().with("x", x()).with("labels", array![1i64]))
                .contains("`x` is f32[2,1], but there are 1")
        );
        assert!(cause(Archive::new().with("x", x()).with("labels", array![1f32, 2.])).contains("`labels` is f32[2]"));
        let e = cause(Archive::new().with("x", x()).with("labels", array![1i64, -1]));
        assert!(e.contains("label -1 of sample 1"), "{e}");
        let e = cause(Archive::new().with("x", x()).with("labels", array![1i64 << 40, 0]));
        assert!(e.contains("outside 0.."), "{e}");
        let one = || Archive::new().with("x", x()).with("labels", array![0i64, 1]);
        assert!(cause(one().with("test_labels", array![0i64])).contains("`test_labels` but no input"));
        assert!(cause(one().with("test_y", x()).with("test_labels", array![0i64, 1])).contains("no `test_x`"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a zip").unwrap();
        assert!(open(file.path()).unwrap_err().to_string().contains("not an npz archive"));
        let empty = Archive::new().with("x", Array::<f32, _>::zeros((0, 30, 64)));
        assert!(
            cause(empty.with("labels", array![0i64])).contains("`x` is f32[0,30,64]"),
            "an empty array is no damage"
        );
    }
}
