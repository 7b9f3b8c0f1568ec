//! A training step as a short program over flat buffers: grad → (perturb → grad →) update.
//!
//! Parameters lie in two buffers that trade places every step. The ascent pass reads θ from one, `perturb` writes θ̂ into the
//! other, the descent pass reads it there, and `update` writes the next θ over it. With micro-batches the passes run for one after
//! the other, and their gradients are added up before the update; where samples are chosen by their loss, `score` runs first.
//! Every binding is made once, for either side.

use super::arena::{Buffer, Layout, Memory};
use super::binding::Binding;
use super::buffers::{Buffers, FlatStage, Gradient, Sides};
use super::cuda::Uploads;
use super::feed::{fed_widths, highest, widths, write_rows};
use super::profile::NodeTime;
use super::results::{Part, Place, Results};
use super::session::{Device, Engine, Session};
use crate::adapt::KEYS;
use crate::error::{Error, Result};
use crate::ir::{DType, Graph, Type};
use crate::step::elementwise::fuse_elementwise;
use crate::step::flat::{accumulate_stage, perturb_stage, start_stage, statistics_stage, update_stage};
use crate::step::stages::{Rate, Slot, Stages, StatSlot, Subset};
use crate::step::update::Ending;
use crate::step::{Base, Kernels, Precision, StepOptions, names};
use std::ops::Range;
use std::time::{Duration, Instant};

/// What one step measured, at the weights it started from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    /// Mean loss of the ascent pass; none without one.
    pub ascent: Option<f32>,
    /// Mean loss of the descent pass (at θ̂ where there is an ascent).
    pub descent: f32,
    /// Correctly classified samples of the batch before the step.
    pub correct: f32,
}

impl Losses {
    /// Adds those of a micro-batch that is `share` of the batch.
    pub(super) fn add(&mut self, other: Self, share: f32) {
        self.ascent = match (self.ascent, other.ascent) {
            (Some(a), Some(b)) => Some(a + share * b),
            (None, b) => b.map(|b| share * b),
            (a, None) => a,
        };
        self.descent += share * other.descent;
        self.correct += other.correct;
    }
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
    /// Moves of the running statistics done.
    pub moves: u64,
}

/// The direction of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// `grad` and `score` for batches of one shape, bound to either parameter buffer.
struct GradStage {
    session: Session,
    /// By direction, then side.
    bindings: [[Binding; 2]; 2],
    score: Option<(Session, [Binding; 2])>,
    /// The ascent with respect to some parameters, by choice, then side.
    subsets: Vec<(Session, [Binding; 2])>,
    inputs: Vec<Buffer>,
    labels: Buffer,
    /// The way to each of the inputs, and to the labels, on a device.
    uploads: Vec<Uploads>,
    scores: Buffer,
    batch: usize,
    /// Bytes of a sample, by input.
    widths: Vec<usize>,
}

/// The compiled step of one model, with its state.
pub struct Program {
    pub(super) engine: Engine,
    options: StepOptions,
    pub(super) params: Vec<Slot>,
    /// The choices of parameters that an ascent may be with respect to; none means all.
    chosen: Vec<Vec<bool>>,
    pub(super) stats: Vec<StatSlot>,
    pub(super) layout: Layout,
    pub(super) stat_layout: Layout,
    grads: Vec<GradStage>,
    start: Option<FlatStage>,
    perturb: Option<FlatStage>,
    statistics: Option<FlatStage>,
    accumulate: Option<FlatStage>,
    update: FlatStage,
    /// The update of steps that reuse an earlier perturbation.
    reuse: Option<FlatStage>,
    pub(super) buffers: Buffers,
    pub(super) sides: Sides,
    steps: u64,
    /// Moves of the running statistics.
    moves: u64,
    /// Passes of this step.
    passes: u64,
    results: Results,
    /// Wall time per stage since the start.
    pub times: StageTimes,
}

