//! The user's `ModelProto` with new values and nothing else changed.
//!
//! Four exceptions: parameters that an exporter had merged get initializers of their own, what it had laid out of one parameter is
//! laid out by a node (see `onnx/laid_out.rs`), a training-mode file comes back
//! ready for inference (see [`inference`](super::inference)), and data kept outside the file moves into it.

use super::inference::ready_for_inference;
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use crate::onnx::{Model, Untied, inline_data, to_proto, to_tensor};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::tensor_shape_proto::dimension::Value as DimValue;
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};
use protobuf::{EnumOrUnknown, MessageField};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The largest message that protobuf readers accept.
const MAX_BYTES: u64 = i32::MAX as u64;

/// The file of `model` with `values`, ready for inference; see [`with_values`].
///
/// # Errors
/// As [`with_values`].
pub fn export(model: &Model, values: &BTreeMap<String, Tensor>) -> Result<ModelProto> {
    let mut proto = with_values(model, values)?;
    ready_for_inference(proto.graph.mut_or_insert_default(), model).map_err(|e| e.in_file(&model.path))?;
    Ok(proto)
}

/// The file of `model` with `values`, by the names of parameters and running statistics in its graph after untying; in training
/// mode if the file is.
///
/// A value whose shape differs from the file's is a replaced head: the declared shapes after it follow. An untied parameter
/// that is not in `values` keeps the value it has in the file.
///
/// # Errors
/// A value that belongs to nothing in the file, or has another rank or type than there; data files that cannot be read; a
/// result of more than 2 GiB.
pub fn with_values(model: &Model, values: &BTreeMap<String, Tensor>) -> Result<ModelProto> {
    let untied = &model.untied;
    let mut proto = model.proto.clone();
    let fill = |proto: &mut ModelProto| -> Result<()> {
        inline_data(proto, &model.path)?;
        let graph = proto.graph.mut_or_insert_default();
        separate(graph, &own_values(model, untied, values))?;
        let names: HashSet<&str> = untied.iter().map(|u| u.name.as_str()).collect();
        let slots = Slots::new(graph);
        for (name, tensor) in values.iter().filter(|(n, _)| !names.contains(n.as_str())) {
            let at = |e: Error| Error::new(format!("parameter `{name}`: {}", e.cause())).hint_from(&e);
            slots.replace(graph, name, tensor).map_err(at)?;
        }
        let bytes = proto.compute_size();
        if bytes > MAX_BYTES {
            return Err(Error::new(format!("the exported model needs {bytes} bytes, more than the 2 GiB of one file"))
                .hint("export a smaller model, or one with half-precision weights"));
        }
        Ok(())
    };
    fill(&mut proto).map_err(|e| e.in_file(&model.path))?;
    Ok(proto)
}

/// The untied parameters that need initializers of their own, with their values: those that differ from what they were merged into.
fn own_values<'a>(model: &Model, untied: &'a [Untied], values: &BTreeMap<String, Tensor>) -> Vec<(&'a Untied, Tensor)> {
    let original = |name: &str| model.graph.find(name).and_then(|v| model.graph.tensor(v));
    let own = |u: &'a Untied| {
        let own = values.get(&u.name).or_else(|| original(&u.name))?;
        let merged = values.get(&u.merged).or_else(|| original(&u.merged))?;
        (own != merged).then(|| (u, own.clone()))
    };
    untied.iter().filter_map(own).collect()
}

