/* Time of day: host UTC plus the offset that the guest has set. While the guest holds SET in register B, time stands
 * still and writes collect; clearing it makes them the new offset. One lock guards all. Source: Motorola MC146818A. */
#include "dev/rtc.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { SECONDS = 0, MINUTES = 2, HOURS = 4, WEEKDAY = 6, DAY = 7, MONTH = 8, YEAR = 9, REG_A, REG_B, REG_C, REG_D };

#define A_UPDATING 0x80
#define A_DIVIDER_32KHZ 0x26
#define B_SET 0x80
#define B_BINARY 0x04
#define B_24_HOURS 0x02
#define D_VALID 0x80
#define HOUR_PM 0x80
#define UPDATE_NS 244000 /* SET time before the second changes, in which A_UPDATING shows */

struct rtc {
    pthread_mutex_t lock;
    struct bus *ports;
    uint8_t index;
    uint8_t cmos[128];
    int64_t offset_s;
};

static uint8_t encode(const struct rtc *rtc, int value)
{
    return (uint8_t)(rtc->cmos[REG_B] & B_BINARY ? value : (value / 10 % 10) << 4 | value % 10);
}

static int decode(const struct rtc *rtc, uint8_t value)
{
    return rtc->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 0x0f);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
    if (rtc->cmos[REG_B] & B_24_HOURS)
        return encode(rtc, hour);
    return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static int decode_hour(const struct rtc *rtc, uint8_t value)
{
    if (rtc->cmos[REG_B] & B_24_HOURS)
        return decode(rtc, value);
    return decode(rtc, value & 0x7f) % 12 + (value & HOUR_PM ? 12 : 0);
}

static void load_time(struct rtc *rtc)
{
    time_t now = time(NULL) + rtc->offset_s;
    struct tm tm;
    if (!gmtime_r(&now, &tm))
        return;
    rtc->cmos[SECONDS] = encode(rtc, tm.tm_sec);
    rtc->cmos[MINUTES] = encode(rtc, tm.tm_min);
    rtc->cmos[HOURS] = encode_hour(rtc, tm.tm_hour);
    rtc->cmos[WEEKDAY] = encode(rtc, tm.tm_wday + 1);
    rtc->cmos[DAY] = encode(rtc, tm.tm_mday);
    rtc->cmos[MONTH] = encode(rtc, tm.tm_mon + 1);
    rtc->cmos[YEAR] = encode(rtc, (tm.tm_year + 1900) % 100); /* tm_year is negative before 1900 */
    rtc->cmos[RTC_CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100);
}

static void store_time(struct rtc *rtc)
{
    struct tm tm = {
        .tm_sec = decode(rtc, rtc->cmos[SECONDS]),
        .tm_min = decode(rtc, rtc->cmos[MINUTES]),
        .tm_hour = decode_hour(rtc, rtc->cmos[HOURS]),
        .tm_mday = decode(rtc, rtc->cmos[DAY]),
        .tm_mon = decode(rtc, rtc->cmos[MONTH]) - 1,
        .tm_year = decode(rtc, rtc->cmos[RTC_CENTURY]) * 100 + decode(rtc, rtc->cmos[YEAR]) - 1900,
    };
    rtc->offset_s = timegm(&tm) - time(NULL);
}

static bool is_time(uint8_t index)
{
    return index == SECONDS || index == MINUTES || index == HOURS || (index >= WEEKDAY && index <= YEAR) ||
           index == RTC_CENTURY;
}

static uint8_t read_a(const struct rtc *rtc)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    bool updating = !(rtc->cmos[REG_B] & B_SET) && now.tv_nsec >= 1000000000 - UPDATE_NS;
    return (uint8_t)(rtc->cmos[REG_A] | (updating ? A_UPDATING : 0));
}

static uint8_t read_cmos(struct rtc *rtc)
{
    if (is_time(rtc->index) && !(rtc->cmos[REG_B] & B_SET))
        load_time(rtc);
    return rtc->index == REG_A ? read_a(rtc) : rtc->cmos[rtc->index];
}

static void write_b(struct rtc *rtc, uint8_t value)
{
    uint8_t was = rtc->cmos[REG_B];
    if (value & ~was & B_SET)
        load_time(rtc);
    rtc->cmos[REG_B] = value & (B_SET | B_BINARY | B_24_HOURS);
    if (was & ~value & B_SET)
        store_time(rtc);
}

static void write_cmos(struct rtc *rtc, uint8_t value)
{
    if (rtc->index == REG_B) {
        write_b(rtc, value);
    } else if (is_time(rtc->index)) {
        load_time(rtc);
        rtc->cmos[rtc->index] = value;
        store_time(rtc);
    } else if (rtc->index == REG_A) {
        rtc->cmos[REG_A] = value & 0x7f;
    } else if (rtc->index != REG_C && rtc->index != REG_D) {
        rtc->cmos[rtc->index] = value;
    }
}

/* With SET held the bytes just collect: loading the time over them would lose what was written. */
static void write_data(struct rtc *rtc, uint8_t value)
{
    if (is_time(rtc->index) && (rtc->cmos[REG_B] & B_SET))
        rtc->cmos[rtc->index] = value;
    else
        write_cmos(rtc, value);
}

static uint64_t rtc_read(void *arg, uint64_t offset, unsigned size)
{
    struct rtc *rtc = arg;
    if (offset != 1 || size != 1)
        return UINT64_MAX;
    pthread_mutex_lock(&rtc->lock);
    uint8_t value = read_cmos(rtc);
    pthread_mutex_unlock(&rtc->lock);
    return value;
}

static void rtc_write(void *arg, uint64_t offset, uint64_t value, unsigned size)
{
    struct rtc *rtc = arg;
    pthread_mutex_lock(&rtc->lock);
    if (offset == 0) {
        rtc->index = value & 0x7f;
        if (size > 1)
            write_data(rtc, (uint8_t)(value >> 8));
    } else {
        write_data(rtc, (uint8_t)value);
    }
    pthread_mutex_unlock(&rtc->lock);
}

static const struct bus_ops rtc_ops = {.name = "rtc", .read = rtc_read, .write = rtc_write};

int rtc_create(struct bus *ports, struct rtc **ret_rtc)
{
    struct rtc *rtc = calloc(1, sizeof *rtc);
    if (!rtc)
        return -ENOMEM;
    pthread_mutex_init(&rtc->lock, NULL);
    rtc->ports = ports;
    rtc->cmos[REG_A] = A_DIVIDER_32KHZ;
    rtc->cmos[REG_B] = B_24_HOURS;
    rtc->cmos[REG_D] = D_VALID;
    int r = bus_add(ports, RTC_PORT, 2, &rtc_ops, rtc);
    if (r < 0) {
        free(rtc);
        return r;
    }
    *ret_rtc = rtc;
    return 0;
}

void rtc_free(struct rtc *rtc)
{
    if (!rtc)
        return;
    bus_remove(rtc->ports, RTC_PORT);
    pthread_mutex_destroy(&rtc->lock);
    free(rtc);
}
