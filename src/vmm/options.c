/* Options and their setters; each puts one value into struct vm_config. */
#include "vmm/options.h"
#include "vmm/options_throttle.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fdname.h"
#include "base/own.h"
#include "base/size.h"
#include "cpu/cpuid.h"
#include "cpu/jit/jit_options.h"

static struct vm_config *config_of(void *target)
{
    return ((struct vmm_options *)target)->config;
}

/* A whole number in [min, max]. */
static int parse_number(const char *value, unsigned long min, unsigned long max, unsigned long *ret_number, struct err *err)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(value, &end, 10);
    if (errno || end == value || *end || value[0] == '-' || number < min || number > max)
        return err_say(err, EINVAL, "'%s' is not a number from %lu to %lu", value, min, max);
    *ret_number = number;
    return 0;
}

static int set_kernel(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->kernel, value, err);
}

static int set_initrd(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->initrd, value, err);
}

static int set_cmdline(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->cmdline, value, err);
}

static int set_cpus(void *target, const char *value, struct err *err)
{
    unsigned long number;
    int r = parse_number(value, 1, VM_MAX_VCPUS, &number, err);
    if (r == 0)
        config_of(target)->cpus = (unsigned)number;
    return r;
}

static int set_memory(void *target, const char *value, struct err *err)
{
    uint64_t bytes;
    if (!size_parse(value, UINT64_C(1) << 20, &bytes))
        return err_say(err, EINVAL, "'%s' is not a size such as 512M or 2G", value);
    config_of(target)->memory_bytes = bytes;
    return 0;
}

static int set_hugepages(void *target, const char *value, struct err *err)
{
    (void)value, (void)err;
    config_of(target)->hugepages = true;
    return 0;
}

static int set_cpu_model(void *target, const char *value, struct err *err)
{
    for (const char *const *model = cpuid_models(); *model; model++)
        if (!strcmp(*model, value))
            return vm_config_set(&config_of(target)->cpu_model, value, err);
    return err_say(err, EINVAL, "unknown CPU model '%s', give host, x86-64-v2 or x86-64-v3", value);
}

static int set_engine(void *target, const char *value, struct err *err)
{
    struct vm_config *config = config_of(target);
    const char *comma = strchr(value, ',');
    own_free char *name = comma ? strndup(value, (size_t)(comma - value)) : strdup(value);
    if (!name)
        return err_set(err, ENOMEM, "engine");
    if (strcmp(name, "auto") && strcmp(name, "kvm") && strcmp(name, "jit"))
        return err_say(err, EINVAL, "unknown engine '%s', give auto, kvm or jit", value);
    struct jit_options parsed;
    if (comma && !strcmp(name, "kvm"))
        return err_say(err, EINVAL, "kvm takes no options, not '%s'", comma + 1);
    if (comma && jit_options_parse(comma + 1, &parsed, err) < 0)
        return err_ctx(err, "%s", name);
    int r = vm_config_set(&config->engine, name, err);
    return r == 0 && comma ? vm_config_set(&config->engine_options, comma + 1, err) : r;
}

static int set_kvm(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->kvm_device, value, err);
}

static int set_jit_opt(void *target, const char *value, struct err *err)
{
    uint32_t off;
    int r = jit_options_parse_opt(value, &off, err);
    return r < 0 ? r : vm_config_set(&config_of(target)->jit_opt, value, err);
}

/* Takes the next comma-separated word off *rest; NULL at the end. */
static char *next_word(char **rest)
{
    return strsep(rest, ",");
}

static int set_disk_cache(struct vm_disk *disk, const char *mode, struct err *err)
{
    disk->writeback = strcmp(mode, "unsafe") != 0;
    disk->writethrough = strcmp(mode, "writethrough") == 0;
    if (disk->writeback && !disk->writethrough && strcmp(mode, "writeback") != 0)
        return err_say(err, EINVAL, "unknown cache mode '%s', give writeback, writethrough or unsafe", mode);
    return 0;
}

