// Kernels of domain `bisam` on CUDA, in the part of C that NVRTC and a C compiler share: where there is no device, tests compile this
// file for the CPU (emulate.c) and compare every kernel with its counterpart there.
//
// Every kernel takes one `Args` by value; what its fields mean is said at each. A block has THREADS threads. Sums within a block are
// made in a fixed order, and nothing is added atomically, so results repeat bit for bit. All tensors are f32, row by row, and have
// less than 2^31 elements: division of longer integers is slow on devices, and so is arithmetic in double, which is kept to what
// happens once for a block or a channel.

// The sum over the block's threads, for all of them.
DEVICE double block_sum(double v) {
    SHARED(double, sums, THREADS);
    uint t = threadIdx.x;
    __syncthreads();
    sums[t] = v;
    __syncthreads();
    for (uint half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) sums[t] += sums[t + half];
        __syncthreads();
    }
    return sums[0];
}

// The greatest over the block's threads; NaN only where all are.
DEVICE float block_max(float v) {
    SHARED(float, greatest, THREADS);
    uint t = threadIdx.x;
    __syncthreads();
    greatest[t] = v;
    __syncthreads();
    for (uint half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) greatest[t] = fmaxf(greatest[t], greatest[t + half]);
        __syncthreads();
    }
    return greatest[0];
}

// ---- BatchNormalization: X [N,C,P]; n = {N, C, P, slices}; a channel's N·P elements are divided among the slices.

// The slice's first element; that of the next one is its end.
DEVICE uint slice(uint all, uint slices, uint i) {
    return (uint)((unsigned long long)all * i / slices);
}

DEVICE uint place(uint e, uint channel, uint c, uint p) {
    return ((e / p) * c + channel) * p + e % p;
}

// Mean and sum of squared distances from it, of one slice of one channel.
// x = {X}, y = {moments: double [C, slices, 2]}; block (channel, slice).
KERNEL(batch_moments) {
    uint c = N(1), p = N(2), all = N(0) * N(2), slices = N(3);
    uint from = slice(all, slices, blockIdx.y), to = slice(all, slices, blockIdx.y + 1);
    float sum = 0.0f, square = 0.0f;
    for (uint e = from + threadIdx.x; e < to; e += THREADS) sum += a.x[0][place(e, blockIdx.x, c, p)];
    double mean = block_sum(sum) / (double)(to - from);
    float near = (float)mean;
    for (uint e = from + threadIdx.x; e < to; e += THREADS) {
        float d = a.x[0][place(e, blockIdx.x, c, p)] - near;
        square += d * d;
    }
    double rest = mean - near, squares = block_sum(square) - (double)(to - from) * rest * rest;
    if (threadIdx.x == 0) {
        double *out = (double *)a.y[0] + 2 * (blockIdx.x * slices + blockIdx.y);
        out[0] = mean;
        out[1] = squares;
    }
}

// Mean and biased variance of a channel from its slices' (Chan, Golub & LeVeque 1983).
// x = {moments}, y = {μ [C], v [C]}; block (channel).
KERNEL(batch_statistics) {
    uint all = N(0) * N(2), slices = N(3);
    const double *part = (const double *)a.x[0] + 2 * blockIdx.x * slices;
    double sum = 0.0, square = 0.0;
    for (uint s = threadIdx.x; s < slices; s += THREADS)
        sum += part[2 * s] * (double)(slice(all, slices, s + 1) - slice(all, slices, s));
    double mean = block_sum(sum) / (double)all;
    for (uint s = threadIdx.x; s < slices; s += THREADS) {
        double d = part[2 * s] - mean;
        square += part[2 * s + 1] + d * d * (double)(slice(all, slices, s + 1) - slice(all, slices, s));
    }
    double squares = block_sum(square);
    if (threadIdx.x == 0) {
        a.y[0][blockIdx.x] = (float)mean;
        a.y[1][blockIdx.x] = (float)(squares / (double)all);
    }
}

// What X − μ is multiplied with, γ/√(v + ε); x = {γ, v}, y = {slopes [C]}; f = {ε}; a thread per channel.
KERNEL(batch_slopes) {
    uint i = FIRST;
    if (i < N(1)) a.y[0][i] = (float)((double)a.x[0][i] / sqrt((double)a.x[1][i] + (double)a.f[0]));
}

