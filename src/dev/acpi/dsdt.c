/* The DSDT: what ACPI-aware systems must be told because they cannot find it by themselves. */
#include "dev/acpi/acpi_impl.h"

#include "dev/acpi/tables.h"
#include "dev/pci.h"
#include "dev/power.h"
#include "dev/rtc.h"
#include "dev/serial.h"

static void add_pci_bridge(struct aml *out)
{
    size_t device = aml_device(out, "PCI0");
    aml_name(out, "_HID");
    aml_eisa_id(out, "PNP0A08");
    aml_name(out, "_CID");
    aml_eisa_id(out, "PNP0A03");
    aml_name_integer(out, "_SEG", 0);
    aml_name_integer(out, "_BBN", 0);
    aml_name_integer(out, "_UID", 0);
    aml_name_integer(out, "_CCA", 1);
    size_t crs = aml_resources_begin(out, "_CRS");
    aml_resource_bus_range(out, 0, 0);
    aml_resource_io(out, 0xcf8, 8);
    aml_resource_memory32_window(out, PCI_MMIO32_BASE, PCI_MMIO32_SIZE);
    aml_resource_memory64_window(out, PCI_MMIO64_BASE, PCI_MMIO64_SIZE);
    aml_resources_end(out, crs);
    aml_end(out, device);
}

/* Reserves the configuration space: Linux takes the MCFG's word only when a device claims it. */
static void add_board_resources(struct aml *out)
{
    size_t device = aml_device(out, "MBRD");
    aml_name(out, "_HID");
    aml_eisa_id(out, "PNP0C02");
    aml_name_integer(out, "_UID", 0);
    size_t crs = aml_resources_begin(out, "_CRS");
    aml_resource_memory_fixed(out, (uint32_t)PCI_ECAM_BASE, (uint32_t)PCI_ECAM_SIZE);
    aml_resource_io(out, POWER_PORT, 4);
    aml_resources_end(out, crs);
    aml_end(out, device);
}

static void add_serial(struct aml *out)
{
    size_t device = aml_device(out, "COM1");
    aml_name(out, "_HID");
    aml_eisa_id(out, "PNP0501");
    aml_name_integer(out, "_UID", 0);
    size_t crs = aml_resources_begin(out, "_CRS");
    aml_resource_io(out, SERIAL_COM1_BASE, 8);
    aml_resource_interrupt(out, SERIAL_COM1_GSI);
    aml_resources_end(out, crs);
    aml_end(out, device);
}

static void add_rtc(struct aml *out)
{
    size_t device = aml_device(out, "RTC_");
    aml_name(out, "_HID");
    aml_eisa_id(out, "PNP0B00");
    size_t crs = aml_resources_begin(out, "_CRS");
    aml_resource_io(out, RTC_PORT, 2);
    aml_resources_end(out, crs);
    aml_end(out, device);
}

static void add_panic(struct aml *out)
{
    size_t device = aml_device(out, "PEVT");
    aml_name_string_value(out, "_HID", "QEMU0001"); /* the id its drivers look for */
    size_t crs = aml_resources_begin(out, "_CRS");
    aml_resource_io(out, POWER_PANIC_PORT, 1);
    aml_resources_end(out, crs);
    aml_end(out, device);
}

static void add_power_button(struct aml *out)
{
    size_t device = aml_device(out, "PWRB");
    aml_name(out, "_HID");
    aml_eisa_id(out, "PNP0C0C");
    aml_name_integer(out, "_UID", 0);
    aml_end(out, device);
}

static void add_generation_id(struct aml *out)
{
    size_t device = aml_device(out, "VGEN");
    aml_name_string_value(out, "_HID", "PLDR0001");
    aml_name_string_value(out, "_CID", "VM_Gen_Counter");
    aml_name_string_value(out, "_DDN", "VM_Gen_Counter");
    aml_name(out, "ADDR");
    size_t package = aml_package(out, 2);
    aml_integer(out, ACPI_GENERATION_ID);
    aml_integer(out, 0);
    aml_end(out, package);
    aml_end(out, device);
}

/* The generic event device: its interrupt reads the event byte and notifies what it names. */
static void add_event_device(struct aml *out)
{
    size_t device = aml_device(out, "GED_");
    aml_name_string_value(out, "_HID", "ACPI0013");
    aml_name_integer(out, "_UID", 0);
    size_t crs = aml_resources_begin(out, "_CRS");
    aml_resource_interrupt(out, POWER_GED_GSI);
    aml_resources_end(out, crs);
    aml_port_byte(out, "GEVR", POWER_PORT + POWER_GED_EVENTS, "GEVT");
    size_t method = aml_method(out, "_EVT", 1, true);
    aml_store_to_local(out, "GEVT", 0);
    size_t button = aml_if_bit(out, 0, POWER_GED_BUTTON);
    aml_notify(out, "\\_SB_.PWRB", 0x80);
    aml_end(out, button);
    size_t generation = aml_if_bit(out, 0, POWER_GED_GENERATION);
    aml_notify(out, "\\_SB_.VGEN", 0x80);
    aml_end(out, generation);
    aml_end(out, method);
    aml_end(out, device);
}

static void add_power_off(struct aml *out)
{
    aml_name(out, "_S5_");
    size_t package = aml_package(out, 4);
    aml_integer(out, POWER_S5_TYPE);
    for (unsigned i = 0; i < 3; i++)
        aml_integer(out, 0);
    aml_end(out, package);
}

void acpi_dsdt_body(struct aml *out)
{
    size_t scope = aml_scope(out, "_SB_");
    add_pci_bridge(out);
    add_board_resources(out);
    add_serial(out);
    add_rtc(out);
    add_panic(out);
    add_power_button(out);
    add_generation_id(out);
    add_event_device(out);
    aml_end(out, scope);
    add_power_off(out);
}
