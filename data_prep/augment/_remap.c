/* Bilinear interpolation of RGB pixels, bit for bit cv2.remap's, in half its time: for x86-64 with
 * AVX2. On another processor importing this raises ImportError, and remap.py asks OpenCV instead.
 *
 * OpenCV rounds places to 1/32 px (to the nearest, ties to even), weighs the four pixels about a
 * place by the products of its shares, which add up to 1024, and rounds the sum half up. All of it
 * is in whole numbers, so whatever compiler made this gives the same bits.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))

enum { AT_A_TIME = 8 }; /* pixels */

/* The four pixels about a place, two in each half: RGBRGB, and two bytes more. */
AVX2 static inline __m128i four(const uint8_t *pixels, int32_t stride, uint32_t at)
{
    const __m128i above = _mm_loadl_epi64((const __m128i *)(pixels + at));
    const __m64 *below = (const __m64 *)(pixels + stride + at);
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(above), below));
}

/* Of the n-th 32 bits of each half the first 16, or all, again and again. */
AVX2 static inline __m256i repeat_16(__m256i of, int n)
{
    return _mm256_shuffle_epi8(of, _mm256_set1_epi16((short)(0x0100 + 0x0404 * n)));
}
AVX2 static inline __m256i repeat_32(__m256i of, int n)
{
    return _mm256_shuffle_epi8(of, _mm256_set1_epi32(0x03020100 + 0x04040404 * n));
}

/* The n-th pixel of each half, 1024 times as bright: RGB and a nothing in 32 bit each. across: 32
 * less their shares and the shares in 8 bit each; down: the same in 16 bit. */
AVX2 static inline __m256i blend(__m128i first, __m128i second, __m256i across, __m256i down, int n)
{
    const __m256i by_channel = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 3, 8, 11, 1, 4, 9, 12, 2, 5, 10, 13, -1, -1, -1, -1));
    const __m256i both = _mm256_shuffle_epi8(_mm256_set_m128i(second, first), by_channel);
    return _mm256_madd_epi16(_mm256_maddubs_epi16(both, repeat_16(across, n)), repeat_32(down, n));
}

/* Of 1024 times as bright: four pixels, their sums divided by 1024 and rounded half up. */
AVX2 static inline __m256i rounded(__m256i one, __m256i other)
{
    /* that is: divided by 512 and cut, then plus 1, halved and cut */
    const __m256i twice =
        _mm256_packus_epi32(_mm256_srli_epi32(one, 9), _mm256_srli_epi32(other, 9));
    return _mm256_avg_epu16(twice, _mm256_setzero_si256());
}

/* This share of the way from one to the other, rounded as remap.py does it. */
AVX2 static inline __m256 between(__m256 one, __m256 other, __m256 share)
{
    return _mm256_add_ps(one, _mm256_mul_ps(_mm256_sub_ps(other, one), share));
}

/* The pictures, RGB in 8 bit without gaps, and the map: places (x, y) at nodes, which lie at the
 * centres of cells of `step` px; those of the first row and column are before the picture. The
 * place (0, 0) is `border` pixels from the left and from the top of `pixels`. */
struct task {
    const uint8_t *pixels;
    Py_ssize_t pixels_height, pixels_width, border;
    const float *nodes;
    Py_ssize_t down, across, step;
    uint8_t *moved;
    Py_ssize_t height, width;
};

/* Places of the pixels of a row that goes through nodes. */
struct row {
    float *x, *y;
};

/* Pixels from a node's row or column to the first picture's pixel: those of half a cell. */
static inline Py_ssize_t before(const struct task *task) { return (task->step + 1) / 2; }

/* How far the pixels from one node to the next, `step` of them and some more, are on the way. */
static void find_shares(const struct task *task, float *shares, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        shares[i] = (float)(2 * i + 1 - task->step % 2) / (float)(2 * task->step);
}

/* The places of all pixels from the first node of a row of them to the last. */
AVX2 static void fill_row(const struct task *task, Py_ssize_t down, const float *shares,
                          struct row row)
{
    const float *node = task->nodes + 2 * down * task->across;
    for (Py_ssize_t at = 0; at < (task->across - 1) * task->step; at += task->step, node += 2) {
        const __m256 x = _mm256_set1_ps(node[0]), next_x = _mm256_set1_ps(node[2]);
        const __m256 y = _mm256_set1_ps(node[1]), next_y = _mm256_set1_ps(node[3]);
        for (Py_ssize_t i = 0; i < task->step; i += AT_A_TIME) { /* more are written anew */
            const __m256 share = _mm256_loadu_ps(shares + i);
            _mm256_storeu_ps(row.x + at + i, between(x, next_x, share));
            _mm256_storeu_ps(row.y + at + i, between(y, next_y, share));
        }
    }
}

