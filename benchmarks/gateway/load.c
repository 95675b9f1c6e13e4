// A load client: one thread, epoll, HTTP/1.1 with keep-alive, optionally TLS. Prints one JSON line.
//
//   load -p PORT -b BODIES -c CONNECTIONS [-t SECONDS] [-o] [-R MS] [-e EVENTS] [-k KEY] [-s]
//
// Closed loop: every connection sends its next request when it has the whole answer; after SECONDS
// no new one is sent and those under way are finished. With -o each connection sends one request
// only (SECONDS then bounds the whole run), and -R spreads their start over MS milliseconds.
// BODIES has one request body a line, sent in turn. With -e a stream with fewer events, or without
// [DONE], counts as short. -s speaks TLS and checks no certificate. SIGTERM ends it early.
//
// Times are microseconds: latency until the whole answer, first until the first event of a stream,
// gap between reads that brought events. Any answer but 200 is counted as bad and shown once.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BODIES = 1024, HEAD_BYTES = 4096, READ_BYTES = 262144, TAIL_BYTES = 24 };
enum { TURN_EVENTS = 1024, GRACE_S = 10 };

typedef enum { IDLE, HEAD, BODY } Phase;
typedef enum { SIZE, DATA, DATA_END, TRAILER } ChunkPart;

typedef struct {
  int fd;
  SSL *tls;
  Phase phase;
  int status, chunked, answered;  // answered: requests this connection has had answered
  long left;                      // of the body with a length; -1: until the connection closes
  ChunkPart part;
  size_t chunk_left;
  char line[32];  // size of a chunk, or a trailer, as it arrives
  size_t line_length;
  char head[HEAD_BYTES];
  size_t head_length;
  char tail[TAIL_BYTES];  // the payload's last bytes
  size_t tail_length;
  long events;
  int64_t sent_ns, last_ns;
} Conn;

typedef struct {
  float *values;
  size_t count, size;
} Samples;

typedef struct {
  char *text;
  size_t length;
} Request;

static int port, connections = 1, once, ramp_ms, poller;
static double seconds = 3;
static long wanted_events;
static const char *key = "sk-1234";
static SSL_CTX *tls_context;
static Request requests[MAX_BODIES];
static int request_count, next_request;
static Samples latency, first, gap;
static long ok, bad, failed, cut, events, dials;
static char bad_text[200], tls_terms[64];
static volatile sig_atomic_t stopped;
static int64_t stop_sending_ns;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void on_term(int signal_number) { stopped = signal_number; }

// ---- samples

static void add(Samples *s, int64_t ns) {
  if (s->count == s->size) {
    s->size = s->size ? s->size * 2 : 65536;
    s->values = realloc(s->values, s->size * sizeof *s->values);
  }
  s->values[s->count++] = ns / 1e3f;
}

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
  static const struct { const char *name; double share; } QUANTILES[] = {
      {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"max", 1.0}};
  if (!s->count) return;
  qsort(s->values, s->count, sizeof *s->values, ascending);
  for (size_t i = 0; i < sizeof QUANTILES / sizeof *QUANTILES; i++) {
    size_t place = QUANTILES[i].share * s->count;
    if (place >= s->count) place = s->count - 1;
    printf(",\"%s_%s_us\":%.1f", name, QUANTILES[i].name, s->values[place]);
  }
}

// ---- connections

static int dial(Conn *c) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int on = 1;
  dials++;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0) die("socket");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(c->fd, (void *)&address, sizeof address)) return -1;
  if (tls_context) {
    c->tls = SSL_new(tls_context);
    SSL_set_fd(c->tls, c->fd);
    if (SSL_connect(c->tls) != 1) return -1;
    snprintf(tls_terms, sizeof tls_terms, "%s %s", SSL_get_version(c->tls),
             SSL_get_cipher(c->tls));
  }
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
  return 0;
}

static void drop(Conn *c) {
  if (c->tls) SSL_free(c->tls);
  if (c->fd >= 0) close(c->fd);
  c->tls = NULL;
  c->fd = -1;
  c->phase = IDLE;
}

static int try_again(const Conn *c, ssize_t result) {
  if (!c->tls) return errno == EAGAIN;
  int why = SSL_get_error(c->tls, result);
  return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE;
}

// Bodies fit into the socket's buffer, so waiting here is rare.
static int send_all(Conn *c, const char *bytes, size_t length) {
  while (length) {
    ssize_t sent = c->tls ? SSL_write(c->tls, bytes, length)
                          : send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent > 0) {
      bytes += sent, length -= sent;
    } else if (try_again(c, sent)) {
      struct pollfd wait = {.fd = c->fd, .events = POLLOUT};
      poll(&wait, 1, 1000);
    } else {
      return -1;
    }
  }
  return 0;
}

