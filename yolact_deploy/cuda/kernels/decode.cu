// Confident priors, in ascending order: their boxes and their scores, class by class.

#define DECODE_WARPS (DECODE_THREADS / 32)
#define ROWS_PER_WARP (32 / DECODE_WARPS)                         // a block decides 32 priors: one word of bits
#define ROWS_IN_FLIGHT (COLUMNS_PER_LANE <= 4 ? ROWS_PER_WARP : 1)  // loads issued before the first is used

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

struct SoftmaxRow {
  float highest, sum;
};

// One warp, a row of logits; `values` become exp(logit - highest).
__device__ __forceinline__ SoftmaxRow softmax_row(float (&values)[COLUMNS_PER_LANE], int lane) {
  SoftmaxRow row;
  row.highest = -INFINITY_F;
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) row.highest = fmaxf(row.highest, values[j]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    row.highest = fmaxf(row.highest, __shfl_xor_sync(ALL_LANES, row.highest, step));
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) values[j] = exp_rounded(values[j] - row.highest);
  row.sum = pairwise_sum<0, NUM_COLUMNS>(values, lane);
  return row;
}

__device__ __forceinline__ void load_row(float (&values)[COLUMNS_PER_LANE], const conf_t* row, int lane) {
#pragma unroll
  for (int j = 0; j < COLUMNS_PER_LANE; j++) {
    int column = 32 * j + lane;
    values[j] = column < NUM_COLUMNS ? widen(row[column]) : -INFINITY_F;
  }
}

// Which priors have a foreground score strictly above the threshold, and no NaN among them. Reads conf once.
// grid (ceil(P / 32), B), block DECODE_THREADS
extern "C" __global__ void __launch_bounds__(DECODE_THREADS) keep_confident(
    const conf_t* __restrict__ conf,    // [B, P, 1 + C]
    unsigned* __restrict__ kept_words,  // out [B, ceil(P / 32)], bit i of word w: prior 32 w + i
    int num_priors,                     // P
    float conf_threshold) {
  static __shared__ unsigned warp_bits[DECODE_WARPS];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int first = blockIdx.x * 32 + warp * ROWS_PER_WARP;
  const conf_t* image_conf = conf + (size_t)blockIdx.y * num_priors * NUM_COLUMNS;
  unsigned bits = 0;
#pragma unroll
  for (int start = 0; start < ROWS_PER_WARP; start += ROWS_IN_FLIGHT) {
    float values[ROWS_IN_FLIGHT][COLUMNS_PER_LANE];
#pragma unroll
    for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
      int prior = min(first + start + i, num_priors - 1);
      load_row(values[i], image_conf + (size_t)prior * NUM_COLUMNS, lane);
    }
#pragma unroll
    for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
#if CONF_LOGITS
      float sum = softmax_row(values[i], lane).sum;
#endif
      bool above = false, nan = false;
#pragma unroll
      for (int j = 0; j < COLUMNS_PER_LANE; j++) {
        int column = 32 * j + lane;
        if (column == 0 || column >= NUM_COLUMNS) continue;
#if CONF_LOGITS
        float score = values[i][j] / sum;
#else
        float score = values[i][j];
#endif
        above |= score > conf_threshold;
        nan |= is_nan(score);
      }
      bool kept = __any_sync(ALL_LANES, above) && !__any_sync(ALL_LANES, nan);
      if (kept && first + start + i < num_priors) bits |= 1u << (warp * ROWS_PER_WARP + start + i);
    }
  }
  if (lane == 0) warp_bits[warp] = bits;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned word = 0;
    for (int i = 0; i < DECODE_WARPS; i++) word |= warp_bits[i];
    kept_words[blockIdx.y * gridDim.x + blockIdx.x] = word;
  }
}

