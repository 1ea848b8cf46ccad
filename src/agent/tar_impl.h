/* The layout of a header (POSIX.1-1988, ustar). Numbers are octal text. */
#pragma once

#include "agent/tar.h"

struct tar_header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8];
    char type;
    char link[100], magic[8], user[32], group[32], major[8], minor[8], prefix[155];
    char unused[12];
};

_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "a header is a block");

/* The sum of all bytes, the checksum's own taken as blanks. */
static inline unsigned tar_checksum(const struct tar_header *header)
{
    struct tar_header copy = *header;
    __builtin_memset(copy.checksum, ' ', sizeof copy.checksum);
    unsigned sum = 0;
    for (unsigned i = 0; i < sizeof copy; i++)
        sum += ((const unsigned char *)&copy)[i];
    return sum;
}
