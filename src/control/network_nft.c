#include "control/network_nft.h"

#include <errno.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <nftables/libnftables.h>
#include <stdio.h>
#include <string.h>

#include "control/network_netlink.h"

static struct nft_ctx *open_context(void)
{
    struct nft_ctx *context = nft_ctx_new(NFT_CTX_DEFAULT);
    if (!context)
        return NULL;
    nft_ctx_output_set_flags(context, NFT_CTX_OUTPUT_STATELESS | NFT_CTX_OUTPUT_NUMERIC_ALL);
    if (nft_ctx_buffer_output(context) == 0 && nft_ctx_buffer_error(context) == 0)
        return context;
    nft_ctx_free(context);
    return NULL;
}

int nft_apply(const char *text, struct err *err)
{
    struct nft_ctx *context = open_context();
    if (!context)
        return err_set(err, ENOMEM, "nftables");
    int r = 0;
    if (nft_run_cmd_from_buffer(context, text) != 0) {
        const char *reason = nft_ctx_get_error_buffer(context);
        r = err_say(err, EIO, "nftables refuses the rules: %.*s", (int)strcspn(reason, "\n"), reason);
    }
    nft_ctx_free(context);
    return r;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_text(uint64_t hash, const char *text)
{
    for (; *text; text++)
        hash = (hash ^ (uint8_t)*text) * 0x100000001b3u;
    return hash;
}

uint64_t nft_fingerprint(const char *table)
{
    static const char *const families[] = {"inet", "bridge"};
    uint64_t hash = 0xcbf29ce484222325u;
    for (unsigned i = 0; i < 2; i++) {
        char command[80];
        snprintf(command, sizeof command, "list table %s %s", families[i], table);
        struct nft_ctx *context = open_context();
        bool there = context && nft_run_cmd_from_buffer(context, command) == 0;
        if (there)
            hash = hash_text(hash, nft_ctx_get_output_buffer(context));
        nft_ctx_free(context);
        if (!there)
            return 0;
    }
    return hash;
}

static int take_attribute(const struct nlattr *attr, void *arg)
{
    if (mnl_attr_get_type(attr) == NFTA_GEN_ID && mnl_attr_get_payload_len(attr) >= sizeof(uint32_t))
        *(uint32_t *)arg = be32toh(mnl_attr_get_u32(attr));
    return MNL_CB_OK;
}

static int take_generation(const struct nlmsghdr *message, void *arg)
{
    return mnl_attr_parse(message, sizeof(struct nfgenmsg), take_attribute, arg);
}

int nft_generation(uint32_t *ret_generation, struct err *err)
{
    struct netlink_request request;
    struct nfgenmsg *header =
        netlink_begin(&request, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NLM_F_ACK, sizeof *header);
    header->version = NFNETLINK_V0;
    int r = netlink_perform(NETLINK_NETFILTER, &request, take_generation, ret_generation);
    if (r == -EPERM)
        return err_say(err, EPERM, "networks of kind nat need root (CAP_NET_ADMIN); use kind user");
    if (r < 0)
        return err_say(err, ENOTSUP, "networks of kind nat need nftables in the kernel (modprobe nf_tables): %s", strerror(-r));
    return 0;
}
