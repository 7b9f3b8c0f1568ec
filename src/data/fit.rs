//! How images come to the shape that a model's input has.

use super::{Dataset, Images, Samples};
use crate::error::{Error, Result};
use crate::ir::{Declared, Dim, Tensor, Type};
use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma, Rgb};
use std::collections::BTreeMap;

/// Images are not scaled by more than this: it would rather be the wrong data set.
const MAX_SCALE: usize = 8;

/// An input of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its type; axis 0 is the batch.
    pub ty: Type,
}

/// Order of an image's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Channels, height, width; also what flattened inputs get.
    Chw,
    /// Height, width, channels.
    Hwc,
}

/// How images of a data set become a model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Order of the axes after the batch.
    pub layout: Layout,
    /// Channels of the model's input: 1 or 3.
    pub channels: usize,
    /// Height of the model's input in pixels.
    pub height: usize,
    /// Width of the model's input in pixels.
    pub width: usize,
    /// What is done to the images that the user should know, a sentence each.
    pub notes: Vec<String>,
}

impl Fit {
    /// Finds out how `images` fit an input [N, C, H, W], [N, H, W, C], [N, H, W] or [N, C·H·W].
    ///
    /// Where both orders of the axes are possible, the one with the images' own size wins, then channels first. Gray
    /// images are repeated for three channels; color ones become gray (ITU-R BT.601) for one. Other sizes are resized.
    ///
    /// # Errors
    /// When nothing fits, or the sizes differ more than eightfold.
    pub fn new(images: &Images, input: &InputSpec) -> Result<Self> {
        let own = (images.height, images.width);
        let dims = input.ty.shape.get(1..).unwrap_or_default();
        let orders: Vec<_> = orders(dims).into_iter().filter(|o| convertible(images.channels, o.1)).collect();
        let flat =
            dims.iter().filter(|d| **d != 1).count() <= 1 && dims.iter().product::<usize>() == images.sample_len();
        let exact = orders.iter().find(|o| (o.2, o.3) == own);
        let found = match exact {
            Some(order) => Some(*order),
            None if flat => Some((Layout::Chw, images.channels, images.height, images.width)),
            None => orders.first().copied().filter(|_| dims.len() == 3),
        };
        let Some((layout, channels, height, width)) = found else {
            let cause = format!(
                "input `{}` is {}, which images of {} × {} pixels with {} channels do not fit",
                input.name, input.ty, images.height, images.width, images.channels
            );
            let hint = format!(
                "images are fed to inputs [N, C, H, W] or [N, H, W, C] with 1 or 3 channels, and to [N, {}]; \
                 bring other inputs as npz:FILE",
                images.sample_len()
            );
            return Err(Error::new(cause).hint(hint));
        };
        let far = |a: usize, b: usize| a.max(b) > MAX_SCALE * a.min(b);
        if far(height, images.height) || far(width, images.width) {
            let cause = format!(
                "input `{}` takes {height} × {width} pixels, but the images have {} × {}",
                input.name, own.0, own.1
            );
            return Err(Error::new(cause)
                .hint("sizes that differ more than eightfold are not resized: is this the right data set?"));
        }
        let mut notes = Vec::new();
        if exact.is_none() && flat && dims.len() < 3 && channels > 1 {
            notes.push(format!("input `{}` is fed with flattened images, channel by channel", input.name));
        } else if exact.is_none() && flat {
            notes.push(format!("input `{}` is fed with flattened images", input.name));
        }
        if (height, width) != own {
            notes.push(format!("images are resized from {} × {} to {height} × {width}", own.0, own.1));
        }
        match (images.channels, channels) {
            (1, 3) => notes.push("gray images are repeated for three channels".to_owned()),
            (3, 1) => notes.push("color images are made gray".to_owned()),
            _ => {}
        }
        Ok(Self { layout, channels, height, width, notes })
    }
}

