/* Kernels that skip the zeros of a weight. Compiled once for the CPU that runs them (build.py).

   Activations of convolutions lie in planes: the rows of a channel one after another, zero columns
   between them and zero rows around them. So each tap of a kernel is one constant offset, and LANES
   neighbouring outputs are one vector. A linear layer is the same computation with the rows of its
   input as positions.

   Nothing is checked here: every pointer, size and index comes from plan code that has checked it.
   The vectors are those of the compiler: 16 floats with AVX-512, 8 with AVX, else 4 (SSE, NEON). */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef int64_t i64;
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef int32_t iloose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

enum { NONE, RELU, RELU6, GELU };
enum { CONV, DEPTHWISE, POOL, COPY, CODE };

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec v) { *(loose *)p = v; }
INLINE vec splat(float f) { return f - (vec){0}; } /* -0.0 - 0 is -0.0 */
INLINE vec choose(ivec condition, vec yes, vec no) {
  return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}
INLINE float widen(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float f;
  memcpy(&f, &wide, 4);
  return f;
}

/* exp(a) for a <= 0: 2^n * exp(r), |r| <= ln(2) / 2, a Taylor polynomial of degree 7. */
INLINE vec exponential(vec a) {
  vec n = a * 1.44269504f - 0.5f;
  ivec whole = __builtin_convertvector(n, ivec); /* towards zero, so to the nearest of a / ln 2 */
  n = __builtin_convertvector(whole, vec);
  vec r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  vec p = splat(1.9841270e-4f);
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 0.16666667f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (vec)((ivec)p + (whole << 23));
}

/* x / 2 * erfc(-x / sqrt 2). log(erfc(t)) is a polynomial, fitted with weights t * erfc(t) on
   [0, 5.5], so that the error of the product is below 3e-9; beyond, erfc is 0 in float32. */
INLINE vec gelu(vec x) {
  static const float c[] = {6.02665649e-06f, -8.49409822e-05f, 4.97441389e-04f, -1.3697767e-03f,
                            -2.14885836e-04f, 1.94294623e-02f, -0.102892784f, -0.636594721f,
                            -1.12838138f, 4.17618864e-08f};
  vec t = choose(x < 0, -x, x) * 0.707106781f;
  ivec far = t > 5.5f;
  t = choose(far, splat(5.5f), t);
  vec p = splat(c[0]);
  for (int i = 1; i < 10; i++) p = p * t + c[i];
  vec e = choose(far, splat(0.0f), exponential(p));
  return 0.5f * x * choose(x < 0, e, 2.0f - e);
}

/* max(x, 0) and min(x, 6) that pass NaN on, as torch does. */
INLINE vec activate(vec x, i64 act) {
  if (act == RELU || act == RELU6) x = choose(x < 0, splat(0.0f), x);
  if (act == RELU6) x = choose(x > 6.0f, splat(6.0f), x);
  if (act == GELU) x = gelu(x);
  return x;
}

/* Transpose LANES vectors: in round d, vectors i and i + d change halves of 2 * d lanes. */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define FRONT(l, d) ((l) & (d) ? LANES + (l) - (d) : (l))
#define BACK(l, d) ((l) & (d) ? LANES + (l) : (l) + (d))
#define LANES4(F, l, d) F(l, d), F(l + 1, d), F(l + 2, d), F(l + 3, d)
#if LANES == 16
#define EACH(F, d) LANES4(F, 0, d), LANES4(F, 4, d), LANES4(F, 8, d), LANES4(F, 12, d)
#elif LANES == 8
#define EACH(F, d) LANES4(F, 0, d), LANES4(F, 4, d)
#else
#define EACH(F, d) LANES4(F, 0, d)
#endif
#define ROUND(d) \
  for (int i = 0; i < LANES; i++) \
    if (!(i & (d))) { \
      const vec a = s[i], b = s[i + (d)]; \
      s[i] = PICK(a, b, EACH(FRONT, d)); \
      s[i + (d)] = PICK(a, b, EACH(BACK, d)); \
    }
INLINE void transpose(vec *s) {
  ROUND(1)
  ROUND(2)
#if LANES >= 8
  ROUND(4)
#endif
#if LANES >= 16
  ROUND(8)
#endif
}

static void part(i64 n, int t, int threads, i64 *begin, i64 *end) {
  *begin = n * t / threads;
  *end = n * (t + 1) / threads;
}

