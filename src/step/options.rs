//! The axes of a step. Every axis is independent of the others; presets name combinations.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the perturbation ascends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ascent {
    /// The (smoothed) cross-entropy itself: SAM, Foret et al. 2021.
    CrossEntropy,
    /// The lower bound of the 0-1 loss with φ(x) = 1 − log(1 + e^{γ−x}), γ = log(e − 1): BiSAM (−log).
    NegLog,
    /// The lower bound of the 0-1 loss with φ(x) = tanh(αx): BiSAM (tanh).
    Tanh,
}

/// The optimizer below the perturbation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// Stochastic gradient descent with momentum, as `torch.optim.SGD`: weight decay is added to the gradient.
    Sgd,
    /// AdamW, Loshchilov & Hutter 2019, as `torch.optim.AdamW`: weight decay is decoupled.
    Adamw,
}

/// What the `grad` stage is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kernels {
    /// Operators of ai.onnx only: runs on any ONNX Runtime, CPU or CUDA.
    Plain,
    /// With this crate's own kernels where there is one, which run on the CPU.
    #[default]
    Fused,
}

/// Settings of a training step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StepOptions {
    /// What the perturbation ascends; none means no perturbation.
    pub ascent: Option<Ascent>,
    /// Sharpness μ of the log-sum-exp in a bound; 1 for −log, 10 for tanh.
    pub mu: f32,
    /// Slope α of the tanh bound.
    pub alpha: f32,
    /// Norm ρ of the perturbation (with `adaptive`, of the perturbation measured by T).
    pub rho: f32,
    /// Perturb in the metric T = |w| + η on weights of rank ≥ 2 and 1 elsewhere: ASAM, Kwon et al. 2021.
    pub adaptive: bool,
    /// η of the adaptive metric.
    pub eta: f32,
    /// The optimizer below.
    pub base: Base,
    /// Momentum of SGD.
    pub momentum: f32,
    /// Nesterov momentum for SGD.
    pub nesterov: bool,
    /// Weight decay, on every parameter.
    pub weight_decay: f32,
    /// First moment decay of AdamW.
    pub beta1: f32,
    /// Second moment decay of AdamW.
    pub beta2: f32,
    /// Denominator offset of AdamW.
    pub eps: f32,
    /// Probability mass spread evenly over the K − 1 other classes in the descent loss.
    pub label_smoothing: f32,
    /// Largest global L2 norm of the descent gradient.
    pub clip_norm: Option<f32>,
    /// What the `grad` stage is made of.
    pub kernels: Kernels,
}

/// The paper's settings for CIFAR: BiSAM's defaults without a perturbation.
impl Default for StepOptions {
    fn default() -> Self {
        Self {
            ascent: None,
            mu: 1.0,
            alpha: 0.1,
            rho: 0.05,
            adaptive: false,
            eta: 0.01,
            base: Base::Sgd,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 5e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            label_smoothing: 0.1,
            clip_norm: None,
            kernels: Kernels::default(),
        }
    }
}

/// A named combination of axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// No perturbation.
    Sgd,
    /// Sharpness-aware minimization.
    Sam,
    /// BiSAM with the −log bound.
    Bisam,
    /// BiSAM with the tanh bound.
    BisamTanh,
    /// SAM in the adaptive metric.
    Asam,
    /// BiSAM (−log) in the adaptive metric.
    ABisam,
}

impl Preset {
    /// Every preset with its name.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Sgd, "sgd"),
        (Self::Sam, "sam"),
        (Self::Bisam, "bisam"),
        (Self::BisamTanh, "bisam-tanh"),
        (Self::Asam, "asam"),
        (Self::ABisam, "a-bisam"),
    ];

    /// The settings it stands for.
    pub fn options(self) -> StepOptions {
        let ascent = match self {
            Self::Sgd => None,
            Self::Sam | Self::Asam => Some(Ascent::CrossEntropy),
            Self::Bisam | Self::ABisam => Some(Ascent::NegLog),
            Self::BisamTanh => Some(Ascent::Tanh),
        };
        let mut options = StepOptions { ascent, ..StepOptions::default() };
        if self == Self::BisamTanh {
            options.mu = 10.0;
        }
        if matches!(self, Self::Asam | Self::ABisam) {
            options.adaptive = true;
            options.rho = 0.5;
        }
        options
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(p, _)| p == self).map_or("", |(_, n)| n))
    }
}

impl FromStr for Preset {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(p, _)| *p).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|(_, n)| *n).collect();
            Error::new(format!("unknown optimizer `{name}`")).hint(format!("known are {}", known.join(", ")))
        })
    }
}

impl StepOptions {
    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// Names the first setting that is not.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("mu", self.mu, self.mu > 0.0, "greater than 0"),
            ("alpha", self.alpha, self.alpha > 0.0, "greater than 0"),
            ("rho", self.rho, self.rho >= 0.0, "at least 0"),
            ("eta", self.eta, self.eta >= 0.0, "at least 0"),
            ("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "in [0, 1)"),
            ("weight-decay", self.weight_decay, self.weight_decay >= 0.0, "at least 0"),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "in [0, 1)"),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "in [0, 1)"),
            ("eps", self.eps, self.eps > 0.0, "greater than 0"),
            ("label-smoothing", self.label_smoothing, (0.0..1.0).contains(&self.label_smoothing), "in [0, 1)"),
            ("clip-norm", self.clip_norm.unwrap_or(1.0), self.clip_norm.unwrap_or(1.0) > 0.0, "greater than 0"),
        ];
        for (name, value, ok, want) in checks {
            if !ok || !value.is_finite() {
                crate::bail!("{name} is {value}, but must be {want}");
            }
        }
        if self.nesterov && self.momentum == 0.0 {
            return Err(Error::new("nesterov without momentum has no meaning").hint("set --momentum above 0"));
        }
        Ok(())
    }

    /// Number of optimizer state vectors, each as long as the parameters.
    pub fn states(&self) -> usize {
        match self.base {
            Base::Sgd => usize::from(self.momentum != 0.0),
            Base::Adamw => 2,
        }
    }
}
