//! Layers that carry a state from one part of a sequence to the next, and caches that are written in place.

use super::attention::{join_heads, split_heads};
use super::{Call, Lowered};
use crate::builder::{Builder, attrs};
use crate::error::{Error, Result};
use crate::ir::{Attr, DType, Tensor, Type, ValueId};

/// Y = f(conv(past ∥ X)), each channel with a kernel of its own and no later element, f none or x·σ(x); the second output is the last
/// k − 1 elements of past ∥ X, the past 0 where it is not given: written out; X, Y [N,C,T], W [C,1,k], past [N,C,k−1]; ONNX
/// CausalConvWithState-27.
pub fn causal_conv(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, weight) = (c.x(0)?, c.x(1)?);
    let ty = b.ty(x);
    let &[n, channels, length] = ty.shape.as_slice() else { crate::bail!("its input is not of rank 3") };
    let kept = b.shape(weight).last().copied().unwrap_or(1).max(1) - 1;
    let framed = match c.opt(3) {
        Some(past) if kept > 0 => b.concat(&[past, x], 2),
        _ => b.pad(x, &[0, 0, kept], &[0; 3]),
    };
    let group = attrs([("group", Attr::Int(channels as i64))]);
    let mut y = b.raw("", "Conv", &[Some(framed), Some(weight), c.opt(2)], group, &[ty])[0];
    match c.attrs.str("activation", "none")? {
        "none" => {}
        "silu" | "swish" => {
            let gate = b.unary("Sigmoid", y);
            y = b.mul(y, gate)?;
        }
        other => crate::bail!("`activation` is `{other}`"),
    }
    let state = match kept {
        0 => b.zeros(&Type::new(b.dtype(x), &[n, channels, 0])),
        _ => b.slice(framed, &[2], &[length], &[length + kept]),
    };
    Ok(vec![Some(y), Some(state)])
}

/// Sₜ = Dₜ ⊙ Sₜ₋₁ + kₜuₜᵀ, oₜ = s·Sₜᵀqₜ for every head, by `update_rule`: Dₜ = e^gₜ where it is gated, else 1, and uₜ = βₜ(vₜ − (Dₜ ⊙ Sₜ₋₁)ᵀkₜ)
/// where it is a delta rule, else vₜ; every head of k and v serves several of q: written out step by step; q [B,T,N·K], k [B,T,M·K],
/// v [B,T,M·V], S [B,M,K,V], g [B,T,M·K] or [B,T,M], β [B,T,M] or [B,T,1], Y [B,T,N·V]; ONNX LinearAttention-27.
pub fn linear_attention(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    // How a runtime may divide the work.
    c.attrs.ignore(&["chunk_size"]);
    let rule = c.attrs.str("update_rule", "gated_delta")?;
    let (gated, delta) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => crate::bail!("`update_rule` is `{other}`"),
    };
    let (q_heads, heads) = (c.attrs.int("q_num_heads", 0)?, c.attrs.int("kv_num_heads", 0)?);
    let (q, k, v) =
        (split_heads(b, c.x(0)?, q_heads)?, split_heads(b, c.x(1)?, heads)?, split_heads(b, c.x(2)?, heads)?);
    let &[batch, queries, length, width] = b.shape(q) else { crate::bail!("its queries are not of rank 3") };
    let heads = heads as usize;
    if !queries.is_multiple_of(heads) {
        crate::bail!("{heads} heads of keys do not serve {queries} of queries");
    }
    let given = f64::from(c.attrs.float("scale", 0.0)?);
    let q = b.scale(q, if given == 0.0 { 1.0 / (width as f64).sqrt() } else { given })?;
    let decay = if gated { Some(decay(b, c, heads)?) } else { None };
    let rate = if delta {
        let rate = c.opt(5).ok_or_else(|| Error::new("its `beta` is missing"))?;
        Some(b.transpose(rate, &[0, 2, 1]))
    } else {
        None
    };
    let mut state = c.opt(3);
    let mut outputs = Vec::with_capacity(length);
    for t in 0..length {
        let at = |b: &mut Builder<'_>, v: ValueId| b.slice(v, &[2], &[t], &[t + 1]);
        let key = at(b, k);
        let column = b.transpose_last(key);
        if let (Some(decay), Some(before)) = (decay, state) {
            let decay = at(b, decay);
            let decay = b.transpose_last(decay);
            state = Some(b.mul(decay, before)?);
        }
        let mut new = at(b, v);
        if let Some(rate) = rate {
            if let Some(before) = state {
                let known = b.matmul(key, before)?;
                new = b.sub(new, known)?;
            }
            let rate = at(b, rate);
            let shape = [b.shape(rate), &[1]].concat();
            let rate = b.reshape(rate, &shape);
            new = b.mul(rate, new)?;
        }
        let added = b.matmul(column, new)?;
        let now = match state {
            Some(before) => b.add(before, added)?,
            None => added,
        };
        state = Some(now);
        let query = at(b, q);
        let query = b.reshape(query, &[batch, heads, queries / heads, width]);
        let seen = b.matmul(query, now)?;
        let last = b.shape(seen)[3];
        outputs.push(b.reshape(seen, &[batch, queries, 1, last]));
    }
    let state = state.ok_or_else(|| Error::new("its sequence is empty"))?;
    let y = b.concat(&outputs, 2);
    Ok(vec![Some(join_heads(b, y)), Some(state)])
}

/// e^g as [B,M,T,K], or [B,M,T,1] where a head has one.
fn decay(b: &mut Builder<'_>, c: &Call<'_>, heads: usize) -> Result<ValueId> {
    let decay = c.opt(4).ok_or_else(|| Error::new("its `decay` is missing"))?;
    let decay = b.unary("Exp", decay);
    split_heads(b, decay, heads as i64)
}

/// Y is the cache, with the update in place of its elements from `write_indices` on along `axis`, and, in mode `circular`, around its
/// end: written out; cache [N,…,L,…], update [N,…,S,…], `write_indices` `[N]`, or 0; ONNX TensorScatter-24.
pub fn tensor_scatter(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (cache, update) = (c.x(0)?, c.x(1)?);
    let axis = b.axis(cache, c.attrs.int("axis", -2)?)?;
    let shape = b.shape(update).to_vec();
    let (written, size) = (shape[axis], b.shape(cache)[axis]);
    let mut view = vec![1; shape.len()];
    view[axis] = written;
    let places: Vec<i64> = (0..written as i64).collect();
    let mut places = b.constant(Tensor::new(&view, &places)?);
    if let Some(start) = c.opt(2) {
        let mut view = vec![1; shape.len()];
        view[0] = shape[0];
        let start = b.reshape(start, &view);
        let start = b.cast(start, DType::I64);
        places = b.add(places, start)?;
    }
    match c.attrs.str("mode", "linear")? {
        "linear" => {}
        "circular" => {
            let size = b.scalar(size as f64, DType::I64);
            places = b.binary("Mod", places, size)?;
        }
        other => crate::bail!("mode `{other}` is not known"),
    }
    let places = b.expand(places, &shape);
    let ty = b.ty(cache);
    let along = attrs([("axis", Attr::Int(axis as i64))]);
    Ok(vec![Some(b.op("ScatterElements", &[cache, places, update], along, ty))])
}
