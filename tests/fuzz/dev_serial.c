/* Fuzz target: the serial port's registers while bytes come in and are taken out. No byte taken in may be lost unless the
 * guest throws it away, and the interrupt line only changes. */
#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus_script.h"
#include "dev/serial.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void set_line(void *arg, bool asserted)
{
    bool *line = arg;
    assert(*line != asserted);
    *line = asserted;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bus *ports;
    struct serial *serial;
    bool line = false;
    if (bus_create(&ports) < 0)
        return 0;
    if (serial_create(ports, 0x3f8, (struct irq_line){&line, set_line}, (struct serial_host){0}, &serial) == 0) {
        struct bus_step step;
        uint8_t out[64];
        while (bus_step_next(&data, &size, &step)) {
            uint16_t port = (uint16_t)(0x3f8 + (step.address & 7));
            if (step.action & 8)
                assert(serial_receive(serial, (uint8_t *)&step.value, step.choice % 5) <= 4);
            else if (step.action & 4)
                assert(serial_take_output(serial, out, step.choice % sizeof out) <= sizeof out);
            else if (step.action & 2)
                bus_read(ports, port, step.size);
            else
                bus_write(ports, port, step.value, step.size);
        }
        serial_free(serial);
    }
    bus_free(ports);
    return 0;
}
