// 3x3 convolutions with padding 1 for kernels.cpp, by Winograd's minimal filtering F(4x4, 3x3): 36 products for 16 pixels instead of
// 144 (Lavin and Gray, arXiv:1509.09308, section 4.2). A tile is 4 x 4 pixels of the result, which depend on a window of 6 x 6.
//
// Window and weights are transformed. The product of both at each of the 36 places, summed over the channels, is transformed back.
// Products are of float32, or of 16-bit integers with exact sums in 32 bits: then pixels are integers 0..255, and a transformed pixel
// is one of at most 68 x 255 in magnitude. Maps are height x width x channels.

constexpr long TILE = 4, WINDOW = 6, PLACES = WINDOW * WINDOW;
constexpr long TILES = 4 * ROWS;  // transformed at a time: windows, weights and products stay in the L2 cache
constexpr long LINE = 64;         // bytes; one more in each row of a buffer puts its rows in different sets of a cache

// A row or a column of a window times the matrix B^T of the paper's equation 4.4; float32 or 16-bit integers.
inline void transform_window(const Vector (&x)[WINDOW], Vector (&y)[WINDOW]) {
    const Vector four = all(4.0f), five = all(-5.0f), two = all(2.0f);
    y[0] = fused(four, x[0], fused(five, x[2], x[4]));
    const Vector even = fused(-four, x[2], x[4]), odd = fused(-four, x[1], x[3]);
    y[1] = even + odd;
    y[2] = even - odd;
    const Vector even2 = x[4] - x[2], odd2 = x[3] - x[1];
    y[3] = fused(two, odd2, even2);
    y[4] = fused(-two, odd2, even2);
    y[5] = fused(four, x[1], fused(five, x[3], x[5]));
}

inline void transform_window(const Words (&x)[WINDOW], Words (&y)[WINDOW]) {
    y[0] = plus(minus(times_two_to<2>(minus(x[0], x[2])), x[2]), x[4]);
    const Words even = minus(x[4], times_two_to<2>(x[2])), odd = minus(x[3], times_two_to<2>(x[1]));
    y[1] = plus(even, odd);
    y[2] = minus(even, odd);
    const Words even2 = minus(x[4], x[2]), odd2 = times_two_to<1>(minus(x[3], x[1]));
    y[3] = plus(even2, odd2);
    y[4] = minus(even2, odd2);
    y[5] = plus(minus(times_two_to<2>(minus(x[1], x[3])), x[3]), x[5]);
}

// The six sums of a row or a column times A^T.
inline void transform_sums(const Vector (&m)[WINDOW], Vector (&y)[TILE]) {
    const Vector even = m[1] + m[2], odd = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    y[0] = m[0] + even + even2;
    y[1] = fused(all(2.0f), odd2, odd);
    y[2] = fused(all(4.0f), even2, even);
    y[3] = fused(all(8.0f), odd2, odd) + m[5];
}

inline Vector load_pixel(const float* from) { return load(from); }
inline Words load_pixel(const uint8_t* from) { return widened(from); }
inline void store_pixel(float* to, Vector values) { store(to, values); }
inline void store_pixel(int16_t* to, Words values) { store_words(to, values); }

// The transformed window of one tile: its channels at each place, `place_stride` elements after those of the place before.
template <class Pixel, class Element>
void transform_tile(const Pixel* window, long row_stride, long channels, Element* out, long place_stride) {
    using Values = decltype(load_pixel(window));
    constexpr long STEP = sizeof(Values) / sizeof(Element);
    for (long c = 0; c < channels; c += STEP) {
        Values rows[WINDOW][WINDOW];
#pragma GCC unroll 6
        for (long j = 0; j < WINDOW; j++) {
            Values x[WINDOW], y[WINDOW];
#pragma GCC unroll 6
            for (long i = 0; i < WINDOW; i++) x[i] = load_pixel(window + i * row_stride + j * channels + c);
            transform_window(x, y);
#pragma GCC unroll 6
            for (long i = 0; i < WINDOW; i++) rows[i][j] = y[i];
        }
#pragma GCC unroll 6
        for (long i = 0; i < WINDOW; i++) {
            Values y[WINDOW];
            transform_window(rows[i], y);
#pragma GCC unroll 6
            for (long j = 0; j < WINDOW; j++) store_pixel(out + (WINDOW * i + j) * place_stride + c, y[j]);
        }
    }
}

inline Vector sum_at(const float* sums, const float*) { return load_aligned(sums); }
inline Vector sum_at(const int32_t* sums, const float* scales) {
    return converted(load_aligned(reinterpret_cast<const uint32_t*>(sums))) * load(scales);
}

struct Convolution {
    long height, width, channels, results;  // of the map; `results` are the channels of the result
    const uint32_t* weights;                // transformed and packed: strip of results, place, word of channels, result
    const float *scales, *biases;           // scales of sums of integers: place x results
    long pool;                              // 2: the result is the largest of 2 x 2 pixels; else 1
};

