//! The perturbation, on flat buffers: θ̂ = θ + ε.

use super::options::StepOptions;
use super::stages::{Flat, names};
use crate::error::Result;

/// Offset of the norm in the denominator, as in the authors' code.
const NORM_EPS: f64 = 1e-12;

/// The `perturb` stage: (θ `[P]`, g `[P]`, ρ, …) → θ̂ `[P]`.
///
/// L2 metric: ε = ρ g/(‖g‖ + 1e-12), one norm over all parameters (SAM, Foret et al. 2021, eq. 2 with p = 2).
/// Adaptive metric: ε = ρ T²g/(‖Tg‖ + 1e-12) with T = |w| + η on weights or on everything, 1 elsewhere (ASAM, Kwon et al. 2021,
/// eq. 6); `is_weight` `[P]` is 1 where an element belongs to a weight.
///
/// # Errors
/// Never for consistent lengths.
pub(super) fn perturb(flat: &mut Flat, options: &StepOptions) -> Result<()> {
    let theta = flat.vector(names::THETA);
    let g = flat.vector(names::GRAD);
    let rho = flat.scalar(names::RHO);
    let is_weight = (options.adaptive && !options.adaptive_all).then(|| flat.vector(names::IS_WEIGHT));
    let mut b = flat.builder("perturb");
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