impl Program {
    /// Compiles the stages and lays out their buffers, with the values of the file.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about a stage or the device.
    pub fn new(engine: &Engine, stages: &Stages, options: &StepOptions) -> Result<Self> {
        if options.precision == Precision::Bf16 && engine.device == Device::Cpu {
            return Err(Error::new("there are no products of bf16 factors on the CPU")
                .hint("leave --precision out, or add --device cuda"));
        }
        let layout = Layout::new(stages.params.iter().map(|p| p.shape.as_slice()));
        let stat_layout = Layout::new(stages.stats.iter().map(|s| s.slot.shape.as_slice()));
        let memory = Memory::new(engine)?;
        let buffers = Buffers::new(memory, &layout, &stat_layout, options)?;
        if options.spares_biases() {
            let is_weight = |p: &Slot| vec![if p.shape.len() >= 2 { 1.0 } else { 0.0 }; p.shape.iter().product()];
            layout.write(&buffers.is_weight, stages.params.iter().map(is_weight))?;
        }
        let stage = |mut graph: Graph, of: Gradient| {
            if options.kernels == Kernels::Fused {
                fuse_elementwise(&mut graph)?;
            }
            FlatStage::new(engine, graph, of)
        };
        let flat = |graph: Option<Graph>, of: Gradient| graph.map(|g| stage(g, of)).transpose();
        let len = layout.len();
        let start = flat(start_stage(len, options)?, Gradient::Ascent)?;
        let perturb = flat(perturb_stage(len, options)?, Gradient::Ascent)?;
        let statistics = flat(statistics_stage(stat_layout.len())?, Gradient::Descent)?;
        let accumulate = flat(accumulate_stage(len, options)?, Gradient::Descent)?;
        let update = |ending: Ending| stage(update_stage(len, options, ending)?, Gradient::Total);
        let reuse = (options.period > 1).then(|| update(Ending::Reused)).transpose()?;
        let update = update(Ending::Whole)?;
        let mut program = Self {
            engine: *engine,
            options: options.clone(),
            params: stages.params.clone(),
            chosen: stages.subsets.iter().map(|s| s.chosen.clone()).collect(),
            stats: stages.stats.clone(),
            layout,
            stat_layout,
            grads: Vec::new(),
            start,
            perturb,
            statistics,
            accumulate,
            update,
            reuse,
            buffers,
            sides: Sides::default(),
            steps: 0,
            moves: 0,
            passes: 0,
            results: Results::new(memory)?,
            times: StageTimes::default(),
        };
        program.write_rates()?;
        program.add(stages)?;
        program.begin(stages)?;
        Ok(program)
    }

    /// Writes the values of the file, and those that the optimizer begins with.
    fn begin(&self, stages: &Stages) -> Result<()> {
        let write = |layout: &Layout, i: usize, buffer: &Buffer, graph: &Graph, name: &str| {
            let tensor = graph.find(name).and_then(|v| graph.tensor(v));
            let tensor = tensor.ok_or_else(|| Error::new(format!("`{name}` has no value")))?;
            let (offset, ty) = layout.view(i);
            if tensor.ty() == ty {
                return buffer.write(offset, tensor.bytes());
            }
            buffer.write(offset, bytemuck::cast_slice(&tensor.to_f32()))
        };
        for (i, p) in self.params.iter().enumerate() {
            write(&self.layout, i, &self.buffers.theta[self.sides.theta], &stages.grad, &p.name)?;
        }
        for (i, s) in self.stats.iter().enumerate() {
            write(&self.stat_layout, i, &self.buffers.stats[self.sides.stats], &stages.eval, &s.slot.name)?;
        }
        // Buffers are made of zeros.
        let states = self.buffers.optimizer.iter().zip(self.options.initial_states());
        for (state, value) in states.filter(|(_, value)| *value != 0.0) {
            state[self.sides.theta].write_f32(&vec![value; self.layout.len()])?;
        }
        Ok(())
    }

