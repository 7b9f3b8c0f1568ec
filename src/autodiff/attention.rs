//! Attention, and the rotation of its queries and keys.

use super::{Call, Lowered};
use crate::builder::{Builder, broadcast};
use crate::error::Result;
use crate::ir::{DType, Tensor, ValueId};

/// Y = softmax(c(s·QKᵀ) + mask)V for every head, c(x) = κ·tanh(x/κ) with κ = `softcap`: written out; the mask is `attn_mask`, added, or,
/// where it is boolean, −∞ where it is false, and −∞ for later keys with `is_causal` and for those outside of the windows; keys and
/// values follow those of the past; every kv head serves several of Q; Q [B,S,N·H] or [B,N,S,H], K and V likewise; ONNX Attention-25.
///
/// −∞ is the least finite number here; a query that may look at nothing gives 0.
pub fn attention(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let flat = b.rank(c.x(0)?) == 3;
    let [q_heads, kv_heads] = ["q_num_heads", "kv_num_heads"].map(|name| c.attrs.int(name, 0));
    let (q_heads, kv_heads) = (q_heads?, kv_heads?);
    let heads = |b: &mut Builder<'_>, v: ValueId, n: i64| if flat { split_heads(b, v, n) } else { Ok(v) };
    let q = heads(b, c.x(0)?, q_heads)?;
    let mut k = heads(b, c.x(1)?, kv_heads)?;
    let mut v = heads(b, c.x(2)?, kv_heads)?;
    let past = match (c.opt(4), c.opt(5)) {
        (Some(past_k), Some(past_v)) => {
            (k, v) = (b.concat(&[past_k, k], 2), b.concat(&[past_v, v], 2));
            b.shape(past_k)[2]
        }
        _ => 0,
    };
    let (queries, keys) = (b.shape(q)[2], b.shape(k)[2]);
    let mut how = Attend::new(b, c, q)?;
    how.softcap = c.attrs.float("softcap", 0.0)?.into();
    let precision = c.attrs.int("softmax_precision", 0)?;
    how.precision = DType::from_onnx(precision as i32).filter(|t| t.is_float());
    let [left, right] = ["left_window_size", "right_window_size"].map(|n| c.attrs.int(n, -1));
    let mut window = [left?, right?].map(|n| usize::try_from(n).ok());
    if c.attrs.flag("is_causal", false)? {
        window[1] = Some(0);
    }
    let filled = c.opt(6).map(|lens| {
        let lens = b.cast(lens, DType::I64);
        let count = b.len(lens);
        b.reshape(lens, &[count, 1, 1, 1])
    });
    let mask = c.opt(3);
    match mask {
        Some(mask) if b.dtype(mask) == DType::Bool => how.allow(b, mask)?,
        Some(mask) => how.add(b, mask)?,
        None => {}
    }
    let sq = b.constant(Tensor::new(&[queries, 1], &(0..queries as i64).collect::<Vec<_>>())?);
    let st = b.constant(Tensor::new(&[keys], &(0..keys as i64).collect::<Vec<_>>())?);
    match filled {
        Some(filled) => {
            let there = b.binary("Less", st, filled)?;
            how.allow(b, there)?;
            // The last query stands at the last key that is filled.
            let first = b.offset(filled, -(queries as f64))?;
            let place = b.add(sq, first)?;
            if let Some(left) = window[0] {
                let start = b.offset(place, -(left as f64))?;
                let after = b.binary("GreaterOrEqual", st, start)?;
                how.allow(b, after)?;
            }
            if let Some(right) = window[1] {
                let end = b.offset(place, right as f64)?;
                let before = b.binary("LessOrEqual", st, end)?;
                how.allow(b, before)?;
            }
        }
        None => how.look_around(b, [queries, keys], past, window)?,
    }
    let made = how.attend(b, q, k, v)?;
    let y = if flat { join_heads(b, made.y) } else { made.y };
    let qk = match c.attrs.int("qk_matmul_output_mode", 0)? {
        0 => made.product,
        1 => made.capped,
        2 => made.masked,
        3 => made.shares,
        other => crate::bail!("`qk_matmul_output_mode` is {other}"),
    };
    Ok(vec![Some(y), Some(k), Some(v), Some(qk)])
}

