// What the kernels share. All .cu files of this folder are compiled as one unit, in the order of specialization.SOURCES.
//
// CPU and GPU agree bit for bit: compiled with --fmad=false, every fused multiply-add is a written fmaf, every order is
// decided by a total key (score bits, then index), never by the order of atomics.
//
// Compile-time definitions, all given by specialization.py:
//   NUM_CLASSES     C, foreground classes; conf has 1 + C columns
//   NUM_COEFF       K
//   TOP_K           candidates per class that suppress each other
//   MAX_DETECTIONS  best detections over all classes
//   CROSS_CLASS     1: one list of candidates, each in its best class, and up to TOP_K detections
//   CONF_LOGITS     1: conf still needs its softmax
//   CLIP_BOXES      1: boxes are cut at 0 and 1 before they are compared
//   PAD             1: an image is the top left of a square, which is what the input, boxes and prototypes are of
//   LOC_FP16, CONF_FP16, COEFF_FP16, PROTO_FP16, INPUT_FP16   1: that tensor holds float16, else float32
//   PREPROCESS_COLUMNS, PREPROCESS_LINES   threads of a block of `preprocess`, beside and below each other
//   PREPROCESS_ROWS   output rows that each of them makes: they share the column's coordinates
//   DECODE_THREADS, NMS_THREADS, SELECT_THREADS, MASK_THREADS, RLE_THREADS   threads of a block
//   UNPACK_BYTES   bytes that a thread of `unpack_masks` writes at once
//
// In the shapes: B images, P priors, Hp x Wp prototype cells.

#define ALL_LANES 0xffffffffu
#define LISTS (CROSS_CLASS ? 1 : NUM_CLASSES)                 // L: lists of candidates that are suppressed apart
#define MAX_OUT (CROSS_CLASS ? TOP_K : MAX_DETECTIONS)        // M: most detections of an image
#define NUM_COLUMNS (NUM_CLASSES + 1)
#define COLUMNS_PER_LANE ((NUM_COLUMNS + 31) / 32)
#define INFINITY_F __int_as_float(0x7f800000)

typedef unsigned short half_bits;
typedef unsigned long long sort_key;

template <bool FP16> struct Stored { typedef float type; };
template <> struct Stored<true> { typedef half_bits type; };
typedef Stored<LOC_FP16>::type loc_t;
typedef Stored<CONF_FP16>::type conf_t;
typedef Stored<COEFF_FP16>::type coeff_t;
typedef Stored<PROTO_FP16>::type proto_t;
typedef Stored<INPUT_FP16>::type input_t;

#ifdef __CUDACC__
__device__ __forceinline__ float half_to_float(half_bits h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}
__device__ __forceinline__ half_bits float_to_half(float x) {
  half_bits h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}
#endif

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(half_bits h) { return half_to_float(h); }
__device__ __forceinline__ void store(float* at, float x) { *at = x; }
__device__ __forceinline__ void store(half_bits* at, float x) { *at = float_to_half(x); }

__device__ __forceinline__ bool is_nan(float x) { return x != x; }

__host__ __device__ constexpr int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

__host__ __device__ constexpr int min_of(int a, int b) { return a < b ? a : b; }

// sums[i] = value_at(0) + ... + value_at(i - 1) for i = 0 .. n. Of one warp, all lanes.
template <class ValueAt>
__device__ __forceinline__ void write_running_sums(ValueAt value_at, int n, unsigned* sums) {
  int lane = threadIdx.x % 32;
  unsigned before = 0;
  for (int start = 0; start < n; start += 32) {
    int i = start + lane;
    unsigned own = i < n ? value_at(i) : 0, sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      unsigned lower = __shfl_up_sync(ALL_LANES, sum, step);
      if (lane >= step) sum += lower;
    }
    if (i < n) sums[i] = before + sum - own;
    before += __shfl_sync(ALL_LANES, sum, 31);
  }
  if (lane == 0) sums[n] = before;
}

// Where a mask can be 1: rows top .. top + rows - 1, and columns from `left`, a multiple of 32, on, in whole words of 32.
// Its last row and the last column of its pixels are 0, unless they are the image's. Bits are kept row by row: pixel left + 32 w + b of a row is bit b, from the lowest, of the row's word w.
struct alignas(16) Window {
  int top, left, rows, words;
};

// (height, width) of what boxes and prototypes are relative to.
__device__ __forceinline__ int2 canvas_size(int image_h, int image_w) {
  int side = max(image_h, image_w);
  return PAD ? make_int2(side, side) : make_int2(image_h, image_w);
}

