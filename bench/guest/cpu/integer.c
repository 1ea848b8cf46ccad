/* Integer arithmetic: plain, multiply and divide, matrices, checksums and hashes in plain C. */
#include <string.h>

#include "kernels.h"

static uint64_t integer_round(void)
{
    uint64_t x = 0x123456789abcdefu, y = 1, sum = 0;
    for (int i = 0; i < 3000000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        y = y * 6364136223846793005u + 1442695040888963407u;
        sum += x ^ (y >> 33);
    }
    return sum;
}

static uint64_t divide_round(void)
{
    struct random r = {7};
    uint64_t sum = 0;
    for (int i = 0; i < 600000; i++) {
        uint64_t a = random_next(&r), b = (random_next(&r) >> (i & 31)) | 1;
        sum = checksum_add(sum, a / b + a % b);
    }
    return sum;
}

enum { MATRIX = 144 };
static int32_t matrix_a[MATRIX][MATRIX], matrix_b[MATRIX][MATRIX], matrix_c[MATRIX][MATRIX];

static void matrix_setup(void)
{
    struct random r = {11};
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            matrix_a[i][j] = (int32_t)(random_next(&r) & 0xfff);
            matrix_b[i][j] = (int32_t)(random_next(&r) & 0xfff);
        }
}

static uint64_t matrix_round(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < MATRIX; i++)
        for (int j = 0; j < MATRIX; j++) {
            int32_t s = 0;
            for (int k = 0; k < MATRIX; k++)
                s += matrix_a[i][k] * matrix_b[k][j];
            matrix_c[i][j] = s;
            sum = checksum_add(sum, (uint32_t)s);
        }
    return sum;
}

static uint8_t text[1 << 20];
static uint32_t crc_table[256];

static void text_setup(void)
{
    struct random r = {13};
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (uint8_t)random_next(&r);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
        crc_table[i] = c;
    }
}

static uint64_t crc_round(void)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < sizeof text; i++)
        crc = crc >> 8 ^ crc_table[(crc ^ text[i]) & 0xff];
    return ~crc;
}

static uint64_t hash_bytes_round(void)
{
    uint64_t sum = 0;
    for (size_t at = 0; at + 64 <= sizeof text; at += 16) {
        uint64_t h = 0xcbf29ce484222325u;
        for (size_t i = 0; i < 48; i++)
            h = (h ^ text[at + i]) * 0x100000001b3u;
        sum += h;
    }
    return sum;
}

static const uint32_t sha_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate_right(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

/* FIPS 180-4 §6.2.2 */
static void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate_right(a, 7) ^ rotate_right(a, 18) ^ a >> 3) + w[i - 7] +
               (rotate_right(b, 17) ^ rotate_right(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t one = s[7] + (rotate_right(s[4], 6) ^ rotate_right(s[4], 11) ^ rotate_right(s[4], 25)) +
                       ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_k[i] + w[i];
        uint32_t two = (rotate_right(s[0], 2) ^ rotate_right(s[0], 13) ^ rotate_right(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static uint64_t sha256_round(void)
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (size_t at = 0; at < sizeof text / 2; at += 64)
        sha256_block(state, text + at);
    return (uint64_t)state[0] << 32 | state[7];
}

const struct kernel kernels_integer[] = {
    {.name = "integer", .unit = "step", .units = 3e6, .round = integer_round},
    {.name = "divide", .unit = "division", .units = 6e5, .round = divide_round},
    {.name = "matrix-int", .unit = "multiply-add", .units = (double)MATRIX * MATRIX * MATRIX, .round = matrix_round, .setup = matrix_setup},
    {.name = "crc32-table", .unit = "byte", .units = 1 << 20, .round = crc_round, .setup = text_setup},
    {.name = "hash-fnv", .unit = "byte", .units = 48.0 * ((1 << 16) - 3), .round = hash_bytes_round, .setup = text_setup},
    {.name = "sha256-c", .unit = "byte", .units = 1 << 19, .round = sha256_round, .setup = text_setup},
};
const size_t kernels_integer_count = KERNEL_COUNT(kernels_integer);
