// Masks of the detections, as the bits of their windows, one window behind the other.

#define MASK_WARPS (MASK_THREADS / 32)
static_assert(MASK_WARPS >= 1 && MASK_THREADS == 32 * power_of_two_from(MASK_WARPS), "a tile's words are a power of two");
static_assert(UNPACK_BYTES == sizeof(uint4), "bytes are written a uint4 at a time");

extern __shared__ uint4 dynamic_shared[];

// How a window is divided: a tile has a word of `tile_rows` rows for each of `tile_warps` warps of a block, a power of two, side by
// side as far as the window is wide, and below each other where it is not.
struct Tiling {
  int words, rows;  // of a tile
  int across, down;
};

__device__ __forceinline__ Tiling tiling_of(Window window, int tile_rows, int tile_warps) {
  Tiling tiling;
  tiling.words = min(power_of_two_from(window.words), tile_warps);
  tiling.rows = tile_warps / tiling.words * tile_rows;
  tiling.across = (window.words + tiling.words - 1) / tiling.words;
  tiling.down = (window.rows + tiling.rows - 1) / tiling.rows;
  return tiling;
}

// Bilinear stretch with half-pixel centres: output i = first * (1 - weight) + second * weight, as torch computes it.
struct Source {
  int first;
  float weight;
};

__device__ __forceinline__ Source stretch_source(int i, int size_in, int size_out) {
  float scale = (float)size_in / (float)size_out;
  float at = fmaxf(fmaf(scale, (float)i + 0.5f, -0.5f), 0.0f);
  Source source;
  source.first = min((int)at, size_in - 1);
  source.weight = fminf(fmaxf(at - (float)source.first, 0.0f), 1.0f);
  return source;
}

__device__ __forceinline__ float stretch(float first, float second, float weight) {
  return fmaf(first, 1.0f - weight, second * weight);
}

// proto · coefficients in ascending order, each step fused.
__device__ __forceinline__ float mask_logit(const proto_t* __restrict__ cell, const float* coeff) {
  float sum = 0.0f;
#if NUM_COEFF % 8 == 0  // cells start at multiples of 16 bytes
#if PROTO_FP16
#pragma unroll
  for (int k = 0; k < NUM_COEFF; k += 8) {
    uint4 packed = *reinterpret_cast<const uint4*>(cell + k);
    unsigned pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sum = fmaf(half_to_float((half_bits)(pairs[i] & 0xffff)), coeff[k + 2 * i], sum);
      sum = fmaf(half_to_float((half_bits)(pairs[i] >> 16)), coeff[k + 2 * i + 1], sum);
    }
  }
#else
#pragma unroll 8
  for (int k = 0; k < NUM_COEFF; k += 4) {
    float4 four = *reinterpret_cast<const float4*>(cell + k);
    sum = fmaf(four.x, coeff[k], sum);
    sum = fmaf(four.y, coeff[k + 1], sum);
    sum = fmaf(four.z, coeff[k + 2], sum);
    sum = fmaf(four.w, coeff[k + 3], sum);
  }
#endif
#else
  for (int k = 0; k < NUM_COEFF; k++) sum = fmaf(widen(cell[k]), coeff[k], sum);
#endif
  return sum;
}

__device__ __forceinline__ float soft_cell(
    const proto_t* image_proto, int proto_w, const float* coeff, int4 window, int x, int y) {
  bool inside = (x >= window.x) & (x < window.y) & (y >= window.z) & (y < window.w);
  return inside ? sigmoid(mask_logit(image_proto + ((size_t)y * proto_w + x) * NUM_COEFF, coeff)) : 0.0f;
}

// sigmoid(proto · coefficients), cropped, at the size of the prototypes: what a mask-IoU network reads. Zeros from n on.
// grid (ceil(Hp Wp / MASK_THREADS), M, B), block MASK_THREADS
extern "C" __global__ void __launch_bounds__(MASK_THREADS) prototype_masks(
    const int* __restrict__ count,      // [B], n
    const int4* __restrict__ cells,     // [B, M], left right top bottom
    const float* __restrict__ coeff,    // [B, M, K]
    const proto_t* __restrict__ proto,  // [B, Hp, Wp, K]
    float* __restrict__ soft_masks,     // out [B, M, Hp, Wp]
    int proto_h, int proto_w,
    int crop) {                         // 0: the whole prototypes count, not only the cells inside the box
  int cell = blockIdx.x * MASK_THREADS + threadIdx.x, plane = proto_h * proto_w;
  if (cell >= plane) return;
  size_t detection = (size_t)blockIdx.z * MAX_OUT + blockIdx.y;
  float value = 0.0f;
  if (blockIdx.y < count[blockIdx.z]) {
    int4 window = crop ? cells[detection] : make_int4(0, proto_w, 0, proto_h);
    value = soft_cell(proto + (size_t)blockIdx.z * plane * NUM_COEFF, proto_w, coeff + detection * NUM_COEFF, window,
                      cell % proto_w, cell / proto_w);
  }
  soft_masks[detection * plane + cell] = value;
}

