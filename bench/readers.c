/* Readers of event streams and their publisher, in one process that costs little, for bench/live.

   readers PORT READERS PATHS READ_TARGET WRITE_METHOD WRITE_TARGET      "@" in a target becomes a number from 1 to PATHS

   All readers connect, then it says "ready" and obeys the lines of its standard input, answering each with a line of JSON:

   flood SECONDS WINDOW     publish as fast as the readers are served: at most WINDOW events are under way
   pace SECONDS EVENTS_S    publish at a steady rate

   An event's document holds the time at which it was sent, behind a tilde, and there is no other tilde in what a reader gets:
   so events are counted by memchr, and latency is taken from SAMPLED readers, which are read at once. The others are read
   every DRAIN_MS, several events at a time where there are several: reading is not what is measured. Each phase ends when
   every reader has every event; a stream that ends, or an answer that is no success, ends the program. */

#define _GNU_SOURCE /* strcasestr */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SAMPLED 100
#define DRAIN_MS 20
#define PUBLISHERS 16
#define BODY_BYTES 100
#define LATE_S 30 /* for all readers to have everything, after the last event was sent */
#define MAX_SAMPLES 4000000
#define AT_ONCE 256 /* that connect before the first of them is served */

struct publisher {
    int fd, is_busy;
    size_t length;
    char answer[8192];
};

static int port, readers, paths;
static const char *read_target, *write_method, *write_target;
static int *reader_fds;
static struct publisher publishers[PUBLISHERS];
static int prompt, later; /* two epolls: what is read at once, and what is read now and then */
static uint64_t deliveries, events;
static uint32_t *latencies_us;
static size_t samples;
static char buffer[1 << 20];

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static double processor_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static int connect_to_server(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger reset = {1, 0}; /* thousands of ports would wait for their time-out otherwise */
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

static void watch(int epoll, int fd, uint32_t number) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = number};
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted))
        fail("epoll_ctl: %s", strerror(errno));
}

/* The target with a number in place of "@". */
static const char *numbered(const char *target, int number) {
    static char text[1024];
    const char *at = strchr(target, '@');
    if (at)
        snprintf(text, sizeof text, "%.*s%d%s", (int)(at - target), target, number, at + 1);
    else
        snprintf(text, sizeof text, "%s", target);
    return text;
}

