/* The API's table: every request body's members with their types and bounds, and every operation. Checks, routes, the phase
 * rules and the OpenAPI reference all come from here. Adding a request is one line here and one handler. */
#include "vmm/api_impl.h"

#define MIB_MAX (INT64_C(1) << 26) /* of guest memory: 64 TiB */
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* clang-format off: tables, a member a line */

/* ---- parts of bodies ---- */

static const struct api_object token_bucket = {
    "TokenBucket", "A budget that refills at a steady rate.",
    (const struct api_field[]){
        {.name = "size", .type = API_INTEGER, .required = true, .max = INT64_MAX,
         .text = "Tokens that the bucket holds when it is full; 0 sets no limit."},
        {.name = "refill_time", .type = API_INTEGER, .required = true, .max = INT64_MAX,
         .text = "Milliseconds from empty to full; 0 sets no limit."},
        {.name = "one_time_burst", .type = API_INTEGER, .max = INT64_MAX,
         .text = "Tokens that may be spent once, at the start, beside the size."},
        {0}}, false};

static const struct api_object rate_limiter = {
    "RateLimiter", "Limits of a device's traffic; an absent bucket sets none.",
    (const struct api_field[]){
        {.name = "bandwidth", .type = API_OBJECT, .object = &token_bucket, .text = "Tokens are bytes."},
        {.name = "ops", .type = API_OBJECT, .object = &token_bucket, .text = "Tokens are requests or packets."},
        {0}}, false};

static const struct api_object no_members = {
    "Empty", "An object without members.", (const struct api_field[]){{0}}, false};

static const struct api_object any_json = {
    "AnyJson", "Any JSON object.", (const struct api_field[]){{0}}, true};

/* ---- bodies ---- */

static const struct api_object action = {
    "InstanceActionInfo", "Something to do now.",
    (const struct api_field[]){
        {.name = "action_type", .type = API_STRING, .required = true,
         .values = (const char *const[]){"FlushMetrics", "InstanceStart", "SendCtrlAltDel", NULL},
         .text = "Write a line of metrics, boot the machine, or press its power button (which asks the guest to end)."},
        {0}}, false};

static const struct api_object balloon = {
    "Balloon", "The memory balloon.",
    (const struct api_field[]){
        {.name = "amount_mib", .type = API_INTEGER, .required = true, .max = MIB_MAX,
         .text = "Memory to take from the guest, in MiB."},
        {.name = "deflate_on_oom", .type = API_BOOL, .required = true,
         .text = "Let the guest take memory back before it would kill a process for want of it."},
        {.name = "stats_polling_interval_s", .type = API_INTEGER, .max = 65535,
         .text = "Seconds between two statistics; 0 switches them off for good."},
        {.name = "free_page_hinting", .type = API_BOOL,
         .text = "Allow runs that give all of the guest's free pages back to the host."},
        {.name = "free_page_reporting", .type = API_BOOL,
         .text = "Give pages back to the host as the guest frees them."},
        {0}}, false};

static const struct api_object balloon_update = {
    "BalloonUpdate", "A new balloon size.",
    (const struct api_field[]){
        {.name = "amount_mib", .type = API_INTEGER, .required = true, .max = MIB_MAX,
         .text = "Memory to take from the guest, in MiB."},
        {0}}, false};

static const struct api_object balloon_stats_update = {
    "BalloonStatsUpdate", "A new statistics interval.",
    (const struct api_field[]){
        {.name = "stats_polling_interval_s", .type = API_INTEGER, .required = true, .max = 65535,
         .text = "Seconds between two statistics; going from or to 0 is not possible after the start."},
        {0}}, false};

#define STAT(name_, text_) {.name = (name_), .type = API_INTEGER, .max = INT64_MAX, .text = (text_)}
static const struct api_object balloon_stats = {
    "BalloonStats", "What balloon and guest last reported; the guest leaves out what it does not count.",
    (const struct api_field[]){
        {.name = "target_pages", .type = API_INTEGER, .required = true, .max = INT64_MAX, .text = "Asked for, in 4 KiB pages."},
        {.name = "actual_pages", .type = API_INTEGER, .required = true, .max = INT64_MAX, .text = "Held, in 4 KiB pages."},
        {.name = "target_mib", .type = API_INTEGER, .required = true, .max = INT64_MAX, .text = "Asked for, in MiB."},
        {.name = "actual_mib", .type = API_INTEGER, .required = true, .max = INT64_MAX, .text = "Held, in MiB."},
        STAT("swap_in", "Bytes read back from swap."), STAT("swap_out", "Bytes written to swap."),
        STAT("major_faults", "Page faults that needed a disk."), STAT("minor_faults", "Page faults that did not."),
        STAT("free_memory", "Bytes in no use at all."), STAT("total_memory", "Bytes the guest has."),
        STAT("available_memory", "Bytes that programs could get without swapping."),
        STAT("disk_caches", "Bytes of file cache that can be given up at once."),
        STAT("hugetlb_allocations", "Huge pages given out."), STAT("hugetlb_failures", "Huge pages that could not be."),
        {0}}, false};

