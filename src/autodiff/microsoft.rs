//! Operators of domain com.microsoft, which ONNX Runtime's optimizers write into a model.

use super::attention::{Attend, Rotation, join_heads, lowest, split_heads};
use super::{Call, Cotangents, Lowered, activation, linalg};
use crate::builder::{Builder, attrs};
use crate::error::{Error, Result};
use crate::ir::{Attr, Attrs, DType, Tensor, Type, ValueId};

/// Y = αA′B′: written out; in A′ and B′ the last two dimensions are swapped with `transA`, `transB`, and the first is put behind the
/// batch's with `transBatchA`, `transBatchB`; com.microsoft FusedMatMul-1.
pub fn fused_matmul(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let flag = |name| c.attrs.flag(name, false);
    let (ta, tb) = (flag("transA")?, flag("transB")?);
    let (batch_a, batch_b) = (flag("transBatchA")?, flag("transBatchB")?);
    let alpha = c.attrs.float("alpha", 1.0)?;
    let (x, y) = (c.x(0)?, c.x(1)?);
    if b.rank(x) == 2 && b.rank(y) == 2 {
        return Ok(vec![Some(linalg::gemm(b, x, ta, y, tb, alpha))]);
    }
    let factor = |b: &mut Builder<'_>, v: ValueId, batch: bool, swap: bool, left: bool| {
        let rank = b.rank(v);
        if rank == 1 {
            let len = b.len(v);
            return b.reshape(v, &if left { [1, len] } else { [len, 1] });
        }
        let mut perm: Vec<usize> = (0..rank).collect();
        if batch {
            perm[..rank - 1].rotate_left(1);
        }
        if swap {
            perm.swap(rank - 2, rank - 1);
        }
        b.transpose(v, &perm)
    };
    let (left, right) = (factor(b, x, batch_a, ta, true), factor(b, y, batch_b, tb, false));
    let product = b.matmul(left, right)?;
    let product = b.scale(product, alpha.into())?;
    let shape = b.shape(c.y(0)?).to_vec();
    Ok(vec![Some(b.reshape(product, &shape))])
}

/// Y = f(αA′B′ + βC), f the `activation` with its parameters: written out; com.microsoft FusedGemm-1.
pub fn fused_gemm(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let function = c.attrs.str("activation", "")?;
    let parameter = |name| c.attrs.float(name, 0.0);
    let parameters = [parameter("activation_alpha")?, parameter("activation_beta")?, parameter("activation_gamma")?];
    let mut list = c.attrs.all().clone();
    list.retain(|name, _| !name.starts_with("activation"));
    let ty = b.ty(c.y(0)?);
    let y = b.raw("", "Gemm", &c.node.inputs, list, &[ty])[0];
    Ok(vec![Some(if function.is_empty() { y } else { activation::named(b, function, parameters, y)? })])
}

/// Y = f(X∗W + B + Z), f the `activation` with its `activation_params`, B and Z optional: written out; com.microsoft FusedConv-1.
pub fn fused_conv(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let function = c.attrs.str("activation", "")?;
    let given = c.attrs.floats("activation_params")?.unwrap_or_default();
    let mut list = c.attrs.all().clone();
    list.retain(|name, _| !name.starts_with("activation"));
    let ty = b.ty(c.y(0)?);
    let mut y = b.raw("", "Conv", &c.node.inputs[..c.node.inputs.len().min(3)], list, std::slice::from_ref(&ty))[0];
    if let Some(more) = c.opt(3) {
        y = b.add(y, more)?;
    }
    let at = |i: usize| given.get(i).copied().unwrap_or(0.0);
    Ok(vec![Some(match function {
        "" => y,
        "Clip" => {
            let (low, high) = (b.scalar_like(at(0).into(), y), b.scalar_like(at(1).into(), y));
            b.op("Clip", &[y, low, high], Attrs::new(), ty)
        }
        _ => activation::named(b, function, [at(0), at(1), 0.0], y)?,
    })])
}

/// Y = X·Φ(X), X = A + B: Ā = B̄ = Ȳ·(Φ(X) + X·φ(X)), as for Gelu; com.microsoft BiasGelu-1.
pub fn bias_gelu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    after_bias(b, c, "none")
}

/// As BiasGelu with the Gelu's approximation by tanh; the bias is optional; com.microsoft FastGelu-1.
pub fn fast_gelu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    after_bias(b, c, "tanh")
}

