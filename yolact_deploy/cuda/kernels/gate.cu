// A gate in a stream: what is enqueued behind it starts when the host opens it.

// grid (1), block 1
extern "C" __global__ void __launch_bounds__(1) hold_stream(
    volatile unsigned* gate,  // [2] in page-locked memory of the host: it opens at anything but 0; 1 is written to the second
    int polls) {              // word where nobody opened it in so many looks, so that nothing waits for ever
  for (; polls > 0; polls--) {
    if (gate[0] != 0) return;
    __nanosleep(1000);  // a look takes about as long, across the bus
  }
  gate[1] = 1;
}
