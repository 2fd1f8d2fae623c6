// The heavy steps of LightGlue in float32 and bfloat16, for x86-64 CPUs with AVX512. The bfloat16 functions also need
// AVX512-BF16 (AMD from Zen 4, Intel from Cooper Lake). On CPUs with AMX, attention_amx.h has a faster attention.
//
// kernels.py calls these functions and checks types, shapes and strides. Every function works in the thread of its caller and keeps
// nothing between calls. The bits of a row do not depend on the number and the order of the rows. Strides count elements; within a
// row, elements are contiguous. Everything is float32 except storage and the products of attention. Results are exact to the last
// bits for float32 elements, and to more bits than bfloat16 keeps for bfloat16 elements.
//
// A product works on words of 32 bits, each one float32 or two bfloat16: one instruction (32 or 64 FLOP) a cycle on Zen 4.

#include <immintrin.h>

#ifdef __linux__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

using bfloat16 = uint16_t;  // the upper half of a float32

template <class Element>
constexpr bool EXACT = sizeof(Element) == sizeof(float);
template <class Element>
constexpr long PER_WORD = sizeof(uint32_t) / sizeof(Element);

constexpr int ROWS = 6;           // queries at a time: 6 x 4 sums + 4 operands + 1 broadcast fill 29 of the 32 registers
constexpr long KEY_TILE = 64;     // keys at a time: 4 registers of logits
constexpr long KEY_BLOCK = 512;   // keys between two updates of the row maxima: 12 kB of logits stay in the L1 cache
template <class Element>
constexpr long CHAIN = EXACT<Element> ? 128 : KEY_BLOCK;  // keys in one sum of weight x value: sums of sums round less
constexpr long MAX_HEAD_SIZE = 128;
constexpr long MAX_WIDTH = 4096;
constexpr float LOWEST = -1e30f;  // below any logit, yet finite: no NaN from differences

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }

inline __m512 load(const bfloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void store(float* to, __m512 values) { _mm512_storeu_ps(to, values); }

// The instructions of AVX512-BF16 are written as assembly: with a compiler flag for them, the compiler might also use them in the
// float32 functions. Conversions round to nearest even, as in torch.
inline void store(bfloat16* to, __m512 values) {
    __m256i halves;
    asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

inline void store(float* to, __m512 first, __m512 second) {
    _mm512_store_ps(to, first);
    _mm512_store_ps(to + 16, second);
}

inline void store(bfloat16* to, __m512 first, __m512 second) {
    __m512i both;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(second), "v"(first));
    _mm512_store_si512(to, both);
}

template <class Element>
inline __m512 multiply_add(__m512i words0, __m512i words1, __m512 sums) {
    if constexpr (EXACT<Element>) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(words0), _mm512_castsi512_ps(words1), sums);
    } else {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(words0), "v"(words1));
        return sums;
    }
}

template <size_t SIZE>
inline __m512 polynomial(const float (&coefficients)[SIZE], __m512 x) {  // the highest power first
    __m512 sum = _mm512_set1_ps(coefficients[0]);
#pragma GCC unroll 16
    for (size_t i = 1; i < SIZE; i++) sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(coefficients[i]));
    return sum;
}

// 2^t for t <= 0 with a relative error of 7.5e-5.
inline __m512 power_of_two(__m512 t) {
    const __m512 fraction = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);  // t - floor(t)
    // x 2^floor(t), 0 where that underflows
    return _mm512_scalef_ps(polynomial({0.07802451f, 0.22606717f, 0.69583356f, 0.9999252f}, fraction), t);
}

// e^(factor x) for x <= 0 < factor. The relative error is 1e-7 for float32. For bfloat16 it is 7.5e-5, a fiftieth of the rounding
// error that follows.
template <class Element>
struct Exponential {
    explicit Exponential(double factor) : high(factor * LOG2_E), low(factor * LOG2_E - high), lowest(-125 / high) {}

