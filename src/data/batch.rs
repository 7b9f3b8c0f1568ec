//! What the loader hands out, and the pool its buffers return to.

use crate::ir::{Element, Type};
use std::sync::{Mutex, PoisonError};

/// Memory for one input of the model, aligned for every element type.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    ty: Type,
    /// In 8-byte words, for their alignment.
    words: Vec<u64>,
}

impl Buffer {
    /// A buffer of zeros.
    pub fn zeros(ty: Type) -> Self {
        let words = vec![0; ty.bytes().div_ceil(8)];
        Self { ty, words }
    }

    /// Type and shape; axis 0 is the batch.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Raw bytes in the machine's order, row-major.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.ty.bytes()]
    }

    /// The elements, when their type is `T`; `None` otherwise.
    pub fn elements<T: Element>(&self) -> Option<&[T]> {
        (self.ty.dtype == T::DTYPE).then(|| bytemuck::cast_slice(self.bytes()))
    }

    /// Row `row` along axis 0.
    pub(super) fn row_bytes_mut(&mut self, row: usize) -> &mut [u8] {
        let len = self.ty.bytes() / self.ty.shape.first().copied().unwrap_or_default().max(1);
        &mut self.bytes_mut()[row * len..][..len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.ty.bytes()]
    }

    /// Row `row` along axis 0 as elements of the width of this buffer's type.
    pub(super) fn row_mut<T: bytemuck::Pod>(&mut self, row: usize) -> &mut [T] {
        let len = self.ty.shape.iter().skip(1).product::<usize>();
        &mut bytemuck::cast_slice_mut(self.bytes_mut())[row * len..][..len]
    }
}

/// The inputs and labels of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Number of this batch in its epoch.
    pub index: usize,
    /// One buffer per input of the model, in the order of the loader's inputs.
    pub inputs: Vec<Buffer>,
    /// Class of each row, the padding included.
    pub labels: Vec<i64>,
    /// How many rows are samples; the rest repeats the last one.
    pub len: usize,
}

/// Buffers of batches that are done with, for the next ones.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Vec<Buffer>>>);

impl Pool {
    /// Buffers of these types: recycled ones, with their old contents, or new ones.
    pub(super) fn take(&self, types: &[Type]) -> Vec<Buffer> {
        let recycled = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match recycled {
            Some(buffers) if buffers.iter().map(Buffer::ty).eq(types) => buffers,
            _ => types.iter().cloned().map(Buffer::zeros).collect(),
        }
    }

    pub(super) fn give(&self, buffers: Vec<Buffer>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    #[test]
    fn buffers_are_typed_and_recycled_when_they_fit() {
        let ty = Type::new(DType::F32, &[2, 3]);
        let pool = Pool::default();
        let mut buffers = pool.take(std::slice::from_ref(&ty));
        buffers[0].row_mut::<f32>(1).copy_from_slice(&[1.0, 2.0, 3.0]);
        assert_eq!(buffers[0].elements::<f32>(), Some(&[0.0, 0.0, 0.0, 1.0, 2.0, 3.0][..]));
        assert_eq!((buffers[0].elements::<i32>(), buffers[0].bytes().len()), (None, 24));
        pool.give(buffers.clone());
        assert_eq!(pool.take(std::slice::from_ref(&ty)), buffers);
        pool.give(buffers);
        assert_eq!(pool.take(&[Type::new(DType::F32, &[1, 3])])[0].bytes(), [0; 12]);
    }
}
