//! Logits, and the model's own loss, at the weights of a program.

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

/// What a model says about a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    /// Logits, [N, K] row by row; empty where the model shows none beside its own loss.
    pub logits: Vec<f32>,
    /// The model's own loss, where it is trained on that.
    pub loss: Option<f32>,
}

struct EvalStage {
    session: Session,
    /// By the parameters' side, then the statistics'.
    bindings: [[Binding; 2]; 2],
    inputs: Vec<Buffer>,
    labels: Buffer,
    logits: Option<(Buffer, usize)>,
    loss: Option<Buffer>,
    batch: usize,
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
        let label_type = Type::new(DType::I64, &[batch]);
        let labels = memory.zeros(label_type.bytes())?;
        let logit_type = Type::new(DType::F32, &[batch, stages.classes]);
        let logits = (stages.classes > 0).then(|| memory.zeros(logit_type.bytes())).transpose()?;
        let loss_type = Type::new(DType::F32, &[]);
        let loss = stages.own_loss.then(|| memory.zeros(loss_type.bytes())).transpose()?;
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
            if known(&stages.labels) {
                b.input(&stages.labels, &labels, 0, &label_type)?;
            }
            if let Some(logits) = &logits {
                b.output(names::LOGITS, logits, 0, &logit_type)?;
            }
            if let Some(loss) = &loss {
                b.output(names::LOSS, loss, 0, &loss_type)?;
            }
            Ok(b)
        };
        let bindings = [[bind(0, 0)?, bind(0, 1)?], [bind(1, 0)?, bind(1, 1)?]];
        let widths = widths(&stages.inputs);
        let logits = logits.map(|l| (l, logit_type.len()));
        evaluation.0.push(EvalStage { session, bindings, inputs, labels, logits, loss, batch, widths });
        Ok(())
    }

    /// What the `eval` stage says about a batch at the current weights.
    ///
    /// # Errors
    /// A node that fails; a shape that was not compiled.
    pub fn evaluate(&self, evaluation: &mut Evaluation, inputs: &[&[u8]], labels: &[i64]) -> Result<Outputs> {
        self.outputs_at(self.sides.theta, evaluation, inputs, labels)
    }

    /// As [`Program::evaluate`], at the perturbed weights.
    ///
    /// # Errors
    /// As [`Program::evaluate`].
    pub fn evaluate_perturbed(&self, evaluation: &mut Evaluation, inputs: &[&[u8]], labels: &[i64]) -> Result<Outputs> {
        self.outputs_at(1 - self.sides.theta, evaluation, inputs, labels)
    }

    fn outputs_at(
        &self,
        side: usize,
        evaluation: &mut Evaluation,
        inputs: &[&[u8]],
        labels: &[i64],
    ) -> Result<Outputs> {
        let n = labels.len();
        let stage = evaluation.0.iter_mut().find(|s| s.batch == n && s.widths == fed_widths(inputs, n));
        let stage =
            stage.ok_or_else(|| Error::new(format!("no evaluation is compiled for {n} samples of this shape")))?;
        for (buffer, bytes) in stage.inputs.iter().zip(inputs) {
            buffer.write(0, bytes)?;
        }
        stage.labels.write(0, bytemuck::cast_slice(labels))?;
        stage.session.run_bound(&stage.bindings[side][self.sides.stats])?;
        let logits = stage.logits.as_ref().map(|(logits, len)| logits.read_f32(*len)).transpose()?;
        let loss = stage.loss.as_ref().map(Buffer::scalar).transpose()?;
        Ok(Outputs { logits: logits.unwrap_or_default(), loss })
    }
}
