//! Operators of ai.onnx written out as others on import: those of experiments before opset 10, and those that ONNX Runtime has no kernel
//! of.

use super::Writer;
use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, Node, Tensor, ValueId};

/// Whether an operator of operator set `opset` is written out.
pub(super) fn is_written_out(node: &Node, opset: i64) -> bool {
    match node.op.as_str() {
        "GRU" | "LSTM" | "RNN" => node.attrs.get("layout") == Some(&Attr::Int(1)),
        "Affine" | "Crop" | "DynamicSlice" | "ImageScaler" | "ParametricSoftplus" | "Scale" | "ScaledTanh"
        | "SwiGLU" => true,
        "MeanVarianceNormalization" => opset < 9,
        "Swish" => opset > 24,
        _ => false,
    }
}

/// Appends what computes the node's output.
///
/// # Errors
/// An attribute that is missing, or not known.
pub(super) fn write_out(w: &mut Writer<'_>, node: Node) -> Result<()> {
    if matches!(node.op.as_str(), "GRU" | "LSTM" | "RNN") {
        batch_second(w, node);
        return Ok(());
    }
    let mut attrs = node.attrs.clone();
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Ok(()) };
    match node.op.as_str() {
        "Affine" => {
            let (alpha, beta) = (float(&mut attrs, "alpha", 1.0), float(&mut attrs, "beta", 0.0));
            let (alpha, beta) = (w.scalar(alpha), w.scalar(beta));
            let scaled = w.op("Mul", &[x, alpha], Attrs::new());
            w.op_to("Add", &[scaled, beta], Attrs::new(), y);
        }
        "Scale" => {
            let scale = float(&mut attrs, "scale", 1.0);
            let scale = w.scalar(scale);
            w.op_to("Mul", &[x, scale], Attrs::new(), y);
        }
        "ImageScaler" => {
            let scale = float(&mut attrs, "scale", 1.0);
            let Some(Attr::Floats(bias)) = attrs.remove("bias") else { return Err(missing("bias")) };
            let scale = w.scalar(scale);
            let bias = w.constant(Tensor::new(&[1, bias.len(), 1, 1], &bias)?);
            let scaled = w.op("Mul", &[x, scale], Attrs::new());
            w.op_to("Add", &[scaled, bias], Attrs::new(), y);
        }
        "ParametricSoftplus" => scaled(w, &mut attrs, "Softplus", x, y)?,
        "ScaledTanh" => scaled(w, &mut attrs, "Tanh", x, y)?,
        "Swish" => {
            let alpha = float(&mut attrs, "alpha", 1.0);
            swish(w, alpha, x, y);
        }
        "SwiGLU" => {
            let alpha = float(&mut attrs, "alpha", 1.0);
            let linear = node.input(1).ok_or_else(|| Error::new("its second input is missing"))?;
            let gate = w.value("Swish");
            swish(w, alpha, x, gate);
            w.op_to("Mul", &[gate, linear], Attrs::new(), y);
        }
        "Crop" => crop(w, &mut attrs, x, y)?,
        "DynamicSlice" => w.raw("Slice", node.inputs.clone(), Attrs::new(), y),
        _ => mean_variance(w, &mut attrs, x, y),
    }
    match attrs.keys().next() {
        None => Ok(()),
        Some(name) => Err(Error::new(format!("attribute `{name}` is not known"))),
    }
}

fn missing(name: &str) -> Error {
    Error::new(format!("attribute `{name}` is missing"))
}

fn float(attrs: &mut Attrs, name: &str, default: f32) -> f32 {
    if let Some(Attr::Float(v)) = attrs.remove(name) { v } else { default }
}

