//! Model-local functions, replaced by their bodies.

use crate::error::{Error, Result};
use onnx_protobuf::{AttributeProto, FunctionProto, ModelProto, NodeProto};
use std::collections::HashMap;

/// How deep functions may call each other; a deeper nest is a cycle.
const MAX_DEPTH: usize = 64;

/// More nodes than any model has once its functions are written out.
const MAX_NODES: usize = 1 << 22;

/// Copies of the graph's nodes with every call of a model-local function replaced by the function's body.
///
/// Values inside a body get the call's node name (or first output) as a prefix. The second result gives the opsets that
/// bodies import beside the model's.
///
/// # Errors
/// Functions that call themselves, or that make too many nodes.
pub(super) fn inline(model: &ModelProto) -> Result<Vec<NodeProto>> {
    let functions: HashMap<(&str, &str), &FunctionProto> =
        model.functions.iter().map(|f| ((f.domain.as_str(), f.name.as_str()), f)).collect();
    let mut out = Vec::with_capacity(model.graph.node.len());
    for node in &model.graph.node {
        expand(node.clone(), &functions, &mut out, 0)?;
    }
    Ok(out)
}

fn expand(
    node: NodeProto,
    functions: &HashMap<(&str, &str), &FunctionProto>,
    out: &mut Vec<NodeProto>,
    depth: usize,
) -> Result<()> {
    let domain = if node.domain == "ai.onnx" { "" } else { node.domain.as_str() };
    let Some(f) =
        functions.get(&(domain, node.op_type.as_str())).or_else(|| functions.get(&(&node.domain, &node.op_type)))
    else {
        let mut node = node;
        for body in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
            let mut nodes = Vec::with_capacity(body.node.len());
            for inner in std::mem::take(&mut body.node) {
                expand(inner, functions, &mut nodes, depth + 1)?;
            }
            body.node = nodes;
        }
        out.push(node);
        return Ok(());
    };
    if depth == MAX_DEPTH || out.len() > MAX_NODES {
        let cause = if depth == MAX_DEPTH { "the function calls itself" } else { "the functions make too many nodes" };
        return Err(Error::new(cause).at_node(&node.op_type, &node.name));
    }
    let prefix =
        if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name.clone() };
    let mut names: HashMap<&str, String> = HashMap::new();
    for (i, formal) in f.input.iter().enumerate() {
        names.insert(formal, node.input.get(i).cloned().unwrap_or_default());
    }
    for (i, formal) in f.output.iter().enumerate() {
        if let Some(actual) = node.output.get(i).filter(|n| !n.is_empty()) {
            names.insert(formal, actual.clone());
        }
    }
    let actual: HashMap<&str, &AttributeProto> =
        f.attribute_proto.iter().chain(&node.attribute).map(|a| (a.name.as_str(), a)).collect();
    for inner in &f.node {
        let mut inner = inner.clone();
        let rename = |name: &mut String| {
            if !name.is_empty() {
                *name = names.get(name.as_str()).cloned().unwrap_or_else(|| format!("{prefix}/{name}"));
            }
        };
        instantiate(&mut inner, &prefix, &rename, &actual);
        expand(inner, functions, out, depth + 1)?;
    }
    Ok(())
}

/// Gives a node of a function's body the names and attributes of a call, in the bodies of control flow too.
fn instantiate(
    node: &mut NodeProto,
    prefix: &str,
    rename: &dyn Fn(&mut String),
    actual: &HashMap<&str, &AttributeProto>,
) {
    node.input.iter_mut().for_each(rename);
    node.output.iter_mut().for_each(rename);
    node.name = format!("{prefix}/{}", node.name);
    node.attribute.retain_mut(|a| {
        if a.ref_attr_name.is_empty() {
            return true;
        }
        // A reference to an attribute that the call leaves out leaves this one out too.
        let Some(value) = actual.get(a.ref_attr_name.as_str()) else { return false };
        let name = std::mem::take(&mut a.name);
        *a = (*value).clone();
        a.name = name;
        true
    });
    for body in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
        body.input.iter_mut().chain(&mut body.output).for_each(|i| rename(&mut i.name));
        body.initializer.iter_mut().for_each(|i| rename(&mut i.name));
        body.sparse_initializer.iter_mut().for_each(|i| rename(&mut i.values.mut_or_insert_default().name));
        body.node.iter_mut().for_each(|n| instantiate(n, prefix, rename, actual));
    }
}