// The results of a strip for one tile, from its sums at each place. Rows and columns outside the map are not written.
template <class Sum, class Result>
void finish_tile(const Convolution& layer, const Sum* sums, long place_stride, long strip, long row, long column, Result* out) {
    const long stride = layer.width / layer.pool * layer.results;
    for (long c = 0; c < STRIP; c += LANES) {
        const long channel = strip * STRIP + c;
        Vector columns[WINDOW][TILE];
#pragma GCC unroll 6
        for (long j = 0; j < WINDOW; j++) {
            Vector m[WINDOW];
#pragma GCC unroll 6
            for (long i = 0; i < WINDOW; i++) {
                const long place = WINDOW * i + j;
                m[i] = sum_at(sums + place * place_stride + c, layer.scales + place * layer.results + channel);
            }
            transform_sums(m, columns[j]);
        }
        const Vector bias = load(layer.biases + channel);
        Vector above[TILE];
#pragma GCC unroll 4
        for (long i = 0; i < TILE; i++) {
            Vector m[WINDOW], y[TILE];
#pragma GCC unroll 6
            for (long j = 0; j < WINDOW; j++) m[j] = columns[j][i];
            transform_sums(m, y);
#pragma GCC unroll 4
            for (long j = 0; j < TILE; j++) y[j] = maximum_of(y[j] + bias, zeros());
            if (layer.pool == 1) {
                if (row + i >= layer.height) break;
                Result* to = out + (row + i) * stride + column * layer.results + channel;
                for (long j = 0; j < std::min(TILE, layer.width - column); j++) store_result(to + j * layer.results, y[j]);
            } else if (i % 2 == 0) {
                for (long j = 0; j < TILE; j++) above[j] = y[j];
            } else {
                if (row + i >= layer.height) break;
                Result* to = out + (row + i) / 2 * stride + column / 2 * layer.results + channel;
                for (long j = 0; j + 1 < std::min(TILE, layer.width - column); j += 2)
                    store_result(to + j / 2 * layer.results,
                                 maximum_of(maximum_of(above[j], y[j]), maximum_of(above[j + 1], y[j + 1])));
            }
        }
    }
}

// relu(convolution + bias) for the rows of tiles from `first` to `last`. Whether there was memory. Channels are a multiple of 32,
// results of 64. `Product` is the type of `Element` in products.
template <class Pixel, class Element, class Product, class Sum, class Result>
int convolve(const Pixel* map, long row_stride, const Convolution& layer, long first, long last, Result* out) {
    const long channels = layer.channels, num_columns = (layer.width + TILE - 1) / TILE;
    const long place_stride = TILES * channels + LINE / sizeof(Element), sum_stride = TILES * STRIP + LINE / sizeof(Sum);
    const long num_words = channels / PER_WORD<Element>;
    const size_t bytes = PLACES * (place_stride * sizeof(Element) + sum_stride * sizeof(Sum) + channels * sizeof(Pixel));
    auto* buffer = static_cast<char*>(std::aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE));
    if (!buffer) return 0;
    std::memset(buffer, 0, bytes);
    auto* sums = reinterpret_cast<Sum*>(buffer);
    auto* windows = reinterpret_cast<Element*>(sums + PLACES * sum_stride);
    auto* frame = reinterpret_cast<Pixel*>(windows + PLACES * place_stride);
    for (long begin = first * num_columns; begin < last * num_columns; begin += TILES) {
        const long count = std::min(TILES, last * num_columns - begin);
        const auto row_of = [&](long t) { return (begin + t) / num_columns * TILE; };
        const auto column_of = [&](long t) { return (begin + t) % num_columns * TILE; };
        for (long t = 0; t < count; t++) {
            const long row = row_of(t) - 1, column = column_of(t) - 1;
            const Pixel* window = map + row * row_stride + column * channels;
            const bool is_inside = row >= 0 && column >= 0 && row + WINDOW <= layer.height && column + WINDOW <= layer.width;
            if (!is_inside) {
                const long left = std::max(0L, -column), right = std::min(WINDOW, layer.width - column);
                std::fill_n(frame, PLACES * channels, Pixel(0));
                for (long i = std::max(0L, -row); i < std::min(WINDOW, layer.height - row); i++)
                    std::copy_n(window + i * row_stride + left * channels, (right - left) * channels,
                                frame + (WINDOW * i + left) * channels);
                window = frame;
            }
            transform_tile(window, is_inside ? row_stride : WINDOW * channels, channels, windows + t * channels, place_stride);
        }
        for (long strip = 0; strip < layer.results / STRIP; strip++) {
            for (long place = 0; place < PLACES; place++) {
                const uint32_t* weights = layer.weights + (strip * PLACES + place) * num_words * STRIP;
                for (long t = 0; t < count; t += ROWS) {
                    const Product* left[ROWS];
                    for (long r = 0; r < ROWS; r++)
                        left[r] = reinterpret_cast<const Product*>(windows + place * place_stride + (t + r) * channels);
                    Vector products[ROWS][MOST_COLUMNS];
                    clear(products);
                    multiply(products, left, weights, STRIP, 0, num_words);
                    auto* to = reinterpret_cast<float*>(sums + place * sum_stride + t * STRIP);
                    for (long r = 0; r < ROWS; r++)
                        for (long c = 0; c < MOST_COLUMNS; c++) store_aligned(to + r * STRIP + c * LANES, products[r][c]);
                }
            }
            for (long t = 0; t < count; t++)
                finish_tile(layer, sums + t * STRIP, sum_stride, strip, row_of(t), column_of(t), out);
        }
    }
    std::free(buffer);
    return 1;
}

int winograd(const float* map, long row_stride, long height, long width, long channels, long results, const void* weights,
             const float*, const float* biases, long pool, long first, long last, float* out) {
    const Convolution layer{height, width, channels, results, static_cast<const uint32_t*>(weights), nullptr, biases, pool};
    return convolve<float, float, float, float>(map, row_stride, layer, first, last, out);
}

template <class Result>
int winograd_of_integers(const uint8_t* map, long row_stride, long height, long width, long channels, long results,
                         const void* weights, const float* scales, const float* biases, long pool, long first, long last,
                         Result* out) {
    const Convolution layer{height, width, channels, results, static_cast<const uint32_t*>(weights), scales, biases, pool};
    if (has_vnni()) return convolve<uint8_t, int16_t, Vnni, int32_t>(map, row_stride, layer, first, last, out);
    return convolve<uint8_t, int16_t, int16_t, int32_t>(map, row_stride, layer, first, last, out);
}