// A tile of one detection's window, and the cells it reads. In shared memory, as registers are few.
struct Tile {
  int detection;                              // of the batch
  int left, right, top, rows;                 // pixels
  int words, pitch;                           // of the tile, and of a row of its words in shared memory
  int cell_left, cell_top, cells_w, cells_h;
  int4 inside;                                // cells that are not 0
  unsigned first_out;                         // of its image's words
  int out_pitch;
};

__device__ __forceinline__ Tile tile_of(
    unsigned item, const unsigned* first_tile, int image, const int4* cells, const Window* windows, const unsigned* window_start,
    int2 proto_hw, int2 image_hw, int tile_rows, int tile_warps, int crop) {
  int n = 0;  // the last detection whose tiles begin at or before `item`
  for (int step = power_of_two_from(MAX_OUT); step > 0; step /= 2)
    if (n + step < MAX_OUT && first_tile[n + step] <= item) n += step;
  Tile tile;
  tile.detection = image * MAX_OUT + n;
  Window window = windows[tile.detection];
  Tiling tiling = tiling_of(window, tile_rows, tile_warps);
  int number = (int)(item - first_tile[n]);
  int first_word = number % tiling.across * tiling.words, first_row = number / tiling.across * tiling.rows;
  tile.words = min(tiling.words, window.words - first_word);
  tile.pitch = tiling.words;
  tile.rows = min(tiling.rows, window.rows - first_row);
  tile.left = window.left + 32 * first_word;
  tile.right = min(tile.left + 32 * tile.words, image_hw.y);
  tile.top = window.top + first_row;
  tile.first_out = window_start[image * (MAX_OUT + 1) + n] + first_row * window.words + first_word;
  tile.out_pitch = window.words;
  int2 canvas = canvas_size(image_hw.x, image_hw.y);
  int bottom = tile.top + tile.rows;
  tile.cell_left = stretch_source(tile.left, proto_hw.y, canvas.y).first;
  tile.cell_top = stretch_source(tile.top, proto_hw.x, canvas.x).first;
  tile.cells_w = min(stretch_source(tile.right - 1, proto_hw.y, canvas.y).first + 2, proto_hw.y) - tile.cell_left;
  tile.cells_h = min(stretch_source(bottom - 1, proto_hw.x, canvas.x).first + 2, proto_hw.x) - tile.cell_top;
  tile.inside = crop ? cells[tile.detection] : make_int4(0, proto_hw.y, 0, proto_hw.x);
  return tile;
}

// How the rows of pixels of a tile lie over its rows of cells. Row `row` is at row_weight[row] from the upper of its two; those
// whose upper is the r-th of the tile begin with row_begin[r], for r = 0 .. cells_h.
__device__ __forceinline__ void place_rows(
    const Tile& tile, int2 proto_hw, int2 canvas, float* row_weight, int* row_begin) {
  for (int row = threadIdx.x; row < tile.rows; row += MASK_THREADS) {
    Source source = stretch_source(tile.top + row, proto_hw.x, canvas.x);
    int first = source.first - tile.cell_top;
    int above = row == 0 ? -1 : stretch_source(tile.top + row - 1, proto_hw.x, canvas.x).first - tile.cell_top;
    row_weight[row] = source.weight;
    for (int r = above + 1; r <= first; r++) row_begin[r] = row;
    if (row == tile.rows - 1)
      for (int r = first + 1; r <= tile.cells_h; r++) row_begin[r] = tile.rows;
  }
}

// Cells first .. last of two rows: 1 where all are above one half, 0 where all are below, -1 elsewhere. What is interpolated
// between such cells is on their side: all its roundings together are less than 3 * 2^-23.
__device__ __forceinline__ int side_of_one_half(const float* upper, const float* lower, int first, int last) {
  const float margin = 1e-6f;
  bool are_above = true, are_below = true;
  for (int x = first; x <= last; x++) {
    float a = upper[x], b = lower[x];
    are_above &= (a > 0.5f + margin) & (b > 0.5f + margin);  // not for NaN
    are_below &= (a < 0.5f - margin) & (b < 0.5f - margin);
  }
  return are_above ? 1 : are_below ? 0 : -1;
}