/* A rate: what is allowed in a second, all of which may come at once. */
static int set_disk_rate(struct vm_rate_bucket *bucket, const char *text, const char *name, struct err *err)
{
    uint64_t rate;
    if (!size_parse(text, 1, &rate) || !rate || rate > UINT64_C(1) << 50)
        return err_say(err, EINVAL, "'%s' is no rate: %s=NUMBER a second, also with K, M or G behind it", text, name);
    *bucket = (struct vm_rate_bucket){.size = rate, .refill_ms = 1000};
    return 0;
}

static int add_backing(struct vm_disk *disk, const char *name, struct err *err)
{
    unsigned i = 0;
    while (disk->backing[i])
        i++;
    return i < VM_MAX_BACKING ? vm_config_set(&disk->backing[i], name, err)
                              : err_say(err, EINVAL, "a chain of more than %d images", VM_MAX_BACKING);
}

static int set_disk_word(struct vm_disk *disk, const char *word, struct err *err)
{
    int r = options_throttle_word(disk, word, err);
    if (r != 0)
        return r < 0 ? r : 0;
    if (!strcmp(word, "ro"))
        disk->read_only = true;
    else if (!strcmp(word, "direct"))
        disk->direct = true;
    else if (!strcmp(word, "root"))
        disk->root = true;
    else if (!strcmp(word, "format=raw") || !strcmp(word, "format=qcow2") || !strcmp(word, "format=luks"))
        return vm_config_set(&disk->format, word + 7, err);
    else if (!strncmp(word, "cache=", 6))
        return set_disk_cache(disk, word + 6, err);
    else if (!strncmp(word, "key=", 4))
        return vm_config_set(&disk->key_path, word + 4, err);
    else if (!strncmp(word, "backing=", 8))
        return add_backing(disk, word + 8, err);
    else if (!strncmp(word, "iops=", 5))
        return set_disk_rate(&disk->limit.ops, word + 5, "iops", err);
    else if (!strncmp(word, "bps=", 4))
        return set_disk_rate(&disk->limit.bandwidth, word + 4, "bps", err);
    else if (!strcmp(word, "discard=on") || !strcmp(word, "discard=off"))
        disk->keep_discarded = !strcmp(word, "discard=off");
    else
        return err_say(err, EINVAL,
                       "unknown word '%s', give ro, direct, root, format=, backing=, key=, cache=, discard=, iops=, bps=, "
                       "throttle=, weight=, reserve= or limit=; see --help",
                       word);
    return 0;
}

static int set_disk(void *target, const char *value, struct err *err)
{
    own_free char *text = strdup(value);
    if (!text)
        return err_set(err, ENOMEM, "disk");
    char *rest = text, *path = next_word(&rest);
    struct vm_disk *disk;
    int r = vm_config_add_disk(config_of(target), NULL, &disk, err);
    if (r == 0)
        r = vm_config_set(&disk->path, path, err);
    while (r == 0 && rest)
        r = set_disk_word(disk, next_word(&rest), err);
    return r;
}

static int set_throttle(void *target, const char *value, struct err *err)
{
    return options_add_throttle(config_of(target), value, err);
}

static int set_allow_backing(void *target, const char *value, struct err *err)
{
    char **folder = config_of(target)->allow_backing;
    unsigned i = 0;
    while (folder[i])
        i++;
    return i < VM_MAX_DISKS ? vm_config_set(&folder[i], value, err) : err_say(err, EINVAL, "more than %d folders", VM_MAX_DISKS);
}

static int parse_mac(const char *text, uint8_t mac[6], struct err *err)
{
    const char *at = text;
    for (unsigned i = 0; i < 6; i++) {
        char *end;
        unsigned long byte = strtoul(at, &end, 16);
        if (end == at || end - at > 2 || byte > 0xff || *end != (i < 5 ? ':' : '\0'))
            return err_say(err, EINVAL, "'%s' is not a MAC address such as 06:00:ac:10:00:02", text);
        mac[i] = (uint8_t)byte;
        at = end + 1;
    }
    return mac[0] & 1 ? err_say(err, EINVAL, "'%s' is a multicast address, not an interface's", text) : 0;
}

