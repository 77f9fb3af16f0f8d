/* Counts the basic blocks of whatever was built with -fsanitize-coverage=trace-pc, which this file must not be. */
unsigned long blocks;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) { blocks++; }