fn after_bias(b: &mut Builder<'_>, c: &Call<'_>, approximate: &str) -> Cotangents {
    let mut x = c.x(0)?;
    if let Some(bias) = c.opt(1) {
        x = b.add(x, bias)?;
    }
    let slope = activation::gelu_slope(b, x, approximate)?;
    let dx = b.mul(c.dy()?, slope)?;
    Ok(vec![Some(dx), Some(dx)])
}

/// Y = X·σ(αX): X̄ = Ȳ·(s + αY(1 − s)), s = σ(αX), α = 1.702 by default; com.microsoft QuickGelu-1.
pub fn quick_gelu(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let alpha = c.attrs.float("alpha", 1.702)?;
    activation::swish_of(b, c, alpha.into())
}

/// Y = X⁻¹: X̄ = −YᵀȲYᵀ; com.microsoft Inverse-1.
pub fn inverse(b: &mut Builder<'_>, c: &Call<'_>) -> Cotangents {
    let y = b.transpose_last(c.y(0)?);
    let product = b.matmul(y, c.dy()?)?;
    let product = b.matmul(product, y)?;
    Ok(vec![Some(b.neg(product))])
}

/// LayerNormalization of S = X + skip + bias, which is the fourth output, after the mean and 1/σ: written out; com.microsoft
/// SkipLayerNormalization-1.
pub fn skip_layer_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let sum = skip_sum(b, c, 4)?;
    let inputs = [Some(sum), Some(c.x(2)?), c.opt(3)];
    normalized(b, c, "LayerNormalization", &inputs, sum, &[1, 2])
}

/// RMSNormalization of S = X + skip + bias, which is the fourth output: written out; com.microsoft SkipSimplifiedLayerNormalization-1.
pub fn skip_simplified_layer_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let sum = skip_sum(b, c, 3)?;
    let inputs = [Some(sum), Some(c.x(2)?)];
    normalized(b, c, "SimplifiedLayerNormalization", &inputs, sum, &[2])
}

fn skip_sum(b: &mut Builder<'_>, c: &Call<'_>, bias: usize) -> Result<ValueId> {
    let sum = b.add(c.x(0)?, c.x(1)?)?;
    match c.opt(bias) {
        Some(bias) => b.add(sum, bias),
        None => Ok(sum),
    }
}