/* In 1/32 px. */
AVX2 static inline __m256i places(const float *above, const float *below, __m256 share)
{
    const __m256 place = between(_mm256_loadu_ps(above), _mm256_loadu_ps(below), share);
    return _mm256_cvtps_epi32(_mm256_mul_ps(place, _mm256_set1_ps(32)));
}

/* AT_A_TIME pixels from this one on of a row that lies between two rows of nodes. The place (0, 0)
 * is `origin` bytes from the first pixel. */
AVX2 static inline void move_some(const uint8_t *pixels, int32_t stride, int32_t origin,
                                  struct row above, struct row below, Py_ssize_t from,
                                  __m256 share, uint8_t *moved)
{
    const __m256i last_five = _mm256_set1_epi32(31), one = _mm256_set1_epi32(32);
    const __m256i closer = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));

    const __m256i place_x = places(above.x + from, below.x + from, share);
    const __m256i place_y = places(above.y + from, below.y + from, share);
    const __m256i left = _mm256_srai_epi32(place_x, 5), top = _mm256_srai_epi32(place_y, 5);
    const __m256i from_origin = _mm256_add_epi32(
        _mm256_mullo_epi32(top, _mm256_set1_epi32(stride)),
        _mm256_add_epi32(left, _mm256_add_epi32(left, left)));
    const __m256i at = _mm256_add_epi32(from_origin, _mm256_set1_epi32(origin));
    const __m256i to_left = _mm256_and_si256(place_x, last_five);
    const __m256i to_top = _mm256_and_si256(place_y, last_five);
    const __m256i across =
        _mm256_or_si256(_mm256_sub_epi32(one, to_left), _mm256_slli_epi32(to_left, 8));
    const __m256i down =
        _mm256_or_si256(_mm256_sub_epi32(one, to_top), _mm256_slli_epi32(to_top, 16));

    /* two offsets of 32 bit in each */
    const __m128i at_first = _mm256_castsi256_si128(at), at_last = _mm256_extracti128_si256(at, 1);
    const uint64_t offsets[] = {_mm_cvtsi128_si64(at_first), _mm_extract_epi64(at_first, 1),
                                _mm_cvtsi128_si64(at_last), _mm_extract_epi64(at_last, 1)};
    __m256i blended[AT_A_TIME / 2];
    for (int n = 0; n < AT_A_TIME / 2; n++) {
        const uint32_t first = (uint32_t)(offsets[n / 2] >> 32 * (n % 2));
        const uint32_t last = (uint32_t)(offsets[2 + n / 2] >> 32 * (n % 2));
        blended[n] =
            blend(four(pixels, stride, first), four(pixels, stride, last), across, down, n);
    }
    const __m256i first_two = rounded(blended[0], blended[1]);
    const __m256i last_two = rounded(blended[2], blended[3]);
    const __m256i rgb = _mm256_shuffle_epi8(_mm256_packus_epi16(first_two, last_two), closer);
    const __m128i second_half = _mm256_extracti128_si256(rgb, 1);
    const int32_t end = _mm_extract_epi32(second_half, 2);
    _mm_storeu_si128((__m128i *)moved, _mm256_castsi256_si128(rgb));
    _mm_storel_epi64((__m128i *)(moved + 12), second_half);
    memcpy(moved + 20, &end, 4);
}

/* Where a row as far below this one as one row of nodes is below the other has a place. */
static inline Py_ssize_t further_on(float above, float below, float share)
{
    return (Py_ssize_t)(below + (below - above) * share);
}

AVX2 static void move_row(const struct task *task, struct row above, struct row below, float share,
                          uint8_t *moved)
{
    const uint8_t *const pixels = task->pixels;
    const Py_ssize_t stride = 3 * task->pixels_width, origin = task->border * (stride + 3);
    const Py_ssize_t first = before(task), last = first + task->width - AT_A_TIME;
    const __m256 shares = _mm256_set1_ps(share);
    Py_ssize_t at = first;
    for (; at <= last; at += AT_A_TIME) {
        if ((at - first) % (2 * AT_A_TIME) == 0) {
            /* A map that bends runs through many of the picture's rows, too shortly in each for
             * the processor to foresee what it will need: it is told, 48 bytes at a time. */
            const Py_ssize_t later = further_on(above.y[at], below.y[at], share) * stride +
                                     further_on(above.x[at], below.x[at], share) * 3;
            _mm_prefetch((const char *)pixels + origin + later, _MM_HINT_T0);
        }
        move_some(pixels, (int32_t)stride, (int32_t)origin, above, below, at, shares,
                  moved + 3 * (at - first));
    }
    if (at < last + AT_A_TIME) /* the last ones, some of them a second time */
        move_some(pixels, (int32_t)stride, (int32_t)origin, above, below, last, shares,
                  moved + 3 * (last - first));
}

/* Floats of a row: the places from the first node to the last, and some that are written anew. */
static inline Py_ssize_t row_length(const struct task *task)
{
    return (task->across - 1) * task->step + AT_A_TIME;
}

