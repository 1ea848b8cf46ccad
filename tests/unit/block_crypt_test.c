/* Encryption: known answers, iovecs cut anywhere, more and longer writes than buffers, where keys live in memory. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/crypt/luks.h"

static const uint8_t key_bytes[64] = {
    /* IEEE 1619-2007, vector 4: two keys of 16 bytes; then anything */
    0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26,
    0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95, 1, 2, 3};

static struct crypt_cipher *make_cipher(size_t key_len, uint32_t sector_size)
{
    struct crypt_cipher *cipher;
    assert_int_equal(crypt_cipher_new("aes-xts-plain64", key_bytes, key_len, sector_size, 0, &cipher, NULL), 0);
    return cipher;
}

static void test_a_known_answer(void **state)
{
    static const uint8_t first[16] = {0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76, 0x48, 0x9f, 0x30, 0x8c, 0xd4, 0xcf, 0xa6, 0xe2};
    uint8_t data[512];
    (void)state;
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)i;
    struct crypt_cipher *cipher = make_cipher(32, 512);
    assert_int_equal(crypt_encrypt(cipher, 0, data, sizeof data), 0);
    assert_memory_equal(data, first, sizeof first);
    crypt_cipher_free(cipher);
}

static void test_unknown_ciphers_are_named(void **state)
{
    struct crypt_cipher *cipher;
    struct err err = {0};
    (void)state;
    assert_true(crypt_cipher_new("twofish-xts-plain64", key_bytes, 64, 512, 0, &cipher, &err) == -ENOTSUP);
    assert_non_null(strstr(err.message, "twofish-xts-plain64"));
    assert_true(crypt_cipher_new("aes-xts-plain64", key_bytes, 48, 512, 0, &cipher, &err) == -ENOTSUP);
}

/* Sectors that begin and end in any element. */
static void test_iovecs_are_cut_anywhere(void **state)
{
    enum { LEN = 32768 };
    static uint8_t plain[LEN], data[LEN];
    (void)state;
    srandom(1);
    for (unsigned round = 0; round < 300; round++) {
        struct crypt_cipher *cipher = make_cipher(64, round % 2 ? 512 : 4096);
        struct iovec iov[64];
        unsigned count = 0;
        for (size_t at = 0; at < LEN;) {
            size_t n = count == 63 ? LEN - at : (size_t)random() % (round % 3 ? 900 : 9000);
            n = n < LEN - at ? n : LEN - at;
            iov[count++] = (struct iovec){data + at, n};
            at += n;
        }
        for (unsigned i = 0; i < LEN; i++)
            plain[i] = data[i] = (uint8_t)random();
        assert_int_equal(crypt_encrypt(cipher, 40960, data, LEN), 0);
        assert_memory_not_equal(data, plain, LEN);
        assert_int_equal(crypt_decrypt(cipher, 40960, iov, count), 0);
        assert_memory_equal(data, plain, LEN);
        crypt_cipher_free(cipher);
    }
}

/* ---- the node ---- */

enum { WRITES = 150, WRITE_LEN = 600 * 1024 };

struct many {
    struct block_node *node;
    struct block_request requests[WRITES];
    struct iovec iov[WRITES];
    unsigned done;
};

static void write_done(struct block_request *request, int result)
{
    assert_int_equal(result, 0);
    ((struct many *)request->user)->done++;
}

static void write_many(struct many *m, struct block_ring *ring)
{
    for (unsigned i = 0; i < WRITES; i++) {
        m->iov[i] = (struct iovec){malloc(WRITE_LEN), WRITE_LEN};
        memset(m->iov[i].iov_base, (int)i, WRITE_LEN);
        m->requests[i] = (struct block_request){.op = i % 10 ? BLOCK_WRITE : BLOCK_WRITE_ZEROES,
                                                .offset = (uint64_t)i * WRITE_LEN,
                                                .len = WRITE_LEN,
                                                .iov = &m->iov[i],
                                                .iov_count = 1,
                                                .done = write_done,
                                                .user = m};
        block_submit(m->node, &m->requests[i]);
    }
    while (m->done < WRITES) {
        block_ring_wait(ring, UINT64_MAX);
        block_ring_dispatch(ring);
    }
    for (unsigned i = 0; i < WRITES; i++)
        free(m->iov[i].iov_base);
}

