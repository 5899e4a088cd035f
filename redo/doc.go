// Package redo is the format of change: records, the batches that carry them,
// and what a record does to a 16 KiB page. Bytes in, bytes out; no I/O.
//
// # Record
//
// A record is one change to one page, or a mark. Integers are little-endian.
//
//	 0       4     6     8    9    10    12      16
//	+-------+-----+-----+----+----+-----+-------+---------------+
//	| page  | off | len |kind|flag| lsn | link  | payload       |
//	+-------+-----+-----+----+----+-----+-------+---------------+
//
//	page   index of the page inside its protection group; a mark has 2^32-1
//	off    first byte of the page that changes
//	len    bytes that change, 1 to 16384; off+len <= 16384; zero for a mark
//	kind   1 write  payload: the len bytes that stand there afterwards
//	       2 fill   payload: one byte, which then fills the range
//	       3 move   payload: u16 source offset; the range gets the len bytes
//	                that stood there before (overlap is allowed)
//	       4 mark   payload: u64 wall clock in Unix nanoseconds, u64 VDL
//	flag   bit 0: the record is a CPL, the last of its mini-transaction
//	lsn    its LSN less that of the record before it in the batch (0 in the
//	       first, whose LSN is the batch's)
//	link   its LSN less that of the page's record before it; 0: there is none;
//	       2^32-1: that many or more. A mark has 0
//
// The length of the payload follows from kind and len, so it is not stored.
//
// # Batch
//
// A batch is the consecutive records of one protection group that travel
// together. The driver builds and sums it once; the same bytes go over the
// wire, into the hot log, through gossip and into the archive.
//
//	 0     4     8       16      24      32      40    44     46  47  48
//	+-----+-----+-------+-------+-------+-------+-----+------+---+---+---------+
//	| crc | len | first | last  | prev  | epoch | pg  |count |ver| f | records |
//	+-----+-----+-------+-------+-------+-------+-----+------+---+---+---------+
//
//	crc    CRC-32C of bytes 4..len, XORed with the CRC-32C of the 16 bytes of
//	       the volume ID, which are not stored: a batch of another volume fails
//	       its sum, and one whose volume is not known yet can be summed first
//	       and judged later
//	len    of the whole batch, header included, in bytes
//	first  LSN of the first record; last: of the last
//	prev   LSN of the last record of this protection group before first, 0 if
//	       first is its first: the chain in which gaps show
//	epoch  volume epoch of the writer
//	pg     number of the protection group
//	count  records, 1 to 65535
//	ver    1; f: 0
//
// # Three back-links
//
// Each record has a link to the record before it of its volume (LSN - 1, since
// LSNs are dense), of its protection group (the record before it in the batch,
// or prev) and of its page (link). The second finds gaps, the third builds a
// page, the first lets a volume be rebuilt from segments alone.
//
// # Page sum
//
// [PageSum] binds volume, page number and LSN as well as the bytes, so that a
// page that was written elsewhere, or not written at all, fails its sum.
//
// # Which CRC-32C
//
// That of the standard library. For this polynomial klauspost/crc32 runs the
// same code and was never faster by measurement (crc.go has the figures and the
// benchmark that repeats them), so it serves the tests as a second opinion.
package redo
