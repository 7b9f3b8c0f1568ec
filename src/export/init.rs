//! Fresh weights for another independent run.

use crate::ir::{Attr, Graph, Node, NodeId, Source, Tensor, ValueId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Standard deviation of embeddings, position tables and class tokens.
const TABLE_STD: f64 = 0.02;

/// How the elements of a tensor are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scheme {
    /// Uniform in ±`0`.
    Uniform(f64),
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
    /// All equal.
    Fill(f64),
    /// As in the file.
    Keep,
}

/// New values for every parameter and running statistic of a graph, by name; it should be untied before.
///
/// PyTorch's defaults, by use: weights and biases of linear and convolution layers are uniform in ±1/√fan_in, those of recurrent
/// layers in ±1/√hidden; normalizations start as the identity with running mean 0 and variance 1; embeddings, position tables and class
/// tokens are normal with standard deviation 0.02. What has another use and equal elements stays. A tensor's values depend on
/// `seed`, its name and its shape alone.
pub fn fresh(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let uses = Uses { graph, readers: graph.readers(), producers: graph.producers() };
    let mut values = BTreeMap::new();
    for v in graph.value_ids() {
        let (Source::Param(tensor) | Source::Stat(tensor)) = &graph[v].source else { continue };
        let name = &graph[v].name;
        values.insert(name.clone(), draw(tensor, uses.scheme(v, tensor), seed, name));
    }
    values
}

fn draw(old: &Tensor, scheme: Scheme, seed: u64, name: &str) -> Tensor {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    // FNV-1a: the values must not depend on what else is in the graph.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut element = |_| match scheme {
        Scheme::Uniform(bound) => (rng.random::<f64>() * 2.0 - 1.0) * bound,
        Scheme::Normal(std) => {
            // Box and Muller; 1 − u keeps zero out of the logarithm.
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            std * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
        }
        Scheme::Fill(value) => value,
        Scheme::Keep => 0.0,
    };
    if scheme == Scheme::Keep {
        return old.clone();
    }
    let values: Vec<f64> = (0..old.len()).map(&mut element).collect();
    Tensor::from_f64(old.dtype(), old.shape(), &values)
}

struct Uses<'a> {
    graph: &'a Graph,
    readers: HashMap<ValueId, Vec<NodeId>>,
    producers: HashMap<ValueId, NodeId>,
}

/// A node that computes with a parameter, the slot, and whether the parameter's last two dimensions are swapped on the way.
type Use<'a> = (&'a Node, usize, bool);

impl Uses<'_> {
    fn scheme(&self, v: ValueId, tensor: &Tensor) -> Scheme {
        let uses = self.of(v);
        let known = uses.iter().find_map(|u| self.by_use(tensor, *u));
        match known {
            Some(scheme) => scheme,
            None if tensor.uniform().is_some() => Scheme::Keep,
            None => Scheme::Normal(TABLE_STD),
        }
    }

    /// Readers, seen through operators that only move elements.
    fn of(&self, v: ValueId) -> Vec<Use<'_>> {
        let mut found = Vec::new();
        let mut todo = vec![(v, false)];
        let mut seen = HashSet::new();
        while let Some((v, swapped)) = todo.pop() {
            if !seen.insert(v) {
                continue;
            }
            let mut nodes = self.readers.get(&v).cloned().unwrap_or_default();
            nodes.dedup();
            for node in nodes.into_iter().map(|n| &self.graph.nodes[n]) {
                for slot in (0..node.inputs.len()).filter(|s| node.input(*s) == Some(v)) {
                    let moves = match node.op.as_str() {
                        "Identity" | "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand" | "Slice"
                        | "Split" | "Tile" | "Transpose" | "Pad" => slot == 0,
                        "Concat" => true,
                        _ => false,
                    };
                    if moves && node.domain.is_empty() {
                        let swapped = swapped != swaps(node);
                        todo.extend(node.outputs.iter().flatten().map(|o| (*o, swapped)));
                    } else {
                        found.push((node, slot, swapped));
                    }
                }
            }
        }
        found
    }

    fn by_use(&self, tensor: &Tensor, (node, slot, swapped): Use<'_>) -> Option<Scheme> {
        if !node.domain.is_empty() {
            return None;
        }
        let uniform = |fan: usize| Scheme::Uniform(1.0 / (fan.max(1) as f64).sqrt());
        match (node.op.as_str(), slot) {
            ("BatchNormalization", 4) => Some(Scheme::Fill(1.0)),
            ("BatchNormalization", 3) => Some(Scheme::Fill(0.0)),
            (
                "BatchNormalization"
                | "LayerNormalization"
                | "InstanceNormalization"
                | "GroupNormalization"
                | "RMSNormalization",
                1 | 2,
            ) => Some(Scheme::Fill(if slot == 1 { 1.0 } else { 0.0 })),
            ("Conv" | "ConvTranspose" | "Gemm" | "MatMul" | "Einsum", 0 | 1) => {
                fan_in(node, slot, tensor.shape(), swapped).map(uniform)
            }
            ("Conv" | "ConvTranspose" | "Gemm", 2) => self.fan_of(node).map(uniform),
            ("LSTM" | "GRU" | "RNN", 1..=3) => match node.attrs.get("hidden_size") {
                Some(Attr::Int(n)) => Some(uniform(usize::try_from(*n).unwrap_or(1))),
                _ => None,
            },
            ("PRelu", 1) => Some(Scheme::Fill(0.25)),
            ("Gather", 0) => Some(Scheme::Normal(TABLE_STD)),
            ("Add" | "Sub" | "Mul" | "Div", 0 | 1) if tensor.shape().iter().filter(|d| **d > 1).count() <= 1 => {
                self.elementwise(tensor, node, slot)
            }
            _ => None,
        }
    }

    /// A vector beside a computed value: the bias of a product, or gain and bias of a normalization written out.
    fn elementwise(&self, tensor: &Tensor, node: &Node, slot: usize) -> Option<Scheme> {
        let mut other = node.input(1 - slot)?;
        let made_by = loop {
            let maker = &self.graph.nodes[*self.producers.get(&other)?];
            if !maker.is("Identity") && !maker.is("Cast") {
                break maker;
            }
            other = maker.input(0)?;
        };
        match (node.op.as_str(), made_by.op.as_str()) {
            ("Add" | "Sub", "MatMul" | "Conv" | "Gemm" | "ConvTranspose" | "Einsum") => {
                self.fan_of(made_by).map(|fan| Scheme::Uniform(1.0 / (fan.max(1) as f64).sqrt()))
            }
            ("Add" | "Sub", "Mul" | "Div") => Some(Scheme::Fill(0.0)),
            ("Mul", _) if tensor.uniform().is_none() => Some(Scheme::Fill(1.0)),
            _ => None,
        }
    }

    /// Fan-in of a product's stored weight, seen back through operators that only move elements.
    fn fan_of(&self, node: &Node) -> Option<usize> {
        [1, 0].into_iter().find_map(|slot| {
            let (mut v, mut swapped) = (node.input(slot)?, false);
            loop {
                if let Some(t) = self.graph.tensor(v) {
                    return fan_in(node, slot, t.shape(), swapped);
                }
                let maker = &self.graph.nodes[*self.producers.get(&v)?];
                if !["Identity", "Cast", "Transpose", "Reshape"].contains(&maker.op.as_str()) {
                    return None;
                }
                swapped ^= swaps(maker);
                v = maker.input(0)?;
            }
        })
    }
}