/* ---- one output channel at `pv` vectors of positions: sum over the kept weights */

typedef struct {
  const float *values;
  const uint16_t *short_values; /* bfloat16, in place of values */
  const int32_t *offsets;       /* in floats from the position; columns where short_offsets is set */
  const uint16_t *short_offsets;
  const i64 *starts; /* of each output channel; one more at the end */
  const float *bias;
  i64 scale; /* floats between two columns */
} Weights;

INLINE i64 offset(const Weights *w, i64 j, const int form) {
  return (form & 1) ? w->short_offsets[j] * w->scale : w->offsets[j];
}
INLINE vec value(const Weights *w, i64 j, const int form) {
  return splat((form & 2) ? widen(w->short_values[j]) : w->values[j]);
}

enum { AHEAD = 256 }; /* steps between asking for weights and reading them */
INLINE void ask(const void *p, i64 size) { /* for the bytes behind `p` */
  for (i64 i = 0; i < size; i += 64) __builtin_prefetch((const char *)p + i, 0, 3);
}

/* A linear layer reads each weight once, so it asks for the next output's. The weights of a
   convolution come back at the next tile of positions, from a near cache. */
INLINE void channel(const Weights *w, i64 c, const float *x, vec *sum, const int pv,
                    const int sets, const int form) {
  vec s[sets * pv];
  for (int v = 0; v < sets * pv; v++) s[v] = splat(v < pv ? w->bias[c] : 0.0f);
  i64 j = w->starts[c], end = w->starts[c + 1];
  if (form & 1) {
    const i64 next = end + AHEAD, count = end - j;
    if (form & 2) ask(w->short_values + next, 2 * count);
    else ask(w->values + next, 4 * count);
    ask(w->short_offsets + next, 2 * count);
  }
  for (; j + sets <= end; j += sets)
    for (int k = 0; k < sets; k++) {
      const vec u = value(w, j + k, form);
      const float *p = x + offset(w, j + k, form);
      for (int v = 0; v < pv; v++) s[k * pv + v] += u * load(p + v * LANES);
    }
  for (; j < end; j++) {
    const vec u = value(w, j, form);
    const float *p = x + offset(w, j, form);
    for (int v = 0; v < pv; v++) s[v] += u * load(p + v * LANES);
  }
  for (int v = 0; v < pv; v++) {
    sum[v] = s[v];
    for (int k = 1; k < sets; k++) sum[v] += s[k * pv + v];
  }
}

/* Every width and form is compiled on its own: a constant `pv` keeps the sums in registers. */
#define WIDTHS(DO, form) \
  switch (pv) { \
    case 1: DO(1, 4, form); break; \
    case 2: DO(2, 4, form); break; \
    case 4: DO(4, LANES == 16 ? 4 : 2, form); break; \
    default: DO(6, LANES == 16 ? 2 : 1, form); \
  }
#define FORMS(DO, form) \
  switch (form) { \
    case 0: WIDTHS(DO, 0) break; \
    case 1: WIDTHS(DO, 1) break; \
    case 2: WIDTHS(DO, 2) break; \
    default: WIDTHS(DO, 3) \
  }
static i64 fitting(i64 vectors, i64 pv) { /* the widest compiled width that fits */
  if (vectors >= pv) return pv;
  return vectors >= 4 && pv > 4 ? 4 : vectors >= 2 ? 2 : 1;
}

/* ---- convolutions on planes */

typedef void (*Code)(const float *x, const float *values, float *y, const float *add,
                     const int32_t *mask);

typedef struct {
  i64 kind;
  const float *in;
  float *out;
  const float *add;
  i64 in_image, in_worker, out_image, out_worker, add_image, add_worker; /* strides in floats */
  i64 in_plane, out_plane, add_plane;
  i64 channels, vectors, act;
  const float *values;
  const uint16_t *short_values;
  const int32_t *offsets;
  const i64 *starts;
  const float *bias;
  const int32_t *mask; /* all ones where a position is one of the output */
  i64 width, taps;     /* vectors of a tile; offsets of a depthwise kernel */
  i64 height, columns, in_row, in_step, out_row; /* of a copy; of the output of a pool */
  i64 in_height, in_columns, kernel, stride, padding; /* of a pool */
  /* Of each block of channels `parts` routines, to be called in order; at the end one more, where
     the memory of the last one ends. */
  const Code *code;
  const float *const *code_values;
  i64 blocks, block, parts;
} Op;

