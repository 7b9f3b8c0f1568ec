//! Operators of domain `bisam`, which stand for a few plain ones each and have a fast kernel: where they go, and their gradients.

use super::activation::without_nan;
use super::conv::bias_gradient;
use super::window::Window;
use super::{Call, Cotangents, pool};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Attrs, DType, Graph, Node, Tensor, Type, ValueId};
use std::collections::HashMap;

/// The domain of these operators.
pub const DOMAIN: &str = "bisam";

/// Elements of a plane below which the kernel of BatchNormalization does not pay.
const SMALL_PLANE: usize = 2;

fn list(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|v| *v as i64).collect())
}

/// Puts operators of domain `bisam` in the place of plain ones, before the graph is differentiated.
///
/// - Conv and MaxPool over two dimensions: the same, with the padding as numbers.
/// - AveragePool over two dimensions whose windows all count the same: Conv of each channel with equal weights.
/// - BatchNormalization on the statistics of the batch, also with the Add and the Relu or Clip(0, …) behind it: one operator.
/// - LayerNormalization, RMSNormalization, GroupNorm as PyTorch writes it, Softmax over the last axis, Gelu (also written with Erf), and x·Sigmoid(x).
///
/// Everything is f32; whatever else there is stays plain.
///
/// # Errors
/// When the graph is not concretized.
pub fn fuse(graph: &mut Graph) -> Result<()> {
    graph.check_typed()?;
    fuse_batch_norm(graph);
    fuse_activations(graph);
    for node in 0..graph.nodes.len() {
        if let Some(fused) = fused_rows(graph, &graph.nodes[node]) {
            graph.nodes[node] = fused;
        }
    }
    for i in 0..graph.nodes.len() {
        if let Some(attrs) = conv_attrs(graph, i).or_else(|| max_pool_attrs(graph, i)) {
            let node = &mut graph.nodes[i];
            (node.domain, node.attrs) = (DOMAIN.into(), attrs);
        } else if let Some(conv) = fused_average_pool(graph, i) {
            graph.nodes[i] = conv;
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

/// The attributes of `bisam.MaxPool` in the place of a MaxPool; none where it must stay.
fn max_pool_attrs(graph: &mut Graph, i: usize) -> Option<Attrs> {
    let node = graph.nodes[i].clone();
    let rank = graph[node.input(0)?].ty.as_ref()?.shape.len();
    if !node.is("MaxPool") || rank != 4 || !is_f32(graph, &node) || node.output(1).is_some() {
        return None;
    }
    let b = Builder::new(graph, "fuse");
    let call = Call::new(&node, Vec::new(), Vec::new());
    let w = pool::window(&b, &call).ok()?;
    call.attrs.ignore(&["storage_order"]);
    call.finish().ok()?;
    Some(attrs([
        ("strides", list(&w.strides)),
        ("dilations", list(&w.dilations)),
        ("pads", list(&[w.begin, w.end].concat())),
        ("kernel_shape", list(&w.kernel)),
        ("output_shape", list(&w.output)),
    ]))
}

/// `bisam.Conv` in the place of an AveragePool; none where it must stay.
fn fused_average_pool(graph: &mut Graph, i: usize) -> Option<Node> {
    let mut node = graph.nodes[i].clone();
    let shape = graph[node.input(0)?].ty.as_ref()?.shape.clone();
    if !node.is("AveragePool") || shape.len() != 4 || !is_f32(graph, &node) {
        return None;
    }
    let mut b = Builder::new(graph, "fuse");
    let call = Call::new(&node, Vec::new(), Vec::new());
    let w = pool::window(&b, &call).ok()?;
    let padding = call.attrs.flag("count_include_pad", false).ok()?;
    call.finish().ok()?;
    // Elements in the padding count in all windows or are in none, and no window reaches further.
    let counted = |i: usize| if padding { w.begin[i] + w.input[i] + w.end[i] } else { w.input[i] };
    let padded = |i: usize| !padding && w.begin[i] + w.end[i] > 0;
    if (0..2).any(|i| padded(i) || w.reach(i) > counted(i)) {
        return None;
    }
    let share = 1.0 / w.kernel.iter().product::<usize>() as f64;
    let weight = Tensor::full(DType::F32, &[&[shape[1], 1], w.kernel.as_slice()].concat(), share);
    node.inputs.push(Some(b.constant(weight)));
    (node.domain, node.op) = (DOMAIN.into(), "Conv".into());
    node.attrs = attrs([
        ("strides", list(&w.strides)),
        ("dilations", list(&w.dilations)),
        ("pads", list(&[w.begin, w.end].concat())),
        ("group", Attr::Int(shape[1] as i64)),
    ]);
    Some(node)
}

/// What follows a BatchNormalization and becomes a part of it.
struct Tail {
    /// The nodes that go.
    nodes: Vec<usize>,
    residual: Option<ValueId>,
    output: ValueId,
    /// The greatest output: that of a Clip, or infinity.
    ceiling: f32,
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
            fused.attrs.insert("ceiling".into(), Attr::Float(tail.ceiling));
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

/// A Relu, a Clip from 0 on, or an Add and one of these, that are the only ones to read what is before them.
fn tail(graph: &Graph, readers: &HashMap<ValueId, Vec<usize>>, gone: &[bool], y: Option<ValueId>) -> Option<Tail> {
    let only = |v: ValueId| match readers.get(&v)?.as_slice() {
        [one] if !graph.outputs.contains(&v) && !gone[*one] => Some(*one),
        _ => None,
    };
    let y = y?;
    let next = only(y)?;
    let node = &graph.nodes[next];
    if let Some(ceiling) = ceiling(graph, node) {
        return Some(Tail { nodes: vec![next], residual: None, output: node.output(0)?, ceiling });
    }
    if !node.is("Add") {
        return None;
    }
    let (a, b) = (node.input(0)?, node.input(1)?);
    let residual = if a == y { b } else { a };
    let sum = node.output(0)?;
    let last = only(sum)?;
    let same = graph[residual].ty == graph[y].ty;
    let ceiling = ceiling(graph, &graph.nodes[last])?;
    let output = graph.nodes[last].output(0)?;
    same.then_some(Tail { nodes: vec![next, last], residual: Some(residual), output, ceiling })
}

/// The greatest number that a Relu, or a Clip from 0 on, lets through; none for any other node.
fn ceiling(graph: &Graph, node: &Node) -> Option<f32> {
    if node.is("Relu") {
        return Some(f32::INFINITY);
    }
    let bound = |i: usize| graph.constant(node.input(i)?).and_then(Tensor::uniform);
    let high = bound(2).filter(|high| *high > 0.0)? as f32;
    (node.is("Clip") && bound(1) == Some(0.0)).then_some(high)
}

/// `bisam.LayerNorm` or `bisam.Softmax` in the place of the same, and of InstanceNormalization with the factor 1 and the summand 0,
/// which is how PyTorch writes GroupNorm; none where it must stay.
fn fused_rows(graph: &Graph, node: &Node) -> Option<Node> {
    let (layer, instance) = (node.is("LayerNormalization"), node.is("InstanceNormalization"));
    let rms = node.is("RMSNormalization") || node.is("SimplifiedLayerNormalization");
    if !(layer || instance || rms || node.is("Softmax"))
        || !is_f32(graph, node)
        || node.outputs.iter().skip(1).any(Option::is_some)
    {
        return None;
    }
    let shape = |v: ValueId| graph[v].ty.as_ref().map(|t| t.shape.as_slice());
    let x = shape(node.input(0)?)?;
    let axis = match node.attrs.get("axis") {
        Some(Attr::Int(axis)) => *axis,
        _ if instance => 2,
        _ => -1,
    };
    let axis = usize::try_from(if axis < 0 { axis + x.len() as i64 } else { axis }).ok().filter(|a| *a < x.len())?;
    if x.contains(&0) {
        return None;
    }
    let fused = |op: &str, inputs: usize, attrs: Attrs| Node {
        name: node.name.clone(),
        domain: DOMAIN.into(),
        op: op.into(),
        inputs: node.inputs.iter().take(inputs).copied().collect(),
        outputs: vec![node.output(0)],
        attrs,
    };
    if node.is("Softmax") {
        return (axis + 1 == x.len()).then(|| fused("Softmax", 1, Attrs::new()));
    }
    let vectors: Vec<ValueId> = node.inputs[1..].iter().flatten().copied().collect();
    let all = |value: f64| move |v: ValueId| graph.constant(v).and_then(Tensor::uniform) == Some(value);
    let kept = match vectors.as_slice() {
        [gain, bias] if instance && all(1.0)(*gain) && all(0.0)(*bias) => 0,
        [_] | [_, _] if !instance && vectors.iter().all(|v| shape(*v) == Some(&x[axis..])) => vectors.len(),
        _ => return None,
    };
    let epsilon = node.attrs.get("epsilon").cloned().unwrap_or(Attr::Float(1e-5));
    let centred = Attr::Int(i64::from(!rms));
    let attrs = attrs([("epsilon", epsilon), ("centred", centred), ("axis", Attr::Int(axis as i64))]);
    Some(fused("LayerNorm", 1 + kept, attrs))
}

/// Puts one operator in the place of a Gelu, or of a few nodes that are an activation.
fn fuse_activations(graph: &mut Graph) {
    let (readers, producers) = (graph.readers(), graph.producers());
    let mut gone = vec![false; graph.nodes.len()];
    for i in 0..graph.nodes.len() {
        let Some((op, x, nodes)) = activation(graph, &readers, &producers, i) else { continue };
        if nodes.iter().any(|n| gone[*n]) {
            continue;
        }
        // The last of the nodes has the output.
        let Some(place) = nodes.iter().copied().max() else { continue };
        nodes.iter().filter(|n| **n != place).for_each(|n| gone[*n] = true);
        let node = &mut graph.nodes[place];
        let outputs = node.outputs.clone();
        *node = Node {
            domain: DOMAIN.into(),
            op: op.into(),
            inputs: vec![Some(x)],
            outputs,
            attrs: Attrs::new(),
            name: node.name.clone(),
        };
    }
    let mut gone = gone.into_iter();
    graph.nodes.retain(|_| !gone.next().unwrap_or_default());
}

/// The activation that node `i` is or is a part of: its operator, its input and its nodes.
fn activation(
    graph: &Graph,
    readers: &HashMap<ValueId, Vec<usize>>,
    producers: &HashMap<ValueId, usize>,
    i: usize,
) -> Option<(&'static str, ValueId, Vec<usize>)> {
    let node = &graph.nodes[i];
    if !is_f32(graph, node) {
        return None;
    }
    let only = |v: ValueId| match readers.get(&v)?.as_slice() {
        [one] if !graph.outputs.contains(&v) => Some(*one),
        _ => None,
    };
    let near = |v: ValueId, value: f64| {
        let constant = graph.constant(v).and_then(Tensor::uniform);
        constant.is_some_and(|c| (c - value).abs() < 1e-6 * value && graph[v].ty.as_ref().is_some_and(|t| t.len() == 1))
    };
    // The other operand of a commutative node.
    let other = |n: usize, op: &str, v: ValueId| {
        let node = &graph.nodes[n];
        let (a, b) = (node.input(0)?, node.input(1)?);
        (node.is(op) && a != b && (a == v || b == v)).then_some(if a == v { b } else { a })
    };
    if node.is("Gelu") {
        let exact = node.attrs.get("approximate").is_none_or(|a| *a == Attr::Str("none".into()));
        return exact.then_some(("Gelu", node.input(0)?, vec![i]));
    }
    if node.is("Sigmoid") {
        let (x, y) = (node.input(0)?, node.output(0)?);
        let product = only(y)?;
        return (other(product, "Mul", y)? == x).then_some(("Silu", x, vec![i, product]));
    }
    if !node.is("Erf") {
        return None;
    }
    // x/√2 or x·√½ → Erf → + 1 → · x → · ½, or · (x · ½)
    let (z, y) = (node.input(0)?, node.output(0)?);
    let scale = *producers.get(&z)?;
    let (from, factor) = (graph.nodes[scale].input(0)?, graph.nodes[scale].input(1)?);
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let x = match () {
        () if graph.nodes[scale].is("Div") && near(factor, std::f64::consts::SQRT_2) => from,
        () if graph.nodes[scale].is("Mul") && near(factor, half) => from,
        () if graph.nodes[scale].is("Mul") && near(from, half) => factor,
        () => return None,
    };
    only(z)?;
    let plus = only(y)?;
    if !near(other(plus, "Add", y)?, 1.0) {
        return None;
    }
    let sum = graph.nodes[plus].output(0)?;
    let product = only(sum)?;
    let factor = other(product, "Mul", sum)?;
    if factor == x {
        let whole = graph.nodes[product].output(0)?;
        let last = only(whole)?;
        return near(other(last, "Mul", whole)?, 0.5).then_some(("Gelu", x, vec![scale, i, plus, product, last]));
    }
    let halved = *producers.get(&factor)?;
    only(factor)?;
    near(other(halved, "Mul", x)?, 0.5).then_some(("Gelu", x, vec![scale, i, plus, halved, product]))
}

/// Appends one node of domain `bisam`.
fn kernel(b: &mut Builder<'_>, op: &str, inputs: &[ValueId], attrs: Attrs, outputs: &[Type]) -> Vec<ValueId> {
    let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
    b.raw(DOMAIN, op, &inputs, attrs, outputs)
}

/// As Conv: X̄ = `ConvInputGrad`(Ȳ, W), W̄ = `ConvWeightGrad`(X, Ȳ), B̄ = Σ Ȳ over all but M; X [N,C,H,W], W [M,C/g,K₁,K₂]; ONNX Conv-11.
pub fn conv(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, weight, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    c.attrs.ignore(&["strides", "dilations", "pads", "group", "bf16"]);
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

/// As MaxPool: X̄ = `MaxPoolGrad`(X, Ȳ), each Ȳ where the first of its window's maxima is; X [N,C,H,W]; ONNX MaxPool-12.
pub fn max_pool(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    c.attrs.ignore(&["strides", "dilations", "pads", "kernel_shape", "output_shape"]);
    let ty = b.ty(x);
    Ok(vec![Some(kernel(b, "MaxPoolGrad", &[x, dy], c.node.attrs.clone(), &[ty])[0])])
}

/// As BatchNormalization on the statistics of the batch, an addition and Relu: `BatchNormGrad` gives X̄, γ̄, β̄ and the residual's
/// cotangent, Ȳ·[Y > 0]; X [N,C,…], γ, β `[C]`; ONNX BatchNormalization-15, Add-14, Relu-14.
pub fn batch_norm(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, gain, bias, dy) = (c.x(0)?, c.x(1)?, c.x(2)?, c.dy()?);
    c.attrs.ignore(&["epsilon", "relu", "ceiling"]);
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

/// As LayerNormalization, or without `centred` RMSNormalization: `LayerNormGrad` gives X̄, γ̄ and β̄; X [A…,B…], γ, β [B…], or neither;
/// ONNX LayerNormalization-17, RMSNormalization-23, InstanceNormalization-6.
pub fn layer_norm(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    c.attrs.ignore(&["epsilon", "centred", "axis"]);
    let (mut inputs, mut types) = (vec![x, dy], vec![b.ty(x)]);
    if let Some(gain) = c.opt(1) {
        inputs.push(gain);
        types.extend([b.ty(gain), b.ty(gain)]);
    }
    let grads = kernel(b, "LayerNormGrad", &inputs, c.node.attrs.clone(), &types);
    Ok(grads.into_iter().map(Some).take(c.node.inputs.len()).collect())
}

/// As Softmax over the last axis: X̄ = `SoftmaxGrad`(Y, Ȳ) = Y·(Ȳ − Σ Ȳ·Y), with 0 for rows that are masked as a whole; ONNX Softmax-13.
pub fn softmax(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (y, dy) = (without_nan(b, c.y(0)?)?, c.dy()?);
    let ty = b.ty(y);
    Ok(vec![Some(kernel(b, "SoftmaxGrad", &[y, dy], Attrs::new(), &[ty])[0])])
}

/// As x·Sigmoid(x): X̄ = `SiluGrad`(X, Ȳ) = Ȳ·σ(1 + X(1 − σ)).
pub fn silu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    pointwise(b, c, "SiluGrad")
}

/// As Gelu: X̄ = `GeluGrad`(X, Ȳ) = Ȳ·(Φ(X) + Xφ(X)); ONNX Gelu-20.
pub fn gelu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    pointwise(b, c, "GeluGrad")
}

fn pointwise(b: &mut Builder<'_>, c: &Call<'_>, op: &str) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let ty = b.ty(x);
    Ok(vec![Some(kernel(b, op, &[x, dy], Attrs::new(), &[ty])[0])])
}