static void fire(Conn *c) {
  if (c->fd < 0 && dial(c) < 0) {
    failed++;
    drop(c);
    return;
  }
  const Request *r = &requests[next_request++ % request_count];
  c->phase = HEAD;
  c->head_length = c->tail_length = c->line_length = 0;
  c->events = 0;
  c->sent_ns = now_ns();
  if (send_all(c, r->text, r->length) < 0) {
    failed++;
    drop(c);
  }
}

// ---- answers

static void payload(Conn *c, const char *bytes, size_t length, int64_t at_ns) {
  if (c->status != 200) {
    if (!*bad_text)
      snprintf(bad_text, sizeof bad_text, "%d %.*s", c->status, (int)length, bytes);
    return;
  }
  char before = c->tail_length ? c->tail[c->tail_length - 1] : 0;
  long found = 0;  // an event ends with an empty line
  for (const char *p = bytes, *end = bytes + length; (p = memchr(p, '\n', end - p)); p++)
    found += (p == bytes ? before : p[-1]) == '\n';
  if (length >= TAIL_BYTES) {
    memcpy(c->tail, bytes + length - TAIL_BYTES, TAIL_BYTES);
    c->tail_length = TAIL_BYTES;
  } else {
    size_t kept = c->tail_length + length > TAIL_BYTES ? TAIL_BYTES - length : c->tail_length;
    memmove(c->tail, c->tail + c->tail_length - kept, kept);
    memcpy(c->tail + kept, bytes, length);
    c->tail_length = kept + length;
  }
  if (!found) return;
  if (c->events) add(&gap, at_ns - c->last_ns);
  else add(&first, at_ns - c->sent_ns);
  c->events += found;
  events += found;
  c->last_ns = at_ns;
}

static void finish(Conn *c, int64_t at_ns) {
  c->phase = IDLE;
  c->answered++;
  if (c->status != 200) {
    bad++;
  } else {
    ok++;
    add(&latency, at_ns - c->sent_ns);
    if (wanted_events &&
        (c->events < wanted_events || !memmem(c->tail, c->tail_length, "[DONE]", 6)))
      cut++;
  }
}

static const char *header(const char *head, const char *name) {
  const char *p = strcasestr(head, name);
  return p ? p + strlen(name) : NULL;
}

// Returns how many bytes belonged to the head.
static size_t read_head(Conn *c, const char *bytes, size_t length) {
  size_t room = HEAD_BYTES - 1 - c->head_length, taken = length < room ? length : room;
  size_t before = c->head_length;
  memcpy(c->head + before, bytes, taken);
  c->head_length += taken;
  c->head[c->head_length] = 0;
  char *end = strstr(c->head, "\r\n\r\n");
  if (!end) return taken;
  end[2] = 0;
  c->status = atoi(c->head + 9);  // behind "HTTP/1.1 "
  const char *content_length = header(c->head, "\ncontent-length:");
  const char *coding = header(c->head, "\ntransfer-encoding:");
  c->left = content_length ? atol(content_length) : -1;
  c->chunked = coding && strcasestr(coding, "chunked");
  c->part = SIZE;
  c->phase = BODY;
  return end + 4 - c->head - before;
}

// Returns 1 when the answer is complete.
static int read_chunks(Conn *c, const char *p, size_t length, int64_t at_ns) {
  for (const char *end = p + length; p < end;) {
    if (c->part == DATA) {
      size_t n = (size_t)(end - p) < c->chunk_left ? (size_t)(end - p) : c->chunk_left;
      payload(c, p, n, at_ns);
      p += n;
      c->chunk_left -= n;
      if (!c->chunk_left) c->part = DATA_END;
      continue;
    }
    char byte = *p++;
    if (byte != '\n') {
      if (byte != '\r' && c->line_length < sizeof c->line - 1) c->line[c->line_length++] = byte;
      continue;
    }
    c->line[c->line_length] = 0;
    if (c->part == TRAILER && !c->line_length) return 1;
    if (c->part == DATA_END) {
      c->part = SIZE;
    } else if (c->part == SIZE) {
      c->chunk_left = strtoul(c->line, NULL, 16);
      c->part = c->chunk_left ? DATA : TRAILER;
    }
    c->line_length = 0;
  }
  return 0;
}

static int read_body(Conn *c, const char *bytes, size_t length, int64_t at_ns) {
  if (c->chunked) return read_chunks(c, bytes, length, at_ns);
  size_t taken = c->left >= 0 && (long)length > c->left ? (size_t)c->left : length;
  payload(c, bytes, taken, at_ns);
  if (c->left >= 0) c->left -= taken;
  return c->left == 0;
}

static void next(Conn *c) {
  if (!once && c->phase == IDLE && now_ns() < stop_sending_ns && !stopped) fire(c);
}

static void lost(Conn *c, int64_t at_ns) {
  if (c->phase == BODY && !c->chunked && c->left < 0) finish(c, at_ns);
  else if (c->phase != IDLE) failed++;
  drop(c);
  next(c);
}

