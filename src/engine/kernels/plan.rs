//! What the positions of a convolution read, worked out once for all planes.
//!
//! Kernels turn planes around, so that channels become lanes: a place in a plane is then a vector of channels, and what a position reads
//! for a kernel element is the place of a vector, or one of zeros. Padding, strides and dilations exist only here.

use super::conv::Geometry;
use super::simd::{LANES, Lanes};
use super::turn::{fill_zero, turn};
use std::ops::Range;

/// What coordinates along one axis read.
struct Axis {
    /// The kernel elements that the coordinates of each class may read.
    classes: Vec<Vec<usize>>,
    /// The class of every coordinate, and where it reads each of the class's kernel elements, if that is not padding.
    coordinates: Vec<(usize, Vec<Option<usize>>)>,
    /// Length of what is read.
    source: usize,
}

impl Axis {
    /// Outputs all read the same kernel elements.
    fn forward(g: &Geometry, axis: usize) -> Self {
        let read = |i: usize, t: usize| {
            let at = (i * g.strides[axis] + t * g.dilations[axis]).checked_sub(g.begin[axis])?;
            (at < g.input[axis]).then_some(at)
        };
        Self {
            classes: vec![(0..g.kernel[axis]).collect()],
            coordinates: (0..g.output[axis]).map(|i| (0, (0..g.kernel[axis]).map(|t| read(i, t)).collect())).collect(),
            source: g.input[axis],
        }
    }

    /// Inputs of one residue modulo the stride are read by the same kernel elements.
    fn gradient(g: &Geometry, axis: usize) -> Self {
        let (stride, dilation) = (g.strides[axis], g.dilations[axis]);
        let taps = |class: usize| (0..g.kernel[axis]).filter(|t| t * dilation % stride == class).collect();
        let classes: Vec<Vec<usize>> = (0..stride).map(taps).collect();
        let coordinate = |i: usize| {
            let (at, class) = (i + g.begin[axis], (i + g.begin[axis]) % stride);
            let read = |t: &usize| at.checked_sub(t * dilation).map(|at| at / stride).filter(|at| *at < g.output[axis]);
            (class, classes[class].iter().map(read).collect())
        };
        let coordinates = (0..g.input[axis]).map(coordinate).collect();
        Self { classes, coordinates, source: g.output[axis] }
    }
}

/// Positions of a block that read the same kernel elements.
pub struct Class {
    /// The kernel elements.
    pub taps: Vec<usize>,
    /// The positions, counted over the samples of a block; those of the first samples come first.
    pub positions: Vec<usize>,
    /// For every kernel element, what the positions read: the place of a vector, where 0 is zeros.
    places: Vec<usize>,
}

impl Class {
    /// What the positions from `first` on read, and so on for every kernel element.
    pub fn places(&self, first: usize) -> &[usize] {
        self.places.get(first..).unwrap_or(&[])
    }
}

/// Some positions of a plane, in order, and the part of a plane that they read.
pub struct Block {
    pub positions: Range<usize>,
    pub source: Range<usize>,
    pub classes: Vec<Class>,
}

/// The positions of a plane in blocks.
pub struct Plan {
    /// Kernel elements.
    pub taps: usize,
    /// Numbers of a plane that is read, and of one that is written.
    pub source: usize,
    pub target: usize,
    /// Samples of a block; several have blocks of whole planes.
    pub samples: usize,
    pub blocks: Vec<Block>,
}

impl Plan {
    /// Y's positions, which read X, in blocks of at most `most`.
    pub fn forward(g: &Geometry, most: usize) -> Self {
        Self::new(g, [0, 1].map(|axis| Axis::forward(g, axis)), most)
    }

    /// X's positions, which read Ȳ, in blocks of at most `most`.
    pub fn gradient(g: &Geometry, most: usize) -> Self {
        Self::new(g, [0, 1].map(|axis| Axis::gradient(g, axis)), most)
    }

