/* AML terms and packages. */
#include "dev/acpi/aml.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"

#define OP_ZERO 0x00
#define OP_ONE 0x01
#define OP_NAME 0x08
#define OP_BYTE 0x0a
#define OP_WORD 0x0b
#define OP_DWORD 0x0c
#define OP_STRING 0x0d
#define OP_QWORD 0x0e
#define OP_SCOPE 0x10
#define OP_BUFFER 0x11
#define OP_PACKAGE 0x12
#define OP_METHOD 0x14
#define OP_LOCAL0 0x60
#define OP_STORE 0x70
#define OP_AND 0x7b
#define OP_NOTIFY 0x86
#define OP_IF 0xa0
#define OP_EXTENDED 0x5b
#define EXT_REGION 0x80
#define EXT_FIELD 0x81
#define EXT_DEVICE 0x82
#define DUAL_NAME 0x2e
#define MULTI_NAME 0x2f
#define REGION_SYSTEM_IO 0x01
#define FIELD_BYTE_ACCESS 0x01

void aml_bytes(struct aml *aml, const void *data, size_t len)
{
    if (len > aml->capacity - aml->len) {
        aml->overflow = true;
        return;
    }
    memcpy(aml->data + aml->len, data, len);
    aml->len += len;
}

void aml_byte(struct aml *aml, uint8_t value)
{
    aml_bytes(aml, &value, 1);
}

void aml_name_string(struct aml *aml, const char *name)
{
    if (*name == '\\')
        aml_byte(aml, (uint8_t)*name++);
    size_t segments = (strlen(name) + 1) / 5;
    assert(segments >= 1 && strlen(name) == segments * 5 - 1);
    if (segments == 2)
        aml_byte(aml, DUAL_NAME);
    if (segments > 2) {
        aml_byte(aml, MULTI_NAME);
        aml_byte(aml, (uint8_t)segments);
    }
    for (size_t i = 0; i < segments; i++)
        aml_bytes(aml, name + i * 5, 4);
}

void aml_integer(struct aml *aml, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    if (value <= 1) {
        aml_byte(aml, value ? OP_ONE : OP_ZERO);
    } else if (value <= 0xff) {
        aml_byte(aml, OP_BYTE);
        aml_bytes(aml, bytes, 1);
    } else if (value <= 0xffff) {
        aml_byte(aml, OP_WORD);
        aml_bytes(aml, bytes, 2);
    } else if (value <= 0xffffffff) {
        aml_byte(aml, OP_DWORD);
        aml_bytes(aml, bytes, 4);
    } else {
        aml_byte(aml, OP_QWORD);
        aml_bytes(aml, bytes, 8);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    aml_byte(aml, OP_STRING);
    aml_bytes(aml, text, strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Three letters of five bits each and four hexadecimal digits, big-endian. */
void aml_eisa_id(struct aml *aml, const char *id)
{
    uint32_t value = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 | (uint32_t)(id[2] - '@') << 16;
    for (unsigned i = 0; i < 4; i++)
        value |= hex_digit(id[3 + i]) << (12 - 4 * i);
    uint8_t bytes[4];
    store_be32(bytes, value);
    aml_byte(aml, OP_DWORD);
    aml_bytes(aml, bytes, sizeof bytes);
}

/* Opens a package length: 4 bytes that aml_end fills in. */
static size_t begin_length(struct aml *aml)
{
    size_t mark = aml->len;
    aml_bytes(aml, (const uint8_t[4]){0}, 4);
    return mark;
}

void aml_end(struct aml *aml, size_t mark)
{
    if (aml->overflow)
        return;
    size_t len = aml->len - mark;
    assert(len < 1u << 28);
    aml->data[mark] = (uint8_t)(0xc0 | (len & 0x0f));
    aml->data[mark + 1] = (uint8_t)(len >> 4);
    aml->data[mark + 2] = (uint8_t)(len >> 12);
    aml->data[mark + 3] = (uint8_t)(len >> 20);
}

void aml_buffer(struct aml *aml, const void *data, size_t len)
{
    aml_byte(aml, OP_BUFFER);
    size_t mark = begin_length(aml);
    aml_integer(aml, len);
    aml_bytes(aml, data, len);
    aml_end(aml, mark);
}

void aml_name(struct aml *aml, const char *name)
{
    aml_byte(aml, OP_NAME);
    aml_name_string(aml, name);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value)
{
    aml_name(aml, name);
    aml_integer(aml, value);
}

void aml_name_string_value(struct aml *aml, const char *name, const char *text)
{
    aml_name(aml, name);
    aml_string(aml, text);
}

size_t aml_scope(struct aml *aml, const char *name)
{
    aml_byte(aml, OP_SCOPE);
    size_t mark = begin_length(aml);
    aml_name_string(aml, name);
    return mark;
}

size_t aml_device(struct aml *aml, const char *name)
{
    aml_byte(aml, OP_EXTENDED);
    aml_byte(aml, EXT_DEVICE);
    size_t mark = begin_length(aml);
    aml_name_string(aml, name);
    return mark;
}

size_t aml_method(struct aml *aml, const char *name, unsigned args, bool serialized)
{
    aml_byte(aml, OP_METHOD);
    size_t mark = begin_length(aml);
    aml_name_string(aml, name);
    aml_byte(aml, (uint8_t)(args | (serialized ? 8 : 0)));
    return mark;
}

size_t aml_package(struct aml *aml, uint8_t count)
{
    aml_byte(aml, OP_PACKAGE);
    size_t mark = begin_length(aml);
    aml_byte(aml, count);
    return mark;
}

size_t aml_if_bit(struct aml *aml, uint8_t local, uint64_t bit)
{
    aml_byte(aml, OP_IF);
    size_t mark = begin_length(aml);
    aml_byte(aml, OP_AND);
    aml_byte(aml, OP_LOCAL0 + local);
    aml_integer(aml, bit);
    aml_byte(aml, OP_ZERO); /* result goes nowhere else */
    return mark;
}

void aml_port_byte(struct aml *aml, const char *region, uint16_t port, const char *field)
{
    aml_byte(aml, OP_EXTENDED);
    aml_byte(aml, EXT_REGION);
    aml_name_string(aml, region);
    aml_byte(aml, REGION_SYSTEM_IO);
    aml_integer(aml, port);
    aml_integer(aml, 1);
    aml_byte(aml, OP_EXTENDED);
    aml_byte(aml, EXT_FIELD);
    size_t mark = begin_length(aml);
    aml_name_string(aml, region);
    aml_byte(aml, FIELD_BYTE_ACCESS);
    aml_bytes(aml, field, 4);
    aml_byte(aml, 8); /* bits, as a one-byte package length */
    aml_end(aml, mark);
}

void aml_store_to_local(struct aml *aml, const char *field, uint8_t local)
{
    aml_byte(aml, OP_STORE);
    aml_name_string(aml, field);
    aml_byte(aml, OP_LOCAL0 + local);
}

void aml_notify(struct aml *aml, const char *name, uint8_t value)
{
    aml_byte(aml, OP_NOTIFY);
    aml_name_string(aml, name);
    aml_integer(aml, value);
}
