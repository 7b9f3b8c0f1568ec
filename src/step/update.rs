//! The update, on flat buffers: θ′ = θ − step(g).

use super::flat::Flat;
use super::names;
use super::options::{Base, StepOptions};
use crate::builder::Builder;
use crate::error::Result;
use crate::ir::ValueId;

/// Offset of the norm when clipping, as `torch.nn.utils.clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// Offset of a norm in a denominator.
const NORM_EPS: f64 = 1e-12;

/// Which update a step ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After both passes, or the only one.
    Whole,
    /// After a descent pass that reuses the direction of an earlier perturbation (LookSAM).
    Reused,
}

/// The `update` stage: (θ `[P]`, g `[P]`, state `[P]` each, lr, …) → θ′ `[P]`, state′ `[P]` each.
///
/// # Errors
/// Never for consistent lengths.
pub(super) fn update(flat: &mut Flat, options: &StepOptions, ending: Ending) -> Result<()> {
    let g = flat.vector(names::GRAD);
    let looks = options.states().checked_sub(1).filter(|_| options.period > 1);
    let g = match (looks, ending) {
        (Some(i), Ending::Reused) => reuse(flat, g, i, options)?,
        (Some(i), Ending::Whole) => {
            keep_direction(flat, g, i)?;
            g
        }
        (None, _) if options.gsam_alpha > 0.0 => lower_gap(flat, g, options)?,
        (None, _) => g,
    };
    match options.base {
        Base::Sgd => sgd(flat, g, options),
        Base::Adamw => adamw(flat, g, options),
        Base::Bsam => bsam(flat, g, options),
    }
}

/// x less its part along `axis`: x − (⟨x, a⟩/‖a‖²) a.
fn across(b: &mut Builder<'_>, x: ValueId, axis: ValueId) -> Result<ValueId> {
    let along = b.mul(x, axis)?;
    let along = b.sum_all(along);
    let squared = b.square(axis)?;
    let squared = b.sum_all(squared);
    let squared = b.offset(squared, f64::from(f32::MIN_POSITIVE))?;
    let share = b.div(along, squared)?;
    let part = b.mul(axis, share)?;
    b.sub(x, part)
}

/// GSAM (Zhuang et al. 2022, algorithm 1): g′ − α·(g less its part along g′), with g′ at θ̂ and the ascent's g at θ.
fn lower_gap(flat: &mut Flat, descent: ValueId, options: &StepOptions) -> Result<ValueId> {
    let ascent = flat.vector(names::ASCENT_GRAD);
    let mut b = flat.builder("gap");
    let gap = across(&mut b, ascent, descent)?;
    let gap = b.scale(gap, f64::from(options.gsam_alpha))?;
    b.sub(descent, gap)
}

/// LookSAM (Liu et al. 2022, eq. 6): keeps g_v, the descent's gradient less its part along the ascent's, as state `i`.
fn keep_direction(flat: &mut Flat, descent: ValueId, i: usize) -> Result<()> {
    let ascent = flat.vector(names::ASCENT_GRAD);
    let mut b = flat.builder("look");
    let direction = across(&mut b, descent, ascent)?;
    flat.output(&names::state_out(i), direction);
    Ok(())
}

/// LookSAM (Liu et al. 2022, algorithm 1): g + α (‖g‖/‖g_v‖) g_v, with g_v of the last perturbation.
fn reuse(flat: &mut Flat, g: ValueId, i: usize, options: &StepOptions) -> Result<ValueId> {
    let direction = flat.vector(&names::state(i));
    let mut b = flat.builder("look");
    let (norm, of_direction) = (b.norm(g), b.norm(direction));
    let of_direction = b.offset(of_direction, NORM_EPS)?;
    let factor = b.div(norm, of_direction)?;
    let factor = b.scale(factor, f64::from(options.look_alpha))?;
    let added = b.mul(direction, factor)?;
    b.add(g, added)
}

/// β·old + (1 − β)·new.
fn blend(b: &mut Builder<'_>, old: ValueId, new: ValueId, beta: f64) -> Result<ValueId> {
    let old = b.scale(old, beta)?;
    let new = b.scale(new, 1.0 - beta)?;
    b.add(old, new)
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
fn sgd(flat: &mut Flat, g: ValueId, o: &StepOptions) -> Result<()> {
    let (theta, lr) = (flat.vector(names::THETA), flat.scalar(names::LR));
    let velocity = (o.momentum != 0.0).then(|| flat.vector(&names::state(0)));
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
fn adamw(flat: &mut Flat, g: ValueId, o: &StepOptions) -> Result<()> {
    let (theta, lr) = (flat.vector(names::THETA), flat.scalar(names::LR));
    let (m, v) = (flat.vector(&names::state(0)), flat.vector(&names::state(1)));
    let (c1, root_c2) = (flat.scalar(names::BIAS1), flat.scalar(names::BIAS2));
    let mut b = flat.builder("update");
    let g = clipped(&mut b, g, o.clip_norm)?;
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

/// bSAM (Möllenhoff & Khan 2023, algorithm 1), as its authors' code: m ← β₁m + (1 − β₁)(g′ + λw); w ← w − lr·m/s;
/// s ← β₂s + (1 − β₂)(√s·|g| + d + λ), with the descent's gradient g′, the ascent's g, weight decay λ and damping d.
///
/// With micro-batches |g| is the mean of theirs.
fn bsam(flat: &mut Flat, g: ValueId, o: &StepOptions) -> Result<()> {
    let (theta, lr) = (flat.vector(names::THETA), flat.scalar(names::LR));
    let (m, s) = (flat.vector(&names::state(0)), flat.vector(&names::state(1)));
    let averaged = o.micro_batch.is_some();
    let ascent = flat.vector(if averaged { names::SIZE_SUM } else { names::ASCENT_GRAD });
    let mut b = flat.builder("update");
    let g = clipped(&mut b, g, o.clip_norm)?;
    let decay = b.scale(theta, f64::from(o.weight_decay))?;
    let g = b.add(g, decay)?;
    let m = blend(&mut b, m, g, f64::from(o.beta1))?;
    let direction = b.div(m, s)?;
    let step = b.mul(direction, lr)?;
    let next = b.sub(theta, step)?;
    let size = if averaged { ascent } else { b.unary("Abs", ascent) };
    let root = b.unary("Sqrt", s);
    let size = b.mul(root, size)?;
    let size = b.offset(size, f64::from(o.damping) + f64::from(o.weight_decay))?;
    let s = blend(&mut b, s, size, f64::from(o.beta2))?;
    flat.output(names::THETA_OUT, next);
    flat.output(&names::state_out(0), m);
    flat.output(&names::state_out(1), s);
    Ok(())
}
