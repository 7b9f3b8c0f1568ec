//! Flat, aligned buffers on a device, and where each parameter lies in them.

use super::cuda::Device as Gpu;
use super::ort_error;
use super::session::{Device, Engine};
use crate::error::{Error, Result};
use crate::ir::{DType, Type};
use memmap2::MmapMut;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use std::rc::Rc;

/// Every view starts at a multiple of this many bytes: what CUDA kernels and vector units want.
pub const ALIGNMENT: usize = 256;

/// Where tensors lie in a flat f32 buffer, in order, each aligned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    offsets: Vec<usize>,
    shapes: Vec<Vec<usize>>,
    len: usize,
}

impl Layout {
    /// Lays out tensors of these shapes.
    pub fn new<'a>(shapes: impl IntoIterator<Item = &'a [usize]>) -> Self {
        let step = ALIGNMENT / DType::F32.width();
        let mut layout = Self { offsets: Vec::new(), shapes: Vec::new(), len: 0 };
        for shape in shapes {
            layout.offsets.push(layout.len);
            layout.len += shape.iter().product::<usize>().next_multiple_of(step);
            layout.shapes.push(shape.to_vec());
        }
        layout
    }

    /// Elements of the whole buffer, gaps included; gaps hold zeros.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is laid out.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First element of each tensor.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Byte offset and type of tensor `i`.
    pub fn view(&self, i: usize) -> (usize, Type) {
        (self.offsets[i] * DType::F32.width(), Type::new(DType::F32, &self.shapes[i]))
    }

    /// Writes tensors to their places in a buffer, and nothing in the gaps.
    ///
    /// # Errors
    /// When a tensor has another number of elements than its place; or as [`Buffer::write`].
    pub fn write<T: AsRef<[f32]>>(&self, buffer: &Buffer, tensors: impl IntoIterator<Item = T>) -> Result<()> {
        for (i, tensor) in tensors.into_iter().enumerate() {
            let tensor = tensor.as_ref();
            let (offset, ty) = self.view(i);
            if tensor.len() != ty.len() {
                crate::bail!("tensor {i} has {} elements, its place {}", tensor.len(), ty.len());
            }
            buffer.write(offset, bytemuck::cast_slice(tensor))?;
        }
        Ok(())
    }

    /// The tensors in a buffer.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<Vec<f32>>> {
        let read = |i: usize| {
            let (offset, ty) = self.view(i);
            let mut tensor = vec![0.0; ty.len()];
            buffer.read(offset, bytemuck::cast_slice_mut(&mut tensor))?;
            Ok(tensor)
        };
        (0..self.shapes.len()).map(read).collect()
    }
}

/// Hands out buffers on one device and copies between them and the host.
#[derive(Clone, Copy)]
pub struct Memory(Option<&'static Gpu>);

impl Memory {
    /// Memory of the engine's device.
    ///
    /// # Errors
    /// When the device cannot be had.
    pub fn new(engine: &Engine) -> Result<Self> {
        match engine.device {
            Device::Cpu => Ok(Self(None)),
            Device::Cuda(n) => Ok(Self(Some(Gpu::get(&engine.runtime.path, n)?))),
        }
    }

    /// That of the host, and that of a fake device.
    #[cfg(test)]
    pub(super) fn of_either() -> Vec<Self> {
        [None].into_iter().chain(super::cuda::fake_devices().into_iter().map(Some)).map(Self).collect()
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn zeros(self, bytes: usize) -> Result<Buffer> {
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let block = match self.0 {
            Some(gpu) => Block::Device(gpu.allocate(size)?, gpu),
            None => Block::host(size)?,
        };
        Ok(Buffer { block: Rc::new(block), bytes: size, memory: self })
    }

    /// The device, where that is not the host itself.
    pub(super) fn gpu(self) -> Option<&'static Gpu> {
        self.0
    }

    fn info(self) -> Result<MemoryInfo<'static>> {
        match self.0 {
            None => Ok(MemoryInfo::default()),
            Some(gpu) => {
                MemoryInfo::new(AllocationDevice::CUDA, gpu.number(), AllocatorType::Device, MemoryType::Default)
                    .map_err(ort_error)
            }
        }
    }
}

enum Block {
    /// Takes memory only where it is touched.
    Host(MmapMut),
    Device(*mut u8, &'static Gpu),
}

impl Block {
    fn host(size: usize) -> Result<Self> {
        let fail = |e: std::io::Error| Error::new(format!("out of memory: {size} bytes could not be had ({e})"));
        MmapMut::map_anon(size).map(Self::Host).map_err(fail)
    }

