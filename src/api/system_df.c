/* What takes the space. */
#include "api/system.h"

#include <errno.h>
#include <fts.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* Bytes that the files below take on disk; what vanishes meanwhile does not count. */
static uint64_t used_below(const char *state_dir, const char *folder)
{
    char path[4200];
    char *const roots[] = {path, NULL};
    uint64_t bytes = 0;
    snprintf(path, sizeof path, "%s/%s", state_dir, folder);
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    for (FTSENT *entry = walk ? fts_read(walk) : NULL; entry; entry = fts_read(walk))
        if (entry->fts_info == FTS_F)
            bytes += (uint64_t)entry->fts_statp->st_blocks * 512;
    if (walk)
        fts_close(walk);
    return bytes;
}

int system_df(struct platform *platform, json_t **ret_df, struct err *err)
{
    struct statvfs st;
    if (statvfs(platform->state_dir, &st) < 0)
        return err_set(err, errno, "'%s'", platform->state_dir);
    static const char *const parts[] = {"images", "volumes", "instances"};
    json_t *out = json_pack("{s:{s:I, s:I}}", "file_system", "total_bytes", (json_int_t)st.f_blocks * (json_int_t)st.f_frsize,
                            "free_bytes", (json_int_t)st.f_bavail * (json_int_t)st.f_frsize);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        json_object_set_new(out, parts[i],
                            json_pack("{s:I}", "used_bytes", (json_int_t)used_below(platform->state_dir, parts[i])));
    *ret_df = out;
    return 0;
}
