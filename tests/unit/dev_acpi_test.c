/* ACPI: the tables are where they say, add up, and are what iasl takes them for; the DSDT compiles again. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "dev/acpi/aml.h"
#include "dev/acpi/tables.h"

static uint8_t area[ACPI_SIZE];

static void build(unsigned vcpus)
{
    struct acpi_config config = {.vcpus = vcpus, .generation_id = "generation-id-16"};
    struct err err = {0};
    assert_int_equal(acpi_build(&config, area, &err), 0);
}

static uint8_t sum(const uint8_t *data, size_t len)
{
    uint8_t s = 0;
    while (len--)
        s = (uint8_t)(s + *data++);
    return s;
}

static const uint8_t *table_at(uint64_t address)
{
    assert_in_range(address, ACPI_BASE, ACPI_BASE + ACPI_SIZE - 36);
    const uint8_t *table = area + (address - ACPI_BASE);
    assert_in_range(load_le32(table + 4), 36, ACPI_SIZE - (address - ACPI_BASE));
    assert_int_equal(sum(table, load_le32(table + 4)), 0);
    return table;
}

static const uint8_t *find_table(const char *signature)
{
    const uint8_t *xsdt = table_at(load_le64(area + 24));
    for (unsigned at = 36; at < load_le32(xsdt + 4); at += 8) {
        const uint8_t *table = table_at(load_le64(xsdt + at));
        if (!memcmp(table, signature, 4))
            return table;
        if (!memcmp(table, "FACP", 4) && !memcmp(signature, "DSDT", 4))
            return table_at(load_le64(table + 140));
    }
    fail_msg("no table %s", signature);
    return NULL;
}

static void test_structure(void **state)
{
    (void)state;
    for (unsigned vcpus = 1; vcpus <= 32; vcpus += 31) {
        build(vcpus);
        assert_memory_equal(area, "RSD PTR ", 8);
        assert_int_equal(sum(area, 20), 0);
        assert_int_equal(sum(area, 36), 0);
        assert_memory_equal(area + (ACPI_GENERATION_ID - ACPI_BASE), "generation-id-16", 16);
        const uint8_t *madt = find_table("APIC");
        unsigned cpus = 0, other = 0;
        for (unsigned at = 44; at < load_le32(madt + 4); at += madt[at + 1]) {
            assert_true(madt[at + 1] >= 2);
            cpus += madt[at] == 0;
            other += madt[at] != 0;
        }
        assert_int_equal(cpus, vcpus);
        assert_int_equal(other, 2);
    }
}

static int __attribute__((format(printf, 1, 2))) run(const char *format, ...)
{
    char command[512];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void write_table(const char *dir, const char *signature)
{
    char path[256];
    const uint8_t *table = find_table(signature);
    snprintf(path, sizeof path, "%s/%s.aml", dir, signature);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(table, 1, load_le32(table + 4), file), load_le32(table + 4));
    fclose(file);
}

static void test_iasl(void **state)
{
    (void)state;
    static const char *const tables[] = {"FACP", "APIC", "MCFG", "DSDT"};
    char dir[] = "/tmp/acpi-test-XXXXXX";
    if (run("command -v iasl >/dev/null") != 0)
        skip();
    assert_non_null(mkdtemp(dir));
    build(4);
    for (unsigned i = 0; i < 4; i++) {
        write_table(dir, tables[i]);
        assert_int_equal(run("cd %s && iasl -d %s.aml >log 2>&1 && ! grep -qiE 'error|warning|invalid' log", dir,
                             tables[i]), 0);
    }
    assert_int_equal(run("cd %s && iasl -p again DSDT.dsl >log 2>&1 && grep -q '0 Errors, 0 Warnings' log", dir), 0);
    run("rm -rf %s", dir);
}

static void test_aml_overflow(void **state)
{
    (void)state;
    uint8_t buffer[16];
    struct aml aml = {.data = buffer, .capacity = sizeof buffer};
    size_t device = aml_device(&aml, "ABCD");
    for (unsigned i = 0; i < 10; i++)
        aml_name_integer(&aml, "_UID", 0x123456789ab);
    aml_end(&aml, device);
    assert_true(aml.overflow);
    assert_true(aml.len <= sizeof buffer);
}

static void test_aml_terms(void **state)
{
    (void)state;
    uint8_t buffer[64];
    struct aml aml = {.data = buffer, .capacity = sizeof buffer};
    aml_eisa_id(&aml, "PNP0A08");
    assert_memory_equal(buffer, "\x0c\x41\xd0\x0a\x08", 5);
    aml.len = 0;
    aml_name_string(&aml, "\\_SB_.PCI0");
    assert_memory_equal(buffer, "\\\x2e_SB_PCI0", 10);
    aml.len = 0;
    aml_integer(&aml, 0);
    aml_integer(&aml, 1);
    aml_integer(&aml, 0xff);
    aml_integer(&aml, 0x100);
    aml_integer(&aml, 0x100000000);
    assert_memory_equal(buffer, "\x00\x01\x0a\xff\x0b\x00\x01\x0e\x00\x00\x00\x00\x01\x00\x00\x00", 16);
    aml.len = 0;
    aml_end(&aml, aml_method(&aml, "_EVT", 1, true));
    assert_memory_equal(buffer, "\x14\xc9\x00\x00\x00_EVT\x09", 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_structure), cmocka_unit_test(test_iasl),
                                       cmocka_unit_test(test_aml_overflow), cmocka_unit_test(test_aml_terms)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
