// FastNMS (Bolya et al. 2019, section 3.3) of each list of candidates, then the best over all lists.
// Order everywhere: score descending, then class ascending, then prior ascending.

#define NMS_SORT_SIZE (TOP_K > 512 ? power_of_two_from(TOP_K) : 512)  // lists up to this length are sorted as they are
#define SELECT_SORT_SIZE (MAX_OUT > 512 ? power_of_two_from(MAX_OUT) : 512)
#define ENTRIES (LISTS * MAX_OUT)  // of an image's pool
#define OWN_ENTRIES min_of(8, (ENTRIES + SELECT_THREADS - 1) / SELECT_THREADS)  // that a thread has in registers

#define NO_KEY (~(sort_key)0)

struct SelectScratch {  // in shared memory
  unsigned histogram[256];
  unsigned taken;
  sort_key prefix;
  unsigned remaining;
  bool is_decided;
};

// Ascending, as the best are: score keys descending, then indices ascending. No two are equal.
__device__ __forceinline__ sort_key sort_key_of(unsigned score_key, unsigned index) {
  return (sort_key)~score_key << 32 | index;
}

// The `wanted`-th lowest key, or another one below the next, by radix from the top byte down.
// all.for_each(f) calls f(key) for every key, in one thread, by whole warps: lanes that have none say NO_KEY. More than `wanted` keys must be there. The
// histogram's sums do not depend on the atomics' order.
template <int THREADS, class Keys>
__device__ sort_key last_wanted(const Keys& all, unsigned wanted, SelectScratch& s) {
  sort_key prefix = 0;
  unsigned remaining = wanted;
  for (int shift = 56;; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += THREADS) s.histogram[i] = 0;
    __syncthreads();
    sort_key decided = shift == 56 ? 0 : NO_KEY << (shift + 8);
    all.for_each([&](sort_key key) {
      if (key != NO_KEY && (key & decided) == prefix) atomicAdd(&s.histogram[key >> shift & 255], 1u);
    });
    __syncthreads();
    if (threadIdx.x < 32) {  // each lane has 8 digits
      unsigned first = 8 * threadIdx.x, sum = 0;
      for (int d = 0; d < 8; d++) sum += s.histogram[first + d];
      unsigned through = sum;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        unsigned lower = __shfl_up_sync(ALL_LANES, through, step);
        if (threadIdx.x >= step) through += lower;
      }
      unsigned below = through - sum;
      if (below < remaining && remaining <= through) {
        unsigned digit = first;
        while (below + s.histogram[digit] < remaining) below += s.histogram[digit++];
        s.prefix = prefix | (sort_key)digit << shift;
        s.remaining = remaining - below;
        s.is_decided = s.histogram[digit] == remaining - below;  // all that begin so are wanted
      }
    }
    __syncthreads();
    prefix = s.prefix;
    remaining = s.remaining;
    if (s.is_decided) return prefix | ((sort_key)1 << shift) - 1;
  }
}

// Keys up to `last` to keys[], at most `size` of them, in any order. Counts all in s.taken, which must be 0.
template <class Keys>
__device__ __forceinline__ void take_keys(const Keys& all, sort_key last, sort_key* keys, unsigned size, SelectScratch& s) {
  int lane = threadIdx.x % 32;
  all.for_each([&](sort_key key) {
    bool is_taken = key <= last;
    unsigned lanes = __ballot_sync(ALL_LANES, is_taken), place = 0;
    if (lane == 0 && lanes != 0) place = atomicAdd(&s.taken, (unsigned)__popc(lanes));
    place = __shfl_sync(ALL_LANES, place, 0) + __popc(lanes & ((1u << lane) - 1));
    if (is_taken && place < size) keys[place] = key;
  });
}

// The steps of bitonic_sort between keys of one warp, for lengths first_length .. last_length: in registers, without barriers.
template <int THREADS>
__device__ __forceinline__ void sort_in_warps(sort_key* keys, int size, int first_length, int last_length) {
  for (int t = threadIdx.x; t < size; t += THREADS) {
    sort_key key = keys[t];
    for (int length = first_length; length <= last_length; length *= 2)
      for (int stride = min(length / 2, 16); stride > 0; stride /= 2) {
        sort_key other = __shfl_xor_sync(ALL_LANES, key, stride);
        bool wants_lower = ((t & stride) == 0) == ((t & length) == 0);
        key = (other < key) == wants_lower ? other : key;
      }
    keys[t] = key;
  }
  __syncthreads();
}

