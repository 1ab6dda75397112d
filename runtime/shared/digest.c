/* Which of many pages are not what they were: a digest for each, under a key.
 *
 * NH, the universal hash of UMAC (RFC 4418): sums of products of message words and key words, mod 2^64. Whatever the two
 * pages are, as long as they were chosen without knowing the key, one sum of theirs is equal with a probability of at most
 * 2^-32; three sums under a key that is shifted each time, at most 2^-96. It takes a few instructions for 16 bytes, so
 * that memory is what decides how fast it is: several times what a cryptographic hash reaches, whose strength against
 * who knows everything isn't needed here.
 *
 * A digest of zeros stands for no page at all.
 */
#pragma GCC optimize("O3")

typedef unsigned long u64;
typedef unsigned int u32;

enum { PAGE = 4096, WORDS = PAGE / 4, SUMS = 3, SHIFT = 4 };

#if defined(__SSE2__)
#include <emmintrin.h>

static void digest(const u32 *page, const u32 *key, u64 *sums)
{
	__m128i sum[SUMS];
	int i, n;

	for (n = 0; n < SUMS; n++) sum[n] = _mm_setzero_si128();
	for (i = 0; i < WORDS; i += 4) {
		__m128i data = _mm_loadu_si128((const __m128i *)(page + i));
		for (n = 0; n < SUMS; n++) {
			__m128i both = _mm_add_epi32(data, _mm_loadu_si128((const __m128i *)(key + i + n * SHIFT)));
			sum[n] = _mm_add_epi64(sum[n], _mm_mul_epu32(both, _mm_srli_epi64(both, 32)));
		}
	}
	for (n = 0; n < SUMS; n++) {
		u64 halves[2];
		_mm_storeu_si128((__m128i *)halves, sum[n]);
		sums[n] = halves[0] + halves[1];
	}
}
#else
static void digest(const u32 *page, const u32 *key, u64 *sums)
{
	int i, n;

	for (n = 0; n < SUMS; n++) sums[n] = 0;
	for (i = 0; i < WORDS; i += 2)
		for (n = 0; n < SUMS; n++)
			sums[n] += (u64)(u32)(page[i] + key[i + n * SHIFT]) * (u32)(page[i + 1] + key[i + 1 + n * SHIFT]);
}
#endif

/* COUNT pages at DATA, whose digests are in KNOWN (three words each). KEY: 1032 words. CHANGED: a byte for each page, 1
 * where the digest is another one. KEEP: it is put into KNOWN. Returns how many have changed. */
__attribute__((visibility("default"))) u64 compare(
	const char *data, u64 count, const u32 *key, u64 (*known)[SUMS], unsigned char *changed, int keep)
{
	u64 n, total = 0;

	for (n = 0; n < count; n++) {
		u64 sums[SUMS];
		int i, other = 0;

		digest((const u32 *)(data + n * PAGE), key, sums);
		for (i = 0; i < SUMS; i++) {
			other |= sums[i] != known[n][i];
			if (keep) known[n][i] = sums[i];
		}
		changed[n] = (unsigned char)other;
		total += (u64)other;
	}
	return total;
}
