/* libarchive, loaded when it is first needed: it brings a dozen libraries of its own, a third of the time that a command takes
 * to start, and only `polder cp` uses it. */
#pragma once

#include <archive.h>
#include <archive_entry.h>

#include "base/library.h"

#define ARCHIVE_FUNCTIONS(X) \
    X(archive_entry_clear) X(archive_entry_filetype) X(archive_entry_free) X(archive_entry_hardlink) \
    X(archive_entry_new) X(archive_entry_pathname) X(archive_entry_perm) X(archive_entry_set_hardlink) \
    X(archive_entry_set_pathname) X(archive_entry_set_perm) X(archive_entry_size) X(archive_entry_sourcepath) \
    X(archive_errno) X(archive_error_string) X(archive_read_data_block) X(archive_read_disk_descend) \
    X(archive_read_disk_new) X(archive_read_disk_open) X(archive_read_disk_set_standard_lookup) \
    X(archive_read_disk_set_symlink_physical) X(archive_read_free) X(archive_read_new) X(archive_read_next_header) \
    X(archive_read_next_header2) X(archive_read_open_fd) X(archive_read_open_memory) \
    X(archive_read_support_format_tar) X(archive_write_close) X(archive_write_data) X(archive_write_data_block) \
    X(archive_write_disk_new) X(archive_write_disk_set_options) X(archive_write_fail) X(archive_write_finish_entry) \
    X(archive_write_free) X(archive_write_header) X(archive_write_new) X(archive_write_open_fd) \
    X(archive_write_set_bytes_per_block) X(archive_write_set_format_pax_restricted)

/* By their names in libarchive. */
struct archive_functions {
    ARCHIVE_FUNCTIONS(LIBRARY_MEMBER)
};

extern struct archive_functions la; /* all set, or none */

/* Before any use of `la`; called again, it does nothing. */
must_check int archive_load(struct err *err);
