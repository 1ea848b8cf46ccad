/* What compilers and libraries for x86-64-v3 emit: AVX2 and FMA, unaligned vectors, BMI, AES, SHA, CRC32 and carry-less
 * multiplication. Compiled for x86-64-v3; kernels that need more say so in `usable`. */
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#include "kernels.h"

enum { BYTES = 1 << 16, MATRIX = 128 };
static uint8_t bytes[BYTES + 128] __attribute__((aligned(64))), out[BYTES + 128] __attribute__((aligned(64)));

static void bytes_setup(void)
{
    struct random r = {59};
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)random_next(&r);
}

static float matrix_a[MATRIX][MATRIX], matrix_b[MATRIX][MATRIX], matrix_c[MATRIX][MATRIX];

static void matrix_setup(void)
{
    struct random r = {61};
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            matrix_a[i][j] = (float)(random_next(&r) & 0xff) / 3;
            matrix_b[i][j] = (float)(random_next(&r) & 0xff) / 7;
        }
}

static uint64_t matrix_round(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j += 16) {
            __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
            for (int k = 0; k < MATRIX; k++) {
                __m256 a = _mm256_broadcast_ss(&matrix_a[i][k]);
                low = _mm256_fmadd_ps(a, _mm256_loadu_ps(&matrix_b[k][j]), low);
                high = _mm256_fmadd_ps(a, _mm256_loadu_ps(&matrix_b[k][j + 8]), high);
            }
            _mm256_storeu_ps(&matrix_c[i][j], low);
            _mm256_storeu_ps(&matrix_c[i][j + 8], high);
        }
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            uint32_t u;
            memcpy(&u, &matrix_c[i][j], sizeof u);
            sum = checksum_add(sum, u);
        }
    return sum;
}

/* Every 32-byte access is off by one: half of them cross a line, some a page. */
static uint64_t unaligned_round(void)
{
    __m256i sum = _mm256_setzero_si256();
    for (int pass = 0; pass < 40; pass++)
        for (int i = 1; i + 32 < BYTES; i += 32) {
            __m256i x = _mm256_loadu_si256((const __m256i *)(bytes + i));
            sum = _mm256_add_epi64(_mm256_xor_si256(sum, x), _mm256_slli_epi64(x, 3));
            _mm256_storeu_si256((__m256i *)(out + i), sum);
        }
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, sum);
    return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

static uint64_t bits_round(void)
{
    struct random r = {67};
    uint64_t sum = 0;
    for (int i = 0; i < 800000; i++) {
        uint64_t x = random_next(&r), mask = x >> 7 | 1;
        sum += (uint64_t)_mm_popcnt_u64(x) + _tzcnt_u64(mask) + _lzcnt_u64(x) + _andn_u64(x, mask) + _blsr_u64(x);
        sum ^= _pext_u64(sum, mask) + _pdep_u64(x, mask) + _bextr_u64(x, 5, 13);
        sum = (sum << (x & 31) | sum >> (-x & 31)) + __builtin_bswap64(x);
    }
    return sum;
}

static uint64_t crc_round(void)
{
    uint64_t crc = 0xffffffff;
    for (int pass = 0; pass < 100; pass++)
        for (size_t i = 0; i < BYTES; i += 8) {
            uint64_t word;
            memcpy(&word, bytes + i, sizeof word);
            crc = _mm_crc32_u64(crc, word);
        }
    return crc;
}

static bool has_aes(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_AES && c & bit_PCLMUL;
}

static bool has_sha(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_SHA;
}

