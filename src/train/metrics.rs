//! How good predictions are: the confusion matrix and what follows from it, by scikit-learn's definitions.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the best epoch is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Share of correct predictions.
    #[default]
    Accuracy,
    /// F1 of class 1 of two; the mean over the classes of more.
    F1,
    /// Matthews correlation coefficient.
    Matthews,
    /// The loss on the validation set: cross-entropy, or the model's own loss; the lowest is the best.
    Loss,
}

impl Metric {
    /// The name in sentences and tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "F1",
            Self::Matthews => "Matthews",
            Self::Loss => "loss",
        }
    }

    /// The value among what was measured; none where it was not.
    pub fn of(self, loss: Option<f64>, scores: Option<Scores>) -> Option<f64> {
        match self {
            Self::Accuracy => scores.map(|s| s.accuracy),
            Self::F1 => scores.map(|s| s.f1),
            Self::Matthews => scores.map(|s| s.matthews),
            Self::Loss => loss,
        }
    }

    /// Whether it is about classes.
    pub fn needs_classes(self) -> bool {
        self != Self::Loss
    }

    /// Whether `a`, value and loss, is a better result than `b`. Of equal values the one of lower loss is better.
    pub fn is_better(self, a: (f64, f64), b: (f64, f64)) -> bool {
        let (a, b) = if self == Self::Loss { ((-a.0, a.1), (-b.0, b.1)) } else { (a, b) };
        a.0 > b.0 || a.0 == b.0 && a.1 < b.1
    }

    /// How a value is written: a share as percent, anything else as a number.
    pub fn text(self, value: f64) -> String {
        if self == Self::Accuracy { format!("{:.2} %", value * 100.0) } else { format!("{value:.4}") }
    }
}

/// The metrics of one split.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Share of correct predictions.
    pub accuracy: f64,
    /// F1 of class 1 of two; the mean over the classes of more.
    pub f1: f64,
    /// Matthews correlation coefficient, −1 to 1.
    pub matthews: f64,
}

/// Cross-entropy and predicted class of one sample; of equal logits the first wins.
pub fn judge(logits: &[f32], label: usize) -> (f64, usize) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    let mut best = 0;
    for (j, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = j;
        }
    }
    (sum.ln() + f64::from(max - logits[label]), best)
}

/// How often each class was taken for each class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confusion {
    classes: usize,
    /// By true and predicted class; pairs that do not occur are left out, for there may be very many classes.
    counts: BTreeMap<(usize, usize), u64>,
}

/// Counts of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Class {
    /// Samples of the class.
    actual: u64,
    /// Samples taken for it.
    predicted: u64,
    /// Both.
    correct: u64,
}

impl Class {
    /// 2 · correct / (actual + predicted); 0 for a class that never occurs.
    fn f1(self) -> f64 {
        ratio(2 * self.correct, self.actual + self.predicted)
    }
}

/// Metrics of one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassScores {
    /// Share of the samples taken for the class that are of it; 0 when there are none.
    pub precision: f64,
    /// Share of the samples of the class that are taken for it; 0 when there are none.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// Samples of the class.
    pub samples: u64,
}