    __m512 operator()(__m512 x) const {
        if constexpr (EXACT<Element>) {  // 2^t by a minimax polynomial of degree 6 for what is left beside the nearest integer
            x = _mm512_max_ps(_mm512_set1_ps(lowest), x);    // from 2^-125 on: the exponent of the result stays in its bits
            const __m512 shift = _mm512_set1_ps(0x1.8p23f);  // a sum with it has the nearest integer in its last bits
            const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(high), shift);
            __m512 fraction = _mm512_fmsub_ps(x, _mm512_set1_ps(high), _mm512_sub_ps(shifted, shift));
            fraction = _mm512_fmadd_ps(x, _mm512_set1_ps(low), fraction);
            const __m512 power = polynomial({1.53533621e-4f, 1.33988747e-3f, 9.61843736e-3f, 5.55033247e-2f, 0.240226479f,
                                             0.693147203f, 1.0f}, fraction);
            const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
            return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(power), exponent));
        } else {
            return power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(high)));
        }
    }

    static constexpr double LOG2_E = 1.4426950408889634;
    float high, low;  // their sum is factor log2(e)
    float lowest;
};

template <int COLUMNS>
inline void clear(__m512 (&sums)[ROWS][COLUMNS]) {  // not by = {}: g++ 12 clears the memory, not the registers
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm512_setzero_ps();
}