/* Ten rounds of AES over a counter, four blocks at a time, with the ciphertext folded by carry-less multiplication. */
__attribute__((target("aes,pclmul"))) static uint64_t aes_round(void)
{
    __m128i keys[11], counter[4], hash = _mm_setzero_si128();
    for (int i = 0; i < 11; i++)
        keys[i] = _mm_loadu_si128((const __m128i *)(bytes + 16 * i));
    for (int n = 0; n < 60000; n++) {
        for (int b = 0; b < 4; b++)
            counter[b] = _mm_xor_si128(_mm_set_epi64x(4 * n + b, 1), keys[0]);
        for (int i = 1; i < 10; i++)
            for (int b = 0; b < 4; b++)
                counter[b] = _mm_aesenc_si128(counter[b], keys[i]);
        for (int b = 0; b < 4; b++) {
            hash = _mm_xor_si128(hash, _mm_aesenclast_si128(counter[b], keys[10]));
            hash = _mm_xor_si128(_mm_clmulepi64_si128(hash, keys[1], 0x00), _mm_clmulepi64_si128(hash, keys[1], 0x11));
        }
    }
    return (uint64_t)_mm_extract_epi64(hash, 0) ^ (uint64_t)_mm_extract_epi64(hash, 1);
}

/* The instructions of SHA-256 in their usual order, over messages as they lie in memory: a mix, not a digest. */
__attribute__((target("sha"))) static uint64_t sha_round(void)
{
    __m128i one = _mm_set_epi32(1, 2, 3, 4), two = _mm_set_epi32(5, 6, 7, 8);
    for (size_t at = 0; at < BYTES; at += 64) {
        __m128i w[4], saved_one = one, saved_two = two;
        for (int i = 0; i < 4; i++)
            w[i] = _mm_loadu_si128((const __m128i *)(bytes + at + 16 * (size_t)i));
        for (int i = 0; i < 16; i++) {
            __m128i k = w[i & 3];
            two = _mm_sha256rnds2_epu32(two, one, k);
            one = _mm_sha256rnds2_epu32(one, two, _mm_shuffle_epi32(k, 0x0e));
            w[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(k, w[(i + 1) & 3]), w[(i + 2) & 3]), w[(i + 3) & 3]);
        }
        one = _mm_add_epi32(one, saved_one);
        two = _mm_add_epi32(two, saved_two);
    }
    return (uint64_t)_mm_extract_epi64(one, 0) ^ (uint64_t)_mm_extract_epi64(two, 1);
}

static uint64_t gather_round(void)
{
    __m256i sum = _mm256_setzero_si256(), at = _mm256_setr_epi32(1, 50, 900, 1300, 2222, 4001, 8000, 12345);
    for (int i = 0; i < 250000; i++) {
        __m256i x = _mm256_i32gather_epi32((const int *)bytes, at, 4);
        sum = _mm256_add_epi32(_mm256_shuffle_epi8(sum, x), _mm256_max_epu8(x, sum));
        at = _mm256_and_si256(_mm256_add_epi32(at, x), _mm256_set1_epi32(BYTES / 4 - 1));
    }
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, sum);
    return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

const struct kernel kernels_vector[] = {
    {.name = "matmul-avx2-fma", .unit = "multiply-add", .units = MATRIX * MATRIX * MATRIX, .round = matrix_round, .setup = matrix_setup},
    {.name = "avx2-unaligned", .unit = "32 bytes", .units = 40.0 * BYTES / 32, .round = unaligned_round, .setup = bytes_setup},
    {.name = "avx2-gather", .unit = "step", .units = 250000, .round = gather_round, .setup = bytes_setup},
    {.name = "bits-bmi", .unit = "step", .units = 8e5, .round = bits_round},
    {.name = "crc32-instruction", .unit = "byte", .units = 100.0 * BYTES, .round = crc_round, .setup = bytes_setup},
    {.name = "aes-ni", .unit = "block", .units = 4 * 60000, .round = aes_round, .setup = bytes_setup, .usable = has_aes},
    {.name = "sha-ni", .unit = "byte", .units = BYTES, .round = sha_round, .setup = bytes_setup, .usable = has_sha},
};
const size_t kernels_vector_count = KERNEL_COUNT(kernels_vector);
