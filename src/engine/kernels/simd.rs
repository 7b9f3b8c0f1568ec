//! Sixteen f32 lanes on every processor, and the choice of instructions at run time.
//!
//! A kernel is a [`Job`], generic over [`Lanes`]. [`run`] compiles it once per [`Level`] with that level's instructions enabled;
//! `#[inline(always)]` on everything below it is what carries them down.

/// Instructions a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Whatever the target guarantees; compilers vectorize the arrays (NEON on AArch64).
    Portable,
    /// AVX2 with FMA: two registers of 8.
    Avx2,
    /// AVX-512F: one register of 16.
    Avx512,
}

impl Level {
    /// The levels this processor has, best last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// Rows and vectors of the register tile of a matrix product.
    pub fn tile(self) -> (usize, usize) {
        match self {
            Self::Portable => Array::TILE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::TILE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::Avx512::TILE,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => Array::TILE,
        }
    }

    /// The best level of this processor.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }
}

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen f32 numbers in registers.
///
/// # Safety
/// Methods may be called only inside a [`Job`] that [`run`] started for the level, and pointers must be good for the lanes that
/// are read or written; they need no alignment.
pub unsafe trait Lanes: Copy {
    /// Rows and vectors of the register tile of a matrix product: as many as leave registers for its operands.
    const TILE: (usize, usize);
    /// The same number in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// Lanes from memory.
    unsafe fn load(p: *const f32) -> Self;
    /// Lanes to memory.
    unsafe fn store(self, p: *mut f32);
    /// The first `n` < 16 lanes from memory, 0 in the others.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// The first `n` < 16 lanes to memory.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    /// Lanewise sum.
    unsafe fn add(self, other: Self) -> Self;
    /// Lanewise difference.
    unsafe fn sub(self, other: Self) -> Self;
    /// self · a + b.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// Lanewise product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Lanewise quotient.
    unsafe fn div(self, other: Self) -> Self;
    /// The greater; `other` where one is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where one is not a number.
    unsafe fn min(self, other: Self) -> Self;
    /// 2 to the power of whole numbers in −126..=127.
    unsafe fn pow2(self) -> Self;
    /// max(self, 0).
    unsafe fn relu(self) -> Self;
    /// Lanes of self where `mask` > 0, 0 elsewhere.
    unsafe fn keep_where_positive(self, mask: Self) -> Self;
    /// Sum over the lanes.
    unsafe fn sum(self) -> f32;
    /// The lanes at even places of self and then of `other`, and those at odd places.
    unsafe fn unzip(self, other: Self) -> (Self, Self);
    /// Lanes of self and `other` in turn: what [`unzip`](Self::unzip) takes apart.
    unsafe fn zip(self, other: Self) -> (Self, Self);
    /// Sixteen rows of sixteen numbers, `pitch` apart, turned around: number k of row r goes to `to[k·apart + r]`.
    #[inline(always)]
    unsafe fn turn(from: *const f32, pitch: usize, to: *mut f32, apart: usize) {
        for k in 0..LANES {
            for r in 0..LANES {
                unsafe { *to.add(k * apart + r) = *from.add(r * pitch + k) };
            }
        }
    }
    /// Runs a job, where registers are few as a function of its own: among the loops around it, compilers give registers that an inner
    /// loop needs to what they keep from those.
    #[inline(always)]
    unsafe fn outlined(job: &impl Job) {
        unsafe { job.run::<Self>() }
    }
    /// The greatest of the lanes, if all are numbers.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// A computation that is compiled for every level.
pub trait Job {
    /// Does it. Implementations are `#[inline(always)]`, and so is everything they call with `L`; closures are not, so inner loops
    /// have none.
    ///
    /// # Safety
    /// Only [`run`] calls this: the processor has the instructions of `L`.
    unsafe fn run<L: Lanes>(&self);
}

/// Runs a job with the instructions of `level`.
///
/// # Safety
/// The processor must have them ([`Level::available`]), and what the job says of its pointers must hold.
pub unsafe fn run(level: Level, job: &impl Job) {
    // SAFETY: the caller promises what the level needs.
    unsafe {
        match level {
            Level::Portable => job.run::<Array>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::avx2(job),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::avx512(job),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => job.run::<Array>(),
        }
    }
}

/// Lanes the compiler vectorizes with what the target has.
#[derive(Clone, Copy)]
struct Array([f32; LANES]);

impl Array {
    #[inline(always)]
    fn map2(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (o, x) in out.iter_mut().zip(other.0) {
            *o = f(*o, x);
        }
        Self(out)
    }
}

// SAFETY: plain Rust on what the caller's pointers are good for.
unsafe impl Lanes for Array {
    // 32 registers of 4 on AArch64.
    const TILE: (usize, usize) = (6, 1);
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut out = [0.0; LANES];
        for (i, o) in out.iter_mut().enumerate().take(n) {
            *o = unsafe { *p.add(i) };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for (i, x) in self.0.iter().enumerate().take(n) {
            unsafe { *p.add(i) = *x };
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map2(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.map2(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        let mut out = b.0;
        // A fused operation without the instruction for it is a slow library call.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        for (out, (x, a)) in out.iter_mut().zip(self.0.iter().zip(a.0)) {
            *out = if fused { x.mul_add(a, *out) } else { x * a + *out };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.map2(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.map2(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.map2(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.map2(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        self.map2(self, |a, _| f32::from_bits(((a as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        self.map2(self, |a, _| if a > 0.0 { a } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn keep_where_positive(self, mask: Self) -> Self {
        self.map2(mask, |a, m| if m > 0.0 { a } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn unzip(self, other: Self) -> (Self, Self) {
        let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES / 2 {
            (even[i], odd[i]) = (self.0[2 * i], self.0[2 * i + 1]);
            (even[LANES / 2 + i], odd[LANES / 2 + i]) = (other.0[2 * i], other.0[2 * i + 1]);
        }
        (Self(even), Self(odd))
    }
    #[inline(always)]
    unsafe fn zip(self, other: Self) -> (Self, Self) {
        let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES / 2 {
            (low[2 * i], low[2 * i + 1]) = (self.0[i], other.0[i]);
            (high[2 * i], high[2 * i + 1]) = (self.0[LANES / 2 + i], other.0[LANES / 2 + i]);
        }
        (Self(low), Self(high))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let x = self.0;
        let quarter = |i: usize| (x[i] + x[i + 8]) + (x[i + 4] + x[i + 12]);
        (quarter(0) + quarter(2)) + (quarter(1) + quarter(3))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Job, LANES, Lanes};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(job: &impl Job) {
        unsafe { job.run::<Avx2>() }
    }

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512(job: &impl Job) {
        unsafe { job.run::<Avx512>() }
    }

    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY: the intrinsics need AVX2 and FMA, which the level stands for.
    unsafe impl Lanes for Avx2 {
        // 16 registers: 12 sums, 2 of a column, 1 of a row.
        const TILE: (usize, usize) = (6, 1);
        // `inline(never)` on a function with target features does not hold (Rust 1.95); on this one it does.
        #[inline(never)]
        unsafe fn outlined(job: &impl Job) {
            unsafe { avx2(job) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            let v = unsafe { _mm256_set1_ps(x) };
            Self(v, v)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            const MASK: [[i32; LANES]; 2] = [[-1; LANES], [0; LANES]];
            unsafe {
                let mask = MASK.as_ptr().cast::<i32>().add(LANES - n);
                let (a, b) = (_mm256_loadu_si256(mask.cast()), _mm256_loadu_si256(mask.add(8).cast()));
                // Lanes that are masked out are not read.
                Self(_mm256_maskload_ps(p, a), _mm256_maskload_ps(p.wrapping_add(8), b))
            }
        }
        #[inline(always)]
        unsafe fn store_first(self, mut p: *mut f32, n: usize) {
            // Masked stores are slow.
            unsafe {
                let mut eight = self.0;
                if n & 8 != 0 {
                    _mm256_storeu_ps(p, eight);
                    (p, eight) = (p.add(8), self.1);
                }
                let mut four = _mm256_castps256_ps128(eight);
                if n & 4 != 0 {
                    _mm_storeu_ps(p, four);
                    (p, four) = (p.add(4), _mm256_extractf128_ps::<1>(eight));
                }
                if n & 2 != 0 {
                    _mm_storel_pd(p.cast(), _mm_castps_pd(four));
                    (p, four) = (p.add(2), _mm_movehl_ps(four, four));
                }
                if n & 1 != 0 {
                    _mm_store_ss(p, four);
                }
            }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            unsafe { Self(_mm256_sub_ps(self.0, o.0), _mm256_sub_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(self.0, a.0, b.0), _mm256_fmadd_ps(self.1, a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, o.0), _mm256_mul_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            unsafe { Self(_mm256_div_ps(self.0, o.0), _mm256_div_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Self(_mm256_max_ps(self.0, o.0), _mm256_max_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Self(_mm256_min_ps(self.0, o.0), _mm256_min_ps(self.1, o.1)) }
        }
        #[inline(always)]
        unsafe fn pow2(self) -> Self {
            unsafe {
                let bias = _mm256_set1_epi32(127);
                let (a, b) = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
                let (a, b) = (_mm256_add_epi32(a, bias), _mm256_add_epi32(b, bias));
                let (a, b) = (_mm256_slli_epi32::<23>(a), _mm256_slli_epi32::<23>(b));
                Self(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b))
            }
        }
        #[inline(always)]
        unsafe fn relu(self) -> Self {
            let zero = unsafe { _mm256_setzero_ps() };
            unsafe { Self(_mm256_max_ps(self.0, zero), _mm256_max_ps(self.1, zero)) }
        }
        #[inline(always)]
        unsafe fn keep_where_positive(self, m: Self) -> Self {
            unsafe {
                let zero = _mm256_setzero_ps();
                let (a, b) = (_mm256_cmp_ps::<_CMP_GT_OQ>(m.0, zero), _mm256_cmp_ps::<_CMP_GT_OQ>(m.1, zero));
                Self(_mm256_and_ps(self.0, a), _mm256_and_ps(self.1, b))
            }
        }
        #[inline(always)]
        unsafe fn unzip(self, o: Self) -> (Self, Self) {
            unsafe {
                let (a, b) = (_mm256_shuffle_ps::<0x88>(self.0, self.1), _mm256_shuffle_ps::<0x88>(o.0, o.1));
                let (c, d) = (_mm256_shuffle_ps::<0xDD>(self.0, self.1), _mm256_shuffle_ps::<0xDD>(o.0, o.1));
                (Self(middle(a), middle(b)), Self(middle(c), middle(d)))
            }
        }
        #[inline(always)]
        unsafe fn zip(self, o: Self) -> (Self, Self) {
            unsafe {
                let (a, b) = (_mm256_unpacklo_ps(self.0, o.0), _mm256_unpackhi_ps(self.0, o.0));
                let (c, d) = (_mm256_unpacklo_ps(self.1, o.1), _mm256_unpackhi_ps(self.1, o.1));
                let low = Self(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
                (low, Self(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d)))
            }
        }
        #[inline(always)]
        unsafe fn turn(from: *const f32, pitch: usize, to: *mut f32, apart: usize) {
            for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                unsafe { turn_square(from.add(i * pitch + j), pitch, to.add(j * apart + i), apart) };
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { sum_of_eight(_mm256_add_ps(self.0, self.1)) }
        }
    }

    /// Sum of eight lanes.
    #[inline(always)]
    unsafe fn sum_of_eight(x: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    /// Eight rows of eight numbers turned around.
    #[inline(always)]
    unsafe fn turn_square(from: *const f32, pitch: usize, to: *mut f32, apart: usize) {
        unsafe {
            let mut x = [_mm256_setzero_ps(); 8];
            for (r, x) in x.iter_mut().enumerate() {
                *x = _mm256_loadu_ps(from.add(r * pitch));
            }
            // Pairs of rows, then fours, within halves of vectors; then the halves.
            let (mut y, mut z) = (x, x);
            for i in 0..4 {
                y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
                y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
            }
            for i in [0, 4] {
                for k in 0..2 {
                    let (a, b) = (y[i + k], y[i + k + 2]);
                    z[i + 2 * k] = _mm256_shuffle_ps::<0x44>(a, b);
                    z[i + 2 * k + 1] = _mm256_shuffle_ps::<0xEE>(a, b);
                }
            }
            for k in 0..4 {
                _mm256_storeu_ps(to.add(k * apart), _mm256_permute2f128_ps::<0x20>(z[k], z[k + 4]));
                _mm256_storeu_ps(to.add((k + 4) * apart), _mm256_permute2f128_ps::<0x31>(z[k], z[k + 4]));
            }
        }
    }

    /// Exchanges the second and the third quarter.
    #[inline(always)]
    unsafe fn middle(x: __m256) -> __m256 {
        unsafe { _mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(_mm256_castps_pd(x))) }
    }

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    // SAFETY: the intrinsics need AVX-512F, which the level stands for.
    unsafe impl Lanes for Avx512 {
        // 32 registers: 24 sums, 3 of a column, 1 of a row.
        const TILE: (usize, usize) = (8, 3);
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(p)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p)) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            unsafe { Self(_mm512_sub_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(self.0, a.0, b.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            unsafe { Self(_mm512_div_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            unsafe { Self(_mm512_max_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            unsafe { Self(_mm512_min_ps(self.0, o.0)) }
        }
        #[inline(always)]
        unsafe fn pow2(self) -> Self {
            unsafe { Self(_mm512_scalef_ps(_mm512_set1_ps(1.0), self.0)) }
        }
        #[inline(always)]
        unsafe fn relu(self) -> Self {
            unsafe { Self(_mm512_max_ps(self.0, _mm512_setzero_ps())) }
        }
        #[inline(always)]
        unsafe fn keep_where_positive(self, m: Self) -> Self {
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(m.0, _mm512_setzero_ps());
                Self(_mm512_maskz_mov_ps(positive, self.0))
            }
        }
        #[inline(always)]
        unsafe fn unzip(self, o: Self) -> (Self, Self) {
            unsafe {
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
                (Self(_mm512_permutex2var_ps(self.0, even, o.0)), Self(_mm512_permutex2var_ps(self.0, odd, o.0)))
            }
        }
        #[inline(always)]
        unsafe fn zip(self, o: Self) -> (Self, Self) {
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                (Self(_mm512_permutex2var_ps(self.0, low, o.0)), Self(_mm512_permutex2var_ps(self.0, high, o.0)))
            }
        }
        #[inline(always)]
        unsafe fn turn(from: *const f32, pitch: usize, to: *mut f32, apart: usize) {
            unsafe {
                let mut x = [Self::splat(0.0); LANES];
                for (r, x) in x.iter_mut().enumerate() {
                    *x = Self::load(from.add(r * pitch));
                }
                // Pairs of rows, then fours, within quarters of vectors; then the quarters.
                let mut y = x;
                for i in 0..8 {
                    y[2 * i].0 = _mm512_unpacklo_ps(x[2 * i].0, x[2 * i + 1].0);
                    y[2 * i + 1].0 = _mm512_unpackhi_ps(x[2 * i].0, x[2 * i + 1].0);
                }
                for i in 0..4 {
                    for k in 0..2 {
                        let a = _mm512_castps_pd(y[4 * i + k].0);
                        let b = _mm512_castps_pd(y[4 * i + k + 2].0);
                        x[4 * i + 2 * k].0 = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                        x[4 * i + 2 * k + 1].0 = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                    }
                }
                // x[4i + k], quarter q: rows 4i..4i + 4 of column 4q + k.
                for k in 0..4 {
                    let (a, b, c, d) = (x[k].0, x[4 + k].0, x[8 + k].0, x[12 + k].0);
                    let (p, q) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                    let (r, s) = (_mm512_shuffle_f32x4::<0xDD>(a, b), _mm512_shuffle_f32x4::<0xDD>(c, d));
                    y[k].0 = _mm512_shuffle_f32x4::<0x88>(p, q);
                    y[8 + k].0 = _mm512_shuffle_f32x4::<0xDD>(p, q);
                    y[4 + k].0 = _mm512_shuffle_f32x4::<0x88>(r, s);
                    y[12 + k].0 = _mm512_shuffle_f32x4::<0xDD>(r, s);
                }
                for (k, y) in y.iter().enumerate() {
                    y.store(to.add(k * apart));
                }
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let high =
                    _mm512_castpd_ps(_mm512_castpd256_pd512(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))));
                sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_castps512_ps256(high)))
            }
        }
    }
}
