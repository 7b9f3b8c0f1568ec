//! Names of the stages' own inputs and outputs.

/// Class of each sample, i64 `[N]`.
pub const LABELS: &str = "labels";
/// True in the ascent pass, bool scalar.
pub const PHASE: &str = "phase";
/// Mean loss of the pass, f32 scalar.
pub const LOSS: &str = "loss";
/// Correctly classified samples, f32 scalar.
pub const CORRECT: &str = "correct";
/// Logits, [N, K].
pub const LOGITS: &str = "logits";
/// Parameters, f32 `[P]`.
pub const THETA: &str = "theta";
/// Perturbed or updated parameters, f32 `[P]`.
pub const THETA_OUT: &str = "theta_out";
/// Gradient, f32 `[P]`.
pub const GRAD: &str = "grad";
/// Gradient of the ascent pass where both are needed, f32 `[P]`.
pub const ASCENT_GRAD: &str = "ascent_grad";
/// Cross-entropy of each sample, f32 `[N]`.
pub const SCORES: &str = "scores";
/// Sum of the micro-batches' gradients so far, f32 `[P]`.
pub const SUM: &str = "sum";
/// The sum with another micro-batch, f32 `[P]`.
pub const SUM_OUT: &str = "sum_out";
/// Sum of the micro-batches' |ascent gradient| so far, f32 `[P]`.
pub const SIZE_SUM: &str = "size_sum";
/// That sum with another micro-batch, f32 `[P]`.
pub const SIZE_SUM_OUT: &str = "size_sum_out";
/// Where the ascent starts, from the parameters, f32 `[P]`.
pub const NOISE: &str = "noise";
/// 0 before the first micro-batch, then 1, f32 scalar.
pub const KEEP: &str = "keep";
/// Share of the batch that the micro-batch is, f32 scalar.
pub const SHARE: &str = "share";
/// Norm of the perturbation, f32 scalar.
pub const RHO: &str = "rho";
/// Learning rate, f32 scalar.
pub const LR: &str = "lr";
/// 1 − β₁ᵗ, f32 scalar.
pub const BIAS1: &str = "bias1";
/// √(1 − β₂ᵗ), f32 scalar.
pub const BIAS2: &str = "bias2";
/// 1 where an element belongs to a weight of rank ≥ 2, f32 `[P]`.
pub const IS_WEIGHT: &str = "is_weight";
/// Running statistics, f32 `[S]`.
pub const STATS: &str = "stats";
/// Running statistics after the pass, f32 `[S]`.
pub const STATS_OUT: &str = "stats_out";
/// Statistics of the batch, f32 `[S]`.
pub const BATCH_STATS: &str = "batch_stats";
/// Share of the batch's statistics that moves in, f32 `[S]`.
pub const STAT_RATE: &str = "stat_rate";
/// The `i`-th optimizer state, f32 `[P]`.
pub fn state(i: usize) -> String {
    format!("state{i}")
}
/// The `i`-th optimizer state after the step, f32 `[P]`.
pub fn state_out(i: usize) -> String {
    format!("state{i}_out")
}
