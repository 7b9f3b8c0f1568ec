//! Operators of domain `bisam`, which stand for a few plain ones each and have a fast kernel: where they go, and their gradients.

use super::conv::bias_gradient;
use super::window::Window;
use super::{Call, Cotangents};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Attrs, DType, Graph, Node, Type, ValueId};
use std::collections::HashMap;

/// The domain of these operators.
pub const DOMAIN: &str = "bisam";

/// Elements of a plane below which the kernel of BatchNormalization does not pay.
const SMALL_PLANE: usize = 8;

fn list(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|v| *v as i64).collect())
}

/// Puts operators of domain `bisam` in the place of plain ones, before the graph is differentiated.
///
/// - Conv over two dimensions: the same, with its padding as numbers.
/// - BatchNormalization on the statistics of the batch, also with the Add and Relu behind it: one operator.
///
/// Everything is f32; whatever else there is stays plain.
///
/// # Errors
/// When the graph is not concretized.
pub fn fuse(graph: &mut Graph) -> Result<()> {
    graph.check_typed()?;
    fuse_batch_norm(graph);
    for i in 0..graph.nodes.len() {
        if let Some(attrs) = conv_attrs(graph, i) {
            let node = &mut graph.nodes[i];
            (node.domain, node.attrs) = (DOMAIN.into(), attrs);
        }
    }
    if graph.nodes.iter().any(|n| n.domain == DOMAIN) {
        graph.opsets.insert(DOMAIN.into(), 1);
    }
    graph.check_typed()
}

fn is_f32(graph: &Graph, node: &Node) -> bool {
    let values = node.inputs.iter().chain(&node.outputs).flatten();
    values.into_iter().all(|v| graph[*v].ty.as_ref().is_some_and(|t| t.dtype == DType::F32))
}

/// The attributes of `bisam.Conv` in the place of a Conv; none where it must stay.
fn conv_attrs(graph: &mut Graph, i: usize) -> Option<Attrs> {
    let node = &graph.nodes[i];
    let (x, weight) = (node.input(0)?, node.input(1)?);
    let rank = |v: ValueId| graph[v].ty.as_ref().map(|t| t.shape.len());
    if !node.is("Conv") || rank(x) != Some(4) || rank(weight) != Some(4) || !is_f32(graph, node) {
        return None;
    }
    let node = node.clone();
    let b = Builder::new(graph, "fuse");
    let call = Call::new(&node, Vec::new(), Vec::new());
    let group = call.attrs.int("group", 1).ok()?;
    // What is wrong with a window shows, with a reason, in the plain rule.
    let w = Window::new(&b, &call, b.shape(weight)[2..].to_vec()).ok()?;
    call.finish().ok()?;
    Some(attrs([
        ("strides", list(&w.strides)),
        ("dilations", list(&w.dilations)),
        ("pads", list(&[w.begin, w.end].concat())),
        ("group", Attr::Int(group)),
    ]))
}

/// What follows a BatchNormalization and becomes a part of it.
struct Tail {
    /// The nodes that go.
    nodes: Vec<usize>,
    residual: Option<ValueId>,
    output: ValueId,
}

fn fuse_batch_norm(graph: &mut Graph) {
    let readers = graph.readers();
    let mut gone = vec![false; graph.nodes.len()];
    let mut at: HashMap<usize, Node> = HashMap::new();
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let Some(norm) = fused_batch_norm(graph, node) else { continue };
        let tail = tail(graph, &readers, &gone, norm.outputs[0]);
        let mut fused = norm;
        let mut place = i;
        if let Some(tail) = tail {
            fused.attrs.insert("relu".into(), Attr::Int(1));
            fused.inputs.extend(tail.residual.map(Some));
            fused.outputs[0] = Some(tail.output);
            for n in &tail.nodes {
                gone[*n] = true;
                place = place.max(*n);
            }
        }
        gone[i] = true;
        at.insert(place, fused);
    }
    let nodes = std::mem::take(&mut graph.nodes);
    for (i, node) in nodes.into_iter().enumerate() {
        match at.remove(&i) {
            Some(fused) => graph.nodes.push(fused),
            None if gone[i] => {}
            None => graph.nodes.push(node),
        }
    }
}

