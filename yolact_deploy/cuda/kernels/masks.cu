// Masks of the detections, bit-packed: row-major, pixel x of a row is bit x % 32 (from the lowest) of word x / 32, rows
// padded with zeros to whole MASK_ROW_BITS. V: words per row. A tile has as many columns of pixels as a block has threads.

#define TILE_WORDS (MASK_THREADS / 32)
static_assert(MASK_THREADS % 128 == 0 && MASK_ROW_BITS % 128 == 0, "rows of bits are written 128 at a time");
static_assert(UNPACK_BYTES == sizeof(uint4), "bytes are written a uint4 at a time");

extern __shared__ uint4 dynamic_shared[];

__device__ __forceinline__ int mask_pitch(int image_w) {
  return (image_w + MASK_ROW_BITS - 1) / MASK_ROW_BITS * (MASK_ROW_BITS / 32);
}

// Bilinear stretch with half-pixel centres: output i = first * (1 - weight) + second * weight, as torch computes it.
struct Source {
  int first;
  float weight;
};
static_assert(sizeof(Source) == SOURCE_BYTES, "launches.py counts on it");

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
#pragma unroll
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
  bool inside = x >= window.x && x < window.y && y >= window.z && y < window.w;
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

// sigmoid(proto · coefficients), cropped, stretched to the image (with PAD: to its square, cut there), > 0.5. Images first_image .. of one size in a launch;
// their masks are counted from 0. grid (ceil(W / MASK_THREADS), ceil(H / tile_rows), M * images), block MASK_THREADS, dynamic
// shared memory: words and sources of tile_rows rows, and K + cells of a tile floats
extern "C" __global__ void __launch_bounds__(MASK_THREADS) assemble_masks(
    const int* __restrict__ count,      // [B], n
    const int4* __restrict__ cells,     // [B, M], left right top bottom
    const float* __restrict__ coeff,    // [B, M, K]
    const proto_t* __restrict__ proto,  // [B, Hp, Wp, K]
    uint4* __restrict__ mask_words,     // out [images, M, H, V] words; the first n of each image are written, whole
    int proto_h, int proto_w, int image_h, int image_w,
    int tile_rows,                      // rows of pixels in a tile
    int first_image,
    int crop) {                         // 0: the whole prototypes count, not only the cells inside the box
  int n = blockIdx.z % MAX_OUT, local_image = blockIdx.z / MAX_OUT, image = first_image + local_image;
  if (n >= count[image]) return;
  size_t detection = (size_t)image * MAX_OUT + n;
  int4 window = crop ? cells[detection] : make_int4(0, proto_w, 0, proto_h);
  int left = blockIdx.x * MASK_THREADS, right = min(left + MASK_THREADS, image_w);
  int top = blockIdx.y * tile_rows, bottom = min(top + tile_rows, image_h);
  int2 canvas = canvas_size(image_h, image_w);

  unsigned* words = reinterpret_cast<unsigned*>(dynamic_shared);      // [tile_rows, 8]
  Source* row_sources = reinterpret_cast<Source*>(words + tile_rows * TILE_WORDS);  // [tile_rows]
  float* coefficients = reinterpret_cast<float*>(row_sources + tile_rows);          // [K]
  float* soft = coefficients + NUM_COEFF;                                           // [cells_h, cells_w]

  int cell_left = stretch_source(left, proto_w, canvas.y).first;
  int cell_right = min(stretch_source(right - 1, proto_w, canvas.y).first + 1, proto_w - 1);
  int cell_top = stretch_source(top, proto_h, canvas.x).first;
  int cell_bottom = min(stretch_source(bottom - 1, proto_h, canvas.x).first + 1, proto_h - 1);
  bool empty = window.x >= window.y || window.z >= window.w || window.x > cell_right || window.y <= cell_left ||
               window.z > cell_bottom || window.w <= cell_top;
  if (!empty) {  // the same for all threads of the block
    for (int k = threadIdx.x; k < NUM_COEFF; k += MASK_THREADS) coefficients[k] = coeff[detection * NUM_COEFF + k];
    for (int y = threadIdx.x; y < bottom - top; y += MASK_THREADS)
      row_sources[y] = stretch_source(top + y, proto_h, canvas.x);
    __syncthreads();
    int cells_w = cell_right - cell_left + 1, cells = cells_w * (cell_bottom - cell_top + 1);
    const proto_t* image_proto = proto + (size_t)image * proto_h * proto_w * NUM_COEFF;
    for (int i = threadIdx.x; i < cells; i += MASK_THREADS) {
      soft[i] = soft_cell(image_proto, proto_w, coefficients, window, cell_left + i % cells_w, cell_top + i / cells_w);
    }
    __syncthreads();
    int x = left + threadIdx.x;
    Source column = stretch_source(min(x, image_w - 1), proto_w, canvas.y);
    const float* near = soft + column.first - cell_left;
    const float* far = soft + min(column.first + 1, proto_w - 1) - cell_left;
    int last_row = cell_bottom - cell_top, current = -1;
    float upper = 0.0f, lower = 0.0f;  // the two rows of cells around the pixel, at its column
    for (int y = 0; y < bottom - top; y++) {
      Source row = row_sources[y];
      int first = row.first - cell_top;
      if (first != current) {
        int second = min(first + 1, last_row);
        upper = stretch(near[first * cells_w], far[first * cells_w], column.weight);
        lower = stretch(near[second * cells_w], far[second * cells_w], column.weight);
        current = first;
      }
      unsigned bits = __ballot_sync(ALL_LANES, x < image_w && stretch(upper, lower, row.weight) > 0.5f);
      if (threadIdx.x % 32 == 0) words[y * TILE_WORDS + threadIdx.x / 32] = bits;
    }
    __syncthreads();
  }
  int quads = mask_pitch(image_w) / 4;
  uint4* mask = mask_words + ((size_t)local_image * MAX_OUT + n) * image_h * quads;
  for (int i = threadIdx.x; i < (bottom - top) * (TILE_WORDS / 4); i += MASK_THREADS) {
    int y = i / (TILE_WORDS / 4), quad = blockIdx.x * (TILE_WORDS / 4) + i % (TILE_WORDS / 4);
    if (quad < quads) mask[(size_t)(top + y) * quads + quad] = empty ? make_uint4(0, 0, 0, 0) : dynamic_shared[i];
  }
}