static void receive(Conn *c) {
  static char buffer[READ_BYTES];
  for (;;) {
    ssize_t got = c->tls ? SSL_read(c->tls, buffer, sizeof buffer)
                         : recv(c->fd, buffer, sizeof buffer, 0);
    int64_t at_ns = now_ns();
    if (got <= 0) {
      if (got == 0 || !try_again(c, got)) lost(c, at_ns);
      return;
    }
    const char *p = buffer;
    size_t left = got;
    if (c->phase == HEAD) {
      size_t taken = read_head(c, p, left);
      p += taken, left -= taken;
    }
    if (c->phase == BODY && (left || c->left == 0) && read_body(c, p, left, at_ns)) {
      finish(c, at_ns);
      next(c);
    }
    if (!c->tls) return;  // epoll tells if there is more; TLS may hold bytes that it cannot see
    if (c->fd < 0) return;
  }
}

// ---- set-up and report

static void read_bodies(const char *path) {
  FILE *f = fopen(path, "r");
  char *line = NULL;
  size_t size = 0;
  ssize_t length;
  if (!f) die(path);
  while ((length = getline(&line, &size, f)) > 0 && request_count < MAX_BODIES) {
    if (line[length - 1] == '\n') length--;
    if (!length) continue;
    Request *r = &requests[request_count++];
    r->text = malloc(length + 1024);
    r->length = sprintf(r->text,
                        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                        "Content-Type: application/json\r\nAuthorization: Bearer %s\r\n"
                        "Content-Length: %zd\r\n\r\n", port, key, length);
    memcpy(r->text + r->length, line, length);
    r->length += length;
  }
  free(line);
  fclose(f);
}

static void parse(int argc, char **argv) {
  const char *bodies = NULL;
  int option, tls = 0;
  while ((option = getopt(argc, argv, "p:b:c:t:oR:e:k:s")) != -1) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'b': bodies = optarg; break;
      case 'c': connections = atoi(optarg); break;
      case 't': seconds = atof(optarg); break;
      case 'o': once = 1; break;
      case 'R': ramp_ms = atoi(optarg); break;
      case 'e': wanted_events = atol(optarg); break;
      case 'k': key = optarg; break;
      case 's': tls = 1; break;
      default: exit(2);
    }
  if (!port || !bodies) {
    fprintf(stderr, "usage: load -p PORT -b BODIES -c CONNECTIONS [-t SECONDS] [-o] [-R MS] "
            "[-e EVENTS] [-k KEY] [-s]\n");
    exit(2);
  }
  read_bodies(bodies);
  if (!request_count) die("no bodies");
  if (tls) tls_context = SSL_CTX_new(TLS_client_method());
}

static void report(double wall_s, long unfinished) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                 (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  for (char *p = bad_text; *p; p++)
    if (*p == '"' || *p == '\\' || *p < ' ' || *p > '~') *p = ' ';
  printf("{\"wall_s\":%.3f,\"client_cpu_s\":%.3f,\"ok\":%ld,\"bad\":%ld,\"failed\":%ld,"
         "\"short\":%ld,\"unfinished\":%ld,\"dials\":%ld,\"events\":%ld,\"bad_text\":\"%s\",\"tls\":\"%s\"",
         wall_s, cpu_s, ok, bad, failed, cut, unfinished, dials, events, bad_text, tls_terms);
  print_samples("latency", &latency);
  print_samples("first", &first);
  print_samples("gap", &gap);
  puts("}");
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTERM, on_term);
  parse(argc, argv);
  prctl(PR_SET_TIMERSLACK, 1000UL);
  poller = epoll_create1(0);
  Conn *conns = calloc(connections, sizeof *conns);
  for (int i = 0; i < connections; i++) conns[i].fd = -1;
  int64_t began_ns = now_ns();
  stop_sending_ns = began_ns + (int64_t)(seconds * 1e9);
  int64_t give_up_ns = stop_sending_ns + (once ? 0 : GRACE_S * 1000000000LL);
  struct epoll_event turn[TURN_EVENTS];
  int opened = 0;
  long unfinished = 0;
  for (;;) {
    int64_t now = now_ns();
    while (opened < connections &&
           (!ramp_ms || now - began_ns >= (int64_t)opened * ramp_ms * 1000000LL / connections))
      fire(&conns[opened++]);
    unfinished = 0;
    for (int i = 0; i < opened && !unfinished; i++) unfinished = conns[i].phase != IDLE;
    int may_send = once ? opened < connections : now < stop_sending_ns;
    if (stopped || now > give_up_ns || (!unfinished && !may_send)) break;
    int count = epoll_wait(poller, turn, TURN_EVENTS, opened < connections ? 1 : 100);
    for (int i = 0; i < count; i++) receive(turn[i].data.ptr);
  }
  unfinished = 0;
  for (int i = 0; i < opened; i++) unfinished += conns[i].phase != IDLE;
  report((now_ns() - began_ns) / 1e9, unfinished);
  return 0;
}
