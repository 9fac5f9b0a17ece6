"""Values of affinities: whether all lie in 0..1, and the 8-bit code on the logit scale."""

from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

ctypedef fused affinity:
    float
    int16_t  # the bits of a float16: ordered like the numbers themselves from 0 up


def outside(const affinity[:, :, :] values):
    """Whether any value is below 0, above 1 or not a number."""
    cdef Py_ssize_t z, y, x, nx = values.shape[2]
    cdef bint contiguous = values.strides[2] == sizeof(affinity)
    cdef const affinity *row
    cdef affinity value
    cdef int bad = 0
    if values.shape[0] == 0 or values.shape[1] == 0 or nx == 0:
        return False
    with nogil:
        for z in range(values.shape[0]):
            for y in range(values.shape[1]):
                if contiguous:
                    row = &values[z, y, 0]
                    for x in range(nx):
                        value = row[x]
                        if affinity is float:
                            bad |= (not (value >= 0)) | (not (value <= 1))
                        else:
                            bad |= ((value < 0) | (value > 0x3C00)) & (value != -0x8000)  # the last is -0.0
                else:
                    for x in range(nx):
                        value = values[z, y, x]
                        if affinity is float:
                            bad |= (not (value >= 0)) | (not (value <= 1))
                        else:
                            bad |= ((value < 0) | (value > 0x3C00)) & (value != -0x8000)
                if bad:
                    break
            if bad:
                break
    return bool(bad)


def encode(const float[::1] values, const float[:, ::1] boundaries, const uint8_t[:, ::1] start, uint8_t[::1] codes):
    """Writes 255 - code(1 - a) for a above 1/2 and code(a) up to it: how many boundaries of its half lie below.

    start[half, bits >> 16] is the code of the smallest number with those leading bits; at most one boundary lies
    within each such bucket. Returns whether any value was outside 0..1, whose code then means nothing.
    """
    cdef Py_ssize_t i
    cdef float a, distance
    cdef uint32_t bits
    cdef int code, upper, bad = 0
    with nogil:
        for i in range(values.shape[0]):
            a = values[i]
            if not (a >= 0 and a <= 1):
                bad = 1
                continue
            upper = a > 0.5
            distance = 1 - a if upper else a + 0  # 1 - a is exact above 1/2; + 0 turns -0.0 into 0
            memcpy(&bits, &distance, 4)
            code = start[upper, bits >> 16]
            code += distance > boundaries[upper, code]
            codes[i] = <uint8_t>(255 - code if upper else code)
    return bool(bad)
