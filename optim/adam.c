/* The trial point of Adam and its slope, in one pass over memory: of directions.py, as machine code.

   The vectors lie one behind the other in thought; a call does the entries [start, stop) of that line and writes
   <g, d>, <w, d> and |d|^2 over them into `dots`, the last two where there is a decay. For each vector k and entry i

       d = -g / (sqrt(of_squares[k] v + of_gradient[k] g^2) + eps),    trial = w + eta d

   with g + decay w in the place of d's g, or d - decay w in that of d where the decay is decoupled. */

#include <math.h>
#include <stdint.h>

/* Terms that are summed in the entries' own type, before the sum goes on in double. */
#define BLOCK 4096

/* The rest of one vector; what else is summed. */
#define LOOP(REAL, SQRT, SUMS, MORE)                                                                                \
    while (from < end) {                                                                                            \
        const int64_t until = end - from > BLOCK ? from + BLOCK : end;                                              \
        REAL gd = 0, wd = 0, dd = 0;                                                                                \
        _Pragma(SUMS)                                                                                               \
        for (int64_t i = from; i < until; i++) {                                                                    \
            const REAL x = gk[i] + c * wk[i];                                                                       \
            const REAL d = -x / (SQRT(a * vk[i] + b * x * x) + e) - u * wk[i];                                      \
            to[i] = wk[i] + t * d;                                                                                  \
            gd += gk[i] * d;                                                                                        \
            MORE                                                                                                    \
        }                                                                                                           \
        dots[0] += gd, dots[1] += wd, dots[2] += dd;                                                                \
        from = until;                                                                                               \
    }

#define PLACE(NAME, REAL, SQRT)                                                                                     \
    void NAME(int64_t start, int64_t stop, double *dots, int64_t count, const int64_t *sizes, REAL *const *w,       \
              REAL *const *g, REAL *const *v, REAL *const *trial, const double *of_squares,                         \
              const double *of_gradient, double eps, double eta, double decay, double decoupled_decay)              \
    {                                                                                                               \
        const REAL e = (REAL)eps, t = (REAL)eta, c = (REAL)decay, u = (REAL)decoupled_decay;                        \
        int64_t before = 0;                                                                                         \
        for (int64_t k = 0; k < count; before += sizes[k++]) {                                                      \
            const REAL a = (REAL)of_squares[k], b = (REAL)of_gradient[k];                                           \
            const REAL *const wk = w[k], *const gk = g[k], *const vk = v[k];                                        \
            REAL *const to = trial[k];                                                                              \
            int64_t from = start > before ? start - before : 0;                                                     \
            const int64_t end = stop - before < sizes[k] ? stop - before : sizes[k];                                \
            if (decay == 0)                                                                                         \
                LOOP(REAL, SQRT, "omp simd reduction(+ : gd)", )                                                    \
            else                                                                                                    \
                LOOP(REAL, SQRT, "omp simd reduction(+ : gd, wd, dd)", wd += wk[i] * d; dd += d * d;)               \
        }                                                                                                           \
    }

PLACE(place_float, float, sqrtf)
PLACE(place_double, double, sqrt)
