//! Losses at the logits, differentiated by the same table as the model.

use crate::builder::Builder;
use crate::error::Result;
use crate::ir::{DType, ValueId};

/// 0/1 rows with the one at the label: `labels` i64 `[N]` → [N, K] in the type of `logits`.
pub fn one_hot(b: &mut Builder<'_>, logits: ValueId, labels: ValueId) -> ValueId {
    let (classes, dtype) = (b.shape(logits)[1], b.dtype(logits));
    b.one_hot(labels, classes, dtype)
}

/// Mean cross-entropy with label smoothing: −(1/N) Σᵢ Σⱼ tᵢⱼ log softmax(f)ᵢⱼ with t = 1 − s at the label and s/(K − 1)
/// elsewhere; `logits` [N, K], `one_hot` [N, K] → scalar.
///
/// # Errors
/// When the shapes do not fit.
pub fn cross_entropy(b: &mut Builder<'_>, logits: ValueId, one_hot: ValueId, smoothing: f32) -> Result<ValueId> {
    let [n, classes] = [0, 1].map(|i| b.shape(logits)[i]);
    let log_p = b.softmax("LogSoftmax", logits, 1);
    let off = if classes > 1 { f64::from(smoothing) / (classes - 1) as f64 } else { 0.0 };
    let on = 1.0 - f64::from(smoothing);
    let t = b.scale(one_hot, on - off)?;
    let t = b.offset(t, off)?;
    let weighted = b.mul(t, log_p)?;
    let total = b.sum_all(weighted);
    b.scale(total, -1.0 / n as f64)
}

/// Cross-entropy of each sample, without smoothing: `logits` [N, K], `one_hot` [N, K] → `[N]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn scores(b: &mut Builder<'_>, logits: ValueId, one_hot: ValueId) -> Result<ValueId> {
    let log_p = b.softmax("LogSoftmax", logits, 1);
    let at_label = b.mul(log_p, one_hot)?;
    let sum = b.sum(at_label, &[1], false);
    b.scale(sum, -1.0)
}

/// Number of samples whose largest logit is at the label, as f32 scalar; ties go to the lower class.
///
/// # Errors
/// When the shapes do not fit.
pub fn correct(b: &mut Builder<'_>, logits: ValueId, labels: ValueId) -> Result<ValueId> {
    let hits = hits(b, logits, labels)?;
    let hits = b.cast(hits, DType::F32);
    Ok(b.sum_all(hits))
}

fn hits(b: &mut Builder<'_>, logits: ValueId, labels: ValueId) -> Result<ValueId> {
    let best = b.argmax(logits, 1);
    b.binary("Equal", best, labels)
}
