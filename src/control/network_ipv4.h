/* IPv4 addresses, subnets and MAC addresses as numbers and text. Pure functions; addresses are in host byte order. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

#define IPV4_TEXT_SIZE 16
#define SUBNET_TEXT_SIZE 19
#define MAC_TEXT_SIZE 18

struct subnet {
    uint32_t base; /* host bits zero */
    unsigned prefix;
};

struct mac {
    uint8_t octet[6];
};

/* Dotted decimal without leading zeroes, nothing else around it. */
must_check bool ipv4_parse(const char *text, uint32_t *ret_address);
void ipv4_format(uint32_t address, char ret_text[static IPV4_TEXT_SIZE]);

/* "10.88.0.0/24": private or shared address space (RFC 1918, RFC 6598), /8 to /29, host bits zero. */
must_check int subnet_parse(const char *text, struct subnet *ret_subnet, struct err *err);
void subnet_format(struct subnet subnet, char ret_text[static SUBNET_TEXT_SIZE]);
uint32_t subnet_mask(struct subnet subnet);
uint32_t subnet_broadcast(struct subnet subnet);
bool subnet_contains(struct subnet subnet, uint32_t address);
/* Neither the network's own address nor its broadcast. */
bool subnet_is_host(struct subnet subnet, uint32_t address);
bool subnets_overlap(struct subnet a, struct subnet b);
/* The first /24 of 10.88.0.0 … 10.255.255.0 that overlaps none of `taken`; false when all are. */
must_check bool subnet_first_free(const struct subnet *taken, unsigned count, struct subnet *ret_subnet);

/* Six pairs of hex digits between colons. */
must_check bool mac_parse(const char *text, struct mac *ret_mac);
void mac_format(struct mac mac, char ret_text[static MAC_TEXT_SIZE]);
/* Neither multicast nor zero: what a station may have (IEEE 802-2014 §8.2). */
bool mac_is_station(struct mac mac);
/* A random one of 52:54:00:xx:xx:xx, the locally administered prefix that hypervisors use. */
struct mac mac_random(void);
