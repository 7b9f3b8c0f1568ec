//! Flat, aligned buffers on a device, and where each parameter lies in them.

use super::cuda::Device as Gpu;
use super::ort_error;
use super::session::{Device, Engine};
use crate::error::{Error, Result};
use crate::ir::{DType, Type};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use std::alloc::{Layout as HostLayout, alloc_zeroed, dealloc};
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

    /// Writes tensors into one flat vector.
    ///
    /// # Errors
    /// When a tensor has another number of elements than its place.
    pub fn pack(&self, tensors: &[Vec<f32>]) -> Result<Vec<f32>> {
        self.pack_over(0.0, tensors)
    }

    /// As [`Layout::pack`], with another value in the gaps.
    ///
    /// # Errors
    /// When a tensor has another number of elements than its place.
    pub fn pack_over(&self, gap: f32, tensors: &[Vec<f32>]) -> Result<Vec<f32>> {
        let mut flat = vec![gap; self.len];
        for (i, tensor) in tensors.iter().enumerate() {
            let n = self.shapes[i].iter().product::<usize>();
            if tensor.len() != n {
                crate::bail!("tensor {i} has {} elements, its place {n}", tensor.len());
            }
            flat[self.offsets[i]..self.offsets[i] + n].copy_from_slice(tensor);
        }
        Ok(flat)
    }

    /// The tensors of a flat vector.
    pub fn unpack(&self, flat: &[f32]) -> Vec<Vec<f32>> {
        let slice = |(o, s): (&usize, &Vec<usize>)| flat[*o..*o + s.iter().product::<usize>()].to_vec();
        self.offsets.iter().zip(&self.shapes).map(slice).collect()
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
            Some(gpu) => Block { data: gpu.allocate(size)?, owner: Owner::Device(gpu) },
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

enum Owner {
    Host(HostLayout),
    Device(&'static Gpu),
}

struct Block {
    data: *mut u8,
    owner: Owner,
}

impl Block {
    fn host(size: usize) -> Result<Self> {
        let layout = HostLayout::from_size_align(size, ALIGNMENT).map_err(|e| Error::new(e.to_string()))?;
        // SAFETY: the size is not zero: it was rounded up to the alignment.
        let data = unsafe { alloc_zeroed(layout) };
        if data.is_null() {
            crate::bail!("out of memory: {size} bytes could not be had");
        }
        Ok(Self { data, owner: Owner::Host(layout) })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match &self.owner {
            // SAFETY: allocated in `host` with this very layout.
            Owner::Host(layout) => unsafe { dealloc(self.data, *layout) },
            // SAFETY: allocated by this device; what is still in its stream is waited for by the call.
            Owner::Device(gpu) => unsafe { gpu.free(self.data) },
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
        Ok(unsafe { self.block.data.add(offset) })
    }

    pub(super) fn info(&self) -> Result<MemoryInfo<'static>> {
        self.memory.info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_aligned_and_pack_round_trips() -> Result<()> {
        let shapes: [&[usize]; 3] = [&[3, 2], &[], &[65]];
        let layout = Layout::new(shapes);
        assert_eq!(layout.offsets(), [0, 64, 128]);
        assert_eq!(layout.len(), 256);
        let tensors = vec![vec![1.0; 6], vec![2.0], vec![3.0; 65]];
        assert_eq!(layout.unpack(&layout.pack(&tensors)?), tensors);
        assert!(layout.pack(&[vec![0.0; 5]]).is_err());
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