/// Height and width that an input [N, C, H, W] or [N, H, W, C] asks of its images; `None` when it is no such input.
pub fn image_size(ty: &Type) -> Option<(usize, usize)> {
    let found = orders(ty.shape.get(1..)?).into_iter().find(|o| matches!(o.1, 1 | 3) && ty.shape.len() == 4);
    found.map(|(_, _, height, width)| (height, width))
}

/// The shape of every input whose file leaves dimensions open that the data fill, for batches of `batch`.
///
/// Arrays give their own dimensions; images their size, where the channels say the order of the axes.
pub fn open_shapes(inputs: &[(String, Declared)], set: &Dataset, batch: usize) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for (i, (name, declared)) in inputs.iter().enumerate() {
        let Some(dims) = declared.dims.as_ref().filter(|d| d.len() > 1) else { continue };
        let fixed = |i: usize| if let Dim::Fixed(n) = dims[i] { Some(n) } else { None };
        let channels = |i: usize| fixed(i).is_some_and(|n| matches!(n, 1 | 3));
        let known: Vec<Option<usize>> = match &set.samples {
            Samples::Arrays(arrays) => {
                let shape = arrays.get(name).map(Tensor::shape).filter(|s| s.len() == dims.len());
                shape.map_or_else(Vec::new, |s| s.iter().copied().map(Some).collect())
            }
            Samples::Images(images) if i == 0 && dims.len() == 4 => {
                let (height, width) = (Some(images.height), Some(images.width));
                match () {
                    () if channels(1) => vec![None, None, height, width],
                    () if channels(3) => vec![None, height, width, None],
                    () => Vec::new(),
                }
            }
            Samples::Images(_) => Vec::new(),
        };
        let filled = |i: usize| fixed(i).or_else(|| known.get(i).copied().flatten());
        let rest: Option<Vec<usize>> = (1..dims.len()).map(filled).collect();
        if let Some(rest) = rest.filter(|_| (1..dims.len()).any(|i| fixed(i).is_none())) {
            shapes.insert(name.clone(), [&[batch], rest.as_slice()].concat());
        }
    }
    shapes
}

/// The ways to read dimensions as layout, channels, height and width, the preferred one first.
fn orders(dims: &[usize]) -> Vec<(Layout, usize, usize, usize)> {
    match *dims {
        [a, b, c] => vec![(Layout::Chw, a, b, c), (Layout::Hwc, c, a, b)],
        [h, w] => vec![(Layout::Chw, 1, h, w)],
        _ => Vec::new(),
    }
}

fn convertible(from: usize, to: usize) -> bool {
    matches!((from, to), (1 | 3, 1 | 3))
}

/// Brightness by ITU-R BT.601 in 16-bit fixed point, as Pillow rounds it.
pub(super) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// Pixels with another number of channels, into `out`: gray repeated, or color made gray.
pub(super) fn convert_channels(pixels: &[u8], from: usize, out: &mut Vec<u8>) {
    out.clear();
    match from {
        1 => out.extend(pixels.iter().flat_map(|v| [*v; 3])),
        _ => out.extend(pixels.as_chunks().0.iter().map(|[r, g, b]: &[u8; 3]| luma(*r, *g, *b))),
    }
}

