# Histograms that pool: one level and its count inside the edge, and a sorted list of levels once a second one joins.
# Part of agglomeration.pyx.

cdef struct Bin:
    uint32_t level
    uint32_t count

cdef struct Spread:  # the bins that are not empty, in rising order
    uint32_t used
    uint32_t room
    Bin* bins

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
        free(edge.statistic.spread.bins)
        free(edge.statistic.spread)
        edge.statistic.spread = NULL


cdef int add_spread(Edge* into, const Edge* other) except -1 nogil:
    """Adds the counts of a histogram to another, which is made when two levels meet for the first time."""
    cdef Bin own, theirs
    cdef const Bin* more
    cdef Spread* spread
    cdef int64_t i, j, k, extra = 0, used
    into.count += other.count
    if into.statistic.level & 1:
        if into.statistic.level == other.statistic.level:
            return 0
        own = Bin(<uint32_t>(into.statistic.level >> 1), <uint32_t>(into.count - other.count))
        spread = <Spread*>malloc(sizeof(Spread))
        if spread == NULL:
            raise MemoryError
        spread.bins = <Bin*>malloc(4 * sizeof(Bin))
        spread.used, spread.room = 1, 4
        into.statistic.spread = spread
        if spread.bins == NULL:
            raise MemoryError
        spread.bins[0] = own
    spread = into.statistic.spread
    if other.statistic.level & 1:
        theirs = Bin(<uint32_t>(other.statistic.level >> 1), <uint32_t>other.count)
        more, used = &theirs, 1
    else:
        more, used = other.statistic.spread.bins, other.statistic.spread.used
    i = j = 0
    while j < used:  # how many of their levels are new
        while i < spread.used and spread.bins[i].level < more[j].level:
            i += 1
        extra += i == spread.used or spread.bins[i].level != more[j].level
        j += 1
    if spread.used + extra > spread.room:
        spread.room = <uint32_t>(2 * (spread.used + extra))
        spread.bins = <Bin*>realloc(spread.bins, spread.room * sizeof(Bin))
        if spread.bins == NULL:
            raise MemoryError
    i, j, k = spread.used - 1, used - 1, spread.used + extra - 1
    spread.used += <uint32_t>extra
    while j >= 0:  # from the top, so that nothing is overwritten before it has moved
        if i >= 0 and spread.bins[i].level > more[j].level:
            spread.bins[k] = spread.bins[i]
            i -= 1
        else:
            theirs = more[j]
            if i >= 0 and spread.bins[i].level == theirs.level:
                theirs.count += spread.bins[i].count
                i -= 1
            spread.bins[k] = theirs
            j -= 1
        k -= 1
    return 0
