//! What a VJP rule sees of its node.

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::ir::{AttrReader, Node, Source, Type, ValueId};

/// A VJP rule: from the cotangents of the outputs to one optional cotangent per input, in order.
///
/// A cotangent may be larger than its input where the operator broadcast it; the driver sums it down. Inputs without a
/// gradient (indices, shapes) and inputs nobody asks for ([`Call::wants`]) get `None`. Trailing `None`s may be left out.
pub type Rule = fn(&mut Builder<'_>, &Call<'_>) -> Cotangents;

/// What a rule returns: one optional cotangent per input.
pub type Cotangents = Result<Vec<Option<ValueId>>>;

/// One node to be differentiated.
pub struct Call<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its attributes; one that no rule reads is refused.
    pub attrs: AttrReader<'a>,
    dy: Vec<Option<ValueId>>,
    wants: Vec<bool>,
}

impl<'a> Call<'a> {
    pub(super) fn new(node: &'a Node, dy: Vec<Option<ValueId>>, wants: Vec<bool>) -> Self {
        Self { node, attrs: AttrReader::new(&node.attrs), dy, wants }
    }

    /// Input `i`.
    ///
    /// # Errors
    /// When the file leaves it out.
    pub fn x(&self, i: usize) -> Result<ValueId> {
        self.node.input(i).ok_or_else(|| Error::new(format!("input {i} is missing")))
    }

    /// Input `i` where it is optional.
    pub fn opt(&self, i: usize) -> Option<ValueId> {
        self.node.input(i)
    }

    /// Output `i` of the forward node. Rules prefer it to the input where either serves.
    ///
    /// # Errors
    /// When the file leaves it out.
    pub fn y(&self, i: usize) -> Result<ValueId> {
        self.node.output(i).ok_or_else(|| Error::new(format!("output {i} is missing")))
    }

    /// Output `i` of the forward node; where the file leaves it out, the node is made to compute it, of type `ty`.
    ///
    /// # Errors
    /// When the node is not in the graph that grows.
    pub fn ask_output(&self, b: &mut Builder<'_>, i: usize, ty: Type) -> Result<ValueId> {
        if let Some(v) = self.node.output(i) {
            return Ok(v);
        }
        let y = self.y(0)?;
        let name = format!("{}/output{i}", b.graph[y].name);
        let v = b.graph.add_value(&name, Some(ty), Source::Node);
        let node = b.graph.nodes.iter_mut().find(|n| n.output(0) == Some(y));
        let node = node.ok_or_else(|| Error::new("the node is not in its graph"))?;
        node.outputs.resize(node.outputs.len().max(i + 1), None);
        node.outputs[i] = Some(v);
        Ok(v)
    }

    /// Cotangent of the first output; the driver calls a rule only if some output has one.
    ///
    /// # Errors
    /// When only another output has a cotangent: the gradient through that output is not known.
    pub fn dy(&self) -> Result<ValueId> {
        if self.dy.iter().skip(1).any(Option::is_some) {
            crate::bail!("a gradient through its second or later output is not supported");
        }
        self.dy.first().copied().flatten().ok_or_else(|| Error::new("its first output has no cotangent"))
    }

    /// Cotangent of output `i`, for operators with several outputs.
    pub fn dy_of(&self, i: usize) -> Option<ValueId> {
        self.dy.get(i).copied().flatten()
    }

    /// Whether somebody asks for the gradient of input `i`.
    pub fn wants(&self, i: usize) -> bool {
        self.wants.get(i).copied().unwrap_or(false)
    }

    /// The integers of input `i`, which must be a constant; `None` when the file leaves it out.
    ///
    /// # Errors
    /// When it is computed at run time; `name` names it.
    pub fn constant_ints(&self, b: &Builder<'_>, i: usize, name: &str) -> Result<Option<Vec<i64>>> {
        let Some(v) = self.opt(i) else { return Ok(None) };
        let values = b.graph.constant(v).and_then(crate::ir::Tensor::to_i64);
        values.map(Some).ok_or_else(|| {
            Error::new(format!("`{name}` is computed at run time; its gradient needs a constant"))
                .hint("values that depend on shapes alone become constants when the graph is concretized")
        })
    }

    pub(super) fn finish(&self) -> Result<()> {
        match self.attrs.unread().as_slice() {
            [] => Ok(()),
            names => Err(Error::new(format!("attribute {} is not known to its gradient rule", names.join(", ")))),
        }
    }
}
