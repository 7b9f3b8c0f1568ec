//! The user's `ModelProto` with new values and nothing else changed.
//!
//! Two exceptions: parameters that an exporter had merged get initializers of their own, and a training-mode file comes back
//! ready for inference.

use crate::adapt::Untied;
use crate::error::{Error, Result};
use crate::ir::Tensor;
use crate::onnx::{Model, to_proto};
use onnx_protobuf::{ModelProto, NodeProto, TensorProto, type_proto};
use std::collections::{BTreeMap, HashSet};

/// The file of `model` with `values`, by the names of parameters and running statistics in its graph.
///
/// # Errors
/// A value that belongs to nothing in the file.
pub fn export(model: &Model, untied: &[Untied], values: &BTreeMap<String, Tensor>) -> Result<ModelProto> {
    let mut proto = model.proto.clone();
    for (name, tensor) in values {
        let place = untied.iter().find(|u| u.name == *name);
        match place {
            Some(place) => add_untied(&mut proto, place, tensor)?,
            None => replace(&mut proto, name, tensor)?,
        }
    }
    drop_unread_identities(&mut proto, untied);
    ready_for_inference(&mut proto, model);
    Ok(proto)
}

/// Writes `tensor` into `target` unless that holds these very values.
fn write(target: &mut TensorProto, tensor: &Tensor) {
    let same = crate::onnx::to_tensor(target).is_ok_and(|old| old == *tensor);
    if same {
        return;
    }
    let dtype = crate::ir::DType::from_onnx(target.data_type).unwrap_or(tensor.dtype());
    let own = if dtype == tensor.dtype() {
        tensor.clone()
    } else {
        Tensor::from_f64(dtype, tensor.shape(), &tensor.to_f64())
    };
    let fresh = to_proto(&target.name, &own);
    target.dims = fresh.dims;
    target.raw_data = fresh.raw_data;
    target.float_data.clear();
    target.double_data.clear();
    target.int32_data.clear();
    target.external_data.clear();
    target.data_location = protobuf::EnumOrUnknown::new(onnx_protobuf::tensor_proto::DataLocation::DEFAULT);
}

fn replace(proto: &mut ModelProto, name: &str, tensor: &Tensor) -> Result<()> {
    let graph = proto.graph.mut_or_insert_default();
    if let Some(init) = graph.initializer.iter_mut().find(|i| i.name == name) {
        let resized = init.dims.iter().map(|d| *d as usize).ne(tensor.shape().iter().copied());
        let old = init.dims.clone();
        write(init, tensor);
        if resized {
            resize_outputs(proto, &old, tensor.shape());
        }
        return Ok(());
    }
    let constant = |n: &&mut NodeProto| n.op_type == "Constant" && n.output.iter().any(|o| o == name);
    if let Some(node) = graph.node.iter_mut().find(constant) {
        if let Some(a) = node.attribute.iter_mut().find(|a| a.name == "value") {
            write(a.t.mut_or_insert_default(), tensor);
            return Ok(());
        }
    }
    Err(Error::new(format!("parameter `{name}` is not in the file")).in_file("export"))
}

/// A head of another size changes the declared last dimension of outputs that had the old one.
fn resize_outputs(proto: &mut ModelProto, old: &[i64], new: &[usize]) {
    use onnx_protobuf::tensor_shape_proto::dimension::Value;
    let Some((from, to)) = old.iter().zip(new).find(|(o, n)| **o != **n as i64) else { return };
    let graph = proto.graph.mut_or_insert_default();
    for info in graph.output.iter_mut().chain(graph.value_info.iter_mut()) {
        let Some(type_proto::Value::TensorType(t)) = info.type_.as_mut().and_then(|t| t.value.as_mut()) else {
            continue;
        };
        for dim in t.shape.as_mut().into_iter().flat_map(|s| s.dim.iter_mut().skip(1)) {
            if dim.value == Some(Value::DimValue(*from)) {
                dim.value = Some(Value::DimValue(*to as i64));
            }
        }
    }
}

fn add_untied(proto: &mut ModelProto, place: &Untied, tensor: &Tensor) -> Result<()> {
    let graph = proto.graph.mut_or_insert_default();
    // The Identity whose output carries this name makes room for the initializer.
    for node in graph.node.iter_mut().filter(|n| n.op_type == "Identity") {
        for out in node.output.iter_mut().filter(|o| **o == place.name) {
            out.push_str("/identity");
        }
    }
    let (reader, slot) = &place.reader;
    let node = graph.node.iter_mut().find(|n| n.output.first() == Some(reader));
    let input = node.and_then(|n| n.input.get_mut(*slot));
    let input =
        input.ok_or_else(|| Error::new(format!("`{reader}`, which reads `{}`, is not in the file", place.name)))?;
    input.clone_from(&place.name);
    graph.initializer.push(to_proto(&place.name, tensor));
    Ok(())
}

/// Removes the Identity nodes that only fed parameters which are their own initializers now.
fn drop_unread_identities(proto: &mut ModelProto, untied: &[Untied]) {
    let graph = proto.graph.mut_or_insert_default();
    let ours: HashSet<String> =
        untied.iter().flat_map(|u| u.through.iter()).flat_map(|n| [n.clone(), format!("{n}/identity")]).collect();
    loop {
        let read: HashSet<String> = graph
            .node
            .iter()
            .flat_map(|n| n.input.iter())
            .chain(graph.output.iter().map(|o| &o.name))
            .cloned()
            .collect();
        let before = graph.node.len();
        graph.node.retain(|n| {
            n.op_type != "Identity" || n.output.first().is_none_or(|o| !ours.contains(o) || read.contains(o))
        });
        if graph.node.len() == before {
            break;
        }
    }
}

/// BatchNormalization on its running statistics, Dropout inert.
fn ready_for_inference(proto: &mut ModelProto, model: &Model) {
    let inference: HashSet<&str> = model
        .graph
        .nodes
        .iter()
        .filter(|n| n.is("BatchNormalization") && n.input(3).is_some_and(|v| is_stat(model, v)))
        .flat_map(|n| n.output(0))
        .map(|v| model.graph[v].name.as_str())
        .collect();
    for node in &mut proto.graph.mut_or_insert_default().node {
        let first = node.output.first().cloned().unwrap_or_default();
        if node.op_type == "BatchNormalization" && inference.contains(first.as_str()) {
            if node.attribute.iter().any(|a| a.name == "training_mode" && a.i == 1) || node.output.len() > 1 {
                node.attribute.retain(|a| a.name != "training_mode");
                node.output.truncate(1);
            }
        } else if node.op_type == "Dropout" && node.input.len() > 2 {
            node.input.truncate(2);
        }
    }
}

fn is_stat(model: &Model, v: crate::ir::ValueId) -> bool {
    matches!(model.graph[v].source, crate::ir::Source::Stat(_))
}
