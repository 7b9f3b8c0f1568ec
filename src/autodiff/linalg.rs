//! Matrix products. Transposed factors are flags of `Gemm` wherever a product is two-dimensional.

use super::{Call, Cotangents};
use crate::builder::{Builder, attrs};
use crate::error::Result;
use crate::ir::{Attr, Tensor, Type, ValueId};

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
    let operands = (0..c.node.inputs.len()).map(|i| c.x(i)).collect::<Result<Vec<_>>>()?;
    let ranks: Vec<usize> = operands.iter().map(|v| b.rank(*v)).collect();
    let equation = without_ellipsis(&equation, &ranks)?;
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
    if terms.len() != operands.len() || terms.iter().zip(&ranks).any(|(t, r)| t.chars().count() != *r) {
        crate::bail!("the einsum `{equation}` does not fit operands of ranks {ranks:?}");
    }
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
        // A letter twice in one operand reads its diagonal.
        let mut letters = String::new();
        term.chars().for_each(|ch| letters.extend((!letters.contains(ch)).then_some(ch)));
        let known: String = letters.chars().filter(|ch| names.iter().any(|n| n.contains(*ch))).collect();
        let shape: Vec<usize> = known.chars().map(|ch| size(b, ch)).collect();
        let ty = Type::new(b.dtype(values[0]), &shape);
        let text = format!("{}->{known}", names.join(","));
        let mut dx = if text == format!("{known}->{known}") {
            values[0]
        } else {
            b.op("Einsum", &values, attrs([("equation", Attr::Str(text))]), ty)
        };
        if known.len() < term.len() {
            let first = |(at, ch): (usize, char)| term.find(ch) == Some(at) && known.contains(ch);
            let kept: Vec<usize> =
                term.char_indices().map(|(at, ch)| if first((at, ch)) { size(b, ch) } else { 1 }).collect();
            let full: Vec<usize> = term.chars().map(|ch| size(b, ch)).collect();
            dx = b.reshape(dx, &kept);
            dx = b.expand(dx, &full);
        }
        for (at, ch) in term.char_indices() {
            let first = term.find(ch).unwrap_or(at);
            if first < at {
                let diagonal = diagonal(b, dx, (first, at), term.len())?;
                dx = b.mul(dx, diagonal)?;
            }
        }
        result.push(Some(dx));
    }
    Ok(result)
}

/// The equation with letters for `...`, which stands for what is left of each operand's rank.
fn without_ellipsis(equation: &str, ranks: &[usize]) -> Result<String> {
    if !equation.contains('.') {
        return Ok(equation.to_owned());
    }
    let (left, output) = equation.split_once("->").unwrap_or((equation, ""));
    let letters = |text: &str| text.chars().filter(|ch| ch.is_alphabetic()).count();
    let spread: Vec<usize> = left.split(',').zip(ranks).map(|(t, r)| r.saturating_sub(letters(t))).collect();
    let widest = spread.iter().copied().max().unwrap_or(0);
    let free: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|ch| !equation.contains(*ch)).collect();
    let Some(free) = free.get(..widest) else { crate::bail!("the einsum `{equation}` has too many letters") };
    // Aligned at the end, as broadcasting is.
    let last = |n: usize| free[widest - n..].iter().collect::<String>();
    let terms: Vec<String> = left.split(',').zip(&spread).map(|(t, n)| t.replace("...", &last(*n))).collect();
    let left = terms.join(",");
    if equation.contains("->") {
        return Ok(format!("{left}->{}", output.replace("...", &last(widest))));
    }
    let named = left.chars().filter(|ch| ch.is_alphabetic() && !free.contains(ch));
    let mut once: Vec<char> = named.filter(|ch| left.matches(*ch).count() == 1).collect();
    once.sort_unstable();
    Ok(format!("{left}->{}{}", last(widest), once.into_iter().collect::<String>()))
}

/// 1 where two dimensions of `like` have the same index, in a shape that broadcasts to `rank` dimensions.
fn diagonal(b: &mut Builder<'_>, like: ValueId, (i, j): (usize, usize), rank: usize) -> Result<ValueId> {
    let (n, dtype) = (b.shape(like)[i], b.dtype(like));
    let mut shape = vec![1; rank];
    (shape[i], shape[j]) = (n, b.shape(like)[j]);
    let ones = |k: usize| f64::from(u8::from(k / n.max(1) == k % n.max(1)));
    Ok(b.constant(Tensor::from_f64(dtype, &shape, &(0..n * n).map(ones).collect::<Vec<_>>())))
}

/// Y = |X|: X̄ = Ȳ·cof X, every element of which is the determinant of what is left of X without its row and column; X […,N,N]; ONNX
/// Det-22.
pub fn det(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let (x, dy) = (c.x(0)?, c.dy()?);
    let Type { dtype, shape } = b.ty(x);
    let (rank, n) = (shape.len(), shape[shape.len() - 1]);
    let lead = &shape[..rank - 2];
    let batch: usize = lead.iter().product();
    let wide = b.reshape(dy, &[lead, &[1, 1]].concat());
    if n == 1 {
        return Ok(vec![Some(wide)]);
    }
    if n > LARGEST_DET {
        crate::bail!("the gradient of the determinant of {n} rows is not supported; {LARGEST_DET} are");
    }
    // The places of every minor's elements in X.
    let rest = |k: usize| (0..n).filter(move |i| *i != k);
    let minor = |i: usize, j: usize| rest(i).flat_map(move |r| rest(j).map(move |s| (r * n + s) as i64));
    let places: Vec<i64> = (0..n * n).flat_map(|k| minor(k / n, k % n)).collect();
    let places = b.ints(&places);
    let flat = b.reshape(x, &[batch, n * n]);
    let minors = b.gather(flat, places, 1);
    let minors = b.reshape(minors, &[batch, n * n, n - 1, n - 1]);
    let minors = b.op("Det", &[minors], attrs([]), Type::new(dtype, &[batch, n * n]));
    let signs: Vec<f64> = (0..n * n).map(|k| if (k / n + k % n) % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let signs = b.constant(Tensor::from_f64(dtype, &[n * n], &signs));
    let cofactors = b.mul(minors, signs)?;
    let cofactors = b.reshape(cofactors, &shape);
    Ok(vec![Some(b.mul(wide, cofactors)?)])
}

/// Rows of a matrix whose determinant is differentiated: the minors of N rows have N⁴ elements.
const LARGEST_DET: usize = 32;