static void send_all(int fd, const char *text, size_t length) {
    if (send(fd, text, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("cannot send: %s", strerror(errno));
}

/* Connect all readers, some at a time, and wait until each has been told something. */
static void follow(void) {
    char request[2048];
    for (int first = 0; first < readers; first += AT_ONCE) {
        int last = first + AT_ONCE < readers ? first + AT_ONCE : readers;
        for (int i = first; i < last; i++) {
            reader_fds[i] = connect_to_server();
            int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n",
                                  numbered(read_target, i % paths + 1));
            send_all(reader_fds[i], request, length);
        }
        for (int i = first; i < last; i++) {
            ssize_t got = recv(reader_fds[i], buffer, sizeof buffer, 0);
            if (got < 12 || strncmp(buffer + 9, "200", 3))
                fail("a stream did not begin: %.*s", got > 0 ? (int)got : 0, buffer);
        }
    }
    for (int i = 0; i < readers; i++) {
        int stride = readers / SAMPLED ? readers / SAMPLED : 1;
        watch(i % stride ? later : prompt, reader_fds[i], i);
    }
}

static void read_events(int fd, int is_sampled) {
    ssize_t got = recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        fail("a stream ended: %s", got ? strerror(errno) : "closed");
    uint64_t now = is_sampled ? now_us() : 0;
    for (char *at = buffer, *end = buffer + got; (at = memchr(at, '~', end - at)); at++) {
        deliveries++;
        if (is_sampled && end - at > 17 && samples < MAX_SAMPLES) { /* a number that is cut in two is left out */
            char *after;
            uint64_t sent = strtoull(at + 1, &after, 10);
            if (after == at + 17)
                latencies_us[samples++] = now > sent ? now - sent : 0;
        }
    }
}

static void drain(void) {
    static struct epoll_event ready[8192];
    int count = epoll_wait(later, ready, 8192, 0);
    for (int i = 0; i < count; i++)
        read_events(reader_fds[ready[i].data.u32], 0);
}

static void publish(struct publisher *one) {
    char request[2048], body[BODY_BYTES + 1];
    int head = snprintf(body, sizeof body, "{\"at\":\"~%llu\",\"text\":\"", (unsigned long long)now_us());
    memset(body + head, 'x', BODY_BYTES - head - 2);
    memcpy(body + BODY_BYTES - 2, "\"}", 2);
    int length = snprintf(request, sizeof request,
                          "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%.*s",
                          write_method, numbered(write_target, events % paths + 1), BODY_BYTES, BODY_BYTES, body);
    send_all(one->fd, request, length);
    one->is_busy = 1;
    one->length = 0;
    events++;
}

static void read_answer(struct publisher *one) {
    ssize_t got = recv(one->fd, one->answer + one->length, sizeof one->answer - one->length - 1, 0);
    if (got <= 0)
        fail("a publisher's connection ended");
    one->length += got;
    one->answer[one->length] = 0;
    char *end = strstr(one->answer, "\r\n\r\n"), *field = strcasestr(one->answer, "\r\ncontent-length:");
    if (!end || one->length < end + 4 - one->answer + (field && field < end ? strtoul(field + 17, NULL, 10) : 0))
        return;
    if (one->answer[9] != '2')
        fail("an event was refused: %s", one->answer);
    one->is_busy = 0;
}

static struct publisher *idle_publisher(void) {
    for (int i = 0; i < PUBLISHERS; i++)
        if (!publishers[i].is_busy)
            return &publishers[i];
    return NULL;
}

static int by_size(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

/* Publish for some seconds: `window` events under way at most, or where that is 0 so many a second. */
static void phase(double seconds, double window, double events_s) {
    static struct epoll_event ready[512];
    double used = processor_s();
    uint64_t begun = now_us(), end = begun + seconds * 1e6, drained = 0, fan = readers / paths, now;
    deliveries = events = samples = 0;
    while ((now = now_us()) < end || deliveries < events * fan) {
        if (now > end + LATE_S * 1000000ULL)
            fail("%llu of %llu deliveries did not come", (unsigned long long)(events * fan - deliveries), (unsigned long long)(events * fan));
        struct publisher *one;
        while (now < end && (window ? events - deliveries / fan < window : events < (now - begun) / 1e6 * events_s) && (one = idle_publisher()))
            publish(one);
        int count = epoll_wait(prompt, ready, 512, 1);
        for (int i = 0; i < count; i++) {
            uint32_t number = ready[i].data.u32;
            if (number >= (uint32_t)readers)
                read_answer(&publishers[number - readers]);
            else
                read_events(reader_fds[number], 1);
        }
        if (now - drained >= DRAIN_MS * 1000) {
            drained = now;
            drain();
        }
    }
    for (int i = 0; i < PUBLISHERS; i++) { /* the answers to the last events may still come */
        fcntl(publishers[i].fd, F_SETFL, 0);
        while (publishers[i].is_busy)
            read_answer(&publishers[i]);
        fcntl(publishers[i].fd, F_SETFL, O_NONBLOCK);
    }
    if (deliveries != events * fan)
        fail("%llu deliveries of %llu", (unsigned long long)deliveries, (unsigned long long)(events * fan));
    qsort(latencies_us, samples, sizeof *latencies_us, by_size);
    printf("{\"events\": %llu, \"deliveries\": %llu, \"seconds\": %.3f, \"p50_ms\": %.2f, \"p99_ms\": %.2f, \"client_cpu_s\": %.3f}\n",
           (unsigned long long)events, (unsigned long long)deliveries, (now_us() - begun) / 1e6,
           samples ? latencies_us[samples / 2] / 1e3 : 0.0, samples ? latencies_us[samples * 99 / 100] / 1e3 : 0.0, processor_s() - used);
    fflush(stdout);
}

int main(int count, char **words) {
    char line[256];
    double seconds, figure;
    if (count != 7)
        fail("readers PORT READERS PATHS READ_TARGET WRITE_METHOD WRITE_TARGET");
    port = atoi(words[1]), readers = atoi(words[2]), paths = atoi(words[3]);
    read_target = words[4], write_method = words[5], write_target = words[6];
    reader_fds = calloc(readers, sizeof *reader_fds);
    latencies_us = calloc(MAX_SAMPLES, sizeof *latencies_us);
    prompt = epoll_create1(0), later = epoll_create1(0);
    follow();
    for (int i = 0; i < PUBLISHERS; i++) {
        publishers[i].fd = connect_to_server();
        watch(prompt, publishers[i].fd, readers + i);
    }
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "flood %lf %lf", &seconds, &figure) == 2)
            phase(seconds, figure, 0);
        else if (sscanf(line, "pace %lf %lf", &seconds, &figure) == 2)
            phase(seconds, 0, figure);
        else
            fail("not a command: %s", line);
    }
    return 0;
}
