/* Answers: documents, texts, errors, streams. */
#include "api/server_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/metrics.h"
#include "base/log.h"

#define STREAM_BLOCK (32u << 10)

struct streaming {
    struct MHD_Connection *connection;
    struct answer answer;
};

static ssize_t read_stream(void *arg, uint64_t position, char *buffer, size_t size)
{
    struct streaming *streaming = arg;
    (void)position;
    connection_expect_bytes(streaming->connection, false);
    ssize_t n = streaming->answer.stream(streaming->answer.arg, buffer, size);
    connection_expect_bytes(streaming->connection, true);
    return n > 0 ? n : n == 0 ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
}

static void free_stream(void *arg)
{
    struct streaming *streaming = arg;
    if (streaming->answer.free_arg)
        streaming->answer.free_arg(streaming->answer.arg);
    free(streaming);
}

static struct MHD_Response *stream_response(struct exchange *exchange)
{
    struct streaming *streaming = calloc(1, sizeof *streaming);
    if (!streaming)
        return NULL;
    streaming->connection = exchange->connection;
    streaming->answer = exchange->request.answer;
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, streaming,
                                                                      free_stream);
    if (!response)
        free(streaming);
    else
        exchange->request.answer = (struct answer){.media = exchange->request.answer.media};
    return response;
}

static struct MHD_Response *text_response(char *text)
{
    if (!text)
        return NULL;
    struct MHD_Response *response = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (!response)
        free(text);
    return response;
}

static struct MHD_Response *error_response(struct exchange *exchange)
{
    if (exchange->status >= 500)
        log_warn("%s: %s", exchange->request.actor.name, exchange->err.message);
    json_t *document = error_document(exchange->status, &exchange->err);
    struct MHD_Response *response = text_response(json_dumps(document, JSON_COMPACT));
    json_decref(document);
    if (response && exchange->allow[0])
        MHD_add_response_header(response, "Allow", exchange->allow);
    if (response && exchange->status == 401)
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    return response;
}

static struct MHD_Response *success_response(struct exchange *exchange)
{
    struct answer *answer = &exchange->request.answer;
    char *text = answer->text;
    answer->text = NULL;
    if (answer->stream)
        return stream_response(exchange);
    if (text)
        return text_response(text);
    if (answer->json)
        return text_response(json_dumps(answer->json, JSON_COMPACT | JSON_ENCODE_ANY));
    return MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
}

enum MHD_Result exchange_answer(struct exchange *exchange)
{
    const struct route *route = exchange->request.route;
    bool failed = exchange->status != 0;
    unsigned status = failed ? exchange->status : route_success(route);
    const char *media = !failed && exchange->request.answer.media ? exchange->request.answer.media : "application/json";
    metrics_count_request(exchange->server->config.platform->metrics, route, status);
    if (!failed && exchange->request.answer.websocket)
        return exchange_upgrade(exchange);
    struct MHD_Response *response = failed ? error_response(exchange) : success_response(exchange);
    if (!response)
        return MHD_NO;
    if (status != 204)
        MHD_add_response_header(response, "Content-Type", media);
    MHD_add_response_header(response, "Cache-Control", "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    enum MHD_Result queued = MHD_queue_response(exchange->connection, status, response);
    MHD_destroy_response(response);
    return queued;
}
