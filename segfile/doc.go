// Package segfile lays segments out on one device: the hot log that they
// share, their page maps and their pages, and what recovery makes of them
// after a crash. It holds no goroutine, no clock and no socket; package
// logqueue drives the log, package coalescer the pages.
//
// # The hot log
//
// One device has one log, so that the batches of many busy segments go out as
// one large write. It is a sequence of extents, ordered by the sequence number
// in their entry of the extent table. A byte's position is
//
//	position = sequence number of its extent * extent size + offset in it
//
// so positions only grow. Each device write holds one or more runs, side by
// side; a run is one append frame as it came off the wire, in which two headers
// were overwritten in place:
//
//	wire   | frame header 32 | entry 24 | batch | pad to 8 | entry 24 | batch | ... zeros
//	disk   | run header   32 | block 24 | batch | pad to 8 | block 24 | batch | ... zeros
//	       ^ on a logical-block boundary, in memory and on the device        up to the next
//
// # Run header
//
//	 0       4     8      12    16          24          32
//	+-------+-----+------+-----+-----------+-----------+
//	| magic | crc | used | gen | position  |  durable  |
//	+-------+-----+------+-----+-----------+-----------+
//
//	magic     "RDR1"; "RDF1" for a filler that closes an extent
//	crc       CRC-32C of the device ID, which is not stored, bytes 0..4, 8..32
//	used      bytes of the run, padding to the logical block excluded; of a
//	          filler: bytes up to the end of the extent
//	gen       generation of the extent
//	position  of this header
//	durable   everything below this position was on stable storage when the
//	          header was written: the witness, see below
//
// # Block header
//
// A block belongs to one segment, or to the log itself (tag 0).
//
//	 0     4       7      8     12    16          24
//	+-----+-------+------+-----+-----+-----------+---------+
//	| crc | len   | kind | tag | gen | position  | content |
//	+-----+-------+------+-----+-----+-----------+---------+
//
//	crc       CRC-32C of the device ID, bytes 4..24, and the content; of a redo
//	          block only the first 48 bytes of the content, which are the
//	          batch's header with the batch's own sum
//	len       of the content in bytes, u24
//	kind      1 redo, a batch           5 tombstone, the segment was deleted
//	          2 map, page map changes   6 restart, what a recovery decided
//	          3 root, page map root     7 void, a batch that was refused or is
//	          4 state of the segment      a duplicate; ignored
//	tag       of the segment on this device; never used twice
//	position  of this header
//
// A stale block from an extent's earlier life has another generation, one that
// was written elsewhere another position or device, a torn one fails its sum.
//
// # Where the log ends, and what is UNKNOWN
//
// Writes complete in any order, so the end of the log may have holes. Recovery
// reads every extent of the log, keeps every block that is whole wherever it
// stands, and takes W, the highest durable field of any whole run header. A
// hole or a damaged block is
//
//   - below W: corrupt. It was acknowledged. What it held is UNKNOWN.
//   - at or above W: torn, as far as this device can tell. 02 counts it as
//     UNKNOWN too, since the newest write has no witness yet: a flipped bit in
//     it looks like a tear. The reason is kept apart, so that a volume of one
//     copy may decide to take torn for never acknowledged.
//
// Where nothing of the extent's generation stands, nothing was written, and
// that is a definite no: NEVER HAD. The last write before a crash is therefore
// the one whose loss by a lying device can't be seen; an idle log appends an
// empty run, the seal, to close even that.
//
// Recovery then begins a fresh extent with the states of the segments that are in
// doubt now and, last, a restart block, which lists the holes it has judged, so
// that no later recovery judges them again by a higher W. Up to that block the
// durable fields are 0: a recovery that is cut short leaves everything to be
// judged as it was. A batch whose header is whole and whose content isn't is a
// hole as well, by the same rule.
//
// # Segment state (kinds 3 and 4)
//
//	 0       8      24     40   44     48   49    50   52   56      64       72
//	+-------+------+------+----+------+----+-----+----+----+-------+--------+
//	|version|segmnt|volume| pg |pages |kind|unkn.|  0 | nt |  vep  |  mep   |
//	+-------+------+------+----+------+----+-----+----+----+-------+--------+
//	| gep | coalesced | vdl | floor | unknown above | unknown to | reserved |
//	+-----+-----------+-----+-------+---------------+------------+----------+
//	 72    80          88    96      104             112          120   128
//	then nt truncations of 24 bytes: u64 epoch, u64 from, u64 to
//
// The state with the highest version counts. A root adds, behind it, u32 n,
// u32 map chunk pages and n times u32 slot+1, u32 crc: the map pages.
//
// # Page map
//
// A page lives in a slot: 16 KiB of an extent that belongs to the segment,
// numbered through the device. A map page holds 1020 entries of 16 bytes
// (u32 slot+1, u32 page sum, u64 LSN) behind a header of 64 bytes; it lies in a
// slot as pages do, and is written to a new one whenever it changes. Changes
// between two roots are map blocks:
//
//	u64 coalesced, u64 vdl, u64 floor, then per page u32 page, u32 slot+1,
//	u32 sum, u32 0, u64 LSN
//
// A page version is written and durable before its map block is written, and
// the slot it replaces is free only when the map block is durable. Pages are
// coalesced up to min(PGMRPL, VDL, SCL) and no further: the one version there
// is then always the oldest that anyone may ask for, and every later read point
// is that version plus records from the log.
//
// # Trimming
//
// Extents leave the log oldest first. The tail may pass a segment's redo up to
// the LSN that its last durable state, root or map block gives as coalesced
// (and no holder, such as the archive, still needs), and must not pass its
// root. The coalescer keeps it moving: it coalesces, writes new roots and, for
// the few blocks of a quiet segment, writes them again at the head.
package segfile