/// Pairs (x, y) of neighbours in a head, or, without `interleaved`, of its halves, turned to (x·cos − y·sin, x·sin + y·cos), in the
/// first `rotary_embedding_dim` numbers: written out; X [B,S,N·H] or [B,N,S,H], the caches of cos and sin [P,R/2] at `position_ids` or
/// [B,S,R/2]; ONNX RotaryEmbedding-23.
pub fn rotary_embedding(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, mut cos, mut sin) = (c.x(0)?, c.x(1)?, c.x(2)?);
    if let Some(at) = c.opt(3) {
        (cos, sin) = (b.gather(cos, at, 0), b.gather(sin, at, 0));
    }
    let rotation = Rotation { cos, sin, interleaved: c.attrs.flag("interleaved", false)? };
    let heads = c.attrs.int("num_heads", 0)?;
    let size = c.attrs.int("rotary_embedding_dim", 0)?.max(0) as usize;
    Ok(vec![Some(rotation.turn(b, x, heads, size)?)])
}

/// [B,S,N·H] to [B,N,S,H].
pub(super) fn split_heads(b: &mut Builder<'_>, v: ValueId, heads: i64) -> Result<ValueId> {
    let heads = heads.max(0) as usize;
    let &[batch, length, width] = b.shape(v) else { crate::bail!("an input of attention is not of rank 3") };
    if heads == 0 || !width.is_multiple_of(heads) {
        crate::bail!("{heads} heads do not divide a width of {width}");
    }
    let v = b.reshape(v, &[batch, length, heads, width / heads]);
    Ok(b.transpose(v, &[0, 2, 1, 3]))
}

/// [B,N,S,H] to [B,S,N·H].
pub(super) fn join_heads(b: &mut Builder<'_>, v: ValueId) -> ValueId {
    let v = b.transpose(v, &[0, 2, 1, 3]);
    let shape = b.shape(v).to_vec();
    b.reshape(v, &[shape[0], shape[1], shape[2] * shape[3]])
}

/// The cosines and sines of each position, [B,S,R/2] or [S,R/2].
pub(super) struct Rotation {
    pub cos: ValueId,
    pub sin: ValueId,
    pub interleaved: bool,
}

impl Rotation {
    /// `x` [B,S,N·H] or [B,N,S,H] with the first `size` numbers of each head turned; 0 is all of them, and no `heads` are as many as
    /// the caches are wide.
    pub(super) fn turn(&self, b: &mut Builder<'_>, x: ValueId, heads: i64, size: usize) -> Result<ValueId> {
        let shape = b.shape(x).to_vec();
        let half = *b.shape(self.cos).last().unwrap_or(&0);
        let flat = shape.len() == 3;
        // The axis of the heads is the third or the second.
        let (mut view, axis) = (shape.clone(), if flat { 2 } else { 1 });
        if flat {
            let width = shape[2];
            let head = if heads > 0 { width / heads as usize } else { 2 * half };
            view = vec![shape[0], shape[1], width / head.max(1), head];
        }
        let head = view[3];
        let size = if size == 0 { head } else { size };
        if size != 2 * half || size > head {
            crate::bail!("caches of width {half} do not turn {size} of {head} numbers");
        }
        let v = b.reshape(x, &view);
        let parts = if size == head { vec![v] } else { b.split(v, 3, &[size, head - size]) };
        let [cos, sin] = [self.cos, self.sin].map(|cache| {
            let mut shape = b.shape(cache).to_vec();
            if shape.len() == 2 {
                shape.insert(0, 1);
            }
            shape.insert(axis, 1);
            b.reshape(cache, &shape)
        });
        let turned = if self.interleaved {
            let pairs = [&view[..3], &[half, 2]].concat();
            let pairs = b.reshape(parts[0], &pairs);
            let [first, second] = halves(b, pairs, 4, 1);
            let wide = |b: &mut Builder<'_>, v: ValueId| {
                let shape = [b.shape(v), &[1]].concat();
                b.reshape(v, &shape)
            };
            let (cos, sin) = (wide(b, cos), wide(b, sin));
            let turned = turn_pair(b, first, second, cos, sin)?;
            let joined = b.concat(&turned, 4);
            b.reshape(joined, &[view[0], view[1], view[2], size])
        } else {
            let [first, second] = halves(b, parts[0], 3, half);
            let turned = turn_pair(b, first, second, cos, sin)?;
            b.concat(&turned, 3)
        };
        let mut all = vec![turned];
        all.extend_from_slice(&parts[1..]);
        let y = b.concat(&all, 3);
        Ok(b.reshape(y, &shape))
    }
}

