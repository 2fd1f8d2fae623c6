// The heavy steps of LightGlue in bfloat16, for x86-64 CPUs with AVX512-BF16 (AMD from Zen 4, Intel from Cooper Lake).
//
// Called through kernels.py, which checks types, shapes and strides. Every function works in the thread of its caller, keeps
// nothing between calls, and computes each row independently of the number and the order of the rows: a row alone gives the
// same bits. Strides are in elements; within a row, elements are contiguous. Reductions and exponentials are in float32.
//
// Throughput in the comments: dot products of bfloat16 pairs at 1 instruction (64 FLOP) a cycle, as on Zen 4.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

using bfloat16 = uint16_t;  // the upper half of a float32

constexpr int ROWS = 6;           // queries at a time: 6 x 4 sums + 4 operands + 1 broadcast fill 29 of the 32 registers
constexpr long KEY_TILE = 64;     // keys at a time: 4 registers of logits
constexpr long KEY_BLOCK = 512;   // keys between two updates of the row maxima: 12 kB of logits stay in the L1 cache
constexpr long MAX_HEAD_SIZE = 128;
constexpr long MAX_WIDTH = 4096;
constexpr float LOWEST = -1e30f;  // below any logit, yet finite: no NaN from differences
constexpr float LOG2_E = 1.44269504f;

inline __m512 load(const bfloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void store(bfloat16* to, __m512 values) {  // rounded to nearest even, as torch does
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
}

// 2^t by a cubic for the fraction, relative error 7.5e-5 (minimax fit): a fiftieth of the rounding to bfloat16 that follows.
inline __m512 exp2(__m512 t) {
    const __m512 fraction = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);  // t - floor(t)
    __m512 power = _mm512_set1_ps(0.07802451f);
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.22606717f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.69583356f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.9999252f));
    return _mm512_scalef_ps(power, t);  // x 2^floor(t), 0 where that underflows
}

// sums[r][c] += left[r] . right[column c], over pairs of elements. `right` holds, for each pair, one 32-bit word per column.
template <int COLUMNS>
[[gnu::always_inline]] inline void multiply(__m512 (&sums)[ROWS][COLUMNS], const bfloat16* const (&left)[ROWS],
                                            const uint32_t* right, long stride, long num_pairs) {
    for (long i = 0; i < num_pairs; i++) {
        __m512i operands[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) operands[c] = _mm512_load_si512(right + i * stride + 16 * c);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            std::memcpy(&pair, left[r] + 2 * i, 4);
            const __m512bh broadcast = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++)
                sums[r][c] = _mm512_dpbf16_ps(sums[r][c], broadcast, reinterpret_cast<__m512bh>(operands[c]));
        }
    }
}

// 16 x 16 words: in step s, blocks of s x s words swap places across the diagonal.
inline void transpose(__m512i (&rows)[16]) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int s = 1; s < 16; s *= 2) {
        const __mmask16 odd = _mm512_test_epi32_mask(lanes, _mm512_set1_epi32(s));
        const __m512i upper = _mm512_mask_add_epi32(lanes, odd, lanes, _mm512_set1_epi32(16 - s));
        const __m512i lower = _mm512_add_epi32(upper, _mm512_set1_epi32(s));
        for (int i = 0; i < 16; i++) {
            if (i & s) continue;
            const __m512i a = rows[i], b = rows[i + s];
            rows[i] = _mm512_permutex2var_epi32(a, upper, b);
            rows[i + s] = _mm512_permutex2var_epi32(a, lower, b);
        }
    }
}

// To [tile of 64 keys][pair of channels][key]: what `multiply` wants for query x key. Keys past the last are zeros.
void pack_keys(uint32_t* packed, const bfloat16* keys, long stride, long num_keys, long head_size) {
    for (long first = 0; first < num_keys; first += KEY_TILE, packed += KEY_TILE * head_size / 2)
        for (long j = 0; j < KEY_TILE; j += 16)
            for (long channel = 0; channel < head_size; channel += 32) {
                __m512i rows[16];
                for (long i = 0; i < 16; i++) {
                    const long key = first + j + i;
                    rows[i] = key < num_keys ? _mm512_loadu_si512(keys + key * stride + channel) : _mm512_setzero_si512();
                }
                transpose(rows);
                for (long i = 0; i < 16; i++) _mm512_store_si512(packed + (channel / 2 + i) * KEY_TILE + j, rows[i]);
            }
}