// Y = min(max(slope·(X − μ) + β + residual?, 0), ceiling)?
// x = {X, slopes, β, μ, residual or null}, y = {Y}; n[4] = 1 with a Relu; f[1] = ceiling.
KERNEL(batch_apply) {
    uint c = N(1), p = N(2), all = N(0) * c * p;
    for (uint i = FIRST; i < all; i += STRIDE) {
        uint channel = i / p % c;
        float v = (a.x[0][i] - a.x[3][channel]) * a.x[1][channel] + a.x[2][channel];
        if (a.x[4]) v += a.x[4][i];
        if (a.n[4]) v = v != v ? v : fminf(fmaxf(v, 0.0f), a.f[1]);
        a.y[0][i] = v;
    }
}

// Ȳ behind the Relu: 0 where the output, kept or computed again, is not between 0 and the ceiling.
// x = {X, Ȳ, slopes, β, μ, Y or null}; n[4] = 1 with a Relu; f[1] = ceiling.
DEVICE float behind_relu(const Args *a, uint i, uint channel) {
    float dy = a->x[1][i], y;
    if (!a->n[4]) return dy;
    if (a->x[5]) y = a->x[5][i];
    else y = (a->x[0][i] - a->x[4][channel]) * a->x[2][channel] + a->x[3][channel];
    return y > 0.0f && y < a->f[1] ? dy : 0.0f;
}

// Σ Ȳ and Σ Ȳ(X − μ) of one slice of one channel; x and f as above, y = {sums: double [C, slices, 2]}; block (channel, slice).
KERNEL(batch_sums) {
    uint c = N(1), p = N(2), all = N(0) * N(2), slices = N(3);
    uint from = slice(all, slices, blockIdx.y), to = slice(all, slices, blockIdx.y + 1);
    float sum = 0.0f, along = 0.0f;
    for (uint e = from + threadIdx.x; e < to; e += THREADS) {
        uint i = place(e, blockIdx.x, c, p);
        float dy = behind_relu(&a, i, blockIdx.x);
        sum += dy;
        along += dy * (a.x[0][i] - a.x[4][blockIdx.x]);
    }
    double total = block_sum(sum), moment = block_sum(along);
    if (threadIdx.x == 0) {
        double *out = (double *)a.y[0] + 2 * (blockIdx.x * slices + blockIdx.y);
        out[0] = total;
        out[1] = moment;
    }
}

// γ̄ and β̄ from the sums, and the k and l of X̄; x = {sums, γ, v}, y = {γ̄ [C], β̄ [C], k and l [C, 2]}; f = {ε}; block (channel).
KERNEL(batch_totals) {
    uint slices = N(3), channel = blockIdx.x;
    const double *part = (const double *)a.x[0] + 2 * channel * slices;
    double sum = 0.0, along = 0.0;
    for (uint s = threadIdx.x; s < slices; s += THREADS) {
        sum += part[2 * s];
        along += part[2 * s + 1];
    }
    sum = block_sum(sum);
    along = block_sum(along);
    if (threadIdx.x == 0) {
        double count = (double)a.n[0] * (double)a.n[2], square = (double)a.x[2][channel] + (double)a.f[0];
        double slope = (double)a.x[1][channel] / sqrt(square);
        a.y[0][channel] = (float)(along / sqrt(square));
        a.y[1][channel] = (float)sum;
        a.y[2][2 * channel] = (float)(-slope * along / (square * count));
        a.y[2][2 * channel + 1] = (float)(-slope * sum / count);
    }
}

// X̄ = slope·Ȳ + k·(X − μ) + l, and Ȳ behind the Relu for the residual.
// x = {X, Ȳ, slopes, β, μ, Y or null, k and l}, y = {X̄, residual's or null}; n[4] = 1 with a Relu; f[1] = ceiling.
KERNEL(batch_spread) {
    uint c = N(1), p = N(2), all = N(0) * c * p;
    for (uint i = FIRST; i < all; i += STRIDE) {
        uint channel = i / p % c;
        float dy = behind_relu(&a, i, channel);
        float moved = a.x[6][2 * channel] * (a.x[0][i] - a.x[4][channel]) + a.x[6][2 * channel + 1];
        a.y[0][i] = a.x[2][channel] * dy + moved;
        if (a.y[1]) a.y[1][i] = dy;
    }
}

