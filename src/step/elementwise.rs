//! Runs of elementwise operators on flat vectors, put together into one operator each.
//!
//! `perturb` and `update` are some ten operators over vectors as long as all parameters, and a device reads and writes memory for each of
//! them. Between two reductions they depend on each other element by element only, so `bisam.Elementwise` does them in one pass: its
//! attribute `code` is the body of a loop in C over elements `i`, with inputs `a.x[k]` and outputs `a.y[k]`.

use crate::autodiff::DOMAIN;
use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, Graph, Node, Source, ValueId};
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

/// Inputs and outputs that the operator has place for.
pub const MOST: (usize, usize) = (12, 8);

/// Puts the elementwise operators of a stage on flat buffers together; those on scalars are repeated where they are read.
///
/// # Errors
/// More inputs or outputs of a run than the operator has place for.
pub fn fuse_elementwise(graph: &mut Graph) -> Result<()> {
    let kinds = kinds(graph);
    let deepest = kinds.iter().map(|k| k.depth).max().unwrap_or(0);
    let is_vector = |v: &ValueId| graph[*v].ty.as_ref().is_some_and(|t| t.len() > 1);
    let makes_vector = |n: &Node| n.outputs.iter().flatten().any(is_vector);
    let mut nodes: Vec<Node> = Vec::new();
    for depth in 0..=deepest {
        let at = |elementwise: bool| {
            let nodes = kinds.iter().zip(&graph.nodes);
            nodes.filter(|(k, _)| **k == Kind { depth, elementwise }).map(|(_, n)| n).collect::<Vec<&Node>>()
        };
        let run = at(true);
        let (vectors, scalars): (Vec<&Node>, Vec<&Node>) = run.iter().partition(|n| makes_vector(n));
        if vectors.len() > 1 {
            let others = (0..kinds.len()).filter(|i| kinds[*i] != Kind { depth, elementwise: true });
            let outside = others.flat_map(|i| graph.nodes[i].inputs.iter().flatten());
            let read: HashSet<ValueId> = outside.chain(&graph.outputs).copied().collect();
            let made = vectors.iter().flat_map(|n| n.outputs.iter().flatten());
            let written: Vec<ValueId> = made.filter(|v| read.contains(v)).copied().collect();
            // What is scalar is computed by itself, too, for whatever else reads it.
            nodes.extend(scalars.into_iter().cloned());
            nodes.push(together(graph, &run, &written, depth)?);
        } else {
            nodes.extend(run.into_iter().cloned());
        }
        nodes.extend(at(false).into_iter().cloned());
    }
    graph.nodes = nodes;
    graph.opsets.insert(DOMAIN.into(), 1);
    graph.remove_dead_nodes();
    graph.check_typed()
}

/// What a node is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    /// How many nodes that are not elementwise lie before it, one behind the other.
    depth: usize,
    elementwise: bool,
}

fn kinds(graph: &Graph) -> Vec<Kind> {
    let mut after: HashMap<ValueId, usize> = HashMap::new();
    let mut kinds = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let depth = node.inputs.iter().flatten().filter_map(|v| after.get(v)).max().copied().unwrap_or(0);
        let any = ["0".into(), "0".into()];
        let elementwise = node.domain.is_empty() && expression(node, &any).is_some();
        for v in node.outputs.iter().flatten() {
            after.insert(*v, depth + usize::from(!elementwise));
        }
        kinds.push(Kind { depth, elementwise });
    }
    kinds
}

/// One node for a run.
fn together(graph: &Graph, run: &[&Node], written: &[ValueId], depth: usize) -> Result<Node> {
    let mut inputs: Vec<ValueId> = Vec::new();
    let mut names: HashMap<ValueId, String> = HashMap::new();
    let mut code = String::new();
    for node in run {
        let mut read = Vec::new();
        for v in node.inputs.iter().flatten() {
            let name = match names.get(v) {
                Some(name) => name.clone(),
                None => {
                    let name = operand(graph, *v, &mut inputs)?;
                    names.insert(*v, name.clone());
                    name
                }
            };
            read.push(name);
        }
        let value = expression(node, &read).ok_or_else(|| node.blame(Error::new("it is not elementwise")))?;
        let y = node.output(0).ok_or_else(|| node.blame(Error::new("it has no output")))?;
        let name = format!("v{}", names.len());
        writeln!(code, "float {name} = {value};").map_err(|e| Error::new(e.to_string()))?;
        names.insert(y, name);
    }
    for (k, v) in written.iter().enumerate() {
        writeln!(code, "a.y[{k}][i] = {};", names[v]).map_err(|e| Error::new(e.to_string()))?;
    }
    if inputs.len() > MOST.0 || written.len() > MOST.1 {
        crate::bail!("a run of {} operators has {} inputs and {} outputs", run.len(), inputs.len(), written.len());
    }
    Ok(Node {
        name: format!("elementwise/{depth}"),
        domain: DOMAIN.into(),
        op: "Elementwise".into(),
        inputs: inputs.into_iter().map(Some).collect(),
        outputs: written.iter().copied().map(Some).collect(),
        attrs: Attrs::from([("code".into(), Attr::Str(code))]),
    })
}

/// How the code reads a value from outside: a number, or an element of an input.
fn operand(graph: &Graph, v: ValueId, inputs: &mut Vec<ValueId>) -> Result<String> {
    let one = graph.ty(v)?.len() == 1;
    if let (Source::Constant(t), true) = (&graph[v].source, one)
        && let Some(number) = t.to_f64().first().filter(|n| n.is_finite())
    {
        // Nine digits tell every float from its neighbours.
        return Ok(format!("{number:.9e}f"));
    }
    let k = inputs.iter().position(|x| *x == v).unwrap_or_else(|| {
        inputs.push(v);
        inputs.len() - 1
    });
    Ok(if one { format!("a.x[{k}][0]") } else { format!("a.x[{k}][i]") })
}

/// What a node computes of its operands, in C; none where it is not elementwise.
fn expression(node: &Node, x: &[String]) -> Option<String> {
    let infix = |op: &str| Some(format!("{} {op} {}", x.first()?, x.get(1)?));
    let call = |f: &str| Some(format!("{f}({})", x[..node.inputs.len().min(x.len())].join(", ")));
    match node.op.as_str() {
        "Add" => infix("+"),
        "Sub" => infix("-"),
        "Mul" => infix("*"),
        "Div" => infix("/"),
        "Neg" => Some(format!("-({})", x.first()?)),
        "Abs" => call("fabsf"),
        "Sqrt" => call("sqrtf"),
        "Min" if node.inputs.len() == 2 => call("fminf"),
        _ => None,
    }
}
