/* Resource templates: descriptors inside a named buffer. Source: ACPI 6.4 §6.4. */
#include "dev/acpi/aml.h"

#include "base/bytes.h"

#define OP_BUFFER 0x11
#define OP_WORD 0x0b

#define TYPE_MEMORY 0
#define TYPE_IO 1
#define TYPE_BUS 2
#define GENERAL_FIXED 0x0c      /* minimum and maximum are fixed, positive decode, producer */
#define MEMORY_READ_WRITE 0x01  /* not cacheable */
#define IO_ENTIRE_RANGE 0x03

/* The buffer's size is a WordConst that aml_resources_end fills in, so that its place is known. */
size_t aml_resources_begin(struct aml *aml, const char *name)
{
    aml_name(aml, name);
    aml_byte(aml, OP_BUFFER);
    size_t mark = aml->len;
    aml_bytes(aml, (const uint8_t[4]){0}, 4);
    aml_byte(aml, OP_WORD);
    aml_bytes(aml, (const uint8_t[2]){0}, 2);
    return mark;
}

void aml_resources_end(struct aml *aml, size_t mark)
{
    aml_bytes(aml, (const uint8_t[2]){0x79, 0}, 2); /* end tag; checksum 0 means "not computed" */
    if (!aml->overflow)
        store_le16(aml->data + mark + 5, (uint16_t)(aml->len - mark - 7));
    aml_end(aml, mark);
}

void aml_resource_io(struct aml *aml, uint16_t port, uint8_t len)
{
    uint8_t d[8] = {0x47, 0x01 /* 16-bit decode */};
    store_le16(d + 2, port);
    store_le16(d + 4, port);
    d[6] = 1;
    d[7] = len;
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_interrupt(struct aml *aml, uint32_t gsi)
{
    uint8_t d[9] = {0x89, 6, 0, 0x03 /* consumer, edge, active high, exclusive */, 1};
    store_le32(d + 5, gsi);
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_memory_fixed(struct aml *aml, uint32_t base, uint32_t len)
{
    uint8_t d[12] = {0x86, 9, 0, MEMORY_READ_WRITE};
    store_le32(d + 4, base);
    store_le32(d + 8, len);
    aml_bytes(aml, d, sizeof d);
}

static void word_window(struct aml *aml, uint8_t type, uint8_t flags, uint16_t first, uint16_t last)
{
    uint8_t d[16] = {0x88, 13, 0, type, GENERAL_FIXED, flags};
    store_le16(d + 8, first);
    store_le16(d + 10, last);
    store_le16(d + 14, (uint16_t)(last - first + 1));
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_bus_range(struct aml *aml, uint16_t first, uint16_t last)
{
    word_window(aml, TYPE_BUS, 0, first, last);
}

void aml_resource_io_window(struct aml *aml, uint16_t first, uint16_t last)
{
    word_window(aml, TYPE_IO, IO_ENTIRE_RANGE, first, last);
}

void aml_resource_memory32_window(struct aml *aml, uint32_t base, uint32_t len)
{
    uint8_t d[26] = {0x87, 23, 0, TYPE_MEMORY, GENERAL_FIXED, MEMORY_READ_WRITE};
    store_le32(d + 10, base);
    store_le32(d + 14, base + len - 1);
    store_le32(d + 22, len);
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_memory64_window(struct aml *aml, uint64_t base, uint64_t len)
{
    uint8_t d[46] = {0x8a, 43, 0, TYPE_MEMORY, GENERAL_FIXED, MEMORY_READ_WRITE};
    store_le64(d + 14, base);
    store_le64(d + 22, base + len - 1);
    store_le64(d + 38, len);
    aml_bytes(aml, d, sizeof d);
}