INLINE void finish(const Op *o, vec *s, const int pv, float *y, const float *r,
                   const int32_t *mask) {
  for (int v = 0; v < pv; v++) {
    if (r) s[v] += load(r + v * LANES);
    s[v] = activate(s[v], o->act);
    store(y + v * LANES, (vec)((ivec)s[v] & *(const iloose *)(mask + v * LANES)));
  }
}

#define CONV_TILE(PV, SETS, FORM) \
  for (i64 c = from; c < to; c++) { \
    vec s[PV]; \
    channel(&w, c, x, s, PV, SETS, FORM); \
    finish(o, s, PV, y + c * o->out_plane, r ? r + c * o->add_plane : r, mask); \
  }

static void conv(const Op *o, const float *in, float *out, const float *add, int t, int threads) {
  const Weights w = {o->values, o->short_values, o->offsets, 0, o->starts, o->bias, 1};
  const int form = o->values ? 0 : 2;
  const i64 block = threads == 1 ? o->channels : 16;
  const i64 blocks = (o->channels + block - 1) / block, tiles = (o->vectors + o->width - 1) / o->width;
  i64 i, end;
  part(tiles * blocks, t, threads, &i, &end);
  for (; i < end; i++) {
    const i64 from = i % blocks * block, to = from + block < o->channels ? from + block : o->channels;
    i64 q = i / blocks * o->width, last = q + o->width < o->vectors ? q + o->width : o->vectors;
    while (q < last) {
      const i64 pv = fitting(last - q, o->width);
      const float *x = in + q * LANES, *r = add ? add + q * LANES : add;
      float *y = out + q * LANES;
      const int32_t *mask = o->mask + q * LANES;
      if (form) { WIDTHS(CONV_TILE, 2) } else { WIDTHS(CONV_TILE, 0) }
      q += pv;
    }
  }
}

/* Ask for bytes [size * i / n, size * (i + 1) / n) of `p` in the second cache. */
INLINE void fetch(const char *p, i64 size, i64 i, i64 n) {
  for (i64 j = size * i / n & -64; j < size * (i + 1) / n; j += 64) __builtin_prefetch(p + j, 0, 2);
}

typedef struct {
  const Code *code;
  const float *const *values;
  i64 parts, end; /* end: of the routines of all blocks */
} Routines;

INLINE void fetch_routine(const Routines *r, i64 k, i64 i, i64 n) {
  const char *code = (const char *)r->code[k], *values = (const char *)r->values[k];
  fetch(code, (const char *)r->code[k + 1] - code, i, n);
  fetch(values, (const char *)r->values[k + 1] - values, i, n);
}

/* Parts outside, positions inside: the code of a part stays in the cache. While it runs, the code
   and the numbers of the next part arrive: CPUs foresee reads of data, not of code. */
INLINE void run_block(const Routines *o, i64 b, i64 vectors, const float *in, float *out,
                      const float *add, const int32_t *mask, i64 mask_step) {
  for (i64 k = b * o->parts; k < (b + 1) * o->parts; k++)
    for (i64 q = 0; q < vectors; q++) {
      const i64 p = q * LANES;
      if (k + 1 < o->end) fetch_routine(o, k + 1, q, vectors);
      o->code[k](in + p, o->values[k], out + p, add ? add + p : add, mask + q * mask_step);
    }
}

static void code(const Op *o, const float *in, float *out, const float *add, int t, int threads) {
  const Routines r = {o->code, o->code_values, o->parts, o->blocks * o->parts};
  i64 i, end;
  part(o->blocks * o->vectors, t, threads, &i, &end);
  if (i < end) fetch_routine(&r, i / o->vectors * o->parts, 0, 1);
  while (i < end) {
    const i64 b = i / o->vectors, from = i % o->vectors, left = end - i;
    const i64 to = from + left < o->vectors ? from + left : o->vectors, p = from * LANES;
    run_block(&r, b, to - from, in + p, out + b * o->block * o->out_plane + p,
              add ? add + b * o->block * o->add_plane + p : add, o->mask + p, LANES);
    i += to - from;
  }
}

