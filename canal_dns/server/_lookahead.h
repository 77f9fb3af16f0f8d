/* Many look-ups in one large dict: what each will touch is asked of the memory before any is waited for.
 *
 * Rules of this file:
 * - it changes how long look-ups take and nothing else: they are made by PyDict_GetItemWithError, whatever is found here;
 * - the layout of a dict is CPython's own affair, so it is taken from the headers of the version that this is compiled for, and
 *   only of those versions that it was tried with; with any other nothing is done.
 */
#ifndef CANAL_DNS_LOOKAHEAD_H
#define CANAL_DNS_LOOKAHEAD_H
#include <Python.h>
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED) && !defined(Py_DEBUG)
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#include "internal/pycore_dict.h"
#pragma GCC diagnostic pop

enum { LARGE = 13 }; /* log2 of the places from which on a dict does not fit beside everything else into the nearest caches */

/* `keys`: bytes objects, or NULL; at most 64. */
static void look_ahead(PyObject *dict, PyObject *const *keys, int count)
{
    const PyDictKeysObject *const table = ((const PyDictObject *)dict)->ma_keys;
    const int width = table->dk_log2_index_bytes - table->dk_log2_size; /* log2 of an index's octets */
    const PyDictKeyEntry *entry[64], *entries;
    if (table->dk_log2_size < LARGE || table->dk_kind != DICT_KEYS_GENERAL || width < 1 || width > 2)
        return;
    const size_t mask = ((size_t)1 << table->dk_log2_size) - 1;
    entries = (const PyDictKeyEntry *)(const void *)(table->dk_indices + ((size_t)1 << table->dk_log2_index_bytes));
    for (int at = 0; at < count; at++)
        if (keys[at] != NULL)
            __builtin_prefetch(table->dk_indices + (((size_t)PyObject_Hash(keys[at]) & mask) << width));
    for (int at = 0; at < count; at++) {
        entry[at] = NULL;
        if (keys[at] == NULL)
            continue;
        const char *place = table->dk_indices + (((size_t)PyObject_Hash(keys[at]) & mask) << width);
        int index = width == 1 ? *(const int16_t *)(const void *)place : *(const int32_t *)(const void *)place;
        if (index >= 0) {
            entry[at] = entries + index;
            __builtin_prefetch(entry[at]);
        }
    }
    for (int at = 0; at < count; at++)
        if (entry[at] != NULL && entry[at]->me_hash == PyObject_Hash(keys[at])) {
            __builtin_prefetch(entry[at]->me_key);
            __builtin_prefetch((const char *)entry[at]->me_key + 64);
        }
}
#else
static void look_ahead(PyObject *dict, PyObject *const *keys, int count)
{
    (void)dict, (void)keys, (void)count;
}
#endif
#endif