// keys[0 .. size - 1] ascending; `size` a power of two, at least 32.
template <int THREADS>
__device__ void bitonic_sort(sort_key* keys, int size) {
  sort_in_warps<THREADS>(keys, size, 2, 32);
  for (int length = 64; length <= size; length *= 2) {
    for (int stride = length / 2; stride >= 32; stride /= 2) {
      for (int t = threadIdx.x; t < size / 2; t += THREADS) {
        int i = 2 * t - (t & (stride - 1)), j = i + stride;
        sort_key a = keys[i], b = keys[j];
        if ((a > b) == ((i & length) == 0)) {
          keys[i] = b;
          keys[j] = a;
        }
      }
      __syncthreads();
    }
    sort_in_warps<THREADS>(keys, size, length, length);
  }
}

// The best `WANTED` keys (fewer when there are fewer), sorted, in keys[0 ..] (shared, SORT_SIZE entries). Returns how many.
template <int WANTED, int SORT_SIZE, int THREADS, class Keys>
__device__ int select_top(const Keys& all, sort_key* keys, SelectScratch& s) {
  if (threadIdx.x == 0) s.taken = 0;
  __syncthreads();
  take_keys(all, NO_KEY - 1, keys, SORT_SIZE, s);
  __syncthreads();
  int taken = (int)s.taken;
  if (taken == 0) return 0;
  if (taken > SORT_SIZE) {
    sort_key last = last_wanted<THREADS>(all, WANTED, s);
    if (threadIdx.x == 0) s.taken = 0;
    __syncthreads();
    take_keys(all, last, keys, SORT_SIZE, s);
    taken = WANTED;
  }
  int size = max(power_of_two_from(taken), 32);
  for (int i = taken + threadIdx.x; i < size; i += THREADS) keys[i] = NO_KEY;
  __syncthreads();
  bitonic_sort<THREADS>(keys, size);
  return min(taken, WANTED);
}

__device__ __forceinline__ float box_area(float4 box) { return (box.z - box.x) * (box.w - box.y); }

// Whether the IoU, rounded, is above the threshold (0 .. 1) or NaN: 0/0 of two empty boxes is NaN, as in the original; a NaN corner
// makes the areas NaN. Divided only where the quotient is within 1e-6 of the threshold, several times what all is rounded by,
// or where the united area is not above 0. Subnormal numbers need no more: there a difference is whole units, and the product is
// rounded by half a unit.
__device__ __forceinline__ bool overlap_too_much(float4 a, float4 b, float area_a, float area_b, float threshold) {
  const float reach = 1e-6f;
  float width = fmaxf(fminf(a.z, b.z) - fmaxf(a.x, b.x), 0.0f);
  float height = fmaxf(fminf(a.w, b.w) - fmaxf(a.y, b.y), 0.0f);
  float intersection = width * height, united = area_a + area_b - intersection;
  float beyond = intersection - threshold * united;
  bool is_clear = (fabsf(beyond) > reach * united) & (united > 0.0f);
  return is_clear ? beyond > 0.0f : !(intersection / united <= threshold);
}

struct Candidates {  // of a list
  const unsigned* words;
  const float* scores;
  int num_words;

  template <class F>
  __device__ __forceinline__ void for_each(F f) const {  // a warp takes 32 words, and the candidates of one after the other
    int lane = threadIdx.x % 32;
    for (int start = threadIdx.x - lane; start < num_words; start += NMS_THREADS) {
      unsigned own = start + lane < num_words ? words[start + lane] : 0;
      for (unsigned left = __ballot_sync(ALL_LANES, own != 0); left != 0; left &= left - 1) {
        int word = __ffs((int)left) - 1, prior = 32 * (start + word) + lane;
        bool is_kept = __shfl_sync(ALL_LANES, own, word) >> lane & 1;
        f(is_kept ? sort_key_of(ordered_bits(scores[prior]), prior) : NO_KEY);
      }
    }
  }
};