// ---- Rows: X [rows, W]; n = {rows, W}; a block takes a row at a time.

// Mean, or 0 where not `centred`, and one over the deviation of a row.
DEVICE void row_moments(const float *x, uint width, int centred, float epsilon, float *mean, float *rstd) {
    float sum = 0.0f, square = 0.0f;
    double exact = 0.0;
    if (centred) {
        for (uint i = threadIdx.x; i < width; i += THREADS) sum += x[i];
        exact = block_sum(sum) / (double)width;
    }
    *mean = (float)exact;
    for (uint i = threadIdx.x; i < width; i += THREADS) {
        float d = x[i] - *mean;
        square += d * d;
    }
    double rest = exact - *mean;
    *rstd = (float)(1.0 / sqrt(block_sum(square) / (double)width - rest * rest + (double)epsilon));
}

// Y = γ(X − μ)/σ + β; x = {X, γ or null, β or null}, y = {Y}; n[2] = 1 if centred; f = {ε}.
KERNEL(layer_norm) {
    uint width = N(1);
    for (uint row = blockIdx.x; row < N(0); row += gridDim.x) {
        const float *x = a.x[0] + row * width;
        float mean, rstd;
        row_moments(x, width, (int)a.n[2], a.f[0], &mean, &rstd);
        for (uint i = threadIdx.x; i < width; i += THREADS) {
            float hat = (x[i] - mean) * rstd;
            a.y[0][row * width + i] = hat * (a.x[1] ? a.x[1][i] : 1.0f) + (a.x[2] ? a.x[2][i] : 0.0f);
        }
    }
}

// X̄ = (g − mean g − x̂·mean(g·x̂))/σ, g = γȳ; x = {X, Ȳ, γ or null}, y = {X̄, moments [rows, 2] or null}; n[2] = 1 if centred; f = {ε}.
KERNEL(layer_norm_grad) {
    uint width = N(1);
    for (uint row = blockIdx.x; row < N(0); row += gridDim.x) {
        const float *x = a.x[0] + row * width, *dy = a.x[1] + row * width;
        float mean, rstd, sum = 0.0f, along = 0.0f;
        row_moments(x, width, (int)a.n[2], a.f[0], &mean, &rstd);
        for (uint i = threadIdx.x; i < width; i += THREADS) {
            float g = dy[i] * (a.x[2] ? a.x[2][i] : 1.0f);
            sum += g;
            along += g * (x[i] - mean) * rstd;
        }
        float total = a.n[2] ? (float)(block_sum(sum) / (double)width) : 0.0f;
        float slant = (float)(block_sum(along) / (double)width);
        for (uint i = threadIdx.x; i < width; i += THREADS) {
            float g = dy[i] * (a.x[2] ? a.x[2][i] : 1.0f);
            a.y[0][row * width + i] = (g - total - (x[i] - mean) * rstd * slant) * rstd;
        }
        if (a.y[1] && threadIdx.x == 0) {
            a.y[1][2 * row] = mean;
            a.y[1][2 * row + 1] = rstd;
        }
    }
}

// Σ Ȳx̂ and Σ Ȳ over some rows; x = {X, Ȳ, moments}, y = {sums [parts, 2, W]}; n[2] = parts; block (columns, part), a thread per column.
KERNEL(layer_norm_sums) {
    uint rows = N(0), width = N(1), parts = N(2), i = FIRST;
    uint from = slice(rows, parts, blockIdx.y), to = slice(rows, parts, blockIdx.y + 1);
    if (i >= width) return;
    float along = 0.0f, sum = 0.0f;
    for (uint row = from; row < to; row++) {
        float dy = a.x[1][row * width + i];
        along += dy * (a.x[0][row * width + i] - a.x[2][2 * row]) * a.x[2][2 * row + 1];
        sum += dy;
    }
    a.y[0][2 * blockIdx.y * width + i] = along;
    a.y[0][(2 * blockIdx.y + 1) * width + i] = sum;
}

