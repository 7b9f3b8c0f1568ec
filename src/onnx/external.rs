//! Tensors whose data lies in files beside the model.

use super::tensor::{header, to_proto, to_tensor};
use crate::error::{Error, IoContext, Result};
use crate::ir::Tensor;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{AttributeProto, GraphProto, ModelProto, TensorProto};
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

/// Moves the data of every tensor of the model at `path` into the message itself.
///
/// # Errors
/// Data files that cannot be read; names the tensor.
pub(crate) fn inline_data(model: &mut ModelProto, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = DataFiles::new(folder);
    if let Some(graph) = model.graph.as_mut() {
        inline_graph(graph, &mut files)?;
    }
    for node in model.functions.iter_mut().flat_map(|f| &mut f.node) {
        inline_attributes(&mut node.attribute, &mut files)?;
    }
    Ok(())
}

fn inline_graph(graph: &mut GraphProto, files: &mut DataFiles) -> Result<()> {
    for tensor in &mut graph.initializer {
        inline_tensor(tensor, files)?;
    }
    for sparse in &mut graph.sparse_initializer {
        for tensor in [sparse.values.as_mut(), sparse.indices.as_mut()].into_iter().flatten() {
            inline_tensor(tensor, files)?;
        }
    }
    for node in &mut graph.node {
        inline_attributes(&mut node.attribute, files)?;
    }
    Ok(())
}

fn inline_attributes(attributes: &mut [AttributeProto], files: &mut DataFiles) -> Result<()> {
    for a in attributes {
        for tensor in a.t.as_mut().into_iter().chain(&mut a.tensors) {
            inline_tensor(tensor, files)?;
        }
        for graph in a.g.as_mut().into_iter().chain(&mut a.graphs) {
            inline_graph(graph, files)?;
        }
    }
    Ok(())
}

fn inline_tensor(tensor: &mut TensorProto, files: &mut DataFiles) -> Result<()> {
    if tensor.data_location.enum_value_or_default() != DataLocation::EXTERNAL {
        return Ok(());
    }
    let at = |e: Error| Error::new(format!("tensor `{}`: {}", tensor.name, e.cause())).hint_from(&e);
    tensor.raw_data = to_proto("", &files.read(tensor).map_err(at)?).raw_data;
    tensor.external_data.clear();
    tensor.data_location = protobuf::EnumOrUnknown::new(DataLocation::DEFAULT);
    Ok(())
}
