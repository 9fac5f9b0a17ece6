# The priority queue of C++, of which libcpp's own declaration does not report a lack of memory. For the same reason no
# vector is assigned here: they are resized.

cdef extern from "<queue>" namespace "std" nogil:
    cdef cppclass priority_queue[T]:
        bint empty()
        void pop()
        void push(const T&) except +
        size_t size()
        T& top()
