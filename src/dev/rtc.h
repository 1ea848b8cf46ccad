/* The CMOS real-time clock (MC146818A) at ports 0x70 and 0x71: time of day and battery-backed bytes; no interrupts. */
#pragma once

#include "base/err.h"
#include "dev/bus.h"

#define RTC_PORT 0x70
#define RTC_CENTURY 0x32 /* index of the century byte, named by the FADT */

struct rtc;

must_check int rtc_create(struct bus *ports, struct rtc **ret_rtc);
void rtc_free(struct rtc *rtc);