static void depthwise(const Op *o, const float *in, float *out, const float *add, int t,
                      int threads) {
  i64 c, end;
  part(o->channels, t, threads, &c, &end);
  for (; c < end; c++) {
    const float *x = in + c * o->in_plane, *k = o->values + c * o->taps;
    const float *r = add ? add + c * o->add_plane : add;
    i64 q = 0;
    for (; q + 4 <= o->vectors; q += 4) {
      vec s[4];
      for (int v = 0; v < 4; v++) s[v] = splat(o->bias[c]);
      for (i64 j = 0; j < o->taps; j++)
        for (int v = 0; v < 4; v++)
          s[v] += splat(k[j]) * load(x + o->offsets[j] + (q + v) * LANES);
      finish(o, s, 4, out + c * o->out_plane + q * LANES, r ? r + q * LANES : r,
             o->mask + q * LANES);
    }
    for (; q < o->vectors; q++) {
      vec s = splat(o->bias[c]);
      for (i64 j = 0; j < o->taps; j++) s += splat(k[j]) * load(x + o->offsets[j] + q * LANES);
      finish(o, &s, 1, out + c * o->out_plane + q * LANES, r ? r + q * LANES : r,
             o->mask + q * LANES);
    }
  }
}

INLINE float larger(float a, float b) { return b > a || b != b ? b : a; } /* passes NaN on */

/* First the columns of a window, then its rows. A line is at most MOST_COLUMNS floats (plan.py). */
enum { MOST_COLUMNS = 4096 };
static void pool(const Op *o, const float *in, float *out, int t, int threads) {
  float line[MOST_COLUMNS];
  i64 c, end;
  part(o->channels, t, threads, &c, &end);
  for (; c < end; c++)
    for (i64 i = 0; i < o->height; i++) {
      i64 first = i * o->stride - o->padding, last = first + o->kernel;
      first = first < 0 ? 0 : first;
      last = last > o->in_height ? o->in_height : last;
      float *middle = line + o->padding;
      for (i64 j = 0; j < o->padding; j++) line[j] = middle[o->in_columns + j] = -INFINITY;
      const float *x = in + c * o->in_plane + first * o->in_row;
      memcpy(middle, x, o->in_columns * sizeof(float));
      for (i64 k = first + 1; k < last; k++) {
        x += o->in_row;
        for (i64 j = 0; j < o->in_columns; j++) middle[j] = larger(middle[j], x[j]);
      }
      float *y = out + c * o->out_plane + i * o->out_row;
      for (i64 j = 0; j < o->columns; j++) y[j] = line[j * o->stride];
      for (i64 k = 1; k < o->kernel; k++)
        for (i64 j = 0; j < o->columns; j++) y[j] = larger(y[j], line[j * o->stride + k]);
    }
}

static void copy(const Op *o, const float *in, float *out, int t, int threads) {
  i64 i, end;
  part(o->channels * o->height, t, threads, &i, &end);
  for (; i < end; i++) {
    const float *x = in + i / o->height * o->in_plane + i % o->height * o->in_row;
    float *y = out + i / o->height * o->out_plane + i % o->height * o->out_row;
    if (o->in_step == 1)
      for (i64 j = 0; j < o->columns; j++) y[j] = x[j];
    else if (o->in_step == 2)
      for (i64 j = 0; j < o->columns; j++) y[j] = x[2 * j];
    else
      for (i64 j = 0; j < o->columns; j++) y[j] = x[j * o->in_step];
  }
}

static void run(const Op *o, i64 image, i64 worker, int t, int threads) {
  const float *in = o->in + image * o->in_image + worker * o->in_worker;
  float *out = o->out + image * o->out_image + worker * o->out_worker;
  const float *add = o->add ? o->add + image * o->add_image + worker * o->add_worker : 0;
  switch (o->kind) {
    case CONV: conv(o, in, out, add, t, threads); break;
    case DEPTHWISE: depthwise(o, in, out, add, t, threads); break;
    case POOL: pool(o, in, out, t, threads); break;
    case CODE: code(o, in, out, add, t, threads); break;
    default: copy(o, in, out, t, threads);
  }
}

/* All operations image by image, so that the activations of one image stay in the cache: an image
   for each thread, or all threads on one image where there are too few images. */
void dcil_planes(const Op *ops, i64 count, i64 images, i64 threads) {
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)threads)
  {
    const int t = omp_get_thread_num(), all = omp_get_num_threads();
#else
  {
    const int t = 0, all = 1;
    (void)threads;
#endif
    if (images % all == 0 || images >= 4 * all) {
      for (i64 n = t; n < images; n += all)
        for (i64 i = 0; i < count; i++) run(ops + i, n, t, 0, 1);
    } else {
      for (i64 n = 0; n < images; n++)
        for (i64 i = 0; i < count; i++) {
          run(ops + i, n, 0, t, all);
#if defined(_OPENMP)
#pragma omp barrier
#endif
        }
    }
  }
}

