//! Where the samples of a batch lie in a value: found by comparing the value with those of smaller batches.

use super::samples::normal;
use crate::ir::{DType, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The place of the batch among the dimensions of a value.
///
/// Dimension `axis` of the value of `n` samples is `outer` · `n` · what is left. With `added` the value has this dimension for the batch
/// alone, which the file's own value lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub axis: usize,
    pub outer: usize,
    pub added: bool,
}

/// The batches of the file's own size that a set of samples is run in, and the samples of a larger or smaller one.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    /// Samples of each batch of the file's own size.
    pub own: Vec<Vec<usize>>,
    /// Samples of the other batch, in its order.
    pub all: Vec<usize>,
}

impl Groups {
    /// Groups of `own` samples that cover `count` samples, and these in the reverse order.
    pub fn new(own: usize, count: usize) -> Self {
        let last = count.saturating_sub(own);
        let group = |start: usize| (0..own).map(|i| (start.min(last) + i) % count).collect();
        Self { own: (0..count).step_by(own.max(1)).map(group).collect(), all: (0..count).rev().collect() }
    }

    /// Samples of a batch of the file's own size.
    pub fn size(&self) -> usize {
        self.own.first().map_or(1, Vec::len)
    }

    /// Group and place of a sample.
    fn place(&self, sample: usize) -> (usize, usize) {
        let find = |(g, group): (usize, &Vec<usize>)| group.iter().position(|s| *s == sample).map(|p| (g, p));
        self.own.iter().enumerate().find_map(find).unwrap_or((0, 0))
    }
}

impl Layout {
    /// The batch is the first dimension.
    pub const FIRST: Self = Self { axis: 0, outer: 1, added: false };

    /// How unusual it is: 0 where the batch has a dimension of its own, 1 where it is the outer part of the first one.
    pub fn rank(self, own: &[usize], size: usize) -> usize {
        match (self.added, own.get(self.axis)) {
            (true, _) => 3,
            (_, Some(d)) if *d == size => 0,
            _ if self.axis == 0 && self.outer == 1 => 1,
            _ => 2,
        }
    }

    /// Elements before, and after, the samples of a value of `size` samples that has shape `shape`.
    fn split(self, shape: &[usize], size: usize) -> (usize, usize) {
        let before = shape.iter().take(self.axis).product::<usize>() * self.outer;
        let all: usize = shape.iter().product();
        (before, all / (before * size).max(1))
    }

    /// Shape of the value of `count` samples, where that of `size` samples has shape `own`.
    fn shape(self, own: &[usize], size: usize, count: usize) -> Vec<usize> {
        let mut shape = own.to_vec();
        if self.added {
            shape.insert(self.axis.min(own.len()), count);
        } else if let Some(d) = shape.get_mut(self.axis) {
            *d = *d / size * count;
        }
        shape
    }

    /// The value of all samples, put together from those of the groups.
    pub fn stack(self, values: &[Tensor], groups: &Groups) -> Option<Tensor> {
        let (size, count) = (groups.size(), groups.all.len());
        let own = values.first()?.shape();
        let shape = self.shape(own, size, count);
        let (before, after) = self.split(&shape, count);
        let dtype = values.first()?.dtype();
        let block = after * dtype.width();
        let mut bytes = Vec::with_capacity(before * count * block);
        for p in 0..before {
            for sample in &groups.all {
                let (group, place) = groups.place(*sample);
                let start = (p * size + place) * block;
                bytes.extend_from_slice(values.get(group)?.bytes().get(start..start + block)?);
            }
        }
        Tensor::from_bytes(dtype, &shape, bytes).ok()
    }

    /// The values of the groups with every element multiplied by a number of its own, near 1, the same wherever a sample is.
    pub fn vary(self, values: &[Tensor], groups: &Groups) -> Vec<Tensor> {
        let size = groups.size();
        let vary = |(value, group): (&Tensor, &Vec<usize>)| {
            let (before, after) = self.split(&self.shape(value.shape(), size, size), size);
            let mut elements = value.to_f64();
            for p in 0..before {
                for (place, sample) in group.iter().enumerate() {
                    // Of samples that are in a group twice, each copy is the same.
                    let seed = (p as u64) << 32 | *sample as u64;
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    let start = (p * size + place) * after;
                    elements[start..start + after].iter_mut().for_each(|e| *e *= 1.0 + 0.1 * normal(&mut rng));
                }
            }
            Tensor::from_f64(value.dtype(), value.shape(), &elements)
        };
        values.iter().zip(&groups.own).map(vary).collect()
    }

