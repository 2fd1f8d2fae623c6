// The heavy steps of LightGlue and the search for nearest neighbours (nearest.h), both in float32 and bfloat16, and the convolutions
// of SuperPoint (first_layer.h, winograd.h), for x86-64 CPUs. This file is compiled once for AVX512 and once for AVX2
// (vectors_avx512.h, vectors_avx2.h). The bfloat16 functions need AVX512-BF16 (AMD from Zen 4, Intel from Cooper Lake). On CPUs with
// AMX, attention_amx.h has a faster attention.
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

#ifdef __AVX512F__
#include "vectors_avx512.h"
#else
#include "vectors_avx2.h"
#endif

template <class Element>
constexpr bool EXACT = sizeof(Element) == sizeof(float);
template <class Element>
constexpr long PER_WORD = sizeof(uint32_t) / sizeof(Element);

constexpr int ROWS = 6;           // queries at a time
constexpr long STRIP = MOST_COLUMNS * LANES;  // keys, or channels of values, at a time
constexpr long KEY_TILE = 64;     // keys packed together
constexpr long KEY_BLOCK = 512;   // keys between two updates of the row maxima: 12 kB of logits stay in the L1 cache
template <class Element>
constexpr long CHAIN = EXACT<Element> ? 128 : KEY_BLOCK;  // keys in one sum of weight x value: sums of sums round less
constexpr long MAX_HEAD_SIZE = 128;
constexpr long MAX_WIDTH = 4096;
constexpr float LOWEST = -1e30f;  // below any logit, yet finite: no NaN from differences

template <size_t SIZE>
inline Vector polynomial(const float (&coefficients)[SIZE], Vector x) {  // the highest power first
    Vector sum = all(coefficients[0]);
#pragma GCC unroll 16
    for (size_t i = 1; i < SIZE; i++) sum = fused(sum, x, all(coefficients[i]));
    return sum;
}

#ifdef __AVX512F__
// 2^t for t <= 0 with a relative error of 7.5e-5.
inline Vector power_of_two(Vector t, bfloat16) {
    return times_power_of_two_below(polynomial({0.07802451f, 0.22606717f, 0.69583356f, 0.9999252f}, above_integer(t)), t);
}
#endif

// e^(factor x) for x <= 0 < factor. The relative error is 1e-7 for float32. For bfloat16 it is 7.5e-5, a fiftieth of the rounding
// error that follows.
template <class Element>
struct Exponential {
    explicit Exponential(double factor) : high(factor * LOG2_E), low(factor * LOG2_E - high), lowest(-125 / high) {}

    Vector operator()(Vector x) const {
        if constexpr (EXACT<Element>) {  // 2^t by a minimax polynomial of degree 6 for what is left beside the nearest integer
            x = maximum_of(all(lowest), x);    // from 2^-125 on: the exponent of the result stays in its bits
            const Vector shift = all(0x1.8p23f);  // a sum with it has the nearest integer in its last bits
            const Vector shifted = fused(x, all(high), shift);
            Vector fraction = fused(x, all(high), shift - shifted);
            fraction = fused(x, all(low), fraction);
            const Vector power = polynomial({1.53533621e-4f, 1.33988747e-3f, 9.61843736e-3f, 5.55033247e-2f, 0.240226479f,
                                             0.693147203f, 1.0f}, fraction);
            return times_power_of_two(power, shifted);  // `shifted` has the integer in its last bits
        } else {
            return power_of_two(x * all(high), Element());
        }
    }

    static constexpr double LOG2_E = 1.4426950408889634;
    float high, low;  // their sum is factor log2(e)
    float lowest;
};

template <int COLUMNS>
inline void clear(Vector (&sums)[ROWS][COLUMNS]) {  // not by = {}: g++ 12 clears the memory, not the registers
    for (auto& row : sums)
        for (auto& sum : row) sum = zeros();
}

// sums[r][c] += left[r] . right[column c], word by word. `right` holds, for each word of a row of left, one of each column.
template <int COLUMNS, class Element>
[[gnu::always_inline]] inline void multiply(Vector (&sums)[ROWS][COLUMNS], const Element* const (&left)[ROWS],
                                            const uint32_t* right, long stride, long begin, long end) {
    for (long i = begin; i < end; i++) {
        Words operands[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) operands[c] = load_aligned(right + i * stride + LANES * c);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            int32_t word;
            std::memcpy(&word, left[r] + PER_WORD<Element> * i, sizeof(word));
            const Words broadcast = all(word);
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = multiply_add(broadcast, operands[c], sums[r][c], Element());
        }
    }
}

