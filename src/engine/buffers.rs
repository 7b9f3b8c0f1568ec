//! What a step works on: flat buffers, and the stages that see each of them as one vector.

use super::arena::{Buffer, Layout, Memory};
use super::binding::Binding;
use super::session::{Engine, Session};
use crate::adapt::KEYS;
use crate::error::{Error, Result};
use crate::ir::Graph;
use crate::step::{Base, StepOptions, names};
use std::collections::BTreeMap;

/// Which buffer of each pair holds the current values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sides {
    pub(super) theta: usize,
    pub(super) stats: usize,
    pub(super) sum: usize,
}

/// Which gradient a stage works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gradient {
    /// The last ascent pass's.
    Ascent,
    /// The last descent pass's.
    Descent,
    /// The sum over micro-batches.
    Total,
}

/// A stage on flat buffers.
pub(super) struct FlatStage {
    session: Session,
    graph: Graph,
    gradient: Gradient,
    bindings: BTreeMap<Sides, Binding>,
}

impl FlatStage {
    pub(super) fn new(engine: &Engine, graph: Graph, gradient: Gradient) -> Result<Self> {
        Ok(Self { session: engine.compile(&graph)?, graph, gradient, bindings: BTreeMap::new() })
    }

    pub(super) fn run(&mut self, buffers: &Buffers, sides: Sides) -> Result<()> {
        if !self.bindings.contains_key(&sides) {
            let mut b = self.session.binding()?;
            for v in &self.graph.inputs {
                let name = &self.graph[*v].name;
                b.input(name, buffers.of(name, sides, self.gradient)?, 0, self.graph.ty(*v)?)?;
            }
            for v in &self.graph.outputs {
                let name = &self.graph[*v].name;
                b.output(name, buffers.of(name, sides, self.gradient)?, 0, self.graph.ty(*v)?)?;
            }
            self.bindings.insert(sides, b);
        }
        self.session.run_bound(&self.bindings[&sides])
    }
}

/// Every buffer of a step; those of a pair trade places.
pub(super) struct Buffers {
    pub(super) memory: Memory,
    pub(super) theta: [Buffer; 2],
    pub(super) grad: Buffer,
    /// The same as `grad`, unless both gradients are needed at once.
    pub(super) ascent_grad: Buffer,
    pub(super) sum: [Buffer; 2],
    pub(super) size_sum: [Buffer; 2],
    pub(super) noise: Buffer,
    pub(super) keep: Buffer,
    pub(super) share: Buffer,
    pub(super) optimizer: Vec<[Buffer; 2]>,
    pub(super) stats: [Buffer; 2],
    pub(super) batch_stats: Buffer,
    pub(super) stat_rate: Buffer,
    pub(super) is_weight: Buffer,
    pub(super) lr: Buffer,
    pub(super) rho: Buffer,
    pub(super) bias1: Buffer,
    pub(super) bias2: Buffer,
    pub(super) phase: Buffer,
    pub(super) key: Buffer,
    pub(super) loss: Buffer,
    pub(super) correct: Buffer,
}

impl Buffers {
    pub(super) fn new(memory: Memory, layout: &Layout, stat_layout: &Layout, options: &StepOptions) -> Result<Self> {
        let vector = || memory.zeros(layout.len() * 4);
        let stats = || memory.zeros(stat_layout.len() * 4);
        let scalar = || memory.zeros(4);
        let grad = vector()?;
        let mut optimizer: Vec<[Buffer; 2]> =
            (0..options.states()).map(|_| Ok([vector()?, vector()?])).collect::<Result<_>>()?;
        // LookSAM's direction stays where it is until the next one replaces it.
        if let Some([kept, other]) = optimizer.last_mut().filter(|_| options.period > 1) {
            *other = kept.clone();
        }
        let sum = if options.micro_batch.is_some() { [vector()?, vector()?] } else { [grad.clone(), grad.clone()] };
        // Of no length where no stage has them.
        let some = |is: bool| memory.zeros(if is { layout.len() * 4 } else { 0 });
        let sizes = options.micro_batch.is_some() && options.base == Base::Bsam;
        Ok(Self {
            theta: [vector()?, vector()?],
            size_sum: [some(sizes)?, some(sizes)?],
            noise: some(options.starts_at_random())?,
            ascent_grad: if options.compares_gradients() { vector()? } else { grad.clone() },
            grad,
            sum,
            keep: scalar()?,
            share: scalar()?,
            optimizer,
            stats: [stats()?, stats()?],
            batch_stats: stats()?,
            stat_rate: stats()?,
            is_weight: some(options.spares_biases())?,
            lr: scalar()?,
            rho: scalar()?,
            bias1: scalar()?,
            bias2: scalar()?,
            phase: scalar()?,
            key: memory.zeros(KEYS * 4)?,
            loss: scalar()?,
            correct: scalar()?,
            memory,
        })
    }

    /// The buffer of a flat stage's input or output.
    pub(super) fn of(&self, name: &str, sides: Sides, gradient: Gradient) -> Result<&Buffer> {
        let (side, other) = (sides.theta, 1 - sides.theta);
        Ok(match name {
            names::THETA => &self.theta[side],
            names::THETA_OUT => &self.theta[other],
            names::GRAD => match gradient {
                Gradient::Ascent => &self.ascent_grad,
                Gradient::Descent => &self.grad,
                Gradient::Total => &self.sum[sides.sum],
            },
            names::ASCENT_GRAD => &self.ascent_grad,
            names::SUM => &self.sum[sides.sum],
            names::SUM_OUT => &self.sum[1 - sides.sum],
            names::SIZE_SUM => &self.size_sum[sides.sum],
            names::SIZE_SUM_OUT => &self.size_sum[1 - sides.sum],
            names::NOISE => &self.noise,
            names::KEEP => &self.keep,
            names::SHARE => &self.share,
            names::STATS => &self.stats[sides.stats],
            names::STATS_OUT => &self.stats[1 - sides.stats],
            names::BATCH_STATS => &self.batch_stats,
            names::STAT_RATE => &self.stat_rate,
            names::IS_WEIGHT => &self.is_weight,
            names::LR => &self.lr,
            names::RHO => &self.rho,
            names::BIAS1 => &self.bias1,
            names::BIAS2 => &self.bias2,
            _ => {
                let state = (0..self.optimizer.len()).find_map(|i| match name {
                    n if n == names::state(i) => Some(&self.optimizer[i][side]),
                    n if n == names::state_out(i) => Some(&self.optimizer[i][other]),
                    _ => None,
                });
                state.ok_or_else(|| Error::new(format!("no buffer is called `{name}`")))?
            }
        })
    }
}