    fn new(g: &Geometry, axes: [Axis; 2], most: usize) -> Self {
        let [source, target] = [axes.each_ref().map(|a| a.source), axes.each_ref().map(|a| a.coordinates.len())];
        let [taps, source, target] = [g.kernel, source, target].map(|p| p[0] * p[1]);
        let samples = (most / target.max(1)).clamp(1, g.n.max(1));
        let count = target.div_ceil(most).max(1);
        let range = |i: usize| target * i / count..target * (i + 1) / count;
        let blocks = (0..count).map(|i| block(&axes, g.kernel[1], samples, range(i))).collect();
        Self { taps, source, target, samples, blocks }
    }

    /// The greatest number of places that a block reads, with the one of zeros, and of positions.
    pub fn most(&self) -> (usize, usize) {
        let most = |len: fn(&Block) -> usize| self.blocks.iter().map(len).max().unwrap_or(0) * self.samples;
        (1 + most(|b| b.source.len()), most(|b| b.positions.len()))
    }
}

fn block([rows, columns]: &[Axis; 2], wide: usize, samples: usize, positions: Range<usize>) -> Block {
    let width = columns.coordinates.len().max(1);
    let read = rows.coordinates.iter().enumerate().take(positions.end.div_ceil(width)).skip(positions.start / width);
    let (low, high) = read
        .flat_map(|(_, (_, at))| at.iter().flatten())
        .fold((usize::MAX, 0), |(low, high), at| (low.min(*at), high.max(at + 1)));
    let source = if low < high { low * columns.source..high * columns.source } else { 0..0 };
    // Every position with its row and column.
    let all: Vec<[usize; 3]> = positions.clone().map(|p| [p - positions.start, p / width, p % width]).collect();
    let mut classes: Vec<Class> = Vec::new();
    for (row_class, row_taps) in rows.classes.iter().enumerate() {
        for (column_class, column_taps) in columns.classes.iter().enumerate() {
            let member = |[_, i, j]: &&[usize; 3]| {
                rows.coordinates[*i].0 == row_class && columns.coordinates[*j].0 == column_class
            };
            let members: Vec<&[usize; 3]> = all.iter().filter(member).collect();
            let mut class = Class { taps: Vec::new(), positions: Vec::new(), places: Vec::new() };
            for sample in 0..samples {
                class.positions.extend(members.iter().map(|[p, ..]| sample * positions.len() + p));
            }
            class.places.reserve(row_taps.len() * column_taps.len() * class.positions.len());
            for (a, t) in row_taps.iter().enumerate() {
                for (b, u) in column_taps.iter().enumerate() {
                    class.taps.push(t * wide + u);
                    let of_first = class.places.len();
                    class.places.extend(members.iter().map(|[_, i, j]| {
                        match (rows.coordinates[*i].1[a], columns.coordinates[*j].1[b]) {
                            (Some(y), Some(x)) => 1 + y * columns.source + x - source.start,
                            _ => 0,
                        }
                    }));
                    for sample in 1..samples {
                        let moved = |place: usize| if place == 0 { 0 } else { place + sample * source.len() };
                        for i in of_first..of_first + members.len() {
                            class.places.push(moved(class.places[i]));
                        }
                    }
                }
            }
            if !class.positions.is_empty() {
                classes.push(class);
            }
        }
    }
    Block { positions, source, classes }
}

/// Turns what a block reads around: channel k at a place goes to `to[place·pitch + k]`, up to whole vectors.
///
/// `from` is the plane of the first channel in the first of `samples` samples; planes of one channel and the next, and of one sample
/// and the next, are `apart`.
#[inline(always)]
pub unsafe fn turn_source<L: Lanes>(
    block: &Block,
    from: *const f32,
    apart: [usize; 2],
    channels: usize,
    samples: usize,
    to: *mut f32,
    pitch: usize,
) {
    let len = block.source.len();
    // SAFETY: planes lie within the tensor, and `to` has room for the places.
    unsafe {
        fill_zero::<L>(to, channels.next_multiple_of(LANES));
        for sample in 0..samples {
            for channel in (0..channels).step_by(LANES) {
                let from = from.add(sample * apart[1] + channel * apart[0] + block.source.start);
                let to = to.add((1 + sample * len) * pitch + channel);
                turn::<L>(from, apart[0], LANES.min(channels - channel), len, to, pitch);
            }
        }
    }
}
