/* Little- and big-endian loads and stores at any alignment. */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_ACCESSORS(bits)                                                                                \
    static inline uint##bits##_t load_le##bits(const void *p)                                                \
    {                                                                                                        \
        uint##bits##_t v;                                                                                    \
        memcpy(&v, p, sizeof v);                                                                             \
        return le##bits##toh(v);                                                                             \
    }                                                                                                        \
    static inline void store_le##bits(void *p, uint##bits##_t v)                                             \
    {                                                                                                        \
        v = htole##bits(v);                                                                                  \
        memcpy(p, &v, sizeof v);                                                                             \
    }                                                                                                        \
    static inline uint##bits##_t load_be##bits(const void *p)                                                \
    {                                                                                                        \
        uint##bits##_t v;                                                                                    \
        memcpy(&v, p, sizeof v);                                                                             \
        return be##bits##toh(v);                                                                             \
    }                                                                                                        \
    static inline void store_be##bits(void *p, uint##bits##_t v)                                             \
    {                                                                                                        \
        v = htobe##bits(v);                                                                                  \
        memcpy(p, &v, sizeof v);                                                                             \
    }

BYTES_ACCESSORS(16)
BYTES_ACCESSORS(32)
BYTES_ACCESSORS(64)
