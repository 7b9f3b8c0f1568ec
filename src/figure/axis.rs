//! Axes: the range of the values, round marks in it, and their labels.

/// Beyond this a value is drawn as missing: differences of larger ones overflow.
const LARGEST: f64 = 1e300;

/// Marks to aim at.
const MARKS: f64 = 6.0;

/// Whether a value can be drawn.
pub(super) fn drawable(value: f64) -> bool {
    value.abs() <= LARGEST
}

/// The range of an axis and how values lie in it.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Distance of marks on a linear axis.
    step: f64,
}

impl Axis {
    /// A linear axis over `values`, widened by the share `margin` of their range on either side. Between whole numbers there are
    /// no marks.
    pub fn linear(values: impl Iterator<Item = f64>, margin: f64) -> Self {
        let values: Vec<f64> = values.filter(|v| drawable(*v)).collect();
        let (low, high) = range(&values).unwrap_or((0.0, 1.0));
        let (low, high) = (low - margin * (high - low), high + margin * (high - low));
        let mut step = round_step((high - low) / MARKS);
        if !values.is_empty() && values.iter().all(|v| v.fract() == 0.0) {
            step = step.max(1.0);
        }
        Self { low, high, log: false, step }
    }

    /// A logarithmic axis over those of `values` that are above 0.
    pub fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let exponents: Vec<f64> = values.filter(|v| drawable(*v) && *v > 0.0).map(f64::log10).collect();
        let (low, high) = range(&exponents).unwrap_or((0.0, 1.0));
        let margin = 0.04 * (high - low);
        Self { low: low - margin, high: high + margin, log: true, step: 1.0 }
    }

    /// Where a value lies between the ends of the axis, which are 0 and 1; `None` when it cannot be shown.
    pub fn place(&self, value: f64) -> Option<f64> {
        let value = if self.log { value.log10() } else { value };
        drawable(value).then(|| (value - self.low) / (self.high - self.low))
    }

    /// Places of the marks and their labels.
    pub fn marks(&self) -> Vec<(f64, String)> {
        let values = if self.log { self.powers() } else { multiples(self.low, self.high, self.step) };
        let label = |value: f64| if self.log { number(value, value) } else { number(value, self.step) };
        values.into_iter().filter_map(|v| self.place(v).map(|place| (place, label(v)))).collect()
    }

    /// Powers of ten, with their multiples by 2 and 5 where the axis is short.
    fn powers(&self) -> Vec<f64> {
        let length = self.high - self.low;
        let digits: &[f64] = if length < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (length / MARKS).ceil().max(1.0);
        let exponents = multiples(self.low - every, self.high, every);
        let all = exponents.iter().flat_map(|e| digits.iter().map(move |d| d * 10f64.powf(*e)));
        all.filter(|v| (self.low..=self.high).contains(&v.log10())).collect()
    }
}

/// Smallest and largest value, apart from each other; `None` without values.
fn range(values: &[f64]) -> Option<(f64, f64)> {
    let low = values.iter().copied().reduce(f64::min)?;
    let high = values.iter().copied().reduce(f64::max)?;
    let size = low.abs().max(high.abs());
    if high - low > size * 1e-9 {
        return Some((low, high));
    }
    let room = if size > 0.0 { size * 0.1 } else { 0.5 };
    Some((low - room, high + room))
}

/// 1, 2 or 5 times a power of ten, at least `distance`.
fn round_step(distance: f64) -> f64 {
    let power = 10f64.powf(distance.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power).find(|step| *step >= distance).unwrap_or(10.0 * power)
}

/// The multiples of `step` between `low` and `high`.
fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    let first = (low / step).ceil();
    let count = ((high / step).floor() - first).clamp(-1.0, 50.0) as i32;
    (0..=count).map(|i| (first + f64::from(i)) * step).collect()
}

/// `value` with the decimals that tell it from a neighbour at the distance `step`.
pub(super) fn number(value: f64, step: f64) -> String {
    if value.abs() <= step * 1e-6 {
        return "0".to_owned();
    }
    let magnitude = |v: f64| (v.abs().log10() + 1e-9).floor() as i32;
    let (size, fine) = (magnitude(value), magnitude(step));
    let text = if size >= 6 || fine < -5 {
        let decimals = usize::try_from(size.saturating_sub(fine)).unwrap_or(0);
        let text = format!("{value:.decimals$e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        format!("{digits}e{exponent}")
    } else {
        let decimals = usize::try_from(fine.saturating_neg()).unwrap_or(0);
        format!("{value:.decimals$}")
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.marks().into_iter().map(|(_, label)| label).collect()
    }

    fn linear(values: &[f64]) -> Axis {
        Axis::linear(values.iter().copied(), 0.0)
    }

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(labels(&linear(&[0.0, 1.0])), ["0", "1"]);
        assert_eq!(labels(&linear(&[0.0, 0.99])), ["0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(labels(&linear(&[-3.5, 3.0])), ["−2", "0", "2"]);
        assert_eq!(labels(&linear(&[0.0, 3e-7, 5e-7])), ["0", "1e−7", "2e−7", "3e−7", "4e−7", "5e−7"]);
        assert_eq!(labels(&linear(&[0.0, 2_500_000.5])), ["0", "500000", "1e6", "1.5e6", "2e6", "2.5e6"]);
    }

    #[test]
    fn epochs_are_whole() {
        assert_eq!(labels(&linear(&[1.0, 2.0, 3.0])), ["1", "2", "3"]);
    }

    #[test]
    fn a_logarithmic_axis_is_marked_by_powers() {
        let log = |values: &[f64]| labels(&Axis::logarithmic(values.iter().copied()));
        assert_eq!(log(&[0.001, 10.0, -1.0]), ["0.001", "0.01", "0.1", "1", "10"]);
        assert_eq!(log(&[1.0, 10.0]), ["1", "2", "5", "10"]);
        assert!(log(&[1e-200, 1e200]).len() < 10);
        assert!(Axis::logarithmic([1.0].into_iter()).place(0.0).is_none());
    }

    #[test]
    fn any_values_have_an_axis() {
        let odd = [f64::NAN, f64::INFINITY, -1e299, 1e299, 1e308, 0.0, 1.0, 1.0 + 1e-15, 5e-324, 1e-300, 123_456_789.0];
        for a in odd {
            for b in odd {
                for axis in [linear(&[a, b]), Axis::logarithmic([a, b].into_iter())] {
                    let marks = axis.marks();
                    assert!(marks.len() <= 60, "{a} to {b}: {marks:?}");
                    assert!(
                        marks.iter().all(|(place, _)| (-1e-6..=1.0 + 1e-6).contains(place)),
                        "{a} to {b}: {marks:?}"
                    );
                }
            }
        }
    }
}