static const struct api_object hinting_start = {
    "BalloonStartCmd", "How a run of free page hinting goes.",
    (const struct api_field[]){
        {.name = "acknowledge_on_stop", .type = API_BOOL,
         .text = "End the run, so that the guest may use the pages again, as soon as it has named all (default true)."},
        {0}}, false};

static const struct api_object hinting_status = {
    "BalloonHintingStatus", "Where free page hinting is.",
    (const struct api_field[]){
        {.name = "host_cmd", .type = API_INTEGER, .required = true, .max = UINT32_MAX, .text = "The run the host asked for."},
        {.name = "guest_cmd", .type = API_INTEGER, .max = UINT32_MAX, .text = "The run the guest works on."},
        {0}}, false};

static const struct api_object boot_source = {
    "BootSource", "What the machine boots.",
    (const struct api_field[]){
        {.name = "kernel_image_path", .type = API_STRING, .required = true, .text = "Linux bzImage, ELF vmlinux or PVH image."},
        {.name = "initrd_path", .type = API_STRING, .text = "Initial RAM disk."},
        {.name = "boot_args", .type = API_STRING, .max = 2047,
         .text = "Kernel command line. The guest does not get the word pci=off: its devices are on PCI."},
        {0}}, false};

static const struct api_object cpuid_register = {
    "CpuidRegisterModifier", "Bits of one CPUID register.",
    (const struct api_field[]){
        {.name = "register", .type = API_STRING, .required = true,
         .values = (const char *const[]){"eax", "ebx", "ecx", "edx", NULL}, .text = "Which register."},
        {.name = "bitmap", .type = API_STRING, .required = true, .text = "0b and 32 of 0, 1 and x (leave alone)."},
        {0}}, false};

static const struct api_object cpuid_leaf = {
    "CpuidLeafModifier", "Bits of one CPUID leaf.",
    (const struct api_field[]){
        {.name = "leaf", .type = API_STRING, .required = true, .text = "Number of the leaf, as text."},
        {.name = "subleaf", .type = API_STRING, .required = true, .text = "Number of the subleaf, as text."},
        {.name = "flags", .type = API_INTEGER, .required = true, .max = UINT32_MAX, .text = "KVM's flags for the leaf."},
        {.name = "modifiers", .type = API_LIST, .required = true, .object = &cpuid_register, .text = "Registers."},
        {0}}, false};

static const struct api_object msr_modifier = {
    "MsrModifier", "Bits of one model-specific register.",
    (const struct api_field[]){
        {.name = "addr", .type = API_STRING, .required = true, .text = "Number of the register, as text."},
        {.name = "bitmap", .type = API_STRING, .required = true, .text = "0b and 64 of 0, 1 and x (leave alone)."},
        {0}}, false};

static const struct api_object cpu_config = {
    "CpuConfig", "CPU features one by one.",
    (const struct api_field[]){
        {.name = "kvm_capabilities", .type = API_LIST, .text = "KVM capabilities to add, or with a ! to leave out."},
        {.name = "cpuid_modifiers", .type = API_LIST, .object = &cpuid_leaf, .text = "CPUID bits."},
        {.name = "msr_modifiers", .type = API_LIST, .object = &msr_modifier, .text = "Model-specific registers."},
        {0}}, false};

static const struct api_object throttle_rate = {
    "ThrottleRate", "A pace that holds for ever.",
    (const struct api_field[]){
        {.name = "rate", .type = API_INTEGER, .required = true, .max = INT64_C(1) << 50, .text = "A second; 0 sets no limit."},
        {.name = "burst", .type = API_INTEGER, .max = INT64_C(1) << 50,
         .text = "A second, for burst_s seconds when little was used before; above the rate."},
        {.name = "burst_s", .type = API_INTEGER, .max = 3600, .text = "Seconds that a burst is held (default 1)."},
        {0}}, false};

#define RATE(name_, text_) {.name = (name_), .type = API_OBJECT, .object = &throttle_rate, .text = (text_)}
static const struct api_object throttle = {
    "Throttle", "Limits that disks share; an absent one is not set, or stays.",
    (const struct api_field[]){
        {.name = "throttle_id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the group."},
        RATE("bps", "Bytes."), RATE("read_bps", "Bytes that are read."), RATE("write_bps", "Bytes that are written."),
        RATE("iops", "Requests."), RATE("read_iops", "Reads."), RATE("write_iops", "All other requests."),
        {0}}, false};

