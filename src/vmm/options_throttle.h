/* Limits that disks share, on the command line: --throttle, and the words of --disk that make a disk a member. */
#pragma once

#include "vmm/config.h"

/* "NAME[,iops=N][,iops-burst=N][,iops-burst-s=N]...": appends a group. */
must_check int options_add_throttle(struct vm_config *config, const char *text, struct err *err);
/* 1 when `word` was one of throttle=, weight=, reserve=, limit=; 0: another; -EINVAL. */
must_check int options_throttle_word(struct vm_disk *disk, const char *word, struct err *err);
