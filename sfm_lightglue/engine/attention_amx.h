// `attention` of bfloat16 elements with the tiles of AMX (Intel from Sapphire Rapids). kernels.cpp includes this file; it has the
// packing, and its opening comment holds here too.
//
// A tile holds 16 rows of 64 bytes: 16 x 16 sums, or 16 rows of 32 elements. One instruction multiplies two tiles: 16384 FLOP.
// AVX512 computes the softmax between the two products. 2048 queries and keys of 4 heads take 5.0 ms on one core of an Intel Xeon
// with AMX, and 39.7 ms without tiles.

#if defined(__linux__) && (__has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>))  // g++ 11, clang++ 11: assemble it

constexpr long TILE_QUERIES = 32;  // queries at a time: 32 x 32 sums fill tiles 0 to 3, what is multiplied 4 to 7
constexpr long TILE_KEYS = 256;    // keys between two updates of the row maxima; 128 and 512 are 12 % slower

// The instructions are written as assembly for the reason given in kernels.cpp.
template <int TILE>
inline void tile_load(const void* from, long stride) {  // strides in bytes
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void tile_store(void* to, long stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(TILE) : "memory");
}

template <int SUM, int LEFT, int RIGHT>
inline void tile_multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(LEFT), "i"(RIGHT));
}

inline void clear_sums() { asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3"); }

inline void load_sums(const float* from, long stride) {
    tile_load<0>(from, stride * 4);
    tile_load<1>(from + 16, stride * 4);
    tile_load<2>(from + 16 * stride, stride * 4);
    tile_load<3>(from + 16 * stride + 16, stride * 4);
}

inline void store_sums(float* to, long stride) {
    tile_store<0>(to, stride * 4);
    tile_store<1>(to + 16, stride * 4);
    tile_store<2>(to + 16 * stride, stride * 4);
    tile_store<3>(to + 16 * stride + 16, stride * 4);
}

// sums += left (32 rows of 32 elements) x right (32 columns, words as `multiply` wants them)
inline void multiply_add_tiles(const bfloat16* left, long left_stride, const uint32_t* right, long right_stride) {
    tile_load<4>(left, left_stride * 2);
    tile_load<6>(right, right_stride * 4);
    tile_load<7>(right + 16, right_stride * 4);
    tile_load<5>(left + 16 * left_stride, left_stride * 2);
    tile_multiply_add<0, 4, 6>();
    tile_multiply_add<1, 4, 7>();
    tile_multiply_add<2, 5, 6>();
    tile_multiply_add<3, 5, 7>();
}

// Sets the shapes of this thread's tiles, and restores them at its end: oneDNN may remember that it loaded its own shapes, and not
// load them again.
class TileShapes {
   public:
    TileShapes() {
        Shapes own = {1, 0, {}, {}, {}};
        std::fill_n(own.row_bytes, 8, 64);
        std::fill_n(own.rows, 8, 16);
        asm volatile("sttilecfg %0" : "=m"(before));
        asm volatile("ldtilecfg %0" : : "m"(own));
    }
    ~TileShapes() { asm volatile("ldtilecfg %0" : : "m"(before)); }
    TileShapes(const TileShapes&) = delete;

   private:
    struct Shapes {  // as the processor wants them
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } before;
};

// Keys and values of one head, packed.
struct TileKeys {
    const uint32_t *keys, *values;
    long num_keys, head_size;
    float scale;  // times log2(e): weights are powers of 2

    long size(long block) const { return std::clamp(num_keys - block * TILE_KEYS, 0L, TILE_KEYS); }
    long padded_size(long block) const { return (size(block) + 31) / 32 * 32; }
};

// Online softmax of TILE_QUERIES queries of one head: the state after the keys seen so far.
struct TileAttention {
    alignas(64) bfloat16 queries[TILE_QUERIES * MAX_HEAD_SIZE];  // in both, rows of head_size
    alignas(64) float context[TILE_QUERIES * MAX_HEAD_SIZE];     // sum of weight x value
    alignas(64) float total[TILE_QUERIES][16];                   // sum of the weights, by lane
    alignas(64) float maximum[TILE_QUERIES];                     // of the logits, scaled
    alignas(64) float correction[TILE_QUERIES];                  // factor of context and total from the last maximum to this one
    alignas(64) float logits[2][TILE_QUERIES][TILE_KEYS];        // of the block at hand and the next, before the scale
    alignas(64) bfloat16 weights[TILE_QUERIES][TILE_KEYS];
};

// logits of the block for keys j to j + 31 of it
inline void compute_tile_logits(TileAttention& state, const TileKeys& head, long block, long j) {
    const long key = block * TILE_KEYS + j;
    const uint32_t* keys = head.keys + key / KEY_TILE * KEY_TILE * head.head_size / 2 + key % KEY_TILE;
    clear_sums();
    for (long word = 0; word < head.head_size / 2; word += 16)
        multiply_add_tiles(state.queries + 2 * word, head.head_size, keys + word * KEY_TILE, KEY_TILE);
    store_sums(state.logits[block % 2][0] + j, TILE_KEYS);
}

[[gnu::noinline]] inline void update_maxima(TileAttention& state, const TileKeys& head, long block) {
    const long size = head.size(block);
    alignas(64) float largest[TILE_QUERIES];
    for (long r = 0; r < TILE_QUERIES; r++) {
        float* row = state.logits[block % 2][r];
        std::fill_n(row + size, -size & 31, LOWEST);
        __m512 lanes = _mm512_load_ps(row);
        for (long j = 16; j < size; j += 16) lanes = _mm512_max_ps(lanes, _mm512_load_ps(row + j));
        largest[r] = _mm512_reduce_max_ps(lanes);
    }
    for (long r = 0; r < TILE_QUERIES; r += 16) {
        const __m512 before = _mm512_load_ps(state.maximum + r);
        const __m512 now = _mm512_max_ps(before, _mm512_mul_ps(_mm512_load_ps(largest + r), _mm512_set1_ps(head.scale)));
        _mm512_store_ps(state.maximum + r, now);
        _mm512_store_ps(state.correction + r, power_of_two(_mm512_sub_ps(before, now), bfloat16()));
    }
}

inline void compute_weights(TileAttention& state, const TileKeys& head, long block, long r) {
    const float* logits = state.logits[block % 2][r];
    const __m512 scale = _mm512_set1_ps(head.scale), maximum = _mm512_set1_ps(state.maximum[r]);
    __m512 total = _mm512_mul_ps(_mm512_load_ps(state.total[r]), _mm512_set1_ps(state.correction[r]));
    for (long j = 0; j < head.padded_size(block); j += 32) {
        const __m512 weight0 = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(logits + j), scale, maximum), bfloat16());
        const __m512 weight1 = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(logits + j + 16), scale, maximum), bfloat16());
        total = _mm512_add_ps(total, _mm512_add_ps(weight0, weight1));
        store_weights(state.weights[r] + j, weight0, weight1);
    }
    _mm512_store_ps(state.total[r], total);
}

