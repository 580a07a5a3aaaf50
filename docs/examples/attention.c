/* Softmax attention, forward and backward, in tiles of keys, and what a program needs to be checked by refattn.

     cc -O2 -o attention attention.c -lm
     refattn check --command './attention {case} {out}' scaled_dot_product_attention

   FAULT=1..5 plants an error for the check to find. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef FAULT
#define FAULT 0
#endif
enum { TILE = 64, MOST_DIMENSIONS = 8, NOT_SUPPORTED = 77 };

/* ---- the case: index.txt and raw numbers ---- */

typedef struct {
    long dims[MOST_DIMENSIONS], count;
    int ndim;
    float *numbers;
} Tensor;

typedef struct {
    const char *folder;
    Tensor query, key, value, d_output;
    int causal, lower_right;
    float scale; /* 0 where none is given */
} Case;

static void stop(int status, const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(status);
}

static float *numbers(long count) {
    float *made = calloc(count > 0 ? (size_t)count : 1, sizeof *made);
    if (!made) stop(1, "memory", "exhausted");
    return made;
}

static void read_tensor(Case *c, const char *line) {
    char role[16], name[64], dtype[32], file[256], path[4096];
    long offset;
    int used = 0, more = 0;
    Tensor t = {.count = 1};
    if (sscanf(line, "tensor %15s %63s %31s %255s %ld %d%n", role, name, dtype, file, &offset, &t.ndim, &used) != 6)
        stop(1, "index.txt", line);
    if (strcmp(role, "argument") && strcmp(role, "cotangent")) return; /* golden files hold what is expected too */
    if (strcmp(dtype, "float32")) stop(NOT_SUPPORTED, dtype, "not supported");
    if (t.ndim > MOST_DIMENSIONS) stop(NOT_SUPPORTED, name, "too many dimensions");
    for (int i = 0; i < t.ndim; i++, used += more) {
        if (sscanf(line + used, "%ld%n", &t.dims[i], &more) != 1) stop(1, "index.txt", line);
        t.count *= t.dims[i];
    }
    Tensor *known[] = {&c->query, &c->key, &c->value, &c->d_output};
    const char *names[] = {"query", "key", "value", "d_output"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i])) continue;
        snprintf(path, sizeof path, "%s/%s", c->folder, file);
        FILE *f = fopen(path, "rb");
        t.numbers = numbers(t.count);
        if (!f || fseek(f, offset, SEEK_SET) || fread(t.numbers, sizeof(float), t.count, f) != (size_t)t.count)
            stop(1, path, "cannot be read");
        fclose(f);
        *known[i] = t;
        return;
    }
    if (!strcmp(role, "argument")) stop(NOT_SUPPORTED, name, "not supported");
}

static Case read_case(const char *folder) {
    Case c = {.folder = folder};
    char path[4096], line[4096], name[64], word[64];
    snprintf(path, sizeof path, "%s/index.txt", folder);
    FILE *f = fopen(path, "r");
    if (!f) stop(1, path, "cannot be read");
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, "tensor ", 7)) read_tensor(&c, line);
        if (sscanf(line, "option %63s %63s", name, word) != 2) continue;
        if (!strcmp(name, "causal")) c.causal = atoi(word);
        else if (!strcmp(name, "align")) c.lower_right = !strcmp(word, "lower_right");
        else if (!strcmp(name, "scale")) c.scale = strtof(word, NULL);
        else if (strcmp(word, "none") && strcmp(word, "0.0") && strcmp(word, "zero")) stop(NOT_SUPPORTED, name, "not supported");
    }
    fclose(f);
    return c;
}

static void write_tensor(const char *folder, const char *name, const float *x, long count) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.bin", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(x, sizeof *x, count, f) != (size_t)count || fclose(f)) stop(1, path, "cannot be written");
}

/* ---- the kernel: one head ---- */

typedef struct {
    long query_len, key_len, head_dim, value_dim, reach; /* query i sees the keys before i + reach */
    float scale;
} Sizes;

