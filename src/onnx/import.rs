//! `ModelProto` → [`Graph`]: functions inlined, constants lifted, nodes sorted, old operator versions upgraded.

use super::attrs::to_attr;
use super::external::DataFiles;
use super::outputs::{LeftOut, Part};
use super::record::Record;
use super::roles::{Role, RoleReason, Untied, assign};
use super::tensor::{narrow_type, strings};
use super::{artifacts, changes, computed_once, inline, laid_out, upgrade};
use crate::error::{Error, IoContext, Result};
use crate::files::{folder_of, missing};
use crate::ir::set_float_type;
use crate::ir::{Attr, Attrs, Body, DType, Declared, Dim, Graph, Node, Source, Tensor, ValueId};
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, type_proto,
};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A dimension larger than this is a damaged file, not a model.
const MAX_DIM: i64 = 1 << 31;

/// More elements than any input has: a damaged file, not a model.
const MAX_ELEMENTS: usize = 1 << 28;

/// The oldest operator set read; versions before it have other broadcasting rules.
const MIN_OPSET: i64 = 7;

/// An imported file: the message as it was, for export, and the graph made of it.
#[derive(Debug, Clone)]
pub struct Model {
    /// Where it was read.
    pub path: PathBuf,
    /// The message as it was.
    pub proto: ModelProto,
    /// The graph, not concretized yet, with what an exporter had merged told apart.
    pub graph: Graph,
    /// Outputs of the file that hold no numbers, and so are none of the graph.
    pub left_out: Vec<LeftOut>,
    /// For every float constant, whether it is trained, and why.
    pub roles: Vec<RoleReason>,
    /// The parameters and statistics that were merged into others.
    pub untied: Vec<Untied>,
    /// What is worth knowing about how the file was read.
    pub notes: Vec<String>,
}

/// Reads an ONNX file.
///
/// # Errors
/// Anything that is not a well-formed ONNX model with a graph: names the file, and the node or tensor at fault.
pub fn import(path: impl AsRef<Path>) -> Result<Model> {
    let path = path.as_ref();
    let read = || -> Result<Model> {
        if !path.exists() {
            return Err(missing(path));
        }
        let mut file = BufReader::new(File::open(path).file(path)?);
        if file.fill_buf().file(path)?.is_empty() {
            return Err(Error::new("the file is empty").hint("export or copy the file again"));
        }
        let mut proto = ModelProto::parse_from_reader(&mut file).map_err(|e| {
            Error::new(format!("not an ONNX model, or cut short ({e})")).hint("export or copy the file again")
        })?;
        artifacts::recover(&mut proto, folder_of(path))?;
        from_proto(path, proto)
    };
    read().map_err(|e| e.in_file(path))
}

/// The model of a message; data outside of it lie beside `path`.
///
/// # Errors
/// As [`import`], but the file is not named.
pub fn from_proto(path: &Path, mut proto: ModelProto) -> Result<Model> {
    let undone = proto.graph.as_mut().map(|graph| undo_optimizer(graph, folder_of(path)));
    let notes = undone.transpose()?.unwrap_or_default();
    let Imported { mut graph, attributes, left_out } = to_graph(&proto, folder_of(path))
        .map_err(|e| e.hint("export the model again; `onnx.checker.check_model` tells more about a damaged file"))?;
    // Half precision is for storage: it is computed and trained in f32, and written back as it was.
    set_float_type(&mut graph, &[DType::F16, DType::BF16], DType::F32);
    let (mut roles, untied) = assign(&mut graph, &Record::new(&proto.graph))?;
    fix_attributes(&mut graph, &mut roles, &attributes);
    graph.check()?;
    Ok(Model { path: path.to_owned(), proto, graph, left_out, roles, untied, notes })
}

/// Takes back what the dynamo exporter's optimizer did to parameters; says what it could not.
fn undo_optimizer(graph: &mut GraphProto, folder: &Path) -> Result<Vec<String>> {
    let record = Record::new(graph);
    let mut files = DataFiles::new(folder);
    laid_out::gather(graph, &record, &mut files)?;
    Ok(computed_once::split(graph, &record, &mut files))
}

/// Keeps constants that were attributes: a trained value of them would have no place in the file.
fn fix_attributes(graph: &mut Graph, roles: &mut [RoleReason], attributes: &[ValueId]) {
    for role in roles.iter_mut().filter(|r| attributes.contains(&r.value)) {
        if let Some(tensor) = graph.tensor(role.value).cloned() {
            graph.set_source(role.value, Source::Constant(tensor));
        }
        (role.role, role.reason) = (Role::Constant, "an attribute of its operator");
    }
}

