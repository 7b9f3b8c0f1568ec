//! NumPy archives: arrays named as the model's inputs, `labels`, and the same with `valid_` and `test_` before the name. Labels may be
//! missing: a model's own loss may need none.

use super::folders::Part;
use super::{Dataset, Samples, Splits, numbered_classes};
use crate::error::{Error, IoContext, Result};
use crate::ir::{DType, Declared, Element, Tensor};
use crate::wording::{count, list, nearest};
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
/// may be called `test_x`. `inputs` are the model's: where one is called `labels` and takes no classes, so does that array.
pub(super) fn open(path: &Path, inputs: &[(String, Declared)]) -> Result<Splits> {
    let mut notes = Vec::new();
    let splits = split(read_npz(path)?, inputs, &mut notes).map_err(|e| e.in_file(path))?;
    let Parts { train, valid, test } = splits;
    let labelled = [Some(&train), valid.as_ref(), test.as_ref()].into_iter().flatten().filter(|s| s.labelled);
    let sets: Vec<(&Path, &Dataset)> = labelled.map(|s| (path, s)).collect();
    let classes = numbered_classes(&sets)?;
    Ok(Splits { train, valid, test, classes, named: false, notes })
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
    crate::files::write_atomically(path, bytes.get_ref())
}

struct Parts {
    train: Dataset,
    valid: Option<Dataset>,
    test: Option<Dataset>,
}

/// What is said of these arrays where labels are needed and there are none.
pub(super) fn without_labels(arrays: &[String]) -> Error {
    Error::new(format!("there is no array `{LABELS}`")).hint(rename(arrays))
}

fn split(
    mut arrays: BTreeMap<String, Tensor>,
    inputs: &[(String, Declared)],
    notes: &mut Vec<String>,
) -> Result<Parts> {
    let is_label = |n: &String| n.strip_suffix(LABELS).is_some_and(|prefix| ["", "valid_", "test_"].contains(&prefix));
    // A model's own input of this name that takes no classes gets the array as it is.
    let own_input = inputs.iter().any(|(name, declared)| {
        let classes = arrays.get(LABELS).is_none_or(|a| class_numbers(a, LABELS, &mut Vec::new()).is_ok());
        name == LABELS && (declared.dtype.is_float() || !classes)
    });
    if own_input || !arrays.keys().any(is_label) {
        return unlabelled(arrays, inputs);
    }
    let all: Vec<String> = arrays.keys().cloned().collect();
    let mut take = |prefix: &str| -> Result<Option<Dataset>> {
        if !arrays.contains_key(&format!("{prefix}{LABELS}")) {
            return Ok(None);
        }
        let names: Vec<String> = arrays.keys().filter(|n| n.starts_with(prefix)).cloned().collect();
        let own = names.iter().filter_map(|n| Some((n[prefix.len()..].to_owned(), arrays.remove(n)?))).collect();
        dataset(own, prefix, notes).map(Some)
    };
    let (valid, test) = (take("valid_")?, take("test_")?);
    let Some(train) = take("")? else {
        return Err(without_labels(&all));
    };
    let names_split = |n: &&String| n.to_lowercase().strip_suffix("_labels").and_then(Part::of).is_some();
    if let Some(other) = names(&train).into_iter().find(names_split) {
        let hint = "arrays of a validation or test set begin with `valid_` or `test_`: rename them, or take them out";
        return Err(Error::new(format!("array `{other}` names no split that is known")).hint(hint));
    }
    for (part, set) in [("valid_", &valid), ("test_", &test)] {
        let Some(set) = set else { continue };
        let missing = names(&train).into_iter().find(|n| !names(set).contains(n));
        if let Some(name) = missing {
            let cause = format!("array `{name}` has no `{part}{name}` although there are `{part}{LABELS}`");
            let there: Vec<String> = names(set).into_iter().map(|n| format!("{part}{n}")).collect();
            return Err(Error::new(cause).hint(format!("arrays of this part are: {}", list(&there))));
        }
    }
    Ok(Parts { train, valid, test })
}

/// What to do about an archive without labels.
fn rename(all: &[String]) -> String {
    let usual = ["y_train", "train_labels", "label", "target", "targets", "classes", "y"];
    let named = |n: &&String| usual.contains(&n.to_lowercase().as_str());
    let meant = nearest(LABELS, all).or_else(|| all.iter().find(named).map(String::as_str));
    let meant = meant.map_or_else(String::new, |n| format!("is `{n}` meant? "));
    let there =
        if all.is_empty() { "the archive is empty".to_owned() } else { format!("its arrays are: {}", list(all)) };
    format!("{meant}{there}; save with np.savez(FILE, **{{model_input: array, {LABELS:?}: classes}})")
}

