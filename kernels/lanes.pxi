# Sums of a cost and four steps at once, told to be lower than what is there. The fourth step is infinite, and never is.

cdef extern from *:
    """
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline int emcore_lower(const float* cost, const float* step, float here, float* sums) {
        __m128 there = _mm_add_ps(_mm_set1_ps(here), _mm_loadu_ps(step));
        _mm_storeu_ps(sums, there);
        return _mm_movemask_ps(_mm_cmplt_ps(there, _mm_loadu_ps(cost)));
    }
    static inline int emcore_cheaper(const float* cost, const float* dear, const float* step, float here, float* sums) {
        __m128 there = _mm_loadu_ps(cost);
        if (_mm_movemask_ps(_mm_cmplt_ps(_mm_set1_ps(here), there)) == 0) return 0;
        __m128 sum = _mm_add_ps(_mm_set1_ps(here), _mm_mul_ps(_mm_loadu_ps(step), _mm_loadu_ps(dear)));
        _mm_storeu_ps(sums, sum);
        return _mm_movemask_ps(_mm_cmplt_ps(sum, there));
    }
    #else
    static inline int emcore_lower(const float* cost, const float* step, float here, float* sums) {
        int lower = 0;
        for (int lane = 0; lane < 4; lane++) {
            sums[lane] = here + step[lane];
            lower |= (sums[lane] < cost[lane]) << lane;
        }
        return lower;
    }
    static inline int emcore_cheaper(const float* cost, const float* dear, const float* step, float here, float* sums) {
        int lower = 0;
        for (int lane = 0; lane < 4; lane++) {
            sums[lane] = here + step[lane] * dear[lane];
            lower |= (sums[lane] < cost[lane]) << lane;
        }
        return lower;
    }
    #endif
    """
    # which of four costs are above here + step, and the sums
    int lower "emcore_lower"(const float* cost, const float* step, float here, float* sums) noexcept nogil
    # the same where a step costs step * dear
    int cheaper "emcore_cheaper"(const float* cost, const float* dear, const float* step, float here,
                                 float* sums) noexcept nogil