/* "HOST:GUEST" or "PORT", both 1 to 65535; joins the ones before by a comma. */
static int add_forward(struct vm_net *net, const char *ports, struct err *err)
{
    unsigned host, guest;
    char end, joined[256];
    int fields = sscanf(ports, "%u:%u%c", &host, &guest, &end);
    bool good = fields == 2 || (fields == 1 && sscanf(ports, "%u%c", &host, &end) == 1 && (guest = host));
    if (!good || !host || host > 65535 || !guest || guest > 65535)
        return err_say(err, EINVAL, "'%s' are not ports such as 8080:80", ports);
    int len = snprintf(joined, sizeof joined, "%s%s%u:%u", net->forward ? net->forward : "", net->forward ? "," : "", host,
                       guest);
    if (len >= (int)sizeof joined)
        return err_say(err, EINVAL, "too many ports to forward");
    return vm_config_set(&net->forward, joined, err);
}

static int set_net_word(struct vm_net *net, const char *word, struct err *err)
{
    if (!strncmp(word, "forward=", 8) && net->backend == VM_NET_USER && !net->socket)
        return add_forward(net, word + 8, err);
    if (!strncmp(word, "mac=", 4)) {
        net->has_mac = true;
        return parse_mac(word + 4, net->mac, err);
    }
    return err_say(err, EINVAL, "unknown word '%s', give mac=ADDRESS%s", word,
                   net->backend == VM_NET_USER && !net->socket ? " or forward=HOST:GUEST" : "");
}

static int set_net(void *target, const char *value, struct err *err)
{
    own_free char *text = strdup(value);
    if (!text)
        return err_set(err, ENOMEM, "network");
    char *rest = text, *backend = next_word(&rest);
    bool is_tap = !strncmp(backend, "tap=", 4) && backend[4], is_socket = !strncmp(backend, "user=", 5);
    if (!strcmp(backend, "none"))
        return 0;
    if (!is_tap && strcmp(backend, "user") && !(is_socket && fdname_parse(backend + 5) >= 0))
        return err_say(err, EINVAL, "unknown network '%s', give user, user=fd:N, tap=NAME or none", backend);
    struct vm_net *net;
    int r = vm_config_add_net(config_of(target), NULL, &net, err);
    if (r == 0 && is_tap)
        r = vm_config_set(&net->tap, backend + 4, err);
    if (r == 0 && is_socket)
        r = vm_config_set(&net->socket, backend + 5, err);
    if (r == 0)
        net->backend = is_tap ? VM_NET_TAP : VM_NET_USER;
    while (r == 0 && rest)
        r = set_net_word(net, next_word(&rest), err);
    return r;
}

static int set_vsock_word(struct vm_vsock *vsock, const char *word, struct err *err)
{
    unsigned long cid;
    if (!strncmp(word, "path=", 5) && word[5])
        return vm_config_set(&vsock->uds_path, word + 5, err);
    if (strncmp(word, "cid=", 4))
        return err_say(err, EINVAL, "unknown word '%s', give cid=NUMBER,path=PATH", word);
    int r = parse_number(word + 4, 3, UINT32_MAX - 1, &cid, err);
    if (r == 0)
        vsock->cid = (uint32_t)cid;
    return r;
}

static int set_vsock(void *target, const char *value, struct err *err)
{
    struct vm_vsock *vsock = &config_of(target)->vsock;
    own_free char *text = strdup(value);
    if (!text)
        return err_set(err, ENOMEM, "vsock");
    char *rest = text;
    int r = 0;
    while (r == 0 && rest)
        r = set_vsock_word(vsock, next_word(&rest), err);
    if (r == 0 && (!vsock->cid || !vsock->uds_path))
        return err_say(err, EINVAL, "'%s' is not complete, give cid=NUMBER,path=PATH", value);
    vsock->present = r == 0;
    return r;
}

static int set_balloon(void *target, const char *value, struct err *err)
{
    struct vm_balloon *balloon = &config_of(target)->balloon;
    unsigned long mib;
    int r = parse_number(value, 0, UINT32_MAX, &mib, err);
    if (r < 0)
        return r;
    *balloon = (struct vm_balloon){.present = true,
                                   .target_mib = mib,
                                   .deflate_on_oom = true,
                                   .stats_interval_s = 1,
                                   .free_page_reporting = true};
    return 0;
}

