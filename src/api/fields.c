/* Output never gets ahead of input, which is why one buffer is enough. */
#include "api/fields.h"

#include <stdbool.h>
#include <string.h>

#define PATH_MAX_BYTES 128 /* deeper than any path that is asked for: such members are left out */

struct scan {
    const char *fields;
    const char *in;
    char *out;
    char path[PATH_MAX_BYTES]; /* of the object that `in` is in, with a dot behind it; "" at the top */
};

enum choice { LEFT_OUT, WHOLE, PARTS };

static const char *behind_string(const char *at)
{
    for (at++; *at && *at != '"'; at += strcspn(at, "\"\\"))
        if (*at == '\\')
            at += at[1] ? 2 : 1;
    return *at ? at + 1 : at;
}

static const char *behind_value(const char *at)
{
    unsigned depth = 0;
    do {
        at += depth ? strcspn(at, "\"[]{}") : strcspn(at, "\"[]{},");
        if (*at == '"')
            at = behind_string(at);
        else if (*at == '[' || *at == '{')
            depth++, at++;
        else if (depth && *at)
            depth--, at++;
    } while (depth && *at);
    return at;
}

static enum choice choose(const char *fields, const char *path)
{
    size_t len = strlen(path);
    enum choice choice = LEFT_OUT;
    for (const char *field = fields; field; field = strchr(field, ',')) {
        field += *field == ',';
        if (strcspn(field, ",") < len || strncmp(field, path, len) != 0)
            continue;
        if (!field[len] || field[len] == ',')
            return WHOLE;
        if (field[len] == '.')
            choice = PARTS;
    }
    return choice;
}

static void copy_until(struct scan *scan, const char *end)
{
    size_t len = (size_t)(end - scan->in);
    memmove(scan->out, scan->in, len);
    scan->out += len;
    scan->in = end;
}

static void keep_object(struct scan *scan);

/* At a member's name; behind the member afterwards. Returns whether anything of it is kept. */
static bool keep_member(struct scan *scan, bool follows)
{
    const char *name = scan->in + 1, *colon = behind_string(scan->in), *value = colon + (*colon == ':'), *end = behind_value(value);
    size_t above = strlen(scan->path), len = colon > name ? (size_t)(colon - name) - 1 : 0;
    enum choice choice = LEFT_OUT;
    if (above + len + 2 <= sizeof scan->path) {
        memcpy(scan->path + above, name, len);
        scan->path[above + len] = '\0';
        choice = choose(scan->fields, scan->path);
    }
    if (choice == PARTS && *value != '{')
        choice = LEFT_OUT;
    if (choice != LEFT_OUT && follows)
        *scan->out++ = ',';
    if (choice == WHOLE)
        copy_until(scan, end);
    if (choice == PARTS) {
        copy_until(scan, value);
        memcpy(scan->path + above + len, ".", 2);
        keep_object(scan);
    }
    scan->path[above] = '\0';
    scan->in = end;
    return choice != LEFT_OUT;
}

/* At its brace; `in` is within or behind it afterwards. */
static void keep_object(struct scan *scan)
{
    bool follows = false;
    copy_until(scan, scan->in + 1);
    while (*scan->in == '"') {
        follows |= keep_member(scan, follows);
        scan->in += *scan->in == ',';
    }
    if (*scan->in == '}')
        copy_until(scan, scan->in + 1);
}

void fields_keep(char *text, const char *fields)
{
    struct scan scan = {.fields = fields, .in = text, .out = text};
    while (*scan.in)
        if (*scan.in == '{')
            keep_object(&scan);
        else
            copy_until(&scan, scan.in + 1);
    *scan.out = '\0';
}
