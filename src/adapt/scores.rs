//! What a value says about classes: probabilities are seen through, down to the logits that they are made of.
//!
//! Exporters leave much between a softmax and the output: scales by one, epsilons, casts, layouts, a column picked out. What is
//! looked for here is the function that the value is of the logits, not a list of forms.

use crate::error::{Error, Result};
use crate::ir::{Attr, Graph, Node, NodeId, ValueId};
use std::collections::HashMap;

/// How class scores follow from a value z of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// They are z.
    Scores,
    /// They are softmax z over the classes, or its logarithm.
    Softmax,
    /// They are σ(z), or σ(−z).
    Sigmoid {
        /// Whether it is σ(−z).
        negated: bool,
    },
    /// They are [1 − σ(z), σ(z)], or [σ(z), 1 − σ(z)].
    Pair {
        /// Whether σ(z) comes first.
        flipped: bool,
    },
}

/// What was found behind a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// z.
    pub value: ValueId,
    /// What the value is of z.
    pub meaning: Meaning,
    /// The operators between, from the value to z.
    pub through: Vec<String>,
    /// Whether it is the logarithm of that.
    log: bool,
    /// What it is multiplied by.
    scale: f64,
}

/// The largest share of a probability that an epsilon adds or cuts off.
const EPSILON: f64 = 1e-2;

/// Looks behind values of a graph whose types are known, for batches of `batch` samples.
pub struct Tracer<'g> {
    graph: &'g Graph,
    producers: HashMap<ValueId, NodeId>,
    batch: usize,
}

impl<'g> Tracer<'g> {
    /// A tracer of `graph`.
    pub fn new(graph: &'g Graph, batch: usize) -> Self {
        Self { graph, producers: graph.producers(), batch }
    }

