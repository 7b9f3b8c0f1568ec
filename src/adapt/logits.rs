//! Finds the logits: losses and bounds work on them, not on probabilities.

use super::mode::depends_on_inputs;
use super::scores::{Meaning, Seen, Tracer};
use crate::error::{Error, Result};
use crate::ir::{Graph, ValueId};
use std::collections::HashSet;

/// The value that the logits are, or are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The output that was looked at, or the value that was asked for.
    pub output: ValueId,
    /// The value.
    pub value: ValueId,
    /// What the output is of it.
    pub meaning: Meaning,
    /// The operators between, from the output to the value.
    pub through: Vec<String>,
    /// Whether the value comes from a linear layer, as logits do.
    pub linear: bool,
    /// Other outputs that class scores could be.
    pub others: Vec<ValueId>,
}

impl Found {
    /// `v` as it stands.
    fn bare(v: ValueId) -> Self {
        let (meaning, through, others) = (Meaning::Scores, Vec::new(), Vec::new());
        Self { output: v, value: v, meaning, through, linear: false, others }
    }
}

/// What the logits are of a graph with types, for batches of `batch` samples: of the value `name`, or of the output that holds class
/// scores.
///
/// Without a name, outputs that are probabilities or come from a linear layer are taken before others, and of these one that is not
/// computed into another one: a model may output its embedding, too. Of several that are left the first is taken.
///
/// # Errors
/// No such output, or one that does not have the shape [batch, classes] or `[batch]` (dimensions of size 1 do not matter); a
/// softmax that does not run over the classes; independent probabilities of several classes.
pub fn find_logits(graph: &Graph, batch: usize, name: Option<&str>) -> Result<Found> {
    let search = Search { graph, tracer: Tracer::new(graph, batch), data: depends_on_inputs(graph), batch };
    let found = match name {
        Some(name) => search.named(name)?,
        None => search.best()?,
    };
    search.one_of_each(&found)?;
    Ok(found)
}

/// How much speaks for an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is made of probabilities, or a linear layer of several classes.
    Classes,
    /// It is one number a sample, of a linear layer.
    OneNumber,
    /// It is something else.
    Other,
}

struct Search<'g> {
    graph: &'g Graph,
    tracer: Tracer<'g>,
    /// Values computed from the inputs.
    data: HashSet<ValueId>,
    batch: usize,
}

