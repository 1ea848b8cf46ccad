/* Serial output, checks, verdict. */
#include "guest.h"

static unsigned passed, failed, skipped;
static volatile int print_lock;

static void put_char(char c)
{
    outb(0x3f8, (uint8_t)c);
}

static void put_number(uint64_t value, unsigned base, unsigned width, bool negative)
{
    char digits[24];
    unsigned n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n < width && n < sizeof digits)
        digits[n++] = '0';
    if (negative)
        put_char('-');
    while (n)
        put_char(digits[--n]);
}

static void put_string(const char *text)
{
    while (*text)
        put_char(*text++);
}

static int64_t signed_argument(va_list *args, bool is_long)
{
    return is_long ? va_arg(*args, int64_t) : va_arg(*args, int);
}

/* %s %c %d %u %x with l and a width of zeros: all that guests need. */
static const char *put_conversion(const char *at, va_list *args)
{
    unsigned width = 0;
    bool is_long = false;
    while (*at >= '0' && *at <= '9')
        width = width * 10 + (unsigned)(*at++ - '0');
    for (; *at == 'l'; at++)
        is_long = true;
    int64_t value;
    switch (*at) {
    case 's':
        put_string(va_arg(*args, const char *));
        break;
    case 'c':
        put_char((char)va_arg(*args, int));
        break;
    case 'd':
        value = signed_argument(args, is_long);
        put_number(value < 0 ? -(uint64_t)value : (uint64_t)value, 10, width, value < 0);
        break;
    case 'u':
    case 'x':
        put_number(is_long ? va_arg(*args, uint64_t) : va_arg(*args, unsigned), *at == 'x' ? 16 : 10, width, false);
        break;
    default:
        put_char(*at);
    }
    return at;
}

static void print_args(const char *format, va_list *args)
{
    while (__atomic_exchange_n(&print_lock, 1, __ATOMIC_ACQUIRE))
        pause_cpu();
    for (; *format; format++) {
        if (*format == '%')
            format = put_conversion(format + 1, args);
        else
            put_char(*format);
    }
    __atomic_store_n(&print_lock, 0, __ATOMIC_RELEASE);
}

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_args(format, &args);
    va_end(args);
}

void check_at(const char *file, int line, bool ok, const char *format, ...)
{
    if (ok) {
        __atomic_fetch_add(&passed, 1, __ATOMIC_RELAXED);
        return;
    }
    __atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
    print("FAIL %s:%d: ", file, line);
    va_list args;
    va_start(args, format);
    print_args(format, &args);
    va_end(args);
    print("\n");
}

void skip(const char *why)
{
    skipped++;
    print("SKIP %s\n", why);
}

_Noreturn void finish(void)
{
    print("GUEST-VERDICT %s: %u checks passed, %u failed, %u skipped\n", failed || !passed ? "bad" : "good", passed, failed,
          skipped);
    outb(0x600, 0x34); /* ACPI sleep register, S5 */
    for (;;)
        __asm__ volatile("cli; hlt");
}
