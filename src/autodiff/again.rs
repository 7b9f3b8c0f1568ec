//! Values that the backward pass computes again instead of keeping them.
//!
//! The output of a normalization or an activation is cheap to compute next to its size, and its input is kept for its own gradient
//! anyway. So a rule that reads such an output is given that of a second node, which the first pass does not keep. This is
//! checkpointing (Chen et al. 2016) with segments of one node. The second node also reads a cotangent that is there only
//! when the backward pass has come so far, and does nothing with it: a runtime that orders nodes freely cannot run it earlier.

use super::DOMAIN;
use crate::builder::Builder;
use crate::ir::{Graph, Node, ValueId};
use std::collections::{HashMap, HashSet};

/// Nodes whose outputs are computed again, and what stands for these outputs.
pub struct Again {
    producers: HashMap<ValueId, Node>,
    made: HashMap<ValueId, ValueId>,
}

impl Again {
    /// Of a forward graph, the nodes that can be computed again and whose input, being `needed`, is kept.
    pub fn new(graph: &Graph, needed: &HashSet<ValueId>) -> Self {
        let producer = |node: &Node| {
            let (x, y) = (node.input(0)?, node.output(0)?);
            let cheap = match node.op.as_str() {
                // With an addition the output is kept for its sign.
                "BatchNorm" => node.inputs.len() == 3,
                op => matches!(op, "LayerNorm" | "Gelu" | "Silu"),
            };
            let kept = node.domain == DOMAIN && cheap && needed.contains(&x) && !graph.outputs.contains(&y);
            kept.then(|| (y, node.clone()))
        };
        Self { producers: graph.nodes.iter().filter_map(producer).collect(), made: HashMap::new() }
    }

    /// The node as its rule is to see it, once the cotangent `after` is there.
    pub fn reading(&mut self, b: &mut Builder<'_>, node: &Node, after: ValueId) -> Node {
        let mut node = node.clone();
        for v in node.inputs.iter_mut().flatten() {
            *v = self.value(b, *v, after);
        }
        node
    }

    fn value(&mut self, b: &mut Builder<'_>, v: ValueId, after: ValueId) -> ValueId {
        if let Some(made) = self.made.get(&v) {
            return *made;
        }
        let Some(node) = self.producers.get(&v).cloned() else { return v };
        // Its own input may be such a value.
        let node = self.reading(b, &node, after);
        let mut inputs = vec![Some(after)];
        inputs.extend(&node.inputs);
        if node.op == "BatchNorm" {
            inputs.extend([node.output(1), node.output(2)]);
        }
        b.scope(&format!("grad/again/{}", node.name));
        let ty = b.ty(v);
        let made = b.raw(DOMAIN, &format!("{}Again", node.op), &inputs, node.attrs.clone(), &[ty])[0];
        self.made.insert(v, made);
        made
    }
}