// γ̄ and β̄ from the parts; x = {sums}, y = {γ̄ [W], β̄ [W]}.
KERNEL(layer_norm_totals) {
    uint width = N(1), parts = N(2), i = FIRST;
    if (i >= width) return;
    double along = 0.0, sum = 0.0;
    for (uint part = 0; part < parts; part++) {
        along += a.x[0][2 * part * width + i];
        sum += a.x[0][(2 * part + 1) * width + i];
    }
    a.y[0][i] = (float)along;
    a.y[1][i] = (float)sum;
}

// Y = e^(X − max X)/Σ; a row that is −∞ as a whole, or has a NaN, becomes NaN; x = {X}, y = {Y}.
KERNEL(softmax) {
    uint width = N(1);
    for (uint row = blockIdx.x; row < N(0); row += gridDim.x) {
        const float *x = a.x[0] + row * width;
        float greatest = -INFINITE, sum = 0.0f;
        for (uint i = threadIdx.x; i < width; i += THREADS) greatest = fmaxf(greatest, x[i]);
        greatest = block_max(greatest);
        for (uint i = threadIdx.x; i < width; i += THREADS) sum += expf(x[i] - greatest);
        float share = (float)(1.0 / block_sum(sum));
        for (uint i = threadIdx.x; i < width; i += THREADS) a.y[0][row * width + i] = expf(x[i] - greatest) * share;
    }
}

// X̄ = Y(Ȳ − Σ ȲY); x = {Y, Ȳ}, y = {X̄}.
KERNEL(softmax_grad) {
    uint width = N(1);
    for (uint row = blockIdx.x; row < N(0); row += gridDim.x) {
        const float *y = a.x[0] + row * width, *dy = a.x[1] + row * width;
        float sum = 0.0f;
        for (uint i = threadIdx.x; i < width; i += THREADS) sum += y[i] * dy[i];
        float total = (float)block_sum(sum);
        for (uint i = threadIdx.x; i < width; i += THREADS) a.y[0][row * width + i] = (dy[i] - total) * y[i];
    }
}

// ---- One element at a time: n = {elements}.

DEVICE float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// Φ(x) and xφ(x), of the standard normal distribution.
DEVICE float normal(float x, float *slant) {
    *slant = x * 0.3989422804014327f * expf(-0.5f * x * x);
    return 0.5f * erfcf(x * -0.7071067811865475f);
}

// Y = Xσ(X); x = {X}.
KERNEL(silu) {
    for (uint i = FIRST; i < N(0); i += STRIDE) a.y[0][i] = a.x[0][i] * sigmoid(a.x[0][i]);
}

// X̄ = Ȳσ(1 + X(1 − σ)); x = {X, Ȳ}.
KERNEL(silu_grad) {
    for (uint i = FIRST; i < N(0); i += STRIDE) {
        float x = a.x[0][i], s = sigmoid(x);
        a.y[0][i] = a.x[1][i] * s * (1.0f + x * (1.0f - s));
    }
}

// Y = XΦ(X); x = {X}.
KERNEL(gelu) {
    for (uint i = FIRST; i < N(0); i += STRIDE) {
        float slant;
        a.y[0][i] = a.x[0][i] * normal(a.x[0][i], &slant);
    }
}

// X̄ = Ȳ(Φ(X) + Xφ(X)); x = {X, Ȳ}.
KERNEL(gelu_grad) {
    for (uint i = FIRST; i < N(0); i += STRIDE) {
        float slant, share = normal(a.x[0][i], &slant);
        a.y[0][i] = a.x[1][i] * (share + slant);
    }
}

// ---- MaxPool: X [P,H,W], Y [P,O₁,O₂].
// n = {planes, H, W, O₁, O₂, K₁, K₂, stride₁, stride₂, dilation₁ + 65536·dilation₂, begin₁, begin₂}.

// The place in its plane of the first greatest element of window (r, s), or −1 where the window has none; NaN is greatest.
DEVICE int greatest_of(const Args *a, const float *x, int r, int s) {
    int best = -1, h = (int)a->n[1], w = (int)a->n[2], d1 = (int)(a->n[9] % 65536), d2 = (int)(a->n[9] / 65536);
    for (int k = 0; k < a->n[5]; k++) {
        int i = r * (int)a->n[7] + k * d1 - (int)a->n[10];
        if (i < 0 || i >= h) continue;
        for (int l = 0; l < a->n[6]; l++) {
            int j = s * (int)a->n[8] + l * d2 - (int)a->n[11], at = i * w + j;
            if (j < 0 || j >= w) continue;
            if (best < 0 || x[at] > x[best] || (x[at] != x[at] && x[best] == x[best])) best = at;
        }
    }
    return best;
}

