/* Routing: which local APICs a message or an IPI addresses, and what it does there.
 *
 * Runs on any thread. Of the target it reads apic_base, svr, ldr and dfr and sets IRR, TMR and the pending fields, all
 * atomically; the target acts when it polls. Source: Intel SDM 3A 11.6, 11.11. */
#include "cpu/jit/lapic_impl.h"

enum delivery_mode {
    DELIVER_FIXED, DELIVER_LOWEST, DELIVER_SMI, DELIVER_RESERVED, DELIVER_NMI, DELIVER_INIT, DELIVER_SIPI, DELIVER_EXTINT
};
enum shorthand { TO_DEST, TO_SELF, TO_ALL, TO_OTHERS };

struct message {
    uint32_t dest;
    uint32_t broadcast; /* destination that means all: 0xff or 0xffffffff */
    bool logical, level;
    enum delivery_mode mode;
    uint8_t vector;
};

static uint32_t load_shared(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static bool matches_logical(const struct jit_vcpu *target, uint32_t dest)
{
    if (lapic_is_x2apic(target)) {
        uint32_t id = target->lapic.id;
        return dest >> 16 == id >> 4 && (dest >> (id & 15) & 1);
    }
    uint32_t ldr = load_shared(&target->lapic.ldr) >> 24;
    if (load_shared(&target->lapic.dfr) >> 28 == 0xf)
        return (ldr & dest & 0xff) != 0;
    return ldr >> 4 == (dest >> 4 & 0xf) && (ldr & dest & 0xf);
}

static bool matches(const struct jit_vcpu *target, const struct message *message)
{
    if (!(__atomic_load_n(&target->lapic.apic_base, __ATOMIC_RELAXED) & APIC_BASE_ENABLE))
        return false;
    if (message->dest == message->broadcast)
        return true;
    return message->logical ? matches_logical(target, message->dest) : target->lapic.id == message->dest;
}

/* A bit for each vCPU that the message addresses. */
static uint32_t find_targets(const struct jit_engine *engine, const struct message *message)
{
    uint32_t targets = 0;
    for (unsigned i = 0; i < engine->vcpu_count; i++)
        if (engine->vcpus[i] && matches(engine->vcpus[i], message))
            targets |= 1u << i;
    return targets;
}

static bool accepts_fixed(const struct jit_vcpu *target)
{
    return (load_shared(&target->lapic.svr) & APIC_SVR_ENABLE) != 0;
}

/* Lowest priority: one of the targets that accept, spread by vector, so that a device keeps its CPU. */
static uint32_t choose_one(const struct jit_engine *engine, uint32_t targets, uint8_t vector)
{
    uint32_t able = 0;
    for (uint32_t rest = targets; rest; rest &= rest - 1) {
        unsigned i = (unsigned)__builtin_ctz(rest);
        if (accepts_fixed(engine->vcpus[i]))
            able |= 1u << i;
    }
    if (!able)
        return 0;
    for (unsigned skip = vector % (unsigned)__builtin_popcount(able); skip; skip--)
        able &= able - 1;
    return able & -able;
}

static void deliver(struct jit_vcpu *target, const struct message *message)
{
    switch (message->mode) {
    case DELIVER_FIXED:
    case DELIVER_LOWEST:
    case DELIVER_EXTINT:
        if (!lapic_set_irr(target, message->vector, message->level))
            return;
        break;
    case DELIVER_NMI:
        __atomic_store_n(&target->nmi_pending, 1, __ATOMIC_SEQ_CST);
        break;
    case DELIVER_INIT:
        __atomic_store_n(&target->sipi_pending, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&target->init_pending, 1, __ATOMIC_SEQ_CST);
        break;
    case DELIVER_SIPI:
        __atomic_store_n(&target->sipi_vector, message->vector, __ATOMIC_SEQ_CST);
        __atomic_store_n(&target->sipi_pending, 1, __ATOMIC_SEQ_CST);
        break;
    case DELIVER_SMI:
    case DELIVER_RESERVED:
    default: return; /* there is no system management mode */
    }
    vcpu_notify(target);
}

static void send(struct jit_engine *engine, const struct message *message, uint32_t targets)
{
    if (message->mode == DELIVER_LOWEST)
        targets = choose_one(engine, targets, message->vector);
    for (; targets; targets &= targets - 1)
        deliver(engine->vcpus[__builtin_ctz(targets)], message);
}

void lapic_deliver_msi(struct jit_engine *engine, struct msi msi)
{
    struct message message = {
        .dest = (uint32_t)(msi.address >> 12) & 0xff,
        .broadcast = 0xff,
        .logical = msi.address >> 2 & 1,
        .level = msi.data >> 15 & 1,
        .mode = (enum delivery_mode)(msi.data >> 8 & 7),
        .vector = (uint8_t)msi.data,
    };
    send(engine, &message, find_targets(engine, &message));
}

static uint32_t ipi_targets(const struct jit_vcpu *cpu, enum shorthand shorthand, const struct message *message)
{
    uint32_t self = 1u << cpu->base.index;
    struct message all = {.dest = UINT32_MAX, .broadcast = UINT32_MAX};
    switch (shorthand) {
    case TO_SELF: return self;
    case TO_ALL: return find_targets(cpu->engine, &all);
    case TO_OTHERS: return find_targets(cpu->engine, &all) & ~self;
    case TO_DEST:
    default: return find_targets(cpu->engine, message);
    }
}

void lapic_send_ipi(struct jit_vcpu *cpu, uint32_t icr_low, uint32_t dest)
{
    struct message message = {
        .dest = dest,
        .broadcast = lapic_is_x2apic(cpu) ? UINT32_MAX : 0xff,
        .logical = icr_low >> 11 & 1,
        .mode = (enum delivery_mode)(icr_low >> 8 & 7),
        .vector = (uint8_t)icr_low,
    };
    bool deassert = !(icr_low >> 14 & 1) && (icr_low >> 15 & 1);
    if (message.mode == DELIVER_INIT && deassert)
        return;
    bool has_vector = message.mode == DELIVER_FIXED || message.mode == DELIVER_LOWEST;
    if (has_vector && message.vector < APIC_FIRST_VECTOR) {
        lapic_error(cpu, APIC_ESR_SEND_VECTOR);
        return;
    }
    send(cpu->engine, &message, ipi_targets(cpu, (enum shorthand)(icr_low >> 18 & 3), &message));
}
