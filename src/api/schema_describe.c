/* Schemas as OpenAPI 3.0 writes them. */
#include "api/schema.h"

#include "api/schema_impl.h"

static void describe_text(json_t *out, const struct schema_field *field, uint64_t max)
{
    json_object_set_new(out, "type", json_string("string"));
    if (!field->values)
        json_object_set_new(out, "maxLength", json_integer((json_int_t)max));
    if (!field->values && schema_formats[field->format].pattern)
        json_object_set_new(out, "pattern", json_string(schema_formats[field->format].pattern));
    if (!field->values)
        return;
    json_t *values = json_array();
    for (const char *const *v = field->values; *v; v++)
        json_array_append_new(values, json_string(*v));
    json_object_set_new(out, "enum", values);
}

json_t *schema_reference(const struct schema *schema)
{
    return json_pack("{s:s+}", "$ref", "#/components/schemas/", schema->name);
}

static void describe_list(json_t *out, const struct schema_field *field)
{
    json_t *items = field->object ? schema_reference(field->object) : json_object();
    if (!field->object)
        describe_text(items, field, SCHEMA_TEXT_MAX);
    json_object_set_new(out, "type", json_string("array"));
    json_object_set_new(out, "maxItems", json_integer((json_int_t)schema_max(field)));
    json_object_set_new(out, "items", items);
}

static void describe_map(json_t *out, const struct schema_field *field)
{
    json_t *items = json_object();
    describe_text(items, field, SCHEMA_TEXT_MAX);
    json_object_set_new(out, "type", json_string("object"));
    json_object_set_new(out, "maxProperties", json_integer((json_int_t)schema_max(field)));
    json_object_set_new(out, "additionalProperties", items);
    json_object_set_new(out, "x-keys", json_string(schema_formats[SCHEMA_LABEL].pattern));
}

static void describe_integer(json_t *out, const struct schema_field *field)
{
    json_object_set_new(out, "type", json_string("integer"));
    json_object_set_new(out, "format", json_string("int64"));
    json_object_set_new(out, "minimum", json_integer(field->min));
    json_object_set_new(out, "maximum", json_integer(field->max));
}

json_t *schema_field_describe(const struct schema_field *field)
{
    json_t *out = json_object();
    switch (field->type) {
    case SCHEMA_BOOL:
        json_object_set_new(out, "type", json_string("boolean"));
        break;
    case SCHEMA_INTEGER:
        describe_integer(out, field);
        break;
    case SCHEMA_STRING:
        describe_text(out, field, schema_max(field));
        break;
    case SCHEMA_OBJECT:
        json_object_set_new(out, "allOf", json_pack("[o]", schema_reference(field->object)));
        break;
    case SCHEMA_LIST:
        describe_list(out, field);
        break;
    case SCHEMA_MAP:
        describe_map(out, field);
        break;
    }
    if (field->text)
        json_object_set_new(out, "description", json_string(field->text));
    if (!field->required)
        json_object_set_new(out, "nullable", json_true());
    return out;
}

void schema_describe(const struct schema *schema, json_t *components)
{
    if (!schema || json_object_get(components, schema->name))
        return;
    json_t *properties = json_object(), *required = json_array(), *out = json_object();
    json_object_set_new(out, "type", json_string("object"));
    json_object_set_new(out, "description", json_string(schema->text));
    json_object_set_new(out, "additionalProperties", json_boolean(schema->open));
    json_object_set(out, "properties", properties);
    json_object_set_new(components, schema->name, out);
    for (const struct schema_field *f = schema->fields; f->name; f++) {
        json_object_set_new(properties, f->name, schema_field_describe(f));
        if (f->required)
            json_array_append_new(required, json_string(f->name));
        schema_describe(f->object, components);
    }
    if (json_array_size(required))
        json_object_set(out, "required", required);
    json_decref(required);
    json_decref(properties);
}
