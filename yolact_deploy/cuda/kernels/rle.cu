// COCO run lengths of bit-packed masks: pixels column by column, runs of 0 and 1 in turn, the first of 0 (perhaps of none).
// Four launches: changes of each column, where each column's runs start, where each mask's runs start, the runs.

static_assert(RLE_THREADS % 32 == 0, "a warp has the columns of one word");

// The bits of one mask.
struct MaskBits {
  Window window;
  const unsigned* words;

  __device__ __forceinline__ unsigned word(int y, int w) const {  // of a row of the window
    return words[(size_t)(y - window.top) * window.words + w];
  }
  // Below and beside a window there is nothing to change: its last row and column are 0, or the image's.
  __device__ __forceinline__ bool can_change(int x) const { return x >= window.left && x < window.left + 32 * window.words; }
};

// Of the mask that the block is at.
__device__ __forceinline__ MaskBits mask_bits(
    const Window* windows, const unsigned* window_start, const unsigned* mask_words, int first_image, int image_h, int image_w) {
  int local_image = blockIdx.z, image = first_image + local_image, n = blockIdx.y;
  MaskBits mask;
  mask.window = windows[(size_t)image * MAX_OUT + n];
  mask.words = mask_words + (size_t)local_image * MAX_OUT * image_h * ((image_w + 31) / 32) +
               window_start[(size_t)image * (MAX_OUT + 1) + n];
  return mask;
}

// Bit i of lane j becomes bit j of lane i. Of one warp, all lanes.
__device__ __forceinline__ unsigned transpose_bits(unsigned bits) {
  int lane = threadIdx.x % 32;
  unsigned low = 0x0000ffffu;  // bits whose number lacks `step`
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    unsigned other = __shfl_xor_sync(ALL_LANES, bits, step);
    bits = lane & step ? (bits & ~low) | (other & ~low) >> step : (bits & low) | (other & low) << step;
    low ^= low << step / 2;
  }
  return bits;
}

// Walks down the columns of a word, one a lane, 32 rows at a time; calls at_changes(position, changes) where a pixel differs
// from the one before: bit i of `changes` is of position + i. Before the first of a column is the last of the column to its
// left. Of one warp, all lanes.
template <class AtChanges>
__device__ __forceinline__ void walk_columns(const MaskBits& mask, int x, int image_h, AtChanges at_changes) {
  int lane = threadIdx.x % 32, w = (x - mask.window.left) / 32, bottom = mask.window.top + mask.window.rows;
  unsigned column = (unsigned)x * image_h, above = 0;  // the row above, a column a bit
  if (bottom == image_h) {
    above = mask.word(image_h - 1, w) << 1;
    if (w > 0) above |= mask.word(image_h - 1, w - 1) >> 31;
  }
  if (mask.window.top > 0) {
    at_changes(column, above >> lane & 1);
    above = 0;
  }
  for (int top = mask.window.top; top < bottom; top += 32) {
    int y = top + lane;
    unsigned row = y < bottom ? mask.word(y, w) : 0;
    unsigned higher = __shfl_up_sync(ALL_LANES, row, 1);
    unsigned differs = y < bottom ? row ^ (lane == 0 ? above : higher) : 0;
    above = __shfl_sync(ALL_LANES, row, 31);
    if (__any_sync(ALL_LANES, differs != 0)) at_changes(column + top, transpose_bits(differs));
  }
}

// grid (ceil(W / RLE_THREADS), M, images), block RLE_THREADS
extern "C" __global__ void __launch_bounds__(RLE_THREADS) rle_columns(
    const int* __restrict__ count,              // [B], n
    const Window* __restrict__ windows,         // [B, M]
    const unsigned* __restrict__ window_start,  // [B, M + 1]
    const unsigned* __restrict__ mask_words,    // [images, M * H * ceil(W / 32)]
    unsigned* __restrict__ column_runs,         // out [images, M, W], changes in the column
    unsigned* __restrict__ column_last,         // out [images, M, W], position of the last of them, 0 if none
    int image_h, int image_w, int first_image) {
  if (blockIdx.y >= count[first_image + blockIdx.z]) return;
  int x = blockIdx.x * RLE_THREADS + threadIdx.x;
  if (x - (int)threadIdx.x % 32 >= image_w) return;  // lanes beyond an image's last column hold rows of the others
  size_t mask_index = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  MaskBits mask = mask_bits(windows, window_start, mask_words, first_image, image_h, image_w);
  unsigned changes = 0, last = 0;
  if (mask.can_change(x)) {
    walk_columns(mask, x, image_h, [&](unsigned position, unsigned found) {
      changes += __popc(found);
      if (found != 0) last = position + 31 - __clz((int)found);
    });
  }
  if (x >= image_w) return;
  column_runs[mask_index * image_w + x] = changes;
  column_last[mask_index * image_w + x] = last;
}