static const struct api_object drive_throttle = {
    "DriveThrottle", "A disk's part in what a group of disks has; absent members are not set, or stay.",
    (const struct api_field[]){
        {.name = "throttle_id", .type = API_STRING, .max = API_ID_MAX,
         .text = "Name of the group; needed before the start, and for good from then on."},
        {.name = "weight", .type = API_INTEGER, .max = 10000, .text = "Its part of what is not reserved (default 100)."},
        {.name = "reserve", .type = API_INTEGER, .max = INT64_C(1) << 50,
         .text = "Requests a second that are the disk's before others get more; 0: none."},
        {.name = "limit", .type = API_INTEGER, .max = INT64_C(1) << 50, .text = "Requests a second at most; 0: no limit."},
        {0}}, false};

static const struct api_object drive = {
    "Drive", "A disk.",
    (const struct api_field[]){
        {.name = "drive_id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the disk."},
        {.name = "path_on_host", .type = API_STRING, .text = "File or block device behind the disk; needed."},
        {.name = "is_root_device", .type = API_BOOL, .required = true,
         .text = "The guest's root: first on the bus, and on the command line unless that names one."},
        {.name = "partuuid", .type = API_STRING, .max = 63, .text = "Partition of the root device to mount, by PARTUUID."},
        {.name = "is_read_only", .type = API_BOOL, .text = "The guest cannot write."},
        {.name = "cache_type", .type = API_STRING, .values = (const char *const[]){"Unsafe", "Writeback", NULL},
         .text = "Writeback makes the guest's flushes reach the disk; Unsafe (default) acknowledges them at once."},
        {.name = "io_engine", .type = API_STRING, .values = (const char *const[]){"Sync", "Async", NULL},
         .text = "Sync: one request after the other. Async: io_uring, an error where the host forbids it. "
                 "Absent: io_uring where it is allowed."},
        {.name = "rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits."},
        {.name = "throttle", .type = API_OBJECT, .object = &drive_throttle, .text = "Polder: limits shared with other disks."},
        {.name = "socket", .type = API_STRING, .max = 107, .text = "vhost-user back end; not there yet."},
        {.name = "direct", .type = API_BOOL, .text = "Polder: bypass the host's page cache (O_DIRECT)."},
        {.name = "format", .type = API_STRING, .values = (const char *const[]){"raw", "qcow2", "luks", NULL},
         .text = "Polder: format of the image. Absent: qcow2 or luks when the name ends so and the header agrees, else raw."},
        {.name = "backing", .type = API_LIST,
         .text = "Polder: the images below a qcow2 image, nearest first, instead of those that it names. Such a list follows what "
                 "snapshots and copies make of the chain."},
        {.name = "key_file", .type = API_STRING,
         .text = "Polder: path of the file whose bytes are the key of an encrypted image; read when the disk is opened."},
        {.name = "queues", .type = API_INTEGER, .max = 32, .text = "Polder: request queues; 0 is one a vCPU."},
        {0}}, false};

static const struct api_object drive_update = {
    "PartialDrive", "What may change of a disk while the machine runs.",
    (const struct api_field[]){
        {.name = "drive_id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the disk."},
        {.name = "path_on_host", .type = API_STRING, .text = "Another file; the guest is told of its size."},
        {.name = "size", .type = API_INTEGER, .min = 512, .max = INT64_MAX,
         .text = "Polder: a new size in bytes, larger than the old one; the guest is told."},
        {.name = "rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits; absent buckets stay."},
        {.name = "throttle", .type = API_OBJECT, .object = &drive_throttle, .text = "Polder: its part in its group."},
        {0}}, false};

static const struct api_object drive_snapshot = {
    "DriveSnapshot", "How a disk is kept as it is now; one of both.",
    (const struct api_field[]){
        {.name = "path_on_host", .type = API_STRING,
         .text = "A new qcow2 image, which takes all writes from now on. What the disk was until now becomes its backing file."},
        {.name = "name", .type = API_STRING, .max = 255, .text = "Of a snapshot inside of the disk's qcow2 image."},
        {0}}, false};

static const struct api_object drive_snapshot_action = {
    "DriveSnapshotAction", "What happens to or by a snapshot inside of a qcow2 image.",
    (const struct api_field[]){
        {.name = "action", .type = API_STRING, .required = true, .values = (const char *const[]){"Apply", "Delete", NULL},
         .text = "Delete: its space is free again. Apply: the disk becomes what it was then. The machine is paused for it, and "
                 "restarts when it is resumed, as what the guest has in memory would not fit the disk."},
        {.name = "name", .type = API_STRING, .required = true, .max = 255, .text = "Its name, or its id."},
        {0}}, false};

static const struct api_object drive_snapshot_entry = {
    "DriveSnapshotEntry", "A snapshot inside of a qcow2 image.",
    (const struct api_field[]){
        {.name = "id", .type = API_STRING, .required = true, .text = "Its number."},
        {.name = "name", .type = API_STRING, .required = true, .text = "Its name."},
        {.name = "date_s", .type = API_INTEGER, .required = true, .max = UINT32_MAX, .text = "When it was made, in seconds since 1970."},
        {.name = "size", .type = API_INTEGER, .required = true, .max = INT64_MAX, .text = "Of the disk then, in bytes."},
        {0}}, false};

