/* stats and events: what is shown until the user has seen enough. */
#pragma once

#include "base/err.h"

struct cli;

must_check int watch_stats(struct cli *cli, struct err *err);
must_check int watch_events(struct cli *cli, struct err *err);
