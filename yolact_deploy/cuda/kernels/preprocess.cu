// uint8 images to the network's input: padded to a square with PAD, stretched, normalised, planar RGB.

#define PREPROCESS_THREADS (PREPROCESS_COLUMNS * PREPROCESS_LINES)

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
  int x = blockIdx.x * PREPROCESS_COLUMNS + threadIdx.x;
  int first_y = (blockIdx.y * PREPROCESS_LINES + threadIdx.y) * PREPROCESS_ROWS;
  if (x >= input_size) return;
  const unsigned char* image = images + blockIdx.z * image_pitch;
  size_t plane = (size_t)input_size * input_size;
  input_t* output = input + blockIdx.z * 3 * plane;
  float mean[3] = {mean_r, mean_g, mean_b};
  float std[3] = {std_r, std_g, std_b};
  float pad[3] = {pad_r, pad_g, pad_b};
  int2 canvas = canvas_size(image_h, image_w);
  Tap column = resize_tap(x, canvas.y, (double)canvas.y / input_size);
  bool has_left = !PAD || column.first < image_w, has_right = !PAD || column.second < image_w;
  double scale_y = (double)canvas.x / input_size;
#pragma unroll
  for (int i = 0; i < PREPROCESS_ROWS; i++) {
    int y = first_y + i;
    if (y >= input_size) return;
    Tap row = resize_tap(y, canvas.x, scale_y);
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
