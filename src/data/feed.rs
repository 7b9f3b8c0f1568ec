//! From one sample of a data set to one row of each of the model's inputs.

use super::augment::Augment;
use super::batch::Buffer;
use super::fit::{Fit, InputSpec, Layout, convert_channels, resize};
use super::normalize::{Normalization, Table};
use super::{Dataset, Images, Samples};
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use crate::wording::nearest;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Fills rows of batches; made once per loader and shared by its threads.
#[derive(Debug)]
pub(super) struct Feed {
    data: Arc<Dataset>,
    source: Source,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    /// The one input takes images.
    Images(ImageFeed),
    /// One array per input, in the element type of the input.
    Arrays(Vec<Tensor>),
}

#[derive(Debug)]
struct ImageFeed {
    /// Height, width and channels of the data set's images.
    source: (usize, usize, usize),
    fit: Fit,
    table: Table,
    augment: Augment,
}

/// Memory between the steps of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The images of a batch, as the data set has them.
    images: Vec<u8>,
    converted: Vec<u8>,
    cropped: Vec<u8>,
}

impl Feed {
    /// Matches the data set with the model's inputs.
    ///
    /// # Errors
    /// When they do not go together; the error names the input and both shapes.
    pub(super) fn new(
        data: Arc<Dataset>,
        inputs: &[InputSpec],
        normalization: Option<&Normalization>,
        augment: Augment,
    ) -> Result<Self> {
        let mut notes = Vec::new();
        let source = match &data.samples {
            Samples::Images(images) => image_source(images, inputs, normalization, augment, &mut notes)?,
            Samples::Arrays(_) if augment != Augment::None => {
                let hint = "give images (cifar10:, cifar100:, idx: or images:), or no augmentation";
                return Err(
                    Error::new(format!("augmentation {augment} needs images, but the data are arrays")).hint(hint)
                );
            }
            Samples::Arrays(_) if normalization.is_some() => {
                return Err(Error::new("arrays are fed as they are").hint("normalize them before they are saved"));
            }
            Samples::Arrays(arrays) => {
                let unused: Vec<_> = arrays.keys().filter(|k| inputs.iter().all(|i| i.name != **k)).cloned().collect();
                if !unused.is_empty() {
                    notes.push(format!("arrays that are no input of the model are not used: {}", unused.join(", ")));
                }
                Source::Arrays(inputs.iter().map(|input| matching(arrays, input)).collect::<Result<_>>()?)
            }
        };
        Ok(Self { data, source, notes })
    }

    /// Brings the images of a batch into memory.
    ///
    /// # Errors
    /// When a file cannot be decoded.
    pub(super) fn read(&self, samples: &[usize], scratch: &mut Scratch) -> Result<()> {
        match &self.data.samples {
            Samples::Images(images) => images.read(samples, &mut scratch.images),
            Samples::Arrays(_) => Ok(()),
        }
    }

    /// Writes sample number `of_batch` of the `samples` that were read last to `row` of every buffer.
    pub(super) fn fill(
        &self,
        samples: &[usize],
        of_batch: usize,
        row: usize,
        buffers: &mut [Buffer],
        rng: &mut impl rand::Rng,
        scratch: &mut Scratch,
    ) {
        match &self.source {
            Source::Images(feed) => {
                for buffer in buffers {
                    feed.fill(of_batch, buffer, row, rng, scratch);
                }
            }
            Source::Arrays(arrays) => {
                let sample = samples[of_batch];
                let left = self.data.lengths.as_ref().is_some_and(|l| l.left);
                for (buffer, array) in buffers.iter_mut().zip(arrays) {
                    let stored = array.bytes().len() / self.data.len().max(1);
                    let bytes = buffer.row_bytes_mut(row);
                    // A batch of shorter texts has less of their padding.
                    let from = sample * stored + if left { stored - bytes.len() } else { 0 };
                    bytes.copy_from_slice(&array.bytes()[from..][..bytes.len()]);
                }
            }
        }
    }
}