// sums[r][c] += left[r] . right[column c], word by word. `right` holds, for each word of a row of left, one of each column.
template <int COLUMNS, class Element>
[[gnu::always_inline]] inline void multiply(__m512 (&sums)[ROWS][COLUMNS], const Element* const (&left)[ROWS],
                                            const uint32_t* right, long stride, long begin, long end) {
    for (long i = begin; i < end; i++) {
        __m512i operands[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) operands[c] = _mm512_load_si512(right + i * stride + 16 * c);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            int32_t word;
            std::memcpy(&word, left[r] + PER_WORD<Element> * i, sizeof(word));
            const __m512i broadcast = _mm512_set1_epi32(word);
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = multiply_add<Element>(broadcast, operands[c], sums[r][c]);
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

// Packs keys as [tile of 64 keys][word of channels][key], as `multiply` needs them for query x key. The last key fills its tile.
template <class Element>
void pack_keys(uint32_t* packed, const Element* keys, long stride, long num_keys, long num_words) {
    for (long first = 0; first < num_keys; first += KEY_TILE, packed += KEY_TILE * num_words)
        for (long j = 0; j < KEY_TILE; j += 16)
            for (long word = 0; word < num_words; word += 16) {
                __m512i rows[16];
                for (long i = 0; i < 16; i++) {
                    const long key = std::min(first + j + i, num_keys - 1);
                    rows[i] = _mm512_loadu_si512(keys + key * stride + word * PER_WORD<Element>);
                }
                transpose(rows);
                for (long i = 0; i < 16; i++) _mm512_store_si512(packed + (word + i) * KEY_TILE + j, rows[i]);
            }
}

// Packs values as [word of keys][channel], as `multiply` needs them for weight x value. Zeros fill the last tile.
template <class Element>
void pack_values(uint32_t* packed, const Element* values, long stride, long num_keys, long head_size) {
    const long padded = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
    const auto upper_halves = [&](long key, long channel) {  // of words; a float32 fills the word
        return key < num_keys ? _mm512_castps_si512(load(values + key * stride + channel)) : _mm512_setzero_si512();
    };
    for (long key = 0; key < padded; key += PER_WORD<Element>)
        for (long channel = 0; channel < head_size; channel += 16, packed += 16) {
            __m512i words = upper_halves(key, channel);
            if constexpr (!EXACT<Element>)
                words = _mm512_or_si512(_mm512_srli_epi32(words, 16), upper_halves(key + 1, channel));
            _mm512_store_si512(packed, words);
        }
}

// Online softmax of ROWS queries of one head: the state after the keys seen so far.
struct Attention {
    alignas(64) float context[ROWS][MAX_HEAD_SIZE];  // sum of weight x value
    alignas(64) float total[ROWS][16];               // sum of the weights, by lane
    float maximum[ROWS];                             // of the logits
    float correction[ROWS];                          // factor of context and total from the last maximum to this one
    // Logits of the current block of keys, before the scale. The weights of a row replace its logits, from the left.
    alignas(64) float logits[ROWS][KEY_BLOCK];
};

// logits[r][j] = query r . key j for 16 COLUMNS keys
template <int COLUMNS, class Element>
inline void compute_tile(float* logits, __m512 (&lane_maximum)[ROWS], const Element* const (&queries)[ROWS],
                         const uint32_t* keys, long num_words) {
    __m512 sums[ROWS][COLUMNS];
    const auto for_all_sums = [&](auto function) {
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++) function(sums[r][c], logits + r * KEY_BLOCK + 16 * c, r);
    };
    clear(sums);
    const long half = EXACT<Element> ? num_words / 2 : 0;  // two sums of half the products round a third less than one
    if (half > 0) {
        multiply(sums, queries, keys, KEY_TILE, 0, half);
        for_all_sums([](__m512& sum, float* logit, int) { _mm512_store_ps(logit, sum); });
        clear(sums);
    }
    multiply(sums, queries, keys, KEY_TILE, half, num_words);
    for_all_sums([&](__m512& sum, float* logit, int r) {
        if (half > 0) sum = _mm512_add_ps(sum, _mm512_load_ps(logit));
        lane_maximum[r] = _mm512_max_ps(lane_maximum[r], sum);
        _mm512_store_ps(logit, sum);
    });
}

// Not inlined, like `add_values`, so that each has all registers: 2 % faster with g++ 12.
template <class Element>
[[gnu::noinline]] void compute_logits(Attention& state, const Element* const (&queries)[ROWS], const uint32_t* keys,
                                      long num_keys, long num_words, float scale) {
    __m512 lane_maximum[ROWS];
    for (auto& lanes : lane_maximum) lanes = _mm512_set1_ps(LOWEST);
    for (long j = 0; j < num_keys; j += KEY_TILE, keys += KEY_TILE * num_words)
        if (num_keys - j > 32)
            compute_tile<4>(state.logits[0] + j, lane_maximum, queries, keys, num_words);
        else
            compute_tile<2>(state.logits[0] + j, lane_maximum, queries, keys, num_words);
    for (int r = 0; r < ROWS; r++) {
        const float maximum = std::max(state.maximum[r], _mm512_reduce_max_ps(lane_maximum[r]));
        state.correction[r] = std::exp((state.maximum[r] - maximum) * scale);
        state.maximum[r] = maximum;
        std::fill_n(state.logits[r] + num_keys, -num_keys & 31, LOWEST);  // up to what `add_values` reads
    }
}

inline void add_to(float* sum, float factor, __m512 values) {  // sum = factor sum + values
    _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(sum), _mm512_set1_ps(factor), values));
}

