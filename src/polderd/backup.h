/* The store's last copy, STATE/backup.db, and the way back to it.
 *
 * A thread copies the store at the start and when it was changed, at most once a minute; backup_stop does at the end. A copy is
 * whole and was checked before it takes the place of the one before. */
#pragma once

#include "base/err.h"

struct backup;
struct store;

must_check int backup_start(struct store *store, const char *state_dir, struct backup **ret_backup, struct err *err);
void backup_stop(struct backup *backup); /* NULL is fine */

/* Before the store is opened: puts it aside as state.db.damaged (over an older one) and the copy in its place. */
must_check int backup_restore(const char *state_dir, struct err *err);
/* Says of a store that is damaged whether there is a copy, of when, and how to go back to it. -EBADMSG. */
must_check int backup_explain(const char *state_dir, struct err *err);
