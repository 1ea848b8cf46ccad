#include "polder/command.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

const struct command_group *command_find_group(const char *name)
{
    for (const struct command_group *group = command_groups; group->name; group++)
        if (*group->name && strcmp(group->name, name) == 0)
            return group;
    return NULL;
}

const struct command *command_find(const struct command_group *group, const char *name)
{
    for (const struct command *command = group->commands; command->name; command++)
        if (strcmp(command->name, name) == 0)
            return command;
    return NULL;
}

const struct command *command_find_plain(const char *name)
{
    const struct command *found = NULL;
    for (const struct command_group *group = command_groups; group->name && !found; group++)
        if (!*group->name)
            found = command_find(group, name);
    return found;
}

void command_full_name(const struct command_group *group, const struct command *command, char *name, size_t size)
{
    snprintf(name, size, "polder%s%s %s", *group->name ? " " : "", group->name, command->name);
}

/* The next word of an operands text: its end, or NULL when there is none. */
static const char *next_word(const char **text)
{
    *text += strspn(*text, " ");
    return **text ? *text + strcspn(*text, " ") : NULL;
}

unsigned command_operands_min(const struct command *command)
{
    unsigned count = 0;
    const char *text = command->operands, *end;
    for (int depth = 0; (end = next_word(&text)) != NULL; text = end) {
        for (const char *c = text; c < end; c++)
            depth += (*c == '[') - (*c == ']');
        count += depth == 0 && *text != '[' && end[-1] != ']';
    }
    return count;
}

unsigned command_operands_max(const struct command *command)
{
    if (strstr(command->operands, "..."))
        return UINT_MAX;
    unsigned count = 0;
    const char *text = command->operands, *end;
    for (; (end = next_word(&text)) != NULL; text = end)
        count++;
    return count;
}

bool command_operand_word(const struct command *command, unsigned at, char *word, size_t size)
{
    const char *text = command->operands, *end, *last = NULL;
    unsigned count = 0;
    for (; (end = next_word(&text)) != NULL && count <= at; text = end, count++)
        last = text;
    if (!last || (count <= at && !strstr(last, "...")))
        return false;
    last += strspn(last, "[");
    snprintf(word, size, "%.*s", (int)strcspn(last, " .]"), last);
    return true;
}
