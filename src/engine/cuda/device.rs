//! A device: memory on it, and the one stream on which everything happens in order.
//!
//! ONNX Runtime's sessions are given the same stream, so copies, kernels and graphs follow each other without anybody waiting; the host
//! waits only when it reads.

use super::functions::{Handle, Runtime, Status};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// `cudaStreamNonBlocking`: it does not wait for the legacy default stream.
const NON_BLOCKING: u32 = 1;
/// `cudaEventDisableTiming`.
const UNTIMED: u32 = 2;
/// `cudaMemcpyDefault`: the direction follows from the addresses.
const ANY_DIRECTION: i32 = 4;
/// `cudaDevAttrComputeCapabilityMajor` and `Minor`.
const CAPABILITY: [i32; 2] = [75, 76];

/// A CUDA device.
pub struct Device {
    runtime: Runtime,
    number: i32,
    stream: Handle,
    /// For copies beside the computation.
    aside: Handle,
    /// Bytes that were taken when it was opened: by other processes, and by CUDA itself.
    taken: usize,
}

/// A point in a stream.
pub struct Event(&'static Device, Handle);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `Device::event`; CUDA keeps what is still waited for.
        unsafe { (self.0.runtime.cudaEventDestroy)(self.1) };
    }
}

// SAFETY: CUDA's functions may be called from any thread; the streams are never destroyed.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Device `number`, for the ONNX Runtime at `library`; the same one every time.
    ///
    /// # Errors
    /// When CUDA's runtime or the device cannot be had.
    pub fn get(library: &Path, number: i32) -> Result<&'static Self> {
        static DEVICES: Mutex<BTreeMap<i32, &'static Device>> = Mutex::new(BTreeMap::new());
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.get(&number) {
            return Ok(device);
        }
        super::preload(library);
        let device = Box::leak(Box::new(Self::open(Runtime::load()?, number)?));
        devices.insert(number, device);
        Ok(device)
    }

    /// A device by an open library.
    pub(super) fn open(runtime: Runtime, number: i32) -> Result<Self> {
        let mut device = Self { runtime, number, stream: ptr::null_mut(), aside: ptr::null_mut(), taken: 0 };
        device.select()?;
        let create = device.runtime.cudaStreamCreateWithFlags;
        // SAFETY: the pointers are valid for the calls.
        let status =
            unsafe { [create(&raw mut device.stream, NON_BLOCKING), create(&raw mut device.aside, NON_BLOCKING)] };
        status.into_iter().try_for_each(|s| device.check(s))?;
        device.taken = device.taken()?;
        Ok(device)
    }

    /// Its number.
    pub fn number(&self) -> i32 {
        self.number
    }

    /// Makes this the calling thread's device.
    pub fn select(&self) -> Result<()> {
        // SAFETY: a function of a number.
        self.check(unsafe { (self.runtime.cudaSetDevice)(self.number) })
    }

    /// The stream.
    pub fn stream(&self) -> Handle {
        self.stream
    }

    /// Major and minor number of what the device can do.
    pub fn capability(&self) -> Result<(i32, i32)> {
        let [major, minor] = CAPABILITY.map(|attribute| {
            let mut value = 0;
            // SAFETY: the pointer is valid for the call.
            let status = unsafe { (self.runtime.cudaDeviceGetAttribute)(&raw mut value, attribute, self.number) };
            self.check(status).map(|()| value)
        });
        Ok((major?, minor?))
    }

    /// Bytes of the device's memory that were taken since it was opened, as far as other processes keep still.
    pub fn used(&self) -> Result<usize> {
        Ok(self.taken()?.saturating_sub(self.taken))
    }

    fn taken(&self) -> Result<usize> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid for the call.
        self.check(unsafe { (self.runtime.cudaMemGetInfo)(&raw mut free, &raw mut total) })?;
        Ok(total - free)
    }

    /// Memory of zeros on the device.
    pub fn allocate(&self, bytes: usize) -> Result<*mut u8> {
        let mut block = ptr::null_mut();
        self.select()?;
        // SAFETY: the pointer is valid for the call, and the block has as many bytes as are set.
        unsafe {
            self.check((self.runtime.cudaMalloc)(&raw mut block, bytes))
                .map_err(|e| Error::new(format!("{bytes} bytes of device memory: {}", e.cause())))?;
            self.check((self.runtime.cudaMemsetAsync)(block, 0, bytes, self.stream))?;
        }
        Ok(block.cast())
    }

    /// Gives memory back.
    ///
    /// # Safety
    /// It is from [`Device::allocate`] and not used any more.
    pub unsafe fn free(&self, block: *mut u8) {
        // SAFETY: the caller's promise. Nothing can be done about a failure here.
        unsafe { (self.runtime.cudaFree)(block.cast()) };
    }

    /// Memory of the host that the device can read by itself.
    pub fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8> {
        let mut block = ptr::null_mut();
        self.select()?;
        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { (self.runtime.cudaHostAlloc)(&raw mut block, bytes, 0) })?;
        Ok(block.cast())
    }

    /// Gives pinned memory back.
    ///
    /// # Safety
    /// It is from [`Device::allocate_pinned`] and not used any more.
    pub unsafe fn free_pinned(&self, block: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { (self.runtime.cudaFreeHost)(block.cast()) };
    }

    /// Copies in the stream's order, between the host and the device or within it. From memory that is not pinned the bytes are taken
    /// before this returns; into such memory they are there after [`Device::synchronize`].
    ///
    /// # Safety
    /// Both are valid for `bytes`, until the copy is done where they are pinned or on the device.
    pub unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let copy = self.runtime.cudaMemcpyAsync;
        self.check(unsafe { copy(to.cast(), from.cast(), bytes, ANY_DIRECTION, self.stream) })
    }

    /// An event that is over.
    pub fn event(&'static self) -> Result<Event> {
        let mut event = ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { (self.runtime.cudaEventCreateWithFlags)(&raw mut event, UNTIMED) })?;
        Ok(Event(self, event))
    }

    /// Waits until the event, as it was last recorded, is over.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: the event is valid.
        self.check(unsafe { (self.runtime.cudaEventSynchronize)(event.1) })
    }

    /// Records the event here in the stream.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both are valid.
        self.check(unsafe { (self.runtime.cudaEventRecord)(event.1, self.stream) })
    }

    /// Has the stream go on once the event is over.
    pub fn follow(&self, event: &Event) -> Result<()> {
        // SAFETY: both are valid.
        self.check(unsafe { (self.runtime.cudaStreamWaitEvent)(self.stream, event.1, 0) })
    }

    /// Copies beside the stream, not before `after` is over; `done` is over when the copy is.
    ///
    /// # Safety
    /// As [`Device::copy`].
    pub unsafe fn copy_aside(
        &self,
        after: &Event,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        done: &Event,
    ) -> Result<()> {
        let f = &self.runtime;
        // SAFETY: the caller's promise.
        unsafe {
            self.check((f.cudaStreamWaitEvent)(self.aside, after.1, 0))?;
            self.check((f.cudaMemcpyAsync)(to.cast(), from.cast(), bytes, ANY_DIRECTION, self.aside))?;
            self.check((f.cudaEventRecord)(done.1, self.aside))
        }
    }

    /// Waits until everything in the stream is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this device's.
        self.check(unsafe { (self.runtime.cudaStreamSynchronize)(self.stream) })
    }

    pub(super) fn check(&self, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a static text for any number.
        let text = unsafe { CStr::from_ptr((self.runtime.cudaGetErrorString)(status)) };
        Err(Error::new(format!("device cuda:{}: {} (CUDA error {status})", self.number, text.to_string_lossy())))
    }
}
