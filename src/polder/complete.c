/* Completion: `polder __complete WORD...` prints what may stand in the place of the last word, one a line, with a tab and a
 * description; the scripts of `polder completion SHELL` call it. All of it comes from the table of commands, names of
 * instances and the like from polderd. */
#include <stdlib.h>
#include <string.h>

#include "polder/cli.h"
#include "polder/commands.h"
#include "polder/help.h"
#include "polder/complete.h"
#include "polder/text.h"

#define FILES ":files\n" /* a line that asks the shell for file names */

static void offer(const char *prefix, const char *candidate, const char *description)
{
    if (strncmp(candidate, prefix, strlen(prefix)) == 0)
        printf("%s\t%s\n", candidate, description);
}

/* ---- names from polderd ---- */

static const struct {
    const char *word, *path, *member;
} lists[] = {
    {"INSTANCE", "/v1/instances?fields=name", "name"}, {"IMAGE", "/v1/images", "ref"},     {"NETWORK", "/v1/networks", "name"},
    {"VOLUME", "/v1/volumes", "name"},     {"TOKEN", "/v1/tokens", "name"},
};

static void offer_names(struct cli *cli, const char *prefix, const char *path, const char *member, const char *suffix)
{
    struct err err;
    json_t *answer = NULL, *document;
    size_t at;
    if (cli_get(cli, &answer, &err, path) < 0)
        return; /* a completion has nobody to tell */
    json_array_foreach(cli_array(answer), at, document) {
        char name[256], candidate[260];
        text_clean(name, sizeof name, cli_text(document, member), "");
        snprintf(candidate, sizeof candidate, "%s%s", name, suffix);
        if (*name)
            offer(prefix, candidate, "");
    }
    json_decref(answer);
}

static void offer_choices(const char *prefix, const char *word)
{
    while (*word) {
        char choice[32];
        size_t len = strcspn(word, "|");
        snprintf(choice, sizeof choice, "%.*s", (int)len, word);
        offer(prefix, choice, "");
        word += len + (word[len] == '|');
    }
}

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* What may stand for a word of a usage text: "INSTANCE", "VOLUME:PATH[:ro]", "no|always", "FILE". */
static void offer_word(struct cli *cli, const char *prefix, const char *word)
{
    if (strchr(word, '|'))
        return offer_choices(prefix, word);
    if (begins(word, "FILE") || begins(word, "PATH") || begins(word, "SOURCE") || begins(word, "TARGET"))
        printf(FILES);
    if (begins(word, "SOURCE") || begins(word, "TARGET"))
        return offer_names(cli, prefix, "/v1/instances?fields=name", "name", ":");
    for (unsigned i = 0; i < sizeof lists / sizeof *lists; i++)
        if (begins(word, lists[i].word))
            return offer_names(cli, prefix, lists[i].path, lists[i].member, strchr(word, ':') ? ":" : "");
}

/* ---- where the last word stands ---- */

struct search {
    const char *text;
    const struct option_spec *found;
};

static bool offer_option(void *arg, const struct option_spec *spec)
{
    char text[64];
    if (!*spec->name)
        return true;
    snprintf(text, sizeof text, "--%s", option_name(spec));
    offer(arg, text, spec->help);
    return true;
}

/* "--name" or "-itn": the option that waits for its value. */
static bool waits(void *arg, const struct option_spec *spec)
{
    struct search *search = arg;
    const char *text = search->text;
    bool is_long = text[0] == '-' && text[1] == '-' && strcmp(text + 2, option_name(spec)) == 0;
    bool is_letter = text[0] == '-' && text[1] && text[1] != '-' && option_letter(spec) == text[strlen(text) - 1] && option_letter(spec);
    if (*spec->name && spec->value && (is_long || is_letter))
        search->found = spec;
    return !search->found;
}

static const struct option_spec *waiting(const struct help_program *program, const char *before)
{
    struct search search = {.text = before};
    option_each(&program->program, waits, &search);
    return search.found;
}

/* How many of the words are operands; *ret_first is the first of them. */
static unsigned count_operands(const struct help_program *program, const char *const *words, size_t count, size_t *ret_first)
{
    unsigned operands = 0;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(words[i], "--") == 0)
            continue;
        if (words[i][0] == '-' && words[i][1]) {
            i += waiting(program, words[i]) != NULL;
            continue;
        }
        if (!operands++)
            *ret_first = i;
    }
    return operands;
}

static void offer_commands(const char *prefix, const struct command_group *group)
{
    for (const struct command *command = group->commands; command->name; command++)
        if (!command->hidden)
            offer(prefix, command->name, command->summary);
}

static void offer_top(const char *prefix)
{
    for (const struct command_group *group = command_groups; group->name; group++) {
        if (*group->name)
            offer(prefix, group->name, group->title);
        else
            offer_commands(prefix, group);
    }
}

/* An option or its value. True when that is what stands here. */
static bool offer_options(struct cli *cli, const struct help_program *program, const char *before, const char *last)
{
    const struct option_spec *spec = before ? waiting(program, before) : NULL;
    if (spec)
        offer_word(cli, last, spec->value);
    else if (last[0] == '-')
        option_each(&program->program, offer_option, (void *)(uintptr_t)last);
    return spec || last[0] == '-';
}

/* `words` up to the one that is completed, the last, behind "polder" or the group's name. */
static void complete(struct cli *cli, const struct command_group *group, const char *const *words, size_t count)
{
    struct help_program program;
    size_t first = 0, before = count - 1;
    const char *last = words[before];
    help_program_above(&program, group);
    if (!count_operands(&program, words, before, &first)) {
        if (!offer_options(cli, &program, before ? words[before - 1] : NULL, last))
            group ? offer_commands(last, group) : offer_top(last);
        return;
    }
    const struct command_group *inner = group ? NULL : command_find_group(words[first]);
    const struct command *command = group ? command_find(group, words[first]) : command_find_plain(words[first]);
    if (inner)
        return complete(cli, inner, words + first + 1, count - first - 1);
    if (!command)
        return;
    static const struct command_group plain = {"", "", NULL};
    size_t ignored;
    char word[64];
    help_program(&program, group ? group : &plain, command);
    words += first + 1;
    before -= first + 1;
    unsigned operands = count_operands(&program, words, before, &ignored);
    bool rest = command->rest && operands;
    if (!rest && offer_options(cli, &program, before ? words[before - 1] : NULL, last))
        return;
    if (!rest && command_operand_word(command, operands, word, sizeof word))
        offer_word(cli, last, word);
}

int complete_run(struct cli *cli)
{
    if (cli->args.operand_count)
        complete(cli, NULL, cli->args.operands, cli->args.operand_count);
    return 0;
}
