// The two nearest of many vectors, for kernels.cpp: a product and its largest entries by row and by column, without the matrix.


// The best and the second of each lane for a row, over the columns seen so far.
struct Nearest {
    alignas(64) float best[LANES], second[LANES];
    alignas(64) float index[LANES];  // of the best; a float32 counts to 2^24
};

// Joins the lanes. Of equal values the one with the smallest index is the best, and another one the second.
inline void join_lanes(const Nearest& lanes, float* best, int64_t* index, float* second) {
    long found = 0;
    for (long i = 1; i < LANES; i++) {
        const bool is_equal = lanes.best[i] == lanes.best[found];
        if (lanes.best[i] > lanes.best[found] || (is_equal && lanes.index[i] < lanes.index[found])) found = i;
    }
    *best = lanes.best[found];
    *index = static_cast<int64_t>(lanes.index[found]);
    *second = lanes.second[found];
    for (long i = 0; i < LANES; i++)
        if (i != found) *second = std::max(*second, lanes.best[i]);
}

inline void keep_two(Vector& best, Vector& second, Vector values) {
    second = maximum_of(second, minimum_of(best, values));
    best = maximum_of(best, values);
}

// One block of columns, as `two_nearest` packs them.
struct Columns {
    const uint32_t* words;
    float *factors, *offsets, *best, *second;
    long first, count;  // the count is a multiple of KEY_TILE
};

// Updates the state of ROWS rows, of which the last may be repeated: `num_rows` are different.
template <class Element>
void scan_block(Nearest* state, const Element* const (&rows)[ROWS], const float* factors, long num_rows, const Columns& columns,
                long num_words) {
    alignas(64) float products[ROWS][KEY_BLOCK];
    Vector unused[ROWS];
    for (auto& lanes : unused) lanes = zeros();
    for (long j = 0; j < columns.count; j += KEY_TILE)
        for (long i = 0; i < KEY_TILE; i += STRIP)
            compute_tile<MOST_COLUMNS>(products[0] + j + i, unused, rows, columns.words + j * num_words + i, num_words);
    Vector lane_numbers = zeros();
    for (long i = 1; i < LANES; i++) lane_numbers = lane_numbers + select(first_lanes(i), zeros(), all(1.0f));
    for (long r = 0; r < num_rows; r++) {
        Vector best = load_aligned(state[r].best), second = load_aligned(state[r].second), index = load_aligned(state[r].index);
        for (long c = 0; c < columns.count; c += LANES) {
            const Vector factor = load_aligned(columns.factors + c) * all(factors[r]);
            const Vector values = fused(load_aligned(products[r] + c), factor, load_aligned(columns.offsets + c));
            const Mask is_better = above(values, best);
            index = select(is_better, lane_numbers + all(static_cast<float>(columns.first + c)), index);
            keep_two(best, second, values);
            Vector column_best = load_aligned(columns.best + c), column_second = load_aligned(columns.second + c);
            keep_two(column_best, column_second, values);
            store_aligned(columns.best + c, column_best);
            store_aligned(columns.second + c, column_second);
        }
        store_aligned(state[r].best, best);
        store_aligned(state[r].second, second);
        store_aligned(state[r].index, index);
    }
}

// The similarity of row i and column j is (row i . column j) factor_i factor_j. Gives the largest and the second of each row, with
// the column of the largest, and those of each column; the second is -inf if there is none. Returns 0 if there is no memory.
template <class Element>
int two_nearest(const Element* rows, long stride, long num_rows, const float* factors, const Element* columns, long column_stride,
                long num_columns, const float* column_factors, long dim, float* best, int64_t* index, float* second,
                float* column_best, float* column_second) {
    const float nothing = -INFINITY;
    const long num_words = dim / PER_WORD<Element>, padded = (num_columns + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
    const long sizes = padded * (num_words + 4) * sizeof(float);
    auto* words = static_cast<uint32_t*>(std::aligned_alloc(64, sizes + num_rows * sizeof(Nearest)));
    if (!words) return 0;
    auto* all_factors = reinterpret_cast<float*>(words + padded * num_words);
    float *offsets = all_factors + padded, *bests = offsets + padded, *seconds = bests + padded;
    auto* state = reinterpret_cast<Nearest*>(seconds + padded);
    pack_keys(words, columns, column_stride, num_columns, num_words);
    for (long j = 0; j < padded; j++) {  // columns past the last are below all others
        all_factors[j] = j < num_columns ? column_factors[j] : 0.0f;
        offsets[j] = j < num_columns ? 0.0f : nothing;
    }
    std::fill_n(bests, 2 * padded, nothing);
    for (long i = 0; i < num_rows; i++) {
        std::fill_n(state[i].best, LANES, nothing);
        std::fill_n(state[i].second, LANES, nothing);
        std::fill_n(state[i].index, LANES, 0.0f);
    }
    for (long first = 0; first < padded; first += KEY_BLOCK) {  // a block stays in the cache while all rows pass
        const Columns block{words + first * num_words, all_factors + first, offsets + first, bests + first, seconds + first,
                            first, std::min(KEY_BLOCK, padded - first)};
        for (long row = 0; row < num_rows; row += ROWS) {
            const Element* some[ROWS];  // past the last: the last again
            for (int r = 0; r < ROWS; r++) some[r] = rows + std::min(row + r, num_rows - 1) * stride;
            scan_block(state + row, some, factors + row, std::min<long>(ROWS, num_rows - row), block, num_words);
        }
    }
    for (long i = 0; i < num_rows; i++) join_lanes(state[i], best + i, index + i, second + i);
    std::copy_n(bests, num_columns, column_best);
    std::copy_n(seconds, num_columns, column_second);
    std::free(words);
    return 1;
}