/// `bisam.BatchNorm` in the place of a BatchNormalization on the statistics of the batch; none where it must stay.
fn fused_batch_norm(graph: &Graph, node: &Node) -> Option<Node> {
    let int = |name: &str| matches!(node.attrs.get(name), Some(Attr::Int(1)));
    let of_batch = int("training_mode") && node.attrs.get("momentum") == Some(&Attr::Float(0.0));
    if !node.is("BatchNormalization") || !of_batch || !is_f32(graph, node) {
        return None;
    }
    let shape = &graph[node.input(0)?].ty.as_ref()?.shape;
    if shape.len() < 3 || shape[2..].iter().product::<usize>() < SMALL_PLANE {
        return None;
    }
    let epsilon = node.attrs.get("epsilon").cloned().unwrap_or(Attr::Float(1e-5));
    Some(Node {
        name: node.name.clone(),
        domain: DOMAIN.into(),
        op: "BatchNorm".into(),
        inputs: [0, 1, 2].map(|i| node.input(i)).to_vec(),
        outputs: [node.output(0)?, node.output(1)?, node.output(2)?].map(Some).to_vec(),
        attrs: attrs([("epsilon", epsilon), ("relu", Attr::Int(0))]),
    })
}

/// A Relu, or an Add and a Relu, that are the only ones to read what is before them.
fn tail(graph: &Graph, readers: &HashMap<ValueId, Vec<usize>>, gone: &[bool], y: Option<ValueId>) -> Option<Tail> {
    let only = |v: ValueId| match readers.get(&v)?.as_slice() {
        [one] if !graph.outputs.contains(&v) && !gone[*one] => Some(*one),
        _ => None,
    };
    let y = y?;
    let next = only(y)?;
    let node = &graph.nodes[next];
    if node.is("Relu") {
        return Some(Tail { nodes: vec![next], residual: None, output: node.output(0)? });
    }
    if !node.is("Add") {
        return None;
    }
    let (a, b) = (node.input(0)?, node.input(1)?);
    let residual = if a == y { b } else { a };
    let sum = node.output(0)?;
    let last = only(sum)?;
    let same = graph[residual].ty == graph[y].ty;
    let relu = graph.nodes[last].is("Relu");
    let output = graph.nodes[last].output(0)?;
    (same && relu).then_some(Tail { nodes: vec![next, last], residual: Some(residual), output })
}

/// Appends one node of domain `bisam`.
fn kernel(b: &mut Builder<'_>, op: &str, inputs: &[ValueId], attrs: Attrs, outputs: &[Type]) -> Vec<ValueId> {
    let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
    b.raw(DOMAIN, op, &inputs, attrs, outputs)
}

/// As Conv: X̄ = `ConvInputGrad`(Ȳ, W), W̄ = `ConvWeightGrad`(X, Ȳ), B̄ = Σ Ȳ over all but M; X [N,C,H,W], W [M,C/g,K₁,K₂]; ONNX Conv-11.
pub fn conv(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, weight, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    c.attrs.ignore(&["strides", "dilations", "pads", "group"]);
    let with = |name: &str, v: ValueId, b: &Builder<'_>| {
        let mut all = c.node.attrs.clone();
        all.insert(name.into(), list(&b.shape(v)[2..]));
        all
    };
    let dx = c.wants(0).then(|| {
        let (attrs, ty) = (with("input_shape", x, b), b.ty(x));
        kernel(b, "ConvInputGrad", &[dy, weight], attrs, &[ty])[0]
    });
    let dw = c.wants(1).then(|| {
        let (attrs, ty) = (with("kernel_shape", weight, b), b.ty(weight));
        kernel(b, "ConvWeightGrad", &[x, dy], attrs, &[ty])[0]
    });
    Ok(vec![dx, dw, c.wants(2).then(|| bias_gradient(b, dy))])
}

/// As BatchNormalization on the statistics of the batch, an addition and Relu: `BatchNormGrad` gives X̄, γ̄, β̄ and the residual's
/// cotangent, Ȳ·[Y > 0]; X [N,C,…], γ, β `[C]`; ONNX BatchNormalization-15, Add-14, Relu-14.
pub fn batch_norm(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, gain, bias, dy) = (c.x(0)?, c.x(1)?, c.x(2)?, c.dy()?);
    c.attrs.ignore(&["epsilon", "relu"]);
    let mut inputs = vec![x, dy, gain, bias, c.y(1)?, c.y(2)?];
    let mut types = vec![b.ty(x), b.ty(gain), b.ty(bias)];
    if c.opt(3).is_some() {
        // The sign of the output depends on the residual, which is not kept.
        inputs.push(c.y(0)?);
        types.push(b.ty(x));
    }
    let grads = kernel(b, "BatchNormGrad", &inputs, c.node.attrs.clone(), &types);
    Ok(grads.into_iter().map(Some).collect())
}