/// The graph of a message.
struct Imported {
    graph: Graph,
    /// Constants of it that were attributes.
    attributes: Vec<ValueId>,
    /// Outputs of the message that are none of the graph.
    left_out: Vec<LeftOut>,
}

fn to_graph(proto: &ModelProto, folder: &Path) -> Result<Imported> {
    let Some(g) = proto.graph.as_ref().filter(|g| !g.node.is_empty() || !g.output.is_empty()) else {
        return Err(Error::new("the model has no graph").hint("this is not an exported ONNX model"));
    };
    let mut graph = Graph::default();
    graph.name.clone_from(&g.name);
    for import in proto.opset_import.iter().chain(proto.functions.iter().flat_map(|f| &f.opset_import)) {
        let domain = domain(&import.domain);
        let newest = graph.opsets.entry(domain.into()).or_insert(0);
        *newest = import.version.max(*newest);
    }
    // A file of other domains alone need not say one of ai.onnx.
    if !uses_default_domain(&g.node) {
        graph.opsets.entry(String::new()).or_insert(upgrade::TARGET);
    }
    let functions: HashSet<&str> = proto.functions.iter().map(|f| f.domain.as_str()).collect();
    graph.opsets.retain(|d, _| d.is_empty() || !functions.contains(d.as_str()));
    let opset = graph.opset();
    if opset == 0 {
        return Err(Error::new("the file does not say its operator set").hint("export the model again"));
    }
    if opset < MIN_OPSET {
        return Err(Error::new(format!("operator set {opset} is older than {MIN_OPSET}"))
            .hint("convert the file with onnx.version_converter, or export it again"));
    }
    let mut nodes = inline::inline(proto, opset)?;
    let part = Part::of(g, &nodes);
    nodes.retain(|n| part.left_out.is_empty() || part.has(n));
    let attributes = fill(&mut graph, g, &nodes, Some(&part), None, &mut DataFiles::new(folder))?;
    changes::settle(&mut graph);
    Ok(Imported { graph, attributes, left_out: part.left_out })
}

/// Integers of 2 and 4 bits are read as such of 8: only an operator that makes floats of them does not see the difference.
fn narrow_integers(graph: &Graph, g: &GraphProto, nodes: &[NodeProto]) -> Result<()> {
    let narrow = |number: i32| narrow_type(number).is_some();
    let stored = g.initializer.iter().filter(|t| narrow(t.data_type)).map(|t| &t.name);
    let inputs = g.input.iter().filter(|i| narrow(i.type_.tensor_type().elem_type)).map(|i| &i.name);
    let constant = |n: &&NodeProto| n.op_type == "Constant" && n.attribute.iter().any(|a| narrow(a.t.data_type));
    let constants = nodes.iter().filter(constant).flat_map(|n| &n.output);
    let values: HashSet<ValueId> = stored.chain(inputs).chain(constants).filter_map(|n| graph.find(n)).collect();
    let reads = |n: &&Node| !n.is("DequantizeLinear") && n.inputs.iter().flatten().any(|v| values.contains(v));
    match graph.nodes.iter().find(reads) {
        None => Ok(()),
        Some(node) => Err(node.blame(Error::new("it reads integers of 2 or 4 bits, which only DequantizeLinear may"))),
    }
}

fn uses_default_domain(nodes: &[NodeProto]) -> bool {
    nodes.iter().any(|n| domain(&n.domain).is_empty() || bodies(n).any(|a| uses_default_domain(&a.g.node)))
}