static const struct api_object drive_snapshot_list = {
    "DriveSnapshotList", "The snapshots inside of a qcow2 image.",
    (const struct api_field[]){
        {.name = "snapshots", .type = API_LIST, .required = true, .object = &drive_snapshot_entry, .text = "In order of age."},
        {0}}, false};

static const struct api_object drive_copy = {
    "DriveCopy", "A copy of a disk, made while the guest runs.",
    (const struct api_field[]){
        {.name = "kind", .type = API_STRING, .required = true,
         .values = (const char *const[]){"Backup", "Commit", "Flatten", "Mirror", "Rebase", NULL},
         .text = "Backup: the disk as it is now. Mirror: follows the disk, until the disk moves to it (action Complete). "
                 "Commit: the same with the image's backing file. Flatten: the image gets what it has in its backing file. "
                 "Rebase: the image gets another backing file, and what that has otherwise; the disk reads the same."},
        {.name = "path_on_host", .type = API_STRING,
         .text = "Backup, Mirror: a new file. While it is not complete its name ends in .part."},
        {.name = "format", .type = API_STRING, .values = (const char *const[]){"raw", "qcow2", NULL},
         .text = "Format of the new image (default qcow2). Rebase: of the base (default: as its name and header say)."},
        {.name = "bitmap", .type = API_STRING, .max = 1000,
         .text = "Backup of a qcow2 disk: a bitmap in the image, which records from now on what the next backup needs."},
        {.name = "base_path_on_host", .type = API_STRING,
         .text = "Backup: the one before this, with the same bitmap; only what was written since is copied, on top of it. "
                 "Rebase: the new backing file."},
        {.name = "base_name", .type = API_STRING, .max = 1023,
         .text = "Rebase to a descriptor (base_path_on_host is fd:N): what the image is to call it."},
        {0}}, false};

static const struct api_object drive_copy_action = {
    "DriveCopyAction", "How a copy ends.",
    (const struct api_field[]){
        {.name = "action", .type = API_STRING, .required = true, .values = (const char *const[]){"Cancel", "Complete", NULL},
         .text = "Cancel: the copy goes, the disk stays. Complete: the disk moves to what is Ready."},
        {0}}, false};

static const struct api_object drive_copy_status = {
    "DriveCopyStatus", "A disk's copy, or how its last one ended.",
    (const struct api_field[]){
        {.name = "state", .type = API_STRING, .required = true,
         .values = (const char *const[]){"None", "Running", "Ready", "Done", "Failed", "Cancelled", NULL},
         .text = "Ready: it is the same as the disk, which may move to it. Done: it is complete, or the disk has moved."},
        {.name = "kind", .type = API_STRING, .values = (const char *const[]){"Backup", "Commit", "Flatten", "Mirror", "Rebase", NULL},
         .text = "As it was asked for."},
        {.name = "path_on_host", .type = API_STRING, .text = "The image that is written."},
        {.name = "copied_bytes", .type = API_INTEGER, .max = INT64_MAX, .text = "Of the disk, how much is copied."},
        {.name = "total_bytes", .type = API_INTEGER, .max = INT64_MAX, .text = "Size of the disk."},
        {.name = "error", .type = API_STRING, .text = "Failed: why."},
        {0}}, false};

static const struct api_object entropy = {
    "EntropyDevice", "The random number device.",
    (const struct api_field[]){
        {.name = "rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits."},
        {0}}, false};

static const struct api_object memory_hotplug = {
    "MemoryHotplugConfig", "Memory that can be added while the machine runs.",
    (const struct api_field[]){
        {.name = "total_size_mib", .type = API_INTEGER, .max = MIB_MAX, .text = "Most memory to add."},
        {.name = "slot_size_mib", .type = API_INTEGER, .min = 128, .max = MIB_MAX, .text = "Unit on the host."},
        {.name = "block_size_mib", .type = API_INTEGER, .min = 2, .max = MIB_MAX, .text = "Unit in the guest."},
        {0}}, false};

static const struct api_object memory_hotplug_update = {
    "MemoryHotplugSizeUpdate", "How much of it the guest should have.",
    (const struct api_field[]){
        {.name = "requested_size_mib", .type = API_INTEGER, .max = MIB_MAX, .text = "Memory to add, in MiB."},
        {0}}, false};

static const struct api_object logger = {
    "Logger", "Where the program's log goes.",
    (const struct api_field[]){
        {.name = "level", .type = API_STRING, .any_case = true,
         .values = (const char *const[]){"Error", "Warning", "Info", "Debug", "Trace", "Off", NULL},
         .text = "Least important messages to keep; Trace is the same as Debug."},
        {.name = "log_path", .type = API_STRING, .text = "File or named pipe."},
        {.name = "show_level", .type = API_BOOL, .text = "Taken for compatibility; the level is always shown."},
        {.name = "show_log_origin", .type = API_BOOL, .text = "Taken for compatibility; the origin is never shown."},
        {.name = "module", .type = API_STRING, .text = "Not there yet."},
        {0}}, false};

