/* Files in and out as tar streams, as functions of a process of their own (child.h): 0 in, 1 out, one line on 2 when they fail.
 * They return an exit code. */
#pragma once

/* Unpacks standard input below the directory `path`, which is made if missing. Names never lead out of it, whatever links the
 * archive or the directory has. Existing files are replaced; owners are set as root only. */
int files_put(const char *path);
/* Writes `path`, a directory with all below it, under its last part's name. Sockets are left out. */
int files_get(const char *path);