    /// The node that makes `v`.
    pub fn maker(&self, v: ValueId) -> Option<&'g Node> {
        self.producers.get(&v).map(|i| &self.graph.nodes[*i])
    }

    /// Numbers for each sample.
    pub fn columns(&self, v: ValueId) -> usize {
        self.shape(v).iter().product::<usize>() / self.batch.max(1)
    }

    /// What `v` is made of; none where it is no function of scores that is known, so that it holds the scores itself.
    ///
    /// # Errors
    /// A softmax that does not run over classes.
    pub fn see(&self, v: ValueId) -> Result<Option<Seen>> {
        let Some(node) = self.maker(v).filter(|n| n.domain.is_empty() || n.domain == "ai.onnx.ml") else {
            return Ok(None);
        };
        let seen = match self.end(node, v)? {
            Some(seen) => Some(seen),
            None => self.passed(node, v)?,
        };
        Ok(seen.map(|mut s| {
            s.through.insert(0, node.op.clone());
            s
        }))
    }

    fn shape(&self, v: ValueId) -> &'g [usize] {
        self.graph[v].ty.as_ref().map_or(&[], |t| &t.shape)
    }

    /// The dimensions that are not 1.
    fn core(&self, v: ValueId) -> Vec<usize> {
        self.shape(v).iter().copied().filter(|d| *d != 1).collect()
    }

    /// The axis of the classes of scores [N, K], whatever dimensions of size 1 they have besides.
    fn class_axis(&self, v: ValueId) -> Option<usize> {
        let axis = self.shape(v).iter().rposition(|d| *d != 1)?;
        let rows: usize = self.shape(v)[..axis].iter().product();
        (rows == self.batch).then_some(axis)
    }

    /// The number that every element of a stored tensor is.
    fn uniform(&self, v: ValueId) -> Option<f64> {
        let values = self.graph.tensor(v)?.to_f64();
        let first = *values.first()?;
        values.iter().all(|x| *x == first).then_some(first)
    }

    fn axis(&self, node: &Node, x: ValueId, default: i64) -> Option<usize> {
        let rank = self.shape(x).len() as i64;
        let axis = if let Some(Attr::Int(a)) = node.attrs.get("axis") { *a } else { default };
        (-rank..rank).contains(&axis).then(|| axis.rem_euclid(rank) as usize)
    }

    /// Where scores become probabilities.
    fn end(&self, node: &Node, y: ValueId) -> Result<Option<Seen>> {
        let Some(x) = node.input(0) else { return Ok(None) };
        let found = |value, meaning, log| Some(Seen { value, meaning, log, scale: 1.0, through: Vec::new() });
        Ok(match node.op.as_str() {
            "Softmax" | "LogSoftmax" => {
                self.over_classes(node, x)?;
                found(x, Meaning::Softmax, node.op == "LogSoftmax")
            }
            "Sigmoid" => found(x, Meaning::Sigmoid { negated: false }, false),
            "Div" | "Mul" | "Reciprocal" | "Sub" | "Concat" => {
                let softmax = self.written_softmax(node).and_then(|x| found(x, Meaning::Softmax, false));
                let log = || self.written_log_softmax(node).and_then(|x| found(x, Meaning::Softmax, true));
                let sigmoid = || {
                    let (x, negated) = self.written_sigmoid(node)?;
                    found(x, Meaning::Sigmoid { negated }, false)
                };
                match softmax.or_else(log).or_else(sigmoid) {
                    Some(seen) => Some(seen),
                    None => self.pair(node, y)?,
                }
            }
            _ => None,
        })
    }

    /// Whether a softmax of `x` runs over the classes of each sample.
    ///
    /// # Errors
    /// When it runs over something else: its outputs then are no probabilities of classes.
    fn over_classes(&self, node: &Node, x: ValueId) -> Result<()> {
        let Some(axis) = self.axis(node, x, -1) else { return Ok(()) };
        let cause = match self.shape(x)[axis] {
            1 => {
                format!("it runs over axis {axis} of {:?}, which has size 1, so that all it gives is 1", self.shape(x))
            }
            _ if self.class_axis(x) != Some(axis) => {
                format!("it runs over axis {axis} of {:?}, which is not that of the classes", self.shape(x))
            }
            _ => return Ok(()),
        };
        let hint = format!(
            "export the model with a softmax over the classes, or name the value that holds the logits: --logits '{}'",
            self.graph[x].name
        );
        Err(node.blame(Error::new(cause)).hint(hint))
    }

    /// What changes scores only so that they can still be told.
    fn passed(&self, node: &Node, y: ValueId) -> Result<Option<Seen>> {
        let Some(x) = node.input(0) else { return Ok(None) };
        if self.neutral(node, y) {
            let same = node.is("Identity") || self.graph[x].ty == self.graph[y].ty && !node.is("Dropout");
            let bare = Seen { value: x, meaning: Meaning::Scores, log: false, scale: 1.0, through: Vec::new() };
            return Ok(self.see(x)?.or(same.then_some(bare)));
        }
        match node.op.as_str() {
            "Mul" | "Div" | "Add" | "Sub" => self.arithmetic(node, y),
            "Clip" | "Max" | "Min" => self.clipped(node, y),
            "Log" => {
                Ok(self.see(x)?.filter(|s| !s.log && s.meaning != Meaning::Scores).map(|s| Seen { log: true, ..s }))
            }
            "Neg" => Ok(self.see(x)?.filter(|s| s.log)),
            "Exp" => {
                let log = self.see(x)?.filter(|s| s.log && s.scale == 1.0);
                Ok(log.map(|s| Seen { log: false, ..s }))
            }
            "Gather" | "Slice" | "Split" | "ReduceMax" => self.one_column(x, y),
            "TopK" => self.best(node, x, y),
            "Normalizer" => {
                let whole = |s: &Seen| !s.log && matches!(s.meaning, Meaning::Softmax | Meaning::Pair { .. });
                let l1 = node.attrs.get("norm") == Some(&Attr::Str("L1".into()));
                Ok(self.see(x)?.filter(|s| l1 && whole(s)).map(|s| Seen { scale: 1.0, ..s }))
            }
            _ => Ok(None),
        }
    }

    /// Whether a node leaves every number in its place: all it may change is the type, or dimensions of size 1.
    fn neutral(&self, node: &Node, y: ValueId) -> bool {
        let Some(x) = node.input(0).filter(|_| node.domain.is_empty()) else { return false };
        let kept = self.core(x) == self.core(y);
        let ints = |i: usize| node.input(i).and_then(|v| self.graph.tensor(v)).and_then(|t| t.to_i64());
        match node.op.as_str() {
            "Identity" => true,
            "Cast" | "CastLike" => self.graph[y].ty.as_ref().is_some_and(|t| t.dtype.is_float()),
            "Dropout" => node.output(0) == Some(y),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" => kept,
            "Transpose" => match node.attrs.get("perm") {
                Some(Attr::Ints(perm)) => {
                    kept && perm.iter().filter(|p| self.shape(x).get(**p as usize) != Some(&1)).is_sorted()
                }
                _ => kept && self.core(x).len() < 2,
            },
            "Slice" => kept && (node.input(4).is_none() || ints(4).is_some_and(|s| s.iter().all(|s| *s == 1))),
            "Gather" => {
                let size = self.axis(node, x, 0).map(|a| self.shape(x)[a] as i64);
                kept && size.is_some_and(|n| ints(1).is_some_and(|i| i.into_iter().eq(0..n)))
            }
            "Concat" | "Sum" | "Mean" | "Max" | "Min" => node.inputs.len() == 1,
            _ => false,
        }
    }

    /// Probabilities times a number, plus an epsilon, or taken from one.
    fn arithmetic(&self, node: &Node, y: ValueId) -> Result<Option<Seen>> {
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Ok(None) };
        let (x, c, from_number) = match (self.uniform(a), self.uniform(b)) {
            (_, Some(c)) => (a, c, false),
            (Some(c), None) => (b, c, true),
            _ => return Ok(None),
        };
        if self.core(x) != self.core(y) {
            return Ok(None);
        }
        let Some(s) = self.see(x)?.filter(|s| s.meaning != Meaning::Scores) else { return Ok(None) };
        Ok(match node.op.as_str() {
            "Mul" if c == 1.0 || (c > 0.0 && !s.log) => Some(Seen { scale: s.scale * c, ..s }),
            "Div" if !from_number && (c == 1.0 || (c > 0.0 && !s.log)) => Some(Seen { scale: s.scale / c, ..s }),
            "Add" if s.log || c.abs() <= EPSILON * s.scale => Some(s),
            "Sub" if !from_number && (s.log || c.abs() <= EPSILON * s.scale) => Some(s),
            "Sub" if from_number && !s.log && (c - s.scale).abs() <= 1e-6 * s.scale => match s.meaning {
                Meaning::Sigmoid { negated } => Some(Seen { meaning: Meaning::Sigmoid { negated: !negated }, ..s }),
                Meaning::Pair { flipped } => Some(Seen { meaning: Meaning::Pair { flipped: !flipped }, ..s }),
                _ => None,
            },
            _ => None,
        })
    }

    /// Probabilities kept away from their ends.
    fn clipped(&self, node: &Node, y: ValueId) -> Result<Option<Seen>> {
        let bound = |i: usize| node.input(i).map(|v| self.uniform(v));
        let (x, low, high) = match (node.op.as_str(), node.input(0), node.input(1)) {
            ("Clip", Some(x), _) => (x, bound(1), bound(2)),
            (op, Some(a), Some(b)) if node.inputs.len() == 2 => {
                let (x, c) = if self.uniform(b).is_some() { (a, self.uniform(b)) } else { (b, self.uniform(a)) };
                if op == "Max" { (x, Some(c), None) } else { (x, None, Some(c)) }
            }
            _ => return Ok(None),
        };
        // A bound that is computed is not known.
        if low == Some(None) || high == Some(None) || self.core(x) != self.core(y) {
            return Ok(None);
        }
        let (low, high) = (low.flatten(), high.flatten());
        Ok(self.see(x)?.filter(|s| {
            let (least, most) = if s.log { (-2.0, 0.0) } else { (EPSILON * s.scale, (1.0 - EPSILON) * s.scale) };
            s.meaning != Meaning::Scores && low.is_none_or(|l| l <= least) && high.is_none_or(|h| h >= most)
        }))
    }

    /// The probability of one class, or the largest one, of several.
    fn one_column(&self, x: ValueId, y: ValueId) -> Result<Option<Seen>> {
        if self.columns(y) != 1 || self.columns(x) < 2 || self.class_axis(x).is_none() {
            return Ok(None);
        }
        Ok(self.see(x)?.filter(|s| matches!(s.meaning, Meaning::Softmax | Meaning::Pair { .. })))
    }

    /// The largest scores, sorted: which class they are of is in the other output.
    fn best(&self, node: &Node, x: ValueId, y: ValueId) -> Result<Option<Seen>> {
        let axis = self.axis(node, x, -1);
        if node.output(0) != Some(y) || axis.is_none() || axis != self.class_axis(x) {
            return Ok(None);
        }
        let bare = Seen { value: x, meaning: Meaning::Scores, log: false, scale: 1.0, through: Vec::new() };
        Ok(self.see(x)?.or(Some(bare)))
    }

    /// σ and 1 − σ of one value side by side.
    fn pair(&self, node: &Node, y: ValueId) -> Result<Option<Seen>> {
        let [Some(a), Some(b)] = node.inputs[..] else { return Ok(None) };
        let stacked = node.is("Concat") && self.columns(y) == 2 && self.class_axis(y) == self.axis(node, y, 1);
        if !stacked || self.columns(a) != 1 {
            return Ok(None);
        }
        let (Some(a), Some(b)) = (self.see(a)?, self.see(b)?) else { return Ok(None) };
        let (Meaning::Sigmoid { negated: first }, Meaning::Sigmoid { negated: second }) = (a.meaning, b.meaning) else {
            return Ok(None);
        };
        let complement = a.value == b.value && first != second && a.scale == b.scale && !a.log && !b.log;
        let through = if a.through.len() > b.through.len() { a.through } else { b.through };
        Ok(complement.then_some(Seen { meaning: Meaning::Pair { flipped: second }, through, ..b }))
    }
}

