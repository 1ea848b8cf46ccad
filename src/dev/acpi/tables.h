/* The machine's ACPI tables, hardware-reduced: RSDP, XSDT, FADT, MADT, MCFG, DSDT, and the VM generation id.
 *
 * All lie in the BIOS area from ACPI_BASE, where guests without a boot protocol look for the RSDP too. Source: ACPI 6.4. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define ACPI_BASE UINT64_C(0xe0000)
#define ACPI_SIZE 0x10000u
#define ACPI_RSDP ACPI_BASE
/* 16 bytes, 8-byte aligned in memory that the guest's system does not use otherwise. */
#define ACPI_GENERATION_ID (ACPI_BASE + 0x30)

struct acpi_config {
    unsigned vcpus;
    uint8_t generation_id[16];
};

/* Fills `area` (ACPI_SIZE bytes, the guest's memory from ACPI_BASE). -ENOSPC when they do not fit: a bug of ours. */
must_check int acpi_build(const struct acpi_config *config, uint8_t *area, struct err *err);
