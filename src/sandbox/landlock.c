#include <errno.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/own.h"
#include "sandbox/filter.h"

/* The kernel's struct landlock_ruleset_attr, which has grown since this host's headers: as much of it as the ABI knows counts. */
struct ruleset {
    uint64_t files, network, scopes;
};

#define FILE_RIGHTS_1 13u /* the first ABI's; 2: refer, 3: truncate, 5: ioctl on devices */
#define ABI_REFER 2
#define NETWORK_RIGHTS 3u /* bind and connect of TCP, from ABI 4 on */
#define SCOPES 3u         /* abstract unix sockets and signals of others, from ABI 6 on */

static uint64_t file_rights(long abi)
{
    unsigned count = FILE_RIGHTS_1 + (abi >= 2) + (abi >= 3) + (abi >= 5);
    return (UINT64_C(1) << count) - 1;
}

static int allow_folder(int rules_fd, uint64_t rights, int folder_fd)
{
    struct landlock_path_beneath_attr below = {.allowed_access = rights, .parent_fd = folder_fd};
    return folder_fd < 0 ? 0 : (int)syscall(SYS_landlock_add_rule, rules_fd, LANDLOCK_RULE_PATH_BENEATH, &below, 0);
}

int sandbox_landlock(int folder_fd, int *ret_abi, struct err *err)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < (folder_fd < 0 ? 1 : ABI_REFER))
        abi = 0;
    *ret_abi = (int)abi;
    if (!abi)
        return 0;
    struct ruleset rules = {
        .files = file_rights(abi), .network = abi >= 4 ? NETWORK_RIGHTS : 0, .scopes = abi >= 6 ? SCOPES : 0};
    size_t size = abi >= 6 ? sizeof rules : abi >= 4 ? 2 * sizeof(uint64_t) : sizeof(uint64_t);
    own_fd int fd = (int)syscall(SYS_landlock_create_ruleset, &rules, size, 0);
    if (fd < 0 || allow_folder(fd, rules.files, folder_fd) < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0)
        return err_set(err, errno, "sandbox: Landlock");
    return 0;
}
