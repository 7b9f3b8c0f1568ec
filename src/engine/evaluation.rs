//! Logits at the weights of a program.

use super::arena::Buffer;
use super::binding::Binding;
use super::feed::{fed_widths, widths};
use super::program::Program;
use super::session::Session;
use crate::error::{Error, Result};
use crate::ir::{DType, Type};
use crate::step::{Stages, names};

/// Compiled `eval` stages over a program's weights, one for each shape of a batch.
#[derive(Default)]
pub struct Evaluation(Vec<EvalStage>);

struct EvalStage {
    session: Session,
    /// By the parameters' side, then the statistics'.
    bindings: [[Binding; 2]; 2],
    inputs: Vec<Buffer>,
    logits: Buffer,
    batch: usize,
    len: usize,
    /// Bytes of a sample, by input.
    widths: Vec<usize>,
}

impl Program {
    /// Compiles `eval` on the current weights, for the batches of `stages`.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about it.
    pub fn add_evaluation(&self, evaluation: &mut Evaluation, stages: &Stages) -> Result<()> {
        let session = self.engine.compile(&stages.eval)?;
        let memory = &self.buffers.memory;
        let inputs: Vec<Buffer> =
            stages.inputs.iter().map(|(_, ty)| memory.zeros(ty.bytes())).collect::<Result<_>>()?;
        let batch = stages.batch();
        let ty = Type::new(DType::F32, &[batch, stages.classes]);
        let logits = memory.zeros(ty.bytes())?;
        let bind = |side: usize, of_stats: usize| -> Result<Binding> {
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
                b.input(&s.slot.name, &self.buffers.stats[of_stats], offset, &ty)?;
            }
            b.output(names::LOGITS, &logits, 0, &ty)?;
            Ok(b)
        };
        let bindings = [[bind(0, 0)?, bind(0, 1)?], [bind(1, 0)?, bind(1, 1)?]];
        let widths = widths(&stages.inputs);
        evaluation.0.push(EvalStage { session, bindings, inputs, logits, batch, len: ty.len(), widths });
        Ok(())
    }

    /// Logits of a batch, by the `eval` stage, at the current weights: [N, K] row by row.
    ///
    /// # Errors
    /// A node that fails; a shape that was not compiled.
    pub fn evaluate(&self, evaluation: &mut Evaluation, inputs: &[&[u8]]) -> Result<Vec<f32>> {
        self.logits_at(self.sides.theta, evaluation, inputs)
    }

    /// As [`Program::evaluate`], at the perturbed weights.
    ///
    /// # Errors
    /// As [`Program::evaluate`].
    pub fn evaluate_perturbed(&self, evaluation: &mut Evaluation, inputs: &[&[u8]]) -> Result<Vec<f32>> {
        self.logits_at(1 - self.sides.theta, evaluation, inputs)
    }

    fn logits_at(&self, side: usize, evaluation: &mut Evaluation, inputs: &[&[u8]]) -> Result<Vec<f32>> {
        let stage = evaluation.0.iter_mut().find(|s| s.widths == fed_widths(inputs, s.batch));
        let stage = stage.ok_or_else(|| Error::new("no evaluation is compiled for batches of this shape"))?;
        for (buffer, bytes) in stage.inputs.iter().zip(inputs) {
            buffer.write(0, bytes)?;
        }
        stage.session.run_bound(&stage.bindings[side][self.sides.stats])?;
        stage.logits.read_f32(stage.len)
    }
}
