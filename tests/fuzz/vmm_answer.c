/* All that a polder-vmm may answer, which a guest may have taken over: the status and a body inside of the bytes, no more. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "control/json.h"
#include "control/vmm_client.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *bytes = (const char *)data;
    struct err err = {0};
    int status = -1;
    json_t *answer = NULL;
    size_t body = 0;
    if (vmm_parse_answer(bytes, size, &status, &body, &err) == 0) {
        assert(status >= 0 && status <= 999);
        assert(body >= 4 && body <= size && !memcmp(bytes + body - 4, "\r\n\r\n", 4));
    }
    if (vmm_read_answer(bytes, size, &answer, &err) < 0)
        assert(!answer && err.message[0] && !memchr(err.message, '\n', strlen(err.message)));
    json_decref(answer);
    return 0;
}
