// Vectors of 8 float32 for kernels.cpp, by AVX2 and FMA (Intel from Haswell, AMD from Zen on). There are none of bfloat16. The
// functions are explained in vectors_avx512.h.

using Vector = __m256;
using Words = __m256i;
using Mask = __m256i;  // -1 or 0 in each lane

constexpr long LANES = 8;
constexpr int MOST_COLUMNS = 2;  // 6 x 2 sums + 2 operands + 1 broadcast fill 15 of 16 registers

inline Vector zeros() { return _mm256_setzero_ps(); }
inline Vector all(float value) { return _mm256_set1_ps(value); }
inline Words all(int32_t word) { return _mm256_set1_epi32(word); }
inline Vector as_floats(Words words) { return _mm256_castsi256_ps(words); }
inline Words as_words(Vector values) { return _mm256_castps_si256(values); }
inline Vector fused(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector maximum_of(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector minimum_of(Vector a, Vector b) { return _mm256_min_ps(a, b); }
inline Vector absolute(Vector x) { return _mm256_andnot_ps(all(-0.0f), x); }
inline Vector reciprocal(Vector x) { return all(1.0f) / x; }

inline float sum_of(Vector x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline float largest_of(Vector x) {
    __m128 largest = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    largest = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
    return _mm_cvtss_f32(_mm_max_ss(largest, _mm_movehdup_ps(largest)));
}

inline Vector times_power_of_two(Vector x, Vector shifted) {
    return as_floats(_mm256_add_epi32(as_words(x), _mm256_slli_epi32(as_words(shifted), 23)));
}

inline Vector load(const float* from) { return _mm256_loadu_ps(from); }
inline Vector load_aligned(const float* from) { return _mm256_load_ps(from); }
inline Words load_aligned(const uint32_t* from) { return _mm256_load_si256(reinterpret_cast<const Words*>(from)); }
inline Words load_words(const void* from) { return _mm256_loadu_si256(static_cast<const Words*>(from)); }
inline void store(float* to, Vector values) { _mm256_storeu_ps(to, values); }
inline void store_bytes(uint8_t* to, Vector values) {
    const Words integers = _mm256_cvtps_epi32(minimum_of(values, all(255.0f)));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}
inline void store_aligned(float* to, Vector values) { _mm256_store_ps(to, values); }
inline void store_aligned(uint32_t* to, Words words) { _mm256_store_si256(reinterpret_cast<Words*>(to), words); }

inline Mask first_lanes(long count) {
    return _mm256_cmpgt_epi32(all(static_cast<int32_t>(std::min(count, LANES))), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
inline Vector load(Mask mask, const float* from) { return _mm256_maskload_ps(from, mask); }
inline void store(float* to, Mask mask, Vector values) { _mm256_maskstore_ps(to, mask, values); }
inline Vector select(Mask mask, Vector values, Vector otherwise) {
    return _mm256_blendv_ps(otherwise, values, as_floats(mask));
}
inline Mask above(Vector a, Vector b) { return as_words(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline unsigned bits_above(Mask mask, Vector a, Vector b) {
    return _mm256_movemask_ps(_mm256_and_ps(as_floats(mask), _mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}

// Pairs of words, then pairs of pairs, then halves of 4 words change places.
inline void transpose(Words (&rows)[LANES]) {
    Words a[LANES], b[LANES];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

inline Vector multiply_add(Words words0, Words words1, Vector sums, float) {
    return fused(as_floats(words0), as_floats(words1), sums);
}

inline void store_weights(float* to, Vector first, Vector second) {
    store_aligned(to, first);
    store_aligned(to + LANES, second);
}

// Vectors of 16-bit integers. A word of a product is two of them, and their sum is one of 32 bits.

inline Words widened(const uint8_t* from) { return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline Words plus(Words a, Words b) { return _mm256_add_epi16(a, b); }
inline Words minus(Words a, Words b) { return _mm256_sub_epi16(a, b); }
template <int POWER>
inline Words times_two_to(Words a) { return _mm256_slli_epi16(a, POWER); }
inline void store_words(void* to, Words words) { _mm256_storeu_si256(static_cast<Words*>(to), words); }
inline Words rounded(Vector values) { return _mm256_cvtps_epi32(values); }
inline Words joined(Words low, Words high) { return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa); }
inline void store_integers(int16_t* to, Words first, Words second) {
    const Words halves = _mm256_packs_epi32(first, second);  // of the lower and the upper lanes in turn
    _mm256_storeu_si256(reinterpret_cast<Words*>(to), _mm256_permute4x64_epi64(halves, 0xd8));
}
inline Vector converted(Words integers) { return _mm256_cvtepi32_ps(integers); }
inline Vector multiply_add(Words words0, Words words1, Vector sums, int16_t) {
    Vector products;  // with intrinsics, g++ 12 keeps the sums in memory
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sums), "=&x"(products) : "x"(words0), "x"(words1));
    return sums;
}
using Vnni = int16_t;  // no such instruction