static const struct api_object machine_config = {
    "MachineConfiguration", "CPUs and memory.",
    (const struct api_field[]){
        {.name = "vcpu_count", .type = API_INTEGER, .required = true, .min = 1, .max = VM_MAX_VCPUS, .text = "Virtual CPUs."},
        {.name = "mem_size_mib", .type = API_INTEGER, .required = true, .min = 1, .max = MIB_MAX, .text = "Memory in MiB."},
        {.name = "smt", .type = API_BOOL, .text = "Only false: each vCPU is a core of its own."},
        {.name = "track_dirty_pages", .type = API_BOOL, .text = "Keep a log of written pages from the start."},
        {.name = "huge_pages", .type = API_STRING, .values = (const char *const[]){"None", "Transparent", "2M", NULL},
         .text = "2M takes them from hugetlbfs; otherwise the host uses transparent ones as it sees fit."},
        {.name = "cpu_template", .type = API_STRING, .deprecated = true,
         .values = (const char *const[]){"C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None", NULL},
         .text = "Only None; cpu_model is this machine's way."},
        {.name = "cpu_model", .type = API_STRING, .max = 63, .text = "Polder: named CPU model, such as x86-64-v3 or host."},
        {.name = "engine", .type = API_STRING, .values = (const char *const[]){"auto", "kvm", "jit", NULL},
         .text = "Polder: what runs the guest's code."},
        {.name = "engine_options", .type = API_STRING, .max = 1023, .text = "Polder: the engine's own options."},
        {0}}, false};

static const struct api_object metrics = {
    "Metrics", "Where metrics go.",
    (const struct api_field[]){
        {.name = "metrics_path", .type = API_STRING, .required = true, .text = "File or named pipe; a JSON object a line."},
        {0}}, false};

static const struct api_object metrics_now = {
    "MetricsNow", "Groups of numbers by name: block_ID and net_ID of devices, engine, requests.", (const struct api_field[]){{0}}, true};

static const struct api_object mmds_config = {
    "MmdsConfig", "How guests reach the metadata service.",
    (const struct api_field[]){
        {.name = "network_interfaces", .type = API_LIST, .required = true, .text = "Interfaces that answer for it."},
        {.name = "version", .type = API_STRING, .values = (const char *const[]){"V1", "V2", NULL}, .text = "Protocol."},
        {.name = "ipv4_address", .type = API_STRING, .max = 15, .text = "Its link-local address."},
        {.name = "imds_compat", .type = API_BOOL, .text = "Always answer in plain text."},
        {0}}, false};

static const struct api_object net = {
    "NetworkInterface", "A network interface.",
    (const struct api_field[]){
        {.name = "iface_id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the interface."},
        {.name = "host_dev_name", .type = API_STRING, .max = 15, .text = "Tap interface on the host; needed for back end tap."},
        {.name = "guest_mac", .type = API_STRING, .max = 17, .text = "MAC address, as 06:00:ac:10:00:02; else one is made."},
        {.name = "mtu", .type = API_INTEGER, .min = 68, .max = 65535,
         .text = "MTU to tell the guest; the host's side of a tap has its own."},
        {.name = "rx_rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits towards the guest."},
        {.name = "tx_rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits from the guest."},
        {.name = "backend", .type = API_STRING, .values = (const char *const[]){"tap", "user", NULL},
         .text = "Polder: tap (default), or user, which needs no privilege and no host_dev_name."},
        {.name = "queues", .type = API_INTEGER, .max = 16, .text = "Polder: queue pairs; 0 is one a vCPU with tap."},
        {0}}, false};

static const struct api_object net_update = {
    "PartialNetworkInterface", "What may change of an interface while the machine runs.",
    (const struct api_field[]){
        {.name = "iface_id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the interface."},
        {.name = "rx_rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits towards the guest."},
        {.name = "tx_rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits from the guest."},
        {0}}, false};

static const struct api_object pmem = {
    "Pmem", "A persistent memory device.",
    (const struct api_field[]){
        {.name = "id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the device."},
        {.name = "path_on_host", .type = API_STRING, .required = true, .text = "File behind it."},
        {.name = "root_device", .type = API_BOOL, .text = "The guest's root."},
        {.name = "read_only", .type = API_BOOL, .text = "The guest cannot write."},
        {.name = "rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits."},
        {0}}, false};

