//! The update, on flat buffers: θ′ = θ − step(g).

use super::options::{Base, StepOptions};
use super::stages::{Flat, names};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::ValueId;

/// Offset of the norm when clipping, as `torch.nn.utils.clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// The `update` stage: (θ `[P]`, g `[P]`, state `[P]` each, lr, …) → θ′ `[P]`, state′ `[P]` each.
///
/// # Errors
/// Never for consistent lengths.
pub(super) fn update(flat: &mut Flat, options: &StepOptions) -> Result<()> {
    match options.base {
        Base::Sgd => sgd(flat, options)?,
        Base::Adamw => adamw(flat, options)?,
    }
    // Without an ascent pass the statistics of the only pass move here.
    if options.ascent.is_none() { flat.move_statistics() } else { Ok(()) }
}

fn clipped(b: &mut Builder<'_>, g: ValueId, clip: Option<f32>) -> Result<ValueId> {
    let Some(clip) = clip else { return Ok(g) };
    let norm = b.norm(g);
    let norm = b.offset(norm, CLIP_EPS)?;
    let limit = b.scalar_like(f64::from(clip), g);
    let factor = b.div(limit, norm)?;
    let one = b.scalar_like(1.0, g);
    let factor = b.binary("Min", factor, one)?;
    b.mul(g, factor)
}

/// `torch.optim.SGD`: g ← g + λw; v ← m·v + g; w ← w − lr·v, or with Nesterov w ← w − lr·(g + m·v).
fn sgd(flat: &mut Flat, o: &StepOptions) -> Result<()> {
    let (theta, g, lr) = (flat.vector(names::THETA), flat.vector(names::GRAD), flat.scalar(names::LR));
    let velocity = (o.states() > 0).then(|| flat.vector(&names::state(0)));
    let mut b = flat.builder("update");
    let g = clipped(&mut b, g, o.clip_norm)?;
    let decay = b.scale(theta, f64::from(o.weight_decay))?;
    let mut g = if o.weight_decay == 0.0 { g } else { b.add(g, decay)? };
    let mut state = None;
    if let Some(v) = velocity {
        let kept = b.scale(v, f64::from(o.momentum))?;
        let v = b.add(kept, g)?;
        state = Some(v);
        g = if o.nesterov {
            let ahead = b.scale(v, f64::from(o.momentum))?;
            b.add(g, ahead)?
        } else {
            v
        };
    }
    let step = b.mul(g, lr)?;
    let next = b.sub(theta, step)?;
    flat.output(names::THETA_OUT, next);
    if let Some(v) = state {
        flat.output(&names::state_out(0), v);
    }
    Ok(())
}

/// AdamW (Loshchilov & Hutter 2019, algorithm 2), as `torch.optim.AdamW`:
/// w ← w·(1 − lr·λ); m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; w ← w − (lr/c₁)·m/(√v/√c₂ + ε).
///
/// The bias corrections c₁ = 1 − β₁ᵗ and √c₂ = √(1 − β₂ᵗ) are inputs, computed in f64.
fn adamw(flat: &mut Flat, o: &StepOptions) -> Result<()> {
    let (theta, g, lr) = (flat.vector(names::THETA), flat.vector(names::GRAD), flat.scalar(names::LR));
    let (m, v) = (flat.vector(&names::state(0)), flat.vector(&names::state(1)));
    let (c1, root_c2) = (flat.scalar(names::BIAS1), flat.scalar(names::BIAS2));
    let mut b = flat.builder("update");
    let g = clipped(&mut b, g, o.clip_norm)?;
    let blend = |b: &mut Builder<'_>, old: ValueId, new: ValueId, beta: f64| {
        let old = b.scale(old, beta)?;
        let new = b.scale(new, 1.0 - beta)?;
        b.add(old, new)
    };
    let m = blend(&mut b, m, g, f64::from(o.beta1))?;
    let squared = b.square(g)?;
    let v = blend(&mut b, v, squared, f64::from(o.beta2))?;
    let root = b.unary("Sqrt", v);
    let root = b.div(root, root_c2)?;
    let denominator = b.offset(root, f64::from(o.eps))?;
    let direction = b.div(m, denominator)?;
    let rate = b.div(lr, c1)?;
    let step = b.mul(direction, rate)?;
    let decay = b.scale(lr, f64::from(o.weight_decay))?;
    let keep = b.one_minus(decay)?;
    let kept = if o.weight_decay == 0.0 { theta } else { b.mul(theta, keep)? };
    let next = b.sub(kept, step)?;
    flat.output(names::THETA_OUT, next);
    flat.output(&names::state_out(0), m);
    flat.output(&names::state_out(1), v);
    Ok(())
}
