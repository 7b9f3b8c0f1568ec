//! The axes of a step. Every axis is independent of the others; presets name combinations.

use super::precision::Precision;
use crate::adapt::KEYS;
use crate::error::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
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
    /// Bayesian SAM, Möllenhoff & Khan 2023, algorithm 1: Adam-like, its precisions also scale noise and perturbation.
    Bsam,
}

/// What the `grad` stage is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kernels {
    /// Operators of ai.onnx only: runs on any ONNX Runtime, CPU or CUDA.
    Plain,
    /// With this crate's own kernels where there is one.
    #[default]
    Fused,
}

/// What tells the seed of noise from that of other random choices.
const NOISE: u64 = u64::from_be_bytes(*b"noise\0\0\0");

/// The same for random masks and noise of the model.
const MASKS: u64 = u64::from_be_bytes(*b"masks\0\0\0");

/// Choices of parameters that SWP draws from.
pub const SUBSETS: usize = 4;

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
    /// The adaptive metric on every parameter, biases and gains too.
    pub adaptive_all: bool,
    /// Samples of a micro-batch: each has a perturbation of its own and gradients are averaged (mSAM, Behdin et al. 2023); without
    /// an ascent, plain gradient accumulation. The whole batch by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Both passes see the samples of highest loss only, this many: K-SAM, Ni et al. 2022.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Share γ of the samples that the descent sees, those whose loss the perturbation raises most: SDS of ESAM, Du et al. 2022.
    pub sds_gamma: f32,
    /// Share β of the parameter tensors that a perturbation moves, with ρ/β: SWP of ESAM, Du et al. 2022. The others are not
    /// differentiated in the ascent pass; one of [`SUBSETS`] random choices, drawn once, is taken in every step.
    pub swp_beta: f32,
    /// Seed of the random choices of a step.
    #[serde(skip)]
    pub seed: u64,
    /// Weight α of what is taken away from the descent gradient to lower the loss itself: GSAM, Zhuang et al. 2022.
    pub gsam_alpha: f32,
    /// Steps from one perturbation to the next; the steps between them reuse its direction: LookSAM, Liu et al. 2022.
    pub period: usize,
    /// Weight α of the reused direction.
    pub look_alpha: f32,
    /// The optimizer below.
    pub base: Base,
    /// Momentum of SGD.
    pub momentum: f32,
    /// Nesterov momentum for SGD.
    pub nesterov: bool,
    /// Standard deviation of the noise that the ascent starts from, relative to the root mean square of each filter (slice along
    /// the first axis of a weight, other parameters as a whole): R-SAM, Liu et al. 2022. 0 starts at the weights.
    pub start_sigma: f32,
    /// Weight decay, on every parameter. For bSAM the prior's precision divided by the number of training samples.
    pub weight_decay: f32,
    /// First moment decay of AdamW.
    pub beta1: f32,
    /// Second moment decay of AdamW.
    pub beta2: f32,
    /// Denominator offset of AdamW.
    pub eps: f32,
    /// Damping of bSAM's precisions.
    pub damping: f32,
    /// bSAM's precisions before the first step.
    pub initial_precision: f32,
    /// Number of training samples, by which bSAM scales its noise; a run sets it.
    #[serde(skip)]
    pub data_size: usize,
    /// Probability mass spread evenly over the K − 1 other classes in the descent loss.
    pub label_smoothing: f32,
    /// Largest global L2 norm of the descent gradient.
    pub clip_norm: Option<f32>,
    /// What the `grad` stage is made of.
    pub kernels: Kernels,
    /// What factors of products are rounded to.
    pub precision: Precision,
    /// Whether the outputs of normalizations and activations are computed again in the backward pass, not kept; fused kernels only.
    pub recompute: bool,
}

