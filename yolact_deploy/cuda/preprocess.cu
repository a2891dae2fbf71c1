// uint8 images to the network's input: stretched, normalised, planar RGB.

#define PREPROCESS_ROWS 4  // output rows per thread: they share the column's coordinates

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

// grid (ceil(S / 32), ceil(S / 32), images), block (32, 8)
extern "C" __global__ void __launch_bounds__(256) preprocess(
    const unsigned char* __restrict__ images,  // [images, H, W, 3], rows and images `pitch` bytes apart
    input_t* __restrict__ input,               // [images, 3, S, S], RGB
    int image_h, int image_w,
    long long row_pitch,    // bytes, at least 3 W
    long long image_pitch,  // bytes
    int input_size,         // S
    int is_rgb,             // 0: the images' channels are BGR, 1: RGB
    float mean_r, float mean_g, float mean_b, float std_r, float std_g, float std_b) {
  int x = blockIdx.x * 32 + threadIdx.x;
  int first_y = (blockIdx.y * 8 + threadIdx.y) * PREPROCESS_ROWS;
  if (x >= input_size) return;
  const unsigned char* image = images + blockIdx.z * image_pitch;
  size_t plane = (size_t)input_size * input_size;
  input_t* output = input + blockIdx.z * 3 * plane;
  float mean[3] = {mean_r, mean_g, mean_b};
  float std[3] = {std_r, std_g, std_b};
  Tap column = resize_tap(x, image_w, (double)image_w / input_size);
  double scale_y = (double)image_h / input_size;
#pragma unroll
  for (int i = 0; i < PREPROCESS_ROWS; i++) {
    int y = first_y + i;
    if (y >= input_size) return;
    Tap row = resize_tap(y, image_h, scale_y);
    const unsigned char* top = image + row.first * row_pitch;
    const unsigned char* bottom = image + row.second * row_pitch;
#pragma unroll
    for (int c = 0; c < 3; c++) {
      int from = is_rgb ? c : 2 - c;
      int left = 3 * column.first + from, right = 3 * column.second + from;
      float upper = lerp_to((float)top[left], (float)top[right], column.weight);
      float lower = lerp_to((float)bottom[left], (float)bottom[right], column.weight);
      float value = (lerp_to(upper, lower, row.weight) - mean[c]) / std[c];
      store(output + c * plane + (size_t)y * input_size + x, value);
    }
  }
}
