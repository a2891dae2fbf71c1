// uint8 images to the network's input: padded to a square with PAD, stretched, normalised, planar RGB.

#define PREPROCESS_THREADS (PREPROCESS_COLUMNS * PREPROCESS_LINES)
#define TILE_ROWS (PREPROCESS_LINES * PREPROCESS_ROWS)

struct Tap {
  int first, second;
  float weight;  // of the second
};

// OpenCV's INTER_LINEAR on float32, as its wheels compute it: coordinates in double, the fraction rounded to float32.
__device__ __forceinline__ Tap resize_tap(int i, int size_in, double scale) {
  double source = (i + 0.5) * scale - 0.5;
  double low = floor(source);
  Tap tap;
  tap.first = (int)low;
  tap.weight = (float)(source - low);
  if (tap.first < 0) {
    tap.first = 0;
    tap.weight = 0.0f;
  }
  if (tap.first >= size_in - 1) {
    tap.first = size_in - 1;
    tap.weight = 0.0f;
  }
  tap.second = min(tap.first + 1, size_in - 1);
  return tap;
}

__device__ __forceinline__ float lerp_to(float a, float b, float weight) { return fmaf(b - a, weight, a); }

// grid (ceil(S / COLUMNS), ceil(S / LINES / ROWS), images), block (COLUMNS, LINES)
extern "C" __global__ void __launch_bounds__(PREPROCESS_THREADS) preprocess(
    const unsigned char* __restrict__ images,  // [images, H, W, 3], rows and images `pitch` bytes apart
    input_t* __restrict__ input,               // [images, 3, S, S], RGB
    int image_h, int image_w,
    long long row_pitch,    // bytes, at least 3 W
    long long image_pitch,  // bytes
    int input_size,         // S
    int is_rgb,             // 0: the images' channels are BGR, 1: RGB
    float mean_r, float mean_g, float mean_b, float std_r, float std_g, float std_b,
    float pad_r, float pad_g, float pad_b) {  // only with PAD
  static __shared__ Tap columns[PREPROCESS_COLUMNS], rows[TILE_ROWS];  // once a block, as most GPUs are slow in double
  int2 canvas = canvas_size(image_h, image_w);
  int left_x = blockIdx.x * PREPROCESS_COLUMNS, top_y = blockIdx.y * TILE_ROWS;
  for (int i = threadIdx.y * PREPROCESS_COLUMNS + threadIdx.x; i < PREPROCESS_COLUMNS + TILE_ROWS; i += PREPROCESS_THREADS) {
    int row = i - PREPROCESS_COLUMNS;
    if (row < 0)
      columns[i] = resize_tap(left_x + i, canvas.y, (double)canvas.y / input_size);
    else
      rows[row] = resize_tap(top_y + row, canvas.x, (double)canvas.x / input_size);
  }
  __syncthreads();
  int x = left_x + threadIdx.x;
  if (x >= input_size) return;
  const unsigned char* image = images + blockIdx.z * image_pitch;
  size_t plane = (size_t)input_size * input_size;
  input_t* output = input + blockIdx.z * 3 * plane;
  float mean[3] = {mean_r, mean_g, mean_b};
  float std[3] = {std_r, std_g, std_b};
  float pad[3] = {pad_r, pad_g, pad_b};
  Tap column = columns[threadIdx.x];
  bool has_left = !PAD || column.first < image_w, has_right = !PAD || column.second < image_w;
#pragma unroll
  for (int i = 0; i < PREPROCESS_ROWS; i++) {
    int tile_row = threadIdx.y * PREPROCESS_ROWS + i, y = top_y + tile_row;
    if (y >= input_size) return;
    Tap row = rows[tile_row];
    bool has_top = !PAD || row.first < image_h, has_bottom = !PAD || row.second < image_h;
    const unsigned char* top = image + row.first * row_pitch;
    const unsigned char* bottom = image + row.second * row_pitch;
#pragma unroll
    for (int c = 0; c < 3; c++) {
      int from = is_rgb ? c : 2 - c;
      int left = 3 * column.first + from, right = 3 * column.second + from;
      float top_left = has_top && has_left ? (float)top[left] : pad[c];
      float top_right = has_top && has_right ? (float)top[right] : pad[c];
      float bottom_left = has_bottom && has_left ? (float)bottom[left] : pad[c];
      float bottom_right = has_bottom && has_right ? (float)bottom[right] : pad[c];
      float upper = lerp_to(top_left, top_right, column.weight);
      float lower = lerp_to(bottom_left, bottom_right, column.weight);
      float value = (lerp_to(upper, lower, row.weight) - mean[c]) / std[c];
      store(output + c * plane + (size_t)y * input_size + x, value);
    }
  }
}
