//! Tensors whose data lies in files beside the model.

use super::tensor::{header, to_tensor};
use crate::error::{Error, IoContext, Result};
use crate::ir::Tensor;
use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::DataLocation;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// Opens data files of one model, each once, and only inside the model's own folder.
pub(super) struct DataFiles {
    folder: PathBuf,
    open: HashMap<PathBuf, memmap2::Mmap>,
}

impl DataFiles {
    /// For a model in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: HashMap::new() }
    }

    /// Reads a tensor, wherever its data is.
    ///
    /// # Errors
    /// As [`to_tensor`]; or a location that points out of the model's folder, is missing or too short.
    pub(super) fn read(&mut self, proto: &TensorProto) -> Result<Tensor> {
        if proto.data_location.enum_value_or_default() != DataLocation::EXTERNAL {
            return to_tensor(proto);
        }
        let entry = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(v) => v.parse::<usize>().map(Some).map_err(|_| Error::new(format!("external data {key} `{v}`"))),
        };
        let location = entry("location").ok_or_else(|| Error::new("external data without a location"))?;
        let (dtype, shape) = header(proto)?;
        let want = shape.iter().product::<usize>() * dtype.width();
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(want);
        let data = self.map(location)?;
        let end = offset.checked_add(length).filter(|e| *e <= data.len() && length == want);
        let Some(end) = end else {
            let have = data.len();
            return Err(Error::new(format!(
                "{dtype} {shape:?} needs {want} bytes at {offset} of `{location}`, which has {have} bytes (declared length {length})"
            ))
            .hint("copy the data file again, it may be cut short"));
        };
        Tensor::from_bytes(dtype, &shape, data[offset..end].to_vec())
    }

    fn map(&mut self, location: &str) -> Result<&memmap2::Mmap> {
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let path = self.folder.join(relative);
        let escapes = || {
            Error::new(format!("external data `{location}` points outside the model's folder"))
                .hint("put the data file beside the model and name it without a path")
        };
        if !inside {
            return Err(escapes());
        }
        if !self.open.contains_key(&path) {
            let found = path.canonicalize().map_err(|e| {
                Error::new(format!("external data `{location}`: {e}")).hint("copy the data file beside the model")
            })?;
            if !found.starts_with(self.folder.canonicalize().file(&self.folder)?) {
                return Err(escapes());
            }
            let file = File::open(&found).file(&found)?;
            // SAFETY: the map is read once, here, into owned tensors; a writer changing the file meanwhile changes
            // numbers, not memory safety of ours beyond what mmap always risks.
            let map = unsafe { memmap2::Mmap::map(&file) }.file(&found)?;
            self.open.insert(path.clone(), map);
        }
        self.open.get(&path).ok_or_else(escapes)
    }
}