static int set_rng(void *target, const char *value, struct err *err)
{
    (void)value, (void)err;
    config_of(target)->entropy.present = true;
    return 0;
}

/* "socket=PATH", "log=PATH" or both. */
static int parse_shared_console(struct vm_console *console, const char *value, struct err *err)
{
    own_free char *text = strdup(value);
    char *rest = text, *word;
    int r = text ? 0 : err_set(err, ENOMEM, "console");
    console->mode = VM_CONSOLE_SOCKET;
    while (r == 0 && rest && (word = next_word(&rest))) {
        if (!strncmp(word, "socket=", 7) && word[7])
            r = vm_config_set(&console->path, word + 7, err);
        else if (!strncmp(word, "log=", 4) && word[4])
            r = vm_config_set(&console->log_path, word + 4, err);
        else
            r = err_say(err, EINVAL, "unknown word '%s', give socket=PATH or log=PATH", word);
    }
    return r;
}

static int parse_console(struct vm_console *console, const char *value, struct err *err)
{
    if (!strncmp(value, "file=", 5) && value[5]) {
        console->mode = VM_CONSOLE_FILE;
        return vm_config_set(&console->path, value + 5, err);
    }
    if (!strncmp(value, "socket=", 7) || !strncmp(value, "log=", 4))
        return parse_shared_console(console, value, err);
    if (!strcmp(value, "stdio"))
        console->mode = VM_CONSOLE_STDIO;
    else if (!strcmp(value, "pty"))
        console->mode = VM_CONSOLE_PTY;
    else if (!strcmp(value, "none"))
        console->mode = VM_CONSOLE_NONE;
    else
        return err_say(err, EINVAL, "unknown console '%s', give stdio, pty, file=PATH, socket=PATH, log=PATH or none", value);
    return 0;
}

static int set_console(void *target, const char *value, struct err *err)
{
    return parse_console(&config_of(target)->console, value, err);
}

static int set_hvc(void *target, const char *value, struct err *err)
{
    config_of(target)->has_hvc = true;
    return parse_console(&config_of(target)->hvc, value, err);
}

static int set_id(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->id, value, err);
}

static int set_sandbox(void *target, const char *value, struct err *err)
{
    bool on = !strcmp(value, "on");
    if (!on && strcmp(value, "off") != 0)
        return err_say(err, EINVAL, "'%s' is neither on nor off", value);
    config_of(target)->sandbox = on;
    return 0;
}

static int set_api_sock(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->api_sock, value, err);
}

static int set_config_file(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->config_file, value, err);
}

static int set_metrics(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->metrics_path, value, err);
}

static int set_log_file(void *target, const char *value, struct err *err)
{
    return vm_config_set(&config_of(target)->log_path, value, err);
}

static int set_log_level(void *target, const char *value, struct err *err)
{
    if (!log_level_parse(value, &config_of(target)->log_level))
        return err_say(err, EINVAL, "unknown level '%s', give error, warn, info or debug", value);
    return 0;
}

static int set_no_reboot(void *target, const char *value, struct err *err)
{
    (void)value, (void)err;
    config_of(target)->no_reboot = true;
    return 0;
}

#define FLAG_SETTER(field)                                                                                   \
    static int set_##field(void *target, const char *value, struct err *err)                                 \
    {                                                                                                        \
        (void)value, (void)err;                                                                              \
        ((struct vmm_options *)target)->field = true;                                                        \
        return 0;                                                                                            \
    }
FLAG_SETTER(help)
FLAG_SETTER(version)
FLAG_SETTER(man)
FLAG_SETTER(openapi)
FLAG_SETTER(probe)
FLAG_SETTER(print_stats)

