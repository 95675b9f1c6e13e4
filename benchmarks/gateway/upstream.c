// A mock inference engine: OpenAI-shaped answers for about 2 us of CPU a request, so that what is
// measured is the router before it. One thread, epoll, several ports, which it prints.
//
//   upstream PORTS
//
// POST of anything: a JSON answer of ~670 B, or with "stream":true a stream of ~215 B events: one
// role event, content, a finish reason, the usage and [DONE]. Two fields steer it, because they
// survive routers that decode and re-encode bodies: "max_tokens" is the number of content events,
// "seed" the milliseconds between them (0 or absent: one event a turn of the loop for each stream).
// Routers' questions are answered as vLLM and SGLang do: models, health, load, tokens of a prompt.
// Request bodies need a content-length, which every router measured here sends.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 65536, TURN_EVENTS = 512, DEFAULT_TOKENS = 50 };

typedef struct {
  int fd, listening, close_after, wants_out;
  char *in;
  size_t in_length, in_size;
  char *out;  // what the peer did not take yet
  size_t out_length, out_start, out_size;
  int streaming, first, tokens, left;  // left: content events still to send
  int64_t delay_ns, due_ns;
  int heap_place, active_place;  // -1: in neither
} Conn;

typedef struct {
  char text[4096];
  size_t length;
} Answer;

static int poller;
static Conn *conns[MAX_FDS];
static Conn *heap[MAX_FDS];  // delayed streams, soonest first
static int heap_size;
static Conn *active[MAX_FDS];  // streams without delay
static int active_size;
static long requests, events, running;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// ---- the two sets of streams

static void heap_swap(int a, int b) {
  Conn *t = heap[a];
  heap[a] = heap[b], heap[b] = t;
  heap[a]->heap_place = a, heap[b]->heap_place = b;
}

static void heap_up(int i) {
  for (; i > 0 && heap[i]->due_ns < heap[(i - 1) / 2]->due_ns; i = (i - 1) / 2)
    heap_swap(i, (i - 1) / 2);
}

static void heap_down(int i) {
  for (;;) {
    int left = 2 * i + 1, right = left + 1, least = i;
    if (left < heap_size && heap[left]->due_ns < heap[least]->due_ns) least = left;
    if (right < heap_size && heap[right]->due_ns < heap[least]->due_ns) least = right;
    if (least == i) return;
    heap_swap(i, least);
    i = least;
  }
}

static void heap_add(Conn *c) {
  c->heap_place = heap_size;
  heap[heap_size++] = c;
  heap_up(c->heap_place);
}

static void heap_remove(Conn *c) {
  int i = c->heap_place;
  if (i < 0) return;
  if (i != --heap_size) {
    heap[i] = heap[heap_size];
    heap[i]->heap_place = i;
    heap_up(i);
    heap_down(i);
  }
  c->heap_place = -1;
}

static void active_add(Conn *c) {
  c->active_place = active_size;
  active[active_size++] = c;
}

static void active_remove(Conn *c) {
  int i = c->active_place;
  if (i < 0) return;
  active[i] = active[--active_size];
  active[i]->active_place = i;
  c->active_place = -1;
}

// ---- connections; functions return -1 when the connection is lost

static void close_conn(Conn *c) {
  running -= c->streaming;
  heap_remove(c);
  active_remove(c);
  close(c->fd);
  conns[c->fd] = NULL;
  free(c->in);
  free(c->out);
  free(c);
}

static void want_out(Conn *c, int wanted) {
  if (c->wants_out == wanted) return;
  c->wants_out = wanted;
  struct epoll_event e = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.fd = c->fd};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static int send_bytes(Conn *c, const char *bytes, size_t length) {
  if (!c->out_length) {
    ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return -1;
    if (sent > 0) bytes += sent, length -= sent;
    if (!length) return 0;
  }
  memmove(c->out, c->out + c->out_start, c->out_length);
  c->out_start = 0;
  if (c->out_length + length > c->out_size) {
    c->out_size = (c->out_length + length) * 2;
    c->out = realloc(c->out, c->out_size);
  }
  memcpy(c->out + c->out_length, bytes, length);
  c->out_length += length;
  want_out(c, 1);
  return 0;
}

