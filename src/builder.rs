//! Appends typed nodes to a concretized graph.
//!
//! Every method infers the type of what it emits, so a rule can ask for the shape of any value it made. Two peepholes keep
//! the graph small: equal nodes are emitted once, and nodes that would change nothing are not emitted at all.

use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, DType, Graph, Node, Source, Tensor, Type, ValueId};
use std::collections::HashMap;

/// Elements from which on a vector is summed in rows, and elements of a row; the flat buffers' length is a multiple of it.
const LONG: usize = 1 << 16;
const ROW: usize = 64;

/// Appends nodes to `graph`; every value the graph already holds must have a type.
pub struct Builder<'g> {
    /// The graph that grows.
    pub graph: &'g mut Graph,
    scope: String,
    seen: HashMap<Key, Vec<ValueId>>,
    constants: HashMap<(DType, Vec<usize>, Vec<u8>), ValueId>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key(String, Vec<Option<ValueId>>, String);

/// What a reduction keeps and drops.
fn reduced(shape: &[usize], axes: &[usize], keepdims: bool) -> Vec<usize> {
    let dim = |(i, d): (usize, &usize)| if axes.contains(&i) { keepdims.then_some(1) } else { Some(*d) };
    shape.iter().enumerate().filter_map(dim).collect()
}

/// The shape two operands broadcast to (numpy's rule, as in ONNX); `None` when they do not.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

fn as_i64(values: &[usize]) -> Vec<i64> {
    values.iter().map(|v| *v as i64).collect()
}