// Adds weight x value for 16 COLUMNS channels. The FIRST channels also compute the weights, 32 keys at a time between the products,
// so that the additions and conversions of the exponential run beside the products (3 % faster than one after the other).
template <class Element, int COLUMNS, bool FIRST>
[[gnu::noinline]] void add_values(Attention& state, const uint32_t* values, long channel, long num_keys, long head_size,
                                  Exponential<Element> exponential) {
    for (int r = 0; FIRST && r < ROWS; r++) add_to(state.total[r], state.correction[r], _mm512_setzero_ps());
    for (long begin = 0; begin < num_keys; begin += CHAIN<Element>) {
        __m512 sums[ROWS][COLUMNS];
        clear(sums);
        for (long j = begin; j < std::min(begin + CHAIN<Element>, num_keys); j += 32) {
            const Element* weights[ROWS];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                auto* to = reinterpret_cast<Element*>(state.logits[r]) + j;
                weights[r] = to;
                if (!FIRST) continue;
                const __m512 maximum = _mm512_set1_ps(state.maximum[r]);
                const __m512 weight0 = exponential(_mm512_sub_ps(_mm512_load_ps(state.logits[r] + j), maximum));
                const __m512 weight1 = exponential(_mm512_sub_ps(_mm512_load_ps(state.logits[r] + j + 16), maximum));
                _mm512_store_ps(state.total[r], _mm512_add_ps(_mm512_load_ps(state.total[r]), _mm512_add_ps(weight0, weight1)));
                store(to, weight0, weight1);
            }
            multiply(sums, weights, values + j / PER_WORD<Element> * head_size + channel, head_size, 0, 32 / PER_WORD<Element>);
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++)
                add_to(state.context[r] + channel + 16 * c, begin ? 1.0f : state.correction[r], sums[r][c]);
    }
}

template <class Element>
void attend(Attention& state, const Element* const (&queries)[ROWS], const uint32_t* keys, const uint32_t* values, long num_keys,
            long head_size, float scale) {
    const Exponential<Element> exponential(scale);
    for (long first = 0; first < num_keys; first += KEY_BLOCK) {
        const long size = std::min(KEY_BLOCK, num_keys - first), offset = first / PER_WORD<Element> * head_size;
        compute_logits(state, queries, keys + offset, size, head_size / PER_WORD<Element>, scale);
        const uint32_t* block_values = values + offset;
        if (head_size == 32) {
            add_values<Element, 2, true>(state, block_values, 0, size, head_size, exponential);
            continue;
        }
        add_values<Element, 4, true>(state, block_values, 0, size, head_size, exponential);
        if (head_size == 96) add_values<Element, 2, false>(state, block_values, 64, size, head_size, exponential);
        if (head_size == 128) add_values<Element, 4, false>(state, block_values, 64, size, head_size, exponential);
    }
}

// Phi(-z) e^(z^2 / 2) for z >= 0, by a polynomial in t = 1 / (1 + p z). Phi is the normal distribution function. The product with
// e^(-z^2 / 2) keeps its relative precision even if Phi is small.
inline __m512 scaled_tail(__m512 z, float) {  // relative error 1e-7: minimax fit, p = 0.35
    const __m512 divisor = _mm512_fmadd_ps(z, _mm512_set1_ps(0.35f), _mm512_set1_ps(1.0f));
    __m512 t = _mm512_rcp14_ps(divisor);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(divisor, t, _mm512_set1_ps(2.0f)));  // one Newton step: from 14 bits to all
    return polynomial({-0.0291595036f, 0.144038176f, -0.255852735f, 0.159333959f, -0.0232212137f, 0.105555858f, 0.119820534f,
                       0.139863607f, 0.139621302f, 0.0f}, t);
}

inline __m512 scaled_tail(__m512 z, bfloat16) {  // formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions
    // to 14 bits: bfloat16 keeps 8
    const __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(z, _mm512_set1_ps(0.23164189f), _mm512_set1_ps(1.0f)));
    return polynomial({0.5307027145f, -0.7265760135f, 0.7107068705f, -0.142248368f, 0.127414796f, 0.0f}, t);
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|). The rounding of x^2 / 2 leaves Phi(-|x|) a relative error of x^2 / 2 float32 roundings.
template <class Element>
inline __m512 gelu(__m512 x) {
    const __m512 z = _mm512_abs_ps(x), square = _mm512_mul_ps(z, _mm512_mul_ps(z, _mm512_set1_ps(-0.5f)));
    const __m512 tail = _mm512_mul_ps(scaled_tail(z, Element()), Exponential<Element>(1.0)(square));
    return _mm512_fnmadd_ps(z, tail, _mm512_max_ps(x, _mm512_setzero_ps()));
}

