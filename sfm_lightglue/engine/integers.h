// Products and attention of float32 tensors by integers of 16 bits, for kernels.cpp: for CPUs that have no products of bfloat16. An
// instruction multiplies twice as many integers as float32, and rounding to 13 bits loses less than bfloat16 with its 8.
//
// Each row, or each channel of values, has a scale of its own. The largest integers are so small that no sum overflows.

constexpr float LARGEST_INPUT = 8191;          // of a row that is multiplied by weights
constexpr float LARGEST_QUERY = 4095;          // and of a key: 128 channels of their products fit 31 bits
constexpr float LARGEST_WEIGHT = 16383;        // of attention; a weight is at most 1
constexpr float LARGEST_VALUE = 2047;
constexpr long WEIGHT_CHAIN = 64;              // keys in one sum of weight x value
constexpr long BLOCK_ROWS = 16 * ROWS;         // rows whose integers stay in the L2 cache while all weights pass

// out = x / scale as integers up to `largest`; the scale. `width` is a multiple of 2 LANES.
inline float to_integers(const float* x, long width, float largest, int16_t* out) {
    Vector most = zeros();
    for (long c = 0; c < width; c += LANES) most = maximum_of(most, absolute(load(x + c)));
    const float scale = std::max(largest_of(most), 1e-30f) / largest;
    const Vector factor = all(1 / scale);
    for (long c = 0; c < width; c += 2 * LANES)
        store_integers(out + c, rounded(load(x + c) * factor), rounded(load(x + c + LANES) * factor));
    return scale;
}

// out = x weights^T. `weights` are packed: strip of results, word of channels, result. `scales` are those of the results.
template <class Product>
int multiply_integers(const float* x, long stride, long num_rows, long width, const uint32_t* weights, const float* scales,
                      long results, float* out, long out_stride) {
    auto* integers = static_cast<int16_t*>(std::aligned_alloc(64, BLOCK_ROWS * width * sizeof(int16_t)));
    if (!integers) return 0;
    float row_scales[BLOCK_ROWS];
    for (long first = 0; first < num_rows; first += BLOCK_ROWS) {
        const long count = std::min(BLOCK_ROWS, num_rows - first);
        for (long r = 0; r < count; r++)
            row_scales[r] = to_integers(x + (first + r) * stride, width, LARGEST_INPUT, integers + r * width);
        for (long strip = 0; strip < results; strip += STRIP)
            for (long begin = 0; begin < count; begin += ROWS) {
                const Product* left[ROWS];
                for (long r = 0; r < ROWS; r++)
                    left[r] = reinterpret_cast<const Product*>(integers + std::min(begin + r, count - 1) * width);
                Vector sums[ROWS][MOST_COLUMNS];
                clear(sums);
                multiply(sums, left, weights + strip * (width / 2), STRIP, 0, width / 2);
                for (long r = 0; r < std::min<long>(ROWS, count - begin); r++)
                    for (long c = 0; c < MOST_COLUMNS; c++)
                        store(out + (first + begin + r) * out_stride + strip + c * LANES,
                              converted(as_words(sums[r][c])) * (load(scales + strip + c * LANES) * all(row_scales[begin + r])));
            }
    }
    std::free(integers);
    return 1;
}

// logits[r][j] = query r . key j for LANES COLUMNS keys
template <int COLUMNS, class Product>
inline void compute_integer_tile(float* logits, Vector (&lane_maximum)[ROWS], const Product* const (&queries)[ROWS],
                                 const float* query_scales, const uint32_t* keys, const float* key_scales, long num_words) {
    Vector sums[ROWS][COLUMNS];
    clear(sums);
    multiply(sums, queries, keys, KEY_TILE, 0, num_words);
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c++) {
        const Vector scales = load_aligned(key_scales + LANES * c);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const Vector logit = converted(as_words(sums[r][c])) * (scales * all(query_scales[r]));
            lane_maximum[r] = maximum_of(lane_maximum[r], logit);
            store_aligned(logits + r * KEY_BLOCK + LANES * c, logit);
        }
    }
}

template <class Product>
[[gnu::noinline]] void compute_integer_logits(Attention& state, const Product* const (&queries)[ROWS], const float* query_scales,
                                              const uint32_t* keys, const float* key_scales, long num_keys, long num_words,
                                              float scale) {
    Vector lane_maximum[ROWS];
    for (auto& lanes : lane_maximum) lanes = all(LOWEST);
    for (long j = 0; j < num_keys; j += KEY_TILE, keys += KEY_TILE * num_words)
        for (long i = 0; i < std::min(KEY_TILE, num_keys - j); i += STRIP)
            compute_integer_tile<MOST_COLUMNS>(state.logits[0] + j + i, lane_maximum, queries, query_scales, keys + i,
                                               key_scales + j + i, num_words);
    end_logits(state, lane_maximum, num_keys, scale);
}

// The weights of 2 LANES keys from j on replace their logits.
inline void compute_integer_weights(Attention& state, int r, long j, const Exponential<float>& exponential) {
    const float* logits = state.logits[r] + j;
    const Vector maximum = all(state.maximum[r]), largest = all(LARGEST_WEIGHT);
    const Words weight0 = rounded(exponential(load_aligned(logits) - maximum) * largest);
    const Words weight1 = rounded(exponential(load_aligned(logits + LANES) - maximum) * largest);
    store_aligned(state.total[r], load_aligned(state.total[r]) + (converted(weight0) + converted(weight1)));
    store_integers(reinterpret_cast<int16_t*>(state.logits[r]) + j, weight0, weight1);
}