/// Fills a graph whose operator sets are known, with one part of it only where one is given. A body of control flow reads the values
/// `captured` of the graph around it. The result is the constants that were attributes.
fn fill(
    graph: &mut Graph,
    g: &GraphProto,
    nodes: &[NodeProto],
    part: Option<&Part>,
    captured: Option<&[String]>,
    files: &mut DataFiles,
) -> Result<Vec<ValueId>> {
    let mut values = constants(graph, g, part, files)?;
    for info in &g.input {
        // Before IR version 4 initializers were listed as inputs too.
        if !values.contains_key(&info.name) && part.is_none_or(|p| p.needs(&info.name)) {
            let at = |e: Error| Error::new(format!("input `{}`: {}", info.name, e.cause())).hint_from(&e);
            let declared = match captured {
                None => declared(info).map_err(at)?,
                Some(_) => Declared { dtype: DType::F32, dims: declared(info).ok().and_then(|d| d.dims) },
            };
            let v = graph.add_value(&info.name, None, Source::Input(declared));
            graph.inputs.push(v);
            values.insert(info.name.clone(), v);
        }
    }
    for name in captured.unwrap_or_default() {
        let v = graph.add_value(name, None, Source::Input(Declared { dtype: DType::F32, dims: None }));
        graph.inputs.push(v);
        values.insert(name.clone(), v);
    }
    for i in topological_order(nodes, &values)? {
        let node = &nodes[i];
        add_node(graph, node, &mut values, files).map_err(|e| e.at_node(&node.op_type, display_name(node)))?;
    }
    narrow_integers(graph, g, nodes)?;
    let attributes = upgrade::upgrade(graph)?;
    if g.output.is_empty() {
        crate::bail!("the model has no outputs");
    }
    let all = || g.output.iter().map(|o| o.name.clone()).collect();
    for name in part.map_or_else(all, |p| p.outputs.clone()) {
        let v = values.get(&name).ok_or_else(|| Error::new(format!("output `{name}` is never made")))?;
        graph.outputs.push(*v);
    }
    Ok(attributes)
}

/// The graphs among a node's attributes.
fn bodies(node: &NodeProto) -> impl Iterator<Item = &AttributeProto> {
    node.attribute.iter().filter(|a| a.g.is_some())
}

/// What the bodies of a node read of the graph around it, in the order of reading.
pub(super) fn captures(node: &NodeProto) -> Vec<String> {
    let mut names = Vec::new();
    for body in bodies(node) {
        let g = &body.g;
        let inner = g.node.iter().flat_map(|n| n.output.iter());
        let given = g.input.iter().map(|i| &i.name).chain(g.initializer.iter().map(|i| &i.name));
        let sparse = g.sparse_initializer.iter().map(|i| &i.values.name);
        let defined: HashSet<&String> = inner.chain(given).chain(sparse).collect();
        let nested: Vec<String> = g.node.iter().flat_map(captures).collect();
        let read = g.node.iter().flat_map(|n| n.input.iter()).chain(&nested).chain(g.output.iter().map(|o| &o.name));
        for name in read.filter(|n| !n.is_empty() && !defined.contains(n)) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names
}

fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn display_name(node: &NodeProto) -> &str {
    if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name }
}

fn constants(
    graph: &mut Graph,
    g: &GraphProto,
    part: Option<&Part>,
    files: &mut DataFiles,
) -> Result<HashMap<String, ValueId>> {
    let mut values = HashMap::new();
    for init in g.initializer.iter().filter(|i| part.is_none_or(|p| p.needs(&i.name))) {
        let at = |e: Error| Error::new(format!("initializer `{}`: {}", init.name, e.cause())).hint_from(&e);
        let tensor = files.read(init).map_err(at)?;
        let v = graph.add_value(&init.name, None, Source::Constant(tensor));
        if values.insert(init.name.clone(), v).is_some() {
            crate::bail!("initializer `{}` is there twice", init.name);
        }
    }
    for sparse in &g.sparse_initializer {
        let name = &sparse.values.name;
        let at = |e: Error| Error::new(format!("sparse initializer `{name}`: {}", e.cause())).hint_from(&e);
        let tensor = dense(sparse, files).map_err(at)?;
        values.insert(name.clone(), graph.add_value(name, None, Source::Constant(tensor)));
    }
    Ok(values)
}

/// A sparse tensor written out; indices are linear or one row per element.
fn dense(sparse: &onnx_protobuf::SparseTensorProto, files: &mut DataFiles) -> Result<Tensor> {
    let shape: Option<Vec<usize>> = sparse.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let shape = shape.ok_or_else(|| Error::new("negative dimension"))?;
    let (values, indices) = (files.read(&sparse.values)?, files.read(&sparse.indices)?);
    let flat = indices.to_i64().unwrap_or_default();
    let width = if indices.shape().len() == 2 { indices.shape()[1] } else { 1 };
    let size = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_ELEMENTS);
    let mut out = vec![0.0; size.ok_or_else(|| Error::new("too large to write out"))?];
    for (index, value) in flat.chunks(width.max(1)).zip(values.to_f64()) {
        let linear = if indices.shape().len() == 2 {
            index.iter().zip(&shape).fold(0usize, |n, (i, d)| n.wrapping_mul(*d).wrapping_add(*i as usize))
        } else {
            index[0] as usize
        };
        *out.get_mut(linear).ok_or_else(|| Error::new("index out of range"))? = value;
    }
    Ok(Tensor::from_f64(values.dtype(), &shape, &out))
}