__device__ __forceinline__ int nth_set_bit(unsigned word, int n) {
  for (int i = 0; i < n; i++) word &= word - 1;
  return __ffs(word) - 1;
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

// grid (ceil(P / 32), B), block DECODE_THREADS: each block places the candidates of its word behind those of all words before it.
extern "C" __global__ void __launch_bounds__(DECODE_THREADS) gather_candidates(
    const loc_t* __restrict__ loc,             // [B, P, 4]
    const conf_t* __restrict__ conf,           // [B, P, 1 + C]
    const float* __restrict__ priors,          // [P, 4], (cx, cy, w, h)
    const unsigned* __restrict__ kept_words,   // [B, ceil(P / 32)]
    int* __restrict__ candidate_count,         // out [B], N of each image
    int* __restrict__ candidate_prior,         // out [B, P], the first N: ascending
    float4* __restrict__ candidate_boxes,      // out [B, P], the first N: x1 y1 x2 y2, relative
    float* __restrict__ candidate_scores,      // out [B, L, P], the first N of each list
    int* __restrict__ candidate_class,         // out [B, P], the first N; only with CROSS_CLASS
    int num_priors) {                          // P
  static __shared__ int warp_sums[DECODE_WARPS];
  static __shared__ int row_of[32];  // prior of the block's n-th candidate
#if CONF_LOGITS
  static __shared__ SoftmaxRow softmax_of[32];
#endif
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, image = blockIdx.y;
  const unsigned* words = kept_words + image * gridDim.x;
  unsigned word = words[blockIdx.x];
  int before = 0;
  for (int i = threadIdx.x; i < blockIdx.x; i += DECODE_THREADS) before += __popc(words[i]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) before += __shfl_xor_sync(ALL_LANES, before, step);
  if (lane == 0) warp_sums[warp] = before;
  __syncthreads();
  int base = 0;
  for (int i = 0; i < DECODE_WARPS; i++) base += warp_sums[i];
  int found = __popc(word);
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) candidate_count[image] = base + found;
  if (found == 0) return;

  if (threadIdx.x < found) {
    int prior = blockIdx.x * 32 + nth_set_bit(word, threadIdx.x);
    size_t at = (size_t)image * num_priors + base + threadIdx.x;
    row_of[threadIdx.x] = prior;
    candidate_prior[at] = prior;
    candidate_boxes[at] = decode_box(loc + ((size_t)image * num_priors + prior) * 4, priors + prior * 4);
  }
  __syncthreads();
  const conf_t* image_conf = conf + (size_t)image * num_priors * NUM_COLUMNS;
#if CONF_LOGITS
  for (int n = warp; n < found; n += DECODE_WARPS) {
    float values[COLUMNS_PER_LANE];
    load_row(values, image_conf + (size_t)row_of[n] * NUM_COLUMNS, lane);
    SoftmaxRow row = softmax_row(values, lane);
    if (lane == 0) softmax_of[n] = row;
  }
  __syncthreads();
#define SCORE(n, class_id) \
  (exp_rounded(widen(image_conf[(size_t)row_of[n] * NUM_COLUMNS + 1 + (class_id)]) - softmax_of[n].highest) / softmax_of[n].sum)
#else
#define SCORE(n, class_id) widen(image_conf[(size_t)row_of[n] * NUM_COLUMNS + 1 + (class_id)])
#endif

#if CROSS_CLASS
  for (int n = warp; n < found; n += DECODE_WARPS) {
    float best = -INFINITY_F;
    int best_class = NUM_CLASSES;
    for (int c = lane; c < NUM_CLASSES; c += 32) {
      float score = SCORE(n, c);
      if (score > best || best_class == NUM_CLASSES) {
        best = score;
        best_class = c;
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      float score = __shfl_xor_sync(ALL_LANES, best, step);
      int class_id = __shfl_xor_sync(ALL_LANES, best_class, step);
      if (score > best || (score == best && class_id < best_class)) {
        best = score;
        best_class = class_id;
      }
    }
    if (lane == 0) {
      size_t at = (size_t)image * num_priors + base + n;
      candidate_scores[at] = best;
      candidate_class[at] = best_class;
    }
  }
#else
  // transposed in tiles of 32 x 32, so that both sides touch whole lines
  static __shared__ float tile[32][33];
  for (int first = 0; first < NUM_CLASSES; first += 32) {
    if (first + lane < NUM_CLASSES)
      for (int n = warp; n < found; n += DECODE_WARPS) tile[n][lane] = SCORE(n, first + lane);
    __syncthreads();
    if (lane < found)
      for (int c = warp; c < 32 && first + c < NUM_CLASSES; c += DECODE_WARPS)
        candidate_scores[((size_t)image * NUM_CLASSES + first + c) * num_priors + base + lane] = tile[lane][c];
    __syncthreads();
  }
#endif
#undef SCORE
}