static int flush(Conn *c) {
  while (c->out_length) {
    ssize_t sent = send(c->fd, c->out + c->out_start, c->out_length, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 0 : -1;
    c->out_start += sent, c->out_length -= sent;
  }
  c->out_start = 0;
  want_out(c, 0);
  return c->close_after && !c->streaming ? -1 : 0;
}

static int answer(Conn *c, const Answer *a) { return send_bytes(c, a->text, a->length); }

// ---- what it says, written once at the start

#define IDENTITY \
  "\"id\":\"chatcmpl-0123456789abcdef0123\",\"created\":1760000000,\"model\":\"mock-model\","
#define EVENT "data: {\"object\":\"chat.completion.chunk\"," IDENTITY "\"choices\":"
#define DELTA EVENT "[{\"index\":0,\"delta\":{%s\"content\":\"%s\"},\"logprobs\":null," \
                    "\"finish_reason\":%s}]}\n\n"

static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"mock-model\",\"object\":\"model\","
    "\"created\":1760000000,\"owned_by\":\"mock\",\"root\":\"mock-model\",\"parent\":null,"
    "\"max_model_len\":32768,\"permission\":[]}]}";
static const char SERVER_INFO[] =
    "{\"model_path\":\"mock-model\",\"served_model_name\":\"mock-model\","
    "\"model_id\":\"mock-model\",\"is_generation\":true,\"tp_size\":1,\"dp_size\":1,"
    "\"version\":\"0.11.0\",\"max_num_reqs\":4096,\"load\":0}";
static const char COMPLETION[] =
    "{\"object\":\"chat.completion\"," IDENTITY
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\","
    "\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,"
    "\"tool_calls\":[],\"reasoning_content\":null},\"logprobs\":null,\"finish_reason\":\"stop\","
    "\"stop_reason\":null}],\"service_tier\":null,\"system_fingerprint\":null,"
    "\"usage\":{\"prompt_tokens\":64,\"total_tokens\":94,\"completion_tokens\":30,"
    "\"prompt_tokens_details\":null}}";
static const char LOAD[] =  // vLLM's names, read by routers that ask for load
    "vllm:num_requests_running{engine=\"0\",model_name=\"mock-model\"} %ld.0\n"
    "vllm:num_requests_waiting{engine=\"0\",model_name=\"mock-model\"} 0.0\n"
    "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"mock-model\"} 0.1\n"
    "vllm:generation_tokens_total{engine=\"0\",model_name=\"mock-model\"} %ld.0\n"
    "mock_requests_total %ld\n";

static const char *const WORDS[8] = {" tokens", " models", " caches", " prefix",
                                     " router", " worker", " stream", " answer"};
static Answer completion, models, empty, server_info, not_found;
static Answer stream_head, role_event, content_events[8], finish_event;

static void whole(Answer *a, const char *status, const char *type, const char *body) {
  a->length = sprintf(a->text,
                      "HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n"
                      "server: mock\r\n\r\n%s", status, type, strlen(body), body);
}

static void chunk(Answer *a, const char *body) {
  a->length += sprintf(a->text + a->length, "%zx\r\n%s\r\n", strlen(body), body);
}

static void delta(Answer *a, const char *role, const char *content, const char *finish) {
  char body[1024];
  sprintf(body, DELTA, role, content, finish);
  chunk(a, body);
}

static void write_answers(void) {
  char content[256] = "", body[2048];
  for (int i = 0; i < 30; i++) strcat(content, "token ");
  sprintf(body, COMPLETION, content);
  whole(&completion, "200 OK", "application/json", body);
  whole(&models, "200 OK", "application/json", MODELS);
  whole(&server_info, "200 OK", "application/json", SERVER_INFO);
  whole(&empty, "200 OK", "text/plain", "");
  whole(&not_found, "404 Not Found", "application/json", "{\"error\":\"not found\"}");
  stream_head.length = sprintf(stream_head.text,
                               "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8"
                               "\r\ncache-control: no-cache\r\nserver: mock\r\n"
                               "transfer-encoding: chunked\r\n\r\n");
  delta(&role_event, "\"role\":\"assistant\",", " tok", "null");
  for (int i = 0; i < 8; i++) delta(&content_events[i], "", WORDS[i], "null");
  delta(&finish_event, "", "", "\"stop\"");
}

// The end of a stream: usage with as many tokens as were sent.
static int send_end(Conn *c) {
  char body[512];
  Answer end = {.length = 0};
  sprintf(body, EVENT "[],\"usage\":{\"prompt_tokens\":64,\"total_tokens\":%d,"
          "\"completion_tokens\":%d}}\n\n", 64 + c->tokens, c->tokens);
  chunk(&end, body);
  chunk(&end, "data: [DONE]\n\n");
  end.length += sprintf(end.text + end.length, "0\r\n\r\n");
  return answer(c, &end);
}

// ---- requests

static const char *header(const char *head, size_t length, const char *name) {
  size_t n = strlen(name);
  for (const char *p = head, *end = head + length; p < end;) {
    const char *line_end = memchr(p, '\n', end - p);
    if (!line_end) return NULL;
    if ((size_t)(line_end - p) > n && p[n] == ':' && !strncasecmp(p, name, n)) {
      for (p += n + 1; *p == ' '; p++) {}
      return p;
    }
    p = line_end + 1;
  }
  return NULL;
}

static const char *member(const char *body, size_t length, const char *quoted_name) {
  const char *p = memmem(body, length, quoted_name, strlen(quoted_name));
  if (!p) return NULL;
  for (p += strlen(quoted_name); p < body + length && (*p == ':' || *p == ' '); p++) {}
  return p;
}

static long number(const char *body, size_t length, const char *quoted_name, long otherwise) {
  const char *p = member(body, length, quoted_name);
  return p ? strtol(p, NULL, 10) : otherwise;
}

// One made-up token id for each 4 bytes of the messages, as vLLM's /tokenize and /render answer.
static int answer_tokens(Conn *c, const char *body, size_t length, const char *list) {
  const char *text = memmem(body, length, "\"messages\"", 10);
  if (!text) text = body;
  size_t count = (body + length - text) / 4;
  char *reply = malloc(count * 7 + 512), *p = reply + 256;
  p += sprintf(p, "{\"count\":%zu,\"max_model_len\":32768,\"model\":\"mock-model\","
               "\"request_id\":\"r\",\"sampling_params\":{},\"%s\":[", count, list);
  for (size_t i = 0; i < count; i++) {
    uint32_t four;
    memcpy(&four, text + i * 4, 4);
    p += sprintf(p, "%s%u", i ? "," : "", (four * 2654435761u) >> 17);
  }
  p += sprintf(p, "]}");
  char head[200];
  int head_length = sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                            "content-length: %zu\r\n\r\n", (size_t)(p - reply - 256));
  memcpy(reply + 256 - head_length, head, head_length);
  int result = send_bytes(c, reply + 256 - head_length, head_length + (p - reply - 256));
  free(reply);
  return result;
}

