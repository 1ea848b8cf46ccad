/* Static tables: each is a header, a body appended field by field, and a checksum. */
#include "dev/acpi/tables.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "dev/acpi/acpi_impl.h"
#include "dev/ioapic.h"
#include "dev/pci.h"
#include "dev/power.h"
#include "dev/rtc.h"

#define HEADER_SIZE 36
#define RSDP_SIZE 36
#define TABLES_OFFSET 0x40 /* behind the RSDP and the generation id */
#define LAPIC_BASE 0xfee00000u

#define FADT_SIZE 276
#define FADT_FLAG_WBINVD (1u << 0)
#define FADT_FLAG_FIX_NO_SLEEP_BUTTON (1u << 5)
#define FADT_FLAG_FIX_NO_POWER_BUTTON (1u << 4)
#define FADT_FLAG_RESET_REGISTER (1u << 10)
#define FADT_FLAG_HARDWARE_REDUCED (1u << 20)
#define BOOT_NO_VGA (1u << 2)
#define MADT_LAPIC 0
#define MADT_IOAPIC 1
#define MADT_X2APIC_NMI 4

static uint8_t checksum(const uint8_t *data, size_t len)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + data[i]);
    return (uint8_t)-sum;
}

/* Starts a table 16-byte aligned and returns its offset; the caller appends the body and calls table_end. */
static size_t table_begin(struct aml *out, const char *signature, uint8_t revision)
{
    while (out->len % 16)
        aml_byte(out, 0);
    size_t start = out->len;
    uint8_t header[HEADER_SIZE] = {0};
    memcpy(header, signature, 4);
    header[8] = revision;
    memcpy(header + 10, "POLDER", 6);
    memcpy(header + 16, "POLDER-1", 8);
    store_le32(header + 24, 1);
    memcpy(header + 28, "PLDR", 4);
    store_le32(header + 32, 1);
    aml_bytes(out, header, sizeof header);
    return start;
}

static uint64_t table_end(struct aml *out, size_t start)
{
    if (out->overflow)
        return 0;
    uint8_t *table = out->data + start;
    store_le32(table + 4, (uint32_t)(out->len - start));
    table[9] = checksum(table, out->len - start);
    return ACPI_BASE + start;
}

static uint64_t build_dsdt(struct aml *out)
{
    size_t start = table_begin(out, "DSDT", 2);
    acpi_dsdt_body(out);
    return table_end(out, start);
}

/* A generic address: one byte-wide I/O port. */
static void put_port(uint8_t *at, uint16_t port)
{
    at[0] = 1;
    at[1] = 8;
    at[3] = 1;
    store_le64(at + 4, port);
}

static uint64_t build_fadt(struct aml *out, uint64_t dsdt)
{
    size_t start = table_begin(out, "FACP", 6);
    uint8_t fadt[FADT_SIZE] = {0};
    store_le32(fadt + 40, (uint32_t)dsdt);
    fadt[108] = RTC_CENTURY;
    store_le16(fadt + 109, BOOT_NO_VGA);
    store_le32(fadt + 112, FADT_FLAG_WBINVD | FADT_FLAG_FIX_NO_POWER_BUTTON | FADT_FLAG_FIX_NO_SLEEP_BUTTON |
                               FADT_FLAG_RESET_REGISTER | FADT_FLAG_HARDWARE_REDUCED);
    put_port(fadt + 116, POWER_PORT + POWER_RESET);
    fadt[128] = POWER_RESET_VALUE;
    fadt[131] = 4; /* minor version */
    store_le64(fadt + 140, dsdt);
    put_port(fadt + 244, POWER_PORT + POWER_SLEEP_CONTROL);
    put_port(fadt + 256, POWER_PORT + POWER_SLEEP_STATUS);
    memcpy(fadt + 268, "Polder", 6);
    aml_bytes(out, fadt + HEADER_SIZE, FADT_SIZE - HEADER_SIZE);
    return table_end(out, start);
}

static uint64_t build_madt(struct aml *out, unsigned vcpus)
{
    size_t start = table_begin(out, "APIC", 5);
    uint8_t head[8] = {0};
    store_le32(head, LAPIC_BASE);
    aml_bytes(out, head, sizeof head);
    for (unsigned i = 0; i < vcpus; i++)
        aml_bytes(out, (const uint8_t[8]){MADT_LAPIC, 8, (uint8_t)i, (uint8_t)i, 1}, 8);
    uint8_t ioapic[12] = {MADT_IOAPIC, sizeof ioapic, IOAPIC_ID};
    store_le32(ioapic + 4, (uint32_t)IOAPIC_BASE);
    aml_bytes(out, ioapic, sizeof ioapic);
    aml_bytes(out, (const uint8_t[6]){MADT_X2APIC_NMI, 6, 0xff, 0, 0, 1}, 6); /* LINT1 is NMI on every CPU */
    return table_end(out, start);
}

static uint64_t build_mcfg(struct aml *out)
{
    size_t start = table_begin(out, "MCFG", 1);
    uint8_t body[24] = {0};
    store_le64(body + 8, PCI_ECAM_BASE);
    body[19] = (uint8_t)((PCI_ECAM_SIZE >> 20) - 1); /* last bus */
    aml_bytes(out, body, sizeof body);
    return table_end(out, start);
}

static uint64_t build_xsdt(struct aml *out, const uint64_t *tables, unsigned count)
{
    size_t start = table_begin(out, "XSDT", 1);
    for (unsigned i = 0; i < count; i++) {
        uint8_t address[8];
        store_le64(address, tables[i]);
        aml_bytes(out, address, sizeof address);
    }
    return table_end(out, start);
}

static void build_rsdp(uint8_t *area, uint64_t xsdt)
{
    memset(area, 0, RSDP_SIZE);
    memcpy(area, "RSD PTR ", 8);
    memcpy(area + 9, "POLDER", 6);
    area[15] = 2;
    store_le32(area + 20, RSDP_SIZE);
    store_le64(area + 24, xsdt);
    area[8] = checksum(area, 20);
    area[32] = checksum(area, RSDP_SIZE);
}

int acpi_build(const struct acpi_config *config, uint8_t *area, struct err *err)
{
    struct aml out = {.data = area, .len = TABLES_OFFSET, .capacity = ACPI_SIZE};
    memset(area, 0, ACPI_SIZE);
    memcpy(area + (ACPI_GENERATION_ID - ACPI_BASE), config->generation_id, sizeof config->generation_id);
    uint64_t dsdt = build_dsdt(&out);
    uint64_t tables[3];
    tables[0] = build_fadt(&out, dsdt);
    tables[1] = build_madt(&out, config->vcpus);
    tables[2] = build_mcfg(&out);
    uint64_t xsdt = build_xsdt(&out, tables, 3);
    if (out.overflow)
        return err_say(err, ENOSPC, "ACPI tables do not fit into %u bytes", ACPI_SIZE);
    build_rsdp(area, xsdt);
    return 0;
}