static const struct option_spec options[] = {
    {"", NULL, "Guest", NULL, NULL},
    {"kernel", "PATH", "kernel: bzImage, ELF vmlinux, or ELF with a PVH note", NULL, set_kernel},
    {"initrd", "PATH", "initial RAM disk", NULL, set_initrd},
    {"cmdline", "TEXT", "kernel command line (default: console=ttyS0)", NULL, set_cmdline},
    {"cpus", "N", "number of vCPUs, 1 to 32 (default: 1)", NULL, set_cpus},
    {"memory", "SIZE", "guest memory such as 512M or 2G (default: 128M)", "A plain number counts MiB.", set_memory},
    {"hugepages", NULL, "back guest memory by 2 MiB pages of the host",
     "They must have been set aside before, see vm.nr_hugepages.", set_hugepages},
    {"cpu-model", "MODEL", "host, x86-64-v2 or x86-64-v3 (default: host)",
     "A guest with a named model can move to any host that has what the model promises.", set_cpu_model},
    {"engine", "auto|kvm|jit", "what runs guest code (default: auto)",
     "auto measures /dev/kvm and takes it if it runs at hardware speed, else jit; the choice is logged at level info. "
     "Options of jit follow behind a comma: cache=SIZE for the translated code of one vCPU (default: 64M), interpret=on to "
     "translate nothing, perf-map=on to name translated code for perf(1), profile=on to have engine-stats tell where its time went.",
     set_engine},
    {"kvm", "PATH", "the KVM device of engine kvm (default: /dev/kvm)", NULL, set_kvm},
    {"jit-opt", "no-NAME[,no-NAME...]", "switch optimisations of the jit engine off; no-all: all of them",
     "To find out what one gives, or whether it is at fault. The names are below. Engine kvm takes no notice.", set_jit_opt},
    {"no-reboot", NULL, "end with status 3 when the guest reboots, instead of restarting it", NULL, set_no_reboot},

    {"", NULL, "Devices", NULL, NULL},
    {"disk", "PATH[,format=F][,backing=PATH][,key=FILE][,ro][,cache=MODE][,direct][,discard=off][,iops=N][,bps=N]"
     "[,throttle=NAME][,root]",
     "add a disk; repeat for more",
     "format: raw, qcow2 or luks; without it an image is qcow2 or luks when its name ends in .qcow2 or .luks and its header "
     "agrees, else raw. backing: the images below a qcow2 image, nearest first, instead of those that it names (repeat for "
     "each of the chain). key: the file whose bytes, all of them, are the key of an encrypted image. ro: read-only. cache: "
     "writeback (the guest's flushes reach the host's disk, the default), writethrough (every write does), unsafe (none do: a "
     "crash of the host loses data). direct: bypass the host's page cache. discard=off: what the guest discards stays "
     "allocated. iops, bps: requests and bytes a second at most; a second's worth may come at once. throttle: the disk is a "
     "member of this group of --throttle; of its requests a second, reserve=N are the disk's before others get more, the rest is "
     "shared by weight=N (default: 100), and limit=N is the most it gets. root: name it as root "
     "device on the command line. The API knows the disks as drive0, drive1, ...", set_disk},
    {"throttle", "NAME[,iops=N][,bps=N][,read-iops=N]...", "a limit that disks share; repeat for more",
     "iops, bps: requests and bytes a second, of all its disks together; with read- or write- in front of reads or writes alone. "
     "With -burst behind (iops=1000,iops-burst=5000,iops-burst-s=10) the rate that is allowed for a while, by default one "
     "second, when little was used before. Disks join by --disk PATH,throttle=NAME.", set_throttle},
    {"allow-backing", "DIR", "backing files that disks name may lie in DIR; repeat for more",
     "Those in an image's own folder and below are allowed anyway.", set_allow_backing},
    {"net", "user[,forward=H:G]|user=fd:N|tap=NAME|none", "add a network interface; repeat for more",
     "user goes through passt and needs no privilege; forward=HOST:GUEST leads a TCP port of the host into the guest "
     "(repeat for more). user=fd:N is the socket of a passt that runs already, or one that listens: whoever connects is passt, "
     "and when it ends the next one. tap uses an existing tap interface, by "
     "name or as fd:N, an open queue of one. mac=ADDRESS sets the MAC address.", set_net},
    {"vsock", "cid=N,path=PATH", "add a socket device, served at the unix socket PATH", NULL, set_vsock},
    {"balloon", "MIB", "add a memory balloon that takes MIB from the guest", NULL, set_balloon},
    {"rng", NULL, "add a random number device", NULL, set_rng},
    {"console", "stdio|pty|file=PATH|socket=PATH[,log=PATH]|none", "where the serial port goes (default: stdio)",
     "On a terminal Ctrl-] leaves and ends the machine. Up to 8 clients of the socket see what the guest writes from then on and "
     "may type; one that does not read is dropped. log keeps the output in a file of at most 8 MiB, whose older half goes when it is "
     "full.", set_console},
    {"virtio-console", "stdio|pty|file=PATH|socket=PATH[,log=PATH]|none", "add a virtio console (hvc0)",
     "It is faster than the serial port and follows the terminal's size. On stdio it needs --console elsewhere and "
     "console=hvc0 on the kernel command line.", set_hvc},

    {"", NULL, "Control", NULL, NULL},
    {"api-sock", "PATH", "serve the REST API on a unix socket",
     "Without --kernel or --config-file the machine starts by an API request.", set_api_sock},
    {"config-file", "PATH", "JSON description of the machine", NULL, set_config_file},
    {"sandbox", "on|off", "confine the program itself (default: off)",
     "Before it reads any file it has an empty root and no capability, network or path left, so that all files have to be given as "
     "descriptors (fd:N; the KVM device is opened before); before the guest runs, system calls that it does not need are forbidden, "
     "and one kills it.", set_sandbox},
    {"id", "NAME", "name of the machine, for the API and the log", NULL, set_id},
    {"metrics", "PATH", "write metrics to a file or pipe, one JSON object a line", NULL, set_metrics},
    {"log-file", "PATH", "log to a file instead of standard error", NULL, set_log_file},
    {"log-level", "LEVEL", "error, warn, info or debug (default: warn)", NULL, set_log_level},
    {"engine-stats", NULL, "print the engine's counters on standard error at the end", NULL, set_print_stats},

    {"", NULL, "Information", NULL, NULL},
    {"help", NULL, "show this help", NULL, set_help},
    {"version", NULL, "show the version", NULL, set_version},
    {"man", NULL, "print the man page (roff)", NULL, set_man},
    {"probe", NULL, "print which engine --engine auto takes here, and why, as JSON", NULL, set_probe},
    {"openapi", NULL, "print the API's description (OpenAPI 3)", NULL, set_openapi},
    {NULL, NULL, NULL, NULL, NULL},
};