inline void add_tile_values(TileAttention& state, const TileKeys& head, long block) {
    for (long r = 0; r < TILE_QUERIES; r++)
        for (long c = 0; c < head.head_size; c += 16)
            add_to(state.context + r * head.head_size + c, state.correction[r], _mm512_setzero_ps());
    const uint32_t* values = head.values + block * TILE_KEYS / 2 * head.head_size;
    for (long c = 0; c < head.head_size; c += 32) {
        load_sums(state.context + c, head.head_size);
        for (long j = 0; j < head.padded_size(block); j += 32)
            multiply_add_tiles(state.weights[0] + j, TILE_KEYS, values + j / 2 * head.head_size + c, head.head_size);
        store_sums(state.context + c, head.head_size);
    }
}

// The tiles compute the logits of the next block while AVX512 computes the weights of this block: 13 % faster than one after the
// other.
[[gnu::noinline]] inline void attend_by_tiles(TileAttention& state, const TileKeys& head) {
    for (long j = 0; j < head.padded_size(0); j += 32) compute_tile_logits(state, head, 0, j);
    for (long block = 0; head.size(block) > 0; block++) {
        update_maxima(state, head, block);
        constexpr long STEPS = TILE_KEYS / 32, ROWS_A_STEP = TILE_QUERIES / STEPS;
        for (long i = 0; i < STEPS; i++) {
            if (32 * i < head.size(block + 1)) compute_tile_logits(state, head, block + 1, 32 * i);
            for (long r = 0; r < ROWS_A_STEP; r++) compute_weights(state, head, block, i * ROWS_A_STEP + r);
        }
        add_tile_values(state, head, block);
    }
}

int attention_by_tiles(const bfloat16* query, long query_stride, long num_queries, const bfloat16* key, long key_stride,
                       const bfloat16* value, long value_stride, long num_keys, bfloat16* out, long out_stride, long num_heads,
                       long head_size, float scale) {
    const long num_words = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE * head_size / 2;
    auto* keys = static_cast<uint32_t*>(std::aligned_alloc(64, 2 * num_words * sizeof(uint32_t)));
    if (!keys) return 0;
    const TileKeys head{keys, keys + num_words, num_keys, head_size, static_cast<float>(scale * Exponential<bfloat16>::LOG2_E)};
    const TileShapes shapes;
    const FlushDenormals flush;
    for (long h = 0; h < num_heads; h++, query += head_size, key += head_size, value += head_size, out += head_size) {
        pack_keys(keys, key, key_stride, num_keys, head_size / 2);
        pack_values(keys + num_words, value, value_stride, num_keys, head_size);
        for (long row = 0; row < num_queries; row += TILE_QUERIES) {
            TileAttention state;
            for (long r = 0; r < TILE_QUERIES; r++)  // past the last: the last again
                std::copy_n(query + std::min(row + r, num_queries - 1) * query_stride, head_size, state.queries + r * head_size);
            std::fill_n(state.context, TILE_QUERIES * head_size, 0.0f);
            std::fill_n(state.total[0], TILE_QUERIES * 16, 0.0f);
            std::fill_n(state.maximum, TILE_QUERIES, LOWEST);
            attend_by_tiles(state, head);
            for (long r = 0; r < TILE_QUERIES && row + r < num_queries; r++) {
                const __m512 norm = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(state.total[r])));
                const float* context = state.context + r * head_size;
                for (long c = 0; c < head_size; c += 16)
                    store(out + (row + r) * out_stride + c, _mm512_mul_ps(_mm512_load_ps(context + c), norm));
            }
        }
    }
    std::free(keys);
    return 1;
}

// Whether this CPU has the tiles, and Linux (from 5.16 on) lets this process use them. A process must ask for them.
[[gnu::target("no-avx")]] inline bool has_tiles() {
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & AMX_BF16) || !(edx & AMX_TILE)) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

#else

constexpr auto attention_by_tiles = attention<bfloat16>;
inline bool has_tiles() { return false; }

#endif