pub(crate) fn declared(info: &ValueInfoProto) -> Result<Declared> {
    let ty: &TypeProto = info.type_.as_ref().ok_or_else(|| Error::new("it has no type"))?;
    let Some(type_proto::Value::TensorType(t)) = &ty.value else {
        return Err(Error::new("only tensors can be inputs").hint("export the model without sequences or maps"));
    };
    let dtype = DType::from_onnx(t.elem_type)
        .or_else(|| narrow_type(t.elem_type).map(|(_, wide)| wide))
        .ok_or_else(|| Error::new(format!("tensors of type {} are not supported", DType::name_of(t.elem_type))))?;
    if dtype == DType::Str {
        return Err(Error::new("it takes strings, but what is trained works on numbers")
            .hint("export the network without the text processing before it, and feed it numbers"));
    }
    let dim = |d: &onnx_protobuf::tensor_shape_proto::Dimension| match &d.value {
        Some(dimension::Value::DimValue(n)) if (0..MAX_DIM).contains(n) => Ok(Dim::Fixed(*n as usize)),
        // Several old exporters wrote -1 for "any".
        Some(dimension::Value::DimValue(-1)) | None => Ok(Dim::Unknown),
        Some(dimension::Value::DimValue(n)) => Err(Error::new(format!("dimension {n} is not possible"))),
        Some(dimension::Value::DimParam(s)) if s.is_empty() => Ok(Dim::Unknown),
        Some(dimension::Value::DimParam(s)) => Ok(Dim::Symbol(s.clone())),
        Some(_) => Ok(Dim::Unknown),
    };
    let dims = t.shape.as_ref().map(|s| s.dim.iter().map(dim).collect::<Result<Vec<_>>>()).transpose()?;
    let fixed = dims.iter().flatten().filter_map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None });
    if fixed.clone().try_fold(1usize, |n, d| n.checked_mul(d)).is_none_or(|n| n > MAX_ELEMENTS) {
        crate::bail!("shape {:?} has too many elements", fixed.collect::<Vec<_>>());
    }
    Ok(Declared { dtype, dims })
}