fn swaps(node: &Node) -> bool {
    match node.attrs.get("perm") {
        Some(Attr::Ints(p)) if p.len() >= 2 => p[p.len() - 1] < p[p.len() - 2],
        _ => node.is("Transpose"),
    }
}

/// Number of elements that one element of the product sums over.
fn fan_in(node: &Node, slot: usize, shape: &[usize], swapped: bool) -> Option<usize> {
    let [.., rows, columns] = shape else { return shape.first().copied() };
    match node.op.as_str() {
        "Conv" | "ConvTranspose" => Some(shape.iter().skip(1).product()),
        "Einsum" => Some(shape.iter().rev().skip(1).product()),
        _ => {
            let transposed = match (node.op.as_str(), slot) {
                ("Gemm", 0) => matches!(node.attrs.get("transA"), Some(Attr::Int(1))),
                ("Gemm", _) => matches!(node.attrs.get("transB"), Some(Attr::Int(1))),
                _ => false,
            };
            // The right factor sums over its rows, the left one over its columns.
            Some(if (slot == 1) != (transposed != swapped) { *rows } else { *columns })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType};

    fn graph() -> Graph {
        let mut g = Graph::default();
        let mut param = |name: &str, shape: &[usize]| {
            let n: usize = shape.iter().product();
            let values: Vec<f64> = (0..n).map(|i| i as f64).collect();
            g.add_value(name, None, Source::Param(Tensor::from_f64(DType::F32, shape, &values)))
        };
        let (w, b, scale, scale_bias) =
            (param("w", &[50, 100]), param("b", &[50]), param("scale", &[50]), param("shift", &[50]));
        let x = g.add_value("x", None, Source::Node);
        let t = g.add_value("t", None, Source::Node);
        let [y, z, n] = ["y", "z", "n"].map(|v| g.add_value(v, None, Source::Node));
        let mut node = |op: &str, inputs: &[ValueId], out: ValueId| {
            let inputs = inputs.iter().copied().map(Some).collect();
            let (name, domain, outputs) = (out_name(op), String::new(), vec![Some(out)]);
            g.nodes.push(Node { name, domain, op: op.into(), inputs, outputs, attrs: Attrs::new() });
        };
        node("Transpose", &[w], t);
        node("MatMul", &[x, t], y);
        node("Add", &[b, y], z);
        node("LayerNormalization", &[z, scale, scale_bias], n);
        g.outputs.push(n);
        g
    }

    fn out_name(op: &str) -> String {
        op.to_lowercase()
    }

    #[test]
    fn schemes_follow_the_use() {
        let values = fresh(&graph(), 1);
        for name in ["w", "b"] {
            let largest = values[name].to_f64().iter().fold(0.0f64, |m, v| m.max(v.abs()));
            assert!(largest <= 0.1 && largest > 0.09, "{name}: {largest}");
        }
        assert_eq!(values["scale"].uniform(), Some(1.0));
        assert_eq!(values["shift"].uniform(), Some(0.0));
    }

    #[test]
    fn values_depend_on_seed_and_name() {
        let (a, b, c) = (fresh(&graph(), 1), fresh(&graph(), 1), fresh(&graph(), 2));
        assert_eq!(a, b);
        assert_ne!(a["w"], c["w"]);
        assert_ne!(a["w"].to_f32()[..50], a["b"].to_f32()[..]);
    }
}
