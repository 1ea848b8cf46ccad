/* Input of the device fuzz targets as a script: records of eight bytes, {action, size and choice, address, value}. */
#pragma once

#include <stdint.h>
#include <string.h>

struct bus_step {
    uint8_t action;
    uint8_t size; /* 1, 2, 4 or 8 */
    uint8_t choice;
    uint16_t address;
    uint32_t value;
};

/* Takes the next step; false at the end. */
static inline bool bus_step_next(const uint8_t **data, size_t *len, struct bus_step *ret_step)
{
    const uint8_t *d = *data;
    if (*len < 8)
        return false;
    *ret_step = (struct bus_step){.action = d[0] & 0x0f,
                                  .size = (uint8_t)(1u << (d[0] >> 4 & 3)),
                                  .choice = d[1],
                                  .address = (uint16_t)(d[2] | d[3] << 8)};
    memcpy(&ret_step->value, d + 4, 4);
    *data += 8;
    *len -= 8;
    return true;
}