// Bits to bytes of 0 and 1. grid (ceil(M H W / UNPACK_BYTES / MASK_THREADS), images), block MASK_THREADS
extern "C" __global__ void __launch_bounds__(MASK_THREADS) unpack_masks(
    const int* __restrict__ count,            // [B], n
    const unsigned* __restrict__ mask_words,  // [images, M, H, V]
    unsigned char* __restrict__ dense,        // out [images, M * H * W rounded up to UNPACK_BYTES]; the first n masks of each image
    int image_h, int image_w,
    int first_image) {
  long long pixels = (long long)image_h * image_w;
  long long padded = (MAX_OUT * pixels + UNPACK_BYTES - 1) / UNPACK_BYTES;
  long long chunk = (long long)blockIdx.x * MASK_THREADS + threadIdx.x;
  long long first = chunk * UNPACK_BYTES;
  if (first >= count[first_image + blockIdx.y] * pixels) return;
  int pitch = mask_pitch(image_w);
  long long row = first / image_w;  // over the rows of all masks
  int x = (int)(first - row * image_w);
  const unsigned* words = mask_words + ((long long)blockIdx.y * MAX_OUT * image_h + row) * pitch;
  long long rows_left = (long long)MAX_OUT * image_h - row;
  unsigned four[4];
#pragma unroll
  for (int i = 0; i < UNPACK_BYTES; i++) {
    unsigned bit = rows_left > 0 ? words[x / 32] >> x % 32 & 1 : 0;
    four[i / 4] = i % 4 == 0 ? bit : four[i / 4] | bit << 8 * (i % 4);
    if (++x == image_w) {
      x = 0;
      words += pitch;
      rows_left--;
    }
  }
  reinterpret_cast<uint4*>(dense)[blockIdx.y * padded + chunk] = make_uint4(four[0], four[1], four[2], four[3]);
}