/* ---- linear layers: the rows of the input are the positions */

typedef struct {
  Weights w;
  i64 inner, outer, act, width; /* width: vectors of a tile of rows */
  const Code *code;             /* as in Op; null: the weights of w */
  const float *const *code_values;
  i64 blocks, block, parts;
} Rows;

/* Channels of a tile lie in `s`, `stride` floats apart; their rows go to y, with the residual. */
INLINE void spread(const Rows *o, const float *s, i64 stride, i64 first, i64 channels, i64 row,
                   i64 rows, float *y, const float *add) {
  y += row * o->outer + first;
  if (add) add += row * o->outer + first;
  if (channels < LANES) {
    for (i64 m = 0; m < rows; m++)
      for (i64 c = 0; c < channels; c++)
        y[m * o->outer + c] = s[c * stride + m] + (add ? add[m * o->outer + c] : -0.0f);
    return;
  }
  for (i64 m = 0; m < rows; m += LANES)
    for (i64 c = 0; c < channels; c += LANES) {
      const i64 from = c + LANES < channels ? c : channels - LANES; /* the last ones overlap */
      const i64 last = rows - m < LANES ? rows - m : LANES;
      vec v[LANES];
      for (int i = 0; i < LANES; i++) v[i] = load(s + (from + i) * stride + m);
      transpose(v);
      for (int i = 0; i < LANES; i++) {
        const i64 at = (m + i) * o->outer + from;
        if (i < last) store(y + at, add ? v[i] + load(add + at) : v[i]);
      }
    }
}

#define ROWS_TILE(PV, SETS, FORM) \
  for (i64 c = first; c < stop; c++) { \
    vec s[PV]; \
    channel(&o->w, c, x, s, PV, SETS, FORM); \
    for (int v = 0; v < PV; v++) \
      store(block + (c - first) * PV * LANES + v * LANES, activate(s[v], o->act)); \
  }

static void gather_rows(const Rows *o, const float *x, i64 row, i64 rows, float *scratch, int t,
                        int threads) {
  const i64 stride = o->width * LANES;
  i64 begin, end;
  part((o->inner + LANES - 1) / LANES, t, threads, &begin, &end);
  begin *= LANES;
  end = end * LANES < o->inner ? end * LANES : o->inner;
  if (o->inner < LANES) {
    for (i64 m = 0; m < stride; m++)
      for (i64 i = begin; i < end; i++)
        scratch[i * stride + m] = m < rows ? x[(row + m) * o->inner + i] : 0.0f;
    return;
  }
  for (i64 m = 0; m < stride; m += LANES)
    for (i64 k = begin; k < end; k += LANES) {
      const i64 from = k + LANES < o->inner ? k : o->inner - LANES; /* the last ones overlap */
      vec v[LANES];
      for (int i = 0; i < LANES; i++)
        v[i] = m + i < rows ? load(x + (row + m + i) * o->inner + from) : splat(0.0f);
      transpose(v);
      for (int i = 0; i < LANES; i++) store(scratch + (from + i) * stride + m, v[i]);
    }
}

static void tile(const Rows *o, const float *x, float *y, const float *add, i64 row, i64 rows,
                 i64 from, i64 to) {
  const int form = (o->w.short_offsets ? 1 : 0) | (o->w.values ? 0 : 2);
  const i64 pv = o->width;
  float block[16 * 6 * LANES] __attribute__((aligned(64)));
  for (i64 first = from; first < to; first += 16) {
    const i64 stop = first + 16 < to ? first + 16 : to;
    FORMS(ROWS_TILE, form)
    spread(o, block, pv * LANES, first, stop - first, row, rows, y, add);
  }
}

