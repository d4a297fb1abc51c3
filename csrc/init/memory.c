/* What the compiler asks for without a libc. */
#include "init.h"

void *memset(void *to, int byte, size_t size)
{
    char *p = to;
#if defined(__x86_64__)
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(size) : "a"(byte) : "memory");
#endif
    while (size--)
        *p++ = (char)byte;
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    char *p = to;
    const char *q = from;
#if defined(__x86_64__)
    __asm__ volatile("rep movsb" : "+D"(p), "+S"(q), "+c"(size) : : "memory");
#endif
    while (size--)
        *p++ = *q++;
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    char *p = to;
    const char *q = from;
    if (p <= q)
        return memcpy(to, from, size);
    while (size--)
        p[size] = q[size];
    return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const unsigned char *p = a, *q = b;
    for (; size--; p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}