// Packs keys as [tile of 64 keys][word of channels][key], as `multiply` needs them for query x key. The last key fills its tile.
template <class Element>
void pack_keys(uint32_t* packed, const Element* keys, long stride, long num_keys, long num_words) {
    for (long first = 0; first < num_keys; first += KEY_TILE, packed += KEY_TILE * num_words)
        for (long j = 0; j < KEY_TILE; j += LANES)
            for (long word = 0; word < num_words; word += LANES) {
                Words rows[LANES];
                for (long i = 0; i < LANES; i++) {
                    const long key = std::min(first + j + i, num_keys - 1);
                    rows[i] = load_words(keys + key * stride + word * PER_WORD<Element>);
                }
                transpose(rows);
                for (long i = 0; i < LANES; i++) store_aligned(packed + (word + i) * KEY_TILE + j, rows[i]);
            }
}

// Packs values as [word of keys][channel], as `multiply` needs them for weight x value. Zeros fill the last tile.
template <class Element>
void pack_values(uint32_t* packed, const Element* values, long stride, long num_keys, long head_size) {
    const long padded = (num_keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
    const auto upper_halves = [&](long key, long channel) {  // of words; a float32 fills the word
        return key < num_keys ? as_words(load(values + key * stride + channel)) : as_words(zeros());
    };
    for (long key = 0; key < padded; key += PER_WORD<Element>)
        for (long channel = 0; channel < head_size; channel += LANES, packed += LANES) {
            Words words = upper_halves(key, channel);
            if constexpr (!EXACT<Element>)
                words = joined_halves(words, upper_halves(key + 1, channel));
            store_aligned(packed, words);
        }
}

// Online softmax of ROWS queries of one head: the state after the keys seen so far.
struct Attention {
    alignas(64) float context[ROWS][MAX_HEAD_SIZE];  // sum of weight x value
    alignas(64) float total[ROWS][LANES];            // sum of the weights, by lane
    float maximum[ROWS];                             // of the logits
    float correction[ROWS];                          // factor of context and total from the last maximum to this one
    // Logits of the current block of keys, before the scale. The weights of a row replace its logits, from the left.
    alignas(64) float logits[ROWS][KEY_BLOCK];
};

inline void start(Attention& state, long head_size) {
    std::fill_n(state.maximum, ROWS, LOWEST);
    std::fill_n(state.total[0], ROWS * LANES, 0.0f);
    for (auto& context : state.context) std::fill_n(context, head_size, 0.0f);
}

// The new maxima after the logits of a block.
inline void end_logits(Attention& state, const Vector (&lane_maximum)[ROWS], long num_keys, float scale) {
    for (int r = 0; r < ROWS; r++) {
        const float maximum = std::max(state.maximum[r], largest_of(lane_maximum[r]));
        state.correction[r] = std::exp((state.maximum[r] - maximum) * scale);
        state.maximum[r] = maximum;
        std::fill_n(state.logits[r] + num_keys, -num_keys & 31, LOWEST);  // up to what `add_values` reads
    }
}

// logits[r][j] = query r . key j for LANES COLUMNS keys
template <int COLUMNS, class Element>
inline void compute_tile(float* logits, Vector (&lane_maximum)[ROWS], const Element* const (&queries)[ROWS],
                         const uint32_t* keys, long num_words) {
    Vector sums[ROWS][COLUMNS];
    const auto for_all_sums = [&](auto function) {
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++) function(sums[r][c], logits + r * KEY_BLOCK + LANES * c, r);
    };
    clear(sums);
    const long half = EXACT<Element> ? num_words / 2 : 0;  // two sums of half the products round a third less than one
    if (half > 0) {
        multiply(sums, queries, keys, KEY_TILE, 0, half);
        for_all_sums([](Vector& sum, float* logit, int) { store_aligned(logit, sum); });
        clear(sums);
    }
    multiply(sums, queries, keys, KEY_TILE, half, num_words);
    for_all_sums([&](Vector& sum, float* logit, int r) {
        if (half > 0) sum = sum + load_aligned(logit);
        lane_maximum[r] = maximum_of(lane_maximum[r], sum);
        store_aligned(logit, sum);
    });
}

