//! Learning rate schedules.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// The same all the time.
    Constant,
    /// Half a cosine from the peak down to zero.
    Cosine,
    /// A straight line from the peak down to zero.
    Linear,
}

/// What the schedule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// The rate changes with every step.
    Step,
    /// The rate changes with every epoch, as in the paper.
    Epoch,
}

impl Schedule {
    /// Factor on the peak rate at time `t` of `total`, after a linear warm-up of `warmup` (all in the schedule's unit).
    pub fn factor(self, t: usize, total: usize, warmup: usize) -> f32 {
        if t < warmup {
            return (t + 1) as f32 / warmup as f32;
        }
        let x = (t - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        (match self {
            Self::Constant => 1.0,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
            Self::Linear => (1.0 - x).max(0.0),
        }) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_start_at_the_peak_and_end_near_zero() {
        assert_eq!(Schedule::Cosine.factor(0, 10, 0), 1.0);
        assert!((Schedule::Cosine.factor(5, 10, 0) - 0.5).abs() < 1e-6);
        assert!((Schedule::Linear.factor(9, 10, 0) - 0.1).abs() < 1e-6);
        assert_eq!(Schedule::Linear.factor(0, 10, 4), 0.25);
        assert_eq!(Schedule::Constant.factor(7, 10, 4), 1.0);
    }
}