// To [pair of keys][channel]: what `multiply` wants for weight x value. Values past the last are zeros, up to whole tiles.
void pack_values(uint32_t* packed, const bfloat16* values, long stride, long num_keys, long head_size) {
    const long padded = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
    const auto words = [&](long key, long channel) {
        const bfloat16* from = values + key * stride + channel;
        return key < num_keys ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))
                              : _mm512_setzero_si512();
    };
    for (long key = 0; key < padded; key += 2)
        for (long channel = 0; channel < head_size; channel += 16, packed += 16) {
            const __m512i second = _mm512_slli_epi32(words(key + 1, channel), 16);
            _mm512_store_si512(packed, _mm512_or_si512(words(key, channel), second));
        }
}

// Online softmax of ROWS queries of one head: what is known after the keys seen so far.
struct Attention {
    alignas(64) float context[ROWS][MAX_HEAD_SIZE] = {};  // sum of weight x value
    alignas(64) float total[ROWS][16] = {};               // sum of the weights, by lane
    float maximum[ROWS];                                  // of the logits
    float correction[ROWS];                               // factor of context and total from the last maximum to this one
    alignas(64) float logits[ROWS][KEY_BLOCK];            // of the block of keys at hand, before the scale
    alignas(64) bfloat16 weights[ROWS][KEY_BLOCK];
};

void compute_logits(Attention& state, const bfloat16* const (&queries)[ROWS], const uint32_t* keys, long num_keys,
                    long head_size, float exponent_scale) {
    __m512 lane_maximum[ROWS];
    for (auto& lanes : lane_maximum) lanes = _mm512_set1_ps(LOWEST);
    for (long j = 0; j < num_keys; j += KEY_TILE, keys += KEY_TILE * head_size / 2) {
        __m512 sums[ROWS][4] = {};
        multiply(sums, queries, keys, KEY_TILE, head_size / 2);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const long left = num_keys - j - 16 * c;
                if (left < 16) sums[r][c] = _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), (1 << std::max(left, 0L)) - 1, sums[r][c]);
                lane_maximum[r] = _mm512_max_ps(lane_maximum[r], sums[r][c]);
                _mm512_store_ps(state.logits[r] + j + 16 * c, sums[r][c]);
            }
    }
    for (int r = 0; r < ROWS; r++) {
        const float maximum = std::max(state.maximum[r], _mm512_reduce_max_ps(lane_maximum[r]));
        state.correction[r] = std::exp2((state.maximum[r] - maximum) * exponent_scale);
        state.maximum[r] = maximum;
    }
}

// Adds weight x value for 16 COLUMNS channels; the FIRST channels also bring the weights, computed 32 keys at a time between
// the products, so that the additions and conversions of the exponential run beside them (3 % faster than one after the other).
template <int COLUMNS, bool FIRST>
void add_values(Attention& state, const uint32_t* values, long channel, long num_keys, long head_size, float exponent_scale) {
    const __m512 scale = _mm512_set1_ps(exponent_scale);
    __m512 sums[ROWS][COLUMNS];
    const auto correct = [&](int r, const float* from) {
        return _mm512_mul_ps(_mm512_load_ps(from), _mm512_set1_ps(state.correction[r]));
    };
    for (int r = 0; r < ROWS; r++) {
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = correct(r, state.context[r] + channel + 16 * c);
        if (FIRST) _mm512_store_ps(state.total[r], correct(r, state.total[r]));
    }
    for (long j = 0; j < num_keys; j += 32) {
        const bfloat16* weights[ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            weights[r] = state.weights[r] + j;
            if (!FIRST) continue;
            const __m512 shift = _mm512_set1_ps(-state.maximum[r] * exponent_scale);
            const __m512 weight0 = exp2(_mm512_fmadd_ps(_mm512_load_ps(state.logits[r] + j), scale, shift));
            const __m512 weight1 = exp2(_mm512_fmadd_ps(_mm512_load_ps(state.logits[r] + j + 16), scale, shift));
            _mm512_store_ps(state.total[r], _mm512_add_ps(_mm512_load_ps(state.total[r]), _mm512_add_ps(weight0, weight1)));
            _mm512_store_si512(state.weights[r] + j, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(weight1, weight0)));
        }
        multiply(sums, weights, values + j / 2 * head_size + channel, head_size, 16);
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) _mm512_store_ps(state.context[r] + channel + 16 * c, sums[r][c]);
}