/// The parts of an archive without labels: `valid_x` is of the validation set where there is an `x`, unless a model's input is called so.
fn unlabelled(mut arrays: BTreeMap<String, Tensor>, inputs: &[(String, Declared)]) -> Result<Parts> {
    let all: Vec<String> = arrays.keys().cloned().collect();
    let mut take = |prefix: &str| -> Result<Option<Dataset>> {
        let named = |n: &&String| n.strip_prefix(prefix).is_some_and(|rest| all.iter().any(|a| a == rest));
        let of_part = |n: &&String| prefix.is_empty() || named(n) && !inputs.iter().any(|(input, _)| input == *n);
        let names: Vec<&String> = all.iter().filter(of_part).filter(|n| arrays.contains_key(*n)).collect();
        let own: BTreeMap<String, Tensor> =
            names.iter().filter_map(|n| Some((n[prefix.len()..].to_owned(), arrays.remove(*n)?))).collect();
        let Some(first) = own.values().next() else { return Ok(None) };
        let n = first.shape().first().copied().unwrap_or(1);
        if let Some((name, array)) = own.iter().find(|(_, a)| a.shape().first() != Some(&n)) {
            crate::bail!("array `{prefix}{name}` is {}, but `{}` has {n} samples", array.ty(), names[0]);
        }
        Ok(Some(Dataset::unlabelled(Samples::Arrays(own), n)))
    };
    let (valid, test) = (take("valid_")?, take("test_")?);
    let train = take("")?.ok_or_else(|| Error::new("there are no arrays").hint("name them as the model's inputs"))?;
    for (part, set) in [("valid_", &valid), ("test_", &test)] {
        let of_set = set.as_ref().map(names).unwrap_or_default();
        let missing = names(&train).into_iter().find(|n| !of_set.contains(n));
        if let (Some(name), Some(other)) = (missing, of_set.first()) {
            crate::bail!("array `{name}` has no `{part}{name}` although there is `{part}{other}`");
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

fn dataset(mut arrays: BTreeMap<String, Tensor>, prefix: &str, notes: &mut Vec<String>) -> Result<Dataset> {
    let Some(array) = arrays.remove(LABELS) else { crate::bail!("array `{prefix}{LABELS}` is missing") };
    let labels = class_numbers(&array, &format!("{prefix}{LABELS}"), notes)?;
    if arrays.is_empty() {
        crate::bail!("there is `{prefix}{LABELS}` but no input array");
    }
    for (name, array) in &arrays {
        if array.shape().first() != Some(&labels.len()) {
            let labels = count(labels.len(), "label");
            let cause = match array.shape().first() {
                Some(rows) => format!(
                    "array `{prefix}{name}` is {} and has {}, but there is {labels}",
                    array.ty(),
                    count(*rows, "row")
                ),
                None => format!("array `{prefix}{name}` is a single number, but there is {labels}"),
            };
            let cause = if labels.starts_with("1 ") { cause } else { cause.replace("there is", "there are") };
            let hint = match ["valid_", "test_"].iter().find(|p| prefix.is_empty() && name.starts_with(*p)) {
                Some(part) => format!("add `{part}{LABELS}`, so that it is part of that set, or take it out"),
                None => "the first axis of every array is the sample".to_owned(),
            };
            return Err(Error::new(cause).hint(hint));
        }
    }
    Ok(Dataset::new(Samples::Arrays(arrays), labels))
}

/// Class numbers from an array that has them one a sample, as integers, as whole floats or as one-hot rows.
///
/// # Errors
/// Anything that could mean something else: says what it looks like.
fn class_numbers(array: &Tensor, name: &str, notes: &mut Vec<String>) -> Result<Vec<i64>> {
    let refuse = |why: &str, hint: &str| {
        let at = format!("array `{name}` is {}{why}", array.ty());
        Err(Error::new(at)
            .hint(format!("{hint}; labels are class numbers from 0 on, one integer per sample: int64 [N]")))
    };
    let values = array.to_f64();
    let rows = array.shape().first().copied().unwrap_or_default();
    let width = values.len().checked_div(rows).unwrap_or(1);
    let kind = if array.shape().len() > 1 { format!(" {:?}", array.shape()) } else { String::new() };
    if array.shape().is_empty() || array.shape().iter().skip(1).filter(|d| **d != 1).count() > 1 {
        return refuse(", which is not one number per sample", "labels of another shape are not read");
    }
    if width > 1 {
        let one_hot = |row: &[f64]| row.iter().all(|v| *v == 0.0 || *v == 1.0) && row.iter().sum::<f64>() == 1.0;
        if let Some(bad) = values.chunks(width).position(|row| !one_hot(row)) {
            let why = format!(", but row {bad} is not one-hot");
            return refuse(&why, "np.argmax(labels, axis=1) gives the class of the highest value");
        }
        notes.push(format!("`{name}`{kind} is read as one-hot rows of {width} classes"));
        return Ok(values
            .chunks(width)
            .map(|row| row.iter().position(|v| *v == 1.0).unwrap_or_default() as i64)
            .collect());
    }
    if !array.dtype().is_float() {
        let how = if array.dtype() == DType::Bool {
            " is read as classes 0 and 1"
        } else {
            " is read as one label per sample"
        };
        if array.dtype() == DType::Bool || !kind.is_empty() {
            notes.push(format!("`{name}`{kind}{how}"));
        }
        return Ok(array.to_i64().unwrap_or_else(|| values.iter().map(|v| *v as i64).collect()));
    }
    if let Some(at) = values.iter().position(|v| v.fract() != 0.0 || !v.is_finite() || v.abs() > 1e15) {
        let why = format!(", and label {} of sample {at} is no class number", values[at]);
        return refuse(&why, "scores and probabilities are not learned as classes");
    }
    notes.push(format!("`{name}` is {} and is read as whole numbers", array.ty()));
    Ok(values.iter().map(|v| *v as i64).collect())
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
    let hint = if name.ends_with(LABELS) {
        "names of classes become numbers by np.unique(labels, return_inverse=True)[1]"
    } else {
        "save it with a NumPy type from float32, float64, bool and the 8- to 64-bit integers"
    };
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
            open(self.1.path(), &[])
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
    fn labels_of_other_forms_are_read_where_they_mean_one_thing() {
        let read = |a: Archive| {
            let splits = a.with("x", array![[1f32], [2.], [3.]]).open().unwrap();
            (splits.train.labels, splits.notes.len())
        };
        let new = Archive::new;
        assert_eq!(read(new().with("labels", array![2i64, 0, 1])), (vec![2, 0, 1], 0));
        assert_eq!(read(new().with("labels", array![2f64, 0., 1.])), (vec![2, 0, 1], 1));
        assert_eq!(read(new().with("labels", array![[2i32], [0], [1]])), (vec![2, 0, 1], 1));
        assert_eq!(read(new().with("labels", array![[0f32, 0., 1.], [1., 0., 0.], [0., 1., 0.]])), (vec![2, 0, 1], 1));
        assert_eq!(read(new().with("labels", array![true, false, true])), (vec![1, 0, 1], 1));
    }

    #[test]
    fn mistakes_are_named() {
        let x = || array![[1f32], [2.]];
        let cause = |a: Archive| a.open().unwrap_err().to_string();
        let unlabelled = Archive::new().with("x", x()).open().unwrap();
        assert!(unlabelled.train.check_labelled().unwrap_err().to_string().contains("no array `labels`"));
        let one_test = Archive::new().with("x", x()).with("test_labels", array![0i64, 1]).with("test_x", x());
        assert!(cause(one_test).contains("no array `labels`"));
        assert!(cause(Archive::new().with("labels", array![1i64])).contains("no input array"));
        assert!(
            cause(Archive::new().with("x", x()).with("labels", array![1i64]))
                .contains("`x` is f32[2,1] and has 2 rows, but there is 1 label")
        );
        let e = cause(Archive::new().with("x", x()).with("labels", array![1f32, 2.5]));
        assert!(e.contains("`labels` is f32[2], and label 2.5 of sample 1 is no class number"), "{e}");
        let e = cause(Archive::new().with("x", x()).with("labels", array![[0.1f32, 0.9], [0., 1.]]));
        assert!(e.contains("`labels` is f32[2,2], but row 0 is not one-hot"), "{e}");
        let e = cause(Archive::new().with("x", x()).with("labels", array![1i64, -1]));
        assert!(e.contains("label -1 of sample 1 is negative"), "{e}");
        let e = cause(Archive::new().with("x", x()).with("labels", array![1i64 << 40, 0]));
        assert!(e.contains("outside 0.."), "{e}");
        let one = || Archive::new().with("x", x()).with("labels", array![0i64, 1]);
        assert!(cause(one().with("test_labels", array![0i64])).contains("`test_labels` but no input"));
        assert!(cause(one().with("test_y", x()).with("test_labels", array![0i64, 1])).contains("no `test_x`"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a zip").unwrap();
        assert!(open(file.path(), &[]).unwrap_err().to_string().contains("not an npz archive"));
        let empty = Archive::new().with("x", Array::<f32, _>::zeros((0, 30, 64)));
        assert!(
            cause(empty.with("labels", array![0i64])).contains("`x` is f32[0,30,64]"),
            "an empty array is no damage"
        );
    }
}