/// Gives every untied parameter an initializer, lets its reader read it, and removes the `Identity` nodes that only fed these
/// readers.
fn separate(graph: &mut GraphProto, own: &[(&Untied, Tensor)]) -> Result<()> {
    let mut taken: HashSet<String> = graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
    taken.extend(graph.initializer.iter().map(|i| i.name.clone()));
    let mut ours: HashSet<String> = own.iter().flat_map(|(u, _)| u.through.iter().cloned()).collect();
    for (place, _) in own {
        // The Identity whose output carries this name makes room for the initializer; who else reads it still does.
        let carries = |n: &NodeProto| n.op_type == "Identity" && n.output.contains(&place.name);
        if graph.node.iter().any(carries) {
            let mut free = format!("{}/identity", place.name);
            while !taken.insert(free.clone()) {
                free.push('_');
            }
            for name in graph.node.iter_mut().flat_map(|n| n.input.iter_mut().chain(n.output.iter_mut())) {
                if *name == place.name {
                    name.clone_from(&free);
                }
            }
            ours.insert(free);
        } else if !taken.insert(place.name.clone()) {
            return Err(Error::new(format!("there is a value `{}` already", place.name)));
        }
    }
    let first = |n: &NodeProto| n.output.iter().find(|o| !o.is_empty()).cloned();
    let readers: HashMap<String, usize> =
        graph.node.iter().enumerate().filter_map(|(i, n)| Some((first(n)?, i))).collect();
    let formats: HashMap<String, i32> = graph.initializer.iter().map(|i| (i.name.clone(), i.data_type)).collect();
    for (place, tensor) in own {
        for (reader, slot) in &place.readers {
            let input = readers.get(reader).and_then(|i| graph.node[*i].input.get_mut(*slot));
            let lost = || Error::new(format!("`{reader}`, which reads `{}`, is not in the file", place.name));
            input.ok_or_else(lost)?.clone_from(&place.name);
        }
        let dtype = formats.get(&place.merged).copied().and_then(DType::from_onnx);
        graph.initializer.push(to_proto(&place.name, &cast(tensor, dtype.unwrap_or(tensor.dtype()))));
    }
    drop_unread(graph, &ours);
    Ok(())
}

/// Removes the `Identity` nodes among `ours` that nothing reads.
fn drop_unread(graph: &mut GraphProto, ours: &HashSet<String>) {
    loop {
        let inputs = graph.node.iter().flat_map(|n| n.input.iter());
        let read: HashSet<String> = inputs.chain(graph.output.iter().map(|o| &o.name)).cloned().collect();
        let before = graph.node.len();
        let unread = |o: &String| ours.contains(o) && !read.contains(o);
        graph.node.retain(|n| n.op_type != "Identity" || !n.output.iter().all(unread));
        if graph.node.len() == before {
            break;
        }
    }
}

/// A tensor in the type that the file stores it in.
fn cast(tensor: &Tensor, dtype: DType) -> Tensor {
    if dtype == tensor.dtype() { tensor.clone() } else { Tensor::from_f64(dtype, tensor.shape(), &tensor.to_f64()) }
}

/// Where each stored value of a file is.
struct Slots {
    initializers: HashMap<String, usize>,
    constants: HashMap<String, usize>,
    sparse: HashMap<String, usize>,
}

impl Slots {
    fn new(graph: &GraphProto) -> Self {
        let constants = graph.node.iter().enumerate().filter(|(_, n)| n.op_type == "Constant");
        Self {
            initializers: graph.initializer.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect(),
            constants: constants.flat_map(|(i, n)| n.output.iter().map(move |o| (o.clone(), i))).collect(),
            sparse: graph.sparse_initializer.iter().enumerate().map(|(i, t)| (t.values.name.clone(), i)).collect(),
        }
    }

    fn replace(&self, graph: &mut GraphProto, name: &str, tensor: &Tensor) -> Result<()> {
        if let Some(i) = self.initializers.get(name) {
            let old = write(&mut graph.initializer[*i], tensor)?;
            resize(graph, name, &old, tensor.shape());
            return Ok(());
        }
        if let Some(i) = self.constants.get(name) {
            let [a] = graph.node[*i].attribute.as_mut_slice() else { crate::bail!("its Constant has no single value") };
            let old = write_attribute(a, tensor)?;
            resize(graph, name, &old, tensor.shape());
            return Ok(());
        }
        if self.sparse.contains_key(name) {
            return Err(Error::new("it is stored as a sparse tensor, which cannot hold trained values")
                .hint("export the model with dense weights, or freeze this one"));
        }
        if replace_in_bodies(graph, name, tensor)? {
            return Ok(());
        }
        Err(Error::new("the file has no such value"))
    }
}

