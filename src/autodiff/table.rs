//! Operator → VJP rule, or no gradient by name. The documentation's operator table is generated from here.

use super::{Rule, elementwise};
use crate::error::{Error, Result};
use crate::ir::Node;
use Entry::{NoGradient, Rule as R};

/// What the table says about an operator.
#[derive(Clone, Copy)]
pub enum Entry {
    /// Its VJP rule.
    Rule(Rule),
    /// It has no gradient (its outputs are piecewise constant, integers or booleans), with the reason.
    NoGradient(&'static str),
}

/// Operators of ai.onnx, by family.
pub const TABLE: &[(&str, Entry)] = &[
    // Elementwise arithmetic.
    ("Add", R(elementwise::add)),
    ("Sub", R(elementwise::sub)),
    ("Mul", R(elementwise::mul)),
    ("Div", R(elementwise::div)),
    // No gradient.
    ("Shape", NoGradient("its output is an integer")),
];

/// The entry of a node's operator.
///
/// # Errors
/// When there is none: a missing entry is never a zero gradient.
pub fn find(node: &Node) -> Result<Entry> {
    let entry = TABLE.iter().find(|(op, _)| node.is(op)).map(|(_, e)| *e);
    entry.ok_or_else(|| {
        Error::new("this operator has no gradient rule")
            .hint("`bisam inspect` lists every operator of the model and whether it has one")
    })
}
