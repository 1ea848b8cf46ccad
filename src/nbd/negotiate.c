/* Fixed newstyle negotiation: flags, then options, each with its answer, until one of them begins the transmission.
 * One table says what is done for an option, and whether it may come without TLS. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "nbd/server_impl.h"

#define ALLOCATION "base:allocation"
#define BITMAP "qemu:dirty-bitmap:"
#define OLD_PADDING 124u

/* An option's data; a cursor. */
struct option {
    struct connection *c;
    uint32_t number;
    const uint8_t *data;
    uint32_t len;
};

/* ---- answers ---- */

static void reply(const struct option *o, uint32_t type, const void *data, uint32_t len)
{
    uint8_t *to = connection_control(o->c, NBD_OPTION_REPLY_LEN + len);
    if (!to)
        return;
    store_be64(to, NBD_OPTION_REPLY_MAGIC);
    store_be32(to + 8, o->number);
    store_be32(to + 12, type);
    store_be32(to + 16, len);
    if (len)
        memcpy(to + NBD_OPTION_REPLY_LEN, data, len);
}

static void refuse(const struct option *o, uint32_t type, const char *text)
{
    reply(o, type, text, (uint32_t)strlen(text));
}

/* ---- the option's data ---- */

static bool take(struct option *o, void *to, uint32_t len)
{
    if (o->len < len)
        return false;
    memcpy(to, o->data, len);
    o->data += len;
    o->len -= len;
    return true;
}

static bool take_u32(struct option *o, uint32_t *ret_value)
{
    uint8_t bytes[4];
    if (!take(o, bytes, sizeof bytes))
        return false;
    *ret_value = load_be32(bytes);
    return true;
}

/* Points into the data: not terminated. */
static bool take_string(struct option *o, const char **ret_text, uint32_t *ret_len)
{
    uint32_t len;
    if (!take_u32(o, &len) || len > o->len || len > NBD_STRING_MAX)
        return false;
    *ret_text = (const char *)o->data;
    *ret_len = len;
    o->data += len;
    o->len -= len;
    return true;
}

static bool same(const char *text, uint32_t len, const char *name)
{
    return len == strlen(name) && memcmp(text, name, len) == 0;
}

static const struct nbd_export *find_export(const struct connection *c, const char *name, uint32_t len)
{
    const struct nbd_server_config *config = &c->server->config;
    for (unsigned i = 0; i < config->export_count; i++)
        if (same(name, len, config->exports[i].name))
            return &config->exports[i];
    return len ? NULL : &config->exports[0];
}

/* ---- EXPORT_NAME, INFO, GO ---- */

static uint16_t export_flags(const struct connection *c, const struct block_node *node)
{
    int flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    if (c->structured)
        flags |= NBD_FLAG_SEND_DF;
    if (node->read_only)
        return (uint16_t)(flags | NBD_FLAG_READ_ONLY);
    flags |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    return (uint16_t)(node->can_discard ? flags | NBD_FLAG_SEND_TRIM : flags);
}

static void begin_requests(struct connection *c, const struct nbd_export *export)
{
    c->export = export;
    if (c->contexts_of != export)
        c->contexts = 0;
    c->stage = STAGE_REQUESTS;
}

static void export_name(struct option *o)
{
    struct connection *c = o->c;
    const struct nbd_export *export = find_export(c, (const char *)o->data, o->len);
    if (!export) { /* this option has no way to say so */
        c->ending = true;
        return;
    }
    uint8_t *to = connection_control(c, 10 + (c->no_zeroes ? 0 : OLD_PADDING));
    if (!to)
        return;
    store_be64(to, export->node->size);
    store_be16(to + 8, export_flags(c, export->node));
    if (!c->no_zeroes)
        memset(to + 10, 0, OLD_PADDING);
    begin_requests(c, export);
}

static void say_export(const struct option *o, const struct nbd_export *export)
{
    const struct block_node *node = export->node;
    uint8_t info[14], name[2 + NBD_EXPORT_NAME_MAX];
    size_t name_len = strlen(export->name);
    store_be16(info, NBD_INFO_EXPORT);
    store_be64(info + 2, node->size);
    store_be16(info + 10, export_flags(o->c, node));
    reply(o, NBD_REP_INFO, info, 12);
    store_be16(info, NBD_INFO_BLOCK_SIZE);
    store_be32(info + 2, node->block_size);
    store_be32(info + 6, node->physical_block_size > 4096 ? node->physical_block_size : 4096);
    store_be32(info + 10, NBD_PAYLOAD_MAX);
    reply(o, NBD_REP_INFO, info, 14);
    store_be16(name, NBD_INFO_NAME);
    memcpy(name + 2, export->name, name_len);
    reply(o, NBD_REP_INFO, name, (uint32_t)(2 + name_len));
}

