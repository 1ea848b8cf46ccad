/* A builder of AML, ACPI's byte code: just the terms that this machine's DSDT uses. Source: ACPI 6.4 chapter 20.
 *
 * Terms append to a fixed buffer; blocks (device, method, ...) are opened and closed, and closing writes the package length,
 * always in its 4-byte form. Overflow sets `overflow` and drops what does not fit: check it once at the end. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
    uint8_t *data;
    size_t len, capacity;
    bool overflow;
};

void aml_byte(struct aml *aml, uint8_t value);
void aml_bytes(struct aml *aml, const void *data, size_t len);

/* `name` is a path of 4-character segments: "_SB_", "\\_SB_.PCI0". */
void aml_name_string(struct aml *aml, const char *name);
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisa_id(struct aml *aml, const char *id); /* "PNP0A08" */
void aml_buffer(struct aml *aml, const void *data, size_t len);

/* Name(name, ...): the caller appends the value. */
void aml_name(struct aml *aml, const char *name);
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
void aml_name_string_value(struct aml *aml, const char *name, const char *text);

/* Each returns a mark for aml_end. */
size_t aml_scope(struct aml *aml, const char *name);
size_t aml_device(struct aml *aml, const char *name);
size_t aml_method(struct aml *aml, const char *name, unsigned args, bool serialized);
size_t aml_package(struct aml *aml, uint8_t count);
size_t aml_if_bit(struct aml *aml, uint8_t local, uint64_t bit); /* If (LocalN & bit) */
void aml_end(struct aml *aml, size_t mark);

/* OperationRegion(name, SystemIO, port, len) with one byte field of name `field` at `offset`. */
void aml_port_byte(struct aml *aml, const char *region, uint16_t port, const char *field);
/* LocalN = field */
void aml_store_to_local(struct aml *aml, const char *field, uint8_t local);
/* Notify(name, value) */
void aml_notify(struct aml *aml, const char *name, uint8_t value);

/* Resource templates: aml_resources_begin, descriptors, aml_resources_end; the buffer is named `name` (_CRS). */
size_t aml_resources_begin(struct aml *aml, const char *name);
void aml_resource_io(struct aml *aml, uint16_t port, uint8_t len);
void aml_resource_interrupt(struct aml *aml, uint32_t gsi); /* edge, active high, exclusive */
void aml_resource_memory_fixed(struct aml *aml, uint32_t base, uint32_t len);
void aml_resource_bus_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_memory32_window(struct aml *aml, uint32_t base, uint32_t len);
void aml_resource_memory64_window(struct aml *aml, uint64_t base, uint64_t len);
void aml_resources_end(struct aml *aml, size_t mark);