/// Pixels [height, width, channels] scaled to another (height, width) by a triangle filter: bilinear when enlarging, as
/// wide as the shrinking needs otherwise.
pub(super) fn resize(pixels: &[u8], from: (usize, usize), to: (usize, usize), channels: usize) -> Vec<u8> {
    let [width, height, to_width, to_height] = [from.1, from.0, to.1, to.0].map(|v| v as u32);
    macro_rules! resized {
        ($pixel:ty) => {
            ImageBuffer::<$pixel, &[u8]>::from_raw(width, height, pixels)
                .map(|image| imageops::resize(&image, to_width, to_height, FilterType::Triangle).into_raw())
        };
    }
    let resized = if channels == 1 { resized!(Luma<u8>) } else { resized!(Rgb<u8>) };
    resized.unwrap_or_else(|| vec![0; to.0 * to.1 * channels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    fn fit(images: (usize, usize, usize), shape: &[usize]) -> Result<Fit> {
        let (height, width, channels) = images;
        let images = Images::new(vec![0; height * width * channels], height, width, channels);
        Fit::new(&images, &InputSpec { name: "x".to_owned(), ty: Type::new(DType::F32, shape) })
    }

    #[test]
    fn axes_are_recognized() {
        use Layout::{Chw, Hwc};
        let cases: &[(_, &[usize], _)] = &[
            ((32, 32, 3), &[8, 3, 32, 32], (Chw, 3, 32, 32)),
            ((32, 32, 3), &[8, 32, 32, 3], (Hwc, 3, 32, 32)),
            ((32, 32, 3), &[8, 3072], (Chw, 3, 32, 32)),
            ((32, 32, 3), &[8, 1, 3072], (Chw, 3, 32, 32)),
            ((32, 32, 3), &[8, 1, 32, 32], (Chw, 1, 32, 32)),
            ((32, 32, 3), &[8, 3, 64, 48], (Chw, 3, 64, 48)),
            ((32, 32, 3), &[8, 64, 48, 3], (Hwc, 3, 64, 48)),
            ((3, 3, 3), &[8, 3, 3, 3], (Chw, 3, 3, 3)),
            ((3, 7, 1), &[8, 3, 7, 1], (Hwc, 1, 3, 7)),
            ((28, 28, 1), &[8, 1, 28, 28], (Chw, 1, 28, 28)),
            ((28, 28, 1), &[8, 28, 28], (Chw, 1, 28, 28)),
            ((28, 28, 1), &[8, 784], (Chw, 1, 28, 28)),
            ((28, 28, 1), &[8, 1, 1, 784], (Chw, 1, 28, 28)),
            ((28, 28, 1), &[8, 3, 32, 32], (Chw, 3, 32, 32)),
        ];
        for (images, shape, want) in cases {
            let fit = fit(*images, shape).unwrap();
            assert_eq!((fit.layout, fit.channels, fit.height, fit.width), *want, "{images:?} {shape:?}");
        }
        assert_eq!(fit((28, 28, 1), &[8, 3, 32, 32]).unwrap().notes.len(), 2);
        assert!(fit((32, 32, 3), &[8, 3, 32, 32]).unwrap().notes.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_shapes() {
        for shape in [&[8, 4, 32, 32][..], &[8, 3071], &[8], &[], &[8, 16, 192], &[8, 31, 31], &[8, 1, 3, 32, 32]] {
            let e = fit((32, 32, 3), shape).unwrap_err();
            assert!(e.cause().contains("32 × 32") && e.hint_text().is_some(), "{shape:?}: {e}");
        }
        assert!(fit((28, 28, 1), &[8, 1, 225, 225]).unwrap_err().hint_text().unwrap().contains("eightfold"));
        assert!(fit((28, 28, 1), &[8, 1, 224, 224]).is_ok());
    }

    #[test]
    fn image_inputs_tell_their_size() {
        let size = |shape: &[usize]| image_size(&Type::new(DType::F32, shape));
        assert_eq!(size(&[1, 3, 20, 30]), Some((20, 30)));
        assert_eq!(size(&[1, 20, 30, 3]), Some((20, 30)));
        assert_eq!((size(&[1, 784]), size(&[1, 5, 6, 7]), size(&[])), (None, None, None));
    }

    #[test]
    fn channels_and_sizes_are_converted() {
        let mut out = Vec::new();
        convert_channels(&[5, 6], 1, &mut out);
        assert_eq!(out, [5, 5, 5, 6, 6, 6]);
        convert_channels(&[255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255], 3, &mut out);
        assert_eq!(out, [255, 76, 150, 29]);
        assert_eq!(resize(&[10, 20, 30], (1, 1), (2, 2), 3), [10, 20, 30].repeat(4));
        assert_eq!(resize(&[0, 100, 200, 100], (2, 2), (1, 1), 1), [100]);
    }
}
