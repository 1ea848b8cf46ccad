/* The program around the machine: its loop, signals, API, and how it ends. One per process. */
#pragma once

#include "base/loop.h"
#include "vmm/api_machine.h"
#include "vmm/options.h"

struct program {
    struct vmm_options options;
    struct loop *loop;
    struct api_machine *binding; /* owns the machine */
    struct api *api;
    int status; /* enum vmm_status, or 128 + signal */
    int signal_fd;
    bool new_metrics; /* the metrics file was not there: it goes again when nothing has run */
};

/* Runs until the end and leaves the status in program->status; on error nothing has run. */
must_check int program_run(struct program *program, struct err *err);
/* Frees what program_run made. */
void program_end(struct program *program);