static const struct api_object pmem_update = {
    "PartialPmem", "What may change of a persistent memory device while the machine runs.",
    (const struct api_field[]){
        {.name = "id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "Name of the device."},
        {.name = "rate_limiter", .type = API_OBJECT, .object = &rate_limiter, .text = "Limits."},
        {0}}, false};

static const struct api_object serial = {
    "SerialDevice", "The serial console.",
    (const struct api_field[]){
        {.name = "serial_out_path", .type = API_STRING, .text = "File that gets what the guest writes; else standard output."},
        {.name = "rate_limiter", .type = API_OBJECT, .object = &token_bucket, .text = "Not there yet."},
        {0}}, false};

static const struct api_object snapshot_create = {
    "SnapshotCreateParams", "Where a snapshot goes.",
    (const struct api_field[]){
        {.name = "snapshot_path", .type = API_STRING, .required = true, .text = "File for the machine's state."},
        {.name = "mem_file_path", .type = API_STRING, .required = true, .text = "File for its memory."},
        {.name = "snapshot_type", .type = API_STRING, .values = (const char *const[]){"Full", "Diff", NULL},
         .text = "All of memory, or what was written since the last one."},
        {0}}, false};

static const struct api_object mem_backend = {
    "MemoryBackend", "Where a snapshot's memory comes from.",
    (const struct api_field[]){
        {.name = "backend_type", .type = API_STRING, .required = true,
         .values = (const char *const[]){"File", "Uffd", NULL}, .text = "A file, or a program behind a socket."},
        {.name = "backend_path", .type = API_STRING, .required = true, .text = "The file or the socket."},
        {0}}, false};

static const struct api_object net_override = {
    "NetworkOverride", "Another tap for an interface of a snapshot.",
    (const struct api_field[]){
        {.name = "iface_id", .type = API_STRING, .required = true, .max = API_ID_MAX, .text = "The interface."},
        {.name = "host_dev_name", .type = API_STRING, .required = true, .max = 15, .text = "The tap."},
        {0}}, false};

static const struct api_object vsock_override = {
    "VsockOverride", "Another socket for the vsock device of a snapshot.",
    (const struct api_field[]){
        {.name = "uds_path", .type = API_STRING, .required = true, .max = 107, .text = "The socket."},
        {0}}, false};

static const struct api_object snapshot_load = {
    "SnapshotLoadParams", "Where a snapshot comes from.",
    (const struct api_field[]){
        {.name = "snapshot_path", .type = API_STRING, .required = true, .text = "File with the machine's state."},
        {.name = "mem_file_path", .type = API_STRING, .deprecated = true, .text = "File with its memory."},
        {.name = "mem_backend", .type = API_OBJECT, .object = &mem_backend, .text = "Where its memory is."},
        {.name = "enable_diff_snapshots", .type = API_BOOL, .deprecated = true, .text = "As track_dirty_pages."},
        {.name = "track_dirty_pages", .type = API_BOOL, .text = "Keep a log of written pages from now on."},
        {.name = "resume_vm", .type = API_BOOL, .text = "Let it run at once."},
        {.name = "network_overrides", .type = API_LIST, .object = &net_override, .text = "Other taps."},
        {.name = "vsock_override", .type = API_OBJECT, .object = &vsock_override, .text = "Another vsock socket."},
        {.name = "clock_realtime", .type = API_BOOL, .text = "Let the guest's clock jump over the time that passed."},
        {0}}, false};

static const struct api_object vm_state = {
    "Vm", "Whether the machine runs.",
    (const struct api_field[]){
        {.name = "state", .type = API_STRING, .required = true,
         .values = (const char *const[]){"Paused", "Resumed", NULL}, .text = "What it should do."},
        {0}}, false};

static const struct api_object vsock = {
    "Vsock", "Sockets between host and guest.",
    (const struct api_field[]){
        {.name = "guest_cid", .type = API_INTEGER, .required = true, .min = 3, .max = 0xfffffffe,
         .text = "The guest's address."},
        {.name = "uds_path", .type = API_STRING, .required = true, .max = 107,
         .text = "Socket made here for calls to the guest; its calls to port N go to this path with _N behind it."},
        {.name = "vsock_id", .type = API_STRING, .deprecated = true, .text = "Ignored."},
        {0}}, false};

/* ---- answers ---- */

static const struct api_object instance_info = {
    "InstanceInfo", "What runs here.",
    (const struct api_field[]){
        {.name = "id", .type = API_STRING, .required = true, .text = "Name of the machine."},
        {.name = "state", .type = API_STRING, .required = true,
         .values = (const char *const[]){"Not started", "Running", "Paused", NULL}, .text = "What it does."},
        {.name = "vmm_version", .type = API_STRING, .required = true, .text = "Version of the program."},
        {.name = "app_name", .type = API_STRING, .required = true, .text = "Name of the program."},
        {0}}, false};

static const struct api_object version = {
    "FirecrackerVersion", "Versions.",
    (const struct api_field[]){
        {.name = "firecracker_version", .type = API_STRING, .required = true,
         .text = "Version of Firecracker whose API this is."},
        {.name = "polder_version", .type = API_STRING, .required = true, .text = "Version of the program."},
        {0}}, false};

static const struct api_object full_config = {
    "FullVmConfiguration", "All that is configured, in the form of a config file; null for what is not there.",
    (const struct api_field[]){
        {.name = "machine-config", .type = API_OBJECT, .object = &machine_config, .text = "CPUs and memory."},
        {.name = "boot-source", .type = API_OBJECT, .object = &boot_source, .text = "What it boots."},
        {.name = "throttles", .type = API_LIST, .object = &throttle, .text = "Polder: limits that disks share."},
        {.name = "drives", .type = API_LIST, .object = &drive, .text = "Disks."},
        {.name = "network-interfaces", .type = API_LIST, .object = &net, .text = "Network interfaces."},
        {.name = "vsock", .type = API_OBJECT, .object = &vsock, .text = "Sockets to the guest."},
        {.name = "balloon", .type = API_OBJECT, .object = &balloon, .text = "Memory balloon."},
        {.name = "entropy", .type = API_OBJECT, .object = &entropy, .text = "Random number device."},
        {.name = "logger", .type = API_OBJECT, .object = &logger, .text = "Log."},
        {.name = "metrics", .type = API_OBJECT, .object = &metrics, .text = "Metrics."},
        {0}}, false};

/* ---- operations ---- */

const struct api_operation api_operations[] = {
    {API_GET, "/", "instance_info", API_ANY_TIME, NULL, false, false, &instance_info, api_get_instance,
     "What runs here and whether it does"},
    {API_PUT, "/actions", "actions", API_ANY_TIME, &action, false, false, NULL, api_put_actions,
     "Start the machine, press its power button, or write metrics"},
    {API_GET, "/balloon", "balloon", API_ANY_TIME, NULL, false, false, &balloon, api_get_balloon,
     "The balloon as configured"},
    {API_PUT, "/balloon", "balloon", API_BEFORE_START, &balloon, false, false, NULL, api_put_balloon,
     "Give the machine a balloon"},
    {API_PATCH, "/balloon", "balloon", API_AFTER_START, &balloon_update, false, false, NULL, api_patch_balloon,
     "Inflate or deflate the balloon"},
    {API_GET, "/balloon/statistics", "balloon_stats", API_AFTER_START, NULL, false, false, &balloon_stats,
     api_get_balloon_stats, "The guest's memory statistics"},
    {API_PATCH, "/balloon/statistics", "balloon_stats", API_AFTER_START, &balloon_stats_update, false, false, NULL,
     api_patch_balloon_stats, "Change the interval of the statistics"},
    {API_PATCH, "/balloon/hinting/start", "balloon_hinting", API_AFTER_START, &hinting_start, true, false, NULL,
     api_patch_hinting_start, "Ask the guest for all of its free pages"},
    {API_GET, "/balloon/hinting/status", "balloon_hinting", API_AFTER_START, NULL, false, false, &hinting_status,
     api_get_hinting, "Where free page hinting is"},
    {API_PATCH, "/balloon/hinting/stop", "balloon_hinting", API_AFTER_START, &no_members, true, false, NULL,
     api_patch_hinting_stop, "End a run of free page hinting"},
    {API_PUT, "/boot-source", "boot_source", API_BEFORE_START, &boot_source, false, false, NULL, api_put_boot_source,
     "Choose kernel, initial RAM disk and command line"},
    {API_PUT, "/cpu-config", "cpu_cfg", API_BEFORE_START, &cpu_config, false, false, NULL, NULL,
     "choosing CPU features one by one (machine-config takes a cpu_model)"},
    {API_PUT, "/drives/{drive_id}", "drive", API_BEFORE_START, &drive, false, false, NULL, api_put_drive,
     "Add or replace a disk"},
    {API_PATCH, "/drives/{drive_id}", "drive", API_AFTER_START, &drive_update, false, false, NULL, api_patch_drive,
     "Change a disk's file, size or limits"},
    {API_PUT, "/drives/{drive_id}/snapshot", "drive_snapshot", API_AFTER_START, &drive_snapshot, false, false, NULL,
     api_put_drive_snapshot, "Polder: keep a disk as it is now, inside of its image or by a new image on top of it"},
    {API_GET, "/drives/{drive_id}/snapshot", "drive_snapshot", API_AFTER_START, NULL, false, false, &drive_snapshot_list,
     api_get_drive_snapshot, "Polder: the snapshots inside of a disk's image"},
    {API_PATCH, "/drives/{drive_id}/snapshot", "drive_snapshot", API_AFTER_START, &drive_snapshot_action, false, false, NULL,
     api_patch_drive_snapshot, "Polder: delete a snapshot inside of a disk's image, or go back to it"},
    {API_GET, "/drives/{drive_id}/copy", "drive_copy", API_AFTER_START, NULL, false, false, &drive_copy_status,
     api_get_drive_copy, "Polder: how far a disk's copy is"},
    {API_PUT, "/drives/{drive_id}/copy", "drive_copy", API_AFTER_START, &drive_copy, false, false, NULL,
     api_put_drive_copy, "Polder: copy a disk into a new image"},
    {API_PATCH, "/drives/{drive_id}/copy", "drive_copy", API_AFTER_START, &drive_copy_action, false, false, NULL,
     api_patch_drive_copy, "Polder: end a disk's copy"},
    {API_PUT, "/entropy", "entropy", API_BEFORE_START, &entropy, false, false, NULL, api_put_entropy,
     "Give the machine a random number device"},
    {API_GET, "/hotplug/memory", "hotplug_memory", API_ANY_TIME, NULL, false, false, &memory_hotplug, NULL,
     "memory hotplug"},
    {API_PUT, "/hotplug/memory", "hotplug_memory", API_BEFORE_START, &memory_hotplug, false, false, NULL, NULL,
     "memory hotplug"},
    {API_PATCH, "/hotplug/memory", "hotplug_memory", API_AFTER_START, &memory_hotplug_update, false, false, NULL, NULL,
     "memory hotplug"},
    {API_PUT, "/logger", "logger", API_BEFORE_START, &logger, false, false, NULL, api_put_logger,
     "Choose the log's file and level"},
    {API_GET, "/machine-config", "machine_cfg", API_ANY_TIME, NULL, false, false, &machine_config,
     api_get_machine_config, "CPUs and memory"},
    {API_PUT, "/machine-config", "machine_cfg", API_BEFORE_START, &machine_config, false, false, NULL,
     api_put_machine_config, "Set CPUs and memory; what Firecracker's fields leave out goes back to its default"},
    {API_PATCH, "/machine-config", "machine_cfg", API_BEFORE_START, &machine_config, false, true, NULL,
     api_put_machine_config, "Change some of it"},
    {API_GET, "/metrics", "metrics", API_ANY_TIME, NULL, false, false, &metrics_now, api_get_metrics,
     "All metrics as they stand, counters since the start"},
    {API_PUT, "/metrics", "metrics", API_BEFORE_START, &metrics, false, false, NULL, api_put_metrics,
     "Choose the metrics file, once"},
    {API_GET, "/mmds", "mmds", API_ANY_TIME, NULL, false, false, &any_json, NULL, "the metadata service"},
    {API_PUT, "/mmds", "mmds", API_ANY_TIME, &any_json, false, false, NULL, NULL, "the metadata service"},
    {API_PATCH, "/mmds", "mmds", API_ANY_TIME, &any_json, false, false, NULL, NULL, "the metadata service"},
    {API_PUT, "/mmds/config", "mmds", API_BEFORE_START, &mmds_config, false, false, NULL, NULL, "the metadata service"},
    {API_PUT, "/network-interfaces/{iface_id}", "network", API_BEFORE_START, &net, false, false, NULL, api_put_net,
     "Add or replace a network interface"},
    {API_PATCH, "/network-interfaces/{iface_id}", "network", API_AFTER_START, &net_update, false, false, NULL,
     api_patch_net, "Change an interface's limits"},
    {API_PUT, "/pmem/{id}", "pmem", API_BEFORE_START, &pmem, false, false, NULL, NULL, "persistent memory"},
    {API_PATCH, "/pmem/{id}", "pmem", API_AFTER_START, &pmem_update, false, false, NULL, NULL, "persistent memory"},
    {API_PUT, "/serial", "serial", API_BEFORE_START, &serial, false, false, NULL, api_put_serial,
     "Choose where the serial console's output goes"},
    {API_PUT, "/snapshot/create", "snapshot_create", API_AFTER_START, &snapshot_create, false, false, NULL, NULL,
     "taking snapshots"},
    {API_PUT, "/snapshot/load", "snapshot_load", API_BEFORE_START, &snapshot_load, false, false, NULL, NULL,
     "loading snapshots"},
    {API_PUT, "/throttles/{throttle_id}", "throttle", API_BEFORE_START, &throttle, false, false, NULL, api_put_throttle,
     "Polder: add or replace a group of disks that share limits"},
    {API_PATCH, "/throttles/{throttle_id}", "throttle", API_AFTER_START, &throttle, false, false, NULL, api_patch_throttle,
     "Polder: change a group's limits"},
    {API_GET, "/version", "vmm_version", API_ANY_TIME, NULL, false, false, &version, api_get_version, "Versions"},
    {API_PATCH, "/vm", "vm", API_AFTER_START, &vm_state, false, false, NULL, api_patch_vm, "Pause or resume the machine"},
    {API_GET, "/vm/config", "vm_config", API_ANY_TIME, NULL, false, false, &full_config, api_get_vm_config,
     "All that is configured"},
    {API_PUT, "/vsock", "vsock", API_BEFORE_START, &vsock, false, false, NULL, api_put_vsock,
     "Give the machine a vsock device"},
};
/* clang-format on */
_Static_assert(COUNT(api_operations) == API_OPERATIONS, "the number in api_impl.h");
