#include "api/prune.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image/image.h"
#include "image/rootfs.h"

static const char *image_of(const struct store_doc *instance)
{
    return json_string_value(json_object_get(json_object_get(instance->value, "spec"), "image"));
}

/* The images that instances were made from, whatever their tags lead to now; borrowed from the documents. */
static size_t collect_pins(const struct store_list *list, const char **pins)
{
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        const char *image = json_string_value(json_object_get(list->docs[i].value, "image_digest"));
        if (image && image_digest_valid(image))
            pins[count++] = image;
    }
    return count;
}

static bool full_ref(const char *text, char ret_full[static IMAGE_REF_SIZE])
{
    struct image_ref ref;
    if (!text || image_ref_parse(text, &ref, NULL) < 0)
        return false;
    image_ref_format(&ref, ret_full);
    return true;
}

int image_check_unused(struct platform *platform, const char *ref, struct err *err)
{
    struct store_list list;
    char wanted[IMAGE_REF_SIZE], used[IMAGE_REF_SIZE];
    if (!full_ref(ref, wanted))
        return 0;
    int r = store_list_prefix(platform->store, "instances/", &list, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < list.count; i++)
        if (full_ref(image_of(&list.docs[i]), used) && !strcmp(wanted, used))
            r = err_say(err, EBUSY, "instance '%s' is made from it: remove that first",
                        list.docs[i].key + strlen("instances/"));
    store_list_clear(&list);
    return r;
}

static int collect_garbage(struct platform *platform, const struct store_list *list, struct image_gc_result *result,
                           struct err *err)
{
    const char **pins = calloc(list->count + 1, sizeof *pins);
    if (!pins)
        return err_set(err, ENOMEM, "prune");
    int r = image_gc(platform->images, pins, collect_pins(list, pins), result, err);
    free(pins);
    return r;
}

int images_prune(struct platform *platform, const struct store_audit *audit, json_t **ret_result, struct err *err)
{
    struct store_list list;
    struct image_gc_result result = {0};
    uint64_t roots = 0;
    int r = store_list_prefix(platform->store, "instances/", &list, err);
    if (r < 0)
        return r;
    r = collect_garbage(platform, &list, &result, err);
    store_list_clear(&list);
    if (r == 0)
        r = image_roots_prune(platform->images, &roots, err);
    if (r == 0)
        r = store_commit(platform->store, NULL, 0, audit, NULL, err);
    if (r < 0)
        return r;
    *ret_result = json_pack("{s:I, s:I}", "blobs", (json_int_t)result.blobs, "bytes",
                            (json_int_t)result.bytes + (json_int_t)roots);
    return 0;
}