    /// The layouts that the shapes allow.
    fn possible(own: &[usize], all: &[usize], size: usize, count: usize) -> Vec<Self> {
        let mut found = Vec::new();
        if own.len() == all.len() {
            let mut differing = (0..own.len()).filter(|i| own[*i] != all[*i]);
            let (Some(axis), None) = (differing.next(), differing.next()) else { return found };
            if !own[axis].is_multiple_of(size) || own[axis] / size * count != all[axis] {
                return found;
            }
            let rest = own[axis] / size;
            found.extend((1..=rest).filter(|o| rest.is_multiple_of(*o)).map(|outer| Self {
                axis,
                outer,
                added: false,
            }));
        } else if size == 1 && all.len() == own.len() + 1 {
            let added = |axis: &usize| {
                all[*axis] == count && all.iter().enumerate().filter(|(i, _)| i != axis).map(|(_, d)| d).eq(own)
            };
            found.extend((0..all.len()).filter(added).map(|axis| Self { axis, outer: 1, added: true }));
        }
        found
    }

    /// The layout of `all`, the value of all samples, whose samples are those of `values`, the groups'; within `tolerance` of the
    /// largest element.
    pub fn find(values: &[Tensor], all: &Tensor, groups: &Groups, tolerance: f64) -> Option<Self> {
        let first = values.first()?;
        let possible = Self::possible(first.shape(), all.shape(), groups.size(), groups.all.len());
        possible.into_iter().find(|l| l.stack(values, groups).is_some_and(|want| close(&want, all, tolerance)))
    }
}

/// Whether two tensors agree, floats within `tolerance` of the largest element.
pub(super) fn close(want: &Tensor, got: &Tensor, tolerance: f64) -> bool {
    if want.dtype() != got.dtype() || want.shape() != got.shape() {
        return false;
    }
    if !want.dtype().is_float() || want.dtype() == DType::Str {
        return want.bytes() == got.bytes();
    }
    let (want, got) = (want.to_f64(), got.to_f64());
    let largest = want.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let equal = |(a, b): (&f64, &f64)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * largest;
    want.iter().zip(&got).all(equal)
}

/// Whether an output of two samples is another than the one of these in the reverse order and a third.
///
/// Nothing is known where it does not differ between samples, or has no dimension for them.
pub(super) fn depends_on_others(few: &Tensor, more: &Tensor) -> bool {
    let possible = Layout::possible(few.shape(), more.shape(), 2, 3);
    if possible.is_empty() || !few.dtype().is_float() {
        return false;
    }
    let (a, b) = (few.to_f64(), more.to_f64());
    if a.iter().chain(&b).any(|v| !v.is_finite()) {
        return false;
    }
    let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    possible.into_iter().all(|layout| {
        let (before, after) = layout.split(few.shape(), 2);
        let (mut apart, mut error) = (0.0f64, 0.0f64);
        for p in 0..before {
            for k in 0..after {
                let [first, second] = [0, 1].map(|s| a[(p * 2 + s) * after + k]);
                apart = apart.max((first - second).abs());
                error = error.max((first - b[(p * 3 + 1) * after + k]).abs());
                error = error.max((second - b[p * 3 * after + k]).abs());
            }
        }
        error > (0.05 * apart).max(1e-4 * largest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], from: f32) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::new(shape, &(0..n).map(|i| from + i as f32).collect::<Vec<_>>()).expect("fits")
    }

    #[test]
    fn samples_are_found_wherever_they_lie() {
        let groups = Groups::new(1, 3);
        let values: Vec<Tensor> = (0..3).map(|s| tensor(&[1, 4, 5], 100.0 * s as f32)).collect();
        for (axis, outer) in [(0, 1), (1, 1), (1, 2), (1, 4), (2, 5)] {
            let layout = Layout { axis, outer, added: false };
            let all = layout.stack(&values, &groups).expect("stacks");
            assert_eq!(Layout::find(&values, &all, &groups, 1e-6), Some(layout));
        }
        let layout = Layout { axis: 2, outer: 1, added: true };
        let all = layout.stack(&values, &groups).expect("stacks");
        assert_eq!(all.shape(), [1, 4, 3, 5]);
        assert_eq!(Layout::find(&values, &all, &groups, 1e-6), Some(layout));
    }

    #[test]
    fn groups_of_several_samples_cover_all() {
        let groups = Groups::new(2, 3);
        assert_eq!(groups.own, [[0, 1], [1, 2]]);
        let values = [tensor(&[2, 2], 0.0), tensor(&[2, 2], 2.0)];
        let all = Layout::FIRST.stack(&values, &groups).expect("stacks");
        assert_eq!(all.to_f32(), [4.0, 5.0, 2.0, 3.0, 0.0, 1.0]);
        assert_eq!(Groups::new(8, 3).own, [[0, 1, 2, 0, 1, 2, 0, 1]]);
    }

    #[test]
    fn mixed_samples_have_no_layout() {
        let groups = Groups::new(1, 3);
        let values: Vec<Tensor> = (0..3).map(|s| tensor(&[1, 4], 100.0 * s as f32)).collect();
        let mut swapped = Layout::FIRST.stack(&values, &groups).expect("stacks").to_f32();
        swapped[0] += 1.0;
        let all = Tensor::new(&[3, 4], &swapped).expect("fits");
        assert_eq!(Layout::find(&values, &all, &groups, 1e-6), None);
    }
}
