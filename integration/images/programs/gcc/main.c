#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int order(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

int main(int argc, char **argv)
{
	qsort(argv + 1, argc - 1, sizeof *argv, order);
	printf("ready: %s comes first, %.3f\n", argv[1], sqrt(argc));
	return 0;
}
