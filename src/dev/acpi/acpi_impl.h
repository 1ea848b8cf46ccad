/* Private to the ACPI tables. */
#pragma once

#include "dev/acpi/aml.h"

/* The machine's devices, as AML behind the DSDT's header. */
void acpi_dsdt_body(struct aml *out);
