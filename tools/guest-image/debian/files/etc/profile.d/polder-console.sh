# A serial line carries no window size: ask the terminal, once, at login.
if [ "$(tty)" = /dev/ttyS0 ] && [ -n "${BASH_VERSION:-}" ]; then
    polder_size() {
        local state row col
        state=$(stty -g)
        stty raw -echo min 0 time 5
        printf '\0337\033[999;999H\033[6n\0338'
        IFS='[;' read -r -t 1 -d R _ row col || { stty "$state"; return; }
        stty "$state"
        case $row$col in '' | *[!0-9]*) return ;; esac
        stty rows "$row" cols "$col"
    }
    polder_size
    unset -f polder_size
fi