fn halves(b: &mut Builder<'_>, v: ValueId, axis: usize, half: usize) -> [ValueId; 2] {
    let parts = b.split(v, axis, &[half; 2]);
    [parts[0], parts[1]]
}

fn turn_pair(b: &mut Builder<'_>, x: ValueId, y: ValueId, cos: ValueId, sin: ValueId) -> Result<[ValueId; 2]> {
    let (a, c) = (b.mul(x, cos)?, b.mul(y, sin)?);
    let first = b.sub(a, c)?;
    let (a, c) = (b.mul(x, sin)?, b.mul(y, cos)?);
    Ok([first, b.add(a, c)?])
}

/// How queries look at keys.
pub(super) struct Attend {
    pub scale: f64,
    /// κ, or 0.
    pub softcap: f64,
    /// Added to the scores.
    added: Option<ValueId>,
    /// Where a query may look.
    allowed: Option<ValueId>,
    /// One more score of each head, which no value has: [1,N,1,1].
    pub sink: Option<ValueId>,
    pub precision: Option<DType>,
}

/// What attention computes on the way: scores of queries and keys [B,N,S,T], and Y [B,N,S,H].
pub(super) struct Attended {
    pub product: ValueId,
    pub capped: ValueId,
    pub masked: ValueId,
    pub shares: ValueId,
    pub y: ValueId,
}

impl Attend {
    /// With the `scale` of the node, by default 1/√H of the queries [B,N,S,H].
    pub(super) fn new(b: &Builder<'_>, c: &Call<'_>, q: ValueId) -> Result<Self> {
        let &[_, _, _, head] = b.shape(q) else { crate::bail!("its queries are not of rank 3 or 4") };
        let given = f64::from(c.attrs.float("scale", 0.0)?);
        let scale = if given == 0.0 { 1.0 / (head as f64).sqrt() } else { given };
        Ok(Self { scale, softcap: 0.0, added: None, allowed: None, sink: None, precision: None })
    }

    /// Adds `mask` to the scores.
    pub(super) fn add(&mut self, b: &mut Builder<'_>, mask: ValueId) -> Result<()> {
        self.added = Some(match self.added {
            Some(other) => b.add(other, mask)?,
            None => mask,
        });
        Ok(())
    }

    /// Lets queries look only where `mask` is true.
    pub(super) fn allow(&mut self, b: &mut Builder<'_>, mask: ValueId) -> Result<()> {
        self.allowed = Some(match self.allowed {
            Some(other) => b.binary("And", other, mask)?,
            None => mask,
        });
        Ok(())
    }

    /// Lets query i, which stands at key i + `past`, look at no more than `window` keys before and after it.
    pub(super) fn look_around(
        &mut self,
        b: &mut Builder<'_>,
        [queries, keys]: [usize; 2],
        past: usize,
        [left, right]: [Option<usize>; 2],
    ) -> Result<()> {
        let sees =
            |i: usize, t: usize| left.is_none_or(|n| t + n >= i + past) && right.is_none_or(|n| t <= i + past + n);
        let table: Vec<f64> =
            (0..queries).flat_map(|i| (0..keys).map(move |t| f64::from(u8::from(sees(i, t))))).collect();
        if table.iter().all(|v| *v == 1.0) {
            return Ok(());
        }
        let mask = b.constant(Tensor::from_f64(DType::Bool, &[queries, keys], &table));
        self.allow(b, mask)
    }

