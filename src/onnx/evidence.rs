//! What is known of one constant besides its place: its values, its name, and what the exporter recorded.

use super::record::Kind;
use crate::ir::Tensor;

/// A constant to decide about.
pub(super) struct Evidence<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) name: &'a str,
    /// Whether a person chose the name.
    pub(super) named: bool,
    /// What the exporter recorded.
    pub(super) kind: Option<Kind>,
    /// Whether nothing says that the tensor is several things at once.
    pub(super) alone: bool,
    /// Whether 1 − t is read beside t: the shares of a mixture are learned.
    pub(super) mixes: bool,
}

impl Evidence<'_> {
    fn has_word(&self, words: &[&str]) -> bool {
        let lower = self.name.to_lowercase();
        let parts = lower.split(|c: char| !c.is_ascii_alphabetic()).filter(|p| !p.is_empty());
        parts.into_iter().any(|p| words.contains(&p))
    }

    /// The last part of the name is that of a parameter in every framework.
    pub(super) fn is_weight_name(&self) -> bool {
        let last = self.name.trim_end_matches(":0").rsplit(['.', '/']).next().unwrap_or_default().to_lowercase();
        let words = ["weight", "bias", "gamma", "beta", "kernel", "alpha", "w", "b", "readvariableop"];
        words.contains(&last.as_str()) || ["weight", "bias", "kernel"].iter().any(|w| last.ends_with(w))
    }

    pub(super) fn is_number_name(&self) -> bool {
        self.has_word(&[
            "one", "ones", "zero", "zeros", "two", "three", "six", "half", "eps", "epsilon", "pi", "sqrt", "inf",
            "min", "max", "const", "constant", "cst", "exponent", "power", "minus", "neg", "inv", "ratio", "keep",
            "prob", "num", "lo", "hi", "lower", "upper", "limit", "dim", "number", "literal",
        ])
    }

    pub(super) fn is_scaler_name(&self) -> bool {
        self.has_word(&[
            "mean",
            "std",
            "var",
            "scale",
            "offset",
            "shift",
            "norm",
            "normalize",
            "scaler",
            "min",
            "max",
            "mul",
            "sub",
            "div",
            "add",
        ]) && !self.is_weight_name()
    }

    pub(super) fn is_table_name(&self) -> bool {
        self.has_word(&[
            "mean",
            "std",
            "sin",
            "cos",
            "sinusoid",
            "sinusoidal",
            "freq",
            "freqs",
            "mask",
            "window",
            "pe",
            "grid",
            "anchor",
            "anchors",
            "filt",
            "blur",
            "fb",
            "mel",
            "stft",
            "dft",
            "rope",
            "rotary",
            "slopes",
        ]) && !self.is_weight_name()
    }
}
