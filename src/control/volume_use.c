/* Volumes: who uses them, in their documents. */
#include "control/volume_impl.h"

#include <errno.h>
#include <string.h>

static const char *user_id(const json_t *user)
{
    const char *id = json_string_value(json_object_get(user, "instance"));
    return id ? id : "";
}

/* The users without this one; a new reference. */
static json_t *others(const json_t *users, const char *instance)
{
    json_t *list = json_array();
    size_t i;
    json_t *user;
    json_array_foreach((json_t *)(uintptr_t)users, i, user)
        if (strcmp(user_id(user), instance) != 0)
            json_array_append(list, user);
    return list;
}

static int check_free(const struct volumes *volumes, const char *name, const json_t *users, bool read_only, struct err *err)
{
    size_t i;
    const json_t *user;
    json_array_foreach(users, i, user) {
        bool reads = json_is_true(json_object_get(user, "read_only"));
        if (!reads)
            return err_say(err, EBUSY, "volume '%s' is in use by instance '%s', which may write: stop it first", name,
                           volume_user(volumes, user).name);
        if (!read_only)
            return err_say(err, EBUSY, "volume '%s' is in use by instance '%s': stop it first, or use the volume read-only", name,
                           volume_user(volumes, user).name);
    }
    return 0;
}

int volume_attach(struct volumes *volumes, const char *name, const char *instance, bool read_only, char **ret_path,
                  struct err *err)
{
    own_store_doc doc = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_load(volumes, name, &doc, err);
    if (r < 0)
        return r;
    struct volume_file file = volume_file(name, "qcow2");
    if (!volume_has_file(volumes, file.name))
        return err_say(err, EIO, "the file of volume '%s' is gone: bring back '%s/%s', or remove the volume", name, volumes->dir,
                       file.name);
    json_t *users = others(json_object_get(doc.value, "used_by"), instance);
    r = check_free(volumes, name, users, read_only, err);
    char *path = NULL;
    if (r == 0 && asprintf(&path, "%s/%s", volumes->dir, file.name) < 0) {
        path = NULL;
        r = err_set(err, ENOMEM, "attach volume '%s'", name);
    }
    json_array_append_new(users, json_pack("{s:s, s:b}", "instance", instance, "read_only", read_only));
    json_object_set_new(doc.value, "used_by", users);
    if (r == 0)
        r = volume_save(volumes, name, json_incref(doc.value), doc.revision, NULL, err);
    if (r < 0)
        free(path);
    else
        *ret_path = path;
    return r;
}

int volume_detach(struct volumes *volumes, const char *name, const char *instance, struct err *err)
{
    own_store_doc doc = {0};
    own_volume_lock lock;
    volume_lock(volumes, &lock, name, NULL);
    int r = volume_load(volumes, name, &doc, err);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return r;
    json_object_set_new(doc.value, "used_by", others(json_object_get(doc.value, "used_by"), instance));
    return volume_save(volumes, name, json_incref(doc.value), doc.revision, NULL, err);
}
