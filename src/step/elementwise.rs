//! Runs of elementwise operators on flat vectors, put together into one operator each.
//!
//! `perturb` and `update` are some ten operators over vectors as long as all parameters, and each of them by itself reads and writes
//! memory. Between two reductions they depend on each other element by element only, so `bisam.Elementwise` does them in one pass: its
//! attribute `body` is what a loop over the elements does ([`Body`]).

use crate::autodiff::DOMAIN;
use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, Graph, Node, Source, ValueId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

/// Inputs and outputs that the operator has place for.
pub const MOST: (usize, usize) = (12, 8);

/// A function of one or two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a·b
    Mul,
    /// a/b
    Div,
    /// The smaller of both; a NaN in the first place stays one.
    Min,
    /// −a
    Neg,
    /// |a|
    Abs,
    /// √a
    Sqrt,
}

/// By the name of the ONNX operator.
const FUNCTIONS: [(&str, Function); 8] = [
    ("Add", Function::Add),
    ("Sub", Function::Sub),
    ("Mul", Function::Mul),
    ("Div", Function::Div),
    ("Min", Function::Min),
    ("Neg", Function::Neg),
    ("Abs", Function::Abs),
    ("Sqrt", Function::Sqrt),
];

impl Function {
    /// What a node computes; none where it is not elementwise.
    fn of(node: &Node) -> Option<Self> {
        let two = node.op != "Min" || node.inputs.len() == 2;
        let found = FUNCTIONS.iter().find(|(name, _)| node.is(name) && two);
        found.map(|(_, function)| *function)
    }

    /// Numbers it is of.
    pub fn operands(self) -> usize {
        if matches!(self, Self::Neg | Self::Abs | Self::Sqrt) { 1 } else { 2 }
    }
}

/// What a step of a [`Body`] reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operand {
    /// The element of this input.
    Element(usize),
    /// The one element of this input.
    Scalar(usize),
    /// A number.
    Number(f32),
    /// What this step computed.
    Step(usize),
}

/// What a loop over elements does: steps, each of what comes before it, and what goes to the outputs.
///
/// As text, a line for each step, such as `Mul x2 9e-1`, and one for the outputs, such as `= v0 v3`: `x` is the element of an input, `s`
/// an input of one element, `v` a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Body {
    /// The steps.
    pub steps: Vec<(Function, Vec<Operand>)>,
    /// The outputs.
    pub outputs: Vec<Operand>,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Element(k) => write!(f, " x{k}"),
            Self::Scalar(k) => write!(f, " s{k}"),
            Self::Number(n) => write!(f, " {n:e}"),
            Self::Step(k) => write!(f, " v{k}"),
        }
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (function, operands) in &self.steps {
            let name = FUNCTIONS.iter().find(|(_, g)| g == function).map_or("", |(name, _)| name);
            f.write_str(name)?;
            operands.iter().try_for_each(|o| o.fmt(f))?;
            f.write_str("\n")?;
        }
        f.write_str("=")?;
        self.outputs.iter().try_for_each(|o| o.fmt(f))
    }
}

impl FromStr for Operand {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_at(text.len().min(1));
        let operand = match kind {
            "x" => rest.parse().map(Self::Element).ok(),
            "s" => rest.parse().map(Self::Scalar).ok(),
            "v" => rest.parse().map(Self::Step).ok(),
            _ => text.parse().map(Self::Number).ok(),
        };
        operand.ok_or_else(|| Error::new(format!("`{text}` is no operand")))
    }
}

impl FromStr for Body {
    type Err = Error;
    /// # Errors
    /// What is no such text, or a step that reads what comes after it.
    fn from_str(text: &str) -> Result<Self> {
        let mut body = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let operands: Vec<Operand> = words.map(str::parse).collect::<Result<_>>()?;
            if operands.iter().any(|o| matches!(o, Operand::Step(k) if *k >= body.steps.len())) {
                crate::bail!("`{line}` reads a step that comes later");
            }
            match FUNCTIONS.iter().find(|(f, _)| *f == name) {
                Some((_, f)) if f.operands() == operands.len() => body.steps.push((*f, operands)),
                None if name == "=" => body.outputs = operands,
                _ => crate::bail!("`{line}` is no step of a loop"),
            }
        }
        Ok(body)
    }
}

