//! Matrix products. Transposed factors are flags of `Gemm` wherever a product is two-dimensional.

use super::{Call, Cotangents};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Type, ValueId};

/// `alpha`·A′B′, where A′ is A or, with `ta`, Aᵀ; likewise B′; A and B of rank 2.
pub(super) fn gemm(b: &mut Builder<'_>, x: ValueId, ta: bool, y: ValueId, tb: bool, alpha: f32) -> ValueId {
    let m = b.shape(x)[usize::from(ta)];
    let n = b.shape(y)[usize::from(!tb)];
    let ty = Type::new(b.dtype(x), &[m, n]);
    let mut list = attrs([]);
    for (name, flag) in [("transA", ta), ("transB", tb)] {
        if flag {
            list.insert(name.into(), Attr::Int(1));
        }
    }
    if alpha != 1.0 {
        list.insert("alpha".into(), Attr::Float(alpha));
    }
    b.op("Gemm", &[x, y], list, ty)
}

/// Y = AB: Ā = ȲBᵀ, B̄ = AᵀȲ; A […,M,K], B […,K,N], Y […,M,N], leading dimensions broadcast; ONNX MatMul-13.
///
/// A of rank 1 is one row, B of rank 1 one column. With a B of rank 2, the leading dimensions of A and Ȳ are folded into M: one
/// product gives all of B̄.
pub fn matmul(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (left, right, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    let (sa, sb) = (b.shape(left).to_vec(), b.shape(right).to_vec());
    let (vector_a, vector_b) = (sa.len() == 1, sb.len() == 1);
    // The shapes with the row or column put in.
    let full_a = if vector_a { vec![1, sa[0]] } else { sa.clone() };
    let full_b = if vector_b { vec![sb[0], 1] } else { sb.clone() };
    let (k, n) = (full_b[full_b.len() - 2], full_b[full_b.len() - 1]);
    if full_b.len() == 2 {
        let m: usize = full_a[..full_a.len() - 1].iter().product();
        let dy = b.reshape(dy, &[m, n]);
        let right = b.reshape(right, &full_b);
        let da = c.wants(0).then(|| {
            let da = gemm(b, dy, false, right, true, 1.0);
            b.reshape(da, &sa)
        });
        let db = c.wants(1).then(|| {
            let left = b.reshape(left, &[m, k]);
            let db = gemm(b, left, true, dy, false, 1.0);
            b.reshape(db, &sb)
        });
        return Ok(vec![da, db]);
    }
    // Only A can be a vector here.
    let mut full_y = b.shape(dy).to_vec();
    if vector_a {
        full_y.insert(full_y.len() - 1, 1);
    }
    let dy = b.reshape(dy, &full_y);
    let left = b.reshape(left, &full_a);
    let da = if c.wants(0) {
        let right = b.transpose_last(right);
        Some(b.matmul(dy, right)?)
    } else {
        None
    };
    let db = if c.wants(1) {
        let left = b.transpose_last(left);
        Some(b.matmul(left, dy)?)
    } else {
        None
    };
    Ok(vec![da, db])
}

/// Y = αA′B′ + βC: Ā′ = αȲB′ᵀ, B̄′ = αA′ᵀȲ, C̄ = βȲ; A′ [M,K] is A or Aᵀ, B′ [K,N] is B or Bᵀ, C broadcasts to [M,N]; ONNX Gemm-13.
pub fn general_matmul(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (left, right, dy) = (c.x(0)?, c.x(1)?, c.dy()?);
    let (alpha, beta) = (c.attrs.float("alpha", 1.0)?, c.attrs.float("beta", 1.0)?);
    let (ta, tb) = (c.attrs.flag("transA", false)?, c.attrs.flag("transB", false)?);
    let da = c.wants(0).then(|| match ta {
        false => gemm(b, dy, false, right, !tb, alpha),
        true => gemm(b, right, tb, dy, true, alpha),
    });
    let db = c.wants(1).then(|| match tb {
        false => gemm(b, left, !ta, dy, false, alpha),
        true => gemm(b, dy, true, left, ta, alpha),
    });
    let dc = match c.opt(2).filter(|_| c.wants(2)) {
        Some(bias) => {
            let shape = b.shape(bias).to_vec();
            let sum = b.unbroadcast(dy, &shape);
            Some(b.scale(sum, f64::from(beta))?)
        }
        None => None,
    };
    Ok(vec![da, db, dc])
}

/// Y = einsum("a,b,…->y"): Ā is the product of Ȳ and the other operands, summed to A's letters and repeated along letters that
/// only A has; ONNX Einsum-12.
///
/// Refused are an ellipsis and a letter that one operand has twice.
pub fn einsum(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let equation: String = c.attrs.str("equation", "")?.chars().filter(|ch| !ch.is_whitespace()).collect();
    if equation.contains('.') {
        crate::bail!("the gradient of an einsum with an ellipsis is not supported");
    }
    let (left, output) = match equation.split_once("->") {
        Some((left, output)) => (left.to_owned(), output.to_owned()),
        None => {
            // Letters that occur once, in alphabetical order.
            let mut once: Vec<char> =
                equation.chars().filter(|ch| *ch != ',' && equation.matches(*ch).count() == 1).collect();
            once.sort_unstable();
            (equation.clone(), once.into_iter().collect())
        }
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.iter().any(|t| t.chars().any(|ch| t.matches(ch).count() > 1)) {
        crate::bail!("the gradient of the einsum `{equation}`, where one operand has a letter twice, is not supported");
    }
    let operands = (0..terms.len()).map(|i| c.x(i)).collect::<Result<Vec<_>>>()?;
    let size = |b: &Builder<'_>, letter: char| {
        let sizes = terms.iter().zip(&operands).filter_map(|(t, v)| t.find(letter).map(|at| b.shape(*v)[at]));
        // A size of 1 broadcasts.
        let sizes: Vec<usize> = sizes.collect();
        sizes.iter().copied().find(|d| *d != 1).unwrap_or(1)
    };
    let mut result = Vec::with_capacity(terms.len());
    for (i, term) in terms.iter().enumerate() {
        if !c.wants(i) {
            result.push(None);
            continue;
        }
        let (mut names, mut values) = (vec![output.as_str()], vec![c.dy()?]);
        for (j, other) in terms.iter().enumerate().filter(|(j, _)| *j != i) {
            names.push(other);
            values.push(operands[j]);
        }
        let known: String = term.chars().filter(|ch| names.iter().any(|n| n.contains(*ch))).collect();
        let shape: Vec<usize> = known.chars().map(|ch| size(b, ch)).collect();
        let ty = Type::new(b.dtype(values[0]), &shape);
        let text = format!("{}->{known}", names.join(","));
        let mut dx = if text == format!("{known}->{known}") {
            values[0]
        } else {
            b.op("Einsum", &values, attrs([("equation", Attr::Str(text))]), ty)
        };
        if known.len() < term.len() {
            let kept: Vec<usize> = term.chars().map(|ch| if known.contains(ch) { size(b, ch) } else { 1 }).collect();
            let full: Vec<usize> = term.chars().map(|ch| size(b, ch)).collect();
            dx = b.reshape(dx, &kept);
            dx = b.expand(dx, &full);
        }
        result.push(Some(dx));
    }
    Ok(result)
}
