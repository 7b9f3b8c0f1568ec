//! A training step as a short program over flat buffers: grad → (perturb → grad →) update.
//!
//! Parameters lie in two buffers that trade places every step. The ascent pass reads θ from one, `perturb` writes θ̂ into the
//! other, the descent pass reads it there, and `update` writes the next θ over it. Every binding is made once, for either side.

use super::arena::{Buffer, Layout, Memory};
use super::binding::Binding;
use super::session::{Engine, Session};
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Tensor, Type};
use crate::step::stages::{Slot, Stages, StatSlot, names, perturb_stage, update_stage};
use crate::step::{Base, StepOptions};
use std::time::{Duration, Instant};

/// What one step measured, at the weights it started from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    /// Mean loss of the ascent pass; none without one.
    pub ascent: Option<f32>,
    /// Mean loss of the descent pass (at θ̂ where there is an ascent).
    pub descent: f32,
    /// Correctly classified samples of the first pass.
    pub correct: f32,
}

/// Wall time of each stage, summed over steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageTimes {
    /// Forward and backward passes.
    pub grad: Duration,
    /// Perturbation.
    pub perturb: Duration,
    /// Update.
    pub update: Duration,
}

/// Everything a checkpoint needs to go on bit for bit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// Parameters.
    pub params: Vec<Vec<f32>>,
    /// Running statistics.
    pub stats: Vec<Vec<f32>>,
    /// Optimizer states, each laid out as the parameters.
    pub optimizer: Vec<Vec<Vec<f32>>>,
    /// Steps done.
    pub steps: u64,
}

/// `grad` for one batch size, bound to either parameter buffer.
struct GradStage {
    session: Session,
    bindings: [Binding; 2],
    inputs: Vec<Buffer>,
    labels: Buffer,
    batch: usize,
}

struct FlatStage {
    session: Session,
    bindings: [Binding; 2],
}

/// The compiled step of one model, with its state.
pub struct Program {
    engine: Engine,
    options: StepOptions,
    params: Vec<Slot>,
    stats: Vec<StatSlot>,
    layout: Layout,
    stat_layout: Layout,
    grads: Vec<GradStage>,
    perturb: Option<FlatStage>,
    update: FlatStage,
    buffers: Buffers,
    /// Which of each pair holds the current values.
    side: usize,
    steps: u64,
    /// Wall time per stage since the start.
    pub times: StageTimes,
}

struct Buffers {
    memory: Memory,
    theta: [Buffer; 2],
    grad: Buffer,
    optimizer: Vec<[Buffer; 2]>,
    stats: [Buffer; 2],
    batch_stats: Buffer,
    stat_rate: Buffer,
    is_weight: Buffer,
    lr: Buffer,
    rho: Buffer,
    bias1: Buffer,
    bias2: Buffer,
    phase: Buffer,
    loss: Buffer,
    correct: Buffer,
}

impl Buffers {
    fn new(memory: Memory, layout: &Layout, stat_layout: &Layout, states: usize) -> Result<Self> {
        let vector = || memory.zeros(layout.len() * 4);
        let stats = || memory.zeros(stat_layout.len() * 4);
        let scalar = || memory.zeros(4);
        Ok(Self {
            theta: [vector()?, vector()?],
            grad: vector()?,
            optimizer: (0..states).map(|_| Ok([vector()?, vector()?])).collect::<Result<_>>()?,
            stats: [stats()?, stats()?],
            batch_stats: stats()?,
            stat_rate: stats()?,
            is_weight: vector()?,
            lr: scalar()?,
            rho: scalar()?,
            bias1: scalar()?,
            bias2: scalar()?,
            phase: scalar()?,
            loss: scalar()?,
            correct: scalar()?,
            memory,
        })
    }

