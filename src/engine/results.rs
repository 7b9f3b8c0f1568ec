//! What steps measured, read when somebody asks.
//!
//! Reading a number from a device waits for everything before it. So each is copied, in the stream's order, to a place of its own in
//! pinned memory, and looked at together with those of many steps.

use super::arena::{Buffer, Memory};
use super::cuda::Device;
use super::program::Losses;
use crate::error::Result;

/// Numbers that there is place for, if a step has not more.
const PLACES: usize = 4096;

/// Numbers on their way to the host.
pub(super) struct Results {
    memory: Memory,
    places: Places,
    next: usize,
    /// Of steps whose numbers are on their way, in order.
    steps: Vec<Vec<Part>>,
    done: Vec<Losses>,
}

enum Places {
    Host(Vec<f32>),
    Pinned { gpu: &'static Device, numbers: *mut f32, len: usize },
}

impl Places {
    fn new(memory: Memory, len: usize) -> Result<Self> {
        Ok(match memory.gpu() {
            None => Self::Host(vec![0.0; len]),
            Some(gpu) => {
                let numbers = gpu.allocate_pinned(len * size_of::<f32>())?.cast();
                Self::Pinned { gpu, numbers, len }
            }
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Host(numbers) => numbers.len(),
            Self::Pinned { len, .. } => *len,
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Self::Pinned { gpu, numbers, .. } = self {
            // Copies may be under way; nothing can be done about a failure.
            drop(gpu.synchronize());
            // SAFETY: made by this value, and all copies are over.
            unsafe { gpu.free_pinned(numbers.cast()) };
        }
    }
}

/// Where a number will be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize);

/// The part of a step that one micro-batch is.
pub(super) struct Part {
    pub share: f32,
    pub ascent: Option<Place>,
    pub descent: Place,
    pub correct: Place,
}

impl Results {
    pub fn new(memory: Memory) -> Result<Self> {
        let places = Places::new(memory, PLACES)?;
        Ok(Self { memory, places, next: 0, steps: Vec::new(), done: Vec::new() })
    }

    /// Makes place for a step of that many parts.
    pub fn begin(&mut self, parts: usize) -> Result<()> {
        let most = 3 * parts;
        if self.next + most > self.places.len() {
            self.settle()?;
        }
        if most > self.places.len() {
            self.places = Places::new(self.memory, most)?;
        }
        Ok(())
    }

    /// Copies the first number of a buffer, as it is at this point of the stream.
    pub fn take(&mut self, buffer: &Buffer) -> Result<Place> {
        let place = Place(self.next);
        if place.0 >= self.places.len() {
            crate::bail!("a step has more numbers than it began with");
        }
        match &mut self.places {
            Places::Host(numbers) => numbers[place.0] = buffer.scalar()?,
            // SAFETY: the place is within the block, which is pinned, and nobody reads it before `settle` has waited.
            Places::Pinned { gpu, numbers, .. } => unsafe {
                gpu.copy(buffer.pointer(0, size_of::<f32>())?, numbers.add(place.0).cast(), size_of::<f32>())?;
            },
        }
        self.next += 1;
        Ok(place)
    }

    /// A number, if it is there at no cost: on the host.
    pub fn now(&self, place: Place) -> Option<f32> {
        match &self.places {
            Places::Host(numbers) => Some(numbers[place.0]),
            Places::Pinned { .. } => None,
        }
    }

    /// Ends a step.
    pub fn end(&mut self, step: Vec<Part>) {
        self.steps.push(step);
    }

    /// Waits for all numbers, and frees their places.
    fn settle(&mut self) -> Result<()> {
        if let Places::Pinned { gpu, .. } = self.places {
            gpu.synchronize()?;
        }
        let number = |place: Place| match &self.places {
            Places::Host(numbers) => numbers[place.0],
            // SAFETY: the copy into this place is over.
            Places::Pinned { numbers, .. } => unsafe { numbers.add(place.0).read() },
        };
        for step in self.steps.drain(..) {
            let mut losses = Losses { ascent: None, descent: 0.0, correct: 0.0 };
            for part in step {
                let (ascent, descent, correct) = (part.ascent.map(number), number(part.descent), number(part.correct));
                losses.add(Losses { ascent, descent, correct }, part.share);
            }
            self.done.push(losses);
        }
        self.next = 0;
        Ok(())
    }

    /// What the steps since the last call measured, in order.
    pub fn finish(&mut self) -> Result<Vec<Losses>> {
        self.settle()?;
        Ok(std::mem::take(&mut self.done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where a step has more parts than there is place for at first.
    #[test]
    fn numbers_come_in_order_on_either_side() -> Result<()> {
        for memory in Memory::of_either() {
            let (mut results, buffer) = (Results::new(memory)?, memory.zeros(4)?);
            let mut want = Vec::new();
            for (step, parts) in [1, 2, PLACES, 1].into_iter().enumerate() {
                results.begin(parts)?;
                let mut made = Vec::new();
                for part in 0..parts {
                    let mut take = |value: f32| {
                        buffer.write_f32(&[value])?;
                        results.take(&buffer)
                    };
                    let (ascent, descent, correct) = (take(step as f32)?, take(2.0)?, take(part as f32)?);
                    made.push(Part { share: 1.0 / parts as f32, ascent: Some(ascent), descent, correct });
                }
                results.end(made);
                want.push((step as f32, (parts * (parts - 1) / 2) as f32));
            }
            let got = results.finish()?;
            for (got, (ascent, correct)) in got.iter().zip(&want) {
                assert!((got.ascent.unwrap_or(-1.0) - ascent).abs() < 1e-3 && (got.descent - 2.0).abs() < 1e-3);
                assert!((got.correct - correct).abs() <= 1e-3 * correct);
            }
            assert_eq!((got.len(), results.finish()?.len()), (4, 0));
        }
        Ok(())
    }
}
