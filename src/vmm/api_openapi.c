/* The API's reference, made from its table: an OpenAPI 3.0 document in YAML. Every text in it is a member of
 * the table, in double quotes and free of characters that YAML would want escaped there. */
#include "vmm/api_impl.h"

#include <ctype.h>
#include <string.h>

/* Schemas seen so far; each is written once. */
#define SCHEMAS_MAX 64

struct schema_set {
    const struct api_object *objects[SCHEMAS_MAX];
    unsigned count;
};

/* Adds an object and all inside it, those first. */
static void collect(struct schema_set *set, const struct api_object *object)
{
    if (!object)
        return;
    for (unsigned i = 0; i < set->count; i++) {
        if (set->objects[i] == object)
            return;
    }
    for (const struct api_field *f = object->fields; f->name; f++)
        collect(set, f->object);
    if (set->count < SCHEMAS_MAX)
        set->objects[set->count++] = object;
}

static void write_reference(FILE *out, const char *indent, const struct api_object *object)
{
    fprintf(out, "%s$ref: \"#/components/schemas/%s\"\n", indent, object->name);
}

static void write_field_type(FILE *out, const struct api_field *field)
{
    static const char *const names[] = {[API_BOOL] = "boolean",
                                        [API_INTEGER] = "integer",
                                        [API_STRING] = "string",
                                        [API_OBJECT] = "object",
                                        [API_LIST] = "array"};
    fprintf(out, "          type: %s\n", names[field->type]);
    if (field->type == API_INTEGER)
        fprintf(out, "          format: int64\n          minimum: %lld\n          maximum: %lld\n",
                (long long)field->min, (long long)field->max);
    if (field->type == API_STRING)
        fprintf(out, "          maxLength: %lld\n", (long long)(field->max ? field->max : API_STRING_MAX));
    for (const char *const *value = field->values; value && *value; value++)
        fprintf(out, "%s\"%s\"%s", value == field->values ? "          enum: [" : ", ", *value,
                value[1] ? "" : "]\n");
    if (field->type == API_LIST) {
        fputs("          items:\n", out);
        if (field->object)
            write_reference(out, "            ", field->object);
        else
            fputs("            type: string\n", out);
    }
}

static void write_field(FILE *out, const struct api_field *field)
{
    fprintf(out, "        %s:\n", field->name);
    if (field->type == API_OBJECT) {
        fputs("          allOf:\n", out);
        write_reference(out, "            - ", field->object);
    } else {
        write_field_type(out, field);
    }
    fprintf(out, "          description: \"%s\"\n", field->text);
    if (!field->required)
        fputs("          nullable: true\n", out);
    if (field->deprecated)
        fputs("          deprecated: true\n", out);
}

static void write_schema(FILE *out, const struct api_object *object)
{
    bool any = false;
    fprintf(out, "    %s:\n      type: object\n      description: \"%s\"\n      additionalProperties: %s\n",
            object->name, object->text, object->open ? "true" : "false");
    for (const struct api_field *f = object->fields; f->name; f++) {
        if (!f->required)
            continue;
        fprintf(out, "%s%s", any ? ", " : "      required: [", f->name);
        any = true;
    }
    if (any)
        fputs("]\n", out);
    if (object->fields->name)
        fputs("      properties:\n", out);
    for (const struct api_field *f = object->fields; f->name; f++)
        write_field(out, f);
}

static void write_id_parameter(FILE *out, const char *path)
{
    const char *brace = strchr(path, '{');
    if (!brace)
        return;
    fprintf(out,
            "      parameters:\n"
            "        - name: %.*s\n"
            "          in: path\n"
            "          required: true\n"
            "          schema: {type: string, pattern: \"^[A-Za-z0-9_]+$\", maxLength: %d}\n",
            (int)strcspn(brace + 1, "}"), brace + 1, API_ID_MAX);
}

static void write_answers(FILE *out, const struct api_operation *operation)
{
    fputs("      responses:\n", out);
    if (operation->answer) {
        fputs("        \"200\":\n          description: \"Done.\"\n"
              "          content:\n            application/json:\n              schema:\n",
              out);
        write_reference(out, "                ", operation->answer);
    } else {
        fputs("        \"204\":\n          description: \"Done.\"\n", out);
    }
    fputs("        default:\n          $ref: \"#/components/responses/Fault\"\n", out);
}

static void write_operation(FILE *out, const struct api_operation *operation)
{
    static const char *const phases[] = {[API_ANY_TIME] = "At any time.",
                                         [API_BEFORE_START] = "Before the start only.",
                                         [API_AFTER_START] = "After the start only."};
    char method[8] = "";
    const char *name = api_method_name(operation->method);
    for (size_t i = 0; name[i] && i + 1 < sizeof method; i++)
        method[i] = (char)tolower((unsigned char)name[i]);
    fprintf(out, "    %s:\n", method);
    if (operation->handler)
        fprintf(out, "      summary: \"%s\"\n      description: \"%s\"\n", operation->text,
                phases[operation->phase]);
    else
        fprintf(out, "      summary: \"Not there yet: %s\"\n      description: \"Answers 400.\"\n",
                operation->text);
    write_id_parameter(out, operation->path);
    if (operation->body) {
        fprintf(out,
                "      requestBody:\n        required: %s\n        content:\n          application/json:\n"
                "            schema:\n",
                operation->body_optional ? "false" : "true");
        write_reference(out, "              ", operation->body);
    }
    if (operation->partial)
        fputs("      x-partial: true  # no member of the body is required\n", out);
    write_answers(out, operation);
}

/* All operations of the path that operation `index` is the first of. */
static void write_path(FILE *out, unsigned index)
{
    const char *path = api_operations[index].path;
    for (unsigned i = 0; i < index; i++) {
        if (!strcmp(api_operations[i].path, path))
            return;
    }
    fprintf(out, "  \"%s\":\n", path);
    for (unsigned i = index; i < API_OPERATIONS; i++) {
        if (!strcmp(api_operations[i].path, path))
            write_operation(out, &api_operations[i]);
    }
}

void api_write_openapi(FILE *out)
{
    struct schema_set set = {.count = 0};
    fputs("# Made by polder-vmm --openapi from the table in src/vmm/api_operations.c; not edited by hand.\n"
          "openapi: \"3.0.3\"\n"
          "info:\n"
          "  title: \"polder-vmm API\"\n"
          "  description: \"One virtual machine over a unix socket, compatible with Firecracker's API. "
          "Members marked "
          "Polder are extensions. Members that no schema names are refused.\"\n"
          "  version: \"" POLDER_VERSION "\"\n"
          "paths:\n",
          out);
    for (unsigned i = 0; i < API_OPERATIONS; i++) {
        write_path(out, i);
        collect(&set, api_operations[i].body);
        collect(&set, api_operations[i].answer);
    }
    fputs("components:\n"
          "  responses:\n"
          "    Fault:\n"
          "      description: \"Refused (400), or a body beyond the limit (413).\"\n"
          "      content:\n"
          "        application/json:\n"
          "          schema:\n"
          "            $ref: \"#/components/schemas/Error\"\n"
          "  schemas:\n"
          "    Error:\n"
          "      type: object\n"
          "      required: [fault_message]\n"
          "      properties:\n"
          "        fault_message:\n"
          "          type: string\n"
          "          description: \"What is wrong, in one line.\"\n",
          out);
    for (unsigned i = 0; i < set.count; i++)
        write_schema(out, set.objects[i]);
}