    fn data(&self) -> *mut u8 {
        match self {
            // Nothing on this side reads or writes through a reference into it.
            Self::Host(range) => range.as_ptr().cast_mut(),
            Self::Device(data, _) => *data,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Self::Device(data, gpu) = self {
            // SAFETY: allocated by this device; what is still in its stream is waited for by the call.
            unsafe { gpu.free(*data) }
        }
    }
}

/// A piece of device memory. Cloning shares it; it never leaves its thread, so no run can be in flight while it is read.
#[derive(Clone)]
pub struct Buffer {
    block: Rc<Block>,
    bytes: usize,
    memory: Memory,
}

impl Buffer {
    /// Copies bytes in; on a device, after everything that was started before.
    ///
    /// # Errors
    /// When they do not fit, or the copy to the device fails.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let target = self.pointer(offset, bytes.len())?;
        match self.memory.0 {
            // SAFETY: `pointer` checked the range, and memory that is not pinned is read before the call returns.
            Some(gpu) => unsafe { gpu.copy(bytes.as_ptr(), target, bytes.len()) },
            None => {
                // SAFETY: `pointer` checked the range; the slices cannot overlap, since nobody has a reference into the block.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
                Ok(())
            }
        }
    }

    /// Copies bytes out, once everything that was started before is done.
    ///
    /// # Errors
    /// When there are not that many, or the copy from the device fails.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let source = self.pointer(offset, bytes.len())?;
        match self.memory.0 {
            Some(gpu) => {
                // SAFETY: as in `write`; the copy is waited for.
                unsafe { gpu.copy(source, bytes.as_mut_ptr(), bytes.len()) }?;
                gpu.synchronize()
            }
            None => {
                // SAFETY: as in `write`.
                unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) };
                Ok(())
            }
        }
    }

    /// Copies floats in, from the start.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn write_f32(&self, values: &[f32]) -> Result<()> {
        self.write(0, bytemuck::cast_slice(values))
    }

    /// Copies the first `len` floats out.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn read_f32(&self, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.read(0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The first float.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn scalar(&self) -> Result<f32> {
        let mut value = [0.0f32];
        self.read(0, bytemuck::cast_slice_mut(&mut value))?;
        Ok(value[0])
    }

    pub(super) fn pointer(&self, offset: usize, bytes: usize) -> Result<*mut u8> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            crate::bail!("{bytes} bytes at {offset} do not fit a buffer of {} bytes", self.bytes);
        }
        // SAFETY: the offset lies within the block.
        Ok(unsafe { self.block.data().add(offset) })
    }

    pub(super) fn info(&self) -> Result<MemoryInfo<'static>> {
        self.memory.info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_aligned_and_tensors_survive() -> Result<()> {
        let shapes: [&[usize]; 3] = [&[3, 2], &[], &[65]];
        let layout = Layout::new(shapes);
        assert_eq!(layout.offsets(), [0, 64, 128]);
        assert_eq!(layout.len(), 256);
        let tensors = vec![vec![1.0; 6], vec![2.0], vec![3.0; 65]];
        for memory in Memory::of_either() {
            let buffer = memory.zeros(layout.len() * 4)?;
            buffer.write_f32(&[7.0; 256])?;
            layout.write(&buffer, &tensors)?;
            assert_eq!(layout.read(&buffer)?, tensors);
            assert_eq!(buffer.read_f32(layout.len())?[6..64], [7.0; 58]);
            assert!(layout.write(&buffer, [[0.0; 5]]).is_err());
        }
        Ok(())
    }

    #[test]
    fn bytes_survive_and_what_does_not_fit_is_refused() -> Result<()> {
        for memory in Memory::of_either() {
            let buffer = memory.zeros(1000)?;
            let bytes: Vec<u8> = (0..=255).collect();
            buffer.write(300, &bytes)?;
            let mut back = [1; 1000];
            buffer.read(0, &mut back)?;
            assert_eq!(back[300..556], bytes);
            assert!(back[..300].iter().chain(&back[556..]).all(|b| *b == 0));
            buffer.write(0, &[])?;
            assert!(buffer.write(1000, &bytes).is_err());
            assert!(buffer.read(900, &mut back).is_err());
        }
        Ok(())
    }
}
