// Go's runtime takes its random numbers from ProcessPrng of bcryptprimitives.dll,
// which wine 8 does not have yet. SystemFunction036 is RtlGenRandom, its ancestor
// with the same arguments.
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length)
{
	while (length > 0) {
		ULONG n = length < 1 << 20 ? (ULONG)length : 1 << 20;
		if (!SystemFunction036(data, n))
			return FALSE;
		data += n;
		length -= n;
	}
	return TRUE;
}
