"""Times the plain-operator forms of a convolution's two gradients on ONNX Runtime's CPU provider.

    python benches/conv_lowering.py [--threads 1 2] [--only res20] [--quick]

Needs onnx, onnxruntime and numpy. Every form is checked against the first of its kind before it is timed.
`src/autodiff/conv.rs` chooses between the forms; `docs/conv-lowering.md` has the numbers its choice rests on.
"""
import argparse
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


class G:
    """Appends nodes to a model."""

    def __init__(self):
        self.nodes, self.consts, self.k = [], [], 0

    def name(self):
        self.k += 1
        return f"v{self.k}"

    def op(self, op, *ins, **attrs):
        y = self.name()
        self.nodes.append(helper.make_node(op, list(ins), [y], **attrs))
        return y

    def const(self, a):
        n = self.name()
        self.consts.append(numpy_helper.from_array(np.asarray(a), n))
        return n

    def ints(self, v):
        return self.const(np.asarray(v, dtype=np.int64))

    def reshape(self, x, shape):
        return self.op("Reshape", x, self.ints(shape))

    def transpose(self, x, *perm):
        return self.op("Transpose", x, perm=list(perm))

    def pad(self, x, pads):
        return self.op("Pad", x, self.ints(pads)) if any(pads) else x

    def slice(self, x, axes, starts, ends, steps):
        return self.op("Slice", x, self.ints(starts), self.ints(ends), self.ints(axes), self.ints(steps))

    def sum(self, x, axes, keep=0):
        return self.op("ReduceSum", x, self.ints(axes), keepdims=keep)

    def session(self, inputs, output, threads):
        ins = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs]
        out = [helper.make_empty_tensor_value_info(output)]
        out[0].type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self.nodes, "g", ins, out, self.consts)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        o = ort.SessionOptions()
        o.intra_op_num_threads = threads
        o.log_severity_level = 3
        return ort.InferenceSession(model.SerializeToString(), o, providers=["CPUExecutionProvider"])


