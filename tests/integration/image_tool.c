/* The image library from the command line, for tests: image-tool [OPTION...] DIR VERB [ARGUMENT...] */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/own.h"
#include "image/image.h"

struct tool {
    struct image_store *store;
    struct image_remote remote;
    uint64_t cancel_at; /* bytes done; 0: never */
    _Atomic uint64_t done;
    bool show_progress;
};

static void report(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct tool *tool = context;
    tool->done = done;
    if (tool->show_progress)
        fprintf(stderr, "progress %s %llu/%llu\n", what, (unsigned long long)done, (unsigned long long)total);
}

static bool cancelled(void *context)
{
    struct tool *tool = context;
    return tool->cancel_at && tool->done >= tool->cancel_at;
}

static int print_json(json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(1));
    json_decref(json);
    return 0;
}

/* "add REF CONFIG LAYER..." */
static int add(struct tool *tool, char **args, const struct image_progress *progress, char *digest, struct err *err)
{
    struct image_layer_source layers[IMAGE_LAYERS_MAX];
    size_t count = 0;
    for (char **path = args + 2; *path && count < IMAGE_LAYERS_MAX; path++)
        layers[count++] = (struct image_layer_source){.fd = open(*path, O_RDONLY | O_CLOEXEC)};
    json_t *config = json_loads(args[1], 0, NULL);
    int ret = image_add(tool->store, args[0], layers, count, config, NULL, progress, digest, err);
    while (count-- > 0)
        close(layers[count].fd);
    json_decref(config);
    return ret;
}

struct pulling {
    struct tool *tool;
    const struct image_progress *progress;
    const char *ref;
    int ret;
    char digest[IMAGE_DIGEST_SIZE];
    struct err err;
};

static void *pull_one(void *context)
{
    struct pulling *pull = context;
    pull->ret = image_pull(pull->tool->store, pull->ref, &pull->tool->remote, pull->progress, pull->digest, &pull->err);
    return NULL;
}

/* "pull REF...": all at once */
static int pull(struct tool *tool, char **args, const struct image_progress *progress, struct err *err)
{
    struct pulling pulls[8];
    pthread_t threads[8];
    size_t count = 0;
    int ret = 0;
    for (; args[count] && count < 8; count++) {
        pulls[count] = (struct pulling){.tool = tool, .progress = progress, .ref = args[count]};
        pthread_create(&threads[count], NULL, pull_one, &pulls[count]);
    }
    for (size_t i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        if (pulls[i].ret < 0) {
            ret = pulls[i].ret;
            *err = pulls[i].err;
        } else {
            printf("%s\n", pulls[i].digest);
        }
    }
    return ret;
}

static int transfer(struct tool *tool, const char *verb, char **args, struct err *err)
{
    struct image_progress progress = {report, cancelled, tool};
    char digest[IMAGE_DIGEST_SIZE] = "", ref[IMAGE_REF_SIZE] = "";
    int ret;
    if (!strcmp(verb, "pull"))
        ret = pull(tool, args, &progress, err);
    else if (!strcmp(verb, "push"))
        ret = image_push(tool->store, args[0], args[1], &tool->remote, &progress, err);
    else if (!strcmp(verb, "import"))
        ret = image_import(tool->store, STDIN_FILENO, args[0], &progress, ref, err);
    else if (!strcmp(verb, "export"))
        ret = image_export(tool->store, args[0], STDOUT_FILENO, &progress, err);
    else if (!strcmp(verb, "add"))
        ret = add(tool, args, &progress, digest, err);
    else
        return err_say(err, EINVAL, "'%s' is no verb", verb);
    if (ret == 0 && (*digest || *ref))
        printf("%s%s\n", digest, ref);
    return ret;
}

static int run(struct tool *tool, const char *verb, char **args, struct err *err)
{
    json_t *json = NULL;
    struct image_gc_result result;
    size_t count = 0;
    while (args[count])
        count++;
    if (!strcmp(verb, "ls"))
        return image_list(tool->store, &json, err) < 0 ? -1 : print_json(json);
    if (!strcmp(verb, "inspect"))
        return image_inspect(tool->store, args[0], &json, err) < 0 ? -1 : print_json(json);
    if (!strcmp(verb, "tag"))
        return image_tag(tool->store, args[0], args[1], err);
    if (!strcmp(verb, "rm"))
        return image_remove(tool->store, args[0], err);
    if (strcmp(verb, "gc") != 0)
        return transfer(tool, verb, args, err);
    int ret = image_gc(tool->store, (const char *const *)args, count, &result, err);
    if (ret == 0)
        printf("%llu blobs, %llu bytes\n", (unsigned long long)result.blobs, (unsigned long long)result.bytes);
    return ret;
}

static int usage(void)
{
    fputs("usage: image-tool [--insecure] [--user NAME] [--password P] [--ca FILE] [--cancel-at BYTES] [--progress] DIR VERB [ARG...]\n",
          stderr);
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"insecure", 0, NULL, 'i'}, {"user", 1, NULL, 'u'}, {"password", 1, NULL, 'p'},
        {"ca", 1, NULL, 'c'}, {"cancel-at", 1, NULL, 'x'}, {"progress", 0, NULL, 'P'}, {NULL, 0, NULL, 0}};
    struct tool tool = {0};
    struct err err = {0};
    for (int c; (c = getopt_long(argc, argv, "+", options, NULL)) != -1;) {
        if (c == 'i')
            tool.remote.insecure = true;
        else if (c == 'u')
            tool.remote.username = optarg;
        else if (c == 'p')
            tool.remote.password = optarg;
        else if (c == 'c')
            tool.remote.ca_file = optarg;
        else if (c == 'x')
            tool.cancel_at = strtoull(optarg, NULL, 10);
        else if (c == 'P')
            tool.show_progress = true;
        else
            return usage();
    }
    if (argc - optind < 2)
        return usage();
    int ret = image_store_open(argv[optind], &tool.store, &err);
    if (ret == 0)
        ret = run(&tool, argv[optind + 1], argv + optind + 2, &err);
    image_store_close(tool.store);
    if (ret < 0)
        fprintf(stderr, "image-tool: %s\n", err.message);
    return ret < 0;
}