void attend(Attention& state, const bfloat16* const (&queries)[ROWS], const uint32_t* keys, const uint32_t* values, long num_keys,
            long head_size, float exponent_scale) {
    for (long first = 0; first < num_keys; first += KEY_BLOCK) {
        const long size = std::min(KEY_BLOCK, num_keys - first), padded = (size + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
        const uint32_t* block_values = values + first / 2 * head_size;
        compute_logits(state, queries, keys + first / 2 * head_size, size, head_size, exponent_scale);
        if (head_size == 32) {
            add_values<2, true>(state, block_values, 0, padded, head_size, exponent_scale);
            continue;
        }
        add_values<4, true>(state, block_values, 0, padded, head_size, exponent_scale);
        if (head_size == 96) add_values<2, false>(state, block_values, 64, padded, head_size, exponent_scale);
        if (head_size == 128) add_values<4, false>(state, block_values, 64, padded, head_size, exponent_scale);
    }
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), with Phi(-z) = erfc(z / sqrt 2) / 2 by formula 7.1.26 of Abramowitz and Stegun,
// Handbook of Mathematical Functions, whose product form keeps its relative precision where Phi is small.
inline __m512 gelu(__m512 x) {
    const __m512 z = _mm512_abs_ps(x);
    // 1 / (1 + p z / sqrt 2), to 14 bits: bfloat16 keeps 8
    const __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(z, _mm512_set1_ps(0.23164189f), _mm512_set1_ps(1.0f)));
    __m512 tail = _mm512_set1_ps(0.5f * 1.061405429f);
    for (const float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
        tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(0.5f * coefficient));
    const __m512 gaussian = exp2(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-0.5f * LOG2_E)));  // e^(-z^2 / 2)
    return _mm512_fnmadd_ps(_mm512_mul_ps(z, tail), gaussian, _mm512_max_ps(x, _mm512_setzero_ps()));
}

}  // namespace

extern "C" {

// Whether this CPU and its operating system run the functions below. Itself without their instructions.
[[gnu::target("no-avx")]] int is_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

// out = softmax(scale query key^T) value per head. Returns 0 where the memory for the packed keys and values is not to be had.
int attention(const bfloat16* query, long query_stride, long num_queries, const bfloat16* key, long key_stride,
              const bfloat16* value, long value_stride, long num_keys, bfloat16* out, long out_stride, long num_heads,
              long head_size, float scale) {
    const long num_words = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE * head_size / 2;
    auto* keys = static_cast<uint32_t*>(std::aligned_alloc(64, 2 * num_words * sizeof(uint32_t)));
    if (!keys) return 0;
    uint32_t* values = keys + num_words;
    for (long head = 0; head < num_heads; head++, query += head_size, key += head_size, value += head_size, out += head_size) {
        pack_keys(keys, key, key_stride, num_keys, head_size);
        pack_values(values, value, value_stride, num_keys, head_size);
        for (long row = 0; row < num_queries; row += ROWS) {
            const bfloat16* queries[ROWS];  // past the last: the last again
            for (int r = 0; r < ROWS; r++) queries[r] = query + std::min(row + r, num_queries - 1) * query_stride;
            Attention state;
            std::fill_n(state.maximum, ROWS, LOWEST);
            attend(state, queries, keys, values, num_keys, head_size, scale * LOG2_E);
            for (int r = 0; r < ROWS && row + r < num_queries; r++) {
                const __m512 norm = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(state.total[r])));
                for (long c = 0; c < head_size; c += 16)
                    store(out + (row + r) * out_stride + c, _mm512_mul_ps(_mm512_load_ps(state.context[r] + c), norm));
            }
        }
    }
    std::free(keys);
    return 1;
}

