/* Engine `kvm`: the virtual machine as KVM sees it. Memory slots, interrupts, ioeventfds and the dirty log;
 * vCPUs are in vcpu.c, their state in state.c, what CPUID shows in cpuid.c.
 *
 * Split irqchip: local APICs in the kernel, the IOAPIC is the machine's. KVM reports an end of interrupt only
 * for vectors that a route of the first 24 GSIs carries with level trigger, so every level-triggered message
 * that is sent becomes such a route first (routes_lock). All else needs no lock: KVM's own ioctls are
 * thread-safe, and the slots never change. */
#include "cpu/kvm/kvm_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fdname.h"
#include "base/log.h"
#include "base/own.h"
#include "mem/mem.h"

/* Four pages that KVM needs on Intel CPUs without unrestricted guest mode; below the firmware's place under 4
 * GiB. */
#define IDENTITY_MAP_GPA UINT64_C(0xfffbc000)
#define TSS_GPA 0xfffbd000ul

#define MSI_DATA_LEVEL (1u << 15)

static const struct {
    int cap;
    const char *name;
} required_caps[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},   {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"}, {KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"},
    {KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},     {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},         {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},       {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
};

int kvm_device_open(const char *device, int *ret_fd, struct err *err)
{
    const char *name = device ? device : "/dev/kvm";
    own_fd int fd = fdname_open(name, O_RDWR, 0);
    if (fd < 0 && (errno == ENOENT || errno == ENXIO || errno == ENODEV))
        return err_say(err, ENOENT,
                       "no /dev/kvm on this host: load the kvm_intel or kvm_amd module, or use --engine jit");
    if (fd < 0 && (errno == EACCES || errno == EPERM))
        return err_say(err, EACCES,
                       "no permission for /dev/kvm: add this user to the group 'kvm', or use --engine jit");
    if (fd < 0)
        return err_set(err, errno, "open '%s'", name);
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION)
        return err_say(err, ENOTSUP, "%s speaks API version %d, not %d: use --engine jit", name, version, KVM_API_VERSION);
    for (size_t i = 0; i < sizeof required_caps / sizeof required_caps[0]; i++) {
        if (ioctl(fd, KVM_CHECK_EXTENSION, required_caps[i].cap) <= 0)
            return err_say(err, ENOTSUP, "/dev/kvm lacks %s: update the host kernel, or use --engine jit",
                           required_caps[i].name);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int kvm_probe(const char *device, struct err *err)
{
    own_fd int fd = -1;
    return kvm_device_open(device, &fd, err);
}

static int vm_create(struct kvm_engine *engine, struct err *err)
{
    do {
        engine->vm_fd = ioctl(engine->kvm_fd, KVM_CREATE_VM, 0);
    } while (engine->vm_fd < 0 && errno == EINTR);
    if (engine->vm_fd < 0)
        return err_set(err, errno, "KVM_CREATE_VM");
    uint64_t identity_gpa = IDENTITY_MAP_GPA;
    if (ioctl(engine->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_gpa) < 0)
        return err_set(err, errno, "KVM_SET_IDENTITY_MAP_ADDR");
    if (ioctl(engine->vm_fd, KVM_SET_TSS_ADDR, TSS_GPA) < 0)
        return err_set(err, errno, "KVM_SET_TSS_ADDR");
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {KVM_IOAPIC_PINS}};
    if (ioctl(engine->vm_fd, KVM_ENABLE_CAP, &cap) < 0)
        return err_set(err, errno, "KVM_CAP_SPLIT_IRQCHIP");
    return 0;
}

