//! The perturbation, on flat buffers: θ̂ = θ + ε.

use super::flat::Flat;
use super::names;
use super::options::{Base, StepOptions};
use crate::error::Result;

/// Offset of the norm in the denominator, as in the authors' code.
const NORM_EPS: f64 = 1e-12;

/// The `perturb` stage: (θ `[P]`, g `[P]`, ρ, …) → θ̂ `[P]`.
///
/// L2 metric: ε = ρ g/(‖g‖ + 1e-12), one norm over all parameters (SAM, Foret et al. 2021, eq. 2 with p = 2).
/// Adaptive metric: ε = ρ T²g/(‖Tg‖ + 1e-12) with T = |w| + η on weights or on everything, 1 elsewhere (ASAM, Kwon et al. 2021,
/// eq. 6); `is_weight` `[P]` is 1 where an element belongs to a weight.
/// With bSAM below: ε = ρ g/s with its precisions s, no norm (Möllenhoff & Khan 2023, algorithm 1).
///
/// # Errors
/// Never for consistent lengths.
pub(super) fn perturb(flat: &mut Flat, options: &StepOptions) -> Result<()> {
    let theta = flat.vector(names::THETA);
    let g = flat.vector(names::GRAD);
    let rho = flat.scalar(names::RHO);
    let is_weight = options.spares_biases().then(|| flat.vector(names::IS_WEIGHT));
    let precision = (options.base == Base::Bsam).then(|| flat.vector(&names::state(1)));
    let mut b = flat.builder("perturb");
    if let Some(s) = precision {
        let direction = b.div(g, s)?;
        let epsilon = b.mul(direction, rho)?;
        let perturbed = b.add(theta, epsilon)?;
        flat.output(names::THETA_OUT, perturbed);
        return Ok(());
    }
    let direction;
    let norm;
    if options.adaptive {
        let size = b.unary("Abs", theta);
        let mut t = b.offset(size, f64::from(options.eta))?;
        if let Some(is_weight) = is_weight {
            // T = m·(|w| + η) + (1 − m) = 1 + m·(|w| + η − 1)
            let excess = b.offset(t, -1.0)?;
            let masked = b.mul(is_weight, excess)?;
            t = b.offset(masked, 1.0)?;
        }
        let tg = b.mul(t, g)?;
        norm = b.norm(tg);
        direction = b.mul(t, tg)?;
    } else {
        norm = b.norm(g);
        direction = g;
    }
    let norm = b.offset(norm, NORM_EPS)?;
    let scale = b.div(rho, norm)?;
    let epsilon = b.mul(direction, scale)?;
    let perturbed = b.add(theta, epsilon)?;
    flat.output(names::THETA_OUT, perturbed);
    Ok(())
}

/// The `start` stage: (θ `[P]`, n `[P]`, …) → θ̂ `[P]`, where the ascent's gradient is taken.
///
/// R-SAM (Liu et al. 2022): θ̂ = θ + n, with n scaled by the filters already. bSAM: θ̂ = θ + n/√s, with n ~ N(0, 1/N) for N training
/// samples. The perturbation itself starts at θ.
///
/// # Errors
/// Never for consistent lengths.
pub(super) fn start(flat: &mut Flat, options: &StepOptions) -> Result<()> {
    let (theta, noise) = (flat.vector(names::THETA), flat.vector(names::NOISE));
    let precision = (options.base == Base::Bsam).then(|| flat.vector(&names::state(1)));
    let mut b = flat.builder("start");
    let offset = match precision {
        Some(s) => {
            let root = b.unary("Sqrt", s);
            b.div(noise, root)?
        }
        None => noise,
    };
    let start = b.add(theta, offset)?;
    flat.output(names::THETA_OUT, start);
    Ok(())
}
