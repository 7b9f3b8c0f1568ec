//! `TensorProto` ↔ [`Tensor`].

use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};
use onnx_protobuf::TensorProto;

/// Reads a tensor whose data is in the message itself.
///
/// # Errors
/// Negative dimensions, a type this crate has no tensors of, data that does not fill the shape, or data kept outside.
pub fn to_tensor(proto: &TensorProto) -> Result<Tensor> {
    if let Some(tensor) = narrow(proto)? {
        return Ok(tensor);
    }
    let (dtype, shape) = header(proto)?;
    if proto.data_location.enum_value_or_default() == onnx_protobuf::tensor_proto::DataLocation::EXTERNAL {
        crate::bail!("its data lies outside the file");
    }
    if !proto.raw_data.is_empty() {
        return Tensor::from_bytes(dtype, &shape, proto.raw_data.clone());
    }
    let bytes: Vec<u8> = match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U32 => proto.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
        // Everything up to 32 bits wide is widened to int32_data, low bytes first.
        _ => proto.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(dtype.width())).collect(),
    };
    Tensor::from_bytes(dtype, &shape, bytes)
}

/// Bits of an element, and the type of 8 bits that holds it, of the integers that several share a byte.
pub(super) fn narrow_type(number: i32) -> Option<(usize, DType)> {
    match number {
        21 => Some((4, DType::U8)),
        22 => Some((4, DType::I8)),
        25 => Some((2, DType::U8)),
        26 => Some((2, DType::I8)),
        _ => None,
    }
}

/// A tensor of integers of 2 or 4 bits, an element a byte; `None` for other types.
fn narrow(proto: &TensorProto) -> Result<Option<Tensor>> {
    let Some((bits, dtype)) = narrow_type(proto.data_type) else { return Ok(None) };
    let widened = TensorProto { data_type: dtype.onnx(), dims: proto.dims.clone(), ..Default::default() };
    let (_, shape) = header(&widened)?;
    if proto.data_location.enum_value_or_default() == onnx_protobuf::tensor_proto::DataLocation::EXTERNAL {
        crate::bail!(
            "its data lies outside the file, which is not supported for type {}",
            DType::name_of(proto.data_type)
        );
    }
    let packed: Vec<u8> = match proto.raw_data.is_empty() {
        true => proto.int32_data.iter().map(|v| *v as u8).collect(),
        false => proto.raw_data.clone(),
    };
    let n: usize = shape.iter().product();
    let element = |i: usize| -> Option<f64> {
        // The first element is in the lowest bits.
        let byte = packed.get(i * bits / 8)? >> (i * bits % 8);
        let value = i32::from(byte) & ((1 << bits) - 1);
        let negative = dtype == DType::I8 && value >> (bits - 1) == 1;
        Some(f64::from(if negative { value - (1 << bits) } else { value }))
    };
    let values: Option<Vec<f64>> = (0..n).map(element).collect();
    let values = values.ok_or_else(|| Error::new(format!("{} bytes do not fill the shape {shape:?}", packed.len())))?;
    Ok(Some(Tensor::from_f64(dtype, &shape, &values)))
}

/// Refuses a tensor of strings.
pub(super) fn strings() -> Error {
    Error::new(
        "it holds strings, and what is computed from them reaches an output of numbers: only numbers can be trained",
    )
    .hint("export the network without the text processing before it, and feed it numbers")
}

/// Type and shape of a tensor, without its data.
///
/// # Errors
/// Negative or absurd dimensions, or a type this crate has no tensors of.
pub(super) fn header(proto: &TensorProto) -> Result<(DType, Vec<usize>)> {
    if proto.data_type == DType::Str.onnx() {
        return Err(strings());
    }
    let dtype = DType::from_onnx(proto.data_type).filter(|d| *d != DType::Str).ok_or_else(|| {
        Error::new(format!("tensors of type {} are not supported", DType::name_of(proto.data_type)))
            .hint("supported are float16/32/64, bfloat16, the integers of 8 to 64 bits and bool")
    })?;
    let shape: Option<Vec<usize>> = proto.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let fits = |s: &Vec<usize>| s.iter().try_fold(dtype.width(), |n, d| n.checked_mul(*d)).is_some();
    let shape = shape.filter(fits).ok_or_else(|| Error::new(format!("shape {:?} is not possible", proto.dims)))?;
    Ok((dtype, shape))
}

/// Writes a tensor, its data as raw bytes.
pub fn to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: tensor.shape().iter().map(|d| *d as i64).collect(),
        data_type: tensor.dtype().onnx(),
        raw_data: tensor.bytes().to_vec(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_types_are_read_from_int32_data() -> Result<()> {
        let proto = TensorProto {
            data_type: DType::F16.onnx(),
            dims: vec![2],
            int32_data: vec![0x3C00, 0x4000],
            ..Default::default()
        };
        assert_eq!(to_tensor(&proto)?.to_f32(), [1.0, 2.0]);
        Ok(())
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for dims in [vec![-1], vec![i64::MAX, 8], vec![3]] {
            let proto = TensorProto { data_type: 1, dims, float_data: vec![0.0; 2], ..Default::default() };
            assert!(to_tensor(&proto).is_err());
        }
    }

    #[test]
    fn integers_of_four_bits_are_read() -> Result<()> {
        let proto =
            |data_type| TensorProto { data_type, dims: vec![3], raw_data: vec![0xF1, 0x08], ..Default::default() };
        assert_eq!(to_tensor(&proto(22))?.to_f64(), [1.0, -1.0, -8.0]);
        assert_eq!(to_tensor(&proto(21))?.to_f64(), [1.0, 15.0, 8.0]);
        assert!(to_tensor(&TensorProto { dims: vec![9], ..proto(22) }).is_err());
        Ok(())
    }

    #[test]
    fn tensors_round_trip() -> Result<()> {
        let t = Tensor::new(&[2, 2], &[1.5f32, -2.0, 0.0, 3.0])?;
        assert_eq!(to_tensor(&to_proto("t", &t))?, t);
        Ok(())
    }
}