/// Training samples of CIFAR.
const CIFAR: usize = 50_000;

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
            adaptive_all: false,
            micro_batch: None,
            top_k: None,
            sds_gamma: 1.0,
            swp_beta: 1.0,
            seed: 0,
            gsam_alpha: 0.0,
            period: 1,
            look_alpha: 0.7,
            start_sigma: 0.0,
            base: Base::Sgd,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 5e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            damping: 0.1,
            initial_precision: 1.0,
            data_size: CIFAR,
            label_smoothing: 0.1,
            clip_norm: None,
            kernels: Kernels::default(),
            precision: Precision::default(),
            recompute: false,
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
    /// AdamW without a perturbation.
    Adamw,
    /// SAM with a perturbation for each micro-batch.
    Msam,
    /// BiSAM (−log) with a perturbation for each micro-batch.
    MBisam,
    /// SAM that also lowers the surrogate gap.
    Gsam,
    /// SAM on the samples of highest loss.
    Ksam,
    /// SAM that perturbs every few steps only.
    Looksam,
    /// SAM on some of the weights, whose descent sees some of the samples.
    Esam,
    /// BiSAM (−log) on some of the weights, whose descent sees some of the samples.
    EBisam,
    /// SAM whose ascent starts from a random place near the weights.
    Rsam,
    /// Bayesian SAM.
    Bsam,
}