/// Writes a value that is stored in the body of a node; whether there is one.
fn replace_in_bodies(graph: &mut GraphProto, name: &str, tensor: &Tensor) -> Result<bool> {
    for body in graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.g.as_mut()) {
        if let Some(stored) = body.initializer.iter_mut().find(|i| i.name == name) {
            write(stored, tensor)?;
            return Ok(true);
        }
        let mut constants = body.node.iter_mut().filter(|n| n.op_type == "Constant");
        if let Some([a]) = constants.find(|n| n.output.iter().any(|o| o == name)).map(|n| n.attribute.as_mut_slice()) {
            write_attribute(a, tensor)?;
            return Ok(true);
        }
        if replace_in_bodies(body, name, tensor)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes `tensor` into `target` unless that holds these very values; the dimensions before.
fn write(target: &mut TensorProto, tensor: &Tensor) -> Result<Vec<i64>> {
    let dims = target.dims.clone();
    let dtype = DType::from_onnx(target.data_type).filter(|d| d.is_float() && tensor.dtype().is_float());
    let Some(dtype) = dtype.filter(|_| dims.len() == tensor.shape().len()) else {
        crate::bail!("{} {:?} cannot take the place of {dims:?}", tensor.dtype(), tensor.shape());
    };
    let own = cast(tensor, dtype);
    if to_tensor(target).is_ok_and(|old| old == own) {
        return Ok(dims);
    }
    let fresh = to_proto(&target.name, &own);
    target.dims = fresh.dims;
    target.raw_data = fresh.raw_data;
    target.float_data.clear();
    target.double_data.clear();
    target.int32_data.clear();
    target.external_data.clear();
    target.data_location = EnumOrUnknown::new(DataLocation::DEFAULT);
    Ok(dims)
}

/// The same for the attribute of a Constant, whichever form it has.
fn write_attribute(a: &mut AttributeProto, tensor: &Tensor) -> Result<Vec<i64>> {
    use onnx_protobuf::attribute_proto::AttributeType;
    match (a.name.as_str(), tensor.shape()) {
        ("value", _) if a.t.is_some() => write(a.t.mut_or_insert_default(), tensor),
        ("value_float", []) => {
            a.f = tensor.to_f32().first().copied().unwrap_or(a.f);
            Ok(Vec::new())
        }
        ("value_floats", [n]) if *n == a.floats.len() => {
            a.floats = tensor.to_f32();
            Ok(vec![*n as i64])
        }
        ("value_floats", [_]) => {
            let old = vec![a.floats.len() as i64];
            let value = MessageField::some(to_proto("", &cast(tensor, DType::F32)));
            let type_ = EnumOrUnknown::new(AttributeType::TENSOR);
            *a = AttributeProto { name: "value".into(), t: value, type_, ..Default::default() };
            Ok(old)
        }
        (name, shape) => Err(Error::new(format!("a Constant with `{name}` cannot hold {shape:?}"))),
    }
}

/// Where the head got another size, its declared shape and those of the values after it follow.
fn resize(graph: &mut GraphProto, name: &str, old: &[i64], new: &[usize]) {
    let Some((from, to)) = old.iter().zip(new).map(|(o, n)| (*o, *n as i64)).find(|(o, n)| o != n) else { return };
    // Before IR version 4 initializers were listed as inputs too.
    for info in graph.input.iter_mut().chain(&mut graph.value_info).filter(|i| i.name == name) {
        for (dim, size) in dims(info).iter_mut().zip(new) {
            dim.value = Some(DimValue::DimValue(*size as i64));
        }
    }
    // A bias is added to a product that is reached from the weight.
    if old.len() < 2 {
        return;
    }
    let mut after: HashSet<String> = HashSet::from([name.to_owned()]);
    let mut channels: HashSet<String> = HashSet::new();
    loop {
        let before = after.len();
        for node in &graph.node {
            if !node.input.iter().any(|i| after.contains(i)) {
                continue;
            }
            if node.op_type == "Conv" || node.input.iter().any(|i| channels.contains(i)) {
                channels.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
            }
            after.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
        }
        if after.len() == before {
            break;
        }
    }
    for info in graph.output.iter_mut().chain(&mut graph.value_info) {
        if info.name == name || !after.contains(&info.name) {
            continue;
        }
        let second = channels.contains(&info.name);
        let dims = dims(info);
        let axis = if second { 1 } else { dims.len().saturating_sub(1) };
        if let Some(dim) = dims.get_mut(axis).filter(|d| axis > 0 && d.value == Some(DimValue::DimValue(from))) {
            dim.value = Some(DimValue::DimValue(to));
        }
    }
}

fn dims(info: &mut ValueInfoProto) -> &mut [onnx_protobuf::tensor_shape_proto::Dimension] {
    match info.type_.as_mut().and_then(|t| t.value.as_mut()) {
        Some(type_proto::Value::TensorType(t)) => t.shape.as_mut().map_or(&mut [], |s| s.dim.as_mut_slice()),
        _ => &mut [],
    }
}
