//! Losses that a graph computes itself.

use super::{Call, Lowered};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::{DType, Tensor, Type, ValueId};

/// L = −w_t·X_t at the target t of each position; `mean` divides their sum by Σ w_t, and targets of `ignore_index` count nothing:
/// written out; X [N,C,D…], target [N,D…], weight `[C]`, optional; ONNX NegativeLogLikelihoodLoss-22.
pub fn negative_log_likelihood(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    Ok(vec![Some(at_target(b, c, c.x(0)?)?)])
}

/// As NegativeLogLikelihoodLoss of X's logarithmic softmax over the classes, which is the second output: written out; X [N,C,D…];
/// ONNX SoftmaxCrossEntropyLoss-13.
pub fn softmax_cross_entropy(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let log_p = b.softmax("LogSoftmax", c.x(0)?, 1);
    let loss = at_target(b, c, log_p)?;
    Ok(vec![Some(loss), Some(log_p)])
}

fn at_target(b: &mut Builder<'_>, c: &Call<'_>, log_p: ValueId) -> Result<ValueId> {
    let reduction = c.attrs.str("reduction", "mean")?;
    let ignored = c.attrs.get("ignore_index").is_some().then(|| c.attrs.int("ignore_index", 0)).transpose()?;
    let mut target = b.cast(c.x(1)?, DType::I64);
    let shape = b.shape(target).to_vec();
    let dtype = b.dtype(log_p);
    // 1 where a position counts.
    let mut counts = None;
    if let Some(ignored) = ignored {
        let one = b.constant(Tensor::new(&[], &[ignored])?);
        let same = b.binary("Equal", target, one)?;
        let valid = b.unary("Not", same);
        let zero = b.scalar(0.0, DType::I64);
        target = b.select(valid, target, zero)?;
        counts = Some(b.cast(valid, dtype));
    }
    let column = [&shape[..1], &[1], &shape[1..]].concat();
    let indices = b.reshape(target, &column);
    let picked = b.gather_elements(log_p, indices, 1);
    let picked = b.reshape(picked, &shape);
    let mut loss = b.neg(picked);
    let weight = match c.opt(2) {
        Some(weight) => {
            let of_target = b.gather(weight, target, 0);
            Some(match counts {
                Some(counts) => b.mul(of_target, counts)?,
                None => of_target,
            })
        }
        None => counts,
    };
    if let Some(weight) = weight {
        loss = b.mul(loss, weight)?;
    }
    match reduction {
        "none" => Ok(loss),
        "sum" => Ok(b.sum_all(loss)),
        "mean" => {
            let sum = b.sum_all(loss);
            let total = match weight {
                Some(weight) => b.sum_all(weight),
                None => b.scalar(Type::new(dtype, &shape).len() as f64, dtype),
            };
            b.div(sum, total)
        }
        other => crate::bail!("`reduction` is `{other}`"),
    }
}