/// The normalization `op` of `sum`; `statistics` says which outputs of the node are the operator's second and later ones.
fn normalized(
    b: &mut Builder<'_>,
    c: &Call<'_>,
    op: &str,
    inputs: &[Option<ValueId>],
    sum: ValueId,
    statistics: &[usize],
) -> Lowered {
    let epsilon = c.attrs.float("epsilon", 1e-12)?;
    let list = attrs([("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))]);
    let ty = b.ty(sum);
    let mut types = vec![ty.clone()];
    if statistics.iter().any(|i| c.node.output(*i).is_some()) {
        let mut reduced = Type { dtype: DType::F32, shape: ty.shape };
        if let Some(last) = reduced.shape.last_mut() {
            *last = 1;
        }
        types.extend(statistics.iter().map(|_| reduced.clone()));
    }
    let made = b.raw("", op, inputs, list, &types);
    let mut outputs = vec![Some(made[0]), None, None, Some(sum)];
    for (i, v) in statistics.iter().zip(&made[1..]) {
        outputs[*i] = Some(*v);
    }
    Ok(outputs)
}

/// LayerNormalization of S, the sum of the rows of the word, position and segment embeddings; the second output counts the mask's ones,
/// the third is S: written out; ids [N,T], embeddings [·,D]; com.microsoft EmbedLayerNormalization-1.
pub fn embed_layer_normalization(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    // Says which mask comes out; the output itself says it too.
    c.attrs.ignore(&["mask_index_type"]);
    let ids = c.x(0)?;
    let &[batch, length] = b.shape(ids) else { crate::bail!("its ids are not of rank 2") };
    let words = b.gather(c.x(2)?, ids, 0);
    let positions = match c.opt(8) {
        Some(at) => b.gather(c.x(3)?, at, 0),
        None => b.slice(c.x(3)?, &[0], &[0], &[length]),
    };
    let mut sum = b.add(words, positions)?;
    if let (Some(at), Some(segments)) = (c.opt(1), c.opt(4)) {
        let segments = b.gather(segments, at, 0);
        sum = b.add(sum, segments)?;
    }
    let count = match c.opt(7) {
        _ if c.node.output(1).is_none() => None,
        Some(mask) => Some(b.sum(mask, &[1], false)),
        None => Some(b.zeros(&Type::new(DType::I32, &[batch]))),
    };
    let inputs = [Some(sum), Some(c.x(5)?), Some(c.x(6)?)];
    let made = normalized(b, c, "LayerNormalization", &inputs, sum, &[])?;
    Ok(vec![made[0], count, Some(sum)])
}

/// Attention of XW + b to itself for every head, W [D,3D′] or as wide as the `qkv_hidden_sizes`, with everything that Attention-24 has
/// but GQA: written out; keys and values follow those of `past` [2,N,H,P,·]; `mask_index` [N], [2N], [N,T] or [N,S,T] adds
/// `mask_filter_value`, `attention_bias` is added; com.microsoft Attention-1.
pub fn attention(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, w) = (c.x(0)?, c.x(1)?);
    if c.attrs.flag("do_rotary", false)? {
        crate::bail!("ONNX Runtime's kernel does not do `do_rotary`");
    }
    c.attrs.ignore(&["rotary_embedding_dim"]);
    no_shared_buffer(c, 6)?;
    let heads = c.attrs.int("num_heads", 0)?;
    let sizes = match c.attrs.ints("qkv_hidden_sizes")? {
        Some(sizes) => sizes.iter().map(|s| *s as usize).collect(),
        None => vec![b.shape(w)[1] / 3; 3],
    };
    let mut rows = b.matmul(x, w)?;
    if let Some(bias) = c.opt(2) {
        rows = b.add(rows, bias)?;
    }
    let mut parts = Vec::new();
    for part in b.split(rows, 2, &sizes) {
        parts.push(split_heads(b, part, heads)?);
    }
    let &[q, mut k, mut v] = parts.as_slice() else { crate::bail!("`qkv_hidden_sizes` are not three") };
    let mut past = 0;
    if let Some(state) = c.opt(4) {
        let shape = b.shape(state)[1..].to_vec();
        let states = b.split(state, 0, &[1, 1]);
        let [before_k, before_v] = [states[0], states[1]].map(|s| b.reshape(s, &shape));
        (k, v) = (b.concat(&[before_k, k], 2), b.concat(&[before_v, v], 2));
        past = shape[2];
    }
    let present = c.node.output(1).is_some().then(|| {
        let both = [k, v].map(|s| {
            let shape = [&[1], b.shape(s)].concat();
            b.reshape(s, &shape)
        });
        b.concat(&both, 0)
    });
    let mut how = Attend::new(b, c, q)?;
    filtered(b, c, &mut how, [q, k], c.opt(3), c.opt(5), past)?;
    let made = how.attend(b, q, k, v)?;
    Ok(vec![Some(join_heads(b, made.y)), present])
}

/// Attention of Q to K and V for every head, each with its third of the bias: written out; keys and values follow those of the past,
/// `key_padding_mask` [N], [N,T] or [N,S,T] adds `mask_filter_value`, `attention_bias` is added; Q [N,S,D], K, V [N,T,·] or
/// [N,H,T,·], which take no bias; the outputs are Y, K, V and the scores; com.microsoft MultiHeadAttention-1.
pub fn multi_head_attention(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    no_shared_buffer(c, 8)?;
    let heads = c.attrs.int("num_heads", 0)?;
    let (Some(key), Some(value)) = (c.opt(1), c.opt(2)) else {
        crate::bail!("ONNX Runtime has no kernel for packed queries, keys and values");
    };
    let mut inputs = [c.x(0)?, key, value];
    if let Some(bias) = c.opt(3) {
        let width = b.shape(inputs[0])[2];
        let rest = b.len(bias) - 2 * width;
        let parts = b.split(bias, 0, &[width, width, rest]);
        for (x, bias) in inputs.iter_mut().zip(parts) {
            if b.rank(*x) == 3 {
                *x = b.add(*x, bias)?;
            }
        }
    }
    let mut split = Vec::new();
    for x in inputs {
        split.push(if b.rank(x) == 3 { split_heads(b, x, heads)? } else { x });
    }
    let (q, mut k, mut v) = (split[0], split[1], split[2]);
    let mut past = 0;
    if let (Some(before_k), Some(before_v)) = (c.opt(6), c.opt(7)) {
        past = b.shape(before_k)[2];
        (k, v) = (b.concat(&[before_k, k], 2), b.concat(&[before_v, v], 2));
    }
    let mut how = Attend::new(b, c, q)?;
    filtered(b, c, &mut how, [q, k], c.opt(4), c.opt(5), past)?;
    let made = how.attend(b, q, k, v)?;
    Ok(vec![Some(join_heads(b, made.y)), Some(k), Some(v), Some(made.masked)])
}

/// Causal attention (without `causal`, to every key) of Q to K and V, each of whose heads serves several of Q: written out;
/// `do_rotary` turns queries and keys, `local_window_size`, `softcap`, `attention_bias` as named, `head_sink` and `smooth_softmax` add
/// a score that no value has, keys after the one that `seqlens_k` names as last are hidden; the outputs are Y, K and V; com.microsoft
/// GroupQueryAttention-1.
///
/// Refused with a past, of which a classifier has none.
pub fn group_query_attention(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    for (i, what) in [(3, "a past"), (9, "`position_ids`"), (12, "a quantized cache"), (14, "normalized queries")] {
        if c.opt(i).is_some() {
            crate::bail!("its gradient with {what} is not supported");
        }
    }
    // Without a past there is no cache to quantize or to slide.
    c.attrs.ignore(&["k_quant_type", "v_quant_type", "kv_cache_bit_width", "sliding_window_cache"]);
    c.attrs.ignore(&["qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"]);
    if c.attrs.int("qk_output", 0)? != 0 {
        crate::bail!("its `qk_output` is not supported");
    }
    let (heads, groups) = (c.attrs.int("num_heads", 0)?, c.attrs.int("kv_num_heads", 0)?);
    let inputs = match (c.opt(1), c.opt(2)) {
        (Some(key), Some(value)) => [c.x(0)?, key, value],
        _ => {
            let packed = c.x(0)?;
            let head = b.shape(packed)[2] / (heads + 2 * groups).max(1) as usize;
            let sizes = [heads, groups, groups].map(|n| n as usize * head);
            let parts = b.split(packed, 2, &sizes);
            [parts[0], parts[1], parts[2]]
        }
    };
    let mut split = Vec::new();
    for (x, n) in inputs.into_iter().zip([heads, groups, groups]) {
        split.push(split_heads(b, x, n)?);
    }
    let (mut q, mut k, v) = (split[0], split[1], split[2]);
    let length = b.shape(q)[2];
    let interleaved = c.attrs.flag("rotary_interleaved", false)?;
    if c.attrs.flag("do_rotary", false)? {
        let (cos, sin) = (c.x(7)?, c.x(8)?);
        let [cos, sin] = [cos, sin].map(|cache| b.slice(cache, &[0], &[0], &[length]));
        let rotation = Rotation { cos, sin, interleaved };
        let size = 2 * b.shape(cos)[1];
        (q, k) = (rotation.turn(b, q, 0, size)?, rotation.turn(b, k, 0, size)?);
    }
    let mut how = Attend::new(b, c, q)?;
    how.softcap = c.attrs.float("softcap", 0.0)?.into();
    let window = c.attrs.int("local_window_size", -1)?;
    let window = (window > 0).then_some(window as usize);
    let keys = b.shape(k)[2];
    if c.attrs.flag("causal", true)? {
        how.look_around(b, [length, keys], 0, [window.map(|n| n - 1), Some(0)])?;
    }
    let ends = c.x(5)?;
    let whole = b.graph.constant(ends).and_then(Tensor::uniform) == Some(keys as f64 - 1.0);
    if !whole {
        let times = b.ints(&(0..keys as i64).collect::<Vec<_>>());
        let (ends, batch) = (b.cast(ends, DType::I64), b.len(ends));
        let ends = b.reshape(ends, &[batch, 1, 1, 1]);
        let there = b.binary("LessOrEqual", times, ends)?;
        how.allow(b, there)?;
    }
    if let Some(bias) = c.opt(10) {
        how.add(b, bias)?;
    }
    let smooth = c.attrs.int("smooth_softmax", 0)? > 0;
    how.sink = match c.opt(11) {
        Some(sink) => Some(b.reshape(sink, &[1, heads as usize, 1, 1])),
        None if smooth => {
            let ty = Type::new(b.dtype(q), &[1, heads as usize, 1, 1]);
            Some(b.zeros(&ty))
        }
        None => None,
    };
    let made = how.attend(b, q, k, v)?;
    Ok(vec![Some(join_heads(b, made.y)), Some(k), Some(v)])
}

/// As ONNX RotaryEmbedding, with the position of each number, or of the first, as second input: written out; com.microsoft
/// RotaryEmbedding-1.
pub fn rotary_embedding(b: &mut Builder<'_>, c: &Call<'_>) -> Lowered {
    let (x, at) = (c.x(0)?, c.x(1)?);
    if c.attrs.flag("is_packed_batching", false)? {
        crate::bail!("its gradient for packed sequences is not supported");
    }
    // No kernel on CPU reads it.
    c.attrs.ignore(&["scale"]);
    let length = b.shape(x)[b.rank(x) - 2];
    let at = if b.len(at) == 1 {
        let steps = b.constant(Tensor::ints(&(0..length as i64).collect::<Vec<_>>()));
        let at = b.reshape(at, &[1]);
        let at = b.add(steps, at)?;
        b.reshape(at, &[1, length])
    } else {
        at
    };
    let (cos, sin) = (b.gather(c.x(2)?, at, 0), b.gather(c.x(3)?, at, 0));
    let rotation = Rotation { cos, sin, interleaved: c.attrs.flag("interleaved", false)? };
    let heads = c.attrs.int("num_heads", 0)?;
    let size = c.attrs.int("rotary_embedding_dim", 0)?.max(0) as usize;
    Ok(vec![Some(rotation.turn(b, x, heads, size)?)])
}

fn no_shared_buffer(c: &Call<'_>, input: usize) -> Result<()> {
    if c.attrs.flag("past_present_share_buffer", false)? || c.opt(input).is_some() {
        crate::bail!("a past in the memory of the present is not supported");
    }
    Ok(())
}

/// The masks that Attention and MultiHeadAttention have in common, for queries [N,H,S,·] and keys [N,H,T,·].
fn filtered(
    b: &mut Builder<'_>,
    c: &Call<'_>,
    how: &mut Attend,
    [q, k]: [ValueId; 2],
    mask: Option<ValueId>,
    bias: Option<ValueId>,
    past: usize,
) -> Result<()> {
    let (batch, queries, keys) = (b.shape(q)[0], b.shape(q)[2], b.shape(k)[2]);
    let filter = c.attrs.float("mask_filter_value", -10000.0)?;
    if let Some(mask) = mask {
        let keep = kept(b, mask, [batch, queries, keys])?;
        let (zero, filter) = (b.scalar_like(0.0, q), b.scalar_like(filter.into(), q));
        let added = b.select(keep, zero, filter)?;
        how.add(b, added)?;
    }
    if c.attrs.flag("unidirectional", false)? && queries > 1 {
        let sees = |i: usize, t: usize| f64::from(u8::from(t > i + past));
        let table: Vec<f64> = (0..queries).flat_map(|i| (0..keys).map(move |t| sees(i, t))).collect();
        let later = b.constant(Tensor::from_f64(DType::Bool, &[queries, keys], &table));
        let (zero, least) = (b.scalar_like(0.0, q), lowest(b, q));
        let added = b.select(later, least, zero)?;
        how.add(b, added)?;
    }
    match bias {
        Some(bias) => how.add(b, bias),
        None => Ok(()),
    }
}

/// Where a mask lets queries look, [N,1,1,T] or [N,1,S,T].
fn kept(b: &mut Builder<'_>, mask: ValueId, [batch, queries, keys]: [usize; 3]) -> Result<ValueId> {
    let shape = b.shape(mask).to_vec();
    let mask = b.cast(mask, DType::I64);
    match *shape.as_slice() {
        [n] if n == batch || n == 2 * batch => {
            let times = b.ints(&(0..keys as i64).collect::<Vec<_>>());
            let ends = b.split(mask, 0, &vec![batch; n / batch]);
            let ends: Vec<ValueId> = ends.into_iter().map(|v| b.reshape(v, &[batch, 1, 1, 1])).collect();
            let mut keep = b.binary("Less", times, ends[0])?;
            if let Some(start) = ends.get(1) {
                let begun = b.binary("GreaterOrEqual", times, *start)?;
                keep = b.binary("And", keep, begun)?;
            }
            Ok(keep)
        }
        [n, t] if (n, t) == (batch, keys) => {
            let mask = b.reshape(mask, &[batch, 1, 1, keys]);
            let zero = b.scalar_like(0.0, mask);
            b.binary("Greater", mask, zero)
        }
        [n, s, t] if (n, s, t) == (batch, queries, keys) => {
            let mask = b.reshape(mask, &[batch, 1, queries, keys]);
            let zero = b.scalar_like(0.0, mask);
            b.binary("Greater", mask, zero)
        }
        _ => Err(Error::new(format!("a mask of shape {shape:?} is not supported"))),
    }
}
