//! Model-local functions, replaced by their bodies.

use super::changes::change_between;
use crate::error::{Error, Result};
use onnx_protobuf::{AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto};
use std::collections::HashMap;

/// How deep functions may call each other; a deeper nest is a cycle.
const MAX_DEPTH: usize = 64;

/// More nodes than any model has once its functions are written out.
const MAX_NODES: usize = 1 << 22;

/// Copies of the graph's nodes with every call of a model-local function replaced by the function's body.
///
/// Values inside a body get the call's node name (or first output) as a prefix. All nodes then are of operator set `newest`, the newest
/// that the model and its functions import.
///
/// # Errors
/// Functions that call themselves, or that make too many nodes; an operator that is another one in `newest` than where it stands.
pub(super) fn inline(model: &ModelProto, newest: i64) -> Result<Vec<NodeProto>> {
    let functions = model.functions.iter().map(|f| (key(&f.domain, &f.name, &f.overload), f)).collect();
    let mut out = Vec::with_capacity(model.graph.node.len());
    let version = version(&model.opset_import).unwrap_or(newest);
    for node in &model.graph.node {
        Inliner { functions: &functions, newest }.expand(node.clone(), &mut out, 0, version)?;
    }
    Ok(out)
}

/// The version of ai.onnx among imports.
fn version(imports: &[OperatorSetIdProto]) -> Option<i64> {
    imports.iter().filter(|i| plain(&i.domain).is_empty()).map(|i| i.version).max()
}

fn plain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Domain, name and overload of a function.
type Key<'a> = [&'a str; 3];

fn key<'a>(domain: &'a str, name: &'a str, overload: &'a str) -> Key<'a> {
    [plain(domain), name, overload]
}

/// What a file's functions are, and the operator set that everything ends up in.
struct Inliner<'a> {
    functions: &'a HashMap<Key<'a>, &'a FunctionProto>,
    newest: i64,
}

impl Inliner<'_> {
    /// Appends `node` of operator set `version`, or what it calls.
    fn expand(&self, node: NodeProto, out: &mut Vec<NodeProto>, depth: usize, version: i64) -> Result<()> {
        let functions = self.functions;
        let Some(f) = functions.get(&key(&node.domain, &node.op_type, &node.overload)) else {
            let mut node = node;
            let changed =
                change_between(&node.op_type, version, self.newest).filter(|_| plain(&node.domain).is_empty());
            if let Some(changed) = changed {
                let (op, newest) = (&node.op_type, self.newest);
                let cause = format!(
                    "it is of operator set {version}, others of {newest}, and {op} is another one from {changed} on"
                );
                return Err(Error::new(cause)
                    .at_node(op, &node.name)
                    .hint("the model and its functions import different operator sets: export it with one"));
            }
            for body in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
                let mut nodes = Vec::with_capacity(body.node.len());
                for inner in std::mem::take(&mut body.node) {
                    self.expand(inner, &mut nodes, depth + 1, version)?;
                }
                body.node = nodes;
            }
            out.push(node);
            return Ok(());
        };
        if depth == MAX_DEPTH || out.len() > MAX_NODES {
            let cause =
                if depth == MAX_DEPTH { "the function calls itself" } else { "the functions make too many nodes" };
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
        let inside = self::version(&f.opset_import).unwrap_or(version);
        for inner in &f.node {
            let mut inner = inner.clone();
            let rename = |name: &mut String| {
                if !name.is_empty() {
                    *name = names.get(name.as_str()).cloned().unwrap_or_else(|| format!("{prefix}/{name}"));
                }
            };
            instantiate(&mut inner, &prefix, &rename, &actual);
            self.expand(inner, out, depth + 1, inside)?;
        }
        Ok(())
    }
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
