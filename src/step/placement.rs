//! Where ONNX Runtime's CUDA provider runs the nodes of a stage, known without a device.
//!
//! `cuda_provider.tsv` lists the kernels that the provider registers. A node without one runs on the CPU, with copies to and fro, and then
//! the stage cannot be captured as a CUDA graph either.

use crate::autodiff::DOMAIN;
use crate::autodiff::lower_uniform;
use crate::ir::{Attr, DType, Graph, Node, Source, ValueId};
use crate::onnx::change_between;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The provider's kernels; the file says what its columns mean.
const TABLE: &str = include_str!("cuda_provider.tsv");

/// The newest operator set that the provider has kernels of every older operator for.
const OPSET: i64 = 21;

/// A node that keeps a stage from running on the device as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// Its operator.
    pub operator: String,
    /// Its name.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// A kernel of the provider.
struct Kernel<'a> {
    opsets: [i64; 2],
    /// The types that each constraint allows.
    types: HashMap<&'a str, Vec<&'a str>>,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    /// Inputs that it wants in the host's memory.
    host: Vec<usize>,
}

fn table() -> &'static HashMap<&'static str, Vec<Kernel<'static>>> {
    static KERNELS: OnceLock<HashMap<&str, Vec<Kernel<'_>>>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let mut kernels: HashMap<&str, Vec<Kernel<'_>>> = HashMap::new();
        for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
            let mut columns = line.split('\t');
            let mut next = || columns.next().unwrap_or_default();
            let (operator, first, last, types, places, host) = (next(), next(), next(), next(), next(), next());
            let (inputs, outputs) = places.split_once('>').unwrap_or_default();
            let allowed = types.split(';').filter_map(|t| t.split_once('='));
            kernels.entry(operator).or_default().push(Kernel {
                opsets: [first.parse().unwrap_or(0), last.parse().unwrap_or(i64::MAX)],
                types: allowed.map(|(name, list)| (name, list.split(',').collect())).collect(),
                inputs: inputs.split(',').collect(),
                outputs: outputs.split(',').collect(),
                host: host.split(',').filter_map(|h| h.strip_prefix("in")?.parse().ok()).collect(),
            });
        }
        kernels
    })
}

impl Kernel<'_> {
    /// Whether the constraint on place `i`, of an input or output, allows a type.
    fn allows(&self, places: &[&str], i: usize, dtype: DType) -> bool {
        // The last one repeats where it is variadic; what the schema does not have is not looked at.
        let place = places.get(i).or_else(|| places.last().filter(|p| p.ends_with('*')));
        let types = place.and_then(|p| self.types.get(p.trim_end_matches('*')));
        types.is_none_or(|types| types.contains(&dtype.to_string().as_str()))
    }
}

/// The nodes of a stage that would not run on a device, or that have something copied to the host.
pub fn off_cuda(graph: &Graph) -> Vec<Fallback> {
    let opset = graph.opsets.get("").copied().unwrap_or_default();
    let nodes = graph.nodes.iter().filter(|n| n.domain != DOMAIN);
    let fallback = |node: &Node| {
        reason(graph, node, opset).map(|reason| Fallback {
            operator: node.qualified(),
            node: node.name.clone(),
            reason,
        })
    };
    nodes.filter_map(fallback).collect()
}