// Not inlined, like `add_values`, so that each has all registers: 2 % faster with g++ 12.
template <class Element>
[[gnu::noinline]] void compute_logits(Attention& state, const Element* const (&queries)[ROWS], const uint32_t* keys,
                                      long num_keys, long num_words, float scale) {
    Vector lane_maximum[ROWS];
    for (auto& lanes : lane_maximum) lanes = all(LOWEST);
    for (long j = 0; j < num_keys; j += KEY_TILE, keys += KEY_TILE * num_words)
        for (long i = 0; i < std::min(KEY_TILE, num_keys - j); i += STRIP) {
            if (num_keys - j - i > STRIP / 2)
                compute_tile<MOST_COLUMNS>(state.logits[0] + j + i, lane_maximum, queries, keys + i, num_words);
            else
                compute_tile<MOST_COLUMNS / 2>(state.logits[0] + j + i, lane_maximum, queries, keys + i, num_words);
        }
    end_logits(state, lane_maximum, num_keys, scale);
}

inline void add_to(float* sum, float factor, Vector values) {  // sum = factor sum + values
    store_aligned(sum, fused(load_aligned(sum), all(factor), values));
}

// The weights of 2 LANES keys from j on replace their logits.
template <class Element>
[[gnu::always_inline]] inline void compute_weights(Attention& state, int r, long j, const Exponential<Element>& exponential) {
    const float* logits = state.logits[r] + j;
    const Vector maximum = all(state.maximum[r]);
    const Vector weight0 = exponential(load_aligned(logits) - maximum);
    const Vector weight1 = exponential(load_aligned(logits + LANES) - maximum);
    store_aligned(state.total[r], load_aligned(state.total[r]) + (weight0 + weight1));
    store_weights(reinterpret_cast<Element*>(state.logits[r]) + j, weight0, weight1);
}

// Adds weight x value for LANES COLUMNS channels. The FIRST channels also compute the weights. With the many registers of AVX512
// that is done 32 keys at a time between the products, so that the additions and conversions of the exponential run beside the
// products (3 % faster than one after the other).
template <class Element, int COLUMNS, bool FIRST>
[[gnu::noinline]] void add_values(Attention& state, const uint32_t* values, long channel, long num_keys, long head_size,
                                  Exponential<Element> exponential) {
    constexpr bool BETWEEN = FIRST && LANES == 16;
    for (int r = 0; FIRST && r < ROWS; r++) add_to(state.total[r], state.correction[r], zeros());
    for (int r = 0; FIRST && !BETWEEN && r < ROWS; r++)
        for (long j = 0; j < num_keys; j += 2 * LANES) compute_weights(state, r, j, exponential);
    for (long begin = 0; begin < num_keys; begin += CHAIN<Element>) {
        Vector sums[ROWS][COLUMNS];
        clear(sums);
        for (long j = begin; j < std::min(begin + CHAIN<Element>, num_keys); j += 32) {
            const Element* weights[ROWS];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                weights[r] = reinterpret_cast<Element*>(state.logits[r]) + j;
                if (BETWEEN) compute_weights(state, r, j, exponential);
            }
            multiply(sums, weights, values + j / PER_WORD<Element> * head_size + channel, head_size, 0, 32 / PER_WORD<Element>);
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++)
                add_to(state.context[r] + channel + LANES * c, begin ? 1.0f : state.correction[r], sums[r][c]);
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
        if (head_size < STRIP) {  // 32 channels with AVX512
            add_values<Element, MOST_COLUMNS / 2, true>(state, block_values, 0, size, head_size, exponential);
            continue;
        }
        add_values<Element, MOST_COLUMNS, true>(state, block_values, 0, size, head_size, exponential);
        long channel = STRIP;
        for (; channel + STRIP <= head_size; channel += STRIP)
            add_values<Element, MOST_COLUMNS, false>(state, block_values, channel, size, head_size, exponential);
        if (channel < head_size)  // 96 channels with AVX512
            add_values<Element, MOST_COLUMNS / 2, false>(state, block_values, channel, size, head_size, exponential);
    }
}

// Phi(-z) e^(z^2 / 2) for z >= 0, by a polynomial in t = 1 / (1 + p z). Phi is the normal distribution function. The product with
// e^(-z^2 / 2) keeps its relative precision even if Phi is small.
inline Vector scaled_tail(Vector z, float) {  // relative error 1e-7: minimax fit, p = 0.35
    const Vector t = reciprocal(fused(z, all(0.35f), all(1.0f)));
    return polynomial({-0.0291595036f, 0.144038176f, -0.255852735f, 0.159333959f, -0.0232212137f, 0.105555858f, 0.119820534f,
                       0.139863607f, 0.139621302f, 0.0f}, t);
}

