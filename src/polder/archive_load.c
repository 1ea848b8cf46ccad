#include "polder/archive_load.h"

struct archive_functions la;

static struct library archive = {
    .file = "libarchive.so.13",
    .package = "libarchive13",
    .needed_for = "copying",
    .functions = (const char *const[]){ARCHIVE_FUNCTIONS(LIBRARY_ENTRY) NULL},
    .table = &la,
};

int archive_load(struct err *err)
{
    return library_load(&archive, err);
}