impl Search<'_> {
    fn outputs(&self) -> String {
        self.graph.outputs.iter().map(|v| self.graph[*v].name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn is_float(&self, v: ValueId) -> bool {
        self.graph[v].ty.as_ref().is_some_and(|t| t.dtype.is_float())
    }

    fn value(&self, name: &str) -> Result<ValueId> {
        let output = self.graph.outputs.iter().copied().find(|v| self.graph[*v].name == name);
        let inner = || self.graph.find(name).filter(|v| self.tracer.maker(*v).is_some());
        let found = output.or_else(inner).ok_or_else(|| {
            Error::new(format!("the model has no output `{name}`, nor a value of that name inside"))
                .hint(format!("its outputs are {}", self.outputs()))
        })?;
        if self.is_float(found) {
            return Ok(found);
        }
        let ty = self.graph.ty(found)?;
        Err(Error::new(format!("`{name}` is {ty}, but logits are floats"))
            .hint(format!("choose the logits with --logits; the outputs are {}", self.outputs())))
    }

    fn first_float(&self) -> Result<ValueId> {
        let first = self.graph.outputs.iter().copied().find(|v| self.is_float(*v));
        first.ok_or_else(|| {
            Error::new("the model has no float output").hint(format!(
                "name a value inside it that holds the logits with --logits; its outputs are {}",
                self.outputs()
            ))
        })
    }

    /// Whether `v` has the shape of class scores.
    fn fitting(&self, v: ValueId) -> Result<()> {
        let shape = &self.graph.ty(v)?.shape;
        if shape.is_empty() || shape.iter().skip(2).any(|d| *d != 1) {
            return Err(Error::new(format!(
                "output `{}` has shape {shape:?}, not [batch, classes]",
                self.graph[v].name
            ))
            .hint(format!("choose the logits with --logits; the outputs are {}", self.outputs())));
        }
        match shape.first() {
            Some(rows) if *rows != self.batch => {
                Err(Error::new(format!("the logits of a batch of {} have {rows} rows", self.batch))
                    .hint("export the model with a dynamic batch dimension"))
            }
            _ => Ok(()),
        }
    }

    fn named(&self, name: &str) -> Result<Found> {
        let v = self.value(name)?;
        let seen = self.tracer.see(v)?;
        self.fitting(v)?;
        Ok(self.found(v, seen))
    }

    fn found(&self, v: ValueId, seen: Option<Seen>) -> Found {
        let seen = seen.filter(|s| self.tracer.columns(s.value) > 0);
        let mut found = Found::bare(v);
        if let Some(s) = seen {
            found = Found { value: s.value, meaning: s.meaning, through: s.through, ..found };
        }
        found.linear = self.is_linear(found.value);
        found
    }

    fn best(&self) -> Result<Found> {
        let first = self.first_float()?;
        let fitting = |v: &ValueId| self.is_float(*v) && self.fitting(*v).is_ok();
        let mut candidates: Vec<(Rank, ValueId, Result<Found>)> = Vec::new();
        for v in self.graph.outputs.iter().copied().filter(fitting) {
            let found = self.tracer.see(v).map(|seen| self.found(v, seen));
            let rank = found.as_ref().map_or(Rank::Classes, |f| self.rank(f));
            candidates.push((rank, v, found));
        }
        let best = candidates.iter().map(|(rank, ..)| *rank).min();
        // What nothing speaks for is taken only where it comes first.
        if best.is_none_or(|b| b == Rank::Other) {
            self.fitting(first)?;
        }
        let others: Vec<ValueId> = candidates.iter().map(|(_, v, _)| *v).collect();
        candidates.retain(|(rank, ..)| Some(*rank) == best);
        let of = |f: &Result<Found>, v: ValueId| f.as_ref().map_or(v, |f| f.value);
        let into_another = |(_, v, f): &(Rank, ValueId, Result<Found>)| {
            let mine = of(f, *v);
            let above = |(_, w, g): &(Rank, ValueId, Result<Found>)| {
                let theirs = of(g, *w);
                theirs != mine && self.graph.upstream([theirs]).contains(&mine)
            };
            candidates.iter().any(above)
        };
        let at = candidates.iter().position(|c| !into_another(c)).unwrap_or(0);
        let Some((_, v, found)) = candidates.into_iter().nth(at) else {
            return self.fitting(first).map(|()| Found::bare(first));
        };
        let found = found?;
        let same = |w: &ValueId| *w == v || self.tracer.see(*w).is_ok_and(|s| s.map_or(*w, |s| s.value) == found.value);
        let others = others.into_iter().filter(|w| !same(w)).collect();
        Ok(Found { others, ..found })
    }

    fn rank(&self, found: &Found) -> Rank {
        let columns = self.tracer.columns(found.value);
        match found.meaning {
            Meaning::Scores if found.linear && columns > 1 => Rank::Classes,
            Meaning::Scores if found.linear => Rank::OneNumber,
            Meaning::Scores => Rank::Other,
            _ => Rank::Classes,
        }
    }

    /// Whether `v` comes from a linear layer, with stored numbers added or multiplied at most.
    fn is_linear(&self, mut v: ValueId) -> bool {
        while let Some(node) = self.tracer.maker(v) {
            let stored = |i: usize| node.input(i).is_some_and(|x| !self.data.contains(&x));
            let inner = match node.op.as_str() {
                "Gemm" | "MatMul" | "Conv" | "FusedMatMul" | "FusedGemm" | "FusedConv" | "Einsum" => return true,
                "Add" | "Sub" | "Mul" | "Div" if stored(1) => node.input(0),
                "Add" | "Mul" if stored(0) => node.input(1),
                "Identity" | "Cast" | "Dropout" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" => {
                    node.input(0)
                }
                _ => None,
            };
            let Some(inner) = inner else { return false };
            v = inner;
        }
        false
    }

    /// Refuses independent probabilities of several classes: cross-entropy is about one class of each sample.
    fn one_of_each(&self, found: &Found) -> Result<()> {
        let columns = self.tracer.columns(found.value);
        let bounded = |v: ValueId| self.tracer.maker(v).is_some_and(|n| n.is("HardSigmoid"));
        let sigmoids = matches!(found.meaning, Meaning::Sigmoid { .. }) || bounded(found.value);
        if !sigmoids || columns < 2 {
            return Ok(());
        }
        let (output, value) = (&self.graph[found.output].name, &self.graph[found.value].name);
        let by = if bounded(found.value) { "HardSigmoid" } else { "Sigmoid" };
        let cause = format!(
            "output `{output}` is {columns} independent probabilities a sample (through {by}), which cross-entropy over classes does not fit: training on several labels a sample is not supported"
        );
        let inner = if bounded(found.value) {
            self.tracer.maker(found.value).and_then(|n| n.input(0)).map_or(value, |x| &self.graph[x].name)
        } else {
            value
        };
        Err(Error::new(cause)
            .hint(format!("if every sample has one class, train the values before as logits: --logits '{inner}'")))
    }
}