/* The same by code: blocks of channels [from, to). */
enum { MOST_BLOCK = 28, MOST_WIDTH = 8 }; /* code.py, plan.py */
static void code_tile(const Rows *o, const float *x, float *y, const float *add, i64 row,
                      i64 rows, i64 from, i64 to) {
  static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  const Routines r = {o->code, o->code_values, o->parts, o->blocks * o->parts};
  const i64 vectors = (rows + LANES - 1) / LANES, stride = o->width * LANES;
  float block[MOST_BLOCK * MOST_WIDTH * LANES] __attribute__((aligned(64)));
  if (from < to) fetch_routine(&r, from * o->parts, 0, 1);
  for (i64 b = from; b < to; b++) {
    const i64 first = b * o->block, stop = first + o->block < o->outer ? first + o->block : o->outer;
    run_block(&r, b, vectors, x, block, 0, ones, 0);
    if (o->act == GELU)
      for (i64 c = 0; c < stop - first; c++)
        for (i64 v = 0; v < vectors; v++) {
          float *p = block + c * stride + v * LANES;
          store(p, gelu(load(p)));
        }
    spread(o, block, stride, first, stop - first, row, rows, y, add);
  }
}

/* scratch: for each thread inner * width * LANES floats */
void dcil_rows(const Rows *o, const float *x, float *y, const float *add, i64 rows,
               float *scratch, i64 threads) {
  const i64 size = o->width * LANES, tiles = (rows + size - 1) / size;
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)threads)
  {
    const int t = omp_get_thread_num(), all = omp_get_num_threads();
#else
  {
    const int t = 0, all = 1;
    (void)threads;
#endif
    const int shared = tiles % all != 0 && tiles < 4 * all;
    i64 i = 0, end = tiles;
    if (!shared) part(tiles, t, all, &i, &end);
    float *own = shared ? scratch : scratch + t * o->inner * size;
    for (; i < end; i++) {
      const i64 row = i * size, count = row + size < rows ? size : rows - row;
      gather_rows(o, x, row, count, own, shared ? t : 0, shared ? all : 1);
#if defined(_OPENMP)
      if (shared) {
#pragma omp barrier
      }
#endif
      const i64 blocks = o->code ? o->blocks : (o->outer + 15) / 16;
      i64 from = 0, to = blocks;
      if (shared) part(blocks, t, all, &from, &to);
      if (o->code)
        code_tile(o, own, y, add, row, count, from, to);
      else
        tile(o, own, y, add, row, count, from * 16, to * 16 < o->outer ? to * 16 : o->outer);
#if defined(_OPENMP)
      if (shared) {
#pragma omp barrier
      }
#endif
    }
  }
}

/* ---- linear layers of one row: LANES outputs at once, each lane with its own columns */

typedef struct {
  const float *values;
  const uint16_t *short_values;
  const int32_t *columns;
  const uint16_t *short_columns;
  const i64 *starts; /* of each slice of LANES outputs, in steps */
  const int32_t *order; /* the output of each lane; -1: none */
  const float *bias;    /* in that order */
  i64 inner, outer, slices, act, gathers;
} Slices;

enum { NO_GATHER, GATHER, HALVES }; /* HALVES: two gathers of 8 lanes for a vector of 16 */

#if defined(__AVX2__)
INLINE __m256 gather8(const Slices *o, const float *x, i64 at, const int form) {
  __m256i c = (form & 1)
                  ? _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(o->short_columns + at)))
                  : _mm256_loadu_si256((const void *)(o->columns + at));
  return _mm256_i32gather_ps(x, c, 4);
}
#endif

INLINE vec pick(const Slices *o, const float *x, i64 at, const int form, const int gathers) {
  vec result;
#if defined(__AVX512F__)
  if (gathers == GATHER) {
    __m512i c = (form & 1) ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(o->short_columns + at)))
                           : _mm512_loadu_si512(o->columns + at);
    return (vec)_mm512_i32gather_ps(c, x, 4);
  }
  if (gathers == HALVES) {
    const __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(gather8(o, x, at, form)));
    const __m256d high = _mm256_castps_pd(gather8(o, x, at + 8, form));
    return (vec)_mm512_castpd_ps(_mm512_insertf64x4(low, high, 1));
  }
#elif defined(__AVX2__)
  if (gathers != NO_GATHER) return (vec)gather8(o, x, at, form);
#endif
  for (int i = 0; i < LANES; i++)
    result[i] = x[(form & 1) ? (i64)o->short_columns[at + i] : (i64)o->columns[at + i]];
  return result;
}
INLINE vec weights_at(const Slices *o, i64 at, const int form) {
  if (!(form & 2)) return load(o->values + at);
  typedef uint16_t half __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
  typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
  return (vec)(__builtin_convertvector(*(const half *)(o->short_values + at), uvec) << 16);
}