    /// Attention of `q` [B,N,S,H] to `k` [B,M,T,H] and `v` [B,M,T,H′]; M divides N.
    pub(super) fn attend(&self, b: &mut Builder<'_>, q: ValueId, k: ValueId, v: ValueId) -> Result<Attended> {
        let (sq, sv) = (b.shape(q).to_vec(), b.shape(v).to_vec());
        let (&[batch, heads, queries, _], &[_, groups, keys, width]) = (sq.as_slice(), sv.as_slice()) else {
            crate::bail!("queries of shape {sq:?} and values of shape {sv:?} do not fit");
        };
        if groups == 0 || !heads.is_multiple_of(groups) {
            crate::bail!("{groups} heads of keys do not serve {heads} of queries");
        }
        // The queries of the heads that share a key are so many more queries of it.
        let rows = heads / groups * queries;
        let scores = [batch, heads, queries, keys];
        let q = b.scale(q, self.scale)?;
        let q = b.reshape(q, &[batch, groups, rows, sq[3]]);
        let k = b.transpose_last(k);
        let product = b.matmul(q, k)?;
        let product = b.reshape(product, &scores);
        let mut capped = product;
        if self.softcap > 0.0 {
            let x = b.scale(capped, 1.0 / self.softcap)?;
            let y = b.unary("Tanh", x);
            capped = b.scale(y, self.softcap)?;
        }
        let mut masked = capped;
        for part in [self.added, self.allowed].into_iter().flatten() {
            if broadcast(b.shape(part), &scores).as_deref() != Some(&scores) {
                crate::bail!("a mask of shape {:?} does not fit scores of shape {scores:?}", b.shape(part));
            }
        }
        if let Some(added) = self.added {
            masked = b.add(masked, added)?;
        }
        if let Some(allowed) = self.allowed {
            let least = lowest(b, masked);
            masked = b.select(allowed, masked, least)?;
        }
        let mut shares = masked;
        if let Some(precision) = self.precision {
            shares = b.cast(shares, precision);
        }
        if let Some(sink) = self.sink {
            let sink = b.expand(sink, &[batch, heads, queries, 1]);
            let both = b.concat(&[shares, sink], 3);
            let both = b.softmax("Softmax", both, 3);
            shares = b.slice(both, &[3], &[0], &[keys]);
        } else {
            shares = b.softmax("Softmax", shares, 3);
        }
        let dtype = b.dtype(masked);
        shares = b.cast(shares, dtype);
        if let Some(allowed) = self.allowed.filter(|v| may_hide_all(b, *v)) {
            let zero = b.scalar_like(0.0, shares);
            shares = b.select(allowed, shares, zero)?;
        }
        let rows = b.reshape(shares, &[batch, groups, rows, keys]);
        let y = b.matmul(rows, v)?;
        let y = b.reshape(y, &[batch, heads, queries, width]);
        Ok(Attended { product, capped, masked, shares, y })
    }
}

/// Whether a mask leaves some query nothing to look at, as far as is known.
fn may_hide_all(b: &Builder<'_>, allowed: ValueId) -> bool {
    let keys = b.shape(allowed).last().copied().unwrap_or(1).max(1);
    let values = b.graph.constant(allowed).map(Tensor::to_f64);
    values.is_none_or(|v| v.chunks(keys).any(|row| row.iter().all(|v| *v == 0.0)))
}

/// The least finite number in the type of `like`.
pub(super) fn lowest(b: &mut Builder<'_>, like: ValueId) -> ValueId {
    let value = if b.dtype(like) == DType::F16 { -65504.0 } else { f64::from(f32::MIN) };
    b.scalar_like(value, like)
}
