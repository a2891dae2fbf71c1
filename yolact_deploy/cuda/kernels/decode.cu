// Confident priors: which they are, their boxes, and their scores class by class.

#define DECODE_WARPS (DECODE_THREADS / 32)
#define ROWS_PER_WARP (32 / DECODE_WARPS)                         // a block decides 32 priors: one word of bits
#define ROWS_IN_FLIGHT (COLUMNS_PER_LANE <= 4 ? ROWS_PER_WARP : 1)  // loads issued before the first is used
static_assert(DECODE_WARPS >= 1 && 32 % DECODE_WARPS == 0, "the warps of a block share 32 priors evenly");

// The sum of elements START .. START + N - 1, element i in lane i % 32 of values[i / 32]; NumPy's pairwise order, so that
// softmax agrees with the reference to the last bit.
template <int START, int N>
__device__ __forceinline__ float pairwise_sum(const float (&values)[COLUMNS_PER_LANE], int lane) {
  if constexpr (N > 128) {
    constexpr int HALF = N / 2 - N / 2 % 8;
    return pairwise_sum<START, HALF>(values, lane) + pairwise_sum<START + HALF, N - HALF>(values, lane);
  } else {
    constexpr int EIGHTS = N - N % 8;
    float sum = 0.0f;
    if constexpr (EIGHTS > 0) {
#pragma unroll
      for (int i = START; i < START + EIGHTS; i += 8) {
        float value = __shfl_sync(ALL_LANES, values[i / 32], i % 32 + lane % 8);
        sum = i == START ? value : sum + value;
      }
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      sum += __shfl_xor_sync(ALL_LANES, sum, 4);
    }
#pragma unroll
    for (int i = START + EIGHTS; i < START + N; i++) sum += __shfl_sync(ALL_LANES, values[i / 32], i % 32);
    return sum;
  }
}

// One warp, a row of logits; `values` become exp(logit - highest). Returns their sum.
__device__ __forceinline__ float softmax_row(float (&values)[COLUMNS_PER_LANE], int lane) {
  float highest = -INFINITY_F;
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) highest = fmaxf(highest, values[j]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, step));
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) values[j] = exp_rounded(values[j] - highest);
  return pairwise_sum<0, NUM_COLUMNS>(values, lane);
}

__device__ __forceinline__ void load_row(float (&values)[COLUMNS_PER_LANE], const conf_t* row, int lane) {
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) {
    int column = 32 * j + lane;
    values[j] = column < NUM_COLUMNS ? widen(row[column]) : -INFINITY_F;
  }
}

// Of a warp: whether a row has a foreground score strictly above the threshold, and no NaN among them. `values` become scores.
__device__ __forceinline__ bool is_confident(float (&values)[COLUMNS_PER_LANE], int lane, float conf_threshold) {
#if CONF_LOGITS
  float sum = softmax_row(values, lane);
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) values[j] /= sum;
#endif
  bool above = false, nan = false;
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) {  // columns beyond the last are -infinity, or as scores 0, or NaN where all are
    bool is_foreground = (j > 0) | (lane > 0);
    above |= is_foreground & (values[j] > conf_threshold);
    nan |= is_foreground & is_nan(values[j]);
  }
  return __any_sync(ALL_LANES, above) && !__any_sync(ALL_LANES, nan);
}

// Of a warp: the scores of a row that was kept, to lists `stride` apart.
__device__ __forceinline__ void write_scores(
    const float (&values)[COLUMNS_PER_LANE], int lane, float* scores, size_t stride, int* class_id) {
#if CROSS_CLASS
  float best = -INFINITY_F;
  int best_class = NUM_CLASSES;
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) {
    int own = 32 * j + lane - 1;
    if (own >= 0 && own < NUM_CLASSES && values[j] > best) {
      best = values[j];
      best_class = own;
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    float score = __shfl_xor_sync(ALL_LANES, best, step);
    int other = __shfl_xor_sync(ALL_LANES, best_class, step);
    if (score > best || (score == best && other < best_class)) {
      best = score;
      best_class = other;
    }
  }
  if (lane == 0) {
    *scores = best;
    *class_id = best_class;
  }
#else
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) {
    int own = 32 * j + lane - 1;
    if (own >= 0 && own < NUM_CLASSES) scores[own * stride] = values[j];
  }