static int answer_get(Conn *c, const char *path) {
  if (strstr(path, "/models")) return answer(c, &models);
  if (!strncmp(path, "/metrics", 8)) {
    char body[1024];
    Answer load;
    sprintf(body, LOAD, running, events, requests);
    whole(&load, "200 OK", "text/plain; version=0.0.4", body);
    return answer(c, &load);
  }
  if (!strncmp(path, "/health", 7) || !strncmp(path, "/ping", 5)) return answer(c, &empty);
  if (strstr(path, "info") || !strncmp(path, "/get_load", 9) || !strncmp(path, "/version", 8))
    return answer(c, &server_info);
  return answer(c, &not_found);
}

static int handle(Conn *c, char *head, size_t head_length, const char *body, size_t length) {
  requests++;
  size_t line = (char *)memchr(head, '\r', head_length) - head;
  if (!memcmp(head, "GET ", 4)) {
    head[line] = 0;
    return answer_get(c, head + 4);
  }
  if (memmem(head, line, "/render", 7)) return answer_tokens(c, body, length, "token_ids");
  if (memmem(head, line, "/tokenize", 9)) return answer_tokens(c, body, length, "tokens");
  const char *stream = member(body, length, "\"stream\"");
  if (!stream || *stream != 't') return answer(c, &completion);
  running++;
  c->streaming = c->first = 1;
  c->left = number(body, length, "\"max_tokens\"", 0);
  if (c->left <= 0) c->left = number(body, length, "\"max_completion_tokens\"", DEFAULT_TOKENS);
  c->delay_ns = number(body, length, "\"seed\"", 0) * 1000000LL;
  c->tokens = c->left;
  if (answer(c, &stream_head) < 0) return -1;
  if (c->delay_ns) {
    c->due_ns = now_ns();
    heap_add(c);
  } else {
    active_add(c);
  }
  return 0;
}

