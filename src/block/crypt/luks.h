/* LUKS: the header, which holds the volume key under keys of its own, and the node for disks encrypted with it.
 * Sources: LUKS1 On-Disk Format 1.2.3, LUKS2 On-Disk Format 1.1.4; libcryptsetup reads, checks and writes headers, in copies
 * of them in memory; image files see only what is to be written.
 * Threads: any; these functions wait for I/O and for key derivation. Not in a fiber: libcryptsetup wants a large stack. */
#pragma once

#include "block/block.h"
#include "block/crypt/cipher.h"
#include "block/crypt/key.h"

/* A header is foreign: more than this of key derivation for all its slots together is refused. The memory of one slot
 * must also leave half of the host's. */
#define LUKS_ITERATIONS_MAX UINT64_C(500000000)            /* of PBKDF2: minutes */
#define LUKS_MEMORY_MAX (UINT64_C(4) << 30)                 /* bytes of Argon2 */
#define LUKS_MEMORY_PASSES_MAX (UINT64_C(512) << 30)        /* bytes times passes: minutes */

struct luks_info {
    unsigned version;
    uint64_t payload_offset; /* bytes */
    uint64_t payload_len;    /* bytes; 0: up to the end of the file */
    uint64_t iv_offset;
    uint32_t sector_size;
    unsigned key_bits, slots;  /* slots: those in use */
    char cipher[32], uuid[40]; /* cipher: "aes-xts-plain64" */
    uint64_t iterations;       /* what all slots cost: PBKDF2 iterations, */
    uint64_t memory_passes;    /* bytes of Argon2 times passes, */
    uint64_t memory;           /* bytes of the one that takes most */
};

/* Reads the header at [offset, offset + len) of a node; `name` is for messages. With `key` also the cipher, else
 * *ret_cipher is NULL. -EACCES: the key is wrong. */
must_check int luks_load(struct block_node *node, uint64_t offset, uint64_t len, const struct block_key *key, const char *name,
                         struct luks_info *ret_info, struct crypt_cipher **ret_cipher, struct err *err);

struct luks_create {
    unsigned version;     /* 1 or 2 */
    uint32_t sector_size; /* 512, or with version 2 up to 4096 */
    unsigned key_bits;    /* 256 or 512 */
    uint32_t iterations;  /* of key derivation: passes of Argon2 (version 2) or of PBKDF2; 0: what is recommended */
};
extern const struct luks_create luks_create_default;
/* Makes a header in memory: a descriptor of `*ret_len` bytes, as many as come before the payload. */
must_check int luks_format(const struct luks_create *create, const struct block_key *key, int *ret_fd, uint64_t *ret_len,
                           struct err *err);
/* Makes an encrypted image of a disk of `size` bytes, rounded up to sectors, whose contents are undefined, over whatever is at `path`. */
must_check int luks_create(const char *path, uint64_t size, const struct luks_create *create, const struct block_key *key,
                           struct err *err);

/* What the header of a node of class block_luks says. */
void luks_get_info(struct block_node *node, struct luks_info *ret_info);

/* A node that reads and writes `lower` through a cipher, byte for byte from its beginning. It owns the cipher, and `lower`
 * only when `owns_lower`. */
must_check int crypt_node_wrap(struct block_node *lower, bool owns_lower, struct crypt_cipher *cipher, struct block_node **ret_node,
                               struct err *err);