fn image_source(
    images: &Images,
    inputs: &[InputSpec],
    normalization: Option<&Normalization>,
    augment: Augment,
    notes: &mut Vec<String>,
) -> Result<Source> {
    let [input] = inputs else {
        let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
        let cause = format!("images feed one input, but the model has {}: {}", inputs.len(), names.join(", "));
        return Err(Error::new(cause).hint("bring all inputs as npz:FILE"));
    };
    let fit = Fit::new(images, input)?;
    notes.extend(fit.notes.iter().cloned());
    if let Some(normalization) = normalization {
        normalization.check(fit.channels)?;
        if input.ty.dtype == DType::U8 {
            notes.push(format!("input `{}` takes bytes and gets raw pixels, not normalized ones", input.name));
        }
    }
    let table = Table::new(input.ty.dtype, fit.channels, normalization).map_err(|e| {
        Error::new(format!("input `{}`: {}", input.name, e.cause())).hint(e.hint_text().unwrap_or_default())
    })?;
    let source = (images.height, images.width, images.channels);
    Ok(Source::Images(ImageFeed { source, fit, table, augment }))
}

/// The array of an input, in its element type.
fn matching(arrays: &BTreeMap<String, Tensor>, input: &InputSpec) -> Result<Tensor> {
    let Some(array) = arrays.get(&input.name) else {
        let names: Vec<&str> = arrays.keys().map(String::as_str).collect();
        let cause = format!("there is no array for input `{}` among: {}", input.name, names.join(", "));
        let meant = match names.as_slice() {
            [one] => Some(*one),
            _ => nearest(&input.name, &names),
        };
        let meant = meant.map_or_else(String::new, |n| format!(": `{n}` as `{}`", input.name));
        return Err(Error::new(cause).hint(format!("name the arrays as the model's inputs{meant}")));
    };
    let mismatch = |hint: &str| {
        let cause =
            format!("array `{}` is {}, but the model's input is {} (axis 0: batch)", input.name, array.ty(), input.ty);
        Err(Error::new(cause).hint(hint))
    };
    if array.shape().get(1..) != input.ty.shape.get(1..) {
        return mismatch(&axes_hint(array.shape(), &input.ty.shape));
    }
    match (array.dtype(), input.ty.dtype) {
        (from, to) if from == to => Ok(array.clone()),
        (DType::I32, DType::I64) | (DType::F64, DType::F32) => {
            Ok(Tensor::from_f64(input.ty.dtype, array.shape(), &array.to_f64()))
        }
        _ => mismatch(
            "save the array in the input's element type; only int32 → int64 and float64 → float32 are converted",
        ),
    }
}

/// How an array of other axes than the input's may be meant.
fn axes_hint(have: &[usize], want: &[usize]) -> String {
    let general = "all axes but the first must agree";
    match (have, want) {
        ([_, h, w, c], [_, d, e, f]) if (c, h, w) == (d, e, f) => {
            format!("{general}: channels first is np.transpose(array, (0, 3, 1, 2))")
        }
        ([_, c, h, w], [_, d, e, f]) if (h, w, c) == (d, e, f) => {
            format!("{general}: channels last is np.transpose(array, (0, 2, 3, 1))")
        }
        ([_, have @ ..], [_, want @ ..]) if have.iter().product::<usize>() == want.iter().product::<usize>() => {
            let axes: Vec<String> = want.iter().map(usize::to_string).collect();
            format!("{general}: np.reshape(array, (-1, {})) has as many numbers", axes.join(", "))
        }
        _ => general.to_owned(),
    }
}