/* Which informations the client asks for makes no difference: it gets them all. */
static void info(struct option *o)
{
    const char *name;
    uint32_t name_len;
    uint8_t count[2];
    if (!take_string(o, &name, &name_len) || !take(o, count, 2) || o->len != load_be16(count) * 2u) {
        refuse(o, NBD_REP_ERR_INVALID, "the option's length is wrong");
        return;
    }
    const struct nbd_export *export = find_export(o->c, name, name_len);
    if (!export) {
        refuse(o, NBD_REP_ERR_UNKNOWN, "there is no such export");
        return;
    }
    say_export(o, export);
    reply(o, NBD_REP_ACK, NULL, 0);
    if (o->number == NBD_OPT_GO)
        begin_requests(o->c, export);
}

/* ---- LIST, ABORT, STARTTLS, STRUCTURED_REPLY ---- */

static bool empty(const struct option *o)
{
    if (o->len)
        refuse(o, NBD_REP_ERR_INVALID, "this option has no data");
    return !o->len;
}

static void list(struct option *o)
{
    const struct nbd_server_config *config = &o->c->server->config;
    if (!empty(o))
        return;
    for (unsigned i = 0; i < config->export_count; i++) {
        uint8_t entry[4 + NBD_EXPORT_NAME_MAX];
        size_t len = strlen(config->exports[i].name);
        store_be32(entry, (uint32_t)len);
        memcpy(entry + 4, config->exports[i].name, len);
        reply(o, NBD_REP_SERVER, entry, (uint32_t)(4 + len));
    }
    reply(o, NBD_REP_ACK, NULL, 0);
}

static void abort_option(struct option *o)
{
    reply(o, NBD_REP_ACK, NULL, 0);
    o->c->ending = true;
}

static void starttls(struct option *o)
{
    if (!empty(o))
        return;
    if (!o->c->server->config.tls) {
        refuse(o, NBD_REP_ERR_POLICY, "this server has no TLS");
    } else if (o->c->tls) {
        refuse(o, NBD_REP_ERR_INVALID, "TLS is on already");
    } else {
        reply(o, NBD_REP_ACK, NULL, 0);
        o->c->stage = STAGE_TLS_BEGINS;
    }
}

static void structured_reply(struct option *o)
{
    if (!empty(o))
        return;
    o->c->structured = true;
    reply(o, NBD_REP_ACK, NULL, 0);
}

/* ---- LIST_META_CONTEXT, SET_META_CONTEXT ---- */

/* The contexts of an export that a query names; a list also takes a namespace, "base:". */
static unsigned matching(const struct nbd_export *export, const char *query, uint32_t len, bool list_all)
{
    unsigned found = 0;
    char bitmap[sizeof BITMAP + NBD_EXPORT_NAME_MAX] = BITMAP;
    if (same(query, len, ALLOCATION) || (list_all && same(query, len, "base:")))
        found |= 1u << CONTEXT_ALLOCATION;
    if (!export->bitmap)
        return found;
    strncat(bitmap, export->bitmap, NBD_EXPORT_NAME_MAX);
    if (same(query, len, bitmap) || (list_all && (same(query, len, "qemu:") || same(query, len, BITMAP))))
        found |= 1u << CONTEXT_BITMAP;
    return found;
}

static void say_context(const struct option *o, const struct nbd_export *export, unsigned context)
{
    char entry[4 + sizeof BITMAP + NBD_EXPORT_NAME_MAX];
    store_be32(entry, o->number == NBD_OPT_SET_META_CONTEXT ? context + 1 : 0);
    bool bitmap = context == CONTEXT_BITMAP;
    int len = snprintf(entry + 4, sizeof entry - 4, "%s%.*s", bitmap ? BITMAP : ALLOCATION, (int)NBD_EXPORT_NAME_MAX,
                       bitmap ? export->bitmap : "");
    reply(o, NBD_REP_META_CONTEXT, entry, 4 + (uint32_t)len);
}

