//! Batches on their way to the device, beside the computation.
//!
//! A batch is copied into pinned memory, from there by a second stream to the device while the last step still computes, and within the
//! device to where the graph reads it once that step is done: captured graphs read fixed addresses, so the last copy cannot be spared.

use super::device::{Device, Event};
use crate::error::Result;
use std::cell::Cell;

/// Two places for batches of one tensor, used in turn.
pub struct Uploads {
    device: &'static Device,
    bytes: usize,
    slots: [Slot; 2],
    next: Cell<usize>,
}

struct Slot {
    pinned: *mut u8,
    staged: *mut u8,
    /// The pinned memory has been read.
    arrived: Event,
    /// The place on the device has been read.
    used: Event,
}

impl Uploads {
    /// Places for tensors of at most `bytes`.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(device: &'static Device, bytes: usize) -> Result<Self> {
        let slot = || {
            Ok(Slot {
                pinned: device.allocate_pinned(bytes.max(1))?,
                staged: device.allocate(bytes.max(1))?,
                arrived: device.event()?,
                used: device.event()?,
            })
        };
        Ok(Self { device, bytes, slots: [slot()?, slot()?], next: Cell::new(0) })
    }

    /// Brings what `fill` writes, `len` bytes, to `target` on the device, in the order of its main stream. Waits only if the batch
    /// before the last one has not left yet.
    ///
    /// # Errors
    /// More bytes than there is place for, or what CUDA says.
    ///
    /// # Safety
    /// `target` is valid for `len` bytes on the device.
    pub unsafe fn send(&self, target: *mut u8, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        if len > self.bytes {
            crate::bail!("a batch of {len} bytes instead of {}", self.bytes);
        }
        let slot = &self.slots[self.next.replace(1 - self.next.get())];
        self.device.wait(&slot.arrived)?;
        // SAFETY: the slot has that many bytes, and its last copy is over.
        fill(unsafe { std::slice::from_raw_parts_mut(slot.pinned, len) });
        // SAFETY: the slot's two places and the caller's have that many bytes, and events keep them from being written too early.
        unsafe {
            self.device.copy_aside(&slot.used, slot.pinned, slot.staged, len, &slot.arrived)?;
            self.device.follow(&slot.arrived)?;
            self.device.copy(slot.staged, target, len)?;
        }
        self.device.record(&slot.used)
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        // What is under way reads this memory; nothing can be done about a failure.
        drop(self.device.synchronize());
        for slot in &self.slots {
            // SAFETY: made by this value, and all copies are over.
            unsafe {
                self.device.free_pinned(slot.pinned);
                self.device.free(slot.staged);
            }
        }
    }
}
