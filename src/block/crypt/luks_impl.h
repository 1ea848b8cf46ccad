/* What reading and making headers share. */
#pragma once

#include "block/crypt/library.h"
#include "block/crypt/luks.h"

/* A header in memory, and libcryptsetup's view of it. */
struct luks_copy {
    int fd;
    struct crypt_device *device;
    char message[160]; /* what libcryptsetup said last */
};
/* `size`: of the device that libcryptsetup is to see. */
must_check int luks_copy_open(struct luks_copy *copy, uint64_t size, struct err *err);
void luks_copy_close(struct luks_copy *copy);

/* 0, or a sentence: what a header asks for is not out of bounds. */
must_check int luks_check_cost(struct luks_copy *copy, struct luks_info *info, struct err *err);
/* LUKS2: fills in what only the JSON of the header says, checked. */
must_check int luks_read_json(struct luks_copy *copy, struct luks_info *info, struct err *err);