// A candidate falls to any higher one of its list's first TOP_K, even to one that falls itself; IoU at the threshold stays,
// NaN falls. grid (L, B), block NMS_THREADS
extern "C" __global__ void __launch_bounds__(NMS_THREADS) fast_nms(
    const unsigned* __restrict__ kept_words,      // [B, ceil(P / 32)]
    const float4* __restrict__ candidate_boxes,   // [B, P]
    const float* __restrict__ candidate_scores,   // [B, L, P]
    unsigned* __restrict__ pool_keys,             // out [B, L, M], score keys of what stays, descending, then 0
    int* __restrict__ pool_priors,                // out [B, L, M], their priors
    int num_priors,                               // P
    float iou_threshold) {
  static __shared__ sort_key keys[NMS_SORT_SIZE];
  static __shared__ SelectScratch scratch;
  static __shared__ float4 boxes[TOP_K];
  static __shared__ float areas[TOP_K];
  static __shared__ int falls[TOP_K];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, image = blockIdx.y;
  size_t list = (size_t)image * LISTS + blockIdx.x;
  const float* scores = candidate_scores + list * num_priors;
  int num_words = (num_priors + 31) / 32;
  Candidates candidates = {kept_words + (size_t)image * num_words, scores, num_words};
  int count = select_top<TOP_K, NMS_SORT_SIZE, NMS_THREADS>(candidates, keys, scratch);
  for (int i = threadIdx.x; i < count; i += NMS_THREADS) {
    float4 box = candidate_boxes[(size_t)image * num_priors + (unsigned)keys[i]];
    boxes[i] = box;
    areas[i] = box_area(box);
  }
  __syncthreads();
  for (int j = warp; j < count; j += NMS_THREADS / 32) {
    bool any = false;
    for (int start = 0; start < j && !any; start += 32) {
      int i = start + lane;
      bool overlaps = i < j && overlap_too_much(boxes[j], boxes[i], areas[j], areas[i], iou_threshold);
      any = __any_sync(ALL_LANES, overlaps);
    }
    if (lane == 0) falls[j] = any;
  }
  __syncthreads();
  // one warp walks the survivors in order
  if (warp != 0) return;
  int kept = 0;
  for (int start = 0; start < count && kept < MAX_OUT; start += 32) {
    int i = start + lane;
    bool stays = i < count && !falls[i];
    unsigned stay = __ballot_sync(ALL_LANES, stays);
    int place = kept + __popc(stay & ((1u << lane) - 1));
    if (stays && place < MAX_OUT) {
      pool_keys[list * MAX_OUT + place] = ~(unsigned)(keys[i] >> 32);
      pool_priors[list * MAX_OUT + place] = (int)(unsigned)keys[i];
    }
    kept += __popc(stay);
  }
  for (int i = kept + lane; i < MAX_OUT; i += 32) pool_keys[list * MAX_OUT + i] = 0;
}

// Cells i with low <= i < high. fminf and fmaxf leave out NaN, which gives (size, 0): no cell.
__device__ __forceinline__ int2 cell_range(float first, float second, int size) {
  float2 limits = ordered_limits(first, second, size, 1.0f);
  return make_int2((int)ceilf(fminf(limits.x, (float)size)), (int)ceilf(fmaxf(limits.y, 0.0f)));
}

// The pixels first .. end - 1 of size_out whose mask can be 1, of cells first .. end - 1 of size_in: a pixel whose centre is
// not over the cells is no nearer to them than to cells that are 0, so at most 0.5. One more at each end, as both the limits
// here and the interpolation are rounded.
__device__ __forceinline__ int2 pixels_over(int first_cell, int end_cell, int size_in, int size_out) {
  float scale = (float)size_out / (float)size_in;
  return make_int2(max((int)(first_cell * scale) - 1, 0), (int)ceilf(end_cell * scale) + 1);
}

__device__ __forceinline__ Window window_over(
    int4 cells, int proto_h, int proto_w, int2 canvas, int image_h, int image_w) {
  int2 columns = pixels_over(cells.x, cells.y, proto_w, canvas.y), rows = pixels_over(cells.z, cells.w, proto_h, canvas.x);
  int right = min(columns.y, image_w), bottom = min(rows.y, image_h);
  Window window = {0, 0, 0, 0};
  if (cells.x >= cells.y || cells.z >= cells.w || columns.x >= right || rows.x >= bottom) return window;
  window.top = rows.x;
  window.left = columns.x / 32 * 32;
  window.rows = bottom - rows.x;
  window.words = (right - window.left + 31) / 32;
  return window;
}

// Entries of an image's pool whose scores are above the threshold.
struct PoolEntries {
  const unsigned* keys;
  unsigned threshold;  // a score key
  unsigned own[OWN_ENTRIES];

  __device__ __forceinline__ PoolEntries(const unsigned* keys, unsigned threshold) : keys(keys), threshold(threshold) {
#pragma unroll
    for (int j = 0; j < OWN_ENTRIES; j++) own[j] = at(j * SELECT_THREADS + threadIdx.x);  // in flight together
  }
  __device__ __forceinline__ unsigned at(int i) const { return i < ENTRIES ? keys[i] : 0u; }
  __device__ __forceinline__ sort_key key_of(unsigned key, int i) const {
    return key > threshold ? sort_key_of(key, i) : NO_KEY;
  }

  template <class F>
  __device__ __forceinline__ void for_each(F f) const {
#pragma unroll
    for (int j = 0; j < OWN_ENTRIES; j++) f(key_of(own[j], j * SELECT_THREADS + threadIdx.x));
    for (int start = OWN_ENTRIES * SELECT_THREADS; start < ENTRIES; start += SELECT_THREADS)
      f(key_of(at(start + threadIdx.x), start + threadIdx.x));
  }
};