/* All queries together, or false when they are not well formed. */
static bool take_queries(struct option *o, const struct nbd_export *export, unsigned *ret_contexts)
{
    uint32_t count, len;
    bool list_all = o->number == NBD_OPT_LIST_META_CONTEXT;
    if (!take_u32(o, &count))
        return false;
    unsigned contexts = 0;
    if (!count && list_all)
        contexts = 1u << CONTEXT_ALLOCATION | (export && export->bitmap ? 1u << CONTEXT_BITMAP : 0);
    for (uint32_t i = 0; i < count; i++) {
        const char *query;
        if (!take_string(o, &query, &len))
            return false;
        if (export)
            contexts |= matching(export, query, len, list_all);
    }
    *ret_contexts = contexts;
    return !o->len;
}

static void meta_context(struct option *o)
{
    struct connection *c = o->c;
    const char *name;
    uint32_t name_len;
    unsigned contexts = 0;
    bool set = o->number == NBD_OPT_SET_META_CONTEXT;
    if (set)
        c->contexts_of = NULL;
    const struct nbd_export *export = take_string(o, &name, &name_len) ? find_export(c, name, name_len) : NULL;
    if (!c->structured || !take_queries(o, export, &contexts)) {
        refuse(o, NBD_REP_ERR_INVALID, c->structured ? "the option's length is wrong" : "first ask for structured replies");
        return;
    }
    if (!export) {
        refuse(o, NBD_REP_ERR_UNKNOWN, "there is no such export");
        return;
    }
    for (unsigned i = 0; i < CONTEXTS; i++)
        if (contexts & 1u << i)
            say_context(o, export, i);
    reply(o, NBD_REP_ACK, NULL, 0);
    if (set) {
        c->contexts = contexts;
        c->contexts_of = export;
    }
}

/* ---- the table ---- */

static const struct {
    void (*serve)(struct option *o);
    bool without_tls; /* also where TLS is asked for */
} options[] = {
    [NBD_OPT_EXPORT_NAME] = {export_name, false},
    [NBD_OPT_ABORT] = {abort_option, true},
    [NBD_OPT_LIST] = {list, false},
    [NBD_OPT_STARTTLS] = {starttls, true},
    [NBD_OPT_INFO] = {info, false},
    [NBD_OPT_GO] = {info, false},
    [NBD_OPT_STRUCTURED_REPLY] = {structured_reply, false},
    [NBD_OPT_LIST_META_CONTEXT] = {meta_context, false},
    [NBD_OPT_SET_META_CONTEXT] = {meta_context, false},
};

static void serve(struct option *o)
{
    bool known = o->number < sizeof options / sizeof options[0] && options[o->number].serve;
    bool refused = o->c->server->config.tls && !o->c->tls && !(known && options[o->number].without_tls);
    if (refused && o->number == NBD_OPT_EXPORT_NAME)
        o->c->ending = true;
    else if (refused)
        refuse(o, NBD_REP_ERR_TLS_REQD, "this server asks for TLS");
    else if (!known)
        refuse(o, NBD_REP_ERR_UNSUP, "this option is not known");
    else
        options[o->number].serve(o);
}

void negotiate_skipped(struct connection *c)
{
    struct option o = {.c = c, .number = c->skip_option};
    if (c->stage == STAGE_OPTIONS)
        refuse(&o, NBD_REP_ERR_TOO_BIG, "the option is too long");
}

/* ---- messages ---- */

void negotiate_begin(struct connection *c)
{
    uint8_t *to = connection_control(c, 18);
    store_be64(to, NBD_INIT_MAGIC);
    store_be64(to + 8, NBD_OPTION_MAGIC);
    store_be16(to + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
}

static size_t take_flags(struct connection *c, const uint8_t *data, size_t len)
{
    if (len < 4)
        return 0;
    uint32_t flags = load_be32(data);
    if (flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES))
        connection_fail(c);
    c->no_zeroes = flags & NBD_NO_ZEROES;
    c->stage = STAGE_OPTIONS;
    return 4;
}

size_t negotiate(struct connection *c, const uint8_t *data, size_t len)
{
    if (c->stage == STAGE_FLAGS)
        return take_flags(c, data, len);
    if (len < NBD_OPTION_LEN || c->control_from < c->control_to) /* one answer at a time: that bounds them */
        return 0;
    struct option o = {.c = c, .number = load_be32(data + 8), .data = data + NBD_OPTION_LEN, .len = load_be32(data + 12)};
    if (load_be64(data) != NBD_OPTION_MAGIC) {
        connection_fail(c);
        return 0;
    }
    if (o.len > OPTION_MAX) {
        c->skip = o.len;
        c->skip_option = o.number;
        return NBD_OPTION_LEN;
    }
    if (len - NBD_OPTION_LEN < o.len)
        return 0;
    size_t all = NBD_OPTION_LEN + o.len;
    serve(&o);
    return all;
}
