//! The stages that see parameters, gradient, states and statistics as one vector each.

use super::gradient::output;
use super::options::{Base, StepOptions};
use super::stages::add_input;
use super::update::Ending;
use super::{names, perturb, update};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::{DType, Graph, Type, ValueId};
use std::collections::BTreeMap;

/// A stage on flat buffers, under construction.
pub(super) struct Flat {
    graph: Graph,
    len: usize,
    inputs: BTreeMap<String, ValueId>,
}

impl Flat {
    fn new(name: &str, len: usize) -> Self {
        let mut graph = Graph::default();
        name.clone_into(&mut graph.name);
        graph.opsets.insert(String::new(), FLAT_OPSET);
        Self { graph, len, inputs: BTreeMap::new() }
    }

    fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        if let Some(v) = self.inputs.get(name) {
            return *v;
        }
        let v = add_input(&mut self.graph, name, Type::new(DType::F32, shape));
        self.inputs.insert(name.into(), v);
        v
    }

    /// An input as long as the parameters.
    pub(super) fn vector(&mut self, name: &str) -> ValueId {
        self.input(name, &[self.len])
    }

    /// A scalar input.
    pub(super) fn scalar(&mut self, name: &str) -> ValueId {
        self.input(name, &[])
    }

    /// A builder on the stage's graph.
    pub(super) fn builder(&mut self, scope: &str) -> Builder<'_> {
        Builder::new(&mut self.graph, scope)
    }

    /// Makes `v` an output.
    pub(super) fn output(&mut self, name: &str, v: ValueId) {
        output(&mut self.graph, name, v);
    }
}

/// The operator set of the flat stages, which need nothing newer.
const FLAT_OPSET: i64 = 18;

/// Builds `perturb` for `len` parameter elements; none without an ascent pass.
///
/// # Errors
/// Never for valid options.
pub fn perturb_stage(len: usize, options: &StepOptions) -> Result<Option<Graph>> {
    if options.ascent.is_none() {
        return Ok(None);
    }
    let mut flat = Flat::new("perturb", len);
    perturb::perturb(&mut flat, options)?;
    flat.graph.check_typed()?;
    Ok(Some(flat.graph))
}

/// Builds `start` for `len` parameter elements; none where the ascent starts at the parameters.
///
/// # Errors
/// Never for valid options.
pub fn start_stage(len: usize, options: &StepOptions) -> Result<Option<Graph>> {
    if !options.starts_at_random() {
        return Ok(None);
    }
    let mut flat = Flat::new("start", len);
    perturb::start(&mut flat, options)?;
    flat.graph.check_typed()?;
    Ok(Some(flat.graph))
}

/// Builds `update` for `len` parameter elements.
///
/// # Errors
/// Never for valid options.
pub fn update_stage(len: usize, options: &StepOptions, ending: Ending) -> Result<Graph> {
    let mut flat = Flat::new("update", len);
    update::update(&mut flat, options, ending)?;
    flat.graph.check_typed()?;
    Ok(flat.graph)
}

/// Builds `statistics` for `len` elements: s′ = s + rate·(batch − s); none without running statistics.
///
/// # Errors
/// Never.
pub fn statistics_stage(len: usize) -> Result<Option<Graph>> {
    if len == 0 {
        return Ok(None);
    }
    let mut flat = Flat::new("statistics", len);
    let [s, batch, rate] = [names::STATS, names::BATCH_STATS, names::STAT_RATE].map(|n| flat.vector(n));
    let mut b = flat.builder("statistics");
    let difference = b.sub(batch, s)?;
    let step = b.mul(difference, rate)?;
    let next = b.add(s, step)?;
    flat.output(names::STATS_OUT, next);
    flat.graph.check_typed()?;
    Ok(Some(flat.graph))
}

/// Builds `accumulate` for `len` parameter elements: sum′ = keep·sum + share·g, for bSAM also of the ascent's |g|; none without micro-batches.
///
/// # Errors
/// Never.
pub fn accumulate_stage(len: usize, options: &StepOptions) -> Result<Option<Graph>> {
    if options.micro_batch.is_none() {
        return Ok(None);
    }
    let mut flat = Flat::new("accumulate", len);
    let (sum, g) = (flat.vector(names::SUM), flat.vector(names::GRAD));
    let (keep, share) = (flat.scalar(names::KEEP), flat.scalar(names::SHARE));
    let mut b = flat.builder("accumulate");
    let kept = b.mul(sum, keep)?;
    let added = b.mul(g, share)?;
    let next = b.add(kept, added)?;
    flat.output(names::SUM_OUT, next);
    if options.base == Base::Bsam {
        let (sum, g) = (flat.vector(names::SIZE_SUM), flat.vector(names::ASCENT_GRAD));
        let mut b = flat.builder("sizes");
        let kept = b.mul(sum, keep)?;
        let size = b.unary("Abs", g);
        let added = b.mul(size, share)?;
        let next = b.add(kept, added)?;
        flat.output(names::SIZE_SUM_OUT, next);
    }
    flat.graph.check_typed()?;
    Ok(Some(flat.graph))
}
