// COCO run lengths of bit-packed masks: pixels column by column, runs of 0 and 1 in turn, the first of 0 (perhaps of none).
// Four launches: changes of each column, where each column's runs start, where each mask's runs start, the runs.

// The bits of one mask.
struct MaskBits {
  Window window;
  const unsigned* words;

  __device__ __forceinline__ bool at(int y, int x) const {  // of a pixel inside the window
    return words[(size_t)(y - window.top) * window.words + (x - window.left) / 32] >> x % 32 & 1;
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

// Walks down a column; calls at_change(position) where a pixel differs from the one before, which for the first one is the
// last of the column to the left.
template <class AtChange>
__device__ __forceinline__ void walk_column(const MaskBits& mask, int x, int image_h, AtChange at_change) {
  Window window = mask.window;
  unsigned position = (unsigned)x * image_h;
  int bottom = window.top + window.rows;
  bool before = bottom == image_h && x > window.left && mask.at(image_h - 1, x - 1);
  if (before && window.top > 0) {
    at_change(position);
    before = false;
  }
#pragma unroll 4
  for (int y = window.top; y < bottom; y++) {
    bool bit = mask.at(y, x);
    if (bit != before) at_change(position + y);
    before = bit;
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
  if (x >= image_w) return;
  size_t mask_index = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  MaskBits mask = mask_bits(windows, window_start, mask_words, first_image, image_h, image_w);
  unsigned changes = 0, last = 0;
  if (mask.can_change(x)) {
    walk_column(mask, x, image_h, [&](unsigned position) {
      changes++;
      last = position;
    });
  }
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
  if (x >= image_w) return;
  size_t mask_index = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  MaskBits mask = mask_bits(windows, window_start, mask_words, first_image, image_h, image_w);
  bool ends = x == image_w - 1;  // the last run ends with the mask
  if (!mask.can_change(x) && !ends) return;
  unsigned at = run_start[(size_t)blockIdx.z * (MAX_OUT + 1) + blockIdx.y] + column_runs[mask_index * image_w + x];
  unsigned last = column_last[mask_index * image_w + x];
  unsigned* image_runs = runs + (size_t)blockIdx.z * capacity;
  if (mask.can_change(x)) {
    walk_column(mask, x, image_h, [&](unsigned position) {
      if (at < capacity) image_runs[at] = position - last;
      at++;
      last = position;
    });
  }
  if (ends && at < capacity) image_runs[at] = (unsigned)image_w * image_h - last;
}
