/* libcryptsetup and OpenSSL's libcrypto, loaded when the first encrypted image is opened or made: most programs that link
 * this floor never have one, and loading takes longer than all else that they do at their start.
 * Calls go through the tables: `crypt_lib.crypt_init(...)`, `crypto_lib.EVP_CIPHER_fetch(...)`. Threads: any. */
#pragma once

#include <libcryptsetup.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include "base/library.h"

#define CRYPT_LIBCRYPTO_FUNCTIONS(X)                                                                         \
    X(CRYPTO_set_mem_functions)                                                                              \
    X(EVP_CIPHER_CTX_free)                                                                                   \
    X(EVP_CIPHER_CTX_new)                                                                                    \
    X(EVP_CIPHER_CTX_set_padding)                                                                            \
    X(EVP_CIPHER_fetch)                                                                                      \
    X(EVP_CIPHER_free)                                                                                       \
    X(EVP_CipherInit_ex2)                                                                                    \
    X(EVP_CipherUpdate)

#define CRYPT_LIBCRYPTSETUP_FUNCTIONS(X)                                                                     \
    X(crypt_dump_json)                                                                                       \
    X(crypt_format)                                                                                          \
    X(crypt_free)                                                                                            \
    X(crypt_get_cipher)                                                                                      \
    X(crypt_get_cipher_mode)                                                                                 \
    X(crypt_get_data_offset)                                                                                 \
    X(crypt_get_metadata_size)                                                                               \
    X(crypt_get_sector_size)                                                                                 \
    X(crypt_get_type)                                                                                        \
    X(crypt_get_uuid)                                                                                        \
    X(crypt_get_volume_key_size)                                                                             \
    X(crypt_init)                                                                                            \
    X(crypt_keyslot_add_by_volume_key)                                                                       \
    X(crypt_keyslot_get_pbkdf)                                                                               \
    X(crypt_keyslot_status)                                                                                  \
    X(crypt_load)                                                                                            \
    X(crypt_metadata_locking)                                                                                \
    X(crypt_persistent_flags_get)                                                                            \
    X(crypt_set_log_callback)                                                                                \
    X(crypt_set_pbkdf_type)                                                                                  \
    X(crypt_volume_key_get)

struct crypto_library {
    CRYPT_LIBCRYPTO_FUNCTIONS(LIBRARY_MEMBER)
};
struct crypt_library {
    CRYPT_LIBCRYPTSETUP_FUNCTIONS(LIBRARY_MEMBER)
};

/* All set once crypt_library_load has succeeded. */
extern struct crypto_library crypto_lib;
extern struct crypt_library crypt_lib;