INLINE void slice(const Slices *o, i64 g, const float *x, float *y, const float *add,
                  const int form, const int gathers) {
  vec s[4] = {load(o->bias + g * LANES)};
  i64 j = o->starts[g], end = o->starts[g + 1];
  for (; j + 4 <= end; j += 4) {
    const i64 next = (j + AHEAD) * LANES;
    if (form & 2) ask(o->short_values + next, 4 * LANES * 2);
    else ask(o->values + next, 4 * LANES * 4);
    if (form & 1) ask(o->short_columns + next, 4 * LANES * 2);
    else ask(o->columns + next, 4 * LANES * 4);
    for (int k = 0; k < 4; k++)
      s[k] += weights_at(o, (j + k) * LANES, form) * pick(o, x, (j + k) * LANES, form, gathers);
  }
  for (; j < end; j++)
    s[0] += weights_at(o, j * LANES, form) * pick(o, x, j * LANES, form, gathers);
  vec total = (s[0] + s[1]) + (s[2] + s[3]);
  const int32_t *order = o->order + g * LANES;
  if (add)
    for (int i = 0; i < LANES; i++)
      if (order[i] >= 0) total[i] += add[order[i]];
  total = activate(total, o->act);
  for (int i = 0; i < LANES; i++)
    if (order[i] >= 0) y[order[i]] = total[i];
}

#define SLICE_FORMS(GATHERS) \
  switch (form) { \
    case 0: slice(o, g, x, y, add, 0, GATHERS); break; \
    case 1: slice(o, g, x, y, add, 1, GATHERS); break; \
    case 2: slice(o, g, x, y, add, 2, GATHERS); break; \
    default: slice(o, g, x, y, add, 3, GATHERS); \
  }

/* x: inner + 1 floats, the last one zero, where lanes with fewer weights point */
void dcil_slices(const Slices *o, const float *x, float *y, const float *add, i64 threads) {
  const int form = (o->short_columns ? 1 : 0) | (o->values ? 0 : 2);
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)threads)
  {
    const int t = omp_get_thread_num(), all = omp_get_num_threads();
#else
  {
    const int t = 0, all = 1;
    (void)threads;
#endif
    i64 g, end;
    part(o->slices, t, all, &g, &end);
    for (; g < end; g++) switch (o->gathers) {
        case GATHER: SLICE_FORMS(GATHER) break;
        case HALVES: SLICE_FORMS(HALVES) break;
        default: SLICE_FORMS(NO_GATHER)
      }
  }
}

/* ---- attention: softmax(q * k' * scale + mask) * v, a tile of queries at a time */

typedef struct {
  i64 batch, heads, queries, keys, inner, outer; /* inner: numbers of a key; outer: of a value */
  i64 q_image, q_head, q_row, k_image, k_head, k_row, v_image, v_head, v_row;
  i64 out_image, out_head, out_row;
  i64 mask_image, mask_head, mask_key; /* its queries are neighbours, and TILE more can be read */
} Attention;

enum { VECTORS = 2, TILE = VECTORS * LANES, MANY = LANES == 16 ? 8 : 4 };

/* c[j] += sum over i < count of a[i] * b[i * step + j * row], for n values of j */
INLINE void products(const float *a, i64 count, const float *b, i64 step, i64 row, float *c,
                     const int n) {
  vec s[n * VECTORS];
  for (int i = 0; i < n * VECTORS; i++) s[i] = splat(0.0f);
  for (i64 i = 0; i < count; i++)
    for (int j = 0; j < n; j++) {
      const vec u = splat(b[i * step + j * row]);
      for (int v = 0; v < VECTORS; v++)
        s[j * VECTORS + v] += u * load(a + i * TILE + v * LANES);
    }
  for (int i = 0; i < n * VECTORS; i++) store(c + i * LANES, s[i]);
}

static void all_products(const float *a, i64 count, const float *b, i64 step, i64 row, float *c,
                         i64 n) {
  i64 j = 0;
  for (; j + MANY <= n; j += MANY) products(a, count, b + j * row, step, row, c + j * TILE, MANY);
  for (; j < n; j++) products(a, count, b + j * row, step, row, c + j * TILE, 1);
}

/* Scores become weights that are not yet divided by their sum; the sums. A query whose scores are
   all -inf has weights of 0, as in torch. */