/// Indices of the nodes in an order in which every value is made before it is read; the file's own where that is one.
fn topological_order(nodes: &[NodeProto], constants: &HashMap<String, ValueId>) -> Result<Vec<usize>> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for out in node.output.iter().filter(|o| !o.is_empty()) {
            if maker.insert(out, i).is_some() || constants.contains_key(out) {
                return Err(
                    Error::new(format!("value `{out}` is made twice")).at_node(&node.op_type, display_name(node))
                );
            }
        }
    }
    let captured: Vec<Vec<String>> = nodes.iter().map(captures).collect();
    let mut waits = vec![0usize; nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for input in node.input.iter().filter(|n| !n.is_empty()).chain(&captured[i]) {
            match maker.get(input.as_str()) {
                Some(m) => {
                    readers[*m].push(i);
                    waits[i] += 1;
                }
                None if constants.contains_key(input) => {}
                None => {
                    let e = Error::new(format!("it reads `{input}`, which nothing makes"));
                    return Err(e.at_node(&node.op_type, display_name(node)));
                }
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|i| waits[*i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for r in &readers[i] {
            waits[*r] -= 1;
            if waits[*r] == 0 {
                ready.push(Reverse(*r));
            }
        }
    }
    let Some(mut i) = (0..nodes.len()).find(|i| waits[*i] > 0) else { return Ok(order) };
    // A node that waits may only follow a cycle; what it waits for leads back into one.
    let mut seen = HashSet::new();
    while seen.insert(i) {
        let makers = nodes[i].input.iter().filter_map(|n| maker.get(n.as_str()).copied());
        i = makers.into_iter().find(|m| waits[*m] > 0).unwrap_or(i);
    }
    Err(Error::new("the graph has a cycle through this node")
        .at_node(&nodes[i].op_type, display_name(&nodes[i]))
        .hint("an ONNX graph must be acyclic; export the model again"))
}

fn add_node(
    graph: &mut Graph,
    node: &NodeProto,
    values: &mut HashMap<String, ValueId>,
    files: &mut DataFiles,
) -> Result<()> {
    if node.op_type == "Constant" && domain(&node.domain).is_empty() {
        let [out] = node.output.as_slice() else { crate::bail!("a Constant has one output") };
        let tensor = constant_value(node, files)?;
        values.insert(out.clone(), graph.add_value(out, None, Source::Constant(tensor)));
        return Ok(());
    }
    let mut lifted = node.clone();
    for tensor in lift(&mut lifted, values) {
        let value = files.read(&tensor)?;
        values.insert(tensor.name.clone(), graph.add_value(&tensor.name, None, Source::Constant(value)));
    }
    let node = &lifted;
    let plain = node.attribute.iter().filter(|a| a.g.is_none());
    let mut attrs: Attrs = plain.map(|a| Ok((a.name.clone(), to_attr(a, files)?))).collect::<Result<_>>()?;
    let captured = captures(node);
    for attr in bodies(node) {
        let mut body = Graph::default();
        body.name.clone_from(&attr.g.name);
        body.opsets.clone_from(&graph.opsets);
        fill(&mut body, &attr.g, &attr.g.node, None, Some(&captured), files)?;
        let body = Body { graph: body, captured: captured.len() };
        attrs.insert(attr.name.clone(), Attr::Graph(Arc::new(body)));
    }
    let inputs = node.input.iter().chain(&captured).map(|n| values.get(n).copied()).collect();
    let mut outputs = Vec::with_capacity(node.output.len());
    for out in &node.output {
        outputs.push((!out.is_empty()).then(|| {
            let v = graph.add_value(out, None, Source::Node);
            values.insert(out.clone(), v);
            v
        }));
    }
    while outputs.last() == Some(&None) {
        outputs.pop();
    }
    graph.nodes.push(Node {
        name: display_name(node).to_owned(),
        domain: domain(&node.domain).to_owned(),
        op: node.op_type.clone(),
        inputs,
        outputs,
        attrs,
    });
    Ok(())
}

/// Takes the float tensors out of a node's bodies, nested ones too, so that the graph around it has them: what is trained may lie in a body. One whose
/// name is taken stays where it is.
fn lift(node: &mut NodeProto, taken: &HashMap<String, ValueId>) -> Vec<TensorProto> {
    let mut found: Vec<TensorProto> = Vec::new();
    let float = |t: &TensorProto| {
        let more = t.dims.iter().product::<i64>() > 1;
        more && DType::from_onnx(t.data_type).is_some_and(DType::is_float)
    };
    for body in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
        for inner in &mut body.node {
            found.extend(lift(inner, taken));
        }
        let free =
            |name: &str, found: &[TensorProto]| !taken.contains_key(name) && found.iter().all(|t| t.name != name);
        for tensor in std::mem::take(&mut body.initializer) {
            if float(&tensor) && free(&tensor.name, &found) {
                found.push(tensor);
            } else {
                body.initializer.push(tensor);
            }
        }
        for inner in std::mem::take(&mut body.node) {
            let value = match (inner.op_type.as_str(), inner.attribute.as_slice(), inner.output.as_slice()) {
                ("Constant", [a], [out]) if a.name == "value" && a.t.is_some() && float(&a.t) && free(out, &found) => {
                    Some(TensorProto { name: out.clone(), ..(*a.t).clone() })
                }
                _ => None,
            };
            match value {
                Some(tensor) => found.push(tensor),
                None => body.node.push(inner),
            }
        }
    }
    found
}

fn constant_value(node: &NodeProto, files: &mut DataFiles) -> Result<Tensor> {
    let [a] = node.attribute.as_slice() else { crate::bail!("a Constant has one attribute") };
    if a.name == "sparse_value" {
        return dense(&a.sparse_tensor, files);
    }
    if a.name.starts_with("value_string") {
        return Err(strings());
    }
    match (a.name.as_str(), to_attr(a, files)?) {
        ("value", Attr::Tensor(t)) => Ok(t),
        ("value_float", Attr::Float(v)) => Ok(Tensor::scalar(DType::F32, f64::from(v))),
        ("value_int", Attr::Int(v)) => Tensor::new(&[], &[v]),
        ("value_floats", Attr::Floats(v)) => Tensor::new(&[v.len()], &v),
        ("value_ints", Attr::Ints(v)) => Ok(Tensor::ints(&v)),
        (name, _) => crate::bail!("a Constant with `{name}` is not supported"),
    }
}
