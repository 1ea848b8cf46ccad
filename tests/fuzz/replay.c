/* Runs a fuzz target over the files of the directories given: where libFuzzer is not there (gcc), the corpus still is a
 * regression test. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    struct stat st;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &st) < 0 || !S_ISREG(st.st_mode)) {
        if (file)
            fclose(file);
        return 0;
    }
    size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size + 1);
    size_t got = data ? fread(data, 1, size, file) : 0;
    fclose(file);
    LLVMFuzzerTestOneInput(data, got);
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    int count = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (!dir)
            continue;
        for (struct dirent *entry; (entry = readdir(dir));) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], entry->d_name);
            count += replay_file(path);
        }
        closedir(dir);
    }
    printf("%d inputs\n", count);
    return count ? 0 : 1;
}