#ifdef __AVX512F__
inline Vector scaled_tail(Vector z, bfloat16) {  // formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions
    const Vector t = rough_reciprocal(fused(z, all(0.23164189f), all(1.0f)));
    return polynomial({0.5307027145f, -0.7265760135f, 0.7107068705f, -0.142248368f, 0.127414796f, 0.0f}, t);
}
#endif

// x Phi(x) = max(x, 0) - |x| Phi(-|x|). The rounding of x^2 / 2 leaves Phi(-|x|) a relative error of x^2 / 2 float32 roundings.
template <class Element>
inline Vector gelu(Vector x) {
    const Vector z = absolute(x), square = z * (z * all(-0.5f));
    const Vector tail = scaled_tail(z, Element()) * Exponential<Element>(1.0)(square);
    return fused(-z, tail, maximum_of(x, zeros()));
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
            start(state, head_size);
            attend(state, queries, keys, values, num_keys, head_size, scale);
            for (int r = 0; r < ROWS && row + r < num_queries; r++) {
                const Vector norm = all(1.0f / sum_of(load_aligned(state.total[r])));
                for (long c = 0; c < head_size; c += LANES)
                    store(out + (row + r) * out_stride + c, load_aligned(state.context[r] + c) * norm);
            }
        }
    }
    std::free(keys);
    return 1;
}

#ifdef __AVX512F__
#include "attention_amx.h"
#endif

#include "first_layer.h"
#include "integers.h"
#include "winograd.h"
#include "nearest.h"

// rows += bias
template <class Element>
void add_bias(Element* rows, long stride, long num_rows, long width, const float* bias) {
    for (long i = 0; i < num_rows; i++, rows += stride)
        for (long c = 0; c < width; c += LANES) store(rows + c, load(rows + c) + load(bias + c));
}

// Rotates the (even | odd) channels of each head of rows + bias by the angles of the row; bias may be null.
template <class Element>
void rotate(Element* rows, long stride, long num_rows, long width, const float* cos_sin, long cos_sin_stride, long head_size,
            const float* bias) {
    const long half = head_size / 2;
    const auto biased = [&](const Element* row, long c) {
        return bias ? load(row + c) + load(bias + c) : load(row + c);
    };
    for (long i = 0; i < num_rows; i++, rows += stride, cos_sin += cos_sin_stride)
        for (long k = 0; k < half; k += LANES) {
            const Vector cos = load(cos_sin + k), sin = load(cos_sin + half + k);
            for (long c = k; c < width; c += head_size) {
                const Vector even = biased(rows, c), odd = biased(rows, c + half);
                store(rows + c, fused(even, cos, -(odd * sin)));
                store(rows + c + half, fused(odd, cos, even * sin));
            }
        }
}