static int vm_set_slot(struct kvm_engine *engine, unsigned index, bool log_dirty)
{
    const struct mem_slot *slot = mem_slot(engine->mem, index);
    struct kvm_userspace_memory_region region = {
        .slot = index,
        .flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .guest_phys_addr = slot->gpa,
        .memory_size = slot->len,
        .userspace_addr = (uintptr_t)slot->hva,
    };
    return ioctl(engine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

static int vm_add_memory(struct kvm_engine *engine, struct err *err)
{
    for (unsigned i = 0; i < mem_slot_count(engine->mem); i++) {
        int ret = vm_set_slot(engine, i, false);
        if (ret < 0)
            return err_set(err, -ret, "memory slot %u", i);
    }
    return 0;
}

static int vm_check_vcpus(struct kvm_engine *engine, struct err *err)
{
    int max = ioctl(engine->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
    if (max < 1)
        max = 4; /* what the KVM documentation says to assume */
    if (engine->vcpu_count < 1 || engine->vcpu_count > KVM_VCPUS_MAX || engine->vcpu_count > (unsigned)max)
        return err_say(err, EINVAL, "%u vCPUs: this host's KVM takes 1 to %d, polder at most %u",
                       engine->vcpu_count, max, KVM_VCPUS_MAX);
    int run_size = ioctl(engine->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_size < (int)sizeof(struct kvm_run))
        return err_set(err, run_size < 0 ? errno : EINVAL, "KVM_GET_VCPU_MMAP_SIZE");
    engine->run_size = (size_t)run_size;
    engine->has_xcrs = ioctl(engine->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
    return 0;
}

static void kvm_free(struct engine *base)
{
    struct kvm_engine *engine = (struct kvm_engine *)base;
    if (!engine)
        return;
    if (engine->vm_fd >= 0)
        close(engine->vm_fd);
    if (engine->kvm_fd >= 0)
        close(engine->kvm_fd);
    pthread_mutex_destroy(&engine->routes_lock);
    free(engine->supported);
    free(engine->cpu_model);
    free(engine);
}

static int engine_set_up(struct kvm_engine *engine, const char *device, struct err *err)
{
    if (!engine->cpu_model)
        return err_set(err, ENOMEM, "engine");
    int ret = kvm_device_open(device, &engine->kvm_fd, err);
    if (ret == 0)
        ret = vm_check_vcpus(engine, err);
    if (ret == 0)
        ret = kvm_cpuid_load(engine, err);
    if (ret == 0)
        ret = kvm_kick_signal_install(err);
    if (ret == 0)
        ret = vm_create(engine, err);
    if (ret == 0)
        ret = vm_add_memory(engine, err);
    return ret;
}

static int kvm_create(const struct engine_config *config, struct engine **ret_engine, struct err *err)
{
    if (config->options && *config->options)
        return err_say(err, EINVAL, "takes no options, not '%s'", config->options);
    struct kvm_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return err_set(err, ENOMEM, "engine");
    engine->base.class = &engine_kvm;
    engine->kvm_fd = engine->vm_fd = -1;
    engine->mem = config->mem;
    engine->machine = config->machine;
    engine->vcpu_count = config->vcpus;
    engine->cpu_model = strdup(config->cpu_model);
    pthread_mutex_init(&engine->routes_lock, NULL);
    int ret = engine_set_up(engine, config->kvm_device, err);
    if (ret < 0) {
        kvm_free(&engine->base);
        return ret;
    }
    *ret_engine = &engine->base;
    return 0;
}

/* Tells KVM about all level-triggered messages in use: one route each, GSI = index. */
static void routes_load(struct kvm_engine *engine)
{
    _Alignas(8) uint8_t
        buffer[sizeof(struct kvm_irq_routing) + KVM_IOAPIC_PINS * sizeof(struct kvm_irq_routing_entry)] = {0};
    struct kvm_irq_routing *table = (void *)buffer;
    struct kvm_irq_routing_entry *entries = (void *)(buffer + sizeof *table);
    for (uint32_t i = 0; i < KVM_IOAPIC_PINS; i++) {
        const struct kvm_level_route *route = &engine->routes[i];
        if (!route->used)
            continue;
        struct kvm_irq_routing_entry *entry = &entries[table->nr++];
        entry->gsi = i;
        entry->type = KVM_IRQ_ROUTING_MSI;
        entry->u.msi.address_lo = (uint32_t)route->msi.address;
        entry->u.msi.address_hi = (uint32_t)(route->msi.address >> 32);
        entry->u.msi.data = route->msi.data;
    }
    if (ioctl(engine->vm_fd, KVM_SET_GSI_ROUTING, table) < 0)
        log_guest("kvm", "KVM_SET_GSI_ROUTING: %s", strerror(errno));
}

/* The IOAPIC has as many pins as there are routes, so only messages no longer in use are ever pushed out. */
static void route_level(struct kvm_engine *engine, struct msi msi)
{
    struct kvm_level_route *oldest = &engine->routes[0];
    pthread_mutex_lock(&engine->routes_lock);
    engine->level_clock++;
    for (unsigned i = 0; i < KVM_IOAPIC_PINS; i++) {
        struct kvm_level_route *route = &engine->routes[i];
        if (route->used && route->msi.address == msi.address && route->msi.data == msi.data) {
            route->used = engine->level_clock;
            pthread_mutex_unlock(&engine->routes_lock);
            return;
        }
        if (route->used < oldest->used)
            oldest = route;
    }
    *oldest = (struct kvm_level_route){.msi = msi, .used = engine->level_clock};
    routes_load(engine);
    pthread_mutex_unlock(&engine->routes_lock);
}

/* No irqfd: a device thread of this process pays one system call either way. The write to an irqfd would go through a
 * wait queue to the same injection, and each change of an MSI-X entry would need a new routing table,
 * which waits for RCU. It pays when the sender is not this process: vhost, vhost-user, VFIO. */
static void kvm_send_msi(struct engine *base, struct msi msi)
{
    struct kvm_engine *engine = (struct kvm_engine *)base;
    if (msi.data & MSI_DATA_LEVEL)
        route_level(engine, msi);
    struct kvm_msi kvm_msi = {
        .address_lo = (uint32_t)msi.address,
        .address_hi = (uint32_t)(msi.address >> 32),
        .data = msi.data,
    };
    if (ioctl(engine->vm_fd, KVM_SIGNAL_MSI, &kvm_msi) < 0)
        log_guest("kvm", "MSI %#llx/%#x went nowhere: %s", (unsigned long long)msi.address, msi.data,
                  strerror(errno));
}

static int kvm_ioeventfd_set(struct engine *base, uint64_t gpa, unsigned size, int fd, bool add)
{
    struct kvm_engine *engine = (struct kvm_engine *)base;
    struct kvm_ioeventfd request = {
        .addr = gpa,
        .len = size,
        .fd = fd,
        .flags = add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
    };
    return ioctl(engine->vm_fd, KVM_IOEVENTFD, &request) < 0 ? -errno : 0;
}

static int dirty_log_fetch(struct kvm_engine *engine, unsigned slot, uint64_t *bitmap, struct err *err)
{
    size_t words = (size_t)((mem_slot(engine->mem, slot)->len / MEM_PAGE_SIZE + 63) / 64);
    own_free uint64_t *fresh = calloc(words, sizeof *fresh);
    if (!fresh)
        return err_set(err, ENOMEM, "dirty log");
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = fresh};
    if (ioctl(engine->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
        return err_set(err, errno, "KVM_GET_DIRTY_LOG");
    for (size_t i = 0; i < words; i++)
        bitmap[i] |= fresh[i];
    return 0;
}

/* `start` turns the log of `slot` on (no effect when it is); a bitmap gets what was written since the last
 * time, OR-ed in; neither turns the log off. */
static int kvm_dirty_log(struct engine *base, unsigned slot, bool start, uint64_t *bitmap, struct err *err)
{
    struct kvm_engine *engine = (struct kvm_engine *)base;
    if (slot >= mem_slot_count(engine->mem))
        return err_say(err, EINVAL, "dirty log of memory slot %u: there is no such slot", slot);
    bool on = engine->logged_slots & (1u << slot);
    bool want = start || (bitmap && on);
    if (bitmap && !start && !on)
        return err_say(err, EINVAL, "dirty log of memory slot %u is off", slot);
    if (want != on) {
        int ret = vm_set_slot(engine, slot, want);
        if (ret < 0)
            return err_set(err, -ret, "dirty log of memory slot %u", slot);
        engine->logged_slots ^= 1u << slot;
    }
    return bitmap ? dirty_log_fetch(engine, slot, bitmap, err) : 0;
}

static void kvm_print_stats(struct engine *base, int fd)
{
    struct kvm_engine *engine = (struct kvm_engine *)base;
    unsigned long long port = 0, mmio = 0, eoi = 0, kick = 0, other = 0;
    for (unsigned i = 0; i < engine->vcpu_count; i++) {
        const struct kvm_vcpu *vcpu = engine->vcpus[i];
        if (!vcpu)
            continue;
        port += vcpu->counters.port;
        mmio += vcpu->counters.mmio;
        eoi += vcpu->counters.eoi;
        kick += vcpu->counters.kick;
        other += vcpu->counters.other;
    }
    dprintf(fd, "exit_port %llu\nexit_mmio %llu\nexit_ioapic_eoi %llu\nexit_kick %llu\nexit_other %llu\n",
            port, mmio, eoi, kick, other);
}

const struct engine_class engine_kvm = {
    .name = "kvm",
    .probe = kvm_probe,
    .create = kvm_create,
    .free = kvm_free,
    .vcpu_create = kvm_vcpu_create,
    .vcpu_free = kvm_vcpu_free,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .vcpu_get_state = kvm_vcpu_get_state,
    .vcpu_set_state = kvm_vcpu_set_state,
    .send_msi = kvm_send_msi,
    .ioeventfd = kvm_ioeventfd_set,
    .dirty_log = kvm_dirty_log,
    .print_stats = kvm_print_stats,
};