    /// Compiles `grad` for the batches of `stages`, built from the same model with the same options.
    fn add(&mut self, stages: &Stages) -> Result<()> {
        let session = self.engine.compile(&stages.grad)?;
        let memory = &self.buffers.memory;
        let inputs: Vec<Buffer> =
            stages.inputs.iter().map(|(_, ty)| memory.zeros(ty.bytes())).collect::<Result<_>>()?;
        let (batch, widths) = (stages.batch(), widths(&stages.inputs));
        let labels = memory.zeros(batch * DType::I64.width())?;
        let scores = memory.zeros(batch * DType::F32.width())?;
        let scalar = Type::new(DType::F32, &[]);
        let of_samples = Type::new(DType::F32, &[batch]);
        // What `grad` and `score` read.
        let read = |session: &Session, side: usize| -> Result<Binding> {
            let mut b = session.binding()?;
            let known = |n: &String| session.inputs().contains(n);
            for ((name, ty), buffer) in stages.inputs.iter().zip(&inputs).filter(|((n, _), _)| known(n)) {
                b.input(name, buffer, 0, ty)?;
            }
            if known(&stages.labels) {
                b.input(&stages.labels, &labels, 0, &Type::new(DType::I64, &[batch]))?;
            }
            if let Some(phase) = stages.phase.as_ref().filter(|p| known(p)) {
                b.input(phase, &self.buffers.phase, 0, &Type::new(DType::Bool, &[]))?;
            }
            if let Some(random) = stages.random.as_ref().filter(|r| known(r)) {
                b.input(random, &self.buffers.key, 0, &Type::new(DType::F32, &[KEYS]))?;
            }
            for (i, p) in self.params.iter().enumerate().filter(|(_, p)| known(&p.input)) {
                let (offset, ty) = self.layout.view(i);
                b.input(&p.input, &self.buffers.theta[side], offset, &ty)?;
            }
            Ok(b)
        };
        let bind = |session: &Session, way: Way, side: usize| -> Result<Binding> {
            let mut b = read(session, side)?;
            let made = |p: &Slot| session.outputs().contains(&p.output);
            for (i, p) in self.params.iter().enumerate().filter(|(_, p)| made(p)) {
                let (offset, ty) = self.layout.view(i);
                let grad = if way == Way::Up { &self.buffers.ascent_grad } else { &self.buffers.grad };
                b.output(&p.output, grad, offset, &ty)?;
            }
            for (i, s) in self.stats.iter().enumerate() {
                let (offset, ty) = self.stat_layout.view(i);
                b.output(&s.slot.output, &self.buffers.batch_stats, offset, &ty)?;
            }
            b.output(names::LOSS, &self.buffers.loss, 0, &scalar)?;
            b.output(names::CORRECT, &self.buffers.correct, 0, &scalar)?;
            if stages.score.is_some() {
                b.output(names::SCORES, &scores, 0, &of_samples)?;
            }
            Ok(b)
        };
        let score = |graph: &Graph| -> Result<(Session, [Binding; 2])> {
            let session = self.engine.compile(graph)?;
            let bind = |side: usize| -> Result<Binding> {
                let mut b = read(&session, side)?;
                b.output(names::SCORES, &scores, 0, &of_samples)?;
                b.output(names::CORRECT, &self.buffers.correct, 0, &scalar)?;
                Ok(b)
            };
            let bindings = [bind(0)?, bind(1)?];
            Ok((session, bindings))
        };
        let both = |session: &Session, way: Way| Ok::<_, Error>([bind(session, way, 0)?, bind(session, way, 1)?]);
        let bindings = [both(&session, Way::Up)?, both(&session, Way::Down)?];
        let subset = |s: &Subset| -> Result<(Session, [Binding; 2])> {
            let session = self.engine.compile(&s.grad)?;
            let bindings = both(&session, Way::Up)?;
            Ok((session, bindings))
        };
        let subsets = stages.subsets.iter().map(subset).collect::<Result<_>>()?;
        let score = stages.score.as_ref().map(score).transpose()?;
        let sizes = stages.inputs.iter().map(|(_, ty)| ty.bytes()).chain([batch * DType::I64.width()]);
        let uploads = memory.gpu().map(|gpu| sizes.map(|n| Uploads::new(gpu, n)).collect::<Result<_>>()).transpose()?;
        let uploads = uploads.unwrap_or_default();
        self.grads.push(GradStage {
            session,
            bindings,
            score,
            subsets,
            inputs,
            labels,
            uploads,
            scores,
            batch,
            widths,
        });
        Ok(())
    }

    /// What every node of the pass over a whole batch took, if the engine is profiled; measures no more.
    ///
    /// # Errors
    /// A profile that cannot be read.
    pub fn profile(&mut self) -> Result<Vec<NodeTime>> {
        self.grads.first_mut().map_or(Ok(Vec::new()), |g| g.session.profile())
    }