// The words of a tile, from its cells in `soft`; a warp makes one word of some rows. Between two rows of cells it is the same
// where its cells are on one side of one half, which one lane sees; where they are not, each lane looks at its column.
__device__ __forceinline__ void write_words(
    const Tile& tile, const float* soft, const float* row_weight, const int* row_begin, int2 proto_hw, int2 canvas,
    unsigned* words) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, word = warp % tile.pitch;
  int intervals = tile.cells_h, step = MASK_WARPS / tile.pitch;  // warps that make the same word
  if (word >= tile.words) return;
  int left = tile.left + 32 * word, right = min(left + 32, tile.right);
  Source column = stretch_source(min(left + lane, right - 1), proto_hw.y, canvas.y);
  int near = column.first - tile.cell_left, far = min(column.first + 1, proto_hw.y - 1) - tile.cell_left;
  int first = __shfl_sync(ALL_LANES, near, 0), last = __shfl_sync(ALL_LANES, far, 31);
  bool is_inside = left + lane < right;
  unsigned every_bit = __ballot_sync(ALL_LANES, is_inside);
  for (int start = warp / tile.pitch; start < intervals; start += 32 * step) {
    int own = start + lane * step;  // rows between cells own and own + 1
    bool is_mixed = false;
    if (own < intervals && row_begin[own] < row_begin[own + 1]) {
      const float *upper = soft + own * tile.cells_w, *lower = soft + min(own + 1, tile.cells_h - 1) * tile.cells_w;
      int side = side_of_one_half(upper, lower, first, last);
      is_mixed = side < 0;
      unsigned bits = side > 0 ? every_bit : 0u;
      if (!is_mixed)
        for (int row = row_begin[own]; row < row_begin[own + 1]; row++) words[row * tile.pitch + word] = bits;
    }
    for (unsigned mixed = __ballot_sync(ALL_LANES, is_mixed); mixed != 0; mixed &= mixed - 1) {
      int r = start + (__ffs((int)mixed) - 1) * step, end = row_begin[r + 1];
      const float *upper = soft + r * tile.cells_w, *lower = soft + min(r + 1, tile.cells_h - 1) * tile.cells_w;
      float top = stretch(upper[near], upper[far], column.weight), bottom = stretch(lower[near], lower[far], column.weight);
      auto bits_of = [&](int row) {
        return __ballot_sync(ALL_LANES, is_inside & (stretch(top, bottom, row_weight[min(row, end - 1)]) > 0.5f));
      };
      for (int row = row_begin[r]; row < end; row += 4) {
        unsigned four[4] = {bits_of(row), bits_of(row + 1), bits_of(row + 2), bits_of(row + 3)};
        unsigned bits = lane % 2 == 0 ? (lane == 0 ? four[0] : four[2]) : (lane == 1 ? four[1] : four[3]);
        if (lane < 4 && row + lane < end) words[(row + lane) * tile.pitch + word] = bits;
      }
    }
  }
}

