//! Initial values by name, from a safetensors file.

use crate::error::{Error, IoContext, Result};
use crate::export::with_values;
use crate::ir::{DType, Graph, Source, Tensor};
use crate::onnx::{Model, from_proto};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Names that a note lists.
const SHOWN: usize = 8;

/// The model with the values of `file` for the parameters and statistics of the same name; `note` is told what was left over on
/// either side.
///
/// # Errors
/// A file that cannot be read, a tensor of another shape than the model's, or no name in common.
pub(super) fn with_weights(model: &Model, file: &Path, note: &mut dyn FnMut(&str)) -> Result<Model> {
    let bytes = std::fs::read(file).file(file)?;
    let given = SafeTensors::deserialize(&bytes).map_err(|e| {
        Error::new(format!("not a safetensors file, or a damaged one ({e})"))
            .in_file(file)
            .hint("write it with safetensors.torch.save_file(model.state_dict(), FILE)")
    })?;
    let known = initial_values(&model.graph);
    let read = || -> Result<BTreeMap<String, Tensor>> {
        let common = given.names().into_iter().filter_map(|name| Some((name, *known.get(name)?)));
        common.map(|(name, old)| Ok((name.to_owned(), value(name, old, &given)?))).collect()
    };
    let values = read().map_err(|e| e.in_file(file))?;
    let wanted: Vec<&str> = known.keys().copied().collect();
    let (absent, unknown) = (
        wanted.iter().copied().filter(|n| !values.contains_key(*n)).collect::<Vec<_>>(),
        given.names().into_iter().filter(|n| !values.contains_key(*n)).collect::<Vec<_>>(),
    );
    if values.is_empty() {
        let cause = format!("no tensor of this file has the name of a parameter of the model: {}", list(&unknown));
        let hint = format!("the model's parameters are {}; rename the tensors", list(&wanted));
        return Err(Error::new(cause).in_file(file).hint(hint));
    }
    note(&format!("{} of {} parameters and statistics are those of {}", values.len(), wanted.len(), file.display()));
    let left = [
        ("parameters are not in the file and keep the model's values", absent),
        ("tensors of the file are not in the model", unknown),
    ];
    for (what, names) in left.iter().filter(|(_, names)| !names.is_empty()) {
        note(&format!("{} {what}: {}", names.len(), list(names)));
    }
    from_proto(&model.path, with_values(model, &values)?)
}

/// Parameters and running statistics by name.
fn initial_values(graph: &Graph) -> BTreeMap<&str, &Tensor> {
    let value = |v| match &graph[v].source {
        Source::Param(t) | Source::Stat(t) => Some((graph[v].name.as_str(), t)),
        _ => None,
    };
    graph.value_ids().filter_map(value).collect()
}

/// The value of `name` in the place of the model's `old` one.
fn value(name: &str, old: &Tensor, given: &SafeTensors<'_>) -> Result<Tensor> {
    let view = given.tensor(name).map_err(|e| Error::new(e.to_string()))?;
    if view.shape() != old.shape() {
        let cause = format!("tensor `{name}` has shape {:?}, the model's {:?}", view.shape(), old.shape());
        return Err(Error::new(cause).hint("these are weights of another model, or of another head"));
    }
    let new = floats(&view).ok_or_else(|| {
        Error::new(format!("tensor `{name}` is of type {}, not of floats", view.dtype()))
            .hint("save it as float32, float64, float16 or bfloat16")
    })?;
    Ok(Tensor::from_f64(old.dtype(), old.shape(), &new))
}

/// The elements of a tensor of floats.
fn floats(view: &TensorView<'_>) -> Option<Vec<f64>> {
    let dtype = match view.dtype() {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    };
    Tensor::from_bytes(dtype, view.shape(), view.data().to_vec()).ok().map(|t| t.to_f64())
}

fn list(names: &[&str]) -> String {
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown}, …") } else { shown }
}
