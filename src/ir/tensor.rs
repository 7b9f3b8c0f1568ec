//! Constant tensors: shape, type and raw little-endian bytes.

use super::{DType, Element, Type};
use crate::error::Result;
use half::{bf16, f16};
use std::sync::Arc;

/// A dense, row-major tensor. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Arc<Vec<u8>>,
}

impl Tensor {
    /// A tensor from typed elements.
    ///
    /// # Errors
    /// When the number of elements differs from the shape's.
    pub fn new<T: Element>(shape: &[usize], data: &[T]) -> Result<Self> {
        Self::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(data).to_vec())
    }

    /// A tensor from raw little-endian bytes.
    ///
    /// # Errors
    /// When the number of bytes differs from the shape's, or the type is string.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Self> {
        let want = shape.iter().try_fold(dtype.width(), |n, d| n.checked_mul(*d));
        if want != Some(bytes.len()) || dtype == DType::Str {
            crate::bail!("tensor of {dtype} {shape:?} cannot have {} bytes", bytes.len());
        }
        Ok(Self { dtype, shape: shape.to_vec(), bytes: Arc::new(bytes) })
    }

    /// A rank-0 tensor of type `dtype`, rounded to it.
    pub fn scalar(dtype: DType, value: f64) -> Self {
        Self::from_f64(dtype, &[], &[value])
    }

    /// A tensor whose elements all equal `value`.
    pub fn full(dtype: DType, shape: &[usize], value: f64) -> Self {
        Self::from_f64(dtype, shape, &vec![value; shape.iter().product()])
    }

    /// A tensor of type `dtype`, each value rounded to it (booleans: not zero). Missing values are zero.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        let n: usize = shape.iter().product();
        let values = values.iter().copied().chain(std::iter::repeat(0.0)).take(n);
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.flat_map(|v| (v as f32).to_le_bytes()).collect(),
            DType::F64 => values.flat_map(f64::to_le_bytes).collect(),
            DType::F16 => values.flat_map(|v| f16::from_f64(v).to_le_bytes()).collect(),
            DType::BF16 => values.flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect(),
            DType::I8 => values.flat_map(|v| (v as i8).to_le_bytes()).collect(),
            DType::I16 => values.flat_map(|v| (v as i16).to_le_bytes()).collect(),
            DType::I32 => values.flat_map(|v| (v as i32).to_le_bytes()).collect(),
            DType::I64 => values.flat_map(|v| (v as i64).to_le_bytes()).collect(),
            DType::U8 => values.flat_map(|v| (v as u8).to_le_bytes()).collect(),
            DType::U16 => values.flat_map(|v| (v as u16).to_le_bytes()).collect(),
            DType::U32 => values.flat_map(|v| (v as u32).to_le_bytes()).collect(),
            DType::U64 => values.flat_map(|v| (v as u64).to_le_bytes()).collect(),
            DType::Bool => values.map(|v| u8::from(v != 0.0)).collect(),
            DType::Str => Vec::new(),
        };
        Self { dtype, shape: shape.to_vec(), bytes: Arc::new(bytes) }
    }

    /// A vector of integers, as ONNX takes axes, shapes and pads.
    pub fn ints(values: &[i64]) -> Self {
        Self { dtype: DType::I64, shape: vec![values.len()], bytes: Arc::new(bytemuck::cast_slice(values).to_vec()) }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type and shape.
    pub fn ty(&self) -> Type {
        Type { dtype: self.dtype, shape: self.shape.clone() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Raw little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements, when their type is `T`; `None` otherwise.
    pub fn to_vec<T: Element>(&self) -> Option<Vec<T>> {
        (self.dtype == T::DTYPE).then(|| bytemuck::pod_collect_to_vec(&self.bytes))
    }

    /// The elements as `f64`, whatever their type (exact up to 2^53).
    pub fn to_f64(&self) -> Vec<f64> {
        fn all<T: bytemuck::Pod>(bytes: &[u8], f: impl Fn(T) -> f64) -> Vec<f64> {
            bytemuck::pod_collect_to_vec::<u8, T>(bytes).into_iter().map(f).collect()
        }
        let b = self.bytes.as_slice();
        match self.dtype {
            DType::F32 => all::<f32>(b, f64::from),
            DType::F64 => all::<f64>(b, |v| v),
            DType::F16 => all::<u16>(b, |v| f16::from_bits(v).to_f64()),
            DType::BF16 => all::<u16>(b, |v| bf16::from_bits(v).to_f64()),
            DType::I8 => all::<i8>(b, f64::from),
            DType::I16 => all::<i16>(b, f64::from),
            DType::I32 => all::<i32>(b, f64::from),
            DType::I64 => all::<i64>(b, |v| v as f64),
            DType::U8 | DType::Bool => all::<u8>(b, f64::from),
            DType::U16 => all::<u16>(b, f64::from),
            DType::U32 => all::<u32>(b, f64::from),
            DType::U64 => all::<u64>(b, |v| v as f64),
            DType::Str => Vec::new(),
        }
    }

    /// Whether some element fulfils a condition; does not copy floats.
    pub fn any(&self, condition: impl Fn(f64) -> bool) -> bool {
        match self.dtype {
            DType::F32 => {
                self.bytes.chunks_exact(4).any(|b| condition(f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))))
            }
            _ => self.to_f64().into_iter().any(condition),
        }
    }

    /// The elements as `f32`, whatever their type.
    pub fn to_f32(&self) -> Vec<f32> {
        self.to_vec::<f32>().unwrap_or_else(|| self.to_f64().into_iter().map(|v| v as f32).collect())
    }

    /// The elements as `i64`, when their type is an integer or boolean one.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        if self.dtype == DType::I64 {
            return self.to_vec();
        }
        let exact = !self.dtype.is_float() && self.dtype != DType::Str;
        exact.then(|| self.to_f64().into_iter().map(|v| v as i64).collect())
    }

    /// The one element every element equals; `None` when they differ or there are none. Zeros are equal, whatever their signs.
    pub fn uniform(&self) -> Option<f64> {
        let width = self.dtype.width();
        let first = self.bytes.get(..width)?;
        let is_zero = |element: &[u8]| {
            let sign = if self.dtype.is_float() { 0x80 } else { 0 };
            element.split_last().is_some_and(|(last, rest)| last & !sign == 0 && rest.iter().all(|b| *b == 0))
        };
        let mut elements = self.bytes.chunks_exact(width);
        let alike = if is_zero(first) { elements.all(is_zero) } else { elements.all(|e| e == first) };
        alike.then(|| Self::from_bytes(self.dtype, &[], first.to_vec()).ok()?.to_f64().first().copied()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_either_sign_are_uniform() -> Result<()> {
        assert_eq!(Tensor::new(&[3], &[0.0f32, -0.0, 0.0])?.uniform(), Some(0.0));
        assert_eq!(Tensor::new(&[2], &[-0.0f32, 1.0])?.uniform(), None);
        assert_eq!(Tensor::new(&[2], &[i64::MIN, 0])?.uniform(), None);
        assert_eq!(Tensor::new(&[2], &[2.5f32, 2.5])?.uniform(), Some(2.5));
        Ok(())
    }
}