static struct block_node *make_node(int fd, struct block_ring *ring)
{
    struct block_options options = {.path = "memory", .fd = fd, .below = true};
    struct block_node *lower, *node;
    struct err err = {0};
    assert_int_equal(block_open(&options, &lower, &err), 0);
    assert_int_equal(crypt_node_wrap(lower, true, make_cipher(64, 512), &node, &err), 0);
    assert_int_equal(block_attach(node, ring, &err), 0);
    return node;
}

/* More than there are buffers, each longer than one. */
static void test_many_long_writes(void **state)
{
    static uint8_t data[WRITE_LEN], raw[WRITE_LEN];
    struct block_ring *ring;
    (void)state;
    int fd = memfd_create("disk", MFD_CLOEXEC), same = dup(fd);
    assert_int_equal(ftruncate(fd, (off_t)WRITES * WRITE_LEN), 0);
    assert_int_equal(block_ring_create(NULL, &ring, NULL), 0);
    assert_int_equal(block_ring_start(ring, NULL), 0);
    static struct many many;
    many = (struct many){.node = make_node(fd, ring)};
    write_many(&many, ring);
    for (unsigned i = 0; i < WRITES; i++) {
        assert_int_equal(block_read_alone(many.node, (uint64_t)i * WRITE_LEN, data, WRITE_LEN, NULL), 0);
        assert_true(data[0] == (i % 10 ? i : 0) && memcmp(data, data + 1, WRITE_LEN - 1) == 0);
        assert_int_equal(pread(same, raw, WRITE_LEN, (off_t)i * WRITE_LEN), WRITE_LEN);
        assert_memory_not_equal(raw, data, 512);
        assert_memory_not_equal(raw, raw + 512, 512); /* sectors have vectors of their own */
    }
    block_close(many.node);
    block_ring_free(ring);
    close(same);
}

/* ---- keys ---- */

/* What the kernel says of the mapping that holds an address: "VmFlags: ..." */
static void find_flags(const void *address, char *flags, size_t size)
{
    FILE *maps = fopen("/proc/self/smaps", "re");
    char line[512];
    bool inside = false;
    assert_non_null(maps);
    *flags = '\0';
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = from <= (uintptr_t)address && (uintptr_t)address < to;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            snprintf(flags, size, "%s", line);
    }
    fclose(maps);
}

static unsigned long locked_kib(void)
{
    FILE *status = fopen("/proc/self/status", "re");
    char line[256];
    unsigned long kib = 0;
    assert_non_null(status);
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "VmLck: %lu", &kib) == 1)
            break;
    fclose(status);
    return kib;
}

static void test_secrets_are_locked_and_not_dumped(void **state)
{
    char flags[512];
    (void)state;
    unsigned long before = locked_kib();
    uint8_t *secret = secret_alloc(100);
    assert_non_null(secret);
    if (locked_kib() == before) {
        print_message("SKIP: nothing can be locked in memory here (address sanitizer)\n");
        skip();
    }
    find_flags(secret, flags, sizeof flags);
    assert_non_null(strstr(flags, " lo")); /* locked */
    assert_non_null(strstr(flags, " dd")); /* not in dumps */
    secret_free(secret);
    assert_int_equal(locked_kib(), before);
    struct crypt_cipher *cipher = make_cipher(64, 512); /* OpenSSL's expanded keys as well */
    assert_true(locked_kib() >= before + 16);
    crypt_cipher_free(cipher);
    assert_int_equal(locked_kib(), before);
}

static void test_key_files(void **state)
{
    char path[] = "/tmp/polder-key-XXXXXX";
    static const uint8_t bytes[] = {'k', 0, 'y', '\n'};
    struct block_key *key;
    struct err err = {0};
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_true(block_key_read(path, &key, &err) == -EINVAL);
    assert_int_equal(write(fd, bytes, sizeof bytes), sizeof bytes);
    assert_int_equal(block_key_read(path, &key, &err), 0);
    assert_int_equal(key->len, sizeof bytes);
    assert_memory_equal(key->bytes, bytes, sizeof bytes);
    block_key_free(key);
    assert_int_equal(ftruncate(fd, BLOCK_KEY_MAX + 1), 0);
    assert_true(block_key_read(path, &key, &err) == -EINVAL);
    assert_non_null(strstr(err.message, "longer than"));
    close(fd);
    unlink(path);
    assert_true(block_key_read(path, &key, &err) == -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_known_answer),
        cmocka_unit_test(test_unknown_ciphers_are_named),
        cmocka_unit_test(test_iovecs_are_cut_anywhere),
        cmocka_unit_test(test_many_long_writes),
        cmocka_unit_test(test_secrets_are_locked_and_not_dumped),
        cmocka_unit_test(test_key_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
