//! The invariants of a [`Graph`], checked after every pass.

use super::{Graph, Source, ValueId};
use crate::error::Result;

impl Graph {
    /// Checks that every value is made once and before it is read, and that sources tell the truth.
    ///
    /// # Errors
    /// Names the first value or node that breaks an invariant.
    pub fn check(&self) -> Result<()> {
        let mut defined = vec![false; self.value_count()];
        let mut made = vec![false; self.value_count()];
        let at = |v: ValueId| v.0 as usize;
        for v in self.value_ids() {
            let value = &self[v];
            if self.find(&value.name) != Some(v) {
                crate::bail!("value name `{}` is not indexed", value.name);
            }
            defined[at(v)] = match &value.source {
                Source::Node => false,
                Source::Input(_) => self.inputs.contains(&v),
                Source::Constant(t) | Source::Param(t) | Source::Stat(t) => {
                    if value.ty != Some(t.ty()) {
                        crate::bail!("type of constant `{}` differs from its tensor", value.name);
                    }
                    true
                }
            };
        }
        for node in &self.nodes {
            for v in node.inputs.iter().flatten() {
                if !defined[at(*v)] {
                    let cause = format!("input `{}` is read before it is made", self[*v].name);
                    return Err(node.blame(crate::Error::new(cause)));
                }
            }
            for v in node.outputs.iter().flatten() {
                if std::mem::replace(&mut made[at(*v)], true) || self[*v].source != Source::Node {
                    let cause = format!("output `{}` is made twice", self[*v].name);
                    return Err(node.blame(crate::Error::new(cause)));
                }
                defined[at(*v)] = true;
            }
        }
        for v in &self.outputs {
            if !defined[at(*v)] {
                crate::bail!("graph output `{}` is never made", self[*v].name);
            }
        }
        Ok(())
    }

    /// As [`Graph::check`], and every value that a node or output uses has a type.
    ///
    /// # Errors
    /// Names the first value without a type.
    pub fn check_typed(&self) -> Result<()> {
        self.check()?;
        for node in &self.nodes {
            for v in node.inputs.iter().chain(&node.outputs).flatten() {
                self.ty(*v).map_err(|e| node.blame(e))?;
            }
        }
        self.outputs.iter().try_for_each(|v| self.ty(*v).map(|_| ()))
    }
}
