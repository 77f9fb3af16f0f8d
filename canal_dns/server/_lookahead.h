/* Many look-ups in one large dict: what each will touch is asked of the memory before any is waited for.
 *
 * Rules of this file:
 * - it changes how long look-ups take and nothing else: they are made by PyDict_GetItemWithError, whatever is found here;
 * - the layout of a dict is CPython's own affair (Include/internal/pycore_dict.h, which other code cannot include in 3.12): it is
 *   used with the versions that have the one below, 3.11 to 3.13; with any other nothing is done.
 */
#ifndef CANAL_DNS_LOOKAHEAD_H
#define CANAL_DNS_LOOKAHEAD_H
#include <Python.h>
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED) && !defined(Py_DEBUG)

struct keys {
    Py_ssize_t references;
    uint8_t log2_size, log2_index_bytes, kind;
    uint32_t version;
    Py_ssize_t usable, used;
    char indices[];
};

struct entry { Py_hash_t hash; PyObject *key, *value; };

enum {
    GENERAL = 0, /* kind: keys of any type */
    LARGE = 13   /* log2 of the places from which on a dict does not fit into the nearest caches beside everything else */
};

/* `keys`: bytes objects, or NULL; at most 64. */
static void look_ahead(PyObject *dict, PyObject *const *keys, int count)
{
    const struct keys *const table = (const void *)((const PyDictObject *)dict)->ma_keys;
    const int width = table->log2_index_bytes - table->log2_size; /* log2 of an index's octets */
    const struct entry *entry[64], *entries;
    if (table->log2_size < LARGE || table->kind != GENERAL || width < 1 || width > 2)
        return;
    const size_t mask = ((size_t)1 << table->log2_size) - 1;
    entries = (const void *)(table->indices + ((size_t)1 << table->log2_index_bytes));
    for (int at = 0; at < count; at++)
        if (keys[at] != NULL)
            __builtin_prefetch(table->indices + (((size_t)PyObject_Hash(keys[at]) & mask) << width));
    for (int at = 0; at < count; at++) {
        entry[at] = NULL;
        if (keys[at] == NULL)
            continue;
        const char *place = table->indices + (((size_t)PyObject_Hash(keys[at]) & mask) << width);
        int index = width == 1 ? *(const int16_t *)(const void *)place : *(const int32_t *)(const void *)place;
        if (index >= 0 && index < table->used) {
            entry[at] = entries + index;
            __builtin_prefetch(entry[at]);
        }
    }
    for (int at = 0; at < count; at++)
        if (entry[at] != NULL && entry[at]->hash == PyObject_Hash(keys[at])) {
            __builtin_prefetch(entry[at]->key);
            __builtin_prefetch((const char *)entry[at]->key + 64);
        }
}
#else
static void look_ahead(PyObject *dict, PyObject *const *keys, int count)
{
    (void)dict, (void)keys, (void)count;
}
#endif
#endif