/// Shorthand for the attributes of a node: `attrs([("axis", Attr::Int(1))])`.
pub fn attrs<const N: usize>(list: [(&str, Attr); N]) -> Attrs {
    list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

impl<'g> Builder<'g> {
    /// Appends to `graph`; new names start with `scope`.
    pub fn new(graph: &'g mut Graph, scope: &str) -> Self {
        Self { graph, scope: scope.to_owned(), seen: HashMap::new(), constants: HashMap::new() }
    }

    /// Sets what the names of new nodes start with.
    pub fn scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// Type of a value. Values without one have rank 0 here; [`Graph::check_typed`] excludes them.
    pub fn ty(&self, v: ValueId) -> Type {
        self.graph[v].ty.clone().unwrap_or(Type::new(DType::F32, &[]))
    }

    /// Shape of a value.
    pub fn shape(&self, v: ValueId) -> &[usize] {
        self.graph[v].ty.as_ref().map_or(&[], |t| &t.shape)
    }

    /// Number of dimensions of a value.
    pub fn rank(&self, v: ValueId) -> usize {
        self.shape(v).len()
    }

    /// Element type of a value.
    pub fn dtype(&self, v: ValueId) -> DType {
        self.ty(v).dtype
    }

    /// Number of elements of a value.
    pub fn len(&self, v: ValueId) -> usize {
        self.shape(v).iter().product()
    }

    /// Resolves a possibly negative axis of `v`.
    ///
    /// # Errors
    /// When it is out of range.
    pub fn axis(&self, v: ValueId, axis: i64) -> Result<usize> {
        let rank = self.rank(v) as i64;
        if axis < -rank || axis >= rank {
            crate::bail!("axis {axis} is out of range for rank {rank}");
        }
        Ok(axis.rem_euclid(rank) as usize)
    }

    /// Appends any operator of any domain. `outputs` gives the type of each output.
    pub fn raw(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[Option<ValueId>],
        attrs: Attrs,
        outputs: &[Type],
    ) -> Vec<ValueId> {
        let key = Key(format!("{domain}.{op}/{}", outputs.len()), inputs.to_vec(), format!("{attrs:?}"));
        if let Some(values) = self.seen.get(&key) {
            return values.clone();
        }
        let base = format!("{}/{op}", self.scope);
        let values: Vec<ValueId> =
            outputs.iter().map(|ty| self.graph.add_value(&base, Some(ty.clone()), Source::Node)).collect();
        let mut inputs = inputs.to_vec();
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let name = self.graph[values[0]].name.clone();
        self.graph.nodes.push(Node {
            name,
            domain: domain.into(),
            op: op.into(),
            inputs,
            outputs: values.iter().copied().map(Some).collect(),
            attrs,
        });
        self.seen.insert(key, values.clone());
        values
    }

    /// Appends an operator of the default domain with all inputs there and one output.
    pub fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs, ty: Type) -> ValueId {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.raw("", op, &inputs, attrs, &[ty])[0]
    }

    /// A constant; equal constants are shared.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
        if let Some(v) = self.constants.get(&key) {
            return *v;
        }
        let v = self.graph.add_value("const", None, Source::Constant(tensor));
        self.constants.insert(key, v);
        v
    }

    /// A rank-0 constant.
    pub fn scalar(&mut self, value: f64, dtype: DType) -> ValueId {
        self.constant(Tensor::scalar(dtype, value))
    }

    /// A rank-0 constant of the type of `like`.
    pub fn scalar_like(&mut self, value: f64, like: ValueId) -> ValueId {
        let dtype = self.dtype(like);
        self.scalar(value, dtype)
    }

    /// An i64 vector constant, as ONNX takes axes, shapes and pads.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::ints(values))
    }

    /// Zeros of type `ty`.
    pub fn zeros(&mut self, ty: &Type) -> ValueId {
        let zero = self.scalar(0.0, ty.dtype);
        self.expand(zero, &ty.shape)
    }

    /// An elementwise operator that keeps type and shape: `Neg`, `Exp`, `Log`, `Sqrt`, `Abs`, `Sign`, `Relu`, `Sigmoid`, …
    pub fn unary(&mut self, op: &str, x: ValueId) -> ValueId {
        let ty = self.ty(x);
        self.op(op, &[x], Attrs::new(), ty)
    }

    /// An elementwise operator of two broadcast operands: `Add`, `Sub`, `Mul`, `Div`, `Pow`, `Max`, `Min`, or, with a boolean
    /// result, `Equal`, `Less`, `Greater`, `LessOrEqual`, `GreaterOrEqual`, `And`, `Or`.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn binary(&mut self, op: &str, a: ValueId, b: ValueId) -> Result<ValueId> {
        let (sa, sb) = (self.shape(a), self.shape(b));
        let shape = broadcast(sa, sb).ok_or_else(|| Error::new(format!("{op} of shapes {sa:?} and {sb:?}")))?;
        let boolean = matches!(op, "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual");
        let dtype = if boolean { DType::Bool } else { self.dtype(a) };
        Ok(self.op(op, &[a, b], Attrs::new(), Type { dtype, shape }))
    }

    /// Whether `v` is a constant of rank 0 (or one element and no more dimensions than `other`) equal to `value`.
    fn is_neutral(&self, v: ValueId, other: ValueId, value: f64) -> bool {
        self.rank(v) <= self.rank(other)
            && self.graph.constant(v).is_some_and(|t| t.len() == 1 && t.uniform() == Some(value))
    }

    /// a + b, broadcast.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        match () {
            () if self.is_neutral(a, b, 0.0) => Ok(b),
            () if self.is_neutral(b, a, 0.0) => Ok(a),
            () => self.binary("Add", a, b),
        }
    }

    /// a − b, broadcast.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        if self.is_neutral(b, a, 0.0) { Ok(a) } else { self.binary("Sub", a, b) }
    }

    /// a · b, broadcast.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        match () {
            () if self.is_neutral(a, b, 1.0) => Ok(b),
            () if self.is_neutral(b, a, 1.0) => Ok(a),
            () => self.binary("Mul", a, b),
        }
    }

    /// a / b, broadcast.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn div(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        if self.is_neutral(b, a, 1.0) { Ok(a) } else { self.binary("Div", a, b) }
    }

    /// `factor` · a.
    ///
    /// # Errors
    /// Never; it keeps the signature of its neighbours.
    pub fn scale(&mut self, a: ValueId, factor: f64) -> Result<ValueId> {
        if factor == -1.0 {
            return Ok(self.unary("Neg", a));
        }
        let f = self.scalar_like(factor, a);
        self.mul(a, f)
    }

    /// a + `offset`.
    ///
    /// # Errors
    /// Never; it keeps the signature of its neighbours.
    pub fn offset(&mut self, a: ValueId, offset: f64) -> Result<ValueId> {
        let f = self.scalar_like(offset, a);
        self.add(a, f)
    }

    /// -a.
    pub fn neg(&mut self, a: ValueId) -> ValueId {
        self.unary("Neg", a)
    }

    /// 1 − a.
    ///
    /// # Errors
    /// Never; it keeps the signature of its neighbours.
    pub fn one_minus(&mut self, a: ValueId) -> Result<ValueId> {
        let one = self.scalar_like(1.0, a);
        self.sub(one, a)
    }

    /// a².
    ///
    /// # Errors
    /// Never; it keeps the signature of its neighbours.
    pub fn square(&mut self, a: ValueId) -> Result<ValueId> {
        self.mul(a, a)
    }

    /// `a` where `condition` holds, else `b`; all broadcast.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
        let shape = broadcast(self.shape(a), self.shape(b))
            .and_then(|s| broadcast(&s, self.shape(condition)))
            .ok_or_else(|| Error::new("Where of shapes that do not broadcast"))?;
        let ty = Type { dtype: self.dtype(a), shape };
        Ok(self.op("Where", &[condition, a, b], Attrs::new(), ty))
    }

    /// A 0/1 mask in the type of `like` of the comparison `op` (`Greater`, `Equal`, …). A mask multiplies; `Where` with a
    /// scalar branch is slow on CPU.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn mask(&mut self, op: &str, a: ValueId, b: ValueId, like: ValueId) -> Result<ValueId> {
        let condition = self.binary(op, a, b)?;
        let dtype = self.dtype(like);
        Ok(self.cast(condition, dtype))
    }

    /// Conversion to another element type.
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> ValueId {
        let ty = self.ty(x);
        if ty.dtype == dtype {
            return x;
        }
        let to = Attr::Int(i64::from(dtype.onnx()));
        self.op("Cast", &[x], attrs([("to", to)]), Type { dtype, shape: ty.shape })
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: ValueId, shape: &[usize]) -> ValueId {
        if self.shape(x) == shape {
            return x;
        }
        let dtype = self.dtype(x);
        let target = self.ints(&as_i64(shape));
        // Without allowzero a 0 copies the input's dimension; it is only needed where a dimension is 0.
        let zero = if shape.contains(&0) { attrs([("allowzero", Attr::Int(1))]) } else { Attrs::new() };
        self.op("Reshape", &[x, target], zero, Type::new(dtype, shape))
    }

    /// Dimension `i` of the result is dimension `perm[i]` of `x`.
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> ValueId {
        if perm.iter().enumerate().all(|(i, p)| i == *p) {
            return x;
        }
        let ty = self.ty(x);
        let shape: Vec<usize> = perm.iter().map(|p| ty.shape[*p]).collect();
        // Numbers stay in their places if only dimensions of size 1 move.
        if perm.iter().filter(|p| ty.shape[**p] != 1).is_sorted() {
            return self.reshape(x, &shape);
        }
        self.op("Transpose", &[x], attrs([("perm", Attr::Ints(as_i64(perm)))]), Type { dtype: ty.dtype, shape })
    }

    /// Swaps the last two dimensions.
    pub fn transpose_last(&mut self, x: ValueId) -> ValueId {
        let rank = self.rank(x);
        let mut perm: Vec<usize> = (0..rank).collect();
        if rank >= 2 {
            perm.swap(rank - 2, rank - 1);
        }
        self.transpose(x, &perm)
    }

    /// Repeats dimensions of size 1 to `shape`, which `x` must broadcast to.
    pub fn expand(&mut self, x: ValueId, shape: &[usize]) -> ValueId {
        if self.shape(x) == shape {
            return x;
        }
        let dtype = self.dtype(x);
        let target = self.ints(&as_i64(shape));
        self.op("Expand", &[x, target], Attrs::new(), Type::new(dtype, shape))
    }

    /// Joins along `axis`.
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> ValueId {
        if let [only] = parts {
            return *only;
        }
        let mut ty = self.ty(parts[0]);
        ty.shape[axis] = parts.iter().map(|p| self.shape(*p)[axis]).sum();
        self.op("Concat", parts, attrs([("axis", Attr::Int(axis as i64))]), ty)
    }

    /// Consecutive pieces of these sizes along `axis`.
    pub fn split(&mut self, x: ValueId, axis: usize, sizes: &[usize]) -> Vec<ValueId> {
        if sizes.len() == 1 {
            return vec![x];
        }
        let ty = self.ty(x);
        let mut types = vec![ty; sizes.len()];
        for (ty, size) in types.iter_mut().zip(sizes) {
            ty.shape[axis] = *size;
        }
        let list = self.ints(&as_i64(sizes));
        self.raw("", "Split", &[Some(x), Some(list)], attrs([("axis", Attr::Int(axis as i64))]), &types)
    }

    /// Elements `start..end` along each of `axes`.
    pub fn slice(&mut self, x: ValueId, axes: &[usize], starts: &[usize], ends: &[usize]) -> ValueId {
        let mut ty = self.ty(x);
        let whole = axes.iter().enumerate().all(|(i, a)| starts[i] == 0 && ends[i] == ty.shape[*a]);
        if whole {
            return x;
        }
        for (i, a) in axes.iter().enumerate() {
            ty.shape[*a] = ends[i] - starts[i];
        }
        let (s, e, a) = (self.ints(&as_i64(starts)), self.ints(&as_i64(ends)), self.ints(&as_i64(axes)));
        self.op("Slice", &[x, s, e, a], Attrs::new(), ty)
    }

    /// Every `steps`-th element of `start..end` along each of `axes`.
    pub fn slice_by(
        &mut self,
        x: ValueId,
        axes: &[usize],
        starts: &[usize],
        ends: &[usize],
        steps: &[usize],
    ) -> ValueId {
        if steps.iter().all(|s| *s == 1) {
            return self.slice(x, axes, starts, ends);
        }
        let mut ty = self.ty(x);
        for (i, a) in axes.iter().enumerate() {
            ty.shape[*a] = (ends[i] - starts[i]).div_ceil(steps[i]);
        }
        let lists = [starts, ends, axes, steps].map(|l| self.ints(&as_i64(l)));
        self.op("Slice", &[x, lists[0], lists[1], lists[2], lists[3]], Attrs::new(), ty)
    }

    /// The elements in the opposite order along each of `axes`.
    pub fn reverse(&mut self, x: ValueId, axes: &[usize]) -> ValueId {
        let axes: Vec<usize> = axes.iter().copied().filter(|a| self.shape(x)[*a] > 1).collect();
        if axes.is_empty() {
            return x;
        }
        let (minus, end) = (self.ints(&vec![-1; axes.len()]), self.ints(&vec![i64::MIN; axes.len()]));
        let list = self.ints(&as_i64(&axes));
        let ty = self.ty(x);
        self.op("Slice", &[x, minus, end, list, minus], Attrs::new(), ty)
    }

    /// Zero padding, `before` and `after` each dimension.
    pub fn pad(&mut self, x: ValueId, before: &[usize], after: &[usize]) -> ValueId {
        if before.iter().chain(after).all(|p| *p == 0) {
            return x;
        }
        let mut ty = self.ty(x);
        for (i, d) in ty.shape.iter_mut().enumerate() {
            *d += before[i] + after[i];
        }
        let pads = self.ints(&as_i64(&[before, after].concat()));
        let zero = self.scalar_like(0.0, x);
        self.op("Pad", &[x, pads, zero], Attrs::new(), ty)
    }

    /// Elements `start..start + len` along `axis`, with zeros where `x` has none.
    pub fn shift(&mut self, x: ValueId, axis: usize, start: i64, len: usize) -> ValueId {
        let mut ty = self.ty(x);
        let size = ty.shape[axis] as i64;
        if (start, len as i64) == (0, size) {
            return x;
        }
        ty.shape[axis] = len;
        if start >= size || start + len as i64 <= 0 {
            return self.zeros(&ty);
        }
        // A negative pad takes elements away.
        let rank = ty.shape.len();
        let mut pads = vec![0; 2 * rank];
        (pads[axis], pads[rank + axis]) = (-start, start + len as i64 - size);
        let (pads, zero) = (self.ints(&pads), self.scalar_like(0.0, x));
        self.op("Pad", &[x, pads, zero], Attrs::new(), ty)
    }

    /// A reduction (`ReduceSum`, `ReduceMean`, `ReduceMax`, …) over `axes`; no axes means nothing to do.
    pub fn reduce(&mut self, op: &str, x: ValueId, axes: &[usize], keepdims: bool) -> ValueId {
        if axes.is_empty() {
            return x;
        }
        let ty = self.ty(x);
        let shape = reduced(&ty.shape, axes, keepdims);
        if axes.iter().all(|a| ty.shape[*a] == 1)
            && matches!(op, "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin")
        {
            return self.reshape(x, &shape);
        }
        let list = self.ints(&as_i64(axes));
        let keep = attrs([("keepdims", Attr::Int(i64::from(keepdims)))]);
        self.op(op, &[x, list], keep, Type { dtype: ty.dtype, shape })
    }

    /// Sum over `axes`.
    pub fn sum(&mut self, x: ValueId, axes: &[usize], keepdims: bool) -> ValueId {
        self.reduce("ReduceSum", x, axes, keepdims)
    }

    /// Mean over `axes`.
    pub fn mean(&mut self, x: ValueId, axes: &[usize], keepdims: bool) -> ValueId {
        self.reduce("ReduceMean", x, axes, keepdims)
    }

    /// Sum over every axis: a scalar. A long vector is summed in rows, and these in f64.
    pub fn sum_all(&mut self, x: ValueId) -> ValueId {
        if let Some(rows) = self.rows(x) {
            let sums = self.sum(rows, &[1], false);
            let wide = self.cast(sums, DType::F64);
            let total = self.sum(wide, &[0], false);
            return self.cast(total, DType::F32);
        }
        let axes: Vec<usize> = (0..self.rank(x)).collect();
        self.sum(x, &axes, false)
    }

    /// Mean over every axis: a scalar.
    pub fn mean_all(&mut self, x: ValueId) -> ValueId {
        let axes: Vec<usize> = (0..self.rank(x)).collect();
        self.mean(x, &axes, false)
    }

    /// A long f32 vector as rows: in one sum of millions of numbers small ones are lost, 0.3 % of a norm of 11 million.
    fn rows(&mut self, x: ValueId) -> Option<ValueId> {
        let ty = self.ty(x);
        let long = ty.dtype == DType::F32 && ty.shape.len() == 1 && ty.len() >= LONG && ty.len().is_multiple_of(ROW);
        long.then(|| self.reshape(x, &[ty.len() / ROW, ROW]))
    }

    /// L2 norm over every element: a scalar. A long vector is summed in rows, and these in f64.
    pub fn norm(&mut self, x: ValueId) -> ValueId {
        if let Some(rows) = self.rows(x) {
            let norms = self.reduce("ReduceL2", rows, &[1], false);
            let wide = self.cast(norms, DType::F64);
            let ty = self.ty(wide);
            let squares = self.op("Mul", &[wide, wide], Attrs::new(), ty);
            let total = self.sum(squares, &[0], false);
            let root = self.unary("Sqrt", total);
            return self.cast(root, DType::F32);
        }
        let axes: Vec<usize> = (0..self.rank(x)).collect();
        self.reduce("ReduceL2", x, &axes, false)
    }

    /// Index of the largest element along `axis`, which is dropped; ties go to the lower index.
    pub fn argmax(&mut self, x: ValueId, axis: usize) -> ValueId {
        let shape = reduced(self.shape(x), &[axis], false);
        let a = attrs([("axis", Attr::Int(axis as i64)), ("keepdims", Attr::Int(0))]);
        self.op("ArgMax", &[x], a, Type { dtype: DType::I64, shape })
    }

    /// Sums `x` down to `shape`, which broadcasts to x's shape: the transpose of broadcasting.
    pub fn unbroadcast(&mut self, x: ValueId, shape: &[usize]) -> ValueId {
        let from = self.shape(x).to_vec();
        let lead = from.len().saturating_sub(shape.len());
        let stretched = |i: &usize| *i < lead || (shape[*i - lead] == 1 && from[*i] != 1);
        let axes: Vec<usize> = (0..from.len()).filter(stretched).collect();
        let y = self.sum(x, &axes, true);
        self.reshape(y, shape)
    }

    /// Matrix product with numpy's broadcasting of leading dimensions; both operands of rank ≥ 2.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        let (ta, tb) = (self.ty(a), self.ty(b));
        let (ra, rb) = (ta.shape.len(), tb.shape.len());
        let fits = ra >= 2 && rb >= 2 && ta.shape[ra - 1] == tb.shape[rb - 2];
        let lead = fits.then(|| broadcast(&ta.shape[..ra - 2], &tb.shape[..rb - 2])).flatten();
        let Some(mut shape) = lead else { crate::bail!("MatMul of shapes {:?} and {:?}", ta.shape, tb.shape) };
        shape.extend([ta.shape[ra - 2], tb.shape[rb - 1]]);
        Ok(self.op("MatMul", &[a, b], Attrs::new(), Type { dtype: ta.dtype, shape }))
    }

    /// Softmax or LogSoftmax along `axis`.
    pub fn softmax(&mut self, op: &str, x: ValueId, axis: usize) -> ValueId {
        let ty = self.ty(x);
        self.op(op, &[x], attrs([("axis", Attr::Int(axis as i64))]), ty)
    }

    /// Elements of `x` at `indices` along `axis`.
    pub fn gather(&mut self, x: ValueId, indices: ValueId, axis: usize) -> ValueId {
        let ty = self.ty(x);
        let shape = [&ty.shape[..axis], self.shape(indices), &ty.shape[axis + 1..]].concat();
        self.op("Gather", &[x, indices], attrs([("axis", Attr::Int(axis as i64))]), Type { dtype: ty.dtype, shape })
    }

    /// Element i of the result is `x` at i, but at `indices[i]` along `axis`.
    pub fn gather_elements(&mut self, x: ValueId, indices: ValueId, axis: usize) -> ValueId {
        let ty = Type::new(self.dtype(x), self.shape(indices));
        self.op("GatherElements", &[x, indices], attrs([("axis", Attr::Int(axis as i64))]), ty)
    }

    /// `x` with element i of `updates` put (`reduction` is `none`) or added (`add`) at i, but at `indices[i]` along `axis`.
    pub fn scatter_elements(
        &mut self,
        x: ValueId,
        indices: ValueId,
        updates: ValueId,
        axis: usize,
        reduction: &str,
    ) -> ValueId {
        let mut list = attrs([("axis", Attr::Int(axis as i64))]);
        if reduction != "none" {
            list.insert("reduction".into(), Attr::Str(reduction.into()));
        }
        let ty = self.ty(x);
        self.op("ScatterElements", &[x, indices, updates], list, ty)
    }

    /// 0/1 rows of length `depth`, in type `dtype`, with the one at `indices`, appended as last dimension.
    pub fn one_hot(&mut self, indices: ValueId, depth: usize, dtype: DType) -> ValueId {
        let mut shape = self.shape(indices).to_vec();
        shape.push(depth);
        let depth = self.ints(&[depth as i64]);
        let off_on = self.constant(Tensor::from_f64(dtype, &[2], &[0.0, 1.0]));
        self.op("OneHot", &[indices, depth, off_on], Attrs::new(), Type { dtype, shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Declared;

    #[test]
    fn broadcasting_follows_numpy() {
        assert_eq!(broadcast(&[2, 1, 3], &[4, 1]), Some(vec![2, 4, 3]));
        assert_eq!(broadcast(&[], &[3]), Some(vec![3]));
        assert_eq!(broadcast(&[2], &[3]), None);
    }

    #[test]
    fn equal_nodes_and_constants_are_emitted_once_and_neutral_ones_never() -> Result<()> {
        let mut g = Graph::default();
        let declared = Declared { dtype: DType::F32, dims: None };
        let x = g.add_value("x", Some(Type::new(DType::F32, &[2, 3])), Source::Input(declared));
        g.inputs.push(x);
        let mut b = Builder::new(&mut g, "t");
        let y = b.scale(x, 2.0)?;
        assert_eq!(b.scale(x, 2.0)?, y);
        assert_eq!(b.scale(x, 1.0)?, x);
        assert_eq!(b.reshape(x, &[2, 3]), x);
        assert_eq!(b.transpose(x, &[0, 1]), x);
        let z = b.unbroadcast(y, &[1, 3]);
        assert_eq!(b.shape(z), &[1, 3]);
        assert_eq!(g.nodes.len(), 2);
        g.check_typed()
    }
}
