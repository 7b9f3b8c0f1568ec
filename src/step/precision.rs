//! Products in half precision around weights, statistics and sums in f32.
//!
//! Factors of convolutions and matrix products are rounded on their way in, and products are f32 again on their way out. Casts are
//! differentiated like anything else, so cotangents are rounded where they are factors of the backward pass's products, and nowhere else.
//! Weights, perturbations, norms and updates never are (Micikevicius et al. 2018, without a scaled loss: bf16 has f32's exponents).

use crate::autodiff::DOMAIN;
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Attrs, DType, Graph, Node, Source, Type, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What the factors of products are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Nothing; on CUDA, `--tf32` may round them as they are read.
    #[default]
    F32,
    /// 8 bits instead of 24; on CUDA only.
    Bf16,
}

/// Has the convolutions and matrix products of a forward graph take factors of type `dtype`: matrix products by casts, convolutions of
/// domain `bisam` by an attribute that its kernels know. Plain convolutions stay: the CUDA provider has none in bf16 before opset 22.
///
/// # Errors
/// When the graph is not concretized.
pub fn round_factors(graph: &mut Graph, dtype: DType) -> Result<()> {
    graph.check_typed()?;
    let mut rounded: HashMap<ValueId, ValueId> = HashMap::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        let f32s = node.inputs.iter().chain(&node.outputs).flatten().all(|v| is_f32(graph, *v));
        if node.domain == DOMAIN && node.op == "Conv" {
            node.attrs.insert("bf16".into(), Attr::Int(1));
        }
        match node.output(0).filter(|_| f32s && (node.is("MatMul") || node.is("Gemm"))) {
            Some(output) => round(graph, node, output, dtype, &mut rounded)?,
            None => graph.nodes.push(node),
        }
    }
    graph.check_typed()
}

fn is_f32(graph: &Graph, v: ValueId) -> bool {
    graph[v].ty.as_ref().is_some_and(|t| t.dtype == DType::F32)
}

/// Puts a product between casts; what a Gemm adds is added in f32.
fn round(
    graph: &mut Graph,
    mut node: Node,
    output: ValueId,
    dtype: DType,
    rounded: &mut HashMap<ValueId, ValueId>,
) -> Result<()> {
    let shape = graph.ty(output)?.shape.clone();
    let added = node.inputs.get(2).copied().flatten();
    let beta = node.attrs.remove("beta").filter(|_| added.is_some());
    node.inputs.truncate(2);
    for factor in node.inputs.iter_mut().flatten() {
        *factor = *rounded.entry(*factor).or_insert_with(|| Builder::new(graph, "rounded").cast(*factor, dtype));
    }
    let name = node.name.clone();
    let product = graph.add_value(&format!("{name}/rounded"), Some(Type { dtype, shape: shape.clone() }), Source::Node);
    node.outputs[0] = Some(product);
    graph.nodes.push(node);
    let last = |op: &str, inputs: &[ValueId], attrs: Attrs| Node {
        name: format!("{name}/exact"),
        domain: String::new(),
        op: op.into(),
        inputs: inputs.iter().copied().map(Some).collect(),
        outputs: vec![Some(output)],
        attrs,
    };
    let Some(added) = added else {
        let to = attrs([("to", Attr::Int(i64::from(DType::F32.onnx())))]);
        graph.nodes.push(last("Cast", &[product], to));
        return Ok(());
    };
    let mut b = Builder::new(graph, &name);
    let product = b.cast(product, DType::F32);
    let added = match beta {
        Some(Attr::Float(beta)) if beta != 1.0 => b.scale(added, f64::from(beta))?,
        _ => added,
    };
    graph.nodes.push(last("Add", &[product, added], Attrs::new()));
    Ok(())
}