// exp of float32, rounded correctly from a double that is off by about 1e-16. Taylor series on |r| <= ln(2)/2, whose first
// term left out is below 2^-57.
__device__ __forceinline__ float exp_by_double(float x) {
  if (!(x > -104.0f)) return is_nan(x) ? x : 0.0f;
  if (x > 89.0f) return INFINITY_F;
  double k = rint((double)x * 1.4426950408889634);
  double r = fma(k, -6.93147180369123816490e-01, (double)x);
  r = fma(k, -1.90821492927058770002e-10, r);
  double p = 1.0 / 6227020800.0;
  p = fma(p, r, 1.0 / 479001600.0);
  p = fma(p, r, 1.0 / 39916800.0);
  p = fma(p, r, 1.0 / 3628800.0);
  p = fma(p, r, 1.0 / 362880.0);
  p = fma(p, r, 1.0 / 40320.0);
  p = fma(p, r, 1.0 / 5040.0);
  p = fma(p, r, 1.0 / 720.0);
  p = fma(p, r, 1.0 / 120.0);
  p = fma(p, r, 1.0 / 24.0);
  p = fma(p, r, 1.0 / 6.0);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  return (float)(p * __longlong_as_double((long long)(1023 + (int)k) << 52));
}

// p = p * r + c, where p and r are sums of a float and a much smaller one.
__device__ __forceinline__ void double_float_step(float2& p, float2 r, float c) {
  float product = p.x * r.x;
  float product_low = fmaf(p.x, r.x, -product);
  product_low = fmaf(p.y, r.x, product_low);
  product_low = fmaf(p.x, r.y, product_low);
  float sum = c + product;
  p.y = (c - sum) + product + product_low;
  p.x = sum;
}

// exp of float32, rounded correctly: the same for every float32 as by double (tests/emulator/sweep_exp.py compares them
// all). Most GPUs are slow in double, so the last steps of the series are taken in pairs of floats, and only the 0.4% that
// lie within their error of a rounding boundary go by double.
__device__ __forceinline__ float exp_rounded(float x) {
  const float error = 0x1p-33f;  // of the series; half of it would already be too little for some numbers
  if (x > -87.0f && x < 88.5f) {
    float k = rintf(x * 1.44269504f);
    // ln 2 in three parts; k times the first is exact
    float reduced = fmaf(k, -0x1.62e4p-1f, x);
    float second = k * 0x1.7f7d1cp-20f;
    float second_low = fmaf(k, 0x1.ef357ap-45f, fmaf(k, 0x1.7f7d1cp-20f, -second));
    float2 r;
    r.x = reduced - second;
    float back = r.x - reduced;
    r.y = (reduced - (r.x - back)) + (-second - back) - second_low;
    float q = 2.5052108e-8f;  // 1 / 11!
    q = fmaf(q, r.x, 2.7557319e-7f);
    q = fmaf(q, r.x, 2.7557319e-6f);
    q = fmaf(q, r.x, 2.4801587e-5f);
    q = fmaf(q, r.x, 1.9841270e-4f);
    q = fmaf(q, r.x, 1.3888889e-3f);
    q = fmaf(q, r.x, 8.3333333e-3f);
    q = fmaf(q, r.x, 4.1666668e-2f);
    float small = r.x * q;
    float2 p;
    p.x = 0.16666667f + small;
    p.y = (0.16666667f - p.x) + small - 0x1.555556p-28f;
    double_float_step(p, r, 0.5f);
    double_float_step(p, r, 1.0f);
    double_float_step(p, r, 1.0f);
    float y = p.x + p.y, rest = (p.x - y) + p.y;
    if (y + (rest - error) == y + (rest + error)) return __int_as_float(__float_as_int(y) + (int)k * (1 << 23));
  }
  return exp_by_double(x);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_rounded(-x)); }

// Unsigned integers in the order of the floats, equal for both zeros; never 0 for a number, so that 0 can mean "none".
__device__ __forceinline__ unsigned ordered_bits(float x) {
  unsigned bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The cells or pixels of an interval: lower limit clamped at 0 only, upper at `size` only; NaN when a corner is NaN.
__device__ __forceinline__ float2 ordered_limits(float first, float second, int size, float padding) {
  first *= (float)size;
  second *= (float)size;
  if (is_nan(first) || is_nan(second)) return make_float2(first + second, first + second);
  float low = fmaxf(fminf(first, second) - padding, 0.0f);
  float high = fminf(fmaxf(first, second) + padding, (float)size);
  return make_float2(low, high);
}