// Sends one event of a stream: 0 more to come, 1 that was the last.
static int step(Conn *c) {
  const Answer *event = &content_events[c->left & 7];
  if (c->first) event = &role_event;
  else if (c->left == 1) event = &finish_event;
  c->first = 0;
  c->left--;
  events++;
  if (answer(c, event) < 0) return -1;
  if (c->left > 0) return 0;
  c->streaming = 0;
  running--;
  return send_end(c) < 0 ? -1 : 1;
}

// Answers what has arrived whole; requests behind a stream wait until it has ended.
static int process(Conn *c) {
  while (!c->streaming && c->in_length) {
    char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head_length = end + 4 - c->in;
    const char *length = header(c->in, head_length, "content-length");
    size_t body_length = length ? strtoul(length, NULL, 10) : 0, used = head_length + body_length;
    if (c->in_length < used) return 0;
    const char *connection = header(c->in, head_length, "connection");
    if (connection && !strncasecmp(connection, "close", 5)) c->close_after = 1;
    if (handle(c, c->in, head_length, c->in + head_length, body_length) < 0) return -1;
    c->in_length -= used;
    memmove(c->in, c->in + used, c->in_length);
    if (c->close_after && !c->streaming && !c->out_length) return -1;
  }
  return 0;
}

static int receive(Conn *c) {
  for (;;) {
    if (c->in_length == c->in_size) {
      c->in_size = c->in_size ? c->in_size * 2 : 32768;
      c->in = realloc(c->in, c->in_size + 1);
    }
    size_t room = c->in_size - c->in_length;
    ssize_t got = recv(c->fd, c->in + c->in_length, room, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) return -1;
    if (got > 0) c->in_length += got;
    c->in[c->in_length] = 0;
    if (got < (ssize_t)room) return c->streaming ? 0 : process(c);
  }
}

static void watch(Conn *c, int fd) {
  c->fd = fd;
  c->heap_place = c->active_place = -1;
  conns[fd] = c;
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
}

static void accept_all(const Conn *listener) {
  int fd, on = 1;
  while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    if (fd >= MAX_FDS) {
      close(fd);
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(calloc(1, sizeof(Conn)), fd);
  }
}

// Listens on a free port and returns it.
static int listen_anywhere(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  if (bind(fd, (void *)&address, size) || listen(fd, 8192) ||
      getsockname(fd, (void *)&address, &size)) {
    fprintf(stderr, "upstream: %s\n", strerror(errno));
    exit(1);
  }
  Conn *c = calloc(1, sizeof(Conn));
  c->listening = 1;
  watch(c, fd);
  return ntohs(address.sin_port);
}

// After a stream's last event: answer what waited behind it.
static void ended(Conn *c) {
  if ((c->close_after && !c->out_length) || process(c) < 0) close_conn(c);
}

static void turn_active(void) {
  for (int i = active_size - 1; i >= 0; i--) {
    Conn *c = active[i];
    if (c->out_length) continue;  // its reader is behind
    int result = step(c);
    if (result < 0) {
      close_conn(c);
    } else if (result == 1) {
      active_remove(c);
      ended(c);
    }
  }
}

static void turn_delayed(void) {
  int64_t now = heap_size ? now_ns() : 0;
  while (heap_size && heap[0]->due_ns <= now) {
    Conn *c = heap[0];
    int result = step(c);
    if (result < 0) {
      close_conn(c);
    } else if (result == 1) {
      heap_remove(c);
      ended(c);
    } else {
      c->due_ns += c->delay_ns;
      heap_down(0);
    }
  }
}

static int wait_ms(void) {
  if (active_size) return 0;
  if (!heap_size) return -1;
  int64_t left_ns = heap[0]->due_ns - now_ns();
  return left_ns <= 0 ? 0 : (int)((left_ns + 999999) / 1000000);
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: upstream PORTS\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  write_answers();
  poller = epoll_create1(0);
  for (int i = 0; i < atoi(argv[1]); i++) printf("%d ", listen_anywhere());
  puts("");
  fflush(stdout);
  struct epoll_event turn[TURN_EVENTS];
  for (;;) {
    int count = epoll_wait(poller, turn, TURN_EVENTS, wait_ms());
    for (int i = 0; i < count; i++) {
      Conn *c = conns[turn[i].data.fd];
      if (!c) continue;
      if (c->listening) {
        accept_all(c);
        continue;
      }
      int lost = (turn[i].events & EPOLLOUT) && flush(c) < 0;
      if (!lost && turn[i].events & ~EPOLLOUT) lost = receive(c) < 0;
      if (lost) close_conn(c);
    }
    turn_active();
    turn_delayed();
  }
}
