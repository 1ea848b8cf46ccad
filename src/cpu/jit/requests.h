/* What vCPUs ask of each other about pages with translated code.
 *
 * "Drop writes": before a vCPU reads bytes to translate, no other vCPU may still write them past the TLB check. The asker waits
 * until the other has served the request, or is offline (halted, or not in vcpu_run): then it serves it before it
 * runs guest code again. While it waits, the asker serves its own requests, so two can ask each other.
 * "Written": bytes changed; translations of them go. Nobody waits: the request is served before the next block entry, and so before
 * the interrupt or the serializing instruction that follows a cross-modification. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct jit_vcpu;

#define REQUESTS_MAX 512

struct request {
    const uint8_t *page;
    uint16_t start, end; /* bytes written; start == end: drop writes */
};

struct requests {
    pthread_mutex_t lock;
    unsigned count;
    bool overflow; /* more than fits: drop everything */
    struct request list[REQUESTS_MAX];
    uint64_t posted, served; /* atomically read by askers */
    uint32_t offline;        /* atomically; set while this vCPU runs no guest code */
};

void requests_init(struct jit_vcpu *cpu);
/* Own thread. */
void requests_serve(struct jit_vcpu *cpu);
void requests_drop_writes(struct jit_vcpu *cpu, const uint8_t *page);
void requests_go_offline(struct jit_vcpu *cpu);
void requests_go_online(struct jit_vcpu *cpu);
/* Of another vCPU. */
void requests_ask_drop_writes(struct jit_vcpu *asker, struct jit_vcpu *other, const uint8_t *page);
void requests_post_written(struct jit_vcpu *other, const uint8_t *page, uint64_t start, uint64_t end);