static void soften(float *scores, i64 keys, const float *mask, i64 mask_key, float scale,
                   vec *sums) {
  for (int v = 0; v < VECTORS; v++) {
    float *s = scores + v * LANES;
    vec most = splat(-INFINITY), sum = splat(0.0f);
    for (i64 m = 0; m < keys; m++) {
      vec x = load(s + m * TILE) * scale;
      if (mask) x += load(mask + m * mask_key + v * LANES);
      store(s + m * TILE, x);
      most = choose(x > most, x, most);
    }
    most = choose(most == splat(-INFINITY), splat(0.0f), most);
    for (i64 m = 0; m < keys; m++) {
      const vec x = load(s + m * TILE) - most;
      const ivec far = x < -87.0f; /* 1e-38, the least normal number */
      const vec e = choose(far, splat(0.0f), exponential(choose(far, splat(-87.0f), x)));
      store(s + m * TILE, e);
      sum += e;
    }
    sums[v] = choose(sum == splat(0.0f), splat(1.0f), sum);
  }
}

/* Between rows of `size` numbers and a tile of queries, whose numbers lie TILE floats apart. */
INLINE void gather_tile(const float *x, i64 row, i64 size, i64 count, float *tile) {
  for (int m = 0; m < TILE; m += LANES)
    for (i64 k = 0; k < size; k += LANES) {
      const i64 from = k + LANES < size ? k : size - LANES; /* the last ones overlap */
      vec v[LANES];
      for (int i = 0; i < LANES; i++)
        v[i] = m + i < count ? load(x + (m + i) * row + from) : splat(0.0f);
      transpose(v);
      for (int i = 0; i < LANES; i++) store(tile + (from + i) * TILE + m, v[i]);
    }
}
INLINE void scatter_tile(const float *tile, i64 row, i64 size, i64 count, float *y) {
  for (int m = 0; m < TILE && m < count; m += LANES)
    for (i64 k = 0; k < size; k += LANES) {
      const i64 from = k + LANES < size ? k : size - LANES;
      vec v[LANES];
      for (int i = 0; i < LANES; i++) v[i] = load(tile + (from + i) * TILE + m);
      transpose(v);
      for (int i = 0; i < LANES; i++)
        if (m + i < count) store(y + (m + i) * row + from, v[i]);
    }
}

/* scratch: for each thread (inner + keys + outer) * TILE floats; inner and outer are at least
   LANES; mask may be null */
void dcil_attention(const Attention *o, const float *q, const float *k, const float *v,
                    const float *mask, float *out, float *scratch, double scale, i64 threads) {
  const i64 tiles = (o->queries + TILE - 1) / TILE;
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)threads)
  {
    const int t = omp_get_thread_num(), all = omp_get_num_threads();
#else
  {
    const int t = 0, all = 1;
    (void)threads;
#endif
    float *query = scratch + t * (o->inner + o->keys + o->outer) * TILE;
    float *scores = query + o->inner * TILE, *result = scores + o->keys * TILE;
    i64 i, end;
    part(o->batch * o->heads * tiles, t, all, &i, &end);
    for (; i < end; i++) {
      const i64 b = i / tiles / o->heads, h = i / tiles % o->heads, row = i % tiles * TILE;
      const i64 count = o->queries - row < TILE ? o->queries - row : TILE;
      const float *own = mask ? mask + b * o->mask_image + h * o->mask_head + row : mask;
      vec sums[VECTORS];
      gather_tile(q + b * o->q_image + h * o->q_head + row * o->q_row, o->q_row, o->inner, count,
                  query);
      all_products(query, o->inner, k + b * o->k_image + h * o->k_head, 1, o->k_row, scores,
                   o->keys);
      soften(scores, o->keys, own, o->mask_key, (float)scale, sums);
      all_products(scores, o->keys, v + b * o->v_image + h * o->v_head, o->v_row, 1, result,
                   o->outer);
      for (i64 c = 0; c < o->outer; c++)
        for (int n = 0; n < VECTORS; n++) {
          float *p = result + c * TILE + n * LANES;
          store(p, load(p) / sums[n]);
        }
      scatter_tile(result, o->out_row, o->outer, count,
                   out + b * o->out_image + h * o->out_head + row * o->out_row);
    }
  }
}

i64 dcil_facts(i64 which) {
  switch (which) {
    case 0: return LANES;
    case 1: return sizeof(Op);
    case 2: return sizeof(Rows);
    case 3: return sizeof(Slices);
    case 5: return sizeof(Attention);
#if defined(_OPENMP)
    case 4: return 1;
#endif
    default: return 0;
  }
}