/// Puts the elementwise operators of a stage on flat buffers together; those on scalars are repeated where they are read.
///
/// # Errors
/// More inputs or outputs of a run than the operator has place for.
pub fn fuse_elementwise(graph: &mut Graph) -> Result<()> {
    let kinds = kinds(graph);
    let deepest = kinds.iter().map(|k| k.depth).max().unwrap_or(0);
    let is_vector = |v: &ValueId| graph[*v].ty.as_ref().is_some_and(|t| t.len() > 1);
    let makes_vector = |n: &Node| n.outputs.iter().flatten().any(is_vector);
    let mut nodes: Vec<Node> = Vec::new();
    for depth in 0..=deepest {
        let at = |elementwise: bool| {
            let nodes = kinds.iter().zip(&graph.nodes);
            nodes.filter(|(k, _)| **k == Kind { depth, elementwise }).map(|(_, n)| n).collect::<Vec<&Node>>()
        };
        let run = at(true);
        let (vectors, scalars): (Vec<&Node>, Vec<&Node>) = run.iter().partition(|n| makes_vector(n));
        if vectors.len() > 1 {
            let others = (0..kinds.len()).filter(|i| kinds[*i] != Kind { depth, elementwise: true });
            let outside = others.flat_map(|i| graph.nodes[i].inputs.iter().flatten());
            let read: HashSet<ValueId> = outside.chain(&graph.outputs).copied().collect();
            let made = vectors.iter().flat_map(|n| n.outputs.iter().flatten());
            let written: Vec<ValueId> = made.filter(|v| read.contains(v)).copied().collect();
            // What is scalar is computed by itself, too, for whatever else reads it.
            nodes.extend(scalars.into_iter().cloned());
            nodes.push(together(graph, &run, &written, depth)?);
        } else {
            nodes.extend(run.into_iter().cloned());
        }
        nodes.extend(at(false).into_iter().cloned());
    }
    graph.nodes = nodes;
    graph.opsets.insert(DOMAIN.into(), 1);
    graph.remove_dead_nodes();
    graph.check_typed()
}

/// What a node is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    /// How many nodes that are not elementwise lie before it, one behind the other.
    depth: usize,
    elementwise: bool,
}

fn kinds(graph: &Graph) -> Vec<Kind> {
    let mut after: HashMap<ValueId, usize> = HashMap::new();
    let mut kinds = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let depth = node.inputs.iter().flatten().filter_map(|v| after.get(v)).max().copied().unwrap_or(0);
        let elementwise = Function::of(node).is_some();
        for v in node.outputs.iter().flatten() {
            after.insert(*v, depth + usize::from(!elementwise));
        }
        kinds.push(Kind { depth, elementwise });
    }
    kinds
}

/// One node for a run.
fn together(graph: &Graph, run: &[&Node], written: &[ValueId], depth: usize) -> Result<Node> {
    let mut inputs: Vec<ValueId> = Vec::new();
    let mut made: HashMap<ValueId, Operand> = HashMap::new();
    let mut body = Body::default();
    for node in run {
        let mut operands = Vec::new();
        for v in node.inputs.iter().flatten() {
            operands.push(match made.get(v) {
                Some(step) => *step,
                None => operand(graph, *v, &mut inputs)?,
            });
        }
        let function = Function::of(node).ok_or_else(|| node.blame(Error::new("it is not elementwise")))?;
        let y = node.output(0).ok_or_else(|| node.blame(Error::new("it has no output")))?;
        made.insert(y, Operand::Step(body.steps.len()));
        body.steps.push((function, operands));
    }
    body.outputs = written.iter().map(|v| made[v]).collect();
    if inputs.len() > MOST.0 || written.len() > MOST.1 {
        crate::bail!("a run of {} operators has {} inputs and {} outputs", run.len(), inputs.len(), written.len());
    }
    Ok(Node {
        name: format!("elementwise/{depth}"),
        domain: DOMAIN.into(),
        op: "Elementwise".into(),
        inputs: inputs.into_iter().map(Some).collect(),
        outputs: written.iter().copied().map(Some).collect(),
        attrs: Attrs::from([("body".into(), Attr::Str(body.to_string()))]),
    })
}

/// How a loop reads a value from outside.
fn operand(graph: &Graph, v: ValueId, inputs: &mut Vec<ValueId>) -> Result<Operand> {
    let one = graph.ty(v)?.len() == 1;
    if let (Source::Constant(t), true) = (&graph[v].source, one)
        && let Some(number) = t.to_f32().first().filter(|n| n.is_finite())
    {
        return Ok(Operand::Number(*number));
    }
    let k = inputs.iter().position(|x| *x == v).unwrap_or_else(|| {
        inputs.push(v);
        inputs.len() - 1
    });
    Ok(if one { Operand::Scalar(k) } else { Operand::Element(k) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_survives_as_text_and_what_is_none_is_refused() -> Result<()> {
        let body = Body {
            steps: vec![
                (Function::Mul, vec![Operand::Element(2), Operand::Number(0.9)]),
                (Function::Sqrt, vec![Operand::Step(0)]),
                (Function::Min, vec![Operand::Scalar(1), Operand::Number(f32::MIN_POSITIVE)]),
            ],
            outputs: vec![Operand::Step(1), Operand::Step(2)],
        };
        let text = body.to_string();
        assert_eq!(text, "Mul x2 9e-1\nSqrt v0\nMin s1 1.1754944e-38\n= v1 v2");
        assert_eq!(text.parse::<Body>()?, body);
        for wrong in ["Mul x0", "Exp x0", "Neg v0", "Abs y0", "Add x0 x", "= v0", "Abs x0\n\n= v0"] {
            assert!(wrong.parse::<Body>().is_err(), "{wrong}");
        }
        Ok(())
    }
}