// The best M of all lists, with all that the masks and the host need of them. grid (B), block SELECT_THREADS
extern "C" __global__ void __launch_bounds__(SELECT_THREADS) select_detections(
    const unsigned* __restrict__ pool_keys,       // [B, L, M]
    const int* __restrict__ pool_priors,          // [B, L, M]
    const float4* __restrict__ candidate_boxes,   // [B, P]
    const float* __restrict__ candidate_scores,   // [B, L, P]
    const int* __restrict__ candidate_class,      // [B, P], only with CROSS_CLASS
    const coeff_t* __restrict__ mask_coeff,       // [B, P, K]
    const int* __restrict__ image_hw,             // [B, 2], pixels
    int* __restrict__ count,                      // out [B], n; of the following, the first n of each image are written
    int* __restrict__ prior_idx,                  // out [B, M]
    int* __restrict__ class_ids,                  // out [B, M], 0 = first foreground class
    float* __restrict__ scores,                   // out [B, M], descending
    float4* __restrict__ boxes,                   // out [B, M], x1 y1 x2 y2, relative
    float4* __restrict__ pixel_boxes,             // out [B, M], x1 y1 x2 y2, the original's integers
    int4* __restrict__ cells,                     // out [B, M], left right top bottom: prototype cells inside the box
    Window* __restrict__ windows,                 // out [B, M], the pixels that those can reach
    unsigned* __restrict__ window_start,          // out [B, M + 1]: words of all windows before; the last is the image's total
    float* __restrict__ coeff,                    // out [B, M, K]
    int num_priors,                               // P
    int proto_h, int proto_w,
    int crop,                                     // 0: the whole prototypes count, not only the cells inside the box
    float score_threshold) {                      // only scores strictly above it
  static __shared__ sort_key keys[SELECT_SORT_SIZE];
  static __shared__ SelectScratch scratch;
  static __shared__ int priors[MAX_OUT];
  static __shared__ unsigned words[MAX_OUT];
  int image = blockIdx.x;
  PoolEntries entries(pool_keys + (size_t)image * ENTRIES, ordered_bits(score_threshold));
  int found = select_top<MAX_OUT, SELECT_SORT_SIZE, SELECT_THREADS>(entries, keys, scratch);
  if (threadIdx.x == 0) count[image] = found;
  int height = image_hw[2 * image], width = image_hw[2 * image + 1];
  int2 canvas = canvas_size(height, width);
  for (int i = threadIdx.x; i < found; i += SELECT_THREADS) {
    int entry = (int)(unsigned)keys[i], list = entry / MAX_OUT;
    int prior = pool_priors[(size_t)image * LISTS * MAX_OUT + entry];
    size_t from = (size_t)image * num_priors + prior, to = (size_t)image * MAX_OUT + i;
    float4 box = candidate_boxes[from];
    float2 x = ordered_limits(box.x, box.z, canvas.y, 0.0f), y = ordered_limits(box.y, box.w, canvas.x, 0.0f);
#if PAD  // cut at the image's border, but for NaN
    if (x.y > (float)width) x.y = (float)width;
    if (y.y > (float)height) y.y = (float)height;
#endif
    int2 columns = cell_range(box.x, box.z, proto_w), rows = cell_range(box.y, box.w, proto_h);
    priors[i] = prior_idx[to] = prior;
    class_ids[to] = CROSS_CLASS ? candidate_class[from] : list;
    scores[to] = candidate_scores[((size_t)image * LISTS + list) * num_priors + prior];
    boxes[to] = box;
    pixel_boxes[to] = make_float4(truncf(x.x), truncf(y.x), truncf(x.y), truncf(y.y));
    cells[to] = make_int4(columns.x, columns.y, rows.x, rows.y);
  }
  for (int i = threadIdx.x; i < found; i += SELECT_THREADS) {  // a loop of its own, which takes fewer registers
    size_t at = (size_t)image * MAX_OUT + i;
    int4 reached = crop ? cells[at] : make_int4(0, proto_w, 0, proto_h);
    Window window = window_over(reached, proto_h, proto_w, canvas, height, width);
    windows[at] = window;
    words[i] = (unsigned)window.rows * window.words;
  }
  __syncthreads();
  if (threadIdx.x < 32)
    write_running_sums([&](int i) { return i < found ? words[i] : 0u; }, MAX_OUT, window_start + (size_t)image * (MAX_OUT + 1));
  for (int i = threadIdx.x; i < found * NUM_COEFF; i += SELECT_THREADS) {
    int n = i / NUM_COEFF, k = i % NUM_COEFF;
    size_t row = (size_t)image * num_priors + priors[n];
    coeff[((size_t)image * MAX_OUT + n) * NUM_COEFF + k] = widen(mask_coeff[row * NUM_COEFF + k]);
  }
}
