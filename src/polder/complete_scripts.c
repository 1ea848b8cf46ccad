/* What shells load: thin, as `polder __complete` knows everything. */
#include <stddef.h>
#include <string.h>

#include "polder/complete.h"

/* readline breaks words at ':' and '=', which names of images and paths hold: the line is split anew, and what the shell
 * believes is already there is taken off the candidates. */
static const char bash[] =
    "# bash completion for polder: source <(polder completion bash)\n"
    "_polder() {\n"
    "    local line=${COMP_LINE:0:COMP_POINT} cur prefix word _\n"
    "    local -a words\n"
    "    read -ra words <<<\"$line\"\n"
    "    [[ $line == *[[:space:]] ]] && words+=('')\n"
    "    cur=${words[-1]} COMPREPLY=()\n"
    "    while IFS=$'\\t' read -r word _; do\n"
    "        if [[ $word == :files ]]; then\n"
    "            compopt -o filenames 2>/dev/null\n"
    "            while IFS= read -r word; do COMPREPLY+=(\"$word\"); done < <(compgen -f -- \"$cur\")\n"
    "        else\n"
    "            COMPREPLY+=(\"$word\")\n"
    "        fi\n"
    "    done < <(\"${words[0]}\" __complete -- \"${words[@]:1}\" 2>/dev/null)\n"
    "    prefix=${cur%\"${cur##*[:=]}\"}\n"
    "    [[ -n $prefix ]] && COMPREPLY=(\"${COMPREPLY[@]#\"$prefix\"}\")\n"
    "    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null\n"
    "    return 0\n"
    "}\n"
    "complete -F _polder polder\n";

static const char zsh[] =
    "#compdef polder\n"
    "# zsh completion for polder: source <(polder completion zsh), or as _polder in a folder of $fpath\n"
    "_polder() {\n"
    "    local line word text\n"
    "    local -a candidates bare\n"
    "    while IFS= read -r line; do\n"
    "        word=${line%%$'\\t'*} text=${line#*$'\\t'}\n"
    "        if [[ $word == :files ]]; then _files; continue; fi\n"
    "        if [[ $word == *: ]]; then bare+=(\"$word\"); continue; fi\n"
    "        candidates+=(\"${word//:/\\\\:}${text:+:$text}\")\n"
    "    done < <(\"${words[1]}\" __complete -- \"${(@)words[2,CURRENT]}\" 2>/dev/null)\n"
    "    (( ${#bare} )) && compadd -S '' -- \"${bare[@]}\"\n"
    "    (( ${#candidates} )) && _describe 'polder' candidates\n"
    "    return 0\n"
    "}\n"
    "if [[ ${funcstack[1]} == _polder ]]; then _polder \"$@\"; else compdef _polder polder; fi\n";

static const char fish[] =
    "# fish completion for polder: polder completion fish | source\n"
    "function __polder_complete\n"
    "    set -l words (commandline -opc) (commandline -ct)\n"
    "    for line in ($words[1] __complete -- $words[2..-1] 2>/dev/null)\n"
    "        if test \"$line\" = ':files'\n"
    "            __fish_complete_path (commandline -ct)\n"
    "        else\n"
    "            echo $line\n"
    "        end\n"
    "    end\n"
    "end\n"
    "complete -c polder -f -a '(__polder_complete)'\n";

const char *complete_script(const char *shell)
{
    static const struct {
        const char *shell, *script;
    } scripts[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}};
    for (unsigned i = 0; i < sizeof scripts / sizeof *scripts; i++)
        if (strcmp(scripts[i].shell, shell) == 0)
            return scripts[i].script;
    return NULL;
}