impl ImageFeed {
    /// Channels, crop and flip, size, normalization, cutout: in this order.
    fn fill(&self, of_batch: usize, buffer: &mut Buffer, row: usize, rng: &mut impl rand::Rng, scratch: &mut Scratch) {
        let (fit, (height, width, channels)) = (&self.fit, self.source);
        let Scratch { images, converted, cropped } = scratch;
        let crop = self.augment.draw_crop(height, rng);
        let cutout = self.augment.draw_cutout(fit.height, fit.width, rng);
        let sample = height * width * channels;
        let mut pixels = &images[of_batch * sample..][..sample];
        if channels != fit.channels {
            convert_channels(pixels, channels, converted);
            pixels = converted;
        }
        if let Some(crop) = crop {
            cropped.resize(pixels.len(), 0);
            crop.apply(pixels, cropped, width, fit.channels);
            pixels = cropped;
        }
        let resized;
        if (height, width) != (fit.height, fit.width) {
            resized = resize(pixels, (height, width), (fit.height, fit.width), fit.channels);
            pixels = &resized;
        }
        match &self.table {
            Table::Bytes(t) => place(pixels, t, fit, cutout, buffer.row_mut(row)),
            Table::Halves(t) => place(pixels, t, fit, cutout, buffer.row_mut(row)),
            Table::Floats(t) => place(pixels, t, fit, cutout, buffer.row_mut(row)),
            Table::Doubles(t) => place(pixels, t, fit, cutout, buffer.row_mut(row)),
        }
    }
}

