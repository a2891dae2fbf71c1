// COCO run lengths of bit-packed masks: pixels column by column, runs of 0 and 1 in turn, the first of 0 (perhaps of none).
// Four launches: changes of each column, where each column's runs start, where each mask's runs start, the runs.

// Where a mask can be 1: in columns columns.x .. columns.y - 1 and rows rows.x .. rows.y - 1, as far as the image has them.
struct MaskReach {
  int2 columns, rows;
};

// A pixel whose centre is not over the window's cells is no nearer to them than to cells that are 0: at most 0.5. One more at
// each end, as both the limits here and the interpolation there are rounded.
__device__ __forceinline__ int2 pixels_over(int first_cell, int end_cell, int size_in, int size_out) {
  float scale = (float)size_out / (float)size_in;
  return make_int2(max((int)(first_cell * scale) - 1, 0), (int)ceilf(end_cell * scale) + 1);
}

// Of the mask that the block is at.
__device__ __forceinline__ MaskReach mask_reach(
    const int4* cells, int first_image, int proto_h, int proto_w, int image_h, int image_w, int crop) {
  int local_image = blockIdx.z, n = blockIdx.y;
  size_t detection = (size_t)(first_image + local_image) * MAX_OUT + n;
  int4 window = crop ? cells[detection] : make_int4(0, proto_w, 0, proto_h);
  int2 canvas = canvas_size(image_h, image_w);
  MaskReach reach;
  reach.columns = pixels_over(window.x, window.y, proto_w, canvas.y);
  reach.rows = pixels_over(window.z, window.w, proto_h, canvas.x);
  return reach;
}

// A change in a column, or from the one to its left.
__device__ __forceinline__ bool can_change(MaskReach reach, int x) {
  return x >= reach.columns.x && x <= reach.columns.y;
}

// Walks down the 32 columns of a word, a lane each; calls at_change(position) where a pixel differs from the one before.
template <class AtChange>
__device__ __forceinline__ void walk_column(
    const unsigned* mask, int word, int lane, int2 rows, int image_h, int pitch, AtChange at_change) {
  // before the first pixel of a column comes the last one of the column to its left
  const unsigned* last_row = mask + (size_t)(image_h - 1) * pitch;
  unsigned before = last_row[word] << 1 | (word > 0 ? last_row[word - 1] >> 31 : 0u);
  unsigned position = (unsigned)(word * 32 + lane) * image_h;
  if (rows.x > 0) {
    if (before >> lane & 1) at_change(position);
    before = 0;
  }
  int end = min(rows.y + 1, image_h);
#pragma unroll 4
  for (int y = rows.x; y < end; y++) {
    unsigned bits = mask[(size_t)y * pitch + word];
    if ((bits ^ before) >> lane & 1) at_change(position + y);
    before = bits;
  }
}

// grid (ceil(W / RLE_THREADS), M, images), block RLE_THREADS
extern "C" __global__ void __launch_bounds__(RLE_THREADS) rle_columns(
    const int* __restrict__ count,            // [B], n
    const int4* __restrict__ cells,           // [B, M], left right top bottom
    const unsigned* __restrict__ mask_words,  // [images, M, H, V]
    unsigned* __restrict__ column_runs,       // out [images, M, W], changes in the column
    unsigned* __restrict__ column_last,       // out [images, M, W], position of the last of them, 0 if none
    int proto_h, int proto_w, int image_h, int image_w, int first_image,
    int crop) {                               // as the masks were assembled
  if (blockIdx.y >= count[first_image + blockIdx.z]) return;
  int x = blockIdx.x * RLE_THREADS + threadIdx.x;
  if (x >= image_w) return;
  size_t mask_index = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  MaskReach reach = mask_reach(cells, first_image, proto_h, proto_w, image_h, image_w, crop);
  int pitch = mask_pitch(image_w);
  const unsigned* mask = mask_words + mask_index * image_h * pitch;
  unsigned changes = 0, last = 0;
  if (can_change(reach, x)) {
    walk_column(mask, x / 32, x % 32, reach.rows, image_h, pitch, [&](unsigned position) {
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
  unsigned before = 0;
  for (int start = 0; start < MAX_OUT; start += 32) {
    int i = start + threadIdx.x;
    unsigned own = i < MAX_OUT ? run_count[(size_t)blockIdx.x * MAX_OUT + i] : 0, sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      unsigned left = __shfl_up_sync(ALL_LANES, sum, step);
      if (threadIdx.x >= step) sum += left;
    }
    if (i < MAX_OUT) run_start[(size_t)blockIdx.x * (MAX_OUT + 1) + i] = before + sum - own;
    before += __shfl_sync(ALL_LANES, sum, 31);
  }
  if (threadIdx.x == 0) run_start[(size_t)blockIdx.x * (MAX_OUT + 1) + MAX_OUT] = before;
}

// grid (ceil(W / RLE_THREADS), M, images), block RLE_THREADS
extern "C" __global__ void __launch_bounds__(RLE_THREADS) rle_runs(
    const int* __restrict__ count,             // [B], n
    const int4* __restrict__ cells,            // [B, M], left right top bottom
    const unsigned* __restrict__ mask_words,   // [images, M, H, V]
    const unsigned* __restrict__ column_runs,  // [images, M, W], changes in all columns before
    const unsigned* __restrict__ column_last,  // [images, M, W], position of the last of them
    const unsigned* __restrict__ run_start,    // [images, M + 1]
    unsigned* __restrict__ runs,               // out [images, capacity], lengths; what does not fit is not written
    int proto_h, int proto_w, int image_h, int image_w, int first_image,
    int crop,                                  // as the masks were assembled
    unsigned capacity) {
  if (blockIdx.y >= count[first_image + blockIdx.z]) return;
  int x = blockIdx.x * RLE_THREADS + threadIdx.x;
  if (x >= image_w) return;
  size_t mask_index = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  MaskReach reach = mask_reach(cells, first_image, proto_h, proto_w, image_h, image_w, crop);
  bool ends = x == image_w - 1;  // the last run ends with the mask
  if (!can_change(reach, x) && !ends) return;
  int pitch = mask_pitch(image_w);
  const unsigned* mask = mask_words + mask_index * image_h * pitch;
  unsigned at = run_start[(size_t)blockIdx.z * (MAX_OUT + 1) + blockIdx.y] + column_runs[mask_index * image_w + x];
  unsigned last = column_last[mask_index * image_w + x];
  unsigned* image_runs = runs + (size_t)blockIdx.z * capacity;
  if (can_change(reach, x)) {
    walk_column(mask, x / 32, x % 32, reach.rows, image_h, pitch, [&](unsigned position) {
      if (at < capacity) image_runs[at] = position - last;
      at++;
      last = position;
    });
  }
  if (ends && at < capacity) image_runs[at] = (unsigned)image_w * image_h - last;
}