// While this object lives, denormal numbers count as 0, in operands and in results. Weights that underflow make many of them, and
// each costs Intel's processors some hundred cycles: logits in the hundreds took 15 (bfloat16) to 40 times (float32) as long.
class FlushDenormals {
   public:
    FlushDenormals() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON | 0x40); }  // 0x40: operands; its name is in another header
    ~FlushDenormals() { _mm_setcsr(before); }
    FlushDenormals(const FlushDenormals&) = delete;

   private:
    const unsigned before = _mm_getcsr();
};

// out = softmax(scale query key^T) value per head. Returns 0 if there is no memory for the packed keys and values.
template <class Element>
int attention(const Element* query, long query_stride, long num_queries, const Element* key, long key_stride,
              const Element* value, long value_stride, long num_keys, Element* out, long out_stride, long num_heads,
              long head_size, float scale) {
    const long num_words = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE * head_size / PER_WORD<Element>;
    auto* keys = static_cast<uint32_t*>(std::aligned_alloc(64, 2 * num_words * sizeof(uint32_t)));
    if (!keys) return 0;
    uint32_t* values = keys + num_words;
    const FlushDenormals flush;
    for (long head = 0; head < num_heads; head++, query += head_size, key += head_size, value += head_size, out += head_size) {
        pack_keys(keys, key, key_stride, num_keys, head_size / PER_WORD<Element>);
        pack_values(values, value, value_stride, num_keys, head_size);
        for (long row = 0; row < num_queries; row += ROWS) {
            const Element* queries[ROWS];  // past the last: the last again
            for (int r = 0; r < ROWS; r++) queries[r] = query + std::min(row + r, num_queries - 1) * query_stride;
            Attention state;
            std::fill_n(state.maximum, ROWS, LOWEST);
            std::fill_n(state.total[0], ROWS * 16, 0.0f);
            for (auto& context : state.context) std::fill_n(context, head_size, 0.0f);
            attend(state, queries, keys, values, num_keys, head_size, scale);
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

#include "attention_amx.h"

// rows += bias
template <class Element>
void add_bias(Element* rows, long stride, long num_rows, long width, const float* bias) {
    for (long i = 0; i < num_rows; i++, rows += stride)
        for (long c = 0; c < width; c += 16) store(rows + c, _mm512_add_ps(load(rows + c), _mm512_loadu_ps(bias + c)));
}

// Rotates the (even | odd) channels of each head of rows + bias by the angles of the row; bias may be null.
template <class Element>
void rotate(Element* rows, long stride, long num_rows, long width, const float* cos_sin, long cos_sin_stride, long head_size,
            const float* bias) {
    const long half = head_size / 2;
    const auto biased = [&](const Element* row, long c) {
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
template <class Element>
void bias_norm_gelu(Element* hidden, long stride, long num_rows, long width, const float* bias, const float* weight,
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
            const __m512 scaled = _mm512_fmadd_ps(normalized, _mm512_loadu_ps(weight + c), _mm512_loadu_ps(norm_bias + c));
            store(hidden + c, gelu<Element>(scaled));
        }
    }
}

// x += update + bias, tokens = x, and logits (num_rows, 2) = x heads^T if heads (2, width) are given. In float32, tokens may be x
// itself.
template <class Element>
void add_update(float* x, long x_stride, const Element* update, long update_stride, Element* tokens, long tokens_stride,
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

// For rows of float32: the log-sum-exp of each row, the maximum and the sum of e^(x - maximum) of each column over all rows seen so
// far, and the entries above the log-sum-exp of their row + log_threshold, in order. Returns the number of these entries, or -1 if
// there is no memory or if there are more than `capacity`.
long scan_rows(const float* rows, long stride, long num_rows, long width, float log_threshold, float* row_lse, float* maximum,
               float* total, int64_t* entry_rows, int64_t* entry_columns, float* entry_values, long capacity) {
    const Exponential<float> exponential(1.0);
    const auto mask_at = [&](long c) { return static_cast<__mmask16>(width - c >= 16 ? 0xffff : (1 << (width - c)) - 1); };
    auto* larger = static_cast<float*>(std::aligned_alloc(64, (width + 15) / 16 * 64));  // maxima with these rows
    if (!larger) return -1;
    std::copy_n(maximum, width, larger);
    for (long r = 0; r < num_rows; r++) {
        const float* row = rows + r * stride;
        __m512 row_maximum = _mm512_set1_ps(LOWEST);
        for (long c = 0; c < width; c += 16) {
            const __m512 values = _mm512_mask_loadu_ps(_mm512_set1_ps(LOWEST), mask_at(c), row + c);
            row_maximum = _mm512_max_ps(row_maximum, values);
            _mm512_store_ps(larger + c, _mm512_max_ps(_mm512_load_ps(larger + c), values));
        }
        row_lse[r] = _mm512_reduce_max_ps(row_maximum);  // for now
    }
    for (long c = 0; c < width; c += 16) {
        const __mmask16 mask = mask_at(c);
        const __m512 now = _mm512_load_ps(larger + c), before = _mm512_maskz_loadu_ps(mask, maximum + c);
        const __m512 factor = exponential(_mm512_sub_ps(before, now));
        _mm512_mask_storeu_ps(total + c, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, total + c), factor));
        _mm512_mask_storeu_ps(maximum + c, mask, now);
    }
    long count = 0;
    for (long r = 0; r < num_rows; r++) {
        const float* row = rows + r * stride;
        const __m512 row_maximum = _mm512_set1_ps(row_lse[r]);
        __m512 sum = _mm512_setzero_ps();
        for (long c = 0; c < width; c += 16) {
            const __mmask16 mask = mask_at(c);
            const __m512 values = _mm512_maskz_loadu_ps(mask, row + c);
            sum = _mm512_mask_add_ps(sum, mask, sum, exponential(_mm512_sub_ps(values, row_maximum)));
            const __m512 weights = exponential(_mm512_sub_ps(values, _mm512_load_ps(larger + c)));
            _mm512_mask_storeu_ps(total + c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, total + c), weights));
        }
        row_lse[r] += std::log(_mm512_reduce_add_ps(sum));
        const __m512 limit = _mm512_set1_ps(row_lse[r] + log_threshold);
        for (long c = 0; c < width; c += 16) {
            const __mmask16 mask = mask_at(c);
            unsigned above = _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, row + c), limit, _CMP_GT_OQ);
            for (; above; above &= above - 1, count++) {
                if (count == capacity) {
                    std::free(larger);
                    return -1;
                }
                entry_rows[count] = r;
                entry_columns[count] = c + __builtin_ctz(above);
                entry_values[count] = row[entry_columns[count]];
            }
        }
    }
    std::free(larger);
    return count;
}

}  // namespace

// Two addresses for ctypes: add_bias_float32, add_bias_bfloat16 and so on.
#define EXPORT(function)                                             \
    decltype(&function<float>) function##_float32 = function<float>; \
    decltype(&function<bfloat16>) function##_bfloat16 = function<bfloat16>;

extern "C" {

EXPORT(attention)
EXPORT(add_bias)
EXPORT(rotate)
EXPORT(bias_norm_gelu)
EXPORT(add_update)
decltype(&attention<bfloat16>) attention_by_tiles_bfloat16 = attention_by_tiles;
decltype(&scan_rows) scan_rows_float32 = scan_rows;

// Which functions this CPU and its operating system can run. 0: none, 1: those for float32, 2: also those for bfloat16, 3: also
// `attention_by_tiles`. This function itself uses none of their instructions.
[[gnu::target("no-avx")]] int supported() {
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!avx512 || !__builtin_cpu_supports("avx512bf16")) return avx512;
    return has_tiles() ? 3 : 2;
}

}  // extern "C"
