//! Whether token numbers are in the model's vocabulary.

use super::{Samples, Splits};
use crate::error::{Error, Result};
use crate::ir::{Graph, Source, Tensor, Value};

/// Checks the arrays of `splits` that inputs of `graph` are given, where a Gather looks them up in a stored table.
///
/// # Errors
/// Names input, number and table when a number is beyond the table's rows: the tokenizer is of another model.
pub fn check_vocabulary(graph: &Graph, splits: &Splits) -> Result<()> {
    for node in graph.nodes.iter().filter(|n| n.is("Gather")) {
        let (Some(table), Some(indices)) = (node.input(0), node.input(1)) else { continue };
        let Some(rows) = rows(&graph[table]) else { continue };
        let name = &graph[indices].name;
        for set in [Some(&splits.train), splits.valid.as_ref(), splits.test.as_ref()].into_iter().flatten() {
            let Samples::Arrays(arrays) = &set.samples else { continue };
            let largest = arrays.get(name).and_then(Tensor::to_i64).and_then(|numbers| numbers.into_iter().max());
            if let Some(largest) = largest.filter(|n| *n >= rows) {
                let cause = format!("input `{name}` gets {largest}, but the model has a table of {rows} rows for it");
                return Err(node.blame(Error::new(cause)).hint("give the tokenizer.json that belongs to the model"));
            }
        }
    }
    Ok(())
}

fn rows(table: &Value) -> Option<i64> {
    let (Source::Param(t) | Source::Constant(t)) = &table.source else { return None };
    t.shape().first().and_then(|rows| i64::try_from(*rows).ok())
}