impl Confusion {
    /// A matrix of zeros over `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: BTreeMap::new() }
    }

    /// Counts one sample of class `actual` that was taken for `predicted`; both are below the number of classes.
    pub fn add(&mut self, actual: usize, predicted: usize) {
        *self.counts.entry((actual, predicted)).or_default() += 1;
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The whole matrix; a row is a true class, a column a predicted one.
    pub fn rows(&self) -> Vec<Vec<u64>> {
        let mut rows = vec![vec![0; self.classes]; self.classes];
        for ((actual, predicted), n) in &self.counts {
            rows[*actual][*predicted] = *n;
        }
        rows
    }

    /// Accuracy, F1 and Matthews correlation.
    pub fn scores(&self) -> Scores {
        Scores { accuracy: self.accuracy(), f1: self.f1(), matthews: self.matthews() }
    }

    /// Share of correct predictions; 0 without samples.
    pub fn accuracy(&self) -> f64 {
        ratio(self.marginals().iter().map(|c| c.correct).sum(), self.samples())
    }

    /// F1 = 2 · correct / (actual + predicted): of class 1 when there are two classes, as GLUE has it; otherwise the mean over
    /// the classes that occur, true or predicted (macro F1).
    pub fn f1(&self) -> f64 {
        let classes = self.marginals();
        if let [_, positive] = classes.as_slice() {
            return positive.f1();
        }
        let occurring: Vec<Class> = classes.into_iter().filter(|c| c.actual + c.predicted > 0).collect();
        occurring.iter().map(|c| c.f1()).sum::<f64>() / occurring.len().max(1) as f64
    }

    /// Matthews correlation coefficient; of more than two classes, its generalisation R_K (Gorodkin 2004):
    /// (c·s − Σ pₖ·tₖ) / √((s² − Σ pₖ²) (s² − Σ tₖ²)) with s samples, c of them correct, tₖ of class k and pₖ taken for it. 0 when
    /// all samples are of one class or taken for one.
    pub fn matthews(&self) -> f64 {
        let classes = self.marginals();
        let sum = |f: fn(&Class) -> u64| classes.iter().map(|c| f(c) as f64).sum::<f64>();
        let dot = |f: fn(&Class) -> (u64, u64)| classes.iter().map(f).map(|(a, b)| a as f64 * b as f64).sum::<f64>();
        let (samples, correct) = (sum(|c| c.actual), sum(|c| c.correct));
        let covariance = correct * samples - dot(|c| (c.actual, c.predicted));
        let actual = samples * samples - dot(|c| (c.actual, c.actual));
        let predicted = samples * samples - dot(|c| (c.predicted, c.predicted));
        if actual == 0.0 || predicted == 0.0 { 0.0 } else { covariance / (actual.sqrt() * predicted.sqrt()) }
    }

    /// Precision, recall, F1 and number of samples of every class.
    pub fn per_class(&self) -> Vec<ClassScores> {
        let scores = |c: Class| ClassScores {
            precision: ratio(c.correct, c.predicted),
            recall: ratio(c.correct, c.actual),
            f1: c.f1(),
            samples: c.actual,
        };
        self.marginals().into_iter().map(scores).collect()
    }

    fn marginals(&self) -> Vec<Class> {
        let mut classes = vec![Class::default(); self.classes];
        for ((actual, predicted), n) in &self.counts {
            classes[*actual].actual += n;
            classes[*predicted].predicted += n;
            if actual == predicted {
                classes[*actual].correct += n;
            }
        }
        classes
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion(rows: &[&[u64]]) -> Confusion {
        let mut matrix = Confusion::new(rows.len());
        for (actual, row) in rows.iter().enumerate() {
            for (predicted, n) in row.iter().enumerate() {
                (0..*n).for_each(|_| matrix.add(actual, predicted));
            }
        }
        matrix
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn two_classes() {
        // tn 50, fp 10, fn 5, tp 35.
        let c = confusion(&[&[50, 10], &[5, 35]]);
        close(c.accuracy(), 0.85);
        close(c.f1(), 70.0 / 85.0);
        // (35·50 − 10·5) / √((35+10)(35+5)(50+10)(50+5)).
        close(c.matthews(), 1700.0 / (45.0f64 * 40.0 * 60.0 * 55.0).sqrt());
        let classes = c.per_class();
        close(classes[1].precision, 35.0 / 45.0);
        close(classes[1].recall, 35.0 / 40.0);
        close(classes[0].precision, 50.0 / 55.0);
        assert_eq!((classes[0].samples, classes[1].samples, c.samples()), (60, 40, 100));
    }

    #[test]
    fn three_classes() {
        let c = confusion(&[&[3, 1, 0], &[1, 4, 1], &[0, 2, 8]]);
        close(c.accuracy(), 15.0 / 20.0);
        // F1 of each class: 2·3/(4+4), 2·4/(6+7), 2·8/(10+9).
        close(c.f1(), (6.0 / 8.0 + 8.0 / 13.0 + 16.0 / 19.0) / 3.0);
        // c·s = 300, Σ p·t = 16 + 42 + 90, Σ t² = 16 + 36 + 100, Σ p² = 16 + 49 + 81.
        close(c.matthews(), 152.0 / (248.0f64 * 254.0).sqrt());
        assert_eq!(c.rows(), [[3, 1, 0], [1, 4, 1], [0, 2, 8]]);
    }

    #[test]
    fn classes_that_never_occur_do_not_count_for_macro_f1() {
        let c = confusion(&[&[2, 0, 0], &[0, 2, 0], &[0, 0, 0]]);
        close(c.f1(), 1.0);
        close(c.matthews(), 1.0);
        assert_eq!(c.per_class()[2].recall, 0.0);
        // Predicted but not there counts as 0.
        close(confusion(&[&[2, 0, 1], &[0, 2, 0], &[0, 0, 0]]).f1(), (4.0 / 5.0 + 1.0) / 3.0);
    }

    #[test]
    fn undefined_metrics_are_zero() {
        for c in [Confusion::new(2), Confusion::new(3), Confusion::new(0), confusion(&[&[4, 0], &[6, 0]])] {
            assert_eq!((c.f1(), c.matthews()), (0.0, 0.0), "{c:?}");
        }
        close(confusion(&[&[0, 4], &[6, 0]]).matthews(), -1.0);
        assert_eq!(confusion(&[&[4, 0], &[6, 0]]).scores().accuracy, 0.4);
    }

    #[test]
    fn of_equal_results_the_lower_loss_wins() {
        for metric in [Metric::Accuracy, Metric::F1, Metric::Matthews] {
            assert!(metric.is_better((0.5, 2.0), (0.4, 1.0)));
            assert!(metric.is_better((0.5, 0.9), (0.5, 1.0)) && !metric.is_better((0.5, 1.0), (0.5, 1.0)));
        }
        assert!(Metric::Loss.is_better((0.5, 0.5), (0.6, 0.6)) && !Metric::Loss.is_better((0.6, 0.6), (0.5, 0.5)));
        assert!(!Metric::Loss.is_better((f64::NAN, f64::NAN), (0.5, 0.5)));
    }
}