fn reason(graph: &Graph, node: &Node, opset: i64) -> Option<String> {
    let of_operator = table().get(node.op.as_str()).filter(|_| node.domain.is_empty());
    let Some(kernels) = of_operator else { return Some("the provider has no kernel of it".into()) };
    let served: Vec<&Kernel<'_>> = kernels.iter().filter(|k| (k.opsets[0]..=k.opsets[1]).contains(&opset)).collect();
    if served.is_empty() {
        return Some(format!("the provider has no kernel of it in opset {opset}"));
    }
    let dtype = |v: &ValueId| graph[*v].ty.as_ref().map(|t| t.dtype);
    let fits = |k: &&&Kernel<'_>| {
        let all = |values: &[Option<ValueId>], places: &[&str]| {
            let typed = values.iter().enumerate().filter_map(|(i, v)| Some((i, dtype(v.as_ref()?)?)));
            typed.into_iter().all(|(i, dtype)| k.allows(places, i, dtype))
        };
        all(&node.inputs, &k.inputs) && all(&node.outputs, &k.outputs)
    };
    let Some(kernel) = served.iter().find(fits) else {
        let types: Vec<String> = node.inputs.iter().flatten().filter_map(dtype).map(|t| t.to_string()).collect();
        return Some(format!("the provider has no kernel of it for {}", types.join(", ")));
    };
    let constant = |v: ValueId| matches!(graph[v].source, Source::Constant(_));
    if let Some(i) = kernel.host.iter().find(|i| node.input(**i).is_some_and(|v| !constant(v))) {
        return Some(format!("its kernel wants input {i} in the host's memory, and it is no constant"));
    }
    let int = |name: &str| if let Some(Attr::Int(v)) = node.attrs.get(name) { *v } else { 0 };
    let pads = if let Some(Attr::Ints(pads)) = node.attrs.get("pads") { pads.as_slice() } else { &[] };
    let (begin, end) = pads.split_at(pads.len() / 2);
    match node.op.as_str() {
        "ArgMax" | "ArgMin" if int("select_last_index") != 0 => {
            Some("the provider does not take the last index".into())
        }
        "ConvTranspose" if begin != end => Some("the provider does not pad opposite sides differently".into()),
        "BatchNormalization" if int("training_mode") != 0 => {
            Some("the provider does not normalize by the batch".into())
        }
        _ => None,
    }
}

/// The graph in an operator set that the provider serves better, where it has a newer one and no operator needs that: several
/// kernels are not registered for opset 22 and later, whose operators differ from older ones in further types only.
pub fn for_cuda(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    // There is no kernel of random numbers for devices. A graph without types has none of them.
    let mut plain = graph.clone();
    if lower_uniform(&mut plain).is_ok() {
        graph = plain;
    }
    let from = graph.opset();
    let newer = |n: &Node| n.domain.is_empty() && change_between(&n.op, OPSET, from).is_some();
    if from > OPSET && !graph.nodes.iter().any(newer) {
        graph.opsets.insert(String::new(), OPSET);
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Dim, Type};

    fn one(op: &str, dtype: DType, opset: i64) -> Vec<String> {
        let mut graph = Graph::of_one_node(op, ["a", "b"], dtype, Dim::Fixed(1), opset);
        let values = ["x", "y"].map(|n| Some(graph.add_value(n, Some(Type::new(dtype, &[1])), Source::Node)));
        (graph.nodes[0].inputs, graph.nodes[0].outputs) = (vec![values[0]], vec![values[1]]);
        off_cuda(&graph).into_iter().map(|f| f.reason).collect()
    }

    #[test]
    fn kernels_are_looked_up_by_opset_and_type() {
        assert!(one("Exp", DType::F32, 18).is_empty());
        assert!(one("Elu", DType::F32, 21).is_empty());
        assert_eq!(one("Elu", DType::F32, 22), ["the provider has no kernel of it in opset 22"]);
        assert_eq!(one("Tan", DType::F32, 18), ["the provider has no kernel of it"]);
        assert_eq!(one("Exp", DType::I32, 18), ["the provider has no kernel of it for i32"]);
        assert!(one("Cast", DType::BF16, 20).is_empty());
    }

    #[test]
    fn an_older_opset_serves_unless_an_operator_needs_the_newer_one() {
        let opset = |op: &str, opset: i64| {
            for_cuda(&Graph::of_one_node(op, ["x", "y"], DType::F32, Dim::Fixed(1), opset)).opsets[""]
        };
        assert_eq!([opset("Elu", 18), opset("Elu", 23), opset("Swish", 24)], [18, 21, 24]);
    }

    #[test]
    fn every_line_of_the_table_is_read() {
        let kernels: usize = table().values().map(Vec::len).sum();
        assert_eq!(kernels, TABLE.lines().filter(|l| !l.starts_with('#')).count());
        assert!(table().values().flatten().all(|k| k.opsets[0] > 0 && !k.outputs.is_empty()));
        assert_eq!(table()["Reshape"][0].host, [1]);
    }
}
