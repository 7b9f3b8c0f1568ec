//! The memory of every session's host tensors: one range of addresses in which free neighbours join.
//!
//! ONNX Runtime's own arena takes regions of doubling size from the system and cannot join what is free in two of them. The tensors of
//! a training step live long and in many sizes, and leave holes there: 1 GB of DenseNet-121's 3.6. Here there is one region, as
//! large as addresses allow and without memory until it is touched, so that the greatest address used is all that a step costs.

use super::value::check;
use crate::error::{Error, Result};
use memmap2::{MmapMut, MmapOptions};
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::{OrtAllocator, OrtMemoryInfo};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// Blocks start at multiples of this many bytes: a cache line, and the widest vector.
const ALIGNMENT: usize = 64;
/// Bytes of addresses: far more than any machine's memory, far less than the 2^47 that a process has.
const ADDRESSES: usize = 1 << 40;

/// Which blocks of a range of `len` bytes are taken; offsets and sizes in bytes.
#[derive(Debug, Default)]
struct Blocks {
    len: usize,
    /// Free blocks below `top` by offset; no two of them touch, and none touches `top`.
    free: BTreeMap<usize, usize>,
    /// The same as (size, offset).
    by_size: BTreeSet<(usize, usize)>,
    taken: HashMap<usize, usize>,
    /// All above is free.
    top: usize,
}

impl Blocks {
    /// The smallest free block that is large enough, or the end; none where the range is full.
    fn take(&mut self, size: usize) -> Option<usize> {
        let size = size.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let fit = self.by_size.range((size, 0)..).next().copied();
        let start = match fit {
            Some((found, start)) => {
                self.forget(start, found);
                if found > size {
                    self.keep(start + size, found - size);
                }
                start
            }
            None => {
                let start = self.top;
                self.top = start.checked_add(size).filter(|end| *end <= self.len)?;
                start
            }
        };
        self.taken.insert(start, size);
        Some(start)
    }

    /// Gives a block back; an offset that is none does nothing.
    fn give(&mut self, start: usize) {
        let Some(size) = self.taken.remove(&start) else { return };
        let (mut start, mut end) = (start, start + size);
        if let Some((&before, &size)) = self.free.range(..start).next_back()
            && before + size == start
        {
            self.forget(before, size);
            start = before;
        }
        if let Some(&size) = self.free.get(&end) {
            self.forget(end, size);
            end += size;
        }
        if end == self.top {
            self.top = start;
        } else {
            self.keep(start, end - start);
        }
    }

    fn keep(&mut self, start: usize, size: usize) {
        self.free.insert(start, size);
        self.by_size.insert((size, start));
    }

    fn forget(&mut self, start: usize, size: usize) {
        self.free.remove(&start);
        self.by_size.remove(&(size, start));
    }
}

/// What ONNX Runtime sees; its functions get a pointer to the first field.
#[repr(C)]
struct Heap {
    functions: OrtAllocator,
    info: MemoryInfo<'static>,
    range: MmapMut,
    blocks: Mutex<Blocks>,
}

impl Heap {
    fn blocks<T>(&self, act: impl FnOnce(&mut Blocks) -> T) -> T {
        act(&mut self.blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

unsafe extern "system" fn alloc(this: *mut OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: `register` gave ONNX Runtime a pointer to a heap that is never freed.
    unsafe { reserve(this, size) }
}

unsafe extern "system" fn reserve(this: *const OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: as in `alloc`.
    let heap = unsafe { &*this.cast::<Heap>() };
    let start = heap.blocks(|b| b.take(size));
    // SAFETY: blocks lie within the range. Nothing on this side reads or writes through it.
    start.map_or(std::ptr::null_mut(), |start| unsafe { heap.range.as_ptr().add(start).cast_mut().cast() })
}

unsafe extern "system" fn free(this: *mut OrtAllocator, block: *mut c_void) {
    // SAFETY: as in `alloc`.
    let heap = unsafe { &*this.cast::<Heap>() };
    if !block.is_null() {
        heap.blocks(|b| b.give(block as usize - heap.range.as_ptr() as usize));
    }
}

unsafe extern "system" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: as in `alloc`.
    unsafe { (*this.cast::<Heap>()).info.ptr() }
}

/// Makes this the memory of all sessions of `environment` that use its allocators.
///
/// # Errors
/// When the system does not give that many addresses, as with a limit on them or where they need memory behind them (Windows); or
/// when ONNX Runtime does not take the allocator.
pub(super) fn register(environment: &Environment) -> Result<()> {
    if !cfg!(unix) {
        crate::bail!("addresses without memory behind them are not to be had on this system");
    }
    let fail = |e: std::io::Error| Error::new(format!("no range of addresses for tensors: {e}"));
    let range = MmapOptions::new().len(ADDRESSES).no_reserve_swap().map_anon().map_err(fail)?;
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
    let functions = OrtAllocator {
        version: ort::MINOR_VERSION,
        Alloc: Some(alloc),
        Free: Some(free),
        Info: Some(self::info),
        Reserve: Some(reserve),
    };
    let blocks = Mutex::new(Blocks { len: ADDRESSES, ..Blocks::default() });
    let heap = Box::leak(Box::new(Heap { functions, info: info.map_err(super::ort_error)?, range, blocks }));
    // SAFETY: the heap is never freed, and its functions may be called from any thread.
    check(unsafe { (ort::api().RegisterAllocator)(environment.ptr().cast_mut(), &raw mut heap.functions) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn blocks_never_overlap_and_free_neighbours_join() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut blocks = Blocks { len: 1 << 20, ..Blocks::default() };
        let mut live: BTreeMap<usize, usize> = BTreeMap::new();
        for _ in 0..20_000 {
            if live.len() > 40 || (!live.is_empty() && rng.random_bool(0.45)) {
                let start = *live.keys().nth(rng.random_range(0..live.len())).expect("not empty");
                live.remove(&start);
                blocks.give(start);
            } else {
                let size = rng.random_range(0..8192);
                let start = blocks.take(size).expect("room");
                assert_eq!(start % ALIGNMENT, 0);
                let before = live.range(..=start).next_back();
                assert!(before.is_none_or(|(s, n)| s + n.max(&1) <= start));
                assert!(live.range(start..).next().is_none_or(|(s, _)| start + size <= *s));
                live.insert(start, size);
            }
            let mut end = None;
            for (start, size) in &blocks.free {
                assert!(end.is_none_or(|end| end < *start), "two free blocks touch");
                end = Some(start + size);
            }
            assert!(end.is_none_or(|end| end < blocks.top), "the last free block touches the top");
            assert_eq!(blocks.free.len(), blocks.by_size.len());
        }
        for start in live.into_keys() {
            blocks.give(start);
        }
        assert_eq!((blocks.top, blocks.free.len()), (0, 0));
    }

    #[test]
    fn a_full_range_gives_none_and_the_best_fit_is_taken() {
        let mut blocks = Blocks { len: 1024, ..Blocks::default() };
        let starts: Vec<usize> = [256, 64, 128, 64].iter().filter_map(|n| blocks.take(*n)).collect();
        assert_eq!(starts, [0, 256, 320, 448]);
        assert_eq!(blocks.take(1024), None);
        assert_eq!(blocks.take(usize::MAX), None);
        blocks.give(0);
        blocks.give(320);
        assert_eq!(blocks.take(100), Some(320));
        assert_eq!(blocks.take(100), Some(0));
        blocks.give(7);
        assert_eq!(blocks.take(120), Some(128));
    }
}