    /// Compiles what a step on `n` samples of the shape in `like` runs and is not there yet; `stages` builds those of another batch
    /// size and the same shape.
    ///
    /// # Errors
    /// As `stages`, and whatever ONNX Runtime says about a stage.
    pub fn add_batch_sizes(&mut self, like: &Stages, n: usize, stages: impl Fn(usize) -> Result<Stages>) -> Result<()> {
        let widths = widths(&like.inputs);
        while let Some(missing) = self.missing_batch_size(n, &widths) {
            if missing == like.batch() {
                self.add(like)?;
            } else {
                self.add(&stages(missing)?)?;
            }
        }
        Ok(())
    }

    /// Whether a step on `n` samples of these widths lacks a batch size, and which: see [`StepOptions::batch_sizes`].
    fn missing_batch_size(&self, n: usize, widths: &[usize]) -> Option<usize> {
        self.options.batch_sizes(n).into_iter().find(|n| self.stage(*n, widths).is_none())
    }

    fn stage(&self, batch: usize, widths: &[usize]) -> Option<usize> {
        self.grads.iter().position(|g| g.batch == batch && g.widths == widths)
    }

    /// One step on a batch: `inputs` as raw bytes in the order of the model's inputs; `lr` and `rho` of this step.
    ///
    /// # Errors
    /// A batch size or shape that was not compiled, a node that fails, or a loss that is not finite: names step and stage, and the first
    /// parameter whose value or gradient is not finite. The weights are then those before the step; on a device, where steps are only
    /// started, some later ones.
    pub fn step(&mut self, inputs: &[&[u8]], labels: &[i64], lr: f32, rho: f32) -> Result<Losses> {
        self.start_step(inputs, labels, lr, rho)?;
        let last = self.finished()?.pop();
        last.ok_or_else(|| Error::new("the step left no losses"))
    }

    /// Whether steps are only started, so that what they measured is better asked for after some of them.
    pub fn runs_ahead(&self) -> bool {
        self.buffers.memory.gpu().is_some()
    }

