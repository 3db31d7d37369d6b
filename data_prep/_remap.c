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

/* Places in 1/32 px: this share of the way from a known row to the next, `next` floats further. */
AVX2 static inline __m256i between(const float *places, Py_ssize_t next, __m256 share)
{
    const __m256 above = _mm256_loadu_ps(places), below = _mm256_loadu_ps(places + next);
    const __m256 place = _mm256_add_ps(above, _mm256_mul_ps(_mm256_sub_ps(below, above), share));
    return _mm256_cvtps_epi32(_mm256_mul_ps(place, _mm256_set1_ps(32)));
}

/* The pictures, RGB in 8 bit without gaps, and the map: places x and y of each moved pixel on the
 * `known` rows, of which above[row] is the last that is not below a row, which lies share[row] on
 * the way to the next. */
struct task {
    const uint8_t *pixels;
    Py_ssize_t pixels_height, pixels_width;
    const float *x, *y;
    Py_ssize_t known;
    const int32_t *above;
    const float *share;
    uint8_t *moved;
    Py_ssize_t height, width;
};

/* AT_A_TIME pixels of a row, whose places lie at x and y on the known row above, and `next` floats
 * further on the one below. */
AVX2 static inline void move_some(const uint8_t *pixels, int32_t stride, const float *x,
                                  const float *y, Py_ssize_t next, __m256 share, uint8_t *moved)
{
    const __m256i last_five = _mm256_set1_epi32(31), one = _mm256_set1_epi32(32);
    const __m256i closer = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));

    const __m256i place_x = between(x, next, share), place_y = between(y, next, share);
    const __m256i left = _mm256_srai_epi32(place_x, 5), top = _mm256_srai_epi32(place_y, 5);
    const __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(top, _mm256_set1_epi32(stride)),
                                        _mm256_add_epi32(left, _mm256_add_epi32(left, left)));
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
    const __m256i first_two = rounded(blended[0], blended[1]), last_two = rounded(blended[2], blended[3]);
    const __m256i rgb = _mm256_shuffle_epi8(_mm256_packus_epi16(first_two, last_two), closer);
    const __m128i second_half = _mm256_extracti128_si256(rgb, 1);
    const int32_t end = _mm_extract_epi32(second_half, 2);
    _mm_storeu_si128((__m128i *)moved, _mm256_castsi256_si128(rgb));
    _mm_storel_epi64((__m128i *)(moved + 12), second_half);
    memcpy(moved + 20, &end, 4);
}

/* Where a row as far below this one as the next known row is below the last has a place. */
static inline Py_ssize_t further_on(const float *place, Py_ssize_t next, float share)
{
    return (Py_ssize_t)(place[next] + (place[next] - place[0]) * share);
}

AVX2 static void move_row(const uint8_t *pixels, int32_t stride, const float *x, const float *y,
                          Py_ssize_t width, float share, uint8_t *moved)
{
    const __m256 shares = _mm256_set1_ps(share);
    Py_ssize_t at = 0;
    for (; at <= width - AT_A_TIME; at += AT_A_TIME) {
        if (at % (2 * AT_A_TIME) == 0) {
            /* A map that bends runs through many of the picture's rows, too shortly in each for
             * the processor to foresee what it will need: it is told, 48 bytes at a time. */
            const Py_ssize_t later = further_on(y + at, width, share) * stride +
                                     further_on(x + at, width, share) * 3;
            _mm_prefetch((const char *)pixels + later, _MM_HINT_T0);
        }
        move_some(pixels, stride, x + at, y + at, width, shares, moved + 3 * at);
    }
    if (at < width) { /* the last ones, some of them a second time */
        at = width - AT_A_TIME;
        move_some(pixels, stride, x + at, y + at, width, shares, moved + 3 * at);
    }
}

static void move_all(const struct task *task)
{
    for (Py_ssize_t row = 0; row < task->height; row++) {
        const Py_ssize_t known = task->above[row] * task->width;
        move_row(task->pixels, 3 * (int32_t)task->pixels_width, task->x + known, task->y + known,
                 task->width, task->share[row], task->moved + 3 * row * task->width);
    }
}

/* Whether all of n numbers are from 0 to `most`; NaN is not. */
AVX2 static int lie_within(const float *numbers, Py_ssize_t n, float most)
{
    int within = 1;
    for (Py_ssize_t i = 0; i < n; i++)
        within &= (numbers[i] >= 0) & (numbers[i] <= most);
    return within;
}

/* Whether nothing is read or written outside the arrays. Between known rows within, so is a row. */
AVX2 static int is_inside(const struct task *task)
{
    const Py_ssize_t n = task->known * task->width;
    int is_known = lie_within(task->share, task->height, 1);
    for (Py_ssize_t row = 0; row < task->height; row++)
        is_known &= (task->above[row] >= 0) & (task->above[row] < task->known - 1);
    /* eight bytes are read at a place and at the one below it; OpenCV counts in 16 bit, and so that
     * offsets fit into 32, larger pictures are refused here too */
    return is_known && task->width >= AT_A_TIME && task->width < INT16_MAX &&
           task->height < INT16_MAX && task->pixels_width >= 3 && task->pixels_width < INT16_MAX &&
           task->pixels_height < INT16_MAX &&
           lie_within(task->x, n, (float)(task->pixels_width - 3)) &&
           lie_within(task->y, n, (float)(task->pixels_height - 2));
}

static PyObject *bilinear(PyObject *self, PyObject *args)
{
    struct task task;
    Py_buffer pixels, x, y, above, share, moved;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*(nn)y*y*ny*y*w*(nn)", &pixels, &task.pixels_height,
                          &task.pixels_width, &x, &y, &task.known, &above, &share, &moved,
                          &task.height, &task.width))
        return NULL;
    task.pixels = pixels.buf;
    task.x = x.buf;
    task.y = y.buf;
    task.above = above.buf;
    task.share = share.buf;
    task.moved = moved.buf;
    if (pixels.len != 3 * task.pixels_height * task.pixels_width ||
        x.len != 4 * task.known * task.width || y.len != x.len || above.len != 4 * task.height ||
        share.len != above.len || moved.len != 3 * task.height * task.width) {
        PyErr_SetString(PyExc_ValueError, "an array is not of the size that was said");
    } else {
        int inside;
        Py_BEGIN_ALLOW_THREADS;
        inside = is_inside(&task);
        if (inside)
            move_all(&task);
        Py_END_ALLOW_THREADS;
        result = PyBool_FromLong(inside);
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&x);
    PyBuffer_Release(&y);
    PyBuffer_Release(&above);
    PyBuffer_Release(&share);
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
    if (created && PyModule_AddIntConstant(created, "VERSION", 1)) /* remap.py must agree */
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
