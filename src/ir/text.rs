//! The text form of a graph: one line per node, read in reviews and kept as snapshots.

use super::{Attr, Graph, Source, Tensor, Type, ValueId};
use std::fmt::{self, Display, Write};

impl Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        write!(f, "{}[{}]", self.dtype, dims.join(","))
    }
}

/// Up to eight elements; longer tensors show their type only.
impl Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = if self.len() > 8 {
            vec!["…".into()]
        } else if self.dtype().is_float() {
            self.to_f32().iter().map(ToString::to_string).collect()
        } else {
            self.to_i64().unwrap_or_default().iter().map(ToString::to_string).collect()
        };
        match self.shape() {
            [] => write!(f, "{}", values.join(" ")),
            _ => write!(f, "[{}]", values.join(" ")),
        }
    }
}

impl Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Str(v) => write!(f, "{v:?}"),
            Self::Ints(v) => write!(f, "{v:?}"),
            Self::Floats(v) => write!(f, "{v:?}"),
            Self::Strs(v) => write!(f, "{v:?}"),
            Self::Tensor(v) => write!(f, "{} {v}", v.ty()),
            Self::Graph(v) => write!(f, "graph of {} nodes", v.graph.nodes.len()),
        }
    }
}

/// `%out : type = Op(%in, 3) {attr = 1}` per node, after the inputs and parameters; constants stand where they are read.
impl Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = |v: ValueId| match &self[v].ty {
            Some(ty) => format!("%{}: {ty}", self[v].name),
            None => format!("%{}", self[v].name),
        };
        let opsets: Vec<String> = self
            .opsets
            .iter()
            .map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d.as_str() }))
            .collect();
        writeln!(f, "graph {} (opset {})", self.name, opsets.join(", "))?;
        for v in &self.inputs {
            writeln!(f, "  input  {}", typed(*v))?;
        }
        for v in self.params() {
            writeln!(f, "  param  {}", typed(v))?;
        }
        for node in &self.nodes {
            let mut line = String::from("  ");
            let outs: Vec<String> = node.outputs.iter().map(|o| o.map_or("_".into(), typed)).collect();
            let ins: Vec<String> = node
                .inputs
                .iter()
                .map(|i| match i {
                    None => "_".into(),
                    Some(v) => match &self[*v].source {
                        Source::Constant(t) if t.len() <= 8 => t.to_string(),
                        _ => format!("%{}", self[*v].name),
                    },
                })
                .collect();
            write!(line, "{} = {}({})", outs.join(", "), node.qualified(), ins.join(", "))?;
            if !node.attrs.is_empty() {
                let attrs: Vec<String> = node.attrs.iter().map(|(k, v)| format!("{k} = {v}")).collect();
                write!(line, " {{{}}}", attrs.join(", "))?;
            }
            writeln!(f, "{line}")?;
        }
        for v in &self.outputs {
            writeln!(f, "  output {}", typed(*v))?;
        }
        Ok(())
    }
}