#define JIT_OPT_MAN(id, name, text) "\n\n" name ": " text "."
static const char *const sections[] = {
    "Exit status",
    "0: the guest powered off, or the user left.\n\n"
    "1: something on the host or in the configuration is wrong; one line on standard error says what.\n\n"
    "2: the command line is wrong.\n\n"
    "3: the guest rebooted, with --no-reboot.\n\n"
    "4: triple fault, the guest's CPU shut down.\n\n"
    "5: the guest's kernel panicked and said so through the pvpanic device.\n\n"
    "6: the engine could not go on.\n\n"
    "128+N: signal N ended it.",
    "Optimisations of the jit engine",
    "What each NAME of --jit-opt no-NAME stands for while it is on; no-all switches all of them off." JIT_OPTS(JIT_OPT_MAN),
    "Descriptors instead of files",
    "Where a PATH or FILE is to be given, fd:N stands for the descriptor N that the program was started with, opened for "
    "what it is needed for. Of a socket it is a listening one. A qcow2 image given so names no backing file: the chain "
    "follows as backing=fd:N.",
    "Examples",
    "polder-vmm --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2\n\n"
    "polder-vmm --kernel vmlinuz --disk root.ext4,root --net user --cmdline 'console=ttyS0'",
    NULL,
};

const struct option_program vmm_program = {
    .name = "polder-vmm",
    .version = POLDER_VERSION,
    .summary = "run a virtual machine",
    .description =
        "polder-vmm runs one virtual machine in one process, with hardware virtualization where the host has it (engine "
        "kvm) and by translating its code where it has not (engine jit). Machine, devices and commands are the same on "
        "both.",
    .usage = "--kernel PATH [OPTION...]",
    .options = options,
    .sections = sections,
};