impl Preset {
    /// Every preset with its name.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Sgd, "sgd"),
        (Self::Sam, "sam"),
        (Self::Bisam, "bisam"),
        (Self::BisamTanh, "bisam-tanh"),
        (Self::Asam, "asam"),
        (Self::ABisam, "a-bisam"),
        (Self::Adamw, "adamw"),
        (Self::Msam, "msam"),
        (Self::MBisam, "m-bisam"),
        (Self::Gsam, "gsam"),
        (Self::Ksam, "ksam"),
        (Self::Looksam, "looksam"),
        (Self::Esam, "esam"),
        (Self::EBisam, "e-bisam"),
        (Self::Rsam, "rsam"),
        (Self::Bsam, "bsam"),
    ];

    /// The settings it stands for.
    pub fn options(self) -> StepOptions {
        let ascent = match self {
            Self::Sgd | Self::Adamw => None,
            Self::Sam
            | Self::Asam
            | Self::Msam
            | Self::Gsam
            | Self::Ksam
            | Self::Looksam
            | Self::Esam
            | Self::Rsam
            | Self::Bsam => Some(Ascent::CrossEntropy),
            Self::Bisam | Self::ABisam | Self::MBisam | Self::EBisam => Some(Ascent::NegLog),
            Self::BisamTanh => Some(Ascent::Tanh),
        };
        let mut options = StepOptions { ascent, ..StepOptions::default() };
        match self {
            Self::BisamTanh => options.mu = 10.0,
            Self::Asam | Self::ABisam => (options.adaptive, options.rho) = (true, 0.5),
            Self::Adamw => (options.base, options.weight_decay) = (Base::Adamw, 0.01),
            Self::Msam | Self::MBisam => options.micro_batch = Some(32),
            Self::Gsam => options.gsam_alpha = 0.4,
            Self::Ksam => options.top_k = Some(64),
            Self::Looksam => options.period = 5,
            // As the script of ESAM's authors runs it.
            Self::Esam | Self::EBisam => (options.swp_beta, options.sds_gamma) = (0.6, 0.5),
            Self::Rsam => options.start_sigma = 0.05,
            // As the script of bSAM's authors, whose prior precision is 40; it goes with a learning rate of 0.5.
            Self::Bsam => (options.base, options.rho, options.weight_decay) = (Base::Bsam, 0.01, 8e-4),
            Self::Sgd | Self::Sam | Self::Bisam => {}
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
        let shares = [
            ("sds-gamma", self.sds_gamma, self.sds_gamma > 0.0 && self.sds_gamma <= 1.0, "in (0, 1]"),
            ("swp-beta", self.swp_beta, self.swp_beta > 0.0 && self.swp_beta <= 1.0, "in (0, 1]"),
            ("gsam-alpha", self.gsam_alpha, self.gsam_alpha >= 0.0, "at least 0"),
            ("start-sigma", self.start_sigma, self.start_sigma >= 0.0, "at least 0"),
            ("damping", self.damping, self.damping > 0.0, "greater than 0"),
            ("initial-precision", self.initial_precision, self.initial_precision > 0.0, "greater than 0"),
            ("look-alpha", self.look_alpha, self.look_alpha >= 0.0, "at least 0"),
        ];
        if let Some((name, value, _, want)) = shares.iter().find(|(_, v, ok, _)| !ok || !v.is_finite()) {
            crate::bail!("{name} is {value}, but must be {want}");
        }
        let counts = [("micro-batch", self.micro_batch), ("top-k", self.top_k), ("period", Some(self.period))];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == Some(0)) {
            crate::bail!("{name} is 0, but must be at least 1");
        }
        let together = |what: &str, why: &str| Err(Error::new(format!("{what} cannot be combined: {why}")));
        let (selects, surrogate, looks) = (self.selects(), self.gsam_alpha > 0.0, self.period > 1);
        let partial = self.swp_beta < 1.0;
        let bayesian = self.base == Base::Bsam;
        let random = self.starts_at_random();
        if self.ascent.is_none() && (self.sds_gamma < 1.0 || partial || surrogate || looks || self.adaptive || random) {
            return Err(Error::new(
                "sds-gamma, swp-beta, gsam-alpha, period, start-sigma, adaptive and the base bsam need a perturbation",
            )
            .hint("choose one with --ascent, or a preset such as sam or bisam"));
        }
        if bayesian && (self.adaptive || partial || surrogate || looks || self.start_sigma > 0.0) {
            return together(
                "the base bsam with adaptive, swp-beta, gsam-alpha, period or start-sigma",
                "its precisions decide the noise and the perturbation",
            );
        }
        if random && self.sds_gamma < 1.0 {
            return together(
                "sds-gamma with start-sigma or the base bsam",
                "it compares the loss with that at the weights, where the ascent does not start",
            );
        }
        if self.top_k.is_some() && self.sds_gamma < 1.0 {
            return together("top-k and sds-gamma", "each chooses the samples of the descent");
        }
        if surrogate && looks {
            return together("gsam-alpha and period", "between perturbations there is no surrogate gap to lower");
        }
        if (surrogate || looks) && partial {
            return together(
                "gsam-alpha or period with swp-beta",
                "they compare the gradients of both passes, and the ascent's lacks some parameters",
            );
        }
        if (surrogate || looks) && (self.micro_batch.is_some() || selects) {
            return together(
                "gsam-alpha or period with micro-batch, top-k or sds-gamma",
                "they compare the gradients of both passes, which must be of the same samples",
            );
        }
        if self.recompute && self.kernels == Kernels::Plain {
            return Err(Error::new("recompute needs the fused kernels")
                .hint("leave it out, or --kernels plain; --micro-batch saves memory, too"));
        }
        if self.nesterov && self.momentum == 0.0 {
            return Err(Error::new("nesterov without momentum has no meaning").hint("set --momentum above 0"));
        }
        Ok(())
    }

    /// Names of all settings, as recipes have them.
    pub fn keys() -> Vec<String> {
        let all = Self {
            ascent: Some(Ascent::Tanh),
            micro_batch: Some(1),
            top_k: Some(1),
            clip_norm: Some(1.0),
            ..Self::default()
        };
        match serde_json::to_value(all) {
            Ok(serde_json::Value::Object(settings)) => settings.into_iter().map(|(name, _)| name).collect(),
            _ => Vec::new(),
        }
    }

    /// Takes another ascent or base optimizer, with the settings that are usual for it.
    pub fn choose(&mut self, ascent: Option<Ascent>, base: Option<Base>) {
        self.ascent = ascent.or(self.ascent);
        if ascent == Some(Ascent::Tanh) {
            self.mu = 10.0;
        }
        self.base = base.unwrap_or(self.base);
        if base == Some(Base::Adamw) {
            self.weight_decay = 0.01;
        }
    }

    /// Whether samples are scored, and some left out.
    pub fn selects(&self) -> bool {
        self.top_k.is_some() || self.sds_gamma < 1.0
    }

    /// Whether the gradient of the ascent is needed after that of the descent is known.
    pub fn compares_gradients(&self) -> bool {
        self.gsam_alpha > 0.0 || self.period > 1 || self.base == Base::Bsam
    }

    /// Whether the ascent starts from a random place near the weights.
    pub fn starts_at_random(&self) -> bool {
        self.start_sigma > 0.0 || self.base == Base::Bsam
    }

    /// Standard normal noise for `n` parameter elements, for the start of micro-batch `part` of step `step`.
    pub fn noise(&self, step: u64, part: usize, n: usize) -> Vec<f32> {
        let mut key = [0; 32];
        for (word, value) in key.chunks_exact_mut(8).zip([self.seed, NOISE, step, part as u64]) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        StandardNormal.sample_iter(ChaCha8Rng::from_seed(key)).take(n).collect()
    }

    /// The key of the random values of pass `pass` of step `step`: whole numbers below 2²⁴.
    pub fn key(&self, step: u64, pass: u64) -> [f32; KEYS] {
        let mut key = [0; 32];
        for (word, value) in key.chunks_exact_mut(8).zip([self.seed, MASKS, step, pass]) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        std::array::from_fn(|_| rng.random_range(0..1u32 << 24) as f32)
    }

    /// The choices of parameters, out of `n`, that a run with SWP draws from: each parameter is in with probability β, and
    /// some parameter always.
    pub fn subsets(&self, n: usize) -> Vec<Vec<bool>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut draw = || loop {
            let chosen: Vec<bool> = (0..n).map(|_| rng.random_bool(f64::from(self.swp_beta))).collect();
            if chosen.contains(&true) || n == 0 {
                break chosen;
            }
        };
        (0..SUBSETS).map(|_| draw()).collect()
    }

    /// Which of the choices micro-batch `part` of step `step` takes.
    pub fn subset(&self, step: u64, part: usize) -> usize {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(1 + step);
        (0..=part).map(|_| rng.random_range(0..SUBSETS)).last().unwrap_or(0)
    }

    /// Samples of the ascent and of the descent, of a micro-batch of `n`.
    pub fn samples(&self, n: usize) -> (usize, usize) {
        let ascent = self.top_k.map_or(n, |k| k.min(n));
        let share = (f64::from(self.sds_gamma) * ascent as f64 + 1e-6) as usize;
        (ascent, share.clamp(1, ascent.max(1)))
    }

    /// The batch sizes that a step on `n` samples runs.
    pub fn batch_sizes(&self, n: usize) -> Vec<usize> {
        let micro = self.micro_batch.unwrap_or(n).min(n).max(1);
        let mut sizes = Vec::new();
        for chunk in [micro, n % micro].into_iter().filter(|c| *c > 0) {
            let (ascent, descent) = self.samples(chunk);
            sizes.extend([chunk, ascent, descent]);
        }
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Whether ASAM leaves biases and normalization alone, so that `perturb` is told which elements are a weight's.
    pub(crate) fn spares_biases(&self) -> bool {
        self.adaptive && !self.adaptive_all
    }

    /// Number of optimizer state vectors, each as long as the parameters; the last is LookSAM's direction.
    pub fn states(&self) -> usize {
        self.initial_states().len()
    }

    /// What each optimizer state is filled with before the first step.
    pub fn initial_states(&self) -> Vec<f32> {
        let mut states = match self.base {
            Base::Sgd if self.momentum == 0.0 => Vec::new(),
            Base::Sgd => vec![0.0],
            Base::Adamw => vec![0.0; 2],
            Base::Bsam => vec![0.0, self.initial_precision],
        };
        if self.period > 1 {
            states.push(0.0);
        }
        states
    }
}
