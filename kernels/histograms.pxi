# Histograms that pool: one level and its count inside the edge, and a sorted list of levels once a second one joins.
# Part of agglomeration.pyx.

cdef struct Bin:
    int64_t count
    uint32_t level

cdef struct Spread:  # followed by the bins that are not empty, in rising order
    int64_t used
    int64_t room

cdef union Statistic:
    int64_t total  # MEAN
    double score  # MAX, MIN
    uint64_t level  # QUANTILE, all counts in one bin: level * 2 + 1
    Spread* spread  # QUANTILE otherwise

cdef struct Edge:
    uint32_t a  # clusters, by the number of the node that stores them; equal once the edge is gone
    uint32_t b
    uint64_t key
    int64_t count
    Statistic statistic
    uint32_t top  # the edge of the input that has the key
    uint32_t next  # the next one in the bucket


cdef void forget(Edge* edge) noexcept nogil:
    if not edge.statistic.level & 1 and edge.statistic.spread != NULL:
        free(edge.statistic.spread)
        edge.statistic.spread = NULL


cdef inline Bin* bins_of(Spread* spread) noexcept nogil:
    return <Bin*>(spread + 1)


cdef int make_room(Edge* edge, int64_t room) except -1 nogil:
    cdef Spread* spread = <Spread*>realloc(edge.statistic.spread, sizeof(Spread) + room * sizeof(Bin))
    if spread == NULL:
        raise MemoryError
    spread.room = room
    edge.statistic.spread = spread
    return 0


cdef int add_spread(Edge* into, const Edge* other) except -1 nogil:
    """Adds the counts of a histogram to another, which is made when two levels meet for the first time."""
    cdef Bin own, theirs
    cdef const Bin* more
    cdef Bin* bins
    cdef Spread* spread
    cdef int64_t i, j, k, extra = 0, used
    into.count += other.count
    if into.statistic.level & 1:
        if into.statistic.level == other.statistic.level:
            return 0
        own = Bin(into.count - other.count, <uint32_t>(into.statistic.level >> 1))
        into.statistic.spread = NULL
        make_room(into, 4)
        into.statistic.spread.used = 1
        bins_of(into.statistic.spread)[0] = own
    if other.statistic.level & 1:
        theirs = Bin(other.count, <uint32_t>(other.statistic.level >> 1))
        more, used = &theirs, 1
    else:
        more, used = bins_of(other.statistic.spread), other.statistic.spread.used
    spread = into.statistic.spread
    bins = bins_of(spread)
    i = j = 0
    while j < used:  # how many of their levels are new
        while i < spread.used and bins[i].level < more[j].level:
            i += 1
        extra += i == spread.used or bins[i].level != more[j].level
        j += 1
    if spread.used + extra > spread.room:
        make_room(into, 2 * (spread.used + extra))
        spread = into.statistic.spread
        bins = bins_of(spread)
    i, j, k = spread.used - 1, used - 1, spread.used + extra - 1
    spread.used += extra
    while j >= 0:  # from the top, so that nothing is overwritten before it has moved
        if i >= 0 and bins[i].level > more[j].level:
            bins[k] = bins[i]
            i -= 1
        else:
            own = more[j]
            if i >= 0 and bins[i].level == own.level:
                own.count += bins[i].count
                i -= 1
            bins[k] = own
            j -= 1
        k -= 1
    return 0
