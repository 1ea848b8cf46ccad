/* What nobody needs any more. */
#pragma once

#include <jansson.h>

#include "api/platform.h"
#include "base/err.h"
#include "store/store.h"

/* Blobs and root file systems that neither a tag nor an instance needs: {"blobs", "bytes"}. */
must_check int images_prune(struct platform *platform, const struct store_audit *audit, json_t **ret_result, struct err *err);
/* -EBUSY names an instance that is made from this image and would not start without it. */
must_check int image_check_unused(struct platform *platform, const char *ref, struct err *err);