/* `space` is that of five rows. */
static void move_all(const struct task *task, float *space)
{
    const Py_ssize_t length = row_length(task);
    float *shares = space + 4 * length;
    struct row above = {space, space + length};
    struct row below = {space + 2 * length, space + 3 * length};
    find_shares(task, shares, length);
    Py_ssize_t filled = -1; /* the row of nodes that is below */
    for (Py_ssize_t row = 0; row < task->height; row++) {
        const Py_ssize_t from_first = row + before(task);
        for (; filled <= from_first / task->step; filled++) {
            const struct row last = above;
            above = below;
            below = last;
            fill_row(task, filled + 1, shares, below);
        }
        move_row(task, above, below, shares[from_first % task->step],
                 task->moved + 3 * row * task->width);
    }
}

/* Whether the places of all nodes are from `least` to these, along both axes; NaN is not. */
AVX2 static int lie_within(const struct task *task, float least, float most_x, float most_y)
{
    int within = 1;
    for (Py_ssize_t i = 0; i < 2 * task->down * task->across; i += 2)
        within &= (task->nodes[i] >= least) & (task->nodes[i] <= most_x) &
                  (task->nodes[i + 1] >= least) & (task->nodes[i + 1] <= most_y);
    return within;
}

/* Whether nothing is read outside the picture. Where nodes lie within, so does all between them, to
 * far less than the 1/32 px that places are rounded to. */
static int is_inside(const struct task *task)
{
    /* eight bytes are read at a place and at the one below it; OpenCV counts in 16 bit, and so that
     * offsets fit into 32, larger pictures are refused here too */
    return task->width >= AT_A_TIME && task->width < INT16_MAX && task->height < INT16_MAX &&
           task->step < INT16_MAX && task->pixels_width >= 3 && task->pixels_width < INT16_MAX &&
           task->pixels_height < INT16_MAX && task->border >= 0 && task->border < INT16_MAX &&
           lie_within(task, (float)-task->border, (float)(task->pixels_width - 3 - task->border),
                      (float)(task->pixels_height - 2 - task->border));
}

/* Nodes that a side has: one before the picture, one in each cell, of which the last may be cut, and
 * one behind it. */
static inline Py_ssize_t num_nodes(Py_ssize_t length, Py_ssize_t step)
{
    return (length - 1) / step + 3;
}

/* Whether the arrays are of the sizes that were said, and these of what a map has. */
static int sizes_agree(const struct task *task, const Py_buffer *pixels, const Py_buffer *nodes,
                       const Py_buffer *moved)
{
    return task->step > 0 && task->height > 0 && task->width > 0 &&
           task->down == num_nodes(task->height, task->step) &&
           task->across == num_nodes(task->width, task->step) &&
           pixels->len == 3 * task->pixels_height * task->pixels_width &&
           nodes->len == 8 * task->down * task->across &&
           moved->len == 3 * task->height * task->width;
}

static PyObject *bilinear(PyObject *self, PyObject *args)
{
    struct task task;
    Py_buffer pixels, nodes, moved;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*(nn)ny*(nn)nw*(nn)", &pixels, &task.pixels_height,
                          &task.pixels_width, &task.border, &nodes, &task.down, &task.across,
                          &task.step, &moved, &task.height, &task.width))
        return NULL;
    task.pixels = pixels.buf;
    task.nodes = nodes.buf;
    task.moved = moved.buf;
    if (!sizes_agree(&task, &pixels, &nodes, &moved)) {
        PyErr_SetString(PyExc_ValueError, "an array is not of the size that was said");
    } else if (!is_inside(&task)) {
        result = PyBool_FromLong(0);
    } else {
        float *space = malloc(5 * sizeof(float) * (size_t)row_length(&task));
        if (space) {
            Py_BEGIN_ALLOW_THREADS;
            move_all(&task, space);
            Py_END_ALLOW_THREADS;
            result = PyBool_FromLong(1);
        } else {
            PyErr_NoMemory();
        }
        free(space);
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&nodes);
    PyBuffer_Release(&moved);
    return result;
}

static PyMethodDef methods[] = {
    {"bilinear", bilinear, METH_VARARGS,
     "Move an RGB picture along a map; False, and nothing done, where that needs its border."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_remap", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__remap(void)
{
    if (!__builtin_cpu_supports("avx2")) {
        PyErr_SetString(PyExc_ImportError, "made for processors with AVX2");
        return NULL;
    }
    PyObject *created = PyModule_Create(&module);
    if (created && PyModule_AddIntConstant(created, "VERSION", 2)) /* remap.py must agree */
        Py_CLEAR(created);
    return created;
}

#else

PyMODINIT_FUNC PyInit__remap(void)
{
    PyErr_SetString(PyExc_ImportError, "made for x86-64 processors with AVX2");
    return NULL;
}

#endif
