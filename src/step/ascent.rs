//! Differentiable lower bounds of the 0-1 loss: what BiSAM's perturbation ascends (Xie et al., ICML 2024, eq. 10–12).
//!
//! With the margin xⱼ = fⱼ − f_y and φ below the step function, Q = (1/N) Σ (1/μ) log Σⱼ exp(μ φ(xⱼ)), where j runs over every
//! class, the label's own included.

use super::loss::cross_entropy;
use super::options::{Ascent, StepOptions};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::ValueId;

/// γ = log(e − 1), which makes φ(0) = 0 for the −log bound.
pub const GAMMA: f64 = 0.541_324_854_612_918_1;

/// The value that the perturbation ascends; `logits` and `one_hot` [N, K] → scalar.
///
/// # Errors
/// When the shapes do not fit.
pub fn ascent_loss(
    b: &mut Builder<'_>,
    ascent: Ascent,
    logits: ValueId,
    one_hot: ValueId,
    options: &StepOptions,
) -> Result<ValueId> {
    if ascent == Ascent::CrossEntropy {
        return cross_entropy(b, logits, one_hot, options.label_smoothing);
    }
    let at_label = b.mul(logits, one_hot)?;
    let at_label = b.sum(at_label, &[1], true);
    let margin = b.sub(logits, at_label)?;
    let mu = f64::from(options.mu);
    let pooled = if ascent == Ascent::NegLog && options.mu == 1.0 {
        // exp φ(x) = e σ(x − γ): one function in the place of three.
        let shifted = b.offset(margin, -GAMMA)?;
        let sigmoid = b.unary("Sigmoid", shifted);
        let sum = b.sum(sigmoid, &[1], false);
        let sum = b.scale(sum, std::f64::consts::E)?;
        b.unary("Log", sum)
    } else {
        let phi = bound(b, ascent, margin, options)?;
        let sharp = b.scale(phi, mu)?;
        if options.mu <= PLAIN_MU {
            let exponential = b.unary("Exp", sharp);
            let sum = b.sum(exponential, &[1], false);
            b.unary("Log", sum)
        } else {
            b.reduce("ReduceLogSumExp", sharp, &[1], false)
        }
    };
    let mean = b.mean_all(pooled);
    b.scale(mean, 1.0 / mu)
}

/// Up to here exp(μφ) cannot overflow, for φ ≤ 1; and as φ = 0 at the label, a sum over the classes is at least 1.
const PLAIN_MU: f32 = 60.0;

/// φ of every margin: tanh(αx) for [`Ascent::Tanh`], else 1 − log(1 + e^{γ−x}).
///
/// # Errors
/// When the shapes do not fit.
pub fn bound(b: &mut Builder<'_>, ascent: Ascent, margin: ValueId, options: &StepOptions) -> Result<ValueId> {
    if ascent == Ascent::Tanh {
        let scaled = b.scale(margin, f64::from(options.alpha))?;
        return Ok(b.unary("Tanh", scaled));
    }
    let gamma = b.scalar_like(GAMMA, margin);
    let flipped = b.sub(gamma, margin)?;
    let soft = b.unary("Softplus", flipped);
    b.one_minus(soft)
}