class Layer:
    def __init__(self, name, n, c, m, h, k, s=1, g=1, p=None):
        self.name, self.n, self.c, self.m, self.h, self.k, self.s, self.g = name, n, c, m, h, k, s, g
        self.p = k // 2 if p is None else p
        self.o = (h + 2 * self.p - k) // s + 1
        self.end = (self.o - 1) * s + k - 2 * self.p  # rows of the input that are read
        self.left = h + 2 * self.p - ((self.o - 1) * s + k)  # rows (with padding) that no window reaches
        self.x, self.w, self.y = (n, c, h, h), (m, c // g, k, k), (n, m, self.o, self.o)
        self.flops = 2 * n * m * self.o**2 * (c // g) * k * k


# ---- input gradient: dy, w -> dx ----
def flip(g, w):
    return g.slice(w, [2, 3], [-1, -1], [-(2**62)] * 2, [-1, -1])


def swap_io(g, L, w):
    """[M,C/G,k,k] -> [C,M/G,k,k]"""
    cg, mg = L.c // L.g, L.m // L.g
    if L.g == 1:
        return g.transpose(w, 1, 0, 2, 3)
    if cg == 1 and mg == 1:
        return w
    w = g.reshape(w, [L.g, mg, cg, L.k, L.k])
    return g.reshape(g.transpose(w, 0, 2, 1, 3, 4), [L.c, mg, L.k, L.k])


def dx_flip(g, L):
    if L.s != 1:
        return None
    q = L.k - 1 - L.p
    return g.op("Conv", "dy", flip(g, swap_io(g, L, "w")), group=L.g, pads=[q] * 4)


def dx_convt(g, L):
    return g.op("ConvTranspose", "dy", "w", group=L.g, strides=[L.s] * 2, pads=[L.p] * 4,
                output_padding=[L.left] * 2, kernel_shape=[L.k] * 2)


def spread(g, L, x, ch):
    """Zeros between the elements: [N,ch,o,o] -> [N,ch,o*s,o*s]"""
    x = g.reshape(x, [L.n, ch, L.o, 1, L.o, 1])
    x = g.pad(x, [0] * 6 + [0, 0, 0, L.s - 1, 0, L.s - 1])
    return g.reshape(x, [L.n, ch, L.o * L.s, L.o * L.s])


def dx_zeros(g, L):
    if L.s == 1:
        return None
    z = spread(g, L, "dy", L.m)
    q = L.k - 1 - L.p
    after = L.h - (L.o * L.s + q - L.k + 1)
    return g.op("Conv", z, flip(g, swap_io(g, L, "w")), group=L.g, pads=[q, q, after, after])


def dx_gemm1(g, L):
    """1x1: W^T dY, then zeros between"""
    if L.k != 1 or L.g != 1:
        return None
    d = g.op("MatMul", g.op("Transpose", g.reshape("w", [L.m, L.c]), perm=[1, 0]), g.reshape("dy", [L.n, L.m, L.o**2]))
    d = g.reshape(d, [L.n, L.c, L.o, L.o])
    if L.s > 1:
        d = spread(g, L, d, L.c)
        e = L.h - L.o * L.s
        d = g.pad(d, [0] * 6 + [e, e])
    return d


def dx_conv1(g, L):
    if L.k != 1 or L.s == 1:
        return None
    d = g.op("Conv", "dy", swap_io(g, L, "w"), group=L.g)
    d = spread(g, L, d, L.c)
    return g.pad(d, [0] * 6 + [L.h - L.o * L.s] * 2)


def dx_d2s(g, L):
    """One stride-1 Conv with s*s*C outputs, then DepthToSpace. w padded to t*s taps; position a = i*s + u."""
    if L.s == 1 or L.k < L.s:
        return None
    s, t = L.s, -(-L.k // L.s)
    e = t * s - L.k
    w = g.pad("w", [0] * 6 + [e, e])
    cg, mg = L.c // L.g, L.m // L.g
    w = g.reshape(w, [L.g, mg, cg, t, s, t, s])
    w = g.transpose(w, 0, 2, 4, 6, 1, 3, 5)
    w = g.reshape(w, [L.c * s * s, mg, t, t])
    w = flip(g, w)
    z = g.op("Conv", "dy", w, group=L.g, pads=[t - 1] * 4)  # [N, C s s, o+t-1, o+t-1]
    z = g.op("DepthToSpace", z, blocksize=s, mode="CRD")
    size = (L.o + t - 1) * s
    return g.pad(z, [0, 0, -L.p, -L.p, 0, 0, L.h + L.p - size, L.h + L.p - size])


def dx_phase(g, L):
    """s*s small Convs, one per residue of the padded input position; interleaved by Concat."""
    if L.s == 1 or L.k < L.s:
        return None
    s, t = L.s, -(-L.k // L.s)
    wt = swap_io(g, L, "w")
    rows = []
    for a in range(s):
        cols = []
        for b in range(s):
            ta, tb = len(range(a, L.k, s)), len(range(b, L.k, s))
            sub = g.slice(wt, [2, 3], [a, b], [L.k, L.k], [s, s])
            sub = flip(g, sub)
            z = g.op("Conv", "dy", sub, group=L.g, pads=[ta - 1, tb - 1, t - 1, t - 1])
            cols.append(g.reshape(z, [L.n, L.c, L.o + t - 1, L.o + t - 1, 1]))
        rows.append(g.reshape(g.op("Concat", *cols, axis=4), [L.n, L.c, L.o + t - 1, 1, (L.o + t - 1) * s]))
    z = g.reshape(g.op("Concat", *rows, axis=3), [L.n, L.c, (L.o + t - 1) * s, (L.o + t - 1) * s])
    size = (L.o + t - 1) * s
    return g.pad(z, [0, 0, -L.p, -L.p, 0, 0, L.h + L.p - size, L.h + L.p - size])


def dx_patch(g, L):
    if L.k != L.s or L.p or L.g != 1:
        return None
    d = g.op("MatMul", g.transpose(g.reshape("w", [L.m, L.c * L.k**2]), 1, 0), g.reshape("dy", [L.n, L.m, L.o**2]))
    d = g.reshape(d, [L.n, L.c, L.k, L.k, L.o, L.o])
    return g.reshape(g.transpose(d, 0, 1, 4, 2, 5, 3), L.x)


# ---- weight gradient: x, dy -> dw ----
def dw_swap(g, L):
    cg = L.c // L.g
    e, x, h = L.left, "x", L.h
    if e > L.p:  # a Conv takes no negative pads
        x, h, e = g.slice(x, [2, 3], [0, 0], [h - e + L.p] * 2, [1, 1]), h - e + L.p, L.p
    if L.g == 1:
        x = g.transpose(x, 1, 0, 2, 3)
    else:
        x = g.reshape(x, [L.n, L.g, cg, h, h])
        x = g.reshape(g.transpose(x, 2, 1, 0, 3, 4), [cg, L.g * L.n, h, h])
    y = g.transpose("dy", 1, 0, 2, 3)
    d = g.op("Conv", x, y, group=L.g, dilations=[L.s] * 2, pads=[L.p, L.p, L.p - e, L.p - e])
    return g.transpose(d, 1, 0, 2, 3)


def dw_swap2(g, L):
    """Roles exchanged: dy as input padded, x as weight; only stride 1."""
    if L.s != 1 or L.g != 1:
        return None
    x = g.transpose("x", 1, 0, 2, 3)
    y = g.transpose("dy", 1, 0, 2, 3)
    q = L.k - 1 - L.p
    d = g.op("Conv", y, x, pads=[q] * 4)  # [M, C, k, k] flipped
    return flip(g, d)


def taps(g, L, x, axis0):
    """k*k shifted [.., o, o] pieces of x; spatial axes axis0, axis0+1 of size h"""
    pads = [0] * (axis0) + [L.p, L.p] + [0] * axis0 + [L.p - L.left, L.p - L.left]
    x = g.pad(x, pads)
    out = []
    span = (L.o - 1) * L.s + 1
    for u in range(L.k):
        for v in range(L.k):
            out.append(g.slice(x, [axis0, axis0 + 1], [u, v], [u + span, v + span], [L.s, L.s]))
    return out


def dw_im2col_fold(g, L):
    if L.g != 1 or L.k > 8:
        return None
    x = g.transpose("x", 1, 0, 2, 3)
    t = taps(g, L, x, 2)
    p = g.reshape(g.op("Concat", *t, axis=0), [L.k**2 * L.c, L.n * L.o**2])
    y = g.reshape(g.transpose("dy", 1, 0, 2, 3), [L.m, L.n * L.o**2])
    d = g.op("Gemm", y, p, transB=1)
    return g.transpose(g.reshape(d, [L.m, L.k, L.k, L.c]), 0, 3, 1, 2)


def dw_im2col_batch(g, L):
    if L.g != 1 or L.k > 8:
        return None
    t = taps(g, L, "x", 2)
    p = g.reshape(g.op("Concat", *t, axis=1), [L.n, L.k**2 * L.c, L.o**2])
    y = g.reshape("dy", [L.n, L.m, L.o**2])
    d = g.op("MatMul", y, g.transpose(p, 0, 2, 1))
    d = g.sum(d, [0])
    return g.transpose(g.reshape(d, [L.m, L.k, L.k, L.c]), 0, 3, 1, 2)


def split_parts(g, L, x, y, first):
    """k column-shifted copies of x and k row-shifted copies of dy, both [.., rows, o] over the h rows of x."""
    z = [0] * first
    xs, ys = [], []
    for v in range(L.k):
        # column j of the copy is column j + v - p of x
        xs.append(g.pad(x, z + [0, L.p - v] + z + [0, v + L.o - L.p - L.h]))
    for u in range(L.k):
        # row i of the copy is row i - u + p of dy
        ys.append(g.pad(y, z + [u - L.p, 0] + z + [L.h - L.o - u + L.p, 0]))
    return xs, ys


def dw_split_fold(g, L):
    if L.s != 1 or L.g != 1 or L.k == 1 or L.k > 8:
        return None
    xs, ys = split_parts(g, L, g.transpose("x", 1, 0, 2, 3), g.transpose("dy", 1, 0, 2, 3), 2)
    K = L.n * L.h * L.o
    a = g.reshape(g.op("Concat", *ys, axis=0), [L.k * L.m, K])
    b = g.reshape(g.op("Concat", *xs, axis=0), [L.k * L.c, K])
    d = g.op("Gemm", a, b, transB=1)
    return g.transpose(g.reshape(d, [L.k, L.m, L.k, L.c]), 1, 3, 0, 2)


def dw_split_batch(g, L):
    if L.s != 1 or L.g != 1 or L.k == 1 or L.k > 8:
        return None
    xs, ys = split_parts(g, L, "x", "dy", 2)
    a = g.reshape(g.op("Concat", *ys, axis=1), [L.n, L.k * L.m, L.h * L.o])
    b = g.reshape(g.op("Concat", *xs, axis=1), [L.n, L.k * L.c, L.h * L.o])
    d = g.sum(g.op("MatMul", a, g.transpose(b, 0, 2, 1)), [0])
    return g.transpose(g.reshape(d, [L.k, L.m, L.k, L.c]), 1, 3, 0, 2)


def dw_1x1_batch(g, L):
    if L.k != 1 or L.g != 1:
        return None
    x = g.slice("x", [2, 3], [0, 0], [L.h, L.h], [L.s, L.s]) if L.s > 1 else "x"
    d = g.op("MatMul", g.reshape("dy", [L.n, L.m, L.o**2]), g.transpose(g.reshape(x, [L.n, L.c, L.o**2]), 0, 2, 1))
    return g.reshape(g.sum(d, [0]), L.w)


def dw_1x1_fold(g, L):
    if L.k != 1 or L.g != 1:
        return None
    x = g.slice("x", [2, 3], [0, 0], [L.h, L.h], [L.s, L.s]) if L.s > 1 else "x"
    K = L.n * L.o**2
    x = g.reshape(g.transpose(x, 1, 0, 2, 3), [L.c, K])
    y = g.reshape(g.transpose("dy", 1, 0, 2, 3), [L.m, K])
    return g.reshape(g.op("Gemm", y, x, transB=1), L.w)


def dw_patch(g, L):
    if L.k != L.s or L.p or L.g != 1 or L.k == 1:
        return None
    x = g.reshape("x", [L.n, L.c, L.o, L.k, L.o, L.k])
    x = g.reshape(g.transpose(x, 1, 3, 5, 0, 2, 4), [L.c * L.k**2, L.n * L.o**2])
    y = g.reshape(g.transpose("dy", 1, 0, 2, 3), [L.m, L.n * L.o**2])
    return g.reshape(g.op("Gemm", y, x, transB=1), L.w)


def dw_depth_mul(g, L):
    if L.g != L.c or L.m != L.c:
        return None
    t = taps(g, L, "x", 2)
    parts = [g.reshape(g.sum(g.op("Mul", "dy", p), [0, 2, 3]), [L.c, 1]) for p in t]
    return g.reshape(g.op("Concat", *parts, axis=1), L.w)


def dw_depth_matmul(g, L):
    """k*k taps against dy as batched matrix product over (n, c)"""
    if L.g != L.c or L.m != L.c:
        return None
    t = [g.reshape(p, [L.n, L.c, 1, L.o**2]) for p in taps(g, L, "x", 2)]
    p = g.op("Concat", *t, axis=2)
    d = g.op("MatMul", p, g.reshape("dy", [L.n, L.c, L.o**2, 1]))
    return g.reshape(g.sum(d, [0]), L.w)


def dw_depth_split(g, L):
    if L.g != L.c or L.m != L.c or L.s != 1:
        return None
    xs, ys = split_parts(g, L, "x", "dy", 2)
    K = L.h * L.o
    a = g.op("Concat", *[g.reshape(y, [L.n, L.c, 1, K]) for y in ys], axis=2)
    b = g.op("Concat", *[g.reshape(x, [L.n, L.c, 1, K]) for x in xs], axis=2)
    return g.reshape(g.sum(g.op("MatMul", a, g.transpose(b, 0, 1, 3, 2)), [0]), L.w)


def dw_depth_conv(g, L):
    """a convolution with each channel of each sample as a group of its own"""
    if L.g != L.c or L.m != L.c:
        return None
    e = L.p - L.left
    x = g.pad("x", [0, 0, L.p, L.p, 0, 0, e, e])
    h = L.h + L.p + e
    x = g.reshape(x, [1, L.n * L.c, h, h])
    y = g.reshape("dy", [L.n * L.c, 1, L.o, L.o])
    d = g.op("Conv", x, y, group=L.n * L.c, dilations=[L.s] * 2)
    return g.reshape(g.sum(g.reshape(d, [L.n, L.c, L.k, L.k]), [0]), L.w)


def dw_group_split(g, L):
    if L.g == 1 or L.s != 1:
        return None
    xs, ys = split_parts(g, L, "x", "dy", 2)
    K, cg, mg = L.h * L.o, L.c // L.g, L.m // L.g
    a = g.reshape(g.op("Concat", *[g.reshape(y, [L.n, L.m, 1, K]) for y in ys], axis=2), [L.n, L.g, mg * L.k, K])
    b = g.reshape(g.op("Concat", *[g.reshape(x, [L.n, L.c, 1, K]) for x in xs], axis=2), [L.n, L.g, cg * L.k, K])
    d = g.sum(g.op("MatMul", a, g.transpose(b, 0, 1, 3, 2)), [0])
    d = g.transpose(g.reshape(d, [L.m, L.k, cg, L.k]), 0, 2, 1, 3)
    return d


def fwd(g, L):
    return g.op("Conv", "x", "w", group=L.g, strides=[L.s] * 2, pads=[L.p] * 4)


DX = [dx_flip, dx_convt, dx_zeros, dx_gemm1, dx_conv1, dx_d2s, dx_phase, dx_patch]
DW = [dw_swap, dw_swap2, dw_im2col_fold, dw_im2col_batch, dw_split_fold, dw_split_batch, dw_1x1_batch, dw_1x1_fold,
      dw_patch, dw_depth_mul, dw_depth_matmul, dw_depth_split, dw_depth_conv, dw_group_split]

LAYERS = [
    Layer("res20 stem 3>16 @32", 128, 3, 16, 32, 3),
    Layer("res20 16>16 @32", 128, 16, 16, 32, 3),
    Layer("res20 16>32 @32 s2", 128, 16, 32, 32, 3, 2),
    Layer("res20 32>32 @16", 128, 32, 32, 16, 3),
    Layer("res20 32>64 @16 s2", 128, 32, 64, 16, 3, 2),
    Layer("res20 64>64 @8", 128, 64, 64, 8, 3),
    Layer("res20 1x1 16>32 @32 s2", 128, 16, 32, 32, 1, 2),
    Layer("res20 1x1 32>64 @16 s2", 128, 32, 64, 16, 1, 2),
    Layer("mob dw 32 @32", 128, 32, 32, 32, 3, 1, 32),
    Layer("mob dw 64 @32 s2", 128, 64, 64, 32, 3, 2, 64),
    Layer("mob dw 256 @8", 128, 256, 256, 8, 3, 1, 256),
    Layer("mob dw 256 @4", 128, 256, 256, 4, 3, 1, 256),
    Layer("mob dw 96 @112 s2 n8", 8, 96, 96, 112, 3, 2, 96),
    Layer("mob dw5 240 @14 n16", 16, 240, 240, 14, 5, 1, 240),
    Layer("mob 1x1 32>64 @32", 128, 32, 64, 32, 1),
    Layer("mob 1x1 128>128 @16", 128, 128, 128, 16, 1),
    Layer("mob 1x1 256>512 @4", 128, 256, 512, 4, 1),
    Layer("vgg 256>256 @8", 64, 256, 256, 8, 3),
    Layer("vgg 512>512 @4", 64, 512, 512, 4, 3),
    Layer("r50 stem 7x7 3>64 @224 s2 n4", 4, 3, 64, 224, 7, 2),
    Layer("r50 64>64 @56 n8", 8, 64, 64, 56, 3),
    Layer("r50 128>128 @56 s2 n8", 8, 128, 128, 56, 3, 2),
    Layer("r50 1x1 64>256 @56 n8", 8, 64, 256, 56, 1),
    Layer("vit patch16 3>192 @224 n4", 4, 3, 192, 224, 16, 16, 1, 0),
    Layer("vit patch4 3>64 @32", 128, 3, 64, 32, 4, 4, 1, 0),
    Layer("resnext g32 128>128 @16 n32", 32, 128, 128, 16, 3, 1, 32),
    Layer("convnext dw7 96 @28 n32", 32, 96, 96, 28, 7, 1, 96),
    Layer("mob dw 96 @28 n32", 32, 96, 96, 28, 3, 1, 96),
    Layer("mob dw 96 @28 s2 n32", 32, 96, 96, 28, 3, 2, 96),
    Layer("wide 16>16 k7 @28", 128, 16, 16, 28, 7),
    Layer("wide 32>32 k5 @16", 128, 32, 32, 16, 5),
    Layer("wide 1>32 k5 @28", 128, 1, 32, 28, 5),
    Layer("wide 3>64 k7 @112 s2 n16", 16, 3, 64, 112, 7, 2),
    Layer("dense 48>12 @32", 128, 48, 12, 32, 3),
    Layer("lenet 5x5 6>16 @14", 128, 6, 16, 14, 5, 1, 1, 0),
]


def measure(session, feed, threads, quick):
    """Best of several runs in ms: processor time with one thread, so that other processes matter less, else wall time."""
    clock = time.process_time if threads == 1 else time.perf_counter
    session.run(None, feed)
    best, total, n = 1e9, 0.0, 0
    while n < 5 or (total < (0.15 if quick else 0.6) and n < 50):
        t = clock()
        session.run(None, feed)
        t = clock() - t
        best, total, n = min(best, t), total + t, n + 1
    return best * 1e3


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--threads", type=int, nargs="+", default=[1])
    a.add_argument("--only", default="")
    a.add_argument("--quick", action="store_true")
    args = a.parse_args()
    rng = np.random.default_rng(0)
    for L in LAYERS:
        if args.only not in L.name:
            continue
        data = {"x": rng.standard_normal(L.x, np.float32), "w": rng.standard_normal(L.w, np.float32),
                "dy": rng.standard_normal(L.y, np.float32)}
        shapes = {"x": L.x, "w": L.w, "dy": L.y}
        for threads in args.threads:
            line = []
            for kind, forms, uses in [("y", [fwd], "xw"), ("dx", DX, "yw"), ("dw", DW, "xy")]:
                ref = None
                for f in forms:
                    g = G()
                    out = f(g, L)
                    if out is None:
                        continue
                    names = [n for n in shapes if n[-1] in uses]
                    s = g.session([(n, shapes[n]) for n in names], out, threads)
                    feed = {n: data[n] for n in names}
                    r = s.run(None, feed)[0]
                    if ref is None:
                        ref = r
                    elif r.shape != ref.shape or not np.allclose(r, ref, rtol=1e-2, atol=1e-3 * np.abs(ref).max()):
                        print("WRONG", L.name, f.__name__, r.shape, ref.shape, np.abs(r - ref).max() if r.shape == ref.shape else "")
                        continue
                    line.append(f"{f.__name__[3:] if kind != 'y' else 'forward'} {measure(s, feed, threads, args.quick):.2f}")
                line.append("|")
            print(f"{L.name:28} t{threads} {L.flops/1e6:6.0f} MFLOP: " + "  ".join(line[:-1]), flush=True)


if __name__ == "__main__":
    main()
