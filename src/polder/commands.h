/* The arrays of commands, one file each. */
#pragma once

#include "polder/command.h"

extern const struct command run_commands[], instance_commands[], look_commands[], session_commands[], snapshot_commands[],
    image_commands[], network_commands[], volume_commands[], token_commands[], system_commands[], other_commands[];
