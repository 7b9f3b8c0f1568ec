//! Element types, as numbered by ONNX `TensorProto.DataType`.

use std::fmt;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
    Str,
}

/// Number, width in bytes and name of every type; the one place that lists them.
const TABLE: [(DType, i32, usize, &str); 14] = [
    (DType::F32, 1, 4, "f32"),
    (DType::U8, 2, 1, "u8"),
    (DType::I8, 3, 1, "i8"),
    (DType::U16, 4, 2, "u16"),
    (DType::I16, 5, 2, "i16"),
    (DType::I32, 6, 4, "i32"),
    (DType::I64, 7, 8, "i64"),
    (DType::Str, 8, 0, "string"),
    (DType::Bool, 9, 1, "bool"),
    (DType::F16, 10, 2, "f16"),
    (DType::F64, 11, 8, "f64"),
    (DType::U32, 12, 4, "u32"),
    (DType::U64, 13, 8, "u64"),
    (DType::BF16, 16, 2, "bf16"),
];

impl DType {
    fn row(self) -> &'static (DType, i32, usize, &'static str) {
        TABLE.iter().find(|r| r.0 == self).unwrap_or(&TABLE[0])
    }

    /// The name of an ONNX number, also of a type that this crate has no tensors of.
    pub fn name_of(number: i32) -> String {
        const OTHERS: &[(i32, &str)] = &[
            (14, "complex64"),
            (15, "complex128"),
            (17, "float8e4m3fn"),
            (18, "float8e4m3fnuz"),
            (19, "float8e5m2"),
            (20, "float8e5m2fnuz"),
            (21, "uint4"),
            (22, "int4"),
            (23, "float4e2m1"),
            (24, "float8e8m0"),
            (25, "uint2"),
            (26, "int2"),
        ];
        let other = OTHERS.iter().find(|(n, _)| *n == number).map(|(_, name)| (*name).to_owned());
        let known = Self::from_onnx(number).map(|t| t.to_string());
        known.or(other).unwrap_or_else(|| format!("number {number}"))
    }

    /// The ONNX number (`TensorProto.DataType`).
    pub fn onnx(self) -> i32 {
        self.row().1
    }

    /// The type of an ONNX number; `None` for types this crate has no tensors of (complex, float8, int4).
    pub fn from_onnx(number: i32) -> Option<Self> {
        TABLE.iter().find(|r| r.1 == number).map(|r| r.0)
    }

    /// Bytes per element; 0 for strings.
    pub fn width(self) -> usize {
        self.row().2
    }

    /// Whether a gradient can flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().3)
    }
}

/// Rust types with a [`DType`] of the same layout.
pub trait Element: bytemuck::Pod {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
element!(f32 => F32, f64 => F64, i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64);
