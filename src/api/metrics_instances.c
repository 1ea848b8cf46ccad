#include "api/metrics_instances.h"

#include <jansson.h>
#include <string.h>

#include "store/store.h"

static const char *const states[] = {"created", "starting", "running", "paused", "stopping", "stopped", "failed"};
#define STATES (sizeof states / sizeof *states)

static void count(const struct store_list *list, unsigned counts[STATES])
{
    for (size_t i = 0; i < list->count; i++) {
        const char *state = json_string_value(json_object_get(json_object_get(list->docs[i].value, "status"), "state"));
        for (size_t s = 0; state && s < STATES; s++)
            counts[s] += !strcmp(states[s], state);
    }
}

void metrics_write_instances(FILE *out, struct platform *platform)
{
    struct store_list list;
    unsigned counts[STATES] = {0};
    if (!platform->store || store_list_prefix(platform->store, "instances/", &list, NULL) < 0)
        return;
    count(&list, counts);
    fputs("# HELP polder_instances Instances by state.\n# TYPE polder_instances gauge\n", out);
    for (size_t s = 0; s < STATES; s++)
        fprintf(out, "polder_instances{state=\"%s\"} %u\n", states[s], counts[s]);
    store_list_clear(&list);
}
