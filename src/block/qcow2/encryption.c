/* Encrypted images: only guest data is, never metadata. With LUKS a node between us and the data does it, which numbers
 * sectors as the file does; the LUKS header lies in clusters of the image. The old AES method numbers sectors as the guest
 * does, has no header, and is only read. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/crypt/key.h"
#include "block/qcow2/qcow2_impl.h"

#define LEGACY_KEY_LEN 16u

static int open_luks(struct qcow2 *q, const struct block_key *key, struct err *err)
{
    struct crypt_cipher *cipher;
    struct block_node *data;
    int r = luks_load(q->file, q->luks_offset, q->luks_len, key, q->node.name, &q->luks, &cipher, err);
    if (r < 0 || !cipher)
        return r;
    if (q->luks.version != 1 || q->luks.iv_offset)
        r = err_say(err, ENOTSUP, "disk '%s': LUKS %u inside of qcow2 is not supported", q->node.name, q->luks.version);
    else
        r = crypt_node_wrap(q->data, q->external, cipher, &data, err);
    if (r < 0)
        crypt_cipher_free(cipher);
    else
        q->data = data;
    return r;
}

/* The key is the password's first bytes, as they are. */
static int open_legacy(struct qcow2 *q, const struct block_options *o, struct err *err)
{
    if (!o->read_only)
        return err_say(err, ENOTSUP, "disk '%s' has the old AES encryption, which is only read; convert it to luks", q->node.name);
    uint8_t *key = o->key ? secret_alloc(LEGACY_KEY_LEN) : NULL;
    if (!key)
        return o->key ? err_say(err, ENOMEM, "disk '%s': no memory can be locked (ulimit -l)", q->node.name) : 0;
    memcpy(key, o->key->bytes, o->key->len < LEGACY_KEY_LEN ? o->key->len : LEGACY_KEY_LEN);
    int r = crypt_cipher_new("aes-cbc-plain64", key, LEGACY_KEY_LEN, BLOCK_SECTOR_SIZE, 0, &q->legacy, err);
    secret_free(key);
    return r;
}

int encryption_open(struct qcow2 *q, const struct block_options *o, struct err *err)
{
    if (q->crypt_method == CRYPT_NONE)
        return 0;
    if (!o->key && !o->no_key)
        return err_say(err, ENOKEY, "disk '%s' is encrypted and needs its key (key=FILE, --key FILE)", q->node.name);
    q->locked = !o->key;
    return q->crypt_method == CRYPT_AES ? open_legacy(q, o, err) : open_luks(q, o->key, err);
}

int encryption_parse(struct qcow2 *q, uint32_t method, const uint8_t *pointer, struct err *err)
{
    q->crypt_method = method;
    if (method > CRYPT_LUKS)
        return err_say(err, ENOTSUP, "encryption method %u is not known", method);
    if ((method == CRYPT_LUKS) != (pointer != NULL))
        return err_say(err, EINVAL, "its encryption method and its header extensions disagree");
    if (!pointer)
        return 0;
    q->luks_offset = load_be64(pointer);
    q->luks_len = load_be64(pointer + 8);
    if (!q->luks_offset || q->luks_offset & (q->cluster_size - 1) || !q->luks_len || q->luks_len > LUKS_BYTES_MAX ||
        q->luks_offset > q->file->size || q->luks_len > q->file->size - q->luks_offset)
        return err_say(err, EINVAL, "its LUKS header lies beyond the end of the file or between clusters");
    return 0;
}
