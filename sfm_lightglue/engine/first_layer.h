// The first convolution of SuperPoint, for kernels.cpp: 3x3 px of a grey image to 64 channels, and the ReLU; float32, or integers of
// 8 bits.

constexpr long CHANNELS = 64, TAPS = 9;  // channels of the result, and pixels that each reads
constexpr long GROUP = MOST_COLUMNS / 2;  // vectors of channels whose weights stay in registers
constexpr long PIXELS = 4;                // pixels at a time

inline void store_result(float* to, Vector values) { store(to, values); }
inline void store_result(uint8_t* to, Vector values) { store_bytes(to, values); }

// Channels of COUNT pixels beside each other. `grey` is the pixel above and left of the first one.
template <long COUNT, class Result>
inline void first_layer_pixels(const float* grey, long stride, const Vector (&weights)[TAPS + 1][GROUP], Result* out) {
    Vector sums[COUNT][GROUP];
    for (auto& pixel : sums)
        for (long c = 0; c < GROUP; c++) pixel[c] = weights[TAPS][c];
#pragma GCC unroll 9
    for (long tap = 0; tap < TAPS; tap++)
        for (long x = 0; x < COUNT; x++) {
            const Vector value = all(grey[tap / 3 * stride + tap % 3 + x]);
            for (long c = 0; c < GROUP; c++) sums[x][c] = fused(value, weights[tap][c], sums[x][c]);
        }
    for (long x = 0; x < COUNT; x++)
        for (long c = 0; c < GROUP; c++) store_result(out + x * CHANNELS + c * LANES, maximum_of(sums[x][c], zeros()));
}

// out = max(convolution, 0), or min(round(max(convolution, 0)), 255). `grey` has a frame of one px around height x width px; `stride`
// is the distance of its rows. `weights` are 9 rows of 64, for the pixels of a window row by row, and a row of biases. `out` is
// height x width x 64.
template <class Result>
void first_layer(const float* grey, long stride, long height, long width, const float* weights, Result* out) {
    for (long y = 0; y < height; y++, grey += stride, out += width * CHANNELS)
        for (long first = 0; first < CHANNELS; first += GROUP * LANES) {
            Vector kept[TAPS + 1][GROUP];
            for (long tap = 0; tap <= TAPS; tap++)
                for (long c = 0; c < GROUP; c++) kept[tap][c] = load(weights + tap * CHANNELS + first + c * LANES);
            long x = 0;
            for (; x + PIXELS <= width; x += PIXELS)
                first_layer_pixels<PIXELS>(grey + x, stride, kept, out + x * CHANNELS + first);
            for (; x < width; x++) first_layer_pixels<1>(grey + x, stride, kept, out + x * CHANNELS + first);
        }
}