static float dot(const float *a, const float *b, long n) {
    float sum = 0;
    for (long i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static long seen(const Sizes *s, long i) {
    long n = i + s->reach;
    return n < 0 ? 0 : n < s->key_len ? n : s->key_len;
}

static void forward(const Sizes *s, const float *q, const float *k, const float *v, float *output, float *lse) {
    float scores[TILE];
    for (long i = 0; i < s->query_len; i++, q += s->head_dim, output += s->value_dim) {
        float largest = -INFINITY, total = 0;
        long end = seen(s, i);
        if (FAULT == 3) end -= end % TILE;
        for (long begin = 0; begin < end; begin += TILE) {
            long n = end - begin < TILE ? end - begin : TILE;
            float before = largest;
            for (long j = 0; j < n; j++) {
                scores[j] = s->scale * dot(q, k + (begin + j) * s->head_dim, s->head_dim);
                largest = fmaxf(largest, scores[j]);
            }
            float rescale = expf(before - largest);
            total *= rescale;
            for (long d = 0; d < s->value_dim && FAULT != 1; d++) output[d] *= rescale;
            for (long j = 0; j < n; j++) {
                float weight = expf(scores[j] - largest);
                total += weight;
                for (long d = 0; d < s->value_dim; d++) output[d] += weight * v[(begin + j) * s->value_dim + d];
            }
        }
        for (long d = 0; d < s->value_dim && total > 0; d++) output[d] /= total;
        lse[i] = largest + logf(total);
    }
}

static void backward(const Sizes *s, const float *q, const float *k, const float *v, const float *output, const float *lse,
                     const float *d_output, float *d_q, float *d_k, float *d_v) {
    for (long i = 0; i < s->query_len; i++) {
        const float *query = q + i * s->head_dim, *d_out = d_output + i * s->value_dim;
        float row = FAULT == 4 ? 0 : dot(output + i * s->value_dim, d_out, s->value_dim);
        for (long j = 0; j < seen(s, i); j++) {
            const float *key = k + j * s->head_dim, *value = v + j * s->value_dim;
            float weight = expf(s->scale * dot(query, key, s->head_dim) - lse[i]);
            float d_score = s->scale * weight * (dot(d_out, value, s->value_dim) - row);
            for (long d = 0; d < s->head_dim; d++) d_q[i * s->head_dim + d] += d_score * key[d];
            for (long d = 0; d < s->head_dim; d++) d_k[j * s->head_dim + d] += d_score * query[d];
            for (long d = 0; d < s->value_dim; d++) d_v[j * s->value_dim + d] += weight * d_out[d];
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 3) stop(1, "usage", "attention CASE OUT");
    Case c = read_case(argv[1]);
    const long *q = c.query.dims + c.query.ndim - 3, *k = c.key.dims + c.key.ndim - 3, *v = c.value.dims + c.value.ndim - 3;
    Sizes s = {q[1], k[1], q[2], v[2], k[1], c.scale ? c.scale : 1 / sqrtf(q[2])};
    if (c.causal) s.reach = (c.lower_right ? k[1] - q[1] : 0) + (FAULT == 2 ? 2 : 1);
    long batch = 1, heads = q[0], kv_heads = k[0];
    for (int i = 0; i < c.query.ndim - 3; i++) batch *= c.query.dims[i];
    float *output = numbers(batch * heads * q[1] * v[2]), *lse = numbers(batch * heads * q[1]);
    float *d_q = numbers(c.query.count), *d_k = numbers(c.key.count), *d_v = numbers(c.value.count);
    for (long h = 0; h < batch * heads; h++) {
        long group = heads / kv_heads, own = h / heads * kv_heads + (FAULT == 5 ? h % heads % kv_heads : h % heads / group);
        float *q_h = c.query.numbers + h * q[1] * q[2], *k_h = c.key.numbers + own * k[1] * k[2], *v_h = c.value.numbers + own * v[1] * v[2];
        float *o_h = output + h * q[1] * v[2], *lse_h = lse + h * q[1];
        forward(&s, q_h, k_h, v_h, o_h, lse_h);
        if (c.d_output.numbers)
            backward(&s, q_h, k_h, v_h, o_h, lse_h, c.d_output.numbers + h * q[1] * v[2], d_q + h * q[1] * q[2], d_k + own * k[1] * k[2],
                     d_v + own * v[1] * v[2]);
    }
    write_tensor(argv[2], "output", output, batch * heads * q[1] * v[2]);
    if (c.d_output.numbers) {
        write_tensor(argv[2], "d_query", d_q, c.query.count);
        write_tensor(argv[2], "d_key", d_k, c.key.count);
        write_tensor(argv[2], "d_value", d_v, c.value.count);
    }
    return 0;
}