    /// Bytes of the device's memory that tensors take, arenas included; none on the host.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn device_bytes(&self) -> Result<Option<usize>> {
        self.buffers.memory.gpu().map(|gpu| gpu.used()).transpose()
    }

    /// What the steps since the last call measured, in order; waits for them.
    ///
    /// # Errors
    /// As [`Program::step`].
    pub fn finished(&mut self) -> Result<Vec<Losses>> {
        let losses = self.results.finish()?;
        let first = self.steps - losses.len() as u64;
        for (i, l) in losses.iter().enumerate() {
            for (way, loss) in [(Way::Up, l.ascent), (Way::Down, Some(l.descent))] {
                if let Some(loss) = loss.filter(|l| !l.is_finite()) {
                    return Err(self.not_finite(way, loss, self.sides.theta, first + i as u64 + 1)?);
                }
            }
        }
        Ok(losses)
    }

    /// As [`Program::step`], for [`Program::finished`] to say what it measured.
    ///
    /// # Errors
    /// As [`Program::step`].
    pub fn start_step(&mut self, inputs: &[&[u8]], labels: &[i64], lr: f32, rho: f32) -> Result<()> {
        let n = labels.len();
        if let Some(missing) = self.missing_batch_size(n, &fed_widths(inputs, n)) {
            return Err(not_compiled(missing));
        }
        self.buffers.lr.write_f32(&[lr])?;
        self.buffers.rho.write_f32(&[rho / self.options.swp_beta])?;
        let climbs = self.perturb.is_some() && self.steps.is_multiple_of(self.options.period as u64);
        let micro = self.options.micro_batch.unwrap_or(n).min(n).max(1);
        self.passes = 0;
        let mut parts = Vec::with_capacity(n.div_ceil(micro));
        self.results.begin(n.div_ceil(micro))?;
        for first in (0..n).step_by(micro) {
            let part = first..(first + micro).min(n);
            let share = part.len() as f32 / n as f32;
            let number = first / micro;
            let choice = (!self.chosen.is_empty()).then(|| self.options.subset(self.steps, number));
            let (ascent, descent, correct) = self.gradient_at(inputs, labels, part, number, climbs, choice)?;
            parts.push(Part { share, ascent, descent, correct });
            if let Some(stage) = &mut self.accumulate {
                self.buffers.keep.write_f32(&[if first > 0 { 1.0 } else { 0.0 }])?;
                self.buffers.share.write_f32(&[share])?;
                stage.run(&self.buffers, self.sides)?;
                self.sides.sum = 1 - self.sides.sum;
            }
        }
        let start = Instant::now();
        if self.options.base == Base::Adamw {
            let t = (self.steps + 1) as f64;
            let left = |beta: f32| 1.0 - f64::from(beta).powf(t);
            self.buffers.bias1.write_f32(&[left(self.options.beta1) as f32])?;
            self.buffers.bias2.write_f32(&[left(self.options.beta2).sqrt() as f32])?;
        }
        let reuses = self.perturb.is_some() && !climbs;
        let stage = self.reuse.as_mut().filter(|_| reuses).unwrap_or(&mut self.update);
        stage.run(&self.buffers, self.sides)?;
        self.times.update += start.elapsed();
        self.sides.theta = 1 - self.sides.theta;
        self.steps += 1;
        self.results.end(parts);
        Ok(())
    }

    /// The gradient of micro-batch `number`, after its perturbation, of some parameters by `choice`, if it `climbs`. Running
    /// statistics move with the first pass. Returns the losses of the ascent and the descent, and what was correct.
    fn gradient_at(
        &mut self,
        inputs: &[&[u8]],
        labels: &[i64],
        part: Range<usize>,
        number: usize,
        climbs: bool,
        choice: Option<usize>,
    ) -> Result<(Option<Place>, Place, Place)> {
        let (here, there) = (self.sides.theta, 1 - self.sides.theta);
        let mut rows: Vec<usize> = part.collect();
        let (first, second) = self.options.samples(rows.len());
        let mut correct = None;
        if first < rows.len() {
            let which = self.feed(inputs, labels, &rows)?;
            let scores = self.score(which, here)?;
            correct = Some(self.results.take(&self.buffers.correct)?);
            rows = highest(&scores, first).into_iter().map(|i| rows[i]).collect();
        }
        let mut which = self.feed(inputs, labels, &rows)?;
        let mut ascent = None;
        let mut at = here;
        if climbs {
            let start = if self.start.is_some() { there } else { here };
            self.start_at_random(number)?;
            ascent = Some(self.pass(which, start, Way::Up, choice)?);
            self.move_statistics()?;
            correct = Some(correct.map_or_else(|| self.results.take(&self.buffers.correct), Ok)?);
            let before = (second < rows.len()).then(|| self.grads[which].scores.read_f32(rows.len())).transpose()?;
            let start = Instant::now();
            if let Some(stage) = &mut self.perturb {
                stage.run(&self.buffers, self.sides)?;
            }
            self.times.perturb += start.elapsed();
            at = there;
            if let Some(before) = before {
                let mut rise = self.score(which, at)?;
                rise.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
                rows = highest(&rise, second).into_iter().map(|i| rows[i]).collect();
                which = self.feed(inputs, labels, &rows)?;
            }
        }
        let descent = self.pass(which, at, Way::Down, None)?;
        if !climbs {
            self.move_statistics()?;
        }
        let correct = correct.map_or_else(|| self.results.take(&self.buffers.correct), Ok)?;
        Ok((ascent, descent, correct))
    }

    /// Moves to where the ascent of micro-batch `number` starts, in the other parameter buffer, if that is random.
    fn start_at_random(&mut self, number: usize) -> Result<()> {
        let Some(stage) = &mut self.start else { return Ok(()) };
        let started = Instant::now();
        let sizes: Vec<usize> = self.params.iter().map(|p| p.shape.iter().product()).collect();
        let noise = self.options.noise(self.steps, number, sizes.iter().sum());
        let mut tensors = split(&noise, &sizes);
        if self.options.base == Base::Bsam {
            let scale = (self.options.data_size as f32).sqrt().recip();
            tensors.iter_mut().flatten().for_each(|n| *n *= scale);
        } else {
            let theta = self.layout.read(&self.buffers.theta[self.sides.theta])?;
            scale_by_filters(&mut tensors, &theta, &self.params, self.options.start_sigma);
        }
        self.layout.write(&self.buffers.noise, &tensors)?;
        stage.run(&self.buffers, self.sides)?;
        self.times.perturb += started.elapsed();
        Ok(())
    }

    /// Hands these rows of a batch to the stage of that size, and returns which it is.
    fn feed(&mut self, inputs: &[&[u8]], labels: &[i64], rows: &[usize]) -> Result<usize> {
        let widths = fed_widths(inputs, labels.len());
        let which = self.stage(rows.len(), &widths).ok_or_else(|| not_compiled(rows.len()))?;
        let stage = &self.grads[which];
        let buffers = stage.inputs.iter().chain([&stage.labels]);
        let bytes = inputs.iter().copied().chain([bytemuck::cast_slice(labels)]);
        let widths = widths.into_iter().chain([DType::I64.width()]);
        for (i, ((buffer, bytes), width)) in buffers.zip(bytes).zip(widths).enumerate() {
            write_rows(buffer, stage.uploads.get(i), bytes, width, rows)?;
        }
        Ok(which)
    }

    /// Cross-entropy of the samples fed to stage `which`, with the parameters of `side`.
    fn score(&mut self, which: usize, side: usize) -> Result<Vec<f32>> {
        let start = Instant::now();
        self.next_key()?;
        let stage = &mut self.grads[which];
        let Some((session, bindings)) = &mut stage.score else { return Err(Error::new("samples are not scored")) };
        session.run_bound(&bindings[side])?;
        self.times.grad += start.elapsed();
        stage.scores.read_f32(stage.batch)
    }

    /// Random values of a pass follow from the seed, the step and the number of the pass.
    fn next_key(&mut self) -> Result<()> {
        self.buffers.key.write_f32(&self.options.key(self.steps, self.passes))?;
        self.passes += 1;
        Ok(())
    }

    fn move_statistics(&mut self) -> Result<()> {
        if self.stats.iter().any(|s| s.rate == Rate::Average) {
            self.write_rates()?;
        }
        if let Some(stage) = &mut self.statistics {
            stage.run(&self.buffers, self.sides)?;
            self.sides.stats = 1 - self.sides.stats;
        }
        self.moves += 1;
        Ok(())
    }

    /// Writes how fast each running statistic moves the next time.
    fn write_rates(&self) -> Result<()> {
        let rates = self.stats.iter().map(|s| vec![s.rate.share(self.moves); s.slot.shape.iter().product()]);
        self.stat_layout.write(&self.buffers.stat_rate, rates)
    }

    fn pass(&mut self, which: usize, side: usize, way: Way, choice: Option<usize>) -> Result<Place> {
        let start = Instant::now();
        self.buffers.phase.write(0, &[u8::from(way == Way::Up)])?;
        self.next_key()?;
        let grad = &mut self.grads[which];
        if let Some(choice) = choice {
            // What is left out does not move.
            for (i, _) in self.chosen[choice].iter().enumerate().filter(|(_, chosen)| !**chosen) {
                let (offset, ty) = self.layout.view(i);
                self.buffers.ascent_grad.write(offset, &vec![0; ty.bytes()])?;
            }
            let (session, bindings) = &mut grad.subsets[choice];
            session.run_bound(&bindings[side])?;
        } else {
            grad.session.run_bound(&grad.bindings[way as usize][side])?;
        }
        self.times.grad += start.elapsed();
        let place = self.results.take(&self.buffers.loss)?;
        match self.results.now(place).filter(|loss| !loss.is_finite()) {
            Some(loss) => Err(self.not_finite(way, loss, side, self.steps + 1)?),
            None => Ok(place),
        }
    }

    /// The error that says that the loss of a pass is not finite, and where that begins.
    fn not_finite(&self, way: Way, loss: f32, side: usize, step: u64) -> Result<Error> {
        let culprit = |buffer: &Buffer, what: &str| -> Result<Option<String>> {
            let tensors = self.layout.read(buffer)?;
            let bad = tensors.iter().zip(&self.params).find_map(|(t, p)| {
                t.iter().position(|v| !v.is_finite()).map(|i| format!("{what} `{}`[{i}] = {}", p.name, t[i]))
            });
            Ok(bad)
        };
        let first = match culprit(&self.buffers.theta[side], "weight")? {
            Some(w) => Some(w),
            None => {
                let up = way == Way::Up;
                culprit(if up { &self.buffers.ascent_grad } else { &self.buffers.grad }, "gradient of")?
            }
        };
        let stage = if way == Way::Up { "ascent" } else { "descent" };
        let first = first.map_or(String::new(), |f| format!("; first value not finite: {f}"));
        Ok(Error::new(format!("the loss is {loss} in the {stage} pass of step {step}{first}")).hint(
            "lower --lr or --rho, clip the gradient with --clip-norm, or check the data; the last checkpoint is kept",
        ))
    }

    /// The gradient of the ascent on a batch at the current weights, where [`Program::perturb`] goes along it.
    ///
    /// # Errors
    /// As [`Program::step`].
    pub fn ascend(&mut self, inputs: &[&[u8]], labels: &[i64]) -> Result<f32> {
        let which = self.feed(inputs, labels, &(0..labels.len()).collect::<Vec<_>>())?;
        self.results.begin(1)?;
        self.pass(which, self.sides.theta, Way::Up, None)?;
        self.buffers.loss.scalar()
    }

    /// Moves the perturbed weights to a distance of `rho` along the last ascent's gradient.
    ///
    /// # Errors
    /// A node that fails.
    pub fn perturb(&mut self, rho: f32) -> Result<()> {
        self.buffers.rho.write_f32(&[rho])?;
        match &mut self.perturb {
            Some(stage) => stage.run(&self.buffers, self.sides),
            None => Ok(()),
        }
    }

    /// Sets the perturbed weights.
    ///
    /// # Errors
    /// Tensors that are not those of the parameters.
    pub fn set_perturbed(&mut self, params: &[Vec<f32>]) -> Result<()> {
        self.layout.write(&self.buffers.theta[1 - self.sides.theta], params)
    }

    /// The gradient of the last pass, per parameter.
    ///
    /// # Errors
    /// When it cannot be copied from the device.
    pub fn gradient(&self) -> Result<Vec<Vec<f32>>> {
        self.layout.read(&self.buffers.grad)
    }

    /// The whole state.
    ///
    /// # Errors
    /// When it cannot be copied from the device.
    pub fn state(&self) -> Result<State> {
        let side = self.sides.theta;
        Ok(State {
            params: self.layout.read(&self.buffers.theta[side])?,
            stats: self.stat_layout.read(&self.buffers.stats[self.sides.stats])?,
            optimizer: self.buffers.optimizer.iter().map(|s| self.layout.read(&s[side])).collect::<Result<_>>()?,
            steps: self.steps,
            moves: self.moves,
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
        let side = self.sides.theta;
        self.layout.write(&self.buffers.theta[side], &state.params)?;
        self.stat_layout.write(&self.buffers.stats[self.sides.stats], &state.stats)?;
        for (buffer, values) in self.buffers.optimizer.iter().zip(&state.optimizer) {
            self.layout.write(&buffer[side], values)?;
        }
        (self.steps, self.moves) = (state.steps, state.moves);
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
}

fn not_compiled(batch: usize) -> Error {
    Error::new(format!("no step is compiled for a batch of {batch} samples of this shape"))
}

/// Consecutive parts of these sizes.
pub fn split(flat: &[f32], sizes: &[usize]) -> Vec<Vec<f32>> {
    let mut rest = flat;
    let part = |size: &usize| {
        let (part, after) = rest.split_at((*size).min(rest.len()));
        rest = after;
        part.to_vec()
    };
    sizes.iter().map(part).collect()
}

/// Scales standard normal noise by `sigma` times the root mean square of each filter: a slice of a weight along its first axis, any
/// other parameter as a whole.
pub fn scale_by_filters(noise: &mut [Vec<f32>], weights: &[Vec<f32>], params: &[Slot], sigma: f32) {
    for ((noise, weights), p) in noise.iter_mut().zip(weights).zip(params) {
        let filters = if p.shape.len() > 1 { p.shape[0] } else { 1 };
        let len = (weights.len() / filters.max(1)).max(1);
        for (noise, filter) in noise.chunks_mut(len).zip(weights.chunks(len)) {
            let squares: f64 = filter.iter().map(|w| f64::from(*w).powi(2)).sum();
            let scale = sigma * (squares / len as f64).sqrt() as f32;
            noise.iter_mut().for_each(|n| *n *= scale);
        }
    }
}