    /// The buffer of a flat stage's input or output at `side`.
    fn of(&self, name: &str, side: usize) -> Result<&Buffer> {
        let other = 1 - side;
        Ok(match name {
            names::THETA => &self.theta[side],
            names::THETA_OUT => &self.theta[other],
            names::GRAD => &self.grad,
            names::STATS => &self.stats[side],
            names::STATS_OUT => &self.stats[other],
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

impl Program {
    /// Compiles the stages and lays out their buffers, with the values of the file.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about a stage or the device.
    pub fn new(engine: &Engine, stages: &Stages, options: &StepOptions) -> Result<Self> {
        let layout = Layout::new(stages.params.iter().map(|p| p.shape.as_slice()));
        let stat_layout = Layout::new(stages.stats.iter().map(|s| s.slot.shape.as_slice()));
        let memory = Memory::new(engine)?;
        let buffers = Buffers::new(memory, &layout, &stat_layout, options.states())?;
        let rates: Vec<Vec<f32>> = stages.stats.iter().map(|s| vec![s.rate; s.slot.shape.iter().product()]).collect();
        buffers.stat_rate.write_f32(&stat_layout.pack(&rates)?)?;
        let weights: Vec<Vec<f32>> = stages
            .params
            .iter()
            .map(|p| vec![if p.shape.len() >= 2 { 1.0 } else { 0.0 }; p.shape.iter().product()])
            .collect();
        buffers.is_weight.write_f32(&layout.pack(&weights)?)?;
        let flat = |graph: &Graph| flat_stage(engine, &buffers, graph);
        let perturb = perturb_stage(layout.len(), stat_layout.len(), options)?.as_ref().map(flat).transpose()?;
        let update = flat(&update_stage(layout.len(), stat_layout.len(), options)?)?;
        let mut program = Self {
            engine: *engine,
            options: options.clone(),
            params: stages.params.clone(),
            stats: stages.stats.clone(),
            layout,
            stat_layout,
            grads: Vec::new(),
            perturb,
            update,
            buffers,
            side: 0,
            steps: 0,
            times: StageTimes::default(),
        };
        program.add_batch_size(stages)?;
        program.restore(&program.initial(stages)?)?;
        Ok(program)
    }

    fn initial(&self, stages: &Stages) -> Result<State> {
        let value = |graph: &Graph, name: &str| {
            let tensor = graph.find(name).and_then(|v| graph.tensor(v)).map(Tensor::to_f32);
            tensor.ok_or_else(|| Error::new(format!("`{name}` has no value")))
        };
        Ok(State {
            params: self.params.iter().map(|p| value(&stages.grad, &p.name)).collect::<Result<_>>()?,
            stats: self.stats.iter().map(|s| value(&stages.eval, &s.slot.name)).collect::<Result<_>>()?,
            optimizer: vec![self.layout.unpack(&vec![0.0; self.layout.len()]); self.options.states()],
            steps: 0,
        })
    }

    /// Compiles `grad` for the batch size of `stages`, built from the same model with the same options.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about it.
    pub fn add_batch_size(&mut self, stages: &Stages) -> Result<()> {
        let session = self.engine.compile(&stages.grad)?;
        let memory = &self.buffers.memory;
        let inputs: Vec<Buffer> =
            stages.inputs.iter().map(|(_, ty)| memory.zeros(ty.bytes())).collect::<Result<_>>()?;
        let batch = stages.inputs.first().map_or(0, |(_, ty)| ty.shape.first().copied().unwrap_or(0));
        let labels = memory.zeros(batch * DType::I64.width())?;
        let bind = |side: usize| -> Result<Binding> {
            let mut b = session.binding()?;
            let scalar = Type::new(DType::F32, &[]);
            for ((name, ty), buffer) in
                stages.inputs.iter().zip(&inputs).filter(|((n, _), _)| session.inputs().contains(n))
            {
                b.input(name, buffer, 0, ty)?;
            }
            b.input(&stages.labels, &labels, 0, &Type::new(DType::I64, &[batch]))?;
            if let Some(phase) = stages.phase.as_ref().filter(|p| session.inputs().contains(p)) {
                b.input(phase, &self.buffers.phase, 0, &Type::new(DType::Bool, &[]))?;
            }
            for (i, p) in self.params.iter().enumerate() {
                let (offset, ty) = self.layout.view(i);
                b.input(&p.input, &self.buffers.theta[side], offset, &ty)?;
                b.output(&p.output, &self.buffers.grad, offset, &ty)?;
            }
            for (i, s) in self.stats.iter().enumerate() {
                let (offset, ty) = self.stat_layout.view(i);
                b.output(&s.slot.output, &self.buffers.batch_stats, offset, &ty)?;
            }
            b.output(names::LOSS, &self.buffers.loss, 0, &scalar)?;
            b.output(names::CORRECT, &self.buffers.correct, 0, &scalar)?;
            Ok(b)
        };
        let bindings = [bind(0)?, bind(1)?];
        self.grads.push(GradStage { session, bindings, inputs, labels, batch });
        Ok(())
    }

    /// One step on a batch: `inputs` as raw bytes in the order of the model's inputs; `lr` and `rho` of this step.
    ///
    /// # Errors
    /// A batch size that was not compiled, a node that fails, or a loss that is not finite: names step and stage, and the first
    /// parameter whose value or gradient is not finite. The weights are then those before the step.
    pub fn step(&mut self, inputs: &[&[u8]], labels: &[i64], lr: f32, rho: f32) -> Result<Losses> {
        let which = self
            .grads
            .iter()
            .position(|g| g.batch == labels.len())
            .ok_or_else(|| Error::new(format!("no step is compiled for a batch of {}", labels.len())))?;
        for (buffer, bytes) in self.grads[which].inputs.iter().zip(inputs) {
            buffer.write(0, bytes)?;
        }
        self.grads[which].labels.write(0, bytemuck::cast_slice(labels))?;
        self.buffers.lr.write_f32(&[lr])?;
        let (here, there) = (self.side, 1 - self.side);
        let mut ascent = None;
        let mut correct = None;
        if self.perturb.is_some() {
            self.buffers.rho.write_f32(&[rho])?;
            ascent = Some(self.pass(which, here, true, "ascent")?);
            correct = Some(self.buffers.correct.scalar()?);
            let start = Instant::now();
            if let Some(stage) = &mut self.perturb {
                stage.session.run_bound(&stage.bindings[here])?;
            }
            self.times.perturb += start.elapsed();
        }
        let at = if ascent.is_some() { there } else { here };
        let descent = self.pass(which, at, false, "descent")?;
        let correct = match correct {
            Some(c) => c,
            None => self.buffers.correct.scalar()?,
        };
        let start = Instant::now();
        if self.options.base == Base::Adamw {
            let t = (self.steps + 1) as f64;
            let left = |beta: f32| 1.0 - f64::from(beta).powf(t);
            self.buffers.bias1.write_f32(&[left(self.options.beta1) as f32])?;
            self.buffers.bias2.write_f32(&[left(self.options.beta2).sqrt() as f32])?;
        }
        self.update.session.run_bound(&self.update.bindings[here])?;
        self.times.update += start.elapsed();
        self.side = there;
        self.steps += 1;
        Ok(Losses { ascent, descent, correct })
    }

    fn pass(&mut self, which: usize, side: usize, up: bool, stage: &str) -> Result<f32> {
        let start = Instant::now();
        self.buffers.phase.write(0, &[u8::from(up)])?;
        let grad = &mut self.grads[which];
        grad.session.run_bound(&grad.bindings[side])?;
        self.times.grad += start.elapsed();
        let loss = self.buffers.loss.scalar()?;
        if loss.is_finite() {
            return Ok(loss);
        }
        let culprit = |buffer: &Buffer, what: &str| -> Result<Option<String>> {
            let flat = buffer.read_f32(self.layout.len())?;
            let tensors = self.layout.unpack(&flat);
            let bad = tensors.iter().zip(&self.params).find_map(|(t, p)| {
                t.iter().position(|v| !v.is_finite()).map(|i| format!("{what} `{}`[{i}] = {}", p.name, t[i]))
            });
            Ok(bad)
        };
        let first = match culprit(&self.buffers.theta[side], "weight")? {
            Some(w) => Some(w),
            None => culprit(&self.buffers.grad, "gradient of")?,
        };
        let first = first.map_or(String::new(), |f| format!("; first value not finite: {f}"));
        Err(Error::new(format!("the loss is {loss} in the {stage} pass of step {}{first}", self.steps + 1)).hint(
            "lower --lr or --rho, clip the gradient with --clip-norm, or check the data; the last checkpoint is kept",
        ))
    }

    /// The gradient of the last pass, per parameter.
    ///
    /// # Errors
    /// When it cannot be copied from the device.
    pub fn gradient(&self) -> Result<Vec<Vec<f32>>> {
        Ok(self.layout.unpack(&self.buffers.grad.read_f32(self.layout.len())?))
    }

    /// The whole state.
    ///
    /// # Errors
    /// When it cannot be copied from the device.
    pub fn state(&self) -> Result<State> {
        let read = |b: &Buffer| Ok(self.layout.unpack(&b.read_f32(self.layout.len())?));
        Ok(State {
            params: read(&self.buffers.theta[self.side])?,
            stats: self.stat_layout.unpack(&self.buffers.stats[self.side].read_f32(self.stat_layout.len())?),
            optimizer: self.buffers.optimizer.iter().map(|s| read(&s[self.side])).collect::<Result<_>>()?,
            steps: self.steps,
        })
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// When it belongs to another model or optimizer.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        if state.optimizer.len() != self.buffers.optimizer.len()
            || state.params.len() != self.params.len()
            || state.stats.len() != self.stats.len()
        {
            return Err(Error::new("the state belongs to another model or optimizer"));
        }
        let side = self.side;
        self.buffers.theta[side].write_f32(&self.layout.pack(&state.params)?)?;
        self.buffers.stats[side].write_f32(&self.stat_layout.pack(&state.stats)?)?;
        for (buffer, values) in self.buffers.optimizer.iter().zip(&state.optimizer) {
            buffer[side].write_f32(&self.layout.pack(values)?)?;
        }
        self.steps = state.steps;
        Ok(())
    }

    /// The trained parameters.
    pub fn params(&self) -> &[Slot] {
        &self.params
    }

    /// The running statistics.
    pub fn stats(&self) -> &[StatSlot] {
        &self.stats
    }

    /// Compiles `eval` on the current weights.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about it.
    pub fn evaluation(&self, stages: &Stages) -> Result<Evaluation> {
        let session = self.engine.compile(&stages.eval)?;
        let memory = &self.buffers.memory;
        let inputs: Vec<Buffer> =
            stages.inputs.iter().map(|(_, ty)| memory.zeros(ty.bytes())).collect::<Result<_>>()?;
        let ty = Type::new(DType::F32, &[stages.inputs.first().map_or(0, |(_, t)| t.shape[0]), stages.classes]);
        let logits = memory.zeros(ty.bytes())?;
        let bind = |side: usize| -> Result<Binding> {
            let mut b = session.binding()?;
            let known = |n: &String| session.inputs().contains(n);
            for ((name, ty), buffer) in stages.inputs.iter().zip(&inputs).filter(|((n, _), _)| known(n)) {
                b.input(name, buffer, 0, ty)?;
            }
            for (i, p) in self.params.iter().enumerate().filter(|(_, p)| known(&p.name)) {
                let (offset, ty) = self.layout.view(i);
                b.input(&p.name, &self.buffers.theta[side], offset, &ty)?;
            }
            for (i, s) in self.stats.iter().enumerate().filter(|(_, s)| known(&s.slot.name)) {
                let (offset, ty) = self.stat_layout.view(i);
                b.input(&s.slot.name, &self.buffers.stats[side], offset, &ty)?;
            }
            b.output(names::LOGITS, &logits, 0, &ty)?;
            Ok(b)
        };
        let bindings = [bind(0)?, bind(1)?];
        Ok(Evaluation { session, bindings, inputs, logits, len: ty.len() })
    }

    /// Logits of a batch at the current weights, in evaluation mode: [N, K] row by row.
    ///
    /// # Errors
    /// A node that fails.
    pub fn evaluate(&self, evaluation: &mut Evaluation, inputs: &[&[u8]]) -> Result<Vec<f32>> {
        for (buffer, bytes) in evaluation.inputs.iter().zip(inputs) {
            buffer.write(0, bytes)?;
        }
        evaluation.session.run_bound(&evaluation.bindings[self.side])?;
        evaluation.logits.read_f32(evaluation.len)
    }
}

/// A compiled `eval` stage over a program's weights.
pub struct Evaluation {
    session: Session,
    bindings: [Binding; 2],
    inputs: Vec<Buffer>,
    logits: Buffer,
    len: usize,
}

fn flat_stage(engine: &Engine, buffers: &Buffers, graph: &Graph) -> Result<FlatStage> {
    let session = engine.compile(graph)?;
    let bind = |side: usize| -> Result<Binding> {
        let mut b = session.binding()?;
        for v in &graph.inputs {
            b.input(&graph[*v].name, buffers.of(&graph[*v].name, side)?, 0, graph.ty(*v)?)?;
        }
        for v in &graph.outputs {
            b.output(&graph[*v].name, buffers.of(&graph[*v].name, side)?, 0, graph.ty(*v)?)?;
        }
        Ok(b)
    };
    let bindings = [bind(0)?, bind(1)?];
    Ok(FlatStage { session, bindings })
}