/// A recurrent layer whose batch comes first (`layout = 1`), between transpositions.
fn batch_second(w: &mut Writer<'_>, mut node: Node) {
    node.attrs.remove("layout");
    let perm = |p: &[i64]| Attrs::from([("perm".into(), Attr::Ints(p.to_vec()))]);
    for slot in [0, 5, 6] {
        if let Some(v) = node.input(slot) {
            node.inputs[slot] = Some(w.op("Transpose", &[v], perm(&[1, 0, 2])));
        }
    }
    let given = std::mem::take(&mut node.outputs);
    node.outputs = given.iter().map(|v| v.map(|_| w.value("output"))).collect();
    let made = node.outputs.clone();
    w.graph.nodes.push(node);
    for (i, (from, to)) in made.into_iter().zip(given).enumerate() {
        if let (Some(from), Some(to)) = (from, to) {
            // Y is [T,D,N,H], the last states are [D,N,H].
            w.op_to("Transpose", &[from], perm(if i == 0 { &[2, 0, 1, 3] } else { &[1, 0, 2] }), to);
        }
    }
}

/// α·f(βx)
fn scaled(w: &mut Writer<'_>, attrs: &mut Attrs, op: &str, x: ValueId, y: ValueId) -> Result<()> {
    let [alpha, beta] = ["alpha", "beta"].map(|name| match attrs.remove(name) {
        Some(Attr::Float(v)) => Ok(v),
        _ => Err(missing(name)),
    });
    let (alpha, beta) = (w.scalar(alpha?), w.scalar(beta?));
    let inner = w.op("Mul", &[x, beta], Attrs::new());
    let outer = w.op(op, &[inner], Attrs::new());
    w.op_to("Mul", &[outer, alpha], Attrs::new(), y);
    Ok(())
}

/// x·σ(αx), as the function body of Swish has it.
fn swish(w: &mut Writer<'_>, alpha: f32, x: ValueId, y: ValueId) {
    let inner = if alpha == 1.0 {
        x
    } else {
        let alpha = w.scalar(alpha);
        let alpha = w.op("CastLike", &[alpha, x], Attrs::new());
        w.op("Mul", &[alpha, x], Attrs::new())
    };
    let sigmoid = w.op("Sigmoid", &[inner], Attrs::new());
    w.op_to("Mul", &[x, sigmoid], Attrs::new(), y);
}

/// The image without `border` (left, top, right, bottom) elements, or, with `scale`, that many rows and columns of it.
fn crop(w: &mut Writer<'_>, attrs: &mut Attrs, x: ValueId, y: ValueId) -> Result<()> {
    let Some(Attr::Ints(border)) = attrs.remove("border") else { return Err(missing("border")) };
    let &[left, top, right, bottom] = border.as_slice() else { crate::bail!("`border` is {border:?}") };
    let ends = match attrs.remove("scale") {
        Some(Attr::Ints(size)) if size.len() == 2 => [top + size[0], left + size[1]],
        Some(_) => crate::bail!("`scale` is not a height and a width"),
        None => [bottom, right].map(|n| if n == 0 { i64::MAX } else { -n }),
    };
    let [starts, ends, axes] = [[top, left], ends, [2, 3]].map(|v| w.constant(Tensor::ints(&v)));
    w.op_to("Slice", &[x, starts, ends, axes], Attrs::new(), y);
    Ok(())
}

/// MeanVarianceNormalization of opset 1, whose standard deviation has no ε: over the batch too, and over the channels with
/// `across_channels`.
fn mean_variance(w: &mut Writer<'_>, attrs: &mut Attrs, x: ValueId, y: ValueId) {
    let flag = |attrs: &mut Attrs, name: &str, default: i64| match attrs.remove(name) {
        Some(Attr::Int(v)) => v != 0,
        _ => default != 0,
    };
    let (across, normalize) = (flag(attrs, "across_channels", 0), flag(attrs, "normalize_variance", 1));
    let axes = w.constant(Tensor::ints(if across { &[0, 1, 2, 3] } else { &[0, 2, 3] }));
    let mean = w.op("ReduceMean", &[x, axes], Attrs::new());
    if !normalize {
        w.op_to("Sub", &[x, mean], Attrs::new(), y);
        return;
    }
    let centred = w.op("Sub", &[x, mean], Attrs::new());
    let square = w.op("Mul", &[centred, centred], Attrs::new());
    let variance = w.op("ReduceMean", &[square, axes], Attrs::new());
    let deviation = w.op("Sqrt", &[variance], Attrs::new());
    w.op_to("Div", &[centred, deviation], Attrs::new(), y);
}