// Adds weight x value for LANES COLUMNS channels.
template <class Product, int COLUMNS>
[[gnu::noinline]] void add_integer_values(Attention& state, const uint32_t* values, long channel, long num_keys, long head_size) {
    for (long begin = 0; begin < num_keys; begin += WEIGHT_CHAIN) {
        Vector sums[ROWS][COLUMNS];
        clear(sums);
        const Product* weights[ROWS];
        for (int r = 0; r < ROWS; r++) weights[r] = reinterpret_cast<const Product*>(state.logits[r]) + begin;
        const long count = (std::min(WEIGHT_CHAIN, num_keys - begin) + 31) / 32 * 32;
        multiply(sums, weights, values + begin / 2 * head_size + channel, head_size, 0, count / 2);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++)
                add_to(state.context[r] + channel + LANES * c, begin ? 1.0f : state.correction[r],
                       converted(as_words(sums[r][c])));
    }
}

// Packs values as `pack_values` does; `scales` get those of the channels.
inline void pack_integer_values(uint32_t* packed, const float* values, long stride, long num_keys, long head_size, float* scales) {
    for (long channel = 0; channel < head_size; channel += LANES) {
        Vector most = all(1e-30f);
        for (long key = 0; key < num_keys; key++) most = maximum_of(most, absolute(load(values + key * stride + channel)));
        store(scales + channel, most * all(1 / LARGEST_VALUE));
        const Vector factor = all(LARGEST_VALUE) / most;
        const auto integers = [&](long key) {
            return key < num_keys ? rounded(load(values + key * stride + channel) * factor) : as_words(zeros());
        };
        for (long key = 0; key < (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE; key += 2)
            store_aligned(packed + key / 2 * head_size + channel, joined(integers(key), integers(key + 1)));
    }
}

// As `attention` for float32.
template <class Product>
int attend_by_integers(const float* query, long query_stride, long num_queries, const float* key, long key_stride,
                       const float* value, long value_stride, long num_keys, float* out, long out_stride, long num_heads,
                       long head_size, float scale) {
    const long padded = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE, num_words = padded * head_size / 2;
    auto* keys = static_cast<uint32_t*>(std::aligned_alloc(64, (3 * num_words + padded) * sizeof(uint32_t)));
    if (!keys) return 0;
    uint32_t* values = keys + num_words;
    auto* integers = reinterpret_cast<int16_t*>(values + num_words);
    auto* key_scales = reinterpret_cast<float*>(values + 2 * num_words);
    const Exponential<float> exponential(scale);
    const FlushDenormals flush;
    for (long head = 0; head < num_heads; head++, query += head_size, key += head_size, value += head_size, out += head_size) {
        for (long j = 0; j < num_keys; j++)
            key_scales[j] = to_integers(key + j * key_stride, head_size, LARGEST_QUERY, integers + j * head_size);
        std::fill(key_scales + num_keys, key_scales + padded, key_scales[num_keys - 1]);
        pack_keys(keys, integers, head_size, num_keys, head_size / 2);
        float value_scales[MAX_HEAD_SIZE];
        pack_integer_values(values, value, value_stride, num_keys, head_size, value_scales);
        for (long row = 0; row < num_queries; row += ROWS) {
            alignas(64) int16_t rows[ROWS][MAX_HEAD_SIZE];
            float query_scales[ROWS];
            const Product* queries[ROWS];
            for (int r = 0; r < ROWS; r++) {
                const long index = std::min(row + r, num_queries - 1);  // past the last: the last again
                query_scales[r] = to_integers(query + index * query_stride, head_size, LARGEST_QUERY, rows[r]);
                queries[r] = reinterpret_cast<const Product*>(rows[r]);
            }
            Attention state;
            start(state, head_size);
            for (long first = 0; first < num_keys; first += KEY_BLOCK) {
                const long size = std::min(KEY_BLOCK, num_keys - first), offset = first / 2 * head_size;
                compute_integer_logits(state, queries, query_scales, keys + offset, key_scales + first, size, head_size / 2, scale);
                for (int r = 0; r < ROWS; r++) {
                    add_to(state.total[r], state.correction[r], zeros());
                    for (long j = 0; j < size; j += 2 * LANES) compute_integer_weights(state, r, j, exponential);
                }
                long channel = 0;
                for (; channel + STRIP <= head_size; channel += STRIP)
                    add_integer_values<Product, MOST_COLUMNS>(state, values + offset, channel, size, head_size);
                if (channel < head_size)  // 32 and 96 channels with AVX512
                    add_integer_values<Product, MOST_COLUMNS / 2>(state, values + offset, channel, size, head_size);
            }
            for (int r = 0; r < ROWS && row + r < num_queries; r++) {
                const Vector norm = all(1.0f / sum_of(load_aligned(state.total[r])));
                for (long c = 0; c < head_size; c += LANES)
                    store(out + (row + r) * out_stride + c, load_aligned(state.context[r] + c) * (norm * load(value_scales + c)));
            }
        }
    }
    std::free(keys);
    return 1;
}

// Whether one instruction multiplies integers and adds the products.
inline bool has_vnni() {
#ifdef __AVX512F__
    return __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

int attention_by_integers(const float* query, long query_stride, long num_queries, const float* key, long key_stride,
                          const float* value, long value_stride, long num_keys, float* out, long out_stride, long num_heads,
                          long head_size, float scale) {
    const auto function = has_vnni() ? attend_by_integers<Vnni> : attend_by_integers<int16_t>;
    return function(query, query_stride, num_queries, key, key_stride, value, value_stride, num_keys, out, out_stride, num_heads,
                    head_size, scale);
}

int product(const float* x, long stride, long num_rows, long width, const uint32_t* weights, const float* scales, long results,
            float* out, long out_stride) {
    const auto function = has_vnni() ? multiply_integers<Vnni> : multiply_integers<int16_t>;
    return function(x, stride, num_rows, width, weights, scales, results, out, out_stride);
}