// grid (M, images), block RLE_THREADS
extern "C" __global__ void __launch_bounds__(RLE_THREADS) rle_offsets(
    const int* __restrict__ count,       // [B], n
    unsigned* __restrict__ column_runs,  // in and out [images, M, W]: changes -> changes in all columns before
    unsigned* __restrict__ column_last,  // in and out [images, M, W]: last position -> last of all columns before
    unsigned* __restrict__ run_count,    // out [images, M], runs of the mask; 0 from n on
    int image_w, int first_image) {
  static __shared__ unsigned warp_sums[RLE_THREADS / 32];
  static __shared__ unsigned warp_lasts[RLE_THREADS / 32];
  size_t mask_index = (size_t)blockIdx.y * MAX_OUT + blockIdx.x;
  if (blockIdx.x >= count[first_image + blockIdx.y]) {
    if (threadIdx.x == 0) run_count[mask_index] = 0;
    return;
  }
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned sum_before = 0, last_before = 0;  // over the columns of earlier rounds
  for (int start = 0; start < image_w; start += RLE_THREADS) {
    int x = start + threadIdx.x;
    size_t at = mask_index * image_w + x;
    unsigned sum = x < image_w ? column_runs[at] : 0, last = x < image_w ? column_last[at] : 0;
    unsigned own = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      unsigned left_sum = __shfl_up_sync(ALL_LANES, sum, step), left_last = __shfl_up_sync(ALL_LANES, last, step);
      if (lane >= step) {
        sum += left_sum;
        last = max(last, left_last);
      }
    }
    if (lane == 31) {
      warp_sums[warp] = sum;
      warp_lasts[warp] = last;
    }
    unsigned left_last = __shfl_up_sync(ALL_LANES, last, 1);
    if (lane == 0) left_last = 0;
    __syncthreads();
    unsigned exclusive_sum = sum_before + sum - own, exclusive_last = max(last_before, left_last);
    for (int w = 0; w < RLE_THREADS / 32; w++) {
      if (w < warp) {
        exclusive_sum += warp_sums[w];
        exclusive_last = max(exclusive_last, warp_lasts[w]);
      }
      sum_before += warp_sums[w];
      last_before = max(last_before, warp_lasts[w]);
    }
    if (x < image_w) {
      column_runs[at] = exclusive_sum;
      column_last[at] = exclusive_last;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) run_count[mask_index] = sum_before + 1;
}

// grid (images), block 32
extern "C" __global__ void __launch_bounds__(32) rle_starts(
    const unsigned* __restrict__ run_count,  // [images, M]
    unsigned* __restrict__ run_start) {      // out [images, M + 1]: runs of all masks before; the last is the image's total
  const unsigned* counts = run_count + (size_t)blockIdx.x * MAX_OUT;
  write_running_sums([=](int i) { return counts[i]; }, MAX_OUT, run_start + (size_t)blockIdx.x * (MAX_OUT + 1));
}

// grid (ceil(W / RLE_THREADS), M, images), block RLE_THREADS
extern "C" __global__ void __launch_bounds__(RLE_THREADS) rle_runs(
    const int* __restrict__ count,              // [B], n
    const Window* __restrict__ windows,         // [B, M]
    const unsigned* __restrict__ window_start,  // [B, M + 1]
    const unsigned* __restrict__ mask_words,    // [images, M * H * ceil(W / 32)]
    const unsigned* __restrict__ column_runs,   // [images, M, W], changes in all columns before
    const unsigned* __restrict__ column_last,   // [images, M, W], position of the last of them
    const unsigned* __restrict__ run_start,     // [images, M + 1]
    unsigned* __restrict__ runs,                // out [images, capacity], lengths; what does not fit is not written
    int image_h, int image_w, int first_image,
    unsigned capacity) {
  if (blockIdx.y >= count[first_image + blockIdx.z]) return;
  int x = blockIdx.x * RLE_THREADS + threadIdx.x;
  if (x - (int)threadIdx.x % 32 >= image_w) return;  // lanes beyond an image's last column hold rows of the others
  size_t mask_index = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  MaskBits mask = mask_bits(windows, window_start, mask_words, first_image, image_h, image_w);
  bool ends = x == image_w - 1;  // the last run ends with the mask
  if (!mask.can_change(x) && !ends) return;
  bool is_inside = x < image_w;
  unsigned at = run_start[(size_t)blockIdx.z * (MAX_OUT + 1) + blockIdx.y], last = 0;
  if (is_inside) {
    at += column_runs[mask_index * image_w + x];
    last = column_last[mask_index * image_w + x];
  }
  unsigned* image_runs = runs + (size_t)blockIdx.z * capacity;
  if (mask.can_change(x)) {
    walk_columns(mask, x, image_h, [&](unsigned first, unsigned found) {
      for (found = is_inside ? found : 0; found != 0; found &= found - 1) {
        unsigned position = first + __ffs((int)found) - 1;
        if (at < capacity) image_runs[at] = position - last;
        at++;
        last = position;
      }
    });
  }
  if (ends && at < capacity) image_runs[at] = (unsigned)image_w * image_h - last;
}
