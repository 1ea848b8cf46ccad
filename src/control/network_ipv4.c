#include "control/network_ipv4.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>


#define POOL_FIRST 0x0a580000u /* 10.88.0.0 */
#define POOL_LAST 0x0affff00u  /* 10.255.255.0 */
#define POOL_PREFIX 24u

static const struct subnet usable[] = {
    {0x0a000000, 8},  /* RFC 1918 */
    {0xac100000, 12}, /* RFC 1918 */
    {0xc0a80000, 16}, /* RFC 1918 */
    {0x64400000, 10}, /* RFC 6598 */
};

bool ipv4_parse(const char *text, uint32_t *ret_address)
{
    struct in_addr in;
    if (!text || inet_pton(AF_INET, text, &in) != 1)
        return false;
    *ret_address = ntohl(in.s_addr);
    return true;
}

void ipv4_format(uint32_t address, char ret_text[static IPV4_TEXT_SIZE])
{
    snprintf(ret_text, IPV4_TEXT_SIZE, "%u.%u.%u.%u", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff,
             address & 0xff);
}

uint32_t subnet_mask(struct subnet subnet)
{
    return subnet.prefix ? UINT32_MAX << (32 - subnet.prefix) : 0;
}

uint32_t subnet_broadcast(struct subnet subnet)
{
    return subnet.base | ~subnet_mask(subnet);
}

bool subnet_contains(struct subnet subnet, uint32_t address)
{
    return (address & subnet_mask(subnet)) == subnet.base;
}

bool subnet_is_host(struct subnet subnet, uint32_t address)
{
    return subnet_contains(subnet, address) && address != subnet.base && address != subnet_broadcast(subnet);
}

bool subnets_overlap(struct subnet a, struct subnet b)
{
    return a.prefix < b.prefix ? subnet_contains(a, b.base) : subnet_contains(b, a.base);
}

static bool subnet_is_usable(struct subnet subnet)
{
    for (unsigned i = 0; i < sizeof usable / sizeof *usable; i++) {
        if (subnet.prefix >= usable[i].prefix && subnet_contains(usable[i], subnet.base))
            return true;
    }
    return false;
}

static bool subnet_split(const char *text, struct subnet *ret_subnet)
{
    char address[IPV4_TEXT_SIZE];
    const char *slash = text ? strchr(text, '/') : NULL;
    if (!slash || slash - text >= IPV4_TEXT_SIZE)
        return false;
    memcpy(address, text, (size_t)(slash - text));
    address[slash - text] = '\0';
    size_t digits = strspn(slash + 1, "0123456789");
    if (digits < 1 || digits > 2 || slash[1 + digits])
        return false;
    ret_subnet->prefix = (unsigned)strtoul(slash + 1, NULL, 10);
    return ret_subnet->prefix <= 32 && ipv4_parse(address, &ret_subnet->base);
}

int subnet_parse(const char *text, struct subnet *ret_subnet, struct err *err)
{
    struct subnet subnet;
    if (!subnet_split(text, &subnet))
        return err_say(err, EINVAL, "subnet '%.40s' is not of the form 10.88.0.0/24", text ? text : "");
    if (subnet.prefix < 8 || subnet.prefix > 29)
        return err_say(err, EINVAL, "subnet '%s': its prefix must be between /8 and /29", text);
    if (subnet.base & ~subnet_mask(subnet))
        return err_say(err, EINVAL, "subnet '%s' has host bits set: write its first address", text);
    if (!subnet_is_usable(subnet))
        return err_say(err, EINVAL,
                       "subnet '%s' is not private: take one within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10",
                       text);
    *ret_subnet = subnet;
    return 0;
}

void subnet_format(struct subnet subnet, char ret_text[static SUBNET_TEXT_SIZE])
{
    char address[IPV4_TEXT_SIZE];
    ipv4_format(subnet.base, address);
    snprintf(ret_text, SUBNET_TEXT_SIZE, "%s/%u", address, subnet.prefix % 100);
}

static bool is_taken(struct subnet subnet, const struct subnet *taken, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (subnets_overlap(subnet, taken[i]))
            return true;
    }
    return false;
}

bool subnet_first_free(const struct subnet *taken, unsigned count, struct subnet *ret_subnet)
{
    for (uint32_t base = POOL_FIRST; base <= POOL_LAST; base += 1u << (32 - POOL_PREFIX)) {
        struct subnet subnet = {base, POOL_PREFIX};
        if (!is_taken(subnet, taken, count)) {
            *ret_subnet = subnet;
            return true;
        }
    }
    return false;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool mac_parse(const char *text, struct mac *ret_mac)
{
    if (!text || strlen(text) != MAC_TEXT_SIZE - 1)
        return false;
    struct mac mac;
    for (unsigned i = 0; i < 6; i++) {
        int high = hex_digit(text[3 * i]), low = hex_digit(text[3 * i + 1]);
        if (high < 0 || low < 0 || (i < 5 && text[3 * i + 2] != ':'))
            return false;
        mac.octet[i] = (uint8_t)(high << 4 | low);
    }
    *ret_mac = mac;
    return true;
}

void mac_format(struct mac mac, char ret_text[static MAC_TEXT_SIZE])
{
    const uint8_t *o = mac.octet;
    snprintf(ret_text, MAC_TEXT_SIZE, "%02x:%02x:%02x:%02x:%02x:%02x", o[0], o[1], o[2], o[3], o[4], o[5]);
}

bool mac_is_station(struct mac mac)
{
    static const struct mac zero;
    return !(mac.octet[0] & 1) && memcmp(&mac, &zero, sizeof zero) != 0;
}

struct mac mac_random(void)
{
    struct mac mac = {{0x52, 0x54, 0x00}};
    if (getrandom(mac.octet + 3, 3, 0) != 3)
        abort();
    return mac;
}
