/* Shell completion. */
#pragma once

struct cli;

/* Prints candidates for the last operand; what stands before it are the words behind "polder". */
int complete_run(struct cli *cli);
/* The script for "bash", "zsh" or "fish"; NULL: another shell. */
const char *complete_script(const char *shell);