// rows += bias
void add_bias(bfloat16* rows, long stride, long num_rows, long width, const float* bias) {
    for (long i = 0; i < num_rows; i++, rows += stride)
        for (long c = 0; c < width; c += 16) store(rows + c, _mm512_add_ps(load(rows + c), _mm512_loadu_ps(bias + c)));
}

// Each head's (even | odd) channels of rows + bias (bias may be null) turned by the angles of the row.
void rotate(bfloat16* rows, long stride, long num_rows, long width, const float* cos_sin, long cos_sin_stride, long head_size,
            const float* bias) {
    const long half = head_size / 2;
    const auto biased = [&](const bfloat16* row, long c) {
        return bias ? _mm512_add_ps(load(row + c), _mm512_loadu_ps(bias + c)) : load(row + c);
    };
    for (long i = 0; i < num_rows; i++, rows += stride, cos_sin += cos_sin_stride)
        for (long k = 0; k < half; k += 16) {
            const __m512 cos = _mm512_loadu_ps(cos_sin + k), sin = _mm512_loadu_ps(cos_sin + half + k);
            for (long c = k; c < width; c += head_size) {
                const __m512 even = biased(rows, c), odd = biased(rows, c + half);
                store(rows + c, _mm512_fmsub_ps(even, cos, _mm512_mul_ps(odd, sin)));
                store(rows + c + half, _mm512_fmadd_ps(odd, cos, _mm512_mul_ps(even, sin)));
            }
        }
}

// hidden = gelu(layer_norm(hidden + bias) weight + norm_bias), variance about the mean in a second pass
void bias_norm_gelu(bfloat16* hidden, long stride, long num_rows, long width, const float* bias, const float* weight,
                    const float* norm_bias) {
    alignas(64) float row[MAX_WIDTH];
    for (long i = 0; i < num_rows; i++, hidden += stride) {
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (long c = 0; c < width; c += 16) {
            const __m512 values = _mm512_add_ps(load(hidden + c), _mm512_loadu_ps(bias + c));
            _mm512_store_ps(row + c, values);
            sum = _mm512_add_ps(sum, values);
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
        for (long c = 0; c < width; c += 16) {
            const __m512 centred = _mm512_sub_ps(_mm512_load_ps(row + c), mean);
            squares = _mm512_fmadd_ps(centred, centred, squares);
        }
        const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + 1e-5f));
        for (long c = 0; c < width; c += 16) {
            const __m512 normalized = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(row + c), mean), inverse);
            store(hidden + c, gelu(_mm512_fmadd_ps(normalized, _mm512_loadu_ps(weight + c), _mm512_loadu_ps(norm_bias + c))));
        }
    }
}

// x += update + bias, tokens = x, and where heads (2, width) are given, logits (num_rows, 2) = x heads^T
void add_update(float* x, long x_stride, const bfloat16* update, long update_stride, bfloat16* tokens, long tokens_stride,
                long num_rows, long width, const float* bias, const float* heads, float* logits) {
    for (long i = 0; i < num_rows; i++, x += x_stride, update += update_stride, tokens += tokens_stride) {
        __m512 sum0 = _mm512_setzero_ps(), sum1 = _mm512_setzero_ps();
        for (long c = 0; c < width; c += 16) {
            const __m512 change = _mm512_add_ps(load(update + c), _mm512_loadu_ps(bias + c));
            const __m512 values = _mm512_add_ps(_mm512_loadu_ps(x + c), change);
            _mm512_storeu_ps(x + c, values);
            store(tokens + c, values);
            if (!heads) continue;
            sum0 = _mm512_fmadd_ps(values, _mm512_loadu_ps(heads + c), sum0);
            sum1 = _mm512_fmadd_ps(values, _mm512_loadu_ps(heads + width + c), sum1);
        }
        if (!heads) continue;
        logits[2 * i] = _mm512_reduce_add_ps(sum0);
        logits[2 * i + 1] = _mm512_reduce_add_ps(sum1);
    }
}

}  // extern "C"
