/* Lists of snapshots, for info and snapshot. */
#pragma once

#include "img/img.h"

/* An array with qemu-img's fields. */
must_check int img_list_snapshots(const struct img_image *image, json_t **ret_list, struct err *err);
void img_print_snapshots(const json_t *list);
