# A thin front for Meson. Programs land in build/bin.
#   make          build              make check    all tests
#   make run      Debian by polderd  make bench    boot times side by side with QEMU; make bench-jit: everything
#   make bench-block  disks over NBD and conversions, side by side with qemu-nbd and qemu-img
#   make deps     install packages   make clean    remove build/, build-fuzz/
BUILD := build
# For each fuzz target of make check; CI takes 60.
FUZZ_SECONDS := 5

.PHONY: all deps run check bench bench-jit bench-block clean
all: $(BUILD)/build.ninja
	@ninja -C $(BUILD)

$(BUILD)/build.ninja:
	@meson setup $(BUILD) $(MESON_OPTIONS)

deps:
	@tools/install-packages

run: deps
	@$(MAKE) --no-print-directory all
	@tools/run-platform $(ARGS)

check: all
	@tools/check-all $(FUZZ_SECONDS)

bench: all
	@bench/boot --no-debian

# BENCH=--quick for one short run of each
bench-jit: all
	@bench/all $(BENCH)

bench-block: all
	@bench/block $(BENCH)

clean:
	@rm -rf $(BUILD) build-fuzz