// sigmoid(proto · coefficients), cropped, stretched to the image (with PAD: to its square, cut there), > 0.5, in the window of
// each detection. Images first_image .. of one size in a launch; their masks are counted from 0. The blocks of an image take
// its tiles in turn. grid (any, images), block MASK_THREADS, dynamic shared memory: tile_warps words for each of tile_rows
// rows and a weight for each of them all, K floats, tile_cell_rows + 1 integers, and the cells of a tile
extern "C" __global__ void __launch_bounds__(MASK_THREADS) assemble_masks(
    const int* __restrict__ count,              // [B], n
    const int4* __restrict__ cells,             // [B, M], left right top bottom
    const Window* __restrict__ windows,         // [B, M]
    const unsigned* __restrict__ window_start,  // [B, M + 1]
    const float* __restrict__ coeff,            // [B, M, K]
    const proto_t* __restrict__ proto,          // [B, Hp, Wp, K]
    unsigned* __restrict__ mask_words,          // out [images, M * H * ceil(W / 32)]
    int proto_h, int proto_w, int image_h, int image_w,
    int tile_rows,                              // rows of pixels of a word for each warp
    int tile_warps,                             // warps that make a tile, at most MASK_WARPS
    int tile_cell_rows,                         // rows of cells that a tile reaches, at most
    int first_image,
    int crop) {                                 // 0: the whole prototypes count, not only the cells inside the box
  static __shared__ unsigned first_tile[MAX_OUT + 1];
  static __shared__ Tile tile;
  int local_image = blockIdx.y, image = first_image + local_image;
  int2 canvas = canvas_size(image_h, image_w), proto_hw = make_int2(proto_h, proto_w);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  unsigned* words = reinterpret_cast<unsigned*>(dynamic_shared);                   // [rows of a tile, words of a tile]
  float* row_weight = reinterpret_cast<float*>(words + tile_rows * tile_warps);    // [rows of a tile]
  float* coefficients = row_weight + tile_rows * tile_warps;                       // [K]
  int* row_begin = reinterpret_cast<int*>(coefficients + NUM_COEFF);               // [tile_cell_rows + 1]
  float* soft = reinterpret_cast<float*>(row_begin + tile_cell_rows + 1);          // [cells_h, cells_w]

  if (warp == 0) {
    int detections = count[image];
    write_running_sums(
        [&](int i) {
          if (i >= detections) return 0u;
          Tiling tiling = tiling_of(windows[image * MAX_OUT + i], tile_rows, tile_warps);
          return (unsigned)(tiling.across * tiling.down);
        },
        MAX_OUT, first_tile);
  }
  __syncthreads();
  for (unsigned item = blockIdx.x; item < first_tile[MAX_OUT]; item += gridDim.x) {
    if (warp == 0) {
      if (lane == 0)
        tile = tile_of(item, first_tile, image, cells, windows, window_start, proto_hw, make_int2(image_h, image_w), tile_rows, tile_warps, crop);
      __syncwarp();
      for (int k = lane; k < NUM_COEFF; k += 32) coefficients[k] = coeff[(size_t)tile.detection * NUM_COEFF + k];
    }
    __syncthreads();
    place_rows(tile, proto_hw, canvas, row_weight, row_begin);
    const proto_t* image_proto = proto + (size_t)image * proto_h * proto_w * NUM_COEFF;
    for (int i = threadIdx.x; i < tile.cells_w * tile.cells_h; i += MASK_THREADS) {
      int x = tile.cell_left + i % tile.cells_w, y = tile.cell_top + i / tile.cells_w;
      soft[i] = soft_cell(image_proto, proto_w, coefficients, tile.inside, x, y);
    }
    __syncthreads();
    write_words(tile, soft, row_weight, row_begin, proto_hw, canvas, words);
    __syncthreads();
    unsigned* out = mask_words + (size_t)local_image * MAX_OUT * image_h * ((image_w + 31) / 32) + tile.first_out;
    for (int i = threadIdx.x; i < tile.rows * tile.pitch; i += MASK_THREADS) {
      int y = i / tile.pitch, w = i % tile.pitch;
      if (w < tile.words) out[y * tile.out_pitch + w] = words[i];
    }
    __syncthreads();  // before the next tile takes its place
  }
}

// Bits to bytes of 0 and 1. grid (ceil(M H W / UNPACK_BYTES / MASK_THREADS), images), block MASK_THREADS
extern "C" __global__ void __launch_bounds__(MASK_THREADS) unpack_masks(
    const int* __restrict__ count,              // [B], n
    const Window* __restrict__ windows,         // [B, M]
    const unsigned* __restrict__ window_start,  // [B, M + 1]
    const unsigned* __restrict__ mask_words,    // [images, M * H * ceil(W / 32)]
    unsigned char* __restrict__ dense,          // out [images, M * H * W rounded up to UNPACK_BYTES]; the first n masks of each image
    int image_h, int image_w,
    int first_image) {
  long long pixels = (long long)image_h * image_w;
  long long padded = (MAX_OUT * pixels + UNPACK_BYTES - 1) / UNPACK_BYTES;
  long long chunk = (long long)blockIdx.x * MASK_THREADS + threadIdx.x;
  long long first = chunk * UNPACK_BYTES;
  int image = first_image + blockIdx.y, detections = count[image];
  if (first >= detections * pixels) return;
  const unsigned* image_words = mask_words + (size_t)blockIdx.y * MAX_OUT * image_h * ((image_w + 31) / 32);
  int n = (int)(first / pixels), y = (int)(first % pixels / image_w), x = (int)(first % pixels % image_w);
  Window window = windows[(size_t)image * MAX_OUT + n];
  unsigned start = window_start[(size_t)image * (MAX_OUT + 1) + n];
  unsigned four[4];
#pragma unroll
  for (int i = 0; i < UNPACK_BYTES; i++) {
    int row = y - window.top, word = (x - window.left) >> 5;
    unsigned bit = 0;
    if (row >= 0 && row < window.rows && word >= 0 && word < window.words)
      bit = image_words[start + (size_t)row * window.words + word] >> x % 32 & 1;
    four[i / 4] = i % 4 == 0 ? bit : four[i / 4] | bit << 8 * (i % 4);
    if (++x == image_w) {
      x = 0;
      if (++y == image_h) {
        y = 0;
        if (++n < detections) {
          window = windows[(size_t)image * MAX_OUT + n];
          start = window_start[(size_t)image * (MAX_OUT + 1) + n];
        }
      }
    }
  }
  reinterpret_cast<uint4*>(dense)[blockIdx.y * padded + chunk] = make_uint4(four[0], four[1], four[2], four[3]);
}