// x = {X}, y = {Y}; a thread per output.
KERNEL(max_pool) {
    uint out = N(3) * N(4), all = N(0) * out;
    for (uint e = FIRST; e < all; e += STRIDE) {
        const float *x = a.x[0] + e / out * (N(1) * N(2));
        int best = greatest_of(&a, x, (int)(e % out / N(4)), (int)(e % out % N(4)));
        a.y[0][e] = best < 0 ? -INFINITE : x[best];
    }
}

// x = {X, Ȳ}, y = {X̄}; a thread per input, which looks at the windows that it lies in: nothing is added atomically.
KERNEL(max_pool_grad) {
    uint size = N(1) * N(2), all = N(0) * size;
    int d1 = (int)(a.n[9] % 65536), d2 = (int)(a.n[9] / 65536), s1 = (int)a.n[7], s2 = (int)a.n[8];
    for (uint e = FIRST; e < all; e += STRIDE) {
        int at = (int)(e % size), i = at / (int)a.n[2] + (int)a.n[10], j = at % (int)a.n[2] + (int)a.n[11];
        const float *x = a.x[0] + e / size * size, *dy = a.x[1] + e / size * (N(3) * N(4));
        float sum = 0.0f;
        // Backwards through the window is forwards through the outputs.
        for (int k = (int)a.n[5] - 1; k >= 0; k--) {
            int r = i - k * d1;
            if (r < 0 || r % s1 || r / s1 >= a.n[3]) continue;
            for (int l = (int)a.n[6] - 1; l >= 0; l--) {
                int s = j - l * d2;
                if (s < 0 || s % s2 || s / s2 >= a.n[4]) continue;
                if (greatest_of(&a, x, r / s1, s / s2) == at) sum += dy[r / s1 * (int)a.n[4] + s / s2];
            }
        }
        a.y[0][e] = sum;
    }
}

// ---- Around cuDNN's convolutions.

typedef union {
    float number;
    uint bits;
} Bits;

// Rounded to bf16, to the nearest and of two the even one; x = {X}, y = {Y: unsigned short}; n = {elements}.
KERNEL(to_bf16) {
    for (uint i = FIRST; i < N(0); i += STRIDE) {
        Bits b;
        b.number = a.x[0][i];
        uint rounded = (b.bits + 0x7fffu + (b.bits >> 16 & 1u)) >> 16;
        ((unsigned short *)a.y[0])[i] = (unsigned short)(b.number != b.number ? 0x7fc0u : rounded);
    }
}

// x = {X: unsigned short}, y = {Y}; n = {elements}.
KERNEL(from_bf16) {
    for (uint i = FIRST; i < N(0); i += STRIDE) {
        Bits b;
        b.bits = (uint)((const unsigned short *)a.x[0])[i] << 16;
        a.y[0][i] = b.number;
    }
}

// Y += B over each plane; x = {B [M]}, y = {Y [N,M,P]}; n = {N, M, P}.
KERNEL(add_bias) {
    uint m = N(1), p = N(2), all = N(0) * m * p;
    for (uint i = FIRST; i < all; i += STRIDE) a.y[0][i] += a.x[0][i / p % m];
}

// Copies planes [P,H,W] to [P,H₂,W₂], moved by (top, left), which may be below 0; 0 where there is nothing.
// x = {from}, y = {to}; n = {planes, H, W, H₂, W₂, top, left}.
KERNEL(move_planes) {
    uint size = N(3) * N(4), all = N(0) * size;
    for (uint e = FIRST; e < all; e += STRIDE) {
        int i = (int)(e % size / N(4)) - (int)a.n[5], j = (int)(e % size % N(4)) - (int)a.n[6];
        int inside = i >= 0 && i < a.n[1] && j >= 0 && j < a.n[2];
        a.y[0][e] = inside ? a.x[0][(e / size * N(1) + i) * N(2) + j] : 0.0f;
    }
}
