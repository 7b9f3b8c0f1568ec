//! Reverse-mode differentiation of a concretized graph.
//!
//! [`table`] names, for every operator, its VJP rule (vector–Jacobian product), a lowering to simpler operators, or that it has no
//! gradient. [`lower()`] comes first. A rule turns the cotangents of a node's outputs into cotangents of its inputs by appending nodes. The driver here does everything else: it
//! visits nodes in reverse, sums the cotangents of values read more than once, undoes broadcasting, and refuses whatever the
//! table or the rule does not know.

mod activation;
mod again;
mod attention;
mod conv;
mod elementwise;
mod fuse;
mod index;
mod layout;
mod linalg;
mod loss;
mod lower;
mod microsoft;
mod norm;
mod pool;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod rule;
mod sample;
mod spectral;
mod state;
pub mod table;
mod window;

pub use fuse::{DOMAIN, fuse};
pub use lower::{Lowered, Lowering, lower};
pub use norm::lower_batch_norm;
pub use random::{PRIME, lower_uniform, start};
pub use rule::{Call, Cotangents, Rule};

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{Attr, Graph, Source, Value, ValueId};
use again::Again;
use std::collections::{HashMap, HashSet};
use table::Entry;

/// Appends the gradient of `Σ ⟨cotangent, output⟩` with respect to each of `wrt`.
///
/// `seeds` pairs outputs with their cotangents, which have the output's shape. The result has, for each of `wrt`, the value of
/// the same shape that holds the gradient, named `grad/<value>`, or `None` where no path leads to an output.
///
/// # Errors
/// Names the first node on a path from `wrt` to an output that has no rule, or that the rule refuses.
pub fn differentiate(graph: &mut Graph, seeds: &[(ValueId, ValueId)], wrt: &[ValueId]) -> Result<Vec<Option<ValueId>>> {
    differentiate_keeping(Keep::All, graph, seeds, wrt)
}

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Whatever rules read.
    All,
    /// Not the outputs of normalizations and activations of domain `bisam`, which are computed again.
    Least,
}

/// As [`differentiate`].
///
/// # Errors
/// As [`differentiate`].
pub fn differentiate_keeping(
    keep: Keep,
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    graph.check_typed()?;
    let forward = graph.nodes.len();
    let needed = graph.downstream(wrt.iter().copied(), Value::carries_gradient);
    let mut again = (keep == Keep::Least).then(|| Again::new(graph, &needed));
    let mut cotangents: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
    for (output, seed) in seeds {
        cotangents.entry(*output).or_default().push(*seed);
    }
    let mut builder = Builder::new(graph, "grad");
    for i in (0..forward).rev() {
        let node = builder.graph.nodes[i].clone();
        let reached = |v: &Option<ValueId>| v.is_some_and(|v| needed.contains(&v) && cotangents.contains_key(&v));
        if !node.outputs.iter().any(reached) {
            continue;
        }
        let entry = match table::find(&node) {
            // The node makes what the gradient is with respect to, and nothing before it needs one.
            Err(_) | Ok(Entry::Refused(_)) if !node.inputs.iter().flatten().any(|v| needed.contains(v)) => continue,
            entry => entry.map_err(|e| node.blame(e))?,
        };
        let rule = match entry {
            Entry::Rule(rule) => rule,
            Entry::NoGradient(_) => continue,
            Entry::Lower(_) => return Err(node.blame(Error::new("the operator is to be written out first"))),
            Entry::Refused(why) => return Err(node.blame(Error::new(why))),
        };
        let mut dy = Vec::with_capacity(node.outputs.len());
        for output in &node.outputs {
            dy.push(output.and_then(|v| total(&mut builder, &mut cotangents, v).transpose()).transpose()?);
        }
        let wants: Vec<bool> = node.inputs.iter().map(|v| v.is_some_and(|v| needed.contains(&v))).collect();
        let after = dy.iter().flatten().next();
        let read = again.as_mut().zip(after).map(|(again, after)| again.reading(&mut builder, &node, *after));
        builder.scope(&format!("grad/{}", node.name));
        let call = Call::new(read.as_ref().unwrap_or(&node), dy, wants);
        let result = rule(&mut builder, &call).and_then(|dx| call.finish().map(|()| dx)).map_err(|e| node.blame(e))?;
        for (slot, dx) in result.into_iter().enumerate() {
            let (Some(dx), Some(x)) = (dx, node.input(slot)) else { continue };
            if needed.contains(&x) {
                let shape = builder.shape(x).to_vec();
                let dx = builder.unbroadcast(dx, &shape);
                cotangents.entry(x).or_default().push(dx);
            }
        }
    }
    let mut gradients = Vec::with_capacity(wrt.len());
    for v in wrt {
        gradients.push(total(&mut builder, &mut cotangents, *v)?);
    }
    let mut named = HashSet::new();
    for (v, gradient) in wrt.iter().zip(&gradients) {
        if let Some(g) = gradient.filter(|g| graph[*g].source == Source::Node && named.insert(*g)) {
            let name = format!("grad/{}", graph[*v].name);
            graph.rename(g, &name);
        }
    }
    graph.check_typed()?;
    Ok(gradients)
}

/// Sums the cotangents of `v` collected so far into one.
fn total(
    builder: &mut Builder<'_>,
    cotangents: &mut HashMap<ValueId, Vec<ValueId>>,
    v: ValueId,
) -> Result<Option<ValueId>> {
    let Some(parts) = cotangents.get_mut(&v) else { return Ok(None) };
    let sum = match one_product(builder, parts) {
        Some(sum) => sum,
        None => {
            let mut sum = parts[0];
            for part in &parts[1..] {
                sum = builder.add(sum, *part)?;
            }
            sum
        }
    };
    *parts = vec![sum];
    Ok(Some(sum))
}

/// From this many products on, one of their rows put together is cheaper than their sum.
const MANY: usize = 4;

/// Σ AᵢᵀBᵢ as one product AᵀB of the rows of all Aᵢ and all Bᵢ, where the parts are many such products: the gradient of a weight that
/// every step of a sequence reads.
fn one_product(builder: &mut Builder<'_>, parts: &[ValueId]) -> Option<ValueId> {
    if parts.len() < MANY {
        return None;
    }
    let mut made = HashMap::new();
    for node in builder.graph.nodes.iter().filter(|n| n.is("Gemm") && n.inputs.len() == 2) {
        let rows = node.attrs.get("transA") == Some(&Attr::Int(1)) && !node.attrs.contains_key("transB");
        if let (true, Some(y), Some(left), Some(right)) = (rows, node.output(0), node.input(0), node.input(1)) {
            made.insert(y, (left, right, &node.attrs));
        }
    }
    // The last step's part came first.
    let factors: Vec<_> = parts.iter().rev().map(|p| made.get(p).copied()).collect::<Option<_>>()?;
    let list = factors[0].2.clone();
    if factors.iter().any(|f| *f.2 != list) {
        return None;
    }
    let (left, right): (Vec<ValueId>, Vec<ValueId>) = factors.iter().map(|f| (f.0, f.1)).unzip();
    let ty = builder.ty(parts[0]);
    let (left, right) = (builder.concat(&left, 0), builder.concat(&right, 0));
    Some(builder.op("Gemm", &[left, right], list, ty))
}
