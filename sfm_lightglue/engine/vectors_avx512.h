// Vectors of 16 float32 for kernels.cpp, by AVX512; and the vectors of bfloat16, which also need AVX512-BF16. vectors_avx2.h has
// the same names for AVX2.

using Vector = __m512;
using Words = __m512i;  // of 32 bits, each one float32 or two bfloat16
using Mask = __mmask16;

constexpr long LANES = 16;
constexpr int MOST_COLUMNS = 4;  // vectors beside each other in a product: 6 x 4 sums + 4 operands + 1 broadcast fill 29 of 32 registers

inline Vector zeros() { return _mm512_setzero_ps(); }
inline Vector all(float value) { return _mm512_set1_ps(value); }
inline Words all(int32_t word) { return _mm512_set1_epi32(word); }
inline Vector as_floats(Words words) { return _mm512_castsi512_ps(words); }
inline Words as_words(Vector values) { return _mm512_castps_si512(values); }
inline Vector fused(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c, rounded once
inline Vector maximum_of(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector minimum_of(Vector a, Vector b) { return _mm512_min_ps(a, b); }
inline Vector absolute(Vector x) { return _mm512_abs_ps(x); }
inline float sum_of(Vector x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Vector x) { return _mm512_reduce_max_ps(x); }

inline Vector reciprocal(Vector x) {
    const Vector t = _mm512_rcp14_ps(x);
    return t * fused(-x, t, all(2.0f));  // one Newton step: from 14 bits to all
}

// x 2^n, where `shifted` has n in its last bits
inline Vector times_power_of_two(Vector x, Vector shifted) {
    return as_floats(_mm512_add_epi32(as_words(x), _mm512_slli_epi32(as_words(shifted), 23)));
}

inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
inline Vector load_aligned(const float* from) { return _mm512_load_ps(from); }
inline Words load_aligned(const uint32_t* from) { return _mm512_load_si512(from); }
inline Words load_words(const void* from) { return _mm512_loadu_si512(from); }
inline void store(float* to, Vector values) { _mm512_storeu_ps(to, values); }
// The nearest integers, cut to 0..255
inline void store_bytes(uint8_t* to, Vector values) {
    const Words integers = _mm512_cvtps_epi32(maximum_of(values, zeros()));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(integers));
}
inline void store_aligned(float* to, Vector values) { _mm512_store_ps(to, values); }
inline void store_aligned(uint32_t* to, Words words) { _mm512_store_si512(to, words); }

inline Mask first_lanes(long count) { return static_cast<Mask>(count >= LANES ? 0xffff : (1 << count) - 1); }
inline Vector load(Mask mask, const float* from) { return _mm512_maskz_loadu_ps(mask, from); }
inline void store(float* to, Mask mask, Vector values) { _mm512_mask_storeu_ps(to, mask, values); }
inline Vector select(Mask mask, Vector values, Vector otherwise) { return _mm512_mask_mov_ps(otherwise, mask, values); }
inline Mask above(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline unsigned bits_above(Mask mask, Vector a, Vector b) { return _mm512_mask_cmp_ps_mask(mask, a, b, _CMP_GT_OQ); }

// In step s, blocks of s x s words swap places across the diagonal.
inline void transpose(Words (&rows)[LANES]) {
    const Words lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int s = 1; s < 16; s *= 2) {
        const Mask odd = _mm512_test_epi32_mask(lanes, all(s));
        const Words upper = _mm512_mask_add_epi32(lanes, odd, lanes, all(16 - s));
        const Words lower = _mm512_add_epi32(upper, all(s));
        for (int i = 0; i < 16; i++) {
            if (i & s) continue;
            const Words a = rows[i], b = rows[i + s];
            rows[i] = _mm512_permutex2var_epi32(a, upper, b);
            rows[i + s] = _mm512_permutex2var_epi32(a, lower, b);
        }
    }
}

inline Vector multiply_add(Words words0, Words words1, Vector sums, float) {
    return fused(as_floats(words0), as_floats(words1), sums);
}

inline void store_weights(float* to, Vector first, Vector second) {
    store_aligned(to, first);
    store_aligned(to + LANES, second);
}

// Vectors of bfloat16. The instructions of AVX512-BF16 are written as assembly: with a compiler flag for them, the compiler might
// also use them in the float32 functions. Conversions round to nearest even, as in torch.

inline Vector load(const bfloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void store(bfloat16* to, Vector values) {
    __m256i halves;
    asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

inline void store_weights(bfloat16* to, Vector first, Vector second) {
    Words both;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(second), "v"(first));
    _mm512_store_si512(to, both);
}

inline Vector multiply_add(Words words0, Words words1, Vector sums, bfloat16) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(words0), "v"(words1));
    return sums;
}

// A word of the upper halves of `first` and `second`, each in the upper half of its words.
inline Words joined_halves(Words first, Words second) { return _mm512_or_si512(_mm512_srli_epi32(first, 16), second); }

inline Vector above_integer(Vector x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); }  // x - floor(x)
inline Vector times_power_of_two_below(Vector x, Vector t) { return _mm512_scalef_ps(x, t); }  // x 2^floor(t), may underflow
inline Vector rough_reciprocal(Vector x) { return _mm512_rcp14_ps(x); }  // to 14 bits

// Vectors of 16-bit integers. A word of a product is two of them, and their sum is one of 32 bits; `Vnni` is the same by one
// instruction of AVX512-VNNI.

struct Vnni {
    int16_t value;
};
inline Words widened(const uint8_t* from) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline Words plus(Words a, Words b) { return _mm512_add_epi16(a, b); }
inline Words minus(Words a, Words b) { return _mm512_sub_epi16(a, b); }
template <int POWER>
inline Words times_two_to(Words a) { return _mm512_slli_epi16(a, POWER); }
inline void store_words(void* to, Words words) { _mm512_storeu_si512(to, words); }
inline Words rounded(Vector values) { return _mm512_cvtps_epi32(values); }
// The lower halves of `low` and of `high`, as the lower and the upper halves of words
inline Words joined(Words low, Words high) { return _mm512_mask_mov_epi16(_mm512_slli_epi32(high, 16), 0x55555555, low); }
inline void store_integers(int16_t* to, Words first, Words second) {  // cut to 16 bits
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(first));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + LANES), _mm512_cvtsepi32_epi16(second));
}
inline Vector converted(Words integers) { return _mm512_cvtepi32_ps(integers); }
inline Vector multiply_add(Words words0, Words words1, Vector sums, int16_t) {
    Vector products;  // with intrinsics, g++ 12 keeps the sums in memory
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sums), "=&v"(products) : "v"(words0), "v"(words1));
    return sums;
}
inline Vector multiply_add(Words words0, Words words1, Vector sums, Vnni) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(words0), "v"(words1));
    return sums;
}