/// Looks pixels [height, width, channels] up in the table, writes them in the model's order and cuts the square out.
fn place<T: bytemuck::Pod>(
    pixels: &[u8],
    table: &[T],
    fit: &Fit,
    cutout: Option<(Range<usize>, Range<usize>)>,
    out: &mut [T],
) {
    let (width, channels) = (fit.width, fit.channels);
    let plane = fit.height * width;
    let position = |at: usize, c: usize| match fit.layout {
        Layout::Chw => c * plane + at,
        Layout::Hwc => at * channels + c,
    };
    for (c, table) in table.chunks_exact(256).enumerate() {
        for (at, pixel) in pixels.chunks_exact(channels).enumerate() {
            out[position(at, c)] = table[usize::from(pixel[c])];
        }
    }
    if let Some((rows, columns)) = cutout {
        for at in rows.flat_map(|y| columns.clone().map(move |x| y * width + x)) {
            (0..channels).for_each(|c| out[position(at, c)] = T::zeroed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::{Use, stream};
    use super::*;
    use crate::ir::Type;

    fn input(name: &str, dtype: DType, shape: &[usize]) -> InputSpec {
        InputSpec { name: name.to_owned(), ty: Type::new(dtype, shape) }
    }

    fn images(pixels: &[u8], height: usize, width: usize, channels: usize) -> Arc<Dataset> {
        let images = Images::new(pixels.to_vec(), height, width, channels);
        Arc::new(Dataset::new(Samples::Images(images.clone()), vec![0; images.len()]))
    }

    fn arrays(list: &[(&str, Tensor)]) -> Arc<Dataset> {
        let arrays: BTreeMap<_, _> = list.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
        Arc::new(Dataset::new(Samples::Arrays(arrays), vec![0, 0]))
    }

    /// What the last sample becomes.
    fn fed(data: Arc<Dataset>, input: InputSpec, normalization: Option<&Normalization>, augment: Augment) -> Buffer {
        let feed = Feed::new(data.clone(), std::slice::from_ref(&input), normalization, augment).unwrap();
        let mut buffers = [Buffer::zeros(input.ty)];
        let mut rng = stream(0, Use::Augment, 0, 0);
        let mut scratch = Scratch::default();
        feed.read(&[data.len() - 1], &mut scratch).unwrap();
        feed.fill(&[data.len() - 1], 0, 0, &mut buffers, &mut rng, &mut scratch);
        let [buffer] = buffers;
        buffer
    }

    #[test]
    fn pixels_are_normalized_into_either_layout() {
        let data = || images(&[9, 9, 9, 9, 9, 9, 0, 51, 255, 0, 51, 255], 1, 2, 3);
        let n = Normalization { mean: vec![0.0, 0.0, 0.5], std: vec![1.0, 1.0, 0.5] };
        let chw = fed(data(), input("x", DType::F32, &[1, 3, 1, 2]), Some(&n), Augment::None);
        assert_eq!(chw.elements::<f32>().unwrap(), [0.0, 0.0, 0.2, 0.2, 1.0, 1.0]);
        let hwc = fed(data(), input("x", DType::F64, &[1, 1, 2, 3]), Some(&n), Augment::None);
        assert_eq!(
            hwc.elements::<f64>().unwrap().iter().map(|v| *v as f32).collect::<Vec<_>>(),
            [0.0, 0.2, 1.0, 0.0, 0.2, 1.0]
        );
        let flat = fed(data(), input("x", DType::F32, &[1, 6]), None, Augment::None);
        assert_eq!(flat.elements::<f32>().unwrap(), [0.0, 0.0, 0.2, 0.2, 1.0, 1.0]);
        let raw = fed(data(), input("x", DType::U8, &[1, 3, 1, 2]), None, Augment::None);
        assert_eq!(raw.bytes(), [0, 0, 51, 51, 255, 255]);
        let gray = fed(images(&[7, 8], 1, 1, 1), input("x", DType::U8, &[1, 3, 2, 2]), None, Augment::None);
        assert_eq!(gray.bytes(), [8; 12]);
    }

    #[test]
    fn cutout_leaves_zeros_and_the_border_is_black() {
        let n = Normalization { mean: vec![0.5], std: vec![0.5] };
        let data = images(&[255; 16 * 16], 16, 16, 1);
        let feed =
            Feed::new(data, &[input("x", DType::F32, &[1, 1, 16, 16])], Some(&n), Augment::CropFlipCutout).unwrap();
        let mut seen = BTreeMap::new();
        for position in 0..50 {
            let mut buffers = [Buffer::zeros(Type::new(DType::F32, &[1, 1, 16, 16]))];
            let mut rng = stream(0, Use::Augment, 0, position);
            let mut scratch = Scratch::default();
            feed.read(&[0], &mut scratch).unwrap();
            feed.fill(&[0], 0, 0, &mut buffers, &mut rng, &mut scratch);
            for v in buffers[0].elements::<f32>().unwrap() {
                *seen.entry(v.to_string()).or_insert(0) += 1;
            }
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["-1", "0", "1"]);
    }

    #[test]
    fn arrays_are_matched_by_name_shape_and_type() {
        let data = || {
            arrays(&[
                ("a", Tensor::new(&[2, 2], &[1i32, 2, 3, 4]).unwrap()),
                ("b", Tensor::new(&[2], &[0.5f64, 2.5]).unwrap()),
            ])
        };
        assert_eq!(
            fed(data(), input("a", DType::I64, &[1, 2]), None, Augment::None).elements::<i64>().unwrap(),
            [3, 4]
        );
        assert_eq!(fed(data(), input("b", DType::F32, &[1]), None, Augment::None).elements::<f32>().unwrap(), [2.5]);
        let feed = Feed::new(data(), &[input("a", DType::I32, &[4, 2])], None, Augment::None).unwrap();
        assert!(feed.notes[0].ends_with(": b"));
        let cause = |input: InputSpec, augment| Feed::new(data(), &[input], None, augment).unwrap_err().to_string();
        assert!(cause(input("c", DType::F32, &[1]), Augment::None).contains("no array for input `c` among: a, b"));
        let e = cause(input("a", DType::I64, &[1, 3]), Augment::None);
        assert!(e.contains("i32[2,2]") && e.contains("i64[1,3]"), "{e}");
        assert!(cause(input("a", DType::F32, &[1, 2]), Augment::None).contains("i32[2,2]"));
        assert!(cause(input("a", DType::I32, &[1, 2]), Augment::CropFlip).contains("needs images"));
    }

    #[test]
    fn images_feed_one_input_only() {
        let two = [input("x", DType::F32, &[1, 1, 1, 1]), input("y", DType::F32, &[1, 1, 1, 1])];
        let e = Feed::new(images(&[1], 1, 1, 1), &two, None, Augment::None).unwrap_err();
        assert!(e.to_string().contains("2: x, y") && e.hint_text().is_some());
        let e = Feed::new(images(&[1], 1, 1, 1), &[input("x", DType::I64, &[1, 1])], None, Augment::None).unwrap_err();
        assert!(e.to_string().contains("input `x`: images cannot be fed to an input of type i64"), "{e}");
    }
}