#endif
}

// NaN stays NaN.
__device__ __forceinline__ float clip_to_unit(float x) { return x > 1.0f ? 1.0f : x <= 0.0f ? 0.0f : x; }

// SSD's encoding with variances 0.1 and 0.2, in the original's order of operations.
__device__ __forceinline__ float4 decode_box(const loc_t* loc, const float* prior) {
  float cx = prior[0] + widen(loc[0]) * 0.1f * prior[2];
  float cy = prior[1] + widen(loc[1]) * 0.1f * prior[3];
  float w = prior[2] * exp_rounded(widen(loc[2]) * 0.2f);
  float h = prior[3] * exp_rounded(widen(loc[3]) * 0.2f);
  float x1 = cx - w / 2.0f, y1 = cy - h / 2.0f;
#if CLIP_BOXES
  return make_float4(clip_to_unit(x1), clip_to_unit(y1), clip_to_unit(w + x1), clip_to_unit(h + y1));
#else
  return make_float4(x1, y1, w + x1, h + y1);
#endif
}

// Candidates stay in the places of their priors: nothing has to be counted before they are written, and a row is read once.
// grid (ceil(P / 32), B), block DECODE_THREADS
extern "C" __global__ void __launch_bounds__(DECODE_THREADS) decode(
    const loc_t* __restrict__ loc,          // [B, P, 4]
    const conf_t* __restrict__ conf,        // [B, P, 1 + C]
    const float* __restrict__ priors,       // [P, 4], (cx, cy, w, h)
    unsigned* __restrict__ kept_words,      // out [B, ceil(P / 32)], bit i of word w: prior 32 w + i is a candidate
    float4* __restrict__ candidate_boxes,   // out [B, P], of candidates alone, as what follows: x1 y1 x2 y2, relative
    float* __restrict__ candidate_scores,   // out [B, L, P]
    int* __restrict__ candidate_class,      // out [B, P]; only with CROSS_CLASS
    int num_priors,                         // P
    float conf_threshold) {
  static __shared__ unsigned warp_bits[DECODE_WARPS];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, image = blockIdx.y;
  int first = blockIdx.x * 32 + warp * ROWS_PER_WARP;
  size_t image_first = (size_t)image * num_priors;
  float* scores = candidate_scores + image_first * LISTS;
  unsigned kept = 0;  // bit i: row first + i
#pragma unroll
  for (int start = 0; start < ROWS_PER_WARP; start += ROWS_IN_FLIGHT) {
    float values[ROWS_IN_FLIGHT][COLUMNS_PER_LANE];
#pragma unroll
    for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
      int prior = min(first + start + i, num_priors - 1);
      load_row(values[i], conf + (image_first + prior) * NUM_COLUMNS, lane);
    }
#pragma unroll
    for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
      int prior = first + start + i;
      if (is_confident(values[i], lane, conf_threshold) && prior < num_priors) {
        kept |= 1u << (start + i);
        write_scores(values[i], lane, scores + prior, num_priors, candidate_class + image_first + prior);
      }
    }
  }
  if (lane < ROWS_PER_WARP && (kept >> lane & 1)) {
    size_t at = image_first + first + lane;
    candidate_boxes[at] = decode_box(loc + at * 4, priors + (first + lane) * 4);
  }
  if (lane == 0) warp_bits[warp] = kept << (warp * ROWS_PER_WARP);
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned word = 0;
    for (int i = 0; i < DECODE_WARPS; i++) word |= warp_bits[i];
    kept_words[image * gridDim.x + blockIdx.x] = word;
  }
}