/// Functions that exporters write out.
impl Tracer<'_> {
    /// The logits of e/Σe with e = exp z over the classes; a largest logit subtracted before does not matter.
    fn written_softmax(&self, node: &Node) -> Option<ValueId> {
        let (e, sum) = match node.op.as_str() {
            "Div" => (node.input(0)?, node.input(1)?),
            "Mul" => {
                let (a, b) = (node.input(0)?, node.input(1)?);
                let inverse = |v: ValueId| self.maker(v).filter(|n| n.is("Reciprocal")).and_then(|n| n.input(0));
                inverse(b).map(|s| (a, s)).or_else(|| inverse(a).map(|s| (b, s)))?
            }
            _ => return None,
        };
        let e = self.base(e);
        (self.summed(sum)? == e).then(|| self.maker(e).filter(|n| n.is("Exp")))??.input(0).map(|z| self.unshifted(z))
    }

    /// The logits of z − log Σ exp z over the classes.
    fn written_log_softmax(&self, node: &Node) -> Option<ValueId> {
        let (z, log) = (node.input(0).filter(|_| node.is("Sub"))?, self.base(node.input(1)?));
        let maker = self.maker(log)?;
        let of = match maker.op.as_str() {
            "ReduceLogSumExp" if self.reduces_classes(maker) => maker.input(0)?,
            "Log" => self.maker(self.summed(maker.input(0)?)?).filter(|n| n.is("Exp"))?.input(0)?,
            _ => return None,
        };
        (self.base(of) == self.base(z)).then(|| self.unshifted(z))
    }

    /// The value of 1/(1 + exp z) or exp z/(1 + exp z), and whether it is σ(−z).
    fn written_sigmoid(&self, node: &Node) -> Option<(ValueId, bool)> {
        let (top, bottom) = match node.op.as_str() {
            "Reciprocal" => (None, node.input(0)?),
            "Div" => (node.input(0), node.input(1)?),
            _ => return None,
        };
        let sum = self.maker(bottom).filter(|n| n.is("Add"))?;
        let (a, b) = (sum.input(0)?, sum.input(1)?);
        let e = if self.uniform(a) == Some(1.0) { b } else { (self.uniform(b) == Some(1.0)).then_some(a)? };
        let inner = self.maker(e).filter(|n| n.is("Exp"))?.input(0)?;
        let one = top.is_none_or(|t| self.uniform(t) == Some(1.0));
        if !one && top != Some(e) {
            return None;
        }
        Some(match self.negative_of(inner) {
            Some(z) => (z, !one),
            None => (inner, one),
        })
    }

    /// x of −x.
    fn negative_of(&self, v: ValueId) -> Option<ValueId> {
        let node = self.maker(v)?;
        let (a, b) = (node.input(0)?, node.input(1));
        match node.op.as_str() {
            "Neg" => Some(a),
            "Mul" if self.uniform(b?) == Some(-1.0) => Some(a),
            "Mul" if self.uniform(a) == Some(-1.0) => b,
            "Div" if self.uniform(b?) == Some(-1.0) => Some(a),
            "Sub" if self.uniform(a) == Some(0.0) => b,
            _ => None,
        }
    }

    /// What is summed over the classes in `v`, behind layouts and an epsilon.
    fn summed(&self, v: ValueId) -> Option<ValueId> {
        let sum = self.maker(self.base(v))?;
        let reduces = (sum.is("ReduceSum") || sum.is("ReduceL1")) && self.reduces_classes(sum);
        reduces.then(|| sum.input(0).map(|e| self.base(e)))?
    }

    /// Whether a reduction runs over the classes of each sample, and nothing else that matters.
    fn reduces_classes(&self, node: &Node) -> bool {
        let Some(x) = node.input(0) else { return false };
        let rank = self.shape(x).len() as i64;
        let given = node.input(1).and_then(|v| self.graph.tensor(v)).and_then(|t| t.to_i64());
        let axes =
            given.or_else(|| if let Some(Attr::Ints(a)) = node.attrs.get("axes") { Some(a.clone()) } else { None });
        let axes = axes.unwrap_or_default();
        let class = self.class_axis(x).map(|a| a as i64);
        let matters = |a: &i64| self.shape(x).get(*a as usize).is_some_and(|d| *d != 1);
        class.is_some() && axes.iter().map(|a| a.rem_euclid(rank.max(1))).filter(matters).eq(class)
    }

    /// `v` without layouts, casts and epsilons.
    fn base(&self, mut v: ValueId) -> ValueId {
        while let Some(node) = self.maker(v) {
            let layout = ["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity", "Cast"];
            let small = |i: usize| node.input(i).and_then(|c| self.uniform(c)).is_some_and(|c| c.abs() <= EPSILON);
            let inner = match node.op.as_str() {
                op if layout.contains(&op) => node.input(0),
                "Add" | "Max" if small(1) => node.input(0),
                "Add" | "Max" if small(0) => node.input(1),
                "Clip" if small(1) && node.input(2).is_none() => node.input(0),
                _ => None,
            };
            let Some(inner) = inner else { break };
            v = inner;
        }
        v
    }

    /// z of z − max z.
    fn unshifted(&self, v: ValueId) -> ValueId {
        let shifted = |node: &Node| {
            let z = node.input(0)?;
            let max = self.maker(self.base(node.input(1)?)).filter(|n| n.is("ReduceMax"))?;
            (node.is("Sub") && max.input(0).map(|x| self.base(x)) == Some(self.base(z))).then_some(z)
        };
        self.maker(v).and_then(shifted).unwrap_or(v)
    }
}
