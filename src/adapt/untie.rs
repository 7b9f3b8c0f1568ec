//! Exporters merge initializers of equal value, so that all zero biases of a fresh network become one tensor. Training needs
//! them apart again.

use crate::ir::{Graph, NodeId, Source, ValueId};
use crate::onnx::Model;
use std::collections::HashSet;

/// A parameter that got its own tensor; export gives it its own initializer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untied {
    /// Name of the new parameter.
    pub name: String,
    /// Name of the initializer it was merged into.
    pub merged: String,
    /// First output of the node that reads it, and the input slot there.
    pub reader: (String, usize),
    /// Outputs of the `Identity` nodes between initializer and reader, outermost first.
    pub through: Vec<String>,
}

/// Splits parameters and statistics that several nodes read and whose elements are all equal; those with varied elements are
/// real ties and stay. `Identity` nodes between a parameter and its readers are removed.
///
/// Readers that are not nodes of `model`'s file itself (those in bodies of functions are not) keep the merged tensor.
pub fn untie(graph: &mut Graph, model: &Model) -> Vec<Untied> {
    let in_file: HashSet<&str> = model.proto.graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    split(graph, &|name| in_file.contains(name))
}

fn split(graph: &mut Graph, is_in_file: &dyn Fn(&str) -> bool) -> Vec<Untied> {
    let mut untied = Vec::new();
    for v in graph.value_ids().collect::<Vec<_>>() {
        let (Source::Param(tensor) | Source::Stat(tensor)) = &graph[v].source else { continue };
        let accident = tensor.uniform().is_some();
        let source = graph[v].source.clone();
        let merged = graph[v].name.clone();
        let mut first = true;
        for (node, slot, through) in edges(graph, v) {
            let own = if accident && !first {
                let reader = graph.nodes[node].outputs.iter().flatten().next().map(|o| graph[*o].name.clone());
                reader.filter(|r| is_in_file(r))
            } else {
                None
            };
            let target = match own {
                None => v,
                Some(reader) => {
                    // TorchScript's Identity carries the parameter's real name.
                    let name = match through.last() {
                        Some(identity) => identity.clone(),
                        None => format!("{merged}/{}", graph.nodes[node].name),
                    };
                    if let Some(taken) = graph.find(&name) {
                        graph.rename(taken, &format!("{name}/identity"));
                    }
                    let new = graph.add_value(&name, None, source.clone());
                    let name = graph[new].name.clone();
                    untied.push(Untied { name, merged: merged.clone(), reader: (reader, slot), through });
                    new
                }
            };
            graph.nodes[node].inputs[slot] = Some(target);
            first = false;
        }
    }
    graph.remove_dead_nodes();
    untied
}

/// The (node, slot) pairs that read `v`, directly or through `Identity` nodes, with the names of these nodes' outputs.
fn edges(graph: &Graph, v: ValueId) -> Vec<(NodeId, usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut todo = vec![(v, Vec::new())];
    let mut seen = HashSet::new();
    while let Some((v, through)) = todo.pop() {
        for (i, node) in graph.nodes.iter().enumerate() {
            for slot in (0..node.inputs.len()).filter(|s| node.input(*s) == Some(v)) {
                match node.output(0) {
                    Some(out) if node.is("Identity") && !graph.outputs.contains(&out) => {
                        if seen.insert(out) {
                            todo.push((out, [through.clone(), vec![graph[out].name.clone()]].concat()));
                        }
                    }
                    _ => found.push((i, slot, through.clone())),
                }
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Node, Tensor, Type};

    fn graph(bias: Tensor) -> Graph {
        let mut g = Graph::default();
        let b = g.add_value("b", None, Source::Param(bias));
        let mut x = g.add_value("w", None, Source::Param(Tensor::full(DType::F32, &[2], 0.5)));
        for i in 0..3 {
            let mut read = b;
            if i == 2 {
                read = g.add_value("layer.bias", Some(Type::new(DType::F32, &[2])), Source::Node);
                g.nodes.push(node("Identity", &[b], read));
            }
            let y = g.add_value(&format!("y{i}"), None, Source::Node);
            g.nodes.push(node("Add", &[x, read], y));
            x = y;
        }
        g.outputs.push(x);
        g
    }

    fn node(op: &str, inputs: &[ValueId], output: ValueId) -> Node {
        let (name, domain) = (String::from("n"), String::new());
        let inputs = inputs.iter().copied().map(Some).collect();
        Node { name, domain, op: op.into(), inputs, outputs: vec![Some(output)], attrs: Attrs::new() }
    }

    #[test]
    fn equal_elements_are_an_accident_and_get_one_tensor_per_reader() {
        let mut g = graph(Tensor::full(DType::F32, &[2], 0.0));
        let untied = split(&mut g, &|_| true);
        assert_eq!(untied.len(), 2);
        assert_eq!(untied[1].name, "layer.bias");
        assert_eq!(untied[1].through, ["layer.bias"]);
        assert!(g.nodes.iter().all(|n| n.is("Add")));
        assert!(g.check().is_ok());
    }

    #[test]
    fn varied_elements_are_a_real_tie() {
        let mut g = graph(Tensor::from_f64(DType::F32, &[2], &[1.0, 2.0]));
        assert!(split(&mut g, &|_| true).is_empty());
        assert_eq!(g.params().len(), 2);
        assert!(g.nodes.iter().all(|n| n.is("Add")));
    }
}