// hidden = gelu(layer_norm(hidden + bias) weight + norm_bias), variance about the mean in a second pass
template <class Element>
void bias_norm_gelu(Element* hidden, long stride, long num_rows, long width, const float* bias, const float* weight,
                    const float* norm_bias) {
    alignas(64) float row[MAX_WIDTH];
    for (long i = 0; i < num_rows; i++, hidden += stride) {
        Vector sum = zeros(), squares = zeros();
        for (long c = 0; c < width; c += LANES) {
            const Vector values = load(hidden + c) + load(bias + c);
            store_aligned(row + c, values);
            sum = sum + values;
        }
        const Vector mean = all(sum_of(sum) / width);
        for (long c = 0; c < width; c += LANES) {
            const Vector centred = load_aligned(row + c) - mean;
            squares = fused(centred, centred, squares);
        }
        const Vector inverse = all(1.0f / std::sqrt(sum_of(squares) / width + 1e-5f));
        for (long c = 0; c < width; c += LANES) {
            const Vector normalized = (load_aligned(row + c) - mean) * inverse;
            const Vector scaled = fused(normalized, load(weight + c), load(norm_bias + c));
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
        Vector sum0 = zeros(), sum1 = zeros();
        for (long c = 0; c < width; c += LANES) {
            const Vector change = load(update + c) + load(bias + c);
            const Vector values = load(x + c) + change;
            store(x + c, values);
            store(tokens + c, values);
            if (!heads) continue;
            sum0 = fused(values, load(heads + c), sum0);
            sum1 = fused(values, load(heads + width + c), sum1);
        }
        if (!heads) continue;
        logits[2 * i] = sum_of(sum0);
        logits[2 * i + 1] = sum_of(sum1);
    }
}

// For rows of float32: the log-sum-exp of each row, the maximum and the sum of e^(x - maximum) of each column over all rows seen so
// far, and the entries above the log-sum-exp of their row + log_threshold, in order. Returns the number of these entries, or -1 if
// there is no memory or if there are more than `capacity`.
long scan_rows(const float* rows, long stride, long num_rows, long width, float log_threshold, float* row_lse, float* maximum,
               float* total, int64_t* entry_rows, int64_t* entry_columns, float* entry_values, long capacity) {
    const Exponential<float> exponential(1.0);
    const auto mask_at = [&](long c) { return first_lanes(width - c); };
    auto* larger = static_cast<float*>(std::aligned_alloc(64, (width + 15) / 16 * 64));  // maxima with these rows
    if (!larger) return -1;
    std::copy_n(maximum, width, larger);
    for (long r = 0; r < num_rows; r++) {
        const float* row = rows + r * stride;
        Vector row_maximum = all(LOWEST);
        for (long c = 0; c < width; c += LANES) {
            const Vector values = select(mask_at(c), load(mask_at(c), row + c), all(LOWEST));
            row_maximum = maximum_of(row_maximum, values);
            store_aligned(larger + c, maximum_of(load_aligned(larger + c), values));
        }
        row_lse[r] = largest_of(row_maximum);  // for now
    }
    for (long c = 0; c < width; c += LANES) {
        const Mask mask = mask_at(c);
        const Vector now = load_aligned(larger + c), before = load(mask, maximum + c);
        const Vector factor = exponential(before - now);
        store(total + c, mask, load(mask, total + c) * factor);
        store(maximum + c, mask, now);
    }
    long count = 0;
    for (long r = 0; r < num_rows; r++) {
        const float* row = rows + r * stride;
        const Vector row_maximum = all(row_lse[r]);
        Vector sum = zeros();
        for (long c = 0; c < width; c += LANES) {
            const Mask mask = mask_at(c);
            const Vector values = load(mask, row + c);
            sum = sum + select(mask, exponential(values - row_maximum), zeros());
            const Vector weights = exponential(values - load_aligned(larger + c));
            store(total + c, mask, load(mask, total + c) + weights);
        }
        row_lse[r] += std::log(sum_of(sum));
        const Vector limit = all(row_lse[r] + log_threshold);
        for (long c = 0; c < width; c += LANES) {
            const Mask mask = mask_at(c);
            unsigned above = bits_above(mask, load(mask, row + c), limit);
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

// Addresses for ctypes: add_bias_float32, add_bias_bfloat16 and so on.
#ifdef __AVX512F__
#define EXPORT(function)                                             \
    decltype(&function<float>) function##_float32 = function<float>; \
    decltype(&function<bfloat16>) function##_bfloat16 = function<bfloat16>;
#else
#define EXPORT(function) decltype(&function<float>) function##_float32 = function<float>;
#endif

extern "C" {

EXPORT(attention)
EXPORT(add_bias)
EXPORT(rotate)
EXPORT(bias_norm_gelu)
EXPORT(add_update)
EXPORT(two_nearest)
decltype(&scan_rows) scan_rows_float32 = scan_rows;
decltype(&first_layer<float>) first_layer_float32 = first_layer<float>;
decltype(&first_layer<uint8_t>) first_layer_uint8 = first_layer<uint8_t>;
decltype(&winograd) winograd_float32 = winograd;
decltype(&winograd_of_integers<uint8_t>) winograd_uint8 = winograd_of_integers<uint8_t>;
decltype(&winograd_of_integers<float>) winograd_values_uint8 = winograd_of_integers<float>;
decltype(&attention_by_integers) attention_by_integers_float32 = attention_by_integers;
decltype(&product) product_float32 = product;
extern const long strip = STRIP;  // results that `winograd` computes together

// Which functions this CPU and its operating system can run. 0: none, 1: those for float32, 2: also those for bfloat16, 3: also
// `attention_by_tiles`. This function itself uses none of their instructions.
#ifdef __AVX512F__
decltype(&attention<bfloat16>) attention_by_tiles_bfloat16 = attention_by_tiles;

[[gnu::target("no-avx")]] int supported() {
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!avx512 || !__builtin_cpu_supports("avx512bf16")) return avx512;
    return has_tiles() ? 3 : 2;
}
#else
[[gnu::target("no-avx")]] int supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

}  // extern "C"
